"""What leaves for Kafka of a decided micro-batch: events, latents, dead letters; and what it took.

Every record is expected on the work's ticket and acknowledged there. Which thread that happens on,
and when, is the publisher's business: a delivery thread, or a commit.
"""

from __future__ import annotations

import hashlib
import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import structlog

from detector.events import AnomalyEvent
from detector.kafka import PartitionMessages, Publisher, TransactionalPublisher
from detector.latents import LatentMessage
from detector.ledger import Ticket
from detector.metrics import STALE_AFTER_S, Metrics
from detector.ticks import UNDEFINED_TIME, TickBatch
from detector.work import Work

_log = structlog.get_logger("tapewatch")

USUAL_LIMIT_BYTES: Final = 1_048_588  # of a record, where neither topic nor brokers say another
_CLOCK_SKEW_S: Final = 1.0  # a producer's clock may be this much ahead of ours
TOO_LARGE: Final = "TOO_LARGE"  # in the names of Kafka's errors for a size; only it is cut for
_DEAD_LETTER_PART_BYTES: Final = 64 * 1024
_DEAD_LETTER_KEY_BYTES: Final = 1024
_MOST_CUT: Final = 2
_RECORD_BYTES: Final = 2048  # what a record has beside key and value, its headers above all
_REQUESTS_WITH_LARGE_ONES: Final = 20

Form = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]
"""Key, value and further headers of a dead letter."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Names of the input topic and of those that are written to; latents may be None."""

    ticks: str
    anomalies: str
    dead_letters: str
    latents: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Letter:
    """A rejected message on its way to the dead-letter topic, and where it is from."""

    ticket: Ticket
    place: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]

    @property
    def size(self) -> int:
        """Of key and value, in bytes."""
        return len(self.key or b"") + len(self.value or b"")

    @property
    def patience(self) -> int:
        """How many refusals for its size say nothing about itself.

        They are told of all records that went in one request: a small one most often only was with
        a large one.
        """
        return _REQUESTS_WITH_LARGE_ONES if self.size <= _DEAD_LETTER_PART_BYTES else 0


