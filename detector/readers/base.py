"""What all readers share: the error, chunks, CSV streams out of zips, exact decimals, local days.

Files are read in chunks of at most `CHUNK` rows, so that a day of any size takes bounded memory.
"""

from __future__ import annotations

import csv
import io
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import date, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from detector.errors import RefusedError
from detector.ticks import NS_PER_S, TickArray, TickBatch

CHUNK: Final = 65_536
"""Most rows in one batch of a reader."""

_BLOCK: Final = 1 << 21  # bytes of CSV parsed at a time: about CHUNK rows of 32 bytes

PUBLISHER: Final[Mapping[str, int]] = {
    "lobster": 60_001,
    "binance": 60_002,
    "lean_equity": 60_003,
    "lean_forex": 60_004,
    "vectors": 60_005,
}
"""Publisher ids of the sources that have none, far above those that Databento gives out."""

DECIMAL: Final = pa.decimal128(38, 18)
"""Arrow type of numbers that are read exactly; see `nano`. Files carry the noise of somebody's
float arithmetic (LOBSTER has a time of 43002.632812672004), hence more than nine decimals."""

if TYPE_CHECKING:
    Column = pa.Array[Any]
else:
    Column = pa.Array  # generic in the type stubs only
Int64 = npt.NDArray[np.int64]


class ReaderError(RefusedError, ValueError):
    """A file that cannot be read: names the file, the place where known, and what is allowed."""


@contextmanager
def blame(path: Path) -> Iterator[None]:
    """Turn whatever a broken file makes the libraries raise into a `ReaderError` that names it."""
    try:
        yield
    except ReaderError:
        raise
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, pa.ArrowException) as error:
        raise ReaderError(f"{path}: {error or type(error).__name__}") from error
    except NotImplementedError as error:  # zipfile: a compression method it does not know
        raise ReaderError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise ReaderError(f"{path}: not text in UTF-8: {error}") from error


@contextmanager
def open_csv_file(path: Path, member: str | None = None) -> Iterator[IO[bytes]]:
    """Open a CSV file, or a member of a zip; without a name the zip must hold exactly one CSV."""
    if path.suffix != ".zip":
        with path.open("rb") as file:
            yield file
        return
    with (
        zipfile.ZipFile(path) as archive,
        archive.open(member or only_csv(path, archive.namelist())) as file,
    ):
        yield file


def only_csv(path: Path, members: list[str]) -> str:
    """Name of the one CSV file in a zip."""
    found = [name for name in members if name.lower().endswith(".csv")]
    if len(found) != 1:
        raise ReaderError(f"{path}: holds {len(found)} CSV files {found[:5]}; allowed is one")
    return found[0]


def member_name(path: Path) -> str:
    """File name of the CSV: the file's own, or that of the one CSV in the zip."""
    if path.suffix != ".zip":
        return path.name
    with blame(path), zipfile.ZipFile(path) as archive:
        return Path(only_csv(path, archive.namelist())).name


def first_row(path: Path, member: str | None = None) -> list[str]:
    """First row of a CSV file, split into its fields; an empty file is an error."""
    with blame(path), open_csv_file(path, member) as file:
        line = file.readline(1 << 16).decode()
    fields = next(csv.reader(io.StringIO(line)), [])
    if not any(field.strip() for field in fields):
        raise ReaderError(f"{path}: {member or 'the file'} is empty; at least one row is needed")
    return [field.strip() for field in fields]


def csv_chunks(
    path: Path,
    columns: Mapping[str, pa.DataType | None],
    *,
    member: str | None = None,
    header: bool = False,
) -> Iterator[dict[str, Column]]:
    """Stream a CSV file in chunks of exactly `CHUNK` rows, the last one shorter.

    Parameters
    ----------
    path, member
        The file; the member of it, where it is a zip.
    columns
        Every column in file order with its Arrow type; those of type None are not read.
    header
        Whether the first row holds names, to be passed over.
    """
    wanted = {name: kind for name, kind in columns.items() if kind is not None}
    with blame(path), open_csv_file(path, member) as file:
        stream = pyarrow.csv.open_csv(
            file,
            pyarrow.csv.ReadOptions(
                use_threads=False,
                block_size=_BLOCK,
                column_names=list(columns),
                skip_rows=1 if header else 0,
            ),
            convert_options=pyarrow.csv.ConvertOptions(
                column_types=wanted, include_columns=list(wanted), strings_can_be_null=False
            ),
        )
        for table in _rechunk(stream):
            yield {name: table.column(name).combine_chunks() for name in wanted}


