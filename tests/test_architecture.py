"""Arrows between modules that the import linter cannot state as a list of what is allowed."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

KERNELS_MAY_IMPORT = {"__future__", "math", "typing", "numpy", "numba"}
KERNEL_MODULES = sorted((REPOSITORY / "detector").glob("kernels*.py"))


def imported(path: Path) -> set[str]:
    """Return the modules a file imports, wherever in the file it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


@pytest.mark.parametrize("path", KERNEL_MODULES, ids=lambda path: path.stem)
def test_kernels_know_only_numbers(path: Path) -> None:
    """A kernel module imports numpy, numba and math, and at most another kernel module."""
    foreign = {
        name
        for name in imported(path)
        if name.split(".")[0] not in KERNELS_MAY_IMPORT and not name.startswith("detector.kernels")
    }
    assert foreign == set()


def test_the_linter_knows_every_kernel_module() -> None:
    """A new kernel module is named in the import contract of pyproject.toml."""
    assert KERNEL_MODULES
    contracts = (REPOSITORY / "pyproject.toml").read_text()
    assert [
        path.stem for path in KERNEL_MODULES if f'"detector.{path.stem}"' not in contracts
    ] == []
