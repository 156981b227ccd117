"""How far what is scored now has moved from what the model was trained on.

Each feature (as a z-score, the model's own view of it) and the score have a histogram from the
training in the model folder. A `DriftBook` counts a sample of the ready ticks into the same bins;
`drift_of` compares the two by the population stability index. Knows no Kafka, no metric, no clock.

References
----------
Siddiqi (2006), Credit Risk Scorecards, ch. 9: the index, and the customary limits of 0.1 and 0.25.
Yurdakul, Naranjo (2020), Statistical properties of the population stability index, Journal of Risk
Model Validation 14(4), 89-100: its expectation without drift, (B - 1)(1 / n + 1 / m).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector import kernels_drift as k
from detector.features import FeatureBlock
from detector.model import Normaliser, read_only
from detector.ticks import NS_PER_S

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

BINS: Final = 10
"""Bins of a histogram: tenths of the reference rows, the outer ones without an end."""

NO_EDGE: Final = np.finfo(np.float32).max
"""In place of an edge where a feature has fewer."""

LEAST_SHARE: Final = 1e-4
"""An empty bin counts as this share: a single row where there was none must not be an alarm."""

WATCH: Final = 0.1
MOVED: Final = 0.25
"""The customary limits: below the first nothing to speak of, from the second on another market."""


@dataclass(frozen=True)
class DriftSpec:
    """Which ticks are compared.

    Parameters
    ----------
    every
        One ready tick in so many is counted. An odd number: many feeds repeat after a power of
        two or of ten.
    window_s
        Length in seconds of the windows of event time, which begin at its multiples (86,400: at
        midnight UTC). What is compared are the present window and the last one before it that had
        ticks. 0: everything since the start.
    least_rows
        Rows below which nothing is said.
    """

    every: int = 31
    window_s: float = 86_400.0
    least_rows: int = 1_000

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 <= self.window_s < 1e9 or self.least_rows < 1:
            raise ValueError(
                f"every is {self.every}, window_s {self.window_s}, least_rows {self.least_rows}; "
                "allowed: at least 1, 0 to 1e9, at least 1"
            )


WHOLE_FILE: Final = DriftSpec(every=1, window_s=0.0)
"""Every ready tick of a file, without windows."""


@dataclass(frozen=True, slots=True, eq=False)
class DriftReference:
    """What a model was trained on, as histograms.

    Each instrument has its own, in bins that are the same for all. What is found is compared with
    their mixture in the proportions in which the instruments were found: that one of them trades
    more than it did, or is in another partition, is no drift.

    Parameters
    ----------
    names
        The F features.
    normaliser
        The model's own, of R rows: values are compared as z-scores, not clipped.
    edges
        `(F + 1, BINS - 1)` float32 lower edges of the bins but the first, inclusive; `NO_EDGE`
        behind the last where there are fewer. The last row is the score's.
    counts
        `(R, F + 1, BINS)` int32 reference rows in each bin. Row 0 holds all of them, as the
        instruments that the model was not trained on are seen: with the pooled normaliser.
    """

    names: tuple[str, ...]
    normaliser: Normaliser
    edges: Float32
    counts: npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class DriftCounts:
    """What was found.

    Parameters
    ----------
    bins
        `(F + 1, BINS)` int64 rows in each bin.
    visits
        `(R,)` int64 rows of each row of the normaliser's tables.
    """

    bins: Int64
    visits: Int64

    def __add__(self, other: DriftCounts) -> DriftCounts:
        return DriftCounts(self.bins + other.bins, self.visits + other.visits)


class DriftBook:
    """The histograms of one input partition: two windows, `160 (F + 1) + 16 R` bytes.

    Parameters
    ----------
    reference
        Bins, and the normaliser.
    spec
        Which ticks are counted, and for how long.
    """

    def __init__(self, reference: DriftReference, spec: DriftSpec) -> None:
        tables = reference.normaliser
        self.reference = reference
        self._spec = spec
        self._centre = np.ascontiguousarray(tables.centre)
        self._inverse = 1.0 / np.ascontiguousarray(tables.scale)
        self._edges = np.ascontiguousarray(reference.edges.T)
        self._head = np.array([0, k.NEVER], np.int64)
        self._counts = np.zeros((k.WINDOWS, *reference.counts.shape[1:]), np.int64)
        self._visits = np.zeros((k.WINDOWS, len(tables.centre)), np.int64)

    def update(self, block: FeatureBlock, rows: npt.NDArray[np.int32], score: Float64) -> None:
        """Count one batch of the partition.

        `rows` and `score` are the `(n,)` columns of its score block.
        """
        k.count_rows(
            read_only(block.values),
            read_only(block.ready),
            read_only(block.ts),
            read_only(rows),
            read_only(score),
            self._centre,
            self._inverse,
            self._edges,
            self._spec.every,
            round(self._spec.window_s * NS_PER_S),
            *self._state().values(),
        )

    def counts(self) -> DriftCounts:
        """Return what the present window and the last one before it found."""
        return DriftCounts(
            np.asarray(self._counts.sum(axis=0), np.int64),
            np.asarray(self._visits.sum(axis=0), np.int64),
        )

    def snapshot(self) -> dict[str, npt.NDArray[Any]]:
        """Copy the state out.

        `restore` into a book of the same reference and spec, going on from there, equals going on
        here.
        """
        return {name: state.copy() for name, state in self._state().items()}

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace the state by a snapshot.

        Raises
        ------
        ValueError
            An array is missing, unknown, of another shape or type, or holds a negative count. The
            state is then unchanged.
        """
        mine = self._state()
        if set(arrays) != set(mine):
            raise ValueError(f"drift snapshot holds {sorted(arrays)}; needed: {sorted(mine)}")
        for name, state in mine.items():
            found = arrays[name]
            if found.shape != state.shape or found.dtype != state.dtype:
                raise ValueError(
                    f"drift snapshot: {name} is {found.dtype}{found.shape}, "
                    f"needed {state.dtype}{state.shape}"
                )
        if min(arrays["counts"].min(), arrays["visits"].min(), arrays["head"][k.WAITED]) < 0:
            raise ValueError("drift snapshot: holds a negative count")
        for name, state in mine.items():
            state[:] = arrays[name]

    def _state(self) -> dict[str, Int64]:
        """Return the arrays that change, in the order in which the kernel takes them."""
        return {"head": self._head, "counts": self._counts, "visits": self._visits}


