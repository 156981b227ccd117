"""Pure Numba part of drift: which bin of the reference each sampled row's values fall into.

One pass over a batch. A row that is not sampled costs a comparison; a sampled one, a handful of
operations a column. What is counted depends on the ticks alone: any batches give the same counts.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]

# Columns of the header.
WAITED: Final = 0  # ready ticks since the last sampled one
WINDOW: Final = 1  # number of the present window: event time / its length
HEAD: Final = 2

NEVER: Final = np.int64(-(2**63))  # in WINDOW: no row was sampled yet

# Rows of the counts.
PRESENT: Final = 0
BEFORE: Final = 1  # the last window before it that had rows: Friday's on a Monday
WINDOWS: Final = 2


@njit(cache=True, nogil=True, error_model="numpy")
def standardise(
    values: npt.NDArray[np.floating],
    rows: npt.NDArray[np.int32],
    centre: Float64s,
    inverse_scale: Float64s,
    out: Float32s,
) -> None:
    """Write the z-scores of `(n, F)` values into `out` `(n, F)`, not clipped.

    `rows` `(n,)` names each row's instrument in `centre` and `inverse_scale` `(R, F)`.
    """
    for i in range(values.shape[0]):
        row = rows[i]
        for j in range(values.shape[1]):
            out[i, j] = np.float32((values[i, j] - centre[row, j]) * inverse_scale[row, j])


@njit(cache=True, nogil=True)
def count_columns(
    columns: Float32s,
    rows: npt.NDArray[np.int32],
    edges: Float32s,
    counts: npt.NDArray[np.int32],
) -> None:
    """Add each row of `columns` `(n, E)` to `counts` `(R, E, B)`; the rest as in `count_rows`."""
    places = np.empty(columns.shape[1], np.int32)
    for i in range(columns.shape[0]):
        _count(columns[i], edges, places, counts[rows[i]])


@njit(cache=True, nogil=True)
def _count(
    row: Float32s,
    edges: Float32s,
    places: npt.NDArray[np.int32],
    counts: npt.NDArray[np.integer],
) -> None:
    # Edge by edge over all columns, not column by column over its edges: this way round the
    # comparisons have no branch and take eight columns at once.
    places[:] = 0
    for b in range(edges.shape[0]):
        for j in range(row.shape[0]):
            places[j] += row[j] >= edges[b, j]
    for j in range(row.shape[0]):
        counts[j, places[j]] += 1


@njit(cache=True, nogil=True, error_model="numpy")
def count_rows(
    values: Float32s,
    ready: npt.NDArray[np.bool_],
    ts: Int64s,
    rows: npt.NDArray[np.int32],
    score: Float64s,
    centre: Float64s,
    inverse_scale: Float64s,
    edges: Float32s,
    every: int,
    window_ns: int,
    head: Int64s,
    counts: Int64s,
    visits: Int64s,
) -> None:
    """Count every so many ready ticks' values into the bins of the reference.

    Parameters
    ----------
    values, ready, ts, rows, score
        Features `(n, F)`, which ticks are scored, event times, rows in the normaliser's tables,
        scores; `(n,)` each.
    centre, inverse_scale : (R, F) float64
        Normaliser.
    edges : (B - 1, F + 1) float32
        Ascending lower edges of the bins but the first, inclusive, a column a feature; the last
        column is the score's. Edges at the largest float are none.
    every
        A ready tick is sampled after `every - 1` that are not.
    window_ns
        Length of a window of event time; windows begin at its multiples. 0: one window for ever.
    head, counts, visits : (HEAD,), (WINDOWS, F + 1, B) and (WINDOWS, R) int64
        State, changed in place; visits say how many of the rows each row of the tables had.
    """
    features = values.shape[1]
    z = np.empty((1, features), np.float32)
    row = np.empty(features + 1, np.float32)
    places = np.empty(features + 1, np.int32)
    for i in range(values.shape[0]):
        if not ready[i]:
            continue
        head[WAITED] += 1
        if head[WAITED] < every:
            continue
        head[WAITED] = 0
        window = ts[i] // window_ns if window_ns > 0 else np.int64(0)
        # A tick of an earlier window, late or from a day played again, counts in the present one.
        if window > head[WINDOW]:
            counts[BEFORE] = counts[PRESENT]
            visits[BEFORE] = visits[PRESENT]
            counts[PRESENT] = 0
            visits[PRESENT] = 0
            head[WINDOW] = window
        standardise(values[i : i + 1], rows[i : i + 1], centre, inverse_scale, z)
        row[:features] = z[0]
        row[features] = np.float32(score[i])
        _count(row, edges, places, counts[PRESENT])
        visits[PRESENT, rows[i]] += 1
