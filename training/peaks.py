"""Thresholds for an alarm budget or a risk, by peaks over threshold on held-out scores.

For a *budget* (episodes an instrument may open in an hour of its trading time) the peaks are those
of episodes: scores of neighbouring ticks are nearly one observation, so the series is declustered
by the very rule that makes episodes, at a level low enough to have some fifty of them. For a *risk*
(share of ticks) the peaks are the ticks above a level. Either way the excesses get a generalised
Pareto tail, and the threshold is where that tail is reached as often as asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detector import kernels_thresholds as k
from detector.events import EpisodePolicy
from detector.tails import Tail, fit_tail
from detector.thresholds import GAP_S, Asked, Peaks, Thresholds, TooFewScoresError
from detector.ticks import NS_PER_S

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

PEAKS: Final = 50
"""Peaks that the level is chosen to leave: fewer say little about a tail's shape, more of them are
not of the tail."""

LEAST_PEAKS: Final = 20
"""Peaks below which a series has no tail of its own."""

DEEPEST: Final = 100.0
"""A tail is extended to what is at most so many times rarer than its peaks."""

LEVELS_PER_RISK: Final = 5.0
HIGHEST_SHARE: Final = 0.1
"""The level for a risk is reached by five times its share of ticks, more where that leaves fewer
than `PEAKS`, and by a tenth of them at most."""


@dataclass(frozen=True, slots=True)
class Series:
    """Scored ticks of one instrument: `(n,)` int64 event times and float64 scores, in order."""

    ts: Int64
    score: Float64


@dataclass(frozen=True, slots=True)
class Fitted:
    """A level, the tail above it, how often it is reached, and the threshold that follows."""

    level: float
    tail: Tail
    rate: float
    threshold: float
    peaks: int


def peak_thresholds(
    score: Float64,
    rows: npt.NDArray[np.integer],
    ts: Int64,
    keys: Int64,
    table_rows: int,
    asked: Asked,
    value: float,
    *,
    adapt: bool = True,
    policy: EpisodePolicy | None = None,
) -> Thresholds:
    """Thresholds from held-out scores by peaks over threshold, pooled and per instrument.

    Parameters
    ----------
    score, rows
        `(n,)` scores of ordinary ticks the model was not fitted on, and the row of each one's
        instrument in the normaliser's tables, 0 for unknown ones.
    ts, keys
        `(n,)` int64 event times, in order of arrival, and instrument keys.
    table_rows
        Number of rows of those tables, the pooled row included.
    asked, value
        What to hold: episodes per instrument-hour, or the share of ticks.
    adapt
        Whether thresholds shall follow their alarms when they are applied.
    policy
        When an episode is over; the daemon's default.

    Raises
    ------
    TooFewScoresError
        Even all instruments together have too few peaks, or too little time, to be extended to what
        is asked. An instrument alone that has too few takes the pooled threshold: `own` says which.
    """
    series = _series(score, ts, keys)
    tables = [int(rows[np.argmax(keys == key)]) for key in series]
    fit = _Fit(asked, value, policy or EpisodePolicy())
    pooled = fit(list(series.values()))
    fitted, own = [pooled] * table_rows, np.zeros(table_rows, np.bool_)
    pace = np.full(table_rows, _pace(list(series.values())))
    own[0] = True
    for row, one in zip(tables, series.values(), strict=True):
        if row == 0:
            continue
        try:
            fitted[row] = fit([one])
        except TooFewScoresError:
            continue
        own[row], pace[row] = True, _pace([one])
    values = np.array([f.threshold for f in fitted])
    below = float(np.mean(score < values[rows]))
    return Thresholds(
        # Strictly inside (0, 1), as a quantile is: a rare alarm may have none in these scores.
        quantile=min(max(below, 1e-9), 1.0 - 1e-9),
        values=values,
        own=own,
        method="pot",
        peaks=Peaks(
            asked,
            value,
            adapt,
            level=np.array([f.level for f in fitted]),
            shape=np.array([f.tail.shape for f in fitted]),
            scale=np.array([f.tail.scale for f in fitted]),
            rate=np.array([f.rate for f in fitted]),
            ticks_per_hour=pace,
        ),
    )


@dataclass(frozen=True, slots=True)
class _Fit:
    """Fits one tail to one or several series."""

    asked: Asked
    value: float
    policy: EpisodePolicy

    def __call__(self, series: Sequence[Series]) -> Fitted:
        return self._ticks(series) if self.asked == "risk" else self._episodes(series)

    def _episodes(self, series: Sequence[Series]) -> Fitted:
        hours = sum(_hours(one) for one in series)
        level, peaks = self._level(series, max(PEAKS, round(5 * self.value * hours)))
        what = f"a budget of {self.value:g} alarms an hour: {hours:.3g} instrument-hours"
        return _extended(level, peaks, hours, self.value, what)

    def _ticks(self, series: Sequence[Series]) -> Fitted:
        score = np.concatenate([np.empty(0), *(one.score for one in series)])
        n = len(score)
        share = min(HIGHEST_SHARE, max(LEVELS_PER_RISK * self.value, PEAKS / n)) if n else 0.0
        place = max(n - 1 - math.floor(share * n), 0)
        level = float(np.partition(score, place)[place]) if n else 0.0
        what = f"a risk of {self.value:g}: {n:,} held-out scores"
        return _extended(level, score[score > level], float(n), self.value, what)

    def _level(self, series: Sequence[Series], most: int) -> tuple[float, Float64]:
        """Level with nearly `most` episodes above it, and their peaks.

        From the top down: their number grows as the level falls, until episodes run together. Where
        it never gets to `most`, the level with most of them is taken; none lies below the median.
        """
        ordered = np.sort(np.concatenate([np.empty(0), *(one.score for one in series)]))[::-1]
        if not len(ordered):
            return 0.0, ordered
        level, best, reached = float(ordered[0]), np.empty(0), 0
        rank = min(most, len(ordered))
        while reached < rank:
            found = self._peaks(series, float(ordered[rank - 1]))
            if len(found) > most:
                break
            if len(found) >= len(best):
                level, best = float(ordered[rank - 1]), found
            reached = rank
            rank = max(rank, min(len(ordered) // 2, rank + max(1, rank // 4)))
        while rank - reached > max(1, reached // 50):
            middle = (reached + rank) // 2
            found = self._peaks(series, float(ordered[middle - 1]))
            if len(found) > most:
                rank = middle
            else:
                level, best, reached = float(ordered[middle - 1]), found, middle
        return level, best

    def _peaks(self, series: Sequence[Series], level: float) -> Float64:
        quiet = round(self.policy.quiet_s * NS_PER_S)
        parts = [np.empty(0)]
        for one in series:
            room = np.empty(len(one.score))
            count = k.episodes_above(one.ts, one.score, level, self.policy.close_ratio, quiet, room)
            parts.append(room[:count])
        return np.concatenate(parts)


def _extended(level: float, peaks: Float64, size: float, asked: float, what: str) -> Fitted:
    """Extend the tail of peaks, found in `size` hours or ticks, to the rate asked for."""
    n = len(peaks)
    needed = LEAST_PEAKS if n < LEAST_PEAKS else math.ceil(n / DEEPEST)
    if n < LEAST_PEAKS or asked * size < n / DEEPEST or not float(peaks.max()) > level:
        raise TooFewScoresError(
            f"{what} with {n} peaks cannot tell it; at least {LEAST_PEAKS} peaks and "
            f"{needed / DEEPEST:.2g} expected alarms are needed: give more calibration data, or "
            "ask for more alarms"
        )
    tail = fit_tail(peaks - level)
    threshold = level + tail.excess(min(1.0, asked * size / n))
    return Fitted(level, tail, n / size, float(np.nextafter(threshold, np.inf)), n)


def _series(score: Float64, ts: Int64, keys: Int64) -> dict[int, Series]:
    if not len(keys):
        return {}
    order = np.argsort(keys, kind="stable")
    found, starts = np.unique(keys[order], return_index=True)
    parts: Iterator[npt.NDArray[np.intp]] = iter(np.split(order, starts[1:]))
    return {
        int(key): Series(np.ascontiguousarray(ts[part]), np.ascontiguousarray(score[part]))
        for key, part in zip(found.tolist(), parts, strict=True)
    }


def _hours(one: Series) -> float:
    return float(k.hours_of(one.ts, round(GAP_S * NS_PER_S)))


def _pace(series: Sequence[Series]) -> float:
    """Ticks an hour of trading time of one instrument; at least 1, so that it divides."""
    hours = sum(_hours(one) for one in series)
    return max(1.0, sum(len(one.ts) for one in series) / hours) if hours > 0 else 1.0
