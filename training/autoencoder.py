"""The two-stage autoencoder as a scikit-learn outlier detector on any (n, d) matrix."""

from __future__ import annotations

from functools import lru_cache
from numbers import Integral, Real
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    OutlierMixin,
    TransformerMixin,
    _fit_context,
)
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from detector.artifact import Variational
from detector.features import FeatureSpec
from detector.model import CombinationName, TwoStageModel
from detector.scorer import TwoStageScorer
from training.datasets import Rows
from training.fit import Fitted, Recipe, Tell, fit_two_stage

Float64 = npt.NDArray[np.float64]
Matrix = Any
"""Whatever scikit-learn takes as a matrix."""

NARROW: Final = 48
"""Most columns of a table that is fitted with more units a column, and whitened."""

LEAST_LATER: Final = 10
"""Fewest held-back rows worth stopping early for."""


class TwoStageDetector(
    ClassNamePrefixFeaturesOutMixin,  # type: ignore[misc]  # scikit-learn carries no types
    TransformerMixin,  # type: ignore[misc]
    OutlierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Outlier detector: autoencoders of z-scores, then of their latents, and the tails of both.

    Three members, each with two stages, are fitted alike. The score combines the reconstruction
    errors of both stages with how far values and residuals lie beyond their training quantiles.
    This is the class that `tapewatch train` fits.

    What is None by default depends on the number of columns d. Up to 48, where a multiply-add is
    cheap and noise rather than a narrow latent keeps the networks from copying their input: 128
    hidden units, a latent of d (from 8 to 24), clip 10, whitened residuals, at least 2,000 steps.
    From 49 on, what was chosen for ticks: 22 hidden units, a latent of 10, clip 3, plain residuals,
    at least 2,500 steps.

    Parameters
    ----------
    hidden : int or None, default=None
        Units of stage 1's hidden tanh layers.
    latent : int or None, default=None
        Units of stage 1's latent.
    stage2_latent : int, default=2
        Units of stage 2's latent; at most one less than stage 1's are used, and at least one.
    members : int, default=3
        Networks fitted alike from other random numbers.
    clip : float or None, default=None
        z-scores are cut off at plus and minus this for the networks.
    noise : float, default=0.3
        Standard deviation of what is added to the last member's input of stage 1 while training;
        evenly less to those before, none to the first of several.
    whitened : bool or None, default=None
        Whether stage 1's error is a Mahalanobis distance of the residual.
    variational : {"none", "stage1", "stage2", "both"}, default="none"
        Which stages draw their latent from a normal distribution while training; scores and
        `transform` take its mean.
    kl_weight : float, default=0.2
        Weight of such a latent's divergence from a standard normal.
    epochs : int or None, default=None
        Passes over the data, at most; more where the data are so few that this would be fewer than
        `least_steps` gradient steps, up to 100 passes.
    least_steps : int or None, default=None
        See `epochs`.
    batch_size : int, default=256
        Rows of one gradient step; at most a tenth of the rows.
    learning_rate : float, default=2e-3
        Adam's initial learning rate; decays along a cosine.
    patience : int, default=3
        Passes without improvement on held-back rows after which training stops.
    validation_fraction : float, default=0.0
        Last share of the rows, held back to stop training early; worth it where rows have an order
        in time.
    combination : {"tails", "sum"}, default="tails"
        How rare `stage1_weight dec(e1) + stage2_weight dec(e2) + tail_weight T` is, see
        `detector.model.Combination` and `Rarity`; or the plain sum `e1 + e2` of the errors.
    stage1_weight, stage2_weight, tail_weight : float or None, default=None
        Weights of both errors and of the tails in the combination `tails`.
    cap : float, default=36.0
        Most that one squared residual of stage 1 counts.
    contamination : float, default=0.01
        Share of the training rows that `predict` calls outliers.
    random_state : int, RandomState instance or None, default=None
        Seed of the initial weights, the order of rows and the noise.
    verbose : bool, default=False
        Print the error of every epoch.

    Attributes
    ----------
    model_ : TwoStageModel
        Normaliser, weights, tails and combination, as plain arrays.
    history_ : tuple of History
        Errors by epoch of both stages.
    offset_ : float
        `decision_function` is `score_samples` less this.
    n_features_in_ : int
        Columns seen in `fit`.

    Examples
    --------
    >>> import numpy as np
    >>> from training import TwoStageDetector
    >>> X = np.random.default_rng(0).normal(size=(500, 8))
    >>> detector = TwoStageDetector(random_state=0).fit(X)
    >>> detector.predict([[0.0] * 8, [9.0] * 8])
    array([ 1, -1])
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012 - scikit-learn's own name
        "hidden": [Interval(Integral, 1, None, closed="left"), None],
        "latent": [Interval(Integral, 1, None, closed="left"), None],
        "stage2_latent": [Interval(Integral, 1, None, closed="left")],
        "members": [Interval(Integral, 1, 100, closed="both")],
        "clip": [Interval(Real, 0, None, closed="neither"), None],
        "noise": [Interval(Real, 0, None, closed="left")],
        "whitened": ["boolean", None],
        "variational": [StrOptions({"none", "stage1", "stage2", "both"})],
        "kl_weight": [Interval(Real, 0, None, closed="left")],
        "epochs": [Interval(Integral, 1, None, closed="left"), None],
        "least_steps": [Interval(Integral, 1, None, closed="left"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "patience": [Interval(Integral, 1, None, closed="left")],
        "validation_fraction": [Interval(Real, 0, 0.5, closed="both")],
        "combination": [StrOptions({"tails", "sum"})],
        "stage1_weight": [Interval(Real, 0, None, closed="left"), None],
        "stage2_weight": [Interval(Real, 0, None, closed="left"), None],
        "tail_weight": [Interval(Real, 0, None, closed="left"), None],
        "cap": [Interval(Real, 0, None, closed="neither")],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "random_state": ["random_state"],
        "verbose": ["boolean"],
    }

    def __init__(
        self,
        *,
        hidden: int | None = None,
        latent: int | None = None,
        stage2_latent: int = 2,
        members: int = 3,
        clip: float | None = None,
        noise: float = 0.3,
        whitened: bool | None = None,
        variational: Variational = "none",
        kl_weight: float = 0.2,
        epochs: int | None = None,
        least_steps: int | None = None,
        batch_size: int = 256,
        learning_rate: float = 2e-3,
        patience: int = 3,
        validation_fraction: float = 0.0,
        combination: CombinationName = "tails",
        stage1_weight: float | None = None,
        stage2_weight: float | None = None,
        tail_weight: float | None = None,
        cap: float = 36.0,
        contamination: float = 0.01,
        random_state: int | np.random.RandomState | None = None,
        verbose: bool = False,
    ) -> None:
        self.hidden = hidden
        self.latent = latent
        self.stage2_latent = stage2_latent
        self.members = members
        self.clip = clip
        self.noise = noise
        self.whitened = whitened
        self.variational = variational
        self.kl_weight = kl_weight
        self.epochs = epochs
        self.least_steps = least_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.combination = combination
        self.stage1_weight = stage1_weight
        self.stage2_weight = stage2_weight
        self.tail_weight = tail_weight
        self.cap = cap
        self.contamination = contamination
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Matrix, y: Matrix = None) -> Self:  # noqa: ARG002 - scikit-learn's signature
        """Fit to ordinary rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Ordinary rows, in order of time where they have one.
        y : Ignored
            For scikit-learn's pipelines.

        Returns
        -------
        self : TwoStageDetector

        Raises
        ------
        ValueError
            A value so large that sums of squares would overflow, about 1e152 for 1,000 rows.
        """
        X = validate_data(self, X, dtype=np.float64, order="C", ensure_min_samples=2)
        n = len(X)
        most = float(np.sqrt(np.finfo(np.float64).max / n) / 4)
        if (largest := float(np.abs(X).max())) > most:
            raise ValueError(
                f"X holds a value of size {largest:.3g}; allowed is -{most:.3g} to {most:.3g} for "
                f"{n:,} rows, so that sums of squares stay finite; scale the columns first"
            )
        held = int(n * self.validation_fraction)
        held = held if held >= LEAST_LATER else 0
        keys = np.zeros(n, np.int64)
        later = Rows.whole(X[n - held :], keys[n - held :]) if held else None
        tell = _print_epoch if self.verbose else None
        self.fit_rows(Rows.whole(X[: n - held], keys[: n - held]), later, tell)
        self.offset_ = float(np.percentile(self.score_samples(X), 100.0 * self.contamination))
        return self

    def fit_rows(
        self,
        rows: Rows,
        later: Rows | None,
        tell: Tell | None = None,
        own_rows: int | None = None,
        spec: FeatureSpec | None = None,
    ) -> Fitted:
        """Fit to rows that may lie on disk and belong to several instruments.

        Sets everything but `offset_`: the thresholds of a model come from rows it was not fitted
        on, see `training.calibrate`.

        Parameters
        ----------
        rows, later
            Ordinary rows, and later ones to stop training early.
        tell
            Progress, see `training.fit.Tell`.
        own_rows
            Rows from which on an instrument has z-scores and tails of its own; None: never.
        spec
            What the rows are features of: which tails are summed apart, and which features are each
            judged by itself too. None: columns of any table.
        """
        recipe = self.recipe(rows.features, len(rows), own_rows)
        groups = None if spec is None else spec.tail_groups()
        lone = None if spec is None else np.flatnonzero(spec.lone_features())
        fitted = fit_two_stage(rows, later, recipe, tell, groups, lone)
        self.model_ = fitted.model
        self.history_ = (fitted.stage1, fitted.stage2)
        self.n_features_in_ = rows.features
        return fitted

    def recipe(self, features: int, rows: int, own_rows: int | None = None) -> Recipe:
        """Return the parameters with what depends on the data filled in."""
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        narrow, ticks = features <= NARROW, Recipe()
        latent = self.latent
        if latent is None:
            latent = min(24, max(8, features)) if narrow else ticks.latent
        return Recipe(
            hidden=self.hidden or (128 if narrow else ticks.hidden),
            latent=latent,
            stage2_latent=max(1, min(self.stage2_latent, latent - 1)),
            members=self.members,
            clip=self.clip or (10.0 if narrow else ticks.clip),
            noise=self.noise,
            whitened=narrow if self.whitened is None else self.whitened,
            variational=self.variational,
            kl_weight=self.kl_weight,
            epochs=self.epochs or (10 if narrow else ticks.epochs),
            least_steps=self.least_steps or (2_000 if narrow else ticks.least_steps),
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            patience=self.patience,
            combination=self.combination,
            stage1_weight=_first(self.stage1_weight, 0.8 if narrow else ticks.stage1_weight),
            stage2_weight=_first(self.stage2_weight, 0.4 if narrow else ticks.stage2_weight),
            tail_weight=_first(self.tail_weight, 2.0 if narrow else ticks.tail_weight),
            cap=self.cap,
            own_rows=rows + 1 if own_rows is None else own_rows,
            seed=int(seed),
        )

    def score_samples(self, X: Matrix) -> Float64:
        """Opposite of the anomaly score: the higher, the more ordinary.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
        """
        errors, tail, rows, _ = self._run(X)
        return -self.model_.score(errors[0], errors[1], tail, np.zeros(len(tail)), rows)

    def decision_function(self, X: Matrix) -> Float64:
        """`score_samples` less `offset_`: negative for outliers.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        decision : ndarray of shape (n_samples,), float64
        """
        scores = self.score_samples(X)
        check_is_fitted(self, "offset_")
        return scores - self.offset_

    def predict(self, X: Matrix) -> npt.NDArray[np.int64]:
        """-1 for outliers, 1 for ordinary rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        labels : ndarray of shape (n_samples,), int64
        """
        return np.where(self.decision_function(X) < 0, -1, 1).astype(np.int64)

    def transform(self, X: Matrix) -> Float64:
        """Stage 1's standardised latents, as features for other models: member after member.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        latent : ndarray of shape (n_samples, members * latent), float64
        """
        *_, latent = self._run(X)
        return latent.astype(np.float64)

    def _run(
        self, X: Matrix
    ) -> tuple[Float64, Float64, npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Both errors `(2, n)`, the tails, table rows and latents of every row."""
        check_is_fitted(self, "model_")
        X = validate_data(self, X, dtype=np.float64, order="C", reset=False)
        n = len(X)
        latent = np.empty((n, self.model_.latents), np.float32)
        errors, tail, rows = _scorer_of(self.model_).measure(
            X, np.zeros(n, np.int64), np.ones(n, np.bool_), latent
        )
        return errors, tail, rows, latent

    @property
    def _n_features_out(self) -> int:
        return self.model_.latents

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "model_")


def _first(given: float | None, default: float) -> float:
    return default if given is None else given


@lru_cache(maxsize=4)
def _scorer_of(model: TwoStageModel) -> TwoStageScorer:
    """Lay a model out once; kept here, because an estimator holds only what can be pickled."""
    return TwoStageScorer(model)


def _print_epoch(stage: int, epoch: int, epochs: int, error: float) -> None:
    print(f"stage {stage}, epoch {epoch}/{epochs}: error {error:.5f}")
