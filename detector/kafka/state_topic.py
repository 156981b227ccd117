"""Read the compacted topic of state: every record of some partitions, up to what was there.

What a dead member left uncommitted is waited for: the end is that of everything written, the
records are only those of committed transactions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    OffsetSpec,
)

from detector.kafka.connection import Connection, KafkaUnusableError

Take = Callable[[int, bytes, bytes | None], None]
"""Given partition, key and value of a record, in their order within a partition."""

_BATCH = 500
_POLL_S = 0.02  # the client waits as long for a whole batch: the last one is never whole


def read_state(
    connection: Connection,
    topic: str,
    partitions: Iterable[int],
    take: Take,
    timeout_s: float,
) -> None:
    """Hand over the records of partitions.

    Parameters
    ----------
    connection, topic, partitions
        What to read.
    take
        Given each record that has a key.
    timeout_s
        Seconds without an answer, or a record, after which it is given up.

    Raises
    ------
    TimeoutError
        The brokers did not hand over everything in time.
    KafkaUnusableError
        They refuse to.
    """
    deadline = time.monotonic() + timeout_s
    ends = _ends(connection, topic, partitions, timeout_s)
    left = {partition for partition, end in ends.items() if end > 0}
    if not left:
        return
    consumer = Consumer(
        {
            "fetch.wait.max.ms": 10,
            "queued.max.messages.kbytes": 131_072,
            **connection.for_reader(),
            "group.id": "tapewatch-state-reader",  # asked for by the client; nothing is committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
        }
    )
    begun: dict[int, int] = {}  # where an open transaction begins, or the end, by partition
    try:
        # Not OFFSET_BEGINNING: it has to be asked for, and the client, which does not know yet whom
        # to ask, tries that again after half a second. Where 0 is gone, `earliest` finds the first.
        consumer.assign([TopicPartition(topic, p, 0) for p in sorted(left)])
        while left:
            if time.monotonic() >= deadline:
                places = {partition: begun.get(partition) for partition in sorted(left)}
                raise TimeoutError(
                    f"topic {topic}: nothing came for {timeout_s:.0f} s, but not all is read; open "
                    f"transactions begin, by partition, at {places}"
                )
            for message in consumer.consume(_BATCH, _POLL_S):
                deadline = time.monotonic() + timeout_s
                partition, error = message.partition(), message.error()
                if error is None:
                    key, value = message.key(), message.value()
                    if partition is not None and key is not None:
                        take(partition, key, value)
                elif partition is not None:
                    _note(error, topic, partition, message.offset() or 0, ends, begun)
            left -= {p for p, at in begun.items() if at >= ends[p]}
    finally:
        consumer.close()


def _note(
    error: KafkaError,
    topic: str,
    partition: int,
    offset: int,
    ends: Mapping[int, int],
    begun: dict[int, int],
) -> None:
    """Take note of an end that was reached, or raise what keeps us from reading."""
    if error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001
        # With a transaction under way this is where it began, not yet the end.
        begun[partition] = min(offset, ends[partition])
    elif error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
        raise KafkaUnusableError(
            f"Kafka: {error.name()}: this user may not read topic {topic}: {error.str()}"
        )


def _ends(
    connection: Connection, topic: str, partitions: Iterable[int], timeout_s: float
) -> dict[int, int]:
    """Next offset of each partition, whatever is committed."""
    admin = AdminClient(connection.for_producer())  # type: ignore[arg-type]
    asked = {TopicPartition(topic, p): OffsetSpec.latest() for p in partitions}  # type: ignore[no-untyped-call]
    found = admin.list_offsets(
        asked,
        isolation_level=IsolationLevel.READ_UNCOMMITTED,
        request_timeout=timeout_s,
    )
    try:
        return {place.partition: future.result(timeout_s).offset for place, future in found.items()}
    except KafkaException as error:
        if error.args[0].code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise KafkaUnusableError(
                f"Kafka: {error.args[0].name()}: this user may not read topic {topic}"
            ) from error
        raise TimeoutError(str(error.args[0].str())) from error
