"""The estimator: scikit-learn's own checks, repeatability, and what its scores promise."""

from __future__ import annotations

import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.utils.estimator_checks import check_estimator

from detector.scorer import TwoStageScorer
from training import TwoStageDetector
from training.datasets import Rows


def blob(n: int = 400, d: int = 6, seed: int = 0) -> np.ndarray:
    """Return correlated normal rows: two factors and some noise."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n, 2))
    return factors @ rng.normal(size=(2, d)) + 0.2 * rng.normal(size=(n, d))


@pytest.mark.timeout(900)
def test_scikit_learn_checks_pass_without_expected_failures() -> None:
    """All of scikit-learn's estimator checks pass; only those skip that need absent libraries."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkipTestWarning)
        results = check_estimator(TwoStageDetector(), on_fail="raise")
    assert len(results) > 40
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    assert skipped <= {"check_array_api_input", "check_classifier_data_not_an_array"}
    assert {r["status"] for r in results} <= {"passed", "skipped"}


@pytest.fixture(scope="module")
def detector() -> TwoStageDetector:
    """Return a detector fitted to the blob."""
    return TwoStageDetector(random_state=0).fit(blob())


def test_outliers_score_lower_than_any_training_row(detector: TwoStageDetector) -> None:
    """A row off the two factors' plane by far is an outlier, the training rows mostly are not."""
    X = blob()
    odd = X[:20] + 8.0 * np.random.default_rng(1).choice([-1, 1], (20, X.shape[1]))
    assert (detector.predict(odd) == -1).mean() > 0.9
    assert detector.score_samples(odd).mean() < np.quantile(detector.score_samples(X), 0.01)
    assert (detector.predict(X) == -1).mean() == pytest.approx(0.01, abs=0.003)


def test_same_random_state_gives_the_same_bits(detector: TwoStageDetector) -> None:
    """A clone fitted to the same rows scores every row alike; another state does not."""
    X = blob()
    again = clone(detector).fit(X)
    other = clone(detector).set_params(random_state=1).fit(X)
    np.testing.assert_array_equal(again.score_samples(X), detector.score_samples(X))
    assert not np.array_equal(other.score_samples(X), detector.score_samples(X))


def test_scores_are_those_of_the_detector_scorer(detector: TwoStageDetector) -> None:
    """The estimator and the daemon's scorer are one computation: equal to the bit."""
    X = blob(seed=5)
    n = len(X)
    errors, tail, rows = TwoStageScorer(detector.model_).measure(
        X, np.zeros(n, np.int64), np.ones(n, np.bool_)
    )
    expected = -detector.model_.score(errors[0], errors[1], tail, np.zeros(n), rows)
    np.testing.assert_array_equal(detector.score_samples(X), expected)


def test_both_combinations_are_of_the_same_networks() -> None:
    """`sum` adds the same two errors, up to the cap, that `tails` takes the logarithms of."""
    X = blob(200)
    tails = TwoStageDetector(random_state=0, cap=1e9).fit(X).model_
    plain = TwoStageDetector(random_state=0, combination="sum").fit(X).model_
    for name, array in tails.weights.items():
        np.testing.assert_array_equal(array, plain.weights[name])
    assert (tails.combination.name, plain.combination.name) == ("tails", "sum")
    ready, keys = np.ones(200, np.bool_), np.zeros(200, np.int64)
    ours, theirs = (TwoStageScorer(m).measure(X, keys, ready)[0] for m in (tails, plain))
    np.testing.assert_array_equal(ours, theirs)


def test_latents_have_the_width_asked_for_and_names(detector: TwoStageDetector) -> None:
    """Every member's latent is standardised on training rows, one named column a unit."""
    latent = detector.transform(blob())
    assert latent.shape == (400, 24)
    assert latent.dtype == np.float64
    np.testing.assert_allclose(latent.std(axis=0), 1.0, rtol=1e-3)
    names = detector.get_feature_names_out().tolist()
    assert names == [f"twostagedetector{i}" for i in range(24)]
    wide = TwoStageDetector(latent=5, members=2, random_state=0, epochs=1).fit(blob())
    assert wide.transform(blob(3)).shape == (3, 10)


