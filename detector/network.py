"""The autoencoders as plain arrays and one forward pass, whatever library runs it.

A model has several members of the same sizes, trained alike from other random numbers. Each has two
stages: stage 1 reconstructs the clipped z-scores of a tick's features, stage 2 the standardised
latent of its stage 1. `errors` is written against the operations that `keras.ops` and `numpy`
share: it is the definition that the fused kernel is tested against, and what runs on a GPU. No
other library is imported here.
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
it a feature that is rebuilt exactly would turn rounding errors into anomalies."""

HIDDEN: Final = "stage1.encoder.hidden"
LATENT: Final = "stage1.encoder.latent"
DECODER: Final = "stage1.decoder.hidden"
OUTPUT: Final = "stage1.decoder.output"
ENCODER2: Final = "stage2.encoder"
DECODER2: Final = "stage2.decoder"
RESIDUAL_MEAN: Final = "stage1.residual_mean"
WHITENING: Final = "stage1.whitening"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large a network is.

    Parameters
    ----------
    features, hidden, latent, stage2_latent
        Units of the input, of stage 1's hidden layers, and of both latents.
    members
        Networks of these sizes, each with both stages.
    whitened
        Whether stage 1's error is taken of whitened residuals.
    """

    features: int
    hidden: int
    latent: int
    stage2_latent: int
    members: int
    whitened: bool = False

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every array of a trained network; artifacts are checked against it.

        The first axis of every array but `stage1.residual_sd` is the member.
        """
        layers = {
            HIDDEN: (self.features, self.hidden),
            LATENT: (self.hidden, self.latent),
            DECODER: (self.latent, self.hidden),
            OUTPUT: (self.hidden, self.features),
            ENCODER2: (self.latent, self.stage2_latent),
            DECODER2: (self.stage2_latent, self.latent),
        }
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (inputs, units) in layers.items():
            shapes[f"{name}.kernel"] = (self.members, inputs, units)
            shapes[f"{name}.bias"] = (self.members, units)
        shapes["stage1.residual_sd"] = (self.features,)
        for name in ("centre", "scale", "residual_sd"):
            shapes[f"stage2.{name}"] = (self.members, self.latent)
        if self.whitened:
            shapes[RESIDUAL_MEAN] = (self.members, self.features)
            shapes[WHITENING] = (self.members, self.features, self.features)
        return shapes

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one row's matrix products, of all members and both stages."""
        one = 2 * self.hidden * (self.features + self.latent) + 2 * self.latent * self.stage2_latent
        return self.members * (one + (self.features**2 if self.whitened else 0))


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """A trained network with every affine step that follows another folded into it.

    The passes over a micro-batch that only add a bias or multiply by a constant cost as much as a
    matrix product here, so none is left that can be avoided: the input arrives in units of stage
    1's residuals (`gain`), the latent leaves in units of stage 2's residuals.

    Parameters
    ----------
    gain
        `(F,)` float32: the network's input is `clipped z * gain`.
    latent_gain, latent_shift
        `(M * L,)` float32: the standardised latents are `y * latent_gain + latent_shift`.
    arrays
        What `forward` multiplies and adds: layers `(M, inputs, units)`, biases `(M, 1, units)`.
    """

    gain: Float32
    latent_gain: Float32
    latent_shift: Float32
    arrays: Mapping[str, Float32]


def fold(weights: Mapping[str, npt.NDArray[Any]]) -> Folded:
    """Fold scales and biases of a trained network (as in `Sizes.shapes`), in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    for name in list(w):
        if w[name].ndim == 2:  # one row a member
            w[name] = w[name][:, None]
    sd1, unit = w["stage1.residual_sd"], w["stage2.residual_sd"]
    # standardised latent = y unit + offset, with y in units of stage 2's residuals
    scale, latent_bias = w["stage2.scale"], w[f"{LATENT}.bias"]
    offset = (latent_bias - w["stage2.centre"]) / scale
    back = scale * unit
    code = offset @ w[f"{ENCODER2}.kernel"] + w[f"{ENCODER2}.bias"]
    arrays = {
        "hidden": w[f"{HIDDEN}.kernel"] * sd1[:, None],
        "hidden_bias": w[f"{HIDDEN}.bias"],
        "latent": w[f"{LATENT}.kernel"] / back,
        "decoder": w[f"{DECODER}.kernel"] * back.swapaxes(1, 2),
        "decoder_bias": w[f"{DECODER}.bias"] + latent_bias @ w[f"{DECODER}.kernel"],
        "output": w[f"{OUTPUT}.kernel"] / sd1,
        "output_bias": w[f"{OUTPUT}.bias"] / sd1,
        "encoder2": w[f"{ENCODER2}.kernel"] * unit.swapaxes(1, 2),
        "decoder2": w[f"{DECODER2}.kernel"] / unit,
        "decoder2_bias": (code @ w[f"{DECODER2}.kernel"] + w[f"{DECODER2}.bias"] - offset) / unit,
    }
    if WHITENING in w:
        arrays["whitening"] = w[WHITENING]
        arrays["whitening_bias"] = -w[RESIDUAL_MEAN] @ w[WHITENING]
    return Folded(
        gain=(1 / sd1).astype(np.float32),
        latent_gain=unit.ravel().astype(np.float32),
        latent_shift=offset.ravel().astype(np.float32),
        arrays={name: np.ascontiguousarray(a, np.float32) for name, a in arrays.items()},
    )


def forward(ops: Ops, arrays: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Both stages of every member in one pass.

    Parameters
    ----------
    ops
        The operations to run.
    arrays
        `Folded.arrays`, as tensors of the library behind `ops`.
    x
        `(n, F)` float32 network input: `clipped z * gain`.

    Returns
    -------
    latent, residual1, residual2
        `(M, n, L)`, `(M, n, F)`, `(M, n, L)`: the latents in units of stage 2's residuals, and both
        stages' residuals (reconstruction less input) in their standard deviations in training.
    """
    shared = [x] * len(arrays["hidden"])
    hidden = ops.tanh(ops.add(_products(ops, shared, arrays["hidden"]), arrays["hidden_bias"]))
    latent = _products(ops, hidden, arrays["latent"])
    hidden = ops.add(_products(ops, latent, arrays["decoder"]), arrays["decoder_bias"])
    rebuilt = _products(ops, ops.tanh(hidden), arrays["output"])
    rebuilt = ops.add(rebuilt, arrays["output_bias"])
    code = _products(ops, latent, arrays["encoder2"])
    again = ops.add(_products(ops, code, arrays["decoder2"]), arrays["decoder2_bias"])
    return latent, ops.subtract(rebuilt, x), ops.subtract(again, latent)


