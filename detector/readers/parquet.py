"""Parquet with our own columns: the fields of a tick by name, and the symbol.

This is what tapewatch writes and reads itself, and the easiest way in for data of any other source.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from detector.readers.base import CHUNK, Column, ReaderError, blame, file_batch
from detector.ticks import (
    PRICE_UNIT,
    TICK,
    TickArray,
    TickBatch,
    empty_ticks,
    instrument_key,
    stable_instrument_id,
)

COLUMNS: Final = tuple(name for name in TICK.names or () if name not in ("length", "rtype"))
"""Column names besides `symbol`. Needed are `ts_event`, `action`, and `instrument_id` or `symbol`;
what is left out is null or zero."""

_PRICES: Final = ("price", "bid_px", "ask_px")
_LETTERS: Final = {"action": "ACMTRFN", "side": "ABN"}
_TIMES: Final = ("ts_event", "ts_recv")
_INT = pa.types.is_integer


def write_parquet(path: Path, batches: Iterable[TickBatch]) -> int:
    """Write ticks with our columns; gives the number of rows.

    Prices stay int64 in 1e-9, times uint64 in ns, action and side become letters; `symbol` is
    filled from the batches' symbols and null where they know none.
    """
    kinds = [(name, _arrow_type(name)) for name in COLUMNS]
    schema = pa.schema([*kinds, ("symbol", pa.string())])
    rows = 0
    symbols: dict[int, str] = {}
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            symbols.update(batch.symbols)
            columns = [_to_arrow(batch.ticks, name) for name in COLUMNS]
            known, at = np.unique(batch.keys, return_inverse=True)
            names = pa.array([symbols.get(int(key)) for key in known], pa.string())
            table = pa.table([*columns, names.take(at.astype(np.int64))], schema=schema)
            writer.write_table(table)
            rows += len(batch)
    return rows


def read_parquet(path: Path, symbol: str | None = None) -> Iterator[TickBatch]:
    """Read Parquet with our columns.

    Parameters
    ----------
    path
        Prices may be integers in 1e-9 or floats in whole units, times integers in ns or
        timestamps, action and side letters or their codes; other columns are not read.
    symbol
        Name for rows without one.

    Raises
    ------
    ReaderError
        A needed column is missing, or a value does not fit its field.
    """
    with blame(path), pq.ParquetFile(path) as file:
        names = file.schema_arrow.names
        _check_columns(path, names, symbol)
        wanted = [name for name in (*COLUMNS, "symbol") if name in names]
        first = 0
        for batch in file.iter_batches(CHUNK, columns=wanted):
            ticks = empty_ticks(batch.num_rows)
            for name in wanted:
                if name != "symbol":
                    _from_arrow(path, batch.column(name), ticks, name, first)
            column = batch.column("symbol") if "symbol" in wanted else None
            symbols = _identify(ticks, column, symbol, has_id="instrument_id" in wanted)
            yield file_batch(ticks, first, symbols)
            first += len(ticks)


def _check_columns(path: Path, names: list[str], symbol: str | None) -> None:
    missing = [name for name in ("ts_event", "action") if name not in names]
    if "instrument_id" not in names and "symbol" not in names and symbol is None:
        missing.append("instrument_id or symbol")
    if missing:
        raise ReaderError(
            f"{path}: column {', '.join(missing)} is missing; it has {', '.join(names[:20])}; "
            f"our columns are {', '.join(COLUMNS)}, symbol"
        )


def _arrow_type(name: str) -> pa.DataType:
    if name in _LETTERS:
        return pa.string()
    return pa.from_numpy_dtype(TICK[name])


def _to_arrow(ticks: TickArray, name: str) -> Column:
    values = np.ascontiguousarray(ticks[name])
    column: Column = pa.array(values.view("S1").astype("U1") if name in _LETTERS else values)
    return column


def _from_arrow(
    path: Path,
    column: Column,
    ticks: TickArray,
    name: str,
    first: int,
) -> None:
    """Set the rows of one field that are not null."""
    given = column.is_valid().to_numpy(zero_copy_only=False)
    if name in ("ts_event", "action") and not given.all():
        raise ReaderError(f"{path}: row {first + int(np.argmin(given)) + 1}: {name} is null")
    try:
        values = _values(column.drop_null(), name)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
        raise ReaderError(f"{path}: rows from {first + 1}: {name}: {error}") from error
    ticks[name][given] = values


def _values(column: Column, name: str) -> npt.NDArray[np.generic]:
    kind = column.type
    if name in _LETTERS and not _INT(kind):
        codes = np.frombuffer(b"".join(str(v).encode() for v in column.to_pylist()), np.uint8)
        allowed = [ord(letter) for letter in _LETTERS[name]]
        if len(codes) != len(column) or not np.isin(codes, allowed).all():
            raise ValueError(f"allowed are the letters {', '.join(_LETTERS[name])}")
        return codes
    if name in _PRICES and pa.types.is_floating(kind):
        scaled = np.rint(column.to_numpy(zero_copy_only=False).astype(np.float64) / PRICE_UNIT)
        if not (np.abs(scaled) < 2**63).all():
            raise ValueError("allowed are finite prices below 9.2e9")
        return scaled.astype(np.int64)
    if name in _TIMES and pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("ns", tz=kind.tz)).cast(pa.int64())
    elif not _INT(kind):
        raise ValueError(f"its type is {kind}; allowed are integers")
    return pc.cast(column, pa.from_numpy_dtype(TICK[name])).to_numpy(zero_copy_only=False)


def _identify(
    ticks: TickArray,
    column: Column | None,
    symbol: str | None,
    *,
    has_id: bool,
) -> dict[int, str]:
    """Fill ids made from symbols where the file has none; gives the symbols by key."""
    names = np.array(
        [symbol] * len(ticks)
        if column is None
        else [symbol if name is None else name for name in column.to_pylist()],
        object,
    )
    symbols: dict[int, str] = {}
    known = {name for name in names.tolist() if name is not None}
    for name in sorted(known):
        rows = names == name
        if not has_id:
            ticks["instrument_id"][rows] = stable_instrument_id(name)
        pairs = np.unique(ticks[["publisher_id", "instrument_id"]][rows])
        symbols |= {instrument_key(*pair): name for pair in pairs.tolist()}
    return symbols
