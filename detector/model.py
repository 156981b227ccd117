"""A trained two-stage model as frozen arrays: normaliser, autoencoders, tails, combination.

The definition that the scorer runs, whether it came from an artifact folder or from a fit in this
process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from detector.kernels_scoring import (
    EMPTY,
    GROUPS,
    LEAST_ERROR,
    alone_decades,
    combine,
    fill_table,
    normalise,
    rarity,
    score_decades,
)

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Normaliser:
    """z-score tables: row 0 pooled over all instruments, row `i + 1` for the instrument `keys[i]`.

    Parameters
    ----------
    keys
        `(R-1,)` int64 instrument keys, ascending.
    centre, scale
        `(R, F)` float64.
    clip
        z-scores are cut off at plus and minus this before stage 1.
    """

    keys: Int64
    centre: Float64
    scale: Float64
    clip: float

    def table(self) -> tuple[Int64, npt.NDArray[np.int32]]:
        """Open-addressing table of the keys, at most half full: `(places,)` keys and rows."""
        places = 2
        while places < 2 * (len(self.keys) + 1):
            places *= 2
        table_keys, table_rows = np.zeros(places, np.int64), np.full(places, EMPTY, np.int32)
        fill_table(self.keys, table_keys, table_rows)
        return table_keys, table_rows

    def rows_for(self, keys: Int64) -> npt.NDArray[np.int32]:
        """`(n,)` int32 table rows of instruments, 0 where unknown."""
        if not len(self.keys):
            return np.zeros(len(keys), np.int32)
        place = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[place] == keys, place + 1, 0).astype(np.int32)


class ZScores:
    """A normaliser prepared for the kernels: `arguments` are what they take of it, in order."""

    def __init__(self, tables: Normaliser) -> None:
        arrays = (*tables.table(), tables.centre, 1.0 / tables.scale)
        self._kernel: Any = normalise  # its type knows no starred arguments
        self.arguments: tuple[Any, ...] = tuple(
            read_only(np.ascontiguousarray(array)) for array in arrays
        )

    def __call__(
        self,
        values: npt.NDArray[np.floating[Any]],
        keys: Int64,
        ready: npt.NDArray[np.bool_],
        out: Float32,
        rows: npt.NDArray[np.int32],
    ) -> None:
        """z-scores of `(n, F)` values into `out`, not clipped, see `kernels_scoring.normalise`."""
        self._kernel(
            read_only(values), read_only(keys), read_only(ready), *self.arguments, out, rows
        )


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """View that Numba gives one type, whoever owns the array; else it compiles a second kernel."""
    view = array.view()
    view.flags.writeable = False
    return view


@dataclass(frozen=True, slots=True, eq=False)
class Tails:
    """Where the tails of every feature and of its residual begin, and how long a decade of them is.

    Of the training rows, a twentieth lies beyond the start less one decade on either side (the .95
    quantile) and a two-hundredth beyond the start (the .995 quantile). Clipping hides from the
    networks how far out a value is; its distance from the start, in decades, says it.

    Parameters
    ----------
    groups
        `(F,)` int8, 0 or 1: the tails of each group are summed apart.
    value_starts, value_decades, residual_starts, residual_decades
        `(R, 2, F)` float32, row-aligned with the normaliser, upper side first: of z-scores, and of
        the members' mean residual of unclipped z-scores in training standard deviations.
    """

    groups: npt.NDArray[np.int8]
    value_starts: Float32
    value_decades: Float32
    residual_starts: Float32
    residual_decades: Float32

    def table(self) -> Float32:
        """`(R, 8, F)` float32: start and inverse decade of each side, of z and then of u."""
        parts = []
        for starts, decades in (
            (self.value_starts, self.value_decades),
            (self.residual_starts, self.residual_decades),
        ):
            inverse = (1.0 / decades.astype(np.float64)).astype(np.float32)
            parts += [starts[:, 0], inverse[:, 0], starts[:, 1], inverse[:, 1]]
        return np.stack(parts, axis=1)

    def memberships(self) -> Float32:
        """Return `(GROUPS, F)` float32: 1 where a feature belongs to the group, else 0."""
        member: Float32 = (self.groups == np.arange(GROUPS)[:, None]).astype(np.float32)
        return member

    def decades(self, rows: npt.NDArray[np.int32], z: Float32, u: Float32) -> Float64:
        """`(m, F)` float64 `ln(1 + d(z) + d(u))` of rows of z-scores and unclipped residuals."""
        beyond = _decades_beyond(z, self.value_starts[rows], self.value_decades[rows])
        beyond += _decades_beyond(u, self.residual_starts[rows], self.residual_decades[rows])
        return np.log1p(beyond)

    def parts(self, decades: Float64) -> Float64:
        """`(m, F)` float64: what each feature adds to T, from its `decades`."""
        member = self.memberships()
        # Row by row: what a matrix product adds up in which order depends on the number of rows.
        sums: Float64 = np.stack([(decades * group).sum(axis=1) for group in member], axis=1)
        rate = np.divide(1.0, np.sqrt(sums), out=np.zeros_like(sums), where=sums > 0)
        found: Float64 = decades * (rate @ member) * self.share
        return found

    @property
    def share(self) -> float:
        """One over the square root of the number of groups that have features."""
        return float(1.0 / np.sqrt(len(np.unique(self.groups))))


def _decades_beyond(value: Float32, starts: Float32, decades: Float32) -> Float64:
    """How many decades `(m, F)` values lie beyond their `(m, 2, F)` tails' starts, at least 0."""
    wide = decades.astype(np.float64)
    up, down = (value - starts[:, 0]) / wide[:, 0], (starts[:, 1] - value) / wide[:, 1]
    out: Float64 = np.maximum(np.maximum(up, down), 0.0)
    return out


