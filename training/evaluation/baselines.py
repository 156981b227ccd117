"""What anybody would try first: six detectors of scikit-learn and NumPy, one of river.

All of them see what stage 1 sees, z-scores clipped at 3, fitted on the same ordinary rows; and each
one's score is made positive by the same rule, so that the threshold machinery of the product, which
multiplies thresholds, can be applied to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from sklearn.ensemble import IsolationForest
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import SGDOneClassSVM

from training.evaluation.half_space import half_space_trees

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
RawScore = Callable[[Float32], Float64]
"""`(n, F)` clipped z-scores to `(n,)` scores of any sign: the higher, the more anomalous."""

Fit = Callable[[Float32, int], RawScore]
"""Fits to `(n, F)` ordinary rows with a seed."""

CLIP: Final = 3.0

MOST_ROWS: Final = 50_000
"""Training rows a baseline is fitted on, spread evenly, where there are more."""

NEIGHBOURS: Final = 5
NEIGHBOUR_ROWS: Final = 4_000
"""Training rows that neighbours are looked for among, spread evenly: every one costs every tick."""

TREES: Final = 100
LANDMARKS: Final = 300
EXPLAINED: Final = 0.9
RIDGE: Final = 1e-3

UPPER: Final = 0.995
STEEPNESS: Final = 4.0


def thinned(rows: npt.NDArray[Any], most: int) -> npt.NDArray[Any]:
    """At most `most` rows, spread evenly."""
    return rows[:: max(1, -(-len(rows) // most))]


def isolation_forest(z: Float32, seed: int) -> RawScore:
    """Fit 100 trees of 256 rows (Liu, Ting, Zhou 2008)."""
    forest = IsolationForest(n_estimators=TREES, random_state=seed).fit(z)

    def score(rows: Float32) -> Float64:
        found: Float64 = -forest.score_samples(rows)
        return found

    return score


def one_class_svm(z: Float32, seed: int) -> RawScore:
    """Fit a linear one-class SVM, nu 0.01, to 300 Nystroem landmarks, RBF kernel, gamma 1/F."""
    kernel = Nystroem(gamma=1.0 / z.shape[1], n_components=LANDMARKS, random_state=seed)
    svm = SGDOneClassSVM(nu=0.01, random_state=seed).fit(kernel.fit_transform(z))

    def score(rows: Float32) -> Float64:
        found: Float64 = -np.asarray(svm.decision_function(kernel.transform(rows)), np.float64)
        return found

    return score


def pca_residual(z: Float32, seed: int) -> RawScore:  # noqa: ARG001 - no chance in it
    """Squared distance from the components that explain 90 % of the variance."""
    centre, values, vectors = _moments(z)
    order = np.argsort(values)[::-1]
    share = np.cumsum(values[order]) / max(float(values.sum()), np.finfo(np.float64).tiny)
    kept = vectors[:, order[: int(np.searchsorted(share, EXPLAINED)) + 1]].astype(np.float32)

    def score(rows: Float32) -> Float64:
        moved = rows - centre
        found: Float64 = np.square(moved - moved @ kept @ kept.T).sum(axis=1).astype(np.float64)
        return found

    return score


def mahalanobis(z: Float32, seed: int) -> RawScore:  # noqa: ARG001
    """Squared Mahalanobis distance of clipped z-scores, a thousandth added to each variance."""
    centre, values, vectors = _moments(z)
    whiten = (vectors / np.sqrt(np.maximum(values, 0.0) + RIDGE)).astype(np.float32)

    def score(rows: Float32) -> Float64:
        found: Float64 = np.square((rows - centre) @ whiten).sum(axis=1).astype(np.float64)
        return found

    return score


def nearest_neighbours(z: Float32, seed: int) -> RawScore:  # noqa: ARG001
    """Distance to the fifth nearest of 4,000 training rows (Ramaswamy, Rastogi, Shim 2000)."""
    known = np.ascontiguousarray(thinned(z, NEIGHBOUR_ROWS))
    squares = np.square(known).sum(axis=1)
    place = min(NEIGHBOURS, len(known)) - 1

    def score(rows: Float32) -> Float64:
        near = squares - 2.0 * (rows @ known.T)
        fifth = np.partition(near, place, axis=1)[:, place] + np.square(rows).sum(axis=1)
        found: Float64 = np.sqrt(np.maximum(fifth, 0.0)).astype(np.float64)
        return found

    return score


def _moments(z: Float32) -> tuple[Float32, Float64, Float64]:
    """Mean, and eigenvalues and eigenvectors of the covariance."""
    centre = z.mean(axis=0, dtype=np.float64)
    covariance = np.cov(z, rowvar=False, dtype=np.float64).reshape(z.shape[1], z.shape[1])
    values, vectors = np.linalg.eigh(covariance)
    return centre.astype(np.float32), values, vectors


FOREST: Final = "IsolationForest"
SVM: Final = "one-class SVM (Nystroem)"
PCA: Final = "PCA residual"
KNN: Final = "5-NN"
MAHALANOBIS: Final = "clipped Mahalanobis"
HALF_SPACE: Final = "HalfSpaceTrees (river)"

BASELINES: Final[dict[str, Fit]] = {
    FOREST: isolation_forest,
    SVM: one_class_svm,
    PCA: pca_residual,
    KNN: nearest_neighbours,
    MAHALANOBIS: mahalanobis,
    HALF_SPACE: half_space_trees,
}


@dataclass(frozen=True, slots=True)
class Positive:
    """A score of any sign and unit made positive, by what it was on the training rows.

    `log(1 + exp(4 (s - median) / (q - median)))`, `q` being the .995 quantile: 0.7 for an ordinary
    row, about 4 for an unusual one, and linear above. It grows with the score, so no rank changes;
    an episode, which lasts while the score is 0.8 times its threshold, ends between what is unusual
    and what is ordinary.
    """

    median: float
    unit: float

    @classmethod
    def of(cls, trained: Float64) -> Positive:
        """Take both from the scores of training rows."""
        median, upper = np.quantile(trained, (0.5, UPPER)).tolist()
        least = 1e-9 * max(abs(median), abs(upper), 1.0)
        return cls(median, max(upper - median, least) / STEEPNESS)

    def __call__(self, raw: Float64) -> Float64:
        """`(n,)` positive scores."""
        found: Float64 = np.logaddexp(0.0, (raw - self.median) / self.unit)
        return np.maximum(found, np.finfo(np.float64).tiny)


def fit_baselines(z: Float32, seed: int, names: tuple[str, ...]) -> dict[str, RawScore]:
    """Fit baselines to clipped z-scores of ordinary rows; their scores come out positive."""
    rows = np.ascontiguousarray(thinned(z, MOST_ROWS))
    fitted: dict[str, RawScore] = {}
    for name in names:
        raw = BASELINES[name](rows, seed)
        fitted[name] = _positive(raw, Positive.of(raw(thinned(rows, MOST_ROWS // 5))))
    return fitted


def _positive(raw: RawScore, positive: Positive) -> RawScore:
    return lambda rows: positive(raw(rows))
