"""The daemon with doubles at both ends: what is committed when, and what stops it.

The consumer is a script of fetches, the sink acknowledges at once, late, never, or refuses. The
real Kafka is on the other side in tests/integration and tests/faults.
"""

from __future__ import annotations

import gc
import math
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Self, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from structlog.testing import capture_logs

from detector.daemon import _BEAT_LIMIT_S, Daemon, DaemonFailedError, Settings
from detector.drift import Drift
from detector.events import AnomalyEvent, Source
from detector.kafka import Acknowledge, Health, PartitionMessages
from detector.latents import LatentMessage
from detector.ledger import Ledger
from detector.metrics import Metrics
from detector.model_changes import ModelChange
from detector.model_watch import LoadedModel
from detector.outbox import Addresses, Outbox
from detector.pipeline import Outcome, Prepared
from detector.scorer import ScoreBlock
from detector.symbols import SymbolMap, unnamed
from detector.ticks import TickBatch, empty_ticks
from detector.wire import Decoded, Rejected
from detector.work import Work
from tests.models import block_of

TOPICS = {"ticks": 1, "anomalies": 1, "anomalies.dlq": 1}
WAIT_S = 30.0


class Message:
    """What the daemon asks of a Kafka message."""

    def __init__(self, offset: int) -> None:
        self.offset = offset

    def timestamp(self) -> tuple[int, int]:
        """Create time, now."""
        return 1, round(time.time() * 1e3)

    def key(self) -> bytes:
        """A key to be kept in a dead letter."""
        return b"key"


def part(values: Sequence[bytes], first: int = 0, partition: int = 0) -> PartitionMessages:
    """Messages of one partition with consecutive offsets."""
    offsets = np.arange(first, first + len(values), dtype=np.int64)
    messages = cast("Any", [Message(int(o)) for o in offsets])
    return PartitionMessages(partition, list(values), offsets, messages)


class ScriptedConsumer:
    """Hands over the script, one entry a fetch, then nothing; keeps what was committed."""

    def __init__(self, script: Sequence[list[PartitionMessages]]) -> None:
        self.script = list(script)
        self.health = Health()
        self.health.on_statistics('{"brokers": {"b": {"state": "UP", "nodeid": 1}}}')
        self.assigned_partitions = frozenset({0, 1})
        self.held: set[int] = set()
        self.name_taken = False
        self.rejoins = self.refusals = self.behind = 0
        self.commit_errors = 0
        self.waited_s = 0.0
        self.committed: dict[int, int] = {}
        self.fetches = 0
        self.known: dict[str, int] | None = TOPICS
        self.assignment: Daemon | None = None
        self.during_fetch: Callable[[int], None] = lambda _: None

    def rejoin(self) -> None:
        """Join as a new client, which is refused as often as the test wants."""
        self.rejoins += 1
        self.name_taken = self.rejoins < self.refusals
        if not self.name_taken:
            self.subscribe()

    def topics(self, timeout_s: float) -> dict[str, int]:
        """The cluster's topics, or nobody there."""
        del timeout_s
        if self.known is None:
            raise TimeoutError("nobody there")
        return self.known

    def subscribe(self) -> None:
        """Join."""
        assert self.assignment is not None
        self.assignment.assigned([0, 1])

    def fetch(self, max_messages: int, max_delay_s: float) -> list[PartitionMessages]:
        """The next entry of the script."""
        del max_messages, max_delay_s
        self.fetches += 1
        self.during_fetch(self.fetches)
        if self.script:
            return self.script.pop(0)
        time.sleep(0.002)
        return []

    def commit(self, positions: Mapping[int, int]) -> str | None:
        """Keep the positions."""
        self.committed.update(positions)
        return None

    def lag(self, positions: Mapping[int, int]) -> dict[int, int]:
        """What the test says."""
        return dict.fromkeys(positions, self.behind)

    def close(self) -> bool:
        """Leave."""
        assert self.assignment is not None
        self.assignment.revoked([0, 1])
        return True


class Sink:
    """Acknowledges at once, or what `answer` says: an error, or nothing yet."""

    def __init__(self, answer: Callable[[str, bytes], str | None] = lambda *_: None) -> None:
        self.health = Health()
        self.records: list[tuple[str, bytes | None, bytes | None, dict[str, bytes]]] = []
        self.held: list[Acknowledge] = []
        self.threads: list[threading.Thread] = []
        self.hold = False
        self.room = 0  # without room events are left to the decision thread
        self.answer = answer

    def publish(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        acknowledge: Acknowledge | None = None,
    ) -> None:
        """Keep the record and answer."""
        assert acknowledge is not None
        self.records.append((topic, key, value, dict(headers)))
        self.threads.append(threading.current_thread())
        if self.hold:
            self.held.append(acknowledge)
            return
        acknowledge(self.answer(topic, value or b""))

    def settings_of(self, topic: str) -> Mapping[str, str]:
        """Those of no topic may be known."""
        del topic
        return {}

    def close(self, timeout_s: float = 5.0) -> int:
        """Tell how many were never acknowledged."""
        del timeout_s
        return len(self.held)


class EveryMessageIsATick:
    """A decoder: `bad` is rejected, everything else is one tick."""

    needs_headers = False

    def decode(
        self, values: Sequence[bytes | None], offsets: Any, partition: int, headers: Any = None
    ) -> Decoded:
        """Split the good from the bad."""
        del headers
        bad = [i for i, v in enumerate(values) if v is None or v.startswith(b"bad")]
        good = [i for i in range(len(values)) if i not in bad]
        batch = TickBatch(
            empty_ticks(len(good)), partition, offsets[good], np.zeros(len(good), np.int32)
        )
        return Decoded(batch, [Rejected(i, "invalid_json") for i in bad])


