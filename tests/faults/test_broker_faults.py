"""The broker goes away, comes back, or was never there; the daemon waits, says so, and goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.place import create_topics
from tests.integration.kafka_reading import committed_and_end, produce_all, read_topic
from tests.kafka_broker import KafkaBroker
from tests.running import RunningDaemon, Tape, wait_until

StartDaemon = Callable[[str], RunningDaemon]
BAD = [f"not a tick {i}".encode() for i in range(40)]


def config(bootstrap: str, model: Path) -> str:
    """TOML of a daemon on a broker of its own."""
    return f"""
[kafka]
bootstrap_servers = "{bootstrap}"
properties = {{ "session.timeout.ms" = "6000", "reconnect.backoff.max.ms" = "500" }}
[model]
path = "{model}"
[commit]
interval_ms = 100
[http]
port = 0
"""


def records(tape: Tape, first: int, n: int, bad: list[bytes]) -> list[tuple[bytes, bytes | None]]:
    """Ticks, one a message, with bad messages spread among them."""
    ticks = tape.live_ticks.ticks[first : first + n]
    made: list[tuple[bytes, bytes | None]] = [(b"k", tick.tobytes()) for tick in ticks]
    step = max(1, n // max(1, len(bad)))
    for i, value in enumerate(bad):
        made.insert(i * step, (b"k", value))
    return made


def test_broker_killed_and_restarted_under_load(
    kafka_broker: KafkaBroker, model: Path, tape: Tape, start_daemon: StartDaemon
) -> None:
    """The daemon outlives a killed broker, says that it is not ready, and loses nothing."""
    bootstrap = kafka_broker.bootstrap
    create_topics(bootstrap)
    daemon = start_daemon(config(bootstrap, model)).wait_ready()
    produce_all(bootstrap, "ticks", records(tape, 0, 3000, BAD[:20]))
    wait_until(lambda: daemon.metric("tapewatch_messages_total") > 500, daemon)
    kafka_broker.kill()
    wait_until(lambda: daemon.get("/readyz")[0] == 503, daemon)
    assert "no broker reachable" in daemon.get("/readyz")[1]
    assert daemon.get("/healthz")[0] == 200
    kafka_broker.restart()
    wait_until(lambda: daemon.get("/readyz")[0] == 200, daemon)
    produce_all(bootstrap, "ticks", records(tape, 3000, 3000, BAD[20:]))

    def caught_up() -> bool:
        committed, end = committed_and_end(bootstrap, "tapewatch", "ticks", 1)
        return committed == end == 6000 + len(BAD)

    wait_until(caught_up, daemon)
    letters = read_topic(
        bootstrap, "anomalies.dlq", lambda read: {m.value() for m in read} >= set(BAD)
    )
    assert {m.value() for m in letters} == set(BAD)
    assert daemon.terminate() == 0, daemon.log


def test_broker_that_hangs(
    kafka_broker: KafkaBroker, model: Path, tape: Tape, start_daemon: StartDaemon
) -> None:
    """A broker that says nothing on open connections counts as away, until it speaks again."""
    bootstrap = kafka_broker.bootstrap
    create_topics(bootstrap)
    patient = config(bootstrap, model).replace("6000", "45000")  # a session that is not over before
    daemon = start_daemon(patient).wait_ready()
    kafka_broker.freeze()
    try:
        wait_until(lambda: daemon.get("/readyz")[0] == 503, daemon)
        assert "connected, but no answer for" in daemon.get("/readyz")[1]
    finally:
        kafka_broker.thaw()
    wait_until(lambda: daemon.get("/readyz")[0] == 200, daemon)
    produce_all(bootstrap, "ticks", records(tape, 0, 1000, []))
    wait_until(lambda: daemon.metric("tapewatch_messages_total") == 1000, daemon)
    assert daemon.terminate() == 0, daemon.log


def test_stop_while_the_broker_is_away(
    kafka_broker: KafkaBroker, model: Path, tape: Tape, start_daemon: StartDaemon
) -> None:
    """SIGTERM without a broker still ends the process in order, within ten seconds."""
    bootstrap = kafka_broker.bootstrap
    create_topics(bootstrap)
    daemon = start_daemon(config(bootstrap, model)).wait_ready()
    produce_all(bootstrap, "ticks", records(tape, 0, 1000, []))
    wait_until(lambda: daemon.metric("tapewatch_messages_total") == 1000, daemon)
    kafka_broker.kill()
    wait_until(lambda: daemon.get("/readyz")[0] == 503, daemon)
    assert daemon.terminate() == 0, daemon.log
    assert "could not stop in time" not in daemon.log
    assert "Traceback" not in daemon.log


def test_broker_that_comes_later(
    kafka_broker: KafkaBroker, model: Path, start_daemon: StartDaemon
) -> None:
    """A daemon started before its broker waits, says so, and joins once the broker is there."""
    bootstrap = kafka_broker.bootstrap
    create_topics(bootstrap)
    kafka_broker.stop()
    daemon = start_daemon(config(bootstrap, model))
    wait_until(lambda: "waiting for Kafka" in daemon.get("/readyz")[1], daemon)
    wait_until(lambda: "kafka is not reachable" in daemon.log, daemon)
    kafka_broker.start()
    daemon.wait_ready()
    assert daemon.terminate() == 0, daemon.log


def test_stop_before_the_broker_ever_came(
    kafka_broker: KafkaBroker, model: Path, start_daemon: StartDaemon
) -> None:
    """A daemon that never saw its broker ends on SIGTERM at once."""
    bootstrap = kafka_broker.bootstrap
    kafka_broker.stop()
    daemon = start_daemon(config(bootstrap, model))
    wait_until(lambda: "kafka is not reachable" in daemon.log, daemon)
    began = time.monotonic()
    assert daemon.terminate() == 0, daemon.log
    assert time.monotonic() - began < 10
