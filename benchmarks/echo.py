"""The ceiling of the latency row: consume, and produce as many messages as the daemon does.

Run as `python -m benchmarks.echo BOOTSTRAP TICKS_TOPIC OUT_TOPIC EVENTS.json`. For every tick that
led the daemon to events it produces that many messages of their mean size, with the daemon's own
consumer, micro-batch bounds and producer settings, and does nothing else. Prints `ready` when it
has its partitions; SIGTERM ends it.
"""

from __future__ import annotations

import signal
import sys
import threading
import uuid
from pathlib import Path

import orjson
from confluent_kafka import Consumer

from detector.config import BatchConfig
from detector.kafka import Connection, Publisher, consumer_settings


def main(bootstrap: str, ticks: str, out: str, events: Path) -> None:
    """Echo until told to stop."""
    plan = orjson.loads(events.read_bytes())
    wanted = {(partition, offset): n for partition, offset, n in plan["places"]}
    filling = "x" * max(0, int(plan["bytes"]) - 120)
    headers = [(f"header{i}", b"x" * 20) for i in range(6)]
    batch = BatchConfig()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    publisher = Publisher(Connection(bootstrap, "echo"))
    consumer = Consumer(consumer_settings(Connection(bootstrap, "echo"), uuid.uuid4().hex))
    consumer.subscribe([ticks], on_assign=lambda *_: print("ready", flush=True))
    while not stop.is_set():
        fetched = consumer.consume(1, 0.1)
        fetched += consumer.consume(batch.max_size - 1, batch.max_delay_ms / 1e3)
        for message in fetched:
            place = message.partition(), message.offset()
            if place not in wanted:
                continue
            source = {"topic": ticks, "partition": place[0], "offset": place[1]}
            value = orjson.dumps({"source": source, "filling": filling})
            for _ in range(wanted[place]):
                publisher.publish(out, message.key(), value, headers)
    consumer.close()
    publisher.close()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]))
