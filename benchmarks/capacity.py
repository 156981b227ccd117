"""Writes `docs/capacity.md`: what many ticks a second need, each figure with its arithmetic.

    python -m benchmarks.capacity

`make bench` writes it too, so that it cannot go stale; `sizing` does the arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.sizing import (
    DAEMON_CORES,
    HEADROOM,
    KEY_BYTES,
    LATE_MS,
    MARKETS,
    NETWORK_GBIT,
    PARTITIONS_A_DAEMON,
    QUEUE_BYTES,
    REPLICAS,
    SESSION_H,
    TICK_BYTES,
    Market,
    Measured,
    Packing,
    daemons,
    measured,
    memory_bytes,
    record_bytes,
)

RESULTS: Final = Path("benchmarks/results.json")
PAGE: Final = Path("docs/capacity.md")


def page(results: Mapping[str, Any]) -> str:
    """Return `docs/capacity.md`."""
    found = measured(results)
    parts = [*_head(found), *_figures(found), *_rates(found)]
    for market in MARKETS:
        parts += [f"## {market.name}, {market.instruments:,} instruments", ""]
        parts += [_TABLE_HEAD]
        parts += [f"| {what} | {one} | {many} |" for what, one, many in _needs(market, found)]
        parts += [""]
    return "\n".join([*parts, *_limits(found)]) + "\n"


_TABLE_HEAD: Final = "| what | 1 tick a message | 64 ticks a message |\n|---|---|---|"


def _head(found: Measured) -> Iterator[str]:
    machine, model = found.machine, found.workload
    dates = " and ".join(sorted({packing.date for packing in found.packings}))
    yield "# Capacity"
    yield ""
    yield (
        "What many ticks a second need. **An extrapolation**: all of it is calculated from one "
        f"daemon that shared one machine with the broker ({machine['cpu']}, {machine['cores']} "
        f"cores, {machine['memory_gib']} GiB, {machine['kernel']}; {dates}; {model['features']} "
        f"features, networks: {model.get('members', 1)}). More than one daemon, more than one "
        "broker, replication, a network between machines and a GPU were never measured. It is a "
        "place to begin a trial, not a promise: `tapewatch bench --model model` measures your "
        "model on your machine."
    )
    yield ""
    yield (
        "This page is generated from `benchmarks/results.json` (`python -m benchmarks.capacity`, "
        "and by `make bench`); [benchmarks](benchmarks.md) has the spread of each figure, "
        "[performance](performance.md) what bounds it."
    )
    yield ""


def _figures(found: Measured) -> Iterator[str]:
    single, packed = found.packings
    engine = " + ".join(f"{ns:.0f}" for ns in found.engine_ns.values())
    yield "## What it is calculated from"
    yield ""
    yield "| figure | value | from |"
    yield "|---|---|---|"
    for packing in (single, packed):
        yield (
            f"| most one daemon does, {packing.name} | {packing.maximum:,.0f} "
            f"ticks/s with {packing.daemon_cores:.2f} cores; the broker took "
            f"{packing.broker_cores:.2f} | measured, median |"
        )
    yield (
        f"| a bare consumer in Python | {found.bare_messages_per_s:,.0f} messages/s | measured, "
        "median |"
    )
    yield (
        f"| engine, one thread | {engine} = {sum(found.engine_ns.values()):.0f} ns a tick "
        f"({', '.join(found.engine_ns)}) | measured |"
    )
    yield f"| resident size | {_mib(found.resident_bytes)} with one instrument | measured |"
    yield (
        f"| an instrument | {found.instrument_bytes:,.0f} bytes more | measured, up to 100,000 of "
        "them |"
    )
    yield "| instruments, ticks a second, replicas, length of a key | as written below | assumed |"
    yield f"| fetched and not yet taken | up to {_mib(QUEUE_BYTES)} | configured |"
    for packing in (single, packed):
        whole = record_bytes(TICK_BYTES * packing.ticks, KEY_BYTES)
        yield (
            f"| a tick on Kafka, {packing.name} | {whole:,} / {packing.ticks} = "
            f"{packing.wire_bytes:.1f} bytes | Kafka's record format: {packing.ticks} x "
            f"{TICK_BYTES} bytes, a key of {KEY_BYTES}, {whole - TICK_BYTES * packing.ticks} bytes "
            "of key and record; without compression and the 61 bytes of a batch |"
        )
    yield ""


def _rates(found: Measured) -> Iterator[str]:
    yield (
        f"A daemon is given {HEADROOM:.0%} of its maximum and counted as {DAEMON_CORES} cores, "
        "which is what its threads can use. The rest works off a backlog: an hour of outage takes "
        "an hour."
    )
    yield ""
    for each in found.packings:
        yield (
            f"- {each.name}: {HEADROOM} x {each.maximum:,.0f} = {each.planned:,.0f} ticks/s for "
            "each daemon"
        )
    yield ""
    yield (
        "**Latency is the weak point of this plan.** From tick to event p99 was "
        f"{found.latency_ms:.0f} ms (objective: {LATE_MS:.0f}) at {found.latency_ticks_per_s:,.0f} "
        "ticks/s, 1 a message, with broker and load generator on the same cores. Whether a daemon "
        "with cores of its own holds that at the rates above was not measured. Who trusts only "
        "what was measured takes the row `daemons, by latency`."
    )
    yield ""


def _needs(market: Market, found: Measured) -> Iterator[tuple[str, str, str]]:
    both = found.packings
    counts = [daemons(market, p) for p in both]
    rate = market.ticks_per_s

    def row(what: str, texts: list[str]) -> tuple[str, str, str]:
        return what, texts[0], texts[1]

    yield row(
        "daemons",
        [f"{rate:,.0f} / {p.planned:,.0f} → {n:,}" for p, n in zip(both, counts, strict=True)],
    )
    low = found.latency_ticks_per_s
    yield row(
        "daemons, by latency",
        [f"{rate:,.0f} / {low:,.0f} → {math.ceil(rate / low):,}", "not measured"],
    )
    yield row(
        "cores of the daemons", [f"{n:,} x {DAEMON_CORES} = {n * DAEMON_CORES:,}" for n in counts]
    )
    yield row(
        "partitions, at least",
        [f"{n:,} x {PARTITIONS_A_DAEMON} = {n * PARTITIONS_A_DAEMON:,}" for n in counts],
    )
    yield row("memory of a daemon", [_memory(market, p, found) for p in both])
    totals = [n * memory_bytes(market, p, found) / 2**30 for p, n in zip(both, counts, strict=True)]
    yield row("memory of all", [f"{total:,.1f} GiB" for total in totals])
    yield row("GPUs", ["0", "0"])
    yield row("bytes into Kafka", [_into(rate, p) for p in both])
    yield row(f"brokers' network at {REPLICAS} replicas", [_network(rate, p) for p in both])
    yield row("brokers' cores for the consumers", [_broker_cores(rate, p) for p in both])
    yield row(
        f"disk, {REPLICAS} replicas, a session of {SESSION_H} h at this rate",
        [
            f"{_gb(rate * p.wire_bytes)} GB/s x {SESSION_H * 3600:,.0f} s x {REPLICAS} = "
            f"{rate * p.wire_bytes * SESSION_H * 3600 * REPLICAS / 1e12:,.1f} TB"
            for p in both
        ],
    )


def _memory(market: Market, packing: Packing, found: Measured) -> str:
    n = daemons(market, packing)
    return (
        f"{_mib(found.resident_bytes)} + {_mib(QUEUE_BYTES)} + {market.instruments:,} / {n:,} x "
        f"{found.instrument_bytes:,.0f} bytes = {_mib(memory_bytes(market, packing, found))}"
    )


def _into(rate: float, packing: Packing) -> str:
    each = packing.wire_bytes
    return f"{rate:,.0f} x {each:.1f} = {_gb(rate * each)} GB/s = {_gbit(rate * each):,.1f} Gbit/s"


def _network(rate: float, packing: Packing) -> str:
    into = _gbit(rate * packing.wire_bytes)
    links = math.ceil(REPLICAS * into / NETWORK_GBIT)
    return (
        f"out: ({REPLICAS - 1} followers + 1 group) x {into:,.1f} = {REPLICAS * into:,.1f} Gbit/s; "
        f"in: {REPLICAS} x {into:,.1f}; at least {links:,} x {NETWORK_GBIT:.0f} Gbit/s"
    )


def _broker_cores(rate: float, packing: Packing) -> str:
    each_us = packing.broker_cores / packing.maximum * 1e6
    return f"{rate:,.0f} x {each_us:.2f} µs = {rate * each_us / 1e6:,.1f}"


def _limits(found: Measured) -> Iterator[str]:
    single, packed = found.packings
    total = sum(found.engine_ns.values())
    scoring = found.engine_ns["score and decide"]
    most = MARKETS[-1].ticks_per_s
    into = _gbit(most * packed.wire_bytes)
    bare = math.ceil(most / found.bare_messages_per_s)
    yield "## What gives way first"
    yield ""
    yield (
        "- **One instrument.** Its ticks are in one partition, and a partition is one daemon's: "
        f"whatever is added, no instrument can have more than {single.maximum:,.0f} ticks/s "
        f"({single.name}) or {packed.maximum:,.0f} ({packed.name})."
    )
    yield (
        "- **Messages, before bytes.** A consumer in Python that does nothing takes "
        f"{found.bare_messages_per_s:,.0f} messages/s: with {single.name} the last market needs "
        f"{most:,.0f} / {found.bare_messages_per_s:,.0f} → {bare} processes to read it, before "
        f"anything is looked at. Pack ticks: with {packed.name} the daemon spends "
        f"{packed.core_ns:,.0f} instead of {single.core_ns:,.0f} ns of processor time a tick."
    )
    yield (
        f"- **Kafka's bytes.** At {most:,.0f} ticks/s, {packed.name}, {into:,.1f} Gbit/s go into "
        f"Kafka and {REPLICAS * into:,.1f} out of it: {NETWORK_GBIT:.0f} Gbit/s links must be full "
        f"by the dozen, and every further consumer group adds {into:,.1f}. Here Kafka itself is "
        "the limit to design for: fewer replicas, compression, a cluster for each part of the "
        "market, none of which was measured. Nor was what producing costs the brokers, or what "
        "their disks take."
    )
    yield (
        "- **Moves.** A rebalance makes the windows of every partition that moves begin cold; with "
        "so many daemons use static membership ([deployment](deployment.md#kubernetes))."
    )
    yield (
        f"- **Readers.** The engine's tape led to {found.events_per_tick:.6f} events a tick: "
        f"{most:,.0f} x {found.events_per_tick:.6f} = {most * found.events_per_tick:,.0f} "
        "events/s. Nobody reads that; the alarm budget (`tapewatch train --budget`) has to bound "
        "it."
    )
    yield ""
    yield "## GPUs"
    yield ""
    yield (
        "None is planned for, for none was measured. What one could save is bounded: scoring and "
        f"deciding are {scoring:.0f} of the engine's {total:.0f} ns a tick. If they cost nothing, "
        f"the engine would be {total / (total - scoring):.1f} times as fast, and a daemon with 1 "
        f"tick a message, which spends {single.core_ns:,.0f} ns of processor time a tick, "
        f"{single.core_ns / (single.core_ns - scoring):.2f} times. A larger network changes that; "
        "`tapewatch bench` shows whether yours does."
    )


def _mib(n: float) -> str:
    return f"{n / 2**20:,.0f} MiB"


def _gb(n: float) -> str:
    return f"{n / 1e9:,.2f}"


def _gbit(n: float) -> float:
    return 8 * n / 1e9


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(orjson.loads(RESULTS.read_bytes())), encoding="utf-8")


if __name__ == "__main__":
    main()
