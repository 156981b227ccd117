"""Thresholds and reference figures from rows the model was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detector import kernels_thresholds as k
from detector.drift import BINS, bin_edges, count_by_row, z_scores
from detector.events import EpisodePolicy
from detector.model import TwoStageModel
from detector.scorer import TwoStageScorer
from detector.thresholds import (
    GAP_S,
    OWN_TAIL,
    ThresholdBook,
    Thresholds,
    TooFewScoresError,
    quantile_thresholds,
    required_scores,
)
from detector.ticks import NS_PER_S
from training.datasets import Rows
from training.peaks import peak_thresholds

Float64 = npt.NDArray[np.float64]

REFERENCE_ROWS: Final = 100_000
"""Rows that the reference of a feature's drift is made of, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Errors and scores of some rows: 44 bytes a row kept, the only thing that grows in memory.

    Parameters
    ----------
    stage1, stage2, score
        `(n,)` float64.
    rows
        `(n,)` int32 rows in the normaliser's tables.
    keys, ts
        `(n,)` int64 instrument keys and event times.
    """

    stage1: Float64
    stage2: Float64
    score: Float64
    rows: npt.NDArray[np.int32]
    keys: npt.NDArray[np.int64]
    ts: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Ask:
    """What the thresholds have to hold: one of the three, in this order of precedence.

    Parameters
    ----------
    budget
        Episodes an instrument may open in an hour of its trading time.
    risk
        Share of ordinary ticks at or above the threshold, by the tail fitted to the highest.
    quantile
        Share of ordinary ticks below the threshold, by the scores as they are.
    adapt
        Whether thresholds for a budget or a risk follow the alarms they cause.
    """

    budget: float | None = None
    risk: float | None = None
    quantile: float = 0.999
    adapt: bool = True


def score_rows(model: TwoStageModel, rows: Rows) -> Scored:
    """Score rows by the detector's own scorer."""
    scorer = TwoStageScorer(model)
    n, done = len(rows), 0
    errors, tail, table_rows = np.empty((2, n)), np.empty(n), np.empty(n, np.int32)
    alone = np.empty(n)
    instruments = np.empty(n, np.int64)
    for values, keys in rows.chunks():
        part = slice(done, done + len(keys))
        errors[:, part], tail[part], table_rows[part] = scorer.measure(
            values, keys, np.ones(len(keys), np.bool_)
        )
        alone[part] = model.alone(values, table_rows[part], np.ones(len(keys), np.bool_))
        instruments[part] = keys
        done = part.stop
    score = model.score(errors[0], errors[1], tail, alone, table_rows)
    return Scored(errors[0], errors[1], score, table_rows, instruments, rows.times())


def calibrate(model: TwoStageModel, held_out: Scored, ask: Ask) -> Thresholds:
    """Thresholds of every instrument from held-out scores.

    Raises
    ------
    TooFewScoresError
        Says how many ready rows there are, how many are needed, and what to do.
    """
    table_rows = len(model.normaliser.centre)
    try:
        if ask.budget is None and ask.risk is None:
            return quantile_thresholds(held_out.score, held_out.rows, table_rows, ask.quantile)
        return peak_thresholds(
            held_out.score,
            held_out.rows,
            held_out.ts,
            held_out.keys,
            table_rows,
            "risk" if ask.budget is None else "budget",
            (ask.risk or 0.0) if ask.budget is None else ask.budget,
            adapt=ask.adapt,
        )
    except TooFewScoresError as error:
        raise TooFewScoresError(f"calibration part: {error}") from error


