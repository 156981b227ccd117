"""The long-running process: fetch, decode, features | score, decide, publish | commit.

Two threads do the work, so that features of the next micro-batch are computed while the present
one is scored: *intake* (the caller's thread) owns the consumer, the decoder and the feature banks;
*decision* (`detector.decision`) owns the scorer, the episodes and what is published. Between them
stands a queue of two micro-batches; when decision or the brokers are slow, intake waits and
consumption slows down. While decision has nothing to do, intake decides a small micro-batch itself:
there is nothing to overlap then, and handing over costs more than deciding. Delivery reports come
on a third thread and only settle tickets in the ledger.

This module is intake, the assignment and the life of the process.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import structlog

from detector.collecting import rare_collections
from detector.decision import Decision, Observer
from detector.errors import FailedError
from detector.events import EVENT_BYTES
from detector.kafka import (
    KafkaUnusableError,
    PartitionMessages,
    Publisher,
    TickConsumer,
    TransactionalPublisher,
    TransactionLostError,
)
from detector.ledger import Ledger
from detector.metrics import Metrics
from detector.model_changes import ModelChange
from detector.model_watch import LoadedModel
from detector.outbox import USUAL_LIMIT_BYTES, Addresses, Outbox
from detector.partitions import Partitions
from detector.pipeline import Pipeline, Prepared
from detector.state_checks import Arrays
from detector.state_keeper import Restored, StateKeeper
from detector.state_records import CHUNK_BYTES
from detector.ticks import Batch
from detector.wire import Decoder
from detector.work import Work

_log = structlog.get_logger("tapewatch")

DRAIN_S: Final = 3.0
"""Time that a revocation or a shutdown may spend on finishing what is under way. A shutdown also
waits for the decision thread, the group and the producer: 3 + 1 + 3 + 1 of its 10 seconds."""
_ALONE_TICKS: Final = 1024
"""Up to here a micro-batch is decided by the thread that took it in, if nothing is under way."""
_BEAT_LIMIT_S: Final = 30.0
_DRIFT_INTERVAL_S: Final = 10.0
_ANSWER_S: Final = 5.0  # of the brokers, to one question
_PAUSE_S: Final = 0.01
_RETRY_S: Final = 1.0
_LACKING_S: Final = 10.0
_NAME_WAITS_S: Final = 0.5, 5.0  # first and longest time until it is asked for again
_STOP_WAITS_S: Final = 0.5  # for the decision thread to take what it was about to be given
_END_WAITS_S: Final = 2.0  # for it to end, once it was told to
_PLACES: Final = 4096  # instruments whose partitions are remembered although they were evicted
_POLL_WITHIN_S: Final = 10.0  # the group takes a member that does not poll for dead, minutes later


class DaemonFailedError(FailedError, RuntimeError):
    """The daemon cannot go on; nothing was committed beyond what was acknowledged."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the daemon itself needs to know; the rest is in its parts.

    Parameters
    ----------
    anomalies, dead_letters, ticks
        Topic names.
    latents
        Topic for the latents, which the pipeline's scores then must carry; None: not published.
    max_batch_size, max_delay_s
        Bounds of a micro-batch: ticks, and the time its first tick may wait, in seconds.
    commit_interval_s
        Time between two offset commits, in seconds.
    latency_from_recv
        Measure tick-to-event from `ts_recv` instead of the Kafka timestamp.
    state
        Topic of state; used with a `StateKeeper` only.
    """

    ticks: str
    anomalies: str
    dead_letters: str
    latents: str | None = None
    max_batch_size: int = 4096
    max_delay_s: float = 0.001
    commit_interval_s: float = 1.0
    latency_from_recv: bool = False
    state: str = ""


class Daemon:
    """Consumes ticks and publishes anomaly events until told to stop.

    Parameters
    ----------
    settings
        Topic names, batching, commit interval.
    pipeline, decoder
        What happens to the bytes in between.
    consumer
        Builds the consumer, given the daemon as its `Assignment`.
    publisher
        Where events and dead letters go. A `TransactionalPublisher`, which needs a `keeper`, makes
        delivery exactly-once.
    metrics
        Observed once a micro-batch.
    observer
        Sees every outcome.
    keeper
        Keeps the state over restarts; None: partitions begin cold.
    """

    def __init__(
        self,
        settings: Settings,
        pipeline: Pipeline,
        decoder: Decoder,
        consumer: Callable[[Daemon], TickConsumer],
        publisher: Publisher,
        metrics: Metrics,
        observer: Observer | None = None,
        keeper: StateKeeper | None = None,
    ) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._decoder = decoder
        self._publisher = publisher
        self._metrics = metrics
        self._keeper = keeper
        self._consumer = consumer(self)
        metrics.kafka.watch("consumer", self._consumer.health)
        metrics.kafka.watch("producer", publisher.health)
        metrics.is_ready = lambda: self.ready()[0]
        self._exactly_once = isinstance(publisher, TransactionalPublisher)
        self._ledger = Ledger()
        self._partitions = Partitions()
        self._outbox = Outbox(
            Addresses(settings.ticks, settings.anomalies, settings.dead_letters, settings.latents),
            publisher,
            metrics,
            self._refused,
            latency_from_recv=settings.latency_from_recv,
        )
        self._decision = Decision(
            pipeline,
            self._outbox,
            publisher,
            metrics,
            self._partitions,
            self._ledger,
            self._consumer,
            (settings.ticks, settings.state),
            keeper,
            self._fail,
            observer,
            latents=settings.latents is not None,
        )
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._partition_of: dict[int, int] = {}
        self._tracked: dict[int, int] = {}
        self._ticks_per_message = 1.0
        self._beat = time.monotonic()
        self._waits_since = math.inf  # for the decision thread to take more
        self._commit_due = 0.0
        self._drift_due = self._observe_due = 0.0
        self._commit_errors_seen = 0
        self._uncommitted = False  # something was handed on since the last checkpoint
        self._restore_due = 0.0
        self._name_wait_s = 0.0  # while the group has another member of our name
        self._lacks_since = math.inf
        self._started = False
        self._winding_down = False
        self._offered: queue.SimpleQueue[LoadedModel] = queue.SimpleQueue()
        self._last_offer: LoadedModel | None = None  # handed on
        self._lost_offer: LoadedModel | None = None  # to be handed on again
        self._revoking = False  # called from within the consumer, which must not be polled then
        self._newest = pipeline.model  # of the work handed on so far; decision may be behind

    # ---- life ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stop`; returns after everything taken in is published and committed.

        Raises
        ------
        DaemonFailedError
            When Kafka refuses what is needed, or a record was refused for good.
        """
        self._wait_for_topics()
        if self._stop.is_set() or not self._transactions_possible():
            return
        self._decision.start()
        self._consumer.subscribe()
        self._started = True
        try:
            with rare_collections():
                while not self._stop.is_set() and self._failure is None:
                    self._intake()
        finally:
            self._wind_down()
        if self._failure is not None:
            raise DaemonFailedError(str(self._failure)) from self._failure

    def stop(self) -> None:
        """Ask `run` to finish; safe from a signal handler."""
        self._stop.set()

    def offer(self, model: LoadedModel) -> None:
        """Put a model in force between two micro-batches, soon; from any thread.

        Of several offered meanwhile the latest counts.
        """
        self._offered.put(model)

    def refuse(self, reason: str) -> None:
        """Tell that a new model cannot be used, and that the present one goes on."""
        self._metrics.model_swaps.labels("refused").inc()
        _log.error("model refused, the one in force goes on", reason=reason)

    def models_in_force(self) -> list[ModelChange]:
        """Return for each partition which model scores it, and from which offset on."""
        return sorted(self._decision.in_force.copy().values())

    def healthy(self) -> tuple[bool, str]:
        """Whether the loop is alive: it came round within the last 30 seconds."""
        silent_s = time.monotonic() - self._beat
        if self._failure is not None:
            return False, f"failed: {self._failure}"
        if silent_s > _BEAT_LIMIT_S:
            return False, f"the loop has not come round for {silent_s:.0f} s"
        return True, "alive"

    def ready(self) -> tuple[bool, str]:
        """Whether ticks would be processed now."""
        reason = self._not_ready()
        if reason:
            return False, reason
        return True, f"ready with {len(self._consumer.assigned_partitions)} partitions"

    def _not_ready(self) -> str:
        """Why no tick would be processed now, in words; "" where one would."""
        rebuilt = sorted(self._partitions.replaying.copy())
        held = sorted(self._consumer.held.copy())
        reasons = {
            "stopping": self._failure is not None or self._stop.is_set(),
            (stuck := self._loop_stuck()): bool(stuck),
            "waiting for Kafka and its topics": not self._started,
            "the group has another member with this group.instance.id, waiting for its end": (
                self._name_wait_s > 0
            ),
            f"no broker reachable: {self._consumer.health.last_error}": (
                not self._consumer.health.reachable
            ),
            "waiting for the consumer group's assignment": not self._partitions.joined,
            (hung := self._hung()): bool(hung),
            "a transaction was lost, beginning anew from what is committed": self._decision.lost,
            f"state of partitions {held} is being read": bool(held),
            f"windows of partitions {rebuilt} are being rebuilt from their ticks": bool(rebuilt),
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _loop_stuck(self) -> str:
        """Why the process as a whole is not well, in words; "" where it is."""
        alive, reason = self.healthy()
        return "" if alive else reason

    def _hung(self) -> str:
        """Why nothing is processed although the loop runs, in words; "" where it is."""
        waited_s = time.monotonic() - self._waits_since
        if waited_s <= _BEAT_LIMIT_S:
            return ""
        return (
            f"no micro-batch was decided and published for {waited_s:.0f} s: scoring hangs, or the "
            "brokers take no events"
        )

    def _wait_for_topics(self) -> None:
        """Wait with backoff until a broker answers; refuse to start without the topics."""
        wait_s = 0.5
        while not self._stop.is_set():
            self._beat = time.monotonic()
            try:
                topics = self._consumer.topics(timeout_s=5.0)
            except TimeoutError as error:
                self._raise_if_unusable()
                _log.warning("kafka is not reachable, waiting", error=str(error), wait_s=wait_s)
                self._stop.wait(wait_s)
                wait_s = min(10.0, wait_s * 2)
                continue
            if lacking := self._lacking(topics) or self._loses_state() or self._too_small():
                raise DaemonFailedError(lacking)
            return

    def _lacking(self, topics: Mapping[str, int]) -> str:
        """Say which topics are missing or too small, given the partitions of those there are."""
        names = self._settings
        wanted = [names.ticks, names.anomalies, names.dead_letters]
        if names.latents is not None:
            wanted.append(names.latents)
        if self._keeper is not None:
            wanted.append(names.state)
        missing = [name for name in wanted if name not in topics]
        if missing:
            return (
                f"topics {', '.join(missing)} do not exist, or this user may not see them; create "
                "them with `tapewatch topics create`, or ask for the right to describe them"
            )
        if self._keeper is not None and topics[names.state] < topics[names.ticks]:
            return (
                f"topic {names.state} has {topics[names.state]} partitions, topic {names.ticks} "
                f"has {topics[names.ticks]}: the state of a partition stands in the one of the "
                "same number; give it as many"
            )
        return ""

    def _loses_state(self) -> str:
        """Say that the topic of state deletes records by time, or grows for ever, if it is so."""
        if self._keeper is None:
            return ""
        why = self._publisher.wrong_policy(self._settings.state, "compact")
        return f"topic {self._settings.state} {why}" if why else ""

    def _too_small(self) -> str:
        """Say that a topic takes too small records for what goes there, if it is known to be so.

        Beforehand: a record that is refused for its size would be met again by every start.
        """
        needs = {self._settings.anomalies: ("an event", EVENT_BYTES)}
        if self._keeper is not None:
            needs[self._settings.state] = "a record of state", CHUNK_BYTES
        for topic, (what, bytes_) in needs.items():
            limit = self._publisher.settings_of(topic).get("max.message.bytes")
            if limit is not None and int(limit) < bytes_:
                return (
                    f"topic {topic} has max.message.bytes = {limit}; {what} may need {bytes_}: set "
                    f"it to {USUAL_LIMIT_BYTES}, the default of Kafka, or to that at least"
                )
        return ""

    def _transactions_possible(self) -> bool:
        """Wait until transactions can be begun; False if told to stop before."""
        if not isinstance(self._publisher, TransactionalPublisher):
            return True
        self._outbox.ask_for_limits()

        def stopping() -> bool:
            self._beat = time.monotonic()
            return self._stop.is_set()

        return self._publisher.recover(stop=stopping)

    def _wind_down(self) -> None:
        """Finish what is under way, commit it, leave the group."""
        deadline = time.monotonic() + DRAIN_S
        self._checkpoint(within_s=DRAIN_S)
        self._winding_down = True
        settled = self._drain(max(0.0, deadline - time.monotonic()))
        self._decision.stop()
        if self._decision.alive:
            self._put(None, force=True, within_s=_END_WAITS_S)
            self._decision.join(1.0)
        left = self._consumer.close()  # calls `revoked`, which commits
        unacknowledged = self._publisher.close(1.0)
        _log.info(
            "stopped",
            drained=settled,
            consumer_closed=left,
            unacknowledged=unacknowledged,
            failure=None if self._failure is None else str(self._failure),
        )

    # ---- intake --------------------------------------------------------------------------------

    def _intake(self) -> None:
        self._beat = time.monotonic()
        if self._consumer.name_taken:
            self._wait_for_name()
            return
        if self._decision.lost:
            self._begin_anew()
            return
        if self._keeper is not None and self._consumer.held:
            self._restore(self._keeper)
            return
        self._outbox.send_again()
        self._take_offered()
        settings = self._settings
        most = max(1, int(settings.max_batch_size / self._ticks_per_message))
        fetched = self._consumer.fetch(most, settings.max_delay_s)
        self._raise_if_unusable()
        if self._exactly_once:
            self._consumer.note_group()
        if fetched:
            self._metrics.stage.labels("batching").observe(self._consumer.waited_s)
            self._metrics.batch_wait.observe(self._consumer.waited_s)
            fetched = self._replayed(self._beyond(fetched))
        if fetched:
            work = self._take_in(fetched)
            self._hand_on(work)
            self._checkpoint_if_due(work)
        if self._beat >= self._commit_due:
            self._commit_due = self._beat + settings.commit_interval_s
            if self._uncommitted or (self._keeper is not None and self._keeper.busy):
                self._checkpoint()
            self._commit()
            self._observe_partitions()

    def _wait_for_name(self) -> None:
        """Join again after a while: the group keeps a killed member until its session is over.

        So it is with `group.protocol = consumer`; with the classic one a newcomer takes its place.
        """
        first_s, most_s = _NAME_WAITS_S
        self._name_wait_s = wait_s = min(most_s, 2 * self._name_wait_s or first_s)
        _log.warning(
            "the group has another member with this group.instance.id, waiting for its end: of one "
            "that was killed, group.consumer.session.timeout.ms of the brokers after it",
            wait_s=wait_s,
        )
        if not self._stop.wait(wait_s):
            self._consumer.rejoin()

    def _take_offered(self) -> None:
        """Hand on the latest model offered, if any: what is taken in from here on is scored by it.

        It goes the way of a micro-batch, behind those taken in before.
        """
        offered, self._lost_offer = self._lost_offer, None
        while not self._offered.empty():
            offered = self._offered.get()
        if offered is None or offered.scorer.model_hash == self._newest[1]:
            return
        self._newest = offered.scorer.version, offered.scorer.model_hash
        self._last_offer = offered
        positions = self._partitions.positions
        self._hand_on(
            Work(
                self._ledger.open({}),
                self._partitions.generations_of(positions),
                changes=[self._from(p, offset) for p, offset in sorted(positions.items())],
                model=offered,
            )
        )

    def _from(self, partition: int, offset: int) -> ModelChange:
        version, model_hash = self._newest
        return ModelChange(partition, offset, model_hash, version)

    def _beyond(self, fetched: list[PartitionMessages]) -> list[PartitionMessages]:
        """Drop what was taken in before: a client may hand a message over twice."""
        reached, left = self._partitions.reached, []
        for part in fetched:
            before, after = part.cut_at(reached.get(part.partition, 0))
            if before is not None:
                _log.warning(
                    "messages handed over twice, dropped",
                    partition=part.partition,
                    first=int(before.offsets[0]),
                    last=int(before.offsets[-1]),
                )
            if after is not None:
                reached[part.partition] = int(after.offsets[-1]) + 1
                left.append(after)
        return left

    def _replayed(self, fetched: list[PartitionMessages]) -> list[PartitionMessages]:
        """Take messages that were decided before into the windows; return the others."""
        replaying = self._partitions.replaying
        if not replaying:
            return fetched
        left = []
        for part in fetched:
            until = replaying.get(part.partition)
            if until is None:
                left.append(part)
                continue
            before, after = part.cut_at(until)
            if before is not None:
                self._replay(before)
            if after is not None or part.offsets[-1] + 1 >= until:
                del replaying[part.partition]
                _log.info("windows rebuilt", partition=part.partition, next_offset=until)
            if after is not None:
                left.append(after)
        return left

    def _replay(self, part: PartitionMessages) -> None:
        decoded = self._decoder.decode(
            part.values, part.offsets, part.partition, self._headers(part)
        )
        self._metrics.replayed.inc(len(part.values))
        if decoded.batch is not None and len(decoded.batch):
            self._pipeline.replay(decoded.batch)
            self._count_for_snapshot(decoded.batch)
        if isinstance(self._publisher, TransactionalPublisher):
            self._publisher.step("replaying")

    def _headers(self, part: PartitionMessages) -> list[list[tuple[str, bytes]] | None] | None:
        return part.headers() if self._decoder.needs_headers else None

    def _take_in(self, fetched: list[PartitionMessages]) -> Work:
        """Decode every partition's messages and advance its features."""
        positions = {part.partition: int(part.offsets[-1]) + 1 for part in fetched}
        known = self._partitions.positions
        changes = [
            self._from(part.partition, int(part.offsets[0]))
            for part in fetched
            if part.partition not in known
        ]
        known.update(positions)
        work = Work(
            # With state, offsets are committed together with it, by a checkpoint.
            self._ledger.open(positions if self._keeper is None else {}),
            self._partitions.generations_of(positions),
            positions=positions,
            messages={part.partition: part for part in fetched},
            changes=changes,
        )
        metrics, began = self._metrics, time.perf_counter()
        decode_s = features_s = 0.0
        n_ticks = n_messages = 0
        for part in fetched:
            decoded = self._decoder.decode(
                part.values, part.offsets, part.partition, self._headers(part)
            )
            n_messages += len(part.values)
            metrics.observe_counts(decoded.dropped, {})
            for rejected in decoded.rejected:
                metrics.rejected.labels(rejected.reason).inc()
                work.rejected.append((part, rejected.row, rejected.reason))
            now = time.perf_counter()
            decode_s, began = decode_s + now - began, now
            if decoded.batch is not None and len(decoded.batch):
                n_ticks += len(decoded.batch)
                prepared = self._pipeline.prepare(decoded.batch)
                self._count_for_snapshot(decoded.batch)
                self._check_placement(prepared)
                work.prepared.append(prepared)
            now = time.perf_counter()
            features_s, began = features_s + now - began, now
        metrics.stage.labels("decode").observe(decode_s)
        metrics.stage.labels("features").observe(features_s)
        metrics.messages.inc(n_messages)
        metrics.ticks.inc(n_ticks)
        metrics.batch_ticks.observe(n_ticks)
        self._ticks_per_message += 0.2 * (max(1, n_ticks / n_messages) - self._ticks_per_message)
        return work

    def _count_for_snapshot(self, batch: Batch) -> None:
        if self._keeper is not None:
            self._keeper.taken_in(batch.partition, len(batch))

    def _check_placement(self, prepared: Prepared) -> None:
        """Count instruments seen in two partitions; looks only when one was newly tracked."""
        partition = prepared.batch.partition
        tracked = self._pipeline.admissions(partition)
        if tracked == self._tracked.get(partition, 0):
            return
        self._tracked[partition] = tracked
        for key in np.unique(prepared.block.keys).tolist():
            other = self._partition_of.setdefault(key, partition)
            if other != partition and other in self._consumer.assigned_partitions:
                self._metrics.split_instruments.inc()
                _log.warning(
                    "instrument seen in two partitions, its windows are torn apart",
                    instrument=self._pipeline.name(partition, key),
                    partitions=[other, partition],
                )
            self._partition_of[key] = partition
        self._forget_evicted()

    def _forget_evicted(self) -> None:
        """Keep where instruments are seen for those only that are tracked: others come for ever."""
        places = self._partition_of
        if len(places) > 2 * sum(self._pipeline.tracked_instruments().values()) + _PLACES:
            tracked = [self._pipeline.tracked(p) for p in self._consumer.assigned_partitions]
            keys = np.concatenate(tracked).tolist() if tracked else []
            self._partition_of = {key: places[key] for key in keys if key in places}

    def _hand_on(self, work: Work) -> None:
        """Let the decision thread have the work, or decide it here if that is sooner.

        Intake never waits for brokers: it publishes only what the producer's queue has room for.
        """
        self._uncommitted = True
        # While the decision thread has nothing to do it does not touch scorer and episodes, and it
        # has nothing to do until it is given work from here.
        if work.ticks > _ALONE_TICKS or work.rejected or not self._decision.idle:
            self._put(work)
            self._uncommitted = True  # a revocation meanwhile did not commit it
            return
        try:
            if not self._decision.try_alone(work):
                self._put(work)
        except TransactionLostError as error:
            self._decision.lose(error)
            self._put(Work(self._ledger.open({}), {}))  # lets the decision thread recover
        except BaseException as error:  # as on the decision thread: `run` raises it
            self._fail(error)

    def _put(self, work: Work | None, *, force: bool = False, within_s: float = math.inf) -> bool:
        """Hand work to the decision thread, waiting while it is behind; False if it has no use.

        It waits as long as brokers are away. When told to stop it soon gives up: what decision has
        not is read again by the next start.
        """
        self._waits_since = began = time.monotonic()
        taken = False
        while (self._failure is None or force) and self._decision.alive:
            if taken := self._decision.put(work, 0.1):
                break
            self._beat = time.monotonic()
            waited_s = self._beat - began
            if self._stop.is_set() and math.isinf(within_s):
                within_s = waited_s + _STOP_WAITS_S
            if waited_s >= within_s:
                break
            if self._beat >= self._observe_due:  # the lag grows meanwhile
                self._observe_partitions()
            if waited_s > _POLL_WITHIN_S and not (self._winding_down or self._revoking):
                self._consumer.wait()
        self._waits_since = math.inf
        return taken

    def _checkpoint(
        self,
        positions: Mapping[int, int] | None = None,
        snapshots: Mapping[int, Arrays] | None = None,
        within_s: float = math.inf,
    ) -> None:
        """Have what was handed on so far committed with its state, and snapshots begun."""
        if self._keeper is None or not self._decision.alive or self._decision.lost:
            return
        places = positions or {}
        work = Work(
            self._ledger.open({}),
            self._partitions.generations_of(places),
            places,
            checkpoint=True,
            snapshots=snapshots or {},
        )
        if self._put(work, within_s=within_s):
            self._uncommitted = False
        else:
            work.ticket.finish()  # nothing waits for it

    def _checkpoint_if_due(self, work: Work) -> None:
        """Behind the work: for readers that wait for it, or because it is time for a snapshot."""
        if self._keeper is None or self._decision.lost:
            return
        partition = self._keeper.due(work.positions, self._beat)
        if partition is not None:
            self._checkpoint(
                work.positions, {partition: self._pipeline.capture_features(partition)}
            )
        elif self._decision.idle and self._decision.to_be_committed:
            self._checkpoint()

    def _commit(self) -> None:
        """Commit what is acknowledged; a failed commit is counted and repeated by the next."""
        positions = self._ledger.take_committable()
        if self._exactly_once:  # committed by transactions
            return
        failed = self._consumer.commit_errors - self._commit_errors_seen
        if failed:
            self._metrics.commit_failures.inc(failed)
            self._commit_errors_seen += failed
            _log.warning("offset commits failed, the next commit repeats them", failed=failed)
        error = self._consumer.commit(positions)
        if error is not None:
            self._metrics.commit_failures.inc()
            _log.warning("offset commit failed", error=error, positions=positions)
        if self._keeper is not None:
            self._keeper.committed(self._consumer.committed_positions)

    def _observe_partitions(self) -> None:
        pipeline = self._pipeline
        self._observe_due = self._beat + self._settings.commit_interval_s
        self._metrics.observe_partitions(
            pipeline.tracked_instruments(),
            pipeline.evictions(),
            pipeline.open_episodes(),
            self._consumer.lag(self._partitions.positions),
        )
        self._metrics.model_from_offset.set(
            {str(change.partition): change.next_offset for change in self.models_in_force()}
        )
        if self._beat >= self._drift_due:
            drift = pipeline.drift()
            self._metrics.observe_drift(drift)
            if drift is not None:
                self._drift_due = self._beat + _DRIFT_INTERVAL_S
        for key, kept, refused in pipeline.symbols.take_collisions():
            self._metrics.symbol_collisions.inc()
            _log.warning("symbol refused, its key is taken", key=key, kept=kept, refused=refused)

    def _raise_if_unusable(self) -> None:
        for health in (self._consumer.health, self._publisher.health):
            if health.fatal is not None:
                self._failure = self._failure or health.fatal  # told by `stopped`, too
                raise DaemonFailedError(str(health.fatal)) from health.fatal

    def _drain(self, timeout_s: float) -> bool:
        """Wait until everything taken in is decided, published and acknowledged."""
        deadline = time.monotonic() + timeout_s
        while not (settled := self._ledger.wait_settled(min(timeout_s, 0.1))):
            self._beat = time.monotonic()
            self._outbox.send_again()
            if self._beat >= deadline or self._failure is not None or self._decision.lost:
                break
        return settled

    # ---- assignment, called from within the consumer on the intake thread ------------------------

    def assigned(self, partitions: list[int]) -> bool:
        """Take note of new partitions. With a keeper they are held until they are restored."""
        self._partitions.joined = True
        self._name_wait_s = 0.0
        self._metrics.rebalances.labels("assigned").inc()
        _log.info("partitions assigned", partitions=partitions)
        if self._keeper is not None:
            return True
        for partition in partitions:
            self._pipeline.release(partition)
        return False

    def revoked(self, partitions: list[int]) -> None:
        """Finish and commit what is under way, then forget the partitions."""
        deadline = time.monotonic() + DRAIN_S
        if not self._winding_down:
            if self._exactly_once:
                self._consumer.note_group()
            self._revoking = True
            try:
                self._checkpoint(within_s=DRAIN_S)
            finally:
                self._revoking = False
        settled = self._drain(0.0 if self._winding_down else max(0.0, deadline - time.monotonic()))
        self._commit()
        self._release(partitions, "revoked")
        if not settled:
            _log.warning(
                "revoked before everything was committed; the next owner begins at what is"
            )

    def lost(self, partitions: list[int]) -> None:
        """Forget partitions that another member has already; commit nothing for them."""
        self._partitions.joined = False  # until the group gives some again
        self._release(partitions, "lost")

    def _release(self, partitions: list[int], kind: str) -> None:
        self._forget(partitions)
        self._metrics.rebalances.labels(kind).inc()
        _log.info(f"partitions {kind}", partitions=partitions)

    def _forget(self, partitions: list[int]) -> None:
        self._ledger.forget(partitions)
        self._partitions.forget(partitions)
        if self._keeper is not None:
            self._keeper.release(partitions)
        # A work that is being decided when a partition is lost is decided with what it had: without
        # its open episodes it would tell some events and not those before them.
        with self._decision.between_works():
            for partition in partitions:
                self._tracked.pop(partition, None)
                self._decision.in_force.pop(partition, None)
                self._pipeline.release(partition)
        self._metrics.open_table.forget(partitions)
        gone = set(partitions)
        self._partition_of = {k: p for k, p in self._partition_of.items() if p not in gone}

    # ---- restoring -----------------------------------------------------------------------------

    def _restore(self, keeper: StateKeeper) -> None:
        """Give held partitions the state of their committed offsets, and read on from there.

        Returns without it while decision may still have something of theirs, while no broker
        answers, or where the client refuses to read; intake then comes here again.
        """
        if not self._decision.idle or self._beat < self._restore_due:
            self._stay_a_member()
            return
        began = time.monotonic()
        partitions = sorted(self._consumer.held)
        try:
            places = self._consumer.places(partitions, _ANSWER_S)
            found = keeper.restore(places, self._beat)
        except TimeoutError as error:
            _log.warning(
                "state cannot be restored yet, waiting",
                topic=self._settings.state,
                error=str(error),
            )
            self._restore_due = time.monotonic() + _RETRY_S
            self._end_without_topics()
            self._stay_a_member()
            return
        self._lacks_since = math.inf
        for each in found:
            self._take_up(each)
        stuck = self._consumer.go_to({each.partition: each.replay_from for each in found})
        self._metrics.restore.observe(time.monotonic() - began)
        if stuck:
            _log.warning("partitions cannot be read yet, waiting", partitions=stuck)
            self._forget(stuck)
            self._restore_due = time.monotonic() + _RETRY_S
            self._stay_a_member()

    def _end_without_topics(self) -> None:
        """Raise if a topic has been missing or too small for a while: waiting does not mend that.

        A broker that has just started may not know all of them at once.
        """
        try:
            lacking = self._lacking(self._consumer.topics(_ANSWER_S))
        except TimeoutError:
            return
        now = time.monotonic()
        self._lacks_since = min(self._lacks_since, now) if lacking else math.inf
        if lacking and now - self._lacks_since >= _LACKING_S:
            self._failure = DaemonFailedError(lacking)  # told by `stopped`, too
            raise self._failure

    def _stay_a_member(self) -> None:
        self._raise_if_unusable()
        self._consumer.wait()
        time.sleep(_PAUSE_S)

    def _take_up(self, found: Restored) -> None:
        """Go on with a restored partition."""
        self._metrics.restored.labels(found.source).inc()
        tell = _log.warning if found.reason else _log.info
        tell(
            "partition restored",
            partition=found.partition,
            source=found.source,
            next_offset=found.next_offset,
            replay_from=found.replay_from,
            **({"reason": found.reason} if found.reason else {}),
        )
        self._partitions.reached[found.partition] = found.replay_from
        if found.replay_from < found.next_offset:
            self._partitions.replaying[found.partition] = found.next_offset
        self._partitions.positions[found.partition] = found.next_offset
        self._decision.record([self._from(found.partition, found.next_offset)])

    def _begin_anew(self) -> None:
        """After a lost transaction: restore every partition, as at an assignment."""
        if not (self._decision.recovered and self._decision.idle):
            self._stay_a_member()
            return
        partitions = sorted(self._consumer.assigned_partitions)
        self._forget(partitions)
        self._ledger.abandon()
        self._consumer.hold(partitions)
        self._decision.begin_anew()
        self._offer_again()

    def _offer_again(self) -> None:
        """Offer the newest model again if its taking over was lost with the transaction."""
        self._newest = self._pipeline.model
        offer = self._last_offer
        if offer is not None and offer.scorer.model_hash != self._newest[1]:
            self._lost_offer = offer

    # ---- what ends it --------------------------------------------------------------------------

    def _refused(self, reason: str) -> None:
        self._metrics.publish_failures.inc()
        self._fail(DaemonFailedError(reason))

    def _fail(self, error: BaseException) -> None:
        """Make `run` stop and raise; what was not acknowledged stays uncommitted."""
        if self._failure is None:
            self._failure = error
        if not isinstance(error, DaemonFailedError | KafkaUnusableError):
            _log.error("bug: the decision thread failed", exc_info=error)
