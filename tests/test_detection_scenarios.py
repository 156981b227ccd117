"""The scenarios that compare detectors on real data: their parts, their sums, their tables."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.real_data import adbench, bars, panels, planted, published
from benchmarks.real_data.panels import ADAPTIVE, FROZEN
from detector.ticks import NS_PER_S
from tests.evaluated import stream_of
from training.evaluation.baselines import FOREST
from training.evaluation.compare import comparison
from training.evaluation.two_stage import STAGE1, TWO_STAGE
from training.evaluation_plan import EVALUATION_PLAN, Span

DETECTORS = {TWO_STAGE: 0.9, STAGE1: 0.8, FOREST: 0.7}


def figures(recall: float) -> dict[str, Any]:
    """Episode figures as `judge_episodes` gives them, of ten anomalies of two types."""
    hit = round(5 * recall)
    return {
        "hit": 2 * hit, "planted": 10, "recall": recall, "masked": 1, "false": 6,
        "mean_recall_over_types": recall, "median_delay_ms": 5.0, "median_delay_events": 2.0,
        "clean_hours": 2.0, "false_per_hour": 3.0, "clean_time_in_alarm": 0.005,
        "types": {
            kind: {"planted": 5, "hit": hit, "masked": 0, "recall": recall}
            for kind in ("layering", "feed_gap")
        },
        "instruments": {"AAPL": {"false": 6}},
        "budget": {"AAPL": {"asked": 12.0, "realised": 6, "factor": 0.5, "kept": True,
                            "judged_by": "interval", "interval": [6, 19]}},
    }  # fmt: skip


def some_runs() -> list[dict[str, Any]]:
    """Runs of three detectors and two seeds."""
    return [
        {
            "detector": name,
            "seed": seed,
            "ranking": {
                which: {k: {"auroc": value, "ap": value - 0.1} for k in ("all", "layering")}
                for which in ("causal", "delayed")
            },
            "episodes": {point: figures(value - 0.1) for point in (FROZEN, ADAPTIVE)},
        }
        for name, value in DETECTORS.items()
        for seed in (1, 2)
    ]


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of the same commit are taken again; with changes beside it they never are."""
    calls: list[int] = []

    def run() -> dict[str, Any]:
        calls.append(1)
        return {"n": len(calls)}

    monkeypatch.setattr(panels, "COMMIT", "abc")
    assert [panels.kept(tmp_path, "a", run) for _ in range(2)] == [{"n": 1}] * 2
    monkeypatch.setattr(panels, "COMMIT", "abd")
    assert panels.kept(tmp_path, "a", run) == {"n": 2}
    monkeypatch.setattr(panels, "COMMIT", "abd-dirty")
    assert [panels.kept(tmp_path, "a", run)["n"] for _ in range(2)] == [3, 4]


def test_slim_runs_lose_nothing_that_a_page_shows() -> None:
    """What instruments did goes, and other detectors' budgets; digits are few."""
    runs = some_runs()
    runs[0]["ranking"]["causal"]["all"]["auroc"] = 0.123456789
    kept = panels.slim(runs)
    assert kept[0]["ranking"]["causal"]["all"]["auroc"] == 0.12346
    assert all("instruments" not in each for run in kept for each in run["episodes"].values())
    budgets = {run["detector"] for run in kept if "budget" in run["episodes"][FROZEN]}
    assert budgets == {TWO_STAGE}
    assert kept[0]["episodes"][FROZEN]["types"] == runs[0]["episodes"][FROZEN]["types"]


def test_the_plans_parts_are_cut_by_its_spans() -> None:
    """Fit, a gap, the last tenth, calibration; nothing of the test, nothing outside."""
    subject = EVALUATION_PLAN.subjects[0]
    start = subject.train[0].ns[0]
    seconds = np.arange(-100, 4.6 * 3600, 10)
    stream = stream_of(0 * seconds)
    stream = replace(
        stream, store=replace(stream.store, ts=(start + seconds * NS_PER_S).astype(np.int64))
    )
    parts = planted.planned_parts(stream, subject)
    train = planted.spanned(stream.ts, subject.train)
    assert not (parts.train & ~train).any()
    assert np.count_nonzero(parts.later) == pytest.approx(0.1 * np.count_nonzero(train), abs=8)
    gap = stream.ts[parts.later].min() - stream.ts[parts.fit].max()
    assert gap >= planted.GAP_NS
    assert np.array_equal(parts.calibration, planted.spanned(stream.ts, subject.calibration))
    assert not parts.test.any()
    one = Span("2012-06-21T13:30:00+00:00", "2012-06-21T13:30:20+00:00")
    assert np.count_nonzero(planted.spanned(stream.ts, (one,))) == 2  # the end is exclusive


