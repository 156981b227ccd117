"""The load generator of the latency row: open loop, in a process of its own.

Run as `python -m benchmarks.load BOOTSTRAP TOPIC PARTITIONS TICKS.npy RATE COUNT SEED`. When each
tick is to be sent is fixed before the first one is: arrivals of a Poisson process, which no reader
can slow down. That intended time travels in a header, as int64 ns since the epoch; a tick that
could only be sent later still counts from there, so that a stall is not hidden by the ticks it
held up (coordinated omission). A rate of 0 sends as fast as the brokers take it.

References
----------
Tene, "How NOT to measure latency" (2013): coordinated omission.
"""

from __future__ import annotations

import sys
import time
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from confluent_kafka import Producer

from detector.ticks import TICK, TickBatch

HEADER = "intended"
LEAD_S = 0.5
NAP_S = 0.0002
PIECE_TICKS = 20_000
SIZE = TICK.itemsize


@dataclass(frozen=True, slots=True)
class Piece:
    """Some consecutive ticks as bytes, with the key and the partition of each."""

    data: bytes
    names: list[bytes]
    homes: list[int]


class Tape:
    """A tape on disk that is gone round as often as needed, each time later by its own length."""

    def __init__(self, path: Path, partitions: int) -> None:
        self._ticks = np.load(path, mmap_mode="r")
        keys = TickBatch.from_ticks(self._ticks).keys
        self._homes: list[int] = (keys % partitions).tolist()
        self._names = [b"%d" % key for key in keys.tolist()]
        ts = self._ticks["ts_event"]
        self._length_ns = np.uint64(int(ts.max()) - int(ts.min()) + 1)

    def pieces(self, count: int) -> Iterator[Piece]:
        """Give `count` ticks, in pieces that are made quickly."""
        lap = np.uint64(0)
        while count > 0:
            for first in range(0, min(count, len(self._ticks)), PIECE_TICKS):
                stop = min(first + PIECE_TICKS, len(self._ticks), first + count)
                ticks = self._ticks[first:stop].copy()
                for name in ("ts_event", "ts_recv"):
                    ticks[name] += lap * self._length_ns
                yield Piece(ticks.tobytes(), self._names[first:stop], self._homes[first:stop])
                count -= stop - first
                if count <= 0:
                    return
            lap += np.uint64(1)


def main(
    bootstrap: str, topic: str, partitions: int, ticks: Path, rate: float, count: int, seed: int
) -> None:
    """Send `count` ticks at `rate` a second, one a message, and tell how late the sends were."""
    tape = Tape(ticks, partitions)
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "linger.ms": 1,
            "enable.idempotence": True,
            "queue.buffering.max.messages": 100_000,
        }
    )
    producer.list_topics(topic, timeout=10)
    rng = np.random.default_rng(seed)
    start = last = time.time_ns() + int(LEAD_S * 1e9)
    latest = 0
    for piece in tape.pieces(count):
        gaps = rng.exponential(1e9 / rate if rate else 0.0, len(piece.homes))
        intended = (last + np.cumsum(gaps).astype(np.int64)).tolist()
        last = intended[-1]
        for first, stop in _due(intended):
            for i in range(first, stop):
                header = {HEADER: intended[i].to_bytes(8, "little")}
                value = piece.data[i * SIZE : (i + 1) * SIZE]
                while True:
                    try:
                        producer.produce(
                            topic, value, piece.names[i], piece.homes[i], headers=header
                        )
                    except BufferError:
                        producer.poll(0.001)
                    else:
                        break
            latest = max(latest, time.time_ns() - intended[first])
            producer.poll(0)
    ended = time.time_ns()
    left = producer.flush(30.0)
    facts = {
        "sent": count - left,
        "seconds": (ended - start) / 1e9,
        "most_behind_ms": latest / 1e6,
    }
    sys.stdout.write(orjson.dumps(facts).decode() + "\n")


def _due(intended: list[int]) -> Iterator[tuple[int, int]]:
    """Give runs of ticks whose time has come: first, and one past the last."""
    sent = 0
    while sent < len(intended):
        due = bisect_right(intended, time.time_ns(), sent, min(sent + 1000, len(intended)))
        if due > sent:
            yield sent, due
            sent = due
        else:
            time.sleep(max(NAP_S, (intended[sent] - time.time_ns()) / 1e9))


if __name__ == "__main__":
    main(
        sys.argv[1],
        sys.argv[2],
        int(sys.argv[3]),
        Path(sys.argv[4]),
        float(sys.argv[5]),
        int(sys.argv[6]),
        int(sys.argv[7]),
    )
