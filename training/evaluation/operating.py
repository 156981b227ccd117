"""Operating points: thresholds from calibration scores alone, applied as the daemon applies them.

For every detector alike, by the very objects of the product: `peak_thresholds` for the prior, a
`ThresholdBook` where thresholds follow their alarms, the daemon's episodes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.events import EpisodePolicy
from detector.placing import Planted
from detector.thresholds import ThresholdBook, Thresholds, TooFewScoresError
from training.evaluation.budget import budgets
from training.evaluation.episodes import (
    Episodes,
    Verdicts,
    episodes_of,
    judge_episodes,
    verdicts,
)
from training.evaluation.stream import Stream
from training.peaks import peak_thresholds

Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Point:
    """False episodes an instrument-hour that are asked for, and whether thresholds follow them."""

    per_hour: float
    adapt: bool

    @property
    def name(self) -> str:
        """As it stands in figures and tables."""
        return f"{self.per_hour:g} an hour, {'adaptive' if self.adapt else 'frozen'}"


RATES: Final = (1.0, 6.0)
POINTS: Final = tuple(Point(per_hour, adapt) for per_hour in RATES for adapt in (False, True))


@dataclass(frozen=True, slots=True, eq=False)
class Calibration:
    """What thresholds are made from: rows of the calibration part.

    Parameters
    ----------
    keys, ts
        `(n,)` in order of arrival.
    rows
        `(n,)` int32 row of each instrument in the model's tables; 0: not trained on.
    table_rows
        Number of rows of those tables.
    """

    keys: Int64
    ts: Int64
    rows: Int32
    table_rows: int

    def thresholds(self, score: Float64, per_hour: float) -> Thresholds:
        """Thresholds of a detector from its scores of these rows; they follow their alarms.

        Raises
        ------
        TooFewScoresError
            Too few rows or too little time for so rare an alarm.
        """
        return peak_thresholds(
            score, self.rows, self.ts, self.keys, self.table_rows, "budget", per_hour
        )


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A detector at an operating point on the rows to judge.

    Parameters
    ----------
    threshold
        `(n,)` applied to each row.
    episodes, found
        What was opened, and what it was.
    facts
        JSON types.
    """

    threshold: Float64
    episodes: Episodes
    found: Verdicts
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """The rows to judge, for detectors at operating points.

    Parameters
    ----------
    keys, ts
        `(n,)` in order of arrival.
    rows
        `(n,)` as in `Calibration`.
    planted
        Anomalies within their time.
    names
        Of the instruments, by key.
    """

    keys: Int64
    ts: Int64
    rows: Int32
    planted: tuple[Planted, ...]
    names: dict[int, str]

    @classmethod
    def of(cls, stream: Stream, test: npt.NDArray[np.bool_], rows: Int32) -> Trial:
        """Take the judged rows of a stream, and the anomalies that lie within their time."""
        keys, ts = stream.keys[test], stream.ts[test]
        return cls(keys, ts, rows, within(stream.planted, keys, ts), dict(stream.names))

    def judge(self, score: Float64, thresholds: Thresholds, per_hour: float | None) -> Judged:
        """Apply thresholds to a detector's scores and judge the episodes they open.

        Parameters
        ----------
        score
            `(n,)` positive.
        thresholds
            Frozen, or adaptive: then they begin at their prior here.
        per_hour
            The budget that was asked for; None: none was.
        """
        threshold = apply(thresholds, self.keys, self.ts, self.rows, score)
        return self.judge_episodes(
            episodes_of(self.keys, self.ts, score, threshold), threshold, per_hour
        )

    def judge_episodes(
        self, episodes: Episodes, threshold: Float64, per_hour: float | None
    ) -> Judged:
        """Judge episodes that were opened at given thresholds."""
        found = verdicts(episodes, self.planted)
        facts = judge_episodes(episodes, found, self.planted, self.keys, self.ts, self.names)
        if per_hour is not None:
            facts["budget"] = budgets(facts["instruments"], per_hour)
        return Judged(threshold, episodes, found, facts)


def within(planted: tuple[Planted, ...], keys: Int64, ts: Int64) -> tuple[Planted, ...]:
    """Anomalies that begin and end between the first and the last row of their instrument."""
    spans = {}
    for key in np.unique(keys).tolist():
        mine = ts[keys == key]
        spans[key] = int(mine.min()), int(mine.max())
    return tuple(
        one
        for one in planted
        if one.key in spans
        and spans[one.key][0] <= one.start_ns
        and one.end_ns <= spans[one.key][1]
    )


def apply(thresholds: Thresholds, keys: Int64, ts: Int64, rows: Int32, score: Float64) -> Float64:
    """`(n,)` thresholds that apply to rows in order of arrival, by the daemon's own state."""
    if not thresholds.adaptive:
        return thresholds.threshold_for(rows)
    policy = EpisodePolicy()
    found, slots = np.unique(keys, return_inverse=True)
    book = ThresholdBook(thresholds, len(found), policy.close_ratio, policy.quiet_s)
    return book.apply(slots.astype(np.int32), keys, ts, rows, score)


def operate(
    score: Float64, held_out: Float64, calibration: Calibration, trial: Trial
) -> dict[str, Judged | str]:
    """Judge a detector at every operating point; a text says why a point has no threshold.

    Parameters
    ----------
    score
        `(n,)` of the trial's rows.
    held_out
        Scores of the calibration's rows.
    """
    found: dict[str, Judged | str] = {}
    for per_hour in RATES:
        points = [Point(per_hour, adapt) for adapt in (False, True)]
        try:
            moving = calibration.thresholds(held_out, per_hour)
        except TooFewScoresError as error:
            found |= {point.name: str(error) for point in points}
            continue
        for point in points:
            thresholds = moving if point.adapt else frozen(moving)
            found[point.name] = trial.judge(score, thresholds, per_hour)
    return found


def frozen(thresholds: Thresholds) -> Thresholds:
    """Return the same thresholds, staying where they are."""
    if thresholds.peaks is None:
        return thresholds
    return replace(thresholds, peaks=replace(thresholds.peaks, adapt=False))
