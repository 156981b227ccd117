"""Markdown pages as a reader uses them: shell blocks, the commands in those, links.

A shell block is fenced with `sh`; `sh run` marks one that is executed by a test, `sh keep` one that
goes on in a terminal of its own until the page is through.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.kafka_broker import REPOSITORY

HELP_WITHIN_S: Final = 60
_FENCED: Final = re.compile(
    r"^```sh(?: (run|keep))?[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL
)
_HERE_DOCUMENT: Final = re.compile(r"<<'(\w+)'\n.*?^\1$", re.MULTILINE | re.DOTALL)
_SEPARATORS: Final = {"|", "||", "&&", ";", "&", "(", ")"}
_LINK: Final = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_OURS: Final = re.compile(r"(?:(?<=^)|(?<=[\s`\"'=]|/))(?:deploy|docs|examples|tests)/[\w./*-]*")


@dataclass(frozen=True)
class Block:
    """One shell block of a page; `mark` is what stands behind `sh`: "", "run" or "keep"."""

    text: str
    mark: str


def shell_blocks(page: str) -> list[Block]:
    """Return the shell blocks of a Markdown page, in order."""
    return [Block(text, mark) for mark, text in _FENCED.findall(page)]


def commands(block: Block) -> list[list[str]]:
    """Return the simple commands of a block, each as its words, redirections among them."""
    found: list[list[str]] = []
    for line in _HERE_DOCUMENT.sub("", block.text).replace("\\\n", " ").splitlines():
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
    """Say what is wrong with one command of a page, or None."""
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
    # Of a command that docker runs: the image's programs are ours.
    if program == "docker" and "tapewatch" in arguments:
        inner = [at for at, word in enumerate(arguments) if word == "tapewatch"]
        return problem(arguments[inner[-1] :])
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


def missing_files(page: Path) -> Iterator[str]:
    """Yield the repository's files and the links that a page names and that do not exist."""
    text = page.read_text()
    for name in sorted(set(_OURS.findall(text))):
        if not any(REPOSITORY.glob(name.rstrip("./"))):
            yield name
    for name, anchor in sorted(set(_LINK.findall(text))):
        target = page.parent / name if name else page
        if not target.exists():
            yield name
        elif anchor and anchor not in _anchors(target.read_text()):
            yield f"{name}#{anchor}"


def _anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as most renderers make them."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }
