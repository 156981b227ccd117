"""The targets of detection and what was measured of them: one table over the scenarios' facts.

Measures nothing; reads what the scenarios wrote. A scenario that was not run says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from benchmarks.real_data import adbench, thresholds, xauusd
from benchmarks.real_data.panels import ADAPTIVE, FROZEN
from benchmarks.real_data.report import spread, table
from training.evaluation.compare import figure
from training.evaluation.two_stage import STAGE1, TWO_STAGE

Facts = Mapping[str, Any]
Row = tuple[str, str, str, str]
"""What, target, measured, reached."""

TITLE: Final = "Targets of detection"
NOT_MEASURED: Final = ("not measured", "")


def section(facts: Facts) -> str:
    """Return the table.

    Parameters
    ----------
    facts
        By scenario, of those that were run.
    """
    rows = [
        *_published(facts.get("published")),
        *_planted(facts.get("planted")),
        *_tabular(facts.get("adbench")),
        *_names(facts.get("names")),
        *_budgets(facts.get("thresholds")),
        *_bursts(facts.get("xauusd")),
    ]
    return f"""
Means over seeds (± standard deviation) against the targets that were set before. "Ahead of every
baseline" is by the paired differences of [evaluating.md](evaluating.md), stage 1 alone and the
plain sum included. Budgets are those of thresholds that follow their alarms, the median taken over
instruments and days.

