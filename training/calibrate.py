"""Thresholds and reference figures from rows the model was not fitted on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from detector.artifact import REFERENCE_BINS
from detector.model import TwoStageModel
from detector.scorer import TwoStageScorer
from detector.thresholds import (
    OWN_TAIL,
    Thresholds,
    TooFewScoresError,
    quantile_thresholds,
    required_scores,
)
from training.datasets import Rows

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Errors and scores of some rows: 28 bytes a row, the only thing that grows in memory.

    Parameters
    ----------
    stage1, stage2, score
        `(n,)` float64.
    rows
        `(n,)` int32 rows in the normaliser's tables.
    """

    stage1: Float64
    stage2: Float64
    score: Float64
    rows: npt.NDArray[np.int32]


def score_rows(model: TwoStageModel, rows: Rows) -> Scored:
    """Score rows by the detector's own scorer."""
    scorer = TwoStageScorer(model)
    n, done = len(rows), 0
    errors, excess, table_rows = np.empty((2, n)), np.empty(n), np.empty(n, np.int32)
    for values, keys in rows.chunks():
        part = slice(done, done + len(keys))
        errors[:, part], excess[part], table_rows[part] = scorer.errors(
            values, keys, np.ones(len(keys), np.bool_)
        )
        done = part.stop
    score = model.combination(errors[0], errors[1], excess)
    return Scored(errors[0], errors[1], score, table_rows)


def calibrate(model: TwoStageModel, held_out: Scored, quantile: float) -> Thresholds:
    """Thresholds of every instrument from held-out scores.

    Raises
    ------
    TooFewScoresError
        Says how many ready rows there are, how many are needed, and what to do.
    """
    try:
        return quantile_thresholds(
            held_out.score, held_out.rows, len(model.normaliser.centre), quantile
        )
    except TooFewScoresError as error:
        raise TooFewScoresError(f"calibration part: {error}") from error


def threshold_report(
    model: TwoStageModel, thresholds: Thresholds, held_out: Scored, names: Mapping[int, str]
) -> dict[str, object]:
    """Say which instrument has a threshold of its own, and from how many rows, as JSON types."""
    counts = np.bincount(held_out.rows, minlength=len(thresholds.values)).tolist()
    return {
        "quantile": thresholds.quantile,
        "pooled": thresholds.pooled,
        "calibration_rows": len(held_out.score),
        "rows_for_own": required_scores(thresholds.quantile, OWN_TAIL),
        "instruments": {
            names.get(key, str(key)): {
                "threshold": float(thresholds.values[row]),
                "own": bool(thresholds.own[row]),
                "calibration_rows": counts[row],
            }
            for row, key in enumerate(model.normaliser.keys.tolist(), start=1)
        },
    }


def alarm_report(thresholds: Thresholds, scored: Scored) -> dict[str, object]:
    """Share of rows at or above their threshold, and the scores' spread, as JSON types."""
    if not len(scored.score):
        return {"rows": 0}
    alarms = scored.score >= thresholds.threshold_for(scored.rows)
    levels = np.quantile(scored.score, (0.5, 0.99, 0.999))
    return {
        "rows": len(scored.score),
        "alarm_share": float(alarms.mean()),
        "score_p50": float(levels[0]),
        "score_p99": float(levels[1]),
        "score_p999": float(levels[2]),
    }


def reference_histograms(
    chunks: Iterator[npt.NDArray[np.float32]], features: int, clip: float
) -> tuple[Float64, npt.NDArray[np.int64]]:
    """Histograms of the clipped z-scores, for telling drift later.

    Returns
    -------
    edges
        `(B + 1,)` float64, from `-clip` to `clip`; the last bin includes its upper edge.
    counts
        `(F, B)` int64.
    """
    edges = np.linspace(-clip, clip, REFERENCE_BINS + 1)
    counts = np.zeros((features, REFERENCE_BINS), np.int64)
    offsets = np.arange(features) * REFERENCE_BINS
    for z in chunks:
        bins = ((z + clip) * (REFERENCE_BINS / (2 * clip))).astype(np.int64)
        bins = np.clip(bins, 0, REFERENCE_BINS - 1) + offsets
        counts += np.bincount(bins.ravel(), minlength=counts.size).reshape(counts.shape)
    return edges, counts
