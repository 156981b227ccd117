"""The latent topic on a real Kafka: each scored tick's latent once, in order, as offline."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Message

from detector.artifact import read_artifact
from detector.features import FeatureBlock
from detector.latents import LatentMessage
from detector.pipeline import Pipeline, PipelineSpec
from detector.scorer import ScoreBlock, Scorer
from detector.ticks import TickBatch
from detector.wire import make_decoder
from tests.conftest import REPOSITORY, TopicFactory
from tests.integration.kafka_reading import committed_offsets, produce_all, read_topic
from tests.integration.test_end_to_end import PARTITIONS, Desk, StartDaemon
from tests.running import Tape, plain_environment, tapewatch, wait_until


class LatentDesk(Desk):
    """A desk that wants latents too."""

    def __init__(self, bootstrap: str, topics: TopicFactory, model: Path) -> None:
        super().__init__(bootstrap, topics, model)
        self.latents = topics("latents", partitions=2)

    def config(self, more: str = "") -> str:
        """TOML of a daemon at this desk."""
        text = super().config("[drift]\nevery = 3\nleast_rows = 200\n" + more)
        return text.replace("[topics]\n", f'[topics]\nlatents = "{self.latents}"\n')


@pytest.fixture
def desk(kafka_bootstrap: str, topic_factory: TopicFactory, model: Path) -> LatentDesk:
    """Fresh topics for one test."""
    return LatentDesk(kafka_bootstrap, topic_factory, model)


def offline(
    desk: LatentDesk, messages: list[Message]
) -> dict[int, tuple[TickBatch, FeatureBlock, ScoreBlock]]:
    """Ticks, features and scores of the tick topic's content, by partition."""
    artifact = read_artifact(desk.model)
    pipeline = Pipeline(artifact.features, Scorer(artifact), PipelineSpec(latent=True))
    by_partition: dict[int, list[Message]] = defaultdict(list)
    for message in messages:
        by_partition[message.partition() or 0].append(message)
    found = {}
    for partition, part in by_partition.items():
        values, offsets = [m.value() for m in part], [m.offset() or 0 for m in part]
        batch = make_decoder("dbn").decode(values, offsets, partition).batch
        assert isinstance(batch, TickBatch)
        outcome = pipeline.process(batch)
        found[partition] = batch, outcome.blocks[0], outcome.scores[0]
    return found


class Places:
    """Partition and offset of every latent read so far; parses each message once."""

    def __init__(self) -> None:
        self.found: list[tuple[int, int]] = []
        self._parsed = 0

    def of(self, read: list[Message]) -> list[tuple[int, int]]:
        """Take what was read since the last call."""
        for message in read[self._parsed :]:
            latents = LatentMessage.parse(message.value() or b"")
            self.found += [
                (latents.partition, offset) for offset in latents.rows["offset"].tolist()
            ]
        self._parsed = len(read)
        return self.found