{table(("what", "target", "measured", "reached"), rows)}
""".strip()


def _published(facts: Facts | None) -> list[Row]:
    if facts is None:
        return [("injected LOBSTER, published protocol", "", *NOT_MEASURED)]
    around = facts["published"]
    runs, against = around["runs"], around["against"]

    def row(which: str, kind: str, key: str, target: float) -> Row:
        values = _of(runs, TWO_STAGE, ("ranking", which, kind, key))
        what = f"injected LOBSTER, {which}, {kind}: {'AUROC' if key == 'auroc' else 'AP'}"
        return what, f"{target:g}", spread(values), _yes(np.mean(values) >= target)

    forest = _of(runs, "IsolationForest", ("ranking", "causal", "all", "ap"))
    ours = _of(runs, TWO_STAGE, ("ranking", "causal", "all", "ap"))
    alone = _of(runs, STAGE1, ("ranking", "causal", "all", "ap"))
    wins = sum(a > b for a, b in zip(ours, alone, strict=True))
    return [
        row("delayed", "all", "auroc", 0.975),
        row("delayed", "all", "ap", 0.93),
        row("delayed", "layering", "auroc", 0.92),
        _ahead("injected LOBSTER, delayed AUROC", against, "delayed AUROC"),
        _ahead("injected LOBSTER, delayed AP", against, "delayed AP"),
        row("causal", "all", "auroc", 0.94),
        (
            "injected LOBSTER, causal: AP",
            f"that of IsolationForest, {spread(forest)}",
            spread(ours),
            _yes(np.mean(ours) >= np.mean(forest)),
        ),
        (
            "both stages against stage 1 alone, causal AP",
            "ahead on 4 of 5 seeds",
            f"{wins} of {len(ours)}",
            _yes(wins >= 4),
        ),
    ]


def _planted(facts: Facts | None) -> list[Row]:
    if facts is None:
        return [("planted anomalies, episode recall", "", *NOT_MEASURED)]
    runs, against = facts["together"]["runs"], facts["together"]["against"]
    rows: list[Row] = []
    for point in (FROZEN, ADAPTIVE):
        mean = _of(runs, TWO_STAGE, ("episodes", point, "mean_recall_over_types"))
        types = {
            kind: float(np.mean(_of(runs, TWO_STAGE, ("episodes", point, "types", kind, "recall"))))
            for kind in runs[0]["episodes"][point]["types"]
        }
        worst = min(types, key=lambda kind: types[kind])
        false = _of(runs, TWO_STAGE, ("episodes", point, "false_per_hour"))
        alarm = _of(runs, TWO_STAGE, ("episodes", point, "clean_time_in_alarm"))
        rows += [
            (
                f"planted anomalies, recall at {point}: mean over types",
                "0.9",
                f"{spread(mean, '.2f')}, at {spread(false, '.1f')} false an hour",
                _yes(np.mean(mean) >= 0.9),
            ),
            (
                f"the same at {point}: least type",
                "0.6",
                f"{types[worst]:.2f} ({worst.replace('_', ' ')})",
                _yes(types[worst] >= 0.6),
            ),
            (
                f"the same at {point}: clean time in alarm",
                "at most 1 %",
                f"{spread([100 * each for each in alarm], '.2f')} %",
                _yes(np.mean(alarm) <= 0.01),
            ),
            _ahead(f"the same at {point}", against, f"recall at {point}"),
        ]
    return rows


def _tabular(facts: Facts | None) -> list[Row]:
    if facts is None:
        return [("six tabular sets, mean AUROC", "0.94", *NOT_MEASURED)]
    mean = adbench.mean_auroc(facts["runs"], TWO_STAGE)
    return [("six tabular sets, mean AUROC", "0.94", spread(mean), _yes(np.mean(mean) >= 0.94))]


def _names(facts: Facts | None) -> list[Row]:
    """Read macro-F1 of the names that episodes ended with, over all instruments."""
    what = "names, macro-F1 on detected episodes of trained types"
    if facts is None:
        return [(what, "0.85", *NOT_MEASURED)]
    found = float(facts["pooled"]["close"])
    return [(what, "0.85", f"{found:.2f}", _yes(found >= 0.85))]


def _budgets(facts: Facts | None) -> list[Row]:
    if facts is None:
        return [("alarms realised by alarms asked", "", *NOT_MEASURED)]
    rows: list[Row] = []
    for ask in ("budget 1", "budget 6"):
        of_ask = [row for row in facts["rows"] if row["ask"] == ask]
        found = [thresholds.factor_of(row) for row in of_ask]
        within = sum(factor <= 1.5 for factor in found)
        inside = sum(map(thresholds.kept, of_ask))
        rows += [
            (
                f"alarms against {ask}, later that day and on following days",
                "within a factor of 1.5 each, of few inside the Poisson interval",
                f"{within} of {len(found)} within 1.5, most {max(found):.2f}; {inside} by either",
                _yes(inside == len(found)),
            ),
            (
                f"the same at {ask}: median",
                "within 1.2",
                f"{np.median(found):.2f}",
                _yes(np.median(found) <= 1.2),
            ),
        ]
    return rows


def _bursts(facts: Facts | None) -> list[Row]:
    if facts is None:
        return [("natural bursts", "", *NOT_MEASURED)]
    rows: list[Row] = []
    for policy, asked in xauusd.POLICIES.items():
        runs = [run for run in facts["runs"] if run["policy"] == policy]
        delays = [burst["delay_s"] for run in runs for burst in run["bursts"]]
        prompt = sum(each is not None and each <= xauusd.PROMPT_S for each in delays)
        quiet = [run["quiet_opens_per_hour"] for run in runs]
        within = not asked or np.mean(quiet) <= float(str(asked[1]))
        rows.append(
            (
                f"XAUUSD, {policy}: an episode opens within 10 s after each of two onsets, 3 seeds",
                f"{len(delays)} of {len(delays)}; quiet hours within the budget",
                f"{prompt} of {len(delays)}; {spread(quiet, '.2f')} an hour",
                _yes(prompt == len(delays) and within),
            )
        )
    return rows


def _of(runs: Sequence[Facts], detector: str, path: Sequence[str]) -> list[float]:
    found = [figure(run, path) for run in runs if run["detector"] == detector]
    return [value for value in found if value is not None]


def _ahead(what: str, against: Facts, name: str) -> Row:
    verdicts = {other: found[name]["verdict"] for other, found in against.items() if name in found}
    not_ahead = [other for other, verdict in verdicts.items() if verdict != "ahead"]
    measured = (
        f"ahead of {len(verdicts) - len(not_ahead)} of {len(verdicts)}"
        + (f"; not of {', '.join(not_ahead)}" if not_ahead else "")
    )  # fmt: skip
    return what, "ahead of every baseline", measured, _yes(not not_ahead)


def _yes(reached: object) -> str:
    return "yes" if reached else "no"
