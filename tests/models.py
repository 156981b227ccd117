"""Two-stage models with random weights: everything but the training, in milliseconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from detector.artifact import (
    PEAK_TABLES,
    TAIL_TABLES,
    Architecture,
    Artifact,
    Features,
    Manifest,
    ScoreSection,
    ThresholdSection,
    Training,
    write_artifact,
)
from detector.drift import BINS
from detector.features import DEFAULT, FeatureBlock, FeatureSpec
from detector.model import (
    KNOT_DECADES,
    KNOTS,
    Combination,
    Normaliser,
    Rarity,
    Tails,
    TwoStageModel,
)
from detector.network import Sizes

CLIP = 3.0


SIZES = Sizes(features=20, hidden=10, latent=6, stage2_latent=2, members=3)


def random_model(
    features: int = 20, instruments: int = 5, seed: int = 0, **sizes: Any
) -> TwoStageModel:
    """Return a model of the given width; its instruments have the keys 10, 20, 30 and so on."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, shape in replace(SIZES, features=features, **sizes).shapes().items():
        if name.endswith(("_sd", "scale")):
            weights[name] = rng.uniform(0.3, 1.5, shape).astype(np.float32)
        else:
            weights[name] = (rng.normal(size=shape) / np.sqrt(shape[-2])).astype(np.float32)
    rows = instruments + 1
    normaliser = Normaliser(
        np.arange(1, rows, dtype=np.int64) * 10,
        rng.normal(size=(rows, features)),
        rng.uniform(0.5, 2.0, (rows, features)),
        CLIP,
    )
    tails = random_tails(rows, features, rng)
    return TwoStageModel(normaliser, weights, tails, COMBINATION, random_rarity(normaliser, rng))


COMBINATION = Combination("tails", 0.8, 0.4, 1.6, 30.0, -0.1, 2.0, 0.2, 1.5)


def random_rarity(normaliser: Normaliser, rng: np.random.Generator) -> Rarity:
    """Return rarities of raw scores of about 1, and of up to two lone features."""
    lone = np.array([column for column in (1, 4) if column < normaliser.centre.shape[1]], np.int64)
    rows = len(normaliser.centre)
    at = np.array([-3.0, 0.5, 2.0, 3.0, 4.0, 5.0]) + rng.uniform(
        0, 0.3, (rows, len(lone) + 2, KNOTS)
    )
    at[:, 0] = np.array([0.5, 2.0, 4.0, 6.0, 10.0, 16.0]) * rng.uniform(0.9, 1.1, (rows, 1))
    at[:, 1] = np.array([-0.1, 0.0, 1.4, 2.4, 3.4, 4.4])
    at[:, 2:] *= normaliser.scale[:, lone, None]
    at[:, 2:] += normaliser.centre[:, lone, None]
    decades = np.broadcast_to([*KNOT_DECADES, 4.0], at.shape).copy()
    decades[:, 0] = [-0.5, 1.2, 2.4, 3.1, 4.0, 4.8]
    steps = rng.uniform(0.3, 1.0, (rows, len(lone) + 2))
    return Rarity(lone, np.stack([at, decades], axis=2), steps)


def random_tails(rows: int, features: int, rng: np.random.Generator) -> Tails:
    """Return tails that begin around 1.5 on either side."""
    groups = (np.arange(features) % 3 == 0).astype(np.int8)
    sides = np.array([1.0, -1.0])[:, None]
    starts, decades = (
        rng.uniform(low, high, (2, rows, 2, features)) for low, high in ((1.2, 1.8), (0.3, 2.0))
    )
    starts, decades = (a.astype(np.float32) for a in (starts * sides, decades))
    return Tails(groups, starts[0], decades[0], starts[1], decades[1])


