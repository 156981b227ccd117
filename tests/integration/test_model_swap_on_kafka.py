"""The model of a real daemon on a real Kafka is replaced under load.

No tick is missed, and the events are those of a replay that changes the model at the recorded
offsets.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message, Producer

from detector.artifact import WEIGHTS, read_artifact
from detector.config import load_config
from detector.events import EpisodePolicy
from detector.model_changes import Timeline, read_changes
from detector.model_replay import ModelReplay
from detector.pipeline import PipelineSpec
from detector.service import transactional_id
from detector.symbols import SymbolMap
from detector.wire import make_decoder
from tests.conftest import TopicFactory
from tests.faults.step_calls import StepCalls
from tests.integration.kafka_reading import produce_all, read_topic
from tests.integration.test_end_to_end import (
    PARTITIONS,
    Desk,
    StartDaemon,
    assert_same_events,
    published_events,
)
from tests.running import RunningDaemon, Tape, tapewatch, wait_until

POLICY = EpisodePolicy(quiet_s=600.0)
"""Episodes last until another model ends them, so that there are some to end."""
CHUNK = 25


@pytest.fixture(scope="module")
def other(tape: Tape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second model of the same features."""
    folder = tmp_path_factory.mktemp("other") / "artifact"
    done = tapewatch(
        *("train", "--ticks", tape.train, "--out", folder),
        *("--epochs", "1", "--quantile", "0.99", "--seed", "2"),
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def desk(kafka_bootstrap: str, topic_factory: TopicFactory, model: Path, tmp_path: Path) -> Desk:
    """Fresh topics, and a folder of its own for the model."""
    shutil.copytree(model, tmp_path / "model")
    return Desk(kafka_bootstrap, topic_factory, tmp_path / "model")


def watching(desk: Desk) -> str:
    """Configuration of a daemon that looks often."""
    text = desk.config(f"[episodes]\nquiet_s = {POLICY.quiet_s}")
    return text.replace("[commit]", "watch_s = 0.1\n[commit]")


def put(desk: Desk, source: Path, *, broken: bool = False) -> None:
    """Replace the folder in two renames, as `tapewatch train --overwrite` does."""
    staged = desk.model.with_name("staged")
    shutil.copytree(source, staged)
    if broken:
        os.truncate(staged / WEIGHTS, 1_000)
    old = desk.model.with_name("old")
    desk.model.rename(old)
    staged.rename(desk.model)
    shutil.rmtree(old)


class Load:
    """The tape's ticks, sent bit by bit."""

    def __init__(self, desk: Desk, tape: Tape) -> None:
        self.desk, self.ticks, self.sent = desk, tape.live_ticks.ticks, 0

    def send(self, count: int) -> None:
        """Send some ticks, one a message."""
        part = self.ticks[self.sent : self.sent + count]
        produce_all(
            self.desk.bootstrap,
            self.desk.ticks,
            [(str(int(t["instrument_id"])).encode(), t.tobytes()) for t in part],
        )
        self.sent += len(part)

    def send_until(self, condition: Callable[[], bool]) -> None:
        """Go on sending until the condition holds; there must be ticks left then."""
        while not condition():
            assert self.sent < len(self.ticks), "no ticks left"
            self.send(CHUNK)
            time.sleep(0.02)


def expected(
    desk: Desk, models: Sequence[Path], log: Path, messages: Sequence[Message]
) -> tuple[dict[str, dict[str, Any]], Timeline]:
    """Events of a replay with the models and offsets that a daemon logged, by id."""
    artifacts = [read_artifact(folder) for folder in models]
    timeline = Timeline(read_changes(log))
    replay = ModelReplay(
        artifacts,
        timeline,
        PipelineSpec(topic=desk.ticks, policy=POLICY),
        SymbolMap(artifacts[0].symbols),
    )
    by_partition: dict[int, list[Message]] = defaultdict(list)
    for message in messages:
        by_partition[message.partition() or 0].append(message)
    found: dict[str, dict[str, Any]] = {}
    outcomes = []
    for partition, part in by_partition.items():
        decoded = make_decoder("dbn").decode(
            [m.value() for m in part], [m.offset() or 0 for m in part], partition
        )
        assert decoded.batch is not None
        outcomes += list(replay.process(decoded.batch))
    outcomes += list(replay.finish({p: len(part) for p, part in by_partition.items()}))
    for outcome in outcomes:
        found |= {event.event_id: event.to_dict(0) for event in outcome.events}
    return found, timeline


def in_force(daemon: RunningDaemon, model: Path) -> bool:
    """Whether the daemon tells that the model is in force."""
    return daemon.metric("tapewatch_model_info", hash=read_artifact(model).model_hash) == 1


def test_swaps_under_load_lead_to_the_events_of_a_replay(
    desk: Desk, tape: Tape, model: Path, other: Path, start_daemon: StartDaemon
) -> None:
    """There and back, with a broken version between: every tick once, every event to the bit."""
    daemon = start_daemon(watching(desk)).wait_ready()
    load = Load(desk, tape)
    load.send(len(load.ticks) // 4)
    # Taken in, so that there are episodes for the other model to end.
    wait_until(lambda: daemon.metric("tapewatch_ticks_total") == load.sent, daemon)
    loaded_s = daemon.metric("tapewatch_model_loaded_timestamp_seconds")
    put(desk, other)
    load.send_until(lambda: in_force(daemon, other))
    put(desk, model, broken=True)
    load.send_until(lambda: daemon.metric("tapewatch_model_swaps_total", outcome="refused") == 1)
    assert in_force(daemon, other)
    load.send(len(load.ticks) // 4)
    wait_until(lambda: daemon.metric("tapewatch_ticks_total") == load.sent, daemon)
    put(desk, model)
    load.send_until(lambda: in_force(daemon, model))
    assert daemon.metric("tapewatch_model_loaded_timestamp_seconds") > loaded_s
    load.send(len(load.ticks) - load.sent)
    wait_until(desk.caught_up, daemon)
    assert daemon.metric("tapewatch_ticks_total") == len(load.ticks)
    assert daemon.metric("tapewatch_model_swaps_total", outcome="done") == 2
    assert daemon.metric("tapewatch_model_swaps_total", outcome="refused") == 1
    assert daemon.log.count("model refused") == 1
    messages = read_topic(desk.bootstrap, desk.ticks, lambda read: len(read) >= len(load.ticks))
    want, timeline = expected(desk, [model, other], daemon._log_path, messages)
    by_model = [
        e for e in want.values() if e["phase"] == "close" and e["summary"]["reason"] == "model"
    ]
    assert len({event["source"]["offset"] for event in by_model}) >= 2
    assert len({event["model"]["hash"] for event in want.values()}) == 2
    assert_same_events(published_events(desk, len(want)), want)
    for partition in {change.partition for change in timeline.changes}:
        offset = daemon.metric("tapewatch_model_from_offset", partition=str(partition))
        assert offset == timeline.at(partition, len(messages)).next_offset  # type: ignore[union-attr]
    assert daemon.terminate() == 0, daemon.log


def test_a_swap_during_a_rebalance(
    desk: Desk, tape: Tape, other: Path, start_daemon: StartDaemon
) -> None:
    """Members change their model while partitions move: no tick is left out, both end with it."""
    first = start_daemon(watching(desk)).wait_ready()
    load = Load(desk, tape)
    load.send(1_000)
    second = start_daemon(watching(desk))
    put(desk, other)
    load.send_until(lambda: second.get("/readyz")[0] == 200)
    load.send_until(lambda: in_force(first, other) and in_force(second, other))
    load.send_until(
        lambda: (
            {first.get("/readyz")[1], second.get("/readyz")[1]}
            == {"ready with 2 partitions\n", "ready with 1 partitions\n"}
        )
    )
    load.send(500)
    wait_until(desk.caught_up, first)
    total = sum(each.metric("tapewatch_ticks_total") for each in (first, second))
    assert total >= load.sent
    assert first.metric("tapewatch_model_swaps_total", outcome="done") == 1
    assert second.terminate() == 0, second.log
    wait_until(lambda: f"ready with {PARTITIONS} partitions" in first.get("/readyz")[1], first)
    assert first.terminate() == 0, first.log


def test_a_swap_within_a_transaction_that_is_lost(
    desk: Desk, tape: Tape, model: Path, other: Path, tmp_path: Path
) -> None:
    """Neither swallowed nor done by half: the old one's episodes close, all events are as replayed.

    It is lost because a producer of the same name takes over just before it is committed.
    """
    text = watching(desk).replace("properties = {", 'properties = { "group.instance.id" = "one",')
    fenced: list[Producer] = []

    def fence_with_the_swap() -> None:
        if not fenced and "model swapped" in daemon.log:
            name = transactional_id(load_config(tmp_path / "daemon" / "tapewatch.toml"))
            rival = {"bootstrap.servers": desk.bootstrap, "transactional.id": name}
            fenced.append(Producer(rival))
            fenced[0].init_transactions(10.0)

    with StepCalls(fence_with_the_swap) as calls:
        config = f'delivery = "exactly_once"\n{text}'
        daemon = RunningDaemon(tmp_path / "daemon", config, ("before_commit", calls.port))
        with closing(daemon.wait_ready()):
            load = Load(desk, tape)
            load.send(len(load.ticks) // 4)
            wait_until(desk.caught_up, daemon)
            put(desk, other)
            load.send_until(lambda: "the model before is in force again" in daemon.log)
            load.send_until(lambda: daemon.log.count("model swapped") == 2)
            load.send(len(load.ticks) - load.sent)
            wait_until(desk.caught_up, daemon)
            assert in_force(daemon, other)
            assert daemon.terminate() == 0, daemon.log
    assert "another process uses transactional id" in daemon.log
    messages = read_topic(desk.bootstrap, desk.ticks, lambda read: len(read) >= len(load.ticks))
    want, _ = expected(desk, [model, other], daemon._log_path, messages)
    closed = [e for e in want.values() if e["phase"] == "close"]
    assert any(event["summary"]["reason"] == "model" for event in closed)
    assert_same_events(published_events(desk, len(want)), want)


def test_scoring_a_file_with_a_daemons_log(
    tape: Tape, model: Path, other: Path, tmp_path: Path
) -> None:
    """`score --changes` takes each offset's model, and names a model whose folder is missing."""
    hashes = [read_artifact(folder).model_hash for folder in (model, other)]
    log, half = tmp_path / "log", len(tape.live_ticks) // 2
    lines = [
        {
            "event": "model in force",
            "partition": 0,
            "next_offset": at,
            "model_hash": h,
            "version": v,
        }
        for at, h, v in ((0, hashes[0], "a"), (half, hashes[1], "b"))
    ]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ("score", "--ticks", tape.live, "--model", model, "--out", tmp_path / "o.parquet")
    lacking = tapewatch(*common, "--changes", log)
    assert lacking.returncode == 2
    assert hashes[1][:12] in lacking.stderr
    assert "--also-model" in lacking.stderr
    done = tapewatch(
        *(*common, "--changes", log, "--also-model", other, "--events", tmp_path / "e.jsonl")
    )
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in (tmp_path / "e.jsonl").read_bytes().splitlines()]
    assert {event["model"]["hash"] for event in events} == set(hashes)
    for event in events:
        late = event["source"]["offset"] >= half
        if event["phase"] == "open":
            assert event["model"]["hash"] == hashes[late]
    wrong = tapewatch(*common, "--also-model", other)
    assert wrong.returncode == 2
    assert "without --changes" in wrong.stderr
