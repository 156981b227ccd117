"""Ticks in, outcome out: features, score, decide, in that order and nowhere else.

Training, replay, evaluation, benchmarks and the daemon all drive this object. It performs no I/O,
reads no clock, logs and counts nothing: an `Outcome` states the facts, others act on them.

`prepare` touches only feature banks and `finish` only the scorer and the episodes, so that one
thread may prepare the next micro-batch while another finishes the present one. State goes out and
comes back in the same two halves: `capture_features` is the first thread's, `capture_decisions` and
`take_delta` are the second's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.drift import Drift, DriftBook, DriftSpec, drift_of
from detector.events import (
    TOP_FEATURES,
    AnomalyEvent,
    EpisodeBook,
    EpisodePolicy,
    Source,
    Summary,
    TopFeature,
    Transition,
    episode_id,
    event_id,
    flag_labels,
    raised_by,
    severity_of,
)
from detector.features import FeatureBank, FeatureBlock, FeatureSpec
from detector.naming import Name, head_inputs
from detector.partition_state import DecisionState, Touched, restored
from detector.scorer import Explanation, ScoreBlock, Scorer
from detector.state_checks import Arrays
from detector.symbols import SymbolMap, unnamed
from detector.thresholds import ThresholdBook, TradingTime
from detector.ticks import Batch, Quality, split_key


@dataclass(frozen=True, slots=True)
class PipelineSpec:
    """What a pipeline is, beside its model: where ticks come from, its caps and its policy.

    Parameters
    ----------
    topic
        Name of the input topic, part of every event's identity.
    max_instruments
        Cap on tracked instruments per partition; the least recently seen is evicted.
    policy
        When episodes update and close.
    adapt
        Whether thresholds may follow the alarms they cause, where the model says that they do.
    latent
        Whether scores carry the latent.
    drift
        Which ticks are compared with the model's reference; None: none.
    """

    topic: str = "ticks"
    max_instruments: int = 10_000
    policy: EpisodePolicy = field(default_factory=EpisodePolicy)
    adapt: bool = True
    latent: bool = False
    drift: DriftSpec | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """One partition's batch with its features, ready to be scored."""

    batch: Batch
    block: FeatureBlock


Reasons = tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]
"""Top features of one row: `(K,)` indices, and `(K, 3)` value, expected and share of each."""


