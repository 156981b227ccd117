"""The commands and files of deploy/, run by hand on the real Kafka; there is no engine here."""

from __future__ import annotations

import ast
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from confluent_kafka.admin import AdminClient, ConfigResource
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import TopicFactory
from tests.integration.kafka_reading import group_members, read_topic
from tests.kafka_broker import KafkaBroker, free_ports
from tests.running import RunningDaemon, plain_environment, wait_until
from tests.test_deploy import DEPLOY, instructions, of_kind, rendered

PLACE = {
    "KAFKA_NODE_ID",
    "KAFKA_PROCESS_ROLES",
    "KAFKA_LISTENERS",
    "KAFKA_ADVERTISED_LISTENERS",
    "KAFKA_LISTENER_SECURITY_PROTOCOL_MAP",
    "KAFKA_CONTROLLER_LISTENER_NAMES",
    "KAFKA_CONTROLLER_QUORUM_VOTERS",
    "KAFKA_LOG_DIRS",
    "KAFKA_HEAP_OPTS",
}
"""Settings of compose's broker that say where it is; here it is elsewhere."""
SHORTENED = {"TAPE_SECONDS": "150", "REPLAY_SPEED": "max", "TRAIN_EPOCHS": "1"}
START_WITHIN_S = 120.0


def services() -> dict[str, dict[str, Any]]:
    """Services of compose.yaml with the variables that shorten it."""

    def value(found: re.Match[str]) -> str:
        return SHORTENED.get(found[1], found[2])

    text = re.sub(r"\$\{(\w+):-([^}]*)\}", value, (DEPLOY / "compose.yaml").read_text())
    found: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    return found


