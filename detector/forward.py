"""Both stages on the CPU: a model's arrays laid out for the fused kernel.

The way every row is scored where there is no GPU, and every explanation anywhere. Needs no
TensorFlow, knows no padded size and keeps no buffer: any number of threads may use one at a time.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt

from detector.kernels_scoring import UNIT, score_rows
from detector.model import Normaliser, ZScores, read_only
from detector.network import Folded

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

_NOTHING: Final = np.empty((0, 0), np.float32)


class Forward(Protocol):
    """From features to both stages' errors, by whatever computes them."""

    def __call__(
        self,
        values: npt.NDArray[np.floating[Any]],
        keys: Int64,
        ready: Bool,
        errors: Float64,
        excess: Float64,
        rows: Int32,
        latent: Float32 | None = None,
    ) -> None:
        """Score `(n, F)` values.

        Parameters
        ----------
        values, keys, ready
            Features, instruments, and which rows to score; `(n, F)`, `(n,)`, `(n,)`.
        errors, excess, rows
            Written to: `(2, n)`, `(n,)`, `(n,)`; errors and excess are NaN where not ready.
        latent
            `(n, L)`, written to where given: in units of stage 2's residuals.
        """
        ...

    def warm(self) -> None:
        """Compile whatever is compiled late, so that no later call has to."""
        ...


class KernelForward:
    """The fused kernel with one model's tables and layers.

    Parameters
    ----------
    tables
        Centres and scales by instrument.
    folded
        The network, its scales folded into its weights.
    """

    def __init__(self, tables: Normaliser, folded: Folded) -> None:
        arrays = folded.arrays
        self._tables = ZScores(tables, folded.gain, folded.shift).arguments
        self._layers = tuple(
            read_only(_layer(arrays[name], arrays.get(f"{name}_bias")))
            for name in ("hidden", "latent", "decoder", "output", "encoder2", "decoder2")
        )
        self._latent_units = len(folded.latent_gain)
        self._kernel: Any = score_rows  # its type knows no starred arguments
        self._features = len(folded.gain)

    def __call__(
        self,
        values: npt.NDArray[np.floating[Any]],
        keys: Int64,
        ready: Bool,
        errors: Float64,
        excess: Float64,
        rows: Int32,
        latent: Float32 | None = None,
        residual: Float32 | None = None,
    ) -> None:
        """Score rows, see `Forward`; `residual` `(n, F)` takes stage 1's residuals, where given."""
        self._kernel(
            read_only(values), read_only(keys), read_only(ready), *self._tables, self._layers,
            self._latent_units, errors, excess, rows, _NOTHING if latent is None else latent,
            _NOTHING if residual is None else residual,
        )  # fmt: skip

    def warm(self) -> None:
        """Compile the kernel, or load it from Numba's cache."""
        values = np.zeros((1, self._features), np.float32)
        out = np.empty((2, 1)), np.empty(1), np.empty(1, np.int32)
        self(values, np.zeros(1, np.int64), np.ones(1, np.bool_), *out)


def _layer(weights: Float32, bias: Float32 | None) -> Float32:
    """`(K, J)` weights and `(J,)` bias as `kernels_scoring.dense` takes them."""
    inputs, units = weights.shape
    padded = np.zeros((_whole(units), 1 + _whole(inputs)), np.float32)
    padded[:units, 1 : 1 + inputs] = weights.T
    if bias is not None:
        padded[:units, 0] = bias
    return padded


def _whole(units: int) -> int:
    """`units`, padded as the layer before them pads its output."""
    return -(-units // UNIT) * UNIT
