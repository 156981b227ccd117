"""What every restoring of state must make sure of: kernels index by it and check nothing.

Pure: arrays in, the number of rows or a ValueError out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]
"""Named arrays: what a state looks like outside the object that it belongs to."""

Columns = Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Of each array, the shape of one row and the type."""


def check_arrays(what: str, arrays: Arrays, columns: Columns, first: str) -> int:
    """Return the rows of the array `first`, which all others must have too.

    Parameters
    ----------
    what
        Of the message.
    arrays
        What was found.
    columns
        What is needed: exactly these.
    first
        Name of one of them.

    Raises
    ------
    ValueError
        An array is missing, unknown, or of another shape or type.
    """
    if set(arrays) != set(columns):
        raise ValueError(f"{what} holds {sorted(arrays)}; needed: {sorted(columns)}")
    rows = len(arrays[first]) if arrays[first].ndim else 0
    for name, (shape, dtype) in columns.items():
        found = arrays[name]
        if found.shape != (rows, *shape) or found.dtype != dtype:
            raise ValueError(
                f"{what}: {name} is {found.dtype}{found.shape}, needed {dtype}{(rows, *shape)}"
            )
    return rows


def check_slots(what: str, slots: npt.NDArray[np.int32], most: int) -> None:
    """Raise ValueError unless `(m,)` slots lie in `0 .. most - 1` and none occurs twice."""
    if not len(slots):
        return
    if slots.min() < 0 or slots.max() >= most:
        raise ValueError(
            f"{what}: slots from {slots.min()} to {slots.max()}; allowed: 0 to {most - 1}"
        )
    if len(np.unique(slots)) != len(slots):
        raise ValueError(f"{what}: a slot occurs twice")
