"""Episodes: one burst of anomalous ticks is one episode that opens, updates and closes.

`EpisodePolicy` says when; `EpisodeBook` is the running state of one partition; `AnomalyEvent` is
what subscribers get. Time here is event time, and an event is a function of the input alone:
`ts_detected` is stamped by whoever publishes it. The book knows nothing of Kafka.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import orjson

from detector import kernels_episodes as k
from detector.naming import Name
from detector.ticks import NS_PER_S, Quality

Phase = Literal["open", "update", "close"]
Severity = Literal["minor", "major", "critical"]
CloseReason = Literal["quiet", "silent", "evicted", "model"]
RaisedBy = Literal["values", "combination"]

PHASES: Final[tuple[Phase, ...]] = ("open", "update", "close")
SEVERITIES: Final[tuple[Severity, ...]] = ("minor", "major", "critical")
CLOSE_REASONS: Final[tuple[CloseReason, ...]] = ("quiet", "silent", "evicted", "model")
"""The first three are the kernel's; "model": another model scores the partition from here on."""
TOP_FEATURES: Final = 5
MAJOR_FROM: Final = 2.0
CRITICAL_FROM: Final = 4.0
"""Of score / threshold: 1.2 and 2.4 decades rarer than the threshold, see `model.SCORE_SCALE`."""
_NO_ROWS: Final = np.empty(0, np.int64)
_NO_EVIDENCE: Final = np.empty((1, 0))
_BUFFER_ROWS: Final = 256
_EPISODE_ROWS: Final = 64


@dataclass(frozen=True)
class EpisodePolicy:
    """When an episode updates and closes. It opens at once, with the score at its threshold.

    Parameters
    ----------
    close_ratio
        A tick keeps its episode open while its score is at least this share of the threshold.
    quiet_s
        Event time without such a tick after which the episode closes, in seconds. The same time
        counts for an instrument that sends nothing, on its partition's watermark.
    update_interval_s
        Least event time between two published updates, in seconds.
    """

    close_ratio: float = 0.8
    quiet_s: float = 5.0
    update_interval_s: float = 10.0


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


@dataclass(frozen=True, slots=True)
class Transition:
    """What the episode kernel found: a phase of one episode, before it is explained.

    `row` is the batch row of the tick that caused it, -1 where none did. `peak_row` is the row of
    the episode's highest score, or -1 when that tick came in an earlier batch. `evidence` is the
    sum over the alarms so far of what each says about the episode.
    """

    phase: Phase
    reason: CloseReason
    row: int
    slot: int
    key: int
    ts_start: int
    ts_alive: int
    open_offset: int
    open_index: int
    ticks: int
    alarms: int
    peak_row: int
    peak: tuple[float, float, float, float, float, float]
    evidence: npt.NDArray[np.float64] = field(default_factory=lambda: _NO_EVIDENCE[0])


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


