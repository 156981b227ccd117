"""When a score is an anomaly: one frozen definition for training, offline scoring and the daemon.

A threshold is a high quantile of the scores of ordinary ticks that came after the training period.
Every instrument with enough such ticks has its own; the pooled one serves all others. How many are
enough is part of the definition: a quantile taken from too few scores is a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

OWN_TAIL: Final = 20
"""Held-out scores expected above an instrument's own threshold: its false-alarm rate is then known
to about 1/sqrt(20), 22 %."""

POOLED_TAIL: Final = 5
"""The same for the pooled threshold, below which calibration refuses: 45 % is a rough figure, but
there is nothing to fall back on."""


class TooFewScoresError(ValueError):
    """The quantile asked for cannot be estimated from so few held-out scores."""


@dataclass(frozen=True, slots=True, eq=False)
class Thresholds:
    """Decision thresholds of a trained model.

    Parameters
    ----------
    quantile
        Share of ordinary ticks that must stay below the threshold, in (0, 1).
    values
        `(R,)` float64, one per row of the normaliser's tables; row 0 is the pooled threshold, and
        instruments without a threshold of their own repeat it.
    own
        `(R,)` bool: the value was estimated from the instrument's own scores.
    method
        How the values were found; `quantile` is the only one.
    """

    quantile: float
    values: Float64
    own: npt.NDArray[np.bool_]
    method: Literal["quantile"] = "quantile"

    @property
    def pooled(self) -> float:
        """Threshold of instruments without one of their own."""
        return float(self.values[0])

    def threshold_for(self, rows: npt.NDArray[np.integer]) -> Float64:
        """`(n,)` float64 thresholds of the instruments in table rows `rows`."""
        found: Float64 = self.values[rows]
        return found


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
    rank = math.ceil(round((len(scores) + 1) * quantile, 6))
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
