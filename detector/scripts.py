"""What each kind of anomaly does, step by step, in multiples of the instrument it will meet.

A script is a table of steps. A step is a market event (action, side, size) and the state that holds
from it on: how far the book is shifted, where the anomaly's own orders stand, how many. The last
step of every script leaves nothing behind. Scripts know no price, no size and no clock; times are
counted from the first step. `detector.planting` places them.

References
----------
Poutré, Chételat, Morales (2024), "Deep unsupervised anomaly detection in high-frequency markets",
Journal of Finance and Data Science 10, 100129: quote stuffing, layering, pump and dump, with the
ranges used here.
SEC (2010), "Concept release on equity market structure", 34-61358: momentum ignition. The ranges of
the kinds not in the paper are this project's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


RANGES: Final[Mapping[AnomalyKind, Mapping[str, tuple[float, float]]]] = {
    AnomalyKind.QUOTE_STUFFING: {"events": (50, 199), "per_ms": (8, 9)},
    AnomalyKind.LAYERING: {
        "orders": (10, 12),
        "walk_bps": (2, 7),
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
    AnomalyKind.CROSSED_BOOK: {"ticks": (1, 5), "hold_ms": (200, 2000)},
}
"""Parameter ranges, both ends inclusive."""

_WHOLE: Final = frozenset({"events", "orders", "trades", "ticks"})
_BUYS_ONLY: Final = frozenset({AnomalyKind.PUMP_AND_DUMP, AnomalyKind.FROZEN_QUOTES})

STEP: Final = np.dtype(
    [
        ("after_ns", "i8"),
        ("action", "u1"),
        ("side", "u1"),
        ("at", "u1"),  # the event's price: one of the four below
        ("size", "f8"),  # size units
        ("shift", "f8"),  # price units by which both sides are away from the clean book
        ("bid_off", "f8"),  # price units by which the anomaly's bid is away from that
        ("ask_off", "f8"),
        ("bid_sz", "f8"),  # size units of each of the anomaly's orders
        ("ask_sz", "f8"),
        ("bid_ct", "i8"),  # the anomaly's orders that are live
        ("ask_ct", "i8"),
        ("cross", "i8"),  # ticks by which a stray bid (+) or ask (-) is through the other side
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
        `(m,)` of dtype `STEP`, times strictly ascending from 0; empty for frozen quotes.
    length_ns
        From the first step to the last.
    px_unit
        A price unit is the mid or the spread before the anomaly.
    size_unit
        A size unit is the mean of the sizes before the anomaly, or their 10th percentile.
    frozen
        Quotes stop, trades go on.
    """

    steps: StepArray
    length_ns: int
    px_unit: Literal["mid", "spread"] = "mid"
    size_unit: Literal["mean", "small"] = "mean"
    frozen: bool = False


def draw_parameters(
    kind: AnomalyKind, rng: np.random.Generator, strength: tuple[float, float] = (0.0, 1.0)
) -> dict[str, float]:
    """Draw from `RANGES[kind]`, uniformly within the part `strength` of each range, and a side."""
    drawn = {}
    for name, (low, high) in RANGES[kind].items():
        share = rng.uniform(*strength)
        value = low + (high - low) * share
        drawn[name] = float(round(value)) if name in _WHOLE else float(value)
    buys = kind in _BUYS_ONLY or rng.random() < 0.5
    drawn["side"] = 1.0 if buys else -1.0
    return drawn


def script(kind: AnomalyKind, params: Mapping[str, float], seed: int) -> Script:
    """Write the script of an anomaly; equal arguments give an equal script."""
    made = _WRITERS[kind](params, np.random.default_rng(seed))
    if params["side"] > 0:
        return made
    return Script(_mirror(made.steps), made.length_ns, made.px_unit, made.size_unit, made.frozen)


def _mirror(steps: StepArray) -> StepArray:
    """Exchange bid and ask, up and down."""
    other = steps.copy()
    other["side"] = np.where(steps["side"] == _A, _B, _A)
    other["at"] = _MIRRORED_AT[steps["at"]]
    for name in ("shift", "cross"):
        other[name] = -steps[name]
    for one, two in (("bid", "ask"), ("ask", "bid")):
        other[f"{one}_off"] = -steps[f"{two}_off"]
        for what in ("sz", "ct"):
            other[f"{one}_{what}"] = steps[f"{two}_{what}"]
    return other


def _timed(steps: StepArray, gaps_ms: npt.NDArray[np.float64]) -> StepArray:
    """Set the times from the gaps before each step but the first."""
    gaps = np.maximum((gaps_ms * _NS_PER_MS).astype(np.int64), 1)
    steps["after_ns"][1:] = np.cumsum(gaps)
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
    return Script(steps, _length(steps), px_unit="spread", size_unit="small")


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
            rng.uniform(9.0, 19.0, orders - 1),
        ]
    )
    _timed(steps, gaps)
    return Script(steps, _length(steps))


def _pump_and_dump(params: Mapping[str, float], rng: np.random.Generator) -> Script:
    """Six bids and six purchases drive the price up; six cancels and six sales bring it back."""
    steps = np.zeros(24, STEP)
    level = np.concatenate([np.arange(1, 13), np.arange(12)[::-1]])
    steps["shift"] = params["rise_pct"] * 1e-2 * level / 12
    steps["size"] = params["size_means"]
    steps["side"] = _B
    bids, buys, cancels, sales = steps[0:12:2], steps[1:12:2], steps[12::2], steps[13::2]
    bids["action"], bids["at"] = _A, BID_AFTER
    buys["action"], buys["at"] = _T, ASK_BEFORE
    cancels["action"], cancels["at"] = _C, BID_BEFORE
    sales["action"], sales["side"], sales["at"] = _T, _A, BID_BEFORE
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
    """Lift the price by a run of purchases, withdraw bids until it is where it was."""
    trades, back = int(params["trades"]), 4
    steps = np.zeros(trades + back, STEP)
    level = np.concatenate([np.arange(1, trades + 1) / trades, np.arange(back)[::-1] / back])
    steps["shift"] = params["move_bps"] * 1e-4 * level
    steps["side"] = _B
    steps["size"] = rng.uniform(0.5, 2.0, len(steps))
    steps["action"][:trades], steps["at"][:trades] = _T, ASK_BEFORE
    steps["action"][trades:], steps["at"][trades:] = _C, BID_BEFORE
    up, down = rng.uniform(0.5, 1.5, trades - 1), rng.uniform(0.5, 1.5, back)
    gaps = np.concatenate(
        [up / up.sum() * params["within_ms"], down / down.sum() * params["back_ms"]]
    )
    _timed(steps, gaps)
    return Script(steps, _length(steps))


def _frozen_quotes(params: Mapping[str, float], _rng: np.random.Generator) -> Script:
    """Stop the quotes; trades are printed over a book that no longer changes."""
    return Script(np.zeros(0, STEP), round(params["seconds"] * 1e9), frozen=True)


def _crossed_book(params: Mapping[str, float], _rng: np.random.Generator) -> Script:
    """Post a bid above the ask, cancel it after a while."""
    steps = np.zeros(2, STEP)
    steps["action"], steps["at"] = [_A, _C], [BID_AFTER, BID_BEFORE]
    steps["side"], steps["size"] = _B, 1.0
    steps["cross"][0] = int(params["ticks"])
    steps["bid_sz"][0], steps["bid_ct"][0] = 1.0, 1
    _timed(steps, np.array([params["hold_ms"]]))
    return Script(steps, _length(steps))


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
}
