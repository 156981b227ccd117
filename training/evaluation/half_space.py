"""HalfSpaceTrees of river, fitted row by row as it wants, scored many rows at a time.

River is an optional dependency and scores a row in pure Python; here its trees are laid out as
arrays once they are fitted, and walked for all rows together, to the same numbers (a test holds
this).

References
----------
Tan, Ting, Liu (2011), "Fast anomaly detection for streaming data", IJCAI.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.errors import RefusedError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

TREES: Final = 100
HEIGHT: Final = 6
ROWS: Final = 2_000
"""Rows fitted, spread evenly, all in one window: what the trees remember is one window. Many low
trees did best of nine settings, on ticks that no result is stated of; with river's defaults (10
trees, height 8, 250 rows) it ranks far worse."""

CLIP: Final = 3.0
EXTRA: Final = "pip install 'tapewatch[evaluate]'"


def river_available() -> bool:
    """Whether river can be imported."""
    try:
        import river.anomaly  # noqa: F401, PLC0415
    except ImportError:
        return False
    return True


def half_space_trees(z: Float32, seed: int) -> Callable[[Float32], Float64]:
    """Fit to `(n, F)` z-scores clipped at 3; return what scores such rows.

    Raises
    ------
    RefusedError
        River is not installed.
    """
    try:
        from river.anomaly import HalfSpaceTrees  # noqa: PLC0415
    except ImportError as error:
        raise RefusedError(
            f"HalfSpaceTrees needs river, which is not installed: {EXTRA}, or leave this baseline "
            "out with --without-river"
        ) from error
    rows = z[:: max(1, -(-len(z) // ROWS))]
    forest: Any = HalfSpaceTrees(TREES, HEIGHT, window_size=len(rows), seed=seed)
    for row in _unit(rows).tolist():
        forest.learn_one(dict(enumerate(row)))
    trees = [_Tree(root) for root in forest.trees]
    least, most = 0.1 * len(rows), TREES * len(rows) * (2 ** (HEIGHT + 1) - 1)

    def score(rows: Float32) -> Float64:
        x, total = _unit(rows), np.zeros(len(rows))
        for tree in trees:
            total += tree.mass(x, least)
        found: Float64 = 1.0 - total / most
        return found

    return score


def _unit(z: Float32) -> Float64:
    """Clipped z-scores in [0, 1], as river expects them."""
    return (z.astype(np.float64) + CLIP) / (2 * CLIP)


class _Tree:
    """A complete tree of river as arrays: node `i` has the children `2 i + 1` and `2 i + 2`."""

    def __init__(self, root: Any) -> None:  # noqa: ANN401 - river carries no types
        nodes = 2 ** (HEIGHT + 1) - 1
        self._feature = np.zeros(nodes, np.intp)
        self._threshold, self._mass = np.zeros(nodes), np.zeros(nodes)
        level = [root]
        first = 0
        for depth in range(HEIGHT + 1):
            place = slice(first, first + len(level))
            self._mass[place] = [node.r_mass for node in level]
            first = place.stop
            if depth < HEIGHT:
                self._feature[place] = [node.feature for node in level]
                self._threshold[place] = [node.threshold for node in level]
                level = [child for node in level for child in node.children]

    def mass(self, x: Float64, least: float) -> Float64:
        """`(n,)`: mass of the nodes a row passes, each twice as heavy as the one above it.

        The walk ends at a node of less than `least`.
        """
        n = len(x)
        total, at, walking = np.zeros(n), np.zeros(n, np.intp), np.arange(n)
        for depth in range(HEIGHT + 1):
            node = at[walking]
            mass = self._mass[node]
            total[walking] += mass * 2**depth
            if depth == HEIGHT:
                break
            on = mass >= least
            walking, node = walking[on], node[on]
            right = x[walking, self._feature[node]] >= self._threshold[node]
            at[walking] = 2 * node + 1 + right
        return total
