"""What every row works on: one synthetic tape, and the default model trained on its beginning.

A thousand instruments over an hour. The model has the sizes that
`tapewatch train` gives by default and normalises every instrument by moments of its own, which is
the dearer case; only its training is shorter, which changes no cost.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from detector.artifact import Artifact, read_artifact
from detector.bench import micro_batches, synthetic_ticks
from detector.features import DEFAULT
from detector.ticks import TickArray, TickBatch
from training.datasets import Split
from training.train import Options, train

OWN_ROWS: Final = 100
TRAIN_SHARE: Final = 0.6
CALIBRATION_SHARE: Final = 0.3


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything.

    Parameters
    ----------
    instruments
        Of the tape.
    train_ticks, tape_ticks
        Ticks to train on, and to measure on, about.
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
    latency_quantile
        The same for the latency row, where more events make surer percentiles.
    """

    instruments: int = 1000
    train_ticks: int = 1_000_000
    tape_ticks: int = 3_000_000
    epochs: int = 2
    rounds: int = 15
    kafka_rounds: int = 5
    latency_s: float = 20.0
    warm_s: float = 4.0
    loads: tuple[float, ...] = (0.25, 0.5, 0.75)
    memory_instruments: tuple[int, ...] = (1, 1000, 100_000)
    quantile: float = 0.999
    latency_quantile: float = 0.99


FULL: Final = Sizes()
QUICK: Final = Sizes(
    train_ticks=600_000,
    tape_ticks=800_000,
    epochs=1,
    rounds=5,
    kafka_rounds=2,
    latency_s=8.0,
    warm_s=3.0,
    loads=(0.5,),
)


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """The tape to measure on and the model that watches it.

    `latency_model` is the same model with a lower threshold.
    """

    sizes: Sizes
    folder: Path
    model: Path
    latency_model: Path
    artifact: Artifact
    tape: TickArray

    def describe(self) -> dict[str, Any]:
        """Model and tape in numbers, for the report."""
        sizes = self.artifact.manifest.architecture
        return {
            "features": sizes.features,
            "hidden": sizes.hidden,
            "latent": sizes.latent,
            "stage2_latent": sizes.stage2_latent,
            "members": sizes.members,
            "multiply_adds": sizes.sizes.multiply_adds,
            "normaliser_rows": len(self.artifact.tables["centre"]),
            "quantile": self.artifact.manifest.thresholds.quantile,
            "instruments": self.sizes.instruments,
            "tape_ticks": len(self.tape),
        }


def prepare(sizes: Sizes, folder: Path | None = None, model: Path | None = None) -> Workload:
    """Simulate the tape and train the default model on its beginning, or take a given one."""
    folder = folder or Path(tempfile.mkdtemp(prefix="tapewatch-bench-"))
    ticks = synthetic_ticks(sizes.instruments, sizes.train_ticks + sizes.tape_ticks)
    cut = len(ticks) * sizes.train_ticks // (sizes.train_ticks + sizes.tape_ticks)
    latency_model = model
    if model is None:
        model, latency_model = folder / "model", folder / "latency-model"
        _train(ticks[:cut], sizes, sizes.quantile, model)
        _train(ticks[:cut], sizes, sizes.latency_quantile, latency_model)
    return Workload(
        sizes, folder, model, latency_model or model, read_artifact(model), ticks[cut:].copy()
    )


def _train(ticks: TickArray, sizes: Sizes, quantile: float, folder: Path) -> None:
    """Train as `tapewatch train` does, in fewer epochs and from fewer rows an instrument."""
    options = Options(
        split=Split(train=TRAIN_SHARE, calibration=CALIBRATION_SHARE, gap_s=1.0),
        quantile=quantile,
        epochs=sizes.epochs,
        own_rows=OWN_ROWS,
        max_instruments=sizes.instruments,
        version="benchmark",
    )
    train(micro_batches(TickBatch.from_ticks(ticks)), DEFAULT, folder, options)
