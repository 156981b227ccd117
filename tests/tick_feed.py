"""A feed that does not end: a tape's ticks at a multiple of their pace, again and again."""

from __future__ import annotations

import threading
import time
from types import TracebackType
from typing import Final, Self

import numpy as np
from confluent_kafka import Producer

from detector.ticks import TickArray

_SLICE_S: Final = 0.1
POISON: Final = b"not a tick"


class TickFeed:
    """Publishes from `with` to its end, in a thread.

    Every round has later times than the one before it: the market goes on, nothing is repeated.

    Parameters
    ----------
    bootstrap, topic
        Where to.
    ticks
        In the order of `ts_event`.
    speed
        Seconds of event time in a second.
    """

    def __init__(self, bootstrap: str, topic: str, ticks: TickArray, speed: float) -> None:
        self._producer = Producer({"bootstrap.servers": bootstrap, "log_level": 0})
        self._topic, self._ticks, self._speed = topic, ticks, speed
        times = ticks["ts_event"].astype(np.int64)
        self._since_ns = times - times[0]
        self._round_ns = int(self._since_ns[-1]) + 10**9
        self._ended = threading.Event()
        self._poisoned = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tick-feed")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def poison(self) -> None:
        """Put what is no tick among the ticks from now on."""
        self._poisoned.set()

    def stop(self) -> None:
        """Fall silent, with all that was published acknowledged."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
            self._producer.flush(10)

    def _run(self) -> None:
        began, sent_ns = time.monotonic(), 0
        while not self._ended.wait(_SLICE_S):
            until_ns = int((time.monotonic() - began) * self._speed * 1e9)
            for turn in range(sent_ns // self._round_ns, until_ns // self._round_ns + 1):
                start = turn * self._round_ns
                self._send(turn, max(sent_ns - start, 0), until_ns - start)
            sent_ns = until_ns
            if self._poisoned.is_set():
                self._producer.produce(self._topic, key=b"bad", value=POISON)
            self._producer.poll(0)

    def _send(self, turn: int, since_ns: int, until_ns: int) -> None:
        """Publish what is between two times of a round, a message an instrument."""
        first, last = np.searchsorted(self._since_ns, (since_ns, until_ns))
        rows = self._ticks[first:last].copy()
        for name in ("ts_event", "ts_recv"):
            rows[name] += np.uint64(turn * self._round_ns)
        for instrument in np.unique(rows["instrument_id"]):
            value = rows[rows["instrument_id"] == instrument].tobytes()
            self._producer.produce(self._topic, key=str(int(instrument)).encode(), value=value)
