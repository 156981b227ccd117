"""What is shipped agrees with itself: versions, pins, licences, the wheel."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import detector
from tests.conftest import REPOSITORY

COMMERCIAL_FRIENDLY = {
    "0BSD",
    "3-Clause BSD License",
    "Apache",
    "Apache 2.0",
    "Apache License 2.0",
    "Apache Software License",
    "Apache-2.0",
    "BSD",
    "BSD 3-Clause",
    "BSD License",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "CC0-1.0",
    "ISC",
    "ISC License (ISCL)",
    "LLVM-exception",
    "MIT",
    "MIT-0",
    "MIT License",
    "MIT-CMU",
    "MPL-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)",
    "PSF-2.0",
    "Python Software Foundation License",
    "Zlib",
}
"""Licences under which a runtime dependency may be shipped with a commercial product."""

READ_BY_US = {"namex": "Apache-2.0"}
"""Licences of packages whose metadata name none, as read from their licence file."""


def project() -> dict[str, Any]:
    """Parse the `[project]` table of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return table


def lock_entries() -> dict[str, list[str]]:
    """Lines of requirements.lock by the requirement they belong to."""
    entries: dict[str, list[str]] = {}
    for line in (REPOSITORY / "requirements.lock").read_text().splitlines():
        if line.startswith(" "):
            entries[next(reversed(entries))].append(line.strip(" \\"))
        elif line:
            entries[line.strip(" \\")] = []
    return entries


def installed_closure(requirements: Iterable[str]) -> Iterator[metadata.Distribution]:
    """Yield the installed distributions that `requirements` lead to, each once."""
    waiting = [Requirement(text) for text in requirements]
    seen: set[tuple[str, frozenset[str]]] = set()
    given: set[str] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        if (name, frozenset(wanted.extras)) in seen:
            continue
        seen.add((name, frozenset(wanted.extras)))
        found = metadata.distribution(name)
        if name not in given:
            given.add(name)
            yield found
        for requirement in map(Requirement, found.requires or []):
            marker = requirement.marker
            if marker is None or any(
                marker.evaluate({"extra": extra}) for extra in (wanted.extras or {""})
            ):
                waiting.append(requirement)


def licences(distribution: metadata.Distribution) -> list[str]:
    """Licences that a distribution states: expression, else classifiers, else the short field."""
    fields = distribution.metadata.json
    if expression := fields.get("license_expression"):
        return [
            part for part in re.split(r"\bAND\b|\bOR\b|\bWITH\b|[() ]+", str(expression)) if part
        ]
    stated = [str(each) for each in fields.get("classifier", [])]
    if classified := [each.split(" :: ")[-1] for each in stated if each.startswith("License")]:
        return classified
    text = str(fields.get("license", ""))
    name = str(fields["name"])
    return [text] if text and "\n" not in text else [READ_BY_US[name]] if name in READ_BY_US else []


def test_version_is_stated_once() -> None:
    """The package, pyproject.toml and the newest entry of the changelog name one version."""
    newest = re.search(
        r"^## \[(\d+\.\d+\.\d+)\] - (unreleased|\d{4}-\d{2}-\d{2})$",
        (REPOSITORY / "CHANGELOG.md").read_text(),
        re.MULTILINE,
    )
    assert newest is not None, "the changelog has no entry like '## [1.2.3] - 2026-01-31'"
    assert detector.__version__ == project()["version"] == newest[1]


def test_every_locked_requirement_has_hashes() -> None:
    """Each line of the lock is one exact version with SHA-256 hashes and nothing else."""
    entries = lock_entries()
    assert len(entries) > 50
    for requirement, hashes in entries.items():
        assert re.fullmatch(r"[a-z0-9._-]+==[^\s;]+( ; .+)?", requirement), requirement
        assert hashes, requirement
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", each) for each in hashes), (
            requirement
        )


