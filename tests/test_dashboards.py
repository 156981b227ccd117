"""deploy/grafana: the boards are in step with their code, lint clean, and ask for what there is."""

from __future__ import annotations

import copy
import functools
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from deploy.grafana.boards import BOARDS
from deploy.grafana.boards.parts import RUNBOOK
from detector.drift import MOVED
from detector.events import CRITICAL_FROM, MAJOR_FROM
from detector.metrics import LATENCY_BUCKETS_S, STAGES, Metrics
from detector.resources import ProcessMetrics
from tests.conftest import REPOSITORY, leave_out
from tests.dashboard_rules import (
    RULES,
    Dashboard,
    annotations,
    concrete,
    expressions,
    matchers,
    nodes,
    panels,
    parsed,
    selectors,
)
from tests.test_metrics import fill

FOLDER = REPOSITORY / "deploy" / "grafana" / "dashboards"
RECORDED = REPOSITORY / "deploy" / "prometheus" / "rules" / "recording.yml"
LEVELS = {
    "job": {"job"},
    "job_stage": {"job", "stage"},
    "instance": {"job", "instance"},
}
UNBOUNDED = {"symbol", "rank", "hash"}
"""Labels that only tables may show: each of their series is a line, and there are few."""

boards = pytest.mark.parametrize("name", sorted(BOARDS))


def committed(name: str) -> Dashboard:
    """Return a board as it is committed."""
    found: Dashboard = json.loads((FOLDER / f"{name}.json").read_text())
    return found


@functools.cache
def exposed() -> dict[str, frozenset[str]]:
    """Return the series that Prometheus has of a daemon, each with the labels it may have."""
    registry = CollectorRegistry()
    fill(Metrics(registry))
    registry.register(ProcessMetrics())
    page = (REPOSITORY / "docs" / "metrics.md").read_text()  # has those that this machine lacks
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| ([\w, ]*) \|", page, re.MULTILINE)
    found = {series: frozenset(filter(None, labels.split(", "))) for series, labels in rows}
    found["up"] = frozenset()
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, frozenset()) | frozenset(sample.labels)
    found = {series: labels | {"job", "instance"} for series, labels in found.items()}
    for group in yaml.safe_load(RECORDED.read_text())["groups"]:
        for rule in group["rules"]:
            found[rule["record"]] = frozenset(LEVELS[rule["record"].split(":")[0]])
    return found


def unknown(dashboard: Dashboard) -> list[str]:
    """Say which series and labels a board asks for that there are not."""
    found = []
    for where, expr in (*expressions(dashboard), *annotations(dashboard)):
        there: set[str] = set()
        for selector, _ in selectors(expr):
            labels = exposed().get(selector.name)
            if labels is None:
                found.append(f"{where} asks for {selector.name}")
                continue
            there |= labels
            found += [
                f"{where} asks {selector.name} for {label}"
                for label in set(matchers(selector)) - labels
            ]
        used = {label for node, _ in nodes(parsed(expr)) for label in grouped_by(node)}
        found += [f"{where} sums by {label}" for label in used - there]
    for panel in panels(dashboard):
        for target in panel["targets"]:
            series = [exposed().get(s.name, frozenset()) for s, _ in selectors(target["expr"])]
            shown = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            found += [
                f"panel {panel['title']!r} names {label}"
                for label in shown - frozenset().union(*series)
            ]
    return found


def grouped_by(node: Any) -> list[str]:
    """Labels that an aggregation keeps, or that two sides are matched by."""
    modifier = getattr(node, "modifier", None)
    matching = getattr(modifier, "matching", None) or modifier
    return list(getattr(matching, "labels", ()))


@boards
def test_board_is_in_step(name: str) -> None:
    """The committed file is what `make dashboards` writes, byte for byte."""
    assert (FOLDER / f"{name}.json").read_text() == BOARDS[name]().to_json(), "make dashboards"


