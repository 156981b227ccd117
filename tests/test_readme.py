"""What README.md shows works: its commands exist, and those marked as runnable run.

A shell block is fenced with `sh`; each `tapewatch`, `make` and `python` command in one is checked
against the program itself. A block fenced with `sh run` is executed as it stands, too.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

README = REPOSITORY / "README.md"
HELP_WITHIN_S = 60
BLOCK_WITHIN_S = 200
_FENCED = re.compile(r"^```sh( run)?[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)
_SEPARATORS = {"|", "||", "&&", ";", "&", "(", ")"}


@dataclass(frozen=True)
class Block:
    """One shell block of a page."""

    text: str
    runnable: bool


def shell_blocks(page: str) -> list[Block]:
    """Return the shell blocks of a Markdown page, in order."""
    return [Block(text, bool(run)) for run, text in _FENCED.findall(page)]


def commands(block: Block) -> list[list[str]]:
    """Return the simple commands of a block, each as its words, without redirections."""
    found: list[list[str]] = []
    for line in block.text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        current: list[str] = []
        for word in lexer:
            if word in _SEPARATORS:
                found.append(current)
                current = []
            elif not (not current and re.fullmatch(r"[A-Z_]+=.*", word)):
                current.append(word)
        found.append(current)
    return [words for words in found if words]


@functools.cache
def tapewatch_help(*subcommands: str) -> subprocess.CompletedProcess[str]:
    """Run `tapewatch ... --help` on a wide terminal without colours."""
    return subprocess.run(
        [sys.executable, "-c", "from detector.cli import main; main()", *subcommands, "--help"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "240", "TERM": "dumb", "NO_COLOR": "1"},
        timeout=HELP_WITHIN_S,
        check=False,
    )


def problem(words: list[str]) -> str | None:
    """Say what is wrong with one command of the page, or None."""
    program, *arguments = words
    shown = " ".join(words)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        wanted = [each for each in arguments if re.fullmatch("[a-z]+", each)]
        return f"{shown}: no such target" if set(wanted) - set(targets) else None
    if program in {"python", "python3", ".venv/bin/python"}:
        scripts = [each for each in arguments if each.endswith(".py")]
        return next(
            (f"{shown}: no {each}" for each in scripts if not (REPOSITORY / each).is_file()), None
        )
    if Path(program).name != "tapewatch":
        return None
    subcommands = []
    for word in arguments[:2]:
        if not re.fullmatch("[a-z][a-z-]*", word):
            break
        subcommands.append(word)
    answer = tapewatch_help(*subcommands)
    if answer.returncode != 0:
        return f"{shown}: {answer.stderr or answer.stdout}"
    known = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", answer.stdout))
    options = {word.split("=")[0] for word in arguments if word.startswith("-")} - {"-", "--"}
    unknown = options - known - {"--help"}
    return f"{shown}: no option {sorted(unknown)} in its --help" if unknown else None


def page_blocks() -> list[Block]:
    """Return the shell blocks of README.md, none where there is no page."""
    return shell_blocks(README.read_text()) if README.exists() else []


def test_the_page_shows_the_two_commands() -> None:
    """A newcomer finds the demo and the tests as commands of their own."""
    shown = [words for block in page_blocks() for words in commands(block)]
    assert ["make", "demo"] in shown
    assert ["make", "test"] in shown


def test_every_command_shown_exists() -> None:
    """Each command and each option in the page's shell blocks is one the program knows."""
    checked = [(words, problem(words)) for block in page_blocks() for words in commands(block)]
    assert any("tapewatch" in words[0] for words, _ in checked)
    assert [wrong for _, wrong in checked if wrong] == []


def test_there_are_runnable_blocks() -> None:
    """The page has something that a reader can run at once, so the next test is not empty."""
    assert [block for block in page_blocks() if block.runnable]


@pytest.mark.parametrize(
    "block",
    [pytest.param(each, id=each.text.split("\n")[0]) for each in page_blocks() if each.runnable],
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
    assert (first.runnable, second.runnable) == (True, False)
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
