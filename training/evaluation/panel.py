"""Everything that is compared, fitted to the same rows and scored on the same rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from training.evaluation.baselines import (
    BASELINES,
    KNN,
    MAHALANOBIS,
    MOST_ROWS,
    PCA,
    RawScore,
    fit_baselines,
    thinned,
)
from training.evaluation.operating import Calibration, Judged, Trial, operate
from training.evaluation.ranking import DELAYED_EVENTS, ranking
from training.evaluation.stream import Bool, Float64, Stream, followed
from training.evaluation.two_stage import RARITIES, VARIANTS, TwoStage

Int32 = npt.NDArray[np.int32]
Tell = Callable[[int], None]

WITHOUT_CHANCE: Final = frozenset({PCA, KNN, MAHALANOBIS})
"""Baselines that no seed changes: scored once where the rows are the same."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Scores of some rows of a stream by every detector; NaN for rows that were not scored.

    Parameters
    ----------
    by
        `(n,)` float64 by name of the detector.
    stage1, stage2
        `(n,)` float64 errors of the two-stage model.
    rows
        `(n,)` int32 rows in the model's tables.
    """

    by: dict[str, Float64]
    stage1: Float64
    stage2: Float64
    rows: Int32


@dataclass(frozen=True, slots=True, eq=False)
class Panel:
    """A two-stage model and the baselines beside it."""

    model: TwoStage
    baselines: Mapping[str, RawScore]

    @classmethod
    def fit(
        cls, model: TwoStage, stream: Stream, train: Bool, seed: int, names: Sequence[str]
    ) -> Panel:
        """Fit baselines to rows of a stream, as the model normalises them.

        Parameters
        ----------
        model
            Fitted already.
        train
            `(n,)` bool: the rows; at most `baselines.MOST_ROWS` of them, spread evenly, are used.
        seed
            Of the baselines that have one.
        names
            Of `baselines.BASELINES`.
        """
        at = thinned(np.flatnonzero(train), MOST_ROWS)
        values = np.ascontiguousarray(stream.store.values[at])
        z = model.z_scores(values, stream.keys[at])
        return cls(model, fit_baselines(z, seed, tuple(names)))

    def score(self, stream: Stream, chosen: Bool, tell: Tell | None = None) -> Scores:
        """Score the chosen rows by every detector, a chunk at a time."""
        n = len(stream)
        by = {name: np.full(n, np.nan) for name in (*VARIANTS, *self.baselines)}
        stage1, stage2 = np.full(n, np.nan), np.full(n, np.nan)
        for at, values, keys in stream.chunks(chosen):
            measured = self.model.measure(values, keys)
            stage1[at], stage2[at] = measured.stage1, measured.stage2
            for name, found in measured.scores.items():
                by[name][at] = found
            if self.baselines:
                z = self.model.z_scores(values, keys)
                for name, score in self.baselines.items():
                    by[name][at] = score(z)
            if tell is not None:
                tell(len(at))
        return Scores(by, stage1, stage2, self.model.rows_for(stream.keys))


def ordered(names: Sequence[str]) -> list[str]:
    """Detectors in the order of every table."""
    return [name for name in (*VARIANTS, *BASELINES) if name in names]


def needed(stream: Stream, test: Bool) -> Bool:
    """Rows that must be scored for causal and delayed figures of the rows to judge."""
    return followed(test, stream.keys, DELAYED_EVENTS)


def rankings(stream: Stream, scores: Scores, test: Bool) -> dict[str, dict[str, Any]]:
    """Causal and delayed figures of every detector.

    The model's scores grow tenfold every few decades of rarity: the mean that is delayed is that
    of the decades, or one tick would decide it.
    """
    return {
        name: ranking(
            np.log10(scores.by[name]) if name in RARITIES else scores.by[name],
            stream.keys,
            stream.kind,
            test,
        )
        for name in ordered(list(scores.by))
    }


@dataclass(frozen=True, slots=True, eq=False)
class Operated:
    """Every detector at every operating point, and the rows they were judged on."""

    trial: Trial
    by: dict[str, dict[str, Judged | str]]

    def facts(self, name: str) -> dict[str, Any]:
        """Episode figures of a detector by operating point, as JSON types; or why there are none.

        Texts are under `refused`.
        """
        points = self.by[name]
        return {
            **{
                point: judged.facts
                for point, judged in points.items()
                if isinstance(judged, Judged)
            },
            "refused": {
                point: judged for point, judged in points.items() if isinstance(judged, str)
            },
        }


def operations(
    held_out: Stream,
    held_out_scores: Scores,
    calibration: Bool,
    stream: Stream,
    scores: Scores,
    test: Bool,
    table_rows: int,
) -> Operated:
    """Judge every detector's episodes at thresholds from its own calibration scores.

    Parameters
    ----------
    held_out, held_out_scores, calibration
        The stream with the calibration part, its scores, and the part.
    stream, scores, test
        The same of the rows to judge.
    table_rows
        Rows of the model's tables.
    """
    source = Calibration(
        held_out.keys[calibration],
        held_out.ts[calibration],
        held_out_scores.rows[calibration],
        table_rows,
    )
    trial = Trial.of(stream, test, scores.rows[test])
    return Operated(
        trial,
        {
            name: operate(
                scores.by[name][test], held_out_scores.by[name][calibration], source, trial
            )
            for name in ordered(list(scores.by))
        },
    )
