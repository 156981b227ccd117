r"""The embedded broker, and the failing cluster of the tests, behave as their pages say.

producer ---0..n---> topic (4 partitions) ---> consumer a, consumer b  (one group)
                                         \--> consumer c resumes at a's commit
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from detector.broker import PARTITIONS, RETAINED_BYTES, EmbeddedBroker
from tests.mock_cluster import MockCluster, Request

DEADLINE_S = 30.0


def produce(bootstrap: str, topic: str, values: list[bytes], partition: int = 0) -> None:
    """Send to one partition from a client of its own and wait for the acknowledgements."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 0})
    for value in values:
        producer.produce(topic, value, partition=partition)
    assert producer.flush(DEADLINE_S) == 0


@contextmanager
def consumer(bootstrap: str, settings: Mapping[str, int] | None = None) -> Iterator[Consumer]:
    """Open a consumer that starts at the beginning and commits only when told to."""
    opened = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "group",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "log_level": 2,
            **(settings or {}),
        }
    )
    try:
        yield opened
    finally:
        opened.close()


def take(reader: Consumer, count: int) -> list[Message]:
    """Read `count` messages, or fewer when the deadline passes."""
    messages = reader.consume(count, DEADLINE_S)
    assert all(message.error() is None for message in messages)
    return messages


def test_separate_clients_meet_at_the_embedded_broker(embedded_broker: EmbeddedBroker) -> None:
    """What one client produces, with key and headers, another one reads in order."""
    embedded_broker.create_topic("ticks")
    producer = Producer({"bootstrap.servers": embedded_broker.bootstrap})
    for number in range(100):
        producer.produce("ticks", b"%d" % number, b"key", partition=2, headers={"a": b"b"})
    assert producer.flush(DEADLINE_S) == 0
    with consumer(embedded_broker.bootstrap) as reader:
        reader.assign([TopicPartition("ticks", 2, 0)])
        messages = take(reader, 100)
    assert [message.value() for message in messages] == [b"%d" % number for number in range(100)]
    assert {message.key() for message in messages} == {b"key"}
    assert messages[0].headers() == [("a", b"b")]


def test_a_topic_has_the_documented_number_of_partitions(embedded_broker: EmbeddedBroker) -> None:
    """Creating a topic says how many partitions it has, the first time and the second."""
    assert embedded_broker.create_topic("ticks") == PARTITIONS
    assert embedded_broker.create_topic("ticks") == PARTITIONS


def test_two_consumers_of_a_group_share_the_partitions(embedded_broker: EmbeddedBroker) -> None:
    """Each partition belongs to exactly one member and no member is idle."""
    embedded_broker.create_topic("ticks")
    for partition in range(PARTITIONS):
        produce(embedded_broker.bootstrap, "ticks", [b"%d" % partition], partition)
    # A member that misses one step of a rebalance is asked again when its session is over, which by
    # default takes 45 s, longer than this test waits.
    short = {"session.timeout.ms": 6000}
    with (
        consumer(embedded_broker.bootstrap, short) as a,
        consumer(embedded_broker.bootstrap, short) as b,
    ):
        a.subscribe(["ticks"])
        b.subscribe(["ticks"])
        shares: list[set[int]] = [set(), set()]
        for _ in range(2 * int(DEADLINE_S)):
            for reader in (a, b):
                reader.poll(0.5)
            shares = [{part.partition for part in reader.assignment()} for reader in (a, b)]
            if all(shares) and len(shares[0]) + len(shares[1]) == PARTITIONS:
                break
    assert shares[0] | shares[1] == set(range(PARTITIONS))
    assert shares[0] & shares[1] == set()
    assert all(shares)


def test_a_group_resumes_where_it_committed(embedded_broker: EmbeddedBroker) -> None:
    """The next member of a group goes on at the committed offset, not at the last one read."""
    embedded_broker.create_topic("ticks")
    produce(embedded_broker.bootstrap, "ticks", [b"%d" % number for number in range(10)])
    # The mock waits for a session timeout after a member left; the default would be 45 s.
    settings = {"session.timeout.ms": 3000}
    with consumer(embedded_broker.bootstrap, settings) as first:
        first.subscribe(["ticks"])
        assert len(take(first, 10)) == 10
        first.commit(offsets=[TopicPartition("ticks", 0, 4)], asynchronous=False)
    with consumer(embedded_broker.bootstrap, settings) as second:
        second.subscribe(["ticks"])
        assert [message.value() for message in take(second, 6)] == [b"%d" % n for n in range(4, 10)]


