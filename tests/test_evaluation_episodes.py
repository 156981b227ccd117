"""Episodes held against anomalies: timelines with known answers, and an oracle on random ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.events import EpisodePolicy
from detector.placing import Planted
from detector.scripts import AnomalyKind
from detector.thresholds import GAP_S
from detector.ticks import NS_PER_S
from tests import oracle_evaluation as oracle
from tests.evaluated import START, planted, times
from training.evaluation.episodes import (
    Episodes,
    clean_time,
    episodes_of,
    judge_episodes,
    verdicts,
)

STEP_S = 20
"""Seconds between two characters of a timeline: each alarm is an episode of its own."""


def timeline(line: str) -> tuple[Episodes, list[Planted]]:
    """Read a timeline: `.` a tick, `!` an alarm, `-` and `o` the same within an anomaly."""
    seconds = np.arange(len(line)) * STEP_S
    alarm = np.array([each in "!o" for each in line])
    keys = np.full(len(line), 10, np.int64)
    found = episodes_of(keys, times(seconds), alarm * 2.0 + 0.1, np.ones(len(line)))
    anomalies, start = [], None
    for place, each in enumerate(line + "."):
        if each in "-o":
            start = place if start is None else start
        elif start is not None:
            anomalies.append(planted(start * STEP_S, (place - 1) * STEP_S))
            start = None
    return found, anomalies


@pytest.mark.parametrize(
    ("line", "told"),
    [
        pytest.param("....--o-....", "      h     ", id="an alarm within it"),
        pytest.param("....oooo....", "    hmmm    ", id="only the first one counts"),
        pytest.param("..!.o-......", "  f m       ", id="too soon after another alarm"),
        pytest.param("..!..o-.....", "  f  h      ", id="60 s after it is soon enough"),
        pytest.param("..!.o--o-...", "  f m  h    ", id="it may still be told of later"),
        pytest.param("....---!....", "       f    ", id="too late"),
        pytest.param("o-..........", "h           ", id="from the first tick on"),
        pytest.param("--o....-o...", "  h     h   ", id="two anomalies"),
        pytest.param("!.!.!.------", "f f f       ", id="missed"),
        pytest.param("............", "            ", id="nothing at all"),
    ],
)
def test_timelines(line: str, told: str) -> None:
    """h: hit, m: masked, f: false; characters are 20 s apart."""
    found, anomalies = timeline(line)
    words = verdicts(found, anomalies).verdict
    place = ((found.start - START) // (STEP_S * 10**9)).tolist()
    marks = dict(zip(place, (word[0] for word in words.tolist()), strict=True))
    assert "".join(marks.get(i, " ") for i in range(len(line))) == told


@pytest.mark.parametrize(("after_end_s", "word"), [(1.0, "hit"), (1.000_001, "false")])
def test_a_second_after_the_end_is_in_time(after_end_s: float, word: str) -> None:
    """The episode may open up to a second after the anomaly's end, that moment included."""
    opens = times([100 + after_end_s])
    one = Episodes(np.array([10]), opens, opens, np.array([0]))
    assert verdicts(one, [planted(90, 100)]).verdict.tolist() == [word]


def test_an_open_episode_tells_of_nothing_new() -> None:
    """What was in alarm already when the anomaly began is no detection of it."""
    opens, ends = times([50]), times([300])
    one = Episodes(np.array([10]), opens, ends, np.array([0]))
    found = verdicts(one, [planted(100, 200)])
    assert found.told_by.tolist() == [-1]
    assert found.verdict.tolist() == ["false"]


def test_alarms_of_another_instrument_neither_tell_nor_mask() -> None:
    """Everything is by instrument."""
    both = Episodes(np.array([20, 10]), times([95, 105]), times([95, 105]), np.array([0, 1]))
    found = verdicts(both, [planted(90, 110)])
    assert found.verdict.tolist() == ["false", "hit"]
    assert found.told_by.tolist() == [1]


