"""What a tick is: its memory layout, its instrument, and what may be wrong with it.

Everything downstream works on structured arrays with the layout of a Databento MBP-1 record, so
that a Kafka message of such records becomes ticks without a copy per tick. This module knows no
wire format and no feature; it only fixes names and layouts.

References
----------
Databento Binary Encoding, "Market by price" and "Trades" schemas (record layouts, null values,
action and side codes).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Any, Final

import numpy as np
import numpy.typing as npt

TickArray = npt.NDArray[np.void]
"""Structured array with dtype `TICK`."""

TICK: Final = np.dtype(
    [
        ("length", "u1"),  # record length in 4-byte words: 20
        ("rtype", "u1"),  # 1: market by price, depth 1
        ("publisher_id", "<u2"),
        ("instrument_id", "<u4"),
        ("ts_event", "<u8"),  # ns since the epoch, UTC
        ("price", "<i8"),  # 1e-9 units of the quote currency
        ("size", "<u4"),
        ("action", "u1"),  # ord of A add, C cancel, M modify, T trade, R clear, F fill, N none
        ("side", "u1"),  # ord of B bid (buy aggressor), A ask (sell aggressor), N none
        ("flags", "u1"),
        ("depth", "u1"),
        ("ts_recv", "<u8"),  # ns since the epoch, or UNDEFINED_TIME
        ("ts_in_delta", "<i4"),  # ns
        ("sequence", "<u4"),  # 0: the source has none
        ("bid_px", "<i8"),
        ("ask_px", "<i8"),
        ("bid_sz", "<u4"),
        ("ask_sz", "<u4"),
        ("bid_ct", "<u4"),
        ("ask_ct", "<u4"),
    ]
)
"""Databento MBP-1 record, 80 bytes. The book columns are the state *after* the event, and `side`
of a trade is the aggressor; readers and decoders see to both."""

TRADE: Final = np.dtype([(name, TICK[name].str) for name in TICK.names[:14]])  # type: ignore[index]
"""Databento Trades record, 48 bytes: `TICK` without the book."""

MBP1_RTYPE: Final = 1
TRADE_RTYPE: Final = 0
UNDEFINED_PRICE: Final = 2**63 - 1
UNDEFINED_TIME: Final = 2**64 - 1
PRICE_UNIT: Final = 1e-9
NS_PER_S: Final = 1_000_000_000


class Quality(IntFlag):
    """What was found to be unusual about one tick's data. The low byte means: dropped.

    A dropped tick changes no window, is never scored, and is counted under its reason.
    The others are processed; an event they lead to names them.
    """

    REPEATED = 1  # the same record, sequence number included, was seen among the last ones
    IMPLAUSIBLE_TIME = 2  # far from the partition's clock, unless the next tick confirms the jump
    NO_TIME = 4  # event time missing or beyond the range of int64
    NOT_FINITE = 8  # a vector column is NaN or infinite
    LATE = 256  # before the instrument's latest tick; treated as simultaneous with it
    NONPOSITIVE_PRICE = 512  # a price is zero or negative; no logarithm of it is taken
    CROSSED = 1024  # bid above ask
    LOCKED = 2048  # bid equals ask
    ZERO_SIZE = 4096  # a trade or a quoted side of size zero
    ONE_SIDED = 8192  # one or both sides of the book are missing

    @property
    def label(self) -> str:
        """The metric label and the wire name: lower case, underscores."""
        return (self.name or "none").lower()


DROPPED: Final = 0xFF
"""Mask of the `Quality` bits that mean a tick was dropped."""


@dataclass(frozen=True, slots=True, eq=False)
class TickBatch:
    """Ticks of one input partition, in arrival order.

    Parameters
    ----------
    ticks
        `(n,)` array of dtype `TICK`.
    partition
        Input partition; readers of files use 0.
    offsets
        `(n,)` int64: offset of the message that carried the tick (files: row number).
    indices
        `(n,)` int32: position of the tick within its message (files: 0).
    symbols
        Names that this batch gives, by instrument key, the first of each; usually empty.
    named_from
        Offset of the message that gave it, by key; a name without one holds for the whole batch.
    """

    ticks: TickArray
    partition: int
    offsets: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    symbols: Mapping[int, str] = field(default_factory=dict)
    named_from: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ticks)

    def __getitem__(self, rows: slice) -> TickBatch:
        return self.taken(rows)

    def taken(self, rows: slice | npt.NDArray[Any]) -> TickBatch:
        """Return the rows that a slice, a mask or an index array names, in their order."""
        return TickBatch(
            self.ticks[rows],
            self.partition,
            self.offsets[rows],
            self.indices[rows],
            self.symbols,
            self.named_from,
        )

    @property
    def keys(self) -> npt.NDArray[np.int64]:
        """`(n,)` int64 instrument keys, see `instrument_key`."""
        publisher = self.ticks["publisher_id"].astype(np.int64)
        return np.asarray((publisher << 32) | self.ticks["instrument_id"], np.int64)

    @property
    def ts_event(self) -> npt.NDArray[np.int64]:
        """`(n,)` int64 event times, ns since the epoch; negative where undefined."""
        return self.ticks["ts_event"].astype(np.int64)

    @classmethod
    def from_ticks(
        cls, ticks: TickArray, partition: int = 0, symbols: Mapping[int, str] | None = None
    ) -> TickBatch:
        """Wrap ticks that come from no topic: offsets are row numbers, indices zero."""
        n = len(ticks)
        return cls(
            ticks, partition, np.arange(n, dtype=np.int64), np.zeros(n, np.int32), symbols or {}
        )


@dataclass(frozen=True, slots=True, eq=False)
class VectorBatch:
    """Tick feature vectors of one input partition, in arrival order.

    Parameters
    ----------
    values
        `(n, C)` float32 columns as the producer named them; may hold NaN.
    keys, ts_event
        `(n,)` int64 instrument keys and event times, ns since the epoch.
    partition, offsets, indices, symbols, named_from
        As in `TickBatch`.
    """

    values: npt.NDArray[np.float32]
    keys: npt.NDArray[np.int64]
    ts_event: npt.NDArray[np.int64]
    partition: int
    offsets: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    symbols: Mapping[int, str] = field(default_factory=dict)
    named_from: Mapping[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, rows: slice) -> VectorBatch:
        return self.taken(rows)

    def taken(self, rows: slice | npt.NDArray[Any]) -> VectorBatch:
        """Return the rows that a slice, a mask or an index array names, in their order."""
        return VectorBatch(
            self.values[rows],
            self.keys[rows],
            self.ts_event[rows],
            self.partition,
            self.offsets[rows],
            self.indices[rows],
            self.symbols,
            self.named_from,
        )


Batch = TickBatch | VectorBatch


def instrument_key(publisher_id: int, instrument_id: int) -> int:
    """Pack an instrument identity into one int64: publisher in the high word, id in the low."""
    return (publisher_id << 32) | instrument_id


def split_key(key: int) -> tuple[int, int]:
    """Undo `instrument_key`: `(publisher_id, instrument_id)`."""
    return key >> 32, key & 0xFFFFFFFF


def stable_instrument_id(symbol: str) -> int:
    """Instrument id of a market that has only names: the first 4 bytes of BLAKE2b, never 0.

    The same name gives the same id in every process and on every machine.
    """
    digest = hashlib.blake2b(symbol.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") or 1


def empty_ticks(n: int) -> TickArray:
    """`(n,)` ticks with the record header filled in and every nullable field null."""
    ticks = np.zeros(n, TICK)
    ticks["length"] = TICK.itemsize // 4
    ticks["rtype"] = MBP1_RTYPE
    ticks["action"] = ord("N")
    ticks["side"] = ord("N")
    ticks["ts_recv"] = UNDEFINED_TIME
    for name in ("price", "bid_px", "ask_px"):
        ticks[name] = UNDEFINED_PRICE
    return ticks