def test_no_board_is_left_over() -> None:
    """Every file of the folder that Grafana reads is written by the code."""
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.json" for name in BOARDS}


@boards
@pytest.mark.parametrize("rule", sorted(RULES))
def test_board_keeps_the_rule(name: str, rule: str) -> None:
    """Nothing is found by a rule of Grafana's dashboard linter, or by ours."""
    assert list(RULES[rule](committed(name))) == []


def first(dashboard: Dashboard) -> dict[str, Any]:
    """Return the first panel that is no row."""
    return next(panels(dashboard))


def variable(dashboard: Dashboard, name: str) -> dict[str, Any]:
    """Return a template variable."""
    found: dict[str, Any] = next(v for v in dashboard["templating"]["list"] if v["name"] == name)
    return found


def ask(expr: str) -> Callable[[Dashboard], object]:
    """Return what lets the first panel ask for something else."""
    return lambda dashboard: first(dashboard)["targets"][0].update(expr=expr)


CHOSEN = 'job=~"$job", instance=~"$instance"'
BREAKS: dict[str, Callable[[Dashboard], object]] = {
    "template-datasource-rule": lambda d: variable(d, "datasource").update(name="prometheus"),
    "template-job-rule": lambda d: variable(d, "job").update(multi=False),
    "template-instance-rule": lambda d: variable(d, "instance").update(allValue=".*"),
    "template-label-promql-rule": lambda d: variable(d, "job").update(query="label_values(a{, b)"),
    "template-on-time-change-reload-rule": lambda d: variable(d, "job").update(refresh=1),
    "panel-datasource-rule": lambda d: first(d).update(datasource={"uid": "prometheus"}),
    "panel-title-description-rule": lambda d: first(d).update(description=""),
    "panel-units-rule": lambda d: first(d)["fieldConfig"]["defaults"].update(unit="bananas"),
    "panel-no-targets-rule": lambda d: first(d).update(targets=[]),
    "target-logql-rule": lambda d: first(d)["targets"][0].update(datasource={"type": "loki"}),
    "target-promql-rule": ask("sum(tapewatch_ready"),
    "target-rate-interval-rule": ask(f"sum(rate(tapewatch_ticks_total{{{CHOSEN}}}[5m]))"),
    "target-job-rule": ask('tapewatch_ready{instance=~"$instance"}'),
    "target-instance-rule": ask('sum(tapewatch_ready{job=~"$job"})'),
    "target-counter-agg-rule": ask(f"sum(tapewatch_ticks_total{{{CHOSEN}}})"),
    "uneditable-dashboard-rule": lambda d: d.update(editable=True),
    "fits the grid": lambda d: first(d)["gridPos"].update(w=4),
}


@pytest.mark.parametrize("rule", sorted(RULES))
def test_a_board_that_breaks_a_rule_would_be_noticed(rule: str) -> None:
    """Each rule finds the one change that breaks it."""
    dashboard = copy.deepcopy(committed("overview"))
    BREAKS[rule](dashboard)
    assert list(RULES[rule](dashboard))


@boards
def test_board_asks_for_what_there_is(name: str) -> None:
    """Every series is exposed or recorded, and has the labels that are asked for and shown."""
    assert unknown(committed(name)) == []


@pytest.mark.parametrize(
    ("expr", "found"),
    [
        ("tapewatch_reddy", "asks for tapewatch_reddy"),
        ('tapewatch_ready{stage="1"}', "asks tapewatch_ready for stage"),
        ("sum by (stage) (tapewatch_ready)", "sums by stage"),
        ("job:tapewatch_ticks:rate1m", "asks for job:tapewatch_ticks:rate1m"),
        ("tapewatch_ready / on (client) tapewatch_ready", "sums by client"),
    ],
)
def test_a_series_that_there_is_not_would_be_noticed(expr: str, found: str) -> None:
    """A misspelt metric, a label it does not have, a rule that is not recorded."""
    dashboard = committed("overview")
    ask(expr)(dashboard)
    assert any(each.endswith(found) for each in unknown(dashboard))


