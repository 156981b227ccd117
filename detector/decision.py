"""The second half of the daemon: score, decide, publish, and commit with the state.

Works come in the order of the input, through a queue of two, from intake's thread. While nothing is
under way, intake may decide a small micro-batch itself by the same methods: then this thread has
nothing to do until it is given work.

With exactly-once delivery a commit is a transaction, which takes as long as several micro-batches.
It is waited for on a thread of its own (`detector.commit`): meanwhile works are decided and *held*.
When it is committed they are published, all into the next transaction. One that is lost takes
everything since the last one with it: works are dropped until intake has begun anew from what is
committed.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import structlog

from detector.commit import Commit
from detector.events import AnomalyEvent
from detector.kafka import Publisher, TickConsumer, TransactionalPublisher, TransactionLostError
from detector.latents import latent_messages
from detector.ledger import Ledger, Ticket
from detector.metrics import Metrics
from detector.model_changes import LOGGED_AS, ModelChange
from detector.model_watch import LoadedModel
from detector.outbox import TOO_LARGE, USUAL_LIMIT_BYTES, Outbox
from detector.partitions import Partitions
from detector.pipeline import Outcome, Pipeline
from detector.scorer import Scorer
from detector.state_checks import Arrays
from detector.state_keeper import StateKeeper
from detector.state_records import CHUNK_BYTES
from detector.work import Work

_log = structlog.get_logger("tapewatch")

QUEUED_WORKS: Final = 2
HELD_WORKS: Final = 8
"""Decided works that wait for the transaction in flight. They are kept with their messages and
features, some megabytes each where they are as large as they may be."""


class Observer(Protocol):
    """Sees every micro-batch's outcome, for the terminal view of the demo."""

    def observe(self, outcome: Outcome) -> None:
        """Take one outcome; called from the decision thread."""


