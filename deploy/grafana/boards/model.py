"""The board of the model: scores against the threshold, alarms, drift, bad input, versions."""

from __future__ import annotations

from typing import Final

from .board import Board
from .findings import (
    HOUR_RATIO,
    ON_BUDGET,
    alarms_against_budget,
    severities,
    share_of_budget,
    types,
)
from .inputs import bad_input
from .parts import (
    GREEN,
    ORANGE,
    RED,
    Panel,
    Said,
    gauges,
    heat,
    lines,
    number,
    steps,
)
from .queries import QUANTILES, Query, of, of_job, quantile, quantiles, rate
from .versions import life, life_now, versions

_PER_THRESHOLD: Final = "tapewatch_score_per_threshold"
_ERROR: Final = "tapewatch_reconstruction_error"
_MODERATE, _LARGE = 0.1, 0.25
"""Population stability index from which a shift is moderate, and large."""


def model() -> Board:
    """Return the board."""
    board = Board(
        "tapewatch-model",
        "tapewatch / Model",
        "Does the model still fit the market: scores, alarms, drift, input, versions.",
    )
    board.row("Now", versions(4), *life_now(), *_fit())
    board.row("Scores against the threshold", _score_heat(), _score_quantiles(), _above(), _score())
    board.row("Both stages", *_error_heats(), *_error_quantiles())
    board.row("Alarms", alarms_against_budget(12), share_of_budget(12), types(12), severities(12))
    board.row("Drift", _score_drift(), _features_moved(), _feature_drift(), _drift_rows())
    board.row("Input", *bad_input())
    board.row("Life of the model", *life())
    return board


def _fit() -> list[Panel]:
    budget = number(
        Said(
            "Alarms of budget, last hour",
            "Episodes opened as a share of those that the thresholds were set for. Of the whole "
            "job.",
            "percentunit",
            ON_BUDGET,
        ),
        Query(f"max({of_job(HOUR_RATIO)})"),
        width=4,
        colours=steps(GREEN, (1.5, ORANGE), (3, RED)),
        none="no budget",
    )
    drift = number(
        Said(
            "Drift of the score",
            "Population stability index of the score against the calibration's: from 0.1 moderate, "
            "from 0.25 large. No value before enough ticks were sampled.",
            "short",
            ("TapewatchDrift",),
        ),
        Query(f"max({of('tapewatch_score_psi')})"),
        width=4,
        colours=steps(GREEN, (_MODERATE, ORANGE), (_LARGE, RED)),
        none="too few ticks",
    )
    moved = number(
        Said(
            "Features moved",
            "Features whose population stability index is 0.25 or more, where they are most.",
            "short",
            ("TapewatchDrift",),
        ),
        Query(f"max({of('tapewatch_features_moved')})"),
        width=3,
        colours=steps(GREEN, (1, ORANGE)),
        none="too few ticks",
    )
    return [budget, drift, moved]


def _score_heat() -> Panel:
    return heat(
        Said(
            "Score, in multiples of the threshold",
            "How far scored ticks are from an alarm: 1 is the threshold that was in force for the "
            "instrument. A body that climbs towards 1 without incidents is drift.",
            "short",
            ("TapewatchDrift",),
        ),
        _PER_THRESHOLD,
    )


def _score_quantiles() -> Panel:
    return lines(
        Said(
            "Score, in multiples of the threshold: quantiles",
            "The body and the tail of the scores; dashed, the threshold.",
            "short",
        ),
        *quantiles(_PER_THRESHOLD),
        limits=[(1, RED)],
        logarithmic=True,
    )


def _above() -> Panel:
    below = rate(f"{_PER_THRESHOLD}_bucket", 'le="1.0"')
    return lines(
        Said(
            "Ticks above the threshold",
            "Share of the scored ticks above their threshold. Many ticks are one episode, so this "
            "is no alarm rate.",
            "percentunit",
            ("TapewatchAlarmsAboveBudget",),
        ),
        Query(f"1 - {below} / {rate(f'{_PER_THRESHOLD}_count')}", "above"),
    )


def _score() -> Panel:
    return heat(
        Said("Score", "Anomaly scores of scored ticks, as they are in events.", "short"),
        "tapewatch_score",
    )


def _error_heats() -> list[Panel]:
    return [
        heat(
            Said(
                f"Reconstruction error of stage {stage}",
                f"{what}, in squared standard deviations of the training.",
                "short",
            ),
            _ERROR,
            f'stage="{stage}"',
        )
        for stage, what in (
            ("1", "How badly the features are reconstructed: single values out of the ordinary"),
            ("2", "How badly the latent is reconstructed: combinations out of the ordinary"),
        )
    ]


def _error_quantiles() -> list[Panel]:
    return [
        lines(
            Said(
                f"Error of stage {stage}: quantiles",
                "A median that moves is another market, or another feed; a tail that moves alone "
                "is what alarms are for.",
                "short",
                ("TapewatchDrift",),
            ),
            *(Query(quantile(q, _ERROR, f'stage="{stage}"'), name) for q, name in QUANTILES),
            logarithmic=True,
        )
        for stage in ("1", "2")
    ]


def _score_drift() -> Panel:
    return lines(
        Said(
            "Drift of the score, by daemon",
            "Population stability index of the score against the calibration's; dashed, moderate "
            "and large.",
            "short",
            ("TapewatchDrift",),
        ),
        Query(of("tapewatch_score_psi"), "{{instance}}"),
        limits=[(_MODERATE, ORANGE), (_LARGE, RED)],
    )


def _features_moved() -> Panel:
    return lines(
        Said(
            "Features moved, by daemon",
            "How many features have a population stability index of 0.25 or more.",
            "short",
            ("TapewatchDrift",),
        ),
        Query(of("tapewatch_features_moved"), "{{instance}}"),
    )


def _feature_drift() -> Panel:
    return gauges(
        Said(
            "Features that moved furthest",
            "Population stability index of the ten features furthest from the training now. One "
            "family: look at the feed; all over: another market.",
            "short",
            ("TapewatchDrift",),
        ),
        Query(
            f"topk(10, max by (feature) ({of('tapewatch_feature_psi')}))",
            "{{feature}}",
            instant=True,
        ),
        steps(GREEN, (_MODERATE, ORANGE), (_LARGE, RED)),
        most=1.0,
    )


def _drift_rows() -> Panel:
    return lines(
        Said(
            "Ticks that the drift is judged by",
            "Sampled ticks behind the indices: with few of them an index is a guess.",
            "short",
        ),
        Query(of("tapewatch_drift_rows"), "{{instance}}"),
    )
