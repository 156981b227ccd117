"""Tick-to-event latency under open-loop load, against an echo that publishes as many messages.

The generator, the daemon (or the echo), the broker and the reader of the events are processes of
their own on the same machine. Latency runs from the time at which the tick was *intended* to be
sent to the time at which the reader has the event. The reader learns an event's tick from its
`source`, and the tick's intended time afterwards, from the header in the tick topic.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Final, Self, cast

import numpy as np
import numpy.typing as npt
import orjson
from confluent_kafka import Consumer, Message, TopicPartition

from benchmarks.load import HEADER
from benchmarks.measure import Row, Spread, ratios
from benchmarks.processes import Cluster, Daemon, MeasurementError, Topics, child, daemon
from benchmarks.workload import Workload
from detector.bench import PARTITIONS

TARGET: Final = 2.0
TARGET_LOAD: Final = 0.5
PERCENTILES: Final = (50.0, 99.0, 99.9)
SATURATE_S: Final = 10.0
EPISODES: Final = "[episodes]\nquiet_s = 0.1\nupdate_interval_s = 0.1"
"""Short ones, so that a few ticks in a thousand lead to events and percentiles have enough of them:
with the usual ones a burst of anomalous ticks is a single episode."""
_SETTLE_S: Final = 3.0
_WARM_RUNS: Final = 2
_READY_WITHIN_S: Final = 60.0


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Latencies of one run, when their ticks were to be sent, ns, and the events' places.

    `metrics` is what the daemon told of itself at the end.
    """

    latency_ns: npt.NDArray[np.int64]
    sent_ns: npt.NDArray[np.int64]
    places: Counter[tuple[int, int]]
    mean_bytes: float
    behind_ms: float
    metrics: bytes = b""

    def percentiles_ms(self) -> list[float]:
        """Return the percentiles in milliseconds."""
        return [float(p) / 1e6 for p in np.percentile(self.latency_ns, PERCENTILES)]


@dataclass(slots=True)
class Reader:
    """Reads the events of one run as they come, in a thread of its own."""

    cluster: Cluster
    topic: str
    places: list[tuple[int, int]] = field(default_factory=list)
    received_ns: list[int] = field(default_factory=list)
    size: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._read, name="reader")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        assert self._thread is not None
        self._thread.join()

    def _read(self) -> None:
        consumer = _reading(self.cluster, self.topic)
        while not self._stop.is_set():
            message = consumer.poll(0.1)
            if message is None or message.error() is not None:
                continue
            now = time.time_ns()
            value = message.value() or b""
            source = orjson.loads(value)["source"]
            self.received_ns.append(now)
            self.places.append((source["partition"], source["offset"]))
            self.size += len(value)
        consumer.close()


class Stage:
    """Everything a run needs beside the rate: tape on disk, model, cluster, guarantee."""

    def __init__(self, work: Workload, cluster: Cluster, delivery: str = "at_least_once") -> None:
        self.work, self.cluster, self._delivery = work, cluster, delivery
        self.tape = work.folder / "tape.npy"
        np.save(self.tape, work.tape)

    def maximum(self) -> float:
        """Ticks per second that the daemon takes in while the generator sends flat out."""
        topics = self.cluster.topics(PARTITIONS)
        count = len(self.work.tape)
        with (
            self._daemon(topics) as running,
            child(self.work.folder, "benchmarks.load", *self._load(topics, 0.0, count)) as load,
        ):
            samples: list[tuple[float, int]] = []
            ends = time.monotonic() + 60.0
            while time.monotonic() < ends:
                samples.append((time.perf_counter(), running.ticks()))
                first = next((t for t, n in samples if n), samples[-1][0])
                sending = load.process.poll() is None
                if samples[-1][0] - first > SATURATE_S or not sending:
                    break
                time.sleep(0.1)
        seconds, ticks = (np.array(each, float) for each in zip(*samples, strict=True))
        begun = int(np.argmax(ticks > 0.1 * ticks[-1]))
        if len(ticks) - begun < 3:
            raise MeasurementError("the saturation run was too short; give a longer tape")
        return float((ticks[-1] - ticks[begun]) / (seconds[-1] - seconds[begun]))

    def warm_up(self, rate: float) -> None:
        """Run daemon and echo unrecorded, until the broker's Java code is compiled.

        The compiler takes a core of the two for the first minute of load: runs in that minute, all
        of them the daemon's and the echo's first, were several times slower than later ones.
        """
        for seed in range(_WARM_RUNS):
            self.echo_run(rate, seed, self.daemon_run(rate, seed))

    def ticks_at(self, rate: float) -> int:
        """How many ticks a run sends."""
        return min(int(rate * self.work.sizes.latency_s), len(self.work.tape))

    def daemon_run(self, rate: float, seed: int) -> Run:
        """One run against the daemon."""
        topics = self.cluster.topics(PARTITIONS)
        with self._daemon(topics) as running:
            return replace(self.measure(topics, rate, seed), metrics=running.metrics())

    def echo_run(self, rate: float, seed: int, like: Run) -> Run:
        """One run against an echo that publishes for the same ticks."""
        topics = self.cluster.topics(PARTITIONS)
        plan = {
            "places": [[*place, n] for place, n in like.places.items()],
            "bytes": like.mean_bytes,
        }
        file = self.work.folder / f"echo-{topics.ticks}.json"
        file.write_bytes(orjson.dumps(plan))
        arguments = (self.cluster.bootstrap, topics.ticks, topics.anomalies, file)
        with child(self.work.folder, "benchmarks.echo", *arguments) as echo:
            _wait(lambda: b"ready" in echo.log.read_bytes(), echo.check)
            run = self.measure(topics, rate, seed)
            echo.stop()
        return run

    def measure(self, topics: Topics, rate: float, seed: int) -> Run:
        """Send the ticks of a run and read the events; something must be running on the topics."""
        sizes = self.work.sizes
        count = self.ticks_at(rate)
        arguments = self._load(topics, rate, count, seed)
        with Reader(self.cluster, topics.anomalies) as reader:
            with child(self.work.folder, "benchmarks.load", *arguments) as load:
                facts = load.result(sizes.latency_s * 5 + 60)
            time.sleep(_SETTLE_S)
        if facts["sent"] != count:
            raise MeasurementError(f"only {facts['sent']} of {count} ticks were sent")
        intended = self._intended(topics.ticks, count)
        started = min(each[0] for each in intended if len(each))
        sent = np.array([intended[p][offset] for p, offset in reader.places], np.int64)
        counts = sent >= started + int(sizes.warm_s * 1e9)
        latency = (np.array(reader.received_ns, np.int64) - sent)[counts]
        if not len(latency):
            raise MeasurementError("no event came: nothing to measure")
        return Run(
            latency,
            sent[counts],
            Counter(reader.places),
            reader.size / len(sent),
            facts["most_behind_ms"],
        )

    def _intended(self, topic: str, count: int) -> list[npt.NDArray[np.int64]]:
        """Intended send times by partition and offset, from the headers in the tick topic."""
        found: list[list[int]] = [[] for _ in range(PARTITIONS)]
        consumer = _reading(self.cluster, topic)
        left = count
        while left:
            fetched = consumer.consume(10_000, 5.0)
            if not fetched:
                raise MeasurementError(f"{topic} ended {left} messages early")
            for message in fetched:
                mine = found[message.partition() or 0]
                if message.offset() != len(mine):
                    raise MeasurementError(f"{topic} has a gap at offset {len(mine)}")
                mine.append(_intended_of(message))
            left -= len(fetched)
        consumer.close()
        return [np.array(each, np.int64) for each in found]

    def _load(self, topics: Topics, rate: float, count: int, seed: int = 0) -> tuple[object, ...]:
        return (self.cluster.bootstrap, topics.ticks, PARTITIONS, self.tape, rate, count, seed)

    def _daemon(self, topics: Topics) -> AbstractContextManager[Daemon]:
        work = self.work
        where = (work.folder, self.cluster, topics, work.latency_model, work.sizes.instruments)
        return daemon(*where, more=EPISODES, delivery=self._delivery)


