"""What exactly-once delivery costs: throughput, and tick-to-event latency, beside at least once.

    python -m benchmarks.delivery [--rounds 3] [--seconds 20] [--load 0.5] [--ticks 3000000]

Both guarantees take turns in one run on the same topics' bytes, with their default settings and
state kept. Throughput is that of a backlog, with one tick a message and with 64. Latency is that of
the latency row at the same rate, a share of what a daemon with at least once takes in; its reader
sees committed events only, as a subscriber of exactly-once events has to.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any, Final

import psutil

from benchmarks.latency import Stage
from benchmarks.machine import describe
from benchmarks.measure import Spread, ratios
from benchmarks.processes import Cluster, cluster, daemon
from benchmarks.throughput import Backlog
from benchmarks.workload import FULL, QUICK, Workload, prepare
from detector.bench import MESSAGE_TICKS, PARTITIONS

GUARANTEES: Final = ("at_least_once", "exactly_once")
LEAST_SHARE: Final = 0.8


def backlog_rate(work: Workload, kafka: Cluster, backlog: Backlog, delivery: str) -> float:
    """Ticks per second of a daemon that catches up, in its steady part."""
    topics = kafka.topics(PARTITIONS, backlog.topic)
    broker = None if kafka.broker_pid is None else psutil.Process(kafka.broker_pid)
    where = (work.folder, kafka, topics, work.model, work.sizes.instruments)
    with daemon(*where, until="metrics", delivery=delivery) as running:
        progress, _ = running.watch(backlog.ticks, broker)
    kafka.wait_until_idle()
    return progress.rate()


def in_turn(rounds: int, one: Callable[[str, int], Any]) -> dict[str, list[Any]]:
    """Measure each guarantee once a round, the order reversed every time."""
    found: dict[str, list[Any]] = {name: [] for name in GUARANTEES}
    for number in range(rounds):
        for name in GUARANTEES if number % 2 == 0 else reversed(GUARANTEES):
            found[name].append(one(name, number))
    return found


def throughput(work: Workload, kafka: Cluster, rounds: int, per_message: int) -> dict[str, Any]:
    """Rates of both guarantees on one backlog, and their ratio round by round."""
    ticks = len(work.tape) if per_message > 1 else len(work.tape) // 2
    backlog = Backlog(work, kafka, ticks, per_message)
    backlog_rate(work, kafka, backlog, GUARANTEES[0])  # until the broker's Java code is compiled
    rates = in_turn(rounds, lambda name, _: backlog_rate(work, kafka, backlog, name))
    share = ratios(rates["exactly_once"], rates["at_least_once"])
    return {
        "ticks_a_message": per_message,
        "ticks_per_s": {name: asdict(Spread.of(each)) for name, each in rates.items()},
        "share": asdict(share),
        "target": f">= {LEAST_SHARE}",
        "met": share.median >= LEAST_SHARE,
    }


def latency(work: Workload, kafka: Cluster, rounds: int, load: float) -> dict[str, Any]:
    """Percentiles of both guarantees at the same rate."""
    stages = {name: Stage(work, kafka, name) for name in GUARANTEES}
    most = stages["at_least_once"].maximum()
    rate = load * most
    stages["at_least_once"].daemon_run(rate, 0)
    runs = in_turn(rounds, lambda name, seed: stages[name].daemon_run(rate, seed).percentiles_ms())
    return {
        "maximum": round(most),
        "rate": round(rate),
        "ms": {
            name: dict(
                zip(
                    ("p50", "p99", "p99.9"),
                    (asdict(Spread.of(column)) for column in zip(*each, strict=True)),
                    strict=True,
                )
            )
            for name, each in runs.items()
        },
    }


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.delivery")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a latency run")
    parser.add_argument("--load", type=float, default=0.5, help="share of the maximum")
    parser.add_argument("--ticks", type=int, default=FULL.tape_ticks, help="length of the tape")
    parser.add_argument("--quick", action="store_true", help="a model that is trained shorter")
    given = parser.parse_args()
    sizes = QUICK if given.quick else FULL
    work = prepare(replace(sizes, latency_s=given.seconds, tape_ticks=given.ticks))
    try:
        with cluster(None) as kafka:
            facts = {
                "machine": describe(),
                "throughput": [
                    throughput(work, kafka, given.rounds, n) for n in (1, MESSAGE_TICKS)
                ],
                "latency": latency(work, kafka, given.rounds, given.load),
            }
    finally:
        shutil.rmtree(work.folder, ignore_errors=True)
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
