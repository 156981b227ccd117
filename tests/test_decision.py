"""What may be committed together: the second half of the daemon with doubles for its neighbours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from detector.decision import HELD_WORKS, Decision
from detector.kafka import Acknowledge, Health, TransactionalPublisher, TransactionLostError
from detector.ledger import Ledger
from detector.metrics import Metrics
from detector.model_changes import ModelChange
from detector.outbox import Addresses, Outbox
from detector.partitions import Partitions
from detector.pipeline import Prepared
from detector.ticks import TickBatch, empty_ticks
from detector.work import Work
from tests.test_daemon import EveryTickHasALatent, EveryTickIsAnEvent, model_of, part


class Transactions(TransactionalPublisher):
    """Keeps what is committed together; a commit is answered when the test says so."""

    def __init__(self) -> None:
        self.health = Health()
        self.open: list[bytes | None] = []
        self.committed: list[tuple[list[bytes | None], dict[int, int]]] = []
        self.step = lambda _: None
        self._acknowledge: list[Acknowledge] = []
        self.answers = threading.Event()
        self.answers.set()
        self.keys: list[bytes | None] = []
        self.refuses = False
        self.recovered = 0

    @property
    def dirty(self) -> bool:
        """Whether something was published since the last commit."""
        return bool(self.open)

    @property
    def overdue(self) -> bool:
        """Never: a commit takes for ever."""
        return False

    @property
    def room(self) -> int:
        """Enough."""
        return 1000

    def publish(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
        acknowledge: Acknowledge | None = None,
        partition: int = -1,
    ) -> None:
        """Take a record into the transaction."""
        del topic, headers, partition
        self.open.append(value)
        self.keys.append(key)
        if acknowledge is not None:
            self._acknowledge.append(acknowledge)

    def commit(self, topic: str, positions: Mapping[int, int], group: Any) -> None:
        """Commit all of it, or refuse to, once it may be answered."""
        del topic, group
        assert self.answers.wait(10.0)
        if self.refuses:
            raise TransactionLostError("refused")
        self.committed.append((self.open, dict(positions)))
        self.open = []
        for acknowledge in self._acknowledge:
            acknowledge(None)
        self._acknowledge = []

    def recover(self, *, stop: Callable[[], bool] = lambda: False) -> bool:
        """Drop what is open."""
        del stop
        self.open, self._acknowledge = [], []
        self.recovered += 1
        return True

    def hurry(self) -> None:
        """Nothing to give up."""


class Rig:
    """A decision with two partitions, and works for it."""

    def __init__(self, pipeline: Any = None) -> None:
        self.publisher = Transactions()
        self.partitions, self.ledger = Partitions(), Ledger()
        self.failures: list[BaseException] = []
        metrics = Metrics(CollectorRegistry())
        self.pipeline = pipeline or cast("Any", EveryTickIsAnEvent())
        refuse = lambda reason: self.failures.append(RuntimeError(reason))  # noqa: E731
        self.keeper = keeper = SimpleNamespace(
            records=lambda *_: [],
            witnesses=lambda told: {p: 90 + p for p in told},
            committed=lambda _: None,
            busy=False,
        )
        topics = Addresses("ticks", "anomalies", "dlq", "latents")
        self.decision = Decision(
            self.pipeline,
            Outbox(topics, self.publisher, metrics, refuse),
            self.publisher,
            metrics,
            self.partitions,
            self.ledger,
            cast("Any", SimpleNamespace(group="group")),
            ("ticks", "state"),
            cast("Any", keeper),
            self.failures.append,
            latents=pipeline is not None,
        )

    def work(self, partition: int, first: int, count: int = 2) -> Work:
        """Ticks of a partition, taken in now."""
        messages = part([b"t"] * count, first, partition)
        batch = TickBatch(
            empty_ticks(count), partition, messages.offsets, messages.offsets.astype("int32") * 0
        )
        return Work(
            self.ledger.open({}),
            self.partitions.generations_of([partition]),
            {partition: first + count},
            {partition: messages},
            [Prepared(batch, cast("Any", None))],
        )

    def checkpoint(self) -> None:
        """Commit."""
        self.decision._finish(Work(self.ledger.open({}), {}, checkpoint=True))
        self.decision._settle()


def test_a_commit_carries_the_events_and_offsets_of_all_works_since_the_last() -> None:
    """One transaction for several micro-batches."""
    rig = Rig()
    for partition, first in ((0, 5), (1, 20), (0, 7)):
        assert rig.decision.try_alone(rig.work(partition, first))
    rig.checkpoint()
    ((events, positions),) = rig.publisher.committed
    assert (len(events), positions) == (6, {0: 9, 1: 22})
    assert rig.ledger.wait_settled(0.0)


def test_events_of_a_partition_given_up_since_are_never_committed() -> None:
    """Its next owner tells them; everything of the transaction is told again."""
    rig = Rig()
    rig.decision.try_alone(rig.work(0, 5))
    rig.decision.try_alone(rig.work(1, 5))
    rig.partitions.forget([0])
    with pytest.raises(TransactionLostError):
        rig.checkpoint()
    assert rig.publisher.committed == []


def test_events_from_before_and_after_a_partition_came_back_are_not_committed_together() -> None:
    """Restored at the committed offset, it tells what the open transaction holds already."""
    rig = Rig()
    rig.decision.try_alone(rig.work(0, 5))
    rig.partitions.forget([0])
    with pytest.raises(TransactionLostError):
        rig.decision.try_alone(rig.work(0, 5))
    assert rig.publisher.committed == []


def test_a_partition_that_goes_between_deciding_and_publishing_spoils_the_commit() -> None:
    """Its events are in the transaction already, though its offset would not be."""
    rig = Rig()
    work = rig.work(0, 5)
    rig.decision.decide(work)
    rig.partitions.forget([0])
    rig.decision.publish(work)
    with pytest.raises(TransactionLostError):
        rig.checkpoint()


def test_offsets_of_a_partition_given_up_are_left_out_where_nothing_was_published() -> None:
    """Then there is nothing to lose."""
    rig = Rig()
    quiet = rig.work(0, 5)
    quiet.prepared.clear()
    rig.decision.try_alone(quiet)
    rig.partitions.forget([0])
    rig.checkpoint()
    assert rig.publisher.committed == []
    rig.decision.try_alone(rig.work(1, 5))
    rig.checkpoint()
    assert rig.publisher.committed[0][1] == {1: 7}


def test_state_is_never_committed_without_an_offset() -> None:
    """A commit without offsets is refused to nobody: not to one whose partition is another's."""
    rig = Rig()
    rig.keeper.records = lambda *_: [(1, (b"key", b"value"))]
    rig.checkpoint()
    assert rig.publisher.committed == [([b"value"], {1: 91})]


