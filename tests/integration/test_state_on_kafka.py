"""State and transactions on a real Kafka: a daemon that is killed goes on as if it had not been."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from typing import Any

import pytest
from confluent_kafka import Message

from detector.wire import encode_dbn
from tests.integration.kafka_reading import committed_offsets, produce_all, read_topic
from tests.integration.test_end_to_end import (
    PARTITIONS,
    Desk,
    StartDaemon,
    assert_same_events,
    desk,
    expected_events,
)
from tests.running import Tape, wait_until

__all__ = ["desk"]

STATIC = """delivery = "{delivery}"
[state]
snapshot_interval_s = 0.5
"""


def config_of(desk: Desk, delivery: str) -> str:
    """A daemon with a name of its own in the group, so that it is back at once after a kill."""
    text = desk.config("[state]\nsnapshot_interval_s = 0.5")
    text = text.replace(
        '"session.timeout.ms" = "6000"',
        '"session.timeout.ms" = "6000", "group.instance.id" = "one"',
    )
    return f'delivery = "{delivery}"\n{text}'


def all_ticks(tape: Tape) -> list[tuple[bytes, bytes | None]]:
    """One message a tick, keyed by instrument."""
    ticks = tape.live_ticks.ticks
    return [
        (str(int(ticks["instrument_id"][i])).encode(), encode_dbn(ticks[i : i + 1]))
        for i in range(len(ticks))
    ]


def ids(messages: list[Message]) -> list[dict[str, Any]]:
    """The events of a topic as they were read."""
    return [json.loads(m.value() or b"") for m in messages]


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_a_killed_daemon_goes_on_where_it_was(
    desk: Desk, tape: Tape, start_daemon: StartDaemon, delivery: str
) -> None:
    """SIGKILL under load, three times: a reader sees the events of a run without them."""
    rng = random.Random(11)  # noqa: S311
    config = config_of(desk, delivery)
    records = all_ticks(tape)
    daemon = start_daemon(config).wait_ready()
    cuts = [0, *sorted(rng.sample(range(len(records)), 3)), len(records)]
    for start, stop in itertools.pairwise(cuts):
        before = committed_offsets(desk.bootstrap, desk.group, desk.ticks, PARTITIONS)
        produce_all(desk.bootstrap, desk.ticks, records[start:stop])
        if stop == len(records):
            break
        wait_until(
            lambda before=before: (
                committed_offsets(  # type: ignore[misc]
                    desk.bootstrap, desk.group, desk.ticks, PARTITIONS
                )
                != before
            ),
            daemon,
        )
        daemon.kill()
        daemon = start_daemon(config).wait_ready()
    wait_until(desk.caught_up, daemon)
    messages = read_topic(desk.bootstrap, desk.ticks, lambda read: len(read) >= len(records))
    want = expected_events(desk, tape, messages)
    assert len(want) >= 6
    read = ids(
        read_topic(desk.bootstrap, desk.anomalies, lambda r: len({*map(_id, r)}) >= len(want))
    )
    assert_same_events({event["event_id"]: event for event in read}, want)
    repeated = Counter(event["event_id"] for event in read)
    if delivery == "exactly_once":
        assert set(repeated.values()) == {1}
    assert daemon.metric("tapewatch_partitions_restored_total", source="snapshot") == PARTITIONS
    assert daemon.terminate() == 0, daemon.log


def _id(message: Message) -> str:
    found: str = json.loads(message.value() or b"")["event_id"]
    return found


def test_what_is_read_again_is_bounded_by_ticks(
    desk: Desk, tape: Tape, start_daemon: StartDaemon
) -> None:
    """Whatever the interval: enough ticks bring a snapshot, and a restart begins there."""
    config = config_of(desk, "exactly_once").replace(
        "snapshot_interval_s = 0.5", "snapshot_interval_s = 86400\nsnapshot_ticks = 1000"
    )
    records = all_ticks(tape)
    assert len(records) > 4_000
    daemon = start_daemon(config).wait_ready()
    for half in (records[::2], records[1::2]):
        produce_all(desk.bootstrap, desk.ticks, half)
        wait_until(desk.caught_up, daemon)
    daemon.kill()
    daemon = start_daemon(config).wait_ready()
    assert daemon.metric("tapewatch_partitions_restored_total", source="snapshot") == PARTITIONS
    assert daemon.metric("tapewatch_messages_replayed_total") < len(records) * 3 / 4
    assert daemon.terminate() == 0, daemon.log
