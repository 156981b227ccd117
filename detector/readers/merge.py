"""Several streams of ticks as one: merged by event time, and trades given the book of their time.

Quotes and trades of one instrument often lie in two files, and a day of a market in hundreds.
Memory holds about one chunk per stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from detector.readers.base import CHUNK, file_batch
from detector.ticks import TICK, UNDEFINED_PRICE, TickArray, TickBatch

_BOOK = ["bid_px", "ask_px", "bid_sz", "ask_sz", "bid_ct", "ask_ct"]


@dataclass(slots=True, eq=False)
class _Head:
    """The rows of one stream that were read and not yet given out."""

    stream: Iterator[TickBatch]
    ticks: TickArray = field(default_factory=lambda: np.zeros(0, TICK))
    times: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
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
        self.ticks = np.concatenate([self.ticks, batch.ticks])
        self.times = np.concatenate([self.times, times])

    def take(self, before: int | None) -> tuple[TickArray, npt.NDArray[np.int64]]:
        cut = len(self.times) if before is None else int(np.searchsorted(self.times, before))
        taken = self.ticks[:cut], self.times[:cut]
        self.ticks, self.times = self.ticks[cut:], self.times[cut:]
        return taken


def merge_by_time(streams: Iterable[Iterable[TickBatch]]) -> Iterator[TickBatch]:
    """Merge streams of batches by event time.

    Parameters
    ----------
    streams
        Each in the order of its event times. Where a tick is late within its stream it keeps its
        place there. At equal times the earlier stream comes first.

    Yields
    ------
    TickBatch
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
        taken = [head.take(horizon) for head in heads]
        times = np.concatenate([part for _, part in taken]) if taken else np.zeros(0, np.int64)
        if len(times):
            ticks = np.concatenate([part for part, _ in taken])
            ticks = ticks[np.argsort(times, kind="stable")]
            for start in range(0, len(ticks), CHUNK):
                part = ticks[start : start + CHUNK]
                yield file_batch(part, first, dict(symbols))
                first += len(part)
        lagging = [head for head in heads if not head.ended and head.latest == horizon]
        if not lagging:
            return
        for head in lagging:
            head.grow(symbols)


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
