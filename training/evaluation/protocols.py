"""Which rows are fitted, which give the thresholds, which are judged: the two protocols.

*Time-ordered* is how a desk works: the past is fitted, the part after it gives the thresholds, what
follows is judged, all of it. *Published* is how injected sets are judged in papers: ordinary rows
away from the anomalies are fitted, before and after them in time, and the rows around the anomalies
are judged. Knows no detector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.errors import RefusedError
from detector.ticks import NS_PER_S
from training.datasets import LATER_SHARE
from training.evaluation.stream import Stream, near

Bool = npt.NDArray[np.bool_]

AROUND_S: Final = 35
"""Published: rows so close to an anomaly, before or after, are judged."""

SETTLING_S: Final = 120
"""Seconds after an anomaly (published: after its rows to judge) in which rows serve neither fitting
nor thresholds: windows may still hold it."""

CALIBRATION_SHARE: Final = 0.2
"""Published: last share of an instrument's ordinary rows, which is left out of the fitting."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Rows of a stream by use, `(n,)` bool each; no row has two uses.

    Parameters
    ----------
    fit, later
        To fit; and the last part of the fitted time, which networks use to stop early. What does
        not stop early fits both.
    calibration
        For thresholds.
    test
        To judge.
    """

    fit: Bool
    later: Bool
    calibration: Bool
    test: Bool

    @property
    def train(self) -> Bool:
        """Rows to fit, those for stopping early included."""
        return self.fit | self.later


@dataclass(frozen=True, slots=True)
class Ends:
    """Event times in ns at which the parts of a training ended, and the gap after each.

    Parameters
    ----------
    first, fit_end, train_end, calibration_end
        As in `datasets.Boundaries`; the first inclusive, the others exclusive.
    gap_ns
        Left out after each.
    """

    first: int
    fit_end: int
    train_end: int
    calibration_end: int
    gap_ns: int

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Ends:
        """Read them from a model's training summary.

        Raises
        ------
        RefusedError
            The summary does not have them.
        """
        try:
            parts = summary["parts"]
            found = parts["boundaries_ns"]["all"]
            return cls(
                int(found["first"]),
                int(found["fit_end"]),
                int(found["train_end"]),
                int(found["calibration_end"]),
                round(parts["gap_s"] * NS_PER_S),
            )
        except (KeyError, TypeError) as error:
            raise RefusedError(
                "training_summary.json does not say when the training ended (parts.boundaries_ns "
                "of all instruments); train the model anew"
            ) from error

    @property
    def test_start(self) -> int:
        """First event time that may be judged."""
        return self.calibration_end + self.gap_ns


def time_ordered(stream: Stream, ends: Ends) -> Parts:
    """Divide a stream at the times at which a training divided its own.

    Rows of an anomaly and of the `SETTLING_S` after it are neither fitted nor calibrated on, but
    all rows from `ends.test_start` on are judged.
    """
    ts = stream.ts
    clean = ~near(stream.keys, ts, stream.planted, 0, SETTLING_S * NS_PER_S)

    def between(start: int, end: int) -> Bool:
        return (ts >= start) & (ts < end) & clean

    return Parts(
        fit=between(ends.first, ends.fit_end),
        later=between(ends.fit_end + ends.gap_ns, ends.train_end),
        calibration=between(ends.train_end + ends.gap_ns, ends.calibration_end),
        test=ts >= ends.test_start,
    )


def published(stream: Stream) -> Parts:
    """Divide a stream around its anomalies, instrument by instrument.

    Judged: rows within `AROUND_S` of an anomaly; where such stretches overlap they are one.
    Ordinary rows outside of that and of the `SETTLING_S` after it are fitted, but for the last
    `CALIBRATION_SHARE` of them.
    """
    keys, ts = stream.keys, stream.ts
    around = AROUND_S * NS_PER_S
    test = near(keys, ts, stream.planted, around, around)
    unsettled = near(keys, ts, stream.planted, around, around + SETTLING_S * NS_PER_S)
    share = np.full(len(ts), np.nan)
    for key in np.unique(keys).tolist():
        mine = np.flatnonzero((keys == key) & ~unsettled & (stream.kind == 0))
        share[mine] = np.arange(len(mine)) / max(len(mine), 1)
    train_end = 1 - CALIBRATION_SHARE
    fit_end = train_end * (1 - LATER_SHARE)
    return Parts(
        fit=share < fit_end,
        later=(share >= fit_end) & (share < train_end),
        calibration=share >= train_end,
        test=test,
    )
