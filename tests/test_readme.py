"""What README.md and the quick start show works: commands, options, files and links exist.

Each `tapewatch`, `make` and `python` command in a shell block is checked against the program.
README's blocks fenced with `sh run` are executed as they stand, too; those of the quick start need
servers, `tests/integration/test_quickstart.py` runs them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.pages import Block, commands, missing_files, problem, shell_blocks

README = REPOSITORY / "README.md"
QUICK_START = REPOSITORY / "docs" / "quickstart.md"
PAGES = pytest.mark.parametrize("page", [README, QUICK_START], ids=lambda page: page.name)
BLOCK_WITHIN_S = 200


def page_blocks(page: Path = README) -> list[Block]:
    """Return the shell blocks of a page, none where there is no page."""
    return shell_blocks(page.read_text()) if page.exists() else []


def test_the_page_shows_the_two_commands() -> None:
    """A newcomer finds the demo and the tests as commands of their own."""
    shown = [words for block in page_blocks() for words in commands(block)]
    assert ["make", "demo"] in shown
    assert ["make", "test"] in shown


@PAGES
def test_every_command_shown_exists(page: Path) -> None:
    """Each command and each option in the page's shell blocks is one the program knows."""
    checked = [(words, problem(words)) for block in page_blocks(page) for words in commands(block)]
    assert any("tapewatch" in words[0] for words, _ in checked)
    assert [wrong for _, wrong in checked if wrong] == []


@PAGES
def test_every_file_named_exists(page: Path) -> None:
    """Files of the repository and links, with their anchors, lead somewhere."""
    assert list(missing_files(page)) == []


def test_images_of_the_quick_start_are_those_of_compose() -> None:
    """Whoever follows the page gets the versions that the compose file has."""
    image = re.compile(r"\b(?:apache|grafana|prom)/[a-z]+:v?\d[\w.]*")
    shown = set(image.findall(QUICK_START.read_text()))
    assert shown
    assert shown <= set(image.findall((REPOSITORY / "deploy" / "compose.yaml").read_text()))


def test_a_missing_file_would_be_noticed(tmp_path: Path) -> None:
    """A file, a link and an anchor that do not exist are reported, those that do are not."""
    page = tmp_path / "page.md"
    page.write_text(
        "# One two\n`deploy/no.yml` `deploy/compose.yaml` [a](no.md) [b](#one-two) [c](#three)\n"
    )
    assert list(missing_files(page)) == ["deploy/no.yml", "#three", "no.md"]


def test_there_are_runnable_blocks() -> None:
    """The page has something that a reader can run at once, so the next test is not empty."""
    assert [block for block in page_blocks() if block.mark]


@pytest.mark.parametrize(
    "block",
    [pytest.param(each, id=each.text.split("\n")[0]) for each in page_blocks() if each.mark],
)
def test_runnable_blocks_run(block: Block, tmp_path: Path) -> None:
    """Each block marked as runnable ends well, in a folder that looks like a fresh checkout."""
    for entry in REPOSITORY.iterdir():
        if not entry.name.startswith("."):
            (tmp_path / entry.name).symlink_to(entry)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        timeout=BLOCK_WITHIN_S,
        check=False,
    )
    assert done.returncode == 0, f"{block.text}\nended with {done.returncode}:\n{done.stdout}"


def test_blocks_and_commands_are_found() -> None:
    """Fences, continuations, pipes, settings before a command and comments are understood."""
    page = (
        "```sh run\n"
        "tapewatch features  # the table\n"
        "```\n"
        "```toml\nmake = 1\n```\n"
        "```sh\n"
        "A=b tapewatch score --ticks x.dbn \\\n  --json | head -1 && make test\n"
        "```\n"
    )
    first, second = shell_blocks(page)
    assert (first.mark, second.mark) == ("run", "")
    assert commands(first) == [["tapewatch", "features"]]
    assert commands(second) == [
        ["tapewatch", "score", "--ticks", "x.dbn", "--json"],
        ["head", "-1"],
        ["make", "test"],
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        "make no",
        "python examples/no.py",
        "tapewatch no-such-command",
        "tapewatch features --no-such-option",
    ],
)
def test_a_wrong_command_would_be_noticed(wrong: str) -> None:
    """A target, script, command or option that does not exist is reported."""
    assert problem(wrong.split()) is not None
