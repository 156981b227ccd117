"""The generalised Pareto tail: its quantiles, its fit against SciPy's, and hard cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import genpareto

from detector.tails import LARGEST_SHAPE, LEAST_EXCESSES, LEAST_SHAPE, Tail, fit_tail

SHAPES = (-0.4, -0.2, -0.01, 0.0, 1e-9, 0.01, 0.2, 0.45)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [1.0, 0.5, 0.01, 1e-6])
def test_excess_is_the_quantile(shape: float, share: float) -> None:
    """`excess` inverts the survival function, and is SciPy's, near shape 0 too."""
    want = genpareto.isf(share, shape, scale=2.5)
    assert Tail(shape, 2.5).excess(share) == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_nothing_is_asked_of_a_share_of_nothing() -> None:
    """A share of 0 has no finite excess; above 1 there is none."""
    assert Tail(0.1, 1.0).excess(3.0) == 0.0
    with pytest.raises(ValueError, match="must be positive"):
        Tail(0.1, 1.0).excess(0.0)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [12, 60, 1_000])
def test_likelihood_is_that_of_scipy_or_better(shape: float, n: int) -> None:
    """On many seeds, with ties in some, SciPy finds no better tail within the range of shapes."""
    rng = np.random.default_rng(n)
    for seed in range(6):
        y = genpareto.rvs(shape, scale=2.5, size=n, random_state=rng)
        if seed % 3 == 2:
            y = np.round(y, 1)
        mine = fit_tail(y)
        found, _, scale = genpareto.fit(y, floc=0)
        if LEAST_SHAPE <= found <= LARGEST_SHAPE:
            theirs = genpareto.logpdf(y, found, scale=scale).sum()
            assert mine.log_likelihood(y) >= theirs - 1e-6
        assert mine.log_likelihood(y) == pytest.approx(
            genpareto.logpdf(y, mine.shape, scale=mine.scale).sum(), rel=1e-6
        )


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.3])
def test_fit_recovers_the_tail(shape: float) -> None:
    """From 20,000 excesses, shape and scale come back within a few standard errors."""
    y = genpareto.rvs(shape, scale=0.01, size=20_000, random_state=np.random.default_rng(1))
    found = fit_tail(y)
    assert found.shape == pytest.approx(shape, abs=0.03)
    assert found.scale == pytest.approx(0.01, rel=0.04)


@settings(max_examples=100)
@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=40).filter(lambda y: max(y) > 1e-6),
    st.floats(1e-3, 1e3),
)
def test_any_excesses_give_a_usable_tail(excesses: list[float], unit: float) -> None:
    """Ties, zeros, giants: a finite tail within its range, and the unit does not matter."""
    y = np.array(excesses)
    found, scaled = fit_tail(y), fit_tail(y * unit)
    assert LEAST_SHAPE <= found.shape <= LARGEST_SHAPE
    assert 0 < found.scale < math.inf
    assert math.isfinite(found.log_likelihood(y))
    assert scaled.log_likelihood(y * unit) + len(y) * math.log(unit) == pytest.approx(
        found.log_likelihood(y), rel=1e-4, abs=1e-4
    )


def test_a_few_excesses_are_exponential() -> None:
    """Too few for a shape: the exponential tail of their mean."""
    y = np.arange(1.0, LEAST_EXCESSES)
    assert fit_tail(y) == Tail(0.0, float(y.mean()))


@pytest.mark.parametrize(
    ("excesses", "message"),
    [([], "0 excesses"), ([0.0, 0.0], "are 0"), ([1.0, -1.0], "not negative"),
     ([1.0, math.nan], "finite"), ([1.0, math.inf], "finite")],
)  # fmt: skip
def test_what_is_no_excess_is_refused(excesses: list[float], message: str) -> None:
    """Nothing, only zeros, negative or not finite: no tail."""
    with pytest.raises(ValueError, match=message):
        fit_tail(np.array(excesses))


def test_likelihood_beyond_a_bounded_tail_is_nil() -> None:
    """An excess beyond the end of a tail of negative shape cannot be."""
    assert Tail(-0.5, 1.0).log_likelihood(np.array([2.1])) == -math.inf
    assert math.isfinite(Tail(-0.5, 1.0).log_likelihood(np.array([1.9])))