class EveryTickIsAnEvent:
    """A pipeline: each tick leads to one event."""

    def __init__(self) -> None:
        self.symbols = SymbolMap()
        self.released: list[int] = []
        self.finished = 0
        self.scores: tuple[Any, ...] = ()
        self.before_finish: Callable[[], None] = lambda: None
        self.scorer: Any = SimpleNamespace(version="old", model_hash="0" * 64)
        self.steps: list[Any] = []  # offsets finished and models changed, in order

    def prepare(self, batch: TickBatch) -> Prepared:
        """No features."""
        return Prepared(batch, cast("Any", None))

    def finish(self, prepared: Sequence[Prepared]) -> Outcome:
        """An event a tick."""
        self.before_finish()
        self.finished += 1
        self.steps += [(p.batch.partition, int(o)) for p in prepared for o in p.batch.offsets]
        events = tuple(
            event_at(p.batch.partition, int(offset)) for p in prepared for offset in p.batch.offsets
        )
        return Outcome(events, (), self.scores, {}, {})

    def change_model(self, scorer: Any, next_offsets: Mapping[int, int]) -> tuple[Any, ...]:
        """One episode closes in each partition."""
        self.scorer = scorer
        self.steps.append((scorer.version, dict(next_offsets)))
        return tuple(event_at(p, offset) for p, offset in sorted(next_offsets.items()))

    @property
    def model(self) -> tuple[str, str]:
        """Version and hash of what scores."""
        return self.scorer.version, self.scorer.model_hash

    def name(self, partition: int, key: int) -> str:
        """No instrument has a name."""
        del partition
        return unnamed(key)

    def drift(self) -> None:
        """Nothing is known."""

    def tracked(self, partition: int) -> Any:
        """Two instruments in each partition."""
        return np.array([10 * partition, 10 * partition + 1])

    def release(self, partition: int) -> None:
        """Keep what was released."""
        self.released.append(partition)

    def admissions(self, partition: int) -> int:
        """No instruments."""
        del partition
        return 0

    def tracked_instruments(self) -> dict[int, int]:
        """No instruments."""
        return {}

    evictions = open_episodes = tracked_instruments


def event_at(partition: int, offset: int) -> AnomalyEvent:
    """An event of the tick at a place."""
    return AnomalyEvent(
        event_id=f"{offset:032x}",
        episode_id="1" * 32,
        phase="open",
        symbol="X",
        publisher_id=0,
        instrument_id=1,
        ts_event=1,
        score=2.0,
        threshold=1.0,
        severity="major",
        severity_value=2.0,
        stage1_error=1.0,
        stage2_error=1.0,
        stage2_share=0.5,
        raised_by="values",
        top_features=(),
        flags=(),
        model=("m", "a" * 64),
        source=Source("ticks", partition, offset, 0),
        summary=None,
    )


class Rig:
    """A daemon between doubles, run in a thread of its own."""

    def __init__(
        self,
        *script: list[PartitionMessages],
        sink: Sink | None = None,
        pipeline: EveryTickIsAnEvent | None = None,
        latents: str | None = None,
    ) -> None:
        self.consumer = ScriptedConsumer(script)
        self.sink = sink or Sink()
        self.pipeline = pipeline or EveryTickIsAnEvent()
        self.registry = CollectorRegistry()
        self.error: BaseException | None = None

        def consumer(daemon: Daemon) -> Any:
            self.consumer.assignment = daemon
            return self.consumer

        self.daemon = Daemon(
            Settings("ticks", "anomalies", "anomalies.dlq", latents, commit_interval_s=0.01),
            cast("Any", self.pipeline),
            EveryMessageIsATick(),
            consumer,
            cast("Any", self.sink),
            Metrics(self.registry),
        )
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.daemon.run()
        except BaseException as error:  # told to the test
            self.error = error

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.sink.hold = False
        for acknowledge in self.sink.held:
            acknowledge(None)
        self.sink.held.clear()
        self.finish()

    def finish(self) -> None:
        """Stop the daemon and wait for its end."""
        self.daemon.stop()
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive()

    def value(self, name: str, **labels: str) -> float:
        """Return a metric's value."""
        return self.registry.get_sample_value(name, labels) or 0.0


