"""A trained model, ticks and labels to figures and one page: `tapewatch evaluate`.

Reads, divides, scores, judges, draws, in that order; every step is a module of
`training.evaluation`. `docs/evaluating.md` says what each figure means.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from detector import __version__
from detector.artifact import SUMMARY, Artifact, read_artifact
from detector.errors import RefusedError
from detector.offline import Files
from detector.placing import Planted
from detector.ticks import NS_PER_S, TickBatch, split_key
from training.evaluation.baselines import BASELINES, HALF_SPACE, MOST_ROWS, NEIGHBOUR_ROWS
from training.evaluation.charts import Picture
from training.evaluation.compare import comparison
from training.evaluation.half_space import EXTRA, river_available
from training.evaluation.operating import POINTS, Judged, Trial
from training.evaluation.page import Drawn, draw, write_page
from training.evaluation.panel import (
    WITHOUT_CHANCE,
    Operated,
    Panel,
    Scores,
    needed,
    operations,
    ordered,
    rankings,
)
from training.evaluation.protocols import (
    AROUND_S,
    CALIBRATION_SHARE,
    SETTLING_S,
    Ends,
    Parts,
    published,
    time_ordered,
)
from training.evaluation.shipped import Shipped, run_pipeline
from training.evaluation.stream import Bool, Stream, read_stream
from training.evaluation.two_stage import TWO_STAGE, TwoStage, refit
from training.labels import TickCount, read_labels
from training.scratch import scratch_folder
from training.train import LEAST_TRAIN_ROWS

SCHEMA_VERSION: Final = 1
METRICS: Final = "metrics.json"
PAGE: Final = "report.html"


class Progress(Protocol):
    """Where an evaluation says how far it is."""

    def start(self, step: str, total: int | None) -> None:
        """Say that a step begins; its size is in rows or epochs, None where it is not known."""

    def advance(self, n: int) -> None:
        """Say that so much more of the step is done."""


class Silent:
    """Progress that nobody watches."""

    def start(self, step: str, total: int | None) -> None:
        """Ignore it."""

    def advance(self, n: int) -> None:
        """Ignore it."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is evaluated.

    Parameters
    ----------
    models
        Model folders of one training with different seeds; the first one is shown in the pictures.
    ticks
        With the planted anomalies.
    labels
        Label file of these ticks.
    out
        Folder to make for the report.
    train_ticks
        The files that the models were trained on; None: the ticks hold them.
    baselines
        Names of `BASELINES` to hold beside it.
    published
        Whether to fit the models' recipes anew for the published protocol.
    scratch
        Where features go meanwhile; None: the system's temporary folder.
    """

    models: tuple[Path, ...]
    ticks: Files
    labels: Path
    out: Path
    train_ticks: Files | None = None
    baselines: tuple[str, ...] = tuple(BASELINES)
    published: bool = True
    scratch: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Model:
    """A model folder: the verified artifact and its training summary."""

    folder: Path
    artifact: Artifact
    summary: dict[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class _First:
    """What the pictures show of the first model."""

    held_out: Scores
    scores: Scores
    operated: Operated
    shipped: Shipped
    as_shipped: Judged


def evaluate(request: Request, progress: Progress | None = None) -> dict[str, Any]:
    """Evaluate a model and write the report; return what `metrics.json` holds.

    Raises
    ------
    RefusedError
        Something that was given cannot be evaluated: the message says what, and what is allowed.
    """
    progress = progress or Silent()
    _check_out(request.out)
    if HALF_SPACE in request.baselines and not river_available():
        raise RefusedError(
            f"{HALF_SPACE} needs river, which is not installed: {EXTRA}, or leave this baseline "
            "out with --without-river"
        )
    models = _read_models(request.models)
    ends = Ends.of(models[0].summary)
    stated = read_labels(request.labels)
    labels, counted = [label.planted for label in stated], TickCount(stated)
    if not labels:
        raise RefusedError(f"--labels {request.labels}: holds no anomaly; there is nothing to find")
    with scratch_folder("evaluate", request.scratch) as scratch:
        stream = _read(request.ticks, models[0], labels, scratch, "ticks", progress, counted)
        _check_labels(request.labels, labels, stream)
        warnings = [counted.check(request.labels)]
        trained_on = stream
        if request.train_ticks is not None:
            trained_on = _read(request.train_ticks, models[0], [], scratch, "train", progress)
            _check_trained_on(models[0], trained_on)
        held = time_ordered(trained_on, ends)
        parts = time_ordered(stream, ends)
        _check_parts(held, parts, ends, given=request.train_ticks is not None)
        _check_judged(request.labels, labels, stream, parts)
        if request.train_ticks is not None:
            warnings.append(_other_rows(models[0], held))
        runs, first, shipped = _time_ordered(
            request, models, trained_on, held, stream, parts, progress
        )
        metrics: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "tapewatch": __version__,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "models": [_model_facts(each) for each in models],
            "ticks": [path.name for path in request.ticks.paths],
            "train_ticks": [path.name for path in (request.train_ticks or request.ticks).paths],
            "labels": request.labels.name,
            "warnings": [told for told in warnings if told is not None],
            "instruments": [stream.names[key] for key in sorted(stream.names)],
            "time_ordered": {
                "parts": _part_facts(held, stream, parts, ends, models[0]),
                "runs": runs,
                "as_shipped": shipped,
                "against": comparison(runs, TWO_STAGE),
            },
            "published": _published(request, models, stream, progress),
            "fitting": {
                "most_rows": MOST_ROWS,
                "neighbour_rows": NEIGHBOUR_ROWS,
                "baselines": list(request.baselines),
            },
        }
        progress.start("pictures", None)
        drawn = draw(
            Drawn(
                stream=stream,
                test=parts.test,
                held_out=trained_on,
                calibration=held.calibration,
                scores=first.scores,
                held_out_scores=first.held_out,
                operated=first.operated,
                shipped=first.shipped,
                as_shipped=first.as_shipped,
                model=TwoStage(models[0].artifact.model),
                artifact=models[0].artifact,
                summary=models[0].summary,
            )
        )
    _write(request.out, metrics, drawn)
    return metrics


def _check_out(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise RefusedError(f"--out {out}: exists already; give another name, or remove it")
    if not out.absolute().parent.is_dir():
        raise RefusedError(f"--out {out}: folder {out.parent} does not exist; create it first")


def _read_models(folders: Sequence[Path]) -> list[_Model]:
    models = []
    for folder in folders:
        artifact = read_artifact(folder)
        if artifact.features.kind != "tick":
            raise RefusedError(
                f"--model {folder}: is a model of vectors; anomalies are planted in ticks, and "
                "only models of ticks can be evaluated"
            )
        models.append(_Model(folder, artifact, json.loads((folder / SUMMARY).read_bytes())))
    for number, other in enumerate(models):
        _check_seeds(models[:number], other)
    return models


def _check_seeds(before: Sequence[_Model], other: _Model) -> None:
    """Refuse a model that differs from those before it by anything but its seed."""
    for one in before:
        if one.artifact.model_hash == other.artifact.model_hash:
            raise RefusedError(f"--model {other.folder}: is the model of {one.folder}; once each")
    if not before:
        return
    first, mine = _trained_by(before[0]), _trained_by(other)
    if apart := [name for name in mine if mine[name] != first.get(name)]:
        told = ", ".join(f"{name} ({mine[name]} against {first.get(name)})" for name in apart)
        raise RefusedError(
            f"--model {other.folder}: differs from {before[0].folder} by {told}; several models "
            "must differ by their seed alone (tapewatch train --seed)"
        )
    seed = other.artifact.manifest.training.seed
    for one in before:
        if one.artifact.manifest.training.seed == seed:
            raise RefusedError(
                f"--model {other.folder}: has seed {seed} as {one.folder} has; a spread over "
                "models needs seeds that differ (tapewatch train --seed)"
            )


def _trained_by(one: _Model) -> dict[str, Any]:
    """Say what a model was trained on and how, in a user's words; all of it but the seed."""
    manifest, ends = one.artifact.manifest, Ends.of(one.summary)
    recipe = {k: v for k, v in one.summary.get("recipe", {}).items() if k != "seed"}
    thresholds = manifest.thresholds
    return {
        "features": one.artifact.features.fingerprint[:12],
        "start of its ticks": _iso(ends.first),
        "end of its training part": _iso(ends.train_end),
        "end of its calibration part": _iso(ends.calibration_end),
        "gap": ends.gap_ns / NS_PER_S,
        "instruments": ", ".join(one.summary.get("instruments", [])),
        "fitted rows": manifest.training.train_rows,
        "calibration rows": manifest.training.calibration_rows,
        **{
            f"--{name}": getattr(thresholds, name)
            for name in ("budget", "risk", "quantile", "adapt")
            if name != "quantile" or thresholds.method == "quantile"
        },
        **recipe,
    }


