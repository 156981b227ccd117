"""The offline commands: parse, call, print. Heavy imports only inside."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from detector.errors import RefusedError
from training.demo.command import demo
from training.halves import Half
from training.signals import ends_in_order
from training.targets import check_outputs, given

if TYPE_CHECKING:
    from detector.artifact import Architecture, Artifact
    from detector.offline import Files


class VariationalStages(StrEnum):
    """Which stages draw their latent from a normal distribution while training."""

    NONE = "none"
    STAGE1 = "stage1"
    STAGE2 = "stage2"
    BOTH = "both"


MOST_BUDGET: Final = 1e6
"""Alarms an instrument-hour; also where NaN and infinity end."""

MOST_ABSENT: Final = 0.5
"""Share of ticks without a bid or ask above which a training warns."""

NAME_OF_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,99}")

out = Console()
err = Console(stderr=True)

model_app = typer.Typer(help="Show or verify a model folder.", no_args_is_help=True)

Ticks = Annotated[
    list[Path], typer.Option("--ticks", help="Tick files; more may follow, or repeat the option.")
]
MoreTicks = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", show_default=False)]
FileFormatOption = Annotated[
    str | None, typer.Option("--format", help="Format of the files; else told by their names.")
]
Columns = Annotated[
    str | None,
    typer.Option(help="The files hold vectors: their columns, by comma, or all."),
]
Symbol = Annotated[str | None, typer.Option(help="Name of the instrument in the files.")]
Since = Annotated[str | None, typer.Option("--from", help="First event time, ISO 8601, inclusive.")]
Until = Annotated[str | None, typer.Option("--until", help="Last event time, ISO 8601, exclusive.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def register(app: typer.Typer) -> None:
    """Add the offline commands to the command line."""
    app.command()(ends_in_order(train))
    app.command()(ends_in_order(score))
    app.command()(ends_in_order(drift))
    app.command()(ends_in_order(inject))
    app.command()(ends_in_order(classify))
    app.command()(ends_in_order(evaluate))
    app.command()(demo)
    app.add_typer(model_app, name="model")


def train(
    ticks: Ticks,
    model: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
    more: MoreTicks = None,
    file_format: FileFormatOption = None,
    columns: Columns = None,
    symbol: Symbol = None,
    since: Since = None,
    until: Until = None,
    train_fraction: Annotated[
        float, typer.Option(help="Share of the ready ticks, by event time, to train on.")
    ] = 0.6,
    calibration_fraction: Annotated[
        float, typer.Option(help="Share after it for the thresholds; the rest is for testing.")
    ] = 0.2,
    train_until: Annotated[
        str | None, typer.Option(help="Event time at which training ends, ISO 8601.")
    ] = None,
    gap_s: Annotated[
        float, typer.Option("--gap", min=0, help="Seconds left out after each boundary.")
    ] = 60.0,
    quantile: Annotated[
        float | None,
        typer.Option(
            help="Share of ordinary ticks that stay below the threshold.", show_default="0.999"
        ),
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Instead: alarms (episodes) an instrument and hour that may be false."),
    ] = None,
    risk: Annotated[
        float | None,
        typer.Option(help="Instead: share of ordinary ticks that may reach the threshold."),
    ] = None,
    adapt: Annotated[
        bool,
        typer.Option(help="Thresholds for a budget or a risk follow the alarms they cause."),
    ] = True,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Passes over the data, at most.")
    ] = None,
    variational: Annotated[
        VariationalStages, typer.Option(help="Stages whose latent is sampled while training.")
    ] = VariationalStages.NONE,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Makes it repeatable.")] = 0,
    version: Annotated[str | None, typer.Option(help="Name of the model; else the time.")] = None,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for rows while training; else the system's.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train both autoencoders on ordinary ticks and write a model folder.

    Example: tapewatch train --ticks monday.dbn.zst tuesday.dbn.zst --out model
    """
    from training.datasets import MOST_GAP_S, Split  # noqa: PLC0415
    from training.train import Options  # noqa: PLC0415
    from training.train import train as run  # noqa: PLC0415

    files = _files(ticks, more, file_format, columns, symbol, since, until)
    _check_version(version)
    _check_asked(quantile, budget, risk)
    if not 0 <= gap_s <= MOST_GAP_S:
        raise RefusedError(
            f"--gap is {gap_s:g}; it must lie between 0 and {MOST_GAP_S:,.0f} seconds (a year)"
        )
    try:
        split = Split(
            train_fraction,
            calibration_fraction,
            gap_s,
            None if train_until is None else _time_ns(train_until, "--train-until"),
        )
    except ValueError as error:
        raise RefusedError(f"--train-fraction, --calibration-fraction: {error}") from error
    options = Options(
        split=split,
        quantile=Options().quantile if quantile is None else quantile,
        budget=budget,
        risk=risk,
        adapt=adapt,
        seed=seed,
        epochs=epochs,
        variational=variational.value,
        version=version,
    )
    check_outputs(given("--out", model), given("--ticks", files.paths))
    spec = files.spec()
    with _bars() as bars:
        artifact = run(
            files.batches(spec),
            spec,
            model,
            options,
            sources=[path.name for path in files.paths],
            progress=_TrainingBars(bars),
            overwrite=overwrite,
            scratch=scratch,
        )
    facts = _summary_of(model, artifact)
    _warn(_absent_sides(facts["summary"]))
    if as_json:
        _print_json(facts)
        return
    parts, test = facts["summary"]["parts"], facts["summary"]["test"]
    out.print(f"model {artifact.version} in {model}", highlight=False, markup=False)
    out.print(
        f"{parts['fit_rows']:,} ticks fitted, threshold {artifact.thresholds.pooled:.4g} from "
        f"{parts['calibration_rows']:,} later ones, {100 * test.get('alarm_share', 0):.3f} % of "
        f"{test['rows']:,} test ticks above it; "
        f"{facts['summary']['multiply_adds']:,} multiply-adds a tick",
        highlight=False,
        soft_wrap=True,
    )
    _print_dropped(facts["summary"]["dropped"], facts["summary"]["ticks"])
    out.print("pictures: training_curves.png, error_histograms.png", highlight=False)


