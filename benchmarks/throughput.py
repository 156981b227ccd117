"""The daemon on a real Kafka: one tick a message against a bare consumer, 64 against the engine.

The topic is filled first and the broker left to go idle: what is measured is consuming a backlog.
The broker still answers the fetches on the same cores, for the daemon and for the bare consumer
alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import psutil

from benchmarks.engine import Engine
from benchmarks.measure import Row, Spread, ratios
from benchmarks.processes import Cluster, child, daemon, publish
from benchmarks.workload import Workload
from detector.bench import MESSAGE_TICKS, MICRO_BATCH, PARTITIONS, Progress, messages_of
from detector.ticks import TickBatch

TARGET: Final = 0.6
_BARE_WITHIN_S: Final = 300.0


class Backlog:
    """A filled topic of the tape, and what reads it."""

    def __init__(
        self, work: Workload, cluster: Cluster, ticks: int, ticks_per_message: int
    ) -> None:
        self._work, self._cluster = work, cluster
        self.ticks = ticks
        tape = TickBatch.from_ticks(work.tape[:ticks])
        messages = messages_of(tape, PARTITIONS, ticks_per_message)
        self.messages = sum(map(len, messages.values()))
        self.topic = cluster.topics(PARTITIONS).ticks
        publish(cluster, self.topic, messages)
        cluster.wait_until_idle()
        self.cores: dict[str, float] = {}

    def daemon_rate(self) -> float:
        """Ticks per second of the daemon in its steady part."""
        work, cluster = self._work, self._cluster
        topics = cluster.topics(PARTITIONS, self.topic)
        broker = None if cluster.broker_pid is None else psutil.Process(cluster.broker_pid)
        where = (work.folder, cluster, topics, work.model, work.sizes.instruments)
        with daemon(*where, until="metrics") as running:  # watch it from its very first tick
            progress, self.cores = running.watch(self.ticks, broker)
        cluster.wait_until_idle()
        return progress.rate()

    def bare_rate(self) -> float:
        """Messages per second of a bare consumer in its steady part."""
        arguments = (self._cluster.bootstrap, self.topic, self.messages, MICRO_BATCH)
        with child(self._work.folder, "benchmarks.bare", *arguments) as process:
            found = process.result(_BARE_WITHIN_S)
        self._cluster.wait_until_idle()
        seconds, messages = zip(*found["samples"], strict=True)
        return Progress(np.array(seconds), np.array(messages, np.int64)).rate()


def measure(work: Workload, cluster: Cluster) -> list[Row]:
    """Both rows of the daemon's throughput."""
    return [_single(work, cluster), _packed(work, cluster)]


def _single(work: Workload, cluster: Cluster) -> Row:
    backlog = Backlog(work, cluster, len(work.tape) // 2, 1)
    ceiling, mine = _in_turn(work.sizes.kafka_rounds, backlog.bare_rate, backlog.daemon_rate)
    return _row(
        "daemon on real Kafka, 1 tick a message",
        "bare consume() and join of the same topic",
        mine,
        ceiling,
        {"messages": backlog.messages, **backlog.cores},
    )


def _packed(work: Workload, cluster: Cluster) -> Row:
    engine = Engine(work)
    backlog = Backlog(work, cluster, len(work.tape), MESSAGE_TICKS)
    engine.rate()
    ceiling, mine = _in_turn(work.sizes.kafka_rounds, engine.rate, backlog.daemon_rate)
    return _row(
        f"daemon on real Kafka, {MESSAGE_TICKS} ticks a message",
        "engine without Kafka",
        mine,
        ceiling,
        {"messages": backlog.messages, **backlog.cores},
    )


def _in_turn(
    rounds: int, ceiling: Callable[[], float], mine: Callable[[], float]
) -> tuple[list[float], list[float]]:
    pairs = [(ceiling(), mine()) for _ in range(rounds)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def _row(
    what: str, against: str, mine: list[float], ceiling: list[float], facts: dict[str, float]
) -> Row:
    ratio = ratios(mine, ceiling)
    measured, best = Spread.of(mine), Spread.of(ceiling)
    return Row(
        "throughput",
        what,
        f"{measured.text(',.0f')} ticks/s",
        f"{against}: {best.text(',.0f')} ticks/s",
        ratio,
        f"≥ {TARGET}",
        ratio.median >= TARGET,
        {"ticks_per_s": measured, "ceiling_ticks_per_s": best, "partitions": PARTITIONS, **facts},
    )
