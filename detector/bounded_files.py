"""Reading a small file that somebody else wrote, without trusting what it is.

Knows no key, no model and no configuration; whoever asks says in its own words what was wrong.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path


def read_bounded(path: Path, limit: int) -> bytes:
    """Read a regular file of at most `limit` bytes.

    Never waits for a writer of a named pipe and never reads a device, whatever the path leads to.

    Parameters
    ----------
    path
        The file; symbolic links are followed.
    limit
        Most bytes.

    Raises
    ------
    OSError
        It cannot be opened or read.
    ValueError
        It is no regular file, or larger; the message is the end of a sentence about the file.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("is no regular file")
        if found.st_size > limit:
            raise ValueError(f"has {found.st_size:,} bytes, at most {limit:,} are allowed")
        return file.read(limit)
