"""How fast this machine runs a model: features, scoring, and the engine without Kafka.

`tapewatch bench` shows it, `benchmarks/` sets it against ceilings. What is measured is the
daemon's own: its decoder, feature bank, scorer and pipeline, and in the engine its two threads
with two micro-batches between them. The tape is synthetic; nothing is read or written.
"""

from __future__ import annotations

import queue
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.artifact import Artifact
from detector.compiled import BATCH_SIZES
from detector.drift import DriftSpec
from detector.errors import RefusedError
from detector.features import FeatureBlock, FeatureSpec
from detector.pipeline import Pipeline, PipelineSpec, Prepared
from detector.scorer import Device, Scorer
from detector.synthetic import DEMO_START_NS, demo_market, gather, generate
from detector.ticks import NS_PER_S, Batch, TickArray, TickBatch, VectorBatch
from detector.wire import Decoder, encode_vector, make_decoder

MICRO_BATCH: Final = 4096
MESSAGE_TICKS: Final = 64
PARTITIONS: Final = 4
WARM: Final = 0.2
"""Share of a run after which it counts: windows and caches are warm, instruments are ready."""
_RATE_HZ: Final = 25.0  # of the demo market's instruments, on average
_QUEUED: Final = 2
_ROUNDS: Final = 7


class BenchError(RefusedError):
    """What was asked for cannot be measured."""


@dataclass(frozen=True, slots=True, eq=False)
class Progress:
    """How many ticks were done at which time: `(k,)` float64 seconds and `(k,)` int64 totals."""

    seconds: npt.NDArray[np.float64]
    ticks: npt.NDArray[np.int64]

    def rate(self, first: float = WARM, last: float = 0.95) -> float:
        """Ticks per second between two shares of all ticks, start and end left out."""
        total = float(self.ticks[-1])
        begin, end = np.interp([first * total, last * total], self.ticks, self.seconds)
        return (last - first) * total / float(end - begin)


