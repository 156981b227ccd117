"""From feature blocks to scores: a trained model on the CPU or the GPU.

What a row's score is does not depend on the rows around it, its position or any padding, to the bit
(tests hold this). Knows no file, no clock, no log, no metric.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from detector.artifact import Artifact
from detector.compiled import CompiledForward, gpu_visible
from detector.errors import RefusedError
from detector.features import FeatureBlock
from detector.forward import Forward, KernelForward
from detector.model import TwoStageModel
from detector.network import fold

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class ScoreBlock:
    """Scores of a feature block, row by row; NaN where a row was not ready.

    Parameters
    ----------
    stage1, stage2
        `(n,)` float64 reconstruction errors: mean squared residual in training standard deviations.
    score
        `(n,)` float64: both errors combined as the model says.
    threshold
        `(n,)` float64: a row is anomalous where its score reaches it. From the scorer, the frozen
        one; in an `Outcome`, the one applied.
    excess
        `(n,)` float64: mean over features of `log(1 + max(|z| - clip, 0))`, what clipping hid.
    rows
        `(n,)` int32: the instrument's row in the model's tables, 0 where it was not trained on.
    latent
        `(n, L)` float32 standardised latent of stage 1, where asked for.
    """

    stage1: Float64
    stage2: Float64
    score: Float64
    threshold: Float64
    excess: Float64
    rows: Int32
    latent: Float32 | None = None

    def __len__(self) -> int:
        return len(self.score)

    @property
    def anomaly(self) -> Bool:
        """`(n,)` bool: the score has reached the threshold; False where not ready."""
        return self.score >= self.threshold

    @property
    def severity(self) -> Float64:
        """`(n,)` float64 `score / threshold * (1 + excess)`.

        Grows with a growing outlier even where its clipped features, and with them the score, no
        longer do.
        """
        return self.score / self.threshold * (1.0 + self.excess)

    def rows_between(self, start: int, stop: int) -> ScoreBlock:
        """Scores of the rows from `start` up to, not including, `stop`."""
        part = slice(start, stop)
        return ScoreBlock(
            self.stage1[part],
            self.stage2[part],
            self.score[part],
            self.threshold[part],
            self.excess[part],
            self.rows[part],
            None if self.latent is None else self.latent[part],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Why a few rows scored as they did.

    Parameters
    ----------
    expected
        `(m, F)` float32: the value stage 1 reconstructs for each feature, in the feature's unit.
    share
        `(m, F)` float64: each feature's share of stage 1's squared error, rows summing to 1. A
        feature beyond the clip counts `1 + log(1 + |z| - clip)` times: its residual no longer
        grows, and the one that is furthest out would not stand out among those just clipped.
    stage2_share
        `(m,)` float64: how much of the score came from stage 2, in [0, 1].
    """

    expected: Float32
    share: Float64
    stage2_share: Float64


Device = Literal["auto", "cpu", "gpu"]
"""Where rows are scored; "auto": on the GPU where there is one."""


class NoGpuError(RefusedError):
    """A GPU was asked for, and TensorFlow sees none."""