CombinationName: TypeAlias = Literal["tails", "sum"]

DECADE: Final = 2.3
"""What an error's logarithm counts at the training rows' .995 quantile: nearly ln 10."""


@dataclass(frozen=True, slots=True)
class Combination:
    """How both errors and the tails become one number, raw.

    `tails`: with `dec(e) = (ln e - centre) * gain`, 0 at the training rows' median and `DECADE` at
    their .995 quantile, `raw = stage1_weight dec(e1) + stage2_weight dec(e2) + tail_weight T`. The
    score is how rare that is, see `Rarity`.

    `sum`: `stage1_weight e1 + stage2_weight e2`, which is the score; with weights of 1 the
    reference. The tails are no part of it, only of the severity.

    Parameters
    ----------
    name
        Which of both.
    stage1_weight, stage2_weight, tail_weight
        As above.
    cap
        Most that one squared residual of stage 1 counts in its error, so that a feature that hardly
        ever moved in training does not decide it alone.
    centre1, gain1, centre2, gain2
        Of the logarithms of both errors.
    """

    name: CombinationName = "sum"
    stage1_weight: float = 1.0
    stage2_weight: float = 1.0
    tail_weight: float = 0.0
    cap: float = np.inf
    centre1: float = 0.0
    gain1: float = 1.0
    centre2: float = 0.0
    gain2: float = 1.0

    def __call__(self, stage1: Float64, stage2: Float64, tail: Float64) -> Float64:
        """`(n,)` float64 raw."""
        if self.name == "sum":
            return self.stage1_weight * stage1 + self.stage2_weight * stage2
        facts = (
            self.centre1, self.gain1, self.centre2, self.gain2, self.stage1_weight,
            self.stage2_weight, self.tail_weight,
        )  # fmt: skip
        raw = np.empty(len(stage1))
        combine(stage1, stage2, tail, facts, raw)
        return raw

    def without_stage2(self) -> Combination:
        """Return the same with stage 2 at its median, or left out of the sum."""
        return replace(self, stage2_weight=0.0)

    def body(self, stage1: Float64) -> Float64:
        """`(n,)` float64: what stage 1's error adds to raw, at least next to nothing."""
        logs = np.log(stage1 + LEAST_ERROR)
        return np.maximum((logs - self.centre1) * self.gain1 * self.stage1_weight, 1e-9)

    def severity(self, score: float, threshold: float, tail: float) -> float:
        """`score / threshold`; under `sum` times `1 + T`, because clipped errors stop growing."""
        relative = score / threshold
        return relative * (1.0 + tail) if self.name == "sum" else relative


