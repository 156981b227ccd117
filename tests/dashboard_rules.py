"""Rules for dashboards, those of Grafana's linter by their names there and a few of our own.

Each rule takes a dashboard, as read from its JSON, and says what is wrong with it, a sentence each.

References
----------
https://github.com/grafana/dashboard-linter, docs/index.md and docs/rules/
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import promql_parser as promql

Dashboard = dict[str, Any]
Rule = Callable[[Dashboard], Iterator[str]]

RATE_INTERVAL: Final = timedelta(seconds=1234)
"""What `$__rate_interval` is while an expression is parsed: nobody writes that by hand."""

VARIABLES: Final = {
    "$__rate_interval": f"{RATE_INTERVAL.seconds}s",
    "$__range": "3600s",
    "$__from": "1",
    "$__to": "2",
}
UNITS: Final = {"short", "none", "percentunit", "cps", "s", "bytes"}
"""Those of Grafana's units that the boards use; the linter has the whole list."""

RATES: Final = {"rate", "irate", "increase"}
OF_NO_INSTANCE: Final = ("job:", "job_stage:", "global:")
"""Levels of recorded series without an instance: a matcher on it would match nothing."""


def panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    """Panels that show something, also those inside of collapsed rows."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel.get("panels", [])
        else:
            yield panel


def expressions(dashboard: Dashboard) -> Iterator[tuple[str, str]]:
    """Where an expression stands, and the expression."""
    for panel in panels(dashboard):
        for target in panel.get("targets", []):
            yield f"panel {panel['title']!r}, query {target['refId']}", target["expr"]


def annotations(dashboard: Dashboard) -> Iterator[tuple[str, str]]:
    """Where an annotation's expression stands, and the expression."""
    for each in dashboard["annotations"]["list"]:
        yield f"annotation {each['name']!r}", each["expr"]


def variables(dashboard: Dashboard, kind: str) -> list[dict[str, Any]]:
    """Template variables of a type."""
    return [each for each in dashboard["templating"]["list"] if each["type"] == kind]


def concrete(expr: str) -> str:
    """Return an expression with values in the place of Grafana's variables."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def parsed(expr: str) -> promql.Expr | None:
    """Return the syntax tree of an expression; None where it has none, which is another rule."""
    try:
        return promql.parse(concrete(expr))
    except ValueError:
        return None


def nodes(tree: Any, parents: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every node of a syntax tree with those around it, the outermost first."""
    yield tree, parents
    inside = (*parents, tree)
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        child = getattr(tree, name, None)
        if isinstance(child, promql.Expr):
            yield from nodes(child, inside)
    for child in getattr(tree, "args", ()):
        yield from nodes(child, inside)


