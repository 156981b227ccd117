"""The broker of fault runs: a second listener behind a proxy, short sessions, default topics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.faults.proxy import Proxy
from tests.kafka_broker import free_ports

PROPERTIES: Final = {
    "listener.security.protocol.map": (
        "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT"
    ),
    # Sessions shorter than six seconds, so that a frozen member is given up soon.
    "group.min.session.timeout.ms": "1000",
    # The same where group and assignor are the broker's (KIP-848).
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "4000",
    "group.consumer.min.heartbeat.interval.ms": "500",
    "group.consumer.heartbeat.interval.ms": "500",
    # How often the broker looks for transactions that are over their time; ten seconds by default.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "log.cleaner.backoff.ms": "2000",
}


@dataclass(frozen=True, slots=True)
class Ports:
    """Where the broker's second listener is, and where its clients are told to come."""

    behind: int
    before: int

    @classmethod
    def free(cls) -> Ports:
        """Take two that nobody listens on."""
        return cls(*free_ports(2))

    def broker(self) -> dict[str, Any]:
        """Arguments of the broker."""
        return {
            "properties": PROPERTIES,
            "listener": f"PROXIED://127.0.0.1:{self.behind}",
            "advertised": f"127.0.0.1:{self.before}",
        }

    def proxy(self) -> Proxy:
        """Return the proxy, to be started."""
        return Proxy(self.before, self.behind)


def create_topics(bootstrap: str) -> None:
    """Create the default topics with one partition."""
    admin = AdminClient({"bootstrap.servers": bootstrap})
    topics = [NewTopic(name, 1, 1) for name in ("ticks", "anomalies", "anomalies.dlq")]
    topics.append(NewTopic("tapewatch.state", 1, 1, config={"cleanup.policy": "compact"}))
    for created in admin.create_topics(topics).values():
        created.result(30)
