"""The open episodes of highest severity, at most twenty: a table for dashboards.

The one place where instruments become labels, and therefore bounded. It follows the published
events, so that it needs nothing of the episodes' running state.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from detector.collectors import Readings
from detector.events import AnomalyEvent

TOLD: Final = 20
UNNAMED: Final = "none"
"""Type of an episode where the model has no head that names."""
MOST_CHARACTERS: Final = 64
"""Of a symbol: feeds may send any text."""


@dataclass(frozen=True, slots=True)
class _Episode:
    symbol: str
    type: str
    partition: int
    severity: float


class OpenEpisodes:
    """Which episodes are open, by what their events told; one thread at a time may change it."""

    def __init__(self) -> None:
        self._open: dict[str, _Episode] = {}

    def observe(self, events: Iterable[AnomalyEvent]) -> None:
        """Take events in their order: openings, updates, closings."""
        for event in events:
            before = self._open.get(event.episode_id)
            if event.phase == "close":
                self._open.pop(event.episode_id, None)
                continue
            self._open[event.episode_id] = _Episode(
                event.symbol[:MOST_CHARACTERS],
                UNNAMED if event.name is None else event.name.type,
                event.source.partition,
                max(event.severity_value, 0.0 if before is None else before.severity),
            )

    def forget(self, partitions: Iterable[int]) -> None:
        """Drop the episodes of partitions that are no longer ours."""
        gone = set(partitions)
        for episode_id, episode in list(self._open.items()):
            if episode.partition in gone:
                self._open.pop(episode_id, None)

    def read(self) -> Readings:
        """Give symbol, type, rank from 1, and highest severity, the highest first."""
        now = list(self._open.values())  # at once: another thread may change it meanwhile
        top = heapq.nlargest(TOLD, now, key=lambda episode: episode.severity)
        return [((e.symbol, e.type, str(rank)), e.severity) for rank, e in enumerate(top, start=1)]
