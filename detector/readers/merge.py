"""Several streams of ticks as one: merged by event time, and trades given the book of their time.

Quotes and trades of one instrument often lie in two files, and a day of a market in hundreds.
Memory holds about one chunk per stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from detector.readers.base import CHUNK, Int64
from detector.ticks import TICK, UNDEFINED_PRICE, TickArray, TickBatch, VectorBatch

B = TypeVar("B", TickBatch, VectorBatch)

_BOOK = ["bid_px", "ask_px", "bid_sz", "ask_sz", "bid_ct", "ask_ct"]


@dataclass(slots=True, eq=False)
class _Head(Generic[B]):
    """The rows of one stream that were read and not yet given out."""

    stream: Iterator[B]
    rows: B | None = None
    times: Int64 = field(default_factory=lambda: np.zeros(0, np.int64))
    latest: int = np.iinfo(np.int64).min
    ended: bool = False

    def grow(self, symbols: dict[int, str]) -> None:
        batch = next(self.stream, None)
        if batch is None:
            self.ended = True
            return
        symbols.update(batch.symbols)
        # A stream keeps its own order: a tick that came late is merged where it came.
        times = np.maximum.accumulate(np.maximum(batch.ts_event, self.latest))
        self.latest = int(times[-1]) if len(times) else self.latest
        self.rows = batch if self.rows is None else _joined([self.rows, batch])
        self.times = np.concatenate([self.times, times])

    def take(self, before: int | None) -> tuple[B, Int64] | None:
        cut = len(self.times) if before is None else int(np.searchsorted(self.times, before))
        if self.rows is None or not cut:
            return None
        taken = self.rows[:cut], self.times[:cut]
        self.rows, self.times = self.rows[cut:], self.times[cut:]
        return taken


def merge_by_time(streams: Iterable[Iterable[B]]) -> Iterator[B]:
    """Merge streams of batches by event time.

    Parameters
    ----------
    streams
        All of ticks, or all of vectors with the same columns; each in the order of its event times.
        Where a tick is late within its stream it keeps its place there. At equal times the earlier
        stream comes first.

    Yields
    ------
    TickBatch or VectorBatch
        At most `CHUNK` rows; offsets number the merged rows from 0; symbols of all streams so far.
    """
    heads = [_Head(iter(stream)) for stream in streams]
    symbols: dict[int, str] = {}
    first = 0
    while True:
        # Rows are complete up to, not including, the latest time of the stream that lags most: it
        # may have more rows of that very time, and they belong before the later streams'.
        for head in heads:
            while not head.ended and not len(head.times):
                head.grow(symbols)
        horizon = min((head.latest for head in heads if not head.ended), default=None)
        given = [head.take(horizon) for head in heads]
        taken = [rows_and_times for rows_and_times in given if rows_and_times is not None]
        if taken:
            order = np.argsort(np.concatenate([times for _, times in taken]), kind="stable")
            rows = _joined([part for part, _ in taken])
            for start in range(0, len(order), CHUNK):
                part = rows.taken(order[start : start + CHUNK])
                offsets = np.arange(first, first + len(part), dtype=np.int64)
                indices = np.zeros(len(part), np.int32)
                yield replace(part, offsets=offsets, indices=indices, symbols=dict(symbols))
                first += len(part)
        lagging = [head for head in heads if not head.ended and head.latest == horizon]
        if not lagging:
            return
        for head in lagging:
            head.grow(symbols)


def _joined(batches: list[B]) -> B:
    """One batch with the rows of several; what merging fills in is that of the first."""
    first = batches[0]
    if len(batches) == 1:
        return first
    names = ["offsets", "indices"]
    names += ["ticks"] if isinstance(first, TickBatch) else ["values", "keys", "ts_event"]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(batch, name) for batch in batches]) for name in names
    }
    return replace(first, **columns)


def carry_books(batches: Iterable[TickBatch], *, sign_trades: bool = True) -> Iterator[TickBatch]:
    """Give ticks without any book the last book of their instrument.

    Parameters
    ----------
    batches
        In event-time order, such as `merge_by_time` gives them.
    sign_trades
        Also give trades of unknown side the aggressor by the quote rule: above the mid price of
        that book a buy, below it a sell; at the mid price, and without a book, unknown.

    References
    ----------
    Lee and Ready (1991), "Inferring trade direction from intraday data", Journal of Finance 46.
    The quote rule alone, without the tick test at the mid price and without a delay.
    """
    held = np.zeros(0, TICK)  # the latest tick of every instrument so far, its book filled in
    for batch in batches:
        ticks = np.concatenate([held, batch.ticks])
        new = np.arange(len(ticks)) >= len(held)
        bare = (ticks["bid_px"] == UNDEFINED_PRICE) & (ticks["ask_px"] == UNDEFINED_PRICE)
        bare &= ticks["action"] == ord("T")
        latest = _fill(ticks, bare)
        if sign_trades:
            _sign(ticks, new & bare & (ticks["side"] == ord("N")))
        filled = ticks[len(held) :]
        held = ticks[latest]
        yield TickBatch(filled, batch.partition, batch.offsets, batch.indices, batch.symbols)


def _fill(ticks: TickArray, bare: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Fill the books of bare rows from the row before of the same instrument, if there is one.

    Gives the last row of every instrument.
    """
    keys = TickBatch.from_ticks(ticks).keys
    order = np.argsort(keys, kind="stable")
    first = np.append(True, np.diff(keys[order]) != 0)[: len(order)]
    at = np.arange(len(order))
    # Where a row's book comes from: itself, unless it is bare and not its instrument's first.
    source = np.maximum.accumulate(np.where(first | ~bare[order], at, 0))
    for name in _BOOK:
        ticks[name][order] = ticks[name][order][source]
    return np.compress(np.append(first[1:], True)[: len(order)], order)


def _sign(ticks: TickArray, rows: npt.NDArray[np.bool_]) -> None:
    """Give the rows the aggressor by the quote rule."""
    two_sided = (ticks["bid_px"] != UNDEFINED_PRICE) & (ticks["ask_px"] != UNDEFINED_PRICE)
    rows = rows & two_sided & (ticks["price"] != UNDEFINED_PRICE)
    # Twice the distance from the mid price, from differences: sums of two prices might overflow.
    bid_to_price = ticks["price"] - ticks["bid_px"]
    price_to_ask = ticks["ask_px"] - ticks["price"]
    ticks["side"][rows & (bid_to_price > price_to_ask)] = ord("B")
    ticks["side"][rows & (bid_to_price < price_to_ask)] = ord("A")
