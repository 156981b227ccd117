"""Consume ticks: messages by partition, offset commits, and which partitions are ours."""

from __future__ import annotations

import contextlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol, cast

import numpy as np
import numpy.typing as npt
from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from detector.kafka.connection import (
    STATISTICS_MS,
    Connection,
    Health,
    KafkaUnusableError,
    done_within,
    refusals,
)

ASSIGNOR: Final = "cooperative-sticky"
_PARTITION: Final = cast("Callable[[Message], int]", Message.partition)  # of what was consumed
_OFFSET: Final = cast("Callable[[Message], int]", Message.offset)
_IDLE_S: Final = 0.1
_LEAVE_WITHIN_S: Final = 3.0  # the last commit included
_SEEK_WITHIN_S: Final = 2.0

_NAME_TAKEN: Final = KafkaError(KafkaError.UNRELEASED_INSTANCE_ID).str()
"""In the text of the fatal error that hides the code."""

_DENIED: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "group",
}


@dataclass(frozen=True, slots=True, eq=False)
class PartitionMessages:
    """Messages of one partition in offset order: `values` and `(n,)` int64 `offsets`."""

    partition: int
    values: list[bytes | None]
    offsets: npt.NDArray[np.int64]
    messages: list[Message]

    def timestamp_ms(self, offset: int) -> int | None:
        """Return the Kafka timestamp of the message at the offset, or None if it has none."""
        message = self.messages[int(np.searchsorted(self.offsets, offset))]
        kind, timestamp = message.timestamp()
        return None if kind == TIMESTAMP_NOT_AVAILABLE else int(timestamp)

    def cut_at(self, offset: int) -> tuple[PartitionMessages | None, PartitionMessages | None]:
        """Return those before an offset, and those from it on; None where there are none."""
        row = int(np.searchsorted(self.offsets, offset))
        if row == 0:
            return None, self
        if row == len(self.offsets):
            return self, None
        return self._rows(slice(0, row)), self._rows(slice(row, None))

    def _rows(self, rows: slice) -> PartitionMessages:
        return PartitionMessages(
            self.partition, self.values[rows], self.offsets[rows], self.messages[rows]
        )

    def headers(self) -> list[list[tuple[str, bytes]] | None]:
        """Return every message's headers, as librdkafka hands them over."""
        return cast("list[list[tuple[str, bytes]] | None]", [m.headers() for m in self.messages])


@dataclass(frozen=True, slots=True)
class Place:
    """Where a group stands in a partition.

    Parameters
    ----------
    low
        First offset that is retained.
    next_offset
        Of the first message that was not processed yet; where nothing was committed, of the first
        one to be read.
    committed
        Whether the group committed it.
    note
        Why it is not the committed offset itself, where it is another.
    """

    low: int
    next_offset: int
    committed: bool
    note: str = ""


def place_of(committed: int, low: int, high: int) -> Place:
    """Return where a group stands that committed an offset, given what is retained."""
    if committed < low:
        gone = f"{low - committed:,} messages from offset {committed} on are gone and not scored"
        return Place(low, low, committed=True, note=f"{gone}: the topic begins at {low}")
    if committed > high:
        note = f"the committed offset {committed} lies beyond the end of the topic, {high}"
        return Place(low, high, committed=True, note=f"{note}: going on from there")
    return Place(low, committed, committed=True)


class Assignment(Protocol):
    """What wants to know which partitions are ours. Called from within `TickConsumer.fetch`."""

    def assigned(self, partitions: list[int]) -> bool:
        """Partitions now ours; may be empty. Whether they are held until `go_to`."""

    def revoked(self, partitions: list[int]) -> None:
        """Partitions about to go to another member: finish and commit them now."""

    def lost(self, partitions: list[int]) -> None:
        """Partitions that are another member's already: nothing may be committed."""


def _new_protocol(connection: Connection) -> bool:
    """Whether the group is the broker's business (KIP-848)."""
    return (connection.properties or {}).get("group.protocol", "").lower() == "consumer"


