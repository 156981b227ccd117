"""`json` messages <-> bytes: one tick object, or an array of them, with DBN field names.

Parsing is per message, converting is per column: the objects of a whole batch are turned into one
array per field, and only when a column holds something unusual are its values looked at one by one,
to find the messages to refuse. Prices are decimal numbers or strings; a string is exact, a number
is what a float64 holds, rounded to 1e-9.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from itertools import compress
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from detector.ticks import (
    NS_PER_S,
    TICK,
    UNDEFINED_PRICE,
    UNDEFINED_TIME,
    TickArray,
    TickBatch,
    empty_ticks,
    stable_instrument_id,
)
from detector.wire.base import Decoded, Headers, Offsets, Rejected, tick_positions

MAX_SYMBOL: Final = 64
"""Most characters of a symbol."""

_Row = dict[str, Any]
_PRICES: Final = ("price", "bid_px", "ask_px")
_LETTERS: Final = {"action": "ACMTRFN", "side": "ABN"}
_COUNTS: Final = (
    "publisher_id",
    "size",
    "flags",
    "depth",
    "ts_in_delta",
    "sequence",
    "bid_sz",
    "ask_sz",
    "bid_ct",
    "ask_ct",
)
_DECIMAL: Final = re.compile(r"([+-]?\d{1,30})(\.\d{0,30})?([eE][+-]?\d{1,2})?", re.ASCII)
_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|z|[+-]\d\d:\d\d)", re.ASCII
)
_PLAIN_DECIMALS: Final = re.compile(r"(?:-?\d{1,10}(?:\.\d{1,9})?(?:,|\Z))+", re.ASCII)
# Below 2**51 units of 1e-9 a float64 is off by less than half a unit, so that rounding it gives the
# very number that up to nine decimals spell.
_EXACT_END: Final = 2**51 / NS_PER_S
_FLOAT_END: Final = 9_200_000_000.0  # the greatest price that fits into int64 in 1e-9, roundly


class JsonDecoder:
    """Decode messages of tick objects."""

    needs_headers = False

    def decode(
        self,
        values: Sequence[bytes | None],
        offsets: Offsets,
        partition: int,
        headers: Sequence[Headers] | None = None,  # noqa: ARG002 - the protocol's
    ) -> Decoded:
        """Decode messages of one partition; see `Decoder.decode`."""
        rows, counts, reasons = _parse(values)
        message = np.repeat(np.arange(len(values)), counts)
        columns = _Columns(rows, message, reasons)
        ticks = columns.ticks()
        names = columns.instruments(ticks)
        bad = np.zeros(len(values), np.bool_)
        bad[list(reasons)] = True
        rejected = [Rejected(row, reasons[row]) for row in sorted(reasons)]
        if bad.all():
            return Decoded(None, rejected)
        if bad.any():
            kept = ~bad[message]
            ticks, names = ticks[kept], list(compress(names, kept.tolist()))
        positions = tick_positions(counts[~bad], np.asarray(offsets, np.int64)[~bad])
        batch = TickBatch(ticks, partition, *positions)
        return Decoded(_named(batch, names), rejected)


class _Columns:
    """The objects of a batch, one field at a time; collects the messages that have to be refused.

    Parameters
    ----------
    rows, message
        All objects, and the message each came in.
    reasons
        Reason by message; the first that is found stays.
    """

    def __init__(
        self, rows: list[_Row], message: npt.NDArray[np.int64], reasons: dict[int, str]
    ) -> None:
        self._rows = rows
        self._message = message
        self._reasons = reasons

    def ticks(self) -> TickArray:
        """One tick per object; those of refused messages hold nothing that counts."""
        ticks = empty_ticks(len(self._rows))
        for name, kind in _FIELDS.items():
            column = [row.get(name) for row in self._rows]
            nulls = column.count(None)
            if not nulls or kind.needed:
                values = kind.bulk(column)
                ticks[name] = self._one_by_one(column, kind) if values is None else values
            elif nulls < len(column):
                given = [row for row, value in enumerate(column) if value is not None]
                values = kind.bulk([column[row] for row in given])
                if values is None:
                    ticks[name] = self._one_by_one(column, kind)
                else:
                    ticks[name][given] = values
        return ticks

    def _one_by_one(self, column: list[Any], kind: _Kind) -> npt.NDArray[np.generic]:
        values = []
        for row, value in enumerate(column):
            number = kind.default
            if value is None:
                if kind.needed:
                    self._refuse(row, "missing_field")
            else:
                try:
                    number = kind.one(value)
                except ValueError:
                    self._refuse(row, "bad_value")
            values.append(number)
        return np.array(values, kind.dtype)

    def instruments(self, ticks: TickArray) -> list[Any]:
        """Fill the instrument ids; gives the symbol of each object, None where it has none."""
        known: dict[Any, int] = {}
        names = [fields.get("symbol") for fields in self._rows]
        numbers = [fields.get("instrument_id") for fields in self._rows]
        ids = np.zeros(len(ticks), np.int64)
        for row, (name, number) in enumerate(zip(names, numbers, strict=True)):
            try:
                if name is not None and (type(name) is not str or name not in known):
                    known[name] = stable_instrument_id(_symbol(name))
                if number is None:
                    if name is None:
                        self._refuse(row, "missing_field")
                        continue
                    ids[row] = known[name]
                else:
                    ids[row] = _integer(number, 0, 0xFFFF_FFFF)
            except ValueError:
                self._refuse(row, "bad_value")
        ticks["instrument_id"] = ids
        return names

    def _refuse(self, row: int, reason: str) -> None:
        self._reasons.setdefault(int(self._message[row]), reason)


def encode_json(ticks: TickArray, symbol: str | None) -> bytes:
    """Value of a `json` message: one object for one tick, else an array; prices are exact strings.

    Null prices and an unknown `ts_recv` are left out.
    """
    columns = {name: ticks[name].tolist() for name in _FIELDS}
    columns["instrument_id"] = ticks["instrument_id"].tolist()
    for name in _PRICES:
        columns[name] = [None if v == UNDEFINED_PRICE else _decimal(v) for v in columns[name]]
    for name in _LETTERS:
        columns[name] = [chr(code) for code in columns[name]]
    columns["ts_recv"] = [None if v == UNDEFINED_TIME else v for v in columns["ts_recv"]]
    rows = [
        ({} if symbol is None else {"symbol": symbol})
        | {name: value for name, value in zip(columns, values, strict=True) if value is not None}
        for values in zip(*columns.values(), strict=True)
    ]
    return orjson.dumps(rows[0] if len(rows) == 1 else rows)


def _named(batch: TickBatch, names: list[Any]) -> TickBatch:
    """Give a batch the names of its ticks, each instrument the first, and from where it holds.

    Not the last: which messages are decoded together must not matter.
    """
    rows = [row for row, name in enumerate(names) if name is not None]
    if not rows:
        return batch
    first: dict[int, int] = {}
    for key, row in zip(batch.keys[rows].tolist(), rows, strict=True):
        first.setdefault(key, row)
    offsets = batch.offsets[list(first.values())].tolist()
    return replace(
        batch,
        symbols={key: names[row] for key, row in first.items()},
        named_from=dict(zip(first, offsets, strict=True)),
    )


def _parse(
    values: Sequence[bytes | None],
) -> tuple[list[_Row], npt.NDArray[np.int64], dict[int, str]]:
    """Objects of all messages, their number per message, and the messages that are no ticks."""
    rows: list[_Row] = []
    counts = np.zeros(len(values), np.int64)
    reasons: dict[int, str] = {}
    for i, value in enumerate(values):
        if not value:
            reasons[i] = "empty"
            continue
        try:
            parsed = orjson.loads(value)
        except orjson.JSONDecodeError:
            reasons[i] = "invalid_json"
            continue
        found = parsed if type(parsed) is list else [parsed]
        if set(map(type, found)) != {dict}:
            reasons[i] = "not_a_tick"
            continue
        rows.extend(found)
        counts[i] = len(found)
    return rows, counts, reasons


def _integer(value: object, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:  # bool is no number here
        raise ValueError(value)
    return value


def _symbol(value: object) -> str:
    if type(value) is not str or not 0 < len(value) <= MAX_SYMBOL or not value.isprintable():
        raise ValueError(value)
    return value


def _price(value: object) -> int:
    """Price in 1e-9. Exponents are bounded before they are expanded: 1e999999 is a bomb."""
    if type(value) is float and abs(value) < _FLOAT_END:
        return round(value * NS_PER_S)
    if type(value) is int and abs(value) < _FLOAT_END:
        return value * NS_PER_S
    if type(value) is not str or (match := _DECIMAL.fullmatch(value)) is None:
        raise ValueError(value)
    fraction = match[2] or "."
    if match[3] is None and len(fraction) <= 10:
        scaled = int(match[1] + fraction[1:].ljust(9, "0"))
    else:
        scaled = round(Decimal(value).scaleb(9))
    if not -(2**63) <= scaled < UNDEFINED_PRICE:
        raise ValueError(value)
    return scaled


def _time(value: object) -> int:
    """Ns since the epoch from an integer, its digits, or an RFC 3339 time."""
    if type(value) is str and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if type(value) is not str:
        return _integer(value, 0, UNDEFINED_TIME)
    match = _RFC3339.fullmatch(value)
    if match is None:
        raise ValueError(value)
    day, clock, fraction, zone = match.groups()
    whole = datetime.fromisoformat(f"{day}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    ns = int(whole.timestamp()) * NS_PER_S + int((fraction or "").ljust(9, "0"))
    return _integer(ns, 0, UNDEFINED_TIME)


def _decimal(price: int) -> str:
    whole, fraction = divmod(abs(price), NS_PER_S)
    digits = f".{fraction:09d}".rstrip("0").rstrip(".")
    return f"{'-' if price < 0 else ''}{whole}{digits}"


_Bulk = Callable[[list[Any]], "npt.NDArray[np.generic] | None"]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a field's values become numbers.

    Parameters
    ----------
    dtype, default, needed
        Its place in a tick; what a null stands for; whether null is an error.
    one
        Converts one value; ValueError where it is not allowed.
    bulk
        Converts a column at once, or gives None where it is not of one kind and within bounds.
    """

    dtype: np.dtype[Any]
    default: int
    needed: bool
    one: Callable[[Any], int]
    bulk: _Bulk


