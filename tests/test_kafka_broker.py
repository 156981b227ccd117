"""The real Kafka that other tests rely on does what they rely on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType
from confluent_kafka.cimpl import NewTopic

from tests.conftest import REPOSITORY, TopicFactory, leave_out
from tests.kafka_broker import KafkaBroker, free_ports, missing_tools

DEADLINE_S = 60.0


def produce(bootstrap: str, topic: str, *values: bytes) -> None:
    """Send and wait for the acknowledgements."""
    producer = Producer({"bootstrap.servers": bootstrap})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(DEADLINE_S) == 0


def read(bootstrap: str, topic: str, count: int, isolation: str = "read_committed") -> list[bytes]:
    """Read the first messages of partition 0."""
    settings = {"bootstrap.servers": bootstrap, "group.id": "reader", "log_level": 0}
    reader = Consumer(settings | {"isolation.level": isolation})
    reader.assign([TopicPartition(topic, 0, 0)])
    values = [message.value() or b"" for message in reader.consume(count, DEADLINE_S)]
    reader.close()
    return values


def exists(pid: int) -> bool:
    """Say whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.kafka
def test_topics_get_the_partitions_and_settings_asked_for(
    kafka_bootstrap: str, topic_factory: TopicFactory
) -> None:
    """A made topic has a name of its own, its partitions and its settings."""
    topic = topic_factory("state", partitions=3, config={"cleanup.policy": "compact"})
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    assert topic.startswith("state-")
    assert len(admin.list_topics(topic, timeout=DEADLINE_S).topics[topic].partitions) == 3
    resource = ConfigResource(ResourceType.TOPIC, topic)
    settings = admin.describe_configs([resource])[resource].result(DEADLINE_S)
    assert settings["cleanup.policy"].value == "compact"


@pytest.mark.kafka
def test_an_aborted_transaction_is_not_read(
    kafka_bootstrap: str, topic_factory: TopicFactory
) -> None:
    """A read_committed reader sees the committed message alone: this Kafka has transactions."""
    topic = topic_factory()
    producer = Producer({"bootstrap.servers": kafka_bootstrap, "transactional.id": topic})
    producer.init_transactions(DEADLINE_S)
    for value in (b"aborted", b"committed"):
        producer.begin_transaction()
        producer.produce(topic, value)
        producer.flush(DEADLINE_S)
        if value == b"aborted":
            producer.abort_transaction(DEADLINE_S)
        else:
            producer.commit_transaction(DEADLINE_S)
    assert read(kafka_bootstrap, topic, 1) == [b"committed"]
    assert read(kafka_bootstrap, topic, 1, "read_uncommitted") == [b"aborted"]


@pytest.mark.kafka
def test_a_killed_broker_starts_again_with_its_messages(kafka_broker: KafkaBroker) -> None:
    """After SIGKILL and a start the same address serves the acknowledged messages."""
    admin = AdminClient({"bootstrap.servers": kafka_broker.bootstrap, "log_level": 0})
    admin.create_topics([NewTopic("ticks", 1, 1)])["ticks"].result(DEADLINE_S)
    produce(kafka_broker.bootstrap, "ticks", b"before")
    killed = kafka_broker.pid
    assert killed is not None
    kafka_broker.restart()
    assert not exists(killed)
    produce(kafka_broker.bootstrap, "ticks", b"after")
    assert read(kafka_broker.bootstrap, "ticks", 2) == [b"before", b"after"]


@pytest.mark.kafka
@pytest.mark.skipif(sys.platform != "linux", reason="other kernels do not tell of a parent's death")
def test_no_broker_outlives_its_owner() -> None:
    """An owner that is killed, so that none of its handlers run, takes its Kafka with it."""
    lacking = missing_tools()
    if lacking is not None:
        leave_out(lacking)
    owner = (
        "import os, signal\n"
        "from tests.kafka_broker import KafkaBroker\n"
        "broker = KafkaBroker().start()\n"
        "print(broker.pid, broker._folder, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", owner],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        timeout=DEADLINE_S * 2,
        check=False,
    )
    assert done.stdout, done.stderr
    pid, folder = done.stdout.split()
    deadline = time.monotonic() + DEADLINE_S
    while exists(int(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    subprocess.run(["rm", "-rf", folder], check=True)
    assert not exists(int(pid))


def test_a_broker_comes_up_on_the_port_asked_for(start_kafka: Callable[..., KafkaBroker]) -> None:
    """`make kafka` relies on it, and on being told when the broker ends by itself."""
    (port,) = free_ports(1)
    broker = start_kafka(port=port)
    assert broker.bootstrap == f"127.0.0.1:{port}"
    assert AdminClient({"bootstrap.servers": broker.bootstrap}).list_topics(timeout=10).brokers
    assert broker.pid is not None
    os.kill(broker.pid, signal.SIGKILL)
    assert broker.wait() == -signal.SIGKILL
    broker.close()