def _batches(files: Files, model: _Model, counted: TickCount) -> Iterator[TickBatch]:
    for batch in counted.passing(files.batches(model.artifact.features)):
        if isinstance(batch, TickBatch):
            yield batch


def _read(
    files: Files,
    model: _Model,
    labels: Sequence[Planted],
    scratch: Path,
    name: str,
    progress: Progress,
    counted: TickCount | None = None,
) -> Stream:
    progress.start(f"features of {name}", None)
    folder = scratch / name
    folder.mkdir()
    stream = read_stream(
        _batches(files, model, counted or TickCount([])),
        model.artifact.features,
        folder,
        labels,
        progress.advance,
    )
    if not len(stream):
        option = "--ticks" if name == "ticks" else "--train-ticks"
        raise RefusedError(
            f"{option}: no tick is ready to be scored; an instrument needs "
            f"{model.artifact.features.warmup} ticks and {model.artifact.features.warmup_s:g} s "
            "first; give more ticks"
        )
    return stream


def _check_labels(path: Path, labels: Sequence[Planted], stream: Stream) -> None:
    known = set(stream.names)
    if foreign := sorted({one.symbol for one in labels if one.key not in known}):
        example = next(one for one in labels if one.key not in known)
        publisher, instrument = split_key(example.key)
        raise RefusedError(
            f"--labels {path}: anomalies of {', '.join(foreign)} ({publisher}:{instrument}), "
            f"but --ticks hold {', '.join(sorted(stream.names.values()))}; give the labels that "
            "were written with these ticks"
        )


