"""The broker of fault runs: a second listener behind a proxy, and short sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

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
