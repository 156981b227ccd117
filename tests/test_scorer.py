"""Scores against a slow oracle in float64, explanations, and rows that are not ready."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from detector.compiled import CompiledForward, aligned_zeros, load_tensorflow
from detector.features import DEFAULT, FeatureBlock
from detector.forward import Forward, KernelForward
from detector.kernels_scoring import EMPTY, LANES, STRIP, dense, hyperbolic_tangent
from detector.model import Combination, Normaliser, TwoStageModel, ZScores
from detector.network import DECODER, DECODER2, ENCODER2, HIDDEN, LATENT, OUTPUT, fold
from detector.scorer import NoGpuError, Scorer, TwoStageScorer
from tests.models import CLIP, block_of, part_of, random_artifact, random_model, rows_for


def oracle(
    model: TwoStageModel, values: np.ndarray, keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Errors of both stages, excess and standardised latent, as the recipe's text has them."""
    w = {name: array.astype(np.float64) for name, array in model.weights.items()}
    tables = model.normaliser
    known = {int(key): i + 1 for i, key in enumerate(tables.keys)}
    rows = np.array([known.get(int(key), 0) for key in keys])
    z = (values.astype(np.float64) - tables.centre[rows]) / tables.scale[rows]
    x = np.clip(z, -CLIP, CLIP)
    hidden = np.tanh(x @ w[f"{HIDDEN}.kernel"] + w[f"{HIDDEN}.bias"])
    latent = hidden @ w[f"{LATENT}.kernel"] + w[f"{LATENT}.bias"]
    hidden = np.tanh(latent @ w[f"{DECODER}.kernel"] + w[f"{DECODER}.bias"])
    rebuilt = hidden @ w[f"{OUTPUT}.kernel"] + w[f"{OUTPUT}.bias"]
    stage1 = np.mean(((rebuilt - x) / w["stage1.residual_sd"]) ** 2, axis=1)
    code = (latent - w["stage2.centre"]) / w["stage2.scale"]
    narrow = code @ w[f"{ENCODER2}.kernel"] + w[f"{ENCODER2}.bias"]
    again = narrow @ w[f"{DECODER2}.kernel"] + w[f"{DECODER2}.bias"]
    stage2 = np.mean(((again - code) / w["stage2.residual_sd"]) ** 2, axis=1)
    excess = np.mean(np.log1p(np.maximum(np.abs(z) - CLIP, 0.0)), axis=1)
    return stage1, stage2, excess, code


@pytest.fixture(scope="module")
def model() -> TwoStageModel:
    """Return a model with random weights and five instruments."""
    return random_model()


