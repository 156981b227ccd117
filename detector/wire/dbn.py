"""DBN records <-> bytes: whole MBP-1 or Trades records, no metadata header.

Nothing here meets a tick one by one in Python. Message lengths and the first record of every
message are checked at the message boundaries; the messages of each record type are then joined and
seen through one `np.frombuffer`, where the header of every record is checked at once. Because a
message is joined only when its own length is a whole number of its own records, a bad message can
neither shift nor swallow a good one.

References
----------
Databento Binary Encoding, record header, "Market by price" and "Trades" schemas.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from detector.ticks import MBP1_RTYPE, TICK, TRADE, TRADE_RTYPE, TickArray, TickBatch, empty_ticks
from detector.wire.base import Decoded, Headers, Offsets, Rejected, tick_positions

TradeBook = Literal["before", "after"]

# The first two bytes of a record, length in words and record type, as one little-endian number.
_MBP1_HEAD: Final = MBP1_RTYPE << 8 | TICK.itemsize // 4
_TRADE_HEAD: Final = TRADE_RTYPE << 8 | TRADE.itemsize // 4
_REFUSED: Final = -1
_RECORD: Final = {_MBP1_HEAD: TICK, _TRADE_HEAD: TRADE}

_ACTION: Final = np.zeros(256, np.bool_)
_ACTION[[ord(letter) for letter in "ACMTRFN"]] = True
_SIDE: Final = np.zeros(256, np.bool_)
_SIDE[[ord(letter) for letter in "ABN"]] = True

_Mask = npt.NDArray[np.bool_]


class DbnDecoder:
    """Decode messages of DBN records.

    Parameters
    ----------
    trade_book
        "after": trade rows already carry the book after the trade, as `tapewatch replay` publishes
        them. "before": they carry the book before it, as Databento's live MBP-1 does; see
        `settle_trades`.
    """

    needs_headers = False

    def __init__(self, trade_book: TradeBook = "after") -> None:
        self._settle = trade_book == "before"

    def decode(
        self,
        values: Sequence[bytes | None],
        offsets: Offsets,
        partition: int,
        headers: Sequence[Headers] | None = None,  # noqa: ARG002 - the protocol's
    ) -> Decoded:
        """Decode messages of one partition; see `Decoder.decode`."""
        lengths = _lengths(values)
        at = np.asarray(offsets, np.int64)
        joined = bytearray().join(values if lengths.all() else [v or b"" for v in values])  # type: ignore[arg-type]
        ticks = _uniform(joined, lengths)
        if ticks is not None:
            rejected: list[Rejected] = []
            counts = lengths // TICK.itemsize
        else:
            ticks, counts, rejected = _by_type(values, joined, lengths)
            at = at[counts > 0]
            counts = counts[counts > 0]
        if not len(ticks):
            return Decoded(None, rejected)
        if self._settle:
            settle_trades(ticks)
        return Decoded(TickBatch(ticks, partition, *tick_positions(counts, at)), rejected)


def encode_dbn(ticks: TickArray) -> bytes:
    """Value of a `dbn` message that holds these ticks as MBP-1 records."""
    return np.ascontiguousarray(ticks, TICK).tobytes()


def settle_trades(ticks: TickArray) -> None:
    """Turn the book of trade rows from the state before the trade into the state after, in place.

    Databento sends a trade with the book that it met, and then the change of the book as a record
    of its own. The size that traded is taken off the side that was hit, when the trade was at its
    best price and did not use it up; a level that was used up stays as it was, because what lies
    behind it is not in the record: the next record brings it.
    """
    trade = ticks["action"] == ord("T")
    if not trade.any():
        return
    for aggressor, price, size in (("A", "bid_px", "bid_sz"), ("B", "ask_px", "ask_sz")):
        hit = trade & (ticks["side"] == ord(aggressor)) & (ticks["price"] == ticks[price])
        hit &= ticks["size"] < ticks[size]
        ticks[size][hit] -= ticks["size"][hit]


def widen_trades(trades: npt.NDArray[np.void]) -> TickArray:
    """`(n,)` Trades records as MBP-1 records with a null book."""
    ticks = empty_ticks(len(trades))
    wide = ticks.view(np.uint8).reshape(-1, TICK.itemsize)
    wide[:, 2 : TRADE.itemsize] = trades.view(np.uint8).reshape(-1, TRADE.itemsize)[:, 2:]
    return ticks


def _lengths(values: Sequence[bytes | None]) -> npt.NDArray[np.int64]:
    try:
        return np.fromiter(map(len, values), np.int64, len(values))  # type: ignore[arg-type]
    except TypeError:  # a tombstone: len(None)
        return np.fromiter((len(v or b"") for v in values), np.int64, len(values))


def _uniform(joined: bytearray, lengths: npt.NDArray[np.int64]) -> TickArray | None:
    """Ticks of the batch where it is what it nearly always is: good MBP-1 records throughout.

    Every length a multiple of the record's means that the joined records lie on message
    boundaries, so that one look over the records also checks every message.
    """
    if not len(joined) or not lengths.all() or (lengths % TICK.itemsize).any():
        return None
    ticks = np.frombuffer(joined, TICK)
    good = bool((_heads(ticks) == _MBP1_HEAD).all()) and bool(_letters(ticks).all())
    return ticks if good else None


def _by_type(
    values: Sequence[bytes | None], joined: bytearray, lengths: npt.NDArray[np.int64]
) -> tuple[TickArray, npt.NDArray[np.int64], list[Rejected]]:
    """Good ticks in arrival order, ticks per message (0 where refused), and the refused."""
    head = _first_heads(joined, lengths)
    counts = np.zeros(len(lengths), np.int64)
    parts: dict[int, TickArray] = {}
    for code, record in _RECORD.items():
        messages = head == code
        records = _records(values, messages, record)
        bad = (_heads(records) != code) | ~_letters(records)
        if bad.any():
            row = np.repeat(np.flatnonzero(messages), lengths[messages] // record.itemsize)
            head[row[bad]] = _REFUSED
            messages = head == code
            records = _records(values, messages, record)
        counts[messages] = lengths[messages] // record.itemsize
        if len(records):
            parts[code] = records if record is TICK else widen_trades(records)
    refused = np.flatnonzero(head == _REFUSED).tolist()
    rejected = [Rejected(row, _reason(values[row])) for row in refused]
    if len(parts) > 1:
        return _interleave(parts, head, counts), counts, rejected
    return next(iter(parts.values()), np.zeros(0, TICK)), counts, rejected


def _first_heads(joined: bytearray, lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Head of every message's first record; `_REFUSED` where it or the length is wrong already."""
    raw = np.frombuffer(joined, np.uint8)
    head = np.full(len(lengths), _REFUSED, np.int64)
    has_head = lengths >= 2
    first = _bounds(lengths)[has_head, 0]
    head[has_head] = raw[first] | raw[first + 1].astype(np.int64) << 8
    whole = np.zeros(len(lengths), np.bool_)
    for code, record in _RECORD.items():
        whole |= (head == code) & (lengths % record.itemsize == 0)
    head[~whole] = _REFUSED
    return head