def test_the_lock_names_no_registry() -> None:
    """No address, option or local path: where packages come from is the installer's matter."""
    words = (REPOSITORY / "requirements.lock").read_text().split()
    options = {word for word in words if word.startswith("-") and not word.startswith("--hash=")}
    assert options == set()
    assert [word for word in words if "://" in word or word.startswith((".", "/", "@"))] == []


def test_the_lock_satisfies_the_project() -> None:
    """Every declared dependency, those of development included, is pinned at a version allowed."""
    pinned: dict[str, set[str]] = {}
    for entry in lock_entries():
        name, version = entry.split(" ;")[0].split("==")
        pinned.setdefault(canonicalize_name(name), set()).add(version)
    declared = [*project()["dependencies"], *project()["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, declared):
        versions = pinned.get(canonicalize_name(requirement.name), set())
        assert versions, f"{requirement} is not in requirements.lock: make lock"
        assert all(requirement.specifier.contains(version) for version in versions), requirement


def test_runtime_dependencies_are_commercial_friendly() -> None:
    """Every distribution that tapewatch needs at run time has a licence of the allowed list."""
    found = {
        str(each.metadata["name"]): licences(each)
        for each in installed_closure(project()["dependencies"])
    }
    assert len(found) > 30
    assert {name for name, stated in found.items() if not stated} == set()
    refused = {name: stated for name, stated in found.items() if set(stated) - COMMERCIAL_FRIENDLY}
    assert refused == {}


@pytest.mark.parametrize(
    "stated",
    [
        "License-Expression: GPL-3.0-only",
        "Classifier: License :: OSI Approved :: GNU Affero GPL v3",
    ],
)
def test_a_copyleft_licence_would_be_noticed(tmp_path: Path, stated: str) -> None:
    """A distribution under the GPL or AGPL states something that is not on the list."""
    (tmp_path / "METADATA").write_text(f"Metadata-Version: 2.4\nName: x\nVersion: 1\n{stated}\n\n")
    assert set(licences(metadata.PathDistribution(tmp_path))) - COMMERCIAL_FRIENDLY


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel with what is installed, without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    built = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", *options, str(REPOSITORY)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("tapewatch-*.whl")
    return path


def test_the_wheel_holds_both_packages_and_the_schemas(wheel: Path) -> None:
    """Every module of detector and training and every schema is in the wheel, tests are not."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    shipped = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("detector", "training")
        for pattern in ("*.py", "*.schema.json")
        for path in (REPOSITORY / package).rglob(pattern)
    }
    assert "detector/schemas/anomaly_event.schema.json" in shipped
    assert {"detector/__init__.py", "training/__init__.py"} <= shipped
    assert shipped <= names
    top = {name.split("/")[0] for name in names}
    assert top == {"detector", "training", f"tapewatch-{detector.__version__}.dist-info"}


def test_the_wheel_gives_the_command(wheel: Path) -> None:
    """Installing the wheel gives `tapewatch`, and asks for what pyproject.toml declares."""
    with zipfile.ZipFile(wheel) as archive:
        folder = f"tapewatch-{detector.__version__}.dist-info"
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
        required = re.findall(
            r"^Requires-Dist: (.+)$", archive.read(f"{folder}/METADATA").decode(), re.MULTILINE
        )
    assert "tapewatch = detector.cli:main" in entry_points
    unconditional = {Requirement(each).name for each in required if "extra ==" not in each}
    assert unconditional == {Requirement(each).name for each in project()["dependencies"]}


def test_audit_tools_are_pinned_and_strict() -> None:
    """The audit's tools come from a lock with hashes, and a pin nobody could look up fails it."""
    wanted = (REPOSITORY / "requirements-audit.in").read_text().split()
    locked = (REPOSITORY / "requirements-audit.lock").read_text()
    assert {line.split("==")[0] for line in wanted} == {"cyclonedx-bom", "pip-audit"}
    for line in wanted:
        assert f"{line} " in locked
    assert "pip-audit --strict" in (REPOSITORY / "Makefile").read_text()