class Outbox:
    """Publishes what works led to.

    Parameters
    ----------
    topics
        Their names.
    publisher
        Where records go.
    metrics
        Observed as records are acknowledged.
    refuse
        Called with the reason when Kafka refuses a record for good.
    latency_from_recv
        Measure tick-to-event from `ts_recv` instead of the Kafka timestamp.
    """

    def __init__(
        self,
        topics: Addresses,
        publisher: Publisher,
        metrics: Metrics,
        refuse: Callable[[str], None],
        *,
        latency_from_recv: bool = False,
    ) -> None:
        self._topics = topics
        self._publisher = publisher
        self._metrics = metrics
        self.refused = refuse
        self._latency_from_recv = latency_from_recv
        self._at_once = not isinstance(publisher, TransactionalPublisher)
        self._again: queue.SimpleQueue[_Letter] = queue.SimpleQueue()
        self._largest: int | None = None
        self._refusals: dict[str, int] = {}  # how often the dead letter of a place was too large

    def room_for(self, work: Work) -> bool:
        """Whether the work's events and latents can be published without waiting."""
        events = 0 if work.outcome is None else len(work.outcome.events)
        return events + len(work.latents) <= self._publisher.room

    def ask_for_limits(self) -> None:
        """Ask how large a dead letter may be, where a refusal costs the whole transaction."""
        if not self._at_once:
            settings = self._publisher.settings_of(self._topics.dead_letters)
            largest = settings.get("max.message.bytes")
            self._largest = None if largest is None else int(largest)

    def send(self, work: Work) -> None:
        """Publish what a decided work led to."""
        for messages, row, reason in work.rejected:
            self._publish_dead_letter(work.ticket, messages, row, reason)
        if work.outcome is not None:
            for event in work.outcome.events:
                self._publish_event(work, event)
        for name, message in work.latents:
            self._publish_latents(work.ticket, name, message)

    def send_again(self) -> None:
        """Publish the smaller forms of dead letters that their topic refused."""
        while not self._again.empty():
            self._send_letter(self._again.get())

    def _publish_event(self, work: Work, event: AnomalyEvent) -> None:
        by_tick = bool(work.messages)  # else another model took over, and there is no latency
        started_s = self._latency_start(work, event) if by_tick else None

        def acknowledged(error: str | None) -> None:
            if error is not None:
                self.refused(
                    f"event {event.event_id} to topic {self._topics.anomalies} was refused by "
                    f"Kafka: {error}{_too_large_advice(error)}"
                )
                return
            self._metrics.events.labels(event.phase, event.severity).inc()
            if event.name is not None and event.phase == "close":
                self._metrics.named.labels(event.name.type).inc()
            if by_tick:
                self._observe_latency(started_s, event)
            work.ticket.acknowledge()

        work.ticket.expect()
        self._publisher.publish(
            self._topics.anomalies,
            event.symbol.encode(),
            event.to_json(time.time_ns()),
            event.headers(),
            acknowledged,
        )

    def _publish_latents(self, ticket: Ticket, name: str, message: LatentMessage) -> None:
        """Publish an instrument's latents, keyed as its events are."""
        rows = len(message)

        def acknowledged(error: str | None) -> None:
            if error is not None:
                self.refused(f"latents of {name} were refused by Kafka: {error}")
                return
            self._metrics.latent_messages.inc()
            self._metrics.latents.inc(rows)
            ticket.acknowledge()

        ticket.expect()
        self._publisher.publish(
            self._topics.latents or "", name.encode(), bytes(message), (), acknowledged
        )

    def _latency_start(self, work: Work, event: AnomalyEvent) -> float | None:
        """Where the tick-to-event latency of an event starts, in seconds since the epoch."""
        part = work.messages[event.source.partition]
        if not self._latency_from_recv:
            timestamp_ms = part.timestamp_ms(event.source.offset)
            return None if timestamp_ms is None else timestamp_ms / 1e3
        for prepared in work.prepared:
            batch = prepared.batch
            if batch.partition == part.partition and isinstance(batch, TickBatch):
                row = int(np.searchsorted(batch.offsets, event.source.offset)) + event.source.index
                ts_recv = int(batch.ticks["ts_recv"][row])
                return None if ts_recv == UNDEFINED_TIME else ts_recv / 1e9
        return None

    def _observe_latency(self, started_s: float | None, event: AnomalyEvent) -> None:
        """Observe one event's latency; a replayed tick's age is no latency and is only counted."""
        latency_s = STALE_AFTER_S if started_s is None else time.time() - started_s
        if not -_CLOCK_SKEW_S <= latency_s < STALE_AFTER_S:
            self._metrics.stale.inc()
            return
        self._metrics.observe_latency(max(0.0, latency_s), event)

    def _publish_dead_letter(
        self, ticket: Ticket, messages: PartitionMessages, row: int, reason: str
    ) -> None:
        """Publish a rejected message byte for byte; if Kafka refuses its size, its first part."""
        offset = int(messages.offsets[row])
        headers = (
            ("tapewatch_reason", reason.encode()),
            ("tapewatch_topic", self._topics.ticks.encode()),
            ("tapewatch_partition", str(messages.partition).encode()),
            ("tapewatch_offset", str(offset).encode()),
        )
        place = f"{self._topics.ticks}-{messages.partition}@{offset}"
        key, value = messages.messages[row].key(), messages.values[row]
        ticket.expect()
        self._send_letter(_Letter(ticket, place, key, value, headers))

    def _send_letter(self, letter: _Letter) -> None:
        times = self._refusals.get(letter.place, 0) - letter.patience
        if self._largest is not None and letter.size + _RECORD_BYTES > self._largest:
            times = max(times, 1)
        key, value, more = _cut(letter.key, letter.value, times)
        headers = [*letter.headers, *more]
        # Not a function within this one: it would hold itself by the letter's next sending, and the
        # letter's bytes with it until Python's collector comes round, which is seldom.
        told = partial(self._told_of_letter, letter)
        self._publisher.publish(self._topics.dead_letters, key, value, headers, told)

    def _told_of_letter(self, letter: _Letter, error: str | None) -> None:
        place = letter.place
        if error is None:
            self._refusals.pop(place, None)
            self._metrics.dead_letters.inc()
            letter.ticket.acknowledge()
            return
        times = self._refusals.get(place, 0) + 1
        # One that was cut may still go with other large ones.
        if TOO_LARGE not in error or times > _REQUESTS_WITH_LARGE_ONES + _MOST_CUT:
            self.refused(
                f"dead letter of {place} to topic {self._topics.dead_letters} was refused by "
                f"Kafka: {error}"
            )
            return
        if times > letter.patience:
            _log.error("dead letter cut, it is too large for its topic", place=place, error=error)
        self._refusals[place] = times
        # Not from here, the delivery thread: `publish` may wait for room in the producer's queue,
        # and only this thread makes room. A transaction is lost with the record, and what it was
        # from is taken in again.
        if self._at_once:
            self._again.put(letter)


def _too_large_advice(error: str) -> str:
    if TOO_LARGE not in error:
        return ""
    return f"; set max.message.bytes of that topic to {USUAL_LIMIT_BYTES}, the default"


def _cut(key: bytes | None, value: bytes | None, times: int) -> Form:
    """Return a form of a dead letter that is the smaller the more often its topic refused it.

    The whole message stays on the input topic; the headers say where, and what it was.
    """
    if times <= 0:
        return key, value, []
    facts = [
        (f"tapewatch_{name}", fact.encode())
        for part, size, digest in (
            (value, "truncated_from", "sha256"),
            (key, "key_truncated_from", "key_sha256"),
        )
        if part is not None
        for name, fact in ((size, str(len(part))), (digest, hashlib.sha256(part).hexdigest()))
    ]
    if times == 1:
        short_key = None if key is None else key[:_DEAD_LETTER_KEY_BYTES]
        return short_key, None if value is None else value[:_DEAD_LETTER_PART_BYTES], facts
    return None, None if value is None else b"", facts
