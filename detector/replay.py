"""Files of ticks back onto a topic: grouping into messages, and keeping the pace of their time.

`group` turns batches into messages, each of one instrument and due at an event time; `replay` hands
them to a `publish` callable when they are due. Neither knows Kafka: the caller's `publish` does,
and it is the one to block when a broker is slow.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from detector.ticks import NS_PER_S, TICK, Batch, TickBatch, VectorBatch, split_key
from detector.wire import COLUMNS_HEADER, Format, encode_json, encode_vector

HOLD_S: Final = 0.1
"""How long, in event time, a tick may wait for others of its instrument to share its message."""

_PROGRESS_EVERY_S: Final = 0.1


class Message(NamedTuple):
    """One Kafka message to be.

    Parameters
    ----------
    key
        The instrument's symbol, or `publisher:id`: it keeps an instrument in one partition.
    value
        The encoded ticks.
    due_ns
        Event time, ns since the epoch, before which it could not have been sent.
    ticks
        Ticks in it.
    headers
        `columns` for vectors; otherwise none.
    """

    key: bytes
    value: bytes
    due_ns: int
    ticks: int
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a replay has come.

    Parameters
    ----------
    messages, ticks
        Published so far.
    event_ns
        Event time of the latest message, ns since the epoch; 0 before the first.
    behind_s
        The most by which a message was published after it was due.
    """

    messages: int = 0
    ticks: int = 0
    event_ns: int = 0
    behind_s: float = 0.0


def parse_speed(text: str) -> float:
    """Read a speed: `max` (infinity), or how many times faster than the ticks' own time."""
    try:
        speed = math.inf if text == "max" else float(text)
    except ValueError:
        speed = math.nan
    if not speed > 0 or (math.isinf(speed) and text != "max"):
        raise ValueError(f"speed is {text!r}; allowed are 'max' and numbers above 0, such as 1, 10")
    return speed


def group(
    batches: Iterable[Batch],
    fmt: Format = "dbn",
    *,
    batch_ticks: int = 1,
    hold_s: float = HOLD_S,
    columns: tuple[str, ...] | None = None,
) -> Iterator[Message]:
    """Group ticks into messages of one instrument each, in the order in which they are due.

    A message is due when its last tick is, or when its first tick has waited for `hold_s`. Ticks of
    one instrument keep their order; a tick that came late is due with the one before it.

    Parameters
    ----------
    batches
        In event-time order: `TickBatch` for "dbn" and "json", `VectorBatch` for "vector".
    fmt
        Encoding of the messages.
    batch_ticks
        Most ticks in a message.
    hold_s
        The longest a tick waits for others, in event time, s.
    columns
        For "vector": the names to send in the `columns` header; None sends no header.

    Raises
    ------
    ValueError
        `batch_ticks` below 1, a negative `hold_s`, or batches of the other kind.
    """
    if batch_ticks < 1 or not hold_s >= 0:
        raise ValueError(
            f"batch_ticks is {batch_ticks}, hold_s is {hold_s}; allowed are 1 and more, 0 and more"
        )
    groups = _Groups(_Encoder(fmt, columns), batch_ticks, int(hold_s * NS_PER_S))
    for batch in batches:
        yield from groups.add(batch)
    yield from groups.rest()


