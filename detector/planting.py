"""Labelled anomalies woven into an instrument's ticks as market events with a consistent book.

Three steps. `plan` draws what happens where and when, knowing no tick. `detector.scripts` turns a
plan into steps whose prices and sizes are multiples of the instrument's own. `Planter` places the
steps on a clean stream: during an anomaly the book is the clean book plus what the anomaly adds to
it, and when the last step has undone itself only the clean book is left. Works on any stream in
time order, real or synthetic, cut anywhere; knows no file, no topic and no label format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detector.scripts import RANGES, AnomalyKind, Script, draw_parameters, script
from detector.ticks import NS_PER_S, TICK, UNDEFINED_PRICE, UNDEFINED_TIME, TickArray

_RAW: Final = np.dtype((np.void, TICK.itemsize))

HISTORY: Final = 512
"""Ticks before an anomaly from which its scale (grid, order sizes) is taken."""


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


def plan(
    symbols: Mapping[int, str],
    n: int,
    start_ns: int,
    end_ns: int,
    *,
    min_separation_s: float = 60.0,
    kinds: Sequence[AnomalyKind] = tuple(AnomalyKind),
    strength: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> tuple[Planted, ...]:
    """Draw `n` anomalies, kinds and instruments as even as they go, times uniform.

    Parameters
    ----------
    symbols
        Instruments to plant in: symbol by key, as `TickBatch.symbols`.
    n
        How many.
    start_ns, end_ns
        Epoch ns; every anomaly lies within, the start inclusive, the end exclusive.
    min_separation_s
        An instrument's anomalies leave at least this between the end of one and the start of the
        next, and before the first and after the last one too.
    kinds
        Which to plant, in turns.
    strength
        The part of every parameter range to draw from, 0 its low and 1 its high end.
    seed
        Equal arguments and seed give an equal plan.

    Returns
    -------
    tuple of Planted
        In order of start.

    Raises
    ------
    ValueError
        A parameter is out of its range, or so many do not fit at that separation.
    """
    if not symbols or not kinds:
        raise ValueError(f"symbols={dict(symbols)}, kinds={tuple(kinds)}: neither may be empty")
    if not 0.0 <= strength[0] <= strength[1] <= 1.0:
        raise ValueError(f"strength={strength}: allowed is 0 <= low <= high <= 1")
    if n < 0 or not min_separation_s >= 0:
        raise ValueError(f"n={n}, min_separation_s={min_separation_s}: negatives are not allowed")
    rng = np.random.default_rng([seed, 0x7A9E])
    keys = sorted(symbols)
    what: dict[int, list[tuple[AnomalyKind, dict[str, float], int, int]]] = {}
    order: list[int] = []
    for number in range(n):
        if not order:  # a new order each round: no instrument gets one kind every time
            order = [keys[i] for i in rng.permutation(len(keys))]
        kind = kinds[number % len(kinds)]
        params = draw_parameters(kind, rng, strength)
        jitter = int(rng.integers(2**31))
        length = int(script(kind, params, jitter).length_ns)
        what.setdefault(order.pop(), []).append((kind, params, jitter, length))
    planned = []
    separation = round(min_separation_s * NS_PER_S)
    for key in sorted(what):
        some = what[key]
        slack = end_ns - 1 - start_ns - separation - sum(each[3] + separation for each in some)
        if slack < 0:
            raise ValueError(
                f"n={n}: {len(some)} anomalies of {symbols[key]} do not fit into "
                f"{(end_ns - start_ns) / NS_PER_S:g} s, {min_separation_s:g} s apart: allowed are "
                "fewer, closer, or in a longer time"
            )
        # Uniform among all placements: uniform cuts of the slack, the rest is fixed.
        at = start_ns + separation
        cuts = np.sort(rng.integers(0, slack, len(some), endpoint=True))
        for (kind, params, jitter, length), cut in zip(some, cuts, strict=True):
            begin = at + int(cut)
            planned.append(Planted(kind, key, symbols[key], begin, begin + length, params, jitter))
            at += length + separation
    return tuple(sorted(planned, key=lambda each: (each.start_ns, each.key)))


def plant(ticks: TickArray, plants: Iterable[Planted]) -> TickArray:
    """Weave anomalies into a whole clean stream of one instrument, see `Planter`."""
    planter = Planter(plants)
    last = int(ticks["ts_event"][-1]) if len(ticks) else 0
    until = max([last, *(each.end_ns for each in planter.plants)]) + 1
    return planter.feed(ticks, until)


class Planter:
    """Weaves the anomalies of one instrument into its clean ticks, chunk by chunk.

    Ticks outside the anomalies pass unchanged. Within one, clean ticks keep their place and carry
    the changed book (frozen quotes: only trades are kept); inserted ticks take the publisher, the
    sequence number (that of the clean tick before: one packet carries many records) and the latency
    of their neighbours. How the stream is cut into chunks changes nothing.

    Parameters
    ----------
    plants
        Anomalies of one instrument, not overlapping.

    Raises
    ------
    ValueError
        They overlap or are of more than one instrument.
    """

    def __init__(self, plants: Iterable[Planted]) -> None:
        self.plants = tuple(sorted(plants, key=lambda each: each.start_ns))
        if len({each.key for each in self.plants}) > 1:
            raise ValueError("plants: of several instruments; allowed is one planter each")
        for one, after in zip(self.plants, self.plants[1:], strict=False):
            if after.start_ns <= one.end_ns:
                raise ValueError(
                    f"plants of {one.symbol}: one ends at {one.end_ns}, the next starts at "
                    f"{after.start_ns}: they must not overlap"
                )
        self._ahead = list(self.plants)
        self._placed: _Placed | None = None
        self._context: TickArray = np.empty(0, TICK)
        self._done_ns = -1

    def feed(self, clean: TickArray, until_ns: int) -> TickArray:
        """Take the clean ticks up to `until_ns` (exclusive), return them with what is planted.

        Parameters
        ----------
        clean
            `(n,)` ticks in time order, following those of the call before.
        until_ns
            Epoch ns; anomalies' steps before it are part of the result.

        Raises
        ------
        ValueError
            Ticks out of time order, or no two-sided quote before an anomaly.
        """
        ts = clean["ts_event"].astype(np.int64)
        if len(ts) and (ts[0] < self._done_ns or ts[-1] >= until_ns or np.any(np.diff(ts) < 0)):
            raise ValueError(
                f"clean: event times must ascend within {self._done_ns} to {until_ns} (exclusive)"
            )
        rows = join([self._context, clean])
        fresh = len(self._context)
        out = clean
        while self._placed is not None or (self._ahead and self._ahead[0].start_ns < until_ns):
            if self._placed is None:
                self._placed = _Placed(self._ahead.pop(0), rows)
            changed = self._placed.weave(rows, fresh, self._done_ns, until_ns)
            out = _replace(out, changed, self._placed, self._done_ns, until_ns)
            if self._placed.plan.end_ns >= until_ns:
                break
            self._placed = None
        self._context = rows[-HISTORY:].copy()  # lets go of the chunk
        self._done_ns = until_ns
        return out


def _replace(
    out: TickArray, changed: TickArray, placed: _Placed, from_ns: int, until_ns: int
) -> TickArray:
    """Put the changed ticks of one anomaly where the clean ones of its time were."""
    ts = out["ts_event"].astype(np.int64)
    first = np.searchsorted(ts, max(placed.plan.start_ns, from_ns), "left")
    last = np.searchsorted(ts, min(placed.plan.end_ns + 1, until_ns), "left")
    return join([out[:first], changed, out[last:]])


class _Placed:
    """An anomaly with prices and sizes of the instrument it is planted in."""

    def __init__(self, planned: Planted, rows: TickArray) -> None:
        before = rows[: np.searchsorted(rows["ts_event"], planned.start_ns, "left")][-HISTORY:]
        quoted = before[_two_sided(before)]
        if not len(quoted):
            raise ValueError(
                f"plant of {planned.symbol} at {planned.start_ns}: no tick with bid and ask before"
            )
        self.plan = planned
        self.anchor = quoted[-1:]
        made = script(planned.kind, planned.params, planned.seed)
        self.frozen = made.frozen
        self.grid = _grid(quoted)
        self.ts = planned.start_ns + made.steps["after_ns"]
        self._at = made.steps["at"]
        self._action, self._side = made.steps["action"], made.steps["side"]
        self._scale(made, before)

    def _scale(self, made: Script, before: TickArray) -> None:
        """Turn multiples into prices on the grid and whole sizes."""
        bid, ask = int(self.anchor["bid_px"][0]), int(self.anchor["ask_px"][0])
        px_unit = (ask - bid) if made.px_unit == "spread" else (bid + ask) / 2
        sizes = before["size"][before["size"] > 0]
        small = made.size_unit == "small"
        size_unit = 1.0
        if len(sizes):
            size_unit = float(np.quantile(sizes, 0.1) if small else np.mean(sizes))
        steps = made.steps
        # An idle state first: what the book carries before the first step.
        padded = np.concatenate([np.zeros(1, steps.dtype), steps])
        self._px = {
            name: np.trunc(padded[name] * px_unit / self.grid).astype(np.int64) * self.grid
            for name in ("shift", "bid_off", "ask_off")
        }
        self._cross = padded["cross"].astype(np.int64) * self.grid
        self._size = np.maximum(np.rint(steps["size"] * size_unit), 1.0)
        self._sz, self._ct = {}, {}
        for side in ("bid", "ask"):
            each = padded[f"{side}_sz"] * size_unit
            each = np.where(each > 0, np.maximum(np.rint(each), 1.0), 0.0).astype(np.int64)
            orders = _at_best(padded[f"{side}_ct"], self._px[f"{side}_off"])
            self._ct[side] = orders
            self._sz[side] = orders * each

    def weave(self, rows: TickArray, fresh: int, from_ns: int, until_ns: int) -> TickArray:
        """Ticks of the anomaly's time within `[from_ns, until_ns)`, planted and clean."""
        ts = rows["ts_event"].astype(np.int64)
        low, high = max(self.plan.start_ns, from_ns), min(self.plan.end_ns + 1, until_ns)
        first = max(int(np.searchsorted(ts, low, "left")), fresh)
        inside = slice(first, int(np.searchsorted(ts, high, "left")))
        if self.frozen:
            return self._freeze(rows[inside])
        state = np.searchsorted(self.ts, ts[inside], "left")  # a simultaneous clean tick is first
        carried = self._carry(rows[inside], state)
        steps = np.flatnonzero((self.ts >= low) & (self.ts < high))
        under = np.searchsorted(ts, self.ts[steps], "right") - 1
        both = join([carried, self._insert(rows[under], steps)])
        return sort_by_time(both)

    def _freeze(self, clean: TickArray) -> TickArray:
        """Keep trades only, over the book as it last was."""
        kept: TickArray = clean[clean["action"] == ord("T")].copy()
        for name in ("bid_px", "ask_px", "bid_sz", "ask_sz", "bid_ct", "ask_ct"):
            kept[name] = self.anchor[name]
        return kept

    def _carry(self, clean: TickArray, state: npt.NDArray[np.int64]) -> TickArray:
        """Clean ticks over the changed book; their prices move with the side they act on."""
        moved = clean.copy()
        quoted = _two_sided(clean)
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
        base = np.where(_two_sided(under), under, np.repeat(self.anchor, len(under)))
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
        for name, column in after.items():
            made[name] = column
        return made

    def _book(
        self, clean: TickArray, state: npt.NDArray[np.int64]
    ) -> dict[str, npt.NDArray[np.int64]]:
        """Return the clean book plus what the anomaly's state adds to it."""
        bid_off, ask_off = self._px["bid_off"][state], self._px["ask_off"][state]
        cross = self._cross[state]
        bid = clean["bid_px"] + self._px["shift"][state] + bid_off
        ask = clean["ask_px"] + self._px["shift"][state] + ask_off
        # The side that is run into retreats by as much as it must.
        ask = np.where(bid_off > 0, np.maximum(ask, bid + self.grid), ask)
        bid = np.where(ask_off < 0, np.minimum(bid, ask - self.grid), bid)
        bid, ask = (
            np.where(cross > 0, ask + cross, bid),
            np.where(cross < 0, bid + cross, ask),
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


def _two_sided(ticks: TickArray) -> npt.NDArray[np.bool_]:
    known: npt.NDArray[np.bool_] = (ticks["bid_px"] != UNDEFINED_PRICE) & (
        ticks["ask_px"] != UNDEFINED_PRICE
    )
    return known


def _grid(quoted: TickArray) -> int:
    """Coarsest price grid on which the quotes lie: at most the spread, often the tick size."""
    bid, ask = quoted["bid_px"], quoted["ask_px"]
    return max(int(np.gcd.reduce(np.concatenate([bid - bid[0], ask - bid[0]]))), 1)


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


__all__ = ["RANGES", "AnomalyKind", "Planted", "Planter", "plan", "plant"]
