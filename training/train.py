"""From batches of ticks to a model folder: the whole of `tapewatch train` but its command line.

Features through the detector's own `FeatureBank`, rows to disk, split by time, both stages,
thresholds, pictures, folder: in that order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np

from detector import __version__
from detector.artifact import (
    PEAK_TABLES,
    RARITY_TABLES,
    TAIL_TABLES,
    Architecture,
    Artifact,
    Features,
    Manifest,
    ScoreSection,
    ThresholdSection,
    Training,
    Variational,
    check_target,
    write_artifact,
)
from detector.errors import RefusedError
from detector.features import FeatureBank, FeatureBlock, FeatureSpec
from detector.model import TwoStageModel
from detector.pipeline import count_quality
from detector.symbols import SymbolMap
from detector.thresholds import Thresholds, TooFewScoresError
from detector.ticks import NS_PER_S, UNDEFINED_PRICE, Batch, TickBatch
from training.autoencoder import TwoStageDetector
from training.calibrate import (
    Ask,
    Scored,
    alarm_report,
    calibrate,
    reference_histograms,
    score_rows,
    threshold_report,
)
from training.datasets import Parts, Rows, RowStore, Split, TooFewRowsError, write_rows
from training.fit import Fitted, Recipe
from training.report import error_histograms, training_curves
from training.scratch import scratch_folder

LEAST_TRAIN_ROWS: Final = 1_000
LIBRARIES: Final = ("tensorflow", "keras", "numpy", "numba")


class Progress(Protocol):
    """Where a training says how far it is."""

    def features(self, rows: int, ready: int) -> None:
        """Say that features of so many more ticks were computed, so many of them ready."""

    def epoch(self, stage: int, done: int, planned: int, error: float) -> None:
        """Say that an epoch of a stage is over."""

    def step(self, name: str) -> None:
        """Say that another step begins."""


class Silent:
    """Progress that nobody watches."""

    def features(self, rows: int, ready: int) -> None:
        """Ignore it."""

    def epoch(self, stage: int, done: int, planned: int, error: float) -> None:
        """Ignore it."""

    def step(self, name: str) -> None:
        """Ignore it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a training may be told.

    Parameters
    ----------
    split
        Training, calibration and test parts of event time.
    quantile
        Share of ordinary ticks that must stay below the threshold.
    budget, risk
        Episodes an instrument-hour, or share of ticks, to hold instead, by peaks over threshold.
    adapt
        Whether thresholds for a budget or a risk follow the alarms they cause.
    seed
        Of weights and order of rows.
    epochs
        Passes over the rows, at most; None: the estimator's own.
    variational
        Which stages draw their latent from a normal distribution while training.
    own_rows
        Rows from which on an instrument has z-scores and tails of its own.
    max_instruments
        Cap on tracked instruments per partition.
    version
        Name of the model; None: made from `created` and the seed.
    """

    split: Split = field(default_factory=Split)
    quantile: float = 0.999
    budget: float | None = None
    risk: float | None = None
    adapt: bool = True
    seed: int = 0
    epochs: int | None = None
    variational: Variational = "none"
    own_rows: int = 1_000
    max_instruments: int = 10_000
    version: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Read:
    """What reading the input led to."""

    store: RowStore
    names: dict[int, str]
    symbols: dict[int, str]
    ticks: int
    dropped: dict[str, int]
    one_sided: dict[str, int]


def train(
    batches: Iterable[Batch],
    spec: FeatureSpec,
    out: Path,
    options: Options | None = None,
    *,
    created: datetime | None = None,
    sources: Iterable[str] = (),
    progress: Progress | None = None,
    overwrite: bool = False,
    scratch: Path | None = None,
) -> Artifact:
    """Train a model and write its folder.

    Parameters
    ----------
    batches
        Ticks in order of event time, partition by partition as the daemon would see them.
    spec
        Feature definition.
    out
        Model folder.
    options
        Splits, quantile, seed and so on.
    created
        Time to put into the manifest; now by default.
    sources
        Names of the files, for the summary.
    progress
        Told of every step.
    overwrite
        Whether `out` may replace a model.
    scratch
        Where the rows go while training: `4 F + 16` bytes a ready tick; None: the system's
        temporary folder.

    Raises
    ------
    RefusedError
        Too few ready rows for the split or the quantile asked for, or a target that is in use.
    """
    options, progress = options or Options(), progress or Silent()
    created = created or datetime.now(UTC)
    check_target(out, overwrite=overwrite)
    with scratch_folder("train", scratch) as folder:
        progress.step("features")
        read = _read(batches, spec, folder, options, progress)
        parts = _split(read, options, by_instrument=spec.kind == "vector")
        detector = _detector(options)
        try:
            fitted = detector.fit_rows(
                parts.fit,
                parts.later,
                progress.epoch,
                own_rows=options.own_rows,
                spec=spec,
            )
            progress.step("thresholds")
            held_out = score_rows(fitted.model, parts.calibration)
            ask = Ask(options.budget, options.risk, options.quantile, options.adapt)
            thresholds = calibrate(fitted.model, held_out, ask)
        except (TooFewRowsError, TooFewScoresError) as error:
            raise RefusedError(str(error)) from error
        tested = score_rows(fitted.model, parts.test)
        recipe = detector.recipe(parts.fit.features, len(parts.fit), options.own_rows)
        summary = _summary(read, parts, fitted, recipe, options, sources)
        summary["thresholds"] = threshold_report(fitted.model, thresholds, held_out, read.names)
        summary["calibration"] = alarm_report(thresholds, held_out)
        summary["test"] = alarm_report(thresholds, tested)
        progress.step("writing")
        return write_artifact(
            out,
            _manifest(spec, fitted, recipe, thresholds, parts, options, created, len(read.names)),
            fitted.model.weights,
            _tables(fitted.model, thresholds, parts.fit, held_out),
            summary,
            {
                "training_curves.png": training_curves((fitted.stage1, fitted.stage2)),
                "error_histograms.png": error_histograms(held_out, tested, thresholds.pooled),
            },
            read.symbols,
            overwrite=overwrite,
        )


def feature_blocks(
    batches: Iterable[Batch], spec: FeatureSpec, max_instruments: int, symbols: SymbolMap
) -> Iterator[FeatureBlock]:
    """Features of batches, one bank per partition as in the daemon."""
    banks: dict[int, FeatureBank] = {}
    for batch in batches:
        symbols.learn(batch.symbols)
        if batch.partition not in banks:
            banks[batch.partition] = spec.bank(max_instruments)
        yield banks[batch.partition].update(batch)


def _read(
    batches: Iterable[Batch],
    spec: FeatureSpec,
    folder: Path,
    options: Options,
    progress: Progress,
) -> _Read:
    symbols, dropped, keys = SymbolMap(), Counter[str](), set[int]()
    one_sided = Counter[str]()
    ticks = 0

    def looked_at() -> Iterator[Batch]:
        for batch in batches:
            if isinstance(batch, TickBatch):
                one_sided.update(_absent_sides(batch))
            yield batch

    def counted() -> Iterator[FeatureBlock]:
        nonlocal ticks
        for block in feature_blocks(looked_at(), spec, options.max_instruments, symbols):
            ticks += len(block)
            keys.update(np.unique(block.keys[block.ready]).tolist())
            dropped.update(count_quality([block.quality])[0])
            yield block

    store = write_rows(counted(), folder, len(spec.names), progress.features)
    names = {key: symbols.name(key) for key in sorted(keys)}
    known = {key: name for key, name in symbols.known().items() if key in keys}
    return _Read(store, names, known, ticks, dict(dropped), dict(one_sided))


def _absent_sides(batch: TickBatch) -> dict[str, int]:
    """Count ticks whose bid or ask is missing or zero: its price or its size."""
    return {
        side: int(
            np.count_nonzero(
                (batch.ticks[f"{side}_px"] == UNDEFINED_PRICE)
                | (batch.ticks[f"{side}_px"] == 0)
                | (batch.ticks[f"{side}_sz"] == 0)
            )
        )
        for side in ("bid", "ask")
    }


def _split(read: _Read, options: Options, *, by_instrument: bool) -> Parts:
    try:
        parts = read.store.split(options.split, by_instrument=by_instrument)
    except TooFewRowsError as error:
        raise RefusedError(f"{read.ticks:,} ticks read: {error}") from error
    if len(parts.fit) < LEAST_TRAIN_ROWS:
        raise RefusedError(
            f"{read.ticks:,} ticks read, {len(read.store):,} of them ready, {len(parts.fit):,} in "
            f"the training part: at least {LEAST_TRAIN_ROWS:,} are needed there; give more ticks, "
            "a larger --train-fraction or a smaller --gap"
        )
    return parts


def _detector(options: Options) -> TwoStageDetector:
    detector = TwoStageDetector(random_state=options.seed, variational=options.variational)
    return detector if options.epochs is None else detector.set_params(epochs=options.epochs)


def _tables(
    model: TwoStageModel, thresholds: Thresholds, rows: Rows, held_out: Scored
) -> dict[str, Any]:
    tables = model.normaliser
    edges, counts = reference_histograms(model, rows, held_out)
    return {
        "keys": tables.keys,
        "centre": tables.centre,
        "scale": tables.scale,
        "tail_groups": model.tails.groups,
        **{name: getattr(model.tails, name) for name in TAIL_TABLES},
        "threshold": thresholds.values,
        "threshold_own": thresholds.own,
        "reference_edges": edges,
        "reference_counts": counts,
        **_rarity_tables(model),
        **_peak_tables(thresholds),
    }


def _rarity_tables(model: TwoStageModel) -> dict[str, Any]:
    rarity = model.rarity
    if rarity is None:
        return {}
    return dict(zip(RARITY_TABLES, (rarity.lone, rarity.knots, rarity.steps), strict=True))


def _peak_tables(thresholds: Thresholds) -> dict[str, Any]:
    peaks = thresholds.peaks
    if peaks is None:
        return {}
    arrays = (peaks.level, peaks.shape, peaks.scale, peaks.rate, peaks.ticks_per_hour)
    return dict(zip(PEAK_TABLES, arrays, strict=True))


def _manifest(
    spec: FeatureSpec,
    fitted: Fitted,
    recipe: Recipe,
    thresholds: Thresholds,
    parts: Parts,
    options: Options,
    created: datetime,
    instruments: int,
) -> Manifest:
    return Manifest(
        version=options.version or f"{created:%Y%m%dT%H%M%SZ}-seed{options.seed}",
        created=created.isoformat(timespec="seconds"),
        libraries=libraries(),
        features=Features(fingerprint=spec.fingerprint, spec=spec.to_dict()),
        architecture=Architecture(
            features=parts.fit.features,
            hidden=recipe.hidden,
            latent=recipe.latent,
            stage2_latent=recipe.stage2_latent,
            members=recipe.members,
            clip=recipe.clip,
            whitened=recipe.whitened,
            variational=recipe.variational,
        ),
        score=ScoreSection.of(fitted.model.combination),
        thresholds=ThresholdSection(
            quantile=thresholds.quantile,
            pooled=thresholds.pooled,
            calibration_rows=len(parts.calibration),
            own=int(np.count_nonzero(thresholds.own[1:])),
            method=thresholds.method,
            budget=options.budget,
            risk=options.risk if options.budget is None else None,
            adapt=thresholds.adaptive,
        ),
        training=Training(
            seed=options.seed,
            instruments=instruments,
            train_rows=len(parts.fit),
            calibration_rows=len(parts.calibration),
            test_rows=len(parts.test),
            first_ts_event=parts.first_ts,
            last_ts_event=parts.end_ts - 1,
            stage1_loss=fitted.stage1.final,
            stage2_loss=fitted.stage2.final,
        ),
    )


def _summary(
    read: _Read,
    parts: Parts,
    fitted: Fitted,
    recipe: Recipe,
    options: Options,
    sources: Iterable[str],
) -> dict[str, Any]:
    """Facts for people and for `tapewatch evaluate`, as JSON types."""
    return {
        "sources": list(sources),
        "ticks": read.ticks,
        "ready": len(read.store),
        "dropped": read.dropped,
        "ticks_without": read.one_sided,
        "instruments": list(read.names.values()),
        "parts": {
            "boundaries": {
                "all" if key is None else read.names[key]: {
                    name: _iso(ts) for name, ts in asdict(ends).items()
                }
                for key, ends in parts.boundaries.items()
            },
            "boundaries_ns": {
                "all" if key is None else read.names[key]: asdict(ends)
                for key, ends in parts.boundaries.items()
            },
            "gap_s": options.split.gap_s,
            "fit_rows": len(parts.fit),
            "early_stopping_rows": len(parts.later),
            "calibration_rows": len(parts.calibration),
            "test_rows": len(parts.test),
        },
        "recipe": asdict(recipe),
        "multiply_adds": recipe.sizes(parts.fit.features).multiply_adds,
        "score": ScoreSection.of(fitted.model.combination).model_dump(),
        "stage1": asdict(fitted.stage1),
        "stage2": asdict(fitted.stage2),
    }


def _iso(ts_ns: int) -> str:
    return datetime.fromtimestamp(ts_ns / NS_PER_S, UTC).isoformat(timespec="milliseconds")


def libraries() -> dict[str, str]:
    """Versions of what a model's numbers depend on."""
    found = {"tapewatch": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # TensorFlow has builds under other names
            found[name] = "unknown"
    return found
