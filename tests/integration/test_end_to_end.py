"""The main job on a real Kafka: files in, daemon as a process, events out, compared to offline."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient, ConfigResource

from detector.artifact import read_artifact
from detector.cli import STATE_TOPIC
from detector.events import event_schema
from detector.pipeline import Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.symbols import SymbolMap
from detector.wire import encode_dbn, make_decoder
from tests.conftest import TopicFactory
from tests.integration.kafka_reading import committed_and_end, produce_all, read_topic
from tests.running import (
    LIVE_S,
    RunningDaemon,
    Tape,
    plain_environment,
    tapewatch,
    wait_until,
)

StartDaemon = Callable[[str], RunningDaemon]
PARTITIONS = 3


class Desk:
    """Topics of one test and the configuration that names them."""

    def __init__(self, bootstrap: str, topics: TopicFactory, model: Path) -> None:
        self.bootstrap = bootstrap
        self.group = f"group-{uuid.uuid4().hex[:8]}"
        self.ticks = topics("ticks", partitions=PARTITIONS)
        self.anomalies = topics("anomalies")
        self.dead_letters = topics("dlq")
        self.state = topics("state", PARTITIONS, {"cleanup.policy": "compact"})
        self.model = model

    def config(self, more: str = "") -> str:
        """TOML of a daemon at this desk."""
        return f"""
[kafka]
bootstrap_servers = "{self.bootstrap}"
group_id = "{self.group}"
properties = {{ "session.timeout.ms" = "6000" }}
[topics]
ticks = "{self.ticks}"
anomalies = "{self.anomalies}"
dead_letters = "{self.dead_letters}"
state = "{self.state}"
[model]
path = "{self.model}"
[commit]
interval_ms = 100
[http]
port = 0
{more}
"""

    def caught_up(self) -> bool:
        """Whether everything on the tick topic is processed and committed."""
        committed, end = committed_and_end(self.bootstrap, self.group, self.ticks, PARTITIONS)
        return end > 0 and committed == end


@pytest.fixture
def desk(kafka_bootstrap: str, topic_factory: TopicFactory, model: Path) -> Desk:
    """Fresh topics for one test."""
    return Desk(kafka_bootstrap, topic_factory, model)


def expected_events(
    desk: Desk, tape: Tape, messages: Sequence[Message], batch: int = 777
) -> dict[str, dict[str, Any]]:
    """The events that the input topic's content must lead to, computed offline, by id."""
    artifact = read_artifact(desk.model)
    scorer = Scorer(artifact)
    decoder = make_decoder("dbn")
    names = SymbolMap(artifact.symbols)
    assert set(artifact.symbols.values()) == set(tape.live_ticks.symbols.values())
    pipeline = Pipeline(artifact.features, scorer, PipelineSpec(topic=desk.ticks), names)
    by_partition: dict[int, list[Message]] = defaultdict(list)
    for message in messages:
        by_partition[message.partition() or 0].append(message)
    found: dict[str, dict[str, Any]] = {}
    for partition, part in by_partition.items():
        for start in range(0, len(part), batch):
            chunk = part[start : start + batch]
            decoded = decoder.decode(
                [m.value() for m in chunk], [m.offset() or 0 for m in chunk], partition
            )
            if decoded.batch is not None:
                for event in pipeline.process(decoded.batch).events:
                    found[event.event_id] = event.to_dict(0)
    return found


def published_events(desk: Desk, n: int) -> dict[str, dict[str, Any]]:
    """What a subscriber reads, by id; checks schema, key and headers of each."""
    found: dict[str, dict[str, Any]] = {}
    for message in read_topic(desk.bootstrap, desk.anomalies, lambda read: len(read) >= n):
        event = json.loads(message.value() or b"")
        jsonschema.validate(event, event_schema())
        assert message.key() == event["symbol"].encode()
        assert dict(message.headers() or [])["ce_id"] == event["event_id"].encode()
        found[event["event_id"]] = event
    return found


