"""One stage of every member in Keras: what is trained, apart from what it is trained on.

The members are trained side by side, on the same batches, from other initial weights and with other
noise. Nothing joins them: each one's gradients are its own. One pass over the data, and one call
per batch, serve all of them.

References
----------
Kingma, Ba (2015), "Adam: a method for stochastic optimization", ICLR.
Glorot, Bengio (2010), "Understanding the difficulty of training deep feedforward neural networks",
AISTATS.
Loshchilov, Hutter (2017), "SGDR: stochastic gradient descent with warm restarts", ICLR: the cosine
decay, here without restarts.
Vincent et al. (2008), "Extracting and composing robust features with denoising autoencoders", ICML.
Kingma, Welling (2014), "Auto-encoding variational Bayes", ICLR.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.compiled import load_tensorflow
from detector.network import Tensor

Float32 = npt.NDArray[np.float32]
Chunks = Callable[[], Iterator[Float32]]
"""Gives all rows once: chunks of `(n, width)`, or of `(n, M, width)` where members' rows differ."""

MOST_EPOCHS: Final = 100
"""Passes over very few rows, unless more are asked for."""

FIRST_SPREAD: Final = -2.0
"""Logarithm of a sampled latent's variance before training."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast a stage is trained.

    Parameters
    ----------
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
    noise
        Standard deviation of what is added to the last member's input, not to what has to be
        rebuilt; evenly less to those before, none to the first of several.
    kl_weight
        Weight of a sampled latent's divergence from a standard normal, a feature.
    """

    epochs: int
    least_steps: int
    batch_size: int
    learning_rate: float
    patience: int
    noise: float = 0.0
    kl_weight: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class History:
    """Mean squared error of one stage by epoch: on the rows fitted, and on later ones (or none).

    Means over the members; of fitted rows with noise in their input, of later ones without.
    """

    loss: tuple[float, ...]
    later_loss: tuple[float, ...]
    best_epoch: int

    @property
    def final(self) -> float:
        """Error of the weights that were kept, on later rows where there are any."""
        return (self.later_loss or self.loss)[self.best_epoch]


