"""A connection to a cluster, how well it is, and what a client needs around its calls."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    ConfigResource,
)

from detector.errors import FailedError, RefusedError
from detector.kafka_statistics import PATIENCE_S, ClientStatistics, StatisticsBook
from detector.masking import Scrubbing

_CLIENT_LOG: Final = logging.getLogger("librdkafka")
_CLIENT_LOG.addFilter(Scrubbing())
_CLIENT_LOG.addHandler(logging.NullHandler())  # not shown where no log is configured

Headers = Sequence[tuple[str, bytes]]
STATISTICS_MS: Final = 2000
_FETCH_WAIT_MS: Final = 500  # librdkafka's default
_UNUSABLE: Final = frozenset(
    {
        KafkaError._AUTHENTICATION,  # noqa: SLF001  (the client's public names start so)
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    }
)


_OF_MEMBERS: Final = frozenset(
    {
        "group.instance.id",
        "group.protocol",
        "group.protocol.type",
        "group.remote.assignor",
        "heartbeat.interval.ms",
        "max.poll.interval.ms",
        "partition.assignment.strategy",
        "session.timeout.ms",
    }
)
# The client tells, at each start, of every property that is not for its kind.
_OF_CONSUMERS: Final = _OF_MEMBERS | frozenset(
    {
        "auto.commit.interval.ms",
        "auto.offset.reset",
        "check.crcs",
        "consume.callback.max.messages",
        "coordinator.query.interval.ms",
        "fetch.error.backoff.ms",
        "fetch.max.bytes",
        "fetch.message.max.bytes",
        "fetch.min.bytes",
        "fetch.queue.backoff.ms",
        "fetch.wait.max.ms",
        "max.partition.fetch.bytes",
        "offset.store.method",
        "offset.store.path",
        "offset.store.sync.interval.ms",
        "queued.max.messages.kbytes",
        "queued.min.messages",
    }
)
_OF_PRODUCERS: Final = frozenset(
    {
        "batch.num.messages",
        "batch.size",
        "compression.codec",
        "compression.level",
        "compression.type",
        "delivery.report.only.error",
        "enable.gapless.guarantee",
        "linger.ms",
        "message.send.max.retries",
        "partitioner",
        "produce.offset.report",
        "queue.buffering.backpressure.threshold",
        "queue.buffering.max.kbytes",
        "queue.buffering.max.messages",
        "queue.buffering.max.ms",
        "queuing.strategy",
        "request.timeout.ms",
        "retries",
        "sticky.partitioning.linger.ms",
        "transaction.timeout.ms",
    }
)


class KafkaUnusableError(FailedError, RuntimeError):
    """Kafka refuses what tapewatch needs; waiting would not help."""


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a cluster: brokers, client name and further librdkafka properties."""

    bootstrap_servers: str
    client_id: str = "tapewatch"
    properties: Mapping[str, str] | None = None

    def for_member(self) -> dict[str, object]:
        """Return librdkafka properties of a consumer that is a member of the daemon's group."""
        return self._without(_OF_PRODUCERS)

    def for_reader(self) -> dict[str, object]:
        """Return librdkafka properties of any other consumer."""
        return self._without(_OF_PRODUCERS | _OF_MEMBERS)

    def for_producer(self) -> dict[str, object]:
        """Return librdkafka properties of a producer, or of an administrator: it is one."""
        return self._without(_OF_CONSUMERS)

    @property
    def patience_s(self) -> float:
        """How long a broker may owe an answer, in seconds: a fetch that finds nothing waits."""
        wait_ms = str((self.properties or {}).get("fetch.wait.max.ms", ""))
        # What is no number is refused by the client.
        return PATIENCE_S + (int(wait_ms) if wait_ms.isdecimal() else _FETCH_WAIT_MS) / 1e3

    def _without(self, others: AbstractSet[str]) -> dict[str, object]:
        given = self.properties or {}
        return {
            **{name: value for name, value in given.items() if name not in others},
            "bootstrap.servers": self.bootstrap_servers,
            "client.id": self.client_id,
            "logger": _CLIENT_LOG,
        }