def until(condition: Callable[[], bool]) -> None:
    """Wait until the condition holds; fail if it never does."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.002)


def test_commits_after_acknowledgement() -> None:
    """Offsets are committed once the events are acknowledged, and not before."""
    sink = Sink()
    sink.hold = True
    with Rig([part([b"t"] * 3, 10)], sink=sink) as rig:
        until(lambda: len(sink.held) == 3)
        until(lambda: rig.consumer.fetches > 20)
        assert rig.consumer.committed == {}
        for acknowledge in sink.held:
            acknowledge(None)
        sink.held.clear()
        until(lambda: rig.consumer.committed == {0: 13})
    assert rig.error is None


def test_stop_finishes_what_was_taken_in() -> None:
    """After stop everything fetched is published and committed, and the daemon returns."""
    rig = Rig(*[[part([b"t"] * 5, 5 * i)] for i in range(10)])
    with rig:
        until(lambda: not rig.consumer.script)
        rig.finish()
    assert len(rig.sink.records) == 50
    assert rig.consumer.committed == {0: 50}
    assert rig.error is None


def test_refused_event_stops_the_daemon_uncommitted() -> None:
    """An event that Kafka refuses for good stops the daemon; its offset stays uncommitted."""
    rig = Rig([part([b"t"], 7)], sink=Sink(lambda *_: "MSG_SIZE_TOO_LARGE: too large"))
    with rig:
        until(lambda: not rig.thread.is_alive())
    assert isinstance(rig.error, DaemonFailedError)
    assert "MSG_SIZE_TOO_LARGE" in str(rig.error)
    assert rig.consumer.committed == {}
    assert rig.value("tapewatch_publish_failures_total") == 1


def test_bug_in_the_pipeline_stops_the_daemon() -> None:
    """An unexpected error on the decision thread ends `run` with that error as its cause."""
    rig = Rig([part([b"t"] * 2000, 7)])

    def break_down() -> None:
        raise ZeroDivisionError("a bug")

    rig.pipeline.before_finish = break_down
    with rig:
        until(lambda: not rig.thread.is_alive())
    assert isinstance(rig.error, DaemonFailedError)
    assert isinstance(rig.error.__cause__, ZeroDivisionError)
    assert rig.consumer.committed == {}


def with_room() -> Sink:
    """Return a sink whose queue is empty, so that intake may publish."""
    sink = Sink()
    sink.room = 10_000
    return sink


def test_intake_decides_a_small_micro_batch_while_nothing_is_under_way() -> None:
    """Few ticks are decided where they were taken in, many on the decision thread, in order."""
    script = [[part([b"t"] * 3, 0)], [part([b"t"] * 2000, 3)], [part([b"t"], 2003)]]
    rig = Rig(*script, sink=with_room())
    gate = threading.Event()
    taken: list[threading.Thread] = []

    def finish() -> None:
        taken.append(threading.current_thread())
        if len(taken) == 2:  # the third must queue up behind this one
            gate.wait(WAIT_S)

    rig.pipeline.before_finish = finish
    with rig:
        until(lambda: rig.consumer.fetches >= 4)
        gate.set()
        until(lambda: rig.consumer.committed == {0: 2004})
    assert [thread is rig.thread for thread in taken] == [True, False, False]
    assert [int(r[3]["ce_id"], 16) for r in rig.sink.records] == list(range(2004))


def test_intake_does_not_wait_for_room_in_the_producer() -> None:
    """What intake decided goes to the decision thread when its events would not fit, in order."""
    sink = with_room()
    sink.room = 2
    rig = Rig([part([b"t"] * 3, 0)], [part([b"t"] * 2, 3)], sink=sink)
    decided: list[threading.Thread] = []
    rig.pipeline.before_finish = lambda: decided.append(threading.current_thread())
    with rig:
        until(lambda: rig.consumer.committed == {0: 5})
    assert decided[0] is rig.thread
    assert rig.thread not in sink.threads[:3]
    assert [int(r[3]["ce_id"], 16) for r in sink.records] == [0, 1, 2, 3, 4]


def test_dead_letters_are_left_to_the_decision_thread() -> None:
    """They may be as large as a message: intake does not wait for room for them."""
    with Rig([part([b"bad", b"t"], 0)], sink=with_room()) as rig:
        until(lambda: rig.consumer.committed == {0: 2})
    assert rig.thread not in rig.sink.threads


def test_bug_on_the_intake_thread_stops_the_daemon_too() -> None:
    """An unexpected error in a micro-batch that intake decides ends `run` the same way."""
    rig = Rig([part([b"t"], 7)], sink=with_room())

    def break_down() -> None:
        assert threading.current_thread() is rig.thread
        raise ZeroDivisionError("a bug")

    rig.pipeline.before_finish = break_down
    with rig:
        until(lambda: not rig.thread.is_alive())
    assert isinstance(rig.error, DaemonFailedError)
    assert isinstance(rig.error.__cause__, ZeroDivisionError)
    assert rig.consumer.committed == {}


def test_rejected_message_becomes_a_dead_letter() -> None:
    """A message that cannot be decoded is published byte for byte with its place and reason."""
    rig = Rig([part([b"t", b"bad\x00\xff", b"t"], 40)])
    with rig:
        until(lambda: rig.consumer.committed == {0: 43})
    topic, key, value, headers = next(r for r in rig.sink.records if r[0] == "anomalies.dlq")
    assert (topic, key, value) == ("anomalies.dlq", b"key", b"bad\x00\xff")
    assert headers == {
        "tapewatch_reason": b"invalid_json",
        "tapewatch_topic": b"ticks",
        "tapewatch_partition": b"0",
        "tapewatch_offset": b"41",
    }
    assert rig.value("tapewatch_dead_letters_total") == 1
    assert rig.value("tapewatch_messages_rejected_total", reason="invalid_json") == 1
    assert len(rig.sink.records) == 3


def test_dead_letter_too_large_is_cut_and_says_so() -> None:
    """Where the dead-letter topic refuses a size, the first part goes there with a digest."""
    large = b"bad" + bytes(200_000)
    sink = Sink(lambda _, value: "MSG_SIZE_TOO_LARGE" if len(value) > 100_000 else None)
    with Rig([part([large], 3)], sink=sink) as rig:
        until(lambda: rig.consumer.committed == {0: 4})
    _, _, value, headers = sink.records[-1]
    assert value == large[: 64 * 1024]
    assert headers["tapewatch_truncated_from"] == b"200003"
    assert sink.threads[-1] is rig.thread  # where a refusal is reported nobody may wait
    assert len(headers["tapewatch_sha256"]) == 64
    assert rig.error is None


def test_slow_decision_slows_fetching() -> None:
    """While the decision thread is stuck, only a few micro-batches are taken in."""
    rig = Rig(*[[part([b"t"] * 1100, 1100 * i)] for i in range(12)])
    gate = threading.Event()
    rig.pipeline.before_finish = lambda: cast("None", gate.wait(WAIT_S))
    with rig:
        until(lambda: rig.consumer.fetches >= 4)
        time.sleep(0.3)
        assert rig.consumer.fetches <= 5
        gate.set()
        until(lambda: not rig.consumer.script)
    assert rig.consumer.committed == {0: 12 * 1100}


def test_revocation_finishes_commits_and_forgets() -> None:
    """Before a partition goes, what is under way is published and committed, then forgotten."""
    rig = Rig([part([b"t"] * 4, 0), part([b"t"] * 2, 0, partition=1)])
    seen: dict[int, int] = {}

    def revoke(fetch: int) -> None:
        if fetch == 2:
            rig.daemon.revoked([0])
            seen.update(rig.consumer.committed)

    rig.consumer.during_fetch = revoke
    with rig:
        until(lambda: rig.consumer.fetches > 3)
    assert seen == {0: 4, 1: 2}
    assert 0 in rig.pipeline.released
    assert rig.value("tapewatch_rebalances_total", kind="revoked") >= 1


def test_lost_partition_commits_nothing() -> None:
    """A partition that another member has already is never committed by this one."""
    sink = Sink()
    sink.hold = True
    rig = Rig([part([b"t"] * 4, 0), part([b"t"] * 2, 0, partition=1)], sink=sink)

    def lose(fetch: int) -> None:
        if fetch == 2:
            until(lambda: len(sink.held) == 6)
            rig.daemon.lost([0])

    rig.consumer.during_fetch = lose
    with rig:
        until(lambda: rig.consumer.fetches > 3)
    assert rig.consumer.committed == {1: 2}


def test_a_work_under_way_keeps_the_state_of_a_partition_that_is_lost() -> None:
    """What is being decided is decided with its open episodes; they are forgotten after it."""
    pipeline, order = EveryTickIsAnEvent(), []
    hangs, told = threading.Event(), threading.Event()
    release = pipeline.release

    def hang() -> None:
        hangs.set()
        assert told.wait(WAIT_S)
        time.sleep(0.1)  # of the loss, which comes on the other thread
        order.append("decided")

    def forget(partition: int) -> None:
        if hangs.is_set():
            order.append("released")
        release(partition)

    pipeline.before_finish, pipeline.release = hang, forget  # type: ignore[method-assign]
    # What has a rejected message goes to the decision thread.
    rig = Rig([part([b"t", b"bad"], 0)], pipeline=pipeline)

    def lose(fetch: int) -> None:
        if fetch == 2:
            assert hangs.wait(WAIT_S)
            assert rig.consumer.assignment is not None
            told.set()
            rig.consumer.assignment.lost([0])

    rig.consumer.during_fetch = lose
    with rig:
        until(lambda: len(order) == 2)
        assert order == ["decided", "released"]
    assert rig.error is None


def test_the_lag_is_told_while_nothing_can_be_taken_in() -> None:
    """While decision is stuck the lag that grows is observed, not the one of before."""
    pipeline, goes_on = EveryTickIsAnEvent(), threading.Event()
    pipeline.before_finish = lambda: goes_on.wait(WAIT_S)
    rig = Rig(*([part([b"t", b"bad"], 2 * k)] for k in range(4)), pipeline=pipeline)
    with rig:
        try:
            until(lambda: rig.consumer.fetches == 4 and rig.daemon._waits_since < math.inf)
            rig.consumer.behind = 1234
            until(lambda: rig.value("tapewatch_consumer_lag_messages", partition="0") == 1234)
        finally:
            goes_on.set()


def test_missing_topics_are_named() -> None:
    """Without its topics the daemon refuses to start and says how to create them."""
    rig = Rig()
    rig.consumer.known = {"ticks": 1}
    with rig:
        until(lambda: not rig.thread.is_alive())
    assert isinstance(rig.error, DaemonFailedError)
    assert "anomalies, anomalies.dlq" in str(rig.error)
    assert "tapewatch topics create" in str(rig.error)


def test_unreachable_broker_is_waited_for() -> None:
    """While no broker answers the daemon is alive but not ready, and goes on once one does."""
    rig = Rig([part([b"t"], 0)])
    rig.consumer.known = None
    with rig:
        time.sleep(0.1)
        assert rig.daemon.healthy()[0]
        assert rig.daemon.ready() == (False, "waiting for Kafka and its topics")
        rig.consumer.known = TOPICS
        until(lambda: rig.consumer.committed == {0: 1})
        assert rig.daemon.ready()[0]
        rig.consumer.health.on_statistics('{"brokers": {}}')
        assert not rig.daemon.ready()[0]
    assert not rig.daemon.ready()[0]


def test_a_hung_loop_is_not_ready_at_the_next_scrape() -> None:
    """`tapewatch_ready` is found out when scraped: a loop that hangs cannot tell it any more."""
    rig = Rig([part([b"t"], 0)])
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(fetch: int) -> None:
        if fetch == 3:
            hangs.set()
            assert goes_on.wait(WAIT_S)

    rig.consumer.during_fetch = hang
    assert rig.value("tapewatch_ready") == 0
    with rig:
        try:
            assert hangs.wait(WAIT_S)
            assert rig.value("tapewatch_ready") == 1
            rig.daemon._beat -= _BEAT_LIMIT_S + 1
            ready, reason = rig.daemon.ready()
            assert (ready, rig.value("tapewatch_ready")) == (False, 0)
            assert reason.startswith("the loop has not come round for 3")
        finally:
            goes_on.set()
        until(lambda: rig.value("tapewatch_ready") == 1)
    assert rig.value("tapewatch_ready") == 0


def test_a_hung_decision_is_not_ready_though_intake_still_turns() -> None:
    """Intake that waits for the decision thread is alive, but after 30 s nobody calls it ready."""
    pipeline = EveryTickIsAnEvent()
    hangs, goes_on = threading.Event(), threading.Event()

    def hang() -> None:
        hangs.set()
        assert goes_on.wait(WAIT_S)

    pipeline.before_finish = hang
    # What has a rejected message goes to the decision thread: one in hand, two queued, one waits.
    rig = Rig(*([part([b"t", b"bad"], 2 * k)] for k in range(4)), pipeline=pipeline)
    with rig:
        try:
            assert hangs.wait(WAIT_S)
            until(lambda: rig.consumer.fetches == 4 and rig.daemon._waits_since < math.inf)
            assert rig.daemon.ready()[0]
            rig.daemon._waits_since -= _BEAT_LIMIT_S + 1
            ready, reason = rig.daemon.ready()
            assert (ready, rig.value("tapewatch_ready")) == (False, 0)
            assert reason.startswith("no micro-batch was decided and published for 3")
            rig.consumer.health.on_statistics('{"brokers": {}}')
            assert rig.daemon.ready()[1].startswith("no broker reachable"), "which is why"
            rig.consumer.health.on_statistics('{"brokers": {"b": {"state": "UP", "nodeid": 1}}}')
            assert rig.daemon.healthy()[0]
        finally:
            goes_on.set()
        until(lambda: rig.consumer.committed == {0: 8})
        assert rig.daemon.ready()[0]


def test_unusable_kafka_stops_the_daemon() -> None:
    """An authorisation error is not waited out: the daemon ends and names it."""
    rig = Rig()

    def deny(fetch: int) -> None:
        if fetch == 3:
            from detector.kafka import KafkaUnusableError  # noqa: PLC0415

            rig.consumer.health.fatal = KafkaUnusableError("Kafka: TOPIC_AUTHORIZATION_FAILED")

    rig.consumer.during_fetch = deny
    with rig:
        until(lambda: not rig.thread.is_alive())
    assert "TOPIC_AUTHORIZATION_FAILED" in str(rig.error)


def test_a_name_in_use_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A member whose name the group still has says so, asks again and goes on once it is free."""
    monkeypatch.setattr("detector.daemon._NAME_WAITS_S", (0.01, 0.02))
    rig = Rig([part([b"t"], 0)])
    told: list[str] = []

    def taken(fetch: int) -> None:
        told.append(rig.daemon.ready()[1])
        if fetch == 3:
            rig.consumer.name_taken, rig.consumer.refusals = True, 3
            rig.daemon._partitions.joined = False

    rig.consumer.during_fetch = taken
    rig.consumer.script.insert(0, [])
    rejoin = rig.consumer.rejoin

    def asked() -> None:
        told.append(rig.daemon.ready()[1])
        rejoin()

    monkeypatch.setattr(rig.consumer, "rejoin", asked)
    with rig:
        until(lambda: rig.consumer.rejoins == 3)
        until(lambda: rig.daemon.ready()[0])
        assert rig.daemon.healthy()[0]
    assert [reason for reason in told if not reason.startswith("ready")] == [
        "the group has another member with this group.instance.id, waiting for its end"
    ] * 3
    assert rig.error is None