@dataclass(frozen=True, slots=True, eq=False)
class Drift:
    """How far the features and the score have moved, as population stability indices.

    Parameters
    ----------
    names
        The F features.
    features
        `(F,)` float64 indices, less what is expected of a sample of this size without drift.
    score
        The score's.
    rows
        Rows they are from.
    """

    names: tuple[str, ...]
    features: Float64
    score: float
    rows: int

    def top(self, most: int) -> list[tuple[str, float]]:
        """Names and indices of the features that moved furthest, in that order."""
        order = np.argsort(-self.features, kind="stable")[:most]
        return [(self.names[j], float(self.features[j])) for j in order.tolist()]

    @property
    def moved(self) -> int:
        """How many features are at `MOVED` or beyond."""
        return int(np.count_nonzero(self.features >= MOVED))


def drift_of(reference: DriftReference, found: DriftCounts) -> Drift:
    """Compare what was found with the reference."""
    rows = int(found.visits.sum())
    if not rows:
        nothing = np.zeros(len(reference.names))
        return Drift(reference.names, nothing, 0.0, 0)
    shares, size = _mixture(reference.counts, found.visits)
    index = stability(shares, found.bins / rows) - expected(shares, rows, size)
    index = np.maximum(0.0, index)
    return Drift(reference.names, index[:-1], float(index[-1]), rows)


def stability(reference: Float64, found: Float64) -> Float64:
    """Return the population stability index of shares `(..., B)`: `sum (p - q) ln(p / q)`.

    Shares `p`, `q` below `LEAST_SHARE` count as that much.
    """
    q, p = np.maximum(reference, LEAST_SHARE), np.maximum(found, LEAST_SHARE)
    return np.asarray(((p - q) * np.log(p / q)).sum(axis=-1))


def expected(reference: Float64, rows: float, size: Float64) -> Float64:
    """Return the index to expect of `n` independent rows without drift: `(B - 1)(1/n + 1/m)`.

    `B` bins hold reference rows, `m` of them (`size`) in all. Neighbouring ticks are not
    independent: they are worth fewer rows, and the index of an undrifted market lies above this.
    """
    bins = np.count_nonzero(reference, axis=-1)
    return np.asarray((bins - 1) * (1.0 / rows + 1.0 / size))


def _mixture(counts: npt.NDArray[np.int32], visits: Int64) -> tuple[Float64, Float64]:
    """Shares `(F + 1, BINS)` of the instruments' histograms as they were visited, and their size.

    The size `(F + 1,)` is that of one sample with the same variance: 1 / sum of w^2 / m.
    """
    seen = np.flatnonzero(visits)
    weight = visits[seen, None] / visits.sum()
    size = counts[seen].sum(axis=2, dtype=np.int64)
    # An instrument without reference rows of its own, as one without held-out scores, takes all's.
    mine = np.where(size[:, :, None] > 0, counts[seen], counts[0])
    size = mine.sum(axis=2, dtype=np.int64)
    shares = np.einsum("re,reb->eb", weight / size, mine)
    return shares, 1.0 / (weight**2 / size).sum(axis=0)


def bin_edges(columns: Float32) -> Float32:
    """Edges of `BINS` bins with equal shares of the rows, `(E, BINS - 1)`, for `(m, E)` columns.

    A value with more than a tenth of the rows is several of those edges at once. It then has a bin
    of its own: one edge at it, one just above. A column that never moved keeps three bins that way,
    below, at and above its value, and is seen to move.
    """
    m, width = columns.shape
    places = np.arange(1, BINS) * m // BINS
    edges = np.full((width, BINS - 1), NO_EDGE, np.float32)
    for j in range(width):
        values, times = np.unique(np.sort(columns[:, j])[places], return_counts=True)
        above = np.nextafter(values[times > 1], np.float32(np.inf))
        mine = np.unique(np.concatenate([values, above]))
        edges[j, : len(mine)] = mine
    return edges


def count_by_row(
    columns: Float32, rows: npt.NDArray[np.int32], edges: Float32, counts: npt.NDArray[np.int32]
) -> None:
    """Add `(m, E)` columns to histograms `(R, E, BINS)`, each row to its own of `rows` `(m,)`."""
    k.count_columns(np.ascontiguousarray(columns), rows, np.ascontiguousarray(edges.T), counts)


def z_scores(
    normaliser: Normaliser, values: npt.NDArray[np.floating[Any]], rows: npt.NDArray[np.int32]
) -> Float32:
    """z-scores of `(n, F)` values by table row, as a `DriftBook` takes them: not clipped."""
    out = np.empty(values.shape, np.float32)
    k.standardise(
        read_only(values),
        read_only(rows),
        np.ascontiguousarray(normaliser.centre),
        1.0 / np.ascontiguousarray(normaliser.scale),
        out,
    )
    return out
