"""The table of open episodes: who is in it, in which order, and how many."""

from __future__ import annotations

from dataclasses import replace

from detector.events import AnomalyEvent, Phase, Source
from detector.naming import Name
from detector.open_episodes import MOST_CHARACTERS, TOLD, OpenEpisodes
from tests.test_daemon import event_at


def event(number: int, severity: float, phase: Phase = "open", partition: int = 0) -> AnomalyEvent:
    """An event of an episode and instrument of the number."""
    return replace(
        event_at(partition, number),
        episode_id=f"{number:032x}",
        symbol=f"S{number}",
        phase=phase,
        severity_value=severity,
        source=Source("ticks", partition, number, 0),
    )


def rows(table: OpenEpisodes) -> list[tuple[str, str, float]]:
    """Symbol, rank and severity of each row."""
    return [(labels[0], labels[2], value) for labels, value in table.read()]


def test_highest_severity_first() -> None:
    """Ranks go from the highest severity told; an update does not lower it."""
    table = OpenEpisodes()
    table.observe([event(1, 2.0), event(2, 5.0), event(3, 3.0)])
    table.observe([event(1, 9.0, "update"), event(2, 1.0, "update")])
    assert rows(table) == [("S1", "1", 9.0), ("S2", "2", 5.0), ("S3", "3", 3.0)]


def test_closed_episode_leaves() -> None:
    """A closing takes its row away; one that was never seen to open is nothing to take away."""
    table = OpenEpisodes()
    table.observe([event(1, 2.0), event(2, 5.0), event(2, 5.0, "close"), event(7, 1.0, "close")])
    assert rows(table) == [("S1", "1", 2.0)]


def test_partition_that_went_away_leaves() -> None:
    """Its episodes are another process's now."""
    table = OpenEpisodes()
    table.observe([event(1, 2.0, partition=0), event(2, 5.0, partition=1)])
    table.forget([1])
    assert rows(table) == [("S1", "1", 2.0)]


def test_never_more_rows_than_told() -> None:
    """Of thousands of open episodes the table has the twenty of highest severity."""
    table = OpenEpisodes()
    table.observe([event(number, float(number)) for number in range(5_000)])
    assert rows(table) == [(f"S{4_999 - i}", str(i + 1), float(4_999 - i)) for i in range(TOLD)]


def test_type_and_long_names() -> None:
    """The head's type is shown where there is one, and a symbol of any length is cut."""
    table = OpenEpisodes()
    named = replace(event(1, 2.0), name=Name("spoofing", 0.9, "spoofing"))
    table.observe([named, replace(event(2, 1.0), symbol="x" * 10_000)])
    (first, _), (second, _) = table.read()
    assert first[1] == "spoofing"
    assert second == ("x" * MOST_CHARACTERS, "none", "2")
