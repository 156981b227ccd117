"""Scores against a slow oracle in float64, explanations, and rows that are not ready."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.compiled import CompiledForward, aligned_zeros, load_tensorflow
from detector.features import DEFAULT, FeatureBlock
from detector.forward import Forward, KernelForward
from detector.kernels_scoring import EMPTY, LANES, STRIP, dense, hyperbolic_tangent
from detector.model import Combination, Normaliser, Rarity, TwoStageModel, ZScores
from detector.network import (
    DECODER,
    DECODER2,
    ENCODER2,
    HIDDEN,
    LATENT,
    OUTPUT,
    RESIDUAL_MEAN,
    WHITENING,
    fold,
)
from detector.scorer import NoGpuError, Scorer, TwoStageScorer
from tests.models import CLIP, block_of, part_of, random_artifact, random_model, rows_for


@dataclass(frozen=True)
class Measured:
    """What the oracle says of some rows."""

    stage1: np.ndarray
    stage2: np.ndarray
    tail: np.ndarray
    latent: np.ndarray
    expected: np.ndarray
    share: np.ndarray


def oracle(model: TwoStageModel, values: np.ndarray, keys: np.ndarray) -> Measured:
    """Everything that is measured of rows, in float64, as the recipe's text has it."""
    w = {name: array.astype(np.float64) for name, array in model.weights.items()}
    tables, tails = model.normaliser, model.tails
    known = {int(key): i + 1 for i, key in enumerate(tables.keys)}
    rows = np.array([known.get(int(key), 0) for key in keys])
    z = (values.astype(np.float64) - tables.centre[rows]) / tables.scale[rows]
    x, sd = np.clip(z, -CLIP, CLIP), w["stage1.residual_sd"]
    squares1, squares2, latents, rebuilts = [], [], [], []
    for m in range(len(w[f"{HIDDEN}.bias"])):

        def layer(name: str, x: np.ndarray, m: int = m) -> np.ndarray:
            return x @ w[f"{name}.kernel"][m] + w[f"{name}.bias"][m]

        latent = layer(LATENT, np.tanh(layer(HIDDEN, x)))
        rebuilt = layer(OUTPUT, np.tanh(layer(DECODER, latent)))
        residual = (rebuilt - x) / sd
        if WHITENING in w:
            residual = (residual - w[RESIDUAL_MEAN][m]) @ w[WHITENING][m]
        squares1.append(np.minimum(residual**2, model.combination.cap))
        code = (latent - w["stage2.centre"][m]) / w["stage2.scale"][m]
        again = layer(DECODER2, layer(ENCODER2, code))
        squares2.append(((again - code) / w["stage2.residual_sd"][m]) ** 2)
        latents.append(code)
        rebuilts.append(rebuilt)
    rebuilt = np.mean(rebuilts, axis=0)
    beyond = np.zeros_like(z)
    for value, starts, decades in (
        (z, tails.value_starts, tails.value_decades),
        ((rebuilt - z) / sd, tails.residual_starts, tails.residual_decades),
    ):
        above = (value - starts[rows, 0]) / decades[rows, 0]
        below = (starts[rows, 1] - value) / decades[rows, 1]
        beyond += np.maximum(np.maximum(above, below), 0.0)
    logs = np.log(1.0 + beyond)
    groups = np.unique(tails.groups)
    roots = np.stack([np.sqrt(logs[:, tails.groups == g].sum(axis=1)) for g in groups], axis=1)
    body = np.mean(squares1, axis=(0, 2))
    combination = model.combination
    body = np.maximum((np.log(body) - combination.centre1) * combination.gain1, 0)
    squares = np.minimum(((rebuilt - x) / sd) ** 2, combination.cap)
    share = (combination.stage1_weight * body)[:, None] * squares / squares.sum(axis=1)[:, None]
    for g, root in zip(groups, roots.T, strict=True):
        mine = (logs * (tails.groups == g)) / np.maximum(root, 1e-12)[:, None]
        share += combination.tail_weight * mine / np.sqrt(len(groups))
    return Measured(
        stage1=np.mean(squares1, axis=(0, 2)),
        stage2=np.mean(squares2, axis=(0, 2)),
        tail=roots.sum(axis=1) / np.sqrt(len(groups)),
        latent=np.concatenate(latents, axis=1),
        expected=tables.centre[rows] + tables.scale[rows] * rebuilt,
        share=share / share.sum(axis=1, keepdims=True),
    )


