"""What subscribers get: one published fact about one episode.

Time here is event time, and an event is a function of the input alone: `ts_detected` is stamped by
whoever publishes it. When episodes open and close is in `detector.episodes`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

import orjson

from detector.episodes import (
    PHASES,
    CloseReason,
    EpisodeBook,
    EpisodePolicy,
    Phase,
    Transition,
)
from detector.naming import Name
from detector.ticks import Quality

__all__ = [
    "CRITICAL_FROM",
    "EVENT_BYTES",
    "MAJOR_FROM",
    "PHASES",
    "SEVERITIES",
    "TOP_FEATURES",
    "AnomalyEvent",
    "CloseReason",
    "EpisodeBook",
    "EpisodePolicy",
    "Phase",
    "RaisedBy",
    "Severity",
    "Source",
    "Summary",
    "TopFeature",
    "Transition",
    "episode_id",
    "event_id",
    "event_schema",
    "flag_labels",
    "raised_by",
    "severity_of",
]

Severity = Literal["minor", "major", "critical"]
RaisedBy = Literal["values", "combination"]

SEVERITIES: Final[tuple[Severity, ...]] = ("minor", "major", "critical")
TOP_FEATURES: Final = 5
EVENT_BYTES: Final = 16_384
"""What an event's record may need; most have one or two thousand bytes."""
MAJOR_FROM: Final = 2.0
CRITICAL_FROM: Final = 4.0
"""Of score / threshold: 1.2 and 2.4 decades rarer than the threshold, see `model.SCORE_SCALE`."""


@dataclass(frozen=True, slots=True)
class TopFeature:
    """One feature's part in an event: observed and expected value, share of stage 1 and tails."""

    name: str
    value: float
    expected: float
    share: float


@dataclass(frozen=True, slots=True)
class Source:
    """Where the tick behind an event stands: topic, partition, offset, index in the message."""

    topic: str
    partition: int
    offset: int
    index: int


@dataclass(frozen=True, slots=True)
class Summary:
    """What a closing event adds. Times are ns since the epoch, `duration_s` is `end - start`."""

    reason: CloseReason
    ts_start: int
    ts_end: int
    duration_s: float
    ticks: int
    alarms: int


@dataclass(frozen=True, slots=True)
class AnomalyEvent:
    """One published fact about one episode; `docs/events.md` describes every field."""

    event_id: str
    episode_id: str
    phase: Phase
    symbol: str
    publisher_id: int
    instrument_id: int
    ts_event: int
    score: float
    threshold: float
    severity: Severity
    severity_value: float
    stage1_error: float
    stage2_error: float
    stage2_share: float
    raised_by: RaisedBy
    top_features: tuple[TopFeature, ...]
    flags: tuple[str, ...]
    model: tuple[str, str]
    source: Source
    summary: Summary | None
    name: Name | None = None

    def to_dict(self, ts_detected: int) -> dict[str, Any]:
        """Return the JSON object of the anomaly topic; `ts_detected` in ns since the epoch."""
        body: dict[str, Any] = {
            "schema_version": 1,
            "event_id": self.event_id,
            "episode_id": self.episode_id,
            "phase": self.phase,
            "symbol": self.symbol,
            "publisher_id": self.publisher_id,
            "instrument_id": self.instrument_id,
            "ts_event": self.ts_event,
            "ts_detected": ts_detected,
            "score": self.score,
            "threshold": self.threshold,
            "severity": self.severity,
            "severity_value": self.severity_value,
            "stage1_error": self.stage1_error,
            "stage2_error": self.stage2_error,
            "stage2_share": self.stage2_share,
            "raised_by": self.raised_by,
            "top_features": [
                {"name": f.name, "value": f.value, "expected": f.expected, "share": f.share}
                for f in self.top_features
            ],
            "flags": list(self.flags),
            "model": {"version": self.model[0], "hash": self.model[1]},
            "source": {
                "topic": self.source.topic,
                "partition": self.source.partition,
                "offset": self.source.offset,
                "index": self.source.index,
            },
        }
        if self.name is not None:
            body["anomaly_type"] = self.name.type
            body["likeliest_type"] = self.name.likeliest
            body["type_probability"] = self.name.probability
        if self.summary is not None:
            body["summary"] = {
                "reason": self.summary.reason,
                "ts_start": self.summary.ts_start,
                "ts_end": self.summary.ts_end,
                "duration_s": self.summary.duration_s,
                "ticks": self.summary.ticks,
                "alarms": self.summary.alarms,
            }
        return body

    def to_json(self, ts_detected: int) -> bytes:
        """Encode `to_dict` as UTF-8 JSON."""
        return orjson.dumps(self.to_dict(ts_detected))

    def headers(self) -> list[tuple[str, bytes]]:
        """CloudEvents 1.0 attributes in the Kafka protocol binding's binary mode."""
        return [
            ("content-type", b"application/json"),
            ("ce_specversion", b"1.0"),
            ("ce_id", self.event_id.encode()),
            ("ce_type", f"tapewatch.anomaly.{self.phase}.v1".encode()),
            ("ce_source", f"/tapewatch/{self.source.topic}/{self.source.partition}".encode()),
            ("ce_subject", self.symbol.encode()),
        ]


@cache
def event_schema() -> Mapping[str, Any]:
    """Return the JSON Schema (draft 2020-12) that every published event satisfies."""
    text = files("detector").joinpath("schemas/anomaly_event.schema.json").read_bytes()
    schema: Mapping[str, Any] = orjson.loads(text)
    return schema


def severity_of(value: float) -> Severity:
    """Return the label of `model.Combination.severity`, which is 1 at the threshold."""
    if value >= CRITICAL_FROM:
        return "critical"
    return "major" if value >= MAJOR_FROM else "minor"


def raised_by(
    score: float, without_stage2: float, threshold: float, close_ratio: float
) -> RaisedBy:
    """Return what brought a score to its level: the values alone, or only their combination.

    The level is the threshold, or for a tick that only keeps its episode open, the share of it that
    this takes. `without_stage2` is what the score would be with stage 2 at its median.
    """
    level = threshold if score >= threshold else close_ratio * threshold
    return "values" if without_stage2 >= level else "combination"


def episode_id(topic: str, partition: int, key: int, offset: int, index: int) -> str:
    """Return the id of the episode that a tick opened: 32 hex digits, a function of its place."""
    return _digest(f"{topic}\0{partition}\0{key}\0{offset}\0{index}")


def event_id(episode: str, phase: Phase, source: Source) -> str:
    """Return the id of one event of an episode: the same input always leads to the same id."""
    place = f"{source.topic}\0{source.partition}\0{source.offset}\0{source.index}"
    return _digest(f"{episode}\0{phase}\0{place}")


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@cache
def flag_labels(quality: int) -> tuple[str, ...]:
    """Return the names of the `Quality` bits that are set, in order of their value."""
    return tuple(flag.label for flag in Quality if quality & flag)
