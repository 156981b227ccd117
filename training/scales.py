"""What turns trained networks into a model: scales of residuals, tails, and one score.

Everything here is counted over the training rows, by the detector's own forward pass where it can
be. Memory does not grow with the rows: sums run over chunks, quantiles over at most so many rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.kernels_scoring import LEAST_ERROR, ORDINARY, rarities
from detector.model import (
    DECADE,
    KNOT_DECADES,
    KNOTS,
    Combination,
    Normaliser,
    Rarity,
    Tails,
    TwoStageModel,
)
from detector.network import RESIDUAL_FLOOR, RESIDUAL_MEAN, WHITENING, fold, forward
from detector.scorer import TwoStageScorer
from training.datasets import Rows

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Weights = dict[str, npt.NDArray[Any]]

QUANTILES: Final = (0.995, 0.95)
"""Where a tail starts, and where the decade before it does; the same shares on the lower side."""

VALUE_FLOOR: Final = 0.3
"""Least decade of a z-score. A feature that hardly ever moved has none of its own."""

RESIDUAL_DECADE_FLOOR: Final = 0.6
"""Least decade of a residual, in its standard deviations."""

WHITENING_RIDGE: Final = 0.1
"""Added to the residuals' variances, about 1 each, before they are whitened."""

LEAST_SPREAD: Final = 0.02
"""Least distance between the logarithms of an error's median and its .995 quantile."""

ERROR_ROWS: Final = 1_000_000
"""Most rows whose errors are held in memory to find their quantiles."""

TAIL_ROWS: Final = 131_072
"""Most rows whose features and residuals are held in memory to find theirs."""

RARITY_ROWS: Final = 262_144
"""Most rows whose raw scores are held in memory to find theirs: the tail is what matters here."""

OWN_TAIL_ROWS: Final = 4_096
"""Rows of an instrument that are enough for its tails, where all of them would be too many."""


LEAST_KNOT_DECADES: Final = 0.3
"""Decades that the greatest value lies at least above the last quantile that counts."""

KNOT_APART: Final = 1e-9
"""Least distance of two knots."""

LEAST_STEP: Final = 0.05
"""Least step of a decade beyond the greatest training value."""


def scale_residuals(weights: Weights, rows: Rows, normaliser: Normaliser) -> None:
    """Set both stages' residual scales: root mean squares over the training rows, floored.

    With them the mean error of the training rows is about 1 in both stages. Stage 1's are shared by
    the members. A feature that never moved is measured in its own unit: nothing says how large its
    residuals could be.
    """
    members, latent = weights["stage2.centre"].shape
    weights["stage1.residual_sd"] = np.ones(rows.features, np.float32)
    weights["stage2.residual_sd"] = np.ones((members, latent), np.float32)
    squares1, squares2 = np.zeros(rows.features), np.zeros((members, latent))
    moved = np.zeros(rows.features, np.bool_)
    for residual1, residual2, z in _residuals(weights, rows, normaliser):
        squares1 += np.square(residual1, dtype=np.float64).sum(axis=(0, 1))
        squares2 += np.square(residual2, dtype=np.float64).sum(axis=1)
        moved |= (z != 0).any(axis=0)
    n = len(rows)
    rms = np.maximum(np.sqrt(squares1 / (members * n)), RESIDUAL_FLOOR)
    weights["stage1.residual_sd"] = np.where(moved, rms, 1.0).astype(np.float32)
    rms = np.maximum(np.sqrt(squares2 / n), RESIDUAL_FLOOR)
    weights["stage2.residual_sd"] = rms.astype(np.float32)


