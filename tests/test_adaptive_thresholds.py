"""What adaptive thresholds promise: budgets are held, drift is followed, attacks do not pay."""

from __future__ import annotations

import math

import numpy as np
import pytest

from detector import kernels_thresholds as k
from detector.events import EpisodePolicy
from detector.features import DEFAULT
from detector.thresholds import (
    LARGEST_SLOPE,
    LEAST_SLOPE,
    MOST_RISE,
    REFILL,
    STATE_BYTES,
    Asked,
    ThresholdBook,
    Thresholds,
    TooFewScoresError,
    quantile_thresholds,
)
from training.peaks import peak_thresholds

POLICY = EpisodePolicy()
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


def stream(hours: float, seed: int, level: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Ticks about twice a second; scores in bursts, with a tail of index 5 (heavier than real)."""
    rng = np.random.default_rng(seed)
    n = round(hours * 7_200)
    ts = START + np.cumsum(rng.exponential(0.5e9, n)).astype(np.int64)
    burst = np.repeat(rng.pareto(5.0, n // 20 + 1) + 1.0, 20)[:n]
    return ts, level * burst * rng.uniform(0.5, 1.0, n)


def fitted(asked: Asked, value: float, seed: int = 0, hours: float = 3.0) -> Thresholds:
    """Thresholds of one instrument from three hours of it."""
    ts, score = stream(hours, seed)
    keys, rows = np.full(len(ts), 7, np.int64), np.ones(len(ts), np.int32)
    return peak_thresholds(score, rows, ts, keys, 2, asked, value)


def run(
    thresholds: Thresholds, ts: np.ndarray, score: np.ndarray, book: ThresholdBook | None = None
) -> np.ndarray:
    """Apply a book to one instrument's ticks."""
    book = book or ThresholdBook(thresholds, 1, POLICY.close_ratio, POLICY.quiet_s)
    n = len(ts)
    return book.apply(
        np.zeros(n, np.int32), np.full(n, 7, np.int64), ts, np.ones(n, np.int32), score
    )


def episodes(ts: np.ndarray, score: np.ndarray, threshold: np.ndarray) -> int:
    """Count the episodes that thresholds open."""
    quiet = round(POLICY.quiet_s * SECOND)
    room = np.empty(len(ts))
    return k.episodes_above(ts, score / threshold, 1.0, POLICY.close_ratio, quiet, room)


@pytest.mark.parametrize("budget", [1.0, 6.0, 20.0])
def test_frozen_budget_is_what_the_stream_gives_on_average(budget: float) -> None:
    """Over ten calibrations, fresh hours open about as many episodes as asked for."""
    opened = 0
    for seed in range(10):
        thresholds = fitted("budget", budget, seed)
        assert thresholds.own.tolist() == [True, True]
        ts, score = stream(10.0, seed + 100)
        opened += episodes(ts, score, np.full(len(ts), thresholds.values[1]))
    assert opened / (100 * budget) == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize("risk", [0.01, 0.001])
def test_frozen_risk_is_the_share_of_ticks_on_average(risk: float) -> None:
    """Over ten calibrations, about the share asked for of fresh ticks reaches the threshold."""
    shares = []
    for seed in range(10):
        thresholds = fitted("risk", risk, seed)
        _, score = stream(10.0, seed + 100)
        shares.append(np.mean(score >= thresholds.values[1]))
    assert np.mean(shares) / risk == pytest.approx(1.0, abs=0.5)


@pytest.mark.parametrize("level", [0.6, 1.0, 1.3, 2.5])
@pytest.mark.parametrize("budget", [2.0, 6.0])
def test_budget_is_held_whatever_the_level_of_ordinary_scores(level: float, budget: float) -> None:
    """After a lasting shift of all scores, the realised alarms of a day are near the budget."""
    thresholds = fitted("budget", budget)
    ts, score = stream(20.0, 5, level)
    assert episodes(ts, score, run(thresholds, ts, score)) / (20 * budget) == pytest.approx(
        1.0, abs=0.2
    )


@pytest.mark.parametrize("level", [0.6, 1.0, 1.3, 2.5])
@pytest.mark.parametrize("risk", [0.01, 0.002])
def test_risk_is_held_whatever_the_level_of_ordinary_scores(level: float, risk: float) -> None:
    """The same for the share of ticks at or above the threshold."""
    thresholds = fitted("risk", risk)
    ts, score = stream(20.0, 5, level)
    share = np.mean(score >= run(thresholds, ts, score))
    assert share / risk == pytest.approx(1.0, abs=0.25)


def test_alarms_return_to_the_budget_after_a_shift() -> None:
    """A frozen threshold alarms three times as often after +30 %; an adaptive one comes back."""
    thresholds = fitted("budget", 6.0)
    first, second = stream(10.0, 8), stream(10.0, 9, 1.3)
    gap = first[0][-1] - START
    ts = np.concatenate([first[0], second[0] + gap])
    score = np.concatenate([first[1], second[1]])
    threshold = run(thresholds, ts, score)
    late = slice(len(first[0]) + 7_200, None)  # from an hour after the shift
    frozen = episodes(ts[late], score[late], np.full(len(ts[late]), thresholds.values[1]))
    assert frozen > 2 * 6 * 9
    assert episodes(ts[late], score[late], threshold[late]) / (6 * 9) == pytest.approx(1, abs=0.2)


def test_counted_alarms_differ_from_the_budget_by_the_move_alone() -> None:
    """The law behind it: alarms - budget x hours = moved / step, up to what the limits cut off."""
    thresholds = fitted("budget", 6.0)
    ts, score = stream(50.0, 3)
    book = ThresholdBook(thresholds, 1, POLICY.close_ratio, POLICY.quiet_s)
    threshold = run(thresholds, ts, score, book)
    peaks = thresholds.peaks
    assert peaks is not None
    moved = book.snapshot()["floats"][0, k.MOVED]
    hours = k.hours_of(ts, 10**18)
    over = moved / peaks.step(thresholds.values)[1]
    assert episodes(ts, score, threshold) - 6 * hours == pytest.approx(over, abs=1.5)


@pytest.mark.parametrize("asked", ["budget", "risk"])
def test_slow_ramp_below_the_threshold_teaches_nothing(asked: Asked) -> None:
    """An attacker raises the score for hours, always just below the threshold, then strikes.

    Not one of these ticks raises the threshold, and the burst opens an episode at once.
    """
    thresholds = fitted(asked, 6.0 if asked == "budget" else 0.001)
    prior, book = thresholds.values[1], None
    book = ThresholdBook(thresholds, 1, POLICY.close_ratio, POLICY.quiet_s)
    ts = START + np.arange(40_000, dtype=np.int64) * SECOND // 2
    highest, before = prior, prior
    for i in range(0, len(ts), 100):
        room = slice(i, i + 100)
        ramp = np.full(100, 0.99 * before * min(1.0, i / 20_000))
        threshold = run(thresholds, ts[room], ramp, book)
        highest, before = max(highest, threshold.max()), threshold[-1] * 0.99
    assert highest == prior
    burst = run(thresholds, ts[-1:] + SECOND, np.array([prior]), book)
    assert prior >= burst[0]


@pytest.mark.parametrize("asked", ["budget", "risk"])
def test_one_burst_teaches_little_however_long_and_high(asked: Asked) -> None:
    """A minute of the wildest scores raises the threshold by a bounded factor, once."""
    thresholds = fitted(asked, 6.0 if asked == "budget" else 0.001)
    ts = START + np.arange(60_000, dtype=np.int64) * SECOND // 1_000
    score = np.concatenate([np.full(59_999, 1e6), [0.0]])
    ts[-1] += 10 * SECOND
    threshold = run(thresholds, ts, score) / thresholds.values[1]
    limit = MOST_RISE if asked == "risk" else math.exp(LARGEST_SLOPE)
    assert threshold.max() <= limit * (1 + 1e-9)
    if asked == "budget":
        assert (threshold[:-1] == 1.0).all()  # it stands still while the episode is open


def test_storm_of_alarms_raises_no_faster_than_stated() -> None:
    """Alarm after alarm, hundreds an hour: each is told, and the threshold keeps its pace."""
    thresholds = fitted("budget", 6.0)
    peaks = thresholds.peaks
    assert peaks is not None
    step = peaks.step(thresholds.values)[1]
    ts = START + np.arange(0, 2_000, 2, dtype=np.int64) * SECOND
    score = np.where(np.arange(len(ts)) % 8 == 0, 1e6, 0.0)  # for 16 s each: 225 an hour
    threshold = run(thresholds, ts, score)
    hours = (ts - START) / 3.6e12
    bound = math.log(MOST_RISE) + REFILL * step * 6.0 * hours
    assert (np.log(threshold / thresholds.values[1]) <= bound + 1e-9).all()
    assert episodes(ts, score, threshold) == np.count_nonzero(score)


@pytest.mark.parametrize("asked", ["budget", "risk"])
def test_market_that_changed_for_good_is_no_endless_episode(asked: Asked) -> None:
    """Ordinary scores suddenly three times the threshold: one long episode, then ordinary again."""
    thresholds = fitted(asked, 6.0 if asked == "budget" else 0.01)
    n, prior = 6 * 7_200, thresholds.values[1]
    ts = START + np.arange(n, dtype=np.int64) * SECOND // 2
    score = 3.0 * prior * np.exp(-np.random.default_rng(0).exponential(0.5, n))
    threshold = run(thresholds, ts, score)
    late = slice(n // 2, None)
    assert episodes(ts, score, np.full(n, prior)) == 1
    assert np.mean(score >= prior) > 0.8
    assert np.mean(score[late] >= threshold[late]) < 0.02
    if asked == "budget":
        assert episodes(ts[late], score[late], threshold[late]) / 18 == pytest.approx(1, abs=0.3)


def test_slot_of_another_instrument_begins_at_its_prior() -> None:
    """What one instrument taught is gone when its slot passes to another, and does not come back.

    instrument  7 7 7 ... 7 | 8 | 7
    threshold   moved       | prior | prior
    """
    thresholds = fitted("budget", 6.0)
    ts, score = stream(2.0, 4, 0.1)
    book = ThresholdBook(thresholds, 1, POLICY.close_ratio, POLICY.quiet_s)
    assert run(thresholds, ts, score, book)[-1] < 0.5 * thresholds.values[1]
    for key in (8, 7):
        found = book.apply(
            np.zeros(1, np.int32), np.array([key]), ts[-1:], np.ones(1, np.int32), np.ones(1)
        )
        assert found[0] == thresholds.values[1]


@pytest.mark.parametrize("ahead_s", [3_600, 6 * 86_400])
def test_one_wrong_time_far_ahead_stops_no_counting(ahead_s: int) -> None:
    """After one tick far in the future the threshold goes on from where it was, as without it."""
    thresholds = fitted("budget", 6.0)
    ts, score = stream(10.0, 5)
    expected = run(thresholds, ts, score)
    at = 20_000
    wrong = np.insert(ts, at, ts[at] + ahead_s * SECOND)
    found = np.delete(run(thresholds, wrong, np.insert(score, at, 0.0)), at)
    np.testing.assert_array_equal(found[:at], expected[:at])
    np.testing.assert_allclose(found[at:], expected[at:], rtol=0.02)


def test_alarm_at_a_wrong_time_far_ahead_is_no_endless_episode() -> None:
    """An episode that such a tick opens ends, and later ones are counted."""
    thresholds = fitted("budget", 6.0)
    ts, score = stream(10.0, 5)
    at = 20_000
    wrong = np.insert(ts, at, ts[at] + 86_400 * SECOND)
    alarming = np.insert(score, at, 100 * thresholds.values[1])
    found = np.delete(run(thresholds, wrong, alarming), at)
    opened = episodes(ts[at:], score[at:], found[at:])
    assert opened == pytest.approx(6.0 * (ts[-1] - ts[at]) / 3.6e12, rel=0.3)


def test_day_played_again_is_counted_again() -> None:
    """The same ten hours a second time open about as many episodes as budgeted."""
    thresholds = fitted("budget", 6.0)
    ts, score = stream(10.0, 5)
    twice = run(thresholds, np.tile(ts, 2), np.tile(score, 2))
    again = episodes(ts, score, twice[len(ts) :])
    assert again == pytest.approx(60, rel=0.25)


def test_night_is_no_trading_time() -> None:
    """A silence of half a day lowers no threshold; the minutes on both sides do."""
    thresholds = fitted("budget", 6.0)
    minutes = START + np.arange(11, dtype=np.int64) * 60 * SECOND
    ts = np.concatenate([minutes, minutes + 43_200 * SECOND])
    threshold = run(thresholds, ts, np.zeros(22))
    assert threshold[10] < threshold[0]
    assert threshold[11] == threshold[10]


def test_time_without_scores_expects_no_alarm() -> None:
    """Half an hour of warm-up lowers no threshold, half an hour of scored ticks does."""
    thresholds = fitted("budget", 6.0)
    ts = START + np.arange(61, dtype=np.int64) * 60 * SECOND
    threshold = run(thresholds, ts, np.where(np.arange(61) < 31, np.nan, 0.0))
    assert (threshold[:31] == thresholds.values[1]).all()
    assert threshold[60] < 0.7 * threshold[30]


def test_state_is_forty_bytes_and_its_snapshot_ends_with_the_last_slot() -> None:
    """Windows, episode and threshold of an instrument stay within 4,096 bytes together."""
    book = ThresholdBook(fitted("budget", 6.0), 1_000, POLICY.close_ratio, POLICY.quiet_s)
    held = sum(a.nbytes for a in vars(book).values() if isinstance(a, np.ndarray) and a.ndim == 2)
    assert held == 1_000 * STATE_BYTES
    assert DEFAULT.bank().state_bytes_per_instrument + 4 + STATE_BYTES <= 4_096
    assert {len(array) for array in book.snapshot().values()} == {0}
    book.apply(
        np.array([3], np.int32), np.ones(1, np.int64), np.array([START]), np.ones(1, np.int32),
        np.ones(1),
    )  # fmt: skip
    assert {name: array.shape for name, array in book.snapshot().items()} == {
        "integers": (4, k.INTEGERS),
        "floats": (4, k.FLOATS),
    }


def test_snapshot_that_does_not_fit_is_refused() -> None:
    """A missing array, another type or shape, too many slots, NaN: refused, the state stays."""
    thresholds = fitted("budget", 6.0)
    book = ThresholdBook(thresholds, 2, POLICY.close_ratio, POLICY.quiet_s)
    good = {"integers": np.zeros((1, k.INTEGERS), np.int64), "floats": np.zeros((1, k.FLOATS))}
    bad = [
        ({}, "holds"),
        ({**good, "more": np.zeros(1)}, "holds"),
        ({**good, "floats": np.zeros((1, k.FLOATS), np.float32)}, "floats is float32"),
        ({**good, "floats": np.zeros((2, k.FLOATS))}, r"floats is float64\(2"),
        ({**good, "floats": np.full((1, k.FLOATS), np.nan)}, "NaN"),
        ({"integers": np.zeros((3, 3), np.int64), "floats": np.zeros((3, 2))}, "at most 2 fit"),
    ]
    before = book.snapshot()
    for arrays, message in bad:
        with pytest.raises(ValueError, match=message):
            book.restore(arrays)
    assert all((book.snapshot()[name] == array).all() for name, array in before.items())
    book.restore(good)


def test_thresholds_that_do_not_adapt_have_no_book() -> None:
    """Quantiles stay what they are; so do tails that were not asked to follow."""
    ts, score = stream(3.0, 0)
    keys, rows = np.full(len(ts), 7, np.int64), np.ones(len(ts), np.int32)
    frozen = peak_thresholds(score, rows, ts, keys, 2, "risk", 0.01, adapt=False)
    for thresholds in (frozen, quantile_thresholds(score, rows, 2, 0.99)):
        assert not thresholds.adaptive
        with pytest.raises(ValueError, match="do not adapt"):
            ThresholdBook(thresholds, 1, 0.8, 5.0)


def test_method_and_tails_belong_together() -> None:
    """A definition with tails and another method, or the other way round, is a bug."""
    with pytest.raises(ValueError, match="'pot' and no other"):
        Thresholds(0.9, np.ones(1), np.ones(1, np.bool_), "pot")


@pytest.mark.parametrize(("asked", "value"), [("budget", 6.0), ("risk", 0.01)])
def test_threshold_is_the_end_of_its_own_tail(asked: Asked, value: float) -> None:
    """Level, tail and rate in the definition lead to the threshold, and steps keep their range."""
    thresholds = fitted(asked, value)
    peaks = thresholds.peaks
    assert peaks is not None
    share = value / peaks.rate
    depth = -np.log(share)
    assert (share < 1).all()
    bent = peaks.shape * depth
    excess = peaks.scale * np.where(bent == 0, depth, np.expm1(bent) / peaks.shape)
    np.testing.assert_allclose(peaks.level + excess, thresholds.values, rtol=1e-9)
    part = 1.0 if asked == "budget" else 1 / (3_000 * value)
    step = peaks.step(thresholds.values)
    assert (step >= part * LEAST_SLOPE).all()
    assert (step <= part * LARGEST_SLOPE).all()
    np.testing.assert_allclose(peaks.ticks_per_hour, 7_200, rtol=0.05)


def test_instrument_with_little_data_takes_the_pooled_threshold() -> None:
    """Two instruments with hours and one with a minute: the last has no tail of its own."""
    parts = [stream(3.0, 1), stream(3.0, 2, 5.0), stream(0.02, 3)]
    ts, score = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    sizes = [len(part[0]) for part in parts]
    keys = np.repeat([70, 80, 90], sizes)
    rows = np.repeat(np.array([1, 2, 3], np.int32), sizes)
    found = peak_thresholds(score, rows, ts, keys, 4, "budget", 6.0)
    assert found.own.tolist() == [True, True, True, False]
    assert found.values[3] == found.pooled
    assert found.values[2] == pytest.approx(5 * found.values[1], rel=0.4)
    order = np.argsort(ts, kind="stable")
    mixed = peak_thresholds(score[order], rows[order], ts[order], keys[order], 4, "budget", 6.0)
    assert mixed.values.tolist() == found.values.tolist()


@pytest.mark.parametrize(
    ("asked", "value", "hours"),
    [("budget", 6.0, 0.0), ("budget", 6.0, 0.02), ("budget", 0.01, 3.0), ("risk", 1e-7, 3.0),
     ("risk", 0.01, 0.005)],
)  # fmt: skip
def test_what_the_scores_cannot_tell_is_refused(asked: Asked, value: float, hours: float) -> None:
    """No scores, a minute of them, or an alarm in four days from three hours: refused."""
    with pytest.raises(TooFewScoresError, match=r"give more calibration data, or ask for more"):
        fitted(asked, value, hours=hours)


def test_scores_that_are_all_the_same_have_no_tail() -> None:
    """Without any excess there is nothing to extend."""
    ts, _ = stream(3.0, 0)
    n = len(ts)
    with pytest.raises(TooFewScoresError):
        peak_thresholds(
            np.ones(n), np.ones(n, np.int32), ts, np.zeros(n, np.int64), 2, "risk", 0.01
        )
