"""One run of a fault: topics, load, daemons and, at the end, the verdict.

The load goes on until the fault is through; then everything sent must be processed and committed
by daemons left in peace, which are ended in order before the topics are judged.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from detector.events import EpisodePolicy
from detector.pipeline import PipelineSpec
from tests.faults.feed import (
    INSTRUMENT_CAP,
    LETTER_LIMIT_BYTES,
    MESSAGE_LIMIT_BYTES,
    Feed,
    FeedFormat,
)
from tests.faults.members import FaultError, Member
from tests.faults.proxy import Proxy
from tests.faults.verifier import (
    Delivery,
    Verdict,
    event_record,
    expected_records,
    judge,
    letter_record,
    read_all,
)
from tests.kafka_broker import KafkaBroker

PARTITIONS: Final = 3
RATE: Final = 1500.0
CAUGHT_UP_WITHIN_S: Final = 60.0
SESSION_S: Final = 2.5
POLL_S: Final = 4.0
TRANSACTION_S: Final = 3.0
QUIET_S: Final = 1.0
UPDATE_S: Final = 0.05
_ANSWER_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where runs happen: a broker, the proxy before its second listener, and a model."""

    broker: KafkaBroker
    proxy: Proxy
    model: Path
    folder: Path


@dataclass(slots=True)
class Report:
    """What a run did and what came of it."""

    fault: str
    seed: int
    delivery: Delivery
    times: int = 0
    kills: int = 0
    rebalances: int = 0
    messages: int = 0
    seconds: float = 0.0
    events: Verdict | None = None
    letters: Verdict | None = None
    ended: list[str] = field(default_factory=list)  # daemons that ended as they should not
    lives: int = 0

    def violations(self) -> dict[str, dict[str, int]]:
        """Return what the guarantee forbids, by topic."""
        assert self.events is not None
        assert self.letters is not None
        found = {
            "events": self.events.violations(self.delivery),
            "letters": self.letters.violations(self.delivery),
        }
        return {topic: wrong for topic, wrong in found.items() if wrong}


class Load:
    """Sends a feed at a rate, in a thread of its own, until stopped."""

    def __init__(self, bootstrap: str, topic: str, feed: Feed, rate: float) -> None:
        self._topic, self._feed, self._rate = topic, feed, rate
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "message.timeout.ms": 0,
                "message.max.bytes": 2 * MESSAGE_LIMIT_BYTES,
                "linger.ms": 5,
                "reconnect.backoff.max.ms": 500,
                "log_level": 0,
            }
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name="load", daemon=True)
        self._refused: list[str] = []
        self.sent = 0

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send no more, and wait until all that was sent is on the topic."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join(_ANSWER_S)
        left = self._producer.flush(_ANSWER_S)
        if left or self._refused:
            raise FaultError(f"the load: {left} unsent, refused: {self._refused[:3]}")

    def _send(self) -> None:
        began = time.monotonic()
        for message in self._feed.messages():
            while self.sent > (time.monotonic() - began) * self._rate:
                if self._stop.wait(0.01):
                    return
            while not self._stop.is_set():
                try:
                    self._producer.produce(
                        self._topic,
                        message.value,
                        message.key,
                        message.partition,
                        on_delivery=self._delivered,
                    )
                except BufferError:
                    self._producer.poll(0.1)
                else:
                    self.sent += 1
                    break
            if self.sent % 50 == 0:
                self._producer.poll(0)
            if self._stop.is_set():
                return

    def _delivered(self, error: object, _: object) -> None:
        if error is not None:
            self._refused.append(str(error))


