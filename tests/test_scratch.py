"""Scratch folders: those of the dead go, those of the living stay; commands end at SIGTERM."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detector.errors import RefusedError
from tests.running import Tape, plain_environment, wait_until
from training.scratch import LOCK, remove_abandoned, scratch_folder
from training.signals import ends_in_order

OWNER = """
import sys, time
from pathlib import Path
from training.scratch import scratch_folder
with scratch_folder("train", Path(sys.argv[1])) as folder:
    (folder / "rows").write_text("many")
    print(folder, flush=True)
    time.sleep(60)
"""


def owner(place: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that holds a scratch folder; return it and the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(place)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_is_gone_with_its_context(tmp_path: Path) -> None:
    """Also after an error."""
    with scratch_folder("train", tmp_path) as folder:
        assert folder.is_dir()
    with pytest.raises(ZeroDivisionError), scratch_folder("train", tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_only_folders_of_the_dead_are_removed(tmp_path: Path) -> None:
    """A killed process's folder goes at the next run; a living one's and strangers' stay."""
    alive, mine = owner(tmp_path)
    dead, abandoned = owner(tmp_path)
    try:
        strangers = [tmp_path / "tapewatch-train-other", tmp_path / "tapewatch-evaluate-x"]
        for stranger in strangers:
            stranger.mkdir()
        (strangers[1] / LOCK).touch()
        assert remove_abandoned("train", tmp_path) == []
        dead.kill()
        dead.wait(10)
        assert (abandoned / "rows").is_file()
        with scratch_folder("train", tmp_path) as folder:
            assert not abandoned.exists()
            assert sorted(tmp_path.iterdir()) == sorted([mine, folder, *strangers])
        assert (mine / "rows").read_text() == "many"
    finally:
        for process in (alive, dead):
            process.kill()
            process.communicate()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write the temporary folder cannot have another one removed."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / LOCK).touch()
    (tmp_path / "tapewatch-train-x").symlink_to(tmp_path / "precious")
    assert remove_abandoned("train", tmp_path) == []
    assert (tmp_path / "precious").is_dir()


def test_a_place_that_is_missing_names_the_option(tmp_path: Path) -> None:
    """`--scratch`, not a name that nobody gave; before the work."""
    with (
        pytest.raises(RefusedError, match=r"^--scratch .*no: no such folder; create it first"),
        scratch_folder("train", tmp_path / "no"),
    ):
        pass
    with (
        pytest.raises(RefusedError, match=r"^--scratch /proc: nothing can be written there"),
        scratch_folder("train", Path("/proc")),
    ):
        pass


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_not_lost_within_a_callback(
    sent: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a handler raises is dropped where C calls Python, as Numba's compiler does."""

    def called_back() -> None:
        os.kill(os.getpid(), sent)
        time.sleep(0.01)  # the handler raises here

    @ends_in_order
    def command() -> None:
        ctypes.CFUNCTYPE(None)(called_back)()
        time.sleep(10.0)

    with pytest.raises(SystemExit) as end:
        command()
    assert end.value.code == 128 + sent
    assert capsys.readouterr().err == f"command: ended by {sent.name} before it was done\n"


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_training_in_order(tape: Tape, tmp_path: Path, sent: int) -> None:
    """One line, the code of a shell for that signal, and nothing left: no folder, no model."""
    command = ("train", "--ticks", str(tape.train), "--out", str(tmp_path / "model"))
    process = subprocess.Popen(
        [sys.executable, "-m", "detector", *command, "--scratch", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        env=plain_environment() | {"PYTHONUNBUFFERED": "1"},
    )
    rows = f"tapewatch-train-*/{LOCK}"
    wait_until(lambda: bool(list(tmp_path.glob(rows))) or process.poll() is not None)
    time.sleep(0.2)
    process.send_signal(sent)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + sent, told
    assert len(told.strip().splitlines()) == 1, told
    assert list(tmp_path.iterdir()) == []
