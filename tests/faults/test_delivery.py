"""The delivery guarantees on a real Kafka, under load, while daemons and connections break.

`make chaos` is the long form of the same runs. A failing one is repeated with
`python -m tests.faults.chaos --only FAULT --seed N --times N`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.faults import FAULTS, happen, prepare
from tests.faults.place import Ports
from tests.faults.run import Place, Report
from tests.faults.verifier import Delivery
from tests.kafka_broker import KafkaBroker

SEED = 1


@pytest.fixture(scope="module")
def place(
    start_kafka: Callable[..., KafkaBroker], model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A Kafka for these tests alone, with a proxy before it."""
    ports = Ports.free()
    broker = start_kafka(**ports.broker())
    with ports.proxy() as proxy:
        yield Place(broker, proxy, model, tmp_path_factory.mktemp("faults"))
    broker.close()


def judged(place: Place, fault: str, delivery: Delivery, times: int) -> Report:
    """Let a fault happen; fail where the guarantee was violated or nothing was put to the test."""
    report = happen(prepare(place, fault, SEED, delivery), times)
    assert report.events is not None
    assert report.letters is not None
    told = "\n".join(report.events.examples + report.letters.examples)
    assert report.violations() == {}, f"{fault}, {delivery}, seed {SEED}:\n{told}"
    assert not [end for end in report.ended if "after SIGTERM" in end], "a daemon hung"
    assert report.times == times * FAULTS[fault].unit
    assert report.events.expected >= 50
    assert report.letters.expected >= 50
    return report


@pytest.mark.parametrize("fault", FAULTS)
def test_exactly_once(place: Place, fault: str) -> None:
    """No event and no dead letter is lost, repeated, altered, invented or out of order."""
    report = judged(place, fault, "exactly_once", FAULTS[fault].short)
    assert report.events is not None
    assert report.events.seen == report.events.expected


@pytest.mark.parametrize(
    ("fault", "times"),
    [
        ("kill", 6),
        ("freeze", 2),
        ("slow_sink", 1),
        ("rebalance", 4),
        ("rebalance_eager", 3),
        ("rebalance_consumer", 3),
    ],
)
def test_at_least_once(place: Place, fault: str, times: int) -> None:
    """Nothing is lost, and what is repeated is equal to what was there before."""
    judged(place, fault, "at_least_once", times)
