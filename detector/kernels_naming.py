"""The softmax head as one pure Numba pass over the ticks that raised an alarm; `naming` wraps it.

One row after the other, every sum in a fixed order: what a row gives depends on nothing around it,
to the bit. Numpy arrays in, numpy arrays out.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

Float64Array = npt.NDArray[np.float64]

LEAST_ERROR: Final = 1e-9


@njit(cache=True, nogil=True)
def assemble(latents: npt.NDArray[np.float32], measures: Float64Array, out: Float64Array) -> None:
    """Put latents `(m, L)` and logarithms of measures `(3, m)` side by side: `out` `(m, L + 3)`.

    Here and not in NumPy, whose logarithm takes another way at the end of an array.
    """
    m, width = latents.shape
    for i in range(m):
        for j in range(width):
            out[i, j] = latents[i, j]
        out[i, width] = math.log(max(measures[0, i], LEAST_ERROR))
        out[i, width + 1] = math.log(max(measures[1, i], LEAST_ERROR))
        out[i, width + 2] = math.log1p(measures[2, i])


@njit(cache=True, nogil=True)
def weigh(
    inputs: Float64Array,
    centre: Float64Array,
    scale: Float64Array,
    clip: float,
    weights: Float64Array,
    bias: Float64Array,
    whitener: Float64Array,
    means: Float64Array,
    out: Float64Array,
) -> None:
    """Probability of each class, and distance from each, of every row.

    Parameters
    ----------
    inputs : (m, I) float64
    centre, scale : (I,) float64
        An input is taken as `clip((x - centre) / scale, -clip, clip)`.
    clip
        Most that a standardised input counts.
    weights, bias : (C, I), (C,) float64
        Of the softmax.
    whitener : (I, I) float64
        Upper triangle; makes the classes' common covariance the unit matrix.
    means : (C, I) float64
        Of the classes, standardised and whitened.
    out : (m, 2 C) float64
        Written to: C probabilities, then C distances (Mahalanobis).
    """
    m, size = inputs.shape
    classes = bias.shape[0]
    z, white = np.empty(size), np.empty(size)
    for i in range(m):
        for j in range(size):
            z[j] = min(max((inputs[i, j] - centre[j]) / scale[j], -clip), clip)
        for j in range(size):
            total = 0.0
            for k in range(j, size):
                total += whitener[j, k] * z[k]
            white[j] = total
        highest = -math.inf
        for c in range(classes):
            logit, square = bias[c], 0.0
            for j in range(size):
                logit += weights[c, j] * z[j]
                apart = white[j] - means[c, j]
                square += apart * apart
            out[i, c] = logit
            out[i, classes + c] = math.sqrt(square)
            highest = max(highest, logit)
        total = 0.0
        for c in range(classes):
            out[i, c] = math.exp(out[i, c] - highest)  # less the highest: never overflows
            total += out[i, c]
        for c in range(classes):
            out[i, c] /= total
