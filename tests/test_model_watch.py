"""The watch of a model folder: what is taken, what is refused, what is left alone.

look      1    2    3    4              a folder is read at the second look that finds it unchanged
folder    old  new  new  new
offered             new
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from detector.artifact import (
    MANIFEST,
    TABLES,
    WEIGHTS,
    ArtifactError,
    read_artifact,
    write_artifact,
)
from detector.model_watch import LoadedModel, ModelWatch
from tests.models import folder_contents, random_artifact


class Rig:
    """A watch of `model` in a folder, looked through by hand; what it offered and refused."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "model"
        self.offered: list[str] = []
        self.refused: list[str] = []
        self.before_load: Callable[[Path], None] = lambda _: None
        self.old = random_artifact(self.path, version="old")
        self.watch = self.watching()

    def watching(self, every_s: float = 60.0) -> ModelWatch:
        """A watch that takes the present model for the one in force."""
        return ModelWatch(
            self.path,
            every_s,
            read_artifact(self.path).model_hash,
            self.load,
            lambda model: self.offered.append(model.scorer.version),
            self.refused.append,
        )

    def load(self, folder: Path) -> LoadedModel:
        """Verify as the service does, without warming anything."""
        self.before_load(folder)
        found = read_artifact(folder)
        scorer = SimpleNamespace(version=found.version, model_hash=found.model_hash)
        return LoadedModel(cast("Any", scorer), found.manifest.created)

    def replace(self, version: str, seed: int = 0) -> None:
        """Write over the folder as `tapewatch train --overwrite` does."""
        contents = folder_contents(version=version, seed=seed)
        write_artifact(self.path, **contents, overwrite=True)

    def look(self, times: int = 1) -> None:
        """Look some times."""
        for _ in range(times):
            self.watch.look()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    """A watch of a folder with a model."""
    return Rig(tmp_path)


def test_the_model_in_force_is_left_alone(rig: Rig) -> None:
    """Nothing is read while the folder holds what is in force, touched or not."""
    rig.look(3)
    (rig.path / MANIFEST).touch()
    (rig.path / "notes.txt").write_text("unlisted")
    rig.look(3)
    assert (rig.offered, rig.refused) == ([], [])


def test_a_replaced_folder_is_taken_at_the_second_look(rig: Rig) -> None:
    """A new version is offered once, when it has been seen twice the same."""
    rig.look()
    rig.replace("new")
    rig.look()
    assert rig.offered == []
    rig.look(3)
    assert (rig.offered, rig.refused) == (["new"], [])


def test_a_link_that_moves_on_is_followed(tmp_path: Path) -> None:
    """A symbolic link may be flipped to another version, and back to the old one."""
    random_artifact(tmp_path / "v1", version="v1")
    random_artifact(tmp_path / "v2", version="v2")
    rig = Rig(tmp_path / "elsewhere")
    rig.path = tmp_path / "current"
    rig.path.symlink_to("v1")
    rig.watch = rig.watching()
    rig.look(2)
    for version in ("v2", "v1"):
        (tmp_path / "next").symlink_to(version)
        (tmp_path / "next").rename(rig.path)
        rig.look(3)
    assert (rig.offered, rig.refused) == (["v2", "v1"], [])


def test_the_folder_read_is_the_one_the_link_named(tmp_path: Path) -> None:
    """A link that moves on while its model is read mixes no two models."""
    for version in ("v1", "v2", "v3"):
        random_artifact(tmp_path / version, version=version)
    rig = Rig(tmp_path / "elsewhere")
    rig.path = tmp_path / "current"
    rig.path.symlink_to("v1")
    rig.watch = rig.watching()
    rig.path.unlink()
    rig.path.symlink_to("v2")

    def move_on(folder: Path) -> None:
        assert folder == tmp_path / "v2"
        rig.path.unlink()
        rig.path.symlink_to("v3")
        rig.before_load = lambda _: None

    rig.before_load = move_on
    rig.look(4)
    assert (rig.offered, rig.refused) == (["v2", "v3"], [])