def test_a_partition_that_goes_while_its_state_is_told_spoils_the_commit() -> None:
    """Its offset would be committed without the state that belongs to it."""
    rig = Rig()
    quiet = rig.work(0, 5)
    quiet.prepared.clear()
    rig.decision.try_alone(quiet)

    def records(*_: object) -> list[Any]:
        rig.partitions.forget([0])
        return []

    rig.keeper.records = records
    with pytest.raises(TransactionLostError):
        rig.checkpoint()
    assert rig.publisher.committed == []


def take_over(rig: Rig) -> None:
    """Put model b in force, in the middle of partition 0."""
    generations = rig.partitions.generations_of([0])
    changes = [ModelChange(0, 7, "hash", "b")]
    rig.decision._finish(
        Work(rig.ledger.open({}), generations, changes=changes, model=model_of("b"))
    )


def test_a_model_that_took_over_in_a_lost_transaction_did_not() -> None:
    """What is restored is the old one's state; its open episodes are closed by the next attempt."""
    rig = Rig()
    with pytest.raises(TransactionLostError), commit_in_flight(rig):  # noqa: PT012
        take_over(rig)
        assert rig.pipeline.model[0] == "b"
        rig.publisher.refuses = True
        rig.publisher.answers.set()
        rig.decision._settle()
    rig.decision.lose(TransactionLostError("refused"))
    rig.decision.begin_anew()
    assert rig.pipeline.model[0] == "old"


