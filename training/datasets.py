"""Feature rows on disk, split by time, read back in shuffled chunks: training data of any size.

    folder/values.f32   (n, F) float32, row-major, little-endian: ready rows in arrival order
    folder/keys.i64     (n,) int64 instrument keys
    folder/ts.i64       (n,) int64 event times, ns since the epoch

Everything here works on memory maps, a chunk at a time. What is held in memory does not grow with
the number of rows: a few chunks, and one histogram of event times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.features import FeatureBlock
from detector.model import Normaliser, ZScores
from detector.ticks import NS_PER_S

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

CHUNK: Final = 16_384
"""Most rows of a span, the unit in which rows are read and shuffled."""

MIXED_CHUNKS: Final = 8
"""Spans, from anywhere in the data, that are shuffled together: a batch of 256 rows then mixes 8
stretches of time."""

SCAN: Final = 1 << 20
"""Rows whose times are looked at together."""

TIME_BINS: Final = 65_536

MOST_GAP_S: Final = 31_536_000.0
"""A year: what lies further apart shares no window, and sums of event times stay within int64."""


class TooFewRowsError(ValueError):
    """There are not enough ready rows to train on."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Some of the rows of an array or memory map: `spans` of at most `CHUNK` rows, in order.

    Parameters
    ----------
    values
        `(n, F)` float32 or float64 features, ready rows only.
    keys
        `(n,)` int64 instrument keys.
    spans
        Start (inclusive) and stop (exclusive) of each span.
    ts
        `(n,)` int64 event times, where they are known.
    """

    values: npt.NDArray[np.floating[Any]]
    keys: Int64
    spans: tuple[tuple[int, int], ...]
    ts: Int64 | None = None

    def __len__(self) -> int:
        return sum(stop - start for start, stop in self.spans)

    @property
    def features(self) -> int:
        """Number of columns."""
        return int(self.values.shape[1])

    @classmethod
    def whole(cls, values: npt.NDArray[np.floating[Any]], keys: Int64) -> Rows:
        """All rows of arrays in memory."""
        return cls(values, keys, tuple(_cut(0, len(values))))

    def chunks(self) -> Iterator[tuple[npt.NDArray[np.floating[Any]], Int64]]:
        """Values and keys, span by span, in memory."""
        for start, stop in self.spans:
            yield np.ascontiguousarray(self.values[start:stop]), np.array(self.keys[start:stop])

    def times(self) -> Int64:
        """Event times of the rows, in memory; zeros where they are not known."""
        if self.ts is None:
            return np.zeros(len(self), np.int64)
        return np.concatenate([np.empty(0, np.int64), *(self.ts[a:b] for a, b in self.spans)])

    def normalised(self, normaliser: Normaliser) -> Iterator[Float32]:
        """Clipped z-scores, span by span."""
        to_z = _to_z(normaliser)
        for values, keys in self.chunks():
            yield to_z(values, keys)

    def shuffled(self, normaliser: Normaliser, rng: np.random.Generator) -> Iterator[Float32]:
        """Clipped z-scores of every row once, in an order of `rng`'s."""
        to_z = _to_z(normaliser)
        order = rng.permutation(len(self.spans)).tolist()
        for first in range(0, len(order), MIXED_CHUNKS):
            parts = [self.spans[i] for i in order[first : first + MIXED_CHUNKS]]
            mixed = np.concatenate(
                [
                    to_z(np.ascontiguousarray(self.values[a:b]), np.array(self.keys[a:b]))
                    for a, b in parts
                ]
            )
            yield mixed[rng.permutation(len(mixed))]

    def thinned(self, most: int) -> Rows:
        """At most `most` rows, spread evenly: single rows of the spans, as arrays in memory."""
        every = -(-len(self) // most)
        if every <= 1:
            return self
        picked = [slice(start, stop, every) for start, stop in self.spans]
        return Rows.whole(
            np.concatenate([self.values[part] for part in picked]),
            np.concatenate([self.keys[part] for part in picked]),
        )

    def of_each(self, keys: Int64, most: int) -> list[Rows]:
        """Rows of each of these instruments, at most `most`, spread evenly, in memory."""
        asked = np.sort(keys)
        counts = np.zeros(len(asked), np.int64)
        for _, numbers in self._among(asked):
            counts += np.bincount(numbers, minlength=len(asked))
        every = np.maximum(-(-counts // most), 1)
        seen = np.zeros(len(asked), np.int64)
        parts: list[list[npt.NDArray[Any]]] = [[] for _ in asked]
        for places, numbers in self._among(asked):
            for number in np.unique(numbers).tolist():
                mine = places[numbers == number]
                turn = (seen[number] + np.arange(len(mine))) % every[number] == 0
                seen[number] += len(mine)
                parts[number].append(self.values[mine[turn]])
        values = [np.concatenate([self.values[:0], *part]) for part in parts]
        order = np.searchsorted(asked, keys).tolist()
        return [Rows.whole(values[i], np.full(len(values[i]), asked[i], np.int64)) for i in order]

    def _among(self, asked: Int64) -> Iterator[tuple[Int64, Int64]]:
        """Span by span, the places of the rows of some instruments, and which one's each is."""
        for start, stop in self.spans:
            keys = np.array(self.keys[start:stop])
            numbers = np.minimum(np.searchsorted(asked, keys), len(asked) - 1)
            found = np.flatnonzero(asked[numbers] == keys)
            yield found + start, numbers[found]


def _to_z(tables: Normaliser) -> Callable[[npt.NDArray[np.floating[Any]], Int64], Float32]:
    """Return the detector's own normalisation, clipped, as a function of values and keys."""
    normalise = ZScores(tables)

    def to_z(values: npt.NDArray[np.floating[Any]], keys: Int64) -> Float32:
        n = len(values)
        out = np.empty(values.shape, np.float32)
        normalise(values, keys, np.ones(n, np.bool_), out, np.empty(n, np.int32))
        return np.clip(out, -tables.clip, tables.clip, out=out)

    return to_z


@dataclass(frozen=True, slots=True)
class Split:
    """How event time is divided: train, then a gap, calibration, a gap, test.

    Parameters
    ----------
    train, calibration
        Shares of the ready rows, in order of event time; the rest is for testing.
    gap_s
        Event time in seconds left out after each boundary: windows reach back, and rows on both
        sides of a boundary would share ticks.
    train_until
        Event time in ns at which training ends, instead of the share `train`.
    until
        Event time in ns from which on nothing is read.
    """

    train: float = 0.6
    calibration: float = 0.2
    gap_s: float = 60.0
    train_until: int | None = None
    until: int | None = None

    def __post_init__(self) -> None:
        if not (0 < self.train < 1 and 0 < self.calibration < 1):
            raise ValueError(
                f"train is {self.train} and calibration {self.calibration}; "
                "each must lie between 0 and 1, both exclusive"
            )
        if self.train + self.calibration > 1:
            raise ValueError(
                f"train {self.train} and calibration {self.calibration} are more than the whole"
            )
        if not 0 <= self.gap_s <= MOST_GAP_S:
            raise ValueError(f"gap_s is {self.gap_s}; it must lie between 0 and {MOST_GAP_S:g}")


@dataclass(frozen=True, slots=True)
class Boundaries:
    """Event times, ns, at which the parts of the data end; each start is inclusive."""

    first: int
    fit_end: int
    train_end: int
    calibration_end: int
    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """The rows of each part of the data.

    Parameters
    ----------
    fit, later
        The training part: rows to fit, and its last tenth, for stopping early.
    calibration, test
        For the thresholds, and for nothing.
    boundaries
        Event times at which the parts end: one for all instruments (key None) or one each.
    """

    fit: Rows
    later: Rows
    calibration: Rows
    test: Rows
    boundaries: dict[int | None, Boundaries]

    @property
    def first_ts(self) -> int:
        """Event time of the first row."""
        return min(part.first for part in self.boundaries.values())

    @property
    def end_ts(self) -> int:
        """Event time before which all rows lie."""
        return max(part.end for part in self.boundaries.values())


LATER_SHARE: Final = 0.1
"""Last share of the training part, used to stop training early and for nothing else."""


@dataclass(frozen=True, slots=True, eq=False)
class RowStore:
    """Ready feature rows on disk."""

    values: Float32
    keys: Int64
    ts: Int64

    def __len__(self) -> int:
        return len(self.ts)

    def split(self, split: Split, *, by_instrument: bool = False) -> Parts:
        """Divide the rows by event time.

        Boundaries are found from a histogram of event times, to within a 65,536th of the range.

        Parameters
        ----------
        split
            Shares, gap, fixed times.
        by_instrument
            Whether every instrument is divided on its own, as unrelated series want it. By default
            boundaries are the same for all: the model of a market must not know, from one
            instrument, the future of another.
        """
        if not len(self):
            raise TooFewRowsError(
                "there is no ready row at all: every instrument is still in its warm-up, which "
                "docs/features.md describes; give more ticks"
            )
        groups: list[int | None] = [*self._instruments()] if by_instrument else [None]
        bounds = {key: self._boundaries(split, key) for key in groups}
        gap = int(split.gap_s * NS_PER_S)
        return Parts(
            fit=self._where({k: (b.first, b.fit_end) for k, b in bounds.items()}),
            later=self._where({k: (b.fit_end + gap, b.train_end) for k, b in bounds.items()}),
            calibration=self._where(
                {k: (b.train_end + gap, b.calibration_end) for k, b in bounds.items()}
            ),
            test=self._where({k: (b.calibration_end + gap, b.end) for k, b in bounds.items()}),
            boundaries=bounds,
        )

    def _instruments(self) -> list[int]:
        found: set[int] = set()
        for start, stop in _cut(0, len(self), SCAN):
            found.update(np.unique(self.keys[start:stop]).tolist())
        return sorted(found)

    def _times(self, key: int | None, until: int | None) -> Iterator[Int64]:
        """Event times of an instrument (None: of all) before `until`, chunk by chunk."""
        for start, stop in _cut(0, len(self), SCAN):
            ts = self.ts[start:stop]
            inside = np.ones(len(ts), np.bool_) if until is None else ts < until
            if key is not None:
                inside &= self.keys[start:stop] == key
            if inside.any():
                yield ts[inside]

    def _boundaries(self, split: Split, key: int | None) -> Boundaries:
        ranges = [(int(ts.min()), int(ts.max())) for ts in self._times(key, split.until)]
        if not ranges:
            raise TooFewRowsError(f"all {len(self):,} ready rows are at or after --until")
        first = min(low for low, _ in ranges)
        end = max(high for _, high in ranges) + 1 if split.until is None else split.until
        width = -(-(end - first) // TIME_BINS)
        counts = np.zeros(TIME_BINS, np.int64)
        for ts in self._times(key, split.until):
            counts += np.bincount((ts - first) // width, minlength=TIME_BINS)
        passed = _Times(counts, first, width)
        if split.train_until is None:
            train_end = passed.by(split.train)
            calibration_end = passed.by(split.train + split.calibration)
        else:
            train_end = split.train_until
            trained = passed.share(train_end)
            rest = min(split.calibration / (1 - split.train), 1.0)
            calibration_end = passed.by(trained + (1 - trained) * rest)
        fit_end = passed.by(passed.share(train_end) * (1 - LATER_SHARE))
        return Boundaries(first, fit_end, train_end, calibration_end, end)

    def _where(self, limits: dict[int | None, tuple[int, int]]) -> Rows:
        """Rows with `start <= ts < end` for the limits of their instrument, as spans."""
        spans: list[tuple[int, int]] = []
        for start, stop in _cut(0, len(self), SCAN):
            ts, keys = self.ts[start:stop], self.keys[start:stop]
            inside = np.zeros(len(ts) + 2, np.int8)
            for key, (low, high) in limits.items():
                within = (ts >= low) & (ts < high)
                inside[1:-1] |= within if key is None else within & (keys == key)
            edges = np.flatnonzero(np.diff(inside)) + start
            for a, b in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
                spans.extend(_cut(a, b))
        return Rows(self.values, self.keys, tuple(spans), self.ts)


class _Times:
    """Event times and the share of rows before them, from a histogram of event times."""

    def __init__(self, counts: Int64, first: int, width: int) -> None:
        self._cumulative = np.concatenate([[0], np.cumsum(counts)]) / counts.sum()
        self._first, self._width = first, width

    def by(self, share: float) -> int:
        """End of the first bin by which at least `share` of the rows has passed."""
        place = int(np.searchsorted(self._cumulative, share - 1e-12))
        return self._first + min(place, len(self._cumulative) - 1) * self._width

    def share(self, time: int) -> float:
        """Share of the rows before `time`, to the bin."""
        place = -(-(time - self._first) // self._width)
        return float(self._cumulative[min(max(place, 0), len(self._cumulative) - 1)])


def write_rows(
    blocks: Iterable[FeatureBlock],
    folder: Path,
    features: int,
    tell: Callable[[int, int], None] | None = None,
) -> RowStore:
    """Append the ready rows of feature blocks to the files of a row store and map them.

    Rows in warm-up and rows that were dropped never enter.

    Parameters
    ----------
    blocks
        In the order of their ticks.
    folder
        Where the three files go; must exist.
    features
        Number of columns.
    tell
        Called after each block with its rows and its ready rows.
    """
    paths = [folder / name for name in ("values.f32", "keys.i64", "ts.i64")]
    with ExitStack() as stack:
        files = [stack.enter_context(path.open("wb")) for path in paths]
        for block in blocks:
            ready = block.ready
            columns: tuple[npt.NDArray[Any], ...] = (block.values, block.keys, block.ts)
            for file, column in zip(files, columns, strict=True):
                file.write(np.ascontiguousarray(column[ready]).data)
            if tell is not None:
                tell(len(ready), int(np.count_nonzero(ready)))
    values, keys, ts = (
        _mapped(path, dtype) for path, dtype in zip(paths, ("<f4", "<i8", "<i8"), strict=True)
    )
    return RowStore(values.reshape(-1, features), keys, ts)


def _mapped(path: Path, dtype: str) -> npt.NDArray[Any]:
    if not path.stat().st_size:
        return np.empty(0, dtype)  # an empty file cannot be mapped
    return np.memmap(path, dtype, mode="r")


def _cut(start: int, stop: int, size: int = CHUNK) -> Sequence[tuple[int, int]]:
    """Consecutive spans of at most `size` rows."""
    return [(a, min(a + size, stop)) for a in range(start, stop, size)]
