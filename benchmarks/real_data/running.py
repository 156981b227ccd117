"""Messages through a real Kafka and the unchanged daemon, with a subscriber of its own process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson
from confluent_kafka import Consumer, Message, TopicPartition
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.processes import Child, Cluster, MeasurementError, child
from detector.artifact import read_artifact
from detector.pipeline import Outcome, Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.symbols import SymbolMap
from detector.wire import Format, make_decoder
from tests.kafka_broker import REPOSITORY, free_ports

READY_WITHIN_S: Final = 120.0
DONE_WITHIN_S: Final = 420.0
Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Desk:
    """One daemon's configuration on a cluster; topics have the default names plus a suffix.

    Parameters
    ----------
    folder
        For its files.
    cluster
        The broker.
    model
        Model folder.
    name
        Consumer group and file names.
    suffix
        Of the anomaly and the dead-letter topic: several desks may read one tick topic.
    partitions
        Of the tick topic.
    symbols
        Names by instrument key.
    ticks
        The tick topic.
    more
        Further TOML.
    """

    folder: Path
    cluster: Cluster
    model: Path
    name: str = "main"
    suffix: str = ""
    partitions: int = 1
    symbols: Mapping[int, str] = field(default_factory=dict)
    ticks: str = "ticks"
    more: str = ""

    @property
    def config(self) -> Path:
        """Path of the configuration file."""
        return self.folder / f"{self.name}.toml"

    @property
    def anomalies(self) -> str:
        """Name of the anomaly topic."""
        return f"anomalies{self.suffix}"

    @property
    def dead_letters(self) -> str:
        """Name of the dead-letter topic."""
        return f"dlq{self.suffix}"

    @property
    def state(self) -> str:
        """Name of the topic of state."""
        return f"state{self.suffix}"

    def write(self, port: int) -> None:
        """Write configuration and symbol map."""
        symbols = self.folder / f"{self.name}-symbols.csv"
        lines = [f"{s},{key >> 32},{key & 0xFFFFFFFF}" for key, s in self.symbols.items()]
        symbols.write_text("\n".join(["symbol,publisher_id,instrument_id", *lines]) + "\n")
        more = self.more if "[input]" in self.more else f"[input]\n{self.more}"
        more = more.replace("[input]", f'[input]\nsymbols_file = "{symbols}"')
        self.config.write_text(
            f"""
[kafka]
bootstrap_servers = "{self.cluster.bootstrap}"
group_id = "{self.name}"
[topics]
ticks = "{self.ticks}"
anomalies = "{self.anomalies}"
dead_letters = "{self.dead_letters}"
state = "{self.state}"
[model]
path = "{self.model}"
[commit]
interval_ms = 200
[http]
port = {port}
{more}
"""
        )


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """What a daemon did with a tick topic.

    Parameters
    ----------
    events
        As the subscriber read them, in its order.
    metrics
        The daemon's `/metrics` when it had committed everything.
    exit_code
        Of the daemon, after SIGTERM.
    published
        What `publish` returned.
    seconds
        From the start of publishing until everything was committed.
    """

    events: list[Event]
    metrics: str
    exit_code: int
    published: Any
    seconds: float

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry the labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.metrics)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def by(self, name: str, label: str) -> dict[str, int]:
        """Nonzero samples of a counter by a label."""
        found: Counter[str] = Counter()
        for family in text_string_to_metric_families(self.metrics):
            for sample in family.samples:
                if sample.name == name and sample.value:
                    found[sample.labels[label]] += int(sample.value)
        return dict(found)


def tapewatch(*arguments: object) -> dict[str, Any]:
    """Run a command with `--json` to its end and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TAPEWATCH_")}
    done = subprocess.run(
        [sys.executable, "-m", "detector", *map(str, arguments), "--json"],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=REPOSITORY,
        timeout=900,
    )
    if done.returncode != 0:
        raise MeasurementError(
            f"tapewatch {arguments[0]} ended with {done.returncode}:\n{done.stderr[-3000:]}"
        )
    found: dict[str, Any] = orjson.loads(done.stdout)
    return found


def watch(desk: Desk, publish: Callable[[], Any]) -> Watched:
    """Start subscriber and daemon, publish, wait until all is committed and read, end them."""
    port = free_ports(1)[0]
    desk.write(port)
    results = tapewatch("topics", "create", "-c", desk.config, "--partitions", desk.partitions)
    if not set(results.values()) <= {"created", "exists"}:
        raise MeasurementError(f"topics could not be created: {results}")
    follow = ("events", "-c", desk.config, "--from-beginning", "--json")
    with (
        child(desk.folder, "detector", *follow) as subscriber,
        child(desk.folder, "detector", "run", "--config", desk.config) as daemon,
    ):
        url = f"http://127.0.0.1:{port}"
        _until(lambda: _answers(f"{url}/readyz"), daemon, READY_WITHIN_S)
        began = time.monotonic()
        published = publish()
        _until(lambda: caught_up(desk), daemon, DONE_WITHIN_S)
        seconds = time.monotonic() - began
        with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:  # noqa: S310
            metrics = answer.read().decode()
        wanted = _end_of(desk, desk.anomalies, desk.partitions)
        _until(lambda: len(_lines(subscriber)) >= wanted, subscriber, DONE_WITHIN_S)
        code = daemon.stop()
        events = [orjson.loads(line) for line in _lines(subscriber)]
    return Watched(events, metrics, code, published, seconds)


