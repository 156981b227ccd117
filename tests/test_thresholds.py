"""Thresholds: the order statistic they are, who has one of their own, and when they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from detector.thresholds import (
    OWN_TAIL,
    Thresholds,
    TooFewScoresError,
    largest_quantile,
    quantile_threshold,
    quantile_thresholds,
    required_scores,
)


def test_threshold_is_just_above_its_order_statistic() -> None:
    """Of 999 scores the threshold at .99 is the next number above the 990th smallest."""
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 1000.0))
    threshold = quantile_threshold(scores, 0.99)
    assert threshold == np.nextafter(990.0, np.inf)
    assert np.count_nonzero(scores >= threshold) == 9


def test_rank_survives_rounding_of_the_quantile() -> None:
    """`(n + 1) q` that is whole but for rounding does not take the next rank."""
    scores = np.arange(1.0, 10_000.0)
    assert quantile_threshold(scores, 0.9995) == np.nextafter(9_995.0, np.inf)


def test_tiny_quantile_takes_the_lowest_score() -> None:
    """A quantile so small that its rank rounds to none takes the first, not the last."""
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 1000.0))
    assert quantile_threshold(scores, 1e-12) == np.nextafter(1.0, np.inf)


def test_fresh_scores_reach_the_threshold_no_more_often_than_promised() -> None:
    """Over many small calibration sets, a fresh score alarms with probability at most 1 - q."""
    rng = np.random.default_rng(1)
    alarms = [
        rng.exponential() >= quantile_threshold(rng.exponential(size=59), 0.9)
        for _ in range(20_000)
    ]
    assert 0.09 < np.mean(alarms) < 0.107


@pytest.mark.parametrize(
    ("quantile", "expected"), [(0.999, 5_000), (0.99, 500), (0.99999, 500_000)]
)
def test_required_scores_put_the_tail_above(quantile: float, expected: int) -> None:
    """The number needed leaves five expected scores above the threshold, whatever the rounding."""
    assert required_scores(quantile) == expected
    assert required_scores(quantile, OWN_TAIL) == 4 * expected


def test_pooled_threshold_needs_enough_scores_and_says_how_many() -> None:
    """One score too few refuses, naming what there is, what is needed and what would do."""
    scores = np.ones(4_999)
    with pytest.raises(TooFewScoresError, match=r"at least 5,000 .* there are 4,999: .*0\.9989"):
        quantile_thresholds(scores, np.zeros(4_999, np.int32), 1, 0.999)
    quantile_thresholds(np.ones(5_000), np.zeros(5_000, np.int32), 1, 0.999)


def test_advised_quantile_is_accepted() -> None:
    """The quantile that the refusal advises works."""
    scores = np.arange(4_999.0)
    advised = np.floor(largest_quantile(4_999) * 1e4) / 1e4
    thresholds = quantile_thresholds(scores, np.zeros(4_999, np.int32), 1, float(advised))
    assert thresholds.quantile == advised


def test_no_scores_at_all_refuse_without_dividing_by_them() -> None:
    """An empty calibration part is the same refusal."""
    with pytest.raises(TooFewScoresError, match="there are 0"):
        quantile_thresholds(np.empty(0), np.empty(0, np.int32), 1, 0.99)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_quantile_outside_the_open_interval_is_refused(quantile: float) -> None:
    """Zero and one are no quantiles for a threshold, nor is anything beyond."""
    with pytest.raises(ValueError, match="between 0 and 1"):
        quantile_thresholds(np.ones(10), np.zeros(10, np.int32), 1, quantile)


def test_instrument_with_enough_scores_has_its_own_threshold() -> None:
    """2,000 rows at .99 earn an own threshold, 1,999 the pooled one, and `own` says so."""
    rows = np.repeat([0, 1, 2], [500, 2_000, 1_999]).astype(np.int32)
    scores = np.concatenate([np.full(500, 1.0), np.full(2_000, 10.0), np.full(1_999, 2.0)])
    thresholds = quantile_thresholds(scores, rows, 4, 0.99)
    assert thresholds.own.tolist() == [True, True, False, False]
    assert thresholds.values[1] == np.nextafter(10.0, np.inf)
    assert thresholds.values[2] == thresholds.values[3] == thresholds.pooled
    assert thresholds.threshold_for(np.array([2, 1, 0])).tolist() == [
        thresholds.values[i] for i in (2, 1, 0)
    ]


def test_own_threshold_reads_only_its_own_scores() -> None:
    """Rows of several instruments in any order lead to the same thresholds."""
    rng = np.random.default_rng(3)
    rows = rng.integers(0, 3, 12_000).astype(np.int32)
    scores = rng.exponential(1.0 + rows)
    order = rng.permutation(12_000)
    one = quantile_thresholds(scores, rows, 3, 0.99)
    other = quantile_thresholds(scores[order], rows[order], 3, 0.99)
    assert one.values.tolist() == other.values.tolist()
    assert one.values[1] == quantile_threshold(scores[rows == 1], 0.99)
    assert isinstance(one, Thresholds)
