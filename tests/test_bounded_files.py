"""Small files of others: what is read, and what is refused without waiting."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detector.bounded_files import read_bounded


def test_a_file_up_to_the_limit_is_read_whole(tmp_path: Path) -> None:
    """Also through a symbolic link, as mounted secrets are; one byte more is refused."""
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert read_bounded(tmp_path / "link", 5) == b"12345"
    with pytest.raises(ValueError, match="5 bytes, at most 4"):
        read_bounded(tmp_path / "file", 4)


def test_pipes_and_devices_are_refused_at_once(tmp_path: Path) -> None:
    """A pipe without a writer would wait for ever, a device may never end."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(ValueError, match="no regular file"):
            read_bounded(path, 10)


def test_missing_files_and_folders_are_errors_of_the_system(tmp_path: Path) -> None:
    """The reason stays what the system says."""
    with pytest.raises(IsADirectoryError):
        read_bounded(tmp_path, 10)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "none", 10)
