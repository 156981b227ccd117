"""The long-running process: fetch, decode, features | score, decide, publish | commit.

Two threads do the work, so that features of the next micro-batch are computed while the present
one is scored: *intake* (the caller's thread) owns the consumer, the decoder and the feature banks;
*decision* owns the scorer, the episodes and what is published. Between them stands a queue of two
micro-batches; when decision or the brokers are slow, intake waits and consumption slows down.
While decision has nothing to do, intake decides a small micro-batch itself: there is nothing to
overlap then, and handing over costs more than deciding. Delivery reports come on a third thread and
only settle tickets in the ledger.

This is the only module that joins I/O, pipeline and metrics.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import structlog

from detector.errors import FailedError
from detector.events import AnomalyEvent
from detector.kafka import (
    KafkaUnusableError,
    PartitionMessages,
    Publisher,
    TickConsumer,
)
from detector.latents import LatentMessage, latent_messages
from detector.ledger import Ledger, Ticket
from detector.metrics import STALE_AFTER_S, Metrics
from detector.model_changes import LOGGED_AS, ModelChange
from detector.model_watch import LoadedModel
from detector.pipeline import Outcome, Pipeline, Prepared
from detector.ticks import UNDEFINED_TIME, TickBatch
from detector.wire import Decoder

_log = structlog.get_logger("tapewatch")

DRAIN_S: Final = 3.0
"""Time that a revocation or a shutdown may spend on finishing what is under way. A shutdown also
waits for the decision thread, the group and the producer: 3 + 1 + 3 + 1 of its 10 seconds."""
_QUEUED_BATCHES: Final = 2
_ALONE_TICKS: Final = 1024
"""Up to here a micro-batch is decided by the thread that took it in, if nothing is under way."""
_BEAT_LIMIT_S: Final = 30.0
_DRIFT_INTERVAL_S: Final = 10.0
_CLOCK_SKEW_S: Final = 1.0  # a producer's clock may be this much ahead of ours
_TOO_LARGE: Final = "TOO_LARGE"  # in the names of Kafka's errors for a size; only it is cut for
_DEAD_LETTER_PART_BYTES: Final = 64 * 1024
_DEAD_LETTER_KEY_BYTES: Final = 1024
_COLLECT_AFTER: Final = 200_000  # objects made and not freed: a dozen micro-batches of messages


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
    """

    ticks: str
    anomalies: str
    dead_letters: str
    latents: str | None = None
    max_batch_size: int = 4096
    max_delay_s: float = 0.001
    commit_interval_s: float = 1.0
    latency_from_recv: bool = False


@dataclass(slots=True, eq=False)
class _Work:
    """One micro-batch on its way from intake to decision."""

    prepared: list[Prepared]
    rejected: list[tuple[PartitionMessages, int, str]]
    messages: dict[int, PartitionMessages]
    generations: Mapping[int, int]
    ticket: Ticket
    outcome: Outcome | None = None  # where it was decided already and only has to be published
    latents: Sequence[LatentMessage] = ()
    changes: Sequence[ModelChange] = ()  # which model scores from here on, where that is new
    model: LoadedModel | None = None  # to be put in force; such a work carries no ticks


@dataclass(slots=True)
class _Assigned:
    """What is known of the assignment: next offsets, and how often each partition was given up."""

    joined: bool = False
    positions: dict[int, int] = field(default_factory=dict)
    generations: dict[int, int] = field(default_factory=dict)


