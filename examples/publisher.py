"""What a feed's publisher starts from: ticks as JSON lines in, one message a tick to Kafka.

Run: your-feed | python examples/publisher.py localhost:9092 [topic]

A line is one tick with the fields of docs/input.md, for example

    {"symbol": "ABC", "ts_event": "2026-11-27T14:30:00.25Z", "action": "M",
     "bid_px": 100.01, "bid_sz": 3, "ask_px": 100.02, "ask_sz": 5}

The symbol, or else the instrument's id, is the message's key: all ticks of an instrument have to be
in one partition, in order. What Kafka refuses ends the program, because a gap in the ticks would
look like an anomaly.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

from confluent_kafka import KafkaError, KafkaException, Message, Producer

FLUSH_WITHIN_S = 30.0


def publish(bootstrap: str, topic: str, lines: Iterable[str]) -> int:
    """Publish each line under its instrument's key; return how many Kafka has acknowledged."""
    acknowledged = 0

    def on_delivery(error: KafkaError | None, _: Message) -> None:
        nonlocal acknowledged
        if error is not None:
            raise KafkaException(error)
        acknowledged += 1

    # Without idempotence a retry could change the order of an instrument's ticks.
    producer = Producer({"bootstrap.servers": bootstrap, "enable.idempotence": True})
    for line in lines:
        tick = json.loads(line)
        key = str(tick.get("symbol") or tick["instrument_id"])
        while True:
            try:
                producer.produce(topic, line.strip().encode(), key, on_delivery=on_delivery)
                break
            except BufferError:  # the feed is faster than the broker: let the pipe wait
                producer.poll(0.1)
        producer.poll(0)
    left = producer.flush(FLUSH_WITHIN_S)
    if left:
        raise SystemExit(f"{left} ticks were not acknowledged within {FLUSH_WITHIN_S:.0f} s")
    return acknowledged


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3}:
        raise SystemExit(__doc__)
    count = publish(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "ticks", sys.stdin)
    print(f"{count} ticks published")