def test_errors_are_those_of_the_oracle(model: TwoStageModel) -> None:
    """The folded float32 network equals the unfolded float64 one to single precision."""
    block = rows_for(model, 1_000)
    latent = np.empty((1_000, 6), np.float32)
    scorer = TwoStageScorer(model)
    errors, excess, rows = scorer.errors(block.values, block.keys, block.ready, latent)
    stage1, stage2, expected_excess, code = oracle(model, block.values, block.keys)
    np.testing.assert_allclose(errors[0], stage1, rtol=2e-5)
    np.testing.assert_allclose(errors[1], stage2, rtol=2e-5)
    np.testing.assert_allclose(excess, expected_excess, rtol=1e-12)
    np.testing.assert_allclose(latent, code, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(rows, model.normaliser.rows_for(block.keys))
    assert set(rows.tolist()) == {0, 1, 2, 3, 4, 5}


def run(
    forward: Forward, block: FeatureBlock, latent: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return errors, excess and table rows of a block."""
    n = len(block)
    errors, excess, rows = np.empty((2, n)), np.empty(n), np.empty(n, np.int32)
    forward(block.values, block.keys, block.ready, errors, excess, rows, latent)
    return errors, excess, rows


@pytest.mark.parametrize("sizes", [(64,), (64, 256, 1024, 4096), (100,)])
def test_scores_are_bit_equal_for_every_padded_size(
    model: TwoStageModel, sizes: tuple[int, ...]
) -> None:
    """What sizes TensorFlow compiles changes no bit of any score.

    Much smaller ones than are shipped need not be equal: some processors multiply a few rows by a
    matrix in another order.
    """
    block, folded = rows_for(model, 300), fold(model.weights)
    reference, _, _ = run(CompiledForward(model.normaliser, folded, (512,)), block)
    errors, _, _ = run(CompiledForward(model.normaliser, folded, sizes), block)
    np.testing.assert_array_equal(errors, reference)


@pytest.mark.parametrize(("features", "instruments"), [(1, 1), (20, 5), (76, 3), (133, 0)])
def test_kernel_and_tensorflow_agree(features: int, instruments: int) -> None:
    """A row scores the same on the way of the CPU and on that of the GPU, to single precision."""
    model = random_model(features, instruments)
    block = rows_for(model, 300)
    block.ready[::7] = False
    folded = fold(model.weights)
    latents = np.full((2, 300, 6), np.nan, np.float32)
    kernel, *facts = run(KernelForward(model.normaliser, folded), block, latents[0])
    tensorflow, *same = run(CompiledForward(model.normaliser, folded), block, latents[1])
    np.testing.assert_allclose(kernel, tensorflow, rtol=5e-6, atol=1e-7)
    assert np.isnan(kernel[:, ::7]).all()
    assert np.isfinite(kernel[:, block.ready]).all()
    np.testing.assert_allclose(
        latents[0][block.ready], latents[1][block.ready], rtol=1e-4, atol=1e-5
    )
    for mine, theirs in zip(facts, same, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_tanh_is_accurate_to_single_precision() -> None:
    """The kernel's tanh is within 4e-7 of the true one, relative, and odd, at every size."""
    sizes = np.concatenate([[0.0], np.geomspace(1e-30, 100.0, 64 * LANES - 1)]).astype(np.float32)
    values = np.concatenate([sizes, -sizes]).reshape(-1, LANES)
    expected = np.tanh(values.astype(np.float64))
    hyperbolic_tangent(values)
    np.testing.assert_allclose(values, expected, rtol=4e-7)
    np.testing.assert_array_equal(values[:64], -values[64:])


@pytest.mark.parametrize(("units", "inputs"), [(4, 1), (8, 7), (48, 76)])
@pytest.mark.parametrize("lanes", [1, 16, 17, 127, 128])
def test_dense_layer_is_that_of_the_oracle(units: int, inputs: int, lanes: int) -> None:
    """Bias and products, for the lanes asked for; lanes of other strips are left alone."""
    rng = np.random.default_rng(units + inputs)
    layer = rng.normal(size=(units, 1 + inputs)).astype(np.float32)
    x = rng.normal(size=(inputs, LANES)).astype(np.float32)
    out = np.full((units, LANES), 7.0, np.float32)
    dense(layer, x, out, lanes)
    done = -(-lanes // STRIP) * STRIP
    expected = layer[:, :1] + layer[:, 1:].astype(np.float64) @ x
    np.testing.assert_allclose(out[:, :done], expected[:, :done], rtol=1e-5, atol=1e-5)
    assert (out[:, done:] == 7.0).all()


def test_a_gpu_that_is_not_there_is_refused(
    model: TwoStageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked for a GPU where there is none, the scorer says what is allowed; `auto` uses the CPU."""
    monkeypatch.setattr("detector.scorer.gpu_visible", lambda: False)
    with pytest.raises(NoGpuError, match="'auto', 'cpu'"):
        TwoStageScorer(model, "gpu")
    assert TwoStageScorer(model).device == "cpu"


def test_a_gpu_is_used_where_there_is_one(
    model: TwoStageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where TensorFlow sees a GPU its compiled pass scores, explanations stay with the kernel."""
    monkeypatch.setattr("detector.scorer.gpu_visible", lambda: True)
    scorer = TwoStageScorer(model)
    assert scorer.device == "gpu"
    assert TwoStageScorer(model, "cpu").device == "cpu"
    block = rows_for(model, 50)
    scorer.warm()
    errors, _, _ = scorer.errors(block.values, block.keys, block.ready)
    expected, _, _ = TwoStageScorer(model, "cpu").errors(block.values, block.keys, block.ready)
    np.testing.assert_allclose(errors, expected, rtol=5e-6)
    assert (errors != expected).any()  # it was the other way indeed


def test_default_features_and_sizes_are_bit_equal_too(tmp_path: Path) -> None:
    """The shipped width in the shipped sizes: rows scored alone, in 64s and in 4,096s agree."""
    scorer = Scorer(random_artifact(tmp_path / "m"))
    rng = np.random.default_rng(5)
    n = 4_500
    block = block_of(
        rng.normal(size=(n, len(DEFAULT.names))).astype(np.float32), np.full(n, 10, np.int64)
    )
    whole = scorer.score(block)
    for start, stop in ((0, 1), (17, 18), (100, 164), (4_090, 4_200), (200, 712)):
        part = scorer.score(part_of(block, slice(start, stop)))
        np.testing.assert_array_equal(part.score, whole.score[start:stop])
        np.testing.assert_array_equal(part.stage2, whole.stage2[start:stop])


def test_rows_that_are_not_ready_are_nan_and_change_no_other(model: TwoStageModel) -> None:
    """Unready rows have no score, even where their values are garbage, and the rest keep theirs."""
    block = rows_for(model, 100)
    scorer = TwoStageScorer(model)
    before, _, _ = scorer.errors(block.values, block.keys, block.ready)
    ready = np.arange(100) % 3 > 0
    values = block.values.copy()
    values[~ready] = np.nan
    after, excess, _ = scorer.errors(values, block.keys, ready)
    assert np.isnan(after[:, ~ready]).all()
    assert np.isnan(excess[~ready]).all()
    np.testing.assert_array_equal(after[:, ready], before[:, ready])


def test_scorer_of_an_artifact_applies_its_combination_and_thresholds(tmp_path: Path) -> None:
    """Score, threshold, alarm and severity follow from the errors as the manifest says."""
    artifact = random_artifact(tmp_path / "m", threshold=4.0)
    block = rows_for(artifact.model, 500)
    scores = Scorer(artifact).score(block, latent=True)
    weights = artifact.manifest.architecture
    expected = weights.stage1_weight * scores.stage1 + weights.stage2_weight * scores.stage2
    expected += weights.excess_weight * scores.excess
    np.testing.assert_array_equal(scores.score, expected)
    np.testing.assert_array_equal(scores.threshold, np.where(block.keys == 10, 5.0, 4.0))
    np.testing.assert_array_equal(scores.anomaly, expected >= scores.threshold)
    assert 0 < scores.anomaly.sum() < 500
    np.testing.assert_allclose(scores.severity, expected / scores.threshold * (1 + scores.excess))
    assert scores.latent is not None
    assert scores.latent.shape == (500, 6)
    part = scores.rows_between(3, 7)
    np.testing.assert_array_equal(part.score, expected[3:7])
    assert len(part) == 4


def test_empty_block_gives_empty_scores(tmp_path: Path) -> None:
    """No rows are no error."""
    artifact = random_artifact(tmp_path / "m")
    block = rows_for(artifact.model, 1)
    assert len(Scorer(artifact).score(part_of(block, slice(0, 0)))) == 0


def test_explanation_names_the_feature_that_was_moved(model: TwoStageModel) -> None:
    """A feature 50 deviations out holds the largest share, and shares sum to one."""
    tables = model.normaliser
    values = tables.centre[1].astype(np.float32)[None, :].repeat(20, axis=0)
    moved = np.arange(20)
    values[moved, moved] += (50 * tables.scale[1]).astype(np.float32)
    explained = TwoStageScorer(model).explain(values, np.full(20, 10, np.int64))
    np.testing.assert_allclose(explained.share.sum(axis=1), 1.0)
    rank = (explained.share > explained.share[moved, moved][:, None]).sum(axis=1)
    assert np.mean(rank == 0) > 0.9
    assert ((explained.stage2_share >= 0) & (explained.stage2_share <= 1)).all()


def test_expected_values_are_the_reconstruction_in_feature_units(model: TwoStageModel) -> None:
    """`expected` less the clipped value, over scale and residual deviation, is the residual."""
    block = rows_for(model, 40)
    scorer = TwoStageScorer(model)
    explained = scorer.explain(block.values, block.keys)
    tables = model.normaliser
    rows = tables.rows_for(block.keys)
    z = (block.values - tables.centre[rows]) / tables.scale[rows]
    rebuilt = (explained.expected - tables.centre[rows]) / tables.scale[rows]
    residual = (rebuilt - np.clip(z, -CLIP, CLIP)) / model.weights["stage1.residual_sd"]
    errors, excess, _ = scorer.errors(block.values, block.keys, block.ready)
    np.testing.assert_allclose(np.mean(residual**2, axis=1), errors[0], rtol=1e-4)
    combined = model.combination(errors[0], errors[1], excess)
    np.testing.assert_allclose(
        explained.stage2_share, model.combination.stage2 * errors[1] / combined, rtol=1e-4
    )


def test_large_offsets_do_not_cost_the_z_score_its_precision() -> None:
    """A float64 column near 1e9 with spread 1 keeps its z-score; float32 would lose it."""
    tables = Normaliser(np.empty(0, np.int64), np.full((1, 4), 1e9), np.ones((1, 4)), CLIP)
    values = 1e9 + np.array([[-1.5, 0.25, 2.0, 10.0]])
    out, rows, excess = np.empty((1, 4), np.float32), np.empty(1, np.int32), np.empty(1)
    ZScores(tables)(values, np.zeros(1, np.int64), np.ones(1, np.bool_), out, rows, excess)
    assert out[0].tolist() == [-1.5, 0.25, 2.0, 3.0]
    assert excess[0] == pytest.approx(np.log(8.0) / 4)


def test_excess_survives_the_overflow_of_its_product() -> None:
    """Features so far out that the product of their factors overflows sum up all the same."""
    tables = Normaliser(np.empty(0, np.int64), np.zeros((1, 22)), np.ones((1, 22)), CLIP)
    values = np.full((1, 22), 1e30)
    out, rows, excess = np.empty((1, 22), np.float32), np.empty(1, np.int32), np.empty(1)
    ZScores(tables)(values, np.zeros(1, np.int64), np.ones(1, np.bool_), out, rows, excess)
    assert excess[0] == pytest.approx(30 * np.log(10))


def test_key_table_finds_every_key_and_no_other() -> None:
    """Keys that differ only in their high bits are told apart; the table stays half empty."""
    keys = np.sort(np.concatenate([np.arange(1, 500) << 32, np.arange(1, 500), [-(2**63)]]))
    tables = Normaliser(
        keys.astype(np.int64), np.zeros((len(keys) + 1, 1)), np.ones((len(keys) + 1, 1)), CLIP
    )
    _, table_rows = tables.table()
    assert np.count_nonzero(table_rows == EMPTY) >= len(table_rows) / 2
    asked = np.concatenate([keys, keys + 7_000, [0]]).astype(np.int64)
    n = len(asked)
    rows = np.empty(n, np.int32)
    ZScores(tables)(
        np.zeros((n, 1), np.float32), asked, np.ones(n, np.bool_),
        np.empty((n, 1), np.float32), rows, np.empty(n),
    )  # fmt: skip
    np.testing.assert_array_equal(rows, tables.rows_for(asked))
    assert rows[: len(keys)].tolist() == list(range(1, len(keys) + 1))


@pytest.mark.parametrize("sizes", [(), (0, 4), (64, 64), (512, 64)])
def test_senseless_batch_sizes_are_refused(model: TwoStageModel, sizes: tuple[int, ...]) -> None:
    """Sizes must ascend from at least one."""
    with pytest.raises(ValueError, match="sizes"):
        CompiledForward(model.normaliser, fold(model.weights), sizes)


def test_plain_sum_is_available() -> None:
    """The reference setting adds both errors as they are."""
    errors = np.array([[1.0, 2.0], [10.0, 20.0]])
    assert Combination()(errors[0], errors[1], np.array([5.0, 6.0])).tolist() == [11.0, 22.0]


def test_warm_scorer_compiles_nothing_more(model: TwoStageModel) -> None:
    """After `warm`, blocks of every size, from another thread too, trace no further function."""
    tf = load_tensorflow()
    forward = CompiledForward(model.normaliser, fold(model.weights), (8, 32))
    forward.warm()
    compiled = dict(forward._compiled)
    assert sorted(compiled) == [8, 32]
    block = rows_for(model, 100)

    def score() -> None:
        for n in (1, 8, 9, 32, 33, 100):
            run(forward, part_of(block, slice(0, n)))

    thread = threading.Thread(target=score)
    thread.start()
    thread.join()
    assert forward._compiled == compiled
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_input_buffer_is_aligned_for_reading_in_place() -> None:
    """TensorFlow shares host memory only from 64-byte boundaries on."""
    for rows, columns in ((1, 1), (3, 5), (64, 76)):
        buffer = aligned_zeros(rows, columns)
        assert buffer.ctypes.data % 64 == 0
        assert buffer.shape == (rows, columns)
        assert buffer.flags.c_contiguous