def test_the_delay_is_from_the_anomalys_start() -> None:
    """In ms of event time, and in ticks of that instrument, counted from its first one on."""
    keys = np.array([10, 10, 20, 10, 10, 10])
    ts = times([0, 10, 10.1, 10.2, 10.5, 11])
    score = np.array([0.1, 0.1, 0.1, 0.1, 2.0, 0.1])
    found = episodes_of(keys, ts, score, np.ones(6))
    anomalies = [planted(10, 11)]
    facts = judge_episodes(
        found, verdicts(found, anomalies), anomalies, keys, ts, {10: "AAA", 20: "BBB"}
    )
    assert facts["median_delay_ms"] == pytest.approx(500)
    assert facts["median_delay_events"] == 2  # after two ticks of its own
    assert facts["types"]["layering"]["recall"] == 1.0


def test_masked_anomalies_and_masked_episodes_are_counted_apart() -> None:
    """Two episodes mask one anomaly: one of `masked`, two of its instrument's `masked_episodes`."""
    found, anomalies = timeline("..!.oo......")
    facts = judge_episodes(
        found, verdicts(found, anomalies), anomalies, np.full(12, 10), times(np.arange(12) * 20),
        {10: "AAA"},
    )  # fmt: skip
    assert facts["masked"] == facts["types"]["layering"]["masked"] == 1
    assert facts["instruments"]["AAA"]["masked_episodes"] == 2
    assert "masked" not in facts["instruments"]["AAA"]


def test_recall_is_a_mean_over_types_and_not_over_anomalies() -> None:
    """One type with many anomalies does not outweigh another."""
    found, anomalies = timeline("o-....o-....--..")
    anomalies[2] = planted(240, 260, kind=AnomalyKind.CROSSED_BOOK)
    ts = times(np.arange(16) * STEP_S)
    facts = judge_episodes(
        found, verdicts(found, anomalies), anomalies, np.full(16, 10), ts, {10: "AAA"}
    )
    assert facts["recall"] == pytest.approx(2 / 3)
    assert facts["mean_recall_over_types"] == pytest.approx(0.5)


@given(
    waits=st.lists(st.sampled_from([1, 1, 2, 3, 7, 20, 40, 3000]), min_size=2, max_size=150),
    seed=st.integers(0, 10_000),
)
def test_against_the_oracle(waits: list[int], seed: int) -> None:
    """Random ticks, scores and anomalies: episodes, verdicts and clean time are the oracle's."""
    rng = np.random.default_rng(seed)
    at = np.cumsum(waits)
    score = rng.choice([0.2, 0.9, 1.5], len(at), p=[0.7, 0.15, 0.15])
    edges = np.unique(rng.integers(0, at[-1] + 1, 6))
    anomalies = [
        (int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=False) if b > a + 1
    ]
    anomalies = [
        one for place, one in enumerate(anomalies)
        if not place or one[0] > anomalies[place - 1][1] + 1
    ]  # fmt: skip
    policy = EpisodePolicy()
    keys, ts = np.full(len(at), 10, np.int64), times(at)
    found = episodes_of(keys, ts, score, np.ones(len(at)))
    wanted = oracle.episodes(at.tolist(), score.tolist(), 1.0, policy.close_ratio, 5)
    ends = zip(found.start.tolist(), found.end.tolist(), strict=True)
    spans = [((a - START) // NS_PER_S, (b - START) // NS_PER_S) for a, b in ends]
    assert spans == wanted
    assert [int(at[row]) for row in found.row] == [start for start, _ in wanted]
    marked = [planted(*each) for each in anomalies]
    assert verdicts(found, marked).verdict.tolist() == oracle.verdicts(wanted, anomalies)
    low, high = np.array(anomalies, np.int64).reshape(-1, 2).T
    clean = clean_time(ts, found.start, found.end, (times(low), times(high + 1)))
    seconds_clean, seconds_in_alarm = oracle.clean_seconds(
        at.tolist(), wanted, anomalies, round(GAP_S)
    )
    assert clean.hours * 3600 == pytest.approx(seconds_clean, abs=1e-6)
    assert clean.alarm_hours * 3600 == pytest.approx(seconds_in_alarm, abs=1e-6)
