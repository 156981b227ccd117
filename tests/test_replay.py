"""Files back onto a topic: which ticks share a message, under which key, and when it is sent."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import orjson
import pytest

from detector.replay import Message, Progress, group, parse_speed, replay
from detector.ticks import (
    UNDEFINED_TIME,
    TickBatch,
    VectorBatch,
    empty_ticks,
    instrument_key,
)
from detector.wire import make_decoder

MS = 1_000_000


def batch_of(timeline: str, step_ms: int = 10, **symbols: str) -> TickBatch:
    """Ticks from a timeline: every character is a step of event time, a letter an instrument.

    `A.B` is a tick of A at 0 ms and one of B at 20 ms.
    """
    at = [(step, letter) for step, letter in enumerate(timeline) if letter != "."]
    ticks = empty_ticks(len(at))
    ticks["ts_event"] = [step * step_ms * MS for step, _ in at]
    ticks["instrument_id"] = [ord(letter) for _, letter in at]
    ticks["sequence"] = np.arange(len(at))
    return TickBatch.from_ticks(ticks, symbols={ord(key): name for key, name in symbols.items()})


def told(messages: list[Message]) -> list[tuple[str, int, int]]:
    """Key, number of ticks and due time in ms."""
    return [(message.key.decode(), message.ticks, message.due_ns // MS) for message in messages]


class TestGroup:
    """Which ticks share a message."""

    def test_one_tick_a_message(self) -> None:
        """With one tick a message every tick is due at its own time."""
        messages = list(group([batch_of("A.BA", A="AAPL", B="IBM")]))
        assert told(messages) == [("AAPL", 1, 0), ("IBM", 1, 20), ("AAPL", 1, 30)]

    def test_a_full_message_is_due_with_its_last_tick(self) -> None:
        """Ticks of one instrument share a message; those of others between them do not matter."""
        messages = list(group([batch_of("ABABA", A="A", B="B")], batch_ticks=2))
        assert told(messages) == [("A", 2, 20), ("B", 2, 30), ("A", 1, 40)]

    def test_a_tick_does_not_wait_forever(self) -> None:
        """A message that does not fill is due when its first tick has waited long enough."""
        messages = list(group([batch_of("A.....B....B", A="A", B="B")], batch_ticks=3, hold_s=0.03))
        assert told(messages) == [("A", 1, 30), ("B", 1, 90), ("B", 1, 110)]

    def test_the_rest_is_due_at_the_end(self) -> None:
        """What has not filled when the ticks end is due with the last of them."""
        messages = list(group([batch_of("A.B", A="A", B="B")], batch_ticks=9, hold_s=10))
        assert told(messages) == [("A", 1, 20), ("B", 1, 20)]

    def test_batches_do_not_matter(self) -> None:
        """A message may hold ticks of two batches."""
        batch = batch_of("AABBAB", A="A", B="B")
        whole = list(group([batch], batch_ticks=3))
        assert list(group([batch[:1], batch[1:4], batch[4:]], batch_ticks=3)) == whole

    def test_late_and_timeless_ticks_hold_nothing_up(self) -> None:
        """A tick before the last one, or without a time, is due with the one before it."""
        batch = batch_of("AAAA", A="A")
        batch.ticks["ts_event"] = [50 * MS, 10 * MS, UNDEFINED_TIME, 60 * MS]
        assert [m.due_ns // MS for m in group([batch])] == [50, 50, 50, 60]

    def test_the_key_of_an_instrument_never_changes(self) -> None:
        """A symbol that is learnt later does not move its instrument to another partition."""
        nameless = batch_of("A")
        named = batch_of("A", A="AAPL")
        assert {m.key for m in group([nameless, named])} == {b"0:65"}

    def test_json_messages(self) -> None:
        """Messages can be JSON, with the symbol."""
        (message,) = group([batch_of("AA", A="AAPL")], "json", batch_ticks=2)
        assert [row["symbol"] for row in orjson.loads(message.value)] == ["AAPL", "AAPL"]
        batch = make_decoder("json").decode([message.value], [0], 0).batch
        assert isinstance(batch, TickBatch)
        assert batch.ticks.tolist() == batch_of("AA").ticks.tolist()

    def test_vector_messages(self) -> None:
        """Vectors keep instrument, times and values, and name their columns in a header."""
        key = instrument_key(7, 8)
        values = np.array([[1.5, -2.0], [np.nan, 0.25]], np.float32)
        batch = VectorBatch(
            values,
            np.full(2, key),
            np.array([5, 6]),
            0,
            np.arange(2),
            np.zeros(2, np.int32),
            {key: "cpu"},
        )
        (message,) = group([batch], "vector", batch_ticks=2, columns=("x", "y"))
        assert message.headers == (("columns", b"x,y"),)
        assert message.key == b"cpu"
        decoder = make_decoder("vector", columns=("y", "x"))
        found = decoder.decode([message.value], [0], 0, [message.headers]).batch
        assert isinstance(found, VectorBatch)
        np.testing.assert_array_equal(found.values[:, ::-1], values)
        assert found.keys.tolist() == [key, key]
        assert found.ts_event.tolist() == [5, 6]

    def test_nonsense_is_refused(self) -> None:
        """Sizes below one, negative waits and the wrong kind of batch say what is allowed."""
        with pytest.raises(ValueError, match="batch_ticks is 0"):
            list(group([], batch_ticks=0))
        with pytest.raises(ValueError, match=r"hold_s is -1.*allowed"):
            list(group([], hold_s=-1))
        with pytest.raises(ValueError, match="vector for vectors"):
            list(group([batch_of("A")], "vector"))


class Timeline:
    """A clock that only sleeping and publishing move; notes what was published when."""

    def __init__(self, publishing_takes_s: Callable[[int], float] = lambda _: 0.0) -> None:
        self.now_s = 1000.0
        self.sent: list[tuple[bytes, float]] = []
        self._takes_s = publishing_takes_s

    def clock(self) -> float:
        """Tell the time."""
        return self.now_s

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        assert seconds > 0
        self.now_s += seconds

    def publish(self, message: Message) -> None:
        """Note the message, and take the time it takes."""
        self.sent.append((message.value, round(self.now_s - 1000, 6)))
        self.now_s += self._takes_s(len(self.sent))

    def run(self, messages: list[Message], speed: float) -> Progress:
        """Replay messages on this clock."""
        return replay(messages, self.publish, speed=speed, clock=self.clock, sleep=self.sleep)


def due_at(*seconds: float) -> list[Message]:
    """Messages due at these event times, numbered."""
    return [
        Message(b"k", bytes([number]), round((50 + at) * 1e9), 2)
        for number, at in enumerate(seconds)
    ]


class TestReplay:
    """When messages are sent."""

    @pytest.mark.parametrize(
        ("speed", "expected"), [(1.0, [0, 2, 2, 12]), (10.0, [0, 0.2, 0.2, 1.2])]
    )
    def test_gaps_are_kept(self, speed: float, expected: list[float]) -> None:
        """Messages are as far apart as their due times are, divided by the speed."""
        timeline = Timeline()
        done = timeline.run(due_at(0, 2, 2, 12), speed)
        assert [at for _, at in timeline.sent] == expected
        assert done == Progress(4, 8, 62_000_000_000, 0.0)

    def test_max_does_not_wait(self) -> None:
        """At full speed nothing waits and nothing is behind."""
        timeline = Timeline()
        done = timeline.run(due_at(0, 2, 12), math.inf)
        assert [at for _, at in timeline.sent] == [0, 0, 0]
        assert done.behind_s == 0.0

    def test_lost_time_is_caught_up_with(self) -> None:
        """A slow publish makes the next messages late, not all of them; the lag is reported."""
        timeline = Timeline(lambda number: 2.5 if number == 1 else 0.0)
        done = timeline.run(due_at(0, 1, 2, 3), 1.0)
        assert [at for _, at in timeline.sent] == [0, 2.5, 2.5, 3]
        assert done.behind_s == pytest.approx(1.5)

    def test_progress_is_told_now_and_then_and_at_the_end(self) -> None:
        """Progress is not told for every message, but the last word is complete."""
        timeline = Timeline()
        heard: list[Progress] = []
        messages = due_at(*(number / 100 for number in range(100)))
        done = replay(
            messages,
            timeline.publish,
            speed=1.0,
            clock=timeline.clock,
            sleep=timeline.sleep,
            on_progress=heard.append,
        )
        assert heard[-1] == done
        assert 5 <= len(heard) <= 12
        assert [p.messages for p in heard] == sorted(p.messages for p in heard)

    def test_nothing_to_replay(self) -> None:
        """No messages are no error."""
        assert Timeline().run([], 1.0) == Progress()

    def test_a_failing_publish_is_not_hidden(self) -> None:
        """What `publish` raises ends the replay."""

        def fail(_: Message) -> None:
            raise ConnectionError("broker gone")

        with pytest.raises(ConnectionError, match="broker gone"):
            replay(due_at(0), fail, speed=math.inf)


class TestParseSpeed:
    """The speed on the command line."""

    def test_speeds(self) -> None:
        """A number above zero, or max."""
        assert parse_speed("1") == 1.0
        assert parse_speed("0.5") == 0.5
        assert parse_speed("max") == math.inf

    @pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "fast", ""])
    def test_nonsense_is_refused(self, text: str) -> None:
        """Anything else names what is allowed."""
        with pytest.raises(ValueError, match="allowed are 'max'"):
            parse_speed(text)