def measure(work: Workload, cluster: Cluster) -> list[Row]:
    """Latency of the daemon and of the echo at each share of the maximum, in turn."""
    stage = Stage(work, cluster)
    most = stage.maximum()
    stage.warm_up(TARGET_LOAD * most)
    return [_at(stage, load, most) for load in work.sizes.loads]


def _at(stage: Stage, load: float, most: float) -> Row:
    rate = load * most
    mine: list[Run] = []
    echo: list[Run] = []
    for seed in range(stage.work.sizes.kafka_rounds):
        mine.append(stage.daemon_run(rate, seed))
        echo.append(stage.echo_run(rate, seed, mine[-1]))
    p99 = ratios(*([run.percentiles_ms()[1] for run in runs] for runs in (mine, echo)))
    events = sum(len(run.latency_ns) for run in mine)
    share = sum(mine[0].places.values()) / stage.ticks_at(rate)
    targeted = load == TARGET_LOAD
    return Row(
        "latency",
        f"tick to event at {load:.0%} of the maximum: {rate:,.0f} of {most:,.0f} ticks/s, "
        f"1 tick a message, {share:.2%} of ticks lead to events, p50 / p99 / p99.9",
        f"{_told(mine)} ms",
        f"echo of as many messages: {_told(echo)} ms",
        p99,
        f"p99 ≤ {TARGET:.0f} times the echo's" if targeted else "",
        p99.median <= TARGET if targeted else None,
        {
            "rate": rate,
            "maximum": most,
            "latency_ms": _spreads(mine),
            "echo_ms": _spreads(echo),
            "events": events,
            "events_per_s": events
            / len(mine)
            / (stage.work.sizes.latency_s - stage.work.sizes.warm_s),
            "event_bytes": mine[0].mean_bytes,
            "events_per_tick": share,
            "events_equal_in_all_rounds": all(run.places == mine[0].places for run in mine),
            "generator_most_behind_ms": max(run.behind_ms for run in (*mine, *echo)),
        },
    )


def _spreads(runs: list[Run]) -> dict[str, Spread]:
    columns = zip(*(run.percentiles_ms() for run in runs), strict=True)
    return {f"p{p:g}": Spread.of(c) for p, c in zip(PERCENTILES, columns, strict=True)}


def _told(runs: list[Run]) -> str:
    return " / ".join(f"{spread.median:.1f}" for spread in _spreads(runs).values())


def _intended_of(message: Message) -> int:
    headers = dict(cast("list[tuple[str, bytes]]", message.headers() or []))
    return int.from_bytes(headers[HEADER], "little")


def _reading(cluster: Cluster, topic: str) -> Consumer:
    """Consume the whole topic from its beginning, in no group."""
    consumer = Consumer(
        {
            "bootstrap.servers": cluster.bootstrap,
            "group.id": uuid.uuid4().hex,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "fetch.queue.backoff.ms": 5,
        }
    )
    consumer.assign([TopicPartition(topic, p, 0) for p in range(PARTITIONS)])
    return consumer


def _wait(done: Callable[[], bool], check: Callable[[], None]) -> None:
    deadline = time.monotonic() + _READY_WITHIN_S
    while not done():
        check()
        if time.monotonic() > deadline:
            raise MeasurementError(f"not ready within {_READY_WITHIN_S} s")
        time.sleep(0.05)