class Machine:
    """Runs compose's services as processes, its paths and addresses put to where things are."""

    def __init__(self, folder: Path, bootstrap: str) -> None:
        (self.port,) = free_ports(1)
        self.bootstrap = bootstrap
        config = (DEPLOY / "compose" / "tapewatch.toml").read_text()
        for there, here in {
            '"kafka:9092"': f'"{bootstrap}"',
            '"/var/lib/tapewatch/model"': f'"{folder / "data" / "model"}"',
            'host = "0.0.0.0"': f'host = "127.0.0.1"\nport = {self.port}',
        }.items():
            assert there in config
            config = config.replace(there, here)
        (folder / "tapewatch.toml").write_text(config)
        self.places = {
            "/var/lib/tapewatch": str(folder / "data"),
            "/etc/tapewatch/tapewatch.toml": str(folder / "tapewatch.toml"),
            "/opt/sample_tape.py": str(DEPLOY / "sample_tape.py"),
            "127.0.0.1:9108": f"127.0.0.1:{self.port}",
        }

    def words(self, command: list[str]) -> list[str]:
        """A command's words on this machine."""
        for there, here in self.places.items():
            command = [word.replace(there, here) for word in command]
        programs = {"tapewatch": [sys.executable, "-m", "detector"], "python": [sys.executable]}
        return [*programs[command[0]], *command[1:]]

    def start(self, command: list[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a command behind the image's entry point."""
        environment = {"NUMBA_BUILT_CACHE": "/nonexistent", **plain_environment()}
        entry = str(DEPLOY / "image" / "entrypoint.sh")
        with log.open("wb") as output:
            return subprocess.Popen(
                [entry, *self.words(command)], env=environment, stdout=output, stderr=output
            )

    def healthy(self, test: list[str], **environment: str) -> bool:
        """Whether a health check's command succeeds."""
        assert test[0] == "CMD"
        done = subprocess.run(
            self.words(test[1:]),
            env={**plain_environment(), **environment},
            capture_output=True,
            timeout=30,
            check=False,
        )
        return done.returncode == 0

    def metric(self, name: str) -> float:
        """Sum of a metric's samples."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return sum(s.value for f in families for s in f.samples if s.name == name)


@pytest.fixture(scope="module")
def compose_broker(start_kafka: Callable[..., KafkaBroker]) -> Iterator[KafkaBroker]:
    """A real Kafka with the settings of compose's, but for those that say where it is."""
    given = services()["kafka"]["environment"]
    assert set(given) >= PLACE
    broker = start_kafka(
        {
            name.removeprefix("KAFKA_").lower().replace("_", "."): value
            for name, value in given.items()
            if name not in PLACE
        }
    )
    yield broker
    broker.close()


def test_the_brokers_settings_are_known_to_it(compose_broker: KafkaBroker) -> None:
    """Each setting that compose gives is known and in force; a typo would be dropped."""
    admin = AdminClient({"bootstrap.servers": compose_broker.bootstrap})
    (asked,) = admin.describe_configs([ConfigResource(ConfigResource.Type.BROKER, "1")]).values()
    known = {name: entry.value for name, entry in asked.result(30).items()}
    for variable, value in services()["kafka"]["environment"].items():
        name = variable.removeprefix("KAFKA_").lower().replace("_", ".")
        if variable not in PLACE:
            assert known[name] == value, name
        elif variable not in {"KAFKA_HEAP_OPTS", "KAFKA_CONTROLLER_QUORUM_VOTERS"}:
            assert name in known, name


@pytest.mark.timeout(600)
def test_composes_commands_work_one_after_the_other(
    tmp_path: Path, compose_broker: KafkaBroker
) -> None:
    """Topics, tape, training, daemon and replay as compose starts them lead to events."""
    machine, all_of_them = Machine(tmp_path, compose_broker.bootstrap), services()
    (tmp_path / "data").mkdir()

    def run(name: str) -> str:
        log = tmp_path / f"{name}.log"
        ended = machine.start(all_of_them[name]["command"], log).wait(START_WITHIN_S * 2)
        assert ended == 0, log.read_text()
        return log.read_text()

    for name in ("topics", "tape", "train"):
        run(name)
    assert "exists" in run("topics"), "a second `docker compose up` finds them there"
    daemon_log, daemon = tmp_path / "daemon.log", all_of_them["tapewatch"]
    process = machine.start(daemon["command"], daemon_log)
    try:
        ready = daemon["healthcheck"]["test"]
        deadline = time.monotonic() + START_WITHIN_S
        while not machine.healthy(ready):
            assert process.poll() is None, daemon_log.read_text()
            assert time.monotonic() < deadline, daemon_log.read_text()
            time.sleep(0.2)
        (check,) = (rest for keyword, rest in instructions() if keyword == "HEALTHCHECK")
        of_image = ["CMD", *ast.literal_eval(check.partition(" CMD ")[2])]
        assert machine.healthy(of_image, TAPEWATCH_HTTP__PORT=str(machine.port))
        told = run("replay")
        (ticks,) = re.findall(r"(\d+) ticks in", told)
        wait_until(lambda: machine.metric("tapewatch_ticks_total") >= int(ticks))
        assert machine.metric("tapewatch_ticks_total") == int(ticks) > 10_000
        assert read_topic(machine.bootstrap, "anomalies", lambda read: len(read) >= 1)
        limit = of_kind(rendered("cpu"), "StatefulSet")["spec"]["template"]["spec"]["containers"]
        assert limit[0]["resources"]["limits"]["memory"] == "2Gi"
        resident = machine.metric("process_resident_memory_bytes")
        print(f"resident {resident / 2**20:.0f} MiB")
        assert resident < 2 * 2**30
        process.send_signal(signal.SIGTERM)
        assert process.wait(float(daemon["stop_grace_period"].rstrip("s"))) == 0
        assert not machine.healthy(ready)
        assert not machine.healthy(of_image, TAPEWATCH_HTTP__PORT=str(machine.port))
    finally:
        process.kill()
        process.wait()


# ---- Kubernetes --------------------------------------------------------------------------------


def test_a_pod_that_restarts_keeps_its_partitions(
    kafka_bootstrap: str,
    topic_factory: TopicFactory,
    model: Path,
    start_daemon: Callable[[str], RunningDaemon],
) -> None:
    """With the cluster's configuration a member that ends and comes back moves no partition."""
    (text,) = of_kind(rendered("cpu"), "ConfigMap")["data"].values()
    topics = {name: topic_factory(name, partitions=4) for name in ("ticks", "anomalies", "dlq")}
    topics["state"] = topic_factory("state", 4, {"cleanup.policy": "compact"})
    group = topics["ticks"]

    def config(pod: str) -> str:
        here = text
        for there, put in {
            '"kafka-bootstrap.kafka.svc.cluster.local:9092"': (
                f'"{kafka_bootstrap}"\ngroup_id = "{group}"'
            ),
            "[kafka.properties]": f'[kafka.properties]\n"group.instance.id" = "{pod}"',
            '"/var/lib/tapewatch/model"': f'"{model}"',
            'host = "0.0.0.0"': 'host = "127.0.0.1"\nport = 0',
        }.items():
            assert there in here
            here = here.replace(there, put)
        return (
            f'{here}\n[topics]\nticks = "{group}"\nanomalies = "{topics["anomalies"]}"\n'
            f'dead_letters = "{topics["dlq"]}"\nstate = "{topics["state"]}"\n'
        )

    stays = start_daemon(config("tapewatch-0")).wait_ready()
    leaves = start_daemon(config("tapewatch-1")).wait_ready()

    def shared() -> bool:
        return [len(p) for p in group_members(kafka_bootstrap, group).values()] == [2, 2]

    wait_until(shared, stays)
    before = group_members(kafka_bootstrap, group)
    assert set(before) == {"tapewatch-0", "tapewatch-1"}
    assert leaves.terminate() == 0
    assert group_members(kafka_bootstrap, group) == before, "its place is kept while it is away"
    again = start_daemon(config("tapewatch-1")).wait_ready()
    wait_until(lambda: again.get("/readyz")[1] == "ready with 2 partitions\n", again)
    assert group_members(kafka_bootstrap, group) == before
    assert stays.get("/readyz") == (200, "ready with 2 partitions\n")