@pytest.mark.parametrize(
    ("columns", "hidden", "latent", "clip", "whitened"),
    [(1, 128, 8, 10, True), (12, 128, 12, 10, True), (48, 128, 24, 10, True),
     (49, 22, 10, 3, False), (129, 22, 10, 3, False)],
)  # fmt: skip
def test_defaults_depend_on_the_number_of_columns(
    columns: int, hidden: int, latent: int, clip: float, whitened: bool
) -> None:
    """Narrow tables get wider networks and whitening; what is given is taken."""
    recipe = TwoStageDetector().recipe(columns, 1000)
    found = (recipe.hidden, recipe.latent, recipe.clip, recipe.whitened)
    assert found == (hidden, latent, clip, whitened)
    given = TwoStageDetector(hidden=5, latent=3, clip=2.0, whitened=not whitened)
    recipe = given.recipe(columns, 1000)
    assert (recipe.hidden, recipe.latent, recipe.clip) == (5, 3, 2.0)
    assert recipe.whitened is not whitened


def test_latent_is_that_of_the_detector_scorer(detector: TwoStageDetector) -> None:
    """`transform` gives what a daemon with this model publishes, whatever else is in the matrix."""
    X = blob(50, seed=9)
    latent = detector.transform(X)
    found = np.empty(latent.shape, np.float32)
    scorer = TwoStageScorer(detector.model_)
    scorer.measure(X, np.zeros(50, np.int64), np.ones(50, np.bool_), found)
    np.testing.assert_array_equal(latent, found)
    np.testing.assert_array_equal(detector.transform(X[7:9]), latent[7:9])
    fitted = detector.transform(blob())
    np.testing.assert_allclose(fitted.mean(axis=0), 0, atol=0.2)
    np.testing.assert_allclose(fitted.std(axis=0), 1, atol=0.2)


@pytest.mark.parametrize(("n", "d"), [(2, 1), (3, 4), (30, 1), (12, 40)])
def test_small_matrices_of_any_shape_work(n: int, d: int) -> None:
    """Two rows, one column, more columns than rows: finite scores of the right shape."""
    X = np.random.default_rng(0).normal(size=(n, d))
    detector = TwoStageDetector(random_state=0, epochs=1).fit(X)
    assert np.isfinite(detector.score_samples(X)).all()
    assert detector.predict(X).shape == (n,)


def test_values_whose_squares_overflow_are_refused() -> None:
    """A detector fitted to them would be blind; the message names what is allowed."""
    with pytest.raises(
        ValueError, match=r"X holds a value of size .*e\+2.*; allowed is -.*for 100"
    ):
        TwoStageDetector(epochs=1).fit(blob(100) * 1e200)


def test_constant_columns_and_huge_values_give_finite_scores() -> None:
    """Columns that never change, and values near the end of float64, lead to no NaN."""
    X = blob(100)
    X[:, 0] = 3.0
    X[:, 1] *= 1e150
    detector = TwoStageDetector(random_state=0, epochs=1).fit(X)
    odd = X.copy()
    odd[:, 0] = 1e300
    assert np.isfinite(detector.score_samples(X)).all()
    assert (detector.score_samples(odd) < detector.score_samples(X)).all()


def test_unpickled_detector_scores_the_same(detector: TwoStageDetector) -> None:
    """What is pickled is arrays; the compiled function is made again."""
    X = blob(50)
    again = pickle.loads(pickle.dumps(detector))  # noqa: S301
    np.testing.assert_array_equal(again.score_samples(X), detector.score_samples(X))


def test_threads_may_share_a_detector(detector: TwoStageDetector) -> None:
    """Scores from four threads at once equal those from one: buffers are not mixed up."""
    parts = [blob(64, seed=i) for i in range(40)]
    expected = [detector.score_samples(part) for part in parts]
    with ThreadPoolExecutor(4) as pool:
        for found, scores in zip(pool.map(detector.score_samples, parts), expected, strict=True):
            np.testing.assert_array_equal(found, scores)


def test_verbose_prints_every_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    """With `verbose` each epoch of each stage is a line; without, nothing is printed."""
    TwoStageDetector(random_state=0, epochs=1, verbose=True).fit(blob(50))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("stage 1, epoch 1/")
    assert any(line.startswith("stage 2, epoch 1/") for line in lines)
    TwoStageDetector(random_state=0, epochs=1).fit(blob(50))
    assert capsys.readouterr().out == ""


def test_unfitted_rows_only_detector_says_it_has_no_offset() -> None:
    """`fit_rows` alone gives scores but no decision: its thresholds come from later rows."""
    X = blob(100)
    detector = TwoStageDetector(random_state=0, epochs=1)
    detector.fit_rows(Rows.whole(X, np.zeros(100, np.int64)), None)
    assert detector.score_samples(X).shape == (100,)
    with pytest.raises(NotFittedError):
        detector.predict(X)
