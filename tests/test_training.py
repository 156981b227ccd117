"""Training: splits, normaliser, repeatability, the model folder it writes, and its commands."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from detector.artifact import SUMMARY, Artifact, Variational, read_artifact
from detector.errors import RefusedError
from detector.features import DEFAULT, FeatureBlock, FeatureSpec, vector_spec
from detector.model import Combination, Normaliser, TwoStageModel
from detector.network import WHITENING, fold, forward
from detector.readers import write_parquet
from detector.scorer import Scorer, TwoStageScorer
from detector.symbols import SymbolMap
from detector.synthetic import demo_market, gather, generate
from detector.ticks import NS_PER_S, UNDEFINED_PRICE, TickBatch, VectorBatch
from tests.models import block_of
from training.calibrate import score_rows
from training.cli import register
from training.datasets import CHUNK, Rows, RowStore, Split, TooFewRowsError, write_rows
from training.fit import Recipe, fit_normaliser, fit_two_stage
from training.stages import batch_size_for
from training.train import Options, feature_blocks, train

START = 1_700_000_000 * NS_PER_S
CREATED = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
QUICK = Options(split=Split(gap_s=1.0), quantile=0.99, epochs=2)


@pytest.fixture(scope="module")
def ticks() -> TickBatch:
    """Return two minutes of a small synthetic market."""
    return gather(generate(demo_market(instruments=4), START, 120.0))


@pytest.fixture(scope="module")
def model(ticks: TickBatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a model quickly trained on them."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    train([ticks], DEFAULT, folder, QUICK, created=CREATED, sources=["market"])
    return folder


def store_of(ts: np.ndarray, keys: np.ndarray | None = None) -> RowStore:
    """Return rows with these times whose only feature is their position."""
    n = len(ts)
    values = np.arange(n, dtype=np.float32)[:, None]
    keys = np.zeros(n, np.int64) if keys is None else keys
    return RowStore(values, keys.astype(np.int64), ts.astype(np.int64))


QUICK_RECIPE = Recipe(epochs=2, least_steps=100)


def blob_rows(n: int, d: int = 9) -> Rows:
    """Return correlated normal rows: two factors and some noise."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(n, 2)) @ rng.normal(size=(2, d))
    values += 0.5 * rng.normal(size=values.shape)
    return Rows.whole(values, np.zeros(n, np.int64))


