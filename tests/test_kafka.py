"""The edge to Kafka where no broker is needed: what it does while Kafka does not answer."""

from __future__ import annotations

import logging
import sys
import threading
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, KafkaException, Message, TopicPartition
from typer.testing import CliRunner

from detector.cli import app
from detector.kafka import Connection, Place, Publisher, TickConsumer, read_state
from detector.kafka import consumer as consuming
from detector.kafka.connection import topic_settings
from detector.kafka.consumer import place_of
from detector.replaying import ReplayRequest
from tests.conftest import TopicFactory
from tests.integration.kafka_reading import committed_offsets, produce_all
from tests.mock_cluster import MockCluster, Request
from tests.running import Tape, tapewatch, wait_until

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


def test_records_wait_for_a_broker_whose_disk_takes_nothing(mock_cluster: MockCluster) -> None:
    """A full disk of a broker is no refusal: records are sent again until they are acknowledged."""
    mock_cluster.create_topic("anomalies")
    mock_cluster.fail(Request.PRODUCE, *[KafkaError.KAFKA_STORAGE_ERROR] * 5)
    answers: list[str | None] = []
    with Publisher(Connection(mock_cluster.bootstrap)) as publisher:
        for i in range(3):
            publisher.publish("anomalies", b"key", b"%d" % i, (), answers.append)
        assert publisher.flush(30.0) == 0
        wait_until(lambda: len(answers) == 3)
        assert publisher.health.fatal is None
    assert answers == [None] * 3


def test_replay_without_a_broker_says_so_in_its_own_words(tape: Tape) -> None:
    """The client's lines come through the log, once in a while; the command's own word is last."""
    done = tapewatch("replay", "--bootstrap", "127.0.0.1:1", "--ticks", tape.live)
    assert done.returncode == 1
    lines = done.stderr.strip().splitlines()
    assert lines[-1].startswith("no broker answered at 127.0.0.1:1 within 15 s")
    client = [line for line in lines if "FAIL" in line]
    assert len(client) <= 2
    assert not any(line.startswith(("FAIL", "%")) for line in client)


def test_a_check_of_the_configuration_shows_no_line_of_the_client(tmp_path: Path) -> None:
    """No broker is waited for, so none that is missing is complained about."""
    path = tmp_path / "tapewatch.toml"
    path.write_text('[kafka]\nbootstrap_servers = "127.0.0.1:1"\n')
    done = tapewatch("config", "check", "--config", path)
    assert (done.returncode, done.stderr) == (0, "")


PROPERTIES = {
    "auto.offset.reset": "earliest",
    "fetch.min.bytes": "1",
    "group.instance.id": "one",
    "heartbeat.interval.ms": "500",
    "max.poll.interval.ms": "6000",
    "partition.assignment.strategy": "range",
    "session.timeout.ms": "5000",
    "batch.size": "100000",
    "compression.type": "lz4",
    "linger.ms": "1",
    "socket.timeout.ms": "5000",
}
"""Of members, of consumers, of producers, and of all."""


def test_each_client_is_given_its_own_properties_only(caplog: pytest.LogCaptureFixture) -> None:
    """The client has nothing to say about properties that are not for its kind."""
    with caplog.at_level(logging.INFO, logger="librdkafka"):
        connection = Connection("127.0.0.1:1", properties=PROPERTIES)
        Publisher(connection).close(0.0)
        TickConsumer(connection, "group", "ticks", Nothing()).close()
        with pytest.raises(TimeoutError):
            read_state(connection, "state", [0], lambda *_: None, 0.2)
        assert topic_settings(connection, "ticks", 0.2) == {}
        wait_until(lambda: "FAIL" in caplog.text)
    assert "CONFWARN" not in caplog.text


def test_who_only_reads_is_no_member_of_the_group() -> None:
    """A reader of state or events takes neither the member's name nor its sessions."""
    reader = Connection("127.0.0.1:1", properties=PROPERTIES).for_reader()
    given = {name: value for name, value in PROPERTIES.items() if name in reader}
    assert set(given) == {"auto.offset.reset", "fetch.min.bytes", "socket.timeout.ms"}


