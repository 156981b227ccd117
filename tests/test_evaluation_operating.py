"""Operating points: thresholds from calibration scores alone, applied as in the daemon."""

from __future__ import annotations

import numpy as np
import pytest

from detector.events import EpisodePolicy
from detector.kernels_thresholds import episodes_above
from detector.thresholds import ThresholdBook
from detector.ticks import NS_PER_S
from tests.evaluated import START, planted, stream_of
from training.evaluation.operating import (
    POINTS,
    Calibration,
    Judged,
    Trial,
    apply,
    frozen,
    operate,
    within,
)

HOURS = 3


def scores(n: int, seed: int) -> np.ndarray:
    """Positive scores with an exponential tail."""
    return 0.1 + np.random.default_rng(seed).exponential(1.0, n)


def calibration(n: int = HOURS * 3600) -> Calibration:
    """A row a second of one instrument."""
    ts = START + np.arange(n) * NS_PER_S
    return Calibration(np.full(n, 10, np.int64), ts, np.ones(n, np.int32), 2)


def trial(n: int = HOURS * 3600, *anomalies: tuple[float, float]) -> Trial:
    """The same on another day."""
    stream = stream_of(range(n), anomalies=tuple(planted(*each) for each in anomalies))
    return Trial.of(stream, np.ones(n, bool), np.ones(n, np.int32))


def test_a_frozen_threshold_gives_what_was_asked_where_nothing_changed() -> None:
    """Scores of the same law: some six episodes an hour, and one, without a look at the test."""
    found = operate(scores(HOURS * 3600, 2), scores(HOURS * 3600, 1), calibration(), trial())
    for point in POINTS:
        judged = found[point.name]
        assert isinstance(judged, Judged)
        asked = point.per_hour * HOURS
        assert abs(judged.facts["false"] - asked) < 3 * np.sqrt(asked) + 1
        assert set(judged.facts["budget"]) == {"I10"}


def test_the_test_has_no_say_in_frozen_thresholds() -> None:
    """Whatever the judged scores are, the threshold is that of the calibration part."""
    held_out = scores(HOURS * 3600, 1)
    thresholds = frozen(calibration().thresholds(held_out, 6.0))
    one = trial()
    low, high = (one.judge(scores(HOURS * 3600, 3) * factor, thresholds, 6.0) for factor in (1, 3))
    assert np.array_equal(low.threshold, high.threshold)
    assert high.facts["false"] > 2 * low.facts["false"]


def test_adaptive_thresholds_are_the_daemons() -> None:
    """The book of the product, on the rows in order; they begin at their prior."""
    thresholds = calibration().thresholds(scores(HOURS * 3600, 1), 6.0)
    one, score = trial(), 2.0 * scores(HOURS * 3600, 4)
    policy = EpisodePolicy()
    book = ThresholdBook(thresholds, 1, policy.close_ratio, policy.quiet_s)
    wanted = book.apply(np.zeros(len(score), np.int32), one.keys, one.ts, one.rows, score)
    found = apply(thresholds, one.keys, one.ts, one.rows, score)
    assert np.array_equal(found, wanted)
    assert found[0] == thresholds.values[1] != found[-1]
    assert np.all(apply(frozen(thresholds), one.keys, one.ts, one.rows, score) == found[0])


def test_episodes_are_counted_as_for_the_prior() -> None:
    """The number of episodes at a fixed threshold is that of the kernel that made the threshold."""
    one, score = trial(), scores(HOURS * 3600, 5)
    thresholds = frozen(calibration().thresholds(scores(HOURS * 3600, 1), 6.0))
    judged = one.judge(score, thresholds, 6.0)
    policy = EpisodePolicy()
    room = np.empty(len(score))
    level = float(thresholds.values[1])
    quiet = round(policy.quiet_s * NS_PER_S)
    wanted = episodes_above(one.ts, score, level, policy.close_ratio, quiet, room)
    assert len(judged.episodes) == wanted > 0


def test_too_little_calibration_says_so() -> None:
    """A point without thresholds tells why, and the others are judged."""
    n = 15 * 60
    found = operate(scores(n, 2), scores(n, 1), calibration(n), trial(n))
    assert isinstance(found["6 an hour, frozen"], Judged)
    sparse = operate(scores(n, 2), scores(40, 1), calibration(40), trial(n))
    assert all(isinstance(each, str) and "calibration" in each for each in sparse.values())


@pytest.mark.parametrize(
    ("anomaly", "counts"),
    [((10, 20), True), ((0, 20), True), ((-1, 20), False), ((90, 99), True), ((90, 100), False)],
)
def test_only_anomalies_within_the_judged_time_count(
    anomaly: tuple[int, int], counts: bool
) -> None:
    """Those that began before the first judged row, or end after the last, are nobody's miss."""
    stream = stream_of(range(100))
    assert bool(within((planted(*anomaly),), stream.keys, stream.ts)) == counts
