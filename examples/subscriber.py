"""What a subscriber of the anomaly topic starts from: every event once, committed when handled.

Run: python examples/subscriber.py localhost:9092 [topic] [group]

The daemon delivers at least once: after a crash an event may come again, with the same `event_id`.
`SeenEvents` drops such repeats. Offsets are committed after the event was handled, so that this
program may be killed at any time without losing one.
"""

from __future__ import annotations

import json
import sys
from collections import OrderedDict
from typing import Any

from confluent_kafka import Consumer, KafkaException


class SeenEvents:
    """The ids of the last events; bounded, so that it runs for months.

    Parameters
    ----------
    limit
        How many ids are kept. Repeats follow a restart of the daemon, so they come soon.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._limit = limit

    def is_repeat(self, event_id: str) -> bool:
        """Tell whether the id was seen before, and remember it."""
        if event_id in self._ids:
            return True
        self._ids[event_id] = None
        if len(self._ids) > self._limit:
            self._ids.popitem(last=False)
        return False


def handle(event: dict[str, Any]) -> None:
    """Act on one event: here one line is printed; a desk would page someone or stop an order."""
    if event["phase"] == "open":
        reasons = ", ".join(feature["name"] for feature in event["top_features"][:3])
        print(f"{event['symbol']}: {event['severity']} anomaly, unusual: {reasons}", flush=True)
    elif event["phase"] == "close":
        summary = event["summary"]
        print(f"{event['symbol']}: over after {summary['duration_s']:.3f} s", flush=True)


def main(bootstrap: str, topic: str = "anomalies", group: str = "example-desk") -> None:
    """Read events until interrupted."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
        }
    )
    consumer.subscribe([topic])
    seen = SeenEvents()
    try:
        while True:
            message = consumer.poll(0.5)
            if message is None:
                continue
            error = message.error()
            if error is not None:
                raise KafkaException(error)
            event = json.loads(message.value() or b"{}")
            if not seen.is_repeat(event["event_id"]):
                handle(event)
            consumer.commit(message=message, asynchronous=True)
    except KeyboardInterrupt:
        pass
    finally:
        consumer.close()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:4])