def whiten_residuals(weights: Weights, rows: Rows, normaliser: Normaliser) -> None:
    """Set what turns every member's scaled residuals into uncorrelated ones of variance 1.

    With them stage 1's error is a squared Mahalanobis distance of the residual.
    """
    members, features = len(weights["stage2.centre"]), rows.features
    sums, products = np.zeros((members, features)), np.zeros((members, features, features))
    for residual, _, _ in _residuals(weights, rows, normaliser):
        sums += residual.sum(axis=1, dtype=np.float64)
        wide = residual.astype(np.float64)
        products += wide.swapaxes(1, 2) @ wide
    mean = sums / len(rows)
    covariance = products / len(rows) - mean[:, :, None] * mean[:, None, :]
    lower = np.linalg.cholesky(covariance + WHITENING_RIDGE * np.eye(features))
    weights[RESIDUAL_MEAN] = mean.astype(np.float32)
    weights[WHITENING] = np.linalg.inv(lower).swapaxes(1, 2).astype(np.float32)


def _residuals(
    weights: Weights, rows: Rows, normaliser: Normaliser
) -> Iterator[tuple[Float32, Float32, Float32]]:
    """Both stages' residuals, `(M, n, F)` and `(M, n, L)`, and clipped z-scores, span by span."""
    folded = fold(weights)
    for z in rows.normalised(normaliser):
        _, residual1, residual2 = forward(np, folded.arrays, z * folded.gain)
        yield residual1, residual2, z


def no_tails(table_rows: int, features: int, groups: npt.NDArray[np.int8]) -> Tails:
    """Tails that nothing reaches, for a model whose own are still to be found."""
    starts = np.full((table_rows, 2, features), np.finfo(np.float32).max, np.float32)
    starts[:, 1] *= -1.0
    decades = np.ones_like(starts)
    return Tails(groups, starts, decades, starts, decades)


def fit_tails(model: TwoStageModel, rows: Rows) -> Tails:
    """Quantiles of every feature and residual: of each instrument's rows, and of all rows pooled.

    The pooled ones are of all rows as they are scored where the model does not know the instrument:
    normalised by the pooled moments.
    """
    bare = replace(
        model, tails=no_tails(len(model.normaliser.centre), rows.features, model.tails.groups)
    )
    found = [_quantiles(scorer, part) for scorer, part in _by_table_row(bare, rows, TAIL_ROWS)]
    value_starts, value_decades, residual_starts, residual_decades = (
        np.stack(parts) for parts in zip(*found, strict=True)
    )
    return Tails(model.tails.groups, value_starts, value_decades, residual_starts, residual_decades)


