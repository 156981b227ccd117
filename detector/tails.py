"""The generalised Pareto tail: what lies above a high level, and how far to go for a rarer alarm.

Whatever a distribution looks like, its excesses over a high level follow a generalised Pareto
distribution, nearly (Pickands 1975, Balkema and de Haan 1974). Fitted to the excesses that were
seen, it says where the level lies that is reached ten or a hundred times less often than the data
can show. Knows nothing of ticks, instruments or thresholds.

References
----------
Siffer, Fouque, Termier, Largouet (2017), Anomaly detection in streams with extreme value theory,
doi:10.1145/3097983.3098144 (SPOT). Grimshaw (1993), Computing maximum likelihood estimates for the
generalized Pareto distribution, doi:10.1080/00401706.1993.10485040.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

LEAST_SHAPE: Final = -0.5
"""Below it maximum likelihood has no usual properties, below -1 no maximum (Smith 1985)."""

LARGEST_SHAPE: Final = 0.5
"""From here on the tail has no variance: what a few excesses say beyond it is mostly chance."""

LEAST_EXCESSES: Final = 10
"""With fewer, the shape is taken to be 0 (exponential): two parameters would fit the noise."""

_GRID: Final = 31
_GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True, slots=True)
class Tail:
    """A generalised Pareto distribution of excesses: P(Y > y) = (1 + shape y / scale)^(-1/shape).

    Parameters
    ----------
    shape
        Above 0 heavy, 0 exponential, below 0 bounded by `-scale / shape`.
    scale
        Positive, in the unit of the excesses.
    """

    shape: float
    scale: float

    def excess(self, share: float) -> float:
        """Excess that is reached with probability `share`, in (0, 1]; 0 for 1 and above."""
        if not share > 0:
            raise ValueError(f"share is {share}; it must be positive")
        depth = max(0.0, -math.log(share))
        # expm1(shape x depth) / shape, which tends to depth as the shape tends to 0
        bent = self.shape * depth
        return self.scale * (depth if bent == 0 else depth * math.expm1(bent) / bent)

    def log_likelihood(self, excesses: Float64) -> float:
        """Log likelihood of excesses; minus infinity where one of them cannot be."""
        relative = excesses / self.scale
        if self.shape == 0:
            return float(-len(excesses) * math.log(self.scale) - relative.sum())
        inside = 1.0 + self.shape * relative
        if not (inside > 0).all():
            return -math.inf
        # log1p keeps its digits where the shape is near 0
        logs = float(np.log1p(self.shape * relative).sum())
        return -len(excesses) * math.log(self.scale) - (1.0 + 1.0 / self.shape) * logs


def fit_tail(excesses: Float64) -> Tail:
    """Fit a tail by maximum likelihood, its shape held within what the data can tell.

    For a given shape the best scale is the only root of a falling function, so it is found without
    a start value and without a special case at shape 0; what remains is a search over one bounded
    number. That never fails to converge, where Grimshaw's search over `shape / scale` has to walk
    around a root at 0.

    Parameters
    ----------
    excesses
        `(n,)` float64, at least 0, n at least 1 and one of them positive; ties and zeros are fine.

    Raises
    ------
    ValueError
        No excess, none above 0, one below 0 or not finite.
    """
    if not len(excesses) or not (np.isfinite(excesses).all() and excesses.min() >= 0.0):
        raise ValueError(f"{len(excesses)} excesses; at least one, finite and not negative")
    mean = float(excesses.mean())
    if not mean > 0:
        raise ValueError(f"all {len(excesses)} excesses are 0; give a level below them")
    if len(excesses) < LEAST_EXCESSES:
        return Tail(0.0, mean)
    y = excesses / mean
    shapes = np.linspace(LEAST_SHAPE, LARGEST_SHAPE, _GRID)
    found = [_profile(y, float(shape)) for shape in shapes]
    best = int(np.argmax(found))
    low, high = (float(shapes[i]) for i in (max(best - 1, 0), min(best + 1, _GRID - 1)))
    shape = _highest(y, low, high)
    # Neither end of the range is reached by the search.
    shape = max((shape, float(shapes[best])), key=lambda s: _profile(y, s))
    return Tail(shape, mean * _scale(y, shape))


def _highest(y: Float64, low: float, high: float) -> float:
    """Shape of the highest profile likelihood in an interval, by golden section."""
    a, b = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_a, at_b = _profile(y, a), _profile(y, b)
    for _ in range(40):
        if at_a >= at_b:
            high, b, at_b = b, a, at_a
            a = high - _GOLDEN * (high - low)
            at_a = _profile(y, a)
        else:
            low, a, at_a = a, b, at_b
            b = low + _GOLDEN * (high - low)
            at_b = _profile(y, b)
    return (low + high) / 2.0


def _profile(y: Float64, shape: float) -> float:
    return Tail(shape, _scale(y, shape)).log_likelihood(y)


def _scale(y: Float64, shape: float) -> float:
    """Scale of the highest likelihood for a shape: (1 + shape) mean(y / (scale + shape y)) = 1.

    The left side falls from more than 1, at the least scale that allows the largest excess, to 0.
    """
    if abs(shape) < 1e-9:
        return float(y.mean())
    top = float(y.max())
    low = max(0.0, -shape * top)
    high = max(1.0, 2.0 * (1.0 + shape) * top)
    for _ in range(100):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if (1.0 + shape) * float(np.mean(y / (middle + shape * y))) > 1.0:
            low = middle
        else:
            high = middle
    return high