def replay(
    messages: Iterable[Message],
    publish: Callable[[Message], None],
    *,
    speed: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    on_progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Publish messages at the pace of their event times.

    The first message is published at once; every other one as long after it as their due times are
    apart, divided by `speed`. Waiting is always for a point in time, never for a gap, so that time
    lost to a slow `publish` is caught up with and errors do not add up.

    Parameters
    ----------
    messages
        As `group` gives them.
    publish
        Sends one message; may block.
    speed
        Times faster than event time; infinity does not wait at all.
    clock, sleep
        Seconds from any origin, and waiting for seconds.
    on_progress
        Called now and then, and at the end.

    Returns
    -------
    Progress
        All of it.
    """
    count = ticks = event_ns = 0
    behind_s = 0.0
    start_s = told_s = clock()
    first_ns: int | None = None
    for message in messages:
        now_s = clock()
        if first_ns is None:
            first_ns, start_s = message.due_ns, now_s
        if not math.isinf(speed):
            due_s = start_s + (message.due_ns - first_ns) / NS_PER_S / speed
            if due_s > now_s:
                sleep(due_s - now_s)
            else:
                behind_s = max(behind_s, now_s - due_s)
        publish(message)
        count += 1
        ticks += message.ticks
        event_ns = message.due_ns
        if on_progress is not None and now_s - told_s >= _PROGRESS_EVERY_S:
            told_s = now_s
            on_progress(Progress(count, ticks, event_ns, behind_s))
    done = Progress(count, ticks, event_ns, behind_s)
    if on_progress is not None:
        on_progress(done)
    return done


class _Encoder:
    """Ticks of one instrument to message values, by way of one bytes object per tick."""

    def __init__(self, fmt: Format, columns: tuple[str, ...] | None) -> None:
        self._fmt = fmt
        listed = ",".join(columns or ()).encode()
        self.headers = ((COLUMNS_HEADER, listed),) if columns and fmt == "vector" else ()

    def records(self, batch: Batch) -> list[bytes]:
        """Bytes of every tick."""
        if isinstance(batch, VectorBatch) != (self._fmt == "vector"):
            raise ValueError(
                f"format is {self._fmt!r}, the file holds {type(batch).__name__}; allowed are dbn "
                "and json for ticks, vector for vectors"
            )
        if isinstance(batch, TickBatch):
            data, size = np.ascontiguousarray(batch.ticks).tobytes(), TICK.itemsize
        else:
            rows = np.zeros(len(batch), self._row(batch.values.shape[1]))
            rows["ts_event"], rows["values"] = batch.ts_event, batch.values
            data, size = rows.tobytes(), rows.dtype.itemsize
        return [data[at : at + size] for at in range(0, len(data), size)]

    def value(self, records: list[bytes], key: int, symbol: str | None) -> bytes:
        """Encode a message with these ticks of one instrument."""
        data = b"".join(records)
        if self._fmt == "dbn":
            return data
        if self._fmt == "json":
            return encode_json(np.frombuffer(data, TICK), symbol)
        rows = np.frombuffer(data, self._row((len(records[0]) - 8) // 4))
        return encode_vector(np.full(len(rows), key, np.int64), rows["ts_event"], rows["values"])

    @staticmethod
    def _row(columns: int) -> np.dtype[np.void]:
        return np.dtype([("ts_event", "<i8"), ("values", "<f4", (columns,))])


class _Groups:
    """The messages being filled, one per instrument, and those that wait longest first."""

    def __init__(self, encoder: _Encoder, batch_ticks: int, hold_ns: int) -> None:
        self._encoder = encoder
        self._batch_ticks = batch_ticks
        self._hold_ns = hold_ns
        self._open: dict[int, list[bytes]] = {}
        # (event time of the first tick, instrument, its records): stale once the message is sent,
        # which is when `_open` no longer holds that very list.
        self._waiting: deque[tuple[int, int, list[bytes]]] = deque()
        self._names: dict[int, str | None] = {}
        self._kafka_keys: dict[int, bytes] = {}
        self._now_ns = 0

    def add(self, batch: Batch) -> Iterator[Message]:
        """Take ticks in; gives the messages that are due by then."""
        keys = batch.keys
        self._learn(keys, batch)
        times = np.maximum.accumulate(np.maximum(batch.ts_event, self._now_ns))
        rows = zip(keys.tolist(), times.tolist(), self._encoder.records(batch), strict=True)
        for key, now_ns, record in rows:
            self._now_ns = now_ns
            if self._waiting and self._waiting[0][0] + self._hold_ns < now_ns:
                yield from self._expired()
            records = self._open.get(key)
            if records is None:
                records = self._open[key] = []
                if self._batch_ticks > 1:
                    self._waiting.append((now_ns, key, records))
            records.append(record)
            if len(records) == self._batch_ticks:
                yield self._close(key, now_ns)

    def rest(self) -> Iterator[Message]:
        """Give what is left when the ticks have ended."""
        for key in list(self._open):
            yield self._close(key, self._now_ns)

    def _expired(self) -> Iterator[Message]:
        while self._waiting and self._waiting[0][0] + self._hold_ns < self._now_ns:
            first_ns, key, records = self._waiting.popleft()
            if self._open.get(key) is records:
                yield self._close(key, first_ns + self._hold_ns)

    def _close(self, key: int, due_ns: int) -> Message:
        records = self._open.pop(key)
        value = self._encoder.value(records, key, self._names[key])
        return Message(self._kafka_keys[key], value, due_ns, len(records), self._encoder.headers)

    def _learn(self, keys: npt.NDArray[np.int64], batch: Batch) -> None:
        """Fix an instrument's name when it is first seen: another key is another partition."""
        for key in np.unique(keys).tolist():
            if key not in self._names:
                symbol = self._names[key] = batch.symbols.get(key)
                name = "{}:{}".format(*split_key(key)) if symbol is None else symbol
                self._kafka_keys[key] = name.encode()
