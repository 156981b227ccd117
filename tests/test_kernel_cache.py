"""Where compiled kernels cannot be kept, a command says so; where they are compiled, it can end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.running import RunningDaemon, wait_until

COMPILES = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))  # a write beyond it fails
from detector.cli import _told
with _told():
    import numpy as np
    from detector.kernels_drift import count_columns
    tables = np.zeros((1, 1), np.float32), np.zeros(1, np.int32), np.zeros((1, 1), np.float32)
    count_columns(*tables, np.zeros((1, 1, 2), np.int32))
"""
NOWHERE = """
from detector.cli import _told
with _told():
    import numba
    names = {}
    exec(compile("def kernel(): pass", "/nowhere/kernel.py", "exec"), names)
    numba.njit(cache=True)(names["kernel"])
"""


@pytest.mark.parametrize(
    ("script", "words"), [(COMPILES, "File too large"), (NOWHERE, "cannot cache function")]
)
def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, script: str, words: str) -> None:
    """A full disk, or no folder that can be written: exit code 1, the reason and the variable."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert words in line
    assert "NUMBA_CACHE_DIR" in line


@pytest.mark.parametrize("after_s", [1.0, 2.0, 3.0])
def test_a_start_that_compiles_ends_in_order_when_told_to(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch, after_s: float
) -> None:
    """SIGTERM in the midst of compiling: nothing was taken in, exit code 0, no word of Numba's."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    config = f'''
[kafka]
bootstrap_servers = "127.0.0.1:1"
[model]
path = "{model}"
[http]
port = 0'''
    daemon = RunningDaemon(tmp_path / "daemon", config)
    wait_until(lambda: '"starting"' in daemon.log, daemon)
    time.sleep(after_s)  # some moment: wherever it is, it must end so
    assert daemon.terminate() == 0, daemon.log
    assert "Traceback" not in daemon.log
    assert "join" not in daemon.log, "it had compiled already"
