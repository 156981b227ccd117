"""What a recorded stream is like, and what is planted in it where.

A stream is looked at first (`survey`); then anomalies that its feed can show are planned where it
trades (`plan_stream`), by a frozen `Policy`. Nothing is planted here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from detector.feeds import Feed, feed_from, two_sided
from detector.placing import HISTORY, Planted
from detector.planting import APPLICABLE, plan
from detector.scripts import RANGES, AnomalyKind
from detector.symbols import SymbolMap
from detector.ticks import NS_PER_S, TickBatch
from training.halves import Half, half_ranges

Int64 = npt.NDArray[np.int64]
Spans = Sequence[tuple[int, int]]
"""Event times in ns, each start inclusive, each end exclusive."""

PAUSE_S: Final = 300.0
"""A longer time without a tick of an instrument ends a stretch: a night holds no anomaly."""

LONGEST_S: Final = RANGES[AnomalyKind.FROZEN_QUOTES]["seconds"][1]
"""Length of the longest anomaly."""

MOST_SEPARATION_S: Final = 86_400.0

LEAST_TRADES: Final = 3
"""Frozen quotes show themselves by trades that go on: so many at least."""

LEAST_WITHHELD: Final = 5
"""A gap is told from a quiet market by what it withheld: so many ticks at least."""


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What planning needs to know of one instrument's stream.

    Parameters
    ----------
    symbol
        Its name.
    feed
        How it tells what happens.
    ts
        `(n,)` event times of its ticks.
    trade_ts
        `(t,)` those of its trades.
    """

    symbol: str
    feed: Feed
    ts: Int64
    trade_ts: Int64

    @property
    def ascends(self) -> bool:
        """Whether no tick goes back in time, as planting needs it."""
        return bool(np.all(np.diff(self.ts) >= 0))

    def stretches(self, spans: Spans | None = None) -> list[tuple[int, int]]:
        """Return when it trades: no pause beyond `PAUSE_S`, scale known, within the spans."""
        ts = self.ts[HISTORY:]
        if not len(ts):
            return []
        breaks = np.flatnonzero(np.diff(ts) > PAUSE_S * NS_PER_S)
        starts, ends = ts[np.append(0, breaks + 1)], ts[np.append(breaks, len(ts) - 1)] + 1
        whole = [(int(ts[0]), int(ts[-1]) + 1)] if spans is None else spans
        found = [
            (max(start, low), min(end, high))
            for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
            for low, high in whole
        ]
        return [(start, end) for start, end in found if start < end]


def survey(batches: Iterable[TickBatch]) -> dict[int, Survey]:
    """Look through a stream: every instrument's name, feed and event times, by instrument key."""
    symbols = SymbolMap()
    times: dict[int, list[Int64]] = {}
    trade_times: dict[int, list[Int64]] = {}
    seen: dict[int, Counter[str]] = {}
    for batch in batches:
        symbols.learn(batch.symbols)
        keys, ts = batch.keys, batch.ts_event
        for key in np.unique(keys).tolist():
            mine = keys == key
            ticks = batch.ticks[mine]
            trade = ticks["action"] == ord("T")
            order = (ticks["action"] == ord("A")) | (ticks["action"] == ord("C"))
            times.setdefault(key, []).append(ts[mine])
            trade_times.setdefault(key, []).append(ts[mine][trade])
            what = {"quoted": two_sided(ticks), "orders": order, "trades": trade}
            seen.setdefault(key, Counter()).update(
                {name: int(np.count_nonzero(rows)) for name, rows in what.items()}
            )
    return {
        key: Survey(
            symbols.name(key),
            feed_from(
                quoted=seen[key]["quoted"] > 0,
                orders=seen[key]["orders"] > 0,
                trades=seen[key]["trades"] > 0,
            ),
            np.concatenate(times[key]),
            np.concatenate(trade_times[key]),
        )
        for key in sorted(times)
    }


