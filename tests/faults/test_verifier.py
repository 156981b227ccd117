"""The judge of the fault tests finds what a list was doctored with, and nothing in a good one."""

from __future__ import annotations

import pytest

from tests.faults.verifier import Record, Verdict, judge

EXPECTED = [Record(f"e{i}", i % 3, b"content %d" % i) for i in range(30)]


def found(seen: list[Record]) -> dict[str, int]:
    """What is wrong under the stricter guarantee."""
    return judge(EXPECTED, seen).violations("exactly_once")


def test_an_equal_list_passes() -> None:
    """The expected records themselves are what is wanted, whatever the order between groups."""
    by_group = sorted(EXPECTED, key=lambda record: record.group)
    for seen in (EXPECTED, by_group):
        assert judge(EXPECTED, seen) == Verdict(30, 30, 0, 0, 0, 0, 0)


@pytest.mark.parametrize("at", [0, 14, 29])
def test_a_lost_record_is_found(at: int) -> None:
    """A record left out counts as lost, under both guarantees."""
    seen = EXPECTED[:at] + EXPECTED[at + 1 :]
    assert found(seen) == {"lost": 1}
    assert judge(EXPECTED, seen).violations("at_least_once") == {"lost": 1}


@pytest.mark.parametrize("at", [0, 14, 29])
def test_a_repeat_is_found(at: int) -> None:
    """A record seen twice is a violation of exactly once, and only of that."""
    seen = [*EXPECTED, EXPECTED[at]]
    assert found(seen) == {"repeated": 1}
    assert judge(EXPECTED, seen).violations("at_least_once") == {}


def test_swapped_records_are_found() -> None:
    """Two neighbours of one group in the wrong order count as one out of order."""
    seen = list(EXPECTED)
    seen[10], seen[13] = seen[13], seen[10]
    assert found(seen) == {"out_of_order": 1}
    assert judge(EXPECTED, seen).violations("at_least_once") == {"out_of_order": 1}


def test_swapped_records_of_two_groups_are_fine() -> None:
    """Order holds within a group only."""
    seen = list(EXPECTED)
    seen[10], seen[11] = seen[11], seen[10]
    assert found(seen) == {}


def test_altered_content_is_found() -> None:
    """A record with its identity and other content is not the record, the first time or later."""
    other = Record("e7", 1, b"other")
    assert found([*EXPECTED[:7], other, *EXPECTED[8:]]) == {"altered": 1}
    assert judge(EXPECTED, [*EXPECTED, other]).violations("at_least_once") == {"altered": 1}


def test_an_invented_record_is_found() -> None:
    """A record that nothing led to is a violation of both guarantees."""
    seen = [*EXPECTED, Record("new", 0, b"")]
    assert found(seen) == {"unexpected": 1}
    assert judge(EXPECTED, seen).violations("at_least_once") == {"unexpected": 1}


def test_everything_at_once_is_counted_apart() -> None:
    """One of each in one list is told apart, with examples for people."""
    seen = [*EXPECTED[1:], EXPECTED[5], Record("e6", 0, b"?"), Record("new", 0, b"")]
    seen[3], seen[6] = seen[6], seen[3]
    verdict = judge(EXPECTED, seen)
    assert verdict.violations("exactly_once") == {
        "lost": 1,
        "repeated": 1,
        "altered": 1,
        "unexpected": 1,
        "out_of_order": 1,
    }
    assert len(verdict.examples) == 5


def test_expected_records_must_be_told_apart() -> None:
    """Two expected records with one identity would hide a loss: refused."""
    with pytest.raises(ValueError, match="one identity"):
        judge([*EXPECTED, EXPECTED[0]], EXPECTED)
