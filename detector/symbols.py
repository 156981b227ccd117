"""The names of instruments: learnt from ticks, read from a mapping file, or `publisher:id`.

A name is only for people and for the key of an event; all state goes by the instrument key. What
the messages of an input partition bring is part of its state: `partition_state.PartitionNames`.
"""

from __future__ import annotations

import csv
import io
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path

from detector.errors import RefusedError
from detector.ticks import instrument_key, split_key

_COLUMNS = ("symbol", "publisher_id", "instrument_id")


class SymbolFileError(RefusedError, ValueError):
    """A mapping file that cannot be used; the message names file, line and what is allowed."""


class SymbolMap:
    """Instrument key to name, first come first kept, never more than `limit` learnt names.

    A second name for a key already named is a collision: the first name stays, and
    `take_collisions` tells of it. Names given at construction do not count against the limit. Any
    thread may call it: intake replays one partition while decision decides another.
    """

    def __init__(self, names: Mapping[int, str] | None = None, limit: int = 1_000_000) -> None:
        self._names = dict(names or {})
        self._limit = limit + len(self._names)
        self._collisions: dict[tuple[int, str], str] = {}
        self._learning = threading.Lock()  # or two threads could both find a key without a name

    def learn(self, names: Mapping[int, str]) -> None:
        """Take over the names of keys that have none yet."""
        if names.items() <= self._names.items():  # as those of a model's next version mostly are
            return
        with self._learning:
            for key, name in names.items():
                known = self._names.get(key)
                if known is None:
                    if len(self._names) < self._limit:
                        self._names[key] = name
                elif known != name:
                    self._note(key, known, name)

    def refuse(self, key: int, kept: str, refused: str) -> None:
        """Note a collision with a name that is kept elsewhere."""
        with self._learning:
            self._note(key, kept, refused)

    def take_collisions(self) -> list[tuple[int, str, str]]:
        """Return the collisions since the last call as `(key, kept, refused)`."""
        with self._learning:
            taken, self._collisions = self._collisions, {}
        return [(key, kept, refused) for (key, refused), kept in taken.items()]

    def known(self) -> dict[int, str]:
        """Return every name there is, by key."""
        return dict(self._names)

    def get(self, key: int) -> str | None:
        """Return the instrument's name, None where none is known."""
        return self._names.get(key)

    def name(self, key: int) -> str:
        """Return the instrument's name, or `publisher:id` where none is known."""
        known = self._names.get(key)
        return unnamed(key) if known is None else known

    def _note(self, key: int, kept: str, refused: str) -> None:
        if len(self._collisions) < self._limit:
            self._collisions[key, refused] = kept


def unnamed(key: int) -> str:
    """Return what an instrument without a name is called, `publisher:id`."""
    return "{}:{}".format(*split_key(key))


def write_symbols(names: Mapping[int, str]) -> bytes:
    """Encode names as the CSV that `read_symbol_file` reads, ordered by key."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(_COLUMNS)
    rows.writerows((name, *split_key(key)) for key, name in sorted(names.items()))
    return text.getvalue().encode()


def read_symbol_file(path: Path) -> dict[int, str]:
    """Read a CSV file with the columns `symbol,publisher_id,instrument_id`.

    Raises
    ------
    SymbolFileError
        When the file, its header or one of its lines is not as above.
    """
    try:
        return parse_symbols(path.read_bytes(), path)
    except OSError as error:
        raise SymbolFileError(f"{path}: cannot be read: {error.strerror}") from error


def parse_symbols(data: bytes, path: Path) -> dict[int, str]:
    """Read the content of such a file; `path` is for messages."""
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8"), newline=""))
        if tuple(rows.fieldnames or ()) != _COLUMNS:
            raise SymbolFileError(
                f"{path}: the header is {rows.fieldnames}, it must be {','.join(_COLUMNS)}"
            )
        return dict(_parsed(path, rows))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SymbolFileError(f"{path}: cannot be read as CSV: {error}") from error


def _parsed(path: Path, rows: Iterable[dict[str, str]]) -> Iterable[tuple[int, str]]:
    for line, row in enumerate(rows, start=2):
        try:
            publisher, instrument = int(row["publisher_id"]), int(row["instrument_id"])
        except (TypeError, ValueError) as error:
            raise SymbolFileError(
                f"{path}, line {line}: publisher_id and instrument_id must be whole numbers"
            ) from error
        if not (0 <= publisher < 2**16 and 0 <= instrument < 2**32 and row["symbol"]):
            raise SymbolFileError(
                f"{path}, line {line}: needs a symbol, publisher_id in 0..65535 and "
                "instrument_id in 0..4294967295"
            )
        yield instrument_key(publisher, instrument), row["symbol"]
