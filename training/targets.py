"""What a command writes, looked at before its work: nothing that it reads may be lost by it.

Every output is held against the other outputs, the inputs and the model folders of the same call,
by what the paths lead to: symbolic and hard links are seen through. Knows only paths.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.errors import RefusedError


@dataclass(frozen=True, slots=True)
class Given:
    """An option and the path it was given.

    Parameters
    ----------
    option
        As the user wrote it, such as `--out`.
    path
        A file or a folder; need not exist.
    """

    option: str
    path: Path

    def __str__(self) -> str:
        return f"{self.option} {self.path}"


def given(option: str, paths: Iterable[Path] | Path | None) -> list[Given]:
    """Name the option of one path, of several or of none."""
    some = [] if paths is None else [paths] if isinstance(paths, Path) else paths
    return [Given(option, path) for path in some]


def check_outputs(outputs: Sequence[Given], inputs: Sequence[Given]) -> None:
    """Refuse outputs that would overwrite one another or what is read, or cannot be made.

    An output must be no input, lie in no folder that is read (a model, a folder of ticks) and hold
    no input. A folder must exist to write into, but for `--out` of a model, whose parents are made.

    Raises
    ------
    RefusedError
        Names both options and what to do.
    """
    for number, one in enumerate(outputs):
        for other in outputs[:number]:
            if _same(one.path, other.path):
                raise RefusedError(f"{one}: is the file of {other.option}; give another name")
        for read in inputs:
            _check_apart(one, read)
    for one in outputs:
        check_writable(one)


def check_writable(target: Given) -> None:
    """Make and remove a folder beside an output, so that a full day's work is not lost at its end.

    Raises
    ------
    RefusedError
        Nothing can be made there; says where and why.
    """
    beside = target.path.absolute().parent
    while not beside.exists() and beside != beside.parent:
        beside = beside.parent
    try:
        tempfile.TemporaryDirectory(prefix=".tapewatch-", dir=beside).cleanup()
    except OSError as error:
        raise RefusedError(
            f"{target}: nothing can be written in {beside} ({error.strerror}); give a place where "
            "you may write"
        ) from error


def _check_apart(output: Given, read: Given) -> None:
    if _same(output.path, read.path):
        raise RefusedError(f"{output}: is {read} itself, which is read; give another name")
    if read.path.is_dir() and _within(output.path, read.path):
        raise RefusedError(
            f"{output}: lies within {read}, which is read; give a name outside of it"
        )
    if _within(read.path, output.path):
        raise RefusedError(f"{output}: holds {read}, which is read; give another name")


def _same(one: Path, other: Path) -> bool:
    if one.resolve() == other.resolve():
        return True
    return one.exists() and other.exists() and one.samefile(other)


def _within(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents
