"""What exactly-once delivery costs: throughput, and tick-to-event latency, beside at least once.

    python -m benchmarks.delivery [--rounds 3] [--seconds 20] [--load 0.5] [--ticks 3000000]

Both guarantees take turns in one run on the same topics' bytes, with their default settings and
state kept. Throughput is that of a backlog, with one tick a message and with 64, beside the CPU
time that daemon and broker took for it. Latency is that of the latency row at the same rate, a
share of what a daemon with at least once takes in; its reader sees committed events only, as a
subscriber of exactly-once events has to. The time of a transaction is the daemon's own stage
`committing`, from the state's delta to the cluster's answer, read from its histogram.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import psutil
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.latency import Stage
from benchmarks.machine import describe
from benchmarks.measure import Spread, ratios
from benchmarks.processes import Cluster, cluster, daemon
from benchmarks.throughput import Backlog
from benchmarks.workload import FULL, QUICK, Workload, prepare
from detector.bench import MESSAGE_TICKS, PARTITIONS

GUARANTEES: Final = ("at_least_once", "exactly_once")
LEAST_SHARE: Final = 0.8
_COMMITTING: Final = "tapewatch_stage_duration_seconds_bucket"


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """A backlog that was read: ticks per second, CPU seconds a million ticks, and transactions."""

    rate: float
    daemon_cpu_s: float
    broker_cpu_s: float
    transactions: Transactions


@dataclass(frozen=True, slots=True)
class Transactions:
    """How many were committed, and the time that one took, in milliseconds."""

    committed: int
    p50_ms: float
    p99_ms: float

    @classmethod
    def of(cls, metrics: bytes) -> Transactions:
        """Read them from what `/metrics` told; times are interpolated within a bucket."""
        bounds: list[float] = []
        counts: list[float] = []
        for family in text_string_to_metric_families(metrics.decode()):
            for sample in family.samples:
                if sample.name == _COMMITTING and sample.labels["stage"] == "committing":
                    bounds.append(float(sample.labels["le"]))
                    counts.append(sample.value)
        if not counts or not counts[-1]:
            return cls(0, math.nan, math.nan)
        finite = [0.0, *bounds[:-1], bounds[-2]]  # beyond the last bound: at least that
        wanted = [share * counts[-1] for share in (0.5, 0.99)]
        p50, p99 = np.interp(wanted, [0.0, *counts], finite) * 1e3
        return cls(int(counts[-1]), float(p50), float(p99))


def catch_up(work: Workload, kafka: Cluster, backlog: Backlog, delivery: str) -> CaughtUp:
    """Let a daemon read the backlog; rates and CPU time are of its steady part."""
    topics = kafka.topics(PARTITIONS, backlog.topic)
    broker = None if kafka.broker_pid is None else psutil.Process(kafka.broker_pid)
    where = (work.folder, kafka, topics, work.model, work.sizes.instruments)
    with daemon(*where, until="metrics", delivery=delivery) as running:
        progress, cores = running.watch(backlog.ticks, broker)
        transactions = Transactions.of(running.metrics())
    kafka.wait_until_idle()
    rate = progress.rate()
    million_s = 1e6 / rate
    cpu_s = (cores["daemon_cores"] * million_s, cores["broker_cores"] * million_s)
    return CaughtUp(rate, *cpu_s, transactions)


def in_turn(rounds: int, one: Callable[[str, int], Any]) -> dict[str, list[Any]]:
    """Measure each guarantee once a round, the order reversed every time."""
    found: dict[str, list[Any]] = {name: [] for name in GUARANTEES}
    for number in range(rounds):
        for name in GUARANTEES if number % 2 == 0 else reversed(GUARANTEES):
            found[name].append(one(name, number))
    return found


def throughput(work: Workload, kafka: Cluster, rounds: int, per_message: int) -> dict[str, Any]:
    """Rates and CPU times of both guarantees on one backlog, and their ratio round by round."""
    ticks = len(work.tape) if per_message > 1 else len(work.tape) // 2
    backlog = Backlog(work, kafka, ticks, per_message)
    catch_up(work, kafka, backlog, GUARANTEES[0])  # until the broker's Java code is compiled
    runs = in_turn(rounds, lambda name, _: catch_up(work, kafka, backlog, name))

    def spreads(of: Callable[[CaughtUp], float]) -> dict[str, Any]:
        return {name: asdict(Spread.of([of(run) for run in each])) for name, each in runs.items()}

    share = ratios(*([run.rate for run in runs[name]] for name in reversed(GUARANTEES)))
    return {
        "ticks_a_message": per_message,
        "ticks_per_s": spreads(lambda run: run.rate),
        "daemon_cpu_s_a_million": spreads(lambda run: run.daemon_cpu_s),
        "broker_cpu_s_a_million": spreads(lambda run: run.broker_cpu_s),
        "transactions": told([run.transactions for run in runs["exactly_once"]]),
        "share": asdict(share),
        "target": f">= {LEAST_SHARE}",
        "met": share.median >= LEAST_SHARE,
    }


def latency(work: Workload, kafka: Cluster, rounds: int, load: float) -> dict[str, Any]:
    """Percentiles of both guarantees at the same rate, and the time of one transaction."""
    stages = {name: Stage(work, kafka, name) for name in GUARANTEES}
    most = stages["at_least_once"].maximum()
    rate = load * most
    stages["at_least_once"].daemon_run(rate, 0)
    runs = in_turn(rounds, lambda name, seed: stages[name].daemon_run(rate, seed))
    transactions = [Transactions.of(run.metrics) for run in runs["exactly_once"]]
    columns = {
        name: list(zip(*(run.percentiles_ms() for run in each), strict=True))
        for name, each in runs.items()
    }
    exactly, at_least = (columns[name][1] for name in reversed(GUARANTEES))
    added = Spread.of([e - a for e, a in zip(exactly, at_least, strict=True)])
    return {
        "maximum": round(most),
        "rate": round(rate),
        "ms": {
            name: {
                p: asdict(Spread.of(column))
                for p, column in zip(("p50", "p99", "p99.9"), each, strict=True)
            }
            for name, each in columns.items()
        },
        "transactions": told(transactions),
        "p99_added_ms": asdict(added),
        "target": "p99 added <= p99 of one transaction",
        "met": added.median <= statistics.median(each.p99_ms for each in transactions),
    }


def told(runs: Sequence[Transactions]) -> dict[str, Any]:
    """Return how many transactions there were in each run, and what one took."""
    return {
        "committed": asdict(Spread.of([run.committed for run in runs])),
        "p50_ms": asdict(Spread.of([run.p50_ms for run in runs])),
        "p99_ms": asdict(Spread.of([run.p99_ms for run in runs])),
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