def _check_trained_on(model: _Model, stream: Stream) -> None:
    """Refuse training ticks of which no instrument is the model's, by key or by name."""
    artifact = model.artifact
    keys = {*artifact.symbols, *artifact.tables["keys"].tolist()}
    names = set(model.summary.get("instruments", []))
    found = stream.names
    if not (keys & set(found) or names & set(found.values())):
        raise RefusedError(
            f"--train-ticks: hold {', '.join(sorted(found.values()))}, but model {model.folder} "
            f"was trained on {', '.join(sorted(names)) or 'others'}; give the files of its training"
        )


def _other_rows(model: _Model, held: Parts) -> str | None:
    """Warn where the training ticks are not the rows that the model states."""
    training = model.artifact.manifest.training
    fitted, calibrated = int(held.fit.sum()), int(held.calibration.sum())
    if (fitted, calibrated) == (training.train_rows, training.calibration_rows):
        return None
    return (
        f"--train-ticks: {fitted:,} rows to fit and {calibrated:,} to calibrate, but the model "
        f"states {training.train_rows:,} and {training.calibration_rows:,}: these are not quite "
        "the ticks it was trained on, and baselines and thresholds come from other rows than its"
    )


def _check_parts(held: Parts, parts: Parts, ends: Ends, *, given: bool) -> None:
    option = "--train-ticks" if given else "--ticks"
    advice = "" if given else "; name the files of `tapewatch train` by --train-ticks"
    for what, mask, start, end in (
        ("training", held.train, ends.first, ends.train_end),
        ("calibration", held.calibration, ends.train_end + ends.gap_ns, ends.calibration_end),
    ):
        if not mask.any():
            raise RefusedError(
                f"{option}: no ordinary tick of the model's {what} part, {_iso(start)} to "
                f"{_iso(end)}{advice}"
            )
    if not parts.test.any():
        raise RefusedError(
            f"--ticks: no tick to judge: only what comes after the model's calibration part, from "
            f"{_iso(ends.test_start)} on, can be judged"
        )


