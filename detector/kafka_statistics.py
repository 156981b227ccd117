"""What librdkafka tells about itself every few seconds, reduced to what is worth a metric.

A client's statistics are a JSON document of hundreds of numbers for every broker and partition;
`StatisticsBook` reads the few that say whether Kafka is why ticks are late. It imports no client.

References
----------
librdkafka, STATISTICS.md: names, units and meaning of the document's fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_RETRIES: Final = ("txretries",)
_ERRORS: Final = ("txerrs", "rxerrs")
_TIMEOUTS: Final = ("req_timeouts",)
PATIENCE_S: Final = 10.0
"""A broker that owes an answer and has sent nothing for so long is not up: it hangs, or its host
does, with the connection open. The client itself waits for `socket.timeout.ms`, a minute."""


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """One client's state at the end of the last interval.

    Parameters
    ----------
    queue_messages, queue_bytes
        Waiting in the client: fetched and not yet asked for, or to be sent.
    round_trip_s
        Median and 99th percentile of the worst broker's round trips in the interval, in seconds;
        empty where there were none. A consumer's contain the wait of a fetch for new messages.
    retries, request_errors, timeouts
        Requests since the client was made.
    brokers_up
        Brokers connected now that answer, each once.
    brokers_silent
        Brokers connected now that owe an answer and are silent, each once.
    rebalances
        Of the consumer group, since the client was made; 0 of a producer.
    """

    queue_messages: int = 0
    queue_bytes: int = 0
    round_trip_s: Mapping[str, float] = field(default_factory=dict)
    retries: int = 0
    request_errors: int = 0
    timeouts: int = 0
    brokers_up: int = 0
    brokers_silent: int = 0
    rebalances: int = 0


class StatisticsBook:
    """Reads one client's documents, one after the other; counters go on where a broker comes back.

    librdkafka counts by broker connection and forgets one that it gives up: a plain sum over its
    brokers would fall, and a falling counter reads as a restart with everything counted again.

    Parameters
    ----------
    patience_s
        After how long without a word a broker that owes an answer is silent, in seconds.
    """

    def __init__(self, patience_s: float = PATIENCE_S) -> None:
        self._patience_us = patience_s * 1e6
        self._seen: dict[tuple[str, str], int] = {}
        self._totals = {"retries": 0, "errors": 0, "timeouts": 0}

    def take(self, document: Mapping[str, Any]) -> ClientStatistics:
        """Return what a document says."""
        brokers = document.get("brokers", {})
        self._count(brokers, "retries", _RETRIES)
        self._count(brokers, "errors", _ERRORS)
        self._count(brokers, "timeouts", _TIMEOUTS)
        connected = _connected(brokers.values())
        up = _ids(b for b in connected if not self._silent(b))
        if document.get("type") == "producer":
            queue = document.get("msg_cnt", 0), document.get("msg_size", 0)
        else:
            partitions = list(_partitions(document))
            queue = tuple(
                sum(p.get(k, 0) for p in partitions) for k in ("fetchq_cnt", "fetchq_size")
            )
        return ClientStatistics(
            queue_messages=int(queue[0]),
            queue_bytes=int(queue[1]),
            round_trip_s=_worst_round_trip(brokers.values()),
            retries=self._totals["retries"],
            request_errors=self._totals["errors"],
            timeouts=self._totals["timeouts"],
            brokers_up=len(up),
            brokers_silent=len(_ids(connected) - up),
            rebalances=int(document.get("cgrp", {}).get("rebalance_cnt", 0)),
        )

    def _silent(self, broker: Mapping[str, Any]) -> bool:
        """Whether a broker owes an answer and has not sent anything for too long."""
        owes, silent_us = int(broker.get("waitresp_cnt", 0)), int(broker.get("rxidle", 0))
        return owes > 0 and silent_us > self._patience_us

    def _count(self, brokers: Mapping[str, Any], total: str, fields: Iterable[str]) -> None:
        for name, broker in brokers.items():
            for each in fields:
                now, before = int(broker.get(each, 0)), self._seen.get((name, each), 0)
                self._totals[total] += now - before if now >= before else now
                self._seen[name, each] = now


def _connected(brokers: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [b for b in brokers if b.get("state") == "UP" and b.get("nodeid", -1) >= 0]


def _ids(brokers: Iterable[Mapping[str, Any]]) -> set[int]:
    """Ids of brokers, each once: a group's coordinator is listed a second time."""
    return {b["nodeid"] for b in brokers}


def _partitions(document: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    for topic in document.get("topics", {}).values():
        yield from topic.get("partitions", {}).values()


def _worst_round_trip(brokers: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Largest percentiles of all brokers that answered in the interval; given in microseconds."""
    windows = [b["rtt"] for b in brokers if b.get("rtt", {}).get("cnt", 0) > 0]
    if not windows:
        return {}
    return {
        quantile: max(window[key] for window in windows) / 1e6
        for quantile, key in (("0.5", "p50"), ("0.99", "p99"))
    }
