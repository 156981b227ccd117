"""A model as the evaluation sees it: three detectors, z-scores, residuals, the latent plane."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from detector.errors import RefusedError
from detector.model import TwoStageModel
from detector.scorer import TwoStageScorer
from tests.models import random_model, rows_for
from training.datasets import Rows
from training.evaluation.two_stage import STAGE1, SUM, TWO_STAGE, TwoStage, refit
from training.fit import Recipe, fit_two_stage


@pytest.fixture
def model() -> TwoStageModel:
    """Return a model with random weights."""
    return random_model()


def test_three_detectors_of_one_model(model: TwoStageModel) -> None:
    """The model's own score; the same with stage 2 weighing nothing; the plain sum."""
    block = rows_for(model, 300)
    ready = np.ones(300, np.bool_)
    (e1, e2), tail, rows = TwoStageScorer(model).measure(block.values, block.keys, ready)
    lone = model.alone(block.values, rows, ready)
    found = TwoStage(model).measure(block.values, block.keys)
    assert np.array_equal(found.scores[TWO_STAGE], model.score(e1, e2, tail, lone, rows))
    one = replace(model, combination=replace(model.combination, stage2_weight=0.0))
    assert np.array_equal(found.scores[STAGE1], one.score(e1, e2, tail, lone, rows))
    assert not np.array_equal(found.scores[STAGE1], found.scores[TWO_STAGE])
    assert np.array_equal(found.scores[SUM], e1 + e2)
    assert np.array_equal(found.rows, rows)


def test_z_scores_are_clipped_ones_of_the_models_tables(model: TwoStageModel) -> None:
    """By instrument, the pooled row for those it does not know."""
    block = rows_for(model, 200)
    rows = model.normaliser.rows_for(block.keys)
    wanted = (block.values - model.normaliser.centre[rows]) / model.normaliser.scale[rows]
    found = TwoStage(model).z_scores(block.values, block.keys)
    assert found == pytest.approx(np.clip(wanted, -3, 3), abs=1e-5)
    assert np.abs(wanted).max() > 3


def test_residuals_are_zero_where_nothing_is_unexpected(model: TwoStageModel) -> None:
    """Observed less expected, in training standard deviations of the feature."""
    block = rows_for(model, 50)
    two_stage = TwoStage(model)
    expected = TwoStageScorer(model).explain(block.values, block.keys).expected
    scale = model.normaliser.scale[model.normaliser.rows_for(block.keys)]
    moved = block.values.copy()
    moved[:, 3] += (2 * scale[:, 3]).astype(np.float32)
    found = two_stage.residuals(block.values, block.keys)
    assert found == pytest.approx((block.values - expected) / scale, abs=1e-5)
    assert two_stage.residuals(moved, block.keys)[:, 3].mean() > found[:, 3].mean() + 0.5


def test_the_plane_has_two_columns(model: TwoStageModel) -> None:
    """One point a row, not all the same."""
    block = rows_for(model, 60)
    plane = TwoStage(model).plane(block.values, block.keys)
    assert plane.shape == (60, 2)
    assert (plane.std(axis=0) > 0).all()


def test_refit_follows_the_recipe() -> None:
    """The recipe of a summary, on other rows, gives what that recipe gives there."""
    values = np.random.default_rng(0).normal(size=(600, 8)).astype(np.float32)
    rows = Rows.whole(values, np.zeros(600, np.int64))
    recipe = Recipe(hidden=6, latent=3, epochs=2, least_steps=1, seed=11)
    wanted = fit_two_stage(rows, None, recipe).model
    found = refit({"recipe": asdict(recipe)}, wanted, rows, None)
    assert all(np.array_equal(found.weights[name], w) for name, w in wanted.weights.items())


@pytest.mark.parametrize("summary", [{}, {"recipe": {"hidden": 3}}, {"recipe": 5}])
def test_a_summary_without_a_recipe_is_refused(
    model: TwoStageModel, summary: dict[str, Any]
) -> None:
    """The message says what to do."""
    rows = Rows.whole(np.zeros((4, 2), np.float32), np.zeros(4, np.int64))
    with pytest.raises(RefusedError, match="train the model anew"):
        refit(summary, model, rows, None)
