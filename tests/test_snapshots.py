"""Named arrays to bytes and back; anything else than those bytes is refused with a reason."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from detector.snapshots import DTYPES, MOST_HEADER, SnapshotError, pack, unpack

ARRAYS = st.dictionaries(
    st.text(max_size=12),
    st.sampled_from(list(DTYPES)).flatmap(
        lambda dtype: hnp.arrays(
            dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
        )
    ),
    max_size=6,
)
ONE = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": np.array([1.5])}


def sealed(header: Any, body: bytes = b"", length: int | None = None) -> bytes:
    """Bytes of this header and body whose digest is right."""
    told = header if isinstance(header, bytes) else orjson.dumps(header)
    told += b" " * (-(10 + len(told)) % 8)
    length = len(told) if length is None else length
    data = b"TWSN\x01\x00" + length.to_bytes(4, "little") + told + body
    return data + hashlib.blake2b(data, digest_size=16).digest()


@settings(max_examples=200)
@given(ARRAYS)
def test_any_arrays_come_back_as_they_were(arrays: dict[str, np.ndarray]) -> None:
    """Names, order, types, shapes and every bit, NaN included; read-only and aligned."""
    found = unpack(pack(arrays))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()
        assert not found[name].flags.writeable
        assert found[name].flags.aligned


def test_bytes_are_the_documented_ones() -> None:
    """Another reader could be written from the docstring: this is the layout, to the byte."""
    assert pack({"a": np.array([1, -2], np.int16)}) == sealed(
        [["a", "int16", [2]]], b"\x01\x00\xfe\xff" + bytes(4)
    )


def test_arrays_of_any_byte_order_and_layout_are_written_alike() -> None:
    """Big-endian, strided and Fortran-ordered arrays give the bytes of plain ones."""
    plain = np.arange(12, dtype=np.int64).reshape(3, 4)
    for other in (plain.astype(">i8"), np.asfortranarray(plain), np.repeat(plain, 2, 1)[:, ::2]):
        assert pack({"a": other}) == pack({"a": plain})


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    """Whatever comes is refused with the one error."""
    with pytest.raises(SnapshotError):
        unpack(data)


@settings(max_examples=300)
@given(st.integers(0), st.integers(0, 7), st.integers(0, 40))
def test_damaged_and_cut_bytes_are_refused(place: int, bit: int, cut: int) -> None:
    """Any flipped bit, any missing end, any added one."""
    whole = pack(ONE)
    flipped = bytearray(whole)
    flipped[place % len(whole)] ^= 1 << bit
    for data in (bytes(flipped), whole[: -cut - 1], whole + bytes(cut + 1)):
        with pytest.raises(SnapshotError):
            unpack(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=3)
    | st.sampled_from(["int64", "bool", "object", "a"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)  # fmt: skip


@settings(max_examples=300)
@given(JSON, st.binary(max_size=64))
def test_no_header_raises_anything_else_even_with_its_digest_right(
    header: Any, body: bytes
) -> None:
    """Headers that no `pack` wrote are refused, or say arrays of which the bytes are there."""
    try:
        told = orjson.dumps(header)
    except TypeError:
        told = str(header).encode()
    try:
        found = unpack(sealed(told, body))
    except SnapshotError:
        return
    assert sum(array.nbytes for array in found.values()) <= len(body)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "begins with"),
        (b"TWSN\x02\x00" + bytes(40), "version 2"),
        (b"TWSN\x01\x00", "cut after 6"),
        (pack(ONE)[:-1], "digest differs"),
        (sealed([], length=10**9), "header up to byte 1000000010"),
        (sealed(b"[" * (MOST_HEADER + 8)), "header up to byte"),
        (sealed(b"{"), "no JSON"),
        (sealed({"a": 1}), "no array's"),
        (sealed([["a", "object", [1]]], bytes(8)), "no array's"),
        (sealed([["a", "int64", [-1]]], bytes(8)), "no array's"),
        (sealed([["a", "int64", [True]]], bytes(8)), "no array's"),
        (sealed([["a", "int64", [1] * 5]], bytes(8)), "no array's"),
        (sealed([["a", "int64", [2**62, 2**62]]], bytes(8)), "up to byte"),
        (sealed([["a", "int64", [0, 2**62, 2**62]]]), "shape"),
        (sealed(b'[["a", "int64", [0, 1180591620717411303424]]]'), "no array's"),
        (sealed([["a", "bool", [8]]], bytes([2] * 8)), "bool"),
        (sealed([["a", "int64", [1]], ["a", "int64", [1]]], bytes(16)), "twice"),
        (sealed([["a", "int64", [2]]], bytes(8)), "up to byte"),
        (sealed([["a", "int64", [1]]], bytes(16)), "after the last"),
    ],
)  # fmt: skip
def test_refusals_say_why(data: bytes, why: str) -> None:
    """Each kind of wrong bytes has its reason."""
    with pytest.raises(SnapshotError, match=why):
        unpack(data)


def test_what_cannot_be_written_is_refused() -> None:
    """Objects, complex numbers, five dimensions, and more names than a header holds."""
    for array in (np.array([None]), np.array([1j]), np.zeros((1,) * 5), np.array(["a"])):
        with pytest.raises(ValueError, match="allowed: bool, "):
            pack({"a": array})
    with pytest.raises(ValueError, match="a header of"):
        pack({str(i): np.zeros(1) for i in range(5000)})