@boards
def test_instruments_are_in_tables_only(name: str) -> None:
    """No curve has a label that grows with the market or the number of models."""
    for panel in panels(committed(name)):
        for target in panel["targets"]:
            shown = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            assert panel["type"] == "table" or not shown & UNBOUNDED, panel["title"]


def test_edges_and_stages_are_those_of_the_metrics() -> None:
    """The objective and the threshold are edges of their buckets; every stage has its heat map."""
    latency, model = committed("latency"), committed("model")
    shown = {str(m) for _, e in expressions(latency) for m in re.findall(r'stage="(\w+)"', e)}
    assert shown == set(STAGES)
    assert 0.2 in LATENCY_BUCKETS_S
    drift = next(p for p in panels(model) if p["title"] == "Drift of the score")
    colours = drift["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert colours[-1]["value"] == MOVED
    table = next(p for p in panels(committed("overview")) if p["title"] == "Worst open episodes")
    colours = table["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert [step["value"] for step in colours[1:]] == [MAJOR_FROM, CRITICAL_FROM]
    registry = CollectorRegistry()
    Metrics(registry)
    asked = {m for _, e in expressions(model) for m in re.findall(r'le="([\d.]+)"', e)}
    assert asked == {"1.0"}
    edge = registry.get_sample_value("tapewatch_score_per_threshold_bucket", {"le": "1.0"})
    assert edge == 0.0


def test_events_are_shown_on_the_latency_curves() -> None:
    """The panels of tick to event ask for exemplars."""
    for name in ("overview", "latency"):
        panel = next(
            p
            for p in panels(committed(name))
            if p["title"] == "Tick to event" and p["type"] == "timeseries"
        )
        assert any(target["exemplar"] for target in panel["targets"])


def test_prometheus_accepts_every_query(tmp_path: Path) -> None:
    """Prometheus' own parser takes each expression, as the body of a recording rule."""
    promtool = shutil.which("promtool")
    if promtool is None:
        leave_out("promtool is not installed (Debian: apt-get install prometheus)")
    queries = [
        concrete(expr)
        for name in BOARDS
        for _, expr in (*expressions(committed(name)), *annotations(committed(name)))
    ]
    assert check_with(promtool, queries, tmp_path).returncode == 0
    refused = check_with(promtool, [*queries, "sum by instance (up)"], tmp_path)
    assert refused.returncode != 0


def check_with(promtool: str, queries: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Let promtool check queries."""
    rules = [{"record": f"query:{number}", "expr": query} for number, query in enumerate(queries)]
    path = folder / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    return subprocess.run(
        [promtool, "check", "rules", str(path)], capture_output=True, text=True, check=False
    )


def links(dashboard: Dashboard) -> set[str]:
    """Return the addresses that a board and its panels lead to."""
    found = [*dashboard["links"], *(each for p in panels(dashboard) for each in p.get("links", []))]
    return {link["url"] for link in found if link["type"] == "link"}


def test_links_lead_to_sections_of_the_runbook() -> None:
    """Each link leads to the runbook, to a heading that it has."""
    text = (REPOSITORY / "docs" / "runbook.md").read_text()
    headings = re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
    for name in BOARDS:
        for url in links(committed(name)):
            address, _, anchor = url.partition("#")
            assert address == RUNBOOK
            assert not anchor or anchor in anchors, url


def test_boards_lead_to_one_another_and_keep_what_is_chosen() -> None:
    """Links between boards carry variables and time; no two boards share an identity."""
    found = [committed(name) for name in BOARDS]
    assert len({board["uid"] for board in found}) == len({board["title"] for board in found}) == 3
    for board in found:
        assert board["tags"] == ["tapewatch"]
        between = next(link for link in board["links"] if link["type"] == "dashboards")
        assert between["tags"] == ["tapewatch"]
        assert between["includeVars"]
        assert between["keepTime"]