def test_latents_of_a_replayed_file_are_the_offline_latents(
    desk: LatentDesk, tape: Tape, start_daemon: StartDaemon
) -> None:
    """Every scored tick once, by instrument in order, to the bit; counted; and drift is told."""
    daemon = start_daemon(desk.config()).wait_ready()
    done = tapewatch(
        *("replay", "--ticks", tape.live, "--topic", desk.ticks, "--bootstrap", desk.bootstrap),
        *("--speed", "max", "--batch-ticks", "8", "--json"),
    )
    assert done.returncode == 0, done.stderr
    wait_until(desk.caught_up, daemon)
    n = json.loads(done.stdout)["messages"]
    want = offline(desk, read_topic(desk.bootstrap, desk.ticks, lambda read: len(read) >= n))
    scored = sum(int(block.ready.sum()) for _, block, _ in want.values())
    assert scored > 1_000
    places = Places()
    got = read_topic(desk.bootstrap, desk.latents, lambda read: len(places.of(read)) >= scored)
    assert len(places.found) == scored
    names = read_artifact(desk.model).symbols
    by_key: dict[int, list[LatentMessage]] = defaultdict(list)
    partition_of: dict[bytes | None, int | None] = {}
    for message in got:
        latents = LatentMessage.parse(message.value() or b"")
        assert message.key() == names[latents.key].encode()
        assert partition_of.setdefault(message.key(), message.partition()) == message.partition()
        by_key[latents.key].append(latents)
    for key, parts in by_key.items():
        batch, block, scores = want[parts[0].partition]
        mine = block.ready & (block.keys == key)
        assert scores.latent is not None
        for name, column in (
            ("ts_event", block.ts),
            ("offset", batch.offsets),
            ("index", batch.indices),
            ("latent", scores.latent),
        ):
            found = np.concatenate([part.rows[name] for part in parts])
            np.testing.assert_array_equal(found, column[mine])
    assert daemon.metric("tapewatch_latents_total") == scored
    assert daemon.metric("tapewatch_latent_messages_total") == len(got)
    wait_until(lambda: daemon.metric("tapewatch_drift_rows") >= 200, daemon)
    shown = daemon.get("/metrics")[1].count("\ntapewatch_feature_psi{")
    assert shown == 10
    assert daemon.metric("tapewatch_score_psi") >= 0
    assert daemon.terminate() == 0, daemon.log


def test_kill_loses_no_latents(desk: LatentDesk, tape: Tape, start_daemon: StartDaemon) -> None:
    """After kill -9 under load every tick whose offset was committed has its latents published.

    The second daemon starts cold: of what it repeats, ticks in its warm-up have no latent again.
    """
    ticks = tape.live_ticks.ticks
    records = [(str(int(t["instrument_id"])).encode(), t.tobytes()) for t in ticks]
    produce_all(desk.bootstrap, desk.ticks, records)
    sent = read_topic(desk.bootstrap, desk.ticks, lambda read: len(read) >= len(records))
    want = offline(desk, sent)

    def handled() -> set[tuple[int, int]]:
        committed = committed_offsets(desk.bootstrap, desk.group, desk.ticks, PARTITIONS)
        return {
            (partition, offset)
            for partition, (batch, block, _) in want.items()
            for offset in batch.offsets[block.ready].tolist()
            if offset < committed[partition]
        }

    daemon = start_daemon(desk.config())
    wait_until(lambda: bool(handled()), daemon)
    daemon.kill()
    kept = handled()
    places = Places()
    read_topic(desk.bootstrap, desk.latents, lambda read: kept <= set(places.of(read)))
    again = start_daemon(desk.config()).wait_ready()
    wait_until(desk.caught_up, again)
    assert again.terminate() == 0, again.log


def test_example_consumer_prints_every_instrument(
    desk: LatentDesk, tape: Tape, start_daemon: StartDaemon, tmp_path: Path
) -> None:
    """`examples/latents.py` decodes the topic and drops nothing that is new."""
    daemon = start_daemon(desk.config()).wait_ready()
    ticks = tape.live_ticks.ticks
    records = [(str(int(t["instrument_id"])).encode(), t.tobytes()) for t in ticks]
    produce_all(desk.bootstrap, desk.ticks, records)
    wait_until(desk.caught_up, daemon)
    scored = int(daemon.metric("tapewatch_latents_total"))
    shown = tmp_path / "shown"
    with shown.open("w") as file:
        example = subprocess.Popen(
            [sys.executable, "examples/latents.py", desk.bootstrap, desk.latents],
            stdout=file,
            cwd=REPOSITORY,
            env=plain_environment(),
        )
        try:
            wait_until(lambda: f" {scored} rows" in shown.read_text())
        finally:
            example.kill()
            example.wait(10)
    text = shown.read_text()
    assert all(symbol in text for symbol in read_artifact(desk.model).symbols.values())
    assert daemon.terminate() == 0, daemon.log