@dataclass(frozen=True, slots=True, eq=False)
class Fetched:
    """One micro-batch of one partition, as a consumer hands it over."""

    partition: int
    values: list[bytes]
    offsets: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing measured: median over rounds, with the lowest and the highest."""

    name: str
    value: float
    low: float
    high: float
    unit: str


def synthetic_ticks(instruments: int, ticks: int, seed: int = 7) -> TickArray:
    """About `ticks` ticks of synthetic instruments within an hour, in order of event time.

    Where that would be more than the demo market's 25 a second each, it lasts longer. An hour,
    however few they are: instruments warm up for a while, and most of a tape must be scored.
    """
    seconds = max(3600.0, ticks / (_RATE_HZ * instruments))
    slower = ticks / (seconds * _RATE_HZ * instruments)
    market = demo_market(seed, instruments)
    market = replace(
        market,
        instruments=tuple(
            replace(each, rate_hz=max(1e-3, each.rate_hz * slower)) for each in market.instruments
        ),
    )
    return gather(generate(market, DEMO_START_NS, seconds, chunk_s=seconds / 60)).ticks


def synthetic_vectors(columns: int, instruments: int, rows: int, seed: int = 7) -> VectorBatch:
    """Random walks: `rows` vectors of instruments taking turns at random, a millisecond apart."""
    rng = np.random.default_rng([seed, columns, instruments])
    keys = rng.integers(1, instruments + 1, rows)
    steps = rng.standard_normal((rows, columns))
    for key in range(1, instruments + 1):
        mine = keys == key
        steps[mine] = np.cumsum(steps[mine], axis=0)
    ts = DEMO_START_NS + np.arange(rows, dtype=np.int64) * (NS_PER_S // 1000)
    rows_at = np.arange(rows, dtype=np.int64)
    return VectorBatch(steps.astype(np.float32), keys, ts, 0, rows_at, np.zeros(rows, np.int32))


def tape_for(features: FeatureSpec, instruments: int, ticks: int) -> Batch:
    """About `ticks` ticks of the kind that the features are computed from."""
    if features.kind == "vector":
        return synthetic_vectors(len(features.columns), instruments, ticks)
    return TickBatch.from_ticks(synthetic_ticks(instruments, ticks))


def messages_of(
    batch: Batch, partitions: int, ticks_per_message: int
) -> dict[int, list[tuple[int, bytes]]]:
    """Cut a tape into messages: by partition, each with the key of its first tick.

    An instrument stays in one partition; a message holds consecutive ticks of its partition,
    whichever instruments they are of, as a feed's packets do.
    """
    home = batch.keys % partitions
    found: dict[int, list[tuple[int, bytes]]] = {}
    for partition in range(partitions):
        part = batch.taken(np.flatnonzero(home == partition))
        starts = range(0, len(part), ticks_per_message)
        keys = part.keys[::ticks_per_message].tolist()
        found[partition] = [
            (key, _encoded(part, start, start + ticks_per_message))
            for key, start in zip(keys, starts, strict=True)
        ]
    return found


def fetches_of(
    messages: Mapping[int, Sequence[tuple[int, bytes]]], messages_per_fetch: int
) -> list[Fetched]:
    """Hand messages over as a backlog is consumed: a micro-batch of each partition in turn."""
    turns = -(-max(map(len, messages.values())) // messages_per_fetch)
    fetched = []
    for turn in range(turns):
        for partition, mine in messages.items():
            start = turn * messages_per_fetch
            values = [value for _, value in mine[start : start + messages_per_fetch]]
            if values:
                offsets = np.arange(start, start + len(values), dtype=np.int64)
                fetched.append(Fetched(partition, values, offsets))
    return fetched


def run_engine(
    pipeline: Pipeline, decoder: Decoder, fetched: Sequence[Fetched]
) -> tuple[Progress, int]:
    """Decode, features | score, decide: the daemon's two threads, without Kafka.

    Returns
    -------
    progress, events
        Ticks decided over time, and how many events they led to.
    """
    between: queue.Queue[Prepared | None] = queue.Queue(_QUEUED)
    began = time.perf_counter()
    done: list[tuple[float, int]] = [(0.0, 0)]
    events = 0
    failure: list[BaseException] = []

    def decide() -> None:
        nonlocal events
        while (prepared := between.get()) is not None:
            if failure:
                continue  # keep taking, or intake would wait for ever
            try:
                outcome = pipeline.finish([prepared])
            except BaseException as error:  # raised in the caller's thread
                failure.append(error)
                continue
            events += len(outcome.events)
            done.append((time.perf_counter() - began, done[-1][1] + len(prepared.block)))

    deciding = threading.Thread(target=decide, name="decision")
    deciding.start()
    try:
        for each in fetched:
            batch = decoder.decode(each.values, each.offsets, each.partition).batch
            if batch is not None:
                between.put(pipeline.prepare(batch))
    finally:
        between.put(None)
        deciding.join()
    if failure:
        raise failure[0]
    seconds, ticks = zip(*done, strict=True)
    return Progress(np.array(seconds), np.array(ticks, np.int64)), events


class FeaturePass:
    """The feature kernel over one stretch of tape, from the same warm state every time.

    Parameters
    ----------
    features
        What to compute.
    tape
        The first `WARM` of it only warms the state.
    max_instruments
        Room of the bank.
    """

    def __init__(self, features: FeatureSpec, tape: Batch, max_instruments: int = 10_000) -> None:
        batches = micro_batches(tape)
        warm = max(1, round(WARM * len(batches)))
        self._bank = features.bank(max_instruments)
        for batch in batches[:warm]:
            self._bank.update(batch)
        self._state = self._bank.snapshot()
        self._batches = batches[warm:]
        self.ticks = sum(map(len, self._batches))

    def seconds(self) -> float:
        """Time for one pass."""
        self._bank.restore(self._state)
        began = time.perf_counter()
        for batch in self._batches:
            self._bank.update(batch)
        return time.perf_counter() - began

    def blocks(self, most: int) -> list[FeatureBlock]:
        """Feature blocks of the last full micro-batches, for scoring."""
        self._bank.restore(self._state)
        full = [b for b in self._batches if len(b) == len(self._batches[0])]
        return [self._bank.update(batch) for batch in full][-most:]


def micro_batches(tape: Batch, size: int = MICRO_BATCH) -> list[Batch]:
    """Consecutive micro-batches; a tape shorter than a few of them is cut into smaller ones."""
    size = min(size, max(1, len(tape) // 8))
    return [tape[start : start + size] for start in range(0, len(tape), size)]


def score_seconds(scorer: Scorer, blocks: Sequence[FeatureBlock]) -> float:
    """Time to score the blocks one after the other."""
    began = time.perf_counter()
    for block in blocks:
        scorer.score(block)
    return time.perf_counter() - began


def bench_model(
    artifact: Artifact, *, instruments: int = 1000, ticks: int = 500_000, device: Device = "auto"
) -> dict[str, Any]:
    """Measure a model on this machine, on a synthetic tape.

    Parameters
    ----------
    artifact
        The verified model.
    instruments, ticks
        Size of the tape.
    device
        Where to score, as in `TwoStageScorer`.

    Returns
    -------
    dict
        `figures`: one per thing measured; beside it what was measured.

    Raises
    ------
    BenchError
        The tape asked for is too short.
    """
    if instruments < 1 or ticks < 1000:
        raise BenchError(
            f"instruments = {instruments}, ticks = {ticks}: allowed are at least 1 and 1,000"
        )
    features = artifact.features
    scorer = Scorer(artifact, device)
    scorer.warm()
    tape = tape_for(features, instruments, ticks)
    passes = FeaturePass(features, tape, max(instruments, 1))
    blocks = passes.blocks(16)
    fetched = fetches_of(messages_of(tape, PARTITIONS, MESSAGE_TICKS), MICRO_BATCH // MESSAGE_TICKS)
    decoder = decoder_for(features)

    def engine() -> float:
        spec = PipelineSpec(max_instruments=max(instruments, 1), drift=DriftSpec())
        pipeline = Pipeline(features, scorer, spec)
        return run_engine(pipeline, decoder, fetched)[0].rate()

    figures = [
        _figure("features", "ns/tick", lambda: passes.seconds() / passes.ticks * 1e9),
        *(_scoring(scorer, blocks, size) for size in BATCH_SIZES if size <= len(blocks[0])),
        _figure("engine", "ticks/s", engine),
    ]
    return {
        "model": {"version": artifact.version, "hash": artifact.model_hash},
        "features": len(features.names),
        "multiply_adds": artifact.manifest.architecture.sizes.multiply_adds,
        "instruments": instruments,
        "ticks": len(tape),
        "device": scorer.device,
        "figures": [asdict(figure) for figure in figures],
    }


def decoder_for(features: FeatureSpec) -> Decoder:
    """Return the decoder of the messages that `messages_of` makes."""
    if features.kind == "vector":
        return make_decoder("vector", columns=features.columns)
    return make_decoder("dbn")


def _scoring(scorer: Scorer, blocks: Sequence[FeatureBlock], size: int) -> Figure:
    cut = [_head(block, size) for block in blocks]

    def per_batch() -> float:
        return score_seconds(scorer, cut) / len(cut) * 1e6

    return _figure(f"scoring {size}", "us/batch", per_batch)


def _figure(name: str, unit: str, measure: Callable[[], float]) -> Figure:
    measure()
    values = [measure() for _ in range(_ROUNDS)]
    return Figure(name, statistics.median(values), min(values), max(values), unit)


def _head(block: FeatureBlock, rows: int) -> FeatureBlock:
    return FeatureBlock(
        block.values[:rows],
        block.ready[:rows],
        block.quality[:rows],
        block.keys[:rows],
        block.ts[:rows],
        block.slots[:rows],
    )


def _encoded(part: Batch, start: int, stop: int) -> bytes:
    if isinstance(part, TickBatch):
        return part.ticks[start:stop].tobytes()
    rows = slice(start, stop)
    return encode_vector(part.keys[rows], part.ts_event[rows], part.values[rows])
