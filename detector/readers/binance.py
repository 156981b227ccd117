"""Binance public data files (aggTrades, bookTicker) to ticks.

References
----------
Binance public data, https://github.com/binance/binance-public-data: columns of aggTrades and
bookTicker; times in milliseconds, spot from 2025-01-01 in microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from detector.readers.base import (
    DECIMAL,
    PUBLISHER,
    Column,
    Int64,
    ReaderError,
    csv_chunks,
    file_batch,
    first_row,
    integers,
    member_name,
    nano,
    within,
)
from detector.ticks import (
    TickArray,
    TickBatch,
    empty_ticks,
    instrument_key,
    stable_instrument_id,
)

NAME: Final = re.compile(
    r"(?P<symbol>[A-Za-z0-9_]+)-(?P<kind>aggTrades|bookTicker)-\d{4}-\d\d(-\d\d)?\.csv"
)
SIZE_UNIT: Final = Decimal("0.0001")
"""What one unit of a tick's size stands for: quantities are decimals, sizes are whole numbers."""

_BOOL: Final = pa.bool_()
_TRADES: Final[dict[str, pa.DataType | None]] = {
    "agg_trade_id": pa.int64(),
    "price": DECIMAL,
    "quantity": DECIMAL,
    "first_trade_id": None,
    "last_trade_id": None,
    "transact_time": pa.int64(),
    "is_buyer_maker": _BOOL,
}
_QUOTES: Final[dict[str, pa.DataType | None]] = {
    "update_id": pa.int64(),
    "best_bid_price": DECIMAL,
    "best_bid_qty": DECIMAL,
    "best_ask_price": DECIMAL,
    "best_ask_qty": DECIMAL,
    "transaction_time": pa.int64(),
    "event_time": pa.int64(),
}
_MILLIS_END: Final = 100_000_000_000_000  # year 5138 in ms, 1973 in us: tells the two apart


def read_binance(
    path: Path, symbol: str | None = None, *, size_unit: Decimal = SIZE_UNIT
) -> Iterator[TickBatch]:
    """Read an aggTrades or bookTicker file, with or without its row of names.

    Parameters
    ----------
    path
        `SYMBOL-aggTrades-YYYY-MM[-DD].csv` or `SYMBOL-bookTicker-YYYY-MM[-DD].csv`, or its zip.
    symbol
        Instead of the file name's.
    size_unit
        Quantity that one unit of size stands for; quantities are rounded to it, but never to zero.

    Yields
    ------
    TickBatch
        At most 65,536 rows. Trades: side B where the seller was the maker, no book; `sequence` is
        the low 32 bits of the aggregate trade id. Quotes: action M, the book, no price.

    Raises
    ------
    ReaderError
        Another name, wrong columns, a quantity beyond 4,294,967,295 units.
    """
    match = NAME.fullmatch(member_name(path))
    if match is None:
        raise ReaderError(
            f"{path}: {member_name(path)} is not named as Binance names its files: "
            "SYMBOL-aggTrades-YYYY-MM-DD.csv or SYMBOL-bookTicker-YYYY-MM-DD.csv"
        )
    columns, header = _layout(path, match["kind"])
    convert = _trades if match["kind"] == "aggTrades" else _quotes
    name = symbol or match["symbol"]
    instrument = stable_instrument_id(name)
    symbols = {instrument_key(PUBLISHER["binance"], instrument): name}
    first = 0
    for chunk in csv_chunks(path, columns, header=header):
        ticks = convert(path, chunk, first, size_unit)
        ticks["publisher_id"] = PUBLISHER["binance"]
        ticks["instrument_id"] = instrument
        yield file_batch(ticks, first, symbols)
        first += len(ticks)


def _layout(path: Path, kind: str) -> tuple[dict[str, pa.DataType | None], bool]:
    """Columns of the file, and whether its first row holds their names."""
    row = first_row(path)
    columns = dict(_TRADES if kind == "aggTrades" else _QUOTES)
    if kind == "aggTrades" and len(row) == len(columns) + 1:  # spot files have one column more
        columns["is_best_match"] = None
    if len(row) != len(columns):
        raise ReaderError(
            f"{path}: {kind} with {len(row)} columns; allowed are {', '.join(columns)}"
        )
    return columns, not row[0].isdigit()


def _trades(path: Path, chunk: dict[str, Column], first: int, size_unit: Decimal) -> TickArray:
    ticks = empty_ticks(len(chunk["price"]))
    ticks["ts_event"] = _times(path, chunk["transact_time"], "transact_time", first)
    ticks["action"] = ord("T")
    ticks["price"] = nano(path, chunk["price"], "price", first)
    ticks["size"] = _sizes(path, chunk["quantity"], "quantity", first, size_unit)
    if chunk["is_buyer_maker"].null_count:
        integers(path, chunk["is_buyer_maker"], "is_buyer_maker", first)
    buyer_maker = chunk["is_buyer_maker"].to_numpy(zero_copy_only=False)
    ticks["side"] = np.where(buyer_maker, ord("A"), ord("B"))
    ticks["sequence"] = integers(path, chunk["agg_trade_id"], "id", first) & 0xFFFF_FFFF
    return ticks


def _quotes(path: Path, chunk: dict[str, Column], first: int, size_unit: Decimal) -> TickArray:
    ticks = empty_ticks(len(chunk["update_id"]))
    ticks["ts_event"] = _times(path, chunk["transaction_time"], "transaction_time", first)
    ticks["ts_recv"] = _times(path, chunk["event_time"], "event_time", first)
    ticks["action"] = ord("M")
    for side in ("bid", "ask"):
        price = nano(path, chunk[f"best_{side}_price"], f"best_{side}_price", first)
        size = chunk[f"best_{side}_qty"]
        ticks[f"{side}_px"] = price
        ticks[f"{side}_sz"] = _sizes(path, size, f"best_{side}_qty", first, size_unit)
    ticks["sequence"] = integers(path, chunk["update_id"], "update_id", first) & 0xFFFF_FFFF
    return ticks


def _times(path: Path, column: Column, name: str, first: int) -> Int64:
    """Milliseconds or microseconds since the epoch, told apart by their magnitude, in ns."""
    stamps = within(
        path, integers(path, column, name, first), 0, 9_000_000_000_000_000, name, first
    )
    return np.where(stamps < _MILLIS_END, stamps * 1_000_000, stamps * 1_000)


def _sizes(path: Path, column: Column, name: str, first: int, size_unit: Decimal) -> Int64:
    unit = int(size_unit.scaleb(9))
    if unit < 1:
        raise ReaderError(f"size_unit is {size_unit}; allowed is 1e-9 and more")
    quantity = within(path, nano(path, column, name, first), 0, 2**62, name, first)
    rounded = (quantity + unit // 2) // unit
    units = np.where(quantity > 0, np.maximum(rounded, 1), 0)
    beyond = np.flatnonzero(units > 0xFFFF_FFFF)
    if len(beyond):
        raise ReaderError(
            f"{path}: row {first + int(beyond[0]) + 1}: {name} is {column[int(beyond[0])]}, more "
            f"than 4294967295 units of {size_unit}; give a larger size_unit"
        )
    return units