def _products(ops: Ops, x: Tensor, weights: Tensor) -> Tensor:
    """Matrix product of every member, one by one: a batched one is not bit-equal for any rows."""
    return ops.stack([ops.matmul(x[m], weights[m]) for m in range(len(weights))])


def stage_errors(
    ops: Ops, arrays: Mapping[str, Tensor], residual1: Tensor, residual2: Tensor, cap: float
) -> tuple[Tensor, Tensor]:
    """Reconstruction errors of both stages, `(n,)` each, from the residuals of `forward`.

    An error is the mean over members and units of the squared residual in training standard
    deviations, none above `cap` in stage 1: about 1 for the rows the stage was trained on. Each row
    is reduced by itself, so that its position and the padding around it change no bit.
    """
    if "whitening" in arrays:
        white = _products(ops, residual1, arrays["whitening"])
        residual1 = ops.add(white, arrays["whitening_bias"])
    squares = ops.minimum(ops.square(residual1), cap)
    return (
        ops.mean(ops.mean(squares, axis=2), axis=0),
        ops.mean(ops.mean(ops.square(residual2), axis=2), axis=0),
    )


def tail_decades(ops: Ops, table: Tensor, groups: Tensor, z: Tensor, u: Tensor) -> Tensor:
    """`ln(1 + d(z) + d(u))` summed over each group's features, as `(n, G)`.

    Parameters
    ----------
    ops
        The operations to run.
    table
        `(n, 8, F)`: the rows of `model.Tails.table` that belong to the rows of `z`.
    groups
        `(F, G)`: 1 where a feature belongs to a group, else 0.
    z, u
        `(n, F)`: z-scores, and the mean residual of the unclipped ones.
    """

    def beyond(value: Tensor, first: int) -> Tensor:
        above, wide, below, deep = (table[:, first + i] for i in range(4))
        up = ops.multiply(ops.subtract(value, above), wide)
        down = ops.multiply(ops.subtract(below, value), deep)
        return ops.maximum(ops.maximum(up, down), 0.0)

    return ops.matmul(ops.log1p(ops.add(beyond(z, 0), beyond(u, 4))), groups)


def measures(
    ops: Ops,
    arrays: Mapping[str, Tensor],
    clip: float,
    cap: float,
    share: float,
    z: Tensor,
    table: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Everything that is measured of a row: the definition of what a score is made of.

    Parameters
    ----------
    ops
        The operations to run.
    arrays
        `Folded.arrays`, and `gain` `(F,)` and `groups` `(F, G)`.
    clip
        z-scores are cut off at plus and minus this for the networks.
    cap, table, z
        As in `stage_errors` and `tail_decades`.
    share
        One over the square root of the number of groups that have features.

    Returns
    -------
    stage1, stage2, tail, latent
        Errors and tail decades `(n,)`; `(n, M L)` latents in units of stage 2's residuals.
    """
    kept = ops.clip(z, -clip, clip)
    latent, residual1, residual2 = forward(ops, arrays, ops.multiply(kept, arrays["gain"]))
    stage1, stage2 = stage_errors(ops, arrays, residual1, residual2, cap)
    hidden = ops.multiply(ops.subtract(kept, z), arrays["gain"])  # what clipping hid
    u = ops.add(ops.mean(residual1, axis=0), hidden)
    decades = tail_decades(ops, table, arrays["groups"], z, u)
    tail = ops.multiply(ops.sum(ops.sqrt(decades), axis=1), share)
    members, _, units = latent.shape
    latents = ops.reshape(ops.transpose(latent, (1, 0, 2)), (-1, members * units))
    return stage1, stage2, tail, latents
