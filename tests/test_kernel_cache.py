"""Where compiled kernels cannot be kept: a command says so in a line, and what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
