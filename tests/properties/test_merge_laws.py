"""Laws of merging streams, and of grouping them into messages."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from detector.readers import carry_books, merge_by_time
from detector.replay import group
from detector.ticks import UNDEFINED_PRICE, TickArray, TickBatch, empty_ticks
from detector.wire import make_decoder

TIMES = st.lists(st.integers(0, 20), max_size=12)


def cut(ticks: TickArray, chunk: int) -> list[TickBatch]:
    """Batches of at most `chunk` ticks."""
    return [TickBatch.from_ticks(ticks[i : i + chunk]) for i in range(0, len(ticks), chunk)]


def stream(times: list[int], instrument: int) -> TickArray:
    """Ticks of one instrument at these times, numbered."""
    ticks = empty_ticks(len(times))
    ticks["ts_event"], ticks["instrument_id"] = times, instrument
    ticks["sequence"] = np.arange(len(times))
    return ticks


@given(st.lists(TIMES.map(sorted), max_size=4), st.integers(1, 4))
def test_merging_is_a_stable_sort(streams: list[list[int]], chunk: int) -> None:
    """Merging ordered streams equals sorting them all by time, however they are cut."""
    ticks = [stream(times, number) for number, times in enumerate(streams)]
    merged = list(merge_by_time([cut(part, chunk) for part in ticks]))
    expected = sorted(
        (int(tick["ts_event"]), number, int(tick["sequence"]))
        for number, part in enumerate(ticks)
        for tick in part
    )
    found = [
        (int(t["ts_event"]), int(t["instrument_id"]), int(t["sequence"]))
        for batch in merged
        for t in batch.ticks
    ]
    assert found == expected


@given(st.lists(TIMES, max_size=4), st.integers(1, 4))
def test_merging_loses_nothing(streams: list[list[int]], chunk: int) -> None:
    """Streams that are not in order lose no tick and keep their own order."""
    parts = [stream(times, number) for number, times in enumerate(streams)]
    merged = [t for batch in merge_by_time([cut(p, chunk) for p in parts]) for t in batch.ticks]
    for number, part in enumerate(parts):
        own = [int(t["sequence"]) for t in merged if t["instrument_id"] == number]
        assert own == list(range(len(part)))


@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.integers(1, 9)), max_size=15),
    st.integers(1, 5),
)
def test_a_carried_book_is_the_last_quote(rows: list[tuple[int, bool, int]], chunk: int) -> None:
    """However a stream is cut, a trade gets what a dictionary of last quotes gives it."""
    ticks = empty_ticks(len(rows))
    last: dict[int, int] = {}
    expected = []
    for tick, (instrument, is_quote, price) in zip(ticks, rows, strict=True):
        tick["instrument_id"] = instrument
        tick["action"] = ord("M" if is_quote else "T")
        if is_quote:
            tick["bid_px"] = last[instrument] = price
        expected.append(last.get(instrument, UNDEFINED_PRICE))
    carried = [int(t["bid_px"]) for b in carry_books(cut(ticks, chunk)) for t in b.ticks]
    assert carried == expected


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(1, 3)), max_size=30),
    st.integers(1, 5),
    st.integers(1, 7),
)
def test_grouping_keeps_every_tick(
    rows: list[tuple[int, int]], batch_ticks: int, chunk: int
) -> None:
    """Messages hold every tick once, one instrument each, in its order, and are due in order."""
    ticks = stream([ms * 1_000_000 for ms, _ in rows], 0)
    ticks["instrument_id"] = [instrument for _, instrument in rows]
    messages = list(group(cut(ticks, chunk), batch_ticks=batch_ticks, hold_s=0.05))
    dues = [message.due_ns for message in messages]
    assert dues == sorted(dues)
    decoder = make_decoder("dbn")
    found: dict[int, list[int]] = {}
    for message in messages:
        batch = decoder.decode([message.value], [0], 0).batch
        assert isinstance(batch, TickBatch)
        assert len(batch) == message.ticks <= batch_ticks
        (instrument,) = set(batch.ticks["instrument_id"].tolist())
        assert message.key == f"0:{instrument}".encode()
        found.setdefault(instrument, []).extend(batch.ticks["sequence"].tolist())
        assert message.due_ns >= int(batch.ticks["ts_event"].max())
    expected: dict[int, list[int]] = {}
    for number, (_, instrument) in enumerate(rows):
        expected.setdefault(instrument, []).append(number)
    assert found == expected
