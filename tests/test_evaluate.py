"""`tapewatch evaluate` from end to end on a small synthetic market, and everything it refuses."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from detector.artifact import SUMMARY, read_artifact, write_artifact
from detector.errors import RefusedError
from detector.features import DEFAULT, vector_spec
from detector.offline import Files, score_files
from detector.readers import write_parquet
from detector.synthetic import demo_market, gather, generate
from detector.ticks import NS_PER_S, TickBatch
from tests.models import random_artifact
from training.anomalies import Half, Policy, inject_files
from training.cli import register
from training.datasets import Split
from training.evaluate import METRICS, PAGE, Request, evaluate
from training.evaluation.baselines import FOREST, PCA
from training.evaluation.two_stage import STAGE1, SUM, TWO_STAGE
from training.labels import read_labels, write_labels
from training.train import Options, train

START = 1_767_600_000 * NS_PER_S
TRAINED_S, LASTS_S = 1_200, 2_000
SPLIT = Split(train=0.6, calibration=0.39, gap_s=5.0, until=START + TRAINED_S * NS_PER_S)


@dataclass(frozen=True)
class Desk:
    """Files of a market, two models of it, and a planted stream of what follows."""

    folder: Path
    models: tuple[Path, Path]
    clean: Files
    planted: Files
    labels: Path

    def request(self, out: Path, **changes: Any) -> Request:
        """Return what is asked for: the first model, two quick baselines, no published protocol."""
        asked = Request(
            models=self.models[:1],
            ticks=self.planted,
            labels=self.labels,
            out=out,
            train_ticks=self.clean,
            baselines=(FOREST, PCA),
            published=False,
        )
        return replace(asked, **changes)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Half an hour of four instruments, the first twenty minutes trained on, the rest planted."""
    folder = tmp_path_factory.mktemp("desk")
    ticks = gather(generate(demo_market(instruments=4), START, float(LASTS_S)))
    write_parquet(folder / "clean.parquet", [ticks])
    clean = Files((folder / "clean.parquet",))
    models = (folder / "model0", folder / "model1")
    for seed, model in enumerate(models):
        options = Options(split=SPLIT, budget=6.0, epochs=2, seed=seed, version=f"m{seed}")
        train(clean.batches(DEFAULT), DEFAULT, model, options)
    inject_files(
        replace(clean, since=START + (TRAINED_S - 100) * NS_PER_S),
        folder / "planted.parquet",
        folder / "labels.parquet",
        Policy(40.0, half=Half.BOTH, separation_s=45.0, seed=5),
    )
    return Desk(
        folder, models, clean, Files((folder / "planted.parquet",)), folder / "labels.parquet"
    )


