"""No command writes over what it reads, whatever the names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from detector.errors import RefusedError
from tests.models import random_artifact
from training.cli import register
from training.targets import Given, check_outputs, check_writable


def refusal(*arguments: object) -> str:
    """Call the command line and return what it was refused with."""
    app = typer.Typer()
    register(app)
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert isinstance(result.exception, RefusedError), result.output
    return str(result.exception)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a model and files that no command may touch."""
    random_artifact(tmp_path / "mm")
    for name in ("in.parquet", "labels.parquet", "train.parquet", "log"):
        (tmp_path / name).write_text(f"the {name}")
    (tmp_path / "link.parquet").symlink_to(tmp_path / "in.parquet")
    os.link(tmp_path / "in.parquet", tmp_path / "hard.parquet")
    (tmp_path / "models").symlink_to(tmp_path / "mm")
    return tmp_path


def contents(place: Path) -> dict[str, bytes]:
    """Every file of the folder."""
    return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}


INJECT = "inject --ticks {d}/in.parquet"
SCORE = "score --ticks {d}/in.parquet --model {d}/mm"
CLASSIFY = "classify --model {d}/mm --ticks {d}/in.parquet --labels {d}/labels.parquet"
EVALUATE = "evaluate --model {d}/mm --ticks {d}/in.parquet --labels {d}/labels.parquet"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (f"{INJECT} --out {{d}}/in.parquet --labels {{d}}/l", "--out {d}/in.parquet: is --ticks"),
        (f"{INJECT} --out {{d}}/link.parquet --labels {{d}}/l", "is --ticks {d}/in.parquet itself"),
        (f"{INJECT} --out {{d}}/hard.parquet --labels {{d}}/l", "is --ticks {d}/in.parquet itself"),
        (f"{INJECT} --out {{d}}/o --labels {{d}}/in.parquet", "--labels {d}/in.parquet: is --tick"),
        (f"{INJECT} --out {{d}}/o --labels {{d}}/./o", "--labels {d}/o: is the file of --out"),
        (f"{INJECT} {{d}}/log --out {{d}}/log --labels {{d}}/l", "is --ticks {d}/log itself"),
        (f"{SCORE} --out {{d}}/in.parquet", "--out {d}/in.parquet: is --ticks"),
        (f"{SCORE} --out {{d}}/o --events {{d}}/in.parquet", "--events {d}/in.parquet: is --ticks"),
        (f"{SCORE} --out {{d}}/mm/manifest.json", "lies within --model {d}/mm"),
        (f"{SCORE} --out {{d}}/models/tables.safetensors", "lies within --model {d}/mm"),
        (f"{SCORE} --out {{d}}/log --changes {{d}}/log", "is --changes {d}/log itself"),
        (f"{CLASSIFY} --out {{d}}/mm --overwrite", "is --model {d}/mm itself"),
        (f"{CLASSIFY} --out {{d}}/mm/named", "lies within --model {d}/mm"),
        (f"{EVALUATE} --out {{d}}/mm/report", "lies within --model {d}/mm"),
        (
            f"{EVALUATE} --train-ticks {{d}}/train.parquet --out {{d}}/train.parquet",
            "is --train-ticks",
        ),
        ("train --ticks {d}/mm/manifest.json --out {d}/mm --overwrite", "holds --ticks {d}/mm/man"),
    ],
)
def test_nothing_that_is_read_is_written(place: Path, command: str, told: str) -> None:
    """Refused with both names before anything is read; every file stays as it was."""
    before = contents(place)
    message = refusal(*command.format(d=place).split())
    assert told.format(d=place) in message
    assert contents(place) == before


def test_files_that_are_there_are_planted_over_only_when_asked(place: Path) -> None:
    """`inject` refuses an old result as train and classify do, for both of its files."""
    for out, labels in (("log", "l"), ("o", "log")):
        command = f"{INJECT} --out {{d}}/{out} --labels {{d}}/{labels}".format(d=place).split()
        assert "exists already" in refusal(*command)
        assert "--overwrite" in refusal(*command)
        assert "exists" not in refusal(*command, "--overwrite")  # the next thing: no Parquet file
    assert (place / "log").read_text() == "the log"


def test_outputs_beside_inputs_are_fine(place: Path) -> None:
    """The same folder, a name that begins alike, and parents that are still to be made."""
    inputs = [Given("--ticks", place / "in.parquet"), Given("--model", place / "mm")]
    for name in ("out.parquet", "in.parquet.out", "mm2", "new/model", "in"):
        check_outputs([Given("--out", place / name)], inputs)
    assert sorted(path.name for path in place.iterdir() if path.name.startswith(".")) == []


def test_a_place_that_takes_nothing_is_told_by_the_option() -> None:
    """Before the work, and without the name of what was tried."""
    with pytest.raises(RefusedError, match=r"^--out /proc/x/y: nothing can be written in /proc"):
        check_writable(Given("--out", Path("/proc/x/y")))
