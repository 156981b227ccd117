"""Publish records with acknowledgements."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import ClassVar, Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from detector.kafka.connection import (
    STATISTICS_MS,
    Connection,
    Headers,
    Health,
    refusals,
    require_topic,
    topic_settings,
    wrong_policy,
)

Acknowledge = Callable[[str | None], None]
"""Called once per published record, from the delivery thread: None, or what went wrong."""


class Publisher:
    """Publishes records; delivery reports are served by a thread of its own.

    The producer is idempotent and retries without end, so that only a permanent refusal fails.
    When its queue is full, `publish` waits: a slow broker slows its caller.
    """

    _health: type[Health] = Health
    _defaults: ClassVar[Mapping[str, object]] = {}  # a user's own go before them

    def __init__(self, connection: Connection, **settings: object) -> None:
        self.health = self._health()
        self._connection = connection
        properties = {
            "linger.ms": 0,
            "partitioner": "murmur2_random",  # that of Kafka's Java clients
            "compression.type": "lz4",
            "message.max.bytes": 64 * 1024 * 1024,
            "queue.buffering.max.messages": 10_000,
            "queue.buffering.max.kbytes": 128 * 1024,
            **self._defaults,
            **connection.for_producer(),
            "enable.idempotence": True,
            # Within a transaction it is the transaction that ends in time.
            **({} if "transactional.id" in settings else {"message.timeout.ms": 0}),
            "error_cb": self.health.on_error,
            "statistics.interval.ms": STATISTICS_MS,
            "stats_cb": self.health.on_statistics,
            **settings,
        }
        self._properties = properties
        with refusals():
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

        try:
            self._produce(topic, key, value, headers, partition, report)
        except KafkaException as error:  # refused at once, for example for its size
            if acknowledge is None:
                raise
            acknowledge(str(error.args[0]))

    def _produce(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        partition: int,
        report: Callable[[KafkaError | None, Message], None],
    ) -> None:
        """Give the client one record, waiting while its queue is full."""
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
            else:
                return

    def require_topic(self, topic: str, timeout_s: float = 15.0) -> None:
        """Check that a broker answers and has the topic.

        Raises
        ------
        FailedError
            When no broker answers in time, or the topic does not exist.
        """
        require_topic(
            self._producer, topic, self._connection.bootstrap_servers, timeout_s, self.health
        )

    def settings_of(self, topic: str, timeout_s: float = 5.0) -> Mapping[str, str]:
        """Return the settings in force of a topic; none where we may not know them."""
        return topic_settings(self._connection, topic, timeout_s)

    def wrong_policy(self, topic: str, wanted: str) -> str:
        """Say that a topic's `cleanup.policy` is another, and how to mend it; "" where it fits."""
        return wrong_policy(self._connection, topic, self.settings_of(topic), wanted)

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
            try:
                self._producer.poll(0.05)
            except KafkaException:  # fatal for this producer: whoever calls it next is told
                self._closing.wait(0.05)
        with contextlib.suppress(KafkaException):
            self._producer.poll(0)