def threshold_report(
    model: TwoStageModel, thresholds: Thresholds, held_out: Scored, names: Mapping[int, str]
) -> dict[str, object]:
    """Say which instrument has a threshold of its own, and from how many rows, as JSON types."""
    counts = np.bincount(held_out.rows, minlength=len(thresholds.values)).tolist()
    peaks = thresholds.peaks
    step = None if peaks is None else peaks.step(thresholds.values)
    keys = model.normaliser.keys.tolist()

    def tail(row: int) -> dict[str, float]:
        if peaks is None or step is None:
            return {}
        return {
            "tail_level": float(peaks.level[row]),
            "tail_shape": float(peaks.shape[row]),
            "tail_scale": float(peaks.scale[row]),
            "tail_rate": float(peaks.rate[row]),
            "ticks_per_hour": float(peaks.ticks_per_hour[row]),
            "step": float(step[row]),
        }

    return {
        "method": thresholds.method,
        "quantile": thresholds.quantile,
        "asked": None if peaks is None else {peaks.asked: peaks.value},
        "adapt": thresholds.adaptive,
        "pooled": thresholds.pooled,
        "pooled_tail": tail(0),
        "calibration_rows": len(held_out.score),
        "rows_for_own": required_scores(thresholds.quantile, OWN_TAIL) if peaks is None else None,
        "instruments": {
            names.get(key, str(key)): {
                "threshold": float(thresholds.values[row]),
                "own": bool(thresholds.own[row]),
                "calibration_rows": counts[row],
                **tail(row),
            }
            for row, key in enumerate(keys, start=1)
        },
    }


def alarm_report(thresholds: Thresholds, scored: Scored) -> dict[str, object]:
    """Share of rows at or above their threshold, and the scores' spread, as JSON types.

    Thresholds that follow their alarms are applied as in the daemon: one instrument after the
    other's ticks in order, from the prior on.
    """
    if not len(scored.score):
        return {"rows": 0}
    policy = EpisodePolicy()
    found, slots = np.unique(scored.keys, return_inverse=True)
    threshold = thresholds.threshold_for(scored.rows)
    if thresholds.adaptive:
        book = ThresholdBook(thresholds, len(found), policy.close_ratio, policy.quiet_s)
        threshold = book.apply(
            slots.astype(np.int32), scored.keys, scored.ts, scored.rows, scored.score
        )
    alarms = scored.score >= threshold
    levels = np.quantile(scored.score, (0.5, 0.99, 0.999))
    hours, opened = 0.0, 0
    for slot in range(len(found)):
        mine = slots == slot
        ts, relative = scored.ts[mine], scored.score[mine] / threshold[mine]
        hours += float(k.hours_of(ts, round(GAP_S * NS_PER_S)))
        # Relative to the threshold applied, an alarm is a score of 1.
        opened += int(
            k.episodes_above(
                ts,
                relative,
                1.0,
                policy.close_ratio,
                round(policy.quiet_s * NS_PER_S),
                np.empty(len(ts)),
            )
        )
    return {
        "rows": len(scored.score),
        "alarm_share": float(alarms.mean()),
        "episodes": opened,
        "instrument_hours": hours,
        "score_p50": float(levels[0]),
        "score_p99": float(levels[1]),
        "score_p999": float(levels[2]),
    }


def reference_histograms(
    model: TwoStageModel, fitted: Rows, held_out: Scored
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Histograms of the fitted rows' z-scores and of the held-out rows' scores, to tell drift.

    The model rebuilds the rows it was fitted on a little better than others: their scores would
    call every later day a drift. Of the fitted rows at most `REFERENCE_ROWS` are taken, spread
    evenly.

    Returns
    -------
    edges
        `(F + 1, BINS - 1)` float32, see `drift.DriftReference`; the last row is the score's.
    counts
        `(R, F + 1, BINS)` int32.
    """
    tables = model.normaliser
    some = fitted.thinned(REFERENCE_ROWS)
    chunks, keys = zip(*some.chunks(), strict=True)
    values, rows = np.concatenate(chunks), tables.rows_for(np.concatenate(keys))
    own = z_scores(tables, values, rows)
    pooled = z_scores(tables, values, np.zeros_like(rows))
    score = held_out.score.astype(np.float32)[:, None]
    parts = []
    for mine, everyone, where in ((own, pooled, rows), (score, score, held_out.rows)):
        edges = bin_edges(mine)
        counts = np.zeros((len(tables.centre), len(edges), BINS), np.int32)
        count_by_row(mine, where, edges, counts)
        counts[0] = 0  # everyone's, by the pooled normaliser
        count_by_row(everyone, np.zeros_like(where), edges, counts)
        parts.append((edges, counts))
    return (
        np.concatenate([edges for edges, _ in parts]),
        np.concatenate([counts for _, counts in parts], axis=1),
    )