def selectors(expr: str) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The selectors of an expression, each with what is around it."""
    tree = parsed(expr)
    for node, parents in nodes(tree) if tree is not None else ():
        if isinstance(node, promql.VectorSelector):
            yield node, parents


def matchers(selector: Any) -> dict[str, str]:
    """Labels that a selector asks for, each as `=~"value"`."""
    return {each.name: str(each).removeprefix(each.name) for each in selector.matchers.matchers}


def template_datasource(dashboard: Dashboard) -> Iterator[str]:
    """There is one data source to choose, of Prometheus, under its usual name."""
    found = [(v["name"], v["label"], v["query"]) for v in variables(dashboard, "datasource")]
    if found != [("datasource", "Data source", "prometheus")]:
        yield f"data source variables are {found}"


def template_selection(name: str) -> Rule:
    """Return the rule that there is a variable for a label, where several values can be chosen."""

    def rule(dashboard: Dashboard) -> Iterator[str]:
        found = [v for v in variables(dashboard, "query") if v["name"] == name]
        if len(found) != 1:
            yield f"{len(found)} variables {name}"
        for each in found:
            if each["label"] != name.capitalize():
                yield f"variable {name} is labelled {each['label']!r}"
            if each["datasource"]["uid"] != "${datasource}":
                yield f"variable {name} asks {each['datasource']}"
            if not each.get("multi") or each.get("allValue") != ".+":
                yield f"variable {name} does not let choose several, or all by .+"

    return rule


def template_label_promql(dashboard: Dashboard) -> Iterator[str]:
    """What variables list are label values of a selector that can be parsed."""
    for each in variables(dashboard, "query"):
        found = re.fullmatch(r"label_values\((.+), [a-z_]+\)", each["query"])
        if found is None or parsed(found[1]) is None:
            yield f"variable {each['name']} lists {each['query']!r}"


def template_on_time_change_reload(dashboard: Dashboard) -> Iterator[str]:
    """Variables are listed anew when another time is shown."""
    for each in variables(dashboard, "query"):
        if each.get("refresh") != 2:
            yield f"variable {each['name']} has refresh {each.get('refresh')}"


def panel_datasource(dashboard: Dashboard) -> Iterator[str]:
    """Panels, their queries and annotations ask the data source that was chosen."""
    asked = [(f"panel {p['title']!r}", p) for p in panels(dashboard)]
    asked += [(f"panel {p['title']!r}", t) for p in panels(dashboard) for t in p.get("targets", [])]
    asked += [(f"annotation {a['name']!r}", a) for a in dashboard["annotations"]["list"]]
    for where, each in asked:
        if each.get("datasource") != {"type": "prometheus", "uid": "${datasource}"}:
            yield f"{where} asks {each.get('datasource')}"


def panel_title_description(dashboard: Dashboard) -> Iterator[str]:
    """Panels say what they show and what it means."""
    for each in panels(dashboard):
        if not each.get("title") or not each.get("description"):
            yield f"panel {each.get('title')!r} ({each['id']}) lacks a title or a description"


def panel_units(dashboard: Dashboard) -> Iterator[str]:
    """Panels have a unit that Grafana knows."""
    for each in panels(dashboard):
        unit = each["fieldConfig"]["defaults"].get("unit")
        if unit not in UNITS:
            yield f"panel {each['title']!r} has the unit {unit}"


def panel_no_targets(dashboard: Dashboard) -> Iterator[str]:
    """Panels ask for something."""
    for each in panels(dashboard):
        if not each.get("targets"):
            yield f"panel {each['title']!r} asks for nothing"


def target_logql(dashboard: Dashboard) -> Iterator[str]:
    """Nothing is asked of Loki: the rules for LogQL have nothing to look at."""
    for each in panels(dashboard):
        for target in each.get("targets", []):
            if target["datasource"]["type"] == "loki":
                yield f"panel {each['title']!r} asks Loki, whose queries nothing checks here"


def target_promql(dashboard: Dashboard) -> Iterator[str]:
    """Expressions can be parsed."""
    for where, expr in (*expressions(dashboard), *annotations(dashboard)):
        if parsed(expr) is None:
            yield f"{where} cannot be parsed: {expr}"


def target_rate_interval(dashboard: Dashboard) -> Iterator[str]:
    """Rates are over `$__rate_interval`, which follows the time shown and the scrape interval."""
    for where, expr in expressions(dashboard):
        tree = parsed(expr)
        for node, parents in nodes(tree) if tree is not None else ():
            if not isinstance(node, promql.MatrixSelector) or node.range == RATE_INTERVAL:
                continue
            call = parents[-1] if parents else None
            if isinstance(call, promql.Call) and call.func.name in {"rate", "irate"}:
                yield f"{where} has a rate over {node.range}: {expr}"


def target_selection(name: str) -> Rule:
    """Return the rule that every selector is limited to what was chosen of a label."""

    def rule(dashboard: Dashboard) -> Iterator[str]:
        for where, expr in (*expressions(dashboard), *annotations(dashboard)):
            for selector, _ in selectors(expr):
                asked = matchers(selector).get(name)
                none = name == "instance" and selector.name.startswith(OF_NO_INSTANCE)
                if asked != (None if none else f'=~"${name}"'):
                    yield f"{where} asks {selector.name} for {name} {asked}"

    return rule


def target_counter_agg(dashboard: Dashboard) -> Iterator[str]:
    """Counters are shown by how fast they rise, never as they are."""
    for where, expr in expressions(dashboard):
        for selector, parents in selectors(expr):
            if not selector.name.endswith(("_total", "_bucket", "_sum", "_count")):
                continue
            call = parents[-2] if len(parents) > 1 else None
            if not isinstance(call, promql.Call) or call.func.name not in RATES:
                yield f"{where} shows the counter {selector.name} as it is"


def uneditable(dashboard: Dashboard) -> Iterator[str]:
    """What is read from a file cannot be changed in the browser."""
    if dashboard.get("editable") is not False:
        yield f"editable is {dashboard.get('editable')}"


def fits_the_grid(dashboard: Dashboard) -> Iterator[str]:
    """No panel is wider than what is left of its line, and none lies upon another."""
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        if place["x"] + place["w"] > 24:
            yield f"panel {panel['title']!r} ends at column {place['x'] + place['w']}"
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((x, y), panel["title"])
                if other != panel["title"]:
                    yield f"panel {panel['title']!r} lies upon {other!r}"
                    return


RULES: Final[Mapping[str, Rule]] = {
    "template-datasource-rule": template_datasource,
    "template-job-rule": template_selection("job"),
    "template-instance-rule": template_selection("instance"),
    "template-label-promql-rule": template_label_promql,
    "template-on-time-change-reload-rule": template_on_time_change_reload,
    "panel-datasource-rule": panel_datasource,
    "panel-title-description-rule": panel_title_description,
    "panel-units-rule": panel_units,
    "panel-no-targets-rule": panel_no_targets,
    "target-logql-rule": target_logql,
    "target-promql-rule": target_promql,
    "target-rate-interval-rule": target_rate_interval,
    "target-job-rule": target_selection("job"),
    "target-instance-rule": target_selection("instance"),
    "target-counter-agg-rule": target_counter_agg,
    "uneditable-dashboard-rule": uneditable,
    "fits the grid": fits_the_grid,
}