class Health:
    """Whether the brokers can be reached, as librdkafka's callbacks tell it; thread-safe.

    Parameters
    ----------
    patience_s
        After how long without a word a broker that owes an answer counts as away, in seconds.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._brokers_up = 0
        self._last_error = "not connected yet"
        self._patience_s = patience_s
        self._book = StatisticsBook(patience_s)
        self.statistics: ClientStatistics | None = None
        self.fatal: KafkaUnusableError | None = None

    @property
    def reachable(self) -> bool:
        """At least one broker is connected and answers."""
        return self._brokers_up > 0

    @property
    def last_error(self) -> str:
        """Return the latest error librdkafka told, for people."""
        return self._last_error

    def on_error(self, error: KafkaError) -> None:
        """Take librdkafka's error callback."""
        self._last_error = error.str()
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # noqa: SLF001
            self._brokers_up = 0
        # A handshake also fails while a broker restarts; a certificate does not mend itself.
        untrusted = (
            error.code() == KafkaError._SSL and "certificate" in error.str()  # noqa: SLF001
        )
        final = error.fatal() or error.code() == KafkaError._FATAL  # noqa: SLF001
        if final or untrusted or error.code() in _UNUSABLE:
            self.fatal = KafkaUnusableError(f"Kafka: {error.name()}: {error.str()}{_advice(error)}")

    def on_statistics(self, text: str) -> None:
        """Take librdkafka's statistics callback."""
        self.statistics = self._book.take(orjson.loads(text))
        self._brokers_up = self.statistics.brokers_up
        if self.statistics.brokers_silent:
            self._last_error = f"connected, but no answer for {self._patience_s:.0f} s"


def _advice(error: KafkaError) -> str:
    """Say what to do about a fatal error whose own words do not."""
    # The code of what was fatal is not handed on.
    if "fenced by other consumer" not in error.str():
        return ""
    return (
        " (FENCED_INSTANCE_ID): another process has taken this group.instance.id; give each daemon "
        "its own"
    )


def done_within(seconds: float, call: Callable[[], object]) -> bool:
    """Call a function of the client that knows no time limit; whether it returned in time.

    What it raises in time is raised here. Later it goes on in a thread that nobody waits for.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # raised in the caller's thread
            raised.append(error)

    thread = threading.Thread(target=run, name="client", daemon=True)
    thread.start()
    thread.join(seconds)
    if raised:
        raise raised[0]
    return not thread.is_alive()


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """Name a property that librdkafka does not know, or a value that it does not take."""
    try:
        yield
    except KafkaException as error:
        raise RefusedError(f"kafka.properties: {error.args[0].str()}") from None


def topic_settings(connection: Connection, topic: str, timeout_s: float) -> Mapping[str, str]:
    """Return the settings in force of a topic; none where we may not know them, or in time."""
    place = ConfigResource(ConfigResource.Type.TOPIC, topic)
    try:
        admin = AdminClient(cast("Any", connection.for_producer()))
        (found,) = admin.describe_configs([place], request_timeout=timeout_s).values()
        return {name: entry.value for name, entry in found.result(timeout_s).items()}
    except (KafkaException, TimeoutError):
        return {}


def wrong_policy(
    connection: Connection, topic: str, settings: Mapping[str, str], wanted: str
) -> str:
    """Say that a topic's `cleanup.policy` is another, and how to mend it; "" where it is right.

    Where the settings are not known, it is taken to be right.
    """
    policy = settings.get("cleanup.policy", wanted)
    if policy == wanted:
        return ""
    return (
        f"has cleanup.policy = {policy}, not {wanted}: kafka-configs.sh --bootstrap-server "
        f"{connection.bootstrap_servers} --alter --entity-type topics --entity-name {topic} "
        f"--add-config cleanup.policy={wanted}"
    )


def require_topic(
    client: Producer | Consumer, topic: str, bootstrap: str, timeout_s: float, health: Health
) -> None:
    """Raise what keeps a client from a topic: no broker in time, a refusal, or no such topic."""
    try:
        known = client.list_topics(timeout=timeout_s).topics
    except KafkaException as error:
        client.poll(0)
        if health.fatal is not None:
            raise health.fatal from error
        raise FailedError(
            f"no broker answered at {bootstrap} within {timeout_s:.0f} s ({error.args[0].str()}); "
            "check the address with --bootstrap or kafka.bootstrap_servers"
        ) from error
    if topic not in known:
        raise FailedError(
            f"topic {topic} does not exist at {bootstrap}, or this user may not see it; create it "
            "with `tapewatch topics create`, or ask for the right to describe it"
        )