def without_detection_time(events: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same events with `ts_detected` taken out."""
    return {i: {k: v for k, v in e.items() if k != "ts_detected"} for i, e in events.items()}


def assert_same_events(got: dict[str, dict[str, Any]], want: dict[str, dict[str, Any]]) -> None:
    """Equal to the last bit."""
    got, want = without_detection_time(got), without_detection_time(want)
    assert got.keys() == want.keys()
    for event_id, event in got.items():
        assert event == want[event_id]


def test_replayed_file_leads_to_the_offline_events(
    desk: Desk, tape: Tape, start_daemon: StartDaemon
) -> None:
    """A file replayed through Kafka to the daemon gives exactly the events computed offline."""
    daemon = start_daemon(desk.config()).wait_ready()
    done = tapewatch(
        *("replay", "--ticks", tape.live, "--topic", desk.ticks, "--bootstrap", desk.bootstrap),
        *("--speed", "max", "--batch-ticks", "8", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ticks"] == len(tape.live_ticks)
    wait_until(desk.caught_up, daemon)
    assert daemon.metric("tapewatch_ticks_total") == len(tape.live_ticks)
    messages = read_topic(
        desk.bootstrap,
        desk.ticks,
        lambda read: len(read) >= json.loads(done.stdout)["messages"],
    )
    keys = {m.key(): m.partition() for m in messages}
    assert {(m.key(), m.partition()) for m in messages} == set(keys.items())
    want = expected_events(desk, tape, messages)
    assert len(want) >= 6
    assert_same_events(published_events(desk, len(want)), want)
    n_events = sum(
        daemon.metric("tapewatch_events_total", phase=p) for p in ("open", "update", "close")
    )
    assert n_events == len(want)
    assert daemon.metric("tapewatch_tick_to_event_seconds_count") == len(want)
    assert_clients_and_time_are_told(daemon)
    assert daemon.terminate() == 0, daemon.log


def assert_clients_and_time_are_told(daemon: RunningDaemon) -> None:
    """Both clients have told of themselves; six instruments were scored for 150 s at most."""
    brokers, round_trip = "tapewatch_kafka_brokers_up", "tapewatch_kafka_round_trip_seconds"
    wait_until(lambda: daemon.metric(brokers, client="consumer") == 1, daemon)
    wait_until(lambda: daemon.metric(brokers, client="producer") == 1, daemon)
    wait_until(lambda: daemon.metric(round_trip, client="consumer", quantile="0.99") > 0, daemon)
    assert daemon.metric("tapewatch_kafka_rebalances_total") >= 1
    most = 6 * LIVE_S / 3600
    assert 0.5 * most < daemon.metric("tapewatch_instrument_hours_total") <= most


def test_thresholds_that_adapt_lead_to_the_offline_events(
    kafka_bootstrap: str,
    topic_factory: TopicFactory,
    tape: Tape,
    start_daemon: StartDaemon,
    tmp_path: Path,
) -> None:
    """With a model for a risk, thresholds move in the daemon as they do offline, to the bit."""
    done = tapewatch(
        *("train", "--ticks", tape.train, "--out", tmp_path / "model"),
        *("--epochs", "1", "--risk", "0.002", "--seed", "1"),
    )
    assert done.returncode == 0, done.stderr
    desk = Desk(kafka_bootstrap, topic_factory, tmp_path / "model")
    daemon = start_daemon(desk.config()).wait_ready()
    done = tapewatch(
        *("replay", "--ticks", tape.live, "--topic", desk.ticks, "--bootstrap", desk.bootstrap),
        *("--speed", "max", "--batch-ticks", "8", "--json"),
    )
    assert done.returncode == 0, done.stderr
    wait_until(desk.caught_up, daemon)
    sent = json.loads(done.stdout)["messages"]
    messages = read_topic(desk.bootstrap, desk.ticks, lambda read: len(read) >= sent)
    want = expected_events(desk, tape, messages)
    assert_same_events(published_events(desk, len(want)), want)
    opened = [event for event in want.values() if event["phase"] == "open"]
    trained = set(read_artifact(desk.model).thresholds.values.tolist())
    assert sum(event["threshold"] not in trained for event in opened) >= 6
    assert daemon.terminate() == 0, daemon.log


def test_poison_among_good_messages(desk: Desk, tape: Tape, start_daemon: StartDaemon) -> None:
    """Every bad message is dead-lettered byte for byte once; every good tick is scored as ever."""
    rng = random.Random(5)  # noqa: S311
    ticks = tape.live_ticks.ticks[:6000]
    records: list[tuple[bytes, bytes | None]] = []
    bad: Counter[bytes | None] = Counter()
    for start in range(0, len(ticks), 3):
        row = ticks[start : start + 1]
        key = str(int(row["instrument_id"][0])).encode()
        same = ticks[start : start + 3]
        same = same[same["instrument_id"] == row["instrument_id"][0]]
        records.append((key, encode_dbn(same)))
        if rng.random() < 0.5:
            poison = mutated(encode_dbn(same), rng)
            records.append((key, poison))
            bad[poison or b""] += 1
    daemon = start_daemon(desk.config()).wait_ready()
    produce_all(desk.bootstrap, desk.ticks, records)
    wait_until(desk.caught_up, daemon)
    letters = read_topic(desk.bootstrap, desk.dead_letters, lambda read: len(read) >= bad.total())
    assert Counter(m.value() or b"" for m in letters) == bad
    for letter in letters:
        headers = dict(letter.headers() or [])
        assert headers["tapewatch_topic"] == desk.ticks.encode()
        assert headers["tapewatch_reason"].decode() in {
            "empty",
            "wrong_length",
            "unknown_record_type",
            "mixed_record_types",
        }
    assert daemon.metric("tapewatch_dead_letters_total") == bad.total()
    assert daemon.metric("tapewatch_messages_rejected_total") == bad.total()
    messages = read_topic(desk.bootstrap, desk.ticks, lambda read: len(read) >= len(records))
    want = expected_events(desk, tape, messages)
    if want:
        assert_same_events(published_events(desk, len(want)), want)
    assert daemon.terminate() == 0, daemon.log


def mutated(value: bytes, rng: random.Random) -> bytes | None:
    """Something that is surely no message of whole records of one type."""
    kind = rng.randrange(4)
    if kind == 0:
        return None
    if kind == 1:
        return value[: rng.randrange(1, 80)]
    if kind == 2:
        return bytes([value[0], 0x42]) + value[2:]
    return rng.randbytes(rng.choice([1, 7, 33, 79, 81]))


def test_second_daemon_takes_its_share(desk: Desk, tape: Tape, start_daemon: StartDaemon) -> None:
    """A second member gets partitions; when it leaves, the first has all of them again."""
    first = start_daemon(desk.config()).wait_ready()
    wait_until(lambda: "ready with 3 partitions" in first.get("/readyz")[1], first)
    second = start_daemon(desk.config()).wait_ready()

    def shares() -> set[str]:
        return {first.get("/readyz")[1], second.get("/readyz")[1]}

    both = {"ready with 2 partitions\n", "ready with 1 partitions\n"}
    wait_until(lambda: shares() == both, second)
    ticks = tape.live_ticks.ticks[:3000]
    produce_all(
        desk.bootstrap,
        desk.ticks,
        [(str(int(t["instrument_id"])).encode(), t.tobytes()) for t in ticks],
    )
    wait_until(desk.caught_up, first)
    total = first.metric("tapewatch_ticks_total") + second.metric("tapewatch_ticks_total")
    assert total == len(ticks)
    assert second.terminate() == 0, second.log
    wait_until(lambda: "ready with 3 partitions" in first.get("/readyz")[1], first)
    assert first.terminate() == 0, first.log


def test_kill_loses_nothing(desk: Desk, tape: Tape, start_daemon: StartDaemon) -> None:
    """After kill -9 under load and a restart every message was handled: bad ones all arrived."""
    ticks = tape.live_ticks.ticks
    records: list[tuple[bytes, bytes | None]] = []
    for i, tick in enumerate(ticks):
        records.append((str(int(tick["instrument_id"])).encode(), tick.tobytes()))
        if i % 50 == 0:
            records.append((b"bad", f"not a tick {i}".encode()))
    want = {value for key, value in records if key == b"bad"}
    daemon = start_daemon(desk.config()).wait_ready()
    produce_all(desk.bootstrap, desk.ticks, records[: len(records) // 2])
    wait_until(lambda: daemon.metric("tapewatch_messages_total") > 100, daemon)
    daemon.kill()
    produce_all(desk.bootstrap, desk.ticks, records[len(records) // 2 :])
    again = start_daemon(desk.config()).wait_ready()
    wait_until(desk.caught_up, again)
    letters = read_topic(
        desk.bootstrap, desk.dead_letters, lambda read: {m.value() for m in read} >= want
    )
    assert {m.value() for m in letters} == want
    assert again.terminate() == 0, again.log


def run_to_its_end(config: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a daemon that is expected to refuse."""
    path = folder / "tapewatch.toml"
    path.write_text(config)
    return subprocess.run(
        [sys.executable, "-m", "detector", "run", "--config", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=plain_environment(),
    )


def test_missing_topic_is_refused(desk: Desk, tmp_path: Path) -> None:
    """A daemon whose topics do not exist ends with 1 and says how to create them."""
    config = desk.config().replace(desk.ticks, "nowhere")
    done = run_to_its_end(config, tmp_path)
    assert done.returncode == 1
    assert "topics nowhere do not exist" in done.stderr
    assert "tapewatch topics create" in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_artifact_is_refused(desk: Desk, tmp_path: Path) -> None:
    """A model folder with one changed byte ends the daemon with 2 before Kafka is touched."""
    copy = tmp_path / "broken"
    copy.mkdir()
    for file in desk.model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    weights = next(copy.glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    done = run_to_its_end(desk.config().replace(str(desk.model), str(copy)), tmp_path)
    assert done.returncode == 2
    assert weights.name in done.stderr
    assert "Traceback" not in done.stderr


def test_format_that_does_not_fit_the_model_is_refused(desk: Desk, tmp_path: Path) -> None:
    """Vector messages for a model of ticks are refused with what is allowed."""
    done = run_to_its_end(desk.config('[input]\nformat = "vector"'), tmp_path)
    assert done.returncode == 2
    assert "allowed: dbn or json" in done.stderr


def test_second_copy_on_the_same_port_is_refused(
    desk: Desk, tmp_path: Path, start_daemon: StartDaemon
) -> None:
    """A second copy with the same port ends with 2 and names the port; the first goes on."""
    daemon = start_daemon(desk.config()).wait_ready()
    port = daemon.get("/metrics")[0] and daemon._url.rsplit(":", 1)[1]
    done = run_to_its_end(desk.config().replace("port = 0", f"port = {port}"), tmp_path)
    assert done.returncode == 2
    assert f"http.port = {port}" in done.stderr
    assert daemon.get("/readyz")[0] == 200


def test_topics_create_twice(kafka_bootstrap: str) -> None:
    """`topics create` makes every topic that is named, that of state so that it stays small."""
    names = {
        f"TAPEWATCH_TOPICS__{n.upper()}": f"{n}-{uuid.uuid4().hex[:6]}"
        for n in ("ticks", "anomalies", "dead_letters", "state", "latents")
    }
    command = [sys.executable, "-m", "detector", "topics", "create", "--json"]
    command += ["--bootstrap", kafka_bootstrap, "--partitions", "2"]
    results = []
    for _ in range(2):
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env={**plain_environment(), **names},
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    assert set(results[0].values()) == {"created"}
    assert set(results[1].values()) == {"exists"}
    assert set(results[0]) == set(names.values())
    state = ConfigResource(ConfigResource.Type.TOPIC, names["TAPEWATCH_TOPICS__STATE"])
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    (asked,) = admin.describe_configs([state]).values()
    found = {name: entry.value for name, entry in asked.result(30).items()}
    assert {name: found[name] for name in STATE_TOPIC} == STATE_TOPIC
    # What is void when state is read is bounded by little more than a segment.
    assert int(found["segment.bytes"]) <= 16 << 20
    assert int(found["delete.retention.ms"]) <= 600_000


def test_events_command_follows_the_topic(
    desk: Desk, tape: Tape, start_daemon: StartDaemon
) -> None:
    """`tapewatch events` prints the published events, as JSON lines on request."""
    daemon = start_daemon(desk.config()).wait_ready()
    produce_all(
        desk.bootstrap,
        desk.ticks,
        [(str(int(t["instrument_id"])).encode(), t.tobytes()) for t in tape.live_ticks.ticks],
    )
    wait_until(lambda: daemon.metric("tapewatch_events_total") >= 3, daemon)
    common = ("events", "--bootstrap", desk.bootstrap, "--topic", desk.anomalies)
    shown = tapewatch(*common, "--from-beginning", "--limit", "3", "--json")
    assert shown.returncode == 0, shown.stderr
    lines = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(lines) == 3
    readable = tapewatch(*common, "--from-beginning", "--limit", "3")
    assert lines[0]["phase"] == "open"
    assert "open" in readable.stdout
    assert np.isfinite([line["score"] for line in lines]).all()


@pytest.mark.parametrize("after_s", [0.7, 3.0])
def test_stop_while_the_model_warms_up(
    desk: Desk, start_daemon: StartDaemon, after_s: float
) -> None:
    """SIGTERM before anything was consumed ends the daemon orderly, too."""
    daemon = start_daemon(desk.config())
    wait_until(lambda: '"event": "starting"' in daemon.log, daemon)
    time.sleep(after_s)
    assert daemon.terminate() == 0, daemon.log


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--ticks", "nowhere.dbn"), 2, "nowhere.dbn: no such file"),
        (("--ticks", __file__), 2, "its name tells no format"),
        (("--ticks", "x.dbn", "--speed", "fast"), 2, "allowed are 'max'"),
        (("--ticks", "x.dbn", "--topic", "nowhere"), 1, "topic nowhere does not exist"),
    ],
)
def test_replay_names_what_is_wrong(
    desk: Desk, arguments: tuple[str, ...], code: int, words: str
) -> None:
    """A replay that cannot work says why in a line and ends with the right code."""
    common = ("replay", "--bootstrap", desk.bootstrap, "--topic", desk.ticks)
    done = tapewatch(*common, *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert "Traceback" not in done.stderr