def _reason(value: bytes | None) -> str:
    """Why a message was refused, found by walking its records the slow way."""
    if not value:
        return "empty"
    codes = set()
    at = 0
    while at < len(value):
        code = int.from_bytes(value[at : at + 2], "little")
        if at + 2 > len(value):
            return "wrong_length"
        if code not in _RECORD:
            return "unknown_record_type"
        codes.add(code)
        at += _RECORD[code].itemsize
    if at > len(value):
        return "wrong_length"
    return "mixed_record_types" if len(codes) > 1 else "bad_value"


def _records(
    values: Sequence[bytes | None], messages: _Mask, record: np.dtype[np.void]
) -> npt.NDArray[np.void]:
    joined = bytearray().join(compress(values, messages.tolist()))  # type: ignore[arg-type]
    return np.frombuffer(joined, record)


def _interleave(
    parts: dict[int, TickArray], head: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> TickArray:
    """Ticks of both record types in the order of their messages."""
    pieces = [memoryview(b"")] * len(head)
    for code, ticks in parts.items():
        messages = np.flatnonzero(head == code)
        view = memoryview(ticks.tobytes())
        bounds = _bounds(counts[messages] * TICK.itemsize).tolist()
        for message, (start, end) in zip(messages.tolist(), bounds, strict=True):
            pieces[message] = view[start:end]
    return np.frombuffer(bytearray().join(pieces), TICK)


def _bounds(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """`(n, 2)` first byte and end of every message in the joined batch."""
    ends = np.cumsum(lengths)
    return np.stack([ends - lengths, ends], axis=1)


def _heads(records: npt.NDArray[np.void]) -> npt.NDArray[np.uint16]:
    """First two bytes of every record as one number: one strided read instead of two."""
    itemsize = records.dtype.itemsize
    head = np.dtype({"names": ["head"], "formats": ["<u2"], "offsets": [0], "itemsize": itemsize})
    heads: npt.NDArray[np.uint16] = records.view(head)["head"]
    return heads


def _letters(records: npt.NDArray[np.void]) -> _Mask:
    """Whether action and side are letters that DBN knows: shifted or foreign bytes rarely are."""
    good: _Mask = np.logical_and(_ACTION[records["action"]], _SIDE[records["side"]])
    return good
