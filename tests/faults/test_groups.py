"""The group protocol of Kafka 4 (KIP-848): what a member does that the brokers do not take yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.place import create_topics
from tests.integration.kafka_reading import committed_and_end, produce_all
from tests.kafka_broker import KafkaBroker
from tests.running import RunningDaemon, Tape, wait_until

StartDaemon = Callable[[str], RunningDaemon]
NAME_TAKEN = "the group has another member with this group.instance.id"
N = 2000


@pytest.fixture
def broker(start_kafka: Callable[..., KafkaBroker]) -> Iterator[KafkaBroker]:
    """A Kafka that gives a member up later than a daemon is back, with one partition to be had."""
    session = {
        "group.consumer.min.session.timeout.ms": "1000",
        "group.consumer.session.timeout.ms": "20000",
    }
    broker = start_kafka(session)
    create_topics(broker.bootstrap)
    yield broker
    broker.close()


def config(broker: KafkaBroker, model: Path, name: str) -> str:
    """TOML of a member with a name."""
    return f"""
delivery = "exactly_once"
[kafka]
bootstrap_servers = "{broker.bootstrap}"
[kafka.properties]
"group.protocol" = "consumer"
"group.instance.id" = "{name}"
[model]
path = "{model}"
[commit]
interval_ms = 100
[http]
port = 0
"""


def test_a_killed_static_member_waits_for_its_own_session(
    broker: KafkaBroker, model: Path, tape: Tape, start_daemon: StartDaemon
) -> None:
    """Back before the group gave it up, it waits, says why, and goes on; so does one in reserve."""
    daemon = start_daemon(config(broker, model, "one")).wait_ready()
    ticks = tape.live_ticks.ticks
    records: list[tuple[bytes, bytes | None]] = [(b"k", t.tobytes()) for t in ticks[: 2 * N]]
    produce_all(broker.bootstrap, "ticks", records[:N])

    def caught_up(n: int) -> bool:
        return committed_and_end(broker.bootstrap, "tapewatch", "ticks", 1) == (n, n)

    wait_until(lambda: caught_up(N), daemon)
    daemon.kill()
    daemon = start_daemon(config(broker, model, "one"))
    told: set[str] = set()

    def ready() -> bool:
        status, reason = daemon.get("/readyz")
        told.add(reason)
        return status == 200

    wait_until(ready, daemon)
    assert NAME_TAKEN in daemon.log
    assert any(NAME_TAKEN in reason for reason in told)
    produce_all(broker.bootstrap, "ticks", records[N:])
    wait_until(lambda: caught_up(2 * N), daemon)
    assert "Traceback" not in daemon.log
    reserve = start_daemon(config(broker, model, "two")).wait_ready()
    assert reserve.terminate() == 0, reserve.log
    assert daemon.terminate() == 0, daemon.log
