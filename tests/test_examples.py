"""The examples that need no broker run; README's test runs them as the page shows them."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from detector.latents import LatentMessage, row_dtype
from detector.readers import write_parquet
from detector.synthetic import Instrument, Market, gather, generate
from tests.conftest import REPOSITORY
from tests.running import START_NS, Tape, plain_environment, tapewatch
from training.labels import write_labels

WITHIN_S = 200


def example(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run an example to its end."""
    return subprocess.run(
        [sys.executable, f"examples/{name}", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=plain_environment(),
        timeout=WITHIN_S,
        check=False,
    )


def test_classifier_of_latents_reads_score_files(model: Path, tape: Tape, tmp_path: Path) -> None:
    """`inject`, `score --latent`, then the example: it names kinds better than chance would."""
    planted, labels, scores = (tmp_path / f"{n}.parquet" for n in ("planted", "labels", "scores"))
    done = tapewatch(
        *("inject", "--ticks", tape.train, "--out", planted, "--labels", labels),
        *("--kinds", "quote_stuffing,layering,pump_and_dump"),
        *("--per-hour", "72", "--separation", "20"),
    )
    assert done.returncode == 0, done.stderr
    done = tapewatch("score", "--ticks", planted, "--model", model, "--out", scores, "--latent")
    assert done.returncode == 0, done.stderr
    names = pq.read_schema(scores).names
    assert names[-1].startswith("latent_")
    done = example("latent_classifier.py", scores, labels)
    assert done.returncode == 0, done.stderr
    figures = re.findall(r"(\d\.\d\d) (?:balanced|average)", done.stdout)
    chances = re.findall(r"(\d\.\d\d) by chance", done.stdout)
    assert len(figures) == len(chances) == 2
    assert all(float(a) > 1.2 * float(b) for a, b in zip(figures, chances, strict=True))


def test_classifier_says_what_a_score_file_lacks(model: Path, tape: Tape, tmp_path: Path) -> None:
    """A score file without latents is refused with the command that writes them."""
    scores, labels = tmp_path / "scores.parquet", tmp_path / "labels.parquet"
    done = tapewatch("score", "--ticks", tape.live, "--model", model, "--out", scores)
    assert done.returncode == 0, done.stderr
    write_labels(labels, [])
    for given, words in (
        ((scores, labels), "tapewatch score --latent"),
        ((scores, tmp_path / "none"), "none: no such file"),
        ((tmp_path / "none", labels), "none: no such file"),
        ((labels, scores), "column symbol is dictionary"),
        ((scores,), "give a score file and its labels"),
    ):
        done = example("latent_classifier.py", *given)
        assert done.returncode == 1
        assert words in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr


def test_classifier_refuses_labels_of_other_times(model: Path, tape: Tape, tmp_path: Path) -> None:
    """No scored tick lies in an anomaly: said in one line."""
    scores, labels = tmp_path / "scores.parquet", tmp_path / "labels.parquet"
    done = tapewatch("score", "--ticks", tape.live, "--model", model, "--out", scores, "--latent")
    assert done.returncode == 0, done.stderr
    write_labels(labels, [])
    done = example("latent_classifier.py", scores, labels)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "labels of other ticks" in done.stderr


def test_drift_command_tells_another_market(model: Path, tape: Tape, tmp_path: Path) -> None:
    """What a model was trained on has not moved; the same names five times as fast have."""
    market = Market(
        tuple(Instrument(f"S{i}", price=20.0 + 30 * i, rate_hz=60 + 20 * i) for i in range(6)),
        seed=8,
    )
    fast = tmp_path / "fast.parquet"
    write_parquet(fast, [gather(generate(market, START_NS, 150))])
    found = []
    for path in (tape.train, fast):
        done = tapewatch("drift", "--ticks", path, "--model", model, "--json")
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    same, other = found
    assert (same["score_psi"] < 0.05, same["features_moved"]) == (True, 0)
    assert other["features_moved"] > 5
    top = max(other["feature_psi"], key=other["feature_psi"].get)
    shown = tapewatch("drift", "--ticks", fast, "--model", model, "--top", "3")
    assert shown.returncode == 0, shown.stderr
    assert "the score" in shown.stdout
    assert top in shown.stdout


def test_reader_of_latents_drops_what_it_has_seen() -> None:
    """Rows not beyond the last place of their instrument and partition are repeats."""
    newest = runpy.run_path(str(REPOSITORY / "examples" / "latents.py"))["Newest"]()

    def new(key: int, partition: int, *places: tuple[int, int]) -> int:
        rows = np.zeros(len(places), row_dtype(1))
        rows["offset"], rows["index"] = np.array(places).T
        message = LatentMessage(key, partition, bytes(16), rows)
        return len(rows[newest.rows(message)])

    assert new(1, 0, (5, 0), (5, 1), (6, 0)) == 3
    assert new(1, 0, (5, 1), (6, 0)) == 0
    assert new(1, 0, (6, 0), (6, 1), (9, 0)) == 2
    assert new(2, 0, (5, 0)) == 1
    assert new(1, 3, (5, 0)) == 1
    assert new(1, 0, (9, 0)) == 0
