"""What the daemon found of what was planted, and what it raised without cause.

An anomaly is found when an episode of its instrument opens within it or up to `GRACE_S` after its
end. Every other episode is a false alarm, those in an anomaly's aftermath included. Works on the
published events alone, as any subscriber could.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Final

from detector.planting import Planted
from detector.ticks import NS_PER_S, instrument_key

GRACE_S: Final = 1.0
COLD_S: Final = 60.0
"""The daemon starts with empty windows; the slowest ones forget with a half-life of this."""
WAKE_S: Final = 60.0
"""And for as long they remember an anomaly that is over."""

Event = Mapping[str, Any]


@dataclass(slots=True)
class Findings:
    """Running tally of planted anomalies and published events.

    Parameters
    ----------
    plants
        What was planted.
    """

    plants: Sequence[Planted]
    found_by: dict[int, Event] = field(default_factory=dict)  # position in `plants` -> first event
    called: dict[str, str] = field(default_factory=dict)  # episode -> what it was named last
    false_alarms: list[Event] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    def add(self, event: Event) -> None:
        """Take one published event; a repeat (at least once!) changes nothing."""
        if event["event_id"] in self.ids:
            return
        self.ids.add(event["event_id"])
        if "anomaly_type" in event:
            self.called[event["episode_id"]] = event["anomaly_type"]
        if event["phase"] != "open":
            return
        number = self.planted_at(event)
        if number is None:
            self.false_alarms.append(event)
        else:
            self.found_by.setdefault(number, event)

    def begun(self, event_ns: int) -> int:
        """How many anomalies have begun by an event time."""
        return sum(plant.start_ns <= event_ns for plant in self.plants)

    def by_kind(self, event_ns: int | None = None) -> dict[str, tuple[int, int]]:
        """`(planted, found)` of every kind, of those begun by an event time or of all."""
        counts: dict[str, tuple[int, int]] = {}
        for number, plant in enumerate(self.plants):
            planted, found = counts.get(plant.kind.value, (0, 0))
            begun = event_ns is None or plant.start_ns <= event_ns
            counts[plant.kind.value] = (planted + begun, found + (number in self.found_by))
        return dict(sorted(counts.items()))

    def name(self, number: int) -> str | None:
        """Return what an anomaly's episode was called by its last event, if it was found."""
        event = self.found_by.get(number)
        return None if event is None else self.called.get(event["episode_id"])

    def named_rightly(self) -> int:
        """How many found anomalies were called what they are."""
        return sum(self.name(n) == plant.kind.value for n, plant in enumerate(self.plants))

    def delay_s(self, number: int) -> float | None:
        """Event time from the beginning of an anomaly to the tick that was noticed, if any."""
        event = self.found_by.get(number)
        if event is None:
            return None
        return float(event["ts_event"] - self.plants[number].start_ns) / NS_PER_S

    def excuses(self, start_ns: int) -> tuple[int, int]:
        """How many false alarms came with cold windows, and of the others in an anomaly's wake."""
        cold = wake = 0
        for event in self.false_alarms:
            ts, key = event["ts_event"], _key(event)
            after = (ts - p.end_ns for p in self.plants if p.key == key and p.end_ns < ts)
            if ts < start_ns + COLD_S * NS_PER_S:
                cold += 1
            elif min(after, default=math.inf) < WAKE_S * NS_PER_S:
                wake += 1
        return cold, wake

    def digest(self) -> str:
        """SHA-256 (hex) of the sorted event ids: equal for equal findings."""
        return sha256("\n".join(sorted(self.ids)).encode()).hexdigest()

    def planted_at(self, event: Event) -> int | None:
        """Position in `plants` of the anomaly that an opening event belongs to, or None."""
        key = _key(event)
        for number, plant in enumerate(self.plants):
            until = plant.end_ns + GRACE_S * NS_PER_S
            if plant.key == key and plant.start_ns <= event["ts_event"] <= until:
                return number
        return None


def _key(event: Event) -> int:
    return instrument_key(event["publisher_id"], event["instrument_id"])


@dataclass(frozen=True, slots=True)
class Summary:
    """What the demo ends with; `to_dict` is its JSON. Latencies are None without an event."""

    seed: int
    instruments: int
    live_event_s: float
    produced: int
    consumed: int
    scored: int
    findings: Findings
    events_published: int
    latency_p50_ms: float | None
    latency_p99_ms: float | None
    metrics_url: str
    train_seconds: float
    live_seconds: float
    total_seconds: float
    threshold: float
    quantile: float
    start_ns: int

    @property
    def planted(self) -> int:
        """Anomalies planted."""
        return len(self.findings.plants)

    @property
    def found(self) -> int:
        """Anomalies found."""
        return len(self.findings.found_by)

    @property
    def false_alarm_rate(self) -> float:
        """False alarms per instrument and hour of market time."""
        hours = self.instruments * self.live_event_s / 3600
        return len(self.findings.false_alarms) / hours

    def failures(self) -> list[str]:
        """Return what must not happen, in words; nothing when all is well."""
        events = len(self.findings.ids)
        wrong = {
            f"{self.produced} ticks produced, {self.consumed} consumed": self.produced
            != self.consumed,
            f"{self.events_published} events published, {events} read": self.events_published
            != events,
            f"none of {self.planted} planted anomalies was found": not self.found,
        }
        return [what for what, is_so in wrong.items() if is_so]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON types; `docs/demo.md` describes the keys."""
        cold, wake = self.findings.excuses(self.start_ns)
        return {
            "planted": self.planted,
            "found": self.found,
            "missed": self.planted - self.found,
            "named_rightly": self.findings.named_rightly(),
            "by_kind": {
                kind: {"planted": planted, "found": found}
                for kind, (planted, found) in self.findings.by_kind().items()
            },
            "anomalies": list(self._anomalies()),
            "false_alarms": len(self.findings.false_alarms),
            "false_alarms_per_instrument_hour": round(self.false_alarm_rate, 3),
            "false_alarms_cold": cold,
            "false_alarms_wake": wake,
            "produced": self.produced,
            "consumed": self.consumed,
            "scored": self.scored,
            "events": len(self.findings.ids),
            "event_ids_sha256": self.findings.digest(),
            "latency_p50_ms": self.latency_p50_ms,
            "latency_p99_ms": self.latency_p99_ms,
            "metrics_url": self.metrics_url,
            "threshold": self.threshold,
            "quantile": self.quantile,
            "seed": self.seed,
            "instruments": self.instruments,
            "live_event_seconds": self.live_event_s,
            "train_seconds": round(self.train_seconds, 3),
            "live_seconds": round(self.live_seconds, 3),
            "total_seconds": round(self.total_seconds, 3),
        }

    def _anomalies(self) -> Iterable[dict[str, Any]]:
        for number, plant in enumerate(self.findings.plants):
            yield {
                "kind": plant.kind.value,
                "symbol": plant.symbol,
                "start_ns": plant.start_ns,
                "end_ns": plant.end_ns,
                "found": number in self.findings.found_by,
                "delay_s": self.findings.delay_s(number),
                "named": self.findings.name(number),
            }
