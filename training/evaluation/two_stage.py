"""A fitted two-stage model as the evaluation sees it: the only module here that knows its parts.

Three detectors come out of one model: both stages as the model combines them; *stage 1 alone*, the
same with stage 2's weight zero (the tails of its residuals still count); and the *plain sum* of
both errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.errors import RefusedError
from detector.model import TwoStageModel
from detector.network import ENCODER2
from detector.scorer import TwoStageScorer
from training.datasets import Rows
from training.evaluation.baselines import CLIP
from training.fit import Recipe, Tell, fit_two_stage

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

TWO_STAGE: Final = "tapewatch, two stages"
STAGE1: Final = "stage 1 alone"
SUM: Final = "plain e1 + e2"
VARIANTS: Final = (TWO_STAGE, STAGE1, SUM)
RARITIES: Final = (TWO_STAGE, STAGE1)


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """What a model says of `n` rows: errors of both stages, and the score of each variant."""

    stage1: Float64
    stage2: Float64
    scores: dict[str, Float64]
    rows: Int32


class TwoStage:
    """A fitted model that measures rows.

    Parameters
    ----------
    model
        The arrays.
    """

    def __init__(self, model: TwoStageModel) -> None:
        self.model = model
        self._scorer = TwoStageScorer(model)

    @property
    def table_rows(self) -> int:
        """Rows of the model's tables, the pooled one included."""
        return len(self.model.normaliser.centre)

    def rows_for(self, keys: Int64) -> Int32:
        """`(n,)` row of each instrument in the model's tables; 0: not trained on."""
        return self.model.normaliser.rows_for(keys)

    def measure(self, values: Float32, keys: Int64) -> Measured:
        """Errors and scores of `(n, F)` features."""
        ready = np.ones(len(keys), np.bool_)
        errors, tail, rows = self._scorer.measure(values, keys, ready)
        facts = errors[0], errors[1], tail, self.model.alone(values, rows, ready), rows
        without = self.model.combination.without_stage2()
        return Measured(
            errors[0],
            errors[1],
            {
                TWO_STAGE: self.model.score(*facts),
                STAGE1: self.model.score(*facts, without),
                SUM: errors[0] + errors[1],
            },
            rows,
        )

    def z_scores(self, values: Float32, keys: Int64) -> Float32:
        """`(n, F)` z-scores by the model's own tables, clipped."""
        chunks = Rows.whole(values, keys).normalised(self.model.normaliser)
        z = np.concatenate([np.empty((0, values.shape[1]), np.float32), *chunks])
        clipped: Float32 = np.clip(z, -CLIP, CLIP)
        return clipped

    def residuals(self, values: Float32, keys: Int64) -> Float64:
        """`(n, F)`: observed less expected, in training standard deviations of the feature."""
        expected = self._scorer.explain(values, keys).expected
        scale = self.model.normaliser.scale[self.rows_for(keys)]
        found: Float64 = (values.astype(np.float64) - expected) / scale
        return found

    def plane(self, values: Float32, keys: Int64) -> Float64:
        """`(n, 2)`: the first member's latent of stage 2; zeros beside a single unit."""
        weights = self.model.weights
        latent = np.empty((len(keys), self.model.latents), np.float32)
        self._scorer.measure(values, keys, np.ones(len(keys), np.bool_), latent)
        first = latent[:, : weights["stage2.centre"].shape[1]]
        code = first @ weights[f"{ENCODER2}.kernel"][0] + weights[f"{ENCODER2}.bias"][0]
        return np.pad(code, ((0, 0), (0, 1)))[:, :2].astype(np.float64)


def refit(
    summary: Mapping[str, Any],
    like: TwoStageModel,
    rows: Rows,
    later: Rows | None,
    tell: Tell | None = None,
) -> TwoStageModel:
    """Fit a model like another anew, on other rows, by the recipe that its summary states.

    Raises
    ------
    RefusedError
        The summary states no such recipe.
    """
    found = summary.get("recipe")
    names = {field.name for field in fields(Recipe)}
    if not isinstance(found, dict) or set(found) != names:
        raise RefusedError(
            "training_summary.json states no recipe of this version (recipe: "
            f"{', '.join(sorted(names))}); train the model anew"
        )
    lone = None if like.rarity is None else like.rarity.lone
    recipe = Recipe(**found)
    return fit_two_stage(rows, later, recipe, tell, like.tails.groups, lone).model