def _check_judged(path: Path, labels: Sequence[Planted], stream: Stream, parts: Parts) -> None:
    if stream.kind[parts.test].any():
        return
    judged = stream.ts[parts.test]
    first, last = min(one.start_ns for one in labels), max(one.end_ns for one in labels)
    raise RefusedError(
        f"--labels {path}: no anomaly has a tick among those judged, {_iso(int(judged.min()))} to "
        f"{_iso(int(judged.max()))}; the labels lie between "
        f"{_iso(first)} and {_iso(last)}; give the labels that were written with these ticks, and "
        "ticks that reach beyond the model's calibration part"
    )


def _time_ordered(
    request: Request,
    models: Sequence[_Model],
    trained_on: Stream,
    held: Parts,
    stream: Stream,
    parts: Parts,
    progress: Progress,
) -> tuple[list[dict[str, Any]], _First, list[dict[str, Any]]]:
    """Judge every model and the baselines beside it on what follows their calibration part."""
    runs: list[dict[str, Any]] = []
    as_shipped: list[dict[str, Any]] = []
    first: _First | None = None
    for seed, one in enumerate(models):
        model = TwoStage(one.artifact.model)
        names = _names(request, seed)
        progress.start(f"baselines {seed + 1}/{len(models)}", None)
        panel = Panel.fit(model, trained_on, held.train, seed, names)
        wanted = needed(stream, parts.test)
        total = int(np.count_nonzero(held.calibration)) + int(np.count_nonzero(wanted))
        progress.start(f"scores {seed + 1}/{len(models)}", total)
        held_out = panel.score(trained_on, held.calibration, progress.advance)
        scores = panel.score(stream, wanted, progress.advance)
        if first is not None:
            _reuse(held_out, first.held_out)
            _reuse(scores, first.scores)
        progress.start(f"pipeline {seed + 1}/{len(models)}", None)
        shipped = run_pipeline(
            one.artifact, request.ticks.batches(one.artifact.features), progress.advance
        )
        progress.start(f"episodes {seed + 1}/{len(models)}", None)
        operated = operations(
            trained_on, held_out, held.calibration, stream, scores, parts.test, model.table_rows
        )
        ranked = rankings(stream, scores, parts.test)
        runs.extend(
            {
                "detector": name,
                "seed": seed,
                "ranking": ranked[name],
                "episodes": operated.facts(name),
            }
            for name in ranked
        )
        judged = _judge_shipped(one, shipped, stream, parts.test, operated.trial)
        as_shipped.append({"seed": seed, **judged.facts})
        first = first or _First(held_out, scores, operated, shipped, judged)
    assert first is not None  # noqa: S101 - there is at least one model
    return runs, first, as_shipped


def _names(request: Request, seed: int) -> list[str]:
    """Baselines to fit for a seed: those without chance once."""
    return [name for name in request.baselines if not (seed and name in WITHOUT_CHANCE)]


def _reuse(scores: Scores, first: Scores) -> None:
    for name in set(first.by) & WITHOUT_CHANCE:
        scores.by[name] = first.by[name]


def _judge_shipped(
    one: _Model, shipped: Shipped, stream: Stream, test: Bool, trial: Trial
) -> Judged:
    return trial.judge_episodes(
        shipped.episodes(stream.ts, test),
        shipped.threshold[test],
        one.artifact.manifest.thresholds.budget,
    )


