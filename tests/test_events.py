"""Episodes against their oracle, and what an event says.

score   . . X X x x . . . . . .        X at or above the threshold, x above the closing level
event       open    ...quiet_s... close
"""

from __future__ import annotations

from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.events import (
    EVENT_BYTES,
    TOP_FEATURES,
    AnomalyEvent,
    EpisodeBook,
    EpisodePolicy,
    Source,
    Summary,
    TopFeature,
    Transition,
    episode_id,
    event_id,
    event_schema,
    flag_labels,
    raised_by,
    severity_of,
)
from detector.naming import Name
from tests.oracle_episodes import EpisodeOracle

SECOND = 1_000_000_000
POLICY = EpisodePolicy(close_ratio=0.5, quiet_s=2.0, update_interval_s=3.0)


def ticks_of(rows: list[tuple[int, int, float]], slots: int = 4) -> dict[str, Any]:
    """Columns of a batch from `(instrument, seconds, score)`; the threshold is 10."""
    n = len(rows)
    measures = np.full((6, n), np.nan)
    measures[0] = [score for _, _, score in rows]
    measures[1] = 10.0
    measures[2:] = np.arange(n)
    keys = np.array([key for key, _, _ in rows], np.int64)
    return {
        "slots": (keys % slots).astype(np.int32),
        "keys": keys,
        "ts": np.array([ts * SECOND for _, ts, _ in rows], np.int64),
        "offsets": np.arange(n, dtype=np.int64) + 100,
        "indices": np.zeros(n, np.int32),
        "measures": measures,
    }


def phases(found: list[Transition]) -> list[tuple[str, int]]:
    """The phases with their rows."""
    return [(t.phase, t.row) for t in found]


def test_burst_is_one_episode() -> None:
    """A hundred alarms in a row open one episode, and it closes once."""
    rows = [(1, 1, 50.0)] * 100 + [(1, 2, 1.0), (1, 3, 1.0), (1, 4, 1.0)]
    found = EpisodeBook(4, POLICY).step(**ticks_of(rows))
    assert phases(found) == [("open", 0), ("close", 101)]
    assert found[1].ticks == 101
    assert found[1].alarms == 100
    assert found[1].reason == "quiet"


def test_hysteresis_keeps_episode_open() -> None:
    """Scores between the closing level and the threshold keep an episode but do not open one."""
    rows = [(1, 0, 6.0), (1, 1, 12.0), (1, 2, 6.0), (1, 3, 6.0), (1, 4, 4.0), (1, 5, 4.0)]
    found = EpisodeBook(4, POLICY).step(**ticks_of(rows))
    assert phases(found) == [("open", 1), ("close", 5)]
    assert found[1].ts_alive == 3 * SECOND


def test_updates_keep_their_distance() -> None:
    """Updates come no more often than the policy says, in event time."""
    found = EpisodeBook(4, POLICY).step(**ticks_of([(1, t, 20.0) for t in range(10)]))
    assert phases(found) == [("open", 0), ("update", 3), ("update", 6), ("update", 9)]


def test_silent_instrument_closes_on_watermark() -> None:
    """Another instrument's ticks move the watermark past a silent one's deadline."""
    found = EpisodeBook(4, POLICY).step(**ticks_of([(1, 0, 20.0), (2, 1, 1.0), (2, 2, 1.0)]))
    assert phases(found) == [("open", 0), ("close", 2)]
    assert (found[1].key, found[1].reason) == (1, "silent")


def test_lagging_instrument_keeps_its_episode() -> None:
    """An instrument whose clock is far behind the watermark still gets one episode, not many."""
    rows = [(2, 1000, 1.0), *((1, t, 20.0) for t in range(2))]
    found = EpisodeBook(4, POLICY).step(**ticks_of(rows))
    assert phases(found) == [("open", 1)]


def test_evicted_instrument_closes() -> None:
    """A slot that goes to another instrument closes the first one's episode with that reason."""
    found = EpisodeBook(4, POLICY).step(**ticks_of([(1, 0, 20.0), (5, 1, 20.0)]))
    assert phases(found) == [("open", 0), ("close", 1), ("open", 1)]
    assert (found[1].key, found[1].reason) == (1, "evicted")


