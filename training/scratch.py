"""Folders for what a long command holds on disk; a killed one does not leave its own for ever.

A folder's owner holds a lock on a file in it as long as it lives; the kernel lets go of the lock
with the process, however that ends. The next command finds such a folder without an owner and
removes it. A process id in the name would not do: another container's is unknown here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from detector.errors import RefusedError

PREFIX: Final = "tapewatch-"
LOCK: Final = "in-use"


@contextlib.contextmanager
def scratch_folder(purpose: str, place: Path | None) -> Iterator[Path]:
    """Make a folder, remove it at the end; first remove those whose owner is gone.

    Parameters
    ----------
    purpose
        Goes into the name: `tapewatch-<purpose>-...`.
    place
        Where; None: the system's temporary folder.

    Raises
    ------
    RefusedError
        `--scratch` names no folder, or one that cannot be written.
    """
    where = Path(tempfile.gettempdir()) if place is None else place
    option = "the system's temporary folder" if place is None else f"--scratch {place}"
    if not where.is_dir():
        raise RefusedError(f"{option}: no such folder; create it first")
    remove_abandoned(purpose, where)
    try:
        made = tempfile.TemporaryDirectory(prefix=f"{PREFIX}{purpose}-", dir=where)
    except OSError as error:
        raise RefusedError(
            f"{option}: nothing can be written there ({error.strerror}); "
            "give another folder by --scratch"
        ) from error
    with made as folder, _owned(Path(folder)):
        yield Path(folder)


@contextlib.contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. It gets its name only once it is held: nobody can be faster."""
    unnamed = folder / f".{LOCK}"
    with unnamed.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        unnamed.rename(folder / LOCK)
        yield


def remove_abandoned(purpose: str, place: Path) -> list[Path]:
    """Remove this user's folders of that purpose that no process holds; return them."""
    removed = []
    for folder in sorted(place.glob(f"{PREFIX}{purpose}-*")):
        with contextlib.suppress(OSError):  # taken, another user's, or gone meanwhile
            if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
                continue
            handle = os.open(folder / LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                removed.append(folder)
            finally:
                os.close(handle)
    return removed
