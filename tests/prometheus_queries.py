"""Every query of the dashboards and every rule, as Prometheus is asked them.

Dashboards: what Grafana would send, with its variables replaced: all jobs, all instances, the last
minutes. Rules: the expressions as they stand in `deploy/prometheus/rules`, with their own windows.
An alert's expression is empty while all is well, so it is asked a second time with `bool` behind
its comparisons: then it says 0 or 1 wherever it could fire, and nothing where its series are not.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

import yaml

from tests.conftest import REPOSITORY
from tests.dashboard_rules import annotations, panels, variables
from tests.prometheus_server import SCRAPE_S, SOURCE, PrometheusServer

DASHBOARDS: Final = REPOSITORY / "deploy" / "grafana" / "dashboards"
ALL: Final = ".+"
"""What `$job` and `$instance` are where All is chosen: the variables' `allValue`."""

RATE_INTERVAL_S: Final = 4 * SCRAPE_S
"""Grafana's `$__rate_interval`: four scrapes, where a point is no further than that."""

_LABEL_VALUES: Final = re.compile(r"label_values\((.+), (\w+)\)")
_SELECTION: Final = re.compile(r"(\{[^}]*\})")
_COMPARISON: Final = re.compile(r"(==|!=|>=|<=|>|<)")

Kind = Literal["range", "instant", "values"]


@dataclass(frozen=True)
class Query:
    """What is asked, and where it stands: `where` is unique."""

    where: str
    kind: Kind
    expr: str
    label: str = ""
    """Of which the values are asked, for a variable of a dashboard."""


def with_bool(expr: str) -> str:
    """Let every comparison say 0 or 1 in the place of leaving series out."""
    parts = _SELECTION.split(expr)
    return "".join(
        part if part.startswith("{") else _COMPARISON.sub(r"\1 bool", part) for part in parts
    )


def dashboard_queries() -> Iterator[Query]:
    """Queries of all panels, annotations and variables."""
    for path in sorted(DASHBOARDS.glob("*.json")):
        board = json.loads(path.read_text())
        for panel in panels(board):
            for target in panel["targets"]:
                where = f"{path.stem}, {panel['title']} ({panel['id']}), {target['refId']}"
                yield Query(where, "instant" if target["instant"] else "range", target["expr"])
        for where, expr in annotations(board):
            yield Query(f"{path.stem}, {where}", "range", expr)
        for each in variables(board, "query"):
            found = _LABEL_VALUES.fullmatch(each["query"])
            assert found is not None, each["query"]
            yield Query(f"{path.stem}, variable {each['name']}", "values", found[1], found[2])


def rules() -> Iterator[dict[str, Any]]:
    """Every rule of every file."""
    for path in sorted((SOURCE / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def rule_queries() -> Iterator[Query]:
    """Expressions of all rules, those of alerts with `bool`."""
    for rule in rules():
        if "record" in rule:
            yield Query(f"rule {rule['record']}", "instant", rule["expr"])
        else:
            yield Query(f"alert {rule['alert']}", "instant", with_bool(rule["expr"]))


def every_query() -> tuple[Query, ...]:
    """All of them, each where it stands."""
    found = (*dashboard_queries(), *rule_queries())
    assert len({query.where for query in found}) == len(found)
    return found


class Asker:
    """Asks one Prometheus, as Grafana does that shows the time since `start_s` (epoch seconds)."""

    def __init__(self, server: PrometheusServer, start_s: float) -> None:
        self.server, self.start_s = server, start_s

    def series(self, query: Query) -> int:
        """Return how many series answer, of those that have a number in them.

        Raises
        ------
        PrometheusError
            If Prometheus finds something wrong with the query.
        """
        shown: dict[str, str | float]
        now_s = time.time()
        expr = self._concrete(query.expr, now_s)
        if query.kind == "values":
            path = f"label/{query.label}/values"
            shown = {"match[]": expr, "start": self.start_s, "end": now_s}
            return len(self.server.ask(path, **shown))
        if query.kind == "range":
            shown = {"query": expr, "start": self.start_s, "end": now_s, "step": SCRAPE_S}
            answer = self.server.ask("query_range", **shown)["result"]
            return sum(has_number(series["values"]) for series in answer)
        answer = self.server.ask("query", query=expr)
        assert answer["resultType"] == "vector", query
        return sum(has_number([series["value"]]) for series in answer["result"])

    def _concrete(self, expr: str, now_s: float) -> str:
        values = {
            "$__rate_interval": f"{RATE_INTERVAL_S}s",
            "$__range": f"{math.ceil(now_s - self.start_s)}s",
            "$__from": f"{self.start_s * 1000:.0f}",
            "$__to": f"{now_s * 1000:.0f}",
            "$job": ALL,
            "$instance": ALL,
        }
        for name, value in values.items():
            expr = expr.replace(name, value)
        assert "$" not in expr, f"{expr} has a variable that nobody replaces"
        return expr


def has_number(points: Iterable[tuple[float, str]]) -> bool:
    """Whether a series has anything else than NaN, which a panel shows as nothing."""
    return any(not math.isnan(float(value)) for _, value in points)


def most_series(
    asker: Asker, queries: Iterable[Query], enough: Callable[[dict[str, int]], bool], wait_s: float
) -> dict[str, int]:
    """Ask until there is enough, or for `wait_s`; return the most series of each, by place.

    What shows the moment (open episodes, for one) has data at times only: having had some counts.
    """
    found = {query.where: 0 for query in queries}
    deadline = time.monotonic() + wait_s
    while True:
        for query in queries:
            found[query.where] = max(found[query.where], asker.series(query))
        if enough(found) or time.monotonic() > deadline:
            return found
        time.sleep(SCRAPE_S)
