"""What each error of a transaction leads to, on a mock cluster that answers with any error.

Three classes: the client repeats by itself or the same call is made again (nobody notices), the
transaction is aborted, the producer is replaced. The caller sees the last two alike: the
transaction is lost, `recover` makes the next one possible.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from detector.kafka import (
    Connection,
    KafkaUnusableError,
    TransactionalPublisher,
    TransactionLostError,
)
from detector.kafka import transactions as transacting
from tests.mock_cluster import MockCluster, Request

TICKS, ANOMALIES, GROUP = "ticks", "anomalies", "group"
STEPS = ["after_begin", "after_produce", "after_offsets", "before_commit", "after_commit"]


class Rig:
    """A member of a group and its publisher."""

    def __init__(self, cluster: MockCluster, timeout_s: float = 5.0) -> None:
        self.cluster = cluster
        cluster.create_topic(TICKS)
        cluster.create_topic(ANOMALIES)
        self.steps: list[str] = []
        self.answers: list[str | None] = []
        self.consumer = Consumer({"bootstrap.servers": cluster.bootstrap, "group.id": GROUP})
        self.consumer.assign([TopicPartition(TICKS, 0, 0)])
        self.publisher = TransactionalPublisher(
            Connection(cluster.bootstrap), "group-one", timeout_s, self.steps.append
        )
        assert self.publisher.recover()

    def publish(self) -> None:
        """Publish one record."""
        self.publisher.publish(ANOMALIES, b"key", b"value", (), self.answers.append)

    def commit(self, offset: int = 1) -> None:
        """Commit it with an offset."""
        self.publisher.commit(TICKS, {0: offset}, self.consumer.consumer_group_metadata())

    def settle(self) -> None:
        """Wait until the record is acknowledged by the broker."""
        assert self.publisher.flush(10.0) == 0

    @property
    def producer(self) -> Any:
        """The client's producer in use."""
        return self.publisher._producer


@pytest.fixture
def rig(mock_cluster: MockCluster) -> Iterator[Rig]:
    """A member whose transactions are possible."""
    rig = Rig(mock_cluster)
    yield rig
    rig.publisher.close(0.0)
    rig.consumer.close()


def test_a_transaction_goes_through_its_steps_and_acknowledges_at_its_end(rig: Rig) -> None:
    """Nothing is acknowledged before the commit; the steps come in order."""
    rig.publish()
    rig.settle()
    assert rig.answers == []
    assert rig.publisher.dirty
    rig.commit()
    assert rig.answers == [None]
    assert not rig.publisher.dirty
    assert rig.steps == STEPS


REPEATED = [
    (Request.ADD_PARTITIONS_TO_TXN, KafkaError.COORDINATOR_LOAD_IN_PROGRESS),
    (Request.ADD_PARTITIONS_TO_TXN, KafkaError.CONCURRENT_TRANSACTIONS),
    (Request.ADD_OFFSETS_TO_TXN, KafkaError.NOT_COORDINATOR),
    (Request.ADD_OFFSETS_TO_TXN, KafkaError.COORDINATOR_NOT_AVAILABLE),
    (Request.TXN_OFFSET_COMMIT, KafkaError.COORDINATOR_LOAD_IN_PROGRESS),
    (Request.TXN_OFFSET_COMMIT, KafkaError.NOT_COORDINATOR),
    (Request.END_TXN, KafkaError.COORDINATOR_NOT_AVAILABLE),
    (Request.END_TXN, KafkaError.NOT_COORDINATOR),
    (Request.PRODUCE, KafkaError.NOT_LEADER_FOR_PARTITION),
    (Request.PRODUCE, KafkaError.KAFKA_STORAGE_ERROR),  # a broker's disk is full or broken
]


@pytest.mark.parametrize(("request_", "code"), REPEATED)
def test_errors_that_pass_are_not_noticed(rig: Rig, request_: Request, code: int) -> None:
    """A coordinator or leader that is moving: the transaction is committed all the same."""
    producer = rig.producer
    rig.cluster.fail(request_, code, code)
    rig.publish()
    rig.commit()
    assert rig.answers == [None]
    assert rig.producer is producer


ABORTED = [
    (Request.TXN_OFFSET_COMMIT, KafkaError.ILLEGAL_GENERATION),
    (Request.TXN_OFFSET_COMMIT, KafkaError.UNKNOWN_MEMBER_ID),
    (Request.TXN_OFFSET_COMMIT, KafkaError.FENCED_INSTANCE_ID),
    (Request.ADD_OFFSETS_TO_TXN, KafkaError.GROUP_AUTHORIZATION_FAILED),
    (Request.ADD_PARTITIONS_TO_TXN, KafkaError.TOPIC_AUTHORIZATION_FAILED),
]


@pytest.mark.parametrize(("request_", "code"), ABORTED)
def test_errors_that_need_an_abort_lose_the_transaction(
    rig: Rig, request_: Request, code: int
) -> None:
    """It is aborted by the same producer; nothing of it is acknowledged, the next one commits."""
    producer = rig.producer
    rig.cluster.fail(request_, code)
    with pytest.raises(TransactionLostError):
        lose(rig)
    assert None not in rig.answers
    assert rig.publisher.recover()
    assert rig.producer is producer
    rig.answers.clear()
    rig.publish()
    rig.commit()
    assert rig.answers == [None]


