"""Files of ticks to batches of ticks, one module per source.

All readers give what `detector.ticks` promises: the book after the event, the aggressor as the side
of a trade, UTC in ns, prices in 1e-9. `docs/input.md` has the table of what each source needed.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Literal

from detector.readers.base import CHUNK, PUBLISHER, ReaderError, member_name
from detector.readers.binance import NAME as BINANCE_NAME
from detector.readers.binance import SIZE_UNIT, read_binance
from detector.readers.databento import read_dbn
from detector.readers.lean import NAME as LEAN_NAME
from detector.readers.lean import read_lean
from detector.readers.lobster import NAME as LOBSTER_NAME
from detector.readers.lobster import holds_lobster, read_lobster
from detector.readers.merge import carry_books, merge_by_time
from detector.readers.parquet import COLUMNS, read_parquet, write_parquet
from detector.readers.vectors import read_vectors, vector_columns
from detector.ticks import TickBatch, VectorBatch

FileFormat = Literal["dbn", "lobster", "parquet", "binance", "lean"]
FORMATS: tuple[FileFormat, ...] = ("dbn", "lobster", "parquet", "binance", "lean")

__all__ = [
    "CHUNK",
    "COLUMNS",
    "FORMATS",
    "PUBLISHER",
    "SIZE_UNIT",
    "FileFormat",
    "ReaderError",
    "carry_books",
    "guess_format",
    "merge_by_time",
    "read_binance",
    "read_dbn",
    "read_files",
    "read_lean",
    "read_lobster",
    "read_parquet",
    "read_ticks",
    "read_vector_files",
    "read_vectors",
    "vector_columns",
    "write_parquet",
]


def read_ticks(
    path: Path | str,
    *,
    format: FileFormat | None = None,  # noqa: A002 - what users call it
    symbol: str | None = None,
    size_unit: Decimal = SIZE_UNIT,
    skipped: MutableMapping[str, int] | None = None,
) -> Iterator[TickBatch]:
    """Read one file of ticks in chunks of at most `CHUNK` rows.

    Parameters
    ----------
    path
        The file, or a folder with one pair of LOBSTER files.
    format
        One of `FORMATS`; None: told by the file's name.
    symbol
        Name of the instrument, instead of what the file or its name says.
    size_unit
        Binance: the quantity that one unit of size stands for.
    skipped
        Takes the number of rows left out, by reason; a reader leaves out only what the file itself
        flags as wrong.

    Raises
    ------
    ReaderError
        A file that cannot be read: names file, row where known, and what is allowed.
    """
    path = Path(path)
    if not path.exists():
        raise ReaderError(f"{path}: no such file")
    kind = format or guess_format(path)
    if kind == "dbn":
        return read_dbn(path, symbol)
    if kind == "lobster":
        return read_lobster(path, symbol)
    if kind == "parquet":
        return read_parquet(path, symbol)
    if kind == "binance":
        return read_binance(path, symbol, size_unit=size_unit)
    if kind == "lean":
        return read_lean(path, symbol, skipped=skipped)
    raise ReaderError(f"{path}: format is {kind!r}; allowed are {', '.join(FORMATS)}")


def read_files(
    paths: Sequence[Path | str],
    *,
    format: FileFormat | None = None,  # noqa: A002 - what users call it
    symbol: str | None = None,
    size_unit: Decimal = SIZE_UNIT,
    skipped: MutableMapping[str, int] | None = None,
) -> Iterator[TickBatch]:
    """Read files as one stream by event time; trades without a book get their instrument's last.

    At equal times files come in the order given, but files of trades before the others: a quote of
    the same millisecond may be the trade's consequence, and would be a look ahead.
    """
    trades_first = sorted(map(Path, paths), key=lambda path: "trade" not in path.name.lower())
    streams = [
        read_ticks(path, format=format, symbol=symbol, size_unit=size_unit, skipped=skipped)
        for path in trades_first
    ]
    return carry_books(merge_by_time(streams))


def read_vector_files(
    paths: Sequence[Path | str],
    *,
    columns: tuple[str, ...] | None = None,
    symbol: str | None = None,
) -> Iterator[VectorBatch]:
    """Read vector files as one stream by event time, each file an instrument; see `read_vectors`.

    `columns` None: the numeric columns of the first file, which all others need to have.
    """
    files = [Path(path) for path in paths]
    wanted = columns or (vector_columns(files[0]) if files else ())
    return merge_by_time([read_vectors(path, wanted, symbol) for path in files])


def guess_format(path: Path) -> FileFormat:
    """Tell a file's format by its name, or by the name of the CSV in the zip."""
    name = path.name.lower()
    if name.endswith((".dbn", ".dbn.zst")):
        return "dbn"
    if name.endswith(".parquet"):
        return "parquet"
    if path.is_dir() or LOBSTER_NAME.fullmatch(path.name):
        return "lobster"
    if path.suffix == ".zip" and holds_lobster(path):
        return "lobster"
    if path.suffix in (".zip", ".csv"):
        member = member_name(path)
        if BINANCE_NAME.fullmatch(member):
            return "binance"
        if LEAN_NAME.fullmatch(member):
            return "lean"
    raise ReaderError(
        f"{path}: its name tells no format; give one of {', '.join(FORMATS)}, or name it *.dbn, "
        "*.dbn.zst, *.parquet, or as LOBSTER, Binance or Lean name their files"
    )
