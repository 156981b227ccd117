"""The processes of a measurement: broker, daemon and their counterparts, and how to watch them.

Every participant is a process of its own, so that none waits for another's interpreter lock.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
import psutil
from confluent_kafka import Producer

from detector.bench import Progress
from detector.cli import STATE_TOPIC
from detector.errors import FailedError
from detector.kafka import Connection, TopicPlan, create_topics
from tests.kafka_broker import REPOSITORY, KafkaBroker, free_ports

START_WITHIN_S: Final = 90.0
SAMPLE_EVERY_S: Final = 0.2
STALLED_AFTER_S: Final = 30.0
ONE_MEMBER: Final = {"group.instance.id": "tapewatch-0"}
TICKS: Final = re.compile(rb"^tapewatch_ticks_total (\S+)$", re.MULTILINE)


class MeasurementError(FailedError, RuntimeError):
    """A participant failed or stalled: there is no figure."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Topics of one run, with names of their own."""

    ticks: str
    anomalies: str
    dead_letters: str
    state: str


@dataclass(frozen=True, slots=True)
class Cluster:
    """The broker to measure against."""

    bootstrap: str
    broker_pid: int | None = None

    @property
    def connection(self) -> Connection:
        """How clients reach it."""
        return Connection(self.bootstrap, "benchmark")

    def topics(self, partitions: int, ticks: str | None = None) -> Topics:
        """Create the topics of a run, the input too unless one is given."""
        run = uuid.uuid4().hex[:8]
        names = Topics(ticks or f"ticks-{run}", f"anomalies-{run}", f"dlq-{run}", f"state-{run}")
        plans = [
            TopicPlan(names.anomalies, partitions, {}),
            TopicPlan(names.dead_letters, 1, {}),
            TopicPlan(names.state, partitions, STATE_TOPIC),
        ]
        if ticks is None:
            plans.append(TopicPlan(names.ticks, partitions, {}))
        results = create_topics(self.connection, plans, 1)
        if set(results.values()) != {"created"}:
            raise MeasurementError(f"topics could not be created: {results}")
        return names

    def wait_until_idle(self, within_s: float = 20.0) -> None:
        """Wait until the broker has finished what it was given."""
        if self.broker_pid is None:
            time.sleep(2.0)
            return
        broker = psutil.Process(self.broker_pid)
        deadline = time.monotonic() + within_s
        while broker.cpu_percent(0.5) > 8.0 and time.monotonic() < deadline:
            pass


@contextlib.contextmanager
def cluster(bootstrap: str | None) -> Iterator[Cluster]:
    """Use the given cluster, or start a broker for the duration."""
    if bootstrap is not None:
        yield Cluster(bootstrap)
        return
    with KafkaBroker({"log.segment.bytes": str(1 << 30)}, heap="1g") as broker:
        yield Cluster(broker.bootstrap, broker.pid)


def publish(
    cluster: Cluster, topic: str, messages: Mapping[int, Sequence[tuple[int, bytes]]]
) -> None:
    """Publish messages into their partitions and wait for every acknowledgement."""
    producer = Producer(
        {
            "bootstrap.servers": cluster.bootstrap,
            "linger.ms": 50,
            "batch.size": 1 << 20,
            "queue.buffering.max.messages": 1_000_000,
            "queue.buffering.max.kbytes": 1 << 20,
        }
    )
    for partition, mine in messages.items():
        for number, (key, value) in enumerate(mine):
            while True:
                try:
                    producer.produce(topic, value, b"%d" % key, partition)
                except BufferError:
                    producer.poll(0.1)
                else:
                    break
            if number % 1000 == 0:
                producer.poll(0)
    if left := producer.flush(120.0):
        raise MeasurementError(f"{topic} could not be filled: {left} messages are left")


@dataclass(slots=True)
class Child:
    """A process of the measurement, ended with it; its output goes to a file."""

    process: subprocess.Popen[bytes]
    log: Path
    usage: psutil.Process = field(init=False)

    def __post_init__(self) -> None:
        self.usage = psutil.Process(self.process.pid)

    def cpu_s(self) -> float:
        """CPU time so far, in seconds."""
        times = self.usage.cpu_times()
        return float(times.user + times.system)

    def check(self) -> None:
        """Raise with the log's end if the process has ended by itself."""
        code = self.process.poll()
        if code is not None:
            raise MeasurementError(f"{self.log.stem} ended with code {code}:\n{self.tail()}")

    def result(self, within_s: float) -> dict[str, Any]:
        """Wait for the end and return the JSON on the last line of the output."""
        code = self.process.wait(within_s)
        if code != 0:
            raise MeasurementError(f"{self.log.stem} ended with code {code}:\n{self.tail()}")
        found: dict[str, Any] = orjson.loads(self.log.read_bytes().splitlines()[-1])
        return found

    def stop(self) -> int:
        """Ask it to end in order, and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20.0)

    def tail(self) -> str:
        """Return the end of its output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


