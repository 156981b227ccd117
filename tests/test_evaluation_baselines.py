"""The baselines: what each is, positive scores that keep the order, river's trees as arrays."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest
from sklearn import decomposition
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from detector.errors import RefusedError
from tests.conftest import leave_out
from training.evaluation import half_space
from training.evaluation.baselines import (
    BASELINES,
    EXPLAINED,
    HALF_SPACE,
    KNN,
    MAHALANOBIS,
    MOST_ROWS,
    NEIGHBOURS,
    PCA,
    RIDGE,
    Positive,
    fit_baselines,
    thinned,
)


def rows(n: int = 1_500, seed: int = 0) -> np.ndarray:
    """Correlated rows, clipped as stage 1 sees them."""
    mix = np.random.default_rng(7).normal(size=(12, 12)) / 3
    made = np.random.default_rng(seed).normal(size=(n, 12)) @ mix
    return np.clip(made, -3, 3).astype(np.float32)


def available() -> list[str]:
    """Baselines that run here."""
    return [name for name in BASELINES if name != HALF_SPACE or half_space.river_available()]


@pytest.mark.parametrize("name", available())
def test_every_baseline_tells_far_rows_from_ordinary_ones(name: str) -> None:
    """And gives the same scores for the same seed, row by row, however they are cut."""
    score = fit_baselines(rows(), 3, (name,))[name]
    ordinary, odd = rows(300, 1), np.where(rows(300, 2) > 0, 3, -3).astype(np.float32)
    found = score(np.concatenate([ordinary, odd]))
    assert found.dtype == np.float64
    assert (found > 0).all()
    assert np.median(found[300:]) > np.quantile(found[:300], 0.99)
    again = fit_baselines(rows(), 3, (name,))[name]
    assert np.allclose(np.concatenate([again(ordinary), again(odd)]), found, rtol=1e-4)


def test_pca_is_scikit_learns() -> None:
    """Squared distance from the plane of 90 % of the variance."""
    pca = decomposition.PCA(EXPLAINED).fit(rows())
    new = rows(200, 4)
    wanted = np.square(new - pca.inverse_transform(pca.transform(new))).sum(axis=1)
    assert BASELINES[PCA](rows(), 0)(new) == pytest.approx(wanted, rel=1e-3)


def test_mahalanobis_is_scikit_learns() -> None:
    """With a thousandth added to each variance along the axes."""
    covariance = EmpiricalCovariance().fit(rows())
    new = rows(200, 5) - covariance.location_
    inverse = np.linalg.inv(covariance.covariance_ + RIDGE * np.eye(12))
    wanted = np.einsum("ij,jk,ik->i", new, inverse, new)
    assert BASELINES[MAHALANOBIS](rows(), 0)(rows(200, 5)) == pytest.approx(wanted, rel=1e-2)


def test_neighbours_are_scikit_learns() -> None:
    """Distance to the fifth."""
    near = NearestNeighbors(n_neighbors=NEIGHBOURS).fit(rows())
    new = rows(200, 6)
    wanted = near.kneighbors(new)[0][:, -1]
    assert BASELINES[KNN](rows(), 0)(new) == pytest.approx(wanted, rel=1e-3)


def test_positive_keeps_the_order() -> None:
    """Whatever the sign and unit; an ordinary row is below 1, the .995 quantile near 4."""
    trained = np.random.default_rng(0).normal(-50, 3, 10_000)
    positive = Positive.of(trained)
    raw = np.sort(np.append(trained, [-500.0, 1e6]))
    found = positive(raw)
    assert (found > 0).all()
    assert (np.diff(found) >= 0).all()
    assert float(positive(np.median(trained, keepdims=True))[0]) == pytest.approx(np.log(2))
    assert float(positive(np.array([np.quantile(trained, 0.995)]))[0]) == pytest.approx(4, abs=0.1)
    assert np.isfinite(Positive.of(np.ones(10))(np.array([1.0, 2.0]))).all()


def test_thinned_rows_are_spread_evenly() -> None:
    """At most so many, from one end to the other."""
    assert thinned(np.arange(10), 20).tolist() == list(range(10))
    some = thinned(np.arange(MOST_ROWS * 3 + 1), MOST_ROWS)
    assert len(some) <= MOST_ROWS
    assert some[-1] > 2.9 * MOST_ROWS


def test_half_space_scores_are_rivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trees as arrays give what river's own walk gives, to the last digits."""
    if not half_space.river_available():
        leave_out("river is not installed (the extra `evaluate` has it)")
    from river.anomaly import HalfSpaceTrees  # noqa: PLC0415

    made: list[Any] = []

    class Kept(HalfSpaceTrees):  # type: ignore[misc]
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
            made.append(self)

    monkeypatch.setattr("river.anomaly.HalfSpaceTrees", Kept)
    new = np.concatenate([rows(60, 8), np.full((2, 12), 3, np.float32)])
    found = half_space.half_space_trees(rows(700), 5)(new)
    unit = (new.astype(np.float64) + 3) / 6
    wanted = [made[0].score_one(dict(enumerate(row))) for row in unit.tolist()]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert len(set(wanted)) > 20


def test_without_river_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the extra and the option."""
    real = builtins.__import__

    def refusing(name: str, *args: Any, **more: Any) -> Any:
        if name.startswith("river"):
            raise ImportError(name)
        return real(name, *args, **more)

    monkeypatch.setattr(builtins, "__import__", refusing)
    assert not half_space.river_available()
    with pytest.raises(RefusedError, match=r"tapewatch\[evaluate\].*--without-river"):
        half_space.half_space_trees(rows(), 0)