class Observer(Protocol):
    """Sees every micro-batch's outcome, for the terminal view of the demo."""

    def observe(self, outcome: Outcome) -> None:
        """Take one outcome; called from the decision thread."""


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
        Where events and dead letters go.
    metrics
        Observed once a micro-batch.
    observer
        Sees every outcome.
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
    ) -> None:
        self._settings = settings
        self._pipeline = pipeline
        self._decoder = decoder
        self._publisher = publisher
        self._metrics = metrics
        self._observer = observer
        self._consumer = consumer(self)
        metrics.kafka.watch("consumer", self._consumer.health)
        metrics.kafka.watch("producer", publisher.health)
        metrics.is_ready = lambda: self.ready()[0]
        self._ledger = Ledger()
        self._work: queue.Queue[_Work | None] = queue.Queue(_QUEUED_BATCHES)
        self._decision = threading.Thread(target=self._decide_all, name="decision", daemon=True)
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._assigned = _Assigned()
        self._partition_of: dict[int, int] = {}
        self._tracked: dict[int, int] = {}
        self._ticks_per_message = 1.0
        self._beat = time.monotonic()
        self._waits_since = math.inf  # for the decision thread to take more
        self._commit_due = 0.0
        self._drift_due = 0.0
        self._commit_errors_seen = 0
        self._started = False
        self._winding_down = False
        self._again: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._offered: queue.SimpleQueue[LoadedModel] = queue.SimpleQueue()
        self._newest = pipeline.model  # of the work handed on so far; decision may be behind
        self._in_force: dict[int, ModelChange] = {}

    # ---- life ----------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until `stop`; returns after everything taken in is published and committed.

        Raises
        ------
        DaemonFailedError
            When Kafka refuses what is needed, or a record was refused for good.
        """
        self._wait_for_topics()
        if self._stop.is_set():
            return
        self._decision.start()
        self._consumer.subscribe()
        self._started = True
        try:
            with _rare_collections():
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
        return sorted(self._in_force.copy().values())

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
        if self._failure is not None or self._stop.is_set():
            return False, "stopping"
        if hung := self._hung():
            return False, hung
        if not self._started:
            return False, "waiting for Kafka and its topics"
        if not self._assigned.joined:
            return False, "waiting for the consumer group's assignment"
        if not self._consumer.health.reachable:
            return False, f"no broker reachable: {self._consumer.health.last_error}"
        return True, f"ready with {len(self._consumer.assigned_partitions)} partitions"

    def _hung(self) -> str:
        """Why nothing is processed although the process runs, in words; "" where it is."""
        alive, reason = self.healthy()
        if not alive:
            return reason
        waited_s = time.monotonic() - self._waits_since
        if waited_s <= _BEAT_LIMIT_S:
            return ""
        return (
            f"no micro-batch was decided and published for {waited_s:.0f} s: scoring hangs, or the "
            "brokers take no events"
        )

    def _wait_for_topics(self) -> None:
        """Wait with backoff until a broker answers; refuse to start without the topics."""
        names = self._settings
        wanted = [names.ticks, names.anomalies, names.dead_letters]
        if names.latents is not None:
            wanted.append(names.latents)
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
            missing = [name for name in wanted if name not in topics]
            if missing:
                raise DaemonFailedError(
                    f"topics {', '.join(missing)} do not exist, or this user may not see them; "
                    "create them with `tapewatch topics create`, or ask for the right to describe "
                    "them"
                )
            return

    def _wind_down(self) -> None:
        """Finish what is under way, commit it, leave the group."""
        self._winding_down = True
        settled = self._drain(DRAIN_S)
        if self._decision.is_alive():
            self._put(None, force=True)
            self._decision.join(1.0)
        left = self._consumer.close()  # calls `revoked`, which commits
        unacknowledged = self._publisher.close(1.0)
        _log.info(
            "stopped",
            drained=settled,
            left_group=left,
            unacknowledged=unacknowledged,
            failure=None if self._failure is None else str(self._failure),
        )

    # ---- intake thread -------------------------------------------------------------------------

    def _intake(self) -> None:
        self._beat = time.monotonic()
        self._publish_again()
        self._take_offered()
        settings = self._settings
        most = max(1, int(settings.max_batch_size / self._ticks_per_message))
        fetched = self._consumer.fetch(most, settings.max_delay_s)
        self._raise_if_unusable()
        if fetched:
            self._metrics.stage.labels("batching").observe(self._consumer.waited_s)
            self._metrics.batch_wait.observe(self._consumer.waited_s)
            self._hand_on(self._take_in(fetched))
        if self._beat >= self._commit_due:
            self._commit_due = self._beat + settings.commit_interval_s
            self._commit(wait=False)
            self._observe_partitions()

    def _take_offered(self) -> None:
        """Hand on the latest model offered, if any: what is taken in from here on is scored by it.

        It goes the way of a micro-batch, behind those taken in before.
        """
        offered: LoadedModel | None = None
        while not self._offered.empty():
            offered = self._offered.get()
        if offered is None or offered.scorer.model_hash == self._newest[1]:
            return
        self._newest = offered.scorer.version, offered.scorer.model_hash
        positions = self._assigned.positions
        self._hand_on(
            _Work(
                prepared=[],
                rejected=[],
                messages={},
                generations=self._generations(positions),
                ticket=self._ledger.open({}),
                changes=[self._from(p, offset) for p, offset in sorted(positions.items())],
                model=offered,
            )
        )

    def _from(self, partition: int, offset: int) -> ModelChange:
        version, model_hash = self._newest
        return ModelChange(partition, offset, model_hash, version)

    def _generations(self, partitions: Iterable[int]) -> dict[int, int]:
        return {p: self._assigned.generations.get(p, 0) for p in partitions}

    def _take_in(self, fetched: list[PartitionMessages]) -> _Work:
        """Decode every partition's messages and advance its features."""
        positions = {part.partition: int(part.offsets[-1]) + 1 for part in fetched}
        known = self._assigned.positions
        changes = [
            self._from(part.partition, int(part.offsets[0]))
            for part in fetched
            if part.partition not in known
        ]
        known.update(positions)
        work = _Work(
            prepared=[],
            rejected=[],
            messages={part.partition: part for part in fetched},
            generations=self._generations(positions),
            ticket=self._ledger.open(positions),
            changes=changes,
        )
        metrics, began = self._metrics, time.perf_counter()
        decode_s = features_s = 0.0
        n_ticks = n_messages = 0
        for part in fetched:
            headers = part.headers() if self._decoder.needs_headers else None
            decoded = self._decoder.decode(part.values, part.offsets, part.partition, headers)
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
                    instrument=self._pipeline.symbols.name(key),
                    partitions=[other, partition],
                )
            self._partition_of[key] = partition

    def _hand_on(self, work: _Work) -> None:
        """Let the decision thread have the work, or decide it here if that is sooner.

        Intake never waits for brokers: it publishes only what the producer's queue has room for.
        """
        ticks = sum(len(prepared.batch) for prepared in work.prepared)
        # While the decision thread has nothing to do it does not touch scorer and episodes, and it
        # has nothing to do until it is given work from here.
        if ticks > _ALONE_TICKS or work.rejected or self._work.unfinished_tasks:
            self._put(work)
            return
        try:
            self._decide(work)
            events = () if work.outcome is None else work.outcome.events
            if len(events) + len(work.latents) <= self._publisher.room:
                self._publish(work)
                return
        except BaseException as error:  # as on the decision thread: `run` raises it
            self._fail(error)
            return
        self._put(work)

    def _put(self, work: _Work | None, *, force: bool = False) -> None:
        """Hand work to the decision thread, waiting while it is behind."""
        self._waits_since = time.monotonic()
        while self._failure is None or force:
            try:
                self._work.put(work, timeout=0.1)
            except queue.Full:
                self._beat = time.monotonic()
                if not self._decision.is_alive():
                    return
            else:
                break
        self._waits_since = math.inf

    def _commit(self, *, wait: bool) -> None:
        """Commit what is acknowledged; a failed commit is counted and repeated by the next."""
        positions = self._ledger.take_committable()
        failed = self._consumer.commit_errors - self._commit_errors_seen
        if failed:
            self._metrics.commit_failures.inc(failed)
            self._commit_errors_seen += failed
            _log.warning("offset commits failed, the next commit repeats them", failed=failed)
        error = self._consumer.commit(positions, wait=wait)
        if error is not None:
            self._metrics.commit_failures.inc()
            _log.warning("offset commit failed", error=error, positions=positions)

    def _observe_partitions(self) -> None:
        pipeline = self._pipeline
        self._metrics.observe_partitions(
            pipeline.tracked_instruments(),
            pipeline.evictions(),
            pipeline.open_episodes(),
            self._consumer.lag(self._assigned.positions),
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
                raise DaemonFailedError(str(health.fatal)) from health.fatal

    def _drain(self, timeout_s: float) -> bool:
        """Wait until everything taken in is decided, published and acknowledged."""
        deadline = time.monotonic() + timeout_s
        while not (settled := self._ledger.wait_settled(min(timeout_s, 0.1))):
            self._beat = time.monotonic()
            self._publish_again()
            if self._beat >= deadline or self._failure is not None:
                break
        return settled

    def _publish_again(self) -> None:
        """Publish the smaller forms of dead letters that their topic refused."""
        while not self._again.empty():
            self._again.get()()

    # ---- assignment, called from within the consumer on the intake thread ------------------------

    def assigned(self, partitions: list[int]) -> None:
        """Take note of new partitions; their windows start cold."""
        self._assigned.joined = True
        for partition in partitions:
            self._pipeline.release(partition)
        self._metrics.rebalances.labels("assigned").inc()
        _log.info("partitions assigned", partitions=partitions)

    def revoked(self, partitions: list[int]) -> None:
        """Finish and commit what is under way, then forget the partitions."""
        settled = self._drain(0.0 if self._winding_down else DRAIN_S)
        self._commit(wait=True)
        self._release(partitions, "revoked")
        if not settled:
            _log.warning("revoked before everything was acknowledged; it will be repeated")

    def lost(self, partitions: list[int]) -> None:
        """Forget partitions that another member has already; commit nothing for them."""
        self._assigned.joined = False  # until the group gives some again
        self._release(partitions, "lost")

    def _release(self, partitions: list[int], kind: str) -> None:
        self._ledger.forget(partitions)
        for partition in partitions:
            generation = self._assigned.generations.get(partition, 0)
            self._assigned.generations[partition] = generation + 1
            self._assigned.positions.pop(partition, None)
            self._tracked.pop(partition, None)
            self._in_force.pop(partition, None)
            self._pipeline.release(partition)
        self._metrics.open_table.forget(partitions)
        gone = set(partitions)
        self._partition_of = {k: p for k, p in self._partition_of.items() if p not in gone}
        self._metrics.rebalances.labels(kind).inc()
        _log.info(f"partitions {kind}", partitions=partitions)

    # ---- decision thread -----------------------------------------------------------------------

    def _decide_all(self) -> None:
        try:
            while (work := self._work.get()) is not None:
                if work.outcome is None:
                    self._decide(work)
                self._publish(work)
                self._work.task_done()
        except BaseException as error:  # handed to `run`, which raises it
            self._fail(error)

    def _decide(self, work: _Work) -> None:
        """Score and decide one micro-batch, or put another model in force."""
        generations = self._assigned.generations

        def still_ours(partition: int) -> bool:
            return work.generations[partition] == generations.get(partition, 0)

        changes = [change for change in work.changes if still_ours(change.partition)]
        if work.model is not None:
            self._change_model(work, work.model, changes)
            work.model = None  # the work may be kept for a while, the model must not
        self._record(changes)
        if work.outcome is not None:
            return
        ours = [part for part in work.prepared if still_ours(part.batch.partition)]
        began = time.perf_counter()
        outcome = work.outcome = self._pipeline.finish(ours) if ours else None
        if outcome is not None and self._settings.latents is not None:
            work.latents = [
                message
                for part, scores in zip(ours, outcome.scores, strict=True)
                for message in latent_messages(
                    part.batch, part.block, scores, self._pipeline.model_hash
                )
            ]
        self._metrics.stage.labels("scoring").observe(time.perf_counter() - began)

    def _change_model(
        self, work: _Work, model: LoadedModel, changes: Sequence[ModelChange]
    ) -> None:
        """Let another model score from here on; the old one's episodes close."""
        scorer, old = model.scorer, self._pipeline.model
        next_offsets = {change.partition: change.next_offset for change in changes}
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

    def _record(self, changes: Sequence[ModelChange]) -> None:
        """Record from which offsets which model scores; `tapewatch score --changes` reads it."""
        for change in changes:
            self._in_force[change.partition] = change
            _log.info(LOGGED_AS, **change.to_dict())

    def _publish(self, work: _Work) -> None:
        """Publish what a decided micro-batch led to, and settle its ticket."""
        began, outcome = time.perf_counter(), work.outcome
        for messages, row, reason in work.rejected:
            self._publish_dead_letter(work.ticket, messages, row, reason)
        if outcome is not None:
            for event in outcome.events:
                self._publish_event(work, event)
            for message in work.latents:
                self._publish_latents(work.ticket, message)
            self._observe(outcome)
            self._metrics.open_table.observe(filter(self._still_ours(work), outcome.events))
        work.ticket.finish()
        self._metrics.stage.labels("publishing").observe(time.perf_counter() - began)

    def _still_ours(self, work: _Work) -> Callable[[AnomalyEvent], bool]:
        """Return whether an event's partition was not given up since the work was taken in."""
        generations = self._assigned.generations

        def ours(event: AnomalyEvent) -> bool:
            partition = event.source.partition
            return work.generations[partition] == generations.get(partition, 0)

        return ours

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

    def _publish_event(self, work: _Work, event: AnomalyEvent) -> None:
        by_tick = bool(work.messages)  # else another model took over, and there is no latency
        started_s = self._latency_start(work, event) if by_tick else None

        def acknowledged(error: str | None) -> None:
            if error is not None:
                self._refused(
                    f"event {event.event_id} to topic {self._settings.anomalies} was refused by "
                    f"Kafka: {error}"
                )
                return
            self._metrics.events.labels(event.phase, event.severity).inc()
            if event.name is not None and event.phase == "close":
                self._metrics.named.labels(event.name.type).inc()
            if by_tick:
                self._observe_latency(started_s, event)
            work.ticket.acknowledge()

        work.ticket.expect()
        self._publisher.publish(
            self._settings.anomalies,
            event.symbol.encode(),
            event.to_json(time.time_ns()),
            event.headers(),
            acknowledged,
        )

    def _publish_latents(self, ticket: Ticket, message: LatentMessage) -> None:
        """Publish an instrument's latents, keyed as its events are."""
        name = self._pipeline.symbols.name(message.key)
        rows = len(message)

        def acknowledged(error: str | None) -> None:
            if error is not None:
                self._refused(f"latents of {name} were refused by Kafka: {error}")
                return
            self._metrics.latent_messages.inc()
            self._metrics.latents.inc(rows)
            ticket.acknowledge()

        ticket.expect()
        self._publisher.publish(
            self._settings.latents or "", name.encode(), bytes(message), (), acknowledged
        )

    def _latency_start(self, work: _Work, event: AnomalyEvent) -> float | None:
        """Where the tick-to-event latency of an event starts, in seconds since the epoch."""
        part = work.messages[event.source.partition]
        if not self._settings.latency_from_recv:
            timestamp_ms = part.timestamp_ms(event.source.offset)
            return None if timestamp_ms is None else timestamp_ms / 1e3
        for prepared in work.prepared:
            batch = prepared.batch
            if batch.partition == part.partition and isinstance(batch, TickBatch):
                row = int(np.searchsorted(batch.offsets, event.source.offset)) + event.source.index
                ts_recv = int(batch.ticks["ts_recv"][row])
                return None if ts_recv == UNDEFINED_TIME else ts_recv / 1e9
        return None

    def _observe_latency(self, started_s: float | None, event: AnomalyEvent) -> None:
        """Observe one event's latency; a replayed tick's age is no latency and is only counted."""
        latency_s = STALE_AFTER_S if started_s is None else time.time() - started_s
        if not -_CLOCK_SKEW_S <= latency_s < STALE_AFTER_S:
            self._metrics.stale.inc()
            return
        self._metrics.observe_latency(max(0.0, latency_s), event)

    def _publish_dead_letter(
        self, ticket: Ticket, messages: PartitionMessages, row: int, reason: str
    ) -> None:
        """Publish a rejected message byte for byte; if Kafka refuses its size, its first part."""
        value = messages.values[row]
        offset = int(messages.offsets[row])
        headers = [
            ("tapewatch_reason", reason.encode()),
            ("tapewatch_topic", self._settings.ticks.encode()),
            ("tapewatch_partition", str(messages.partition).encode()),
            ("tapewatch_offset", str(offset).encode()),
        ]
        key = messages.messages[row].key()
        place = f"{self._settings.ticks}-{messages.partition}@{offset}"

        cuts = _smaller(key, value)

        def publish(key: bytes | None, value: bytes | None, more: list[tuple[str, bytes]]) -> None:
            self._publisher.publish(
                self._settings.dead_letters, key, value, headers + more, acknowledged
            )

        def acknowledged(error: str | None) -> None:
            if error is None:
                self._metrics.dead_letters.inc()
                ticket.acknowledge()
                return
            smaller = next(cuts, None) if _TOO_LARGE in error else None
            if smaller is None:
                self._refused(
                    f"dead letter of {place} to topic {self._settings.dead_letters} was refused by "
                    f"Kafka: {error}"
                )
                return
            _log.error("dead letter cut, it is too large for its topic", place=place, error=error)
            # Not from here, the delivery thread: `publish` may wait for room in the producer's
            # queue, and only this thread makes room.
            self._again.put(lambda: publish(*smaller))

        ticket.expect()
        publish(key, value, [])

    def _refused(self, reason: str) -> None:
        self._metrics.publish_failures.inc()
        self._fail(DaemonFailedError(reason))

    def _fail(self, error: BaseException) -> None:
        """Make `run` stop and raise; what was not acknowledged stays uncommitted."""
        if self._failure is None:
            self._failure = error
        if not isinstance(error, DaemonFailedError | KafkaUnusableError):
            _log.error("bug: the decision thread failed", exc_info=error)


def _smaller(
    key: bytes | None, value: bytes | None
) -> Iterator[tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]]:
    """Ever smaller forms of a dead letter that its topic refuses: key, value, further headers.

    The whole message stays on the input topic; the headers say where, and what it was.
    """
    facts = [
        (f"tapewatch_{name}", fact.encode())
        for part, size, digest in (
            (value, "truncated_from", "sha256"),
            (key, "key_truncated_from", "key_sha256"),
        )
        if part is not None
        for name, fact in ((size, str(len(part))), (digest, hashlib.sha256(part).hexdigest()))
    ]
    short_key = None if key is None else key[:_DEAD_LETTER_KEY_BYTES]
    yield short_key, None if value is None else value[:_DEAD_LETTER_PART_BYTES], facts
    yield None, None if value is None else b"", facts


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Keep Python's cycle collector out of the way of the messages while the daemon works.

    Every message is an object the collector knows; by default it looks at all young ones whenever
    700 are new, and now and then at all of TensorFlow's. That took more than half of the intake
    thread's time at one tick a message, measured. Reference counts free the messages; the
    collector still runs, for cycles, only less often and without what was there before.
    """
    thresholds = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