@contextlib.contextmanager
def child(folder: Path, module: str, *arguments: object) -> Iterator[Child]:
    """Run `python -m module` with arguments."""
    log = folder / f"{module}-{uuid.uuid4().hex[:8]}.log"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TAPEWATCH_")}
    command = [sys.executable, "-m", module, *map(str, arguments)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Child(process, log)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@dataclass(slots=True)
class Daemon:
    """A running `tapewatch run`."""

    child: Child
    url: str
    killed: bool = False

    def kill(self) -> None:
        """End it without any order."""
        self.killed = True
        self.child.process.kill()

    def metrics(self) -> bytes:
        """Return the text of its `/metrics`."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:  # noqa: S310
            text: bytes = answer.read()
        return text

    def facts(self) -> list[dict[str, Any]]:
        """Return the complete lines of its log."""
        lines = self.child.log.read_bytes().splitlines()
        return [orjson.loads(line) for line in lines if line[:1] == b"{" and line[-1:] == b"}"]

    def ticks(self) -> int:
        """Ticks it has taken in so far."""
        found = TICKS.search(self.metrics())
        if found is None:
            raise MeasurementError("the daemon's /metrics has no tapewatch_ticks_total")
        return int(float(found[1]))

    def watch(
        self, total: int, also: psutil.Process | None = None
    ) -> tuple[Progress, dict[str, float]]:
        """Follow it until it has taken in `total` ticks; how fast, and with how much CPU."""
        seconds: list[float] = []
        ticks: list[int] = []
        cpu: list[float] = []
        other: list[float] = []
        changed = time.monotonic()
        while not ticks or ticks[-1] < total:
            self.child.check()
            seconds.append(time.perf_counter())
            ticks.append(self.ticks())
            cpu.append(self.child.cpu_s())
            other.append(sum(also.cpu_times()[:2]) if also is not None else 0.0)
            if len(ticks) > 1 and ticks[-1] > ticks[-2]:
                changed = time.monotonic()
            if time.monotonic() - changed > STALLED_AFTER_S:
                raise MeasurementError(f"the daemon stalled at {ticks[-1]} of {total} ticks")
            time.sleep(SAMPLE_EVERY_S)
        progress = Progress(np.array(seconds), np.array(ticks, np.int64))
        span = np.interp([0.2 * total, 0.95 * total], ticks, seconds)
        used = (np.diff(np.interp(span, seconds, each))[0] for each in (cpu, other))
        width = float(span[1] - span[0])
        return progress, dict(
            zip(("daemon_cores", "broker_cores"), (float(u) / width for u in used), strict=True)
        )


def moment_of(fact: Mapping[str, Any]) -> float:
    """Return when a line was logged, in seconds since the epoch."""
    return datetime.fromisoformat(fact["timestamp"]).timestamp()


@contextlib.contextmanager
def daemon(
    folder: Path,
    cluster: Cluster,
    topics: Topics,
    model: Path,
    instruments: int,
    until: str = "readyz",
    more: str = "",
    watch_s: float = 5.0,
    delivery: str = "at_least_once",
    properties: Mapping[str, str] = ONE_MEMBER,
) -> Iterator[Daemon]:
    """Run the daemon on the topics; given back when it answers at `until`.

    `more` is TOML for the end of its configuration; every `watch_s` it looks for a new model.
    Daemons on the same topics are in one group, and unless `properties` of Kafka's client say
    otherwise one member of it.
    """
    port = free_ports(1)[0]
    config = folder / f"{topics.anomalies}-{port}.toml"
    lines = "\n".join(f'"{key}" = "{value}"' for key, value in properties.items())
    config.write_text(
        f"""
delivery = "{delivery}"
[kafka]
bootstrap_servers = "{cluster.bootstrap}"
group_id = "group-{topics.anomalies}"
[kafka.properties]
{lines}
[topics]
ticks = "{topics.ticks}"
anomalies = "{topics.anomalies}"
dead_letters = "{topics.dead_letters}"
state = "{topics.state}"
[model]
path = "{model}"
watch_s = {watch_s}
[features]
max_instruments = {instruments}
[http]
port = {port}
{more}
"""
    )
    with child(folder, "detector", "run", "--config", config) as process:
        running = Daemon(process, f"http://127.0.0.1:{port}")
        _wait_for(running, until)
        yield running
        code = process.stop()
        if code != 0 and not running.killed:
            raise MeasurementError(f"the daemon ended with code {code}:\n{process.tail()}")


def _wait_for(daemon: Daemon, path: str) -> None:
    deadline = time.monotonic() + START_WITHIN_S
    while time.monotonic() < deadline:
        daemon.child.check()
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"{daemon.url}/{path}", timeout=5).close()  # noqa: S310
            return
        time.sleep(0.1)
    raise MeasurementError(
        f"the daemon was not ready in {START_WITHIN_S} s:\n{daemon.child.tail()}"
    )