def rows_for(model: TwoStageModel, n: int, seed: int = 1) -> FeatureBlock:
    """Return `n` rows near the model's own centres, of known and unknown instruments, all ready."""
    rng = np.random.default_rng(seed)
    tables = model.normaliser
    keys = rng.choice(np.append(tables.keys, 7), n).astype(np.int64)
    rows = tables.rows_for(keys)
    noise = rng.standard_t(4, (n, tables.centre.shape[1]))
    values = (tables.centre[rows] + tables.scale[rows] * noise).astype(np.float32)
    return block_of(values, keys)


def block_of(values: np.ndarray, keys: np.ndarray, ready: np.ndarray | None = None) -> FeatureBlock:
    """Return a feature block of these values."""
    n = len(values)
    return FeatureBlock(
        values=values,
        ready=np.ones(n, np.bool_) if ready is None else ready,
        quality=np.zeros(n, np.uint16),
        keys=keys,
        ts=np.arange(n, dtype=np.int64),
        slots=np.zeros(n, np.int32),
    )


def part_of(block: FeatureBlock, rows: slice) -> FeatureBlock:
    """Return some rows of a block."""
    return FeatureBlock(
        block.values[rows],
        block.ready[rows],
        block.quality[rows],
        block.keys[rows],
        block.ts[rows],
        block.slots[rows],
    )


def folder_contents(
    spec: FeatureSpec = DEFAULT,
    seed: int = 0,
    threshold: float = 4.0,
    budget: float | None = None,
    version: str = "test-model",
    latent: int = SIZES.latent,
) -> dict[str, Any]:
    """Return what `write_artifact` takes beside the folder, for a random model.

    With a budget its thresholds follow the alarms they cause.
    """
    model = random_model(len(spec.names), seed=seed, latent=latent)
    assert model.rarity is not None
    rows, features = model.normaliser.centre.shape
    thresholds = np.full(rows, threshold)
    thresholds[1] = threshold + 1.0
    manifest = Manifest(
        version=version,
        created="2024-01-01T00:00:00+00:00",
        libraries={"numpy": np.__version__},
        features=Features(fingerprint=spec.fingerprint, spec=spec.to_dict()),
        architecture=Architecture(
            features=features,
            hidden=SIZES.hidden,
            latent=latent,
            stage2_latent=SIZES.stage2_latent,
            members=SIZES.members,
            clip=CLIP,
            whitened=False,
        ),
        score=ScoreSection.of(model.combination),
        thresholds=ThresholdSection(
            quantile=0.999,
            pooled=threshold,
            calibration_rows=20_000,
            own=1,
            method="quantile" if budget is None else "pot",
            budget=budget,
            adapt=budget is not None,
        ),
        training=Training(
            seed=seed,
            instruments=rows - 1,
            train_rows=1,
            calibration_rows=1,
            test_rows=0,
            first_ts_event=0,
            last_ts_event=1,
            stage1_loss=0.5,
            stage2_loss=0.5,
        ),
    )
    tables = {
        "keys": model.normaliser.keys,
        "centre": model.normaliser.centre,
        "scale": model.normaliser.scale,
        "tail_groups": model.tails.groups,
        **{name: getattr(model.tails, name) for name in TAIL_TABLES},
        "lone": model.rarity.lone,
        "rarity_knots": model.rarity.knots,
        "rarity_steps": model.rarity.steps,
        "threshold": thresholds,
        "threshold_own": np.arange(rows) < 2,
        "reference_edges": np.tile(
            np.linspace(-1.3, 1.3, BINS - 1, dtype=np.float32), (features + 1, 1)
        ),
        "reference_counts": np.full((rows, features + 1, BINS), 1_000, np.int32),
    }
    if budget is not None:
        tables |= dict.fromkeys(PEAK_TABLES, np.full(rows, 0.4))
    return {
        "manifest": manifest,
        "weights": model.weights,
        "tables": tables,
        "summary": {"ticks": 1},
        "pictures": {"training_curves.png": b"\x89PNG"},
    }


def random_artifact(folder: Path, spec: FeatureSpec = DEFAULT, **contents: Any) -> Artifact:
    """Write and return a model folder with random weights."""
    return write_artifact(folder, **folder_contents(spec, **contents))
