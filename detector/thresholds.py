"""When a score is an anomaly: one frozen definition for training, offline scoring and the daemon.

`Thresholds` is the definition. A threshold is a high quantile of the scores of ordinary ticks that
came after the training period, or the end of a tail fitted to them (`Peaks`). Every instrument with
enough such ticks has its own; the pooled one serves all others. How many are enough is part of the
definition: a quantile taken from too few scores is a guess.

`ThresholdBook` is the state of thresholds that follow the alarms they cause, one input partition's;
the arithmetic is in `detector.kernels_thresholds`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from detector import kernels_thresholds as k
from detector.ticks import NS_PER_S

Float64 = npt.NDArray[np.float64]
Method = Literal["quantile", "pot"]
Asked = Literal["budget", "risk"]

OWN_TAIL: Final = 20
"""Held-out scores expected above an instrument's own threshold: its false-alarm rate is then known
to about 1/sqrt(20), 22 %."""

POOLED_TAIL: Final = 5
"""The same for the pooled threshold, below which calibration refuses: 45 % is a rough figure, but
there is nothing to fall back on."""


MOST_FACTOR: Final = 10.0
"""A threshold that follows its alarms stays within this factor of its prior, both ways."""

MOST_RISE: Final = 2.0
"""Largest factor by which it rises at once, and in one episode."""

REFILL: Final = 4.0
"""With a budget, the factor by which it may rise in an hour beyond that is at most the one of so
many times the budgeted alarms: a storm of alarms is a storm, not what is ordinary now."""

RELEASE_S: Final = 600.0
"""An episode that lasts counts once more, and its time does not, each time so much event time has
passed: a market that has changed for good must not stay one episode for ever."""

GAP_S: Final = 1800.0
"""A longer silence of an instrument is no trading time, as in the features."""

MEMORY_TICKS: Final = 3_000.0
"""With a risk, ticks over which the share of alarms is held to it."""

LEAST_SLOPE: Final = 0.2
LARGEST_SLOPE: Final = 0.5
"""Range of the tail's slope, d log(threshold) / d log(rarity), that is believed: an hour or two of
scores do not tell how steep the tail will be on another day."""


STATE_BYTES: Final = 8 * (k.INTEGERS + k.FLOATS)
"""What an instrument takes in a `ThresholdBook`."""


class TooFewScoresError(ValueError):
    """The quantile asked for cannot be estimated from so few held-out scores."""


@dataclass(frozen=True, slots=True, eq=False)
class Peaks:
    """What peaks over threshold found, and what was asked: the frozen prior of every instrument.

    Parameters
    ----------
    asked
        "budget": episodes an instrument opens in an hour of its trading time. "risk": share of its
        ticks at or above the threshold.
    value
        The budget, or the risk; positive.
    adapt
        Whether thresholds follow the alarms they cause.
    level, shape, scale
        `(R,)` float64: the level that peaks were taken over, and the generalised Pareto tail of
        what they exceed it by.
    rate
        `(R,)` float64: episodes an hour whose peak exceeds the level (budget), or the share of
        ticks above it (risk).
    ticks_per_hour
        `(R,)` float64: scored ticks of an instrument in an hour of its trading time, which turns a
        budget into a risk.
    """

    asked: Asked
    value: float
    adapt: bool
    level: Float64
    shape: Float64
    scale: Float64
    rate: Float64
    ticks_per_hour: Float64

    def step(self, values: Float64) -> Float64:
        """`(R,)` log rise of a threshold for one alarm that counts.

        Where log scores have an exponential tail of mean `slope`, a threshold higher by
        `slope` is reached e times less often. A budget's alarm moves it by just that; a risk's by
        a part, so that it is held over some `MEMORY_TICKS` ticks and not by the last burst alone.
        """
        slope = (self.scale + self.shape * np.maximum(values - self.level, 0.0)) / values
        part = 1.0 if self.asked == "budget" else min(1.0, 1.0 / (MEMORY_TICKS * self.value))
        found: Float64 = part * np.clip(slope, LEAST_SLOPE, LARGEST_SLOPE)
        return found


@dataclass(frozen=True, slots=True, eq=False)
class Thresholds:
    """Decision thresholds of a trained model.

    Parameters
    ----------
    quantile
        Share of ordinary ticks that must stay below the threshold, in (0, 1); with method "pot" the
        share that did in the calibration part.
    values
        `(R,)` float64, one per row of the normaliser's tables; row 0 is the pooled threshold, and
        instruments without a threshold of their own repeat it.
    own
        `(R,)` bool: the value was estimated from the instrument's own scores.
    method
        How the values were found: "quantile" as they are, "pot" by peaks over threshold.
    peaks
        With method "pot", and only then: the tails behind the values.
    """

    quantile: float
    values: Float64
    own: npt.NDArray[np.bool_]
    method: Method = "quantile"
    peaks: Peaks | None = None

    def __post_init__(self) -> None:
        if (self.method == "pot") != (self.peaks is not None):
            raise ValueError(f"method is {self.method!r}; 'pot' and no other has peaks")

    @property
    def pooled(self) -> float:
        """Threshold of instruments without one of their own."""
        return float(self.values[0])

    def threshold_for(self, rows: npt.NDArray[np.integer]) -> Float64:
        """`(n,)` float64 thresholds of the instruments in table rows `rows`."""
        found: Float64 = self.values[rows]
        return found

    @property
    def adaptive(self) -> bool:
        """Whether thresholds follow the alarms they cause; a `ThresholdBook` then applies them."""
        return self.peaks is not None and self.peaks.adapt


def required_scores(quantile: float, tail: int = POOLED_TAIL) -> int:
    """Held-out scores needed so that `tail` of them are expected above the threshold."""
    return math.ceil(tail / (1.0 - quantile) * (1.0 - 1e-9))  # 1 - q is not exact


def largest_quantile(scores: int, tail: int = POOLED_TAIL) -> float:
    """Return the highest quantile that `scores` held-out scores can support, or 0."""
    return max(0.0, 1.0 - tail / scores) if scores else 0.0


def quantile_threshold(scores: Float64, quantile: float) -> float:
    """Return the smallest threshold that an ordinary score reaches with probability `1 - quantile`.

    The number next above the order statistic of rank `ceil((n + 1) quantile)`: under
    exchangeability a new score exceeds that statistic with probability at most `1 - quantile`
    whatever the distribution, where the empirical quantile of rank `ceil(n quantile)` promises it
    only of the scores it was taken from.

    References
    ----------
    Vovk, Gammerman, Shafer (2005), Algorithmic Learning in a Random World, ch. 2 (the split form).
    """
    rank = max(1, math.ceil(round((len(scores) + 1) * quantile, 6)))
    if rank > len(scores):
        raise TooFewScoresError(
            f"quantile {quantile} needs more than {len(scores):,} scores: its rank is {rank:,}"
        )
    return float(np.nextafter(np.partition(scores, rank - 1)[rank - 1], np.inf))


def quantile_thresholds(
    scores: Float64, rows: npt.NDArray[np.integer], table_rows: int, quantile: float
) -> Thresholds:
    """Thresholds from held-out scores, pooled and per instrument.

    Parameters
    ----------
    scores
        `(n,)` float64 scores of ordinary ticks the model was not fitted on; finite.
    rows
        `(n,)` row of each score's instrument in the normaliser's tables; 0 for unknown ones, whose
        scores count for the pooled threshold only.
    table_rows
        Number of rows of those tables, the pooled row included.
    quantile
        Share of ordinary ticks to stay below, in (0, 1).

    Raises
    ------
    TooFewScoresError
        Fewer than `required_scores(quantile)` scores in all. Instruments with fewer than
        `required_scores(quantile, OWN_TAIL)` take the pooled threshold: `own` says which.
    """
    if not 0.0 < quantile < 1.0:
        raise ValueError(f"quantile is {quantile}; it must lie between 0 and 1, both exclusive")
    needed = required_scores(quantile)
    if len(scores) < needed:
        advice = "give more calibration data"
        if (largest := largest_quantile(len(scores))) > 0.5:
            advice += f" or a quantile of at most {math.floor(largest * 1e4) / 1e4}"
        raise TooFewScoresError(
            f"a threshold at quantile {quantile} needs at least {needed:,} held-out scores, "
            f"there are {len(scores):,}: {advice}"
        )
    values = np.full(table_rows, quantile_threshold(scores, quantile))
    own = np.zeros(table_rows, np.bool_)
    own[0] = True
    for row, members in _by_row(rows):
        if row > 0 and len(members) >= required_scores(quantile, OWN_TAIL):
            values[row] = quantile_threshold(scores[members], quantile)
            own[row] = True
    return Thresholds(quantile, values, own)


def _by_row(
    rows: npt.NDArray[np.integer],
) -> Sequence[tuple[int, npt.NDArray[np.intp]]]:
    """Return the indices of the scores of each table row, by one sort."""
    order = np.argsort(rows, kind="stable")
    found, starts = np.unique(rows[order], return_index=True)
    return list(zip(found.tolist(), np.split(order, starts[1:]), strict=True))


class ThresholdBook:
    """Running thresholds of one input partition: 40 bytes an instrument.

    The logarithm of an instrument's threshold falls with what is expected (time, for a budget;
    ticks, for a risk) and rises with every alarm. Over any stretch the alarms that counted differ
    from the expected ones by `moved / step` at most, whatever the scores do (adaptive conformal
    inference): the budget is held by construction, not by a model of the scores. What an attack can
    do is bounded: scores below the threshold never raise it, an episode counts once, when it is
    over, and `MOST_RISE`, `REFILL` and `MOST_FACTOR` hold in event time.

    Parameters
    ----------
    thresholds
        An adaptive definition.
    slots
        Size of the feature bank the slots come from.
    close_ratio, quiet_s
        When an episode is over, as in the episode policy.

    References
    ----------
    Gibbs, Candes (2021), Adaptive conformal inference under distribution shift, NeurIPS 34.
    Angelopoulos, Candes, Tibshirani (2023), Conformal PID control for time series prediction,
    NeurIPS 36.
    """

    def __init__(
        self, thresholds: Thresholds, slots: int, close_ratio: float, quiet_s: float
    ) -> None:
        peaks = thresholds.peaks
        if peaks is None or not peaks.adapt:
            raise ValueError(f"thresholds of method {thresholds.method!r} that do not adapt")
        self._prior = np.ascontiguousarray(thresholds.values)
        self._step = peaks.step(self._prior)
        budget = peaks.asked == "budget"
        self._per_hour = peaks.value if budget else 0.0
        self._per_tick = 0.0 if budget else peaks.value
        self._close_ratio = close_ratio
        self._quiet_ns = round(quiet_s * NS_PER_S)
        self._integers = np.zeros((slots, k.INTEGERS), np.int64)
        self._floats = np.zeros((slots, k.FLOATS))

    def apply(
        self,
        slots: npt.NDArray[np.int32],
        keys: npt.NDArray[np.int64],
        ts: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int32],
        score: Float64,
    ) -> Float64:
        """Return the `(n,)` thresholds that apply to a batch, and learn from it.

        Parameters
        ----------
        slots, keys, ts
            `(n,)` columns of the batch's feature block.
        rows, score
            `(n,)` columns of its score block.
        """
        threshold = np.empty(len(slots))
        k.apply_thresholds(
            slots,
            _frozen(keys),
            _frozen(ts),
            rows,
            score,
            self._prior,
            self._step,
            self._per_hour,
            self._per_tick,
            math.log(MOST_FACTOR),
            math.log(MOST_RISE),
            REFILL,
            self._close_ratio,
            self._quiet_ns,
            round(GAP_S * NS_PER_S),
            round(RELEASE_S * NS_PER_S),
            self._integers,
            self._floats,
            threshold,
        )
        return threshold

    def snapshot(self) -> dict[str, npt.NDArray[Any]]:
        """Copy the state out, up to the last slot in use.

        `restore` into a book of the same definition, going on from there, equals going on here, to
        the last bit.
        """
        seen = np.flatnonzero(self._integers[:, k.ALIVE] != k.UNSEEN)
        used = int(seen[-1]) + 1 if len(seen) else 0
        return {"integers": self._integers[:used].copy(), "floats": self._floats[:used].copy()}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace the state by a snapshot.

        Raises
        ------
        ValueError
            An array is missing, unknown, of another shape or type, not finite, or of more slots
            than there are. The state is then unchanged.
        """
        mine = {"integers": self._integers, "floats": self._floats}
        if set(arrays) != set(mine):
            raise ValueError(f"threshold snapshot holds {sorted(arrays)}; needed: {sorted(mine)}")
        used = len(arrays["integers"])
        if used > len(self._integers):
            raise ValueError(
                f"threshold snapshot of {used} slots; at most {len(self._integers)} fit"
            )
        for name, state in mine.items():
            shape, found = (used, state.shape[1]), arrays[name]
            if found.shape != shape or found.dtype != state.dtype:
                raise ValueError(
                    f"threshold snapshot: {name} is {found.dtype}{found.shape}, "
                    f"needed {state.dtype}{shape}"
                )
        if not np.isfinite(arrays["floats"]).all():
            raise ValueError("threshold snapshot: floats holds NaN or infinite values")
        for name, state in mine.items():
            state[:used] = arrays[name]
            state[used:] = 0


class TradingTime:
    """Over how much trading time one input partition's instruments were scored; 24 bytes each.

    What a budget is counted against: silences of more than `GAP_S` are no trading time.

    Parameters
    ----------
    slots
        Size of the feature bank the slots come from.
    """

    def __init__(self, slots: int) -> None:
        self._state = np.zeros((slots, 3), np.int64)

    def add(
        self,
        slots: npt.NDArray[np.int32],
        keys: npt.NDArray[np.int64],
        ts: npt.NDArray[np.int64],
        score: Float64,
    ) -> float:
        """Return the instrument-hours that a batch adds; columns as in `ThresholdBook.apply`."""
        gap_ns = round(GAP_S * NS_PER_S)
        return float(k.add_hours(slots, _frozen(keys), _frozen(ts), score, gap_ns, self._state))


def _frozen(column: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Contiguous and read-only, so that the kernel is compiled for one type of input only."""
    view = np.ascontiguousarray(column).view()
    view.flags.writeable = False
    return view
