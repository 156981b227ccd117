"""What many ticks a second need, calculated from what the benchmarks measured.

Nothing is measured here. What is assumed stands in the constants; `capacity` writes the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

HEADROOM: Final = 0.5
"""Share of its maximum that a daemon is given; the other half works off what an outage left."""
DAEMON_CORES: Final = 2  # two threads and the client's own; measured at less, rounded up
PARTITIONS_A_DAEMON: Final = 2  # so that one more daemon, or one fewer, still shares evenly
KEY_BYTES: Final = 6  # a symbol
TICK_BYTES: Final = 80
REPLICAS: Final = 3
QUEUE_BYTES: Final = 64 * 2**20  # librdkafka's, `queued.max.messages.kbytes` in detector/kafka.py
SESSION_H: Final = 6.5
NETWORK_GBIT: Final = 10.0
LATE_MS: Final = 200.0


@dataclass(frozen=True, slots=True)
class Market:
    """A load to plan for.

    Parameters
    ----------
    name
        In words.
    ticks_per_s
        All ticks a second, at the peak.
    instruments
        Instruments that tick: an assumption.
    """

    name: str
    ticks_per_s: float
    instruments: int


MARKETS: Final = (
    Market("1 M ticks/s", 1e6, 10_000),
    Market("10 M ticks/s", 1e7, 50_000),
    Market("50 M ticks/s, like OPRA", 5e7, 1_500_000),
)


@dataclass(frozen=True, slots=True)
class Packing:
    """The daemon on Kafka, as measured with so many ticks in a message.

    Parameters
    ----------
    ticks
        Ticks in a message.
    maximum
        Ticks a second of one daemon that has the machine for itself.
    daemon_cores, broker_cores
        Processor time used meanwhile, in cores.
    date
        When it was measured.
    """

    ticks: int
    maximum: float
    daemon_cores: float
    broker_cores: float
    date: str

    @property
    def name(self) -> str:
        """In words."""
        return f"{self.ticks} tick{'s' if self.ticks > 1 else ''} a message"

    @property
    def core_ns(self) -> float:
        """Processor time of the daemon, ns a tick."""
        return self.daemon_cores / self.maximum * 1e9

    @property
    def planned(self) -> float:
        """Ticks a second that one daemon is given."""
        return HEADROOM * self.maximum

    @property
    def wire_bytes(self) -> float:
        """Bytes of one tick on Kafka."""
        return record_bytes(TICK_BYTES * self.ticks, KEY_BYTES) / self.ticks


@dataclass(frozen=True, slots=True)
class Measured:
    """What the plan is calculated from.

    Parameters
    ----------
    machine, workload
        On what, and with which model.
    packings
        The daemon on Kafka with 1 and with 64 ticks a message.
    bare_messages_per_s
        What a consumer in Python takes that does nothing with it.
    engine_ns
        Nanoseconds a tick of each part, one thread, without Kafka.
    latency_ms, latency_ticks_per_s
        99 % of events within, from the tick on, and at which load.
    events_per_tick
        Of the engine's tape.
    resident_bytes, instrument_bytes
        The process with one instrument, and what one more adds.
    """

    machine: Mapping[str, Any]
    workload: Mapping[str, Any]
    packings: tuple[Packing, ...]
    bare_messages_per_s: float
    engine_ns: Mapping[str, float]
    latency_ms: float
    latency_ticks_per_s: float
    events_per_tick: float
    resident_bytes: int
    instrument_bytes: float


def record_bytes(value: int, key: int) -> int:
    """Bytes of one uncompressed record, without its share of the batch's 61 bytes.

    Parameters
    ----------
    value, key
        Their bytes.

    References
    ----------
    Apache Kafka, Message format: a record is its length, attributes, timestamp and offset deltas,
    key and value with their lengths, and the number of headers; lengths are zigzag varints. The
    deltas are taken as two bytes each.
    """
    body = 1 + 2 + 2 + _varint_bytes(key) + key + _varint_bytes(value) + value + 1
    return _varint_bytes(body) + body


def _varint_bytes(value: int) -> int:
    return max(1, math.ceil((2 * value).bit_length() / 7))


def complete(results: Mapping[str, Any]) -> bool:
    """Tell whether everything was measured that the page is calculated from."""
    return {"engine", "throughput", "latency", "memory"} <= {r["group"] for r in results["rows"]}


def measured(results: Mapping[str, Any]) -> Measured:
    """Return what the plan needs of the benchmarks' results."""
    rows = results["rows"]
    single = _row(rows, "throughput", "daemon on real Kafka, 1 tick ")
    packed = _row(rows, "throughput", "daemon on real Kafka, 64 ticks ")
    engine = _row(rows, "engine", "engine without Kafka")["facts"]
    one = _row(rows, "memory", "resident size, 1 instrument")["facts"]
    many = max(
        (row["facts"] for row in rows if "resident_bytes" in row["facts"]),
        key=lambda facts: int(facts["instruments"]),
    )
    grown = many["resident_bytes"] - one["resident_bytes"]
    half = _row(rows, "latency", f"tick to event at {HEADROOM:.0%}")["facts"]
    return Measured(
        machine=results["machine"],
        workload=single["workload"],
        packings=(_packing(single, 1), _packing(packed, 64)),
        bare_messages_per_s=single["facts"]["ceiling_ticks_per_s"]["median"],
        engine_ns=engine["ns_per_tick"],
        latency_ms=half["latency_ms"]["p99"]["median"],
        latency_ticks_per_s=half["rate"],
        events_per_tick=engine["events_per_tick"],
        resident_bytes=one["resident_bytes"],
        instrument_bytes=grown / (many["instruments"] - one["instruments"]),
    )


def _row(rows: list[dict[str, Any]], group: str, what: str) -> dict[str, Any]:
    return next(r for r in rows if r["group"] == group and r["what"].startswith(what))


def _packing(row: Mapping[str, Any], ticks: int) -> Packing:
    facts = row["facts"]
    return Packing(
        ticks,
        facts["ticks_per_s"]["median"],
        facts["daemon_cores"],
        facts["broker_cores"],
        row["date"][:10],
    )


def daemons(market: Market, packing: Packing) -> int:
    """How many daemons the load needs."""
    return math.ceil(market.ticks_per_s / packing.planned)


def memory_bytes(market: Market, packing: Packing, found: Measured) -> float:
    """Memory of one daemon: the program, a full fetch queue, its share of the instruments."""
    mine = market.instruments / daemons(market, packing)
    return found.resident_bytes + QUEUE_BYTES + mine * found.instrument_bytes