def _published(
    request: Request, models: Sequence[_Model], stream: Stream, progress: Progress
) -> dict[str, Any] | None:
    """Fit every model's recipe anew, away from the anomalies, and rank the rows around them."""
    if not request.published:
        return None
    parts = published(stream)
    facts: dict[str, Any] = {
        "parts": {
            "around_s": AROUND_S,
            "settling_s": SETTLING_S,
            "left_out_share": CALIBRATION_SHARE,
            "fit_rows": int(np.count_nonzero(parts.fit)),
            "early_stopping_rows": int(np.count_nonzero(parts.later)),
            "test_rows": int(np.count_nonzero(parts.test)),
            "anomalous_rows": int(np.count_nonzero(stream.kind[parts.test])),
        }
    }
    if np.count_nonzero(parts.fit) < LEAST_TRAIN_ROWS or not stream.kind[parts.test].any():
        return {
            **facts,
            "refused": f"{facts['parts']['fit_rows']:,} ordinary ticks away from the anomalies; "
            f"at least {LEAST_TRAIN_ROWS:,} are needed, and one anomalous one",
        }
    runs: list[dict[str, Any]] = []
    first: Scores | None = None
    wanted = needed(stream, parts.test)
    for seed, one in enumerate(models):
        progress.start(f"published protocol: fit {seed + 1}/{len(models)}", None)
        model = TwoStage(
            refit(
                one.summary,
                one.artifact.model,
                stream.rows(parts.fit),
                stream.rows(parts.later),
                lambda *_: progress.advance(1),
            )
        )
        panel = Panel.fit(model, stream, parts.train, seed, _names(request, seed))
        progress.start(
            f"published protocol: scores {seed + 1}/{len(models)}", int(np.count_nonzero(wanted))
        )
        scores = panel.score(stream, wanted, progress.advance)
        if first is not None:
            _reuse(scores, first)
        first = first or scores
        runs.extend(
            {"detector": name, "seed": seed, "ranking": ranked}
            for name, ranked in rankings(stream, scores, parts.test).items()
        )
    return {**facts, "runs": runs, "against": comparison(runs, TWO_STAGE)}


def _model_facts(one: _Model) -> dict[str, Any]:
    manifest = one.artifact.manifest
    return {
        "version": one.artifact.version,
        "hash": one.artifact.model_hash,
        "seed": manifest.training.seed,
        "features": manifest.architecture.features,
        "thresholds": {
            "method": manifest.thresholds.method,
            "budget": manifest.thresholds.budget,
            "risk": manifest.thresholds.risk,
            "quantile": manifest.thresholds.quantile,
            "adapt": manifest.thresholds.adapt,
        },
    }


def _part_facts(
    held: Parts, stream: Stream, parts: Parts, ends: Ends, model: _Model
) -> dict[str, Any]:
    """Count the rows of each part; the model's own counts beside them."""
    training = model.artifact.manifest.training
    kind = stream.kind[parts.test]
    return {
        "ends": {name: _iso(ts) for name, ts in asdict(ends).items() if name != "gap_ns"},
        "gap_s": ends.gap_ns / NS_PER_S,
        "settling_s": SETTLING_S,
        "fit_rows": int(np.count_nonzero(held.fit)),
        "early_stopping_rows": int(np.count_nonzero(held.later)),
        "calibration_rows": int(np.count_nonzero(held.calibration)),
        "model_fit_rows": training.train_rows,
        "model_calibration_rows": training.calibration_rows,
        "same_rows_as_the_model": (
            int(np.count_nonzero(held.fit)) == training.train_rows
            and int(np.count_nonzero(held.calibration)) == training.calibration_rows
        ),
        "test_rows": len(kind),
        "anomalous_rows": int(np.count_nonzero(kind)),
        "planted": len(Trial.of(stream, parts.test, np.zeros(len(kind), np.int32)).planted),
        "labels": len(stream.planted),
        "points": [point.name for point in POINTS],
        "detectors": ordered(list(BASELINES)),
    }


def _iso(ts_ns: int) -> str:
    return datetime.fromtimestamp(ts_ns / NS_PER_S, UTC).isoformat(timespec="milliseconds")


def _write(out: Path, metrics: dict[str, Any], drawn: Sequence[Picture]) -> None:
    """Write both files beside the final name; the folder takes it only when all went well."""
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.absolute().parent) as folder:
        staged = Path(folder) / "report"
        staged.mkdir()
        text = json.dumps(metrics, indent=2, sort_keys=True, allow_nan=False)
        (staged / METRICS).write_text(text + "\n")
        (staged / PAGE).write_text(write_page(metrics, drawn))
        staged.chmod(0o755)
        try:
            staged.rename(out)  # never into a folder that another run made meanwhile
        except OSError as error:
            raise RefusedError(
                f"--out {out}: was made by another run meanwhile; give another name"
            ) from error
