"""What each kind of anomaly does, step by step, in multiples of the instrument it will meet.

A script is a table of steps. A step is a market event (action, side, size) and the state that holds
from it on: how far either side is shifted, where the anomaly's own orders stand, how many. The last
step of every script leaves nothing behind. Frozen quotes and the feed gap have no steps: they act
on the ticks that are there. Scripts know no price, no size and no clock; times are counted from the
first step. `detector.placing` places them.

References
----------
Poutré, Chételat, Morales (2024), "Deep unsupervised anomaly detection in high-frequency markets",
Journal of Finance and Data Science 10, 100129: quote stuffing, layering, pump and dump, with the
ranges used here.
SEC (2010), "Concept release on equity market structure", 34-61358: momentum ignition.
Cao, Li, Coleman, Belatreche, McGinnity (2016), "Detecting wash trade in financial market using
digraphs and dynamic programming", IEEE Transactions on Neural Networks and Learning Systems 27:
wash trades. The ranges of the kinds not in the first paper are this project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

_NS_PER_MS: Final = 1e6


class AnomalyKind(StrEnum):
    """The kinds that can be planted."""

    QUOTE_STUFFING = "quote_stuffing"
    LAYERING = "layering"
    PUMP_AND_DUMP = "pump_and_dump"
    FAT_FINGER = "fat_finger"
    MOMENTUM_IGNITION = "momentum_ignition"
    FROZEN_QUOTES = "frozen_quotes"
    CROSSED_BOOK = "crossed_book"
    WASH_TRADES = "wash_trades"
    FEED_GAP = "feed_gap"


RANGES: Final[Mapping[AnomalyKind, Mapping[str, tuple[float, float]]]] = {
    AnomalyKind.QUOTE_STUFFING: {"events": (50, 199), "per_ms": (8, 9)},
    AnomalyKind.LAYERING: {
        "orders": (10, 12),
        "walk_bps": (0, 7),
        "bona_fide_means": (2, 3),
        "hold_ms": (100, 1000),
    },
    AnomalyKind.PUMP_AND_DUMP: {"rise_pct": (3, 4), "size_means": (1.25, 2)},
    AnomalyKind.FAT_FINGER: {"away_pct": (0.5, 5), "size_means": (5, 20), "back_ms": (100, 1000)},
    AnomalyKind.MOMENTUM_IGNITION: {
        "trades": (5, 15),
        "within_ms": (100, 500),
        "move_bps": (10, 50),
        "back_ms": (200, 1000),
    },
    AnomalyKind.FROZEN_QUOTES: {"seconds": (10, 30)},
    AnomalyKind.CROSSED_BOOK: {"ticks": (0, 5), "hold_ms": (200, 2000)},
    AnomalyKind.WASH_TRADES: {"trades": (10, 30), "size_means": (2, 5), "gap_ms": (20, 100)},
    AnomalyKind.FEED_GAP: {"gap_s": (5, 20), "burst_ms": (50, 500)},
}
"""Parameter ranges, both ends inclusive."""

WHOLE: Final = frozenset({"events", "orders", "trades", "ticks"})
"""Parameters that are whole numbers."""

_ONE_SIDED: Final = frozenset(
    {AnomalyKind.PUMP_AND_DUMP, AnomalyKind.FROZEN_QUOTES, AnomalyKind.FEED_GAP}
)

STEP: Final = np.dtype(
    [
        ("after_ns", "i8"),
        ("action", "u1"),
        ("side", "u1"),
        ("at", "u1"),  # the event's price: one of the four below
        ("size", "f8"),  # size units
        ("bid_shift", "f8"),  # price units by which a side is away from the clean book
        ("ask_shift", "f8"),
        ("bid_off", "f8"),  # price units by which the anomaly's own bid is away from that
        ("ask_off", "f8"),
        ("bid_sz", "f8"),  # size units of each of the anomaly's orders
        ("ask_sz", "f8"),
        ("bid_ct", "i8"),  # the anomaly's orders that are live
        ("ask_ct", "i8"),
        ("cross", "i8"),  # a stray bid (+) or ask (-) at the other side's price, 2: a tick through
    ]
)
StepArray = npt.NDArray[np.void]

BID_AFTER: Final = 0
ASK_AFTER: Final = 1
BID_BEFORE: Final = 2
ASK_BEFORE: Final = 3
_MIRRORED_AT: Final = np.array([ASK_AFTER, BID_AFTER, ASK_BEFORE, BID_BEFORE], np.uint8)

_A, _B, _C, _T = ord("A"), ord("B"), ord("C"), ord("T")


@dataclass(frozen=True, slots=True)
class Script:
    """The steps of one anomaly and the units they are counted in.

    Parameters
    ----------
    steps
        `(m,)` of dtype `STEP`, times strictly ascending from 0; empty for the kinds without steps.
    length_ns
        From the first step to the last.
    px_unit
        A price unit is the mid or the spread before the anomaly.
    size_unit
        A size unit is the mean of the sizes before the anomaly, their 10th percentile, or the mean
        of the trades' sizes.
    at_most
        Prices are rounded towards the clean book, because the parameter is a limit; otherwise to
        the nearest price there is.
    frozen
        Quotes stop, trades go on.
    silent_ns
        Nothing comes for so long; what was withheld comes in the rest of the time.
    """

    steps: StepArray
    length_ns: int
    px_unit: Literal["mid", "spread"] = "mid"
    size_unit: Literal["mean", "small", "trade"] = "mean"
    at_most: bool = False
    frozen: bool = False
    silent_ns: int = 0


Ranges = Mapping[AnomalyKind, Mapping[str, tuple[float, float]]]


def draw_parameters(
    kind: AnomalyKind, rng: np.random.Generator, ranges: Ranges = RANGES
) -> dict[str, float]:
    """Draw uniformly from `ranges[kind]`, whole numbers where they are counts, and a side."""
    drawn = {}
    for name, (low, high) in ranges[kind].items():
        share = rng.uniform()
        if name in WHOLE:
            drawn[name] = min(float(low + np.floor((high - low + 1) * share)), float(high))
        else:
            drawn[name] = float(low + (high - low) * share)
    buys = kind in _ONE_SIDED or rng.random() < 0.5
    drawn["side"] = 1.0 if buys else -1.0
    return drawn


def script(kind: AnomalyKind, params: Mapping[str, float], seed: int) -> Script:
    """Write the script of an anomaly; equal arguments give an equal script."""
    made = _WRITERS[kind](params, np.random.default_rng(seed))
    return made if params["side"] > 0 else replace(made, steps=_mirror(made.steps))


def _mirror(steps: StepArray) -> StepArray:
    """Exchange bid and ask, up and down."""
    other = steps.copy()
    other["side"] = np.where(steps["side"] == _A, _B, _A)
    other["at"] = _MIRRORED_AT[steps["at"]]
    other["cross"] = -steps["cross"]
    for one, two in (("bid", "ask"), ("ask", "bid")):
        for what in ("shift", "off"):
            other[f"{one}_{what}"] = -steps[f"{two}_{what}"]
        for what in ("sz", "ct"):
            other[f"{one}_{what}"] = steps[f"{two}_{what}"]
    return other


def _timed(steps: StepArray, gaps_ms: npt.NDArray[np.float64]) -> StepArray:
    """Set the times from the gaps before each step but the first."""
    steps["after_ns"][1:] = np.rint(np.cumsum(gaps_ms) * _NS_PER_MS).astype(np.int64)
    return steps


def _length(steps: StepArray) -> int:
    return int(steps["after_ns"][-1])


def _quote_stuffing(params: Mapping[str, float], rng: np.random.Generator) -> Script:
    """Add half a spread inside the best, cancel, and again, thousands of times a second."""
    pairs = int(params["events"]) // 2  # whole pairs: the last event cancels
    steps = np.zeros(2 * pairs, STEP)
    added, cancelled = steps[0::2], steps[1::2]
    steps["side"] = _B
    steps["size"] = np.repeat(rng.uniform(0.0, 1.0, pairs), 2)
    added["action"], added["at"] = _A, BID_AFTER
    added["bid_off"], added["bid_sz"], added["bid_ct"] = 0.5, added["size"], 1
    cancelled["action"], cancelled["at"] = _C, BID_BEFORE
    gaps = rng.uniform(0.8, 1.2, 2 * pairs - 1)
    _timed(steps, gaps / gaps.mean() / params["per_ms"])
    return Script(steps, _length(steps), px_unit="spread", size_unit="small", at_most=True)


def _layering(params: Mapping[str, float], rng: np.random.Generator) -> Script:
    """Offer in earnest, stack bids that walk the best up, sell into the buyers, cancel the bids.

    The offer is pegged to the best ask, which retreats where the bids run into it.
    """
    orders = int(params["orders"])
    bona_fide = params["bona_fide_means"]
    steps = np.zeros(2 + 2 * orders, STEP)
    live = np.concatenate([np.arange(orders + 1), [orders], np.arange(orders)[::-1]])
    steps["bid_ct"] = live
    steps["bid_off"] = params["walk_bps"] * 1e-4 * live / orders
    steps["bid_sz"] = np.where(live > 0, 6.0 / orders, 0.0)
    steps["side"], steps["size"] = _B, 6.0 / orders
    offer, stack, sale, pull = (
        steps[:1], steps[1 : orders + 1], steps[orders + 1 : orders + 2], steps[orders + 2 :],
    )  # fmt: skip
    steps["ask_sz"][: orders + 1], steps["ask_ct"][: orders + 1] = bona_fide, 1
    offer["action"], offer["side"], offer["at"], offer["size"] = _A, _A, ASK_AFTER, bona_fide
    stack["action"], stack["at"] = _A, BID_AFTER
    sale["action"], sale["at"], sale["size"] = _T, ASK_BEFORE, bona_fide
    pull["action"], pull["at"] = _C, BID_BEFORE
    gaps = np.concatenate(
        [
            rng.uniform(9.0, 19.0, orders),
            rng.uniform(5.0, 15.0, 1),
            [params["hold_ms"]],
            rng.uniform(0.01, 0.1, orders - 1),  # at once, as fast as a machine sends them
        ]
    )
    _timed(steps, gaps)
    return Script(steps, _length(steps), at_most=True)


def _pump_and_dump(params: Mapping[str, float], rng: np.random.Generator) -> Script:
    """Purchases lift the ask and bids follow, six times; six cancels and six sales undo it."""
    steps = np.zeros(24, STEP)
    rise = params["rise_pct"] * 1e-2
    up, down = np.arange(1, 7) / 6, np.arange(6)[::-1] / 6
    steps["size"] = params["size_means"]
    steps["side"] = _B
    buys, bids, cancels, sales = steps[0:12:2], steps[1:12:2], steps[12::2], steps[13::2]
    buys["action"], buys["at"] = _T, ASK_BEFORE
    bids["action"], bids["at"] = _A, BID_AFTER
    cancels["action"], cancels["at"] = _C, BID_BEFORE
    sales["action"], sales["side"], sales["at"] = _T, _A, BID_BEFORE
    buys["ask_shift"], bids["ask_shift"] = rise * up, rise * up
    buys["bid_shift"], bids["bid_shift"] = rise * (up - 1 / 6), rise * up
    cancels["bid_shift"], sales["bid_shift"] = rise * down, rise * down
    cancels["ask_shift"], sales["ask_shift"] = rise * (down + 1 / 6), rise * down
    _timed(steps, np.concatenate([rng.uniform(63, 103, 11), rng.uniform(190, 310, 12)]))
    return Script(steps, _length(steps))


def _fat_finger(params: Mapping[str, float], rng: np.random.Generator) -> Script:
    """Sweep the ask far away by one purchase; offers bring it back in steps."""
    steps = np.zeros(5, STEP)
    away = params["away_pct"] * 1e-2
    steps["ask_off"] = away * np.array([1.0, 0.5, 0.25, 0.1, 0.0])
    steps["ask_sz"][:4], steps["ask_ct"][:4] = 1.0, 1
    steps["action"], steps["side"], steps["at"], steps["size"] = _A, _A, ASK_AFTER, 1.0
    first = steps[:1]
    first["action"], first["side"], first["size"] = _T, _B, params["size_means"]
    cuts = np.sort(rng.uniform(0.0, 1.0, 3))
    _timed(steps, np.diff(np.concatenate([[0.0], cuts, [1.0]])) * params["back_ms"])
    return Script(steps, _length(steps))


def _momentum_ignition(params: Mapping[str, float], rng: np.random.Generator) -> Script:
    """Lift the ask by a run of purchases that bids follow; bids, then offers fall back."""
    trades, back = int(params["trades"]), 4
    steps = np.zeros(2 * (trades + back), STEP)
    level = np.concatenate([np.arange(trades + 1) / trades, np.arange(back)[::-1] / back])
    level *= params["move_bps"] * 1e-4
    before, after = level[:-1], level[1:]  # each pair of steps: one side leads, the other follows
    lead, follow = steps[0::2], steps[1::2]
    lead["ask_shift"] = np.where(after > before, after, before)
    lead["bid_shift"] = np.where(after > before, before, after)
    follow["ask_shift"] = follow["bid_shift"] = after
    steps["size"], steps["side"] = rng.uniform(0.5, 2.0, len(steps)), _B
    buys, bids, cancels, offers = lead[:trades], follow[:trades], lead[trades:], follow[trades:]
    buys["action"], buys["at"] = _T, ASK_BEFORE
    bids["action"], bids["at"] = _A, BID_AFTER
    cancels["action"], cancels["at"] = _C, BID_BEFORE
    offers["action"], offers["side"], offers["at"] = _A, _A, ASK_AFTER
    up, down = rng.uniform(0.5, 1.5, trades - 1), rng.uniform(0.5, 1.5, 2 * back + 1)
    up *= params["within_ms"] / up.sum()
    down *= params["back_ms"] / down.sum()
    _timed(steps, np.concatenate([np.outer(up, [0.3, 0.7]).ravel(), down]))
    return Script(steps, _length(steps))


def _frozen_quotes(params: Mapping[str, float], _rng: np.random.Generator) -> Script:
    """Stop the quotes; trades are printed over a book that no longer changes."""
    return Script(np.zeros(0, STEP), round(params["seconds"] * 1e9), frozen=True)


def _crossed_book(params: Mapping[str, float], _rng: np.random.Generator) -> Script:
    """Post a bid at the ask (no ticks) or above it, cancel it after a while."""
    steps = np.zeros(2, STEP)
    steps["action"], steps["at"] = [_A, _C], [BID_AFTER, BID_BEFORE]
    steps["side"], steps["size"] = _B, 1.0
    steps["cross"][0] = int(params["ticks"]) + 1
    steps["bid_sz"][0], steps["bid_ct"][0] = 1.0, 1
    _timed(steps, np.array([params["hold_ms"]]))
    return Script(steps, _length(steps))


def _wash_trades(params: Mapping[str, float], rng: np.random.Generator) -> Script:
    """Post an order half a spread inside, trade with it oneself, now as seller, now as buyer."""
    trades = int(params["trades"])
    steps = np.zeros(2 * trades, STEP)
    posts, fills = steps[0::2], steps[1::2]
    bids = np.arange(trades) % 2 == 0  # the side of the order; the position ends where it was
    steps["size"] = params["size_means"]
    posts["action"], posts["side"] = _A, np.where(bids, _B, _A)
    posts["at"] = np.where(bids, BID_AFTER, ASK_AFTER)
    fills["action"], fills["side"] = _T, np.where(bids, _A, _B)
    fills["at"] = np.where(bids, BID_BEFORE, ASK_BEFORE)
    for side, mine, sign in (("bid", bids, 1), ("ask", ~bids, -1)):
        posts[f"{side}_off"] = 0.5 * sign * mine
        posts[f"{side}_sz"], posts[f"{side}_ct"] = params["size_means"] * mine, mine
    waits = params["gap_ms"] * rng.uniform(0.9, 1.1, trades)
    _timed(steps, np.outer(waits, [0.1, 0.9]).ravel()[:-1])
    return Script(steps, _length(steps), px_unit="spread", size_unit="trade", at_most=True)


def _feed_gap(params: Mapping[str, float], _rng: np.random.Generator) -> Script:
    """Send nothing, then all that was withheld."""
    silent, burst = round(params["gap_s"] * 1e9), round(params["burst_ms"] * _NS_PER_MS)
    return Script(np.zeros(0, STEP), silent + burst, silent_ns=silent)


_WRITERS: Final[
    Mapping[AnomalyKind, Callable[[Mapping[str, float], np.random.Generator], Script]]
] = {
    AnomalyKind.QUOTE_STUFFING: _quote_stuffing,
    AnomalyKind.LAYERING: _layering,
    AnomalyKind.PUMP_AND_DUMP: _pump_and_dump,
    AnomalyKind.FAT_FINGER: _fat_finger,
    AnomalyKind.MOMENTUM_IGNITION: _momentum_ignition,
    AnomalyKind.FROZEN_QUOTES: _frozen_quotes,
    AnomalyKind.CROSSED_BOOK: _crossed_book,
    AnomalyKind.WASH_TRADES: _wash_trades,
    AnomalyKind.FEED_GAP: _feed_gap,
}
