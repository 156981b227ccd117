"""Reads the injected LOBSTER set (quote stuffing, layering, pump-and-dump): for measuring only.

The set is a table of level-1 states with a label a row, no longer LOBSTER messages. What a tick
needs beside is inferred from the row before, by rules that see no label and no later row:

- trade: the price is the best one of the side that was hit, as it was before;
- cancel: side and size as given, no price;
- otherwise the side that improved or grew was added to; if both or neither did, action N.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from detector.readers import PUBLISHER
from detector.readers.base import midnight_ns
from detector.ticks import TickArray, TickBatch, empty_ticks, instrument_key, stable_instrument_id

DAY: Final = date(2012, 6, 21)
LABELS: Final = ("ordinary", "quote stuffing", "layering", "pump and dump")
"""Meaning of a label by its number."""

_Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Injected:
    """One stock of the set.

    Parameters
    ----------
    batch
        `(n,)` ticks.
    labels
        `(n,)` int64, index into `LABELS`.
    clusters
        `(n,)` int64, number of the injected cluster from 1; 0 where ordinary.
    """

    batch: TickBatch
    labels: npt.NDArray[np.int64]
    clusters: npt.NDArray[np.int64]


def read_injected(path: Path) -> Injected:
    """Read one stock of the injected set."""
    table = pq.read_table(path)
    columns = {name: table[name].to_numpy() for name in table.schema.names if name != "symbol"}
    symbol = str(table["symbol"][0].as_py())
    ticks = _ticks(columns)
    instrument = stable_instrument_id(symbol)
    ticks["publisher_id"], ticks["instrument_id"] = PUBLISHER["lobster"], instrument
    symbols = {instrument_key(PUBLISHER["lobster"], instrument): symbol}
    return Injected(
        TickBatch.from_ticks(ticks, symbols=symbols),
        columns["label"].astype(np.int64),
        columns["cluster"].astype(np.int64),
    )


def _ticks(columns: dict[str, _Floats]) -> TickArray:
    ticks = empty_ticks(len(columns["ts_ms"]))
    since_ns = np.rint(columns["ts_ms"] * 1_000).astype(np.int64) * 1_000  # given to 1 us
    ticks["ts_event"] = midnight_ns(DAY, "America/New_York") + since_ns
    ticks["sequence"] = np.arange(1, len(ticks) + 1)
    for side in ("bid", "ask"):
        # Dollars and cents: through cents, so that no float noise is left.
        ticks[f"{side}_px"] = np.rint(columns[f"{side}_px"] * 100).astype(np.int64) * 10_000_000
        ticks[f"{side}_sz"] = columns[f"{side}_sz"]
    grown = {"bid": _grown(columns, "bid", 1), "ask": _grown(columns, "ask", -1)}
    for side, letter, aggressor, sign in (("bid", "B", "A", 1), ("ask", "A", "B", -1)):
        other = grown["ask" if side == "bid" else "bid"]
        _set(ticks, (grown[side] > 0) & (other == 0), "A", letter, grown[side])
        cancelled = columns[f"cxl_{side}_sz"]
        _set(ticks, cancelled > 0, "C", letter, cancelled)
        hit = columns["trade_sign"] == sign
        _set(ticks, hit, "T", aggressor, columns["trade_sz"])
        before = np.concatenate([ticks[f"{side}_px"][:1], ticks[f"{side}_px"][:-1]])
        ticks["price"][hit] = before[hit]
    return ticks


def _grown(columns: dict[str, _Floats], side: str, better: int) -> _Floats:
    """By how much a side grew in an event that is neither trade nor cancel; 0 where it did not."""
    price = np.diff(columns[f"{side}_px"], prepend=columns[f"{side}_px"][0]) * better
    size = columns[f"{side}_sz"]
    more = np.diff(size, prepend=size[0])
    plain = (columns["trade_sign"] == 0) & (columns["cxl_bid_sz"] + columns["cxl_ask_sz"] == 0)
    grown = np.where(price > 0, size, np.where(price == 0, np.maximum(more, 0), 0))
    return np.where(plain, grown, 0)


def _set(
    ticks: TickArray, rows: npt.NDArray[np.bool_], action: str, side: str, size: _Floats
) -> None:
    ticks["action"][rows], ticks["side"][rows] = ord(action), ord(side)
    ticks["size"][rows] = size[rows].astype(np.uint32)