class FaultRun:
    """One fault under load: what the fault may do, and the verdict.

    Parameters
    ----------
    place
        Broker, proxy, model.
    fault, seed, delivery
        What the report says; the seed fixes the feed and all that is drawn.
    fmt
        Format of the messages.
    proxied
        Whether daemons reach the broker through the proxy.
    settings
        Properties of the daemons' Kafka clients on top of the usual ones.
    """

    def __init__(
        self,
        place: Place,
        fault: str,
        seed: int,
        delivery: Delivery,
        fmt: FeedFormat,
        *,
        proxied: bool = False,
        settings: Mapping[str, str] | None = None,
        rate: float = RATE,
    ) -> None:
        self.place = place
        self.rng = random.Random(seed)  # noqa: S311
        self.report = Report(fault, seed, delivery)
        self._format, self._settings = fmt, dict(settings or {})
        self._bootstrap = place.proxy.bootstrap if proxied else place.broker.bootstrap
        name = f"{fault}-{uuid.uuid4().hex[:8]}"
        self.folder = place.folder / name
        self.folder.mkdir(parents=True)
        self.ticks, self.anomalies = f"ticks-{name}", f"anomalies-{name}"
        self.dead_letters, self.state, self.group = f"dlq-{name}", f"state-{name}", f"group-{name}"
        self._create_topics()
        feed = Feed(seed, fmt, PARTITIONS)
        self.load = Load(place.broker.bootstrap, self.ticks, feed, rate)
        self.members: dict[str, Member] = {}
        self._looking = Consumer(
            {"bootstrap.servers": place.broker.bootstrap, "group.id": self.group, "log_level": 0}
        )

    def member(self, name: str) -> Member:
        """Return the member of that name; it is made, not started, where it is new."""
        if name not in self.members:
            self.members[name] = Member(name, self.folder, self._config(name))
        return self.members[name]

    def nap(self, least_s: float, most_s: float) -> None:
        """Let a random time pass."""
        time.sleep(self.rng.uniform(least_s, most_s))

    def settle(self) -> None:
        """Stop the load, wait until all is processed and committed, end every daemon in order."""
        self.load.stop()
        self.report.messages = self.load.sent
        deadline = time.monotonic() + CAUGHT_UP_WITHIN_S
        while not self._caught_up():
            self._mend()
            if time.monotonic() > deadline:
                lag, running = self._lag_if_known(), [m for m in self.members.values() if m.alive]
                logs = "\n".join(f"{m.name}:\n{m.life.dump()}" for m in running)
                raise FaultError(f"not caught up in {CAUGHT_UP_WITHIN_S} s: {lag}\n{logs}")
            time.sleep(0.2)
        for member in self.members.values():
            if member.alive and member.life.stop() != 0:
                self.note_end(member, "after SIGTERM")

    def judge(self) -> Report:
        """Compare the topics with what the ticks must have led to."""
        bootstrap, report = self.place.broker.bootstrap, self.report
        spec = PipelineSpec(
            topic=self.ticks,
            max_instruments=INSTRUMENT_CAP,
            policy=EpisodePolicy(quiet_s=QUIET_S, update_interval_s=UPDATE_S),
        )
        messages = read_all(bootstrap, self.ticks, PARTITIONS)
        events, letters = expected_records(messages, self.place.model, self._format, spec)
        seen = read_all(bootstrap, self.anomalies, PARTITIONS)
        report.events = judge(events, [event_record(orjson.loads(m.value() or b"")) for m in seen])
        found = read_all(bootstrap, self.dead_letters, 1)
        report.letters = judge(letters, [letter_record(message) for message in found])
        report.lives = sum(len(member.lives) for member in self.members.values())
        return report

    def close(self) -> None:
        """Leave no process behind."""
        with contextlib.suppress(FaultError):
            self.load.stop()
        for member in self.members.values():
            member.close()
        self._looking.close()

    def _mend(self) -> None:
        """Start again who ended by himself, as a supervisor does; start one where none runs."""
        members = list(self.members.values())
        for member in members:
            if member.lives and not member.alive and not member.life.ended:
                self.note_end(member)
                member.start()
        if not any(member.alive for member in members):
            members[0].start()

    def note_end(self, member: Member, when: str = "by itself") -> None:
        """Record that a daemon ended as it should not."""
        life = member.life
        last = life.tail(1)[:300]
        self.report.ended.append(
            f"{member.name} ended {when} with {life.process.returncode}, {life.log_path}: {last}"
        )

    def _lag(self) -> list[tuple[int, int]]:
        """Committed offset and end of each partition."""
        places = [TopicPartition(self.ticks, p) for p in range(PARTITIONS)]
        ends = [self._looking.get_watermark_offsets(p, timeout=5)[1] for p in places]
        committed = self._looking.committed(places, timeout=5)
        return [(max(0, p.offset), end) for p, end in zip(committed, ends, strict=True)]

    def _lag_if_known(self) -> list[tuple[int, int]]:
        """Return the same, or nothing while a broker that was started again does not know it."""
        try:
            return self._lag()
        except KafkaException:
            return []

    def _caught_up(self) -> bool:
        try:
            return all(committed == end for committed, end in self._lag())
        except KafkaException:  # the broker is about to be there again
            return False

    def _create_topics(self) -> None:
        admin = AdminClient({"bootstrap.servers": self.place.broker.bootstrap})
        limit = {"max.message.bytes": str(LETTER_LIMIT_BYTES)}
        topics = [
            NewTopic(self.ticks, PARTITIONS, 1),
            NewTopic(self.anomalies, PARTITIONS, 1),
            NewTopic(self.dead_letters, 1, 1, config=limit),
            NewTopic(self.state, PARTITIONS, 1, config={"cleanup.policy": "compact"}),
        ]
        for created in admin.create_topics(topics).values():
            created.result(_ANSWER_S)

    def _config(self, name: str) -> str:
        properties = {
            "group.instance.id": name,
            "session.timeout.ms": "6000",
            "heartbeat.interval.ms": "500",
            "max.poll.interval.ms": "30000",
            "reconnect.backoff.max.ms": "500",
            **self._settings,
        }
        lines = "\n".join(f'"{key}" = "{value}"' for key, value in properties.items() if value)
        return f"""
delivery = "{self.report.delivery}"
[kafka]
bootstrap_servers = "{self._bootstrap}"
group_id = "{self.group}"
[kafka.properties]
{lines}
[topics]
ticks = "{self.ticks}"
anomalies = "{self.anomalies}"
dead_letters = "{self.dead_letters}"
state = "{self.state}"
[input]
format = "{self._format}"
[model]
path = "{self.place.model}"
watch_s = 0
[features]
max_instruments = {INSTRUMENT_CAP}
[episodes]
quiet_s = {QUIET_S}
update_interval_s = {UPDATE_S}
[state]
keep = true
snapshot_interval_s = 1.0
[commit]
interval_ms = 100
transaction_timeout_ms = {round(TRANSACTION_S * 1000)}
[http]
port = 0
"""


@contextlib.contextmanager
def fault_run(run: FaultRun) -> Iterator[FaultRun]:
    """Let the fault happen under load; afterwards settle, and leave no process behind."""
    began = time.monotonic()
    try:
        run.load.start()
        yield run
        run.settle()
    finally:
        run.close()
        run.report.seconds = time.monotonic() - began
