"""From feature blocks to scores: a trained model, compiled once for a few padded sizes.

A block of any length is cut and padded to the sizes that were compiled. What a row's score is does
not depend on the rows around it, its position or the padding, to the bit (a test holds this).
Knows no file, no clock, no log, no metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detector.artifact import Artifact
from detector.compiled import CompiledForward
from detector.features import FeatureBlock
from detector.model import TwoStageModel, ZScores
from detector.network import fold, forward

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

BATCH_SIZES: Final = (64, 256, 1024, 4096)


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


class TwoStageScorer:
    """The compiled model without thresholds: what the daemon and the estimator share.

    One thread at a time: the padded buffers belong to the scorer.

    Parameters
    ----------
    model
        Normaliser, weights and combination.
    batch_sizes
        Padded sizes to compile, ascending; longer inputs are cut into the largest.
    threads
        TensorFlow's CPU threads per operation.
    """

    def __init__(
        self,
        model: TwoStageModel,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        threads: int = 1,
    ) -> None:
        sizes = tuple(batch_sizes)
        if not sizes or sizes[0] < 1 or sorted(set(sizes)) != list(sizes):
            raise ValueError(f"batch_sizes is {sizes}; give ascending sizes of at least 1")
        self.model = model
        self._folded = fold(model.weights)
        self._normalise = ZScores(model.normaliser, self._folded.gain, self._folded.shift)
        self._sizes = sizes
        self._threads = threads
        self._compiled: dict[int, CompiledForward] = {}

    def warm(self) -> None:
        """Trace, compile and run every size, so that no later call has to."""
        features = self.model.normaliser.centre.shape[1]
        for size in self._sizes:
            values = np.zeros((size, features), np.float32)
            self.errors(values, np.zeros(size, np.int64), np.ones(size, np.bool_))

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
        for start in range(0, n, self._sizes[-1]):
            stop = min(start + self._sizes[-1], n)
            part = slice(start, stop)
            compiled = self._compiled_for(stop - start)
            self._normalise(
                values[part], keys[part], ready[part], compiled.buffer, rows[part], excess[part]
            )
            both, code = compiled(latent=latent is not None)
            found[:, part] = both[:, : stop - start]
            if latent is not None and code is not None:
                code = code[: stop - start]
                latent[part] = code * self._folded.latent_gain + self._folded.latent_shift
        if not ready.all():
            found[:, ~ready] = np.nan
            if latent is not None:
                latent[~ready] = np.nan
        return found, excess, rows

    def explain(self, values: Float32, keys: Int64) -> Explanation:
        """Say what stage 1 expected instead of `values` `(m, F)`, and which features erred.

        Runs the same forward pass in NumPy, a row at a time: a handful of rows are not worth a
        compiled size, and a matrix product's last bits depend on how many rows share it, while an
        event must not depend on what else its micro-batch held.
        """
        m, tables = len(values), self.model.normaliser
        x = np.empty(values.shape, np.float32)
        rows, excess = np.empty(m, np.int32), np.empty(m)
        self._normalise(values, keys, np.ones(m, np.bool_), x, rows, excess)
        passes = [forward(np, self._folded.arrays, x[i : i + 1])[1:] for i in range(m)]
        residual1, residual2 = (np.concatenate(parts) for parts in zip(*passes, strict=True))
        centre, scale = tables.centre[rows], tables.scale[rows]
        z = (values - centre) / scale
        clipped = np.clip(z, -tables.clip, tables.clip)
        rebuilt = clipped + residual1 / self._folded.gain
        hidden = 1.0 + np.log1p(np.maximum(np.abs(z) - tables.clip, 0.0))
        weight = np.square(residual1, dtype=np.float64) * hidden + np.finfo(np.float64).tiny
        squares = [np.square(r, dtype=np.float64) for r in (residual1, residual2)]
        errors = np.stack([s.mean(axis=1) for s in squares])
        score = self.model.combination(errors[0], errors[1], excess)
        part2 = self.model.combination.stage2 * errors[1]
        return Explanation(
            expected=(centre + scale * rebuilt).astype(np.float32),
            share=weight / weight.sum(axis=1, keepdims=True),
            stage2_share=np.divide(part2, score, out=np.zeros(m), where=score > 0),
        )

    def _compiled_for(self, rows: int) -> CompiledForward:
        size = next(size for size in self._sizes if size >= rows)
        if size not in self._compiled:
            features = self.model.normaliser.centre.shape[1]
            self._compiled[size] = CompiledForward(
                self._folded.arrays, features, size, self._threads
            )
        return self._compiled[size]


class Scorer:
    """A model artifact, ready to score feature blocks.

    Parameters
    ----------
    artifact
        Verified model folder.
    batch_sizes, threads
        As in `TwoStageScorer`.
    """

    def __init__(
        self, artifact: Artifact, batch_sizes: Sequence[int] = BATCH_SIZES, threads: int = 1
    ) -> None:
        self._scorer = TwoStageScorer(artifact.model, batch_sizes, threads)
        self.thresholds = artifact.thresholds
        self.version = artifact.version
        self.model_hash = artifact.model_hash

    def warm(self) -> None:
        """Trace, compile and run every size; the first `score` is then as fast as the others."""
        self._scorer.warm()

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
