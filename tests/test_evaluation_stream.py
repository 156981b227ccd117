"""The rows that everything reads: features of ready ticks, and what lies near an anomaly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.features import DEFAULT
from detector.ticks import NS_PER_S, UNDEFINED_PRICE, TickBatch
from tests.evaluated import START, planted, stream_of, times
from tests.streams import batches, market
from training.evaluation.stream import followed, near, read_stream, windows


def test_a_stream_is_what_the_bank_gives(tmp_path: Path) -> None:
    """Ready ticks alone, with the detector's own features, in order, however they are cut."""
    ticks = market(4_000, 2, seed=1)
    block = DEFAULT.bank().update(TickBatch.from_ticks(ticks))
    stream = read_stream(batches(ticks, [7, 900, 901]), DEFAULT, tmp_path)
    assert 0 < len(stream) < len(ticks)
    assert np.array_equal(stream.store.values, block.values[block.ready])
    assert np.array_equal(stream.ts, block.ts[block.ready])
    assert np.array_equal(stream.at, np.flatnonzero(block.ready))
    at, values, keys = zip(*stream.chunks(stream.ts >= stream.ts[100]), strict=True)
    assert np.array_equal(np.concatenate(values), stream.store.values[np.concatenate(at)])
    assert np.array_equal(np.concatenate(keys), stream.keys[np.concatenate(at)])


def test_the_price_is_the_mid_or_that_of_the_trade(tmp_path: Path) -> None:
    """In units of the quote currency; a tick without a two-sided book has the price it names."""
    ticks = market(8_000, 1, seed=2)
    tape = slice(7_000, 7_010)
    for side in ("bid_px", "ask_px"):
        ticks[side][tape] = UNDEFINED_PRICE
    ticks["price"][tape] = 77 * 10**9
    stream = read_stream([TickBatch.from_ticks(ticks)], DEFAULT, tmp_path)
    row = int(np.searchsorted(stream.at, 7_999))
    bid, ask = (float(ticks[side][7_999]) for side in ("bid_px", "ask_px"))
    assert stream.price[row] == pytest.approx((bid + ask) / 2e9)
    assert stream.price[np.searchsorted(stream.at, 7_005)] == pytest.approx(77)


@given(
    spans=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=8),
    before=st.integers(0, 30),
    after=st.integers(0, 30),
)
def test_near_is_within_any_stretch(spans: list[tuple[int, int]], before: int, after: int) -> None:
    """A row is near where one anomaly of its instrument is, both ends included."""
    seconds = np.tile(np.arange(400), 2)
    keys = np.repeat([10, 20], 400)
    anomalies = [planted(start, start + length) for start, length in spans]
    wanted = (keys == 10) & np.array(
        [any(a - before <= s <= a + n + after for a, n in spans) for s in seconds.tolist()]
    )
    found = near(keys, times(seconds), anomalies, before * NS_PER_S, after * NS_PER_S)
    assert np.array_equal(found, wanted)


def test_stretches_that_overlap_are_one() -> None:
    """Also where one lies within another, and where they touch."""
    anomalies = [planted(0, 100), planted(10, 20), planted(100, 110), planted(200, 210)]
    starts, ends = windows(anomalies, 0, 0)[10]
    assert ((starts - START) // NS_PER_S).tolist() == [0, 200]
    assert ((ends - START) // NS_PER_S).tolist() == [110, 210]


def test_followed_rows_are_the_next_ones_of_the_instrument() -> None:
    """Two more of the same instrument, whatever comes between."""
    keys = np.array([1, 2, 1, 2, 2, 1, 1, 1])
    chosen = np.array([1, 0, 0, 0, 0, 0, 0, 0], bool)
    assert np.flatnonzero(followed(chosen, keys, 2)).tolist() == [0, 2, 5]


def test_gathered_rows_keep_their_times() -> None:
    """What is fitted has the values, keys and times of the rows chosen."""
    stream = stream_of(range(50))
    chosen = np.arange(50) % 3 == 0
    rows = stream.rows(chosen)
    assert len(rows) == 17
    assert np.array_equal(rows.times(), stream.ts[chosen])
    assert np.array_equal(
        np.concatenate([v for v, _ in rows.chunks()]), stream.store.values[chosen]
    )
