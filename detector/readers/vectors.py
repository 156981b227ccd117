"""Files of plain number series (timestamp and numeric columns) to vector batches.

For data that already is a feature vector per tick, or that never was a tick at all.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from detector.readers.base import CHUNK, PUBLISHER, ReaderError, blame, open_csv_file
from detector.ticks import VectorBatch, instrument_key, stable_instrument_id

TIME_COLUMNS = ("ts_event", "timestamp", "time")
"""Names of the time column, the first that the file has."""


def vector_columns(path: Path, columns: tuple[str, ...] | None = None) -> tuple[str, ...]:
    """Names of the numeric columns that `read_vectors` gives."""
    table = next(_tables(path))
    return columns or tuple(
        field.name
        for field in table.schema
        if field.name not in TIME_COLUMNS and _is_number(field.type)
    )


def read_vectors(
    path: Path, columns: tuple[str, ...] | None = None, symbol: str | None = None
) -> Iterator[VectorBatch]:
    """Read a CSV file with a row of names, or a Parquet file.

    Parameters
    ----------
    path
        Holds a column named `ts_event`, `timestamp` or `time`: date and time (UTC unless it says
        otherwise), or an integer in ns.
    columns
        The numeric columns wanted, in this order; None: all of them in file order.
    symbol
        Name of the instrument; the file's name without its ending by default.

    Yields
    ------
    VectorBatch
        At most 65,536 rows; missing numbers are NaN.
    """
    name = symbol or path.name.split(".")[0]
    key = instrument_key(PUBLISHER["vectors"], stable_instrument_id(name))
    first = 0
    for table in _tables(path):
        wanted = columns or vector_columns(path)
        missing = [column for column in wanted if column not in table.schema.names]
        if missing or not wanted:
            raise ReaderError(
                f"{path}: column {', '.join(missing) or 'of numbers'} is missing; it has "
                f"{', '.join(table.schema.names)}"
            )
        n = table.num_rows
        yield VectorBatch(
            np.stack([_numbers(path, table, column) for column in wanted], axis=1),
            np.full(n, key, np.int64),
            _times(path, table, first),
            0,
            np.arange(first, first + n, dtype=np.int64),
            np.zeros(n, np.int32),
            {key: name},
        )
        first += n


def _tables(path: Path) -> Iterator[pa.Table]:
    with blame(path):
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(CHUNK):
                    yield pa.Table.from_batches([batch])
            return
        with open_csv_file(path) as stream:
            table = pyarrow.csv.read_csv(stream)
        if not table.num_rows:
            raise ReaderError(f"{path}: holds names but no rows")
        for start in range(0, table.num_rows, CHUNK):
            yield table.slice(start, CHUNK)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)


def _numbers(path: Path, table: pa.Table, name: str) -> npt.NDArray[np.float32]:
    column = table.column(name)
    if not _is_number(column.type):
        raise ReaderError(f"{path}: column {name} holds {column.type}; allowed are numbers")
    numbers: npt.NDArray[np.float64] = column.cast(pa.float64()).to_numpy()  # null becomes NaN
    return numbers.astype(np.float32)


def _times(path: Path, table: pa.Table, first: int) -> npt.NDArray[np.int64]:
    name = next((name for name in TIME_COLUMNS if name in table.schema.names), None)
    if name is None:
        raise ReaderError(
            f"{path}: no column named {', '.join(TIME_COLUMNS)}; it has "
            f"{', '.join(table.schema.names)}"
        )
    column = table.column(name)
    if column.null_count:
        row = first + int(np.argmin(column.is_valid().to_numpy())) + 1
        raise ReaderError(f"{path}: row {row}: {name} is missing")
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ns", tz=column.type.tz)).cast(pa.int64())
    elif not pa.types.is_integer(column.type):
        raise ReaderError(
            f"{path}: {name} holds {column.type}; allowed are dates with times, or integers in ns"
        )
    times: npt.NDArray[np.int64] = column.to_numpy()
    return times.astype(np.int64)
