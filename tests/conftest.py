"""Fixtures that every test may use: the market data, a real Kafka, an embedded and a failing one.

A test that needs what this machine lacks is left out with the reason, and the last lines of the
session say so; with `TAPEWATCH_REQUIRE_ALL=1`, as in CI, it fails instead.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, Protocol

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic
from hypothesis import settings

from detector.broker import EmbeddedBroker
from tests.kafka_broker import KafkaBroker, KafkaUnavailableError
from tests.mock_cluster import MockCluster

# The first example of a property compiles its kernel; a deadline would call that a failure.
settings.register_profile("tapewatch", deadline=None)
settings.load_profile("tapewatch")

pytest_plugins = ["tests.running"]

REPOSITORY = Path(__file__).resolve().parent.parent
LEFT_OUT = "left out: "
_KAFKA_FIXTURES = {"kafka_bootstrap", "kafka_broker", "start_kafka", "topic_factory"}
_ANSWER_WITHIN_S = 30.0


def leave_out(reason: str) -> NoReturn:
    """Skip with a reason; where nothing may be left out (`TAPEWATCH_REQUIRE_ALL=1`), fail."""
    if os.environ.get("TAPEWATCH_REQUIRE_ALL") == "1":
        pytest.fail(f"TAPEWATCH_REQUIRE_ALL=1, but {reason}", pytrace=False)
    pytest.skip(LEFT_OUT + reason)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real market data."""
    default = REPOSITORY.parent / "shared" / "data"
    folder = Path(os.environ.get("TAPEWATCH_TEST_DATA") or default)
    if not folder.is_dir():
        leave_out("the market data folder is absent (TAPEWATCH_TEST_DATA names it)")
    return folder


class TopicFactory(Protocol):
    """Creates topics with a name of their own."""

    def __call__(
        self, name: str = "topic", partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> str:
        """Create a topic and return its full name, `name` plus something unique."""


@pytest.fixture(scope="session")
def start_kafka() -> Iterator[Callable[..., KafkaBroker]]:
    """Start another real Kafka with the given settings; ended with the session at the latest."""
    started: list[KafkaBroker] = []

    def start(properties: Mapping[str, str] | None = None, **more: Any) -> KafkaBroker:
        try:
            broker = KafkaBroker(properties, **more)
        except KafkaUnavailableError as lacking:
            leave_out(str(lacking))
        started.append(broker)
        return broker.start()

    yield start
    for broker in started:
        broker.close()


@pytest.fixture(scope="session")
def kafka_bootstrap(request: pytest.FixtureRequest) -> str:
    """`bootstrap.servers` of a real Apache Kafka that all tests share."""
    given = os.environ.get("TAPEWATCH_TEST_BOOTSTRAP")
    if given:
        return given
    start: Callable[..., KafkaBroker] = request.getfixturevalue("start_kafka")
    return start().bootstrap


@pytest.fixture
def kafka_broker(start_kafka: Callable[..., KafkaBroker]) -> Iterator[KafkaBroker]:
    """Return a real Kafka for one test alone, which may stop, kill and restart it."""
    broker = start_kafka()
    yield broker
    broker.close()


@pytest.fixture
def topic_factory(kafka_bootstrap: str) -> Iterator[TopicFactory]:
    """Create topics on the shared Kafka; they are deleted after the test."""
    admin = AdminClient({"bootstrap.servers": kafka_bootstrap})
    created: list[str] = []

    def create(
        name: str = "topic", partitions: int = 1, config: Mapping[str, str] | None = None
    ) -> str:
        full_name = f"{name}-{uuid.uuid4().hex[:8]}"
        topic = NewTopic(full_name, partitions, 1, config=dict(config or {}))
        admin.create_topics([topic])[full_name].result(_ANSWER_WITHIN_S)
        created.append(full_name)
        return full_name

    yield create
    if created:
        for deleted in admin.delete_topics(created).values():
            deleted.result(_ANSWER_WITHIN_S)


@pytest.fixture
def embedded_broker() -> Iterator[EmbeddedBroker]:
    """Return the broker of the demo, one for each test."""
    with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
def mock_cluster() -> Iterator[MockCluster]:
    """Return a cluster that refuses, disconnects, goes down or is slow when told to."""
    with MockCluster() as cluster:
        yield cluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark by the fixtures used, so that `-m "not kafka"` leaves out every test that needs it."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if fixtures & _KAFKA_FIXTURES:
            item.add_marker(pytest.mark.kafka)
        if "shared_data" in fixtures:
            item.add_marker(pytest.mark.data)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """End with what was left out and why, so that a green run is not taken for a whole one."""
    reasons: Counter[str] = Counter()
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ").removeprefix(LEFT_OUT)] += 1
    deselected = len(terminalreporter.stats.get("deselected", []))
    if deselected:
        reasons["not selected on the command line"] += deselected
    if not reasons:
        terminalreporter.write_line("Nothing was left out.", green=True)
    for reason, count in reasons.items():
        terminalreporter.write_line(f"LEFT OUT: {count} tests: {reason}", yellow=True)
