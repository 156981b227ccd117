"""Fit both autoencoders, one after the other, on rows that may not fit in memory.

Normaliser, stage 1, its frozen encoder, stage 2 on the standardised latent, then the scales that
turn residuals into errors and errors into a score. One function, used by `TwoStageDetector` on a
matrix and by `tapewatch train` on a row store.

References
----------
Kingma, Ba (2015), "Adam: a method for stochastic optimization", ICLR.
Glorot, Bengio (2010), "Understanding the difficulty of training deep feedforward neural networks",
AISTATS.
Loshchilov, Hutter (2017), "SGDR: stochastic gradient descent with warm restarts", ICLR: the cosine
decay, here without restarts.
Chan, Golub, LeVeque (1983), "Algorithms for computing the sample variance", The American
Statistician 37(3): merging the moments of chunks.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from detector.compiled import load_tensorflow
from detector.model import Combination, Normaliser, TwoStageModel
from detector.network import (
    DECODER,
    DECODER2,
    ENCODER2,
    HIDDEN,
    LATENT,
    OUTPUT,
    RESIDUAL_FLOOR,
    Tensor,
    errors,
    fold,
    forward,
)
from training.datasets import Rows, TooFewRowsError

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
CombinationName = Literal["weighted", "sum"]
Chunks = Callable[[], Iterator[Float32]]

_FITTING = threading.Lock()
"""Stages of one shape share their compiled functions, so one model is fitted at a time."""

LEAST_ROWS: Final = 2

MOST_EPOCHS: Final = 100
"""Passes over very few rows, unless more are asked for."""

MEDIAN_ROWS: Final = 1_000_000
"""Most rows whose errors are held in memory to find their medians."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a two-stage model is fitted. The defaults are those of the first lab study.

    Parameters
    ----------
    hidden, latent, stage2_latent
        Units of stage 1's hidden layers and of both latents.
    clip
        z-scores are cut off at plus and minus this before stage 1.
    epochs
        Passes over the rows, at most.
    least_steps
        Rows so few that `epochs` passes are fewer gradient steps than this are passed over more
        often, up to 100 times.
    batch_size
        Rows of one gradient step.
    learning_rate
        Adam's, at the first step; it decays to zero along a cosine.
    patience
        Epochs without a lower error on later rows after which training stops.
    combination
        `weighted`: `e1 / median(e1) + stage2_weight * e2 / median(e2)` and, for the excess `x`, how
        far the features lie beyond the clip, `excess_weight * x / mean(x)`; `sum`: `e1 + e2`.
    stage2_weight, excess_weight
        Weights of stage 2 and of the excess in the weighted combination.
    own_rows
        Rows from which on an instrument has z-scores of its own; those with fewer are normalised
        by all instruments' pooled moments.
    seed
        Of the initial weights and the order of rows. The same seed, rows and machine give the same
        bits on a CPU.
    """

    hidden: int = 48
    latent: int = 16
    stage2_latent: int = 2
    clip: float = 3.0
    epochs: int = 15
    least_steps: int = 500
    batch_size: int = 256
    learning_rate: float = 2e-3
    patience: int = 3
    combination: CombinationName = "weighted"
    stage2_weight: float = 0.5
    excess_weight: float = 0.2
    own_rows: int = 1_000
    seed: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Mean squared error of one stage by epoch: on the rows fitted, and on later ones (or none)."""

    loss: tuple[float, ...]
    later_loss: tuple[float, ...]
    best_epoch: int

    @property
    def final(self) -> float:
        """Error of the weights that were kept, on later rows where there are any."""
        return (self.later_loss or self.loss)[self.best_epoch]


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A trained model and how its stages came to it."""

    model: TwoStageModel
    stage1: History
    stage2: History


Tell = Callable[[int, int, int, float], None]
"""Called after each epoch: stage, epochs done, epochs planned, error."""


def fit_two_stage(
    rows: Rows, later: Rows | None, recipe: Recipe, tell: Tell | None = None
) -> Fitted:
    """Fit a two-stage model.

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

    Raises
    ------
    TooFewRowsError
        Fewer than two rows.
    """
    if len(rows) < LEAST_ROWS:
        raise TooFewRowsError(f"{len(rows)} rows to fit, at least {LEAST_ROWS} are needed")
    with _FITTING:
        return _fit(rows, later, recipe, tell or (lambda *_: None))


def _fit(rows: Rows, later: Rows | None, recipe: Recipe, tell: Tell) -> Fitted:
    rng = np.random.default_rng(recipe.seed)
    seed1, seed2, order1, order2 = rng.integers(0, 2**31 - 1, 4).tolist()
    normaliser = fit_normaliser(rows, recipe.own_rows, recipe.clip)

    stage1 = _stage((recipe.hidden, "tanh"), recipe.latent, rows.features)
    stage1.start(seed1)
    history1 = stage1.fit(
        _orders(rows, normaliser, order1),
        None if not later else lambda: later.normalised(normaliser),
        len(rows),
        recipe,
        lambda *facts: tell(1, *facts),
    )
    encode = stage1.encoder
    centre, scale = _moments(encode(z) for z in rows.normalised(normaliser))

    def latents(chunks: Iterator[Float32]) -> Iterator[Float32]:
        for z in chunks:
            yield ((encode(z) - centre) / scale).astype(np.float32)

    shuffled2 = _orders(rows, normaliser, order2)
    stage2 = _stage(None, recipe.stage2_latent, recipe.latent)
    stage2.start(seed2)
    history2 = stage2.fit(
        lambda: latents(shuffled2()),
        None if not later else lambda: latents(later.normalised(normaliser)),
        len(rows),
        recipe,
        lambda *facts: tell(2, *facts),
    )
    weights = _weights(stage1, stage2, centre, scale)
    _scale_residuals(weights, rows, normaliser)
    combination = _combination(weights, rows, normaliser, recipe)
    return Fitted(TwoStageModel(normaliser, weights, combination), history1, history2)


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


class _Stage:
    """One autoencoder in Keras, with an explicit encoder model that shares its layers.

    Parameters
    ----------
    hidden
        Units and activation of a hidden layer on both sides, or None for a linear autoencoder.
    latent, width
        Units of the latent; columns of the input.
    """

    def __init__(self, hidden: tuple[int, str] | None, latent: int, width: int) -> None:
        self._tf = load_tensorflow()
        import keras  # noqa: PLC0415

        self.layers: list[Any] = []

        def dense(units: int, activation: str | None, x: Tensor) -> Tensor:
            self.layers.append(keras.layers.Dense(units, activation))
            return self.layers[-1](x)

        inputs = x = keras.Input((width,))
        x = dense(*hidden, x) if hidden else x
        code = x = dense(latent, None, x)
        x = dense(*hidden, x) if hidden else x
        self._autoencoder = keras.Model(inputs, dense(width, None, x))
        self._encoder = keras.Model(inputs, code)
        self._width = width
        self._learning_rate = keras.Variable(0.0)
        self._steps = keras.Variable(1.0)
        self._optimizer = keras.optimizers.Adam(_cosine(self._learning_rate, self._steps))
        self._optimizer.build(self._autoencoder.trainable_variables)
        self._learn, self._measure = self._compiled()

    def start(self, seed: int) -> None:
        """Begin anew: initial weights from the seed, no memory of earlier training.

        Kernels are uniform between plus and minus sqrt(6 / (inputs + outputs)), biases zero (Glorot
        and Bengio 2010).
        """
        rng = np.random.default_rng(seed)
        for layer in self.layers:
            shape = layer.kernel.shape
            bound = math.sqrt(6 / sum(shape))
            layer.set_weights([rng.uniform(-bound, bound, shape), np.zeros(shape[1])])
        for variable in self._optimizer.variables:
            variable.assign(np.zeros(variable.shape))

    def encoder(self, x: Float32) -> Float32:
        """`(n, latent)` latent of `(n, width)` inputs."""
        code: Float32 = self._encoder(x, training=False).numpy()
        return code

    def fit(
        self, chunks: Chunks, later: Chunks | None, n: int, recipe: Recipe, tell: Callable[..., Any]
    ) -> History:
        """Minimise the mean squared error; keep the weights that were best on later rows.

        Parameters
        ----------
        chunks, later
            Give the rows once per call, in chunks of any size; later rows may be None.
        n
            Rows in all.
        recipe
            Epochs, batch size, learning rate, patience.
        tell
            Called with epochs done, epochs planned, error.
        """
        batch = batch_size_for(n, recipe.batch_size)
        steps = math.ceil(n / batch)
        epochs = max(recipe.epochs, min(math.ceil(recipe.least_steps / steps), MOST_EPOCHS))
        patience = recipe.patience * math.ceil(epochs / recipe.epochs)
        self._learning_rate.assign(recipe.learning_rate)
        self._steps.assign(epochs * steps)
        size = self._tf.constant(batch)
        training = self._passes(chunks)
        testing = None if later is None else self._passes(later)
        losses: list[float] = []
        later_losses: list[float] = []
        best, kept = 0, self._autoencoder.get_weights()
        for epoch in range(epochs):
            losses.append(_mean_error(lambda chunk: self._learn(chunk, size), training))
            if testing is not None:
                later_losses.append(_mean_error(self._measure, testing))
            if testing is None or later_losses[-1] <= min(later_losses):
                best, kept = epoch, self._autoencoder.get_weights()
            tell(epoch + 1, epochs, (later_losses or losses)[-1])
            if epoch - best >= patience:
                break
        self._autoencoder.set_weights(kept)
        return History(tuple(losses), tuple(later_losses), best)

    def _compiled(self) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]:
        """Compile learning from a chunk in batches of a given size, and measuring a chunk.

        Both return the sum of the rows' mean squared errors. The loop over batches is inside the
        compiled function; a `tf.data` loop inside it, or one call per batch, is slower by far.
        """
        from keras import ops  # noqa: PLC0415

        tf, model, optimizer = self._tf, self._autoencoder, self._optimizer
        variables = model.trainable_variables
        rows_of = tf.TensorSpec((None, self._width), tf.float32)

        @tf.function(input_signature=[rows_of, tf.TensorSpec((), tf.int32)], autograph=False)
        def learn(chunk: Tensor, batch: Tensor) -> Tensor:
            def step(start: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
                x = chunk[start : start + batch]
                with tf.GradientTape() as tape:
                    loss = ops.mean(ops.square(model(x, training=True) - x))
                optimizer.apply(tape.gradient(loss, variables), variables)
                return start + batch, total + loss * tf.cast(tf.shape(x)[0], tf.float32)

            rows = tf.shape(chunk)[0]
            # One step at a time: each reads the weights that the one before it wrote.
            _, total = tf.while_loop(
                lambda start, _: start < rows,
                step,
                (tf.constant(0), tf.constant(0.0)),
                parallel_iterations=1,
            )
            return total

        @tf.function(input_signature=[rows_of], autograph=False)
        def measure(chunk: Tensor) -> Tensor:
            squares = ops.square(model(chunk, training=False) - chunk)
            return ops.sum(ops.mean(squares, axis=1))

        return learn, measure

    def _passes(self, chunks: Chunks) -> Iterator[Iterator[Tensor]]:
        """Endless passes over the rows, the next chunk being prepared while one is used.

        One `tf.data` pipeline for all passes: starting one takes tens of milliseconds.
        """
        tf, width = self._tf, self._width

        def marked() -> Iterator[tuple[Float32, bool]]:
            while True:
                held = None
                for chunk in chunks():
                    if held is not None:
                        yield held, False
                    held = chunk
                if held is not None:
                    yield held, True

        signature = (tf.TensorSpec((None, width), tf.float32), tf.TensorSpec((), tf.bool))
        data = tf.data.Dataset.from_generator(marked, output_signature=signature).prefetch(1)
        source = iter(data)

        def one_pass() -> Iterator[Tensor]:
            for chunk, last in source:
                yield chunk
                if last:
                    return

        while True:
            yield one_pass()


def _mean_error(run: Callable[[Tensor], Tensor], passes: Iterator[Iterator[Tensor]]) -> float:
    """Run one pass; the mean over its rows."""
    total, n = 0.0, 0
    for chunk in next(passes):
        total += float(run(chunk))
        n += int(chunk.shape[0])
    return total / n


@lru_cache(maxsize=8)
def _stage(hidden: tuple[int, str] | None, latent: int, width: int) -> _Stage:
    """Return the stage of this shape: tracing one takes longer than training it on few rows."""
    return _Stage(hidden, latent, width)


def _cosine(initial: Tensor, steps: Tensor) -> Any:  # noqa: ANN401
    """Learning rate from `initial` to zero along a cosine in `steps` steps, both variables."""
    import keras  # noqa: PLC0415
    from keras import ops  # noqa: PLC0415

    class Cosine(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Tensor) -> Tensor:
            done = ops.minimum(ops.cast(step, "float32") / steps, 1.0)
            return initial * 0.5 * (1.0 + ops.cos(math.pi * done))

    return Cosine()


def batch_size_for(rows: int, batch_size: int) -> int:
    """Rows of one step: at most `batch_size`, and a tenth of few rows, but at least 16."""
    return min(batch_size, max(16, rows // 10))


def _weights(
    stage1: _Stage, stage2: _Stage, centre: Float64, scale: Float64
) -> dict[str, npt.NDArray[Any]]:
    names = (HIDDEN, LATENT, DECODER, OUTPUT, ENCODER2, DECODER2)
    weights: dict[str, npt.NDArray[Any]] = {}
    for name, layer in zip(names, [*stage1.layers, *stage2.layers], strict=True):
        kernel, bias = layer.get_weights()
        weights[f"{name}.kernel"], weights[f"{name}.bias"] = kernel, bias
    weights["stage2.centre"] = centre.astype(np.float32)
    weights["stage2.scale"] = scale.astype(np.float32)
    weights["stage1.residual_sd"] = np.ones_like(weights[f"{OUTPUT}.bias"])
    weights["stage2.residual_sd"] = np.ones_like(weights[f"{DECODER2}.bias"])
    return weights


def _scale_residuals(
    weights: dict[str, npt.NDArray[Any]], rows: Rows, normaliser: Normaliser
) -> None:
    """Set both stages' residual scales: root mean squares over the training rows, floored.

    With them the mean error of the training rows is 1 in both stages.
    """
    folded = fold(weights)  # still with unit scales: residuals come in z-scores
    squares: Mapping[str, list[Float64]] = {"stage1": [], "stage2": []}
    for z in rows.normalised(normaliser):
        _, *residuals = forward(np, folded.arrays, z * folded.gain + folded.shift)
        for name, residual in zip(squares, residuals, strict=True):
            squares[name].append(np.square(residual, dtype=np.float64).sum(axis=0))
    for name, parts in squares.items():
        rms = np.sqrt(np.sum(parts, axis=0) / len(rows))
        weights[f"{name}.residual_sd"] = np.maximum(rms, RESIDUAL_FLOOR).astype(np.float32)


def _combination(
    weights: Mapping[str, npt.NDArray[Any]], rows: Rows, normaliser: Normaliser, recipe: Recipe
) -> Combination:
    """Weights by inverse medians of both errors and the excess's inverse mean over training rows.

    The excess of most ordinary rows is 0, and so is its median.
    """
    if recipe.combination == "sum":
        return Combination()
    folded, thinned = fold(weights), rows.thinned(MEDIAN_ROWS)
    found = [
        errors(np, folded.arrays, z * folded.gain + folded.shift)[:2]
        for z in thinned.normalised(normaliser)
    ]
    excess = float(np.concatenate(list(thinned.excesses(normaliser))).mean())
    medians = np.median(np.concatenate(found, axis=1), axis=1).astype(np.float64)
    scales = np.divide(1.0, medians, out=np.ones(2), where=medians > 0)
    return Combination(
        float(scales[0]),
        float(recipe.stage2_weight * scales[1]),
        recipe.excess_weight / excess if excess > 0 else 0.0,
    )
