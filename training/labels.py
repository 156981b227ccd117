"""Labels of planted anomalies: one row an anomaly in a Parquet file, and what they say of a tick.

The file stands beside the planted ticks and is all that an evaluation needs: a tick belongs to an
anomaly when it is of its instrument and its event time lies within the anomaly's, both ends
inclusive. Knows nothing of how anomalies are planted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from detector.errors import RefusedError
from detector.offline import staged
from detector.placing import Planted
from detector.scripts import RANGES, AnomalyKind
from detector.ticks import Batch, instrument_key, split_key
from training.halves import Half

Int64 = npt.NDArray[np.int64]

KIND_INDEX: Final[Mapping[AnomalyKind, int]] = {
    kind: index for index, kind in enumerate(AnomalyKind, start=1)
}
"""Number of each kind in per-tick labels; 0 is an ordinary tick. The order never changes."""

_COLUMNS: Final[dict[str, pa.DataType]] = {
    "symbol": pa.string(),
    "publisher_id": pa.uint16(),
    "instrument_id": pa.uint32(),
    "kind": pa.string(),
    "half": pa.string(),
    "start_ns": pa.int64(),
    "end_ns": pa.int64(),
    "ticks": pa.int64(),
    "parameters": pa.string(),
    "seed": pa.int64(),
}
SCHEMA: Final = pa.schema(_COLUMNS)
"""Columns of a label file; `docs/anomalies.md` describes them."""


class LabelError(RefusedError, ValueError):
    """A label file that cannot be used: names the file, the row, and what is allowed."""


@dataclass(frozen=True, slots=True)
class Label:
    """One planted anomaly as it was found to be.

    Parameters
    ----------
    planted
        Kind, instrument, time (both ends inclusive), parameters and seed.
    half
        Of the parameter ranges.
    ticks
        Ticks of the planted stream that belong to it.
    """

    planted: Planted
    half: Half
    ticks: int


@dataclass(frozen=True, slots=True, eq=False)
class TickLabels:
    """Labels of ticks, aligned with them.

    Parameters
    ----------
    kind
        `(n,)` uint8, `KIND_INDEX` of the anomaly a tick belongs to; 0: ordinary.
    anomaly
        `(n,)` int32, row of that anomaly in the label file, counted from 1; 0: ordinary.
    """

    kind: npt.NDArray[np.uint8]
    anomaly: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.kind)


def tick_labels(keys: Int64, ts: Int64, planted: Sequence[Planted]) -> TickLabels:
    """Say of each tick which anomaly it belongs to, if any.

    Parameters
    ----------
    keys, ts
        `(n,)` int64 instrument keys and event times.
    planted
        In the order of the label file; those of one instrument must not overlap.
    """
    kind, anomaly = np.zeros(len(ts), np.uint8), np.zeros(len(ts), np.int32)
    by_key: dict[int, list[int]] = {}
    for row, one in enumerate(planted):
        by_key.setdefault(one.key, []).append(row)
    for key, rows in by_key.items():
        rows.sort(key=lambda row: planted[row].start_ns)
        starts = np.array([planted[row].start_ns for row in rows])
        ends = np.array([planted[row].end_ns for row in rows])
        mine = np.flatnonzero(keys == key)
        at = np.searchsorted(starts, ts[mine], "right") - 1
        inside = (at >= 0) & (ts[mine] <= ends[at])
        mine, at = mine[inside], at[inside]
        anomaly[mine] = np.array(rows, np.int32)[at] + 1
        kind[mine] = np.array([KIND_INDEX[planted[row].kind] for row in rows], np.uint8)[at]
    return TickLabels(kind, anomaly)


MOST_APART: Final = 0.1
"""Share of labels whose ticks are not as many as stated up to which that is only warned of."""


class TickCount:
    """Counts how many ticks of a stream belong to each label, as the stream goes by.

    Labels of another stream lie among its ticks as well as its own; their numbers of ticks tell.

    Parameters
    ----------
    labels
        In the order of the label file. Those that state 0 ticks state nothing.
    """

    def __init__(self, labels: Sequence[Label]) -> None:
        self._labels = labels
        self._planted = [label.planted for label in labels]
        self._found = np.zeros(len(labels) + 1, np.int64)
        self._first, self._last = np.iinfo(np.int64).max, -1

    def add(self, keys: Int64, ts: Int64) -> None:
        """Count ticks `(n,)` by instrument key and event time."""
        if len(ts):
            belong = tick_labels(keys, ts, self._planted).anomaly
            self._found += np.bincount(belong, minlength=len(self._found))
            self._first = min(self._first, int(ts.min()))
            self._last = max(self._last, int(ts.max()))

    def passing(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Give batches on, counted."""
        for batch in batches:
            self.add(batch.keys, batch.ts_event)
            yield batch

    def check(self, path: Path) -> str | None:
        """Hold what was found against what the labels state, of those within the stream's time.

        Returns
        -------
        str or None
            A warning where a few labels differ.

        Raises
        ------
        LabelError
            More than `MOST_APART` of them differ: the labels belong to other ticks.
        """
        stated = [
            (label, found)
            for label, found in zip(self._labels, self._found[1:].tolist(), strict=True)
            if label.ticks
            and self._first <= label.planted.start_ns
            and label.planted.end_ns <= self._last
        ]
        apart = [(label, found) for label, found in stated if found != label.ticks]
        if not apart:
            return None
        some = "; ".join(
            f"{one.planted.symbol} {one.planted.kind} at {one.planted.start_ns}: {found:,} ticks "
            f"found, {one.ticks:,} stated"
            for one, found in apart[:3]
        )
        told = (
            f"--labels {path}: {len(apart)} of {len(stated)} anomalies have other ticks than the "
            f"labels state ({some}{'; ...' * (len(apart) > 3)}); give the labels that were written "
            "with these ticks"
        )
        if len(apart) > MOST_APART * len(stated):
            raise LabelError(told)
        return told


