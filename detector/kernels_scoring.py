"""Pure Numba part of scoring: instrument lookup, z-score, clip and excess in one pass.

Numpy arrays in, numpy arrays out; knows no artifact, no scorer, no TensorFlow.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

EMPTY: Final = np.int32(-1)
"""Row of a free place in the key table."""


@njit(cache=True, nogil=True)
def _home(key: np.int64, mask: np.int64) -> np.int64:
    """First place of a key in a table of `mask + 1` places.

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014): keys differ in a few bits in the middle
    only (publisher, instrument), and every bit must reach the low ones that choose the place.
    """
    h = np.uint64(key)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((h ^ (h >> np.uint64(31))) & np.uint64(mask))


@njit(cache=True, nogil=True)
def _row_of(
    key: np.int64, table_keys: npt.NDArray[np.int64], table_rows: npt.NDArray[np.int32]
) -> np.int32:
    """Row of an instrument, or 0 (pooled) for one the model was not trained on."""
    mask = np.int64(len(table_keys) - 1)
    place = _home(key, mask)
    while table_rows[place] != EMPTY:
        if table_keys[place] == key:
            return np.int32(table_rows[place])
        place = (place + 1) & mask
    return np.int32(0)


@njit(cache=True, nogil=True)
def fill_table(
    keys: npt.NDArray[np.int64],
    table_keys: npt.NDArray[np.int64],
    table_rows: npt.NDArray[np.int32],
) -> None:
    """Enter `keys[i]` with row `i + 1` into an empty open-addressing table.

    The table's length is a power of two above `len(keys)`; linear probing ends at a free place.
    """
    mask = np.int64(len(table_keys) - 1)
    for i in range(len(keys)):
        place = _home(keys[i], mask)
        while table_rows[place] != EMPTY:
            place = (place + 1) & mask
        table_keys[place] = keys[i]
        table_rows[place] = np.int32(i + 1)


@njit(cache=True, nogil=True)
def normalise(
    values: npt.NDArray[np.floating],
    keys: npt.NDArray[np.int64],
    ready: npt.NDArray[np.bool_],
    table_keys: npt.NDArray[np.int64],
    table_rows: npt.NDArray[np.int32],
    centre: npt.NDArray[np.float64],
    inverse_scale: npt.NDArray[np.float64],
    gain: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float32],
    clip: float,
    out: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int32],
    excess: npt.NDArray[np.float64],
) -> None:
    """Look up each row's instrument, take z-scores, clip them, and measure what was clipped.

    Writes, for each of the `n` rows of `values` `(n, F)`:

    - `rows`: the instrument's row in `centre` and `inverse_scale` `(R, F)`, 0 where unknown;
    - `out`: `clip(z, -clip, clip) * gain + shift`, the network's input (`(m, F)`, `m >= n`; rows
      from `n` on are left alone);
    - `excess`: the mean over features of `log(1 + max(|z| - clip, 0))`.

    Rows that are not `ready` get zeros and NaN excess.
    """
    n, features = values.shape
    beyond = np.ones((features + 3) // 4 * 4, np.float64)  # 1 + how far beyond the clip
    known, row = np.int64(0), np.int32(-1)
    for i in range(n):
        if keys[i] != known or row < 0:  # ticks of one instrument come in runs
            known = keys[i]
            row = _row_of(known, table_keys, table_rows)
        rows[i] = row
        if not ready[i]:
            out[i] = np.float32(0.0)
            excess[i] = np.nan
            continue
        x, to, mid, inverse = values[i], out[i], centre[row], inverse_scale[row]
        clipped = 0
        for j in range(features):
            # In float64: a feature with a large offset and a small spread would lose its z-score to
            # cancellation in float32.
            z = (np.float64(x[j]) - mid[j]) * inverse[j]
            kept = min(max(z, -clip), clip)
            beyond[j] = 1.0 + abs(z - kept)
            clipped += z != kept
            to[j] = np.float32(kept) * gain[j] + shift[j]
        excess[i] = _log_product(beyond) / features if clipped > 0 else 0.0


@njit(cache=True, nogil=True)
def _log_product(factors: npt.NDArray[np.float64]) -> float:
    """Logarithm of the product of `(4k,)` factors of at least 1.

    One logarithm instead of one per factor, and four running products instead of one, which would
    wait for each multiplication: 5 times faster where most features are clipped.
    """
    a, b, c, d = 1.0, 1.0, 1.0, 1.0
    for j in range(0, len(factors), 4):
        a *= factors[j]
        b *= factors[j + 1]
        c *= factors[j + 2]
        d *= factors[j + 3]
    product = (a * b) * (c * d)
    if product < 1e300:
        return math.log(product)
    total = 0.0  # overflow: the sum is the same, slower
    for j in range(len(factors)):
        total += math.log(factors[j])
    return total