@dataclass(frozen=True, slots=True, eq=False)
class _Decision:
    """How the episodes of one partition moved by one batch.

    Parameters
    ----------
    measures
        `(5, n)` float64, as `EpisodeBook.step` takes them.
    transitions
        What happened, in order.
    peaks
        Slot and row of the open episodes whose peak lies in this batch.
    """

    measures: npt.NDArray[np.float64]
    transitions: Sequence[Transition]
    peaks: Sequence[tuple[int, int]]

    def rows_to_explain(self) -> list[int]:
        """Rows that an event or a new peak is about, ascending."""
        rows = {_row_of(t) for t in self.transitions} | {row for _, row in self.peaks}
        return sorted(rows - {-1})


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What one micro-batch led to.

    Parameters
    ----------
    events
        In order of their partition's ticks.
    blocks, scores
        Features and scores of each partition's batch, row by row, with the threshold applied.
    dropped
        Ticks that changed nothing, by reason.
    flagged
        Ticks processed although unusual, by flag.
    instrument_hours
        Trading time over which instruments were scored, summed over them, in hours.
    """

    events: tuple[AnomalyEvent, ...]
    blocks: tuple[FeatureBlock, ...]
    scores: tuple[ScoreBlock, ...]
    dropped: dict[str, int]
    flagged: dict[str, int]
    instrument_hours: float = 0.0


class Pipeline:
    """The whole way of a tick, with the running state of every assigned partition.

    Parameters
    ----------
    features
        Definition of the features; its fingerprint is the model's.
    scorer
        The compiled two-stage model.
    spec
        Topic name, caps and episode policy.
    symbols
        Names that go before the model's own and those of messages; told of the names refused.
    """

    def __init__(
        self,
        features: FeatureSpec,
        scorer: Scorer,
        spec: PipelineSpec | None = None,
        symbols: SymbolMap | None = None,
    ) -> None:
        self._features = features
        self._scorer = scorer
        self._spec = spec or PipelineSpec()
        self.symbols = symbols or SymbolMap()
        self._banks: dict[int, FeatureBank] = {}
        self._states: dict[int, DecisionState] = {}
        self._drift: dict[int, DriftBook] = {}
        self._trading: dict[int, TradingTime] = {}

    def process(self, batch: Batch) -> Outcome:
        """Features, score, decide: the whole way of one batch of one partition."""
        return self.finish([self.prepare(batch)])

    def prepare(self, batch: Batch) -> Prepared:
        """Advance the partition's windows by the batch and return its features."""
        return Prepared(batch, self._bank(batch.partition).update(batch))

    def finish(self, prepared: Sequence[Prepared]) -> Outcome:
        """Score prepared batches together and decide, partition by partition."""
        blocks = tuple(p.block for p in prepared)
        scores = tuple(map(self._apply, prepared, self._score(blocks)))
        self._compare(prepared, scores)
        decisions = [
            self._decide(p, block_scores) for p, block_scores in zip(prepared, scores, strict=True)
        ]
        events = self._tell(prepared, decisions)
        dropped, flagged = count_quality([block.quality for block in blocks])
        hours = sum(map(self._hours, prepared, scores))
        return Outcome(tuple(events), blocks, scores, dropped, flagged, hours)

    def release(self, partition: int) -> None:
        """Forget a partition that now belongs to another process, or that will be restored."""
        self._banks.pop(partition, None)
        self._states.pop(partition, None)
        self._drift.pop(partition, None)
        self._trading.pop(partition, None)

    def replay(self, batch: Batch) -> None:
        """Take a batch into the windows and learn its names, without scoring it.

        For the ticks between a snapshot of features and the offset up to which the decision state
        is known; by the thread that prepares, while the other has nothing of the partition.
        """
        self._bank(batch.partition).update(batch)
        self._learn_names(batch)

    def capture_features(self, partition: int) -> dict[str, npt.NDArray[Any]]:
        """Copy the windows of a partition out, as `FeatureBank.snapshot`; {} if it has none yet.

        By the thread that prepares.
        """
        bank = self._banks.get(partition)
        return {} if bank is None else bank.snapshot()

    def capture_decisions(self, partition: int) -> dict[str, npt.NDArray[Any]]:
        """Copy out all of a partition that depends on scores, its watermark and its names.

        By the thread that finishes, between two `finish`. The next delta is the same with and
        without it: what was told before may then go on without the capture, and it may too.

        Returns
        -------
        arrays
            As in `partition_state`: `episodes.*`, `thresholds.*`, `names.*`.
        """
        return self._state_of(partition).capture()

    def take_delta(self, partition: int) -> dict[str, npt.NDArray[Any]]:
        """Copy out what of that changed since the last call, or since `restore`.

        By the thread that finishes, between two `finish`. After `change_model`, and after a
        `restore` that took over no episodes and thresholds, it holds `reset`: what was told before
        it is void.

        Returns
        -------
        arrays
            As in `partition_state`, with a row for each instrument that had a tick.
        """
        return self._state_of(partition).take_delta()

    def restore(
        self,
        partition: int,
        features: Arrays,
        decisions: Arrays,
        deltas: Sequence[Arrays],
        *,
        same_model: bool = True,
    ) -> None:
        """Replace a partition's state; while neither thread has anything of it.

        `replay` of the ticks between the two offsets, and going on from there, equals never having
        stopped: features, scores, thresholds and events, to the last bit. Trading time and the
        counts for drift begin anew, they are for metrics only.

        Parameters
        ----------
        partition
            Of the input topic.
        features
            What `capture_features` gave; {}: fresh windows.
        decisions
            What `capture_decisions` gave; {}: nothing has been decided before the first delta.
        deltas
            All that `take_delta` gave since, up to the offset to go on from.
        same_model
            Whether the model in force then is the present one. If not, the watermark and the names
            are all that is taken over of `decisions` and `deltas`.

        Raises
        ------
        ValueError
            Something does not fit this pipeline. The partition is then released.
        """
        self.release(partition)
        bank = self._features.bank(self._spec.max_instruments)
        if features:
            bank.restore(features)
        state = restored(
            self._new_state,
            len(self._features.names),
            decisions,
            deltas,
            same_model=same_model,
        )
        self._banks[partition] = bank
        self._states[partition] = state

    def change_model(
        self, scorer: Scorer, next_offsets: Mapping[int, int]
    ) -> tuple[AnomalyEvent, ...]:
        """Let another model score what comes next, in all partitions; between two `finish` only.

        Open episodes close with the reason "model", as the old model measured and names them.
        Thresholds start from the new model's priors, drift from its reference. Windows stay: both
        models have the same features. Nothing of the old model is kept.

        Parameters
        ----------
        scorer
            The new model, warmed.
        next_offsets
            Of each partition, the offset from which the new model scores: the place of the events.

        Returns
        -------
        closed
            The closing events, in order of partition, then of opening.

        Raises
        ------
        ValueError
            The new model has other features.
        """
        if scorer.fingerprint != self._features.fingerprint:
            raise ValueError(
                f"model {scorer.version} has features {scorer.fingerprint[:12]}, the windows are "
                f"those of {self._features.fingerprint[:12]}"
            )
        width = 0 if scorer.head is None else scorer.head.width
        closed: list[AnomalyEvent] = []
        states = sorted(self._states.items())
        for partition, state in states:
            transitions = state.book.start_over(width)
            if partition in next_offsets:
                source = Source(self._spec.topic, partition, next_offsets[partition], 0)
                remembered = state.book.remembered
                closed += [self._told(t, source, remembered(t.slot)) for t in transitions]
        self._scorer = scorer
        for _, state in states:
            state.start_over(self._new_thresholds())
        self._drift = {}
        return tuple(closed)

    def name(self, partition: int, key: int, offset: int | None = None) -> str:
        """Return the name by which a partition's events tell of an instrument.

        That of the symbol map; else the model's; else the first that the partition's messages gave
        it; else `publisher:id`. So it depends on nothing but those messages and the model.

        Parameters
        ----------
        partition, key
            The input partition and the instrument.
        offset
            Of a message of the latest batch, or behind it: what later ones say does not count.
            None: behind it.
        """
        given = self._given_name(key)
        if given is not None:
            return given
        state = self._states.get(partition)
        found = None if state is None else state.names.get(key, offset)
        return unnamed(key) if found is None else found

    @property
    def scorer(self) -> Scorer:
        """The model in force."""
        return self._scorer

    @property
    def model(self) -> tuple[str, str]:
        """Version and hash of the model in force."""
        return self._scorer.version, self._scorer.model_hash

    @property
    def model_hash(self) -> str:
        """SHA-256 of the manifest of the model in force, in hex."""
        return self._scorer.model_hash

    def tracked_instruments(self) -> dict[int, int]:
        """Instruments tracked now, by partition."""
        banks = list(self._banks.items())  # at once: another thread may add one
        return {partition: bank.instruments for partition, bank in banks}

    def tracked(self, partition: int) -> npt.NDArray[np.int64]:
        """Keys of the instruments tracked now in a partition, `(n,)`."""
        bank = self._banks.get(partition)
        return np.empty(0, np.int64) if bank is None else bank.tracked

    def evictions(self) -> dict[int, int]:
        """Instruments evicted so far, by partition."""
        banks = list(self._banks.items())
        return {partition: bank.evictions for partition, bank in banks}

    def admissions(self, partition: int) -> int:
        """How often an instrument was newly tracked in the partition."""
        bank = self._banks.get(partition)
        return 0 if bank is None else bank.instruments + bank.evictions

    def open_episodes(self) -> dict[int, int]:
        """Open episodes, by partition."""
        states = list(self._states.items())  # at once: another thread may add one
        return {partition: state.book.open_episodes for partition, state in states}

    def drift(self) -> Drift | None:
        """How far all partitions together have moved; None while there are too few rows."""
        spec = self._spec.drift
        books = list(self._drift.values())  # at once: another thread may add one
        if spec is None or not books:
            return None
        # Of the books, not of the scorer: that may be another one by now.
        reference = books[0].reference
        counts = [book.counts() for book in books]
        found = sum(counts[1:], start=counts[0])
        enough = found.visits.sum() >= spec.least_rows
        return drift_of(reference, found) if enough else None

    def _bank(self, partition: int) -> FeatureBank:
        if partition not in self._banks:
            self._banks[partition] = self._features.bank(self._spec.max_instruments)
        return self._banks[partition]

    def _state_of(self, partition: int) -> DecisionState:
        if partition not in self._states:
            self._states[partition] = self._new_state()
        return self._states[partition]

    def _new_state(self) -> DecisionState:
        slots, head = self._spec.max_instruments, self._scorer.head
        book = EpisodeBook(slots, self._spec.policy, 0 if head is None else head.width)
        return DecisionState(book, self._new_thresholds(), Touched(slots))

    def _new_thresholds(self) -> ThresholdBook | None:
        """Return thresholds that follow the alarms they cause, where model and spec want that."""
        spec, thresholds = self._spec, self._scorer.thresholds
        if not (spec.adapt and thresholds.adaptive):
            return None
        policy = spec.policy
        return ThresholdBook(thresholds, spec.max_instruments, policy.close_ratio, policy.quiet_s)

    def _given_name(self, key: int) -> str | None:
        given = self.symbols.get(key)
        return self._scorer.symbols.get(key) if given is None else given

    def _learn_names(self, batch: Batch) -> None:
        if not batch.symbols:
            return
        for key, name in self._state_of(batch.partition).names.learn(batch, self.symbols).items():
            given = self._given_name(key)
            if given is not None and given != name:
                self.symbols.refuse(key, given, name)

    def _score(self, blocks: Sequence[FeatureBlock]) -> tuple[ScoreBlock, ...]:
        """One scoring call for all partitions: a call has a cost of its own."""
        if len(blocks) == 1:
            return (self._scorer.score(blocks[0], latent=self._spec.latent),)
        joined = self._scorer.score(join_blocks(blocks), latent=self._spec.latent)
        ends = np.cumsum([len(block.keys) for block in blocks]).tolist()
        starts = [0, *ends[:-1]]
        return tuple(joined.rows_between(a, b) for a, b in zip(starts, ends, strict=True))

    def _apply(self, part: Prepared, scores: ScoreBlock) -> ScoreBlock:
        """Replace the frozen thresholds by those that the partition's own alarms led to."""
        thresholds = self._state_of(part.batch.partition).thresholds
        if thresholds is None:
            return scores
        block = part.block
        applied = thresholds.apply(block.slots, block.keys, block.ts, scores.rows, scores.score)
        return replace(scores, threshold=applied)

    def _compare(self, prepared: Sequence[Prepared], scores: Sequence[ScoreBlock]) -> None:
        """Count a sample of the ticks, to tell drift."""
        spec = self._spec.drift
        if spec is None:
            return
        for part, found in zip(prepared, scores, strict=True):
            partition = part.batch.partition
            book = self._drift.get(partition)
            if book is None:
                book = self._drift[partition] = DriftBook(self._scorer.reference, spec)
            book.update(part.block, found.rows, found.score)

    def _hours(self, part: Prepared, scores: ScoreBlock) -> float:
        """Return the instrument-hours that a partition's batch adds."""
        block, partition = part.block, part.batch.partition
        if partition not in self._trading:
            self._trading[partition] = TradingTime(self._spec.max_instruments)
        return self._trading[partition].add(block.slots, block.keys, block.ts, scores.score)

    def _decide(self, part: Prepared, scores: ScoreBlock) -> _Decision:
        """Advance a partition's episodes by its batch."""
        block, batch = part.block, part.batch
        state = self._state_of(batch.partition)
        self._learn_names(batch)
        state.touched.mark(block.slots)
        book = state.book
        measures = np.stack(
            [
                scores.score,
                scores.threshold,
                scores.stage1,
                scores.stage2,
                scores.tail,
                scores.alone,
            ]
        )
        transitions = book.step(
            *(block.slots, block.keys, block.ts, batch.offsets, batch.indices, measures),
            *self._evidence(block, measures, scores),
        )
        return _Decision(measures, transitions, book.improved_peaks())

    def _evidence(
        self, block: FeatureBlock, measures: npt.NDArray[np.float64], scores: ScoreBlock
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64] | None]:
        """Rows of the alarms, and what each says about the kind of its episode."""
        head = self._scorer.head
        rows = np.flatnonzero(scores.anomaly)
        if head is None or not len(rows):
            return rows, None
        latents = self._scorer.latents(block.values[rows], block.keys[rows])
        return rows, head.evidence(head_inputs(latents, measures[2:5, rows]))

    def _name(self, transition: Transition) -> Name | None:
        head = self._scorer.head
        return None if head is None else head.name(transition.evidence, transition.alarms)

    def _tell(
        self, prepared: Sequence[Prepared], decisions: Sequence[_Decision]
    ) -> list[AnomalyEvent]:
        """Make the events of what happened, with the reasons for it."""
        wanted = [decision.rows_to_explain() for decision in decisions]
        reasons = iter(self._explain([part.block for part in prepared], wanted))
        events: list[AnomalyEvent] = []
        for part, decision, rows in zip(prepared, decisions, wanted, strict=True):
            explained = {row: next(reasons) for row in rows}
            book = self._state_of(part.batch.partition).book
            events.extend(
                self._event(part.batch, part.block, decision.measures, transition, explained, book)
                for transition in decision.transitions
            )
            for slot, row in decision.peaks:
                book.remember(slot, *explained[row])
        return events

    def _explain(
        self, blocks: Sequence[FeatureBlock], wanted: Sequence[Sequence[int]]
    ) -> list[Reasons]:
        """Top features of the wanted rows of all partitions, in order, by one scoring call."""
        if not any(wanted):
            return []
        parts = [(b, np.array(rows, np.int64)) for b, rows in zip(blocks, wanted, strict=True)]
        values = np.concatenate([block.values[rows] for block, rows in parts])
        keys = np.concatenate([block.keys[rows] for block, rows in parts])
        return _top(values, self._scorer.explain(values, keys))

    def _event(
        self,
        batch: Batch,
        block: FeatureBlock,
        measures: npt.NDArray[np.float64],
        transition: Transition,
        explained: Mapping[int, Reasons],
        book: EpisodeBook,
    ) -> AnomalyEvent:
        row, about = transition.row, _row_of(transition)
        source = Source(
            self._spec.topic, batch.partition, int(batch.offsets[row]), int(batch.indices[row])
        )
        reasons = explained[about] if about >= 0 else book.remembered(transition.slot)
        if transition.phase == "close":
            return self._told(transition, source, reasons)
        return self._told(
            transition,
            source,
            reasons,
            int(block.ts[row]),
            measures[:, row].tolist(),
            flag_labels(int(block.quality[row])),
        )

    def _told(
        self,
        transition: Transition,
        source: Source,
        reasons: Reasons,
        ts_event: int | None = None,
        measured: Sequence[float] | None = None,
        flags: tuple[str, ...] = (),
    ) -> AnomalyEvent:
        """Make an event; without time and measures of a tick, of the episode's peak."""
        episode = episode_id(
            source.topic,
            source.partition,
            transition.key,
            transition.open_offset,
            transition.open_index,
        )
        top, values = reasons
        score, threshold, stage1, stage2, tail, alone = measured or transition.peak
        severity = self._scorer.model.combination.severity(score, threshold, tail)
        without = self._scorer.without_stage2(transition.key, stage1, tail, alone)
        publisher, instrument = split_key(transition.key)
        return AnomalyEvent(
            event_id=event_id(episode, transition.phase, source),
            episode_id=episode,
            phase=transition.phase,
            symbol=self.name(source.partition, transition.key, source.offset),
            publisher_id=publisher,
            instrument_id=instrument,
            ts_event=transition.ts_alive if ts_event is None else ts_event,
            score=score,
            threshold=threshold,
            severity=severity_of(severity),
            severity_value=severity,
            stage1_error=stage1,
            stage2_error=stage2,
            stage2_share=max(0.0, 1.0 - without / score),
            raised_by=raised_by(score, without, threshold, self._spec.policy.close_ratio),
            top_features=tuple(
                TopFeature(self._features.names[i], *facts)
                for i, facts in zip(top.tolist(), values.tolist(), strict=True)
            ),
            flags=flags,
            model=self.model,
            source=source,
            summary=_summary(transition) if transition.phase == "close" else None,
            name=self._name(transition),
        )