class Stage:
    """An autoencoder of every member, with an encoder of its own.

    Parameters
    ----------
    members
        How many.
    hidden
        Units of a hidden tanh layer on both sides, or None for a linear autoencoder.
    latent, width
        Units of the latent; columns of the input.
    sampled
        Whether the latent is drawn from a normal distribution while training, and held near the
        standard one; its mean is what the encoder gives.
    """

    def __init__(
        self, members: int, hidden: int | None, latent: int, width: int, *, sampled: bool
    ) -> None:
        self._tf = load_tensorflow()
        import keras  # noqa: PLC0415

        outer = [] if hidden is None else [hidden]
        sizes = [width, *outer, latent, *outer, width]
        self._members, self._width, self._depth = members, width, len(outer)
        self.layers = [self._layer(inputs, units) for inputs, units in pairwise(sizes)]
        self._spread = self._layer(sizes[self._depth], latent) if sampled else None
        layers = [*self.layers, *([] if self._spread is None else [self._spread])]
        self._variables = [variable for layer in layers for variable in layer]
        self._noise = keras.Variable(np.zeros((members, 1, 1), np.float32), trainable=False)
        self._kl_weight = keras.Variable(0.0, trainable=False)
        self._seed = keras.Variable(0, dtype="int32", trainable=False)
        self._learning_rate = keras.Variable(0.0, trainable=False)
        self._steps = keras.Variable(1.0, trainable=False)
        self._optimizer = keras.optimizers.Adam(_cosine(self._learning_rate, self._steps))
        self._optimizer.build(self._variables)
        self._rank = 2 if hidden is not None else 3
        shape = (None, *([] if self._rank == 2 else [members]), width)
        self._rows = self._tf.TensorSpec(shape, self._tf.float32)
        self._learn, self._measure, self._encode = self._compiled()

    def start(self, seed: int) -> None:
        """Begin anew: initial weights from the seed, no memory of earlier training.

        Kernels are uniform between plus and minus sqrt(6 / (inputs + outputs)), biases zero (Glorot
        and Bengio 2010).
        """
        rng = np.random.default_rng(seed)
        for kernel, bias in self.layers:
            bound = math.sqrt(6 / sum(kernel.shape[1:]))
            kernel.assign(rng.uniform(-bound, bound, kernel.shape))
            bias.assign(np.zeros(bias.shape))
        if self._spread is not None:
            kernel, bias = self._spread
            kernel.assign(np.zeros(kernel.shape))
            bias.assign(np.full(bias.shape, FIRST_SPREAD))
        for variable in self._optimizer.variables:
            variable.assign(np.zeros(variable.shape))
        self._seed.assign(int(rng.integers(2**31 - 1)))

    def arrays(self) -> list[tuple[Float32, Float32]]:
        """Kernels `(M, inputs, units)` and biases `(M, units)` of every layer, in order."""
        return [(kernel.numpy(), bias.numpy()[:, 0]) for kernel, bias in self.layers]

    def encoder(self, x: Float32) -> Float32:
        """`(n, M, latent)` latents of inputs."""
        code: Float32 = self._encode(x).numpy()
        return code

    def fit(
        self,
        chunks: Chunks,
        later: Chunks | None,
        n: int,
        schedule: Schedule,
        tell: Callable[[int, int, float], Any],
    ) -> History:
        """Minimise the mean squared error; keep the weights that were best on later rows.

        Parameters
        ----------
        chunks, later
            Give the rows once per call, in chunks of any size; later rows may be None.
        n
            Rows in all.
        schedule
            Epochs, batch size, learning rate, patience, noise.
        tell
            Called with epochs done, epochs planned, error.
        """
        batch = batch_size_for(n, schedule.batch_size)
        steps = math.ceil(n / batch)
        epochs = max(schedule.epochs, min(math.ceil(schedule.least_steps / steps), MOST_EPOCHS))
        patience = schedule.patience * math.ceil(epochs / schedule.epochs)
        self._learning_rate.assign(schedule.learning_rate)
        self._steps.assign(epochs * steps)
        self._noise.assign(self._noise_levels(schedule.noise))
        self._kl_weight.assign(schedule.kl_weight / self._width)
        size = self._tf.constant(batch)
        training = self._passes(chunks)
        testing = None if later is None else self._passes(later)
        losses: list[float] = []
        later_losses: list[float] = []
        best, kept = 0, self._kept()
        for epoch in range(epochs):
            losses.append(_mean_error(lambda chunk: self._learn(chunk, size), training))
            if testing is not None:
                later_losses.append(_mean_error(self._measure, testing))
            if testing is None or later_losses[-1] <= min(later_losses):
                best, kept = epoch, self._kept()
            tell(epoch + 1, epochs, (later_losses or losses)[-1])
            if epoch - best >= patience:
                break
        for variable, values in zip(self._variables, kept, strict=True):
            variable.assign(values)
        return History(tuple(losses), tuple(later_losses), best)

    def _layer(self, inputs: int, units: int) -> tuple[Any, Any]:
        import keras  # noqa: PLC0415

        members = self._members
        return (
            keras.Variable(np.zeros((members, inputs, units), np.float32)),
            keras.Variable(np.zeros((members, 1, units), np.float32)),
        )

    def _kept(self) -> list[npt.NDArray[Any]]:
        return [variable.numpy() for variable in self._variables]

    def _noise_levels(self, most: float) -> Float32:
        """`(M, 1, 1)`: how much noise each member's input gets."""
        shares = np.linspace(0.0, 1.0, self._members) if self._members > 1 else np.ones(1)
        return (most * shares).astype(np.float32)[:, None, None]

    def _coded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latent of `(M, n, width)` inputs, and what comes right before it."""
        from keras import ops  # noqa: PLC0415

        before = ops.tanh(_applied(self.layers[0], x)) if self._depth else x
        return _applied(self.layers[self._depth], before), before

    def _decoded(self, code: Tensor) -> Tensor:
        from keras import ops  # noqa: PLC0415

        x = ops.tanh(_applied(self.layers[self._depth + 1], code)) if self._depth else code
        return _applied(self.layers[-1], x)

    def _of_members(self, rows: Tensor) -> Tensor:
        """`(M or 1, n, width)`: the member first."""
        from keras import ops  # noqa: PLC0415

        return rows[None] if self._rank == 2 else ops.transpose(rows, (1, 0, 2))

    def _drawn(self, shape: Tensor, which: int) -> Tensor:
        """Draw normal numbers for this step; others for every `which`."""
        tf = self._tf
        step = tf.cast(self._optimizer.iterations.value, tf.int32)
        return tf.random.stateless_normal(shape, tf.stack([self._seed.value + which, step]))

    def _loss(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error, and what is minimised: sums over the members."""
        from keras import ops  # noqa: PLC0415

        tf = self._tf
        x = self._of_members(rows)
        shape = tf.stack([self._members, tf.shape(rows)[0], self._width])
        code, before = self._coded(x + self._noise.value * self._drawn(shape, 0))
        divergence = 0.0
        if self._spread is not None:
            log_variance = _applied(self._spread, before)
            each = ops.square(code) + ops.exp(log_variance) - log_variance - 1.0
            divergence = 0.5 * ops.sum(ops.mean(ops.sum(each, axis=2), axis=1))
            code += ops.exp(0.5 * log_variance) * self._drawn(tf.shape(code), 1)
        error = ops.sum(ops.mean(ops.square(self._decoded(code) - x), axis=(1, 2)))
        return error, error + self._kl_weight.value * divergence

    def _compiled(self) -> tuple[Callable[..., Tensor], ...]:
        """Compile learning from a chunk in batches of a given size, measuring and encoding one.

        The first two return the sum of the rows' mean squared errors. The loop over batches is
        inside the compiled function; a `tf.data` loop inside it, or one call per batch, is slower
        by far.
        """
        from keras import ops  # noqa: PLC0415

        tf, optimizer = self._tf, self._optimizer
        weights = [variable.value for variable in self._variables]
        size = tf.TensorSpec((), tf.int32)

        @tf.function(input_signature=[self._rows, size], autograph=False)
        def learn(chunk: Tensor, batch: Tensor) -> Tensor:
            def step(start: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
                rows = chunk[start : start + batch]
                with tf.GradientTape() as tape:
                    error, loss = self._loss(rows)
                optimizer.apply(tape.gradient(loss, weights), self._variables)
                return start + batch, total + error * tf.cast(tf.shape(rows)[0], tf.float32)

            n = tf.shape(chunk)[0]
            # One step at a time: each reads the weights that the one before it wrote.
            _, total = tf.while_loop(
                lambda start, _: start < n,
                step,
                (tf.constant(0), tf.constant(0.0)),
                parallel_iterations=1,
            )
            return total / self._members

        @tf.function(input_signature=[self._rows], autograph=False)
        def measure(chunk: Tensor) -> Tensor:
            x = self._of_members(chunk)
            squares = ops.square(self._decoded(self._coded(x)[0]) - x)
            return ops.sum(ops.mean(squares, axis=(0, 2)))

        @tf.function(input_signature=[self._rows], autograph=False)
        def encode(chunk: Tensor) -> Tensor:
            return ops.transpose(self._coded(self._of_members(chunk))[0], (1, 0, 2))

        return learn, measure, encode

    def _passes(self, chunks: Chunks) -> Iterator[Iterator[Tensor]]:
        """Endless passes over the rows, the next chunk being prepared while one is used.

        One `tf.data` pipeline for all passes: starting one takes tens of milliseconds.
        """
        tf = self._tf

        def marked() -> Iterator[tuple[Float32, bool]]:
            while True:
                held = None
                for chunk in chunks():
                    if held is not None:
                        yield held, False
                    held = chunk
                if held is not None:
                    yield held, True

        signature = (self._rows, tf.TensorSpec((), tf.bool))
        data = tf.data.Dataset.from_generator(marked, output_signature=signature).prefetch(1)
        source = iter(data)

        def one_pass() -> Iterator[Tensor]:
            for chunk, last in source:
                yield chunk
                if last:
                    return

        while True:
            yield one_pass()


@lru_cache(maxsize=8)
def stage_for(members: int, hidden: int | None, latent: int, width: int, *, sampled: bool) -> Stage:
    """Return the stage of these sizes: tracing one takes longer than training it on few rows."""
    return Stage(members, hidden, latent, width, sampled=sampled)


def _applied(layer: tuple[Any, Any], x: Tensor) -> Tensor:
    """`(M, n, units)`: a layer of every member applied to `(M or 1, n, inputs)`."""
    from keras import ops  # noqa: PLC0415

    kernel, bias = layer
    return ops.matmul(x, kernel) + bias


def batch_size_for(rows: int, batch_size: int) -> int:
    """Rows of one step: at most `batch_size`, and a tenth of few rows, but at least 16."""
    return min(batch_size, max(16, rows // 10))


def _mean_error(run: Callable[[Tensor], Tensor], passes: Iterator[Iterator[Tensor]]) -> float:
    """Run one pass; the mean over its rows."""
    total, n = 0.0, 0
    for chunk in next(passes):
        total += float(run(chunk))
        n += int(chunk.shape[0])
    return total / n


def _cosine(initial: Tensor, steps: Tensor) -> Any:  # noqa: ANN401
    """Learning rate from `initial` to zero along a cosine in `steps` steps, both variables."""
    import keras  # noqa: PLC0415
    from keras import ops  # noqa: PLC0415

    class Cosine(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Tensor) -> Tensor:
            done = ops.minimum(ops.cast(step, "float32") / steps, 1.0)
            return initial * 0.5 * (1.0 + ops.cos(math.pi * done))

    return Cosine()
