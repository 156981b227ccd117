"""What librdkafka tells of consumer and producer, as metrics: read when scraped.

`kafka` keeps each client's latest statistics, `kafka_statistics` says what is in them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, Protocol

from prometheus_client import CollectorRegistry

from detector.collectors import ReadFamily, Readings
from detector.kafka_statistics import ClientStatistics

Client = Literal["consumer", "producer"]


class Told(Protocol):
    """Who keeps a Kafka client's latest statistics; `kafka.Health` does."""

    @property
    def statistics(self) -> ClientStatistics | None:
        """The latest; None before the first."""


@dataclass(frozen=True, slots=True)
class _Family:
    kind: Literal["gauge", "counter"]
    name: str
    meaning: str
    read: Callable[[ClientStatistics], float]


_FAMILIES: Final = (
    _Family(
        "gauge",
        "fetch_queue_messages",
        "Messages waiting in a client: fetched and not yet taken (consumer), or to be sent "
        "(producer).",
        lambda now: now.queue_messages,
    ),
    _Family(
        "gauge",
        "fetch_queue_bytes",
        "Bytes of the messages waiting in a client.",
        lambda now: now.queue_bytes,
    ),
    _Family("counter", "retries", "Requests sent again.", lambda now: now.retries),
    _Family(
        "counter",
        "request_errors",
        "Requests that could not be sent, and answers that could not be read.",
        lambda now: now.request_errors,
    ),
    _Family("counter", "timeouts", "Requests without an answer in time.", lambda now: now.timeouts),
    _Family("gauge", "brokers_up", "Brokers connected that answer.", lambda now: now.brokers_up),
)


class KafkaMetrics:
    """The `tapewatch_kafka_` metrics; a client without statistics yet has no series.

    Parameters
    ----------
    registry
        Where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._clients: dict[Client, Told] = {}
        for each in _FAMILIES:
            family = ReadFamily(
                each.kind, f"tapewatch_kafka_{each.name}", each.meaning, ("client",)
            )
            family.read = partial(self._read, each.read)
            registry.register(family)
        round_trip = ReadFamily(
            "gauge",
            "tapewatch_kafka_round_trip_seconds",
            "Worst broker's round trip in the last interval, by quantile; a consumer's contains "
            "the wait of a fetch for new messages.",
            ("client", "quantile"),
        )
        round_trip.read = self._round_trips
        registry.register(round_trip)
        rebalances = ReadFamily(
            "counter",
            "tapewatch_kafka_rebalances",
            "Rebalances of the consumer group, as librdkafka counts them.",
        )
        rebalances.read = self._rebalances
        registry.register(rebalances)

    def watch(self, client: Client, told: Told) -> None:
        """Tell a client's statistics from now on."""
        self._clients[client] = told

    def _now(self) -> list[tuple[Client, ClientStatistics]]:
        found = [(client, told.statistics) for client, told in self._clients.items()]
        return [(client, now) for client, now in found if now is not None]

    def _read(self, read: Callable[[ClientStatistics], float]) -> Readings:
        return [((client,), read(now)) for client, now in self._now()]

    def _round_trips(self) -> Readings:
        return [
            ((client, quantile), seconds)
            for client, now in self._now()
            for quantile, seconds in now.round_trip_s.items()
        ]

    def _rebalances(self) -> Readings:
        return [((), now.rebalances) for client, now in self._now() if client == "consumer"]
