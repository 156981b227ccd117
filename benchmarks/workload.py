"""What every row works on: one synthetic tape, and the default model trained on its beginning.

A thousand instruments of about 25 ticks a second each. The model has the sizes that
`tapewatch train` gives by default and normalises every instrument by moments of its own, which is
the dearer case; only its training is shorter, which changes no cost.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from detector.artifact import (
    REFERENCE_BINS,
    Architecture,
    Artifact,
    Features,
    Manifest,
    ThresholdSection,
    Training,
    read_artifact,
    write_artifact,
)
from detector.bench import micro_batches, synthetic_ticks
from detector.features import DEFAULT, FeatureBlock
from detector.scorer import TwoStageScorer
from detector.thresholds import quantile_thresholds
from detector.ticks import TickArray, TickBatch
from training.datasets import Rows
from training.fit import Recipe, fit_two_stage

OWN_ROWS: Final = 100
TRAIN_SHARE: Final = 0.6


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    Parameters
    ----------
    instruments
        Of the tape.
    train_s, tape_s
        Market time to train on, and to measure on, in seconds.
    epochs
        Passes over the training rows.
    rounds
        Rounds of the rows without Kafka.
    kafka_rounds
        Rounds of the rows with Kafka: each starts the processes anew.
    latency_s
        Length of one latency run, in seconds.
    warm_s
        Its beginning that is left out.
    loads
        Shares of the maximum at which latency is measured.
    memory_instruments
        How many instruments resident memory is stated for.
    quantile
        Of the threshold: one tick in `1 / (1 - quantile)` is anomalous.
    """

    instruments: int = 1000
    train_s: float = 40.0
    tape_s: float = 120.0
    epochs: int = 2
    rounds: int = 15
    kafka_rounds: int = 5
    latency_s: float = 20.0
    warm_s: float = 4.0
    loads: tuple[float, ...] = (0.25, 0.5, 0.75)
    memory_instruments: tuple[int, ...] = (1, 1000, 100_000)
    quantile: float = 0.999


FULL: Final = Sizes()
QUICK: Final = Sizes(
    train_s=25.0,
    tape_s=30.0,
    epochs=1,
    rounds=5,
    kafka_rounds=2,
    latency_s=8.0,
    warm_s=3.0,
    loads=(0.5,),
)


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """The tape to measure on and the model that watches it."""

    sizes: Sizes
    folder: Path
    model: Path
    artifact: Artifact
    tape: TickArray

    def describe(self) -> dict[str, Any]:
        """Model and tape in numbers, for the report."""
        sizes = self.artifact.manifest.architecture
        kernels = {n: a.shape for n, a in self.artifact.weights.items() if n.endswith(".kernel")}
        return {
            "features": sizes.features,
            "hidden": sizes.hidden,
            "latent": sizes.latent,
            "stage2_latent": sizes.stage2_latent,
            "multiply_adds": sum(a * b for a, b in kernels.values()),
            "normaliser_rows": len(self.artifact.tables["centre"]),
            "quantile": self.artifact.manifest.thresholds.quantile,
            "instruments": self.sizes.instruments,
            "tape_ticks": len(self.tape),
        }


def prepare(sizes: Sizes, folder: Path | None = None, model: Path | None = None) -> Workload:
    """Simulate the tape and train the default model on its beginning, or take a given one."""
    folder = folder or Path(tempfile.mkdtemp(prefix="tapewatch-bench-"))
    ticks = synthetic_ticks(sizes.instruments, sizes.train_s + sizes.tape_s)
    cut = int(np.searchsorted(ticks["ts_event"], ticks["ts_event"][0] + int(sizes.train_s * 1e9)))
    if model is None:
        model = folder / "model"
        _train(ticks[:cut], sizes, model)
    return Workload(sizes, folder, model, read_artifact(model), ticks[cut:].copy())


def _train(ticks: TickArray, sizes: Sizes, folder: Path) -> None:
    bank = DEFAULT.bank(sizes.instruments)
    blocks = [bank.update(batch) for batch in micro_batches(TickBatch.from_ticks(ticks))]
    values, keys, ts = (np.concatenate(columns) for columns in _ready_columns(blocks))
    cut = round(TRAIN_SHARE * len(values))
    recipe = Recipe(epochs=sizes.epochs, least_steps=0, own_rows=OWN_ROWS)
    fitted = fit_two_stage(Rows.whole(values[:cut], keys[:cut]), None, recipe)
    model = fitted.model
    scorer = TwoStageScorer(model)
    held = np.ones(len(values) - cut, np.bool_)
    errors, _, rows = scorer.errors(values[cut:], keys[cut:], held)
    scores = model.combination(errors[0], errors[1])
    table_rows = len(model.normaliser.centre)
    thresholds = quantile_thresholds(scores, rows, table_rows, sizes.quantile)
    edges = np.linspace(-recipe.clip, recipe.clip, REFERENCE_BINS + 1)
    manifest = Manifest(
        version="benchmark",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        libraries={"tapewatch": "benchmarks"},
        features=Features(fingerprint=DEFAULT.fingerprint, spec=DEFAULT.to_dict()),
        architecture=Architecture(
            features=len(DEFAULT.names),
            hidden=recipe.hidden,
            latent=recipe.latent,
            stage2_latent=recipe.stage2_latent,
            clip=recipe.clip,
            combination="weighted",
            stage1_weight=model.combination.stage1,
            stage2_weight=model.combination.stage2,
        ),
        thresholds=ThresholdSection(
            quantile=sizes.quantile,
            pooled=thresholds.pooled,
            calibration_rows=len(scores),
            own=int(thresholds.own[1:].sum()),
        ),
        training=Training(
            seed=recipe.seed,
            instruments=len(np.unique(keys)),
            train_rows=cut,
            calibration_rows=len(scores),
            test_rows=0,
            first_ts_event=int(ts[0]),
            last_ts_event=int(ts[-1]),
            stage1_loss=fitted.stage1.final,
            stage2_loss=fitted.stage2.final,
        ),
    )
    tables = {
        "keys": model.normaliser.keys,
        "centre": model.normaliser.centre,
        "scale": model.normaliser.scale,
        "threshold": thresholds.values,
        "threshold_own": thresholds.own,
        "reference_edges": edges,
        "reference_counts": np.zeros((len(DEFAULT.names), len(edges) - 1), np.int64),
    }
    write_artifact(folder, manifest, model.weights, tables, {"for": "benchmarks"})


def _ready_columns(blocks: list[FeatureBlock]) -> tuple[list[Any], list[Any], list[Any]]:
    values, keys, ts = [], [], []
    for block in blocks:
        values.append(block.values[block.ready])
        keys.append(block.keys[block.ready])
        ts.append(block.ts[block.ready])
    return values, keys, ts
