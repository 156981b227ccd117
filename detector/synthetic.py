"""A seeded synthetic market: instruments with a level-1 book, merged into one stream of ticks.

The market is a toy that gets right what a tick detector looks at: arrivals that excite one another,
queues that fill, drain and move the price when empty, trades among many more additions and
cancellations, and instruments that differ in price, tick size and rate by orders of magnitude. The
definition (`Market`) is frozen, the state lives in `_Book`, the result is `TickBatch`es. Planted
anomalies come from `detector.planting`; this module only weaves them in.

References
----------
See `detector.kernels_synthetic`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from detector import kernels_synthetic as k
from detector.placing import Planted, join, sort_by_time
from detector.planting import Planter, plan
from detector.scripts import AnomalyKind
from detector.ticks import (
    NS_PER_S,
    PRICE_UNIT,
    TICK,
    TickArray,
    TickBatch,
    empty_ticks,
    instrument_key,
    stable_instrument_id,
)

SYNTHETIC_PUBLISHER: Final = 65_000
"""Publisher id of synthetic ticks: far above the venues that Databento numbers."""

DEMO_START_NS: Final = 1_767_600_000_000_000_000  # 2026-01-05 08:00 UTC, a Monday
DEMO_INSTRUMENTS: Final = 20
DEMO_TRAIN_S: Final = 600.0  # clean
DEMO_LIVE_S: Final = 300.0  # follows it, with plants
DEMO_PLANTS: Final = 21  # three of each kind
DEMO_SEPARATION_S: Final = 45.0
DEMO_KINDS: Final = (
    AnomalyKind.QUOTE_STUFFING,
    AnomalyKind.LAYERING,
    AnomalyKind.PUMP_AND_DUMP,
    AnomalyKind.FAT_FINGER,
    AnomalyKind.MOMENTUM_IGNITION,
    AnomalyKind.FROZEN_QUOTES,
    AnomalyKind.CROSSED_BOOK,
)

_FAST_DECAY, _FAST_BRANCHING = 200.0, 0.4  # replies within milliseconds
_SLOW_DECAY, _SLOW_BRANCHING = 1.0, 0.3  # busy and quiet seconds
_LAST_IN_PACKET = 0x80  # Databento's F_LAST
_BLOCK = 1024  # ticks an instrument is simulated ahead: 80 KiB


@dataclass(frozen=True, slots=True)
class Instrument:
    """What one synthetic instrument is like.

    Parameters
    ----------
    symbol
        Name; the instrument id is a stable hash of it.
    price
        Reference price in the quote currency: where it starts and is weakly pulled to.
    tick_size
        Price grid, quote currency; a multiple of 1e-9.
    rate_hz
        Mean ticks per second.
    trade_share, modify_share
        Share of ticks that are trades and modifications; the rest adds and cancels.
    queue_orders
        Orders at the best price, about; at least 1.
    spread_ticks
        Where the spread reverts to; at least 1.
    lot
        Smallest order size.
    size_mu, size_sigma
        Mean and standard deviation of the log of an order's size in lots.
    latency_ns
        Mean of `ts_recv - ts_event`.

    Raises
    ------
    ValueError
        A parameter is out of its range.
    """

    symbol: str
    price: float = 100.0
    tick_size: float = 0.01
    rate_hz: float = 20.0
    trade_share: float = 0.07
    modify_share: float = 0.04
    queue_orders: float = 6.0
    spread_ticks: float = 1.5
    lot: int = 1
    size_mu: float = 1.5
    size_sigma: float = 1.0
    latency_ns: float = 60_000.0

    def __post_init__(self) -> None:
        limits = {
            "price": (100 * self.tick_size, 1e6),
            "tick_size": (1e-9, 1e4),
            "rate_hz": (1e-3, 1e6),
            "trade_share": (0.0, 0.5),
            "modify_share": (0.0, 0.4),
            "queue_orders": (1.0, 200.0),
            "spread_ticks": (1.0, 50.0),
            "lot": (1, 1_000),
            "size_mu": (-5.0, 8.0),
            "size_sigma": (0.0, 3.0),
            "latency_ns": (0.0, 1e9),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:  # also refuses NaN
                raise ValueError(f"{self.symbol}: {name}={value}: allowed is {low:g} to {high:g}")
        units = self.tick_size / PRICE_UNIT
        if abs(units - round(units)) > 1e-6 * units:
            raise ValueError(
                f"{self.symbol}: tick_size={self.tick_size}: allowed are multiples of {PRICE_UNIT}"
            )

    @property
    def instrument_id(self) -> int:
        """Stable hash of the symbol."""
        return stable_instrument_id(self.symbol)


@dataclass(frozen=True, slots=True)
class Market:
    """A set of independent synthetic instruments and the seed that fixes every tick of them.

    An instrument's ticks depend on the seed and on its own definition only, not on its neighbours.

    Raises
    ------
    ValueError
        No instrument, or two with one id.
    """

    instruments: tuple[Instrument, ...]
    seed: int = 0
    publisher_id: int = SYNTHETIC_PUBLISHER

    def __post_init__(self) -> None:
        if not self.instruments:
            raise ValueError("instruments=(): a market needs at least one")
        if len(self.symbols) != len(self.instruments):
            names = [each.symbol for each in self.instruments]
            raise ValueError(f"instruments={names}: symbols must differ, and so must their hashes")

    @property
    def symbols(self) -> dict[int, str]:
        """Symbol by instrument key."""
        return {
            instrument_key(self.publisher_id, each.instrument_id): each.symbol
            for each in self.instruments
        }


class _Book:
    """Running state of one instrument."""

    def __init__(self, instrument: Instrument, market: Market, start_ns: int) -> None:
        self._p = _parameters(instrument)
        self._s = np.zeros(k.STATE, np.int64)
        self._x = np.zeros(2, np.float64)
        seeds = np.random.SeedSequence([market.seed, instrument.instrument_id])
        self._rng = seeds.generate_state(1, np.uint64).astype(np.uint64)
        self._start_ns = start_ns
        self._blank = empty_ticks(_BLOCK)
        self._blank["publisher_id"] = market.publisher_id
        self._blank["instrument_id"] = instrument.instrument_id
        self._blank["flags"] = _LAST_IN_PACKET
        k.open_book(self._p, self._s, self._x, self._rng)
        self._simulate()

    def _simulate(self) -> None:
        # A fresh array each time: slices of the last one are still in use.
        self._block = self._blank.copy()
        k.run_book(self._p, self._s, self._x, self._rng, self._start_ns, self._block)
        self._ts = self._block["ts_event"].astype(np.int64)
        self._taken = 0

    def run(self, until_ns: int) -> TickArray:
        """Ticks up to `until_ns` (exclusive, epoch), from where the last call ended.

        Blocks are simulated whole, whatever is asked for: where a stream is cut changes nothing.
        """
        parts: list[TickArray] = []
        while self._ts[-1] < until_ns:
            parts.append(self._block[self._taken :])
            self._simulate()
        due = int(np.searchsorted(self._ts, until_ns, "left"))
        parts.append(self._block[self._taken : due])
        self._taken = due
        return join(parts) if len(parts) > 1 else parts[0]


def _parameters(one: Instrument) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    p = np.empty(k.PARAMETERS, np.float64)
    p[k.BASE_RATE] = one.rate_hz * (1.0 - _FAST_BRANCHING - _SLOW_BRANCHING)
    p[k.FAST_JUMP] = _FAST_BRANCHING * _FAST_DECAY
    p[k.FAST_DECAY] = _FAST_DECAY
    p[k.SLOW_JUMP] = _SLOW_BRANCHING * _SLOW_DECAY
    p[k.SLOW_DECAY] = _SLOW_DECAY
    p[k.TRADE_SHARE] = one.trade_share
    p[k.MODIFY_SHARE] = one.modify_share
    p[k.QUEUE_ORDERS] = one.queue_orders
    p[k.SPREAD_TICKS] = one.spread_ticks
    p[k.SIZE_MU] = one.size_mu
    p[k.SIZE_SIGMA] = one.size_sigma
    p[k.LOT] = one.lot
    p[k.TICK_PX] = round(one.tick_size / PRICE_UNIT)
    p[k.REFERENCE] = round(one.price / one.tick_size)
    p[k.LATENCY_NS] = one.latency_ns
    return p


def generate(
    market: Market,
    start_ns: int,
    duration_s: float,
    plants: Iterable[Planted] = (),
    *,
    chunk_s: float = 1.0,
) -> Iterator[TickBatch]:
    """Ticks of all instruments in order of event time, chunk by chunk.

    Equal arguments give equal bytes, and `chunk_s` changes only where the stream is cut.

    Parameters
    ----------
    market
        What to simulate.
    start_ns
        Epoch ns at which it starts.
    duration_s
        Length in seconds; the last tick is before `start_ns + duration_s`.
    plants
        Anomalies to weave in, see `detector.planting.plan`; each must lie within the stream.
    chunk_s
        Seconds of market time a batch.

    Yields
    ------
    TickBatch
        Non-empty; partition 0, offsets are row numbers of the whole stream, `symbols` names every
        instrument.

    Raises
    ------
    ValueError
        A duration is not positive; a plant is outside the stream, overlaps another one, or names an
        instrument that the market does not have.
    """
    for name, value in (("duration_s", duration_s), ("chunk_s", chunk_s)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name}={value}: allowed are positive numbers")
    end_ns = start_ns + round(duration_s * NS_PER_S)
    planters = _planters(market, plants, start_ns, end_ns)
    return _merged(market, planters, start_ns, end_ns, max(round(chunk_s * NS_PER_S), 1))


def _planters(
    market: Market, plants: Iterable[Planted], start_ns: int, end_ns: int
) -> dict[int, Planter]:
    by_key: dict[int, list[Planted]] = {}
    for one in plants:
        if one.key not in market.symbols:
            raise ValueError(f"plant of {one.symbol} (key {one.key}): the market has no such key")
        if one.start_ns < start_ns or one.end_ns >= end_ns:
            raise ValueError(
                f"plant of {one.symbol} from {one.start_ns} to {one.end_ns}: "
                f"allowed is from {start_ns} to before {end_ns}"
            )
        by_key.setdefault(one.key, []).append(one)
    return {key: Planter(some) for key, some in by_key.items()}


def _merged(
    market: Market, planters: Mapping[int, Planter], start_ns: int, end_ns: int, chunk_ns: int
) -> Iterator[TickBatch]:
    symbols = market.symbols
    books = [_Book(each, market, start_ns) for each in market.instruments]
    offset = 0
    for cut in itertools.count(start_ns + chunk_ns, chunk_ns):
        until = min(cut, end_ns)
        parts = []
        for key, book in zip(symbols, books, strict=True):
            ticks = book.run(until)
            parts.append(planters[key].feed(ticks, until) if key in planters else ticks)
        rows = join(parts)
        n = len(rows)
        if n:
            rows = sort_by_time(rows)  # simultaneous ticks: in the market's order of instruments
            offsets = np.arange(offset, offset + n, dtype=np.int64)
            yield TickBatch(rows, 0, offsets, np.zeros(n, np.int32), symbols)
            offset += n
        if until == end_ns:
            return


def gather(batches: Iterable[TickBatch]) -> TickBatch:
    """Join consecutive batches of one partition into one; an empty stream gives an empty batch."""
    parts: Sequence[TickBatch] = list(batches)
    if not parts:
        return TickBatch.from_ticks(np.empty(0, TICK))
    symbols: dict[int, str] = {}
    for part in parts:
        symbols |= part.symbols
    return TickBatch(
        join([part.ticks for part in parts]),
        parts[0].partition,
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.indices for part in parts]),
        symbols,
    )


def demo_market(seed: int = 7, instruments: int = DEMO_INSTRUMENTS) -> Market:
    """Return the demo's market: prices, grids, rates, depths and sizes spread over a wide range.

    Rates are lognormal between 8 and 80 ticks a second, about 25 on average.
    """
    rng = np.random.default_rng([seed, instruments])
    made = []
    for number in range(instruments):
        price = round(float(10.0 ** rng.uniform(0.7, 2.9)), 2)
        # A relative grid of 0.5 to 4 bps, to the nearest 1, 2 or 5 of a decade.
        wanted = price * rng.uniform(0.5e-4, 4e-4)
        decade = 10.0 ** math.floor(math.log10(wanted))
        tick = min((1.0, 2.0, 5.0), key=lambda step: abs(math.log(wanted / (step * decade))))
        tick_size = float(f"{tick * decade:.1e}")
        made.append(
            Instrument(
                symbol=f"SYN{number + 1:02d}",
                price=round(round(price / tick_size) * tick_size, 9),
                tick_size=tick_size,
                rate_hz=float(np.clip(rng.lognormal(math.log(22.0), 0.6), 8.0, 80.0)),
                trade_share=float(rng.uniform(0.05, 0.10)),
                queue_orders=float(rng.uniform(3.0, 10.0)),
                spread_ticks=float(rng.uniform(1.0, 4.0)),
                lot=int(rng.choice([1, 10, 100])),
                size_mu=float(rng.uniform(0.8, 2.2)),
                size_sigma=float(rng.uniform(0.8, 1.2)),
            )
        )
    return Market(tuple(made), seed)


def demo_plan(market: Market, seed: int = 7) -> tuple[Planted, ...]:
    """Return the demo's anomalies: all in the live part, none in its first 45 seconds.

    The live part starts `DEMO_TRAIN_S` after `DEMO_START_NS` and lasts `DEMO_LIVE_S`.
    """
    live_ns = DEMO_START_NS + round(DEMO_TRAIN_S * NS_PER_S)
    return plan(
        market.symbols,
        DEMO_PLANTS,
        live_ns,
        live_ns + round(DEMO_LIVE_S * NS_PER_S),
        min_separation_s=DEMO_SEPARATION_S,
        kinds=DEMO_KINDS,
        seed=seed,
    )