class TwoStageScorer:
    """The model without thresholds: what the daemon and the estimator share.

    Parameters
    ----------
    model
        Normaliser, weights and combination.
    device
        "cpu": the fused kernel, and no TensorFlow. "gpu": TensorFlow.

    Raises
    ------
    NoGpuError
        `device` is "gpu" and there is none.
    """

    def __init__(self, model: TwoStageModel, device: Device = "auto") -> None:
        self.model = model
        self._folded = fold(model.weights)
        self._kernel = KernelForward(model.normaliser, self._folded)
        self._forward: Forward = self._kernel
        if device != "cpu" and gpu_visible():
            self._forward = CompiledForward(model.normaliser, self._folded)
        elif device == "gpu":
            raise NoGpuError(
                "model.device = 'gpu': TensorFlow sees no GPU; allowed here: 'auto', 'cpu'"
            )

    @property
    def device(self) -> str:
        """Where rows are scored: "cpu" or "gpu"."""
        return "cpu" if self._forward is self._kernel else "gpu"

    def warm(self) -> None:
        """Compile everything, so that no later call has to."""
        self._kernel.warm()
        self._forward.warm()

    def errors(
        self,
        values: npt.NDArray[np.floating],
        keys: Int64,
        ready: Bool,
        latent: Float32 | None = None,
    ) -> tuple[Float64, Float64, Int32]:
        """Return the reconstruction errors of any number of rows.

        Parameters
        ----------
        values
            `(n, F)` float32 or float64 features, C-contiguous, finite where ready.
        keys
            `(n,)` int64 instruments.
        ready
            `(n,)` bool.
        latent
            `(n, L)` float32 to write the standardised latent into, or None.

        Returns
        -------
        errors
            `(2, n)` float64: stages 1 and 2.
        excess
            `(n,)` float64.
        rows
            `(n,)` int32 table rows.
        """
        n = len(values)
        found, excess, rows = np.empty((2, n)), np.empty(n), np.empty(n, np.int32)
        self._forward(values, keys, ready, found, excess, rows, latent)
        if latent is not None:
            latent *= self._folded.latent_gain
            latent += self._folded.latent_shift
            latent[~ready] = np.nan
        return found, excess, rows

    def latents(self, values: Float32, keys: Int64) -> Float32:
        """`(m, L)` standardised latents of a few rows; on the CPU always."""
        m, width = len(values), len(self._folded.latent_gain)
        errors, excess, rows = np.empty((2, m)), np.empty(m), np.empty(m, np.int32)
        latent = np.empty((m, width), np.float32)
        self._kernel(values, keys, np.ones(m, np.bool_), errors, excess, rows, latent)
        latent *= self._folded.latent_gain
        latent += self._folded.latent_shift
        return latent

    def explain(self, values: Float32, keys: Int64) -> Explanation:
        """Say what stage 1 expected instead of `values` `(m, F)`, and which features erred.

        On the CPU always: a handful of rows are not worth a GPU's round trip.
        """
        m, tables = len(values), self.model.normaliser
        errors, excess, rows = np.empty((2, m)), np.empty(m), np.empty(m, np.int32)
        residual1 = np.empty(values.shape, np.float32)
        self._kernel(values, keys, np.ones(m, np.bool_), errors, excess, rows, residual=residual1)
        centre, scale = tables.centre[rows], tables.scale[rows]
        z = (values - centre) / scale
        clipped = np.clip(z, -tables.clip, tables.clip)
        rebuilt = clipped + residual1 / self._folded.gain
        hidden = 1.0 + np.log1p(np.maximum(np.abs(z) - tables.clip, 0.0))
        weight = np.square(residual1, dtype=np.float64) * hidden + np.finfo(np.float64).tiny
        score = self.model.combination(errors[0], errors[1], excess)
        part2 = self.model.combination.stage2 * errors[1]
        return Explanation(
            expected=(centre + scale * rebuilt).astype(np.float32),
            share=weight / weight.sum(axis=1, keepdims=True),
            stage2_share=np.divide(part2, score, out=np.zeros(m), where=score > 0),
        )


class Scorer:
    """A model artifact, ready to score feature blocks.

    Parameters
    ----------
    artifact
        Verified model folder.
    device
        As in `TwoStageScorer`.
    """

    def __init__(self, artifact: Artifact, device: Device = "auto") -> None:
        self._scorer = TwoStageScorer(artifact.model, device)
        self.thresholds = artifact.thresholds
        self.head = artifact.head
        self.version = artifact.version
        self.model_hash = artifact.model_hash

    @property
    def device(self) -> str:
        """Where rows are scored: "cpu" or "gpu"."""
        return self._scorer.device

    def warm(self) -> None:
        """Compile everything; the first `score` is then as fast as the others."""
        self._scorer.warm()
        if self.head is not None:
            self.head.warm()

    def score(self, block: FeatureBlock, *, latent: bool = False) -> ScoreBlock:
        """Score a block of any length; rows that are not ready get NaN.

        Parameters
        ----------
        block
            Features of the model's own definition.
        latent
            Whether to return the latent too.
        """
        model, n = self._scorer.model, len(block.values)
        width = len(model.weights["stage2.centre"])
        latents = np.empty((n, width), np.float32) if latent else None
        errors, excess, rows = self._scorer.errors(block.values, block.keys, block.ready, latents)
        return ScoreBlock(
            stage1=errors[0],
            stage2=errors[1],
            score=model.combination(errors[0], errors[1], excess),
            threshold=self.thresholds.threshold_for(rows),
            excess=excess,
            rows=rows,
            latent=latents,
        )

    def explain(self, values: Float32, keys: Int64) -> Explanation:
        """Explain rows of a block: `values` `(m, F)`, `keys` `(m,)`."""
        return self._scorer.explain(values, keys)

    def latents(self, values: Float32, keys: Int64) -> Float32:
        """Latents of rows of a block: `values` `(m, F)`, `keys` `(m,)`."""
        return self._scorer.latents(values, keys)