def write_labels(path: Path, labels: Sequence[Label]) -> None:
    """Write a label file, in the order given; it takes its name only when it is complete."""
    rows = [
        {
            "symbol": label.planted.symbol,
            "publisher_id": split_key(label.planted.key)[0],
            "instrument_id": split_key(label.planted.key)[1],
            "kind": label.planted.kind.value,
            "half": label.half.value,
            "start_ns": label.planted.start_ns,
            "end_ns": label.planted.end_ns,
            "ticks": label.ticks,
            "parameters": json.dumps(dict(label.planted.params), sort_keys=True),
            "seed": label.planted.seed,
        }
        for label in labels
    ]
    with staged(path, "--labels") as file:
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), file, compression="zstd")


def read_labels(path: Path) -> tuple[Label, ...]:
    """Read a label file.

    Raises
    ------
    LabelError
        No such file, not Parquet, a column missing or of another type, or a row that cannot be:
        a null, an unknown kind or half, an end before its start, parameters that are no JSON object
        of the kind's numbers, anomalies of one instrument that overlap.
    """
    labels = []
    for row, values in enumerate(_rows(path), start=1):
        with _blame(path, row):
            labels.append(_label(values))
    _check_overlap(path, labels)
    return tuple(labels)


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise LabelError(f"{path}: no such file; `tapewatch inject --labels` writes label files")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise LabelError(f"{path}: not a Parquet file: {error}") from error
    for field in SCHEMA:
        if field.name not in table.column_names:
            raise LabelError(
                f"{path}: column {field.name} is missing; it has {', '.join(table.column_names)}; "
                f"needed are {', '.join(SCHEMA.names)}"
            )
        found = table.schema.field(field.name).type
        if found != field.type:
            raise LabelError(f"{path}: column {field.name} is {found}; it must be {field.type}")
    return table.select(SCHEMA.names).to_pylist()


@contextmanager
def _blame(path: Path, row: int) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise LabelError(f"{path}: row {row}: {error}") from error


def _label(values: Mapping[str, Any]) -> Label:
    """Make a label of one row; ValueError says what is wrong with it."""
    if null := [name for name, value in values.items() if value is None]:
        raise ValueError(f"{', '.join(null)} is null")
    kind = _one_of(AnomalyKind, "kind", values["kind"])
    half = _one_of(Half, "half", values["half"])
    start, end, ticks = values["start_ns"], values["end_ns"], values["ticks"]
    if not 0 <= start <= end:
        raise ValueError(f"start_ns is {start} and end_ns {end}; needed is 0 <= start <= end")
    if ticks < 0:
        raise ValueError(f"ticks is {ticks}; it must not be negative")
    key = instrument_key(values["publisher_id"], values["instrument_id"])
    params = _parameters(kind, values["parameters"])
    planted = Planted(kind, key, values["symbol"], start, end, params, values["seed"])
    return Label(planted, half, ticks)


def _one_of(allowed: Any, name: str, value: str) -> Any:  # noqa: ANN401 - an enum and its member
    if value not in set(allowed):
        raise ValueError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
    return allowed(value)


def _parameters(kind: AnomalyKind, text: str) -> dict[str, float]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"parameters are not JSON: {error}") from error
    needed = {*RANGES[kind], "side"}
    if not isinstance(found, dict) or found.keys() != needed:
        raise ValueError(
            f"parameters are {text}; {kind} needs an object with {', '.join(sorted(needed))}"
        )
    numbers = (int, float)
    if not all(isinstance(v, numbers) and not isinstance(v, bool) for v in found.values()):
        raise ValueError(f"parameters are {text}; they must be numbers")
    return {name: float(value) for name, value in found.items()}


def _check_overlap(path: Path, labels: Sequence[Label]) -> None:
    latest: dict[int, Planted] = {}
    for one in sorted((label.planted for label in labels), key=lambda each: each.start_ns):
        before = latest.get(one.key)
        if before is not None and one.start_ns <= before.end_ns:
            raise LabelError(
                f"{path}: {one.symbol}: {one.kind} starts at {one.start_ns}, {before.kind} ends at "
                f"{before.end_ns}; anomalies of one instrument must not overlap"
            )
        latest[one.key] = one