def test_close_tells_the_peak() -> None:
    """A closing event carries what was measured at the highest score, wherever that was."""
    book = EpisodeBook(4, POLICY)
    book.step(**ticks_of([(1, 0, 20.0), (1, 0, 70.0), (1, 1, 30.0)]))
    assert book.improved_peaks() == [(1, 1)]
    found = book.step(**ticks_of([(1, 5, 1.0)]))
    assert found[0].peak == (70.0, 10.0, 1.0, 1.0, 1.0, 1.0)
    assert found[0].peak_row == -1


def explained(book: EpisodeBook, slot: int, number: int) -> None:
    """Explain a slot's peak by a feature of this number."""
    book.remember(slot, np.array([number], np.int16), np.full((1, 3), float(number)))


def test_explanation_outlives_a_second_episode_in_the_batch_that_closes_the_first() -> None:
    """An old episode closes and a new one opens and closes at once: the old one stays explained."""
    book = EpisodeBook(4, POLICY)
    book.step(**ticks_of([(1, 0, 20.0)]))
    explained(book, 1, 7)
    found = book.step(**ticks_of([(1, 5, 1.0), (1, 6, 20.0), (1, 9, 1.0)]))
    assert phases(found) == [("close", 0), ("open", 1), ("close", 2)]
    assert [t.peak_row for t in found] == [-1, 1, 1]
    assert book.remembered(1)[0].tolist() == [7]


def test_explanations_of_closed_episodes_are_forgotten() -> None:
    """What is kept is bounded by the open episodes, not by all there ever were."""
    book = EpisodeBook(1000, POLICY)
    for key in range(1000):
        book.step(**ticks_of([(key, 10 * key, 20.0)], slots=1000))
        explained(book, key, 1)
        assert len(book._explained) <= 2 * book.open_episodes + 65


def test_more_transitions_than_the_buffer_holds() -> None:
    """A thousand episodes that open and close at one tick are all told."""
    rows = [(k, 0, 20.0) for k in range(1, 1001)] + [(1001, 9, 1.0)]
    found = EpisodeBook(2000, POLICY).step(**ticks_of(rows, slots=2000))
    assert [t.phase for t in found] == ["open"] * 1000 + ["close"] * 1000
    assert [t.key for t in found[1000:]] == list(range(1, 1001))


TICK = st.tuples(
    st.integers(0, 7), st.integers(-1, 3), st.sampled_from([0.0, 4.0, 5.0, 9.0, 10.0, 30.0, np.nan])
)


@settings(max_examples=300, deadline=None)
@given(st.lists(TICK, max_size=60), st.integers(1, 20))
def test_any_stream_in_any_batches_equals_the_oracle(
    steps: list[tuple[int, int, float]], size: int
) -> None:
    """Whatever comes, in whatever batches, transitions and their facts are the oracle's."""
    now, rows = 0, []
    for key, step, score in steps:
        now += step
        rows.append((key, max(0, now), score))
    columns = ticks_of(rows)
    oracle, book = EpisodeOracle(POLICY), EpisodeBook(4, POLICY)
    expected: list[Any] = []
    for i, (key, ts, score) in enumerate(rows):
        place = (100 + i, 0)
        expected += oracle.step(i, key % 4, key, ts * SECOND, place, score, 10.0)
    got: list[Any] = []
    for a in range(0, len(rows), size):
        part = {
            name: column[:, a : a + size] if name == "measures" else column[a : a + size]
            for name, column in columns.items()
        }
        for t in book.step(**part):
            facts = (t.ts_start, t.ts_alive, t.open_offset, t.open_index, t.ticks, t.alarms)
            reason = t.reason if t.phase == "close" else ""
            got.append((t.phase, reason, a + t.row, t.key, facts, t.peak[0]))
    assert got == expected


