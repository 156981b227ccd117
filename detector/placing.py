"""One anomaly in the prices, sizes and times of the instrument it is planted in.

During an anomaly the book is the clean book plus what the anomaly's state adds to it: a shift of
either side, orders of its own, a stray order through the other side. Clean ticks are carried over
that book, the anomaly's events are inserted between them. Knows one anomaly and one instrument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detector.feeds import (
    BOOK,
    Feed,
    clock_ns,
    price_grid,
    told,
    two_sided,
    with_trades_as_book,
    without_book,
)
from detector.scripts import AnomalyKind, Script, script
from detector.ticks import TICK, UNDEFINED_PRICE, UNDEFINED_TIME, TickArray

_RAW: Final = np.dtype((np.void, TICK.itemsize))

HISTORY: Final = 512
"""Ticks before an anomaly from which its scale (grid, order sizes, clock) is taken."""


@dataclass(frozen=True, slots=True)
class Planted:
    """One planned anomaly.

    Parameters
    ----------
    kind
        What is planted.
    key, symbol
        The instrument.
    start_ns, end_ns
        Event time of its first and last step, both inclusive. For frozen quotes: the ticks within
        are those that are changed.
    params
        What was drawn from `RANGES[kind]`, and `side`: +1 as described there, -1 mirrored.
    seed
        Fixes what the parameters leave open (jitter).
    """

    kind: AnomalyKind
    key: int
    symbol: str
    start_ns: int
    end_ns: int
    params: Mapping[str, float]
    seed: int


class Placed:
    """An anomaly with prices and sizes of the instrument it is planted in."""

    def __init__(self, planned: Planted, feed: Feed, rows: TickArray) -> None:
        before = rows[: np.searchsorted(rows["ts_event"], planned.start_ns, "left")][-HISTORY:]
        before = with_trades_as_book(before) if feed == Feed.TRADES else before
        quoted = before[two_sided(before)]
        if not len(quoted):
            raise ValueError(
                f"plant of {planned.symbol} at {planned.start_ns}: no tick with "
                f"{'a price' if feed == Feed.TRADES else 'bid and ask'} before"
            )
        self.plan, self._feed, self._before = planned, feed, before
        self.anchor = quoted[-1:]
        made = script(planned.kind, planned.params, planned.seed)
        self._frozen, self._silent_ns = made.frozen, made.silent_ns
        self._withheld: TickArray = np.empty(0, TICK)
        self.grid, self._clock = price_grid(quoted), clock_ns(before)
        first = -(-planned.start_ns // self._clock) * self._clock
        at = planned.start_ns + made.steps["after_ns"]
        self.ts = np.maximum(at - at % self._clock, first)
        self._at = made.steps["at"]
        self._action, self._side = made.steps["action"], made.steps["side"]
        self._scale(made, quoted)

    def _scale(self, made: Script, quoted: TickArray) -> None:
        """Turn multiples into prices on the grid and whole sizes."""
        bid, ask = int(self.anchor["bid_px"][0]), int(self.anchor["ask_px"][0])
        px_unit = max(ask - bid, 0) if made.px_unit == "spread" else (bid + ask) / 2
        size_unit, trade_unit = self._size_units(made, quoted)
        steps = made.steps
        # An idle state first: what the book carries before the first step.
        padded = np.concatenate([np.zeros(1, steps.dtype), steps])
        on_grid = np.trunc if made.at_most else np.rint
        self._px = {
            name: on_grid(padded[name] * px_unit / self.grid).astype(np.int64) * self.grid
            for name in ("bid_shift", "ask_shift", "bid_off", "ask_off")
        }
        self._cross = padded["cross"].astype(np.int64)
        units = np.where(steps["action"] == ord("T"), trade_unit, size_unit)
        self._size = _whole(steps["size"] * units)
        counted = bool(np.any(quoted["bid_ct"]) or np.any(quoted["ask_ct"]))
        self._sz, self._ct = {}, {}
        for side in ("bid", "ask"):
            orders = _at_best(padded[f"{side}_ct"], self._px[f"{side}_off"])
            self._sz[side] = orders * _whole(padded[f"{side}_sz"] * size_unit)
            self._ct[side] = orders * counted

    def _size_units(self, made: Script, quoted: TickArray) -> tuple[float, float]:
        """Return the unit of sizes, and that of trades; 0 where the feed has no sizes.

        A feed of quotes shows levels, not orders: its orders are measured by its levels, its trades
        by its trades.
        """
        traded = self._before["size"][self._before["action"] == ord("T")]
        sizes = self._before["size"]
        if self._feed in (Feed.QUOTES, Feed.QUOTES_AND_TRADES):
            sizes = np.concatenate([quoted["bid_sz"], quoted["ask_sz"]])
        sizes, traded = sizes[sizes > 0], traded[traded > 0]
        if not len(sizes):
            return 0.0, 0.0
        mean = float(np.mean(sizes))
        of_trades = float(np.mean(traded)) if len(traded) else mean
        if made.size_unit == "trade":
            return of_trades, of_trades
        unit = float(np.quantile(sizes, 0.1)) if made.size_unit == "small" else mean
        return unit, unit if self._feed == Feed.ORDERS else of_trades

    def weave(self, rows: TickArray, fresh: int, from_ns: int, until_ns: int) -> TickArray:
        """Ticks of the anomaly's time within `[from_ns, until_ns)`, planted and clean."""
        ts = rows["ts_event"].astype(np.int64)
        low, high = max(self.plan.start_ns, from_ns), min(self.plan.end_ns + 1, until_ns)
        first = max(int(np.searchsorted(ts, low, "left")), fresh)
        inside = slice(first, int(np.searchsorted(ts, high, "left")))
        if self._frozen:
            return self._freeze(rows[inside])
        if self._silent_ns:
            return self._delay(rows[inside], high)
        book = with_trades_as_book(rows) if self._feed == Feed.TRADES else rows
        state = np.searchsorted(self.ts, ts[inside], "left")  # a simultaneous clean tick is first
        carried = self._carry(book[inside], state)
        if self._feed == Feed.TRADES:
            without_book(carried)
        steps = np.flatnonzero((self.ts >= low) & (self.ts < high))
        under = np.searchsorted(ts, self.ts[steps], "right") - 1
        both = join([carried, self._insert(book[under], steps)])
        return sort_by_time(both)

    def _freeze(self, clean: TickArray) -> TickArray:
        """Keep trades only, over the book as it last was."""
        kept: TickArray = clean[clean["action"] == ord("T")].copy()
        for name in BOOK:
            kept[name] = self.anchor[name]
        return kept

    def _delay(self, clean: TickArray, until_ns: int) -> TickArray:
        """Press all ticks, in their order, into what follows the silence."""
        late = clean.copy()
        start, length = self.plan.start_ns, self.plan.end_ns - self.plan.start_ns
        ts = clean["ts_event"].astype(np.int64)
        share = (ts - start) / max(length, 1)
        at = start + self._silent_ns + (share * (length - self._silent_ns)).astype(np.int64)
        at -= at % self._clock
        late["ts_event"] = at
        known = clean["ts_recv"] != UNDEFINED_TIME
        late["ts_recv"][known] += (at - ts).astype(np.uint64)[known]
        withheld = join([self._withheld, late])
        due = int(np.searchsorted(withheld["ts_event"], until_ns, "left"))
        self._withheld = withheld[due:]
        return withheld[:due]

    def _carry(self, clean: TickArray, state: npt.NDArray[np.int64]) -> TickArray:
        """Clean ticks over the changed book; their prices move with the side they act on."""
        moved = clean.copy()
        quoted = two_sided(clean)
        book = self._book(clean, state)
        ask_side = (clean["side"] == ord("A")) != (clean["action"] == ord("T"))
        ask_side &= clean["side"] != ord("N")
        priced = quoted & (clean["price"] != UNDEFINED_PRICE) & (self._cross[state] == 0)
        by = np.where(ask_side, book["ask_px"] - clean["ask_px"], book["bid_px"] - clean["bid_px"])
        moved["price"] = np.where(priced, clean["price"] + by, clean["price"])
        for name, column in book.items():
            moved[name] = np.where(quoted, column, clean[name])
        return moved

    def _insert(self, under: TickArray, steps: npt.NDArray[np.int64]) -> TickArray:
        """Return the planted ticks, over the clean ticks before them."""
        base = np.where(two_sided(under), under, np.repeat(self.anchor, len(under)))
        before, after = self._book(base, steps), self._book(base, steps + 1)
        made = base.copy()
        made["ts_event"] = self.ts[steps]
        latency = self.anchor["ts_recv"][0] - self.anchor["ts_event"][0]
        known = self.anchor["ts_recv"][0] != UNDEFINED_TIME
        made["ts_recv"] = made["ts_event"] + latency if known else UNDEFINED_TIME
        made["sequence"] = under["sequence"]
        made["action"], made["side"] = self._action[steps], self._side[steps]
        made["size"] = self._size[steps]
        made["price"] = np.choose(
            self._at[steps],
            [after["bid_px"], after["ask_px"], before["bid_px"], before["ask_px"]],
        )
        return told(self._feed, made, before, after, self._before)

    def _book(
        self, clean: TickArray, state: npt.NDArray[np.int64]
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Return the clean book plus what the anomaly's state adds to it."""
        bid_off, ask_off = self._px["bid_off"][state], self._px["ask_off"][state]
        cross = self._cross[state]
        bid = clean["bid_px"] + self._px["bid_shift"][state] + bid_off
        ask = clean["ask_px"] + self._px["ask_shift"][state] + ask_off
        # The side that is run into retreats by as much as it must.
        ask = np.where(bid_off > 0, np.maximum(ask, bid + self.grid), ask)
        bid = np.where(ask_off < 0, np.minimum(bid, ask - self.grid), bid)
        bid, ask = (
            np.where(cross > 0, ask + (cross - 1) * self.grid, bid),
            np.where(cross < 0, bid + (cross + 1) * self.grid, ask),
        )
        alone = {"bid": (bid_off != 0) | (cross > 0), "ask": (ask_off != 0) | (cross < 0)}
        book = {"bid_px": bid, "ask_px": ask}
        for side in ("bid", "ask"):
            for what, added in (("sz", self._sz[side]), ("ct", self._ct[side])):
                own = clean[f"{side}_{what}"] * ~alone[side]
                book[f"{side}_{what}"] = added[state] + own.astype(np.int64)
        return book


def join(parts: Sequence[TickArray]) -> TickArray:
    """Concatenate ticks as raw records: NumPy's own way compares every field, 35 us an array."""
    return np.concatenate([part.view(_RAW) for part in parts]).view(TICK)


def sort_by_time(ticks: TickArray) -> TickArray:
    """Order ticks by event time; simultaneous ones keep their order."""
    order = np.argsort(ticks["ts_event"], kind="stable")
    return ticks.view(_RAW)[order].view(TICK)


def _whole(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Sizes as whole numbers, at least one where there is any."""
    return np.where(sizes > 0, np.maximum(np.rint(sizes), 1.0), 0.0).astype(np.int64)


def _at_best(live: npt.NDArray[np.int64], off: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Orders that rest at the best price, where `live` orders were stacked one after another.

    Order j was placed at the offset that the state with j live orders has; the last one is always
    at the current offset, those before it only where they share it.
    """
    level = dict(zip(live.tolist(), off.tolist(), strict=True))
    return np.array(
        [
            min(count, 1) + sum(level.get(order) == at for order in range(1, count))
            for count, at in zip(live.tolist(), off.tolist(), strict=True)
        ],
        np.int64,
    )
