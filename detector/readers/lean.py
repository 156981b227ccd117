"""QuantConnect Lean tick zips to ticks: equity trades, equity quotes, forex and CFD quotes.

An equity quote row states one side of the best bid and offer and the venue that holds it. In the
files at hand the rows come strictly in turn, bid and ask, one pair for every change of the national
best quote, the unchanged side repeated: they are already the national best, not each venue's own
quote (taken as such, and as no venue ever withdraws one, the best of all venues is crossed on
every row; taken as the best, it is never crossed in BAC on 2013-10-07 in regular hours). The book
is therefore the latest row of either side.

References
----------
Lean data format, https://www.quantconnect.com/docs/v2/lean-engine/data-format: equity prices x
10,000, milliseconds since midnight in the data's time zone, one CSV a zip, no header.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, MutableMapping
from datetime import datetime
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
    csv_chunks,
    file_batch,
    first_row,
    integers,
    member_name,
    midnight_ns,
    nano,
    prices,
    since_midnight,
    sizes,
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
    r"(?P<day>\d{8})_(?P<symbol>[^_]+)_(tick_)?(?P<kind>trade|quote)(_tick)?\.csv", re.IGNORECASE
)
_PRICE_UNITS: Final = 100_000  # 1e-4 dollars in units of 1e-9
_TRADE_COLUMNS: Final[dict[str, pa.DataType | None]] = {
    "time": DECIMAL,
    "price": pa.int64(),
    "size": pa.int64(),
    "exchange": None,
    "condition": None,
    "suspicious": pa.int64(),
}
_QUOTE_COLUMNS: Final[dict[str, pa.DataType | None]] = {
    "time": DECIMAL,
    "bid_px": pa.int64(),
    "bid_sz": pa.int64(),
    "ask_px": pa.int64(),
    "ask_sz": pa.int64(),
    "exchange": None,
    "condition": None,
    "suspicious": pa.int64(),
}
_FOREX_COLUMNS: Final[dict[str, pa.DataType | None]] = {
    "time": DECIMAL,
    "bid_px": DECIMAL,
    "ask_px": DECIMAL,
}
_Columns = dict[str, Column]
_Int64 = npt.NDArray[np.int64]


def read_lean(
    path: Path,
    symbol: str | None = None,
    *,
    zone: str | None = None,
    skipped: MutableMapping[str, int] | None = None,
) -> Iterator[TickBatch]:
    """Read a Lean tick file of one instrument and day.

    Parameters
    ----------
    path
        A zip with one CSV named `YYYYMMDD_symbol_Trade_Tick.csv`, `YYYYMMDD_symbol_Quote_Tick.csv`
        or `YYYYMMDD_symbol_tick_quote.csv`, or that CSV. Its columns tell equity trades (6), equity
        quotes (8) and forex or CFD quotes (3) apart.
    symbol
        Instead of the file name's, in capitals.
    zone
        Time zone whose midnight times count from; New York for equities, else UTC.
    skipped
        Takes the number of rows left out, by reason: `suspicious` (flagged so in the file),
        `no_side` (a quote row with neither side).

    Yields
    ------
    TickBatch
        At most 65,536 rows. Trades have side N and no book: `carry_books` gives them one.
        Forex and CFD quotes have no sizes: both sides are of size 0.
    """
    match = NAME.fullmatch(member_name(path))
    if match is None:
        raise ReaderError(
            f"{path}: {member_name(path)} is not named as Lean names tick files: "
            "YYYYMMDD_symbol_Trade_Tick.csv, _Quote_Tick.csv or _tick_quote.csv"
        )
    reader = _Reader(path, match["kind"].lower(), len(first_row(path)), skipped)
    name = symbol or match["symbol"].upper()
    day = datetime.strptime(match["day"], "%Y%m%d").date()  # noqa: DTZ007 - a date has no zone
    midnight = midnight_ns(day, zone or reader.zone)
    instrument = stable_instrument_id(name)
    symbols = {instrument_key(reader.publisher, instrument): name}
    first = 0
    for ticks in reader.chunks():
        ticks["ts_event"] += np.uint64(midnight)
        ticks["publisher_id"] = reader.publisher
        ticks["instrument_id"] = instrument
        yield file_batch(ticks, first, symbols)
        first += len(ticks)


class _Reader:
    """Chunks of one file; remembers the book from chunk to chunk."""

    def __init__(
        self, path: Path, kind: str, width: int, skipped: MutableMapping[str, int] | None
    ) -> None:
        self._path = path
        self._skipped: MutableMapping[str, int] = {} if skipped is None else skipped
        layouts = {
            ("trade", 6): (_TRADE_COLUMNS, self._trades),
            ("quote", 8): (_QUOTE_COLUMNS, self._quotes),
            ("quote", 3): (_FOREX_COLUMNS, self._forex),
        }
        if (kind, width) not in layouts:
            raise ReaderError(
                f"{path}: a {kind} file with {width} columns; allowed are trades with 6, equity "
                "quotes with 8, forex and CFD quotes with 3"
            )
        self._columns, self._convert = layouts[kind, width]
        self.publisher = PUBLISHER["lean_forex" if width == 3 else "lean_equity"]
        self.zone = "UTC" if width == 3 else "America/New_York"
        self._book = {"bid": (UNDEFINED_PRICE, 0), "ask": (UNDEFINED_PRICE, 0)}
        self._rows = 0

    def chunks(self) -> Iterator[TickArray]:
        """Ticks whose times count from midnight."""
        chunks = csv_chunks(self._path, self._columns)
        for chunk in _whole_quotes(chunks) if "bid_sz" in self._columns else chunks:
            rows = len(chunk["time"])
            ticks = self._convert(chunk)
            self._rows += rows
            if len(ticks):
                yield ticks

    def _times(self, chunk: _Columns) -> npt.NDArray[np.uint64]:
        """Read times in fractional milliseconds."""
        return since_midnight(self._path, chunk["time"], 1000, self._rows)

    def _column(self, chunk: _Columns, name: str) -> _Int64:
        return integers(self._path, chunk[name], name, self._rows)

    def _prices(self, chunk: _Columns, name: str) -> _Int64:
        return prices(self._path, chunk[name], _PRICE_UNITS, name, self._rows)

    def _sizes(self, chunk: _Columns, name: str) -> _Int64:
        return sizes(self._path, chunk[name], name, self._rows)

    def _skip(self, reason: str, mask: npt.NDArray[np.bool_]) -> None:
        if mask.any():
            self._skipped[reason] = self._skipped.get(reason, 0) + int(mask.sum())

    def _trades(self, chunk: _Columns) -> TickArray:
        suspicious = self._column(chunk, "suspicious") != 0
        self._skip("suspicious", suspicious)
        ticks = empty_ticks(len(suspicious))
        ticks["ts_event"] = self._times(chunk)
        ticks["action"] = ord("T")
        ticks["price"] = self._prices(chunk, "price")
        ticks["size"] = self._sizes(chunk, "size")
        ticks["sequence"] = np.arange(self._rows + 1, self._rows + len(ticks) + 1)
        return np.delete(ticks, np.flatnonzero(suspicious))

    def _forex(self, chunk: _Columns) -> TickArray:
        ticks = empty_ticks(len(chunk["time"]))
        ticks["ts_event"] = self._times(chunk)
        ticks["action"] = ord("M")
        for side in ("bid_px", "ask_px"):
            ticks[side] = nano(self._path, chunk[side], side, self._rows)
        ticks["sequence"] = np.arange(self._rows + 1, self._rows + len(ticks) + 1)
        return ticks

    def _quotes(self, chunk: _Columns) -> TickArray:
        """One tick a quote: a bid row and the ask row of the same time after it are one."""
        suspicious = self._column(chunk, "suspicious") != 0
        told = {side: self._column(chunk, f"{side}_px") != 0 for side in ("bid", "ask")}
        no_side = ~suspicious & ~told["bid"] & ~told["ask"]
        self._skip("suspicious", suspicious)
        self._skip("no_side", no_side)
        kept = np.flatnonzero(~suspicious & ~no_side)
        ticks = empty_ticks(len(kept))
        ticks["ts_event"] = self._times(chunk)[kept]
        ticks["action"] = ord("M")
        ticks["sequence"] = kept + self._rows + 1
        changed = {
            side: self._side(ticks, side, told[side][kept], chunk, kept) for side in ("bid", "ask")
        }
        bid_then_ask = told["bid"][kept][:-1] & told["ask"][kept][1:] & ~told["ask"][kept][:-1]
        first = np.flatnonzero(bid_then_ask & (np.diff(ticks["ts_event"]) == 0))
        changed["bid"][first + 1] |= changed["bid"][first]
        _name_change(ticks, changed["bid"], changed["ask"])
        return np.delete(ticks, first)

    def _side(
        self,
        ticks: TickArray,
        side: str,
        told: npt.NDArray[np.bool_],
        chunk: _Columns,
        kept: _Int64,
    ) -> npt.NDArray[np.bool_]:
        """Carry one side's latest price and size forward; gives the rows that changed it."""
        price = np.where(told, self._prices(chunk, f"{side}_px")[kept], 0)
        size = np.where(told, self._sizes(chunk, f"{side}_sz")[kept], 0)
        row = np.maximum.accumulate(np.where(told, np.arange(1, len(kept) + 1), 0))
        last_price, last_size = self._book[side]
        quoted = np.concatenate([[last_price], price])
        shown = np.concatenate([[last_size], size])
        ticks[f"{side}_px"], ticks[f"{side}_sz"] = quoted[row], shown[row]
        if len(kept):
            self._book[side] = int(quoted[row[-1]]), int(shown[row[-1]])
        before = np.concatenate([[0], row[:-1]])
        differs: npt.NDArray[np.bool_] = np.logical_or(
            quoted[row] != quoted[before], shown[row] != shown[before]
        )
        return differs


def _whole_quotes(chunks: Iterator[_Columns]) -> Iterator[_Columns]:
    """Keep a bid row and the ask row after it in one chunk: hold a last bid row back."""
    held: _Columns = {}
    for chunk in chunks:
        rows = {
            name: pa.concat_arrays([held[name], column]) if held else column
            for name, column in chunk.items()
        }
        last = len(rows["time"]) - (rows["ask_px"][-1].as_py() == 0)
        held = {name: column.slice(last) for name, column in rows.items()}
        yield {name: column.slice(0, last) for name, column in rows.items()}
    if held and len(held["time"]):
        yield held


def _name_change(ticks: TickArray, bid: npt.NDArray[np.bool_], ask: npt.NDArray[np.bool_]) -> None:
    """Fill side, price and size of quotes that changed one side; a change of both has side N."""
    for letter, side, mask in (("B", "bid", bid & ~ask), ("A", "ask", ask & ~bid)):
        ticks["side"][mask] = ord(letter)
        ticks["price"][mask] = ticks[f"{side}_px"][mask]
        ticks["size"][mask] = ticks[f"{side}_sz"][mask]