@pytest.fixture(scope="module")
def report(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Return the report of both models, both protocols."""
    out = tmp_path_factory.mktemp("reports") / "report"
    return out, evaluate(desk.request(out, models=desk.models, published=True))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the pictures out: they are looked at in one report, and take longest."""
    monkeypatch.setattr("training.evaluate.draw", lambda _: [])


def runs_of(metrics: dict[str, Any], detector: str) -> list[dict[str, Any]]:
    """Return the time-ordered runs of a detector."""
    return [run for run in metrics["time_ordered"]["runs"] if run["detector"] == detector]


class TestReport:
    """What comes out."""

    def test_both_files_are_there_and_nothing_else(
        self, report: tuple[Path, dict[str, Any]]
    ) -> None:
        """metrics.json holds what was returned, as strict JSON."""
        out, metrics = report
        assert sorted(path.name for path in out.iterdir()) == [METRICS, PAGE]
        stored = json.loads((out / METRICS).read_text(), parse_constant=pytest.fail)
        assert stored == json.loads(json.dumps(metrics))
        assert not list(out.parent.glob(".report*"))

    def test_every_detector_has_every_seed(self, report: tuple[Path, dict[str, Any]]) -> None:
        """Both protocols, two models; what has no chance is the same for both."""
        _, metrics = report
        for protocol in ("time_ordered", "published"):
            runs = metrics[protocol]["runs"]
            found = {(run["detector"], run["seed"]) for run in runs}
            assert found == {(d, s) for d in (TWO_STAGE, STAGE1, SUM, FOREST, PCA) for s in (0, 1)}
            of_pca = [run["ranking"] for run in runs if run["detector"] == PCA]
            of_forest = [run["ranking"] for run in runs if run["detector"] == FOREST]
            assert of_pca[0] == of_pca[1]
            assert of_forest[0] != of_forest[1]

    def test_baselines_are_fitted_on_the_models_own_rows(
        self, report: tuple[Path, dict[str, Any]]
    ) -> None:
        """The parts are those of the training, to the row."""
        parts = report[1]["time_ordered"]["parts"]
        assert parts["same_rows_as_the_model"]
        assert parts["fit_rows"] == parts["model_fit_rows"] > 1_000

    def test_big_anomalies_are_found(self, report: tuple[Path, dict[str, Any]]) -> None:
        """The figures are about the planted anomalies, not about anything."""
        _, metrics = report
        for run in runs_of(metrics, TWO_STAGE):
            assert run["ranking"]["causal"]["fat_finger"]["auroc"] > 0.95
            assert run["ranking"]["causal"]["pump_and_dump"]["auroc"] > 0.95
        planted = metrics["time_ordered"]["parts"]["planted"]
        assert 0 < planted <= metrics["time_ordered"]["parts"]["labels"]
        for shipped in metrics["time_ordered"]["as_shipped"]:
            assert shipped["planted"] == planted
            assert 0 < shipped["hit"] < planted
        verdicts = [one["verdict"] for one in metrics["time_ordered"]["against"][PCA].values()]
        assert set(verdicts) <= {"ahead", "behind", "level"}

    @pytest.mark.usefixtures("undrawn")
    def test_what_is_as_shipped_is_what_score_writes(self, desk: Desk, tmp_path: Path) -> None:
        """Episodes are those of `tapewatch score`, adaptive thresholds included."""
        metrics = evaluate(desk.request(tmp_path / "report", baselines=()))
        lines = tmp_path / "events.jsonl"
        artifact = read_artifact(desk.models[0])
        score_files(artifact, desk.planted, tmp_path / "scores.parquet", events=lines)
        threshold = pq.read_table(tmp_path / "scores.parquet")["threshold"].to_numpy()
        assert len(np.unique(threshold)) > 10  # they did move
        judged_from = START + TRAINED_S * NS_PER_S
        opened = [
            event
            for event in map(json.loads, lines.read_text().splitlines())
            if event["phase"] == "open" and event["ts_event"] >= judged_from
        ]
        shipped = metrics["time_ordered"]["as_shipped"][0]
        counted = sum(one["opened"] for one in shipped["instruments"].values())
        assert counted == len(opened) > 0

    def test_the_page_needs_nothing_else(self, report: tuple[Path, dict[str, Any]]) -> None:
        """Well formed, pictures inside on both grounds, no address of anything outside."""
        out, metrics = report
        text = (out / PAGE).read_text()
        page = _Page()
        page.feed(text)
        page.close()
        assert page.open == []
        assert len(page.images) == 2 * len(page.figures) >= 12
        assert all(each.startswith("data:image/png;base64,") for each in page.images)
        assert not re.search(r"https?://|<script|<link|@import|url\(", text)
        for title in (
            "Score over price", "Alarms by hour", "Ranking of rows by type", "Errors and score",
            "What stage 1 did not expect", "Latent plane of stage 2", "Training curves",
        ):  # fmt: skip
            assert f"<h2>{title}</h2>" in text
        assert "Names of detected episodes" not in text  # the model has no classifier
        assert f"{metrics['time_ordered']['parts']['test_rows']:,} ticks judged" in text

    @pytest.mark.usefixtures("undrawn")
    def test_ticks_that_hold_the_training_need_no_others(self, desk: Desk, tmp_path: Path) -> None:
        """One stream of the whole day: parts are the same, anomalies are kept out of them."""
        files, labels = tmp_path / "whole.parquet", tmp_path / "labels.parquet"
        inject_files(desk.clean, files, labels, Policy(20.0, half=Half.BOTH, seed=6))
        metrics = evaluate(
            desk.request(
                tmp_path / "report", ticks=Files((files,)), labels=labels, train_ticks=None
            )
        )
        parts = metrics["time_ordered"]["parts"]
        assert 0.2 * parts["model_fit_rows"] < parts["fit_rows"] < parts["model_fit_rows"]
        assert not parts["same_rows_as_the_model"]
        assert 0 < parts["planted"] < parts["labels"]


class _Page(HTMLParser):
    """Tags that are open, pictures, headings of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.figures: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Remember what is open."""
        of = dict(attrs)
        if tag in {"img", "source"}:
            self.images.append(str(of.get("src") or of.get("srcset")))
        elif tag == "figure":
            self.figures.append(tag)
        if tag not in {"img", "source", "meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Every tag is closed in turn."""
        assert self.open.pop() == tag


class TestRefusals:
    """Messages that say what was wrong and what is allowed; nothing is written."""

    def refused(self, request: Request) -> str:
        """Return the message."""
        with pytest.raises(RefusedError) as refusal:
            evaluate(request)
        assert not request.out.is_dir() or not (request.out / METRICS).exists()
        return str(refusal.value)

    def test_a_report_that_exists(self, desk: Desk, tmp_path: Path) -> None:
        """It is not overwritten."""
        (tmp_path / "report").mkdir()
        assert "exists already" in self.refused(desk.request(tmp_path / "report"))
        assert "does not exist" in self.refused(desk.request(tmp_path / "no" / "report"))

    def test_a_report_that_another_run_made_meanwhile(
        self, desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second of two runs into one folder is refused and leaves the first one's alone."""
        out = tmp_path / "report"

        def other(_: object) -> list[Any]:
            out.mkdir()
            (out / "report.html").write_text("the first run's")
            return []

        monkeypatch.setattr("training.evaluate.draw", other)
        with pytest.raises(RefusedError, match=f"--out {out}: was made by another run"):
            evaluate(desk.request(out, baselines=()))
        assert [path.name for path in tmp_path.iterdir()] == ["report"]
        assert [path.read_text() for path in out.iterdir()] == ["the first run's"]

    def test_labels_that_are_missing_or_empty(self, desk: Desk, tmp_path: Path) -> None:
        """No such file; a file without an anomaly."""
        out = tmp_path / "report"
        assert "no such file" in self.refused(desk.request(out, labels=tmp_path / "none.parquet"))
        write_labels(tmp_path / "empty.parquet", [])
        told = self.refused(desk.request(out, labels=tmp_path / "empty.parquet"))
        assert "holds no anomaly" in told

    def test_labels_of_other_instruments(self, desk: Desk, tmp_path: Path) -> None:
        """The message names theirs and the ticks' own."""
        one = read_labels(desk.labels)[0]
        foreign = replace(one, planted=replace(one.planted, key=99, symbol="ELSE"))
        write_labels(tmp_path / "foreign.parquet", [foreign])
        told = self.refused(desk.request(tmp_path / "out", labels=tmp_path / "foreign.parquet"))
        assert "ELSE" in told
        assert one.planted.symbol in told

    def test_no_ticks_of_the_training(self, desk: Desk, tmp_path: Path) -> None:
        """Without --train-ticks the planted ticks would have to hold them."""
        told = self.refused(desk.request(tmp_path / "out", train_ticks=None))
        assert "training part" in told
        assert "--train-ticks" in told

    def test_no_calibration_ticks(self, desk: Desk, tmp_path: Path) -> None:
        """Files that end with the training part."""
        short = replace(desk.clean, until=START + 600 * NS_PER_S)
        told = self.refused(desk.request(tmp_path / "out", train_ticks=short))
        assert "calibration part" in told

    def test_nothing_to_judge(self, desk: Desk, tmp_path: Path) -> None:
        """Ticks from before the end of the calibration part."""
        early = replace(desk.planted, until=START + (TRAINED_S - 10) * NS_PER_S)
        told = self.refused(desk.request(tmp_path / "out", ticks=early))
        assert "no tick to judge" in told

    def test_no_anomaly_among_the_ticks_judged(self, desk: Desk, tmp_path: Path) -> None:
        """Labels of other days, later and earlier; nothing is left behind."""
        labels = read_labels(desk.labels)
        for name, shift in (("later", 10**15), ("earlier", -(10**15))):
            moved = [
                replace(
                    each,
                    planted=replace(
                        each.planted,
                        start_ns=each.planted.start_ns + shift,
                        end_ns=each.planted.end_ns + shift,
                    ),
                )
                for each in labels
            ]
            write_labels(tmp_path / f"{name}.parquet", moved)
            told = self.refused(desk.request(tmp_path / "out", labels=tmp_path / f"{name}.parquet"))
            assert "no anomaly has a tick among those judged" in told
            assert not (tmp_path / "out").exists()

    def test_labels_of_other_ticks(self, desk: Desk, tmp_path: Path) -> None:
        """Instruments and times fit, but the anomalies have other numbers of ticks than stated."""
        labels = read_labels(desk.labels)
        other = [replace(each, ticks=each.ticks + 3 if each.ticks else 0) for each in labels]
        write_labels(tmp_path / "other.parquet", other)
        told = self.refused(desk.request(tmp_path / "out", labels=tmp_path / "other.parquet"))
        assert "have other ticks than the labels state" in told
        first = next(each for each in labels if each.ticks)
        assert f"{first.planted.symbol} {first.planted.kind} at {first.planted.start_ns}" in told

    def test_training_ticks_of_other_instruments(self, desk: Desk, tmp_path: Path) -> None:
        """The same market under other names and numbers is not what the model was trained on."""
        ticks = gather(desk.clean.batches(DEFAULT)).ticks.copy()
        ticks["instrument_id"] += 1_000
        write_parquet(tmp_path / "else.parquet", [TickBatch.from_ticks(ticks)])
        other = Files((tmp_path / "else.parquet",))
        told = self.refused(desk.request(tmp_path / "out", train_ticks=other))
        assert told.startswith("--train-ticks: hold ")
        assert f"model {desk.models[0]} was trained on" in told

    def test_no_ready_tick(self, desk: Desk, tmp_path: Path) -> None:
        """Too few to fill the windows, and no file at all."""
        few = replace(desk.planted, until=START + (TRAINED_S - 99) * NS_PER_S)
        assert "no tick is ready" in self.refused(desk.request(tmp_path / "out", ticks=few))
        none = Files((tmp_path / "none.parquet",))
        assert "no such file" in self.refused(desk.request(tmp_path / "out", ticks=none))

    def test_models_that_do_not_belong_together(self, desk: Desk, tmp_path: Path) -> None:
        """One twice; one of vectors; one trained until another time."""
        out = tmp_path / "out"
        first = desk.models[0]
        assert "once each" in self.refused(desk.request(out, models=(first, first)))
        vectors = tmp_path / "vectors"
        random_artifact(vectors, vector_spec(("x",)))
        assert "model of vectors" in self.refused(desk.request(out, models=(vectors,)))
        other = tmp_path / "other"
        options = Options(split=replace(SPLIT, train=0.5), budget=1.0, epochs=1, seed=3)
        train(desk.clean.batches(DEFAULT), DEFAULT, other, options)
        told = self.refused(desk.request(out, models=(first, other)))
        for what in ("end of its training part", "--budget (1.0 against 6.0)", "epochs (1 against"):
            assert what in told
        assert "their seed alone" in told

    def test_two_models_of_one_seed(self, desk: Desk, tmp_path: Path) -> None:
        """Named otherwise, they are still no two seeds: a spread of nought would be no spread."""
        first, twin = desk.models[0], tmp_path / "twin"
        artifact = read_artifact(first)
        write_artifact(
            twin,
            artifact.manifest.model_copy(update={"version": "twin"}),
            artifact.weights,
            artifact.tables,
            json.loads((first / SUMMARY).read_bytes()),
            symbols=artifact.symbols,
        )
        told = self.refused(desk.request(tmp_path / "out", models=(first, twin)))
        assert f"has seed 0 as {first} has" in told

    def test_a_model_without_its_boundaries(self, desk: Desk, tmp_path: Path) -> None:
        """Such as one that no training wrote."""
        made = tmp_path / "made"
        random_artifact(made)
        assert "train the model anew" in self.refused(
            desk.request(tmp_path / "out", models=(made,))
        )


class TestCommand:
    """The command line."""

    def run(self, *arguments: object) -> Any:
        """Run the offline commands in this process."""
        app = typer.Typer()
        register(app)
        return CliRunner().invoke(app, [str(each) for each in arguments])

    @pytest.mark.usefixtures("undrawn")
    def test_it_writes_the_report_and_prints_the_figures(self, desk: Desk, tmp_path: Path) -> None:
        """As JSON for machines; the folder is there."""
        out = tmp_path / "report"
        done = self.run(
            "evaluate", "--model", desk.models[0], "--ticks", *desk.planted.paths,
            "--labels", desk.labels, "--train-ticks", *desk.clean.paths, "--out", out,
            "--no-baselines", "--no-published", "--json",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        facts = json.loads(done.stdout)
        assert facts["published"] is None
        assert {run["detector"] for run in facts["time_ordered"]["runs"]} == {
            TWO_STAGE,
            STAGE1,
            SUM,
        }
        assert (out / PAGE).is_file()

    @pytest.mark.usefixtures("undrawn")
    def test_without_json_it_prints_tables(self, desk: Desk, tmp_path: Path) -> None:
        """What a person looks at first, where the page is, and what may be wrong."""
        first, *rest = read_labels(desk.labels)
        labels = tmp_path / "labels.parquet"
        write_labels(labels, [replace(first, ticks=first.ticks + 1), *rest])
        short = tmp_path / "short.parquet"
        write_parquet(short, replace(desk.clean, since=START + NS_PER_S).batches(DEFAULT))
        done = self.run(
            "evaluate", "--model", desk.models[0], "--ticks", *desk.planted.paths,
            "--labels", labels, "--train-ticks", short,
            "--out", tmp_path / "report", "--no-baselines", "--no-published",
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert "AUROC" in done.stdout
        assert "report.html" in done.stdout
        told = done.stderr.replace("\n", " ")
        assert "warning: --labels" in told
        assert "1 of" in told
        assert "warning: --train-ticks" in told
        assert "not quite" in told
        page = (tmp_path / "report" / PAGE).read_text()
        assert page.count("Warning: --") == 2
