"""Named arrays to versioned bytes and back, as they stand on a topic for months.

    magic, version | length of the header | header: JSON | arrays, one after the other | digest

All little-endian, every array at a multiple of 8 bytes. The header names every array with its type
and shape; the digest is BLAKE2b over everything before it. Bytes that were damaged, cut or written
by another version are refused with the reason, before anything is allocated for them: what they say
of their size is held against the size that they have. No pickle. It knows no state and no Kafka.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

Arrays = Mapping[str, npt.NDArray[Any]]
"""Named arrays."""

MAGIC: Final = b"TWSN"
VERSION: Final = 1
DTYPES: Final = {
    np.dtype(text).newbyteorder("<"): text
    for text in ("bool", "uint8", "uint16", "uint32", "int16", "int32", "int64",
                 "float32", "float64")
}  # fmt: skip
"""The types an array may have, and their names in the header."""
MOST_DIMENSIONS: Final = 4
MOST_HEADER: Final = 1 << 16
"""Bytes: as Python objects a header takes many times its size."""
_PREFIX: Final = len(MAGIC) + 2 + 4
_DIGEST: Final = 16
_ALIGNED: Final = 8


class SnapshotError(ValueError):
    """Bytes that are not what `pack` gave; the message says why."""


def pack(arrays: Arrays) -> bytes:
    """Encode named arrays.

    Parameters
    ----------
    arrays
        Of types in `DTYPES` and at most `MOST_DIMENSIONS` dimensions.

    Raises
    ------
    ValueError
        An array is of another type or has more dimensions.
    """
    header = []
    parts: list[Any] = []
    for name, array in arrays.items():
        kind = DTYPES.get(array.dtype.newbyteorder("<"))
        if kind is None or array.ndim > MOST_DIMENSIONS:
            raise ValueError(
                f"{name}: {array.dtype} of {array.ndim} dimensions; allowed: "
                f"{', '.join(DTYPES.values())} of at most {MOST_DIMENSIONS}"
            )
        header.append([name, kind, list(array.shape)])
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        parts.append(little.reshape(-1).view(np.uint8))
        parts.append(bytes(-little.nbytes % _ALIGNED))
    told = orjson.dumps(header)
    if len(told) > MOST_HEADER - _ALIGNED:
        raise ValueError(f"{len(arrays)} arrays: a header of {len(told)} bytes; allowed: "
                         f"{MOST_HEADER - _ALIGNED}")  # fmt: skip
    told += b" " * (-(_PREFIX + len(told)) % _ALIGNED)
    first = MAGIC + VERSION.to_bytes(2, "little") + len(told).to_bytes(4, "little")
    digest = hashlib.blake2b(digest_size=_DIGEST)
    pieces = [first, told, *parts]
    for piece in pieces:
        digest.update(piece)
    return b"".join([*pieces, digest.digest()])


def unpack(data: bytes) -> dict[str, npt.NDArray[Any]]:
    """Decode what `pack` gave: read-only arrays that share the memory of `data`.

    Raises
    ------
    SnapshotError
        Anything else than what `pack` of this version gave.
    """
    view = memoryview(data)
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise SnapshotError(f"snapshot: begins with {bytes(view[:4])!r}; needed: {MAGIC!r}")
    version = int.from_bytes(view[len(MAGIC) : len(MAGIC) + 2], "little")
    if version != VERSION:
        raise SnapshotError(f"snapshot: of version {version}; this reads version {VERSION}")
    if len(view) < _PREFIX + _DIGEST:
        raise SnapshotError(f"snapshot: cut after {len(view)} bytes")
    body = view[:-_DIGEST]
    if hashlib.blake2b(body, digest_size=_DIGEST).digest() != bytes(view[-_DIGEST:]):
        raise SnapshotError(f"snapshot: damaged, or cut after {len(view)} bytes: digest differs")
    start = _PREFIX + int.from_bytes(view[_PREFIX - 4 : _PREFIX], "little")
    if start > min(len(body), _PREFIX + MOST_HEADER):
        raise SnapshotError(f"snapshot: header up to byte {start} of {len(body)}")
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, dtype, shape in _header(body[_PREFIX:start]):
        end = start + math.prod(shape) * dtype.itemsize  # whole numbers of any size: no overflow
        if name in arrays or end > len(body):
            raise SnapshotError(f"snapshot: {name!r} twice, or up to byte {end} of {len(body)}")
        arrays[name] = _array(body[start:end], dtype, shape)
        start = end + -end % _ALIGNED
    if start != len(body):
        raise SnapshotError(f"snapshot: {len(body) - start} bytes after the last array")
    return arrays


def _header(data: memoryview) -> list[tuple[str, np.dtype[Any], tuple[int, ...]]]:
    """Read the header; types and shapes are such as `pack` writes."""
    kinds = {text: dtype for dtype, text in DTYPES.items()}
    try:
        entries = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise SnapshotError(f"snapshot: header is no JSON: {error}") from error
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        match entry:
            case [str(name), str(kind), list(shape)] if (
                kind in kinds
                and len(shape) <= MOST_DIMENSIONS
                and all(type(n) is int and n >= 0 for n in shape)
            ):
                found.append((name, kinds[kind], tuple(shape)))
            case _:
                raise SnapshotError(f"snapshot: header entry {str(entry)[:100]!r} is no array's")
    return found


def _array(data: memoryview, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the bytes as an array; a size of 0 beside one beyond any memory is refused too."""
    if dtype == np.bool_ and np.frombuffer(data, np.uint8).max(initial=0) > 1:
        raise SnapshotError("snapshot: a bool that is neither 0 nor 1")
    try:
        array: npt.NDArray[Any] = np.frombuffer(data, dtype).reshape(shape)
    except (ValueError, OverflowError) as error:
        raise SnapshotError(f"snapshot: shape {shape}: {error}") from error
    return array
