"""The rules of adaptive thresholds written down plainly: one dictionary an instrument."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from detector.thresholds import (
    GAP_S,
    MOST_FACTOR,
    MOST_RISE,
    REFILL,
    RELEASE_S,
    Thresholds,
)


@dataclass
class ThresholdOracle:
    """What `ThresholdBook` must do, a tick at a time."""

    thresholds: Thresholds
    close_ratio: float
    quiet_s: float
    known: dict[int, dict[str, Any]] = field(default_factory=dict)  # by slot

    def step(self, slot: int, key: int, ts: int, row: int, score: float) -> float:
        """Take one tick and return the threshold that applies to it."""
        peaks = self.thresholds.peaks
        assert peaks is not None
        prior = float(self.thresholds.values[row])
        if slot < 0:
            return prior
        mine = self.known.get(slot)
        if mine is None or mine["key"] != key:
            mine = {"key": key, "since": ts, "alive": None, "moved": 0.0}
            mine["guard"] = math.log(MOST_RISE)
            self.known[slot] = mine
        latest = max(mine["since"], mine["since"] if mine["alive"] is None else mine["alive"])
        if latest - ts > GAP_S * 1e9:
            mine["since"] = ts
            if mine["alive"] is not None:
                mine["alive"] = min(mine["alive"], ts)
        if math.isnan(score):
            if mine["alive"] is None:
                mine["since"] = max(mine["since"], ts)
            return prior * math.exp(mine["moved"])
        step = float(peaks.step(self.thresholds.values)[row])
        ended = None
        if mine["alive"] is not None and ts - mine["alive"] >= round(self.quiet_s * 1e9):
            ended, mine["alive"] = mine["alive"], None
        open_now = mine["alive"] is not None
        lasts = open_now and ts - mine["since"] >= round(RELEASE_S * 1e9)
        if peaks.asked == "budget":
            was_open = open_now or ended is not None
            self._spend(mine, ts, step, peaks.value, was_open, ended, open_now, lasts)
            return self._decide(mine, ts, prior, score)
        if lasts:
            mine["guard"] += math.log(MOST_RISE)
            mine["since"] = ts
        before = mine["moved"]
        applied = self._decide(mine, ts, prior, score)
        if mine["alive"] is not None and not open_now:
            mine["since"] = ts
            mine["guard"] = before + math.log(MOST_RISE)
        moved = before - step * peaks.value
        if score >= applied and mine["guard"] > moved:
            moved = min(moved + step, mine["guard"])
        mine["moved"] = _held(moved)
        return applied

    def _decide(self, mine: dict[str, Any], ts: int, prior: float, score: float) -> float:
        """Open an episode, or keep the one that is open, at the threshold that applies."""
        applied = prior * math.exp(mine["moved"])
        if mine["alive"] is not None:
            if score >= self.close_ratio * applied:
                mine["alive"] = max(mine["alive"], ts)
        elif score >= applied:
            mine["alive"] = ts
        return applied

    @staticmethod
    def _spend(
        mine: dict[str, Any],
        ts: int,
        step: float,
        budget: float,
        was_open: bool,
        ended: int | None,
        open_now: bool,
        lasts: bool,
    ) -> None:
        """Time lowers the threshold, an episode that is over (or lasts) raises it."""
        if open_now and not lasts:
            return
        spent, since = 0, mine["since"]
        if ended is not None:  # inside the episode ticks followed one another closely
            spent, since = max(ended - since, 0), max(ended, since)
        wait = ts - since
        if wait > 0 and (wait <= GAP_S * 1e9 or lasts):
            spent += wait
        hours = spent / 3.6e12
        moved = mine["moved"] if lasts else mine["moved"] - step * budget * hours
        left = min(math.log(MOST_RISE), mine["guard"] + REFILL * step * budget * hours)
        if was_open:
            rise = min(step, left)
            left -= rise
            moved += rise
        mine["moved"], mine["guard"] = _held(moved), left
        mine["since"] = max(mine["since"], ts)


def _held(moved: float) -> float:
    return float(np.clip(moved, -math.log(MOST_FACTOR), math.log(MOST_FACTOR)))
