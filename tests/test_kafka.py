"""The edge to Kafka where no broker is needed: what it does while Kafka does not answer."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition
from typer.testing import CliRunner

from detector.cli import app
from detector.kafka import Connection, Place, Publisher, TickConsumer
from detector.kafka import consumer as consuming
from detector.kafka.consumer import place_of
from detector.replaying import ReplayRequest
from tests.conftest import TopicFactory
from tests.integration.kafka_reading import committed_offsets, produce_all
from tests.running import wait_until

NOBODY = Connection("127.0.0.1:1")


class Nothing:
    """An assignment that does nothing."""

    def assigned(self, partitions: list[int]) -> None:
        """Take note."""

    revoked = lost = assigned


class StuckClient:
    """A client whose synchronous commit ends when told to, or with an error."""

    def __init__(self, error: KafkaException | None = None) -> None:
        self.error = error
        self.answered = threading.Event()

    def commit(self, **_: object) -> None:
        """Wait for the coordinator."""
        if self.error is not None:
            raise self.error
        self.answered.wait(30.0)

    close = commit


def consumer_with(client: StuckClient) -> TickConsumer:
    """Return a consumer that commits through the client."""
    consumer = TickConsumer(NOBODY, "group", "ticks", Nothing())
    consumer.close()
    replaced: Any = consumer
    replaced._consumer = client
    return consumer


def test_commit_that_fails_says_why() -> None:
    """What the client refuses at once is told."""
    refused = KafkaException(KafkaError(KafkaError.REBALANCE_IN_PROGRESS))
    error = consumer_with(StuckClient(refused)).commit({0: 5})
    assert "rebalance in progress" in (error or "")


class Leaving:
    """Commits what it was told when its partitions go."""

    def __init__(self) -> None:
        self.consumer: TickConsumer | None = None
        self.had: list[int] = []

    def assigned(self, partitions: list[int]) -> bool:
        """Take note."""
        self.had += partitions
        return False

    def revoked(self, partitions: list[int]) -> None:
        """Commit the second offset of each."""
        assert self.consumer is not None
        assert self.consumer.commit(dict.fromkeys(partitions, 2)) is None

    lost = revoked


@pytest.mark.parametrize("member", [{}, {"group.instance.id": "one"}])
def test_what_is_committed_while_leaving_arrives(
    kafka_bootstrap: str, topic_factory: TopicFactory, member: dict[str, str]
) -> None:
    """A commit from within the last revocation is in force once the consumer is closed."""
    topic = topic_factory("ticks", partitions=2)
    produce_all(kafka_bootstrap, topic, [(b"%d" % i, b"tick") for i in range(40)])
    leaving = Leaving()
    connection = Connection(kafka_bootstrap, "test", properties=member)
    consumer = leaving.consumer = TickConsumer(connection, topic, topic, leaving)
    consumer.subscribe()
    wait_until(lambda: consumer.fetch(100, 0.01) is not None and len(leaving.had) == 2)
    assert consumer.close()
    assert committed_offsets(kafka_bootstrap, topic, topic, 2) == [2, 2]


def test_leaving_without_an_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that cannot be left holds up an orderly end for a short time only."""
    monkeypatch.setattr(consuming, "_LEAVE_WITHIN_S", 0.05)
    client = StuckClient()
    consumer = consumer_with(client)
    assert not consumer.close()
    client.answered.set()
    assert consumer.close()


def test_bug_while_leaving_is_raised_to_the_caller() -> None:
    """What a callback raises while the group is left does not vanish with its thread."""
    error = KafkaException(KafkaError(KafkaError._STATE))
    with pytest.raises(KafkaException):
        consumer_with(StuckClient(error)).close()


class LeavingClient:
    """Hands over one message, then has its partition taken away while it waits for others."""

    def __init__(self) -> None:
        self.consumer: TickConsumer | None = None
        self.calls = 0

    def consume(self, most: int, wait_s: float) -> list[Any]:
        """The message, then none, but a rebalance."""
        del most, wait_s
        self.calls += 1
        if self.calls == 1:
            return [Read(0, 7), Read(1, 3)]
        assert self.consumer is not None
        self.consumer._on_revoke(cast("Any", None), [TopicPartition("ticks", 0)])
        return []


class Read:
    """A message as the client hands it over."""

    def __init__(self, partition: int, offset: int) -> None:
        self._place = partition, offset

    def error(self) -> None:
        """None: it was read."""

    def partition(self) -> int:
        """Partition."""
        return self._place[0]

    def offset(self) -> int:
        """Offset."""
        return self._place[1]

    def value(self) -> bytes:
        """Value."""
        return b"tick"


def test_messages_of_a_partition_that_goes_during_their_fetch_are_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What was taken just before a revocation is the next owner's: it would be told twice."""
    client = LeavingClient()
    consumer = client.consumer = consumer_with(cast("Any", client))
    for name in ("partition", "offset"):
        monkeypatch.setattr(consuming, f"_{name.upper()}", getattr(Read, name))
    monkeypatch.setattr(consuming, "Message", Read)
    assert [(part.partition, part.offsets.tolist()) for part in consumer.fetch(10, 0.0)] == [
        (1, [3])
    ]


def test_room_shrinks_with_what_is_not_acknowledged() -> None:
    """Room is what the producer's queue takes without waiting, as configured."""
    publisher = Publisher(NOBODY, **{"queue.buffering.max.messages": 3})
    try:
        # What the client tells of the broker that is not there takes room too, until it is served.
        wait_until(lambda: publisher.room == 3)
        publisher.publish("anomalies", None, b"x")
        wait_until(lambda: publisher.room == 2)
    finally:
        publisher.close(0.0)


def test_replay_takes_files_as_a_shell_lists_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files after the first need no option of their own: `--ticks *.dbn.zst`."""
    asked: list[ReplayRequest] = []

    def take(request: ReplayRequest, *_: object) -> dict[str, float]:
        asked.append(request)
        return {"ticks": 0, "messages": 0, "seconds": 0.0, "behind_s": 0.0}

    monkeypatch.setattr("detector.replaying.run_replay", take)
    result = CliRunner().invoke(app, ["replay", "--ticks", "a.dbn", "b.dbn", "--topic", "t"])
    assert result.exit_code == 0, result.output
    assert asked[0].files == (Path("a.dbn"), Path("b.dbn"))


def test_where_a_group_stands_is_within_what_is_retained() -> None:
    """An offset that is gone or beyond the end is replaced, and the place says what that skips."""
    assert place_of(20, 10, 30) == Place(10, 20, committed=True)
    gone, beyond = place_of(20_000, 30_000, 40_000), place_of(47_173, 0, 42_173)
    assert (gone.next_offset, beyond.next_offset) == (30_000, 42_173)
    assert "10,000 messages from offset 20000 on are gone" in gone.note
    assert "47173 lies beyond the end" in beyond.note