def test_a_model_whose_taking_over_is_committed_stays() -> None:
    """A transaction that is lost later does not bring the old one back."""
    rig = Rig()
    with commit_in_flight(rig):
        take_over(rig)
    rig.decision._go_on()
    rig.decision._settle()
    rig.decision._finish(rig.work(0, 9))
    rig.decision.lose(TransactionLostError("gone"))
    rig.decision.begin_anew()
    assert rig.pipeline.model[0] == "b"


def test_works_are_dropped_after_a_loss_until_intake_began_anew() -> None:
    """What was taken in behind a lost transaction is of a state that never was."""
    rig = Rig()
    rig.decision.lose(TransactionLostError("gone"))
    rig.decision.recovered = True
    rig.decision._finish(rig.work(0, 5))
    assert rig.decision.try_alone(rig.work(0, 7))
    assert not rig.publisher.dirty
    rig.decision.begin_anew()
    rig.decision._finish(rig.work(0, 5))
    rig.decision._settle()
    assert len(rig.publisher.committed) == 1


@contextmanager
def commit_in_flight(rig: Rig) -> Iterator[None]:
    """Two events of partition 0, up to offset 7 are on their way, at the latest until the end."""
    rig.publisher.answers.clear()
    try:
        rig.decision._finish(rig.work(0, 5))
        assert len(rig.publisher.open) == 2
        yield
    finally:
        rig.publisher.answers.set()


def test_works_are_decided_and_held_while_a_commit_is_in_flight() -> None:
    """The next transaction has the events of all of them."""
    rig = Rig()
    with commit_in_flight(rig):
        held = [rig.work(0, 7), rig.work(1, 5), rig.work(0, 9)]
        for work in held:
            rig.decision._finish(work)
        assert all(work.outcome is not None for work in held)
        assert len(rig.publisher.open) == 2
    rig.decision._go_on()
    rig.decision._settle()
    (first, of_first), (second, of_second) = rig.publisher.committed
    assert (len(first), of_first) == (2, {0: 7})
    assert (len(second), of_second) == (6, {0: 11, 1: 7})
    assert rig.ledger.wait_settled(0.0)


