"""The two autoencoders as plain arrays and one forward pass, whatever library runs it.

Stage 1 reconstructs the clipped z-scores of a tick's features, stage 2 the standardised latent of
stage 1. `forward` is written against the operations that `keras.ops` and `numpy` share; the scorer
compiles it, the explanation of a few rows runs it with numpy. No other library
is imported here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt

Tensor: TypeAlias = Any
"""An array of whatever library runs the network."""

Ops: TypeAlias = Any
"""`keras.ops`, or `numpy`, which names the same operations alike."""

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]

RESIDUAL_FLOOR: Final = 0.05
"""Smallest standard deviation of a residual, in units of its input's standard deviation. Without
it a feature that never moved in training would turn rounding errors into anomalies."""

HIDDEN: Final = "stage1.encoder.hidden"
LATENT: Final = "stage1.encoder.latent"
DECODER: Final = "stage1.decoder.hidden"
OUTPUT: Final = "stage1.decoder.output"
ENCODER2: Final = "stage2.encoder"
DECODER2: Final = "stage2.decoder"


def weight_shapes(
    features: int, hidden: int, latent: int, stage2_latent: int
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a trained network; the artifact is checked against it."""
    layers = {
        HIDDEN: (features, hidden),
        LATENT: (hidden, latent),
        DECODER: (latent, hidden),
        OUTPUT: (hidden, features),
        ENCODER2: (latent, stage2_latent),
        DECODER2: (stage2_latent, latent),
    }
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in layers.items():
        shapes[f"{name}.kernel"] = shape
        shapes[f"{name}.bias"] = shape[1:]
    shapes["stage1.residual_sd"] = (features,)
    shapes["stage2.centre"] = shapes["stage2.scale"] = shapes["stage2.residual_sd"] = (latent,)
    return shapes


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """A trained network with every affine step that follows another folded into it.

    The passes over a micro-batch that only add a bias or multiply by a constant cost as much as a
    matrix product here, so none is left that can be avoided: the input arrives in units of stage
    1's residuals (`gain`, `shift`), the latent leaves in units of stage 2's residuals.

    Parameters
    ----------
    gain, shift
        `(F,)` float32: the network's input is `clipped z * gain + shift`.
    latent_gain, latent_shift
        `(L,)` float32: the standardised latent is `y * latent_gain + latent_shift`.
    arrays
        What `forward` multiplies and adds.
    """

    gain: Float32
    shift: Float32
    latent_gain: Float32
    latent_shift: Float32
    arrays: Mapping[str, Float32]


def fold(weights: Mapping[str, npt.NDArray[Any]]) -> Folded:
    """Fold scales and biases of a trained network (names as in `weight_shapes`), in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    sd1, sd2 = w["stage1.residual_sd"], w["stage2.residual_sd"]
    kernel, bias = f"{OUTPUT}.kernel", f"{OUTPUT}.bias"
    # r1 = (output - z) / sd1 = h W/sd1 - x with x = z/sd1 - bias/sd1, hence z = x sd1 + bias
    hidden_bias = w[f"{HIDDEN}.bias"] + w[bias] @ w[f"{HIDDEN}.kernel"]
    # standardised latent = y unit + offset, with y in units of stage 2's residuals
    scale, unit = w["stage2.scale"], sd2
    offset = (w[f"{LATENT}.bias"] - w["stage2.centre"]) / scale
    decoder_bias = w[f"{DECODER}.bias"] + w[f"{LATENT}.bias"] @ w[f"{DECODER}.kernel"]
    code = offset @ w[f"{ENCODER2}.kernel"] + w[f"{ENCODER2}.bias"]
    constant = (code @ w[f"{DECODER2}.kernel"] + w[f"{DECODER2}.bias"] - offset) / sd2
    arrays = {
        "hidden": w[f"{HIDDEN}.kernel"] * sd1[:, None],
        "hidden_bias": hidden_bias,
        "latent": w[f"{LATENT}.kernel"] / (scale * unit),
        "decoder": w[f"{DECODER}.kernel"] * (scale * unit)[:, None],
        "decoder_bias": decoder_bias,
        "output": w[kernel] / sd1,
        "encoder2": w[f"{ENCODER2}.kernel"] * unit[:, None],
        "decoder2": w[f"{DECODER2}.kernel"] / sd2,
        "decoder2_bias": constant,
    }
    return Folded(
        gain=(1 / sd1).astype(np.float32),
        shift=(-w[bias] / sd1).astype(np.float32),
        latent_gain=unit.astype(np.float32),
        latent_shift=offset.astype(np.float32),
        arrays={name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()},
    )


def forward(ops: Ops, arrays: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both stages in one pass.

    Parameters
    ----------
    ops
        The operations to run.
    arrays
        `Folded.arrays`, as tensors of the library behind `ops`.
    x
        `(n, F)` float32 network input: `clipped z * gain + shift`.

    Returns
    -------
    latent, residual1, residual2
        `(n, L)`, `(n, F)`, `(n, L)`: the latent in units of stage 2's residuals, and both stages'
        residuals (reconstruction less input) in units of their standard deviations in training.
    """
    hidden = ops.tanh(ops.add(ops.matmul(x, arrays["hidden"]), arrays["hidden_bias"]))
    latent = ops.matmul(hidden, arrays["latent"])
    hidden = ops.tanh(ops.add(ops.matmul(latent, arrays["decoder"]), arrays["decoder_bias"]))
    residual1 = ops.subtract(ops.matmul(hidden, arrays["output"]), x)
    code = ops.matmul(latent, arrays["encoder2"])
    rebuilt = ops.add(ops.matmul(code, arrays["decoder2"]), arrays["decoder2_bias"])
    return latent, residual1, ops.subtract(rebuilt, latent)


def errors(ops: Ops, arrays: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Reconstruction errors of both stages, `(n,)` each, and the latent of `forward`.

    An error is the mean over a row of the squared residual in training standard deviations: about
    1 for the rows the stage was trained on. Each row is reduced by itself, so that its position and
    the padding around it change no bit.
    """
    latent, residual1, residual2 = forward(ops, arrays, x)
    return (
        ops.mean(ops.square(residual1), axis=1),
        ops.mean(ops.square(residual2), axis=1),
        latent,
    )
