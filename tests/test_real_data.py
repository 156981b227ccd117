"""The scripts that show the product on real data: their judgement, on data with known answers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from benchmarks.real_data import fuzz, xauusd
from benchmarks.real_data.running import compare
from detector.ticks import NS_PER_S, TickBatch
from detector.wire import Format, encode_dbn, encode_json, encode_vector, make_decoder
from tests.streams import market


def good_message(fmt: Format) -> bytes:
    """A valid message of two ticks."""
    ticks = TickBatch.from_ticks(market(2, 1, seed=4))
    if fmt == "vector":
        return encode_vector(ticks.keys, ticks.ts_event, np.ones((2, 1), np.float32))
    return encode_dbn(ticks.ticks) if fmt == "dbn" else encode_json(ticks.ticks, None)


@pytest.mark.parametrize("fmt", ["dbn", "json", "vector"])
def test_broken_messages_are_broken(fmt: Format) -> None:
    """Every way to break a message makes the decoder refuse it, whatever the dice say."""
    decoder = make_decoder(fmt, columns=("value",))
    value = good_message(fmt)
    assert not decoder.decode([value], [0], 0).rejected
    for make in fuzz.BREAK[fmt]:
        for seed in range(60):
            broken = make(random.Random(seed), value)  # noqa: S311
            assert decoder.decode([broken], [0], 0).rejected, (make.__name__, seed, broken)


@pytest.mark.parametrize("fmt", ["dbn", "json", "vector"])
def test_mutated_messages_are_of_other_instruments(fmt: Format) -> None:
    """A mutated message that still is one never names the instrument of the good one."""
    decoder = make_decoder(fmt, columns=("value",))
    value = good_message(fmt)
    batch = decoder.decode([value], [0], 0).batch
    assert batch is not None
    good = set(batch.keys.tolist())
    accepted = 0
    for seed in range(200):
        changed = fuzz.MUTATE[fmt](random.Random(seed), value)  # noqa: S311
        found = decoder.decode([changed], [0], 0).batch
        if found is not None:
            accepted += 1
            assert not good & set(found.keys.tolist())
    assert accepted > 20


def an_event(**changes: Any) -> dict[str, Any]:
    """An event with the fields that the comparison looks at."""
    measured = dict.fromkeys(
        ("score", "threshold", "stage1_error", "stage2_error", "severity_value"), 2.0
    )
    return {"event_id": "a", "phase": "open", "ts_detected": 1, **measured, **changes}


def test_comparison_sees_every_difference() -> None:
    """Only `ts_detected` may differ; a missing, a repeated and a changed event are all told."""
    one, two = an_event(), an_event(event_id="b")
    assert compare([an_event(ts_detected=9), two], [one, two]).perfect
    assert not compare([one], [one, two]).perfect
    assert compare([one, one, two], [one, two]).repeats == 1
    changed = compare([one, an_event(event_id="b", score=2.2)], [one, two])
    assert not changed.perfect
    assert changed.greatest_relative_difference == pytest.approx(0.1)


def test_the_onset_is_the_first_move_within_a_minute() -> None:
    """A slow drift is none, nor what lies before the start; the first quote beyond 5 bps is."""
    seconds = np.arange(400, dtype=np.int64)
    mid = 1_000.0 + 0.004 * seconds
    mid[30:40] += 3.0
    mid[250:] += 0.2
    mid[300:] += 0.6
    found = xauusd.first_move(seconds * NS_PER_S, mid, 120 * NS_PER_S)
    assert found == 300 * NS_PER_S


def test_bursts_are_judged_from_their_onset_on() -> None:
    """An episode from before the burst is no detection of it, but told when it still ran."""
    onsets = [int(at.timestamp()) * NS_PER_S for at in xauusd.BURSTS]
    start = onsets[0]
    before = an_event(episode_id="x", ts_event=start - 2 * NS_PER_S)
    closed = an_event(
        event_id="c",
        episode_id="x",
        phase="close",
        ts_event=start,
        summary={"ts_end": start + NS_PER_S},
    )
    after = an_event(event_id="b", episode_id="y", ts_event=start + 7 * NS_PER_S)
    quiet = an_event(event_id="q", episode_id="z", ts_event=start - 9 * 3600 * NS_PER_S)
    over = closed | {"episode_id": "z", "summary": {"ts_end": quiet["ts_event"]}}
    first, second = (found := xauusd.judge([before, closed, after, quiet, over], onsets))["bursts"]
    assert first["delay_s"] == 7.0
    assert first["open_since_s"] == 2.0
    assert second["delay_s"] is None
    assert found["opens_by_hour"]["2014-05-02"][12] == 2
    assert found["quiet_opens_per_hour"] == pytest.approx(1 / found["quiet_hours"])
