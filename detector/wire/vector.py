"""`vector` messages <-> bytes: rows of named float32 columns for one publisher.

A message is a head of 16 bytes and n rows, everything little-endian and packed:

    b"TWV1" | u16 columns C | u16 publisher_id | u32 rows n | u32 reserved, zero
    n times: u32 instrument_id | u64 ts_event (ns since the epoch) | C times float32

The names of the columns are not in the message: they come from the configuration, or from a Kafka
header `columns` that lists them, separated by commas.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Final

import numpy as np
import numpy.typing as npt

from detector.ticks import VectorBatch
from detector.wire.base import Decoded, Headers, Offsets, Rejected, tick_positions

MAGIC: Final = b"TWV1"
HEAD: Final = np.dtype(
    [
        ("magic", "S4"),
        ("columns", "<u2"),
        ("publisher_id", "<u2"),
        ("rows", "<u4"),
        ("reserved", "<u4"),
    ]
)
COLUMNS_HEADER: Final = "columns"

_NO_LAYOUT, _OUR_LAYOUT = 0, 1  # the columns header lacks a wanted one; there is no such header
_Select = npt.NDArray[np.int64] | None
"""Where the wanted columns are in a message's rows; None: they are just those."""


def row_dtype(columns: int) -> np.dtype[np.void]:
    """Layout of one row of a message with this many columns."""
    return np.dtype([("instrument_id", "<u4"), ("ts_event", "<u8"), ("values", "<f4", (columns,))])


