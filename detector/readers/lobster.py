"""LOBSTER files (message and order book, any level, zipped or not) to ticks.

Row k of the order book is already the state after message k. What differs from our convention is
the direction: LOBSTER gives the side of the *resting* order, so that the aggressor of an execution
is the opposite one.

References
----------
LOBSTER output structure, https://lobsterdata.com/info/DataStructure.php (event types 1 to 7,
times in seconds after midnight, prices in 1e-4 dollars, +-9999999999 for an empty level).
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from detector.readers.base import (
    DECIMAL,
    PUBLISHER,
    Column,
    ReaderError,
    blame,
    csv_chunks,
    file_batch,
    first_row,
    integers,
    midnight_ns,
    prices,
    since_midnight,
    sizes,
    within,
)
from detector.ticks import (
    UNDEFINED_PRICE,
    TickArray,
    TickBatch,
    empty_ticks,
    instrument_key,
    stable_instrument_id,
)

NAME: Final = re.compile(
    r"(?P<symbol>.+)_(?P<day>\d{4}-\d\d-\d\d)_\d+_\d+_(?P<kind>message|orderbook)_(?P<level>\d+)\.csv"
)
_EMPTY_LEVEL: Final = 9_999_999_999
_PRICE_UNITS: Final = 100_000  # 1e-4 dollars in units of 1e-9
_FIRST_TYPE, _LAST_TYPE = 1, 7

# Action by event type: 1 new order, 2 partial cancel, 3 delete, 4 execution, 5 hidden execution,
# 6 cross (auction) trade, 7 halt indicator.
_ACTIONS: Final = np.frombuffer(b"NACCTTTN", np.uint8)
_RESTING: Final = np.array([ord("A"), ord("N"), ord("B")], np.uint8)  # direction -1, 0, 1
_AGGRESSOR: Final = _RESTING[::-1]


@dataclass(frozen=True, slots=True)
class _Pair:
    """Where the two files of one instrument and day are."""

    path: Path  # the zip or the message file
    message: tuple[Path, str | None]
    orderbook: tuple[Path, str | None]
    symbol: str
    day: date


def read_lobster(path: Path, symbol: str | None = None) -> Iterator[TickBatch]:
    """Read a LOBSTER day: a zip, a folder that holds one pair of files, or its message file.

    Parameters
    ----------
    path
        `*.zip`, a folder, or `*_message_*.csv` beside its `*_orderbook_*.csv`. The names give
        symbol and date; times are New York's.
    symbol
        Instead of the file name's.

    Yields
    ------
    TickBatch
        At most 65,536 rows, one per message, `sequence` = row number from 1.

    Raises
    ------
    ReaderError
        Files missing or unequal in length, a malformed row, an unknown event type.
    """
    pair = _find_pair(path)
    name = symbol or pair.symbol
    instrument = stable_instrument_id(name)
    symbols = {instrument_key(PUBLISHER["lobster"], instrument): name}
    midnight = midnight_ns(pair.day, "America/New_York")
    first = 0
    for messages, books in zip_longest(_messages(pair), _books(pair)):
        if messages is None or books is None or len(messages["size"]) != len(books["bid_px"]):
            raise ReaderError(f"{path}: message and orderbook differ in their number of rows")
        ticks = _ticks(pair.path, messages, books, first)
        ticks["ts_event"] += np.uint64(midnight)
        ticks["publisher_id"] = PUBLISHER["lobster"]
        ticks["instrument_id"] = instrument
        yield file_batch(ticks, first, symbols)
        first += len(ticks)


def _ticks(
    path: Path, messages: dict[str, Column], books: dict[str, Column], first: int
) -> TickArray:
    """One chunk as ticks; times still count from midnight."""
    kind = integers(path, messages["type"], "type", first)
    direction = integers(path, messages["direction"], "direction", first)
    _check_codes(path, kind, direction, first)
    ticks = empty_ticks(len(kind))
    ticks["ts_event"] = since_midnight(path, messages["time"], 1, first)
    ticks["action"] = _ACTIONS[kind]
    trade = ticks["action"] == ord("T")
    ticks["side"] = np.where(trade, _AGGRESSOR[direction + 1], _RESTING[direction + 1])
    told = (
        kind < _LAST_TYPE
    )  # a halt indicator carries codes where others carry price, size and side
    ticks["side"][~told] = ord("N")
    price = prices(path, messages["price"], _PRICE_UNITS, "price", first)
    ticks["price"][told] = price[told]
    ticks["size"] = np.where(told, sizes(path, messages["size"], "size", first), 0)
    ticks["sequence"] = np.arange(first + 1, first + len(ticks) + 1)
    for side in ("bid", "ask"):
        level = prices(path, books[f"{side}_px"], _PRICE_UNITS, f"{side} price", first)
        shown = integers(path, books[f"{side}_sz"], f"{side} size", first)
        empty = np.abs(level) == _EMPTY_LEVEL * _PRICE_UNITS
        shown = within(path, np.where(empty, 0, shown), 0, 0xFFFF_FFFF, f"{side} size", first)
        ticks[f"{side}_px"] = np.where(empty, UNDEFINED_PRICE, level)
        ticks[f"{side}_sz"] = shown
    return ticks


def _check_codes(
    path: Path, kind: npt.NDArray[np.int64], direction: npt.NDArray[np.int64], first: int
) -> None:
    wrong = np.flatnonzero((kind < _FIRST_TYPE) | (kind > _LAST_TYPE) | (np.abs(direction) > 1))
    if len(wrong):
        row = int(wrong[0])
        raise ReaderError(
            f"{path}: row {first + row + 1}: type {kind[row]}, direction {direction[row]}; "
            "allowed are types 1 to 7 and directions -1 and 1"
        )


def _messages(pair: _Pair) -> Iterator[dict[str, Column]]:
    columns: dict[str, pa.DataType | None] = {
        "time": DECIMAL,
        "type": pa.int64(),
        "order_id": None,
        "size": pa.int64(),
        "price": pa.int64(),
        "direction": pa.int64(),
    }
    path, member = pair.message
    extra = len(first_row(path, member)) - len(columns)  # newer files may carry further columns
    columns |= {f"extra_{i}": None for i in range(extra)}
    return csv_chunks(path, columns, member=member)


def _books(pair: _Pair) -> Iterator[dict[str, Column]]:
    path, member = pair.orderbook
    width = len(first_row(path, member))
    if width < 4 or width % 4:
        raise ReaderError(f"{path}: orderbook has {width} columns; allowed are 4 per level")
    names = ["ask_px", "ask_sz", "bid_px", "bid_sz"]
    columns: dict[str, pa.DataType | None] = dict.fromkeys(names, pa.int64())
    columns |= {f"deeper_{i}": None for i in range(width - 4)}
    return csv_chunks(path, columns, member=member)


def holds_lobster(path: Path) -> bool:
    """Whether a zip holds a file named as LOBSTER names its message files."""
    with blame(path), zipfile.ZipFile(path) as archive:
        names = [NAME.fullmatch(Path(name).name) for name in archive.namelist()]
    return any(name is not None and name["kind"] == "message" for name in names)


def _find_pair(path: Path) -> _Pair:
    """Find message and orderbook file; the message file names symbol and day."""
    with blame(path):
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                places = [(path, name) for name in archive.namelist()]
        else:
            folder = path if path.is_dir() else path.parent
            stem = path.name.replace("_message_", "_*_").replace("_orderbook_", "_*_")
            found = sorted(folder.glob("*.csv" if path.is_dir() else stem))
            places = [(file, None) for file in found]  # type: ignore[misc]
    named = [(NAME.fullmatch(Path(member or file).name), (file, member)) for file, member in places]
    by_kind = {
        kind: [(match, place) for match, place in named if match and match["kind"] == kind]
        for kind in ("message", "orderbook")
    }
    if any(len(found) != 1 for found in by_kind.values()):
        raise ReaderError(
            f"{path}: found {len(by_kind['message'])} message and {len(by_kind['orderbook'])} "
            "orderbook files; needed is one of each, named as LOBSTER names them: "
            "TICKER_YYYY-MM-DD_START_END_message_LEVEL.csv"
        )
    match, message = by_kind["message"][0]
    return _Pair(
        path, message, by_kind["orderbook"][0][1], match["symbol"], date.fromisoformat(match["day"])
    )
