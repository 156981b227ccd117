"""Laws of scoring: what may change around a row, and what a growing outlier must do."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.features import FeatureBlock
from detector.model import CombinationName
from detector.scorer import TwoStageScorer
from tests.models import random_model, rows_for

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
    """Return errors, tails and scores of those rows, scored together."""
    block = rows()
    return scored(block.values, block.keys, block.ready)


def scored(values: np.ndarray, keys: np.ndarray, ready: np.ndarray) -> np.ndarray:
    """Return `(5, n)` errors, tails, what lone features say, and scores."""
    errors, tail, rows = scorer().measure(values, keys, ready)
    model = scorer().model
    alone = model.alone(values, rows, ready)
    return np.vstack([errors, tail, alone, model.score(*errors, tail, alone, rows)])


@settings(deadline=None)
@given(cuts=st.lists(st.integers(0, 150), max_size=8))
def test_any_split_into_batches_gives_the_same_bits(cuts: list[int]) -> None:
    """Scores do not depend on which rows share a batch, nor on the padding that fills it."""
    block = rows()
    edges = [0, *sorted(cuts), 150]
    parts = []
    for a, b in pairwise(edges):
        parts.append(scored(block.values[a:b], block.keys[a:b], block.ready[a:b]))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), reference())


@settings(deadline=None)
@given(order=st.permutations(range(40)))
def test_any_order_of_rows_gives_the_same_bits(order: list[int]) -> None:
    """A row's score does not depend on its position."""
    block = rows()
    found = scored(block.values[order], block.keys[order], block.ready[order])
    np.testing.assert_array_equal(found, reference()[:, order])


@settings(deadline=None)
@given(unready=st.sets(st.integers(0, 149)))
def test_unready_rows_change_no_other(unready: set[int]) -> None:
    """Whichever rows are not ready, the others keep their scores to the bit."""
    block = rows()
    ready = np.ones(150, np.bool_)
    ready[list(unready)] = False
    expected = np.where(ready, reference(), np.nan)
    np.testing.assert_array_equal(scored(block.values, block.keys, ready), expected)


@settings(deadline=None)
@given(
    start=st.integers(0, 149),
    feature=st.integers(0, FEATURES - 1),
    sign=st.sampled_from([-1.0, 1.0]),
    steps=st.lists(st.floats(0.01, 1e6), min_size=1, max_size=6),
    name=st.sampled_from(["tails", "sum"]),
)
def test_severity_grows_with_an_outlier_beyond_the_tails(
    start: int, feature: int, sign: float, steps: list[float], name: CombinationName
) -> None:
    """A feature beyond clip, tails and whatever the members rebuild raises the severity, strictly.

    The errors stay as they are: their input is clipped. A step is kept large enough for float32.
    """
    block, model = rows(), random_model(FEATURES)
    tables = model.normaliser
    row = tables.rows_for(block.keys[start : start + 1])[0]
    distances = 50.0 + np.cumsum([1.0, *steps])
    distances = distances[np.concatenate([[True], np.diff(distances) > 1e-3 * distances[1:]])]
    values = np.repeat(block.values[start : start + 1], len(distances), axis=0)
    moved = tables.centre[row, feature] + sign * distances * tables.scale[row, feature]
    values[:, feature] = moved.astype(np.float32)
    keys = np.repeat(block.keys[start : start + 1], len(distances))
    ready = np.ones(len(values), np.bool_)
    errors, tail, table = scorer().measure(values, keys, ready)
    assert (np.diff(errors) == 0).all()
    raw = replace(model.combination, name=name)(errors[0], errors[1], tail)
    assert ((np.diff(raw) > 0) == (name == "tails")).all()
    if name == "sum":
        severity = replace(model.combination, name=name).severity(raw, np.full(len(raw), 4.0), tail)
        assert (np.diff(severity) > 0).all()
        return
    alone = model.alone(values, table, ready)
    score = model.score(*errors, tail, alone, table)
    # Where a lone feature that does not move is rarer than all the rest, it is the score.
    covered = (np.diff(alone) == 0) & (alone[1:] > 0) & (score[1:] == score[:-1])
    assert ((np.diff(score) > 0) | covered).all()
    assert (score[1:][covered] == 10.0 ** (alone[1:][covered] / 4)).all()