def test_latents_have_the_name_that_is_known_when_they_are_decided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Works that are held keep it, although one behind them brings another."""
    pipeline = EveryTickHasALatent()
    rig = Rig(pipeline)
    work = rig.work(0, 5, 1)
    work.prepared = [pipeline.prepare(cast("Any", work.prepared[0].batch))]
    monkeypatch.setattr(pipeline, "name", lambda *_: "FIRST")
    rig.decision.decide(work)
    monkeypatch.setattr(pipeline, "name", lambda *_: "LATER")
    rig.decision.publish(work)
    assert rig.publisher.keys == [b"FIRST"]


def test_one_commit_is_for_all_works_that_wait() -> None:
    """A transaction costs much: the second work, which is there already, joins the first."""
    rig = Rig()
    rig.decision.put(rig.work(0, 5), 1.0)
    rig.decision.put(rig.work(1, 5), 1.0)
    rig.decision.start()
    until(lambda: rig.decision.idle)
    assert [positions for _, positions in rig.publisher.committed] == [{0: 7, 1: 7}]
    rig.decision.put(None, 1.0)
    rig.decision.join(10.0)


def test_no_more_works_are_held_than_is_allowed() -> None:
    """One more waits for the commit in flight: memory stays bounded, intake is slowed."""
    rig = Rig()
    with commit_in_flight(rig):
        for number in range(HELD_WORKS):
            rig.decision._finish(rig.work(0, 7 + 2 * number))
        answer = threading.Timer(0.05, rig.publisher.answers.set)
        answer.start()
        rig.decision._finish(rig.work(1, 5))
        assert len(rig.publisher.committed) >= 1
    rig.decision._settle()
    assert len(rig.publisher.committed[1][0]) == 2 * (HELD_WORKS + 1)


def test_a_checkpoint_waits_for_the_commit_in_flight() -> None:
    """A snapshot that begins with it is of the state up to it, and of nothing later."""
    rig = Rig()
    with commit_in_flight(rig):
        rig.decision._finish(rig.work(1, 5))
        threading.Timer(0.05, rig.publisher.answers.set).start()
        rig.checkpoint()
    assert [positions for _, positions in rig.publisher.committed] == [{0: 7}, {1: 7}]


def test_held_works_are_dropped_with_the_commit_in_flight() -> None:
    """They were decided from a state that was not committed; intake takes their ticks in again."""
    rig = Rig()
    with pytest.raises(TransactionLostError), commit_in_flight(rig):  # noqa: PT012
        rig.decision._finish(rig.work(1, 5))
        rig.publisher.refuses = True
        rig.publisher.answers.set()
        rig.decision._settle()
    rig.decision._go_on()
    assert rig.publisher.committed == []
    assert len(rig.publisher.open) == 2


def test_another_model_may_take_over_while_a_commit_is_in_flight() -> None:
    """A partition that went and came back meanwhile spoils no commit that is right without it."""
    rig = Rig()
    with commit_in_flight(rig):
        rig.partitions.forget([0])
        change = ModelChange(0, 7, "hash", "2")
        generations = rig.partitions.generations_of([0])
        rig.decision._finish(
            Work(rig.ledger.open({}), generations, changes=[change], model=model_of("b"))
        )
        assert len(rig.publisher.open) == 2
    rig.decision._settle()
    assert [positions for _, positions in rig.publisher.committed] == [{0: 7}]


def test_intake_hands_works_over_until_the_commit_in_flight_is_over() -> None:
    """Scorer and episodes are not at rest while works may be held; a work handed over tells all."""
    rig = Rig()
    rig.decision.start()
    rig.publisher.answers.clear()
    assert rig.decision.idle
    assert rig.decision.put(rig.work(0, 5), 1.0)
    until(lambda: len(rig.publisher.open) == 2 and not rig.decision._works.qsize())
    assert not rig.decision.idle
    assert rig.decision.put(rig.work(1, 5), 1.0)
    until(lambda: len(rig.decision._held) == 1)
    assert not rig.decision.idle
    rig.publisher.answers.set()
    until(lambda: rig.decision.idle)
    assert [positions for _, positions in rig.publisher.committed] == [{0: 7}, {1: 7}]
    rig.decision.put(None, 1.0)
    rig.decision.join(10.0)
    assert rig.failures == []


def test_a_commit_that_is_refused_on_its_thread_is_made_up_for() -> None:
    """Decision recovers by itself, without waiting for another work, and drops what comes."""
    rig = Rig()
    rig.decision.start()
    rig.publisher.refuses = True
    rig.decision.put(rig.work(0, 5), 1.0)
    until(lambda: rig.decision.recovered and rig.decision.idle)
    assert rig.decision.lost
    assert (rig.publisher.recovered, rig.publisher.committed) == (1, [])
    rig.decision.put(None, 1.0)
    rig.decision.join(10.0)
    assert rig.failures == []


def test_a_commit_that_is_lost_at_the_end_is_no_failure() -> None:
    """What it was of is taken in again by the next start."""
    rig = Rig()
    rig.decision.start()
    rig.publisher.answers.clear()
    rig.decision.put(rig.work(0, 5), 1.0)
    rig.decision.put(None, 1.0)
    rig.publisher.refuses = True
    rig.publisher.answers.set()
    rig.decision.join(10.0)
    assert not rig.decision.alive
    assert (rig.failures, rig.publisher.committed) == ([], [])


def until(holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + 10.0
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.001)