def test_latency_is_observed_per_event() -> None:
    """Every acknowledged event adds one observation from its record's Kafka timestamp."""
    with Rig([part([b"t"] * 3, 0)]) as rig:
        until(lambda: rig.consumer.committed == {0: 3})
    assert rig.value("tapewatch_tick_to_event_seconds_count") == 3
    assert rig.value("tapewatch_tick_to_event_stale_total") == 0
    assert rig.value("tapewatch_events_total", phase="open", severity="major") == 3


@pytest.mark.parametrize("error", ["TOPIC_AUTHORIZATION_FAILED: no", "INVALID_RECORD: no key"])
def test_a_dead_letter_refused_for_another_reason_is_not_cut(error: str) -> None:
    """A smaller one would be refused as well: the daemon stops, names topic and reason."""
    sink = Sink(lambda topic, _: None if topic == "anomalies" else error)
    rig = Rig([part([b"bad"], 7)], sink=sink)
    with rig:
        until(lambda: not rig.thread.is_alive())
    assert f"anomalies.dlq was refused by Kafka: {error}" in str(rig.error)
    assert len(sink.records) == 1
    assert rig.consumer.committed == {}


def test_dead_letter_with_a_refused_key_goes_without_it() -> None:
    """Where even the cut message is refused, its place and digests are kept, and work goes on."""
    sink = Sink(
        lambda topic, value: "MSG_SIZE_TOO_LARGE" if topic != "anomalies" and value else None
    )
    with Rig([part([b"bad value", b"t"], 3)], sink=sink) as rig:
        until(lambda: rig.consumer.committed == {0: 5})
    letters = [record for record in sink.records if record[0] == "anomalies.dlq"]
    _, key, value, headers = letters[-1]
    assert (key, value) == (None, b"")
    assert headers["tapewatch_offset"] == b"3"
    assert headers["tapewatch_key_truncated_from"] == b"3"
    assert len(headers["tapewatch_key_sha256"]) == 64
    assert rig.error is None