def _by_table_row(
    model: TwoStageModel, rows: Rows, limit: int
) -> Iterator[tuple[TwoStageScorer, Rows]]:
    """Give for each row of the tables a scorer and the rows to count: all, then each instrument's.

    The scorer for all rows is one that knows no instrument. At most `limit` rows are in memory. Two
    scorers serve all: laying one out takes as long as the tables are.
    """
    tables = model.normaliser
    unknown = Normaliser(tables.keys[:0], tables.centre[:1], tables.scale[:1], tables.clip)
    yield TwoStageScorer(replace(model, normaliser=unknown), "cpu"), rows.thinned(limit)
    scorer = TwoStageScorer(model, "cpu")
    own = len(tables.keys)
    most = max(OWN_TAIL_ROWS, limit // max(own, 1))
    at_once = limit // most
    for first in range(0, own, at_once):
        keys = tables.keys[first : first + at_once]
        for part in rows.of_each(keys, most):
            yield scorer, part


def _quantiles(scorer: TwoStageScorer, rows: Rows) -> tuple[Float32, Float32, Float32, Float32]:
    """Return starts and decades `(2, F)` of z-scores and of unclipped residuals."""
    chunks = [scorer.residuals(values, keys)[:2] for values, keys in rows.chunks()]
    z, residual = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    residual += scorer.hidden(z)
    return *_tails_of(z, VALUE_FLOOR), *_tails_of(residual, RESIDUAL_DECADE_FLOOR)


def _tails_of(values: Float32, floor: float) -> tuple[Float32, Float32]:
    """Return starts and decades `(2, F)` of the columns of `(n, F)` values."""
    start, before = QUANTILES
    shares = (start, before, 1.0 - start, 1.0 - before)
    columns = np.ascontiguousarray(values.T)
    high, high_before, low, low_before = np.quantile(columns, shares, axis=1)
    decades = np.maximum(np.stack([high - high_before, low_before - low]), floor)
    return np.stack([high, low]).astype(np.float32), decades.astype(np.float32)


def fit_combination(model: TwoStageModel, rows: Rows) -> Combination:
    """Complete the combination: where the logarithms of both errors lie, and how wide.

    An error whose .995 quantile is hardly above its median (few rows, or constant ones) gets the
    least spread, so that no gain is infinite.
    """
    scorer, thinned = TwoStageScorer(model, "cpu"), rows.thinned(ERROR_ROWS)
    errors = np.concatenate(
        [
            scorer.measure(values, keys, np.ones(len(keys), np.bool_))[0]
            for values, keys in thinned.chunks()
        ],
        axis=1,
    )
    logs = np.log(errors + LEAST_ERROR)
    centre, high = np.quantile(logs, (0.5, QUANTILES[0]), axis=1)
    gain = DECADE / np.maximum(high - centre, LEAST_SPREAD)
    return replace(
        model.combination,
        centre1=float(centre[0]),
        gain1=float(gain[0]),
        centre2=float(centre[1]),
        gain2=float(gain[1]),
    )


def fit_rarity(model: TwoStageModel, rows: Rows, lone: npt.NDArray[np.int64]) -> Rarity:
    """Count how often the training rows are as high: raw scores, and lone features by themselves.

    By instrument, and pooled for one the model does not know. Beyond the greatest value of an
    instrument a decade takes no less than beyond that of all: one instrument alone has few rows to
    tell how far a tail goes on.
    """
    knots, steps = [], []
    for scorer, part in _by_table_row(model, rows, RARITY_ROWS):
        each = ((_raw(scorer, values, keys), values[:, lone]) for values, keys in part.chunks())
        raw, alone = (np.concatenate(found) for found in zip(*each, strict=True))
        alone = alone.astype(np.float64)
        own = [_knots(column) for column in alone.T]
        greatest = np.zeros(len(raw))
        for column, (at, step) in zip(alone.T, own, strict=True):
            rare = column > at[0, ORDINARY]
            greatest[rare] = np.maximum(greatest[rare], rarities(column[rare], at, step))
        every = [_knots(raw), _knots(greatest), *own]
        knots.append(np.stack([each for each, _ in every]))
        steps.append([each for _, each in every])
    return Rarity(lone, np.stack(knots), np.maximum(steps, steps[0]))


def _raw(scorer: TwoStageScorer, values: npt.NDArray[Any], keys: npt.NDArray[np.int64]) -> Float64:
    errors, tail, _ = scorer.measure(values, keys, np.ones(len(keys), np.bool_))
    return scorer.model.combination(errors[0], errors[1], tail)


def _knots(values: Float64) -> tuple[Float64, float]:
    """Return `(2, KNOTS)` knots of `(n,)` values and the step beyond, see `kernels_scoring.rarity`.

    Quantiles that so few rows do not support give way to the greatest value. Where values are
    equal, knots ascend by next to nothing: a value above the many zeros of a feature is rare.
    """
    most = math.log10(len(values))
    shares = (0.0, *(1.0 - 10.0**-decades for decades in KNOT_DECADES[1:]))
    kept = [
        (float(each), decades)
        for each, decades in zip(np.quantile(values, shares), KNOT_DECADES, strict=True)
        if decades < most - LEAST_KNOT_DECADES
    ] or [(float(values.min()), KNOT_DECADES[0])]
    kept.append((float(values.max()), max(most, kept[-1][1] + LEAST_KNOT_DECADES)))
    at, decades = (np.array(each) for each in zip(*kept, strict=True))
    for i in range(1, len(at)):
        at[i] = max(at[i], at[i - 1] + KNOT_APART)
    wide, long = np.diff(at), np.diff(decades)
    step = max(wide[-1] / max(long[-1], LEAST_KNOT_DECADES), wide[-2:][0], LEAST_STEP)
    filled = np.full((2, KNOTS), ((at[-1],), (decades[-1],)))
    filled[:, : len(at)] = at, decades
    return filled, float(step)
