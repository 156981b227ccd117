"""Laws of scoring: what may change around a row, and what a growing outlier must do."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.features import FeatureBlock
from detector.scorer import TwoStageScorer
from tests.models import CLIP, random_model, rows_for

FEATURES = 20


@cache
def scorer() -> TwoStageScorer:
    """Return one warm scorer for all examples."""
    warm = TwoStageScorer(random_model(FEATURES))
    warm.warm()
    return warm


@cache
def rows() -> FeatureBlock:
    """Return the rows all examples draw from."""
    return rows_for(random_model(FEATURES), 150)


@cache
def reference() -> np.ndarray:
    """Return both errors and the excess of those rows, scored together."""
    block = rows()
    errors, excess, _ = scorer().errors(block.values, block.keys, block.ready)
    return np.vstack([errors, excess])


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 150), max_size=8))
def test_any_split_into_batches_gives_the_same_bits(cuts: list[int]) -> None:
    """Scores do not depend on which rows share a batch, nor on the padding that fills it."""
    block = rows()
    edges = [0, *sorted(cuts), 150]
    parts = []
    for a, b in pairwise(edges):
        errors, excess, _ = scorer().errors(block.values[a:b], block.keys[a:b], block.ready[a:b])
        parts.append(np.vstack([errors, excess]))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), reference())


@settings(deadline=None)
@given(order=st.permutations(range(40)))
def test_any_order_of_rows_gives_the_same_bits(order: list[int]) -> None:
    """A row's score does not depend on its position."""
    block = rows()
    errors, excess, _ = scorer().errors(block.values[order], block.keys[order], block.ready[order])
    np.testing.assert_array_equal(np.vstack([errors, excess]), reference()[:, order])


@settings(deadline=None)
@given(unready=st.sets(st.integers(0, 149)))
def test_unready_rows_change_no_other(unready: set[int]) -> None:
    """Whichever rows are not ready, the others keep their scores to the bit."""
    block = rows()
    ready = np.ones(150, np.bool_)
    ready[list(unready)] = False
    errors, excess, _ = scorer().errors(block.values, block.keys, ready)
    expected = np.where(ready, reference(), np.nan)
    np.testing.assert_array_equal(np.vstack([errors, excess]), expected)


@settings(deadline=None)
@given(
    start=st.integers(0, 149),
    feature=st.integers(0, FEATURES - 1),
    sign=st.sampled_from([-1.0, 1.0]),
    steps=st.lists(st.floats(0.01, 1e6), min_size=1, max_size=6),
)
def test_severity_grows_with_an_outlier_beyond_the_clip(
    start: int, feature: int, sign: float, steps: list[float]
) -> None:
    """Once a feature is beyond the clip, moving it further out strictly raises the severity.

    The score itself stays as it is: its input is clipped. A step is kept large enough for float32.
    """
    block, tables = rows(), random_model(FEATURES).normaliser
    row = tables.rows_for(block.keys[start : start + 1])[0]
    distances = CLIP + np.cumsum([1.0, *steps])
    distances = distances[np.concatenate([[True], np.diff(distances) > 1e-3 * distances[1:]])]
    values = np.repeat(block.values[start : start + 1], len(distances), axis=0)
    moved = tables.centre[row, feature] + sign * distances * tables.scale[row, feature]
    values[:, feature] = moved.astype(np.float32)
    keys = np.repeat(block.keys[start : start + 1], len(distances))
    errors, excess, _ = scorer().errors(values, keys, np.ones(len(values), np.bool_))
    assert (np.diff(errors) == 0).all()
    score = random_model(FEATURES).combination(errors[0], errors[1], excess)
    severity = score / 4.0 * (1.0 + excess)
    assert (np.diff(score) > 0).all()
    assert (np.diff(severity) > 0).all()