def score(
    ticks: Ticks,
    model: Annotated[Path, typer.Option(help="Model folder.")],
    target: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
    more: MoreTicks = None,
    file_format: FileFormatOption = None,
    symbol: Symbol = None,
    since: Since = None,
    until: Until = None,
    events: Annotated[
        Path | None, typer.Option(help="Also write the events here, one JSON object a line.")
    ] = None,
    latent: Annotated[
        bool, typer.Option("--latent", help="Also write the latent, as latent_0 and so on.")
    ] = False,
    changes: Annotated[
        Path | None,
        typer.Option(help="A daemon's log: change the model at the offsets at which it did."),
    ] = None,
    also_model: Annotated[
        list[Path] | None, typer.Option(help="Folder of a further model that --changes names.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Score files as the daemon would, and write one row per tick to Parquet.

    Example: tapewatch score --ticks wednesday.dbn.zst --model model --out scores.parquet
    """
    from detector.artifact import read_artifact  # noqa: PLC0415
    from detector.model_changes import Timeline, read_changes  # noqa: PLC0415
    from detector.offline import score_files  # noqa: PLC0415

    check_outputs(
        [*given("--out", target), *given("--events", events)],
        [
            *given("--ticks", [*ticks, *(more or ())]),
            *given("--model", model),
            *given("--changes", changes),
            *given("--also-model", also_model),
        ],
    )
    if also_model and changes is None:
        raise RefusedError(
            f"--also-model {also_model[0]}: without --changes nothing says where it scores"
        )
    artifact = read_artifact(model)
    timeline = None if changes is None else Timeline(read_changes(changes))
    others = [read_artifact(folder) for folder in also_model or ()]
    columns = ",".join(artifact.features.columns) or None
    files = _files(ticks, more, file_format, columns, symbol, since, until)
    with _bars() as bars:
        task = bars.add_task("ticks", total=None)
        done = score_files(
            artifact,
            files,
            target,
            lambda n: bars.advance(task, n),
            events=events,
            latent=latent,
            others=others,
            timeline=timeline,
        )
    if as_json:
        _print_json({"out": str(target), **asdict(done)})
        return
    out.print(
        f"{done.rows:,} ticks, {done.ready:,} scored, {done.anomalies:,} anomalous, "
        f"{done.events.get('open', 0):,} episodes; {target}",
        highlight=False,
        soft_wrap=True,
    )
    _print_dropped(done.dropped, done.rows)


def drift(
    ticks: Ticks,
    model: Annotated[Path, typer.Option(help="Model folder.")],
    more: MoreTicks = None,
    file_format: FileFormatOption = None,
    symbol: Symbol = None,
    since: Since = None,
    until: Until = None,
    top: Annotated[int, typer.Option(min=1, help="Features to show.")] = 15,
    as_json: AsJson = False,
) -> None:
    """Say how far files have moved from what a model was trained on, and in which features.

    Example: tapewatch drift --ticks wednesday.dbn.zst --model model
    """
    from detector.artifact import read_artifact  # noqa: PLC0415
    from detector.drift import MOVED, WATCH  # noqa: PLC0415
    from detector.offline import drift_of_files  # noqa: PLC0415

    artifact = read_artifact(model)
    columns = ",".join(artifact.features.columns) or None
    files = _files(ticks, more, file_format, columns, symbol, since, until)
    dropped = Counter[str]()
    with _bars() as bars:
        task = bars.add_task("ticks", total=None)
        found = drift_of_files(artifact, files, lambda n: bars.advance(task, n), dropped)
    if as_json:
        _print_json(
            {
                "rows": found.rows,
                "dropped": dict(dropped),
                "score_psi": found.score,
                "features_moved": found.moved,
                "feature_psi": dict(found.top(len(found.names))),
            }
        )
        return

    def verdict(index: float) -> str:
        return "moved" if index >= MOVED else "watch" if index >= WATCH else ""

    table = Table("what", "stability index", "", title=f"{found.rows:,} ticks")
    for name, index in [("the score", found.score), *found.top(top)]:
        table.add_row(name, f"{index:.3f}", verdict(index))
    out.print(table, highlight=False)
    out.print(f"{found.moved} of {len(found.names)} features moved", highlight=False)
    _print_dropped(dropped, None)


def inject(
    ticks: Ticks,
    target: Annotated[Path, typer.Option("--out", help="Parquet file of ticks to write.")],
    labels: Annotated[Path, typer.Option(help="Parquet file of labels to write.")],
    more: MoreTicks = None,
    file_format: FileFormatOption = None,
    symbol: Symbol = None,
    since: Since = None,
    until: Until = None,
    kinds: Annotated[
        str | None, typer.Option(help="Kinds to plant, by comma; else all that a feed can show.")
    ] = None,
    per_hour: Annotated[
        float, typer.Option(help="Anomalies per instrument and hour of trading.")
    ] = 20.0,
    half: Annotated[
        Half, typer.Option(help="Half of the parameter ranges to draw from, or both.")
    ] = Half.TEST,
    separation_s: Annotated[
        float, typer.Option("--separation", help="Least seconds between an instrument's anomalies.")
    ] = 60.0,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Makes it repeatable.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace files that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Plant labelled anomalies in files of ticks, as consistent market events.

    Example: tapewatch inject --ticks monday.dbn.zst --out planted.parquet --labels labels.parquet
    """
    from detector.scripts import AnomalyKind  # noqa: PLC0415
    from training.anomalies import Policy, inject_files  # noqa: PLC0415

    names = [kind.value for kind in AnomalyKind] if kinds is None else kinds.split(",")
    if unknown := sorted(set(names) - {kind.value for kind in AnomalyKind}):
        told = ", ".join(each or "''" for each in unknown)
        raise RefusedError(f"--kinds {told}: allowed are {', '.join(AnomalyKind)}")
    outputs = [*given("--out", target), *given("--labels", labels)]
    check_outputs(outputs, given("--ticks", [*ticks, *(more or ())]))
    for one in outputs:
        if one.path.is_file() and not overwrite:
            raise RefusedError(
                f"{one}: exists already; give another name, or --overwrite to replace it"
            )
    try:
        policy = Policy(per_hour, tuple(map(AnomalyKind, names)), half, separation_s, seed)
    except ValueError as error:
        raise RefusedError(f"--per-hour, --separation: {error}") from error
    files = _files(ticks, more, file_format, None, symbol, since, until)
    with _bars() as bars:
        tasks = {step: bars.add_task(step, total=None) for step in ("look", "plant")}
        done = inject_files(
            files, target, labels, policy, lambda step, n: bars.advance(tasks[step], n)
        )
    if as_json:
        _print_json({"out": str(target), "labels": str(labels), **asdict(done)})
        return
    table = Table("instrument", "kind", "planted", box=None)
    for name, counts in done.by_symbol.items():
        for kind, count in counts.items():
            table.add_row(name, kind, str(count))
    out.print(table, highlight=False)
    out.print(
        f"{done.anomalies:,} anomalies of {done.planted_ticks:,} ticks among {done.ticks_out:,}; "
        f"{target}, {labels}",
        highlight=False,
    )


def classify(
    model: Annotated[Path, typer.Option(help="Model folder, as `tapewatch train` wrote it.")],
    ticks: Annotated[list[Path], typer.Option("--ticks", help="Planted ticks; may be repeated.")],
    labels: Annotated[
        list[Path], typer.Option(help="Their labels, in the same order as the ticks.")
    ],
    target: Annotated[Path, typer.Option("--out", help="Model folder to write.")],
    version: Annotated[
        str | None, typer.Option(help="Name of the new model; else the old one's and -named.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a model that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train the head that names anomalies; write a copy of the model that carries it.

    Example: tapewatch classify --model model --ticks planted.parquet --labels labels.parquet
    --out named
    """
    from detector.artifact import check_target, read_artifact  # noqa: PLC0415
    from detector.offline import Files  # noqa: PLC0415
    from training.classify import add_head, episodes_of, fit_head  # noqa: PLC0415
    from training.labels import TickCount, read_labels  # noqa: PLC0415

    _check_version(version)
    if len(ticks) != len(labels):
        raise RefusedError(
            f"{len(ticks)} --ticks and {len(labels)} --labels: each file of ticks has its labels"
        )
    check_outputs(
        given("--out", target),
        [*given("--model", model), *given("--ticks", ticks), *given("--labels", labels)],
    )
    check_target(target, overwrite=overwrite)
    artifact = read_artifact(model)
    if artifact.features.kind != "tick":
        raise RefusedError(f"--model {model}: is of vectors; anomalies are planted in ticks")
    episodes, warnings = [], []
    with _bars() as bars:
        for path, label_path in zip(ticks, labels, strict=True):
            tell = partial(bars.advance, bars.add_task(path.name, total=None))
            stated = read_labels(label_path)
            counted = TickCount(stated)
            batches = counted.passing(Files((path,)).batches(artifact.features))
            episodes += episodes_of(artifact, batches, stated, tell)
            warnings.append(counted.check(label_path))
    _warn(told for told in warnings if told is not None)
    fitted = fit_head(episodes)
    named = add_head(model, target, fitted, version=version, overwrite=overwrite)
    if as_json:
        _print_json(
            {
                "model": str(target),
                "model_hash": named.model_hash,
                "version": named.version,
                "episodes": fitted.episodes,
                "untrained": fitted.untrained,
                "held_out_macro_f1": fitted.held_out,
            }
        )
        return
    table = Table("class", "episodes", box=None)
    for name, count in {**fitted.episodes, **fitted.untrained}.items():
        table.add_row(name, f"{count}{' (too few, not trained)' * (name in fitted.untrained)}")
    out.print(table, highlight=False)
    out.print(
        f"macro-F1 of held-back episodes: {fitted.held_out['open']:.2f} when they open, "
        f"{fitted.held_out['close']:.2f} when they close; model {named.version} in {target}",
        highlight=False,
        soft_wrap=True,
    )


def evaluate(
    model: Annotated[
        list[Path],
        typer.Option(help="Model folder; repeat it for models that differ by their seed alone."),
    ],
    ticks: Ticks,
    labels: Annotated[Path, typer.Option(help="Parquet file of labels of these ticks.")],
    target: Annotated[Path, typer.Option("--out", help="Folder to make for the report.")],
    more: MoreTicks = None,
    train_ticks: Annotated[
        list[Path] | None,
        typer.Option(
            help="Files the model was trained on; else --ticks hold them. Repeat the option.",
            show_default=False,
        ),
    ] = None,
    file_format: FileFormatOption = None,
    symbol: Symbol = None,
    since: Since = None,
    until: Until = None,
    published: Annotated[
        bool, typer.Option(help="Also fit the recipe anew for the published protocol.")
    ] = True,
    baselines: Annotated[bool, typer.Option(help="Hold other detectors beside it.")] = True,
    without_river: Annotated[
        bool, typer.Option("--without-river", help="Leave HalfSpaceTrees out.")
    ] = False,
    scratch: Annotated[
        Path | None, typer.Option(help="Folder for features meanwhile; else the system's.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge a model on ticks with planted anomalies: metrics.json and one page, report.html.

    Example: tapewatch evaluate --model model --ticks planted.parquet --labels labels.parquet
    --train-ticks monday.dbn.zst --out report
    """
    from training.evaluate import Request  # noqa: PLC0415
    from training.evaluate import evaluate as run  # noqa: PLC0415
    from training.evaluation.baselines import BASELINES, HALF_SPACE  # noqa: PLC0415

    check_outputs(
        given("--out", target),
        [
            *given("--model", model),
            *given("--ticks", [*ticks, *(more or ())]),
            *given("--labels", labels),
            *given("--train-ticks", train_ticks),
        ],
    )
    names = [name for name in BASELINES if not (without_river and name == HALF_SPACE)]
    request = Request(
        models=tuple(model),
        ticks=_files(ticks, more, file_format, None, symbol, since, until),
        labels=labels,
        out=target,
        train_ticks=(
            None
            if train_ticks is None
            else _files(train_ticks, None, file_format, None, symbol, None, None)
        ),
        baselines=tuple(names) if baselines else (),
        published=published,
        scratch=scratch,
    )
    with _bars() as bars:
        metrics = run(request, _StepBars(bars))
    _warn(metrics["warnings"])
    if as_json:
        _print_json({"out": str(target), **metrics})
        return
    from training.evaluation.tables import summary, without_thresholds  # noqa: PLC0415

    for title, head, rows in summary(metrics):
        table = Table(*head, box=None, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        out.print(table, highlight=False)
    for told in without_thresholds(metrics):
        out.print(told, highlight=False, markup=False, soft_wrap=True)
    out.print(f"{target}/report.html, {target}/metrics.json", highlight=False, soft_wrap=True)


@model_app.command("show")
def model_show(
    model: Annotated[Path, typer.Argument(help="Model folder.")], as_json: AsJson = False
) -> None:
    """Show what a model is, what it was trained on, and its thresholds.

    Example: tapewatch model show model
    """
    from detector.artifact import read_artifact  # noqa: PLC0415

    artifact = read_artifact(model)
    if as_json:
        _print_json(_summary_of(model, artifact))
        return
    manifest = artifact.manifest
    table = Table(show_header=False, box=None)
    for section, values in (
        ("", {"version": artifact.version, "hash": artifact.model_hash}),
        ("features", {"fingerprint": manifest.features.fingerprint}),
        ("architecture", manifest.architecture.model_dump()),
        ("", {"numbers in a latent": _latent_told(manifest.architecture)}),
        ("", {"multiply-adds a row": f"{manifest.architecture.sizes.multiply_adds:,}"}),
        ("score", manifest.score.model_dump()),
        ("thresholds", manifest.thresholds.model_dump()),
        ("training", manifest.training.model_dump()),
        ("names", {} if manifest.classifier is None else manifest.classifier.model_dump()),
        ("libraries", manifest.libraries),
    ):
        for name, value in values.items():
            table.add_row(f"{section} {name}".strip(), str(value))
    out.print(table, highlight=False)


@model_app.command("verify")
def model_verify(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    public_key: Annotated[
        Path | None, typer.Option("--public-key", help="PEM of the Ed25519 key that signed it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every hash, array and the features of a model folder; exit code 2 if anything is off.

    Files that the manifest does not list are never opened by the daemon; here they are a failure.

    Example: tapewatch model verify model
    """
    from detector.artifact import read_artifact, unlisted_files  # noqa: PLC0415

    artifact = read_artifact(model, public_key)
    if unlisted := unlisted_files(model, artifact.manifest):
        raise RefusedError(
            f"{model}: files the manifest does not list: {', '.join(unlisted)}; remove them"
        )
    facts = {
        "version": artifact.version,
        "model_hash": artifact.model_hash,
        "files": len(artifact.manifest.files) + 1,
        "signed": public_key is not None,
    }
    if as_json:
        _print_json(facts)
    else:
        out.print(
            f"{model}: {facts['files']} files as written, signature "
            f"{'not checked' if public_key is None else 'right'}, version {artifact.version}, "
            f"hash {artifact.model_hash}",
            highlight=False,
            soft_wrap=True,
        )


@model_app.command("sign")
def model_sign(
    model: Annotated[Path, typer.Argument(help="Model folder.")],
    key: Annotated[Path, typer.Option("--key", help="PEM of an Ed25519 private key.")],
    key_password_file: Annotated[
        Path | None, typer.Option("--key-password-file", help="File with the key's password.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a model folder and sign its manifest, which holds the hash of every other file.

    Example: tapewatch model sign model --key signing.pem
    """
    from detector.artifact import sign_artifact  # noqa: PLC0415

    password = None if key_password_file is None else key_password_file.read_bytes().rstrip(b"\r\n")
    path = sign_artifact(model, key, password)
    if as_json:
        _print_json({"signature": str(path)})
    else:
        out.print(f"{path}: written", highlight=False, soft_wrap=True)


def _latent_told(sizes: Architecture) -> str:
    """Say how many numbers a written latent has: those of all members, side by side."""
    return f"{sizes.members * sizes.latent} = {sizes.members} members x {sizes.latent}"


def _check_version(version: str | None) -> None:
    if version is not None and not NAME_OF_MODEL.fullmatch(version):
        raise RefusedError(
            f"--version {version!r}: a name begins with a letter or digit, then come at most 99 "
            "letters, digits and . _ : + -; leave it out for one made from the time"
        )


def _check_asked(quantile: float | None, budget: float | None, risk: float | None) -> None:
    """Refuse more than one thing asked of the thresholds, and what cannot be."""
    from training.peaks import HIGHEST_SHARE  # noqa: PLC0415

    asked = {"--quantile": quantile, "--budget": budget, "--risk": risk}
    given = {name: value for name, value in asked.items() if value is not None}
    if len(given) > 1:
        raise RefusedError(f"{' and '.join(given)}: give one of them")
    for name, value in given.items():
        if name == "--budget":
            if not 0 < value <= MOST_BUDGET:
                raise RefusedError(
                    f"--budget is {value}; it must be positive and at most {MOST_BUDGET:g} an hour"
                )
        elif name == "--risk" and not 0 < value <= HIGHEST_SHARE:
            raise RefusedError(
                f"--risk is {value}; it must be positive and at most {HIGHEST_SHARE}: "
                "a tail is not fitted to more of the ticks (--quantile takes any share)"
            )
        elif not 0 < value < 1:
            raise RefusedError(f"{name} is {value}; it must lie between 0 and 1, both exclusive")


class _TrainingBars:
    """Progress of a training as bars: ticks, then epochs of each stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._ticks = bars.add_task("ticks", total=None)
        self._stages: dict[int, Any] = {}

    def features(self, rows: int, ready: int) -> None:  # noqa: ARG002 - what the protocol gives
        """Count ticks."""
        self._bars.advance(self._ticks, rows)

    def epoch(self, stage: int, done: int, planned: int, error: float) -> None:
        """Advance a stage's bar; its description carries the error."""
        if stage not in self._stages:
            self._stages[stage] = self._bars.add_task(f"stage {stage}", total=planned)
        text = f"stage {stage}, error {error:.4f}"
        self._bars.update(self._stages[stage], completed=done, description=text)

    def step(self, name: str) -> None:
        """Name what begins, once there are no more ticks to come."""
        if name != "features":
            self._bars.add_task(name, total=1, completed=1)


class _StepBars:
    """Progress of an evaluation as bars, one a step."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: Any = None

    def start(self, step: str, total: int | None) -> None:
        """End the step before and begin another."""
        self.end()
        self._task = self._bars.add_task(step, total=total)

    def advance(self, n: int) -> None:
        """Advance the step's bar."""
        self._bars.advance(self._task, n)

    def end(self) -> None:
        """Show the last step as done."""
        if self._task is not None:
            done = max(self._bars.tasks[-1].completed, 1)
            self._bars.update(self._task, total=done, completed=done)


@contextmanager
def _bars() -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, disable=not err.is_terminal) as bars:
        yield bars


def _files(
    ticks: list[Path],
    more: list[Path] | None,
    file_format: str | None,
    columns: str | None,
    symbol: str | None,
    since: str | None,
    until: str | None,
) -> Files:
    from detector.offline import Files  # noqa: PLC0415
    from detector.readers import FORMATS  # noqa: PLC0415

    if file_format is not None and file_format not in FORMATS:
        raise RefusedError(f"--format {file_format}: allowed are {', '.join(FORMATS)}")
    first = None if since is None else _time_ns(since, "--from")
    last = None if until is None else _time_ns(until, "--until")
    if first is not None and last is not None and first >= last:
        raise RefusedError(f"--from {since} is not before --until {until}: no tick lies between")
    return Files(
        paths=(*ticks, *(more or ())),
        format=next((known for known in FORMATS if known == file_format), None),
        symbol=symbol,
        columns=None if columns is None else tuple(columns.split(",")),
        since=first,
        until=last,
    )


def _time_ns(text: str, option: str) -> int:
    """Read an ISO 8601 time, UTC where it names no zone, as ns since the epoch."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise RefusedError(
            f"{option} {text}: not an ISO 8601 time such as 2014-05-02T12:30:00Z"
        ) from error
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return (when - datetime(1970, 1, 1, tzinfo=UTC)) // when.resolution * 1_000


def _summary_of(folder: Path, artifact: Artifact) -> dict[str, Any]:
    from detector.artifact import SUMMARY  # noqa: PLC0415

    return {
        "model": str(folder),
        "model_hash": artifact.model_hash,
        "manifest": artifact.manifest.model_dump(mode="json"),
        "summary": json.loads((folder / SUMMARY).read_bytes()),
    }


def _print_dropped(dropped: Mapping[str, int], ticks: int | None) -> None:
    """Say how many ticks were dropped and why; nothing where none was."""
    if dropped:
        of = "" if ticks is None else f" of {ticks:,}"
        reasons = ", ".join(f"{name} {count:,}" for name, count in sorted(dropped.items()))
        out.print(
            f"dropped{of} ticks: {reasons} (docs/features.md says when)",
            highlight=False,
            soft_wrap=True,
        )


def _absent_sides(summary: Mapping[str, Any]) -> Iterator[str]:
    """Warn of a side of the book that most of the ticks did not have."""
    for side, count in summary["ticks_without"].items():
        if count > MOST_ABSENT * summary["ticks"]:
            yield (
                f"--ticks: the {side} is missing or zero in {count:,} of {summary['ticks']:,} "
                "ticks; nothing of it is learned, and the model is blind to that side of the book"
            )


def _warn(warnings: Iterable[str]) -> None:
    for told in warnings:
        err.print(f"warning: {told}", style="yellow", markup=False, soft_wrap=True)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, sort_keys=True))
