"""From which offset of a partition which model scores: the fact, its record, and its replay.

The daemon makes a `ModelChange` where it begins with a partition and where another model takes
over; it logs each. `Timeline` cuts batches at such offsets, so that offline scoring puts every tick
before the model that scored it in the daemon. Knows no Kafka, no model and no clock.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson

from detector.errors import RefusedError
from detector.ticks import Batch

LOGGED_AS: Final = "model in force"
"""The `event` of the log line of a change."""


@dataclass(frozen=True, slots=True, order=True)
class ModelChange:
    """From `next_offset` on, the messages of a partition are scored by this model.

    Parameters
    ----------
    partition
        Input partition.
    next_offset
        Offset of the first message that the model scores; there need not be one yet.
    model_hash
        SHA-256 of the model's manifest, in hex.
    version
        The model's version, for people.
    """

    partition: int
    next_offset: int
    model_hash: str
    version: str

    def to_dict(self) -> dict[str, Any]:
        """Return the change as JSON types, in the form that `parse_change` reads."""
        return asdict(self)


def parse_change(found: object) -> ModelChange:
    """Read what `to_dict` gave; other keys, as a log line has them, do not matter.

    Raises
    ------
    ValueError
        No object, a key that is missing, or a value that is not allowed.
    """
    keys = ("partition", "next_offset", "model_hash", "version")
    if not isinstance(found, dict) or not set(keys) <= set(found):
        raise ValueError(f"needed: an object with {', '.join(keys)}")
    change = ModelChange(*(found[key] for key in keys))
    for name in ("partition", "next_offset"):
        value = found[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} is {value!r}; a whole number of at least 0 is needed")
    for name in ("model_hash", "version"):
        if not isinstance(found[name], str) or not found[name]:
            raise ValueError(f"{name} is {found[name]!r}; a text is needed")
    return change


def read_changes(path: Path) -> list[ModelChange]:
    """Read changes, one JSON object a line: bare ones, or a daemon's log in JSON.

    Lines of a log that tell of something else are passed over.

    Raises
    ------
    RefusedError
        The file cannot be read, a line is no JSON object or no change, or there is no change.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read: {error.strerror}") from error
    changes: list[ModelChange] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = orjson.loads(line)
            if isinstance(found, dict) and found.get("event", LOGGED_AS) != LOGGED_AS:
                continue
            changes.append(parse_change(found))
        except ValueError as error:
            raise RefusedError(f"{path}, line {number}: {error}") from error
    if not changes:
        raise RefusedError(
            f"{path}: tells of no model; give a daemon's log, or lines with partition, "
            "next_offset, model_hash and version"
        )
    return changes


class Timeline:
    """Which model scores which offset, for every partition.

    Parameters
    ----------
    changes
        In the order in which they were recorded. Where a partition was taken up again at an
        earlier offset, as after a crash, the later record holds from there on.
    """

    def __init__(self, changes: Iterable[ModelChange]) -> None:
        self._of: dict[int, list[ModelChange]] = {}
        for change in changes:
            mine = self._of.setdefault(change.partition, [])
            while mine and mine[-1].next_offset >= change.next_offset:
                mine.pop()
            if not mine or mine[-1].model_hash != change.model_hash:
                mine.append(change)

    @property
    def changes(self) -> list[ModelChange]:
        """Every change that holds, by partition and offset."""
        return [change for _, mine in sorted(self._of.items()) for change in mine]

    def at(self, partition: int, offset: int) -> ModelChange | None:
        """Return the change in force at an offset, or None before the partition's first."""
        mine = self._of.get(partition, [])
        found = bisect.bisect_right(mine, offset, key=lambda change: change.next_offset)
        return mine[found - 1] if found else None

    def pieces(self, batch: Batch) -> Iterator[tuple[Batch, ModelChange | None]]:
        """Cut a batch at the changes within it; each piece with the change in force."""
        inside = [
            change.next_offset
            for change in self._of.get(batch.partition, [])
            if len(batch) and batch.offsets[0] < change.next_offset <= batch.offsets[-1]
        ]
        rows = np.searchsorted(batch.offsets, inside).tolist()
        for start, stop in zip([0, *rows], [*rows, len(batch)], strict=True):
            if start < stop:
                piece = batch[start:stop]
                yield piece, self.at(batch.partition, int(piece.offsets[0]))
