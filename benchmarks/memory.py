"""Memory: bytes of state an instrument, and the resident size of a process that tracks many.

The process is this module itself (`python -m benchmarks.memory MODEL INSTRUMENTS`): model, scorer
and pipeline as the daemon builds them, with state that is in use for every instrument.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import psutil

from benchmarks.measure import Row
from benchmarks.processes import child
from benchmarks.workload import Workload
from detector.artifact import read_artifact
from detector.events import EpisodeBook, EpisodePolicy
from detector.features import FeatureSpec
from detector.pipeline import Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.thresholds import STATE_BYTES
from detector.ticks import TickBatch, empty_ticks

TARGET_BYTES: Final = 4096
DEFAULT_CAP: Final = 10_000
ROUNDS_OF_TICKS: Final = 4
_WITHIN_S: Final = 240.0


def measure(work: Workload) -> list[Row]:
    """State an instrument, and a process for each number of instruments."""
    features = work.artifact.features
    windows, episodes, thresholds = state_bytes(features, DEFAULT_CAP)
    total = windows + episodes + thresholds
    row = Row(
        "memory",
        "state an instrument: windows, episode and threshold",
        f"{total:,} bytes ({windows:,}, {episodes:,} and {thresholds:,})",
        "",
        None,
        f"≤ {TARGET_BYTES:,} bytes",
        total <= TARGET_BYTES,
        {"feature_bytes": windows, "episode_bytes": episodes, "threshold_bytes": thresholds},
    )
    return [row, *(_resident(work, n) for n in work.sizes.memory_instruments)]


def state_bytes(features: FeatureSpec, instruments: int) -> tuple[int, int, int]:
    """Bytes an instrument takes in a partition's feature bank, episode book and threshold book."""
    book = EpisodeBook(instruments, EpisodePolicy())
    arrays = (value for value in vars(book).values() if isinstance(value, np.ndarray))
    rows = sum(array.nbytes for array in arrays if len(array) == instruments)
    windows = features.bank(instruments).state_bytes_per_instrument
    # The last is taken with thresholds that adapt only.
    return windows, rows // instruments, STATE_BYTES


def _resident(work: Workload, instruments: int) -> Row:
    with child(work.folder, "benchmarks.memory", work.model, instruments) as process:
        found = process.result(_WITHIN_S)
    mib = {name: size / 2**20 for name, size in found.items()}
    return Row(
        "memory",
        f"resident size, {instruments:,} instrument{'s'[: instruments > 1]}",
        f"{mib['resident']:,.0f} MiB, of which {mib['state']:,.1f} MiB came with the instruments",
        "",
        None,
        "",
        None,
        {"instruments": instruments, **{f"{name}_bytes": n for name, n in found.items()}},
    )


def main(model: Path, instruments: int) -> None:
    """Track instruments and print the resident size."""
    artifact = read_artifact(model)
    scorer = Scorer(artifact)
    scorer.warm()
    own = psutil.Process()
    small = Pipeline(artifact.features, scorer, PipelineSpec(max_instruments=8))
    _feed(small, 1, 4096)  # everything that one instrument needs too
    before = own.memory_info().rss
    spec = PipelineSpec(max_instruments=max(instruments, 1))
    pipeline = Pipeline(artifact.features, scorer, spec)
    _feed(pipeline, instruments, instruments * ROUNDS_OF_TICKS)
    resident = own.memory_info().rss
    facts: dict[str, Any] = {"resident": resident, "state": resident - before}
    assert pipeline.tracked_instruments()[0] == instruments
    sys.stdout.write(orjson.dumps(facts).decode() + "\n")


def _feed(pipeline: Pipeline, instruments: int, n: int) -> None:
    """`n` plain quotes, the instruments in turn."""
    for start in range(0, n, 4096):
        rows = np.arange(start, min(start + 4096, n))
        ticks = empty_ticks(len(rows))
        ticks["instrument_id"] = rows % instruments + 1
        ticks["ts_event"] = 1_767_600_000_000_000_000 + rows * 1000
        ticks["action"] = ord("A")
        ticks["side"] = ord("B")
        ticks["price"] = ticks["bid_px"] = 100_000_000_000
        ticks["ask_px"] = 100_010_000_000
        ticks["size"] = ticks["bid_sz"] = ticks["ask_sz"] = 10 + rows % 7
        pipeline.process(TickBatch.from_ticks(ticks))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
