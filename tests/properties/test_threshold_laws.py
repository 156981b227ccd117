"""Laws of adaptive thresholds: batches, snapshots, other instruments and rows change nothing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector import kernels_thresholds as k
from detector.events import EpisodeBook, EpisodePolicy
from detector.thresholds import MOST_FACTOR, Asked, Peaks, ThresholdBook, Thresholds
from tests.oracle_thresholds import ThresholdOracle

SLOTS = 4
POLICY = EpisodePolicy(close_ratio=0.5, quiet_s=2.0)
SECOND = 1_000_000_000


def definition(asked: Asked, value: float) -> Thresholds:
    """Three rows of a table: priors 10, 8 and 20, tails of different slopes."""
    values = np.array([10.0, 8.0, 20.0])
    peaks = Peaks(
        asked,
        value,
        adapt=True,
        level=values / 2,
        shape=np.array([0.0, 0.3, -0.4]),
        scale=np.array([3.0, 1.0, 9.0]),
        rate=np.ones(3),
        ticks_per_hour=np.full(3, 1e4),
    )
    return Thresholds(0.99, values, np.ones(3, np.bool_), "pot", peaks)


DEFINITIONS = {
    "budget": definition("budget", 600.0),  # an alarm in six seconds: something happens
    "risk": definition("risk", 0.1),
    "rare": definition("budget", 1.0),
}

TICK = st.tuples(
    st.integers(0, 6),
    st.sampled_from([-1.0, 0.0, 0.0, 0.5, 1.0, 3.0, 200.0, 700.0, 2000.0]),
    st.sampled_from([0.0, 4.0, 8.0, 9.0, 11.0, 14.0, 20.0, 50.0, np.nan]),
    st.booleans(),
)
TICKS = st.lists(TICK, max_size=80)


def columns_of(ticks: list[tuple[int, float, float, bool]]) -> dict[str, np.ndarray]:
    """Columns of a batch: seven instruments share four slots, some ticks were dropped."""
    n, now = len(ticks), 1_700_000_000 * SECOND
    keys, ts = np.empty(n, np.int64), np.empty(n, np.int64)
    slots, score = np.empty(n, np.int32), np.empty(n)
    for i, (key, wait, value, dropped) in enumerate(ticks):
        now += round(wait * SECOND)
        lost = dropped and value == 0.0
        keys[i], ts[i] = key, now
        slots[i], score[i] = (-1, np.nan) if lost else (key % SLOTS, value)
    return {"slots": slots, "keys": keys, "ts": ts, "rows": (keys % 3).astype(np.int32),
            "score": score}  # fmt: skip


def part(columns: dict[str, np.ndarray], rows: Any) -> dict[str, np.ndarray]:
    """Some rows of a batch."""
    return {name: column[rows] for name, column in columns.items()}


def book_of(name: str) -> ThresholdBook:
    """Return a fresh book."""
    return ThresholdBook(DEFINITIONS[name], SLOTS, POLICY.close_ratio, POLICY.quiet_s)


NAMES = st.sampled_from(sorted(DEFINITIONS))


@settings(max_examples=300)
@given(TICKS, NAMES)
def test_any_stream_equals_the_oracle(ticks: list[Any], name: str) -> None:
    """Whatever comes, the thresholds are those of the rules written down plainly, to the bit."""
    columns = columns_of(ticks)
    oracle = ThresholdOracle(DEFINITIONS[name], POLICY.close_ratio, POLICY.quiet_s)
    names = ("slots", "keys", "ts", "rows", "score")
    lists = [columns[column].tolist() for column in names]
    want = [oracle.step(*row) for row in zip(*lists, strict=True)]
    assert book_of(name).apply(**columns).tolist() == want


@settings(max_examples=200)
@given(TICKS, NAMES, st.lists(st.integers(0, 80), max_size=6))
def test_any_split_into_batches_gives_the_same_bits(
    ticks: list[Any], name: str, cuts: list[int]
) -> None:
    """Thresholds do not depend on which ticks share a batch."""
    columns, n = columns_of(ticks), len(ticks)
    book, edges = book_of(name), [0, *sorted(min(c, n) for c in cuts), n]
    pieces = [book.apply(**part(columns, slice(a, b))) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(pieces), book_of(name).apply(**columns))


@settings(max_examples=200)
@given(TICKS, NAMES, st.integers(0, 80))
def test_the_future_changes_no_threshold(ticks: list[Any], name: str, cut: int) -> None:
    """The threshold applied to a tick depends on earlier ticks: neither on it nor on later ones."""
    columns = columns_of(ticks)
    whole = book_of(name).apply(**columns)
    changed = {**columns, "score": columns["score"].copy()}
    changed["score"][cut:] = np.where(np.isnan(columns["score"][cut:]), np.nan, 1e9)
    np.testing.assert_array_equal(book_of(name).apply(**changed)[: cut + 1], whole[: cut + 1])


@settings(max_examples=200)
@given(TICKS, NAMES, st.integers(0, 80))
def test_snapshot_restore_and_go_on_equals_going_on(ticks: list[Any], name: str, cut: int) -> None:
    """A book restored from a snapshot goes on to the same bits, whatever it held before."""
    columns = columns_of(ticks)
    book, other = book_of(name), book_of(name)
    book.apply(**part(columns, slice(cut)))
    other.apply(**part(columns, slice(None, None, -1)))
    other.restore(book.snapshot())
    rest = part(columns, slice(cut, None))
    np.testing.assert_array_equal(other.apply(**rest), book.apply(**rest))


@settings(max_examples=200)
@given(TICKS, NAMES)
def test_instruments_do_not_affect_one_another(ticks: list[Any], name: str) -> None:
    """Alone, an instrument that shares its slot with no other gets the same thresholds."""
    columns = columns_of(ticks)
    whole, mine = book_of(name).apply(**columns), columns["keys"] == 3  # of 0..6, in slot 3 of 4
    alone = book_of(name).apply(**part(columns, mine))
    np.testing.assert_array_equal(alone, whole[mine])


@settings(max_examples=200)
@given(TICKS, NAMES)
def test_dropped_ticks_teach_nothing(ticks: list[Any], name: str) -> None:
    """Rows without a slot get the prior and leave every other row's threshold as it was."""
    columns = columns_of(ticks)
    kept = columns["slots"] >= 0
    whole = book_of(name).apply(**columns)
    np.testing.assert_array_equal(book_of(name).apply(**part(columns, kept)), whole[kept])
    np.testing.assert_array_equal(
        whole[~kept], DEFINITIONS[name].threshold_for(columns["rows"][~kept])
    )


