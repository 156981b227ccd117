"""Kafka at the edge: fetch messages by partition, publish with acknowledgements, create topics.

The only module, beside `broker`, that imports `confluent_kafka`. It knows no tick and no event;
what it hands over are bytes, offsets and acknowledgements.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self, cast

import numpy as np
import numpy.typing as npt
import orjson
from confluent_kafka import (
    TIMESTAMP_NOT_AVAILABLE,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from detector.errors import FailedError, RefusedError
from detector.kafka_statistics import ClientStatistics, StatisticsBook
from detector.masking import Scrubbing

_CLIENT_LOG: Final = logging.getLogger("librdkafka")
_CLIENT_LOG.addFilter(Scrubbing())

Headers = Sequence[tuple[str, bytes]]
ConsumerProtocol: Final = "cooperative-sticky"
_PARTITION: Final = cast("Callable[[Message], int]", Message.partition)  # of what was consumed
_OFFSET: Final = cast("Callable[[Message], int]", Message.offset)
_IDLE_S: Final = 0.1
_COMMIT_WITHIN_S: Final = 2.0
_LEAVE_WITHIN_S: Final = 3.0  # the last commit included
_STATISTICS_MS: Final = 2000
_UNUSABLE: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,  # noqa: SLF001  (the client's public names start so)
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)

_DENIED: Final = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "topic",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "group",
}


class KafkaUnusableError(FailedError, RuntimeError):
    """Kafka refuses what tapewatch needs; waiting would not help."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a cluster: brokers, client name and further librdkafka properties."""

    bootstrap_servers: str
    client_id: str = "tapewatch"
    properties: Mapping[str, str] | None = None

    def settings(self, **more: object) -> dict[str, object]:
        """Return librdkafka properties, the caller's own last."""
        return {
            **(self.properties or {}),
            "bootstrap.servers": self.bootstrap_servers,
            "client.id": self.client_id,
            "logger": _CLIENT_LOG,
            **more,
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

    def headers(self) -> list[list[tuple[str, bytes]] | None]:
        """Return every message's headers, as librdkafka hands them over."""
        return cast("list[list[tuple[str, bytes]] | None]", [m.headers() for m in self.messages])


class Assignment(Protocol):
    """What wants to know which partitions are ours. Called from within `TickConsumer.fetch`."""

    def assigned(self, partitions: list[int]) -> None:
        """Partitions now ours; may be empty."""

    def revoked(self, partitions: list[int]) -> None:
        """Partitions about to go to another member: finish and commit them now."""

    def lost(self, partitions: list[int]) -> None:
        """Partitions that are another member's already: nothing may be committed."""


class Health:
    """Whether the brokers can be reached, as librdkafka's callbacks tell it; thread-safe."""

    def __init__(self) -> None:
        self._brokers_up = 0
        self._last_error = "not connected yet"
        self._book = StatisticsBook()
        self.statistics: ClientStatistics | None = None
        self.fatal: KafkaUnusableError | None = None

    @property
    def reachable(self) -> bool:
        """At least one broker connection is up."""
        return self._brokers_up > 0

    @property
    def last_error(self) -> str:
        """Return the latest error librdkafka told, for people."""
        return self._last_error

    def on_error(self, error: KafkaError) -> None:
        """Take librdkafka's error callback."""
        self._last_error = error.str()
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._brokers_up = 0
        # A handshake also fails while a broker restarts; a certificate does not mend itself.
        untrusted = (
            error.code() == KafkaError._SSL and "certificate" in error.str()  # noqa: SLF001
        )
        if error.fatal() or untrusted or error.code() in _UNUSABLE:
            self.fatal = KafkaUnusableError(f"Kafka: {error.name()}: {error.str()}")

    def on_statistics(self, text: str) -> None:
        """Take librdkafka's statistics callback."""
        self.statistics = self._book.take(orjson.loads(text))
        self._brokers_up = self.statistics.brokers_up


def consumer_settings(connection: Connection, group_id: str) -> dict[str, object]:
    """Return how ticks are consumed; benchmarks read their ceilings with the same settings."""
    return {
        "auto.offset.reset": "earliest",
        "partition.assignment.strategy": ConsumerProtocol,
        "fetch.wait.max.ms": 50,
        "queued.max.messages.kbytes": 65_536,
        # By default librdkafka stops fetching for a second when its queue is full. A backlog is
        # read faster than that: with the default, two thirds of the time nothing was there.
        "fetch.queue.backoff.ms": 5,
        **connection.settings(),
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
        self.health = Health()
        self._topic, self._group = topic, group_id
        self._assignment = assignment
        self._assigned: set[int] = set()
        self._commit_errors = 0
        self.waited_s = 0.0  # how long the first message of the last fetch waited for others
        settings = {
            **consumer_settings(connection, group_id),
            "statistics.interval.ms": _STATISTICS_MS,
            "error_cb": self.health.on_error,
            "stats_cb": self.health.on_statistics,
            "on_commit": self._committed,
        }
        with _refusals():
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
        messages = self._consumer.consume(1, _IDLE_S)
        self.waited_s = 0.0
        if messages and max_messages > 1:
            began = time.perf_counter()
            messages += self._consumer.consume(max_messages - 1, max_delay_s)
            self.waited_s = time.perf_counter() - began
        return self._by_partition(self._without_errors(messages))

    def commit(self, positions: Mapping[int, int], *, wait: bool) -> str | None:
        """Commit next offsets by partition; return what went wrong, as far as it is known yet.

        Without `wait` a later failure is counted in `commit_errors`. With it, two seconds are
        waited: a broker that is gone, or a group that is rebalancing, would hold up an orderly end
        for longer than a supervisor waits, and what is not committed is only repeated.
        """
        if not positions:
            return None
        offsets = [TopicPartition(self._topic, p, offset) for p, offset in positions.items()]
        try:
            if not wait:
                self._consumer.commit(offsets=offsets, asynchronous=True)
                return None
        except KafkaException as error:
            return str(error.args[0].str())
        try:
            answered = _done_within(
                _COMMIT_WITHIN_S,
                lambda: self._consumer.commit(offsets=offsets, asynchronous=False),
            )
        except KafkaException as error:
            return str(error)
        return None if answered else f"no answer within {_COMMIT_WITHIN_S:.0f} s"

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
        return _done_within(_LEAVE_WITHIN_S, self._consumer.close)

    def _without_errors(self, messages: list[Message]) -> list[Message]:
        errors = list(map(Message.error, messages))
        # Not errors.count(None): an error that is compared with None leaves an exception behind,
        # which the next call of the client then raises.
        if not any(errors):
            return messages
        for error in errors:
            if error is None:
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

    def _committed(self, error: KafkaError | None, _: list[TopicPartition]) -> None:
        if error is not None and error.code() != KafkaError._NO_OFFSET:  # noqa: SLF001
            self._commit_errors += 1

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [p.partition for p in partitions]
        self._assigned |= set(numbers)
        self._assignment.assigned(numbers)

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [p.partition for p in partitions]
        self._assignment.revoked(numbers)
        self._assigned -= set(numbers)

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        numbers = [p.partition for p in partitions]
        self._assignment.lost(numbers)
        self._assigned -= set(numbers)


Acknowledge = Callable[[str | None], None]
"""Called once per published record, from the delivery thread: None, or what went wrong."""


class Publisher:
    """Publishes records; delivery reports are served by a thread of its own.

    The producer is idempotent and retries without end, so that only a permanent refusal fails.
    When its queue is full, `publish` waits: a slow broker slows its caller.
    """

    def __init__(self, connection: Connection, **settings: object) -> None:
        self.health = Health()
        self._bootstrap = connection.bootstrap_servers
        properties = {
            "linger.ms": 0,
            "partitioner": "murmur2_random",  # that of Kafka's Java clients
            "compression.type": "lz4",
            "message.max.bytes": 64 * 1024 * 1024,
            "queue.buffering.max.messages": 10_000,
            "queue.buffering.max.kbytes": 128 * 1024,
            **connection.settings(),
            "enable.idempotence": True,
            "message.timeout.ms": 0,
            "error_cb": self.health.on_error,
            "statistics.interval.ms": _STATISTICS_MS,
            "stats_cb": self.health.on_statistics,
            **settings,
        }
        with _refusals():
            self._producer = Producer(properties)
        self._capacity = int(str(properties["queue.buffering.max.messages"]))
        self._closing = threading.Event()
        self._deliveries = threading.Thread(
            target=self._serve_deliveries, name="deliveries", daemon=True
        )
        self._deliveries.start()

    @property
    def room(self) -> int:
        """How many records `publish` takes without waiting."""
        return max(0, self._capacity - len(self._producer))

    def publish(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        acknowledge: Acknowledge | None = None,
        partition: int = -1,
    ) -> None:
        """Hand one record over, waiting while the producer's queue is full."""

        def report(error: KafkaError | None, _: Message) -> None:
            if acknowledge is not None:
                acknowledge(None if error is None else f"{error.name()}: {error.str()}")

        while True:
            try:
                self._producer.produce(
                    topic,
                    value=value,
                    key=key,
                    headers=list(headers),
                    partition=partition,
                    on_delivery=report,
                )
            except BufferError:
                time.sleep(0.005)
            except KafkaException as error:  # refused at once, for example for its size
                if acknowledge is None:
                    raise
                acknowledge(str(error.args[0]))
                return
            else:
                return

    def require_topic(self, topic: str, timeout_s: float = 15.0) -> None:
        """Check that a broker answers and has the topic.

        Raises
        ------
        FailedError
            When no broker answers in time, or the topic does not exist.
        """
        _require_topic(self._producer, topic, self._bootstrap, timeout_s, self.health)

    def flush(self, timeout_s: float) -> int:
        """Wait for acknowledgements; return how many records are still without one."""
        deadline = time.monotonic() + timeout_s
        while len(self._producer) and time.monotonic() < deadline:
            time.sleep(0.002)
        return len(self._producer)

    def close(self, timeout_s: float = 5.0) -> int:
        """Flush, then stop; return how many records were never acknowledged."""
        left = self.flush(timeout_s)
        self._closing.set()
        self._deliveries.join()
        return left

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close(0.0 if kind is not None else 5.0)

    def _serve_deliveries(self) -> None:
        while not self._closing.is_set():
            self._producer.poll(0.05)
        self._producer.poll(0)


def _done_within(seconds: float, call: Callable[[], object]) -> bool:
    """Call a function of the client that knows no time limit; whether it returned in time.

    What it raises in time is raised here. Later it goes on in a thread that nobody waits for.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # raised in the caller's thread
            raised.append(error)

    thread = threading.Thread(target=run, name="client", daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return not thread.is_alive()


def check_properties(connection: Connection, group_id: str) -> None:
    """Let librdkafka look at the properties, without waiting for a broker.

    Raises
    ------
    RefusedError
        Names a property that it does not know, or whose value it does not take.
    """
    Publisher(connection).close(0.0)
    with _refusals():
        Consumer(consumer_settings(connection, group_id)).close()


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Name a property that librdkafka does not know, or a value that it does not take."""
    try:
        yield
    except KafkaException as error:
        raise RefusedError(f"kafka.properties: {error.args[0].str()}") from None


def _require_topic(
    client: Producer | Consumer, topic: str, bootstrap: str, timeout_s: float, health: Health
) -> None:
    try:
        known = client.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        client.poll(0)
        if health.fatal is not None:
            raise health.fatal from error
        raise FailedError(
            f"no broker answered at {bootstrap} within {timeout_s:.0f} s ({error.args[0].str()}); "
            "check the address with --bootstrap or kafka.bootstrap_servers"
        ) from error
    if topic not in known:
        raise FailedError(
            f"topic {topic} does not exist at {bootstrap}, or this user may not see it; create it "
            "with `tapewatch topics create`, or ask for the right to describe it"
        )


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """A topic to be created: its name, partitions and settings."""

    name: str
    partitions: int
    settings: Mapping[str, str]


def create_topics(
    connection: Connection, plans: Iterable[TopicPlan], replication: int, timeout_s: float = 15.0
) -> dict[str, str]:
    """Create topics; return by name `created`, `exists`, or what went wrong.

    Raises
    ------
    KafkaUnusableError
        When the brokers refuse us, or we do not trust them.
    """
    health = Health()
    settings = connection.settings(error_cb=health.on_error)
    with _refusals():
        admin = AdminClient(cast("dict[str, str | int | float | bool]", settings))
    wanted = [
        NewTopic(
            plan.name,
            num_partitions=plan.partitions,
            replication_factor=replication,
            config=dict(plan.settings),
        )
        for plan in plans
    ]
    results: dict[str, str] = {}
    for name, future in admin.create_topics(wanted, request_timeout=timeout_s).items():
        try:
            future.result(timeout_s + 5)
        except KafkaException as error:
            admin.poll(0)
            if health.fatal is not None:
                raise health.fatal from error
            exists = error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS
            results[name] = "exists" if exists else str(error.args[0].str())
        else:
            results[name] = "created"
    return results


def follow(
    connection: Connection, topic: str, group_id: str, *, from_beginning: bool
) -> Iterator[Message | None]:
    """Read a topic as a plain subscriber; yields None while there is nothing.

    Commits nothing, so that following a topic leaves no trace.
    """
    settings: dict[str, Any] = {
        "auto.offset.reset": "earliest" if from_beginning else "latest",
        **connection.settings(),
        "group.id": group_id,
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
    }
    health = Health()
    with _refusals():
        consumer = Consumer({**settings, "error_cb": health.on_error})
    try:
        _require_topic(consumer, topic, connection.bootstrap_servers, 15.0, health)
        consumer.subscribe([topic])
        while True:
            message = consumer.poll(0.2)
            if health.fatal is not None:
                raise health.fatal
            if message is not None and (error := message.error()) is not None:
                raise KafkaUnusableError(f"Kafka: {error.str()}")
            yield message
    finally:
        consumer.close()
