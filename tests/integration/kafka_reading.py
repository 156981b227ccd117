"""A reader of topics that is nothing but the client: the separate process's view."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable

from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient


def read_topic(
    bootstrap: str, topic: str, until: Callable[[list[Message]], bool], wait_s: float = 60.0
) -> list[Message]:
    """Read a topic from its beginning until the condition holds for all that was read."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([topic])
    read: list[Message] = []
    deadline = time.monotonic() + wait_s
    try:
        while not until(read):
            if time.monotonic() > deadline:
                raise AssertionError(f"only {len(read)} records on {topic} after {wait_s} s")
            message = consumer.poll(0.2)
            if message is not None and message.error() is None:
                read.append(message)
    finally:
        consumer.close()
    return read


def committed_and_end(bootstrap: str, group: str, topic: str, partitions: int) -> tuple[int, int]:
    """Sum of the group's committed offsets, and of the partitions' ends."""
    committed = sum(committed_offsets(bootstrap, group, topic, partitions))
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    places = [TopicPartition(topic, p) for p in range(partitions)]
    end = sum(consumer.get_watermark_offsets(p, timeout=20)[1] for p in places)
    consumer.close()
    return committed, end


def committed_offsets(bootstrap: str, group: str, topic: str, partitions: int) -> list[int]:
    """The group's committed offset of each partition, 0 where there is none."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": group})
    places = [TopicPartition(topic, p) for p in range(partitions)]
    committed = [max(0, p.offset) for p in consumer.committed(places, timeout=20)]
    consumer.close()
    return committed


def produce_all(bootstrap: str, topic: str, records: list[tuple[bytes, bytes | None]]) -> None:
    """Produce key and value pairs in order, and wait for all of them."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
    for i, (key, value) in enumerate(records):
        producer.produce(topic, key=key, value=value)
        if i % 1000 == 0:
            producer.poll(0)
    assert producer.flush(60) == 0


def group_members(bootstrap: str, group: str) -> dict[str, frozenset[int]]:
    """Partitions of a group's members by their group.instance.id, or an id that Kafka gave."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    (asked,) = admin.describe_consumer_groups([group]).values()
    return {
        member.group_instance_id or member.member_id: frozenset(
            place.partition for place in member.assignment.topic_partitions
        )
        for member in asked.result(30).members
    }
