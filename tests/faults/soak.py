"""Half an hour at half of the maximum rate: resident memory and latency must not creep.

Daemon, load and broker are those of the latency benchmark, with exactly-once delivery and the
default settings. Every ten seconds the daemon's resident memory is read, and its own histogram of
tick-to-event latency. What counts begins after a third of the time, when caches are full, and
buffers: the daemon is stopped for five seconds three times before that, so that what it catches up
with makes them as large as any stall of the machine will. A leak goes on growing after that. Memory
may grow by less than 1 % from there to the end, and the latency's 99th percentile in the last third
must not be above that in the second by more than half, which is what runs of one machine differ by.
"""

from __future__ import annotations

import math
import re
import shutil
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from benchmarks.latency import EPISODES, Stage
from benchmarks.processes import Cluster, Daemon, MeasurementError, Topics, child, daemon
from benchmarks.workload import QUICK, prepare
from detector.bench import PARTITIONS
from tests.kafka_broker import KafkaBroker

SECONDS: Final = 1800.0
LOAD: Final = 0.5
MOST_GROWTH: Final = 0.01
MOST_DRIFT: Final = 1.5
_SAMPLE_S: Final = 10.0
_STALLS: Final = (0.05, 0.1, 0.15)
"""Shares of the time at which the daemon is stopped for `_STALL_S`."""
_STALL_S: Final = 5.0
_BUCKET: Final = re.compile(
    rb'^tapewatch_tick_to_event_seconds_bucket\{.*?le="([^"]+)".*?\} (\S+)', re.MULTILINE
)
_BROKER: Final = {
    "log.segment.bytes": str(64 << 20),
    "log.retention.check.interval.ms": "10000",
    "log.segment.delete.delay.ms": "1000",
}


@dataclass(frozen=True, slots=True)
class Sample:
    """The daemon at one moment.

    Parameters
    ----------
    seconds
        Since the load began.
    resident
        Memory, bytes.
    ticks
        Taken in so far.
    buckets
        Cumulative counts of the latency histogram by upper bound, in seconds.
    """

    seconds: float
    resident: int
    ticks: int
    buckets: dict[float, float]


@dataclass(frozen=True, slots=True)
class SoakReport:
    """What a soak came to."""

    seconds: float
    rate: float
    maximum: float
    ticks: int
    resident_mib: tuple[float, float]
    growth: float
    p99_ms: tuple[float, float]
    drift: float

    @property
    def met(self) -> bool:
        """Whether neither memory nor latency crept."""
        return self.growth < MOST_GROWTH and self.drift <= MOST_DRIFT

    def text(self) -> str:
        """Return one line for people."""
        return (
            f"soak: {self.seconds:.0f} s at {self.rate:,.0f} of {self.maximum:,.0f} ticks/s, "
            f"{self.ticks:,} ticks; resident {self.resident_mib[0]:.1f} to "
            f"{self.resident_mib[1]:.1f} MiB ({self.growth:+.2%}); p99 {self.p99_ms[0]:.1f} to "
            f"{self.p99_ms[1]:.1f} ms (times {self.drift:.2f}): {'met' if self.met else 'MISSED'}"
        )


def soak(seconds: float = SECONDS, tell: Callable[[float], None] | None = None) -> SoakReport:
    """Run it; `tell` is called with the seconds that are through."""
    work = prepare(replace(QUICK, train_ticks=400_000))
    try:
        with KafkaBroker(_BROKER, heap="1g") as broker:
            kafka = Cluster(broker.bootstrap, broker.pid)
            stage = Stage(work, kafka, "exactly_once")
            most = stage.maximum()
            rate = LOAD * most
            topics = kafka.topics(PARTITIONS)
            _bound(kafka, topics)
            where = (work.folder, kafka, topics, work.latency_model, work.sizes.instruments)
            load = (kafka.bootstrap, topics.ticks, PARTITIONS, stage.tape)
            count = int(rate * seconds)
            with (
                daemon(*where, more=EPISODES, delivery="exactly_once") as running,
                child(work.folder, "benchmarks.load", *load, rate, count, 0) as sending,
            ):
                samples = _follow(running, seconds, tell)
                sending.result(120.0)
                _await(running, count)
            return summarise(samples, seconds, rate, most)
    finally:
        shutil.rmtree(work.folder, ignore_errors=True)


def summarise(
    samples: list[Sample], seconds: float, rate: float, maximum: float = math.nan
) -> SoakReport:
    """Reduce the samples: memory and latency at the beginning of what counts, and at its end."""
    counting = [s for s in samples if s.seconds >= seconds / 3]
    few = max(1, len(counting) // 10)
    first, last = (
        statistics.median(s.resident for s in part) for part in (counting[:few], counting[-few:])
    )
    half = len(counting) // 2
    early = _p99(counting[0].buckets, counting[half].buckets)
    late = _p99(counting[half].buckets, counting[-1].buckets)
    return SoakReport(
        seconds,
        rate,
        maximum,
        samples[-1].ticks,
        (first / 2**20, last / 2**20),
        last / first - 1.0,
        (early * 1e3, late * 1e3),
        late / early,
    )


def _follow(running: Daemon, seconds: float, tell: Callable[[float], None] | None) -> list[Sample]:
    samples: list[Sample] = []
    stalls = [share * seconds for share in _STALLS]
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        running.child.check()
        if stalls and passed >= stalls[0]:
            stalls.pop(0)
            running.child.usage.suspend()
            time.sleep(_STALL_S)
            running.child.usage.resume()
        text = running.metrics()
        buckets: dict[float, float] = {}
        for bound, n in _BUCKET.findall(text):
            # One histogram a severity or phase, if there are several: they add up.
            buckets[float(bound)] = buckets.get(float(bound), 0.0) + float(n)
        resident = running.child.usage.memory_info().rss
        samples.append(Sample(passed, resident, running.ticks(), buckets))
        if tell is not None:
            tell(passed)
        time.sleep(_SAMPLE_S)
    return samples


def _await(running: Daemon, count: int) -> None:
    deadline = time.monotonic() + 120.0
    while running.ticks() < count:
        if time.monotonic() > deadline:
            raise MeasurementError(f"{running.ticks()} of {count} ticks came in")
        time.sleep(1.0)


def _p99(before: dict[float, float], after: dict[float, float]) -> float:
    """99th percentile of what a histogram counted in between, linear within its bucket."""
    bounds = sorted(after)
    counts = [after[bound] - before.get(bound, 0.0) for bound in bounds]
    if not counts or counts[-1] <= 0:
        raise MeasurementError("no event came: there is no latency to tell drift of")
    wanted, low, below = 0.99 * counts[-1], 0.0, 0.0
    for bound, count in zip(bounds, counts, strict=True):
        if count >= wanted:
            if math.isinf(bound):
                return low
            return low + (bound - low) * (wanted - below) / max(count - below, 1e-9)
        low, below = bound, count
    return low


def _bound(kafka: Cluster, topics: Topics) -> None:
    """Keep the last of the ticks and events only: half an hour of them would fill the disk."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap})
    kept = [
        ConfigResource(
            ConfigResource.Type.TOPIC,
            topic,
            incremental_configs=[
                ConfigEntry(
                    "retention.bytes",
                    str(512 << 20),
                    incremental_operation=AlterConfigOpType.SET,
                )
            ],
        )
        for topic in (topics.ticks, topics.anomalies)
    ]
    for done in admin.incremental_alter_configs(kept).values():
        done.result(30)
