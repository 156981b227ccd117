"""The embedded broker of the demo: a Kafka cluster inside this process, nothing to install.

librdkafka carries a mock cluster that speaks the Kafka protocol on a local port; a producer made
with `test.mock.num.brokers` hosts it for as long as it lives. The daemon connects to it as to any
other cluster and cannot tell the difference. This module knows nothing of ticks.

What the mock does otherwise than Apache Kafka (librdkafka 2.16), so that nobody runs it for more
than a demo or a test:

- Memory only. A partition keeps about 5 MiB; what is older is dropped silently, and a reader that
  fell behind continues at the oldest offset kept. A producer that must lose nothing has to stay
  within that distance of its reader.
- A topic appears with four partitions when it is first asked for by name; CreateTopics requests
  are not answered, neither partition counts nor topic settings can be chosen, nothing is compacted.
- A group's first rebalance takes three seconds; after a member left, the next one takes the group's
  session timeout.
- Transactions are acknowledged, but not isolated: a `read_committed` reader also sees what was
  aborted.
- No authentication, no encryption, no quotas; it listens on 127.0.0.1 alone.

References
----------
librdkafka, `rdkafka_mock.h` and CONFIGURATION.md (`test.mock.num.brokers`, `test.mock.broker.rtt`).
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Self

from confluent_kafka import Producer

PARTITIONS: Final = 4
"""Partitions of every topic of the embedded broker."""

RETAINED_BYTES: Final = 5 * 1024 * 1024
"""What a partition keeps before it drops its oldest messages."""

_ANSWER_WITHIN_S: Final = 10.0
_LOG_ERRORS_ONLY: Final = 3  # syslog level; the mock announces itself and every disconnect


class EmbeddedBroker:
    """A mock Kafka cluster on local ports, from construction to `close`.

    Parameters
    ----------
    brokers
        Number of brokers, 1 or more; each listens on a port of its own.
    latency_ms
        Added to every answer, for what a distant cluster would cost.

    Attributes
    ----------
    bootstrap : str
        The `bootstrap.servers` of every client of this cluster.

    Raises
    ------
    ValueError
        If `brokers` is below 1 or `latency_ms` is negative.
    """

    def __init__(self, brokers: int = 1, latency_ms: int = 0) -> None:
        if brokers < 1:
            raise ValueError(f"brokers is {brokers}; an embedded cluster has at least 1")
        if latency_ms < 0:
            raise ValueError(f"latency_ms is {latency_ms}; it must not be negative")
        self._host: Producer | None = Producer(
            {
                "test.mock.num.brokers": brokers,
                "test.mock.broker.rtt": latency_ms,
                "log_level": _LOG_ERRORS_ONLY,
            }
        )
        members = self._host.list_topics(timeout=_ANSWER_WITHIN_S).brokers.values()
        self.bootstrap = ",".join(f"{member.host}:{member.port}" for member in members)

    def create_topic(self, name: str) -> int:
        """Make a topic exist and return its number of partitions, which is always `PARTITIONS`.

        A consumer does not create what it subscribes to: call this before one starts.
        """
        if self._host is None:
            raise RuntimeError("the embedded broker is closed")
        found = self._host.list_topics(name, timeout=_ANSWER_WITHIN_S)
        return len(found.topics[name].partitions)

    def close(self) -> None:
        """End the cluster and forget its messages; calling it again does nothing."""
        self._host = None  # the cluster lives exactly as long as the producer that hosts it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