def rare(value: float, knots: np.ndarray, step: float) -> float:
    """Decades of rarity of one value, from the definition."""
    at, decades = knots
    if value <= at[0]:
        return float(decades[0] - np.log(1 + (at[0] - value) / step))
    if value > at[-1]:
        found = decades[-1] + (value - at[-1]) / step
    else:
        found = np.interp(value, at, decades)
    return float(found if found <= 6 else 6 + 2 * np.log(1 + (found - 6) / 2))


def oracle_alone(rarity: Rarity, values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return decades of the rarest lone feature of each row, 0 up to 3.3."""
    found = []
    for mine, row in zip(values, rows, strict=True):
        knots, steps = rarity.knots[row], rarity.steps[row]
        each = [
            rare(float(mine[column]), knots[2 + k], steps[2 + k])
            for k, column in enumerate(rarity.lone)
            if mine[column] > knots[2 + k, 0, 2]
        ]
        decades = rare(max(each), knots[1], steps[1]) if each else 0.0
        found.append(decades if decades > 3.3 else 0.0)
    return np.array(found)


@pytest.fixture(scope="module")
def model() -> TwoStageModel:
    """Return a model with random weights and five instruments."""
    return random_model()


@pytest.mark.parametrize(
    "sizes", [{}, {"whitened": True}, {"members": 1, "hidden": 7, "latent": 3}, {"features": 129}]
)
def test_what_is_measured_is_what_the_oracle_measures(sizes: dict[str, Any]) -> None:
    """The folded float32 members equal the unfolded float64 ones to single precision."""
    model = random_model(**sizes)
    block = rows_for(model, 1_000)
    latent = np.empty((1_000, model.latents), np.float32)
    errors, tail, rows = TwoStageScorer(model).measure(
        block.values, block.keys, block.ready, latent
    )
    expected = oracle(model, block.values, block.keys)
    np.testing.assert_allclose(errors[0], expected.stage1, rtol=2e-5)
    np.testing.assert_allclose(errors[1], expected.stage2, rtol=2e-5)
    np.testing.assert_allclose(tail, expected.tail, rtol=2e-5)
    np.testing.assert_allclose(latent, expected.latent, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(rows, model.normaliser.rows_for(block.keys))
    assert set(rows.tolist()) == {0, 1, 2, 3, 4, 5}


def run(
    forward: Forward, block: FeatureBlock, latent: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return errors with the tails below them, and table rows, of a block."""
    n = len(block)
    errors, tail, rows = np.empty((2, n)), np.empty(n), np.empty(n, np.int32)
    forward(block.values, block.keys, block.ready, errors, tail, rows, latent)
    return np.vstack([errors, tail]), rows


@pytest.mark.parametrize("sizes", [(64,), (64, 256, 1024, 4096), (100,)])
def test_scores_are_bit_equal_for_every_padded_size(
    model: TwoStageModel, sizes: tuple[int, ...]
) -> None:
    """What sizes TensorFlow compiles changes no bit of any score.

    Much smaller ones than are shipped need not be equal: some processors multiply a few rows by a
    matrix in another order.
    """
    block, folded = rows_for(model, 300), fold(model.weights)
    reference, _ = run(CompiledForward(model, folded, (512,)), block)
    found, _ = run(CompiledForward(model, folded, sizes), block)
    np.testing.assert_array_equal(found, reference)


@pytest.mark.parametrize(
    ("features", "instruments", "whitened"),
    [(1, 1, False), (20, 5, True), (76, 3, False), (133, 0, False)],
)
def test_kernel_and_tensorflow_agree(features: int, instruments: int, whitened: bool) -> None:
    """A row scores the same on the way of the CPU and on that of the GPU, to single precision."""
    model = random_model(features, instruments, whitened=whitened)
    block = rows_for(model, 300)
    block.ready[::7] = False
    folded = fold(model.weights)
    latents = np.full((2, 300, model.latents), np.nan, np.float32)
    kernel, rows = run(KernelForward(model, folded), block, latents[0])
    tensorflow, same = run(CompiledForward(model, folded), block, latents[1])
    np.testing.assert_allclose(kernel, tensorflow, rtol=1e-5, atol=1e-6)
    assert np.isnan(kernel[:, ::7]).all()
    assert np.isfinite(kernel[:, block.ready]).all()
    np.testing.assert_allclose(
        latents[0][block.ready], latents[1][block.ready], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(rows, same)


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
    errors, tail, _ = scorer.measure(block.values, block.keys, block.ready)
    expected, same, _ = TwoStageScorer(model, "cpu").measure(block.values, block.keys, block.ready)
    np.testing.assert_allclose(errors, expected, rtol=5e-6)
    np.testing.assert_allclose(tail, same, rtol=5e-6)
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
        np.testing.assert_array_equal(part.tail, whole.tail[start:stop])


def test_rows_that_are_not_ready_are_nan_and_change_no_other(model: TwoStageModel) -> None:
    """Unready rows have no score, even where their values are garbage, and the rest keep theirs."""
    block = rows_for(model, 100)
    scorer = TwoStageScorer(model)
    before, _, _ = scorer.measure(block.values, block.keys, block.ready)
    ready = np.arange(100) % 3 > 0
    values = block.values.copy()
    values[~ready] = np.nan
    after, tail, _ = scorer.measure(values, block.keys, ready)
    assert np.isnan(after[:, ~ready]).all()
    assert np.isnan(tail[~ready]).all()
    np.testing.assert_array_equal(after[:, ready], before[:, ready])


def test_scorer_of_an_artifact_applies_its_combination_and_thresholds(tmp_path: Path) -> None:
    """Score, threshold and alarm follow from errors and tails as the manifest says."""
    artifact = random_artifact(tmp_path / "m", threshold=13.0)
    block = rows_for(artifact.model, 500)
    scores = Scorer(artifact).score(block, latent=True)
    section = artifact.manifest.score
    raw = section.stage1_weight * (np.log(scores.stage1) - section.centre1) * section.gain1
    raw += section.stage2_weight * (np.log(scores.stage2) - section.centre2) * section.gain2
    raw += section.tail_weight * scores.tail
    rarity = artifact.model.rarity
    assert rarity is not None
    decades = [
        rare(r, rarity.knots[i, 0], rarity.steps[i, 0])
        for r, i in zip(raw, scores.rows, strict=True)
    ]
    alone = oracle_alone(rarity, block.values, scores.rows)
    np.testing.assert_allclose(scores.alone, alone, rtol=1e-5)
    assert 0 < np.count_nonzero(alone) < 500
    np.testing.assert_allclose(
        scores.score,
        10 ** (np.where(alone > 0, np.maximum(decades, alone), decades) / 4),
        rtol=1e-5,
    )
    np.testing.assert_array_equal(scores.threshold, np.where(block.keys == 10, 14.0, 13.0))
    np.testing.assert_array_equal(scores.anomaly, scores.score >= scores.threshold)
    assert 0 < scores.anomaly.sum() < 500
    assert scores.latent is not None
    assert scores.latent.shape == (500, 18)
    part = scores.rows_between(3, 7)
    np.testing.assert_array_equal(part.score, scores.score[3:7])
    np.testing.assert_array_equal(part.tail, scores.tail[3:7])
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
    for name in ("tails", "sum"):
        known = replace(model, combination=replace(model.combination, name=name))
        explained = TwoStageScorer(known).explain(values, np.full(20, 10, np.int64))
        np.testing.assert_allclose(explained.share.sum(axis=1), 1.0)
        rank = (explained.share > explained.share[moved, moved][:, None]).sum(axis=1)
        assert np.mean(rank == 0) > 0.9


def test_explanation_depends_on_no_other_row() -> None:
    """Rows explained one by one, by fives and all together have the same shares to the last bit."""
    model = random_model(129)
    scorer, block = TwoStageScorer(model, "cpu"), rows_for(model, 40)
    together = scorer.explain(block.values, block.keys).share
    for size in (1, 5):
        parts = [
            scorer.explain(block.values[a : a + size], block.keys[a : a + size]).share
            for a in range(0, 40, size)
        ]
        assert np.concatenate(parts).tobytes() == together.tobytes()


def test_explanation_is_that_of_the_oracle(model: TwoStageModel) -> None:
    """What was expected is the members' mean; shares divide stage 1's part and the tails."""
    block = rows_for(model, 40)
    model = replace(model, rarity=None)
    explained = TwoStageScorer(model).explain(block.values, block.keys)
    expected = oracle(model, block.values, block.keys)
    np.testing.assert_allclose(explained.expected, expected.expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(explained.share, expected.share, rtol=1e-3, atol=1e-6)


def test_a_row_like_any_other_has_shares_too(model: TwoStageModel) -> None:
    """Where neither error nor tails raise the score, the squared residuals are the shares."""
    quiet = replace(
        model,
        tails=replace(
            model.tails,
            value_starts=model.tails.value_starts * 1e6,
            residual_starts=model.tails.residual_starts * 1e6,
        ),
        combination=replace(model.combination, centre1=50.0),
    )
    block = rows_for(model, 10)
    share = TwoStageScorer(quiet).explain(block.values, block.keys).share
    np.testing.assert_allclose(share.sum(axis=1), 1.0)
    assert (share > 0).all()


def test_large_offsets_do_not_cost_the_z_score_its_precision() -> None:
    """A float64 column near 1e9 with spread 1 keeps its z-score; float32 would lose it."""
    tables = Normaliser(np.empty(0, np.int64), np.full((1, 4), 1e9), np.ones((1, 4)), CLIP)
    values = 1e9 + np.array([[-1.5, 0.25, 2.0, 10.0]])
    out, rows = np.empty((1, 4), np.float32), np.empty(1, np.int32)
    ZScores(tables)(values, np.zeros(1, np.int64), np.ones(1, np.bool_), out, rows)
    assert out[0].tolist() == [-1.5, 0.25, 2.0, 10.0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_tails_survive_the_overflow_of_their_product(sign: float) -> None:
    """Features so far out that the product of their factors overflows sum up all the same."""
    model = random_model(200, 0)
    tables = model.normaliser
    values = tables.centre + tables.scale * 1e8 * sign
    tail = TwoStageScorer(model).measure(values, np.zeros(1, np.int64), np.ones(1, np.bool_))[1]
    expected = oracle(model, values, np.zeros(1, np.int64)).tail
    assert expected[0] > 40  # the root of what is no exponent of a float
    np.testing.assert_allclose(tail, expected, rtol=1e-5)


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
    ready, out = np.ones(n, np.bool_), np.empty((n, 1), np.float32)
    ZScores(tables)(np.zeros((n, 1), np.float32), asked, ready, out, rows)
    np.testing.assert_array_equal(rows, tables.rows_for(asked))
    assert rows[: len(keys)].tolist() == list(range(1, len(keys) + 1))


@pytest.mark.parametrize("sizes", [(), (0, 4), (64, 64), (512, 64)])
def test_senseless_batch_sizes_are_refused(model: TwoStageModel, sizes: tuple[int, ...]) -> None:
    """Sizes must ascend from at least one."""
    with pytest.raises(ValueError, match="sizes"):
        CompiledForward(model, fold(model.weights), sizes)


def test_plain_sum_is_available(model: TwoStageModel) -> None:
    """The reference setting adds both errors as they are; the tails only raise the severity."""
    stage1, stage2, tail = np.array([1.0, 2.0]), np.array([10.0, 20.0]), np.array([0.0, 3.0])
    plain = Combination("sum")
    assert plain(stage1, stage2, tail).tolist() == [11.0, 22.0]
    assert plain.without_stage2()(stage1, stage2, tail).tolist() == [1.0, 2.0]
    assert [plain.severity(s, 11.0, t) for s, t in ((11.0, 0.0), (22.0, 3.0))] == [1.0, 8.0]
    known = replace(model, combination=plain, rarity=None)
    score = known.score(stage1, stage2, tail, np.zeros(2), np.zeros(2, np.int32))
    assert score.tolist() == [11.0, 22.0]


def test_score_is_positive_and_ranks_as_its_parts(model: TwoStageModel) -> None:
    """It rises with each part, near 0 far below the median, without bound above; NaN stays NaN."""
    rows = np.zeros(50, np.int32)
    for part in range(3):
        parts = [np.full(50, 0.5) for _ in range(3)]
        parts[part] = np.geomspace(1e-6, 1e9, 50)
        score = model.score(*parts, np.zeros(50), rows)
        assert (score > 0).all()
        assert (np.diff(score) > 0).all()
    nothing = np.zeros(1)
    assert np.isnan(model.score(np.full(1, np.nan), nothing, nothing, nothing, rows[:1])[0])
    assert model.combination.severity(6.0, 3.0, 9.0) == 2.0


def test_a_lone_feature_raises_the_score_by_itself(model: TwoStageModel) -> None:
    """Far out, its decades are the score's, whatever the networks say, and half of the shares."""
    rarity = model.rarity
    assert rarity is not None
    column = int(rarity.lone[1])
    values = model.normaliser.centre[1].astype(np.float32)[None, :].repeat(3, axis=0)
    ready, rows = np.ones(3, np.bool_), np.ones(3, np.int32)
    values[1:, column] += (np.array([5.0, 40.0]) * model.normaliser.scale[1, column]).astype("f4")
    alone = rarity.alone(values, rows, ready)
    assert alone[0] == 0.0
    assert 0.0 < alone[1] < alone[2]
    score = rarity.score(np.full(3, -1.0), alone, rows)
    np.testing.assert_allclose(score[1:], 10 ** (alone[1:] / 4))
    quiet = replace(model, combination=replace(model.combination, centre1=50.0, centre2=50.0))
    share = TwoStageScorer(quiet).explain(values, np.full(3, 10, np.int64)).share
    assert share[2].argmax() == column
    assert share[2, column] >= 0.5
    np.testing.assert_allclose(share.sum(axis=1), 1.0)
    assert np.isnan(rarity.alone(values, rows, ~ready)).all()


def test_score_without_stage_2_has_it_at_its_median(tmp_path: Path) -> None:
    """Leaving stage 2 out is the same as an error at its median."""
    scorer = Scorer(random_artifact(tmp_path / "m"))
    median = np.array([np.exp(scorer.model.combination.centre2)])
    for key, row in ((10, 1), (7, 0)):
        facts = np.array([3.0]), median, np.array([2.0]), np.zeros(1), np.array([row], np.int32)
        expected = scorer.model.score(*facts)[0]
        assert scorer.without_stage2(key, 3.0, 2.0, 0.0) == pytest.approx(expected, rel=1e-6)


def test_warm_scorer_compiles_nothing_more(model: TwoStageModel) -> None:
    """After `warm`, blocks of every size, from another thread too, trace no further function."""
    tf = load_tensorflow()
    forward = CompiledForward(model, fold(model.weights), (8, 32))
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
