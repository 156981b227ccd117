"""The capacity page is in step with the benchmarks, and its arithmetic is what a person does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from benchmarks.capacity import PAGE, RESULTS, page
from benchmarks.sizing import (
    MARKETS,
    Market,
    Measured,
    Packing,
    complete,
    daemons,
    measured,
    memory_bytes,
    record_bytes,
)
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """The committed results of the benchmarks."""
    found: dict[str, Any] = orjson.loads((REPOSITORY / RESULTS).read_bytes())
    return found


def test_the_page_is_in_step(results: dict[str, Any]) -> None:
    """The committed page is what the committed results lead to."""
    committed = (REPOSITORY / PAGE).read_text(encoding="utf-8")
    assert committed == page(results), "run `python -m benchmarks.capacity`"


def test_another_measurement_is_another_page(results: dict[str, Any]) -> None:
    """A daemon that was measured at half the pace is needed twice as often."""
    slower = orjson.loads(orjson.dumps(results))
    for row in slower["rows"]:
        if row["group"] == "throughput":
            row["facts"]["ticks_per_s"]["median"] /= 2
    before, after = measured(results), measured(slower)
    for market in MARKETS:
        for old, new in zip(before.packings, after.packings, strict=True):
            assert abs(daemons(market, new) - 2 * daemons(market, old)) <= 1
    assert page(slower) != page(results)


def test_without_its_rows_there_is_no_page(results: dict[str, Any]) -> None:
    """A run that measured only some groups does not write a page from what it lacks."""
    assert complete(results)
    for group in ("engine", "throughput", "latency", "memory"):
        rows = [row for row in results["rows"] if row["group"] != group]
        assert not complete({**results, "rows": rows})


def varint(value: int) -> bytes:
    """Zigzag varint of a number that is not negative, byte by byte."""
    left, out = value << 1, bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*out, left])


@pytest.mark.parametrize("value", [1, 48, 63, 64, 80, 5120, 8191, 8192, 1_000_000])
@pytest.mark.parametrize("key", [0, 6, 64])
def test_record_bytes_are_those_of_kafkas_format(value: int, key: int) -> None:
    """The size is that of a record written out field by field."""
    body = b"".join(
        [
            *(b"\0", varint(100), varint(100)),  # attributes, deltas of timestamp and offset
            *(varint(key), bytes(key), varint(value), bytes(value)),
            varint(0),  # headers
        ]
    )
    assert record_bytes(value, key) == len(varint(len(body)) + body)


def test_daemons_and_memory_by_hand(results: dict[str, Any]) -> None:
    """Half of 200 ticks/s is planned: 1,001 need 11 daemons, which share 110 instruments."""
    packing = Packing(1, 200.0, 1.0, 1.0, "2026-01-01")
    market = Market("small", 1_001, 110)
    found: Measured = replace(measured(results), resident_bytes=1_000, instrument_bytes=7.0)
    assert daemons(market, packing) == 11
    assert memory_bytes(market, packing, found) == 1_000 + 64 * 2**20 + 10 * 7
