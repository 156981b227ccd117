"""What may be committed together: the second half of the daemon with doubles for its neighbours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from detector.decision import Decision
from detector.kafka import Acknowledge, Health, TransactionalPublisher, TransactionLostError
from detector.ledger import Ledger
from detector.metrics import Metrics
from detector.outbox import Addresses, Outbox
from detector.partitions import Partitions
from detector.pipeline import Prepared
from detector.ticks import TickBatch, empty_ticks
from detector.work import Work
from tests.test_daemon import EveryTickIsAnEvent, part


class Transactions(TransactionalPublisher):
    """Keeps what is committed together."""

    def __init__(self) -> None:
        self.health = Health()
        self.open: list[bytes | None] = []
        self.committed: list[tuple[list[bytes | None], dict[int, int]]] = []
        self.step = lambda _: None
        self._acknowledge: list[Acknowledge] = []

    @property
    def dirty(self) -> bool:
        """Whether something was published since the last commit."""
        return bool(self.open)

    @property
    def overdue(self) -> bool:
        """Never: commits come from the tests."""
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
        del topic, key, headers, partition
        self.open.append(value)
        if acknowledge is not None:
            self._acknowledge.append(acknowledge)

    def commit(self, topic: str, positions: Mapping[int, int], group: Any) -> None:
        """Commit all of it."""
        del topic, group
        self.committed.append((self.open, dict(positions)))
        self.open = []
        for acknowledge in self._acknowledge:
            acknowledge(None)
        self._acknowledge = []


class Rig:
    """A decision with two partitions, and works for it."""

    def __init__(self) -> None:
        self.publisher = Transactions()
        self.partitions, self.ledger = Partitions(), Ledger()
        self.failures: list[BaseException] = []
        metrics = Metrics(CollectorRegistry())
        pipeline = cast("Any", EveryTickIsAnEvent())
        refuse = lambda reason: self.failures.append(RuntimeError(reason))  # noqa: E731
        keeper = SimpleNamespace(
            records=lambda *_: [], witnesses=dict, committed=lambda _: None, busy=False
        )
        self.decision = Decision(
            pipeline,
            Outbox(Addresses("ticks", "anomalies", "dlq"), self.publisher, metrics, str, refuse),
            self.publisher,
            metrics,
            self.partitions,
            self.ledger,
            cast("Any", SimpleNamespace(group="group")),
            ("ticks", "state"),
            cast("Any", keeper),
            self.failures.append,
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
    assert len(rig.publisher.committed) == 1
