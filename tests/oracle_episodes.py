"""The episode rules written down plainly: one dictionary per open episode, one tick at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from detector.events import EpisodePolicy


@dataclass
class EpisodeOracle:
    """What `EpisodeBook` must do; returns `(phase, reason, row, key, facts)` tuples."""

    policy: EpisodePolicy
    watermark: float = -math.inf
    open: dict[int, dict[str, Any]] = field(default_factory=dict)  # by slot, in order of opening

    def step(
        self,
        row: int,
        slot: int,
        key: int,
        ts: int,
        place: tuple[int, int],
        score: float,
        bar: float,
    ) -> list[tuple[str, str, int, int, tuple[int, ...], float]]:
        """Take one tick."""
        if slot < 0:
            return []
        found = []
        quiet = round(self.policy.quiet_s * 1e9)
        self.watermark = max(self.watermark, ts)
        for other, episode in list(self.open.items()):
            if self.watermark - episode["alive_watermark"] >= quiet:
                found.append(self._close("quiet" if other == slot else "silent", row, other))
        if slot in self.open:
            if self.open[slot]["key"] != key:
                found.append(self._close("evicted", row, slot))
            elif ts - self.open[slot]["alive"] >= quiet:
                found.append(self._close("quiet", row, slot))
        if math.isnan(score):
            return found
        if slot not in self.open:
            if score >= bar:
                self.open[slot] = {
                    "key": key,
                    "start": ts,
                    "alive": ts,
                    "alive_watermark": self.watermark,
                    "published": ts,
                    "place": place,
                    "ticks": 1,
                    "alarms": 1,
                    "peak": score,
                }
                found.append(self._tell("open", "", row, slot))
            return found
        episode = self.open[slot]
        episode["ticks"] += 1
        if score < self.policy.close_ratio * bar:
            return found
        episode["alive"] = max(episode["alive"], ts)
        episode["alive_watermark"] = self.watermark
        episode["alarms"] += score >= bar
        episode["peak"] = max(episode["peak"], score)
        if ts - episode["published"] >= round(self.policy.update_interval_s * 1e9):
            episode["published"] = ts
            found.append(self._tell("update", "", row, slot))
        return found

    def _close(self, reason: str, row: int, slot: int) -> tuple[Any, ...]:
        told = self._tell("close", reason, row, slot)
        del self.open[slot]
        return told

    def _tell(self, phase: str, reason: str, row: int, slot: int) -> tuple[Any, ...]:
        e = self.open[slot]
        facts = (e["start"], e["alive"], *e["place"], e["ticks"], e["alarms"])
        return (phase, reason, row, e["key"], facts, e["peak"])
