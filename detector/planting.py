"""Labelled anomalies woven into an instrument's ticks as market events with a consistent book.

Three steps. `plan` draws what happens where and when, knowing no tick. `detector.scripts` turns a
plan into steps whose prices and sizes are multiples of the instrument's own. `Planter` weaves the
steps into a clean stream: `detector.placing` gives them the instrument's prices, `detector.feeds`
says them as its feed would. Works on any stream in time order, real or synthetic, cut anywhere;
knows no file, no topic and no label format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import numpy as np

from detector.feeds import Feed, feed_of
from detector.placing import HISTORY, Placed, Planted, join
from detector.scripts import RANGES, AnomalyKind, Ranges, draw_parameters, script
from detector.ticks import NS_PER_S, TICK, TickArray

_PRICE_ONLY: Final = (
    AnomalyKind.QUOTE_STUFFING,
    AnomalyKind.PUMP_AND_DUMP,
    AnomalyKind.FAT_FINGER,
    AnomalyKind.CROSSED_BOOK,
    AnomalyKind.FEED_GAP,
)
_TRADE_ONLY: Final = (
    AnomalyKind.PUMP_AND_DUMP,
    AnomalyKind.FAT_FINGER,
    AnomalyKind.MOMENTUM_IGNITION,
    AnomalyKind.WASH_TRADES,
    AnomalyKind.FEED_GAP,
)

APPLICABLE: Final[Mapping[Feed, tuple[AnomalyKind, ...]]] = {
    Feed.ORDERS: tuple(AnomalyKind),
    Feed.QUOTES_AND_TRADES: tuple(AnomalyKind),
    Feed.QUOTES: _PRICE_ONLY,
    Feed.TRADES: _TRADE_ONLY,
}
"""Which kinds a feed can show. Among quotes alone: those that are told by prices and times; what
makes layering, momentum ignition, wash trades and frozen quotes are sizes and trades. On a tape:
those that leave trades with a price, a size or a time that gives them away."""


def plan(
    symbols: Mapping[int, str],
    n: int,
    start_ns: int,
    end_ns: int,
    *,
    min_separation_s: float = 60.0,
    kinds: Sequence[AnomalyKind] = tuple(AnomalyKind),
    ranges: Ranges = RANGES,
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
    ranges
        What to draw the parameters from: `RANGES`, or parts of them.
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
    if unknown := [kind.value for kind in kinds if kind not in ranges]:
        raise ValueError(f"ranges: nothing for {', '.join(unknown)}, which kinds asks for")
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
        params = draw_parameters(kind, rng, ranges)
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


def plant(ticks: TickArray, plants: Iterable[Planted], feed: Feed | None = None) -> TickArray:
    """Weave anomalies into a whole clean stream of one instrument, see `Planter`.

    `feed` None: told by the ticks.
    """
    planter = Planter(plants, feed_of(ticks) if feed is None else feed)
    last = int(ticks["ts_event"][-1]) if len(ticks) else 0
    until = max([last, *(each.end_ns for each in planter.plants)]) + 1
    return planter.feed(ticks, until)


class Planter:
    """Weaves the anomalies of one instrument into its clean ticks, chunk by chunk.

    Ticks outside the anomalies pass unchanged. Within one, clean ticks keep their place and carry
    the changed book (frozen quotes: only trades are kept; feed gap: they come late); inserted ticks
    take the publisher, the sequence number (that of the clean tick before: one packet carries many
    records), the latency and the clock's resolution of their neighbours. How the stream is cut into
    chunks changes nothing.

    Parameters
    ----------
    plants
        Anomalies of one instrument, not overlapping.
    feed
        How the stream tells what happens.

    Raises
    ------
    ValueError
        They overlap, are of more than one instrument, or of a kind that the feed cannot show.
    """

    def __init__(self, plants: Iterable[Planted], feed: Feed = Feed.ORDERS) -> None:
        self.plants = tuple(sorted(plants, key=lambda each: each.start_ns))
        self._feed = feed
        for one in self.plants:
            if one.kind not in APPLICABLE[feed]:
                raise ValueError(
                    f"plants of {one.symbol}: {one.kind} cannot be shown by a feed of {feed}; "
                    f"allowed are {', '.join(APPLICABLE[feed])}"
                )
        if len({each.key for each in self.plants}) > 1:
            raise ValueError("plants: of several instruments; allowed is one planter each")
        for one, after in zip(self.plants, self.plants[1:], strict=False):
            if after.start_ns <= one.end_ns:
                raise ValueError(
                    f"plants of {one.symbol}: one ends at {one.end_ns}, the next starts at "
                    f"{after.start_ns}: they must not overlap"
                )
        self._ahead = list(self.plants)
        self._placed: Placed | None = None
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
                self._placed = Placed(self._ahead.pop(0), self._feed, rows)
            changed = self._placed.weave(rows, fresh, self._done_ns, until_ns)
            out = _replace(out, changed, self._placed, self._done_ns, until_ns)
            if self._placed.plan.end_ns >= until_ns:
                break
            self._placed = None
        self._context = rows[-HISTORY:].copy()  # lets go of the chunk
        self._done_ns = until_ns
        return out


def _replace(
    out: TickArray, changed: TickArray, placed: Placed, from_ns: int, until_ns: int
) -> TickArray:
    """Put the changed ticks of one anomaly where the clean ones of its time were."""
    ts = out["ts_event"].astype(np.int64)
    first = np.searchsorted(ts, max(placed.plan.start_ns, from_ns), "left")
    last = np.searchsorted(ts, min(placed.plan.end_ns + 1, until_ns), "left")
    return join([out[:first], changed, out[last:]])


__all__ = ["APPLICABLE", "RANGES", "AnomalyKind", "Planted", "Planter", "plan", "plant"]