class Decision:
    """Decides works, publishes what they led to, and commits.

    Parameters
    ----------
    pipeline, outbox, publisher, metrics, partitions, ledger
        Shared with intake.
    consumer
        Whose group a transaction belongs to.
    topics
        Names of the input topic and of the topic of state.
    keeper
        The state to be committed; None: none is kept.
    fail
        Called with what ends the daemon.
    observer
        Sees every outcome.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        outbox: Outbox,
        publisher: Publisher,
        metrics: Metrics,
        partitions: Partitions,
        ledger: Ledger,
        consumer: TickConsumer,
        topics: tuple[str, str],
        keeper: StateKeeper | None,
        fail: Callable[[BaseException], None],
        observer: Observer | None = None,
        *,
        latents: bool = False,
    ) -> None:
        self._pipeline = pipeline
        self._outbox = outbox
        self._publisher = publisher
        self._transaction = publisher if isinstance(publisher, TransactionalPublisher) else None
        self._metrics = metrics
        self._partitions = partitions
        self._ledger = ledger
        self._consumer = consumer
        self._ticks_topic, self._state_topic = topics
        self._keeper = keeper
        self._fail = fail
        self._observer = observer
        self._latents = latents
        self._works: queue.Queue[Work | Commit | None] = queue.Queue(QUEUED_WORKS)
        self._in_flight: Commit | None = None
        self._held: list[Work] = []
        self._handed_over = self._taken = 0
        self._at_rest_after = 0  # of so many works nothing was left, no commit in flight either
        self._thread = threading.Thread(target=self._run, name="decision", daemon=True)
        self._stopping = threading.Event()
        self._deciding = threading.Lock()
        self._moved: dict[int, tuple[int, int]] = {}  # partition: generation, next offset
        # Models whose successors' taking over is not committed, oldest first; how many of them the
        # commit in flight is for.
        self._replaced: list[Scorer] = []
        self._carried = 0
        self.lost = False
        self.recovered = False
        self.in_force: dict[int, ModelChange] = {}

    # ---- for intake ----------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to take works."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether works are still taken."""
        return self._thread.is_alive()

    @property
    def idle(self) -> bool:
        """Whether nothing is under way: scorer, episodes and publisher are at rest."""
        return self._at_rest_after == self._handed_over or not self._thread.is_alive()

    def put(self, work: Work | None, timeout_s: float) -> bool:
        """Hand work over, None to end; False if there was no room in time."""
        try:
            self._works.put(work, timeout=timeout_s)
        except queue.Full:
            return False
        self._handed_over += 1
        return True

    def stop(self) -> None:
        """Give up waiting for brokers; what is not committed is repeated by the next start."""
        self._stopping.set()
        if self._transaction is not None:
            self._transaction.hurry()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(timeout_s)

    def begin_anew(self) -> None:
        """Take works again after a lost transaction: intake has begun anew.

        A model that took over within it did not: the state that is restored is the old one's.
        """
        self._moved.clear()
        if self._replaced:
            self._pipeline.change_model(self._replaced[0], {})
            self._replaced.clear()
            _log.warning("the model before is in force again", model=self._pipeline.model[0])
        self._carried = 0
        self.lost = self.recovered = False

    def try_alone(self, work: Work) -> bool:
        """Decide and publish a work on the caller's thread; False if it has to be handed over.

        Never waits for brokers: publishes only what the producer's queue has room for, and leaves
        commits to the thread. After a lost transaction the work is dropped, as it is there.
        """
        if self.lost:
            return True
        self.decide(work)
        if not self._outbox.room_for(work):
            return False
        self.publish(work)
        return True

    @property
    def to_be_committed(self) -> bool:
        """Whether something was published that readers see only once it is committed."""
        return self._transaction is not None and self._transaction.dirty

    # ---- one work ------------------------------------------------------------------------------

    def decide(self, work: Work) -> None:
        """Score and decide one micro-batch, or put another model in force."""
        with self._deciding:
            self._decide(work)

    @contextlib.contextmanager
    def between_works(self) -> Iterator[None]:
        """Let no work be decided meanwhile: what is taken from the pipeline may be of one's own."""
        with self._deciding:
            yield

    def _decide(self, work: Work) -> None:
        still, generations = self._partitions.still, work.generations
        changes = [c for c in work.changes if still(c.partition, generations)]
        if work.model is not None:
            self._change_model(work, work.model, changes)
            work.model = None  # the work may be kept for a while, the model must not
        self.record(changes)
        if work.outcome is not None:
            return
        ours = [part for part in work.prepared if still(part.batch.partition, generations)]
        began = time.perf_counter()
        outcome = work.outcome = self._pipeline.finish(ours) if ours else None
        if outcome is not None and self._latents:
            # Named now: when they are published, later batches may have brought other names.
            name = self._pipeline.name
            work.latents = [
                (name(message.partition, message.key), message)
                for part, scores in zip(ours, outcome.scores, strict=True)
                for message in latent_messages(
                    part.batch, part.block, scores, self._pipeline.model_hash
                )
            ]
        self._metrics.stage.labels("scoring").observe(time.perf_counter() - began)

    def publish(self, work: Work) -> None:
        """Publish what a decided work led to, and finish its ticket."""
        began = time.perf_counter()
        self._take_note(work.positions, work.generations)
        self._outbox.send(work)
        if work.outcome is not None:
            self._observe(work.outcome)
            self._metrics.open_table.observe(filter(self._still_ours(work), work.outcome.events))
        work.ticket.finish()
        self._metrics.stage.labels("publishing").observe(time.perf_counter() - began)

    def _take_note(self, positions: Mapping[int, int], generations: Mapping[int, int]) -> None:
        """Note which partitions' events are about to be part of the next commit, and up to where.

        Also of partitions given up meanwhile: a transaction with their events must not be committed
        (`_checkpoint`), nor one with events from before and after a partition came back.
        """
        for partition, next_offset in positions.items():
            before, _ = self._moved.get(partition, (generations[partition], 0))
            if before != generations[partition] and self.to_be_committed:
                raise TransactionLostError(f"partition {partition} was taken away and came back")
            self._moved[partition] = generations[partition], next_offset

    def record(self, changes: Sequence[ModelChange]) -> None:
        """Record from which offsets which model scores; `tapewatch score --changes` reads it."""
        for change in changes:
            self.in_force[change.partition] = change
            _log.info(LOGGED_AS, **change.to_dict())

    def _checkpoint(self, work: Work | None) -> None:
        """Commit what was decided since the last time, with the state that belongs to it."""
        if self._keeper is None:
            return
        began = time.perf_counter()
        # Noted before it is asked what is still ours: a rebalance after that makes it invalid.
        group = None if self._transaction is None else self._consumer.group
        generations = self._partitions.generations.copy()
        moved = {p: o for p, (g, o) in self._moved.items() if g == generations.get(p, 0)}
        if self._transaction is not None and len(moved) < len(self._moved) and self.to_be_committed:
            raise TransactionLostError(
                "a partition was taken away before its events were committed"
            )
        ticket = self._ledger.open({}) if work is None else work.ticket
        records = self._keeper.records(moved, self._snapshots(work))
        told = {partition for partition, _ in records}
        witnesses = self._keeper.witnesses(told)
        if self._transaction is not None and any(
            self._partitions.generations.get(p, 0) != generations.get(p, 0)
            for p in told | set(moved)
        ):
            raise TransactionLostError("a partition was taken away while its state was told")
        for partition, (key, value) in records:
            self._publish_state(ticket, partition, key, value)
        if self._transaction is None:
            self._claim(ticket, moved)
        elif moved or self._transaction.dirty:
            self._carried = len(self._replaced)
            commit = partial(self._transaction.commit, self._ticks_topic, witnesses | moved, group)
            self._in_flight = Commit(commit, self._works.put, moved, ticket, began)
        self._moved.clear()
        if self._in_flight is None:
            ticket.finish()
            self._metrics.stage.labels("committing").observe(time.perf_counter() - began)

    def _settle(self) -> None:
        """Wait for the commit in flight, take note of it, and publish what was held meanwhile."""
        commit, self._in_flight = self._in_flight, None
        held, self._held = self._held, []
        if commit is None:
            return
        commit.end()
        commit.ticket.finish()
        del self._replaced[: self._carried]
        self._carried = 0
        if self._keeper is not None:
            self._keeper.committed(commit.positions)
        self._metrics.transactions.labels("committed").inc()
        self._metrics.stage.labels("committing").observe(commit.seconds)
        for work in held:
            self.publish(work)

    def _snapshots(self, work: Work | None) -> dict[int, tuple[int, Arrays]]:
        """Next offset and windows of the partitions whose snapshot begins."""
        if work is None or not work.snapshots:
            return {}
        self._step("snapshotting")
        return {
            partition: (work.positions[partition], windows)
            for partition, windows in work.snapshots.items()
            if self._partitions.still(partition, work.generations)
        }

    def _claim(self, ticket: Ticket, moved: Mapping[int, int]) -> None:
        """Let next offsets be committed once all before, and their state, is acknowledged."""
        self._ledger.claim(ticket, moved)
        gone = [p for p in moved if not self._partitions.still(p, {p: self._moved[p][0]})]
        self._ledger.forget(gone)  # given up just now, maybe before the claim

    def _publish_state(
        self, ticket: Ticket, partition: int, key: bytes, value: bytes | None
    ) -> None:
        def acknowledged(error: str | None) -> None:
            if error is not None:
                advice = (
                    f"; set max.message.bytes of that topic to {USUAL_LIMIT_BYTES}, the default, "
                    f"at least: records of state have up to {CHUNK_BYTES} bytes before compression"
                    if TOO_LARGE in error
                    else ""
                )
                self._outbox.refused(
                    f"state of partition {partition} to topic {self._state_topic} was refused by "
                    f"Kafka: {error}{advice}"
                )
                return
            self._metrics.state_bytes.inc(len(key) + len(value or b""))
            ticket.acknowledge()

        ticket.expect()
        self._publisher.publish(self._state_topic, key, value, (), acknowledged, partition)

    # ---- its own thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (work := self._works.get()) is not None:
                try:
                    if isinstance(work, Work):
                        self._taken += 1
                        self._finish(work)
                    elif work is self._in_flight:  # else it was waited for
                        self._go_on()
                except TransactionLostError as error:
                    self._lose(error)
                if self._in_flight is None:
                    self._at_rest_after = self._taken
            try:
                self._settle()
            except TransactionLostError as error:  # the next start repeats it
                self.lose(error)
        except BaseException as error:  # handed to the daemon, which raises it
            self._fail(error)

    def _finish(self, work: Work) -> None:
        """Bring one work to its end, or hold it; after a lost transaction it is dropped."""
        if self.lost:
            if not self.recovered:  # lost on intake's thread
                self._recover()
            return
        if work.outcome is None:
            self.decide(work)
        if self._in_flight is not None:
            # A checkpoint is of the state as it is now: nothing more may be decided before it.
            if not (work.checkpoint or self._in_flight.over or len(self._held) >= HELD_WORKS):
                self._held.append(work)
                return
            self._settle()
        if not work.checkpoint:
            self.publish(work)
        self._go_on(work)

    def _go_on(self, work: Work | None = None) -> None:
        """Commit what readers wait for at once, or as soon as the commit in flight is over.

        If more work waits, one commit is for several, until the transaction is `overdue`: each
        costs as much processor time as some thousand ticks.
        """
        self._settle()
        if work is not None and work.checkpoint:
            self._checkpoint(work)
        elif (
            self.to_be_committed
            and self._transaction is not None
            and (self._taken >= self._handed_over or self._transaction.overdue)
        ):
            self._checkpoint(None)

    def lose(self, error: TransactionLostError) -> None:
        """Drop what comes, until a transaction is possible again and intake has begun anew."""
        self.lost = True
        self._metrics.transactions.labels("aborted").inc()
        self._metrics.commit_failures.inc()
        _log.warning("transaction lost, beginning anew from what is committed", reason=str(error))

    def _lose(self, error: TransactionLostError) -> None:
        self._in_flight, self._held = None, []
        self.lose(error)
        self._recover()

    def _recover(self) -> None:
        if self._transaction is not None:
            self.recovered = self._transaction.recover(stop=self._stopping.is_set)

    def _step(self, name: str) -> None:
        if self._transaction is not None:
            self._transaction.step(name)

    def _change_model(self, work: Work, model: LoadedModel, changes: Sequence[ModelChange]) -> None:
        """Let another model score from here on; the old one's episodes close."""
        scorer, old = model.scorer, self._pipeline.model
        if self._transaction is not None:
            self._replaced.append(self._pipeline.scorer)
        next_offsets = {change.partition: change.next_offset for change in changes}
        work.positions = next_offsets  # their closing events belong to these
        closed = self._pipeline.change_model(scorer, next_offsets)
        work.outcome = Outcome(closed, (), (), {}, {})
        self._metrics.observe_model(
            version=scorer.version,
            model_hash=scorer.model_hash,
            device=scorer.device,
            created=model.created,
            loaded_s=time.time(),
            thresholds=scorer.thresholds,
        )
        self._metrics.model_swaps.labels("done").inc()
        _log.info(
            "model swapped",
            model=scorer.version,
            model_hash=scorer.model_hash,
            before=old[0],
            before_hash=old[1],
            episodes_closed=len(closed),
        )

    def _still_ours(self, work: Work) -> Callable[[AnomalyEvent], bool]:
        """Return whether an event's partition was not given up since the work was taken in."""
        partitions = self._partitions
        return lambda event: partitions.still(event.source.partition, work.generations)

    def _observe(self, outcome: Outcome) -> None:
        metrics = self._metrics
        metrics.observe_counts(outcome.dropped, outcome.flagged)
        for scores in outcome.scores:
            metrics.error.observe(scores.stage1, "1")
            metrics.error.observe(scores.stage2, "2")
            metrics.score.observe(scores.score)
            metrics.score_per_threshold.observe(scores.score / scores.threshold)
        metrics.scored.inc(sum(int(block.ready.sum()) for block in outcome.blocks))
        metrics.instrument_hours.inc(outcome.instrument_hours)
        if self._observer is not None:
            self._observer.observe(outcome)
