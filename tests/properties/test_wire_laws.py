"""Laws of the wire: encoding is undone by decoding, and messages do not affect one another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.ticks import TICK, TRADE, Batch, TickArray, TickBatch, VectorBatch
from detector.wire import (
    REASONS,
    Decoder,
    encode_dbn,
    encode_json,
    encode_vector,
    make_decoder,
)

COLUMNS = ("a", "b", "c")


@st.composite
def tick_arrays(draw: st.DrawFn, most: int = 4) -> TickArray:
    """Ticks whose every field is any bit pattern that the format allows."""
    n = draw(st.integers(1, most))
    ticks = np.frombuffer(bytearray(draw(st.binary(min_size=80 * n, max_size=80 * n))), TICK)
    ticks["length"], ticks["rtype"] = 20, 1
    ticks["action"] = [ord(draw(st.sampled_from("ACMTRFN"))) for _ in range(n)]
    ticks["side"] = [ord(draw(st.sampled_from("ABN"))) for _ in range(n)]
    return ticks


def trade_message(ticks: TickArray) -> bytes:
    """Encode ticks as Trades records: their first 48 bytes with another head."""
    records = np.zeros(len(ticks), TRADE)
    for name in TRADE.names:
        records[name] = ticks[name]
    records["length"], records["rtype"] = 12, 0
    return records.tobytes()


def vector_message(ticks: TickArray) -> bytes:
    """Make a vector message out of the bits of ticks."""
    values = np.zeros((len(ticks), 3), np.float32)
    values[:, 0] = ticks["size"]
    values[:, 1] = np.nan
    keys = (np.int64(7) << 32) | ticks["instrument_id"].astype(np.int64)
    return encode_vector(keys, ticks["ts_event"].astype(np.int64), values)


ENCODERS = {
    "dbn": encode_dbn,
    "json": lambda ticks: encode_json(ticks, "SYM" if len(ticks) % 2 else None),
    "vector": vector_message,
}


@st.composite
def messages(draw: st.DrawFn, fmt: str) -> list[bytes | None]:
    """Good messages, among them mutated, cut, foreign and missing ones."""
    found: list[bytes | None] = []
    for _ in range(draw(st.integers(0, 12))):
        kind = draw(st.sampled_from(["good", "good", "trades", "mutated", "cut", "junk", "none"]))
        if kind == "none":
            found.append(None)
            continue
        if kind == "junk":
            found.append(draw(st.binary(max_size=200)))
            continue
        ticks = draw(tick_arrays())
        value = trade_message(ticks) if kind == "trades" and fmt == "dbn" else ENCODERS[fmt](ticks)
        if kind == "mutated":
            at = draw(st.integers(0, len(value) - 1))
            flip = draw(st.integers(1, 255))
            value = value[:at] + bytes([value[at] ^ flip]) + value[at + 1 :]
        if kind == "cut":
            value = value[: draw(st.integers(0, len(value)))]
        found.append(value)
    return found


def rows(batch: Batch | None) -> list[tuple[object, ...]]:
    """Everything about every tick of a batch, as bytes where NaN would not equal itself."""
    if batch is None:
        return []
    if isinstance(batch, VectorBatch):
        data = [row.tobytes() for row in batch.values]
        data = [
            row + int(key).to_bytes(8, "little") + int(ts).to_bytes(8, "little", signed=True)
            for row, key, ts in zip(data, batch.keys, batch.ts_event, strict=True)
        ]
    else:
        data = [tick.tobytes() for tick in batch.ticks]
    offsets, indices = batch.offsets.tolist(), batch.indices.tolist()
    return list(zip(data, offsets, indices, strict=True))


def decode_one_by_one(
    decoder: Decoder, values: Sequence[bytes | None]
) -> tuple[list[tuple[object, ...]], list[tuple[int, str]]]:
    """Decode every message on its own: the slow and obvious way."""
    ticks: list[tuple[object, ...]] = []
    refused: list[tuple[int, str]] = []
    for row, value in enumerate(values):
        decoded = decoder.decode([value], [100 + row], 5)
        ticks += rows(decoded.batch)
        refused += [(row, item.reason) for item in decoded.rejected]
    return ticks, refused


def check_messages(fmt: str, values: list[bytes | None]) -> None:
    """Compare decoding all messages at once with decoding them one by one."""
    decoder = make_decoder(fmt, columns=COLUMNS)  # type: ignore[arg-type]
    decoded = decoder.decode(values, np.arange(100, 100 + len(values)), 5)
    ticks, refused = decode_one_by_one(decoder, values)
    assert rows(decoded.batch) == ticks
    assert [(item.row, item.reason) for item in decoded.rejected] == refused
    assert {reason for _, reason in refused} <= set(REASONS)
    accepted = {offset for _, offset, _ in ticks}
    assert len(accepted) + len(refused) == len(values)


def dbn_oracle(value: bytes | None) -> list[bytes] | None:
    """Records of a message as ticks, one at a time; None where it has to be refused."""
    if not value:
        return None
    size = {(20, 1): 80, (12, 0): 48}.get(tuple(value[:2]))  # type: ignore[call-overload]
    if size is None or len(value) % size:
        return None
    records = [value[at : at + size] for at in range(0, len(value), size)]
    if any(record[:2] != value[:2] for record in records):
        return None
    if any(chr(r[28]) not in "ACMTRFN" or chr(r[29]) not in "ABN" for r in records):
        return None
    null = (2**63 - 1).to_bytes(8, "little")
    return [r if size == 80 else b"\x14\x01" + r[2:] + null * 2 + bytes(16) for r in records]


@given(tick_arrays(most=20))
def test_dbn_is_undone_by_decoding(ticks: TickArray) -> None:
    """Decoding what the dbn encoder wrote gives every bit back."""
    batch = make_decoder("dbn").decode([encode_dbn(ticks)], [0], 0).batch
    assert isinstance(batch, TickBatch)
    assert batch.ticks.tobytes() == ticks.tobytes()


@given(tick_arrays(), st.none() | st.text("ABCxyz/.-ü", min_size=1, max_size=20))
def test_json_is_undone_by_decoding(ticks: TickArray, symbol: str | None) -> None:
    """Decoding what the json encoder wrote gives every bit back, and the symbol."""
    batch = make_decoder("json").decode([encode_json(ticks, symbol)], [0], 0).batch
    assert isinstance(batch, TickBatch)
    assert batch.ticks.tobytes() == ticks.tobytes()
    assert set(batch.symbols.values()) == ({symbol} if symbol else set())


@given(st.data(), st.integers(1, 5), st.integers(1, 4))
def test_vectors_are_undone_by_decoding(data: st.DataObject, n: int, width: int) -> None:
    """Decoding what the vector encoder wrote gives every bit back, whatever the floats are."""
    raw = data.draw(st.binary(min_size=4 * n * width, max_size=4 * n * width))
    values = np.frombuffer(raw, np.float32).reshape(n, width)
    ids = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=n, max_size=n))
    keys = np.array(ids, np.int64) | np.int64(data.draw(st.integers(0, 2**16 - 1)) << 32)
    times = np.array(data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=n, max_size=n)))
    decoder = make_decoder("vector", columns=tuple(map(str, range(width))))
    batch = decoder.decode([encode_vector(keys, times, values)], [0], 0).batch
    assert isinstance(batch, VectorBatch)
    assert batch.values.tobytes() == raw
    assert batch.keys.tolist() == keys.tolist()
    assert batch.ts_event.tolist() == times.tolist()


@given(messages("dbn"))
@settings(max_examples=300)
def test_dbn_messages_equal_the_oracle(values: list[bytes | None]) -> None:
    """Among mutated messages every good one survives bit for bit, every bad one is named once."""
    decoded = make_decoder("dbn").decode(values, range(len(values)), 0)
    expected = [dbn_oracle(value) for value in values]
    ticks = b"" if decoded.batch is None else rows_bytes(decoded.batch)
    assert ticks == b"".join(b"".join(records) for records in expected if records is not None)
    refused = [row for row, records in enumerate(expected) if records is None]
    assert [item.row for item in decoded.rejected] == refused


def rows_bytes(batch: Batch) -> bytes:
    """All ticks of a batch as bytes."""
    assert isinstance(batch, TickBatch)
    return batch.ticks.tobytes()


@given(messages("dbn"))
def test_dbn_messages_do_not_affect_one_another(values: list[bytes | None]) -> None:
    """A batch of dbn messages decodes to what its messages decode to on their own."""
    check_messages("dbn", values)


@given(messages("json"))
def test_json_messages_do_not_affect_one_another(values: list[bytes | None]) -> None:
    """A batch of json messages decodes to what its messages decode to on their own."""
    check_messages("json", values)


@given(messages("vector"))
def test_vector_messages_do_not_affect_one_another(values: list[bytes | None]) -> None:
    """A batch of vector messages decodes to what its messages decode to on their own."""
    check_messages("vector", values)
