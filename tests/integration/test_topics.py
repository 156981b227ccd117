"""Topics that are not as they must be: at their creation, at the start and while running."""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource
from confluent_kafka.cimpl import NewTopic

from detector.wire import encode_dbn
from tests.integration.kafka_reading import committed_and_end, produce_all
from tests.running import RunningDaemon, Tape, tapewatch, wait_until

StartDaemon = Callable[[str], RunningDaemon]
COMPACT = {"cleanup.policy": "compact"}
ENDS_WITHIN_S = 90.0


@dataclass(frozen=True)
class Topics:
    """Topics of one test, which may delete them, and the configuration that names them."""

    bootstrap: str
    name: str
    admin: AdminClient

    def config(self, model: Path, more: str = "") -> str:
        """TOML of a daemon that looks at its topics every second."""
        return f"""
{more}
[kafka]
bootstrap_servers = "{self.bootstrap}"
group_id = "{self.name}"
[kafka.properties]
"topic.metadata.refresh.interval.ms" = 1000
"topic.metadata.propagation.max.ms" = 2000
[topics]
ticks = "{self.name}-ticks"
anomalies = "{self.name}-anomalies"
dead_letters = "{self.name}-dlq"
state = "{self.name}-state"
[model]
path = "{model}"
[commit]
interval_ms = 100
[http]
port = 0
"""

    def create(
        self, which: str, partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> None:
        """Create one of them."""
        topic = NewTopic(f"{self.name}-{which}", partitions, 1, config=dict(config or {}))
        (made,) = self.admin.create_topics([topic]).values()
        made.result(30)

    def create_all(self, state: Mapping[str, str] = COMPACT) -> None:
        """Create all of them."""
        for which in ("ticks", "anomalies", "dlq"):
            self.create(which)
        self.create("state", config=state)

    def limit(self, which: str, n: int) -> None:
        """Let one of them take records of so many bytes only."""
        entry = ConfigEntry(
            "max.message.bytes", str(n), incremental_operation=AlterConfigOpType.SET
        )
        place = ConfigResource(
            ConfigResource.Type.TOPIC, f"{self.name}-{which}", incremental_configs=[entry]
        )
        (done,) = self.admin.incremental_alter_configs([place]).values()
        done.result(30)

    def delete(self, which: str) -> None:
        """Delete one of them."""
        (gone,) = self.admin.delete_topics([f"{self.name}-{which}"]).values()
        gone.result(30)

    def feed(self, tape: Tape, first: int, n: int) -> None:
        """Send ticks, eight a message."""
        ticks = tape.live_ticks.ticks[first : first + n]
        records = [(b"k", encode_dbn(ticks[i : i + 8])) for i in range(0, n, 8)]
        produce_all(self.bootstrap, f"{self.name}-ticks", list(records))


@pytest.fixture
def topics(kafka_bootstrap: str) -> Iterator[Topics]:
    """Names of topics; those that exist at the end are deleted."""
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    made = Topics(kafka_bootstrap, f"t{uuid.uuid4().hex[:8]}", admin)
    yield made
    for which in ("ticks", "anomalies", "dlq", "state"):
        with contextlib.suppress(KafkaException):
            made.delete(which)


def test_topics_that_exist_and_do_not_fit_are_told_with_the_remedy(
    topics: Topics, model: Path, tmp_path: Path
) -> None:
    """Too few partitions, a wrong cleanup policy: what differs, the command, exit code 1."""
    topics.create("ticks", 3)
    topics.create("anomalies", config=COMPACT)
    topics.create("state", 2)
    path = tmp_path / "tapewatch.toml"
    path.write_text(topics.config(model))
    done = tapewatch("topics", "create", "--config", path, "--json")
    assert done.returncode == 1, done.stdout
    assert "not every topic is there as it must be" in done.stderr
    told = {name.rsplit("-", 1)[1]: result for name, result in json.loads(done.stdout).items()}
    assert (told["ticks"], told["dlq"]) == ("exists", "created")
    assert "has cleanup.policy = compact, not delete" in told["anomalies"]
    assert "has 2 partitions, not 3: kafka-topics.sh" in told["state"]
    assert f"--topic {topics.name}-state --partitions 3" in told["state"]
    assert f"--entity-name {topics.name}-state --add-config cleanup.policy=compact" in told["state"]
    asked = tapewatch("topics", "create", "--config", path, "--partitions", "4", "--json")
    assert "has 3 partitions, not 4" in json.loads(asked.stdout)[f"{topics.name}-ticks"]


def test_a_topic_of_state_that_forgets_is_refused(
    topics: Topics, model: Path, tmp_path: Path
) -> None:
    """One whose records go by time would lose state: the daemon refuses and says the remedy."""
    topics.create_all(state={})
    path = tmp_path / "tapewatch.toml"
    path.write_text(topics.config(model))
    done = tapewatch("run", "--config", path, wait_s=ENDS_WITHIN_S)
    assert done.returncode == 1, done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert f"topic {topics.name}-state has cleanup.policy = delete, not compact" in last
    assert "kafka-configs.sh" in last
    assert "CONFWARN" not in done.stderr


@pytest.mark.parametrize(("which", "what"), [("anomalies", "an event"), ("state", "a record")])
def test_a_topic_that_takes_too_small_records_is_refused(
    topics: Topics, model: Path, tmp_path: Path, which: str, what: str
) -> None:
    """One that is refused for its size would end every start anew: it never comes to that."""
    topics.create_all()
    topics.limit(which, 1000)
    path = tmp_path / "tapewatch.toml"
    path.write_text(topics.config(model))
    done = tapewatch("run", "--config", path, wait_s=ENDS_WITHIN_S)
    assert done.returncode == 1, done.stderr
    told = f"topic {topics.name}-{which} has max.message.bytes = 1000; {what}"
    assert told in done.stderr


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
def test_a_record_of_state_that_does_not_fit_names_the_setting(
    topics: Topics, model: Path, tape: Tape, start_daemon: StartDaemon, delivery: str
) -> None:
    """A topic of state that takes too small records ends the daemon, with what to set to what."""
    topics.create_all()
    snapshots = "[state]\nsnapshot_interval_s = 0.5"
    config = f'delivery = "{delivery}"\n{topics.config(model)}{snapshots}'
    daemon = start_daemon(config).wait_ready()
    topics.limit("state", 500)
    topics.feed(tape, 0, 4000)
    assert daemon.process.wait(ENDS_WITHIN_S) == 1, daemon.log
    last = daemon.log.strip().splitlines()[-1]
    assert f"to topic {topics.name}-state was refused" in last
    assert "set max.message.bytes of that topic to 1048588" in last
    assert "Traceback" not in daemon.log


@pytest.mark.parametrize("which", ["ticks", "anomalies", "state"])
def test_a_topic_deleted_while_running_ends_the_daemon_and_is_named(
    topics: Topics, model: Path, tape: Tape, start_daemon: StartDaemon, which: str
) -> None:
    """Without a topic no tick could be processed for good: it ends with 1 and says which."""
    topics.create_all()
    daemon = start_daemon(topics.config(model)).wait_ready()
    topics.feed(tape, 0, 4000)

    def caught_up() -> bool:
        place = (topics.bootstrap, topics.name, f"{topics.name}-ticks", 1)
        committed, end = committed_and_end(*place)
        return committed == end > 0

    wait_until(caught_up, daemon)
    topics.delete(which)
    if which != "ticks":
        topics.feed(tape, 4000, len(tape.live_ticks) - 4000)
    assert daemon.process.wait(ENDS_WITHIN_S) == 1, daemon.log
    assert f"{topics.name}-{which}" in daemon.log.strip().splitlines()[-1]
    assert "Traceback" not in daemon.log
