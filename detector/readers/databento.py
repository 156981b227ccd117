"""Databento DBN files (MBP-1 or Trades, zstd-compressed or not) to ticks.

The metadata is decoded by Databento's own library; the records are seen through `np.frombuffer`,
because their layout is ours. Trade rows of a file carry the book before the trade; readers give the
book after the event, so `settle_trades` is always applied.

References
----------
Databento Binary Encoding: file layout (`DBN`, version, length of the metadata, metadata, records),
record types.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final, Protocol

import databento_dbn
import numpy as np
import numpy.typing as npt
import zstandard

from detector.readers.base import CHUNK, ReaderError, blame, file_batch
from detector.ticks import (
    MBP1_RTYPE,
    TICK,
    TRADE,
    TRADE_RTYPE,
    TickArray,
    TickBatch,
    instrument_key,
)
from detector.wire.dbn import settle_trades, widen_trades

_COMPRESSED_CHUNK: Final = 1 << 16  # bytes
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_MAX_METADATA: Final = 1 << 26  # bytes; a universe of 500,000 symbols takes about as much
_LAYOUT: Final = {"mbp-1": (TICK, MBP1_RTYPE), "trades": (TRADE, TRADE_RTYPE)}


def read_dbn(path: Path, symbol: str | None = None) -> Iterator[TickBatch]:
    """Read a DBN file of MBP-1 or Trades records.

    Parameters
    ----------
    path
        `*.dbn` or `*.dbn.zst`.
    symbol
        Name for the file's only instrument, instead of the metadata's mapping.

    Raises
    ------
    ReaderError
        Not a DBN file, another schema, a record of another type, a truncated file.
    """
    with blame(path), _open(path) as file:
        metadata = _metadata(path, file)
        if metadata.schema not in _LAYOUT:
            raise ReaderError(
                f"{path}: schema is {metadata.schema}; allowed are {', '.join(_LAYOUT)}"
            )
        if metadata.ts_out:
            raise ReaderError(f"{path}: records carry ts_out; write the file without it")
        names = _names(metadata)
        first = 0
        for ticks in _chunks(path, file, *_LAYOUT[metadata.schema]):
            settle_trades(ticks)
            yield file_batch(ticks, first, _symbols(path, ticks, names, symbol))
            first += len(ticks)
    if not first:
        raise ReaderError(f"{path}: holds no records")


@contextmanager
def _open(path: Path) -> Iterator[_Readable]:
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        if magic != _ZSTD_MAGIC:
            yield file
            return
        try:
            yield _Frames(path, file)
        except zstandard.ZstdError as error:
            raise ReaderError(f"{path}: broken zstd stream: {error}") from error


class _Frames:
    """What the zstd frames of a file hold, one after the other, each of them complete.

    Databento writes metadata and records as frames of their own. zstandard's own stream reader
    takes the end of a file in the middle of a frame for the end of the data.
    """

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._behind = b""  # read from the file, and behind the frame that ended
        self._ready = bytearray()
        self._ended = False

    def read(self, size: int) -> bytes:
        """Return `size` bytes, fewer only at the end.

        Raises
        ------
        ReaderError
            The file ends within a frame.
        """
        while len(self._ready) < size and not self._ended:
            self._decompress()
        piece = bytes(self._ready[:size])
        del self._ready[:size]
        return piece

    def _decompress(self) -> None:
        raw = self._behind or self._file.read(_COMPRESSED_CHUNK)
        self._behind = b""
        if not raw:
            if self._frame is not None:
                raise ReaderError(f"{self._path}: truncated: its last zstd frame is not complete")
            self._ended = True
            return
        if self._frame is None:
            self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._ready += self._frame.decompress(raw)
        if self._frame.eof:
            self._behind, self._frame = self._frame.unused_data, None


class _Readable(Protocol):
    """What records are read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to `size` bytes, none at the end."""
        ...


def _metadata(path: Path, file: _Readable) -> databento_dbn.Metadata:
    head = _read(file, 8)
    size = int.from_bytes(head[4:8], "little")
    if len(head) < 8 or head[:3] != b"DBN" or size > _MAX_METADATA:
        raise ReaderError(f"{path}: not a DBN file: it begins with {head!r}, needed is b'DBN'")
    try:
        return databento_dbn.Metadata.decode(head + _read(file, size))
    except (databento_dbn.DBNError, ValueError) as error:
        raise ReaderError(f"{path}: broken DBN metadata: {error}") from error


def _chunks(
    path: Path, file: _Readable, record: np.dtype[np.void], rtype: int
) -> Iterator[TickArray]:
    rows = 0
    while data := _read(file, CHUNK * record.itemsize):
        if len(data) % record.itemsize:
            rows += len(data) // record.itemsize
            raise ReaderError(f"{path}: truncated in the middle of record {rows + 1}")
        records = np.frombuffer(bytearray(data), record)
        wrong = (records["rtype"] != rtype) | (records["length"] != record.itemsize // 4)
        if wrong.any():
            at = int(np.argmax(wrong))
            raise ReaderError(
                f"{path}: record {rows + at + 1} has type {records['rtype'][at]} and length "
                f"{records['length'][at]}; allowed are {rtype} and {record.itemsize // 4}"
            )
        rows += len(records)
        yield records if record is TICK else widen_trades(records)


def _read(file: _Readable, size: int) -> bytes:
    """Exactly `size` bytes, fewer only at the end: streams may give less than was asked for."""
    pieces = []
    while size and (piece := file.read(size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _names(metadata: databento_dbn.Metadata) -> Mapping[int, str]:
    """Symbol by instrument id; where a symbol changed hands within the file, the latest."""
    intervals = [
        (interval["start_date"], int(interval["symbol"]), raw)
        for raw, mapped in metadata.mappings.items()
        for interval in mapped
        if interval["symbol"].isdigit()
    ]
    return {instrument: raw for _, instrument, raw in sorted(intervals)}


def _symbols(
    path: Path, ticks: TickArray, names: Mapping[int, str], symbol: str | None
) -> dict[int, str]:
    pairs: npt.NDArray[np.void] = np.unique(ticks[["publisher_id", "instrument_id"]])
    if symbol is not None and len(pairs) > 1:
        raise ReaderError(f"{path}: symbol={symbol!r}, but the file holds {len(pairs)} instruments")
    named = {
        instrument_key(int(publisher), int(instrument)): symbol or names.get(int(instrument))
        for publisher, instrument in pairs.tolist()
    }
    return {key: name for key, name in named.items() if name}
