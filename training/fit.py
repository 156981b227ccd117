"""Fit every member's two autoencoders, on rows that may not fit in memory.

Normaliser, stage 1, its frozen encoder, stage 2 on the standardised latent, then the scales, tails
and constants that turn residuals into a score. One function, used by `TwoStageDetector` on a matrix
and by `tapewatch train` on a row store.

References
----------
Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance", The American
Statistician 37(3): merging the moments of chunks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.artifact import Variational
from detector.model import Combination, CombinationName, Normaliser, TwoStageModel
from detector.network import DECODER, DECODER2, ENCODER2, HIDDEN, LATENT, OUTPUT, Sizes
from training.datasets import Rows, TooFewRowsError
from training.scales import (
    Weights,
    fit_combination,
    fit_rarity,
    fit_tails,
    no_tails,
    scale_residuals,
    whiten_residuals,
)
from training.stages import Chunks, History, Schedule, Stage, stage_for

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_FITTING = threading.Lock()
"""Stages of one shape share their compiled functions, so one model is fitted at a time."""

LEAST_ROWS: Final = 2


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a model is fitted. The defaults are those of the detection study, for ticks.

    Parameters
    ----------
    hidden, latent, stage2_latent
        Units of stage 1's hidden layers and of both latents.
    members
        Networks trained alike; errors are means over them.
    clip
        z-scores are cut off at plus and minus this before stage 1.
    noise
        Standard deviation of what is added to the last member's input of stage 1 while training;
        evenly less to those before, none to the first. What one level of noise blurs another keeps.
    whitened
        Whether stage 1's error is a Mahalanobis distance of the residual, `F^2` multiply-adds a
        member dearer.
    variational
        Which stages draw their latent from a normal distribution while training; scoring takes its
        mean.
    kl_weight
        Weight of such a latent's divergence from a standard normal: twice the variance of a feature
        that the reconstruction is allowed to leave, over all features together.
    epochs, least_steps, batch_size, learning_rate, patience
        As in `training.stages.Schedule`.
    combination, stage1_weight, stage2_weight, tail_weight, cap
        As in `model.Combination`; `sum` has weights of 1 and no cap.
    own_rows
        Rows from which on an instrument has z-scores and tails of its own; those with fewer are
        scored by all instruments' pooled ones.
    seed
        Of the initial weights, the order of rows and the noise. The same seed, rows and machine
        give the same bits on a CPU.
    """

    hidden: int = 22
    latent: int = 10
    stage2_latent: int = 2
    members: int = 3
    clip: float = 3.0
    noise: float = 0.3
    whitened: bool = False
    variational: Variational = "none"
    kl_weight: float = 0.2
    epochs: int = 2
    least_steps: int = 2_500
    batch_size: int = 256
    learning_rate: float = 2e-3
    patience: int = 3
    combination: CombinationName = "tails"
    stage1_weight: float = 0.0
    stage2_weight: float = 1.0
    tail_weight: float = 1.0
    cap: float = 36.0
    own_rows: int = 1_000
    seed: int = 0

    def sizes(self, features: int) -> Sizes:
        """Return the sizes of the network for so many features."""
        return Sizes(
            features, self.hidden, self.latent, self.stage2_latent, self.members, self.whitened
        )

    def schedule(self, stage: int) -> Schedule:
        """Return how a stage is trained; only stage 1's input gets noise."""
        return Schedule(
            self.epochs,
            self.least_steps,
            self.batch_size,
            self.learning_rate,
            self.patience,
            self.noise if stage == 1 else 0.0,
            self.kl_weight,
        )

    def sampled(self, stage: int) -> bool:
        """Whether a stage draws its latent while training."""
        return self.variational in {f"stage{stage}", "both"}


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A trained model and how its stages came to it."""

    model: TwoStageModel
    stage1: History
    stage2: History


Tell = Callable[[int, int, int, float], None]
"""Called after each epoch: stage, epochs done, epochs planned, error."""


def fit_two_stage(
    rows: Rows,
    later: Rows | None,
    recipe: Recipe,
    tell: Tell | None = None,
    groups: npt.NDArray[np.int8] | None = None,
    lone: npt.NDArray[np.int64] | None = None,
) -> Fitted:
    """Fit a model.

    Parameters
    ----------
    rows
        Ordinary rows.
    later
        Rows from after them, to stop training early; None or empty: every epoch is done.
    recipe
        Sizes, training, combination, seed.
    tell
        Progress.
    groups
        `(F,)` int8, 0 or 1: features whose tails are summed apart; None: one group.
    lone
        `(K,)` int64, ascending: features each judged by itself too; None: none.

    Raises
    ------
    TooFewRowsError
        Fewer than two rows.
    """
    if len(rows) < LEAST_ROWS:
        raise TooFewRowsError(f"{len(rows)} rows to fit, at least {LEAST_ROWS} are needed")
    groups = np.zeros(rows.features, np.int8) if groups is None else groups
    lone = np.zeros(0, np.int64) if lone is None else lone
    with _FITTING:
        return _fit(rows, later or None, recipe, tell or (lambda *_: None), groups, lone)


def _fit(
    rows: Rows,
    later: Rows | None,
    recipe: Recipe,
    tell: Tell,
    groups: npt.NDArray[np.int8],
    lone: npt.NDArray[np.int64],
) -> Fitted:
    rng = np.random.default_rng(recipe.seed)
    seed1, seed2, order1, order2 = rng.integers(0, 2**31 - 1, 4).tolist()
    normaliser = fit_normaliser(rows, recipe.own_rows, recipe.clip)
    members, latent = recipe.members, recipe.latent

    stage1 = stage_for(members, recipe.hidden, latent, rows.features, sampled=recipe.sampled(1))
    stage1.start(seed1)
    history1 = stage1.fit(
        _orders(rows, normaliser, order1),
        None if later is None else lambda: later.normalised(normaliser),
        len(rows),
        recipe.schedule(1),
        lambda *facts: tell(1, *facts),
    )
    encode = stage1.encoder
    centre, scale = _moments(encode(z).reshape(len(z), -1) for z in rows.normalised(normaliser))
    centre, scale = (a.reshape(members, latent) for a in (centre, scale))

    def latents(chunks: Iterator[Float32]) -> Iterator[Float32]:
        for z in chunks:
            yield ((encode(z) - centre) / scale).astype(np.float32)

    shuffled2 = _orders(rows, normaliser, order2)
    stage2 = stage_for(members, None, recipe.stage2_latent, latent, sampled=recipe.sampled(2))
    stage2.start(seed2)
    history2 = stage2.fit(
        lambda: latents(shuffled2()),
        None if later is None else lambda: latents(later.normalised(normaliser)),
        len(rows),
        recipe.schedule(2),
        lambda *facts: tell(2, *facts),
    )
    weights = _weights(stage1, stage2, centre, scale)
    scale_residuals(weights, rows, normaliser)
    if recipe.whitened:
        whiten_residuals(weights, rows, normaliser)
    tails = no_tails(len(normaliser.centre), rows.features, groups)
    model = TwoStageModel(normaliser, weights, tails, _combination(recipe))
    model = replace(model, tails=fit_tails(model, rows))
    if recipe.combination == "tails":
        model = replace(model, combination=fit_combination(model, rows))
        model = replace(model, rarity=fit_rarity(model, rows, lone))
    return Fitted(model, history1, history2)


def _combination(recipe: Recipe) -> Combination:
    """Take from the recipe what it says of the combination; its constants are still to be found."""
    if recipe.combination == "sum":
        return Combination("sum")
    return Combination(
        "tails", recipe.stage1_weight, recipe.stage2_weight, recipe.tail_weight, recipe.cap
    )


def _weights(stage1: Stage, stage2: Stage, centre: Float64, scale: Float64) -> Weights:
    names = (HIDDEN, LATENT, DECODER, OUTPUT, ENCODER2, DECODER2)
    weights: Weights = {}
    for name, arrays in zip(names, [*stage1.arrays(), *stage2.arrays()], strict=True):
        weights[f"{name}.kernel"], weights[f"{name}.bias"] = arrays
    weights["stage2.centre"] = centre.astype(np.float32)
    weights["stage2.scale"] = scale.astype(np.float32)
    return weights


def _orders(rows: Rows, normaliser: Normaliser, seed: int) -> Chunks:
    """Give the rows in another order at each call; a stage has its own, because it reads ahead."""
    rng = np.random.default_rng(seed)
    return lambda: rows.shuffled(normaliser, rng)


def fit_normaliser(rows: Rows, own_rows: int, clip: float) -> Normaliser:
    """Mean and standard deviation by instrument and pooled, in one pass.

    A feature that never changed for one instrument takes the pooled scale, and 1 where it never
    changed at all.
    """
    moments: dict[int, _Moments] = {}
    for values, keys in rows.chunks():
        order = np.argsort(keys, kind="stable")
        found, starts = np.unique(keys[order], return_index=True)
        for key, part in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
            moments.setdefault(key, _Moments(rows.features)).add(values[part])
    pooled = _Moments(rows.features)
    for one in moments.values():
        pooled.merge(one)
    own = sorted(key for key, one in moments.items() if one.n >= own_rows)
    sd = pooled.sd()
    base = np.where(sd > 0, sd, 1.0)
    scales = [base]
    for key in own:
        sd = moments[key].sd()
        scales.append(np.where(sd > 0, sd, base))
    centres = [pooled.mean, *(moments[key].mean for key in own)]
    return Normaliser(np.array(own, np.int64), np.stack(centres), np.stack(scales), float(clip))


class _Moments:
    """Running mean and sum of squared deviations of `(features,)` columns."""

    def __init__(self, features: int) -> None:
        self.n = 0
        self.mean = np.zeros(features)
        self._squares = np.zeros(features)

    def add(self, values: npt.NDArray[Any]) -> None:
        """Take in `(n, features)` values."""
        part = _Moments(values.shape[1])
        part.n = len(values)
        part.mean = values.mean(axis=0, dtype=np.float64)
        part._squares = np.square(values - part.mean).sum(axis=0)
        self.merge(part)

    def merge(self, other: _Moments) -> None:
        """Take in the moments of other rows."""
        n = self.n + other.n
        if not n:
            return
        step = other.mean - self.mean
        self.mean = self.mean + step * (other.n / n)
        self._squares = self._squares + other._squares + step**2 * (self.n * other.n / n)
        self.n = n

    def sd(self) -> Float64:
        """Return the standard deviation; exactly 0 where rounding alone could have made it.

        The bound is that of the two-pass algorithm: n eps relative to the variance and to the mean.
        """
        variance = self._squares / max(self.n, 1)
        eps = np.finfo(np.float64).eps
        noise = self.n * eps * variance + (self.n * self.mean * eps) ** 2
        return np.where(variance <= noise, 0.0, np.sqrt(variance))


def _moments(chunks: Iterator[npt.NDArray[Any]]) -> tuple[Float64, Float64]:
    """Mean and non-zero standard deviation of the columns of all chunks."""
    moments: _Moments | None = None
    for chunk in chunks:
        moments = moments or _Moments(chunk.shape[1])
        moments.add(chunk)
    assert moments is not None  # noqa: S101 - fit_two_stage refuses too few rows
    sd = moments.sd()
    return moments.mean, np.where(sd > 0, sd, 1.0)
