"""What librdkafka tells of itself: read from documents of known content, and from a real client."""

from __future__ import annotations

import time
from typing import Any

from prometheus_client import CollectorRegistry

from detector.kafka import Connection, Publisher, TickConsumer
from detector.kafka_metrics import KafkaMetrics
from detector.kafka_statistics import ClientStatistics, StatisticsBook
from tests.mock_cluster import MockCluster

WAIT_S = 30.0


def broker(node: int, state: str = "UP", p50: int = 0, p99: int = 0, **counts: int) -> Any:
    """A broker's part of a document; round trips in microseconds, none where both are 0."""
    window = {"cnt": 1 if p99 else 0, "p50": p50, "p99": p99}
    return {"nodeid": node, "state": state, "rtt": window, **counts}


def consumer_document(**brokers: Any) -> dict[str, Any]:
    """A consumer's document with two topics of two partitions."""
    partition = {"fetchq_cnt": 3, "fetchq_size": 100}
    topics = {name: {"partitions": {"0": partition, "1": partition}} for name in ("a", "b")}
    return {"type": "consumer", "brokers": brokers, "topics": topics, "cgrp": {"rebalance_cnt": 4}}


def test_consumer_document() -> None:
    """Queues are summed over partitions, round trips are the worst broker's, in seconds."""
    found = StatisticsBook().take(
        consumer_document(
            one=broker(1, p50=2_000, p99=9_000, txretries=2, txerrs=3, req_timeouts=5),
            two=broker(2, p50=1_000, p99=50_000, rxerrs=4),
            idle=broker(3, "DOWN"),
        )
    )
    assert found == ClientStatistics(
        queue_messages=12,
        queue_bytes=400,
        round_trip_s={"0.5": 0.002, "0.99": 0.05},
        retries=2,
        request_errors=7,
        timeouts=5,
        brokers_up=2,
        rebalances=4,
    )


def test_producer_document() -> None:
    """A producer's queue is the whole client's; without requests there is no round trip."""
    found = StatisticsBook().take(
        {"type": "producer", "msg_cnt": 7, "msg_size": 70, "brokers": {"one": broker(1)}}
    )
    assert (found.queue_messages, found.queue_bytes) == (7, 70)
    assert found.round_trip_s == {}
    assert found.rebalances == 0


def test_broker_is_counted_once() -> None:
    """A coordinator is listed beside the broker that it is; a bootstrap address is no broker."""
    found = StatisticsBook().take(
        consumer_document(one=broker(1), GroupCoordinator=broker(1), bootstrap=broker(-1))
    )
    assert found.brokers_up == 1


def test_a_silent_broker_is_not_up() -> None:
    """One that owes an answer and says nothing is not up, unless we hear it elsewhere."""
    silent = {"waitresp_cnt": 1, "rxidle": 11_000_000}
    patient = {"waitresp_cnt": 1, "rxidle": 9_000_000}
    idle = {"waitresp_cnt": 0, "rxidle": 60_000_000}

    def told(**brokers: Any) -> tuple[int, int]:
        found = StatisticsBook(10.0).take(consumer_document(**brokers))
        return found.brokers_up, found.brokers_silent

    assert told(one=broker(1, **silent), two=broker(2, **patient)) == (1, 1)
    assert told(one=broker(1, **silent), GroupCoordinator=broker(1, **idle)) == (1, 0)
    assert told(one=broker(1, "DOWN", **silent)) == (0, 0)


def test_patience_covers_the_wait_of_a_fetch() -> None:
    """A fetch that waits longer for ticks, as configured, is not taken for silence."""
    usual = Connection("localhost:9092").patience_s
    slow = Connection("localhost:9092", properties={"fetch.wait.max.ms": "30000"}).patience_s
    assert (usual, slow) == (10.5, 40.0)


def test_counters_never_fall() -> None:
    """A broker that is forgotten, and one that starts again from zero, take nothing back."""
    book = StatisticsBook()
    counted = [
        book.take(consumer_document(**brokers)).retries
        for brokers in (
            {"one": broker(1, txretries=5), "two": broker(2, txretries=1)},
            {"one": broker(1, txretries=6)},
            {"one": broker(1, txretries=6), "two": broker(2, txretries=3)},
            {"one": broker(1, txretries=2), "two": broker(2, txretries=3)},
        )
    ]
    assert counted == [6, 7, 9, 11]


def test_empty_document() -> None:
    """A client that has not connected yet tells nothing, which is no error."""
    assert StatisticsBook().take({}) == ClientStatistics()


class Nothing:
    """An assignment that does nothing."""

    def assigned(self, partitions: list[int]) -> None:
        """Take note."""

    revoked = lost = assigned


def test_real_clients_tell(mock_cluster: MockCluster) -> None:
    """A consumer that read and a producer that wrote have every series, with true values."""
    mock_cluster.create_topic("ticks")
    connection = Connection(mock_cluster.bootstrap)
    registry = CollectorRegistry()
    metrics = KafkaMetrics(registry)
    consumer = TickConsumer(connection, "group", "ticks", Nothing())
    publisher = Publisher(connection)
    metrics.watch("consumer", consumer.health)
    metrics.watch("producer", publisher.health)
    assert registry.get_sample_value("tapewatch_kafka_brokers_up", {"client": "consumer"}) is None

    def told(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"tapewatch_kafka_{name}", labels)

    try:
        consumer.subscribe()
        deadline = time.monotonic() + WAIT_S
        read = 0
        while not (
            read
            and told("round_trip_seconds", client="consumer", quantile="0.99")
            and told("round_trip_seconds", client="producer", quantile="0.99")
            and told("rebalances_total")
        ):
            assert time.monotonic() < deadline, list(registry.collect())
            publisher.publish("ticks", None, b"tick")
            read += sum(len(part.values) for part in consumer.fetch(100, 0.001))
        for client in ("consumer", "producer"):
            assert told("brokers_up", client=client) == 1
            for name in ("retries_total", "request_errors_total", "timeouts_total"):
                assert told(name, client=client) == 0
            assert 0 < (told("round_trip_seconds", client=client, quantile="0.5") or 0) < WAIT_S
            assert told("fetch_queue_messages", client=client) is not None
            assert told("fetch_queue_bytes", client=client) is not None
    finally:
        consumer.close()
        publisher.close()
