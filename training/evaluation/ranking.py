"""How well scores rank anomalous rows above ordinary ones: AUROC and average precision.

*Causal* scores are of a tick and what came before it: what a daemon can have. *Delayed* scores are
the mean over a tick and the 14 of its instrument that follow, and so are known 14 ticks later.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from training.labels import KIND_INDEX

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]
Kinds = npt.NDArray[np.uint8]

DELAYED_EVENTS: Final = 14
"""Events that follow in a delayed score."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Rows at or above each distinct score, from the highest down: `(m,)` counts."""

    found: Int64
    false: Int64

    @property
    def auroc(self) -> float:
        """Area under the ROC curve, ties counted half."""
        rates = (np.append(0.0, part / part[-1]) for part in (self.found, self.false))
        recall, fall_out = rates
        return float(np.trapezoid(recall, fall_out))

    @property
    def ap(self) -> float:
        """Average precision: precision at each score, weighted by the recall it adds."""
        # The highest scores may all be of another type: neither found nor false.
        precision = self.found / np.maximum(self.found + self.false, 1)
        return float(np.sum(np.diff(self.found, prepend=0) * precision) / self.found[-1])


def curves(score: Float64, kind: Kinds) -> dict[str, Curve]:
    """Curve of all anomalous rows (`all`) and of each type that is there.

    A type is ranked against all ordinary rows.

    Parameters
    ----------
    score
        `(n,)` finite.
    kind
        `(n,)` as in `Stream`.
    """
    present = {index for index in np.unique(kind).tolist() if index}
    if not present or np.all(kind > 0):
        return {}
    order = np.argsort(-score, kind="stable")
    sorted_kind = kind[order]
    last = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    false = np.cumsum(sorted_kind == 0)[last]
    found = {}
    wanted = {"all": 0, **{name.value: index for name, index in KIND_INDEX.items()}}
    for name, index in wanted.items():
        if index in present or index == 0:
            hit = sorted_kind == index if index else sorted_kind > 0
            found[name] = Curve(np.cumsum(hit)[last], false)
    return found


def delayed(score: Float64, keys: Int64, events: int = DELAYED_EVENTS) -> Float64:
    """Mean over a row and the `events` following ones of its instrument, or as many as there are.

    NaN where one of them is NaN.
    """
    smooth = np.full(len(score), np.nan)
    for key in np.unique(keys).tolist():
        mine = np.flatnonzero(keys == key)
        padded = np.append(score[mine], np.zeros(events))
        total = np.lib.stride_tricks.sliding_window_view(padded, events + 1).sum(axis=1)
        there = np.minimum(events + 1, len(mine) - np.arange(len(mine)))
        smooth[mine] = total / there
    return smooth


def ranking(score: Float64, keys: Int64, kind: Kinds, test: Bool) -> dict[str, Any]:
    """Causal and delayed figures of the rows to judge, as JSON types.

    Parameters
    ----------
    score
        `(n,)`; NaN for rows that were not scored. Rows to judge and the 14 events after each of
        them must have been.
    keys, kind
        `(n,)` as in `Stream`.
    test
        `(n,)` bool: rows to judge.
    """
    return {
        "causal": _figures(curves(score[test], kind[test])),
        "delayed": _figures(curves(delayed(score, keys)[test], kind[test])),
    }


def _figures(found: Mapping[str, Curve]) -> dict[str, dict[str, float]]:
    return {name: {"auroc": curve.auroc, "ap": curve.ap} for name, curve in found.items()}