KNOT_DECADES: Final = (-0.5, 0.301, 1.301, 2.301, 3.301)
"""Decades of the training rows' least value and of their .5, .95, .995 and .9995 quantiles. The
greatest of n rows has log10 n."""

KNOTS: Final = len(KNOT_DECADES) + 1

SCORE_SCALE: Final = 4.0
"""Decades of rarity in which a score grows tenfold: one that is e times rarer raises the logarithm
of the score by a quarter, which is about the step of thresholds that follow their alarms."""

GATE: Final = 3.3
"""Decades up to which the rarest feature by itself adds nothing to the score."""


@dataclass(frozen=True, slots=True, eq=False)
class Rarity:
    """How rare a row is among the training rows, in decades: what the score of `tails` says.

    Two ways to be rare, joined by the greater: the raw score, in which many features weigh in, and
    the rarest of the lone features, each judged by itself. Raw scores and single features have no
    common unit; that one training row in so many was as high, they share.

    Parameters
    ----------
    lone
        `(K,)` int64 columns of the lone features.
    knots, steps
        `(R, K + 2, 2, KNOTS)` and `(R, K + 2)` float64, row-aligned with the normaliser, see
        `kernels_scoring.rarity`: of raw, of the greatest rarity of the lone features, and of each
        of them, in its own unit.
    """

    lone: Int64
    knots: Float64
    steps: Float64

    def alone(
        self,
        values: npt.NDArray[np.floating[Any]],
        rows: npt.NDArray[np.int32],
        ready: npt.NDArray[np.bool_],
    ) -> Float64:
        """`(n,)` float64 decades of the rarest lone feature; 0 up to `GATE`."""
        alone = np.empty(len(values))
        alone_decades(values, rows, ready, self.lone, self.knots, self.steps, GATE, alone)
        return alone

    def score(self, raw: Float64, alone: Float64, rows: npt.NDArray[np.int32]) -> Float64:
        """`(n,)` float64 `10^(D / SCORE_SCALE)`, positive."""
        score = np.empty(len(raw))
        score_decades(raw, alone, rows, self.knots, self.steps, SCORE_SCALE, score)
        return score

    def lonely(self, values: Float32, rows: npt.NDArray[np.int32]) -> Int64:
        """`(m,)` int64: the column of each row's rarest lone feature, where there are any."""
        found = np.empty((len(values), len(self.lone)))
        for i, row in enumerate(rows):
            for k, column in enumerate(self.lone):
                found[i, k] = rarity(
                    float(values[i, column]), self.knots[row, k + 2], self.steps[row, k + 2]
                )
        lonely: Int64 = self.lone[np.argmax(found, axis=1)]
        return lonely


@dataclass(frozen=True, slots=True, eq=False)
class TwoStageModel:
    """Normaliser, weights (names as in `network.Sizes.shapes`), tails, combination, rarity.

    Without `rarity` the score is raw, as `sum` wants it.
    """

    normaliser: Normaliser
    weights: Mapping[str, npt.NDArray[Any]]
    tails: Tails
    combination: Combination
    rarity: Rarity | None = None

    @property
    def latents(self) -> int:
        """Units of all members' latents together."""
        return int(self.weights["stage2.centre"].size)

    def alone(
        self,
        values: npt.NDArray[np.floating[Any]],
        rows: npt.NDArray[np.int32],
        ready: npt.NDArray[np.bool_],
    ) -> Float64:
        """`(n,)` float64, see `Rarity.alone`; 0 for a model without."""
        if self.rarity is None:
            return np.zeros(len(values))
        return self.rarity.alone(values, rows, ready)

    def score(
        self,
        stage1: Float64,
        stage2: Float64,
        tail: Float64,
        alone: Float64,
        rows: npt.NDArray[np.int32],
        combination: Combination | None = None,
    ) -> Float64:
        """`(n,)` float64 scores, by the model's combination or another one."""
        raw = (combination or self.combination)(stage1, stage2, tail)
        return raw if self.rarity is None else self.rarity.score(raw, alone, rows)