FATAL = [
    (Request.ADD_OFFSETS_TO_TXN, KafkaError.INVALID_PRODUCER_EPOCH),
    (Request.END_TXN, KafkaError.INVALID_PRODUCER_EPOCH),
    (Request.ADD_PARTITIONS_TO_TXN, KafkaError.PRODUCER_FENCED),
    (Request.END_TXN, KafkaError.INVALID_TXN_STATE),
]


@pytest.mark.parametrize(("request_", "code"), FATAL)
def test_a_fenced_producer_is_replaced(rig: Rig, request_: Request, code: int) -> None:
    """Another one, with the same name, takes its place; the daemon's connection lives on."""
    producer = rig.producer
    rig.cluster.fail(request_, code)
    with pytest.raises(TransactionLostError):
        lose(rig)
    assert rig.publisher.recover()
    assert rig.producer is not producer
    assert rig.publisher.health.fatal is None
    rig.answers.clear()
    rig.publish()
    rig.commit()
    assert rig.answers == [None]


def lose(rig: Rig) -> None:
    """Publish and commit; a producer that is fenced at once says so at the one or the other."""
    rig.publish()
    rig.commit()


def test_a_commit_without_an_answer_is_given_up_and_the_producer_replaced(
    mock_cluster: MockCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody knows what became of it: its producer must not be used again."""
    monkeypatch.setattr(transacting, "_CALL_S", 0.2)
    rig = Rig(mock_cluster, timeout_s=1.0)
    rig.publish()
    rig.settle()
    producer = rig.producer
    mock_cluster.go_down()
    group = rig.consumer.consumer_group_metadata()
    with pytest.raises(TransactionLostError):
        rig.publisher.commit(TICKS, {0: 1}, group)
    mock_cluster.come_back()
    assert rig.publisher.recover()
    assert rig.producer is not producer
    rig.publish()
    rig.commit()
    assert rig.answers == [None]
    rig.publisher.close(0.0)
    rig.consumer.close()


def test_recovering_waits_for_brokers_and_can_be_stopped(mock_cluster: MockCluster) -> None:
    """Without a broker it goes on asking, with the same producer, until it is told to stop."""
    publisher = TransactionalPublisher(Connection(mock_cluster.bootstrap), "group-one", 5.0)
    mock_cluster.go_down()
    asked = iter(range(100))
    assert not publisher.recover(stop=lambda: next(asked) > 2)
    mock_cluster.come_back()
    assert publisher.recover()
    publisher.close(0.0)


def test_a_right_that_is_missing_is_named(mock_cluster: MockCluster) -> None:
    """Waiting would not help: the refusal names the transactional id."""
    mock_cluster.fail(Request.INIT_PRODUCER_ID, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED)
    publisher = TransactionalPublisher(Connection(mock_cluster.bootstrap), "group-one", 5.0)
    with pytest.raises(KafkaUnusableError, match="group-one"):
        publisher.recover()
    publisher.close(0.0)


def test_a_timeout_beyond_the_brokers_names_its_key(mock_cluster: MockCluster) -> None:
    """Asking again would be in vain."""
    mock_cluster.fail(Request.INIT_PRODUCER_ID, KafkaError.INVALID_TRANSACTION_TIMEOUT)
    publisher = TransactionalPublisher(Connection(mock_cluster.bootstrap), "group-one", 5.0)
    with pytest.raises(KafkaUnusableError, match=r"commit\.transaction_timeout_ms = 5000"):
        publisher.recover()
    publisher.close(0.0)


def test_a_record_refused_for_good_is_told_and_loses_the_transaction(rig: Rig) -> None:
    """A record that is too large is told to its sender; the transaction cannot be committed."""
    rig.cluster.fail(Request.PRODUCE, KafkaError.MSG_SIZE_TOO_LARGE)
    rig.publish()
    with pytest.raises(TransactionLostError):
        rig.commit()
    assert len(rig.answers) == 1
    assert "TOO_LARGE" in str(rig.answers[0])
    assert rig.publisher.recover()


def test_a_transaction_that_follows_another_at_once_is_tried_again_soon(
    mock_cluster: MockCluster,
) -> None:
    """The client's usual pause is longer than a transaction takes; a user's own is kept."""
    for own, wanted in ({}, 2), ({"retry.backoff.ms": "50"}, "50"):
        publisher = TransactionalPublisher(Connection(mock_cluster.bootstrap, "x", own), "id", 5.0)
        assert publisher._properties["retry.backoff.ms"] == wanted
        publisher.close(0.0)


def test_closing_aborts_what_is_open(rig: Rig) -> None:
    """What was not committed is told, and is not committed by the end."""
    rig.publish()
    rig.settle()
    assert rig.publisher.close(1.0) == 1
    assert rig.answers == []


def test_under_load_a_transaction_stays_open_for_several_commits_time(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More work that waits goes into it; without any, decision does not ask."""
    now = 100.0
    monkeypatch.setattr(transacting.time, "monotonic", lambda: now)
    publisher = cast("Any", rig.publisher)
    assert not publisher.overdue, "nothing is open"
    publisher._last_commit_s, publisher._open_since = 0.25, now
    now = 100.9
    assert not publisher.overdue
    now = 101.0
    assert publisher.overdue
    publisher._last_commit_s = 3.0
    now = 101.2
    assert not publisher.overdue
    now = 101.3
    assert publisher.overdue, "a good part of the cluster's patience of 5 s is over"
    publisher._open_since = None