class EpisodeBook:
    """The running episodes of one input partition: four bytes an instrument, a row an open one.

    Parameters
    ----------
    slots
        Size of the feature bank the slots come from.
    policy
        When episodes update and close.
    evidence
        Numbers of an alarm's evidence, V; 0: episodes have no names.
    """

    def __init__(self, slots: int, policy: EpisodePolicy, evidence: int = 0) -> None:
        self._policy = policy
        self._places = np.full(slots, k.CLOSED, np.int32)
        self._partition = np.array([np.iinfo(np.int64).min, k.NEVER, 0], np.int64)
        # What an open episode's peak was: indices of features, then value, expected, share of each.
        self._explained: dict[int, tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]] = {}
        self._clear(evidence)

    @property
    def open_episodes(self) -> int:
        """How many episodes are open now."""
        return int(self._partition[k.OPEN_COUNT])

    def step(
        self,
        slots: npt.NDArray[np.int32],
        keys: npt.NDArray[np.int64],
        ts: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64],
        indices: npt.NDArray[np.int32],
        measures: npt.NDArray[np.float64],
        alarm_rows: npt.NDArray[np.int64] = _NO_ROWS,
        evidence: npt.NDArray[np.float64] | None = None,
    ) -> list[Transition]:
        """Advance by one batch and return what happened, in order.

        `measures` is `(6, n)` float64: score, threshold, stage 1, stage 2, tail and alone, NaN
        where a tick was not scored. The other columns are `(n,)`. Where episodes are named,
        `alarm_rows` `(m,)` are all rows that reach their threshold, ascending, and `evidence` is
        `(m, V)`.
        """
        if evidence is None:
            evidence = np.empty((0, self._sums.shape[1]))
        found: list[Transition] = []
        self._age_peaks()
        first, n = 0, len(slots)
        while first < n:
            self._make_room()
            first, count = k.step_episodes(
                first,
                slots,
                keys,
                ts,
                offsets,
                indices,
                measures,
                alarm_rows,
                evidence,
                self._state,
                self._peak,
                self._sums,
                self._partition,
                self._places,
                self._open_slots,
                self._free,
                self._policy.close_ratio,
                round(self._policy.quiet_s * NS_PER_S),
                round(self._policy.update_interval_s * NS_PER_S),
                self._transitions,
                self._peaks,
                self._told_sums,
            )
            found.extend(self._taken(count))
        return found

    def improved_peaks(self) -> list[tuple[int, int]]:
        """`(slot, row)` of the open episodes whose highest score lies in the last batch."""
        open_slots = self._open_slots[: self.open_episodes]
        rows = self._state[self._places[open_slots], k.PEAK_ROW]
        return [(int(s), int(r)) for s, r in zip(open_slots, rows, strict=True) if r >= 0]

    def remember(self, slot: int, index: npt.NDArray[np.int16], values: npt.NDArray[Any]) -> None:
        """Keep the explanation of an episode's peak: `(K,)` feature indices, `(K, 3)` values."""
        self._explained[slot] = index, values

    def remembered(self, slot: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]:
        """Return what `remember` kept for the slot, as `(index, values)`."""
        return self._explained[slot]

    def start_over(self, evidence: int) -> list[Transition]:
        """Close every open episode because another model takes over; between two batches only.

        Afterwards the book is as new, with alarms of `evidence` numbers each, but for the
        partition's watermark, which follows from the ticks alone. What `remember` kept for the
        closed ones can be had until the next `step`. In order of opening.
        """
        slots = self._open_slots[: self.open_episodes].copy()
        places = self._places[slots]
        self._state[places, k.PEAK_ROW] = -1
        found = [
            _transition("close", "model", -1, slot, state, peak, sums)
            for slot, state, peak, sums in zip(
                slots.tolist(),
                self._state[places].tolist(),
                self._peak[places].tolist(),
                self._sums[places].copy(),
                strict=True,
            )
        ]
        self._places[slots] = k.CLOSED
        self._partition[[k.NEXT_DEADLINE, k.OPEN_COUNT]] = k.NEVER, 0
        self._clear(evidence)
        return found

    def _clear(self, evidence: int) -> None:
        """Give the book no room for open episodes yet, and buffers for transitions."""
        self._state = np.zeros((0, k.STATE_COLUMNS), np.int64)
        self._peak = np.zeros((0, k.PEAK_COLUMNS), np.float64)
        self._sums = np.zeros((0, evidence), np.float64)
        self._open_slots = np.zeros(0, np.int32)
        self._free = np.zeros(0, np.int32)
        self._transitions = np.zeros((_BUFFER_ROWS, k.TRANSITION_COLUMNS), np.int64)
        self._peaks = np.zeros((_BUFFER_ROWS, k.PEAK_COLUMNS), np.float64)
        self._told_sums = np.zeros((_BUFFER_ROWS, evidence), np.float64)

    def _age_peaks(self) -> None:
        """Peaks of the last batch become peaks of an earlier one; closed ones are forgotten."""
        open_slots = self._open_slots[: self.open_episodes]
        self._state[self._places[open_slots], k.PEAK_ROW] = -1
        if len(self._explained) > 2 * len(open_slots) + _EPISODE_ROWS:
            kept = self._explained
            self._explained = {slot: kept[slot] for slot in open_slots.tolist()}

    def _make_room(self) -> None:
        """Let at least one more episode open, and every one of them close at one tick."""
        rows = len(self._state)
        if self.open_episodes == rows:
            more = max(_EPISODE_ROWS, rows)
            self._state = np.concatenate([self._state, np.zeros((more, k.STATE_COLUMNS), np.int64)])
            self._peak = np.concatenate([self._peak, np.zeros((more, k.PEAK_COLUMNS))])
            width = self._sums.shape[1]
            self._sums = np.concatenate([self._sums, np.zeros((more, width))])
            self._open_slots = np.concatenate([self._open_slots, np.zeros(more, np.int32)])
            # None is free now: the new rows are the free ones, at the front of the list.
            self._free = np.zeros(rows + more, np.int32)
            self._free[:more] = np.arange(rows + more - 1, rows - 1, -1)
        need = self.open_episodes + _BUFFER_ROWS
        if need > len(self._transitions):
            self._transitions = np.zeros((2 * need, k.TRANSITION_COLUMNS), np.int64)
            self._peaks = np.zeros((2 * need, k.PEAK_COLUMNS), np.float64)
            self._told_sums = np.zeros((2 * need, self._sums.shape[1]), np.float64)

    def _taken(self, count: int) -> Iterator[Transition]:
        for t, peak, evidence in zip(
            self._transitions[:count].tolist(),
            self._peaks[:count].tolist(),
            self._told_sums[:count].copy(),
            strict=True,
        ):
            yield _transition(
                PHASES[t[k.KIND]],
                CLOSE_REASONS[t[k.REASON]],
                t[k.ROW],
                t[k.SLOT],
                t[k.STATE :],
                peak,
                evidence,
            )


def _transition(
    phase: Phase,
    reason: CloseReason,
    row: int,
    slot: int,
    state: list[int],
    peak: list[float],
    evidence: npt.NDArray[np.float64],
) -> Transition:
    """Make a transition of a row of the integer and one of the floating state."""
    score, threshold, stage1, stage2, tail, alone = peak
    return Transition(
        phase=phase,
        reason=reason,
        row=row,
        slot=slot,
        key=state[k.KEY],
        ts_start=state[k.START_TS],
        ts_alive=state[k.ALIVE_TS],
        open_offset=state[k.OPEN_OFFSET],
        open_index=state[k.OPEN_INDEX],
        ticks=state[k.TICKS],
        alarms=state[k.ALARMS],
        peak_row=state[k.PEAK_ROW],
        peak=(score, threshold, stage1, stage2, tail, alone),
        evidence=evidence,
    )
