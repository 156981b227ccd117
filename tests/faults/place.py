"""Where fault runs happen: a Kafka of their own with a proxy before its second listener."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from tests.faults.proxy import Proxy
from tests.faults.run import Place
from tests.kafka_broker import KafkaBroker, free_ports

PROPERTIES: Final = {
    "listener.security.protocol.map": (
        "PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT,CONTROLLER:PLAINTEXT"
    ),
    # Sessions shorter than six seconds, so that a frozen member is given up soon.
    "group.min.session.timeout.ms": "1000",
    # How often the broker looks for transactions that are over their time; ten seconds by default.
    "transaction.abort.timed.out.transaction.cleanup.interval.ms": "500",
    "log.cleaner.backoff.ms": "2000",
}


@contextlib.contextmanager
def a_place(model: Path, folder: Path) -> Iterator[Place]:
    """Start a Kafka and its proxy, for daemons with the given model.

    Raises
    ------
    KafkaUnavailableError
        Kafka cannot run on this machine.
    """
    behind, before = free_ports(2)
    broker = KafkaBroker(
        PROPERTIES, listener=f"PROXIED://127.0.0.1:{behind}", advertised=f"127.0.0.1:{before}"
    )
    with broker, Proxy(before, behind) as proxy:
        yield Place(broker, proxy, model, folder)
