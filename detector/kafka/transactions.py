"""Publish in transactions: records, input offsets and state become visible together, or not at all.

What the Kafka client says of a failure decides what is to be done: call again, abort, or begin with
a new producer. The last two are the same to the caller: `TransactionLostError`, after which nothing
since the last commit happened and `recover` has to be called.

References
----------
KIP-98 (transactions), KIP-447 (fencing by the consumer group's generation); librdkafka,
INTRODUCTION.md, "Transactional producer API": the three classes of errors.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, cast

from confluent_kafka import KafkaError, KafkaException, Message, Producer, TopicPartition

from detector.kafka.connection import (
    Connection,
    Headers,
    Health,
    KafkaUnusableError,
    done_within,
    refusals,
)
from detector.kafka.publisher import Acknowledge, Publisher

GroupMetadata = Any  # the client's own, opaque

_OPEN_FOR: Final = 4
"""Commits' times that a transaction stays open for while more work waits. Each costs some
milliseconds of processor time here and at the brokers, whatever is in it: open for one
such time, they cost a quarter of a backlog's throughput, for four a sixth (docs/performance.md)."""

_FENCED: Final = frozenset(
    {
        KafkaError._FENCED,  # noqa: SLF001  (the client's public names start so)
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
    }
)

Step = Callable[[str], None]
"""Told the name of a step just before or after it, for tests that kill the process there."""

_CALL_S: Final = 1.0  # of one attempt; between two of them it is looked whether to stop
_STUCK_S: Final = 5.0  # after which an attempt will not come back
_FLUSH_S: Final = 5.0
_PAUSE_S: Final = 0.2
_FOR_GOOD: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    }
)
"""Errors of a record that another attempt meets again; all others pass with the transaction."""


class TransactionLostError(Exception):
    """The open transaction will not be committed; `recover`, then go on from what is committed."""


class _ProducerHealth(Health):
    """A producer that can be replaced: its own fatal errors are not the end."""

    def on_error(self, error: KafkaError) -> None:
        """Take librdkafka's error callback."""
        if error.fatal() or error.code() == KafkaError._FATAL:  # noqa: SLF001
            self._last_error = error.str()
            return
        super().on_error(error)