def _row_of(transition: Transition) -> int:
    """Return the batch row whose features explain the event, or -1 for an earlier batch."""
    return transition.peak_row if transition.phase == "close" else transition.row


def _summary(transition: Transition) -> Summary:
    duration = (transition.ts_alive - transition.ts_start) / 1e9
    return Summary(
        reason=transition.reason,
        ts_start=transition.ts_start,
        ts_end=transition.ts_alive,
        duration_s=duration,
        ticks=transition.ticks,
        alarms=transition.alarms,
    )


def _top(values: npt.NDArray[np.float32], explanation: Explanation) -> list[Reasons]:
    """Per row: indices of the largest error shares, and value, expected, share of each."""
    order = np.argsort(-explanation.share, axis=1, kind="stable")[:, :TOP_FEATURES]
    facts = np.stack(
        [
            np.take_along_axis(a, order, 1)
            for a in (values, explanation.expected, explanation.share)
        ],
        axis=2,
    ).astype(np.float64)
    return list(zip(order.astype(np.int16), facts, strict=True))


def join_blocks(blocks: Sequence[FeatureBlock]) -> FeatureBlock:
    """Concatenate feature blocks of several partitions, for scoring only."""
    first = blocks[0]
    names = ("values", "ready", "quality", "keys", "ts", "slots")
    return replace(
        first, **{name: np.concatenate([getattr(b, name) for b in blocks]) for name in names}
    )


def count_quality(
    qualities: Sequence[npt.NDArray[np.uint16]],
) -> tuple[dict[str, int], dict[str, int]]:
    """Count ticks by quality flag: `(dropped by reason, flagged by flag)`."""
    dropped: dict[str, int] = {}
    flagged: dict[str, int] = {}
    for quality in qualities:
        if not quality.any():
            continue
        for flag in Quality:
            n = int(np.count_nonzero(quality & np.uint16(flag)))
            if n:
                counts = dropped if flag < Quality.LATE else flagged
                counts[flag.label] = counts.get(flag.label, 0) + n
    return dropped, flagged