class VectorDecoder:
    """Decode messages of feature vectors.

    Parameters
    ----------
    columns
        Names of the columns that the model was trained on, in its order. A message with a `columns`
        header may have more, or another order: those wanted are picked by name. One without it has
        exactly these. Otherwise it is refused as `wrong_columns`.
    """

    needs_headers = True

    def __init__(self, columns: tuple[str, ...]) -> None:
        if not columns or len(set(columns)) != len(columns) or len(columns) > 0xFFFF:
            raise ValueError(f"columns are {columns!r}; needed are 1 to 65535 different names")
        self.columns = columns

    def decode(
        self,
        values: Sequence[bytes | None],
        offsets: Offsets,
        partition: int,
        headers: Sequence[Headers] | None = None,
    ) -> Decoded:
        """Decode messages of one partition; see `Decoder.decode`."""
        lengths = np.fromiter((len(v or b"") for v in values), np.int64, len(values))
        layouts, layout = self._layouts(headers, len(values))
        heads, reasons = _heads(values, lengths)
        width = np.array([columns for columns, _ in layouts])[layout]
        row_bytes = row_dtype(0).itemsize + 4 * heads["columns"].astype(np.int64)
        checks = [
            (layout == _NO_LAYOUT, "wrong_columns"),
            (width != heads["columns"], "wrong_columns"),
            (lengths != HEAD.itemsize + heads["rows"] * row_bytes, "wrong_length"),
        ]
        good = np.ones(len(values), np.bool_)
        good[list(reasons)] = False
        for wrong, reason in checks:
            reasons |= dict.fromkeys(np.flatnonzero(good & wrong).tolist(), reason)
            good &= ~wrong
        rejected = [Rejected(row, reasons[row]) for row in sorted(reasons)]
        if not good.any():
            return Decoded(None, rejected)
        counts = np.where(good, heads["rows"], 0).astype(np.int64)
        keys, ts_event, matrix = self._rows(values, counts, layout, layouts)
        keys |= np.repeat(heads["publisher_id"].astype(np.int64) << 32, counts)
        at = np.asarray(offsets, np.int64)[good]
        return Decoded(
            VectorBatch(matrix, keys, ts_event, partition, *tick_positions(counts[good], at)),
            rejected,
        )

    def _layouts(
        self, headers: Sequence[Headers] | None, n: int
    ) -> tuple[list[tuple[int, _Select]], npt.NDArray[np.int64]]:
        """Different layouts of the messages, and which of them each message has."""
        layouts: list[tuple[int, _Select]] = [(0, None), (len(self.columns), None)]
        layout = np.full(n, _OUR_LAYOUT, np.int64)
        number: dict[bytes | None, int] = {None: _OUR_LAYOUT}
        for row, header in enumerate(headers or ()):
            text = next((value for name, value in header or () if name == COLUMNS_HEADER), None)
            if text not in number:
                columns, select = self._select(text or b"")
                layouts.append((columns, select))
                number[text] = _NO_LAYOUT if select is None else len(layouts) - 1
            layout[row] = number[text]
        return layouts, layout

    def _select(self, text: bytes) -> tuple[int, _Select]:
        """Count the columns that a header names and find the wanted ones; None: not there."""
        names = [name.strip() for name in text.decode(errors="replace").split(",")]
        if not set(self.columns) <= set(names) or len(set(names)) != len(names):
            return len(names), None
        return len(names), np.array([names.index(name) for name in self.columns])

    def _rows(
        self,
        values: Sequence[bytes | None],
        counts: npt.NDArray[np.int64],
        layout: npt.NDArray[np.int64],
        layouts: list[tuple[int, _Select]],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Instrument ids, times and wanted columns of all rows in arrival order."""
        total = int(counts.sum())
        keys = np.zeros(total, np.int64)
        ts_event = np.zeros(total, np.int64)
        matrix = np.zeros((total, len(self.columns)), np.float32)
        layout_of_row = np.repeat(layout, counts)
        for number in np.unique(layout_of_row).tolist():
            columns, select = layouts[number]
            bodies = compress(values, ((layout == number) & (counts > 0)).tolist())
            joined = bytearray().join([(v or b"")[HEAD.itemsize :] for v in bodies])
            rows = np.frombuffer(joined, row_dtype(columns))
            mine = layout_of_row == number
            keys[mine] = rows["instrument_id"]
            ts_event[mine] = rows["ts_event"].astype(np.int64)
            matrix[mine] = rows["values"] if select is None else rows["values"][:, select]
        return keys, ts_event, matrix


def encode_vector(
    keys: npt.NDArray[np.int64], ts_event: npt.NDArray[np.int64], values: npt.NDArray[np.float32]
) -> bytes:
    """Value of a `vector` message with these rows; all keys must be of one publisher."""
    publisher = np.unique(keys >> 32)
    if len(publisher) != 1:
        raise ValueError(f"{len(publisher)} publishers in one message; needed is exactly one")
    head = np.zeros(1, HEAD)
    head["magic"] = MAGIC
    head["columns"] = values.shape[1]
    head["publisher_id"] = publisher
    head["rows"] = len(keys)
    rows = np.zeros(len(keys), row_dtype(values.shape[1]))
    rows["instrument_id"] = keys & 0xFFFF_FFFF
    rows["ts_event"] = ts_event.astype(np.uint64)
    rows["values"] = values
    return head.tobytes() + rows.tobytes()


def _heads(
    values: Sequence[bytes | None], lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.void], dict[int, str]]:
    """Head of every message, zeros where it is too short for one; those refused for it."""
    size = HEAD.itemsize
    blank = bytes(size)
    long_enough = lengths >= size
    pieces = [
        (value or b"")[:size] if whole else blank
        for value, whole in zip(values, long_enough.tolist(), strict=True)
    ]
    heads = np.frombuffer(b"".join(pieces), HEAD)
    wrong = (heads["magic"] != MAGIC) | (heads["reserved"] != 0) | (heads["rows"] == 0)
    reasons = dict.fromkeys(np.flatnonzero(long_enough & wrong).tolist(), "bad_header")
    reasons |= dict.fromkeys(np.flatnonzero(~long_enough).tolist(), "wrong_length")
    reasons |= dict.fromkeys(np.flatnonzero(lengths == 0).tolist(), "empty")
    return heads, reasons