def test_a_cut_dead_letter_may_go_with_large_ones() -> None:
    """Refused for what it went with, even in its smallest form, it is sent again: work goes on."""
    refusals = iter(["MSG_SIZE_TOO_LARGE"] * 10)
    sink = Sink(lambda topic, _: None if topic == "anomalies" else next(refusals, None))
    with Rig([part([b"bad" + bytes(200_000)], 3)], sink=sink) as rig:
        until(lambda: rig.consumer.committed == {0: 4})
    assert rig.error is None


class EveryTickHasALatent(EveryTickIsAnEvent):
    """A pipeline: each tick is scored and has a latent, none is an event."""

    model_hash = "ab" * 32

    def prepare(self, batch: TickBatch) -> Prepared:
        """Every tick is ready."""
        n = len(batch)
        values = np.zeros((n, 1), np.float32)
        return Prepared(batch, block_of(values, np.arange(n, dtype=np.int64) % 2))

    def finish(self, prepared: Sequence[Prepared]) -> Outcome:
        """The latent is the tick's offset."""
        self.finished += 1
        scores = []
        for part in prepared:
            n = len(part.batch)
            found = ScoreBlock(*np.ones((6, n)), np.zeros(n, np.int32))
            latent = part.batch.offsets[:, None].astype(np.float32)
            scores.append(replace(found, latent=latent))
        return Outcome((), tuple(p.block for p in prepared), tuple(scores), {}, {})


def with_latents(*script: list[PartitionMessages], sink: Sink | None = None) -> Rig:
    """A daemon that publishes latents."""
    rig = Rig(*script, sink=sink, pipeline=EveryTickHasALatent(), latents="latents")
    rig.consumer.known = {**TOPICS, "latents": 1}
    return rig


def test_latents_are_one_message_an_instrument_and_keyed() -> None:
    """A micro-batch's latents: a message for each of its instruments, counted with their rows."""
    with with_latents([part([b"t"] * 5, 10)]) as rig:
        until(lambda: rig.consumer.committed == {0: 15})
        found = [LatentMessage.parse(record[2] or b"") for record in rig.sink.records]
        assert [m.rows["offset"].tolist() for m in found] == [[10, 12, 14], [11, 13]]
        assert [m.latent[:, 0].tolist() for m in found] == [[10, 12, 14], [11, 13]]
        assert {record[0] for record in rig.sink.records} == {"latents"}
        assert [record[1] for record in rig.sink.records] == [b"0:0", b"0:1"]
        assert rig.value("tapewatch_latents_total") == 5
        assert rig.value("tapewatch_latent_messages_total") == 2
    assert rig.error is None


