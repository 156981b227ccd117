"""Instrument-hours: the sum over instruments of what a plain count of each one's waits gives."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detector.kernels_thresholds import hours_of
from detector.thresholds import GAP_S, TradingTime
from detector.ticks import NS_PER_S

GAP_NS = round(GAP_S * NS_PER_S)
SLOTS = 4


def columns(ticks: list[tuple[int, int, bool]]) -> tuple[np.ndarray, ...]:
    """Slots, keys, times and scores of ticks given as instrument, wait in seconds, scored."""
    slots = np.array([slot for slot, _, _ in ticks], np.int32)
    ts = 10**18 + np.cumsum([wait for _, wait, _ in ticks]).astype(np.int64) * NS_PER_S
    score = np.array([1.0 if scored else np.nan for _, _, scored in ticks], np.float64)
    return slots, slots.astype(np.int64) + 100, ts.astype(np.int64), score


TICKS = st.lists(
    st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 3_000), st.booleans()), max_size=60
)


@given(TICKS, st.integers(0, 60))
def test_sum_over_instruments_in_any_batches(ticks: list[tuple[int, int, bool]], cut: int) -> None:
    """Equals `hours_of` each instrument's scored ticks, however the ticks are cut into batches."""
    every = columns(ticks)
    book = TradingTime(SLOTS)
    found = sum(book.add(*(c[part] for c in every)) for part in (slice(cut), slice(cut, None)))
    slots, _, ts, score = every
    expected = sum(
        hours_of(ts[(slots == slot) & ~np.isnan(score)], GAP_NS) for slot in range(SLOTS)
    )
    assert np.isclose(found, expected, rtol=1e-12, atol=0)


def test_dropped_ticks_and_evicted_instruments() -> None:
    """A dropped tick is nobody's; the time before an instrument got its slot is not its own."""
    book = TradingTime(1)
    hour = 3_600 * NS_PER_S // 4
    slots = np.array([0, -1, 0, 0], np.int32)
    keys = np.array([7, 7, 8, 8], np.int64)
    ts = np.array([0, hour, 2 * hour, 3 * hour], np.int64)
    assert book.add(slots, keys, ts, np.ones(4)) == 0.25


def test_day_played_again_counts_again() -> None:
    """After a step back in time of more than a gap counting goes on from there."""
    book = TradingTime(1)
    quarter = 900 * NS_PER_S
    ts = np.array([100, 101, 102, 10, 11, 12, 11], np.int64) * quarter
    zeros = np.zeros(7, np.int32)
    assert book.add(zeros, zeros.astype(np.int64), ts, np.ones(7)) == 1.0
