"""A bare consumer, the ceiling of the daemon: `consume()`, join the values, nothing else.

Run as a process: `python -m benchmarks.bare BOOTSTRAP TOPIC MESSAGES BATCH`; prints how many
messages it had at which time.
"""

from __future__ import annotations

import sys
import time
import uuid

import orjson
from confluent_kafka import Consumer

from detector.kafka import Connection, consumer_settings

SAMPLE_EVERY_S = 0.1


def main(bootstrap: str, topic: str, messages: int, batch: int) -> None:
    """Read the topic from its beginning until `messages` were joined."""
    connection = Connection(bootstrap, "bare")
    consumer = Consumer(consumer_settings(connection, f"bare-{uuid.uuid4().hex}"))
    consumer.subscribe([topic])
    total = size = 0
    samples = [(time.perf_counter(), 0)]
    while total < messages:
        fetched = consumer.consume(batch, 0.1)
        size += len(b"".join([message.value() or b"" for message in fetched]))
        total += len(fetched)
        now = time.perf_counter()
        if now - samples[-1][0] >= SAMPLE_EVERY_S or total >= messages:
            samples.append((now, total))
    consumer.close()
    sys.stdout.write(orjson.dumps({"samples": samples, "bytes": size}).decode() + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
