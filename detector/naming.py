"""What kind of anomaly an episode is: a softmax head on the latents, and "unknown" where unsure.

`Head` is the frozen definition that the model folder carries. Every tick that raises an alarm is
evidence: probabilities of the classes, and how far its latents lie from those the head was trained
on. An episode is named by the mean over its alarms so far, so that its opening is named by the
first one and its close by all. The sums are the episode's state (`events.EpisodeBook`). Knows no
file and no Kafka.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from detector.kernels_naming import assemble, weigh
from detector.model import read_only
from detector.scripts import AnomalyKind

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

UNKNOWN: Final = "unknown"
"""Published where no trained type fits."""

ORDINARY: Final = "ordinary"
"""Class of false alarms; never published: what looks like one is unknown."""

TYPES: Final = (*(kind.value for kind in AnomalyKind), UNKNOWN)
"""Every type that may be published."""

MEASURES: Final = 3
"""Inputs beside the latents: what each error and what lies beyond the networks' sight says."""


@dataclass(frozen=True, slots=True)
class Name:
    """What an episode is called.

    Parameters
    ----------
    type
        One of `TYPES`.
    probability
        Of the likeliest type, whether the head is sure of it or not.
    likeliest
        The trained type that it looks most like.
    """

    type: str
    probability: float
    likeliest: str


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A trained head.

    Parameters
    ----------
    classes
        Values of `AnomalyKind`, and `ORDINARY` where false alarms were there to be trained on.
    clip
        Most that a standardised input counts.
    least_probability
        A type less probable than this is unknown.
    most_distance
        A type whose training ticks are farther away than this is unknown.
    centre, scale, weights, bias, whitener, means
        As in `kernels_naming.weigh`.
    """

    classes: tuple[str, ...]
    clip: float
    least_probability: float
    most_distance: float
    centre: Float64
    scale: Float64
    weights: Float64
    bias: Float64
    whitener: Float64
    means: Float64

    @property
    def latents(self) -> int:
        """Latents it takes."""
        return len(self.centre) - MEASURES

    @property
    def width(self) -> int:
        """Numbers of a tick's evidence, and of an episode's sum."""
        return 2 * len(self.classes)

    def evidence(self, inputs: Float64) -> Float64:
        """`(m, width)`: what each of `(m, I)` rows of `head_inputs` says."""
        out = np.empty((len(inputs), self.width))
        weigh(
            inputs,
            read_only(self.centre),
            read_only(self.scale),
            self.clip,
            read_only(self.weights),
            read_only(self.bias),
            read_only(self.whitener),
            read_only(self.means),
            out,
        )
        return out

    def warm(self) -> None:
        """Compile its kernels, or load them from Numba's cache."""
        latents = np.zeros((1, self.latents), np.float32)
        self.evidence(head_inputs(latents, np.ones((MEASURES, 1))))

    def name(self, total: Float64, ticks: int) -> Name:
        """Name an episode by the `(width,)` sum of the evidence of so many ticks."""
        mean: list[float] = (total / ticks).tolist()
        n = len(self.classes)
        kinds = [c for c in range(n) if self.classes[c] != ORDINARY]
        best = max(kinds, key=lambda c: mean[c])
        probability, distance = mean[best], mean[n + best]
        sure = (
            probability >= self.least_probability
            and distance <= self.most_distance
            and probability >= max(mean[:n])
        )
        likeliest = self.classes[best]
        return Name(likeliest if sure else UNKNOWN, min(probability, 1.0), likeliest)


def head_inputs(latents: Float32, measures: Float64) -> Float64:
    """Return what a head sees of `m` ticks: `(m, L + MEASURES)` float64.

    Parameters
    ----------
    latents
        `(m, L)` standardised latents of stage 1.
    measures
        `(MEASURES, m)`: both stages' errors, and what the networks do not see of the features
        because it is clipped. It takes their logarithms: they are positive, their tails are long.
    """
    out = np.empty((len(latents), latents.shape[1] + MEASURES))
    assemble(latents, measures, out)
    return out