def consumer_settings(connection: Connection, group_id: str) -> dict[str, object]:
    """Return how ticks are consumed; benchmarks read their ceilings with the same settings."""
    # With the newer protocol the assignor is the broker's.
    assignor = {} if _new_protocol(connection) else {"partition.assignment.strategy": ASSIGNOR}
    return {
        "auto.offset.reset": "earliest",
        **assignor,
        "fetch.wait.max.ms": 50,
        "queued.max.messages.kbytes": 65_536,
        # By default librdkafka stops fetching for a second when its queue is full. A backlog is
        # read faster than that: with the default, two thirds of the time nothing was there.
        "fetch.queue.backoff.ms": 5,
        **connection.for_member(),
        "group.id": group_id,
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
    }


class TickConsumer:
    """A member of a consumer group that hands over messages partition by partition.

    Parameters
    ----------
    connection
        The cluster.
    group_id, topic
        Consumer group and input topic.
    assignment
        Told which partitions come and go.
    """

    def __init__(
        self, connection: Connection, group_id: str, topic: str, assignment: Assignment
    ) -> None:
        self.health = Health(connection.patience_s)
        self._topic, self._group = topic, group_id
        self._assignment = assignment
        self._assigned: set[int] = set()
        self._commit_errors = 0
        self.committed_positions: dict[int, int] = {}  # as far as the coordinator answered
        self._gone: set[int] = set()  # given up during the present fetch
        self.held: set[int] = set()  # assigned, and not read from until `go_to`
        self.group: object = None
        self.name_taken = False  # the group has another member of our `group.instance.id`
        self.waited_s = 0.0  # how long the first message of the last fetch waited for others
        self._settings = settings = {
            **consumer_settings(connection, group_id),
            "statistics.interval.ms": STATISTICS_MS,
            "error_cb": self.health.on_error,
            "stats_cb": self.health.on_statistics,
            "on_commit": self._committed,
        }
        strategy = str(settings.get("partition.assignment.strategy", ASSIGNOR))
        self._new_protocol = _new_protocol(connection)
        self._told = not self._new_protocol  # to the assignment, that we are a member
        self._incremental = "cooperative" in strategy
        self._from_the_end = settings["auto.offset.reset"] in {"latest", "largest", "end"}
        with refusals():
            self._consumer = Consumer(settings)

    @property
    def assigned_partitions(self) -> frozenset[int]:
        """The partitions that are ours now."""
        return frozenset(self._assigned)

    @property
    def commit_errors(self) -> int:
        """Offset commits that failed so far; the next one repeats them."""
        return self._commit_errors

    def subscribe(self) -> None:
        """Join the group."""
        self._consumer.subscribe(
            [self._topic],
            on_assign=self._on_assign,
            on_revoke=self._on_revoke,
            on_lost=self._on_lost,
        )

    def rejoin(self) -> None:
        """Join the group as a new client: one whose name was taken can do nothing any more."""
        self.close()
        if self._assigned:
            self._on_lost(self._consumer, [TopicPartition(self._topic, p) for p in self._assigned])
        self._consumer = Consumer(self._settings)
        self.name_taken, self._told = False, not self._new_protocol
        self.subscribe()

    def topics(self, timeout_s: float) -> dict[str, int]:
        """Return the cluster's topics with their partition counts.

        Raises
        ------
        TimeoutError
            When no broker answers in time.
        """
        try:
            listed = self._consumer.list_topics(timeout=timeout_s).topics
        except KafkaException as error:
            self.poll_events()
            raise TimeoutError(str(error.args[0].str())) from error
        return {name: len(topic.partitions) for name, topic in listed.items()}

    def poll_events(self) -> None:
        """Serve callbacks while nothing is subscribed."""
        self._consumer.poll(0)

    def fetch(self, max_messages: int, max_delay_s: float) -> list[PartitionMessages]:
        """Wait shortly for a first message, then up to `max_delay_s` for others to join it."""
        self._gone.clear()
        messages = self._consumer.consume(1, _IDLE_S)
        self.waited_s = 0.0
        if messages and max_messages > 1:
            began = time.perf_counter()
            messages += self._consumer.consume(max_messages - 1, max_delay_s)
            self.waited_s = time.perf_counter() - began
        found = self._by_partition(self._without_errors(messages))
        if not self._told:
            self._tell_of_none()
        # A partition can go while others' messages are waited for: what was taken of it just before
        # is its next owner's.
        return [part for part in found if part.partition not in self._gone]

    def _tell_of_none(self) -> None:
        """Tell of a membership without partitions, of which the newer protocol's client is silent.

        What the client gives out for transactions has the member's generation behind a magic word;
        it is above 0 once the group has answered.
        """
        told = cast("bytes", self._consumer.consumer_group_metadata())
        if int.from_bytes(told[7:11], sys.byteorder, signed=True) > 0:
            self._told = True
            self._assignment.assigned([])

    def commit(self, positions: Mapping[int, int]) -> str | None:
        """Commit next offsets by partition; return what went wrong, as far as it is known yet.

        Nothing waits for the answer: a later failure is counted in `commit_errors`. Partitions that
        are about to go are committed in time all the same, since what makes them go, the next
        message to the group, follows on the same connection, and `close` waits for what is under
        way. A synchronous commit would have to be called on the very thread that calls `revoked`,
        without any limit: from another one the client answers when that thread is through.
        """
        if not positions:
            return None
        offsets = [TopicPartition(self._topic, p, offset) for p, offset in positions.items()]
        try:
            self._consumer.commit(offsets=offsets, asynchronous=True)
        except KafkaException as error:
            return str(error.args[0].str())
        return None

    def places(self, partitions: Iterable[int], timeout_s: float) -> dict[int, Place]:
        """Return for each partition what is retained, and the next offset of the group.

        Waits for transactions under way that commit offsets (KIP-447).

        Raises
        ------
        TimeoutError
            When the brokers did not answer in time.
        """
        asked = [TopicPartition(self._topic, p) for p in partitions]
        try:
            found = self._consumer.committed(asked, timeout=timeout_s) if asked else []
            places = {}
            for each in found:
                if each.error is not None:
                    raise TimeoutError(each.error.str())
                low, high = self._consumer.get_watermark_offsets(each, timeout=timeout_s)
                if each.offset < 0:
                    first = high if self._from_the_end else low
                    places[each.partition] = Place(low, first, committed=False)
                else:
                    places[each.partition] = place_of(each.offset, low, high)
        except KafkaException as error:
            raise TimeoutError(str(error.args[0].str())) from error
        return places

    def hold(self, partitions: Iterable[int]) -> None:
        """Stop reading from assigned partitions until `go_to`."""
        held = [TopicPartition(self._topic, p) for p in partitions]
        self.held |= {place.partition for place in held}
        self._consumer.pause(held)

    def go_to(self, positions: Mapping[int, int]) -> list[int]:
        """Read held partitions from these offsets on; what was fetched before is dropped.

        Returns those that the client does not let go there: as a rule it knows that they are taken
        away, and tells at the next poll. They stay held.
        """
        stuck = []
        for partition, offset in positions.items():
            place = TopicPartition(self._topic, partition, offset)
            # First resumed: what that fetches is void by the seek, but a resume after the seek
            # would go back to where the partition was left.
            self._consumer.resume([place])
            try:
                self._seek(place)
            except KafkaException as error:
                if error.args[0].code() != KafkaError._STATE:  # noqa: SLF001
                    raise
                stuck.append(partition)
            else:
                self.held.discard(partition)
        if stuck:
            self.hold(stuck)
        return stuck

    def _seek(self, place: TopicPartition) -> None:
        """Seek; one assigned a moment ago may not be ready for it yet."""
        deadline = time.monotonic() + _SEEK_WITHIN_S
        while True:
            try:
                self._consumer.seek(place)
            except KafkaException:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(0.01)
            else:
                return

    def note_group(self) -> None:
        """Note the group's metadata, with our generation, as `group`, for transactions.

        Only on the thread that fetches: elsewhere the client answers when this thread polls, and
        holds the interpreter meanwhile.
        """
        self.group = self._consumer.consumer_group_metadata()

    def wait(self) -> None:
        """Stay a member while nothing can be taken in: without fetching, callbacks are served."""
        self._consumer.pause(self._consumer.assignment())
        message = self._consumer.poll(0)
        # The callbacks may have changed the assignment.
        again = [p for p in self._consumer.assignment() if p.partition not in self.held]
        self._consumer.resume(again)
        for read in self._without_errors([] if message is None else [message]):
            self._seek(TopicPartition(self._topic, _PARTITION(read), _OFFSET(read)))  # not lost

    def lag(self, positions: Mapping[int, int]) -> dict[int, int]:
        """Messages between the given next offsets and the end, from cached watermarks."""
        lags: dict[int, int] = {}
        for partition, offset in positions.items():
            with contextlib.suppress(KafkaException):
                place = TopicPartition(self._topic, partition)
                _, high = self._consumer.get_watermark_offsets(place, cached=True)
                if high >= 0:
                    lags[partition] = max(0, high - offset)
        return lags

    def close(self) -> bool:
        """Leave the group; calls `Assignment.revoked` for what is still ours.

        Returns whether that was done: librdkafka waits for commits under way, for a minute where
        the broker is gone. After three seconds the caller goes on without it.
        """
        return done_within(_LEAVE_WITHIN_S, self._consumer.close)

    def _without_errors(self, messages: list[Message]) -> list[Message]:
        errors = list(map(Message.error, messages))
        # Not errors.count(None): an error that is compared with None leaves an exception behind,
        # which the next call of the client then raises.
        if not any(errors):
            return messages
        for error in errors:
            if error is None:
                continue
            if _NAME_TAKEN in error.str():
                self.name_taken = True
                continue
            self.health.on_error(error)
            if error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                self.health.fatal = KafkaUnusableError(
                    f"Kafka: topic {self._topic} does not exist (any more)"
                )
            elif error.code() in _DENIED:
                kind = _DENIED[error.code()]
                name = self._group if kind == "group" else self._topic
                self.health.fatal = KafkaUnusableError(
                    f"Kafka: {error.name()}: this user may not read {kind} {name}: {error.str()}"
                )
        return [m for m, error in zip(messages, errors, strict=True) if error is None]

    def _by_partition(self, messages: list[Message]) -> list[PartitionMessages]:
        """Group messages; several passes by `map` are faster than one pass of Python code."""
        if not messages:
            return []
        n = len(messages)
        partitions = np.fromiter(map(_PARTITION, messages), np.int32, n)
        offsets = np.fromiter(map(_OFFSET, messages), np.int64, n)
        values = list(map(Message.value, messages))
        # A fetch brings long runs of one partition: slices, not rows one by one.
        edges = [0, *(np.flatnonzero(np.diff(partitions)) + 1).tolist(), n]
        runs: dict[int, list[slice]] = {}
        for start, stop in itertools.pairwise(edges):
            runs.setdefault(int(partitions[start]), []).append(slice(start, stop))
        return [
            PartitionMessages(
                partition,
                list(itertools.chain.from_iterable(values[run] for run in mine)),
                np.concatenate([offsets[run] for run in mine]),
                list(itertools.chain.from_iterable(messages[run] for run in mine)),
            )
            for partition, mine in sorted(runs.items())
        ]

    def _committed(self, error: KafkaError | None, places: list[TopicPartition]) -> None:
        if error is None:
            self.committed_positions.update({p.partition: p.offset for p in places if not p.error})
        if error is not None and error.code() != KafkaError._NO_OFFSET:  # noqa: SLF001
            self._commit_errors += 1

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [p.partition for p in partitions]
        self._told = True
        self._assigned |= set(numbers)
        if not self._assignment.assigned(numbers):
            return
        if self._incremental:
            self._consumer.incremental_assign(partitions)
        else:
            self._consumer.assign(partitions)
        self.hold(numbers)

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [p.partition for p in partitions]
        self._gone |= set(numbers)
        self._assignment.revoked(numbers)
        self._assigned -= set(numbers)
        self.held -= set(numbers)

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [p.partition for p in partitions]
        self._gone |= set(numbers)
        self._assignment.lost(numbers)
        self._told = not self._new_protocol
        self._assigned -= set(numbers)
        self.held -= set(numbers)
