"""The figures of an evaluation as tables of text, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from training.evaluation.compare import figure
from training.evaluation.panel import ordered

Metrics = Mapping[str, Any]
Table = tuple[str, list[str], list[list[str]]]
"""Title, head, rows."""

Runs = Sequence[Mapping[str, Any]]

NOTHING = "-"


def detectors(runs: Runs) -> list[str]:
    """Detectors of some runs, in the order of every table."""
    return ordered([run["detector"] for run in runs])


def spread(values: Sequence[float | None], form: str = ".3f") -> str:
    """Mean and standard deviation over seeds; one value alone as it is."""
    known = [value for value in values if value is not None]
    if not known:
        return NOTHING
    if len(known) == 1:
        return f"{known[0]:{form}}"
    return f"{np.mean(known):{form}} ± {np.std(known, ddof=1):{form}}"


def of(runs: Runs, detector: str, *path: str) -> list[float | None]:
    """Return a figure of a detector, seed by seed."""
    return [figure(run, path) for run in runs if run["detector"] == detector]


def ranking_table(title: str, runs: Runs, which: str, measure: str, kinds: Sequence[str]) -> Table:
    """Rank figures of every detector, overall and by type.

    Parameters
    ----------
    which, measure
        `causal` or `delayed`; `auroc` or `ap`.
    """
    rows = [
        [name, *(spread(of(runs, name, "ranking", which, kind, measure)) for kind in kinds)]
        for name in detectors(runs)
    ]
    return title, ["detector", *map(plain, kinds)], rows


def episode_table(title: str, runs: Runs, point: str) -> Table:
    """Say what every detector's episodes were at an operating point."""
    head = [
        "detector", "recall, mean over types", "recall", "median delay, ms", "events",
        "false an hour", "clean time in alarm",
    ]  # fmt: skip
    rows = []
    for name in detectors(runs):

        def cell(key: str, form: str, scale: float = 1.0, name: str = name) -> str:
            found = of(runs, name, "episodes", point, key)
            return spread([None if v is None else v * scale for v in found], form)

        rows.append(
            [
                name,
                cell("mean_recall_over_types", ".2f"),
                cell("recall", ".2f"),
                cell("median_delay_ms", ",.0f"),
                cell("median_delay_events", ",.0f"),
                cell("false_per_hour", ".1f"),
                f"{cell('clean_time_in_alarm', '.2f', 100)} %",
            ]
        )
    return title, head, rows


def recall_table(title: str, runs: Runs, point: str, kinds: Sequence[str]) -> Table:
    """Recall of every detector by type at an operating point."""
    rows = [
        [
            name,
            *(
                spread(of(runs, name, "episodes", point, "types", kind, "recall"), ".2f")
                for kind in kinds
            ),
        ]
        for name in detectors(runs)
    ]
    return title, ["detector", *map(plain, kinds)], rows


def against_table(title: str, against: Metrics) -> Table:
    """Paired differences and verdicts."""
    figures = list(dict.fromkeys(name for one in against.values() for name in one))
    rows = []
    for other, found in against.items():
        cells = []
        for name in figures:
            pair = found.get(name)
            if pair is None:
                cells.append(NOTHING)
            elif pair["verdict"] is None:
                cells.append(f"{pair['mean']:+.3f}")
            else:
                cells.append(f"{pair['mean']:+.3f} ± {pair['sd']:.3f}, {pair['verdict']}")
        rows.append([other, *cells])
    return title, ["two stages less", *figures], rows


def budget_table(title: str, episodes: Metrics) -> Table:
    """Alarm budgets by instrument and operating point of one run."""
    rows = []
    for point, facts in episodes.items():
        for name, one in facts.get("budget", {}).items():
            interval = " to ".join(map(str, one["interval"])) if "interval" in one else NOTHING
            rows.append(
                [
                    point,
                    name,
                    f"{one['asked']:.1f}",
                    f"{one['realised']}",
                    NOTHING if one["factor"] is None else f"{one['factor']:.2f}",
                    interval,
                    "yes" if one["kept"] else "no",
                ]
            )
    head = ["asked", "instrument", "alarms asked", "realised", "factor", "95 % of counts", "kept"]
    return title, head, rows


def kinds_of(runs: Runs) -> list[str]:
    """`all`, then the types that were there."""
    found: list[str] = []
    for run in runs:
        found += [kind for kind in run["ranking"]["causal"] if kind not in found]
    return found


def plain(name: str) -> str:
    """Words instead of an identifier."""
    return name.replace("_", " ")


def summary(metrics: Metrics) -> list[Table]:
    """Return what fits on a screen: rows of both protocols, and episodes."""
    runs = metrics["time_ordered"]["runs"]
    point = "6 an hour, frozen"
    tables = [
        _brief("time-ordered, causal", runs),
        episode_table(f"episodes at {point}", runs, point),
    ]
    published = metrics["published"]
    if published and "runs" in published:
        tables.insert(1, _brief("published protocol, causal", published["runs"]))
    return tables


def without_thresholds(metrics: Metrics) -> list[str]:
    """Say why operating points have no figures, each reason once."""
    points: dict[str, list[str]] = {}
    for run in metrics["time_ordered"]["runs"]:
        for point, why in run["episodes"]["refused"].items():
            if point not in points.setdefault(why, []):
                points[why].append(point)
    return [f"no thresholds for {'; '.join(some)}: {why}" for why, some in points.items()]


def _brief(title: str, runs: Runs) -> Table:
    rows = [
        [name, *(spread(of(runs, name, "ranking", "causal", "all", m)) for m in ("auroc", "ap"))]
        for name in detectors(runs)
    ]
    return title, ["detector", "AUROC", "average precision"], rows
