"""Which model scores from which offset: the record, the log it is read from, the cuts of a batch.

offset   0 1 2 3 4 5 6 7 8 9
model    a a a b b b b c c c        changes at 0, 3 and 7
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.errors import RefusedError
from detector.model_changes import ModelChange, Timeline, parse_change, read_changes
from detector.ticks import TickBatch, empty_ticks


def change(offset: int, model: str, partition: int = 0) -> ModelChange:
    """A change to a model named by one letter."""
    return ModelChange(partition, offset, model * 64, model)


def test_a_change_comes_back_from_its_record() -> None:
    """`parse_change` reads what `to_dict` gave, whatever else the object holds."""
    one = change(7, "a", 3)
    assert parse_change(json.loads(json.dumps(one.to_dict()))) == one
    assert parse_change({**one.to_dict(), "level": "info"}) == one


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {"partition": 1},
        {**change(1, "a").to_dict(), "next_offset": -1},
        {**change(1, "a").to_dict(), "next_offset": True},
        {**change(1, "a").to_dict(), "partition": "0"},
        {**change(1, "a").to_dict(), "model_hash": ""},
    ],
)
def test_no_change_is_refused(wrong: object) -> None:
    """What is no change says what is needed."""
    with pytest.raises(ValueError, match="needed"):
        parse_change(wrong)


def test_a_log_is_read(tmp_path: Path) -> None:
    """Of a daemon's log the lines about models count; of bare records every line."""
    log = tmp_path / "log"
    lines = [
        {"event": "starting", "model": "m"},
        {"event": "model in force", "level": "info", **change(0, "a").to_dict()},
        change(5, "b").to_dict(),
    ]
    log.write_text("\n\n".join(map(json.dumps, lines)) + "\n")
    assert read_changes(log) == [change(0, "a"), change(5, "b")]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "tells of no model"),
        ('{"event": "starting"}\n', "tells of no model"),
        ('{"event": "starting"}\nTraceback\n', "line 2"),
        ('{"event": "model in force"}\n', "line 1: needed: an object with partition"),
    ],
)
def test_a_file_without_changes_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """The message names the file, the line and what is needed."""
    log = tmp_path / "log"
    log.write_text(text)
    with pytest.raises(RefusedError, match=words) as refused:
        read_changes(log)
    assert str(log) in str(refused.value)
    with pytest.raises(RefusedError, match="cannot be read"):
        read_changes(tmp_path / "nothing")


def test_the_change_in_force_is_found() -> None:
    """Before the first change none is in force; a change holds from its own offset on."""
    line = Timeline([change(2, "a"), change(4, "b"), change(0, "c", partition=1)])
    found = [line.at(0, offset) for offset in range(6)]
    assert found == [None, None, *[change(2, "a")] * 2, *[change(4, "b")] * 2]
    assert line.at(1, 9) == change(0, "c", partition=1)
    assert line.at(2, 9) is None


def test_a_later_record_holds_from_its_offset() -> None:
    """After a crash a partition is taken up again further back, perhaps with another model."""
    line = Timeline([change(0, "a"), change(50, "b"), change(30, "c"), change(60, "a")])
    assert line.changes == [change(0, "a"), change(30, "c"), change(60, "a")]


def test_the_same_model_again_is_no_change() -> None:
    """A daemon that starts again with its model changes none."""
    assert Timeline([change(0, "a"), change(40, "a")]).changes == [change(0, "a")]


@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from("abc")), max_size=6),
    st.lists(st.integers(0, 3), min_size=1, max_size=30),
    st.integers(0, 10),
)
def test_pieces_are_the_batch_cut_at_its_changes(
    changes: list[tuple[int, str]], steps: list[int], first: int
) -> None:
    """Pieces are the batch again, none is empty, and each tick's model is that of its offset."""
    offsets = first + np.cumsum(steps)
    batch = replace(TickBatch.from_ticks(empty_ticks(len(steps))), offsets=offsets)
    line = Timeline([change(offset, model) for offset, model in sorted(changes)])
    pieces = list(line.pieces(batch))
    assert np.concatenate([piece.offsets for piece, _ in pieces]).tolist() == offsets.tolist()
    for piece, found in pieces:
        assert len(piece)
        assert {line.at(0, offset) for offset in piece.offsets.tolist()} == {found}
    inside = {c.next_offset for c in line.changes if offsets[0] < c.next_offset <= offsets[-1]}
    assert len(pieces) <= 1 + len(inside)