def test_a_partition_drops_its_oldest_messages(embedded_broker: EmbeddedBroker) -> None:
    """Beyond the documented size the oldest messages are gone, as the page warns."""
    embedded_broker.create_topic("ticks")
    size = 50_000
    sent = 2 * RETAINED_BYTES // size
    produce(embedded_broker.bootstrap, "ticks", [bytes(size)] * sent)
    with consumer(embedded_broker.bootstrap) as reader:
        oldest, end = reader.get_watermark_offsets(TopicPartition("ticks", 0), DEADLINE_S)
    assert end == sent
    assert (end - oldest) * size == pytest.approx(RETAINED_BYTES, rel=0.25)


def test_a_closed_broker_refuses_connections() -> None:
    """After the end of the `with` block nobody listens on its port, and it says it is closed."""
    with EmbeddedBroker() as broker:
        host, port = broker.bootstrap.split(":")
        socket.create_connection((host, int(port)), 5).close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), 5)
    with pytest.raises(RuntimeError, match="closed"):
        broker.create_topic("ticks")


def test_several_brokers_are_all_named() -> None:
    """The bootstrap list names one address for each broker."""
    with EmbeddedBroker(brokers=3) as broker:
        assert len(set(broker.bootstrap.split(","))) == 3


@pytest.mark.parametrize("wrong", [{"brokers": 0}, {"latency_ms": -1}])
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    """A cluster of no brokers or with negative latency is refused with the value received."""
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        EmbeddedBroker(**wrong)


def test_the_mock_cluster_refuses_what_it_is_told_to_refuse(mock_cluster: MockCluster) -> None:
    """A produce request fails with the error asked for, and the next one succeeds."""
    mock_cluster.create_topic("ticks")
    outcomes: list[KafkaError | None] = []
    producer = Producer({"bootstrap.servers": mock_cluster.bootstrap})
    mock_cluster.fail(Request.PRODUCE, KafkaError.MSG_SIZE_TOO_LARGE)
    for value in (b"refused", b"taken"):
        producer.produce("ticks", value, on_delivery=lambda error, _: outcomes.append(error))
        producer.flush(DEADLINE_S)
    refused, taken = outcomes
    assert refused is not None
    assert refused.code() == KafkaError.MSG_SIZE_TOO_LARGE
    assert taken is None


def test_failures_can_be_taken_back(mock_cluster: MockCluster) -> None:
    """After `heal` a request that was to fail succeeds."""
    mock_cluster.create_topic("ticks")
    mock_cluster.fail(Request.PRODUCE, KafkaError.MSG_SIZE_TOO_LARGE)
    mock_cluster.heal(Request.PRODUCE)
    outcomes: list[KafkaError | None] = []
    producer = Producer({"bootstrap.servers": mock_cluster.bootstrap})
    producer.produce("ticks", b"taken", on_delivery=lambda error, _: outcomes.append(error))
    producer.flush(DEADLINE_S)
    assert outcomes == [None]


def test_the_mock_cluster_goes_down_and_comes_back(mock_cluster: MockCluster) -> None:
    """While it is down nothing is answered; what was produced before is there afterwards."""
    mock_cluster.create_topic("ticks", partitions=3)
    produce(mock_cluster.bootstrap, "ticks", [b"before"])
    with consumer(mock_cluster.bootstrap, {"log_level": 0}) as reader:
        mock_cluster.go_down()
        with pytest.raises(KafkaException):
            reader.get_watermark_offsets(TopicPartition("ticks", 0), 1.0)
        mock_cluster.come_back()
        assert len(reader.list_topics(timeout=DEADLINE_S).topics["ticks"].partitions) == 3
        reader.assign([TopicPartition("ticks", 0, 0)])
        assert [message.value() for message in take(reader, 1)] == [b"before"]