def test_a_folder_that_is_being_copied_is_left_alone(rig: Rig, tmp_path: Path) -> None:
    """While files come one after the other nothing is read; when all are there, it is taken."""
    random_artifact(tmp_path / "source", version="new")
    shutil.rmtree(rig.path)
    rig.path.mkdir()
    files = sorted((tmp_path / "source").iterdir(), key=lambda path: path.name != MANIFEST)
    assert files[0].name == MANIFEST
    for path in files:
        shutil.copy(path, rig.path / path.name)
        rig.look()
    assert (rig.offered, rig.refused) == ([], [])
    rig.look()
    assert (rig.offered, rig.refused) == (["new"], [])


def test_a_stalled_copy_is_refused_once_and_taken_when_complete(rig: Rig, tmp_path: Path) -> None:
    """A folder that stays half-written is refused one time; it is tried again when files come."""
    random_artifact(tmp_path / "source", version="new")
    shutil.rmtree(rig.path)
    shutil.copytree(
        tmp_path / "source",
        rig.path,
        ignore=shutil.ignore_patterns(WEIGHTS),
        copy_function=shutil.copy,
    )
    rig.look(5)
    assert rig.offered == []
    assert len(rig.refused) == 1
    assert WEIGHTS in rig.refused[0]
    shutil.copy(tmp_path / "source" / WEIGHTS, rig.path)
    rig.look(2)
    assert (rig.offered, len(rig.refused)) == (["new"], 1)


@pytest.mark.parametrize("name", [WEIGHTS, TABLES, MANIFEST])
def test_a_broken_version_is_refused_once(rig: Rig, name: str) -> None:
    """One changed byte: refused with the file's name, one time; the next good version is taken."""
    rig.replace("broken")
    data = bytearray((rig.path / name).read_bytes())
    data[len(data) // 2] ^= 0x80
    (rig.path / name).write_bytes(data)
    rig.look(5)
    assert rig.offered == []
    assert len(rig.refused) == 1
    assert name in rig.refused[0]
    rig.replace("good")
    rig.look(2)
    assert (rig.offered, len(rig.refused)) == (["good"], 1)


def test_the_old_model_after_a_refused_one_changes_nothing(rig: Rig, tmp_path: Path) -> None:
    """Putting back what is in force is no new version."""
    shutil.copytree(rig.path, tmp_path / "kept")
    rig.replace("broken")
    (rig.path / WEIGHTS).write_bytes(b"")
    rig.look(2)
    shutil.rmtree(rig.path)
    shutil.copytree(tmp_path / "kept", rig.path)
    rig.look(4)
    assert (rig.offered, len(rig.refused)) == ([], 1)


def test_a_folder_that_vanishes_is_told_of_once(rig: Rig) -> None:
    """Without a folder the model in force goes on; a new one in its place is taken."""
    rig.look(2)
    shutil.rmtree(rig.path)
    with capture_logs() as logs:
        rig.look(5)
    told = [line for line in logs if "no model in its folder" in line["event"]]
    assert len(told) == 1
    assert told[0]["path"] == str(rig.path)
    assert (rig.offered, rig.refused) == ([], [])
    rig.replace("new")
    rig.look(2)
    assert rig.offered == ["new"]


def test_a_folder_that_changes_while_it_is_read_is_no_refusal(rig: Rig) -> None:
    """Of two replacements in quick succession the last counts; reading both is no refusal."""
    rig.replace("second")

    def overtake(_: Path) -> None:
        rig.before_load = lambda _: None
        rig.replace("third", seed=1)
        raise ArtifactError("files of two models")

    rig.before_load = overtake
    rig.look(2)
    assert (rig.offered, rig.refused) == ([], [])
    rig.look(2)
    assert (rig.offered, rig.refused) == (["third"], [])


def test_a_bug_in_loading_is_a_refusal(rig: Rig) -> None:
    """Whatever goes wrong with the new model is told and ends nothing."""

    def break_down(_: Path) -> None:
        raise ZeroDivisionError("a bug")

    rig.before_load = break_down
    rig.replace("new")
    with capture_logs() as logs:
        rig.look(3)
    assert rig.refused == ["ZeroDivisionError: a bug"]
    assert [line["log_level"] for line in logs] == ["error"]


def test_the_thread_looks_by_itself_and_ends(rig: Rig) -> None:
    """Within the context the folder is looked at; afterwards it is not any more."""
    loaded = threading.Event()
    rig.before_load = lambda _: loaded.set()
    with rig.watching(0.01) as watch:
        rig.replace("new")
        assert loaded.wait(30.0)
    assert not watch._thread.is_alive()
    assert rig.offered == ["new"]