def _bulk_integers(low: int, high: int) -> _Bulk:
    def bulk(column: list[Any]) -> npt.NDArray[np.generic] | None:
        if set(map(type, column)) != {int}:
            return None
        if min(column) < low or max(column) > high:
            return None
        return np.array(column, np.int64 if high < 2**63 else np.uint64)

    return bulk


def _bulk_prices(column: list[Any]) -> npt.NDArray[np.generic] | None:
    kinds = set(map(type, column))
    if kinds == {str}:
        joined = ",".join(column)
        if joined.count(",") != len(column) - 1 or not _PLAIN_DECIMALS.fullmatch(joined):
            return None
        values = np.array(list(map(float, column)))
        end = _EXACT_END
    elif kinds == {float}:
        values = np.array(column)
        end = _FLOAT_END
    else:
        return None
    if not (np.abs(values) < end).all():
        return None
    scaled: npt.NDArray[np.int64] = np.rint(values * NS_PER_S).astype(np.int64)
    return scaled


def _bulk_letters(allowed: frozenset[str]) -> _Bulk:
    def bulk(column: list[Any]) -> npt.NDArray[np.generic] | None:
        if set(map(type, column)) != {str} or not set(column) <= allowed:
            return None
        return np.frombuffer("".join(column).encode(), np.uint8)

    return bulk


def _integer_kind(name: str) -> _Kind:
    bounds = np.iinfo(TICK[name])
    low, high = int(bounds.min), int(bounds.max)
    return _Kind(TICK[name], 0, False, lambda v: _integer(v, low, high), _bulk_integers(low, high))


def _letter_kind(name: str) -> _Kind:
    allowed = frozenset(_LETTERS[name])

    def one(value: object) -> int:
        if type(value) is not str or value not in allowed:
            raise ValueError(value)
        return ord(value)

    return _Kind(TICK[name], ord("N"), name == "action", one, _bulk_letters(allowed))


_FIELDS: Final[dict[str, _Kind]] = (
    {
        name: _Kind(TICK[name], UNDEFINED_TIME, needed, _time, _bulk_integers(0, UNDEFINED_TIME))
        for name, needed in (("ts_event", True), ("ts_recv", False))
    }
    | {name: _letter_kind(name) for name in _LETTERS}
    | {name: _Kind(TICK[name], UNDEFINED_PRICE, False, _price, _bulk_prices) for name in _PRICES}
    | {name: _integer_kind(name) for name in _COUNTS}
)