class TransactionalPublisher(Publisher):
    """Publishes in transactions, one at a time.

    Acknowledgements come when the transaction is committed. All calls but `publish`'s delivery
    reports come from one thread at a time.

    Parameters
    ----------
    connection
        The cluster.
    transactional_id
        The same for every run of this member, and of no other: a new run ends what the last one
        left open.
    timeout_s
        After so long the cluster aborts a transaction that is still open, in seconds.
    step
        Told of every step.
    """

    _health = _ProducerHealth
    # For some milliseconds after a commit the cluster writes its markers, and refuses what begins
    # the next transaction (CONCURRENT_TRANSACTIONS). The client's usual pause of 100 ms is several
    # times as long as a transaction takes. It doubles with each attempt, up to a second.
    _defaults: ClassVar[Mapping[str, object]] = {"retry.backoff.ms": 2}

    def __init__(
        self,
        connection: Connection,
        transactional_id: str,
        timeout_s: float,
        step: Step | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self.step: Step = step or (lambda _: None)
        self._hurry = threading.Event()
        self._open_since: float | None = None
        self._published = 0
        self._pending: list[Acknowledge] = []
        self._last_commit_s = 0.0
        self._spent = False  # this producer can neither commit nor abort any more
        self._used = False
        super().__init__(
            connection,
            **{
                "transactional.id": transactional_id,
                "transaction.timeout.ms": int(timeout_s * 1e3),
            },
        )

    @property
    def dirty(self) -> bool:
        """Whether something was published since the last commit."""
        return self._published > 0

    @property
    def overdue(self) -> bool:
        """Whether the open transaction is several times as old as a commit takes.

        Or a good part of what the cluster grants it: the last commit may have taken very long.
        """
        most_s = min(_OPEN_FOR * self._last_commit_s, self._timeout_s / _OPEN_FOR)
        return self._open_since is not None and time.monotonic() - self._open_since >= most_s

    def hurry(self) -> None:
        """Give up calls that are not answered; for an orderly end."""
        self._hurry.set()

    def recover(self, *, stop: Callable[[], bool] = lambda: False) -> bool:
        """Make a transaction possible, also after one was lost; False: told to stop before.

        Ends what this member, or an earlier run of it, left open. Waits while no broker answers.

        Raises
        ------
        KafkaUnusableError
            The cluster refuses us.
        """
        self._pending.clear()
        self._published = 0
        if self._open_since is not None and not self._spent and self._aborted():
            return True
        self._renew()
        while not stop():
            try:
                self._producer.init_transactions(_CALL_S)
            except KafkaException as error:
                found = cast("KafkaError", error.args[0])
                self._refuse_denied(found)
                # The same producer again while that helps: the request of one that is given up
                # may still arrive, and would fence the next one.
                if not found.retriable():
                    self._renew()
                time.sleep(_PAUSE_S)
            else:
                self._open_since, self._spent = None, False
                return True
        return False

    def publish(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        acknowledge: Acknowledge | None = None,
        partition: int = -1,
    ) -> None:
        """Hand one record over; acknowledged by the commit, or with an error if refused for good.

        Raises
        ------
        TransactionLostError
            It could not be made part of a transaction.
        """
        self._begin()

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None and error.code() in _FOR_GOOD and acknowledge is not None:
                acknowledge(f"{error.name()}: {error.str()}")

        try:
            self._produce(topic, key, value, headers, partition, delivered)
        except KafkaException as error:
            code = error.args[0].code()
            if code in _FOR_GOOD and acknowledge is not None:
                acknowledge(str(error.args[0]))
            raise TransactionLostError(self._told(error.args[0])) from error
        self._published += 1
        if acknowledge is not None:
            self._pending.append(acknowledge)

    def commit(self, topic: str, positions: Mapping[int, int], group: GroupMetadata) -> None:
        """Commit everything published since the last commit, with next offsets of the input.

        Parameters
        ----------
        topic, positions
            Input topic, and next offset by partition.
        group
            The consumer group's metadata, taken before it was made sure that the partitions are
            still ours: a generation that is over by now is refused.

        Raises
        ------
        TransactionLostError
            It is not committed, as far as is known.
        """
        began = time.monotonic()
        self._begin()
        self.step("after_produce")
        offsets = [TopicPartition(topic, p, offset) for p, offset in sorted(positions.items())]
        self._call(lambda s: self._producer.send_offsets_to_transaction(offsets, group, s))
        self.step("after_offsets")
        self.step("before_commit")
        self._call(self._producer.commit_transaction)
        self._open_since = None
        self._last_commit_s = time.monotonic() - began
        self.step("after_commit")
        pending, self._pending, self._published = self._pending, [], 0
        for acknowledge in pending:
            acknowledge(None)

    def close(self, timeout_s: float = 5.0) -> int:
        """Abort what is open, then stop; return how many records were never committed."""
        left = len(self._pending)
        if self._open_since is not None:
            self._hurry.set()
            self._aborted()
        super().close(min(timeout_s, 1.0))
        return left

    def _begin(self) -> None:
        if self._open_since is not None:
            return
        try:
            self._producer.begin_transaction()
        except KafkaException as error:
            self._spent = True
            raise TransactionLostError(self._told(error.args[0])) from error
        self._open_since = time.monotonic()
        self.step("after_begin")

    def _call(self, call: Callable[[float], object]) -> None:
        """Call again while the client says that this helps, at most for a transaction's time."""
        deadline = time.monotonic() + self._timeout_s
        while True:
            try:
                # Some calls do not keep to their time when an answer is lost on the way.
                if not done_within(_STUCK_S, lambda: call(_CALL_S)):
                    self._spent = True
                    raise TransactionLostError(f"no answer within {_STUCK_S:.0f} s")
            except KafkaException as error:
                found = cast("KafkaError", error.args[0])
                self._refuse_denied(found)
                over = self._hurry.is_set() or time.monotonic() >= deadline
                if not found.retriable() or over:
                    # Without an answer it is not known what became of the transaction, and an
                    # answer that comes later could be taken for that to another call.
                    self._spent = not found.txn_requires_abort()
                    raise TransactionLostError(self._told(found)) from error
                time.sleep(_PAUSE_S / 4)
            else:
                return

    def _aborted(self) -> bool:
        """Abort the open transaction; False where the producer has to be replaced instead."""
        # An abort that overtakes the first record of a transaction can leave it open for ever.
        self.flush(0.2 if self._hurry.is_set() else _FLUSH_S)
        try:
            self._call(self._producer.abort_transaction)
        except (TransactionLostError, KafkaUnusableError):
            return False
        self._open_since = None
        return True

    def _renew(self) -> None:
        """Have a producer that has not begun anything yet."""
        if self._used:
            self._producer.purge()
            with refusals():
                self._producer = Producer(self._properties)
        self._used = True

    def _told(self, error: KafkaError) -> str:
        """Return what went wrong, for people."""
        told = f"{error.name()}: {error.str()}"
        if error.code() not in _FENCED:
            return told
        return (
            f"{told}; another process uses transactional id {self._properties['transactional.id']}"
        )

    def _refuse_denied(self, error: KafkaError) -> None:
        if error.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
            raise KafkaUnusableError(
                f"Kafka: {error.name()}: this user may not use the transactional id "
                f"{self._properties['transactional.id']}: {error.str()}"
            ) from None
        if error.code() == KafkaError.INVALID_TRANSACTION_TIMEOUT:
            raise KafkaUnusableError(
                f"Kafka: {error.name()}: commit.transaction_timeout_ms = "
                f"{self._timeout_s * 1e3:.0f} is more than the brokers' transaction.max.timeout.ms "
                "allows; lower it"
            ) from None
        if self.health.fatal is not None:
            raise self.health.fatal from None
