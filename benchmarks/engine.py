"""The engine without Kafka, and how much of it each part is."""

from __future__ import annotations

import time

from benchmarks.measure import Row, Spread, take_turns
from benchmarks.workload import Workload
from detector.bench import (
    MESSAGE_TICKS,
    MICRO_BATCH,
    PARTITIONS,
    Fetched,
    fetches_of,
    messages_of,
    run_engine,
)
from detector.drift import DriftSpec
from detector.pipeline import Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.ticks import TickBatch
from detector.wire import make_decoder

TARGET = 1_000_000.0


class Engine:
    """Decoder, pipeline and the messages of the tape."""

    def __init__(self, work: Workload, ticks_per_message: int = MESSAGE_TICKS) -> None:
        self._features = work.artifact.features
        self._spec = PipelineSpec(max_instruments=work.sizes.instruments, drift=DriftSpec())
        self._scorer = Scorer(work.artifact, "cpu")
        self._scorer.warm()
        self._decoder = make_decoder("dbn")
        messages = messages_of(TickBatch.from_ticks(work.tape), PARTITIONS, ticks_per_message)
        self._fetched = fetches_of(messages, MICRO_BATCH // ticks_per_message)
        self.ticks = len(work.tape)
        self.events = 0

    def rate(self) -> float:
        """Ticks per second on two threads, from a cold start, its beginning left out."""
        progress, self.events = run_engine(self._pipeline(), self._decoder, self._fetched)
        return progress.rate()

    def parts(self) -> dict[str, float]:
        """Nanoseconds a tick of each part, all on one thread."""
        pipeline = self._pipeline()
        decode = features = decide = 0.0
        for each in self._fetched:
            began = time.perf_counter()
            batch = self._decode(each)
            decoded = time.perf_counter()
            prepared = pipeline.prepare(batch)
            ready = time.perf_counter()
            pipeline.finish([prepared])
            ended = time.perf_counter()
            decode += decoded - began
            features += ready - decoded
            decide += ended - ready
        parts = {"decode": decode, "features": features, "score and decide": decide}
        return {name: seconds / self.ticks * 1e9 for name, seconds in parts.items()}

    def _decode(self, each: Fetched) -> TickBatch:
        batch = self._decoder.decode(each.values, each.offsets, each.partition).batch
        assert isinstance(batch, TickBatch)
        return batch

    def _pipeline(self) -> Pipeline:
        return Pipeline(self._features, self._scorer, self._spec)


def measure(work: Workload) -> list[Row]:
    """Run the tape through decoder and pipeline, with the daemon's two threads."""
    engine = Engine(work)
    rate = Spread.of(take_turns(work.sizes.rounds, engine=engine.rate)["engine"])
    parts = engine.parts()
    told = ", ".join(f"{name} {ns:.0f}" for name, ns in parts.items())
    return [
        Row(
            "engine",
            "engine without Kafka (decode, features, both stages, thresholds, episodes), "
            f"{MESSAGE_TICKS} ticks a message",
            f"{rate.text(',.0f')} ticks/s (one thread, ns a tick: {told})",
            "",
            None,
            f"≥ {TARGET:,.0f} ticks/s on 2 cores",
            rate.median >= TARGET,
            {
                "ticks_per_s": rate,
                "ns_per_tick": parts,
                "events_per_tick": engine.events / engine.ticks,
                "partitions": PARTITIONS,
            },
        )
    ]
