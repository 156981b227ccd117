"""A new version of the model in its folder: noticed, read and warmed in a thread of its own.

A folder is read once it has been the same at two looks, so that one that is still being copied is
left alone; what was refused is looked at again when its files change. The watch never touches what
is in force: it hands over a model that is ready, or tells why there is none. Knows no Kafka.
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import structlog

from detector.artifact import MANIFEST, MAX_MANIFEST_BYTES
from detector.errors import FailedError, RefusedError
from detector.scorer import Scorer

_log = structlog.get_logger("tapewatch")

JOIN_S: Final = 1.0
_Signature = tuple[tuple[str, int, int, int, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A model that can be put in force at once.

    Parameters
    ----------
    scorer
        Verified and warmed.
    created
        When it was trained, as its manifest says: ISO 8601.
    """

    scorer: Scorer
    created: str


class ModelWatch:
    """Looks at a model folder now and then.

    Parameters
    ----------
    folder
        The folder, or a symbolic link to it.
    every_s
        Time between two looks, in seconds.
    model_hash
        Of the model in force.
    load
        Reads, verifies and warms the model in a folder.
    offer
        Takes a model that is ready.
    refused
        Told once for every attempt that failed, with the reason.
    """

    def __init__(
        self,
        folder: Path,
        every_s: float,
        model_hash: str,
        load: Callable[[Path], LoadedModel],
        offer: Callable[[LoadedModel], None],
        refused: Callable[[str], None],
    ) -> None:
        self._folder = folder
        self._every_s = every_s
        self._newest = model_hash
        self._load, self._offer, self._refused = load, offer, refused
        self._last: _Signature | None = None
        self._tried: _Signature | None = None
        self._missing = 0  # looks in a row that found no model
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="model watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(JOIN_S)  # a model that is just being loaded is not waited for

    def look(self) -> None:
        """Look once; load and offer what is there if it is new and has settled."""
        found = _signature(self._folder)
        settled, self._last = found is not None and found == self._last, found
        self._missing = self._missing + 1 if found is None else 0
        if self._missing == 2:  # a replacement takes the folder away for a moment
            _log.warning("no model in its folder, the one in force goes on", path=str(self._folder))
        if found is None or not settled or found == self._tried:
            return
        self._tried = found
        manifest_hash = _hash_of(self._folder / MANIFEST)
        if manifest_hash == self._newest:
            return
        try:
            # Resolved once: a link that moves on meanwhile must not mix two models.
            loaded = self._load(self._folder.resolve(strict=True))
        except (RefusedError, FailedError, OSError) as error:
            if _signature(self._folder) == found:
                self._refused(str(error))
            else:
                self._tried = None  # it was replaced while it was read
            return
        except Exception as error:
            # What is in force works: whatever is wrong with the new one must not end the daemon.
            _log.exception("bug: a new model could not be loaded")
            self._refused(f"{type(error).__name__}: {error}")
            return
        self._newest = loaded.scorer.model_hash
        self._offer(loaded)

    def _watch(self) -> None:
        while not self._stop.wait(self._every_s):
            self.look()


def _signature(folder: Path) -> _Signature | None:
    """Return what tells one state of a folder from another; None without a manifest."""
    files: list[tuple[str, int, int, int, int]] = []
    try:
        if not (folder / MANIFEST).is_file():
            return None
        for path in sorted(folder.iterdir()):
            found = path.stat()
            files.append((path.name, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))
    except OSError:  # a file went while we looked
        return None
    return tuple(files)


def _hash_of(manifest: Path) -> str | None:
    """SHA-256 of a manifest, the model's identity; None where `read_artifact` will complain."""
    with contextlib.suppress(OSError), manifest.open("rb") as file:
        return hashlib.sha256(file.read(MAX_MANIFEST_BYTES)).hexdigest()
    return None