@settings(max_examples=200)
@given(TICKS, NAMES)
def test_threshold_stays_within_its_factor(ticks: list[Any], name: str) -> None:
    """No stream whatever moves a threshold further than the stated factor from its prior."""
    columns = columns_of(ticks)
    relative = book_of(name).apply(**columns) / DEFINITIONS[name].threshold_for(columns["rows"])
    assert (relative <= MOST_FACTOR * (1 + 1e-12)).all()
    assert (relative >= (1 - 1e-12) / MOST_FACTOR).all()


@settings(max_examples=200)
@given(TICKS, NAMES)
def test_episodes_are_those_of_the_episode_book(ticks: list[Any], name: str) -> None:
    """With one instrument, a threshold's own episodes open and end where the events' do."""
    only = [(0, max(wait, 0.0), score, False) for _, wait, score, _ in ticks]
    columns = columns_of(only)
    book, n = book_of(name), len(only)
    episodes, opened = EpisodeBook(SLOTS, POLICY), []
    for i in range(n):
        row = part(columns, slice(i, i + 1))
        before = bool(book._integers[0, k.ALIVE] not in {k.CALM, k.UNSEEN})
        applied = book.apply(**row)
        measures = np.full((6, 1), np.nan)
        measures[0], measures[1] = row["score"], applied
        found = episodes.step(
            row["slots"], row["keys"], row["ts"], np.array([i]), np.zeros(1, np.int32), measures
        )
        is_open = bool(book._integers[0, k.ALIVE] not in {k.CALM, k.UNSEEN})
        if any(t.phase == "open" for t in found):
            opened.append(i)
            assert is_open
        if not np.isnan(row["score"][0]):
            assert is_open == (episodes.open_episodes == 1)
        elif before != is_open:
            pytest.fail("a tick that was not scored opened or closed an episode")