class RefusedClient:
    """A client of the newer group protocol whose name another member has."""

    def __init__(self, answers: list[str]) -> None:
        self.answers = answers
        self.closed = False

    def consume(self, *_: object) -> list[Any]:
        """The fatal error, whose text alone says what it is about."""
        text = self.answers.pop(0) if self.answers else ""
        return [Message(error=KafkaError(KafkaError._FATAL, text))] if text else []

    def consumer_group_metadata(self) -> bytes:
        """As the client writes it: of the second generation."""
        return b"CGMDv2:" + (2).to_bytes(4, sys.byteorder) + b"group\0"

    def subscribe(self, *_: object, **__: object) -> None:
        """Join."""

    def close(self) -> None:
        """Leave."""
        self.closed = True


NEWER = Connection("127.0.0.1:1", properties={"group.protocol": "consumer"})


class Told(Nothing):
    """An assignment that keeps what it is told."""

    def __init__(self) -> None:
        self.heard: list[list[int]] = []

    def assigned(self, partitions: list[int]) -> None:
        """Take note."""
        self.heard.append(partitions)


def test_a_name_that_is_taken_is_told_and_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fatal error of a name in use is not the end: a new client joins in its place."""
    told = Told()
    consumer: Any = TickConsumer(NEWER, "group", "ticks", told)
    consumer.close()
    refused = RefusedClient([f"Fatal error: {KafkaError(KafkaError.UNRELEASED_INSTANCE_ID).str()}"])
    consumer._consumer, consumer._told = refused, True
    assert consumer.fetch(10, 0.0) == []
    assert consumer.name_taken
    assert consumer.health.fatal is None
    follows = RefusedClient([])
    monkeypatch.setattr(consuming, "Consumer", lambda _: follows)
    consumer.rejoin()
    assert refused.closed
    assert not consumer.name_taken
    consumer.fetch(10, 0.0)
    consumer.fetch(10, 0.0)
    assert told.heard == [[]], "a member without partitions, told once"


def test_other_fatal_errors_stay_fatal() -> None:
    """A member that was fenced is not asked for again."""
    consumer: Any = TickConsumer(NEWER, "group", "ticks", Told())
    consumer.close()
    told = (
        "Fatal error: Broker: Static consumer fenced by other consumer with same group.instance.id"
    )
    consumer._consumer = RefusedClient([told])
    consumer.fetch(10, 0.0)
    assert consumer.health.fatal is not None
    assert "FENCED_INSTANCE_ID" in str(consumer.health.fatal)
    assert "give each daemon its own" in str(consumer.health.fatal)
    assert not consumer.name_taken


class SeekingClient:
    """Refuses to read where it knows that a partition is gone; tells of it at the next poll."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.sought: list[tuple[int, int]] = []
        self.paused: list[int] = []

    def seek(self, place: TopicPartition) -> None:
        """Go to an offset of any partition but 0."""
        if place.partition == 0:
            raise KafkaException(KafkaError(self.code))
        self.sought.append((place.partition, place.offset))

    def pause(self, places: list[TopicPartition]) -> None:
        """Keep which."""
        self.paused += [place.partition for place in places]

    def resume(self, places: list[TopicPartition]) -> None:
        """No longer."""
        self.paused = [p for p in self.paused if p not in {place.partition for place in places}]


def test_a_partition_that_cannot_be_read_yet_stays_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of a member that was fenced refuses to seek before it tells that it was."""
    monkeypatch.setattr(consuming, "_SEEK_WITHIN_S", 0.0)
    client = SeekingClient(KafkaError._STATE)
    consumer = consumer_with(cast("Any", client))
    consumer.hold([0, 1])
    assert consumer.go_to({0: 5, 1: 7}) == [0]
    assert client.sought == [(1, 7)]
    assert consumer.held == {0}
    assert client.paused == [0]


def test_any_other_refusal_to_read_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a state that passes is waited for."""
    monkeypatch.setattr(consuming, "_SEEK_WITHIN_S", 0.0)
    consumer = consumer_with(cast("Any", SeekingClient(KafkaError._INVALID_ARG)))
    consumer.hold([0])
    with pytest.raises(KafkaException):
        consumer.go_to({0: 5})
