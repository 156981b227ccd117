"""Two halves of every parameter range: one trains the classifier head, the other only tests it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Literal

import numpy as np

from detector.scripts import RANGES, WHOLE, AnomalyKind, Ranges


class Half(StrEnum):
    """Which half of every parameter range an anomaly was drawn from."""

    TRAIN = "train"  # for the classifier head
    TEST = "test"  # for judging it
    BOTH = "both"  # the whole range


TEST_END: Final[Mapping[AnomalyKind, Mapping[str, Literal["low", "high"]]]] = {
    AnomalyKind.QUOTE_STUFFING: {"events": "low", "per_ms": "high"},
    AnomalyKind.LAYERING: {
        "orders": "low",
        "walk_bps": "high",
        "bona_fide_means": "low",
        "hold_ms": "high",
    },
    AnomalyKind.PUMP_AND_DUMP: {"rise_pct": "low", "size_means": "high"},
    AnomalyKind.FAT_FINGER: {"away_pct": "low", "size_means": "high", "back_ms": "low"},
    AnomalyKind.MOMENTUM_IGNITION: {
        "trades": "low",
        "within_ms": "high",
        "move_bps": "low",
        "back_ms": "high",
    },
    AnomalyKind.FROZEN_QUOTES: {"seconds": "low"},
    AnomalyKind.CROSSED_BOOK: {"ticks": "low", "hold_ms": "high"},
    AnomalyKind.WASH_TRADES: {"trades": "low", "size_means": "high", "gap_ms": "low"},
    AnomalyKind.FEED_GAP: {"gap_s": "low", "burst_ms": "high"},
}
"""Which end of each parameter's range is for testing; the other one is for training.

Every parameter is cut in the middle, so none of a test anomaly's lies where the head was trained.
The ends alternate in the order of `RANGES`: low for the leading parameter, which makes the test the
weaker half there, high for the next. Chosen by that rule before any detector was tried."""


def half_ranges(half: Half) -> Ranges:
    """Return the parameter ranges of a half; `Half.BOTH` gives `RANGES`. Both ends inclusive."""
    if half == Half.BOTH:
        return RANGES
    return {
        kind: {
            name: _cut(name, *limits, upper=(TEST_END[kind][name] == "high") == (half == Half.TEST))
            for name, limits in some.items()
        }
        for kind, some in RANGES.items()
    }


def _cut(name: str, low: float, high: float, *, upper: bool) -> tuple[float, float]:
    """One half of a range; the halves share no value."""
    middle = (low + high) / 2
    if name in WHOLE:
        middle = float(np.floor(middle))
        return (middle + 1, high) if upper else (low, middle)
    return (float(np.nextafter(middle, high)), high) if upper else (low, middle)
