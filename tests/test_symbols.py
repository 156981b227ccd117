"""Names of instruments: learnt, read from a file, bounded, and never mixed up."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.symbols import SymbolFileError, SymbolMap, read_symbol_file, write_symbols
from detector.ticks import instrument_key


def test_unknown_instrument_is_publisher_and_id() -> None:
    """An instrument without a name is called by its numbers."""
    assert SymbolMap().name(instrument_key(2, 7)) == "2:7"


def test_first_name_stays_and_the_collision_is_told_once() -> None:
    """A second name for a key is refused, and told of."""
    names = SymbolMap({1: "A"})
    names.learn({1: "B", 2: "C"})
    names.learn({1: "B"})
    assert (names.name(1), names.name(2)) == ("A", "C")
    assert names.take_collisions() == [(1, "A", "B")]
    assert names.take_collisions() == []


def test_flood_of_names_is_bounded() -> None:
    """Beyond the limit nothing more is learnt."""
    names = SymbolMap({0: "given"}, limit=2)
    names.learn({k: f"s{k}" for k in range(1, 100)})
    assert [names.name(k) for k in (0, 1, 2, 3)] == ["given", "s1", "s2", "0:3"]


def test_mapping_file(tmp_path: Path) -> None:
    """A mapping file gives names by key."""
    path = tmp_path / "symbols.csv"
    path.write_text("symbol,publisher_id,instrument_id\nAAPL,2,38\nESU4,1,4\n")
    assert read_symbol_file(path) == {instrument_key(2, 38): "AAPL", instrument_key(1, 4): "ESU4"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n", "the header is"),
        ("symbol,publisher_id,instrument_id\nX,1,y\n", "line 2"),
        ("symbol,publisher_id,instrument_id\nX,70000,1\n", "line 2"),
        ("symbol,publisher_id,instrument_id\n,1,1\n", "line 2"),
        ("symbol,publisher_id,instrument_id\nX,1\n", "line 2"),
    ],
)
def test_wrong_mapping_file_names_the_line(tmp_path: Path, text: str, words: str) -> None:
    """A file that cannot be used is refused with its name and line."""
    path = tmp_path / "symbols.csv"
    path.write_text(text)
    with pytest.raises(SymbolFileError, match=words):
        read_symbol_file(path)


def test_written_names_are_read_back(tmp_path: Path) -> None:
    """Names with commas, quotes and letters of any script survive the file."""
    names = {instrument_key(2, 38): 'A,"B"', instrument_key(0, 1): "ÄÖ 株"}
    path = tmp_path / "symbols.csv"
    path.write_bytes(write_symbols(names))
    assert read_symbol_file(path) == names