@dataclass(frozen=True, slots=True)
class Policy:
    """How much of what is planted.

    Parameters
    ----------
    per_hour
        Anomalies per instrument-hour of trading.
    kinds
        Which, as even as they go; those that an instrument's feed cannot show are left out there.
    half
        Of the parameter ranges.
    separation_s
        Least time in seconds without an anomaly of the instrument before each start, after each
        end, and at both ends of every stretch.
    seed
        Equal policies and equal streams give equal anomalies.
    """

    per_hour: float = 20.0
    kinds: tuple[AnomalyKind, ...] = tuple(AnomalyKind)
    half: Half = Half.TEST
    separation_s: float = 60.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.separation_s <= MOST_SEPARATION_S:
            raise ValueError(
                f"separation_s is {self.separation_s}; it must lie between 0 and "
                f"{MOST_SEPARATION_S:g} (a day)"
            )
        most = 3600 / (self.separation_s + LONGEST_S)
        if not 0 < self.per_hour <= most:
            raise ValueError(
                f"per_hour is {self.per_hour}; allowed is more than 0 and, {self.separation_s:g} s "
                f"apart, at most {most:g}"
            )
        if not self.kinds:
            raise ValueError("kinds is empty; name at least one")


def plan_stream(
    surveys: Mapping[int, Survey], policy: Policy, spans: Spans | None = None
) -> tuple[Planted, ...]:
    """Plan anomalies for the instruments of a stream, each by its own feed and hours.

    Frozen quotes need trades and a feed gap needs ticks to be seen by: where too few fall into one,
    it is moved to the nearest place between its neighbours that has enough, or left out.

    Parameters
    ----------
    surveys
        By instrument key, from `survey`.
    policy
        How much of what.
    spans
        Plant within these times only; None: anywhere.

    Returns
    -------
    tuple of Planted
        In order of start.
    """
    planned: list[Planted] = []
    for key, one in surveys.items():
        kinds = [kind for kind in policy.kinds if kind in APPLICABLE[one.feed]]
        least = round((2 * policy.separation_s + LONGEST_S) * NS_PER_S)
        stretches = [each for each in one.stretches(spans) if each[1] - each[0] > least]
        if not kinds:
            continue
        deck = _deck(kinds, np.random.default_rng([policy.seed, key, 0xDEC]))
        hours, done = 0.0, 0
        for start, end in stretches:
            hours += (end - start) / (3600 * NS_PER_S)
            room = (end - start) / NS_PER_S - policy.separation_s
            most = int(room / (policy.separation_s + LONGEST_S))
            n = min(round(policy.per_hour * hours) - done, most)
            done += n
            planned.extend(_plan_stretch(key, one, n, (start, end), policy, deck))
    return tuple(sorted(planned, key=lambda each: (each.start_ns, each.key)))


def _deck(kinds: Sequence[AnomalyKind], rng: np.random.Generator) -> Iterator[AnomalyKind]:
    """Deal all kinds, in a new order each round, without end."""
    while True:
        for index in rng.permutation(len(kinds)):
            yield kinds[index]


def _plan_stretch(
    key: int,
    one: Survey,
    n: int,
    stretch: tuple[int, int],
    policy: Policy,
    deck: Iterator[AnomalyKind],
) -> list[Planted]:
    if not n:
        return []
    seeds = np.random.SeedSequence([policy.seed, key, stretch[0]])
    planned = plan(
        {key: one.symbol},
        n,
        *stretch,
        min_separation_s=policy.separation_s,
        kinds=[next(deck) for _ in range(n)],
        ranges=half_ranges(policy.half),
        seed=int(seeds.generate_state(1)[0]),
    )
    separation = round(policy.separation_s * NS_PER_S)
    seen: list[Planted] = []
    for number, each in enumerate(planned):
        low = (seen[-1].end_ns if seen else stretch[0]) + separation
        last = number + 1 == len(planned)
        high = (stretch[1] - 1 if last else planned[number + 1].start_ns) - separation
        moved = _where_seen(each, one, low, high)
        if moved is not None:
            seen.append(moved)
    return seen


def _where_seen(each: Planted, one: Survey, low: int, high: int) -> Planted | None:
    """Return the anomaly at the nearest time within `[low, high]` at which enough can be seen."""
    acts_on = {
        AnomalyKind.FROZEN_QUOTES: (one.trade_ts, LEAST_TRADES),
        AnomalyKind.FEED_GAP: (one.ts, LEAST_WITHHELD),
    }
    if each.kind not in acts_on:
        return each
    ts, least = acts_on[each.kind]
    length = each.end_ns - each.start_ns
    starts = np.append(each.start_ns, np.arange(low, high - length + 1, NS_PER_S))
    seen = np.searchsorted(ts, starts + length, "right") - np.searchsorted(ts, starts, "left")
    enough = starts[seen >= least]
    if not len(enough):
        return None
    start = int(enough[np.argmin(np.abs(enough - each.start_ns))])
    return replace(each, start_ns=start, end_ns=start + length)
