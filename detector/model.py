"""A trained two-stage model as frozen arrays: normaliser, both autoencoders, combination.

The definition that the scorer runs, whether it came from an artifact folder or from a fit in this
process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from detector.kernels_scoring import EMPTY, fill_table, normalise

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Normaliser:
    """z-score tables: row 0 pooled over all instruments, row `i + 1` for the instrument `keys[i]`.

    Parameters
    ----------
    keys
        `(R-1,)` int64 instrument keys, ascending.
    centre, scale
        `(R, F)` float64.
    clip
        z-scores are cut off at plus and minus this.
    """

    keys: Int64
    centre: Float64
    scale: Float64
    clip: float

    def table(self) -> tuple[Int64, npt.NDArray[np.int32]]:
        """Open-addressing table of the keys, at most half full: `(places,)` keys and rows."""
        places = 2
        while places < 2 * (len(self.keys) + 1):
            places *= 2
        table_keys, table_rows = np.zeros(places, np.int64), np.full(places, EMPTY, np.int32)
        fill_table(self.keys, table_keys, table_rows)
        return table_keys, table_rows

    def rows_for(self, keys: Int64) -> npt.NDArray[np.int32]:
        """`(n,)` int32 table rows of instruments, 0 where unknown."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int32)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, place + 1, 0).astype(np.int32)


class ZScores:
    """A normaliser prepared for the kernels: `arguments` are what they take of it, in order.

    Parameters
    ----------
    tables
        Centres and scales by instrument.
    gain, shift
        `(F,)` float32: the output is `clipped z * gain + shift`; None: the clipped z itself.
    """

    def __init__(
        self, tables: Normaliser, gain: Float32 | None = None, shift: Float32 | None = None
    ) -> None:
        features = tables.centre.shape[1]
        gain = np.ones(features, np.float32) if gain is None else gain
        shift = np.zeros(features, np.float32) if shift is None else shift
        arrays = (*tables.table(), tables.centre, 1.0 / tables.scale, gain, shift)
        self._kernel: Any = normalise  # its type knows no starred arguments
        self.arguments: tuple[Any, ...] = (
            *(read_only(np.ascontiguousarray(array)) for array in arrays),
            tables.clip,
        )

    def __call__(
        self,
        values: npt.NDArray[np.floating[Any]],
        keys: Int64,
        ready: npt.NDArray[np.bool_],
        out: Float32,
        rows: npt.NDArray[np.int32],
        excess: Float64,
    ) -> None:
        """Normalise `(n, F)` values into `out`, see `kernels_scoring.normalise`."""
        self._kernel(
            read_only(values), read_only(keys), read_only(ready), *self.arguments, out, rows,
            excess,
        )  # fmt: skip


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View that Numba gives one type, whoever owns the array; else it compiles a second kernel."""
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, slots=True)
class Combination:
    """How both errors and the excess become one score: `stage1 * e1 + stage2 * e2 + excess * x`.

    The errors are of clipped features and stop growing with a growing outlier; the excess `x`, how
    far the features lie beyond the clip, does not. `Combination()` is the plain sum of the errors.
    """

    stage1: float = 1.0
    stage2: float = 1.0
    excess: float = 0.0

    def __call__(self, stage1: Float64, stage2: Float64, excess: Float64) -> Float64:
        """`(n,)` float64 scores."""
        return self.stage1 * stage1 + self.stage2 * stage2 + self.excess * excess


@dataclass(frozen=True, slots=True, eq=False)
class TwoStageModel:
    """Normaliser, weights (names as in `network.weight_shapes`, float32) and combination."""

    normaliser: Normaliser
    weights: Mapping[str, npt.NDArray[Any]]
    combination: Combination
