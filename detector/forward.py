"""Both stages and the tails on the CPU: a model's arrays laid out for the fused kernel.

The way every row is scored where there is no GPU, and every explanation anywhere. Needs no
TensorFlow, knows no padded size and keeps no buffer: any number of threads may use one at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from detector.kernels_scoring import STRIP, UNIT, score_rows
from detector.model import TwoStageModel, ZScores, read_only
from detector.network import Folded

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_NOTHING: Final = np.empty((0, 0), np.float32)


class Forward(Protocol):
    """From features to both stages' errors and the tails, by whatever computes them."""

    def __call__(
        self,
        values: npt.NDArray[np.floating[Any]],
        keys: Int64,
        ready: Bool,
        errors: Float64,
        tail: Float64,
        rows: Int32,
        latent: Float32 | None = None,
    ) -> None:
        """Score `(n, F)` values.

        Parameters
        ----------
        values, keys, ready
            Features, instruments, and which rows to score; `(n, F)`, `(n,)`, `(n,)`.
        errors, tail, rows
            Written to: `(2, n)`, `(n,)`, `(n,)`; errors and tail are NaN where not ready.
        latent
            `(n, M L)`, written to where given: in units of stage 2's residuals.
        """
        ...

    def warm(self) -> None:
        """Compile whatever is compiled late, so that no later call has to."""
        ...


class KernelForward:
    """The fused kernel with one model's tables and layers.

    Parameters
    ----------
    model
        Normaliser, tails and combination.
    folded
        The network, its scales folded into its weights.
    """

    def __init__(self, model: TwoStageModel, folded: Folded) -> None:
        tails = model.tails
        self._features = len(folded.gain)
        self._arguments: tuple[Any, ...] = (
            *ZScores(model.normaliser).arguments,
            float(model.normaliser.clip),
            float(model.combination.cap),
            _layers(folded),
            read_only(_widened(np.vstack([folded.gain, tails.memberships()]))),
            read_only(_widened(tails.table())),
            tails.share,
        )
        self._kernel: Any = score_rows  # its type knows no starred arguments

    def __call__(
        self,
        values: npt.NDArray[np.floating[Any]],
        keys: Int64,
        ready: Bool,
        errors: Float64,
        tail: Float64,
        rows: Int32,
        latent: Float32 | None = None,
        normal: Float32 | None = None,
        residual: Float32 | None = None,
    ) -> None:
        """Score rows, see `Forward`.

        `normal` and `residual` `(n, F)`, given both or neither, take z-scores and the members' mean
        residual of the clipped ones in training standard deviations.
        """
        self._kernel(
            read_only(values), read_only(keys), read_only(ready), *self._arguments, errors, tail,
            rows, _NOTHING if latent is None else latent, _NOTHING if normal is None else normal,
            _NOTHING if residual is None else residual,
        )  # fmt: skip

    def warm(self) -> None:
        """Compile the kernel, or load it from Numba's cache."""
        values = np.zeros((1, self._features), np.float32)
        out = np.empty((2, 1)), np.empty(1), np.empty(1, np.int32)
        self(values, np.zeros(1, np.int64), np.ones(1, np.bool_), *out)


def _layers(folded: Folded) -> tuple[Float32, ...]:
    """Return the layers as `kernels_scoring.score_rows` takes them."""
    arrays = folded.arrays
    hidden = np.concatenate(list(arrays["hidden"]), axis=1)
    first = _padded(hidden, arrays["hidden_bias"].reshape(1, -1))
    names = ["latent", "decoder", "output", "encoder2", "decoder2", "whitening"]
    return tuple(
        read_only(layer) for layer in [first, *(_of_members(arrays, name) for name in names)]
    )


def _of_members(arrays: Mapping[str, Float32], name: str) -> Float32:
    """One layer of every member, or of none."""
    if name not in arrays:
        return np.zeros((0, 0, 0), np.float32)
    weights = arrays[name]
    biases = arrays.get(f"{name}_bias", np.zeros((len(weights), 1, weights.shape[2]), np.float32))
    return np.stack([_padded(w, b) for w, b in zip(weights, biases, strict=True)])


def _padded(weights: Float32, bias: Float32) -> Float32:
    """`(K, J)` weights and `(1, J)` bias as `kernels_scoring.dense` takes them."""
    inputs, units = weights.shape
    padded = np.zeros((-(-units // UNIT) * UNIT, 1 + inputs), np.float32)
    padded[:units, 1:] = weights.T
    padded[:units, 0] = bias
    return padded


def _widened(array: Float32) -> Float32:
    """Fill the last axis up with zeros to a whole number of strips."""
    width = array.shape[-1]
    spare = -(-width // STRIP) * STRIP - width
    return np.ascontiguousarray(np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, spare)]))
