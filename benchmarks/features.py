"""The feature kernel on one core: nanoseconds a tick."""

from __future__ import annotations

from benchmarks.measure import Row, Spread, take_turns
from benchmarks.workload import Workload
from detector.bench import MICRO_BATCH, FeaturePass
from detector.ticks import TickBatch

TARGET_NS = 250.0


def measure(work: Workload) -> list[Row]:
    """Advance 1,000 instruments in micro-batches, in the order in which their ticks arrive."""
    features = work.artifact.features
    passes = FeaturePass(features, TickBatch.from_ticks(work.tape), work.sizes.instruments)
    seconds = take_turns(work.sizes.rounds, kernel=passes.seconds)["kernel"]
    per_tick = Spread.of([s / passes.ticks * 1e9 for s in seconds])
    return [
        Row(
            "features",
            f"feature kernel, {len(features.names)} features, {work.sizes.instruments:,} "
            "instruments, one core",
            f"{per_tick.text('.0f')} ns a tick",
            "",
            None,
            f"≤ {TARGET_NS:.0f} ns a tick",
            per_tick.median <= TARGET_NS,
            {"ns_per_tick": per_tick, "ticks": passes.ticks, "micro_batch": MICRO_BATCH},
        )
    ]