def test_latents_are_acknowledged_before_offsets_are_committed() -> None:
    """While one latent message has no answer, nothing of its micro-batch is committed."""
    sink = Sink()
    sink.hold = True
    with with_latents([part([b"t"] * 3, 10)], sink=sink) as rig:
        until(lambda: len(sink.held) == 2)
        sink.held.pop()(None)
        until(lambda: rig.consumer.fetches > 20)
        assert rig.consumer.committed == {}
        sink.held.pop()(None)
        until(lambda: rig.consumer.committed == {0: 13})
    assert rig.error is None


def test_refused_latents_stop_the_daemon_uncommitted() -> None:
    """Latents that Kafka refuses for good stop the daemon and name the instrument."""
    rig = with_latents([part([b"t"], 7)], sink=Sink(lambda *_: "TOPIC_AUTHORIZATION_FAILED"))
    with rig:
        until(lambda: not rig.thread.is_alive())
    assert isinstance(rig.error, DaemonFailedError)
    assert "latents of 0:0 were refused" in str(rig.error)
    assert rig.consumer.committed == {}
    assert rig.value("tapewatch_publish_failures_total") == 1


def test_missing_topic_of_latents_is_named() -> None:
    """A latent topic that was configured and does not exist is refused at the start."""
    rig = with_latents()
    rig.consumer.known = TOPICS
    with rig:
        until(lambda: not rig.thread.is_alive())
    assert "topics latents do not exist" in str(rig.error)


def test_intake_does_not_wait_for_room_for_latents() -> None:
    """Latents for which the producer has no room are left to the decision thread."""
    sink = Sink()
    sink.room = 1  # for one of two messages
    with with_latents([part([b"t"] * 3)], sink=sink) as rig:
        until(lambda: rig.consumer.committed == {0: 3})
        assert {thread.name for thread in sink.threads} == {"decision"}
    sink = Sink()
    sink.room = 2
    with with_latents([part([b"t"] * 3)], sink=sink) as rig:
        until(lambda: rig.consumer.committed == {0: 3})
        assert sink.threads == [rig.thread, rig.thread]


def test_drift_is_told_as_soon_as_it_is_known() -> None:
    """No stability index before the pipeline knows one; then its figures."""
    rig = Rig()
    drift = Drift(("a", "b"), np.array([0.05, 0.5]), 0.125, 4_000)
    with rig:
        until(lambda: rig.consumer.fetches > 20)
        assert rig.registry.get_sample_value("tapewatch_score_psi") is None
        rig.pipeline.drift = lambda: drift  # type: ignore[method-assign, assignment, return-value]
        until(lambda: rig.value("tapewatch_score_psi") == 0.125)
        assert rig.value("tapewatch_feature_psi", feature="b") == 0.5
        assert rig.value("tapewatch_features_moved") == 1
        assert rig.value("tapewatch_drift_rows") == 4_000


def test_latency_has_its_event_as_exemplar() -> None:
    """An OpenMetrics scrape of the daemon leads from a bucket to an event that was published."""
    with Rig([part([b"t"])]) as rig:
        until(lambda: rig.value("tapewatch_tick_to_event_seconds_count") == 1)
        families = openmetrics_families(openmetrics(rig.registry).decode())
        buckets = next(f for f in families if f.name == "tapewatch_tick_to_event_seconds").samples
        (exemplar,) = [s.exemplar for s in buckets if s.exemplar is not None]
        assert exemplar.labels == {"event_id": event_at(0, 0).event_id[:16]}


def test_scores_are_told_against_the_threshold_of_their_own_row() -> None:
    """Each row by the threshold that was applied to it; a row that was not ready is left out."""
    pipeline = EveryTickIsAnEvent()
    score = np.array([1.0, 3.0, np.nan, 8.0])
    threshold = np.array([2.0, 2.0, 2.0, 16.0])
    pipeline.scores = (
        ScoreBlock(score, score, score, score, score, threshold, np.zeros(4, np.int32)),
    )
    with Rig([part([b"tick"])], pipeline=pipeline) as rig:
        until(lambda: rig.value("tapewatch_score_per_threshold_count") == 3)
        assert rig.value("tapewatch_score_per_threshold_bucket", le="1.0") == 2
        assert rig.value("tapewatch_score_per_threshold_sum") == 0.5 + 1.5 + 0.5


def test_batching_delay_is_observed_per_micro_batch() -> None:
    """Every fetch that brought something adds the wait of its first message."""
    rig = Rig([part([b"t"])], [], [part([b"t"], first=1)])
    rig.consumer.waited_s = 0.25
    with rig:
        until(lambda: rig.value("tapewatch_batch_wait_seconds_count") == 2)
    assert rig.value("tapewatch_batch_wait_seconds_sum") == 0.5


def test_open_episodes_leave_with_their_partition() -> None:
    """What the table shows is open in a partition that is ours."""
    rows = [part([b"t"], first=3, partition=1), part([b"t"], first=7, partition=0)]
    with Rig(rows) as rig:
        shown = {"symbol": "X", "type": "none", "rank": "1"}
        until(lambda: rig.value("tapewatch_open_episode_severity", **shown) == 2.0)
    assert rig.value("tapewatch_open_episode_severity", **shown) == 0.0


def test_statistics_of_both_clients_are_told() -> None:
    """The daemon shows the consumer's and the producer's own view of Kafka."""
    with Rig() as rig:
        rig.sink.health.on_statistics('{"type": "producer", "msg_cnt": 4}')
        queue = "tapewatch_kafka_fetch_queue_messages"
        assert rig.value(queue, client="producer") == 4
        assert rig.value("tapewatch_kafka_brokers_up", client="consumer") == 1