def test_groups_are_pooled_by_what_was_planted() -> None:
    """A type counts over all instruments, not as a mean of means; rates are by clean time."""
    one, other = figures(1.0), figures(0.0)
    other["types"] = {"layering": {"planted": 15, "hit": 0, "masked": 0, "recall": 0.0}}
    other["clean_hours"], other["false"] = 8.0, 54
    both = planted._pooled([one, other])
    assert both["types"]["layering"]["recall"] == pytest.approx(5 / 20)
    assert both["types"]["feed_gap"]["recall"] == 1.0
    assert both["mean_recall_over_types"] == pytest.approx((0.25 + 1.0) / 2)
    assert both["recall"] == pytest.approx(10 / 25)
    assert both["false_per_hour"] == pytest.approx(6.0)


def test_the_groups_are_all_instruments_of_the_plan() -> None:
    """Each once, with the same parts of time within a group."""
    named = [symbol for group in planted.GROUPS for symbol in group]
    assert sorted(named) == sorted(subject.symbol for subject in EVALUATION_PLAN.subjects)
    by_symbol = {subject.symbol: subject for subject in EVALUATION_PLAN.subjects}
    for group in planted.GROUPS:
        parts = {
            (one.train, one.calibration, one.test) for one in (by_symbol[each] for each in group)
        }
        assert len(parts) == 1


def test_sections_and_targets() -> None:
    """Every scenario says something of every detector; the table of targets reads them all."""
    runs = some_runs()
    against = comparison(runs, TWO_STAGE)
    counts = {"AAPL layering": {"all": 3, "opening": 1}}
    parts = {"fitted": 10, "calibration": 10, "test": 10, "anomalous": 1}
    protocol = {"parts": parts, "runs": runs, "planted": counts, "against": against}
    group = {"runs": panels.slim(runs), "against": against}
    facts: dict[str, Any] = {
        "published": {"features": 76, "published": protocol, "time_ordered": protocol},
        "planted": {
            "features": 76, "models": 2, "groups": {"AAPL-AMZN": group},
            "together": planted._together([group]),
        },
        "adbench": {
            "runs": [
                {"set": name, "seed": seed, "detector": each, "auroc": 0.95, "ap": 0.5}
                for name in adbench.SETS for seed in adbench.SEEDS for each in adbench.DETECTORS
            ]
        },
        "names": {"pooled": {"close": 0.9}},
        "thresholds": {
            "rows": [
                {"ask": ask, "asked": asked, "adaptive": realised}
                for ask in ("budget 1", "budget 6")
                for asked, realised in ((200.0, 290), (5.0, 9), (6.0, 40))
            ]
        },
        "xauusd": {
            "runs": [
                {"policy": policy, "bursts": [{"delay_s": 2.0}, {"delay_s": late}],
                 "quiet_opens_per_hour": 0.7}
                for policy, late in (("quantile", 9.0), ("budget", None))
            ]
        },
    }  # fmt: skip
    for name, scenario in (("published", published), ("planted", planted), ("adbench", adbench)):
        text = scenario.section(facts[name])
        assert TWO_STAGE in text
        assert "nan" not in text
    table = {line.split(" | ")[0].strip("| "): line for line in bars.section(facts).splitlines()}
    assert table["injected LOBSTER, causal, all: AUROC"].endswith("| no |")
    assert table["both stages against stage 1 alone, causal AP"].endswith("2 of 2 | no |")
    assert table["injected LOBSTER, delayed AUROC"].endswith("ahead of 2 of 2 | yes |")
    assert table["six tabular sets, mean AUROC"].endswith("| yes |")
    budget = table["alarms against budget 6, later that day and on following days"]
    assert "1 of 3 within 1.5, most 6.67; 2 by either | no |" in budget
    assert table["the same at budget 6: median"].endswith("1.80 | no |")
    bursts = [line for what, line in table.items() if what.startswith("XAUUSD")]
    assert bursts[0].endswith("2 of 2; 0.70 an hour | yes |")
    assert bursts[1].endswith("1 of 2; 0.70 an hour | no |")
    assert "not measured" in bars.section({})
