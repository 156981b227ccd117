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
        `(n,)` float64 reconstruction errors: mean squared residual in training standard deviations,
        over units and members.
    tail
        `(n,)` float64: how far features and residuals lie beyond their training quantiles.
    alone
        `(n,)` float64: decades of the rarest lone feature, 0 where it is not rare.
    score
        `(n,)` float64: all of these combined as the model says; positive.
    threshold
        `(n,)` float64: a row is anomalous where its score reaches it. From the scorer, the frozen
        one; in an `Outcome`, the one applied.
    rows
        `(n,)` int32: the instrument's row in the model's tables, 0 where it was not trained on.
    latent
        `(n, M L)` float32 standardised latents of stage 1, member after member, where asked for.
    """

    stage1: Float64
    stage2: Float64
    tail: Float64
    alone: Float64
    score: Float64
    threshold: Float64
    rows: Int32
    latent: Float32 | None = None

    def __len__(self) -> int:
        return len(self.score)

    @property
    def anomaly(self) -> Bool:
        """`(n,)` bool: the score has reached the threshold; False where not ready."""
        return self.score >= self.threshold

    def rows_between(self, start: int, stop: int) -> ScoreBlock:
        """Scores of the rows from `start` up to, not including, `stop`."""
        part = slice(start, stop)
        return ScoreBlock(
            self.stage1[part],
            self.stage2[part],
            self.tail[part],
            self.alone[part],
            self.score[part],
            self.threshold[part],
            self.rows[part],
            None if self.latent is None else self.latent[part],
        )


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Which features made a few rows score as they did.

    Parameters
    ----------
    expected
        `(m, F)` float32: the value the members rebuild for each feature on average, in its unit.
    share
        `(m, F)` float64: each feature's share of stage 1's error and of the tails, rows summing to
        1. Error and tails are divided up each among the features, and weigh as they do in the
        score; a lone feature that made the score by itself has half. Under `sum`, whose score has
        no tails, a feature's error counts `1 + ln(1 + d)` times.
    """

    expected: Float32
    share: Float64


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
        self._kernel = KernelForward(model, self._folded)
        self._forward: Forward = self._kernel
        if device != "cpu" and gpu_visible():
            self._forward = CompiledForward(model, self._folded)
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

    def measure(
        self,
        values: npt.NDArray[np.floating],
        keys: Int64,
        ready: Bool,
        latent: Float32 | None = None,
    ) -> tuple[Float64, Float64, Int32]:
        """Measure any number of rows.

        Parameters
        ----------
        values
            `(n, F)` float32 or float64 features, C-contiguous, finite where ready.
        keys
            `(n,)` int64 instruments.
        ready
            `(n,)` bool.
        latent
            `(n, M L)` float32 to write the standardised latents into, or None.

        Returns
        -------
        errors
            `(2, n)` float64: stages 1 and 2.
        tail
            `(n,)` float64.
        rows
            `(n,)` int32 table rows.
        """
        n = len(values)
        errors, tail, rows = np.empty((2, n)), np.empty(n), np.empty(n, np.int32)
        self._forward(values, keys, ready, errors, tail, rows, latent)
        if latent is not None:
            self._standardise(latent)
            latent[~ready] = np.nan
        return errors, tail, rows

    def residuals(
        self, values: npt.NDArray[np.floating], keys: Int64
    ) -> tuple[Float32, Float32, Float64, Float64, Int32]:
        """Measure rows feature by feature; on the CPU always.

        Returns
        -------
        z, residual
            `(m, F)` float32: z-scores, and the members' mean residual of the clipped ones in
            training standard deviations.
        errors, tail, rows
            As in `measure`.
        """
        m = len(values)
        errors, tail, rows = np.empty((2, m)), np.empty(m), np.empty(m, np.int32)
        z, residual = np.empty(values.shape, np.float32), np.empty(values.shape, np.float32)
        ready = np.ones(m, np.bool_)
        self._kernel(values, keys, ready, errors, tail, rows, normal=z, residual=residual)
        return z, residual, errors, tail, rows

    def hidden(self, z: Float32) -> Float32:
        """`(m, F)`: what clipping hid of z-scores, in the units of `residuals`."""
        clip = self.model.normaliser.clip
        hidden: Float32 = (np.clip(z, -clip, clip) - z) * self._folded.gain
        return hidden

    def latents(self, values: Float32, keys: Int64) -> Float32:
        """`(m, L)` standardised latents of a few rows; on the CPU always."""
        m = len(values)
        errors, tail, rows = np.empty((2, m)), np.empty(m), np.empty(m, np.int32)
        latent = np.empty((m, self.model.latents), np.float32)
        self._kernel(values, keys, np.ones(m, np.bool_), errors, tail, rows, latent)
        self._standardise(latent)
        return latent

    def _standardise(self, latent: Float32) -> None:
        """Turn latents in units of stage 2's residuals into standardised ones, in place."""
        latent *= self._folded.latent_gain
        latent += self._folded.latent_shift

    def explain(self, values: Float32, keys: Int64) -> Explanation:
        """Say what was expected instead of `values` `(m, F)`, and which features stand out.

        On the CPU always: a handful of rows are not worth a GPU's round trip.
        """
        tables, tails, combination = self.model.normaliser, self.model.tails, self.model.combination
        z, residual, errors, tail, rows = self.residuals(values, keys)
        u = residual + self.hidden(z)
        expected = tables.centre[rows] + tables.scale[rows] * (z + u / self._folded.gain)
        squares = np.minimum(np.square(residual, dtype=np.float64), combination.cap)
        squares += np.finfo(np.float64).tiny
        decades = tails.decades(rows, z, u)
        if combination.name == "sum":
            weight = squares * (1.0 + decades)
        else:
            body = combination.body(errors[0])
            weight = body[:, None] * squares / squares.sum(axis=1, keepdims=True)
            weight += combination.tail_weight * tails.parts(decades)
        weight /= weight.sum(axis=1, keepdims=True)
        self._let_alone(weight, values, rows, combination(errors[0], errors[1], tail))
        return Explanation(
            expected=expected.astype(np.float32), share=weight / weight.sum(axis=1, keepdims=True)
        )

    def _let_alone(self, weight: Float64, values: Float32, rows: Int32, raw: Float64) -> None:
        """Give half of the weight to the lone feature that made the score, where one did."""
        rarity = self.model.rarity
        if rarity is None or not len(rarity.lone):
            return
        alone = rarity.alone(values, rows, np.ones(len(values), np.bool_))
        made = np.flatnonzero(rarity.score(raw, alone, rows) > rarity.score(raw, 0 * alone, rows))
        weight[made, rarity.lonely(values[made], rows[made])] += 1.0


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
        self.model = artifact.model
        self.thresholds = artifact.thresholds
        self.reference = artifact.reference
        self.head = artifact.head
        self.version = artifact.version
        self.model_hash = artifact.model_hash
        self.fingerprint = artifact.features.fingerprint
        self.symbols = artifact.symbols

    @property
    def device(self) -> str:
        """Where rows are scored: "cpu" or "gpu"."""
        return self._scorer.device

    @property
    def latent_width(self) -> int:
        """Columns of the latent."""
        return self._scorer.model.latents

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
        latents = np.empty((n, model.latents), np.float32) if latent else None
        errors, tail, rows = self._scorer.measure(block.values, block.keys, block.ready, latents)
        alone = model.alone(block.values, rows, block.ready)
        return ScoreBlock(
            stage1=errors[0],
            stage2=errors[1],
            tail=tail,
            alone=alone,
            score=model.score(errors[0], errors[1], tail, alone, rows),
            threshold=self.thresholds.threshold_for(rows),
            rows=rows,
            latent=latents,
        )

    def without_stage2(self, key: int, stage1: float, tail: float, alone: float) -> float:
        """Return what a tick's score would be with stage 2 at its median."""
        rows = self.model.normaliser.rows_for(np.array([key], np.int64))
        one, tails, lone = (np.array([each]) for each in (stage1, tail, alone))
        without = self.model.combination.without_stage2()
        return float(self.model.score(one, one, tails, lone, rows, without)[0])

    def explain(self, values: Float32, keys: Int64) -> Explanation:
        """Explain rows of a block: `values` `(m, F)`, `keys` `(m,)`."""
        return self._scorer.explain(values, keys)

    def latents(self, values: Float32, keys: Int64) -> Float32:
        """Latents of rows of a block: `values` `(m, F)`, `keys` `(m,)`."""
        return self._scorer.latents(values, keys)