class NamedScorer:
    """A model as the daemon sees it, its hash made of one letter."""

    device = "cpu"
    thresholds = SimpleNamespace(peaks=None)

    def __init__(self, letter: str) -> None:
        self.version, self.model_hash = letter, letter * 64


def model_of(letter: str) -> LoadedModel:
    """A model that is ready."""
    return LoadedModel(cast("Any", NamedScorer(letter)), "2024-01-01T00:00:00+00:00")


def offering(
    *models: str, at_fetch: int, script: list[list[PartitionMessages]], sink: Sink | None = None
) -> Rig:
    """A daemon that is offered models while it fetches for the n-th time."""
    rig = Rig(*script, sink=sink)

    def offer(fetch: int) -> None:
        if fetch == at_fetch:
            for model in models:
                rig.daemon.offer(model_of(model))

    rig.consumer.during_fetch = offer
    return rig


def test_a_model_is_put_in_force_between_two_micro_batches() -> None:
    """What was taken in before is decided by the old model, all that comes by the new one."""
    script = [[part([b"t"] * 2000, 5)], [part([b"t"] * 3, 2005)], [part([b"t"], 2008)]]
    with offering("a", at_fetch=2, script=script, sink=with_room()) as rig:
        until(lambda: rig.consumer.committed == {0: 2009})
    steps = rig.pipeline.steps
    at = steps.index(("a", {0: 2008}))
    assert steps[:at] == [(0, offset) for offset in range(5, 2008)]
    assert steps[at + 1 :] == [(0, 2008)]
    assert len(rig.sink.records) == 2005
    assert rig.error is None


def test_a_swap_is_told_and_recorded() -> None:
    """Information and times of the model change, the offset is told by partition and logged."""
    script = [[part([b"t"] * 3, 40), part([b"t"], 7, partition=1)]]
    with capture_logs() as logs, offering("a", at_fetch=5, script=script) as rig:
        until(lambda: rig.value("tapewatch_model_swaps_total", outcome="done") == 1)
        until(lambda: rig.value("tapewatch_model_from_offset", partition="0") == 43)
        assert rig.value("tapewatch_model_from_offset", partition="1") == 8
        assert rig.value("tapewatch_model_info", version="a", hash="a" * 64, device="cpu") == 1
        assert rig.value("tapewatch_model_created_timestamp_seconds") == 1_704_067_200
        assert time.time() - rig.value("tapewatch_model_loaded_timestamp_seconds") < WAIT_S
        assert rig.daemon.models_in_force() == [
            ModelChange(0, 43, "a" * 64, "a"),
            ModelChange(1, 8, "a" * 64, "a"),
        ]
        until(lambda: len(rig.sink.records) == 6)
    recorded = [
        (line["partition"], line["next_offset"], line["version"])
        for line in logs
        if line["event"] == "model in force"
    ]
    assert recorded == [(0, 40, "old"), (1, 7, "old"), (0, 43, "a"), (1, 8, "a")]
    assert [line["before"] for line in logs if line["event"] == "model swapped"] == ["old"]


def test_what_a_swap_closes_has_no_latency() -> None:
    """No tick caused those events: they are neither observed nor counted as late."""
    script = [[part([b"t"] * 3, 40), part([b"t"], 7, partition=1)]]
    with offering("a", at_fetch=5, script=script) as rig:
        until(lambda: len(rig.sink.records) == 6)
        until(lambda: rig.value("tapewatch_tick_to_event_seconds_count") == 4)
        assert rig.value("tapewatch_tick_to_event_stale_total") == 0


def test_of_models_in_quick_succession_the_last_counts() -> None:
    """Models that were overtaken before they came into force never do."""
    with offering("a", "b", at_fetch=2, script=[[part([b"t"] * 3, 0)]]) as rig:
        until(lambda: rig.value("tapewatch_model_swaps_total", outcome="done") == 1)
        until(lambda: rig.consumer.fetches > 20)
    assert [step for step in rig.pipeline.steps if isinstance(step[0], str)] == [("b", {0: 3})]


def test_swaps_back_and_forth_each_count() -> None:
    """A model, another one and the first again: three swaps; the one in force again is none."""
    rig = Rig()
    offers = {2: "a", 4: "b", 6: "a", 8: "a"}
    rig.consumer.during_fetch = lambda n: (
        rig.daemon.offer(model_of(offers[n])) if n in offers else None
    )
    with rig:
        until(lambda: rig.consumer.fetches > 20)
        assert rig.value("tapewatch_model_swaps_total", outcome="done") == 3
    assert rig.pipeline.steps == [("a", {}), ("b", {}), ("a", {})]


def test_a_partition_given_up_is_not_recorded_under_the_new_model() -> None:
    """A swap that is decided after a partition went to another member leaves it out."""
    script = [[part([b"t"] * 3, 0), part([b"t"] * 2, 0, partition=1)], [part([b"t"] * 2000, 3)]]
    rig = Rig(*script)
    mine = rig.daemon._partitions.generations

    def act(fetch: int) -> None:
        if fetch == 2:  # from here on the decision thread is held up, until the partition is gone
            rig.pipeline.before_finish = lambda: until(lambda: bool(mine.get(1)))
        if fetch == 3:
            rig.daemon.offer(model_of("a"))
        if fetch == 4:
            rig.daemon.lost([1])

    rig.consumer.during_fetch = act
    with rig:
        until(lambda: rig.value("tapewatch_model_swaps_total", outcome="done") == 1)
        assert [c.partition for c in rig.daemon.models_in_force()] == [0]
    assert ("a", {0: 2003}) in rig.pipeline.steps


def test_a_revocation_finishes_the_swap_first() -> None:
    """A rebalance right behind a swap waits for its closing events and commits what was before."""
    rig = Rig([part([b"t"] * 2000, 0)])

    def act(fetch: int) -> None:
        if fetch == 2:
            rig.daemon.offer(model_of("a"))
        if fetch == 3:
            rig.daemon.revoked([0])

    rig.consumer.during_fetch = act
    with rig:
        until(lambda: rig.consumer.fetches > 5)
        assert rig.consumer.committed == {0: 2000}
        assert rig.pipeline.steps[-1] == ("a", {0: 2000})
        assert len(rig.sink.records) == 2001
        assert rig.daemon.models_in_force() == []