def caught_up(desk: Desk) -> bool:
    """Whether everything on the tick topic is processed, published and committed."""
    consumer = Consumer({"bootstrap.servers": desk.cluster.bootstrap, "group.id": desk.name})
    places = [TopicPartition(desk.ticks, p) for p in range(desk.partitions)]
    try:
        committed = [max(0, p.offset) for p in consumer.committed(places, timeout=20)]
        ends = [consumer.get_watermark_offsets(p, timeout=20)[1] for p in places]
    finally:
        consumer.close()
    return sum(ends) > 0 and committed == ends


@dataclass(frozen=True, slots=True, eq=False)
class Record:
    """One record of a topic, without the client's type."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: dict[str, bytes]


def read_all(desk: Desk, topic: str, partitions: int) -> list[Record]:
    """Every record of a topic from its beginning to its present end."""
    consumer = Consumer(
        {
            "bootstrap.servers": desk.cluster.bootstrap,
            "group.id": f"reader-{os.getpid()}",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    found: list[Record] = []
    try:
        places = [TopicPartition(topic, p, 0) for p in range(partitions)]
        wanted = sum(consumer.get_watermark_offsets(p, timeout=20)[1] for p in places)
        consumer.assign(places)
        deadline = time.monotonic() + DONE_WITHIN_S
        while len(found) < wanted:
            if time.monotonic() > deadline:
                raise MeasurementError(f"{topic}: {len(found)} of {wanted} records could be read")
            found += map(_record, consumer.consume(5_000, 0.5))
    finally:
        consumer.close()
    return found


def _record(message: Message) -> Record:
    if message.error() is not None:
        raise MeasurementError(str(message.error()))
    partition, offset, headers = message.partition(), message.offset(), message.headers()
    assert partition is not None
    assert offset is not None
    held = {name: v for name, v in dict(headers or ()).items() if isinstance(v, bytes)}
    return Record(partition, offset, message.key(), message.value(), held)


@dataclass(frozen=True, slots=True, eq=False)
class Expected:
    """What the same messages lead to without Kafka, in one thread, in batches of another size."""

    events: list[Event]
    outcomes: dict[int, list[Outcome]]
    rejected: dict[tuple[int, int], str]
    ticks: int


def expect(desk: Desk, fmt: Format, records: Sequence[Record], batch: int = 777) -> Expected:
    """Run the content of a tick topic through decoder and pipeline."""
    artifact = read_artifact(desk.model)
    pipeline = Pipeline(
        artifact.features,
        Scorer(artifact),
        PipelineSpec(topic=desk.ticks),
        SymbolMap({**artifact.symbols, **desk.symbols}),
    )
    decoder = make_decoder(fmt, columns=artifact.features.columns or None)
    by_partition: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        by_partition[record.partition].append(record)
    events: list[Event] = []
    outcomes: dict[int, list[Outcome]] = defaultdict(list)
    rejected: dict[tuple[int, int], str] = {}
    ticks = 0
    for partition, mine in by_partition.items():
        for start in range(0, len(mine), batch):
            part = mine[start : start + batch]
            headers = [list(r.headers.items()) for r in part]
            decoded = decoder.decode(
                [r.value for r in part],
                [r.offset for r in part],
                partition,
                headers if decoder.needs_headers else None,
            )
            for bad in decoded.rejected:
                rejected[partition, part[bad.row].offset] = bad.reason
            if decoded.batch is not None:
                outcome = pipeline.process(decoded.batch)
                ticks += len(decoded.batch)
                outcomes[partition].append(outcome)
                events += [event.to_dict(0) for event in outcome.events]
    return Expected(events, outcomes, rejected, ticks)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How two lists of events compare, `ts_detected` left out."""

    got: int
    wanted: int
    repeats: int
    same_ids: bool
    identical: int
    greatest_relative_difference: float

    @property
    def perfect(self) -> bool:
        """Whether they are the same events to the last bit."""
        return self.same_ids and self.got == self.wanted == self.identical


def compare(got: Sequence[Event], want: Sequence[Event]) -> Agreement:
    """Compare events by id: every field, and how far the scores are apart at most."""
    mine, theirs = ({e["event_id"]: _timeless(e) for e in events} for events in (got, want))
    both = mine.keys() & theirs.keys()
    apart = (
        abs(mine[i][name] - theirs[i][name]) / max(abs(theirs[i][name]), 1e-300)
        for i in both
        for name in ("score", "threshold", "stage1_error", "stage2_error", "severity_value")
    )
    return Agreement(
        got=len(got),
        wanted=len(want),
        repeats=len(got) - len(mine),
        same_ids=mine.keys() == theirs.keys(),
        identical=sum(mine[i] == theirs[i] for i in both),
        greatest_relative_difference=max(apart, default=0.0),
    )


def _timeless(event: Event) -> Event:
    return {name: value for name, value in event.items() if name != "ts_detected"}


def _lines(subscriber: Child) -> list[bytes]:
    """Whole lines of JSON that the subscriber has printed so far."""
    whole = subscriber.log.read_bytes().rpartition(b"\n")[0]
    return [line for line in whole.splitlines() if line.startswith(b"{")]


def _end_of(desk: Desk, topic: str, partitions: int) -> int:
    consumer = Consumer({"bootstrap.servers": desk.cluster.bootstrap, "group.id": "ends"})
    try:
        places = [TopicPartition(topic, p) for p in range(partitions)]
        return sum(consumer.get_watermark_offsets(p, timeout=20)[1] for p in places)
    finally:
        consumer.close()


def _answers(url: str) -> bool:
    with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
        urllib.request.urlopen(url, timeout=5).close()  # noqa: S310
        return True
    return False


def _until(condition: Callable[[], bool], process: Child, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        process.check()
        if time.monotonic() > deadline:
            raise MeasurementError(f"waited {within_s} s in vain:\n{process.tail()}")
        time.sleep(0.2)