def score_tail(model: TwoStageModel, values: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Return how far rows lie beyond the training quantiles."""
    return TwoStageScorer(model).measure(values, keys, np.ones(len(keys), np.bool_))[1]


def positions(rows: Rows) -> list[int]:
    """Return which rows of a `store_of` these are."""
    return [int(v) for values, _ in rows.chunks() for v in values[:, 0]]


def plain(features: int) -> Normaliser:
    """Return a normaliser that changes nothing within a very wide clip."""
    return Normaliser(np.empty(0, np.int64), np.zeros((1, features)), np.ones((1, features)), 1e9)


class TestRowsOnDisk:
    """Feature rows written to disk, divided by time, read in shuffled chunks."""

    def test_only_ready_rows_enter(self, tmp_path: Path) -> None:
        """Warm-up and dropped rows are left out; the others keep order, values, keys and times."""
        rng = np.random.default_rng(0)
        blocks = []
        for n in (5, 0, 7):
            values = rng.normal(size=(n, 3)).astype(np.float32)
            blocks.append(block_of(values, np.arange(n), rng.random(n) < 0.6))
        store = write_rows(blocks, tmp_path, 3)
        expected = np.concatenate([b.values[b.ready] for b in blocks])
        np.testing.assert_array_equal(store.values, expected)
        np.testing.assert_array_equal(store.keys, np.concatenate([b.keys[b.ready] for b in blocks]))
        assert len(store) == len(expected) < 12

    def test_no_rows_at_all_is_a_clear_refusal(self, tmp_path: Path) -> None:
        """An empty store is written and read without fuss, and refuses to be divided."""
        store = write_rows([block_of(np.zeros((2, 3), np.float32), np.zeros(2, np.int64),
                                     np.zeros(2, np.bool_))], tmp_path, 3)  # fmt: skip
        assert len(store) == 0
        with pytest.raises(TooFewRowsError, match="no ready row"):
            store.split(Split())

    def test_parts_follow_one_another_with_a_gap(self) -> None:
        """1,000 rows a second apart divide 60/20/20, and 10 s after each boundary are left out."""
        store = store_of(START + np.arange(1000) * NS_PER_S)
        parts = store.split(Split(gap_s=10.0))
        fit, later, calibration, test = map(
            positions, (parts.fit, parts.later, parts.calibration, parts.test)
        )
        assert fit[0] == 0
        assert fit[-1] == pytest.approx(539, abs=1)
        assert later[0] == pytest.approx(550, abs=1)
        assert later[-1] == pytest.approx(599, abs=1)
        assert calibration[0] == pytest.approx(610, abs=1)
        assert calibration[-1] == pytest.approx(799, abs=1)
        assert test[0] == pytest.approx(810, abs=1)
        assert test[-1] == 999
        ends = parts.boundaries[None]
        assert all(store.ts[i] >= ends.train_end + 10 * NS_PER_S for i in calibration)

    def test_shares_are_of_rows_not_of_hours(self) -> None:
        """A night without ticks moves no boundary into it."""
        day = np.arange(500) * NS_PER_S
        store = store_of(np.concatenate([START + day, START + 86_400 * NS_PER_S + day]))
        parts = store.split(Split(train=0.6, calibration=0.2, gap_s=0.0))
        assert len(parts.fit) + len(parts.later) == pytest.approx(600, abs=3)
        assert len(parts.calibration) == pytest.approx(200, abs=3)

    def test_fixed_times_bound_training_and_reading(self) -> None:
        """`train_until` ends the training part exactly; nothing from `until` on is read."""
        store = store_of(START + np.arange(1000) * NS_PER_S)
        split = Split(gap_s=0.0, train_until=START + 300 * NS_PER_S, until=START + 500 * NS_PER_S)
        parts = store.split(split)
        assert positions(parts.later)[-1] == 299
        assert positions(parts.calibration)[0] == 300
        assert positions(parts.test)[-1] == 499
        assert len(parts.calibration) == pytest.approx(100, abs=2)

    def test_rows_out_of_order_are_divided_by_their_time(self) -> None:
        """A part is defined by event time, wherever its rows lie on disk."""
        rng = np.random.default_rng(2)
        ts = START + rng.permutation(5_000) * NS_PER_S
        store = store_of(ts)
        parts = store.split(Split(gap_s=5.0))
        ends = parts.boundaries[None]
        assert sorted(positions(parts.fit)) == np.flatnonzero(ts < ends.fit_end).tolist()
        assert max(ts[positions(parts.fit)]) < min(ts[positions(parts.calibration)])

    def test_unrelated_series_are_divided_each_on_its_own(self) -> None:
        """Two series of different years both have training rows, 60 % of each."""
        ts = np.concatenate([np.arange(500), 10_000_000 + np.arange(1_000)]) * NS_PER_S
        keys = np.repeat([1, 2], [500, 1_000])
        parts = store_of(ts, keys).split(Split(gap_s=0.0), by_instrument=True)
        trained = positions(parts.fit) + positions(parts.later)
        assert sum(i < 500 for i in trained) == pytest.approx(300, abs=2)
        assert sum(i >= 500 for i in trained) == pytest.approx(600, abs=2)

    @pytest.mark.parametrize(
        ("train_share", "calibration", "gap"),
        [(0.0, 0.2, 1), (0.9, 0.2, 1), (0.6, 0.2, -1), (0.6, 0.2, math.inf), (0.6, 0.2, math.nan)],
    )
    def test_impossible_splits_are_refused(
        self, train_share: float, calibration: float, gap: float
    ) -> None:
        """Shares must be positive and leave no more than the whole; a gap is not negative."""
        with pytest.raises(ValueError, match=r"train|gap_s"):
            Split(train_share, calibration, gap)

    def test_a_shuffled_pass_gives_every_row_once(self) -> None:
        """Each pass holds every row exactly once, in another order, the same for the same seed."""
        n = 3 * CHUNK + 77
        rows = Rows.whole(np.arange(n, dtype=np.float64)[:, None], np.zeros(n, np.int64))

        def two_passes(seed: int) -> list[np.ndarray]:
            rng = np.random.default_rng(seed)
            return [np.concatenate([*rows.shuffled(plain(1), rng)])[:, 0] for _ in range(2)]

        first, second = two_passes(1)
        again, _ = two_passes(1)
        np.testing.assert_array_equal(np.sort(first), np.arange(n, dtype=np.float32))
        np.testing.assert_array_equal(np.sort(second), np.arange(n, dtype=np.float32))
        np.testing.assert_array_equal(first, again)
        assert (first != second).mean() > 0.9
        assert len(np.unique(first[:256] // CHUNK)) >= 3, "a batch mixes stretches of time"

    def test_thinned_rows_are_spread_evenly(self) -> None:
        """At most the number asked for, from the beginning to the end."""
        rows = Rows.whole(np.arange(100_000.0)[:, None], np.zeros(100_000, np.int64))
        thinned = positions(rows.thinned(1_000))
        assert 900 <= len(thinned) <= 1_010
        assert thinned[-1] > 99_000
        assert rows.thinned(100_000) is rows

    def test_rows_of_each_instrument_are_its_own_spread_evenly(self) -> None:
        """At most so many of each, in the order asked, whatever turns the instruments take."""
        keys = np.tile([7, 3, 7, 5], 30_000)
        rows = Rows.whole(np.arange(120_000.0)[:, None], keys)
        seven, five = rows.of_each(np.array([7, 5]), 1_000)
        for key, part in ((7, seven), (5, five)):
            mine = positions(part)
            assert 900 <= len(mine) <= 1_000
            assert (keys[mine] == key).all()
            assert mine[0] < 1_000
            assert mine[-1] > 119_000
        assert len(rows.of_each(np.array([5]), 10**6)[0]) == 30_000


class TestFit:
    """Normaliser, stages and scales."""

    def test_normaliser_equals_numpy_by_instrument_and_pooled(self) -> None:
        """Moments merged over chunks are those of all rows at once, per instrument and pooled."""
        rng = np.random.default_rng(0)
        n = 2 * CHUNK + 11
        keys = rng.choice([5, 9, 2], n, p=[0.6, 0.399, 0.001]).astype(np.int64)
        values = (rng.normal(size=(n, 4)) * [1, 10, 0.1, 1e-6] + [0, 1e6, -3, 1]) * keys[:, None]
        tables = fit_normaliser(Rows.whole(values, keys), 1_000, 3.0)
        assert tables.keys.tolist() == [5, 9]
        np.testing.assert_allclose(tables.centre[0], values.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(tables.scale[0], values.std(axis=0), rtol=1e-9)
        np.testing.assert_allclose(tables.centre[2], values[keys == 9].mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(tables.scale[2], values[keys == 9].std(axis=0), rtol=1e-6)

    def test_constant_features_divide_by_what_makes_sense(self) -> None:
        """Constant for one instrument: the pooled scale; constant everywhere: 1."""
        keys = np.repeat([1, 2], 50).astype(np.int64)
        values = np.stack([keys * 0.1, np.where(keys == 1, 7.0, np.arange(100))], axis=1)
        values = np.column_stack([values, np.full(100, 0.1)])
        tables = fit_normaliser(Rows.whole(values, keys), 10, 3.0)
        assert tables.scale[1, 1] == tables.scale[0, 1] == values[:, 1].std()
        assert tables.scale[1, 0] == tables.scale[0, 0] == pytest.approx(0.05)
        assert tables.scale[:, 2].tolist() == [1.0, 1.0, 1.0]

    def test_same_seed_gives_the_same_bits_and_another_does_not(self) -> None:
        """Two fits with one seed agree in every weight; a third with another seed does not."""
        rows = Rows.whole(
            np.random.default_rng(0).normal(size=(600, 5)).astype(np.float32),
            np.zeros(600, np.int64),
        )
        recipe = Recipe(hidden=8, latent=3, epochs=2, least_steps=20, seed=3)
        one, two = (fit_two_stage(rows, None, recipe).model for _ in range(2))
        other = fit_two_stage(
            rows, None, Recipe(hidden=8, latent=3, epochs=2, least_steps=20, seed=4)
        ).model
        for name, array in one.weights.items():
            np.testing.assert_array_equal(array, two.weights[name])
        assert one.combination == two.combination
        np.testing.assert_array_equal(one.tails.table(), two.tails.table())
        assert not np.array_equal(
            one.weights["stage1.encoder.hidden.kernel"],
            other.weights["stage1.encoder.hidden.kernel"],
        )

    def test_training_rows_have_mean_error_one_and_score_one_at_the_median(self) -> None:
        """Residual scales make the errors of training rows 1; dec is 0 and 2.3 where it should."""
        rows = blob_rows(3_000)
        recipe = Recipe(latent=3, epochs=3, least_steps=1, clip=20.0, cap=np.inf)
        model = fit_two_stage(rows, None, recipe).model
        scored = score_rows(model, rows)
        assert scored.stage1.mean() == pytest.approx(1.0, rel=1e-3)
        assert scored.stage2.mean() == pytest.approx(1.0, rel=1e-3)
        only1 = replace(model.combination, stage1_weight=1.0, stage2_weight=0.0, tail_weight=0.0)
        only2 = replace(only1, centre1=only1.centre2, gain1=only1.gain2)
        nothing = np.zeros(2)
        for combination, errors in ((only1, scored.stage1), (only2, scored.stage2)):
            raw = combination(np.quantile(errors, (0.5, 0.995)), np.ones(2), nothing)
            assert raw.tolist() == pytest.approx([0.0, 2.3], abs=2e-3)

    def test_plain_sum_is_the_plain_sum(self) -> None:
        """The reference combination adds both errors as they are, without a cap."""
        rows = Rows.whole(np.random.default_rng(0).normal(size=(50, 2)), np.zeros(50, np.int64))
        recipe = Recipe(
            hidden=4, latent=1, stage2_latent=1, epochs=1, least_steps=1, combination="sum"
        )
        assert fit_two_stage(rows, None, recipe).model.combination == Combination("sum")

    def test_rarity_says_how_many_training_rows_were_as_high(self) -> None:
        """Of 20,000 rows one in a thousand scores 3 decades; a lone feature counts alike."""
        rng = np.random.default_rng(6)
        values = rng.normal(size=(20_000, 4))
        values[:, 2] = np.where(rng.random(20_000) < 0.01, rng.exponential(size=20_000), 0.0)
        rows = Rows.whole(values, np.full(20_000, 3, np.int64))
        model = fit_two_stage(rows, None, QUICK_RECIPE, lone=np.array([2])).model
        assert model.rarity is not None
        scored = score_rows(model, rows)
        decades = 4 * np.log10(scored.score)
        for level, share in ((1.0, 0.1), (2.0, 0.01), (3.0, 0.001)):
            assert share < (decades >= level).mean() < 2.5 * share
        values[:, 2] = 0.0
        table = np.ones(20_000, np.int32)
        ready = np.ones(20_000, np.bool_)
        assert not model.rarity.alone(values, table, ready).any()
        values[0, 2] = 50.0
        alone = model.rarity.alone(values, table, ready)
        assert alone[0] > 4.5
        assert not alone[1:].any()

    def test_rarity_of_few_rows_ascends(self) -> None:
        """Two rows or a constant column still give knots that ascend and steps above zero."""
        for n in (2, 3, 20, 500):
            rows = Rows.whole(np.ones((n, 3)), np.zeros(n, np.int64))
            rarity = fit_two_stage(rows, None, QUICK_RECIPE, lone=np.array([0, 2])).model.rarity
            assert rarity is not None
            assert (np.diff(rarity.knots, axis=-1) >= 0).all()
            assert (np.diff(rarity.knots[..., 0, :2]) > 0).all()
            assert (rarity.steps > 0).all()

    def test_tails_are_quantiles_by_instrument_and_pooled(self) -> None:
        """Starts and decades of z-scores are NumPy's quantiles; pooled ones of pooled z-scores."""
        rng = np.random.default_rng(5)
        keys = rng.choice([3, 8], 6_000).astype(np.int64)
        values = rng.standard_t(3, (6_000, 4)) * keys[:, None] + keys[:, None]
        rows = Rows.whole(values, keys)
        model = fit_two_stage(rows, None, QUICK_RECIPE).model
        assert model.tails.value_starts.shape == (3, 2, 4)
        for row, mine in enumerate((keys > 0, keys == 3, keys == 8)):
            z = (values[mine] - values[mine].mean(axis=0)) / values[mine].std(axis=0)
            q = np.quantile(z, (0.995, 0.95, 0.005, 0.05), axis=0)
            np.testing.assert_allclose(model.tails.value_starts[row], q[[0, 2]], rtol=1e-4)
            decades = np.maximum(np.abs(q[[0, 2]] - q[[1, 3]]), 0.3)
            np.testing.assert_allclose(model.tails.value_decades[row], decades, rtol=1e-4)
            scored_as = np.full(mine.sum(), (0, 3, 8)[row])
            share = np.mean(score_tail(model, values[mine], scored_as) > 0)
            assert 0.02 < share < 0.1  # 1 % of each of 4 features, and 1 % of each residual

    def test_an_instrument_never_seen_is_scored_like_the_others_pooled(self) -> None:
        """Ordinary rows of an unknown instrument seldom reach the tails, a wild one does."""
        rng = np.random.default_rng(6)
        keys = np.repeat(np.arange(1, 9), 1_000)
        values = rng.normal(size=(8_000, 6)) + rng.normal(size=(9, 6))[keys]
        model = fit_two_stage(Rows.whole(values, keys), None, QUICK_RECIPE).model
        unknown = rng.normal(size=(4_000, 6)) + rng.normal(size=(1, 6))
        scored = score_rows(model, Rows.whole(unknown, np.full(4_000, 77, np.int64)))
        known = score_rows(model, Rows.whole(values, keys))
        assert set(scored.rows.tolist()) == {0}
        assert np.quantile(scored.score, 0.99) < 1.5 * np.quantile(known.score, 0.99)
        wild = unknown[:50].copy()
        wild[:, 2] += 40.0
        odd = score_rows(model, Rows.whole(wild, np.full(50, 77, np.int64)))
        assert np.median(odd.score) > np.quantile(scored.score, 0.999)

    def test_a_feature_that_never_moved_does_not_decide_alone(self) -> None:
        """One odd value of a constant feature counts, but less than a row odd throughout."""
        rng = np.random.default_rng(7)
        values = blob_rows(4_000, 60).values.copy()
        values[:, 5] = 3.0
        values[:, 6] = 0.0
        values[rng.choice(4_000, 4, replace=False), 6] = 1.0
        rows = Rows.whole(values, np.zeros(4_000, np.int64))
        model = fit_two_stage(rows, None, QUICK_RECIPE).model
        assert model.weights["stage1.residual_sd"][5] == 1.0
        ordinary = score_rows(model, rows).score
        base = values[:200].copy()
        base[:, 6] = 0.0
        before = score_rows(model, Rows.whole(base, np.zeros(200, np.int64)))
        for column, value in ((5, 4.0), (6, 1.0)):
            odd = base.copy()
            odd[:, column] = value
            after = score_rows(model, Rows.whole(odd, np.zeros(200, np.int64)))
            assert (after.score > before.score).mean() > 0.95
            assert np.median(after.stage1 - before.stage1) < 1.0  # without a cap: 9
            assert np.median(after.score) < np.quantile(ordinary, 0.99)
        odd = base + 3.0 * rng.normal(size=base.shape) * values.std(axis=0)
        worse = score_rows(model, Rows.whole(odd, np.zeros(200, np.int64))).score
        assert np.median(worse) > np.quantile(ordinary, 0.999)

    @pytest.mark.parametrize("variational", ["stage1", "stage2", "both"])
    def test_a_sampled_latent_trains_and_scores_for_certain(self, variational: Variational) -> None:
        """Scores are finite, the same for the same seed, and other than without sampling."""
        rows = blob_rows(800)
        recipe = replace(QUICK_RECIPE, variational=variational)
        one, two = (fit_two_stage(rows, None, recipe) for _ in range(2))
        plain = fit_two_stage(rows, None, QUICK_RECIPE)
        scores = [score_rows(fitted.model, rows).score for fitted in (one, two, plain)]
        assert np.isfinite(scores[0]).all()
        np.testing.assert_array_equal(scores[0], scores[1])
        assert not np.array_equal(scores[0], scores[2])
        assert one.stage1.final < 1.0

    def test_divergence_pulls_the_latent_to_a_standard_normal(self) -> None:
        """The heavier its weight, the smaller the latent's mean; without it nothing holds it."""
        rows = blob_rows(2_000)
        sizes = {}
        for weight in (0.0, 1.0, 1000.0):
            recipe = Recipe(variational="stage1", kl_weight=weight, epochs=20, noise=0.0)
            model = fit_two_stage(rows, None, recipe).model
            sizes[weight] = np.hypot(
                model.weights["stage2.scale"], model.weights["stage2.centre"]
            ).max()
        assert sizes[1000.0] < 0.1 < sizes[1.0] < 1.3
        assert sizes[1.0] < sizes[0.0]

    def test_members_differ(self) -> None:
        """Three members start from other weights and end elsewhere."""
        rows = blob_rows(2_000)
        model = fit_two_stage(rows, None, QUICK_RECIPE).model
        kernels = model.weights["stage1.encoder.hidden.kernel"]
        assert kernels.shape == (3, 9, 22)
        assert not np.allclose(kernels[0], kernels[1])
        assert not np.allclose(kernels[1], kernels[2])

    def test_whitened_residuals_are_uncorrelated(self) -> None:
        """With whitening the error is a Mahalanobis distance of each member's own residual."""
        rows = blob_rows(3_000)
        recipe = replace(QUICK_RECIPE, whitened=True, cap=np.inf, epochs=3)
        model = fit_two_stage(rows, None, recipe).model
        folded = fold(model.weights)
        z = np.concatenate(list(rows.normalised(model.normaliser)))
        _, residual, _ = forward(np, folded.arrays, z * folded.gain)
        for m, mine in enumerate(residual):
            white = (mine - mine.mean(axis=0)) @ model.weights[WHITENING][m]
            covariance = np.cov(white.T)
            np.testing.assert_allclose(covariance - np.diag(np.diag(covariance)), 0.0, atol=0.15)
            assert (np.diag(covariance) < 1.001).all()

    def test_tick_defaults_cost_at_most_20_000_multiply_adds(self) -> None:
        """The budget of a tick, at the number of features of the study."""
        assert Recipe().sizes(129).multiply_adds == 18_468

    def test_training_stops_early_and_keeps_the_best_weights(self) -> None:
        """Once later rows only get worse, training stops and goes back to the best epoch."""
        rng = np.random.default_rng(0)
        base = rng.normal(size=(2_000, 1)) @ np.ones((1, 6))
        rows = Rows.whole(base, np.zeros(2_000, np.int64))
        flipped = base[:200] * np.array([1, -1, 1, -1, 1, -1])
        later = Rows.whole(flipped, np.zeros(200, np.int64))
        epochs: list[tuple[int, int]] = []
        recipe = Recipe(
            hidden=8,
            latent=1,
            stage2_latent=1,
            epochs=40,
            least_steps=1,
            patience=2,
            learning_rate=0.1,
        )
        fitted = fit_two_stage(
            rows, later, recipe, lambda stage, done, *_: epochs.append((stage, done))
        )
        history = fitted.stage1
        assert len(history.loss) < 40
        assert history.best_epoch == int(np.argmin(history.later_loss))
        assert len(history.loss) == history.best_epoch + 1 + 2
        assert history.final == min(history.later_loss)
        assert [stage for stage, _ in epochs] == sorted(stage for stage, _ in epochs)

    def test_batches_shrink_with_few_rows(self) -> None:
        """A tenth of the rows, between 16 and the size asked for."""
        assert [batch_size_for(n, 256) for n in (20, 300, 100_000)] == [16, 30, 256]

    def test_too_few_rows_are_refused(self) -> None:
        """One row is nothing to fit."""
        with pytest.raises(TooFewRowsError, match="1 rows"):
            fit_two_stage(Rows.whole(np.ones((1, 2)), np.zeros(1, np.int64)), None, Recipe())


class TestTrain:
    """From ticks to a model folder."""

    def test_folder_says_what_happened(self, model: Path, ticks: TickBatch) -> None:
        """Counts add up, the model knows its instruments, and the summary is about these ticks."""
        artifact = read_artifact(model)
        summary = json.loads((model / SUMMARY).read_bytes())
        parts = summary["parts"]
        used = sum(
            parts[f"{name}_rows"] for name in ("fit", "early_stopping", "calibration", "test")
        )
        assert summary["ticks"] == len(ticks)
        assert used <= summary["ready"] < len(ticks)
        assert summary["sources"] == ["market"]
        assert set(summary["instruments"]) == set(ticks.symbols.values())
        assert artifact.manifest.training.train_rows == parts["fit_rows"]
        assert artifact.manifest.created == "2024-01-02T03:04:05+00:00"
        assert set(artifact.tables["keys"].tolist()) <= set(ticks.keys.tolist())

    def test_calibration_rows_alarm_as_the_quantile_says(self, model: Path) -> None:
        """The share of calibration rows at their threshold is below 1 - q and not far from it."""
        summary = json.loads((model / SUMMARY).read_bytes())
        assert 0.005 < summary["calibration"]["alarm_share"] <= 0.01

    def test_pictures_are_pictures(self, model: Path) -> None:
        """Both PNG files decode and are not blank."""
        for name in ("training_curves.png", "error_histograms.png"):
            pixels = matplotlib.image.imread(model / name)
            assert pixels.shape[0] > 300
            assert pixels.std() > 0.05

    def test_reference_histograms_count_the_rows_they_are_about(self, model: Path) -> None:
        """Features count the fitted rows, the score the calibration rows; tenths hold a tenth."""
        artifact = read_artifact(model)
        training, counts = artifact.manifest.training, artifact.tables["reference_counts"]
        assert (counts[0, :-1].sum(axis=1) == training.train_rows).all()
        assert counts[0, -1].sum() == training.calibration_rows
        assert (counts[1:].sum(axis=0)[:-1].sum(axis=1) <= training.train_rows).all()
        shares = counts[0, -1] / counts[0, -1].sum()
        np.testing.assert_allclose(shares, 0.1, atol=0.005)

    def test_training_again_gives_the_same_files(
        self, model: Path, ticks: TickBatch, tmp_path: Path
    ) -> None:
        """Same ticks, seed and time: every file has the same bytes, however the input is cut."""
        cut = [ticks[i : i + 1_000] for i in range(0, len(ticks), 1_000)]
        again = train(cut, DEFAULT, tmp_path / "again", QUICK, created=CREATED, sources=["market"])
        assert again.model_hash == read_artifact(model).model_hash

    def test_scores_of_the_written_model_are_those_of_training(
        self, model: Path, ticks: TickBatch
    ) -> None:
        """The scorer of the folder alarms on the test part as the training summary says."""
        artifact = read_artifact(model)
        summary = json.loads((model / SUMMARY).read_bytes())
        scorer = Scorer(artifact)
        blocks = list(feature_blocks([ticks], DEFAULT, 100, SymbolMap()))
        scores = scorer.score(blocks[0])
        from_ts = datetime.fromisoformat(
            summary["parts"]["boundaries"]["all"]["calibration_end"]
        ).timestamp()
        test = blocks[0].ready & (blocks[0].ts >= (from_ts + 1.001) * NS_PER_S)
        share = np.mean(scores.anomaly[test])
        assert share == pytest.approx(summary["test"]["alarm_share"], abs=2e-3)

    def test_too_few_ticks_say_how_many_there_are(self, ticks: TickBatch, tmp_path: Path) -> None:
        """The refusal names ticks read, ready rows, and what is needed, and writes nothing."""
        with pytest.raises(RefusedError, match=r"500 ticks read, \d+ of them ready.*1,000 are"):
            train([ticks[:500]], FeatureSpec(warmup_s=0.1), tmp_path / "m", QUICK)
        assert not (tmp_path / "m").exists()

    def test_quantile_beyond_the_data_is_refused(self, ticks: TickBatch, tmp_path: Path) -> None:
        """A quantile that needs more calibration rows than there are is refused with a remedy."""
        options = Options(split=QUICK.split, quantile=0.99999, epochs=1)
        with pytest.raises(RefusedError, match=r"calibration part: .* at least 500,000"):
            train([ticks], DEFAULT, tmp_path / "m", options)

    def test_target_in_use_is_refused_before_training(self, model: Path) -> None:
        """Not one tick is read when the target holds a model already."""

        def never() -> Iterator[TickBatch]:
            pytest.fail("read ticks")
            yield

        with pytest.raises(RefusedError, match="holds a model already"):
            train(never(), DEFAULT, model, QUICK)

    def test_vectors_are_trained_the_same_way(self, tmp_path: Path) -> None:
        """Series of numbers, one a partition, become a model of their columns."""
        rng = np.random.default_rng(0)
        batches = [series(rng, key, 4_000) for key in range(2)]
        spec = vector_spec(("a", "b"))
        artifact = train(batches, spec, tmp_path / "m", QUICK)
        assert artifact.features.columns == ("a", "b")
        assert artifact.tables["keys"].tolist() == [0, 1]
        assert set(artifact.tables["tail_groups"].tolist()) == {0}

    def test_ticks_have_two_groups_of_tails_and_a_cost(self, model: Path) -> None:
        """What decays within a second is summed apart; the summary says what a tick costs."""
        artifact = read_artifact(model)
        groups = artifact.tables["tail_groups"]
        np.testing.assert_array_equal(groups, DEFAULT.tail_groups())
        assert set(groups.tolist()) == {0, 1}
        cost = json.loads((model / SUMMARY).read_bytes())["multiply_adds"]
        assert cost == artifact.manifest.architecture.sizes.multiply_adds <= 20_000


def series(rng: np.random.Generator, key: int, n: int) -> VectorBatch:
    """Return a series of two columns, one row a second, in a partition of its own."""
    return VectorBatch(
        rng.normal(size=(n, 2)).astype(np.float32),
        np.full(n, key, np.int64),
        START + np.arange(n, dtype=np.int64) * NS_PER_S,
        key,
        np.arange(n, dtype=np.int64),
        np.zeros(n, np.int32),
        {key: f"series-{key}"},
    )


class TestCommands:
    """`tapewatch train`, `score` and `model` as a user calls them."""

    @pytest.fixture
    def file(self, ticks: TickBatch, tmp_path: Path) -> Path:
        """Return the ticks as a Parquet file."""
        write_parquet(tmp_path / "ticks.parquet", [ticks])
        return tmp_path / "ticks.parquet"

    @staticmethod
    def call(*arguments: object) -> str:
        """Call the command line and return what it printed; errors are raised."""
        app = typer.Typer()
        register(app)
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("train", "--out", "m", "--risk", 0.5), "at most 0.1"),
            (("score", "--model", "m", "--out", "s", "--events", "s"), "is the file of --out"),
        ],
    )
    def test_what_cannot_be_meant_is_refused(
        self, file: Path, arguments: tuple[object, ...], words: str
    ) -> None:
        """A risk beyond what a tail is fitted to, and two results in one file, are refused."""
        with pytest.raises(RefusedError, match=words):
            self.call(*arguments, "--ticks", file)

    def test_train_then_score_then_verify(self, file: Path, tmp_path: Path) -> None:
        """The three commands work on one another's output and agree on the model."""
        trained = json.loads(
            self.call("train", "--ticks", file, "--out", tmp_path / "m", "--gap", 1,
                      "--quantile", 0.99, "--epochs", 1, "--variational", "both", "--json")
        )  # fmt: skip
        assert trained["manifest"]["architecture"]["variational"] == "both"
        verified = json.loads(self.call("model", "verify", tmp_path / "m", "--json"))
        assert verified["model_hash"] == trained["model_hash"]
        out = tmp_path / "scores.parquet"
        done = json.loads(
            self.call("score", "--ticks", file, "--model", tmp_path / "m", "--out", out, "--json")
        )
        table = pq.read_table(out)
        assert table.num_rows == done["rows"] == trained["summary"]["ticks"]
        assert table.column("score").null_count == done["rows"] - done["ready"]
        score, threshold = (table.column(name).to_numpy() for name in ("score", "threshold"))
        anomaly = table.column("anomaly").to_numpy()
        np.testing.assert_array_equal(anomaly, score >= threshold)
        assert anomaly.sum() == done["anomalies"] > 0
        assert table.column("symbol").null_count == 0
        shown = self.call("model", "show", tmp_path / "m")
        assert re.search(r"numbers in a latent +30 = 3 members x 10", shown), shown

    @pytest.mark.parametrize(("option", "value"), [("--budget", 60.0), ("--risk", 0.01)])
    def test_budget_or_risk_reaches_manifest_and_scores(
        self, ticks: TickBatch, tmp_path: Path, option: str, value: float
    ) -> None:
        """What was asked is in the manifest, and scoring applies thresholds that move."""
        slow = ticks.ticks.copy()  # an hour and a half at a 45th of the pace: time for a budget
        for name in ("ts_event", "ts_recv"):
            slow[name] = START + (slow[name].astype(np.int64) - START) * 45
        file = tmp_path / "slow.parquet"
        write_parquet(file, [replace(ticks, ticks=slow)])
        trained = json.loads(
            self.call("train", "--ticks", file, "--out", tmp_path / "m", "--gap", 1,
                      option, value, "--epochs", 1, "--json")
        )  # fmt: skip
        section = trained["manifest"]["thresholds"]
        assert (section["method"], section[option[2:]], section["adapt"]) == ("pot", value, True)
        told = trained["summary"]["thresholds"]
        assert told["asked"] == {option[2:]: value}
        assert told["pooled_tail"]["tail_level"] < told["pooled"]
        assert trained["summary"]["test"]["instrument_hours"] > 0
        assert read_artifact(tmp_path / "m").thresholds.adaptive
        out = tmp_path / "scores.parquet"
        self.call("score", "--ticks", file, "--model", tmp_path / "m", "--out", out)
        assert len(np.unique(pq.read_table(out)["threshold"].to_numpy())) > 100
        assert option[2:] in self.call("model", "show", tmp_path / "m")

    def test_ticks_that_were_dropped_are_told(
        self, ticks: TickBatch, model: Path, tmp_path: Path
    ) -> None:
        """By reason, for people and machines, by every command that reads ticks."""
        twice = np.where((np.arange(len(ticks)) >= 100) & (np.arange(len(ticks)) < 107), 2, 1)
        file = tmp_path / "bad.parquet"
        again = TickBatch.from_ticks(np.repeat(ticks.ticks, twice), symbols=ticks.symbols)
        write_parquet(file, [again])
        usual = ("--ticks", file, "--model", model)
        told = self.call("score", *usual, "--out", tmp_path / "s.parquet")
        assert re.search(r"dropped of [\d,]+ ticks: repeated 7 ", told), told
        assert re.search(r"dropped ticks: repeated 7 ", self.call("drift", *usual))
        found = json.loads(self.call("drift", *usual, "--json"))
        assert found["dropped"] == {"repeated": 7}
        command = ("train", "--ticks", file, "--gap", 1, "--epochs", 1, "--quantile", 0.99)
        told = self.call(*command, "--out", tmp_path / "m")
        assert re.search(r"dropped of [\d,]+ ticks: repeated 7 ", told), told

    def test_a_side_of_the_book_that_most_ticks_lack_is_warned_of(
        self, ticks: TickBatch, tmp_path: Path
    ) -> None:
        """Nothing of it is learned; the other side is not mentioned."""
        bare = ticks.ticks.copy()
        bare["ask_px"][: len(bare) * 3 // 4] = UNDEFINED_PRICE
        file = tmp_path / "bare.parquet"
        write_parquet(file, [replace(ticks, ticks=bare)])
        app = typer.Typer()
        register(app)
        command = ("train", "--ticks", file, "--out", tmp_path / "m", "--gap", 1, "--epochs", 1,
                   "--quantile", 0.99)  # fmt: skip
        done = CliRunner().invoke(app, [str(each) for each in command])
        assert done.exit_code == 0, done.output
        told = done.stderr.replace("\n", " ")
        assert "the ask is missing or zero in" in told
        assert "the bid" not in told

    def test_several_files_may_follow_one_option(self, file: Path, model: Path) -> None:
        """`--ticks A B` reads both files, as a shell's wildcard gives them."""
        copy = file.with_name("more.parquet")
        copy.write_bytes(file.read_bytes())
        out = file.with_name("out.parquet")
        done = json.loads(
            self.call("score", "--model", model, "--out", out, "--json", "--ticks", file, copy)
        )
        assert done["rows"] == 2 * pq.read_metadata(file).num_rows

    def test_scoring_can_be_bounded_in_time(self, file: Path, model: Path, tmp_path: Path) -> None:
        """`--from` and `--until` score exactly the ticks between them."""
        ts = pq.read_table(file).column("ts_event").to_numpy().astype(np.int64)
        low, high = START + 10 * NS_PER_S, START + 20 * NS_PER_S
        iso = [datetime.fromtimestamp(t / NS_PER_S, UTC).isoformat() for t in (low, high)]
        done = json.loads(
            self.call("score", "--ticks", file, "--model", model, "--out", tmp_path / "s.parquet",
                      "--from", iso[0], "--until", iso[1], "--json")
        )  # fmt: skip
        assert done["rows"] == np.count_nonzero((ts >= low) & (ts < high)) > 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["train", "--ticks", "{f}", "--out", "{d}", "--quantile", "1"], "--quantile is 1.0"),
            (["train", "--ticks", "{f}", "--out", "{d}", "--risk", "nan"], "--risk is nan"),
            (["train", "--ticks", "{f}", "--out", "{d}", "--budget", "0"], "--budget is 0.0"),
            (["train", "--ticks", "{f}", "--out", "{d}", "--budget", "inf"], "--budget is inf"),
            (
                ["train", "--ticks", "{f}", "--out", "{d}", "--budget", "1", "--risk", ".1"],
                "--budget and --risk: give one of them",
            ),
            (["train", "--ticks", "{f}", "--out", "{d}", "--train-fraction", "2"], "train is 2.0"),
            (["train", "--ticks", "{f}", "--out", "{d}/m", "--gap", "inf"], "--gap is inf"),
            (["train", "--ticks", "{f}", "--out", "{d}/m", "--gap", "4e7"], "--gap is 4e[+]07"),
            (["train", "--ticks", "{f}", "--out", "{d}/m", "--version", ""], "--version ''"),
            (
                ["train", "--ticks", "{f}", "--out", "{d}/m", "--version", "../x"],
                "--version '../x'",
            ),
            (
                [
                    "score",
                    "--ticks",
                    "{f}",
                    "--model",
                    "{m}",
                    "--out",
                    "{d}/s",
                    "--from",
                    "2024-01-02",
                    "--until",
                    "2024-01-01",
                ],
                "--from 2024-01-02 is not before --until 2024-01-01",
            ),
            (
                [
                    "score",
                    "--ticks",
                    "{f}",
                    "--model",
                    "{m}",
                    "--out",
                    "{d}/s",
                    "--until",
                    "1999-01-01",
                ],
                "hold no tick to score",
            ),
            (["train", "--ticks", "{d}/no", "--out", "{d}/m"], "no: no such file"),
            (["train", "--ticks", "{f}", "--out", "{d}/m", "--from", "noon"], "--from noon"),
            (["train", "--ticks", "{f}", "--out", "{d}/m", "--format", "x"], "allowed are dbn"),
            (["train", "--ticks", "{f}", "--out", "{m}/manifest.json"], "is a file"),
            (["score", "--ticks", "{f}", "--model", "{d}/no", "--out", "{d}/s"], "tapewatch train"),
            (["score", "--ticks", "{f}", "--model", "{m}", "--out", "{d}/no/s"], "create it first"),
            (["model", "show", "{d}"], "manifest.json: cannot be read"),
        ],
    )
    def test_bad_usage_is_refused_with_the_reason(
        self, file: Path, model: Path, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        """What a user can mend is a `RefusedError` (exit code 2) that names the option."""
        filled = [a.format(f=file, d=tmp_path, m=model) for a in arguments]
        with pytest.raises(RefusedError, match=message.replace(".", r"\.")):
            self.call(*filled)

    def test_verify_reports_files_that_nobody_listed(
        self, ticks: TickBatch, tmp_path: Path
    ) -> None:
        """A stray file does not stop the daemon, but verification fails on it."""
        from tests.models import random_artifact  # noqa: PLC0415

        assert len(ticks)
        random_artifact(tmp_path / "m")
        (tmp_path / "m" / "notes.txt").write_text("mine")
        with pytest.raises(RefusedError, match=r"notes\.txt"):
            self.call("model", "verify", tmp_path / "m")


def test_blocks_come_from_one_bank_a_partition() -> None:
    """Two partitions never share windows: their features equal those of each fed alone."""
    rng = np.random.default_rng(0)
    batches = [series(rng, key, 300) for key in range(2)]
    spec = vector_spec(("a", "b"))

    def blocks(given: list[VectorBatch]) -> list[FeatureBlock]:
        return list(feature_blocks(given, spec, 10, SymbolMap()))

    together = blocks([batches[0][:100], batches[1], batches[0][100:]])
    alone = blocks([batches[0]])[0]
    np.testing.assert_array_equal(
        np.concatenate([together[0].values, together[2].values]), alone.values
    )


def test_artifact_of_training_is_the_artifact_read_back(model: Path) -> None:
    """What `train` returns is what is in the folder, read and verified."""
    assert isinstance(read_artifact(model), Artifact)