def test_a_refused_model_is_counted_and_the_old_one_goes_on() -> None:
    """A refusal stops nothing: it is counted, and ticks are processed as before."""
    rig = Rig([part([b"t"], 0)], [part([b"t"], 1)])
    rig.consumer.during_fetch = lambda n: rig.daemon.refuse("broken") if n == 2 else None
    with capture_logs() as logs, rig:
        until(lambda: rig.consumer.committed == {0: 2})
        assert rig.value("tapewatch_model_swaps_total", outcome="refused") == 1
        assert rig.value("tapewatch_model_swaps_total", outcome="done") == 0
    told = [line for line in logs if "model refused" in line["event"]]
    assert [line["reason"] for line in told] == ["broken"]


def test_the_daemon_keeps_no_model_that_was_replaced() -> None:
    """Neither its queues nor its last work hold on to a model that is not in force."""
    rig = Rig([part([b"t"] * 2000, 0)])
    kept: list[weakref.ref[Any]] = []

    def act(fetch: int) -> None:
        if fetch in (2, 6):
            model = model_of("ab"[fetch == 6])
            kept.append(weakref.ref(model.scorer))
            rig.daemon.offer(model)
            del model

    rig.consumer.during_fetch = act
    with rig:
        until(lambda: rig.value("tapewatch_model_swaps_total", outcome="done") == 2)
        until(lambda: kept[0]() is None)
    assert rig.error is None


def test_a_model_lost_with_a_transaction_is_offered_again() -> None:
    """Its folder will not: it was read there, and taken. A newer one goes before it."""
    rig = Rig([part([b"t"])])
    with rig:
        until(lambda: rig.pipeline.finished == 1)
    daemon, pipeline = rig.daemon, rig.pipeline
    old = pipeline.scorer
    daemon.offer(model_of("b"))
    daemon._take_offered()
    assert daemon._newest[0] == "b"
    pipeline.scorer = old  # as after the transaction with it was lost
    daemon._offer_again()
    assert daemon._newest[0] == "old"
    daemon._take_offered()
    assert daemon._newest[0] == "b"
    daemon._offer_again()
    daemon.offer(model_of("c"))
    daemon._take_offered()
    assert daemon._newest[0] == "c"


def test_where_an_instrument_was_seen_is_forgotten_once_it_is_evicted() -> None:
    """A flood of new instruments would fill the memory otherwise."""
    rig = Rig()
    rig.daemon._partition_of = dict.fromkeys(range(100_000), 1)
    rig.pipeline.tracked_instruments = lambda: {0: 2, 1: 2}  # type: ignore[method-assign]
    rig.daemon._forget_evicted()
    assert rig.daemon._partition_of == {0: 1, 1: 1, 10: 1, 11: 1}


def test_a_dead_letter_is_free_once_it_is_acknowledged() -> None:
    """By its last reference: the collector seldom comes, and a letter may be a megabyte."""
    outbox = Outbox(
        Addresses("ticks", "anomalies", "dlq"),
        cast("Any", Sink()),
        Metrics(CollectorRegistry()),
        lambda _: None,
    )
    ledger = Ledger()
    gc.collect()
    gc.disable()
    try:
        for offset in range(50):
            messages = part([b"bad"], offset)
            outbox.send(Work(ledger.open({}), {}, rejected=[(messages, 0, "invalid_json")]))
        del messages
        assert gc.collect() < 50
    finally:
        gc.enable()


class Stuck:
    """A daemon that keeps state, whose decision thread is stuck: the brokers take nothing."""

    def __init__(self) -> None:
        self.rig = rig = Rig(*([part([b"tick", b"bad"], 2 * n)] for n in range(50)))
        self.free = threading.Event()
        self.polled: list[int] = []
        rig.consumer.known = {**TOPICS, "": 1}
        rig.consumer.committed_positions = {}  # type: ignore[attr-defined]
        rig.sink.wrong_policy = lambda *_: ""  # type: ignore[attr-defined]
        rig.daemon._keeper = cast(
            "Any",
            SimpleNamespace(
                due=lambda *_: None,
                taken_in=lambda *_: None,
                release=lambda _: None,
                busy=False,
                records=lambda *_: [],
                witnesses=lambda _: {},
                committed=lambda _: None,
            ),
        )
        rig.daemon._decision._keeper = rig.daemon._keeper
        publish = rig.sink.publish

        def publish_once_free(*record: Any) -> None:
            self.free.wait(WAIT_S)
            publish(*record)

        rig.sink.publish = publish_once_free  # type: ignore[method-assign]
        rig.consumer.wait = lambda: self.polled.append(1)  # type: ignore[attr-defined]

    def __enter__(self) -> Self:
        self.rig.thread.start()
        until(self.rig.daemon._decision._works.full)
        return self

    def __exit__(self, *_: object) -> None:
        self.free.set()
        self.rig.finish()


def test_a_stop_is_not_held_up_by_a_decision_that_hangs() -> None:
    """Nobody may wait for ever for room in its queue, or brokers that are away would decide."""
    with Stuck() as stuck:
        stuck.rig.daemon.stop()
        stuck.rig.thread.join(9.0)
        assert not stuck.rig.thread.is_alive()


def test_a_revocation_is_over_in_time_although_decision_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is called from within the consumer, which must not be polled again from there."""
    monkeypatch.setattr("detector.daemon.DRAIN_S", 0.5)
    monkeypatch.setattr("detector.daemon._POLL_WITHIN_S", 0.0)
    done: list[int] = []
    with Stuck() as stuck:
        until(lambda: bool(stuck.polled))

        def poll() -> None:
            if not done:
                stuck.polled.clear()
                stuck.rig.daemon.revoked([0])
                done.append(len(stuck.polled))

        stuck.rig.consumer.wait = poll  # type: ignore[attr-defined]
        until(lambda: bool(done))
    assert done == [0]