def event(**changes: Any) -> AnomalyEvent:
    """A valid event, with some fields changed."""
    fields: dict[str, Any] = {
        "event_id": "0" * 32,
        "episode_id": "1" * 32,
        "phase": "open",
        "symbol": "AAPL",
        "publisher_id": 2,
        "instrument_id": 7,
        "ts_event": 5,
        "score": 12.5,
        "threshold": 10.0,
        "severity": "minor",
        "severity_value": 1.25,
        "stage1_error": 1.0,
        "stage2_error": 2.0,
        "stage2_share": 0.25,
        "raised_by": "combination",
        "top_features": (TopFeature("spread", 9.0, 1.0, 0.75),),
        "flags": ("late",),
        "model": ("v1", "a" * 64),
        "source": Source("ticks", 0, 3, 1),
        "summary": None,
    }
    return AnomalyEvent(**{**fields, **changes})


SUMMARY = Summary("quiet", 1, 5, 4e-9, 3, 2)


def test_event_is_valid_against_its_schema() -> None:
    """An open and a closing event satisfy the published schema."""
    for given_event in (event(), event(phase="close", summary=SUMMARY, flags=())):
        jsonschema.validate(given_event.to_dict(ts_detected=9), event_schema())


@pytest.mark.parametrize(
    "wrong",
    [
        {"summary": SUMMARY},
        {"phase": "close"},
        {"event_id": "x"},
        {"severity": "fatal"},
        {"threshold": 0.0},
        {"flags": ("tired",)},
    ],
)
def test_schema_refuses_what_no_event_may_be(wrong: dict[str, Any]) -> None:
    """The schema is strict enough to notice a wrong field."""
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(event(**wrong).to_dict(ts_detected=9), event_schema())


def test_no_event_needs_more_than_its_topic_is_asked_for() -> None:
    """With every field at its longest, key and headers included, and features of 500 characters."""
    longest = event(
        phase="close",
        symbol="S" * 64,
        summary=SUMMARY,
        name=Name("t" * 64, 1 / 3, "t" * 64),
        top_features=(TopFeature("f" * 500, 1 / 3, 1 / 3, 1 / 3),) * TOP_FEATURES,
        flags=flag_labels(0xFFFF),
        model=("v" * 200, "a" * 64),
        source=Source("t" * 249, 2**31 - 1, 2**62, 2**31 - 1),
    )
    headers = sum(len(name) + len(value) for name, value in longest.headers())
    assert len(longest.to_json(2**62)) + headers + 64 < EVENT_BYTES


def test_ids_depend_on_place_and_phase_only() -> None:
    """The same place gives the same id, any other place or phase another one."""
    episode = episode_id("ticks", 0, 7, 3, 1)
    assert episode == episode_id("ticks", 0, 7, 3, 1)
    places = [("ticks", 0, 7, 3, 1), ("tocks", 0, 7, 3, 1), ("ticks", 1, 7, 3, 1)]
    places += [("ticks", 0, 8, 3, 1), ("ticks", 0, 7, 4, 1), ("ticks", 0, 7, 3, 2)]
    assert len({episode_id(*place) for place in places}) == len(places)
    source = Source("ticks", 0, 3, 1)
    assert event_id(episode, "open", source) != event_id(episode, "close", source)


def test_severity_has_three_labels() -> None:
    """Twice the threshold is major, four times is critical."""
    assert [severity_of(value) for value in (0.8, 1.0, 1.99, 2.0, 3.9, 4.0, 99.0)] == [
        "minor", "minor", "minor", "major", "major", "critical", "critical"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("score", "without", "expected"),
    [
        (12.0, 11.0, "values"),
        (12.0, 10.0, "values"),
        (12.0, 9.9, "combination"),
        (9.0, 8.5, "values"),  # keeps the episode open, as 8 does
        (9.0, 7.5, "combination"),
    ],
)
def test_what_raised_an_alarm_is_what_it_takes(score: float, without: float, expected: str) -> None:
    """The values alone, where they reach the threshold (or what holds it open) without stage 2."""
    assert raised_by(score, without, threshold=10.0, close_ratio=0.8) == expected


def test_cloudevents_headers_name_type_and_subject() -> None:
    """The headers carry the required CloudEvents attributes."""
    headers = dict(event().headers())
    assert headers["ce_specversion"] == b"1.0"
    assert headers["ce_id"] == b"0" * 32
    assert headers["ce_type"] == b"tapewatch.anomaly.open.v1"
    assert headers["ce_source"] == b"/tapewatch/ticks/0"