def _rechunk(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        while rows >= CHUNK:
            table = pa.Table.from_batches(held)
            yield table.slice(0, CHUNK)
            held = table.slice(CHUNK).to_batches()
            rows -= CHUNK
    if rows:
        yield pa.Table.from_batches(held)


def integers(path: Path, column: Column, name: str, first: int) -> Int64:
    """Values of an int64 column; a missing one is an error that names its row."""
    if column.null_count:
        row = first + int(np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0]) + 1
        raise ReaderError(f"{path}: row {row}: {name} is missing")
    values: Int64 = column.to_numpy(zero_copy_only=False)
    return values


def nano(path: Path, column: Column, name: str, first: int) -> Int64:
    """Decimal column as int64 in units of 1e-9, rounded there (half away from zero).

    The values of an Arrow decimal are 16-byte integers; the low half is the answer wherever the
    high half only repeats its sign.
    """
    if column.null_count:
        integers(path, column, name, first)
    rounded = pc.round(column, 9, "half_towards_infinity").cast(pa.decimal128(29, 9))
    words = np.frombuffer(rounded.buffers()[1], np.int64)  # type: ignore[call-overload]
    words = words[2 * rounded.offset :][: 2 * len(rounded)]
    low, high = words[0::2], words[1::2]
    beyond = np.flatnonzero(high != low >> 63)
    if len(beyond):
        raise ReaderError(
            f"{path}: row {first + int(beyond[0]) + 1}: {name} is {column[int(beyond[0])]}; "
            f"allowed is what fits into int64 in units of 1e-9, about +-9.2e9"
        )
    return np.array(low)


def within(path: Path, values: Int64, low: int, high: int, name: str, first: int) -> Int64:
    """Give the values back; one outside of `low` to `high`, both inclusive, is an error."""
    wrong = np.flatnonzero((values < low) | (values > high))
    if len(wrong):
        row = int(wrong[0])
        raise ReaderError(
            f"{path}: row {first + row + 1}: {name} is {values[row]}; allowed is {low} to {high}"
        )
    return values


def sizes(path: Path, column: Column, name: str, first: int) -> Int64:
    """Column of sizes: whole numbers that fit a tick's unsigned 32 bits."""
    return within(path, integers(path, column, name, first), 0, 0xFFFF_FFFF, name, first)


def prices(path: Path, column: Column, unit: int, name: str, first: int) -> Int64:
    """Column of whole numbers in `unit` times 1e-9, as prices in 1e-9."""
    most = 2**62 // unit
    return within(path, integers(path, column, name, first), -most, most, name, first) * unit


def since_midnight(path: Path, column: Column, per_s: int, first: int) -> npt.NDArray[np.uint64]:
    """Decimal column of a clock time in units of `1 / per_s` s, as ns since midnight."""
    nanos = nano(path, column, "time", first) // per_s
    return within(path, nanos, 0, 48 * 3600 * NS_PER_S, "time in ns", first).astype(np.uint64)


def midnight_ns(day: date, zone: str) -> int:
    """UTC time of a day's local midnight in ns, by the clock that holds at its noon.

    Clocks are changed at night, so that milliseconds "since midnight" of a trading session count
    from noon minus twelve hours.
    """
    noon = datetime(day.year, day.month, day.day, 12, tzinfo=ZoneInfo(zone))
    return (int(noon.timestamp()) - 12 * 3600) * NS_PER_S


def file_batch(ticks: TickArray, first: int, symbols: Mapping[int, str]) -> TickBatch:
    """Wrap a chunk of a file: offsets are row numbers within the file, from 0."""
    n = len(ticks)
    offsets = np.arange(first, first + n, dtype=np.int64)
    return TickBatch(ticks, 0, offsets, np.zeros(n, np.int32), symbols)
