"""Drift: the kernel against a slow oracle, what the index says, and that it never reads ahead."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector import kernels_drift as k
from detector.drift import (
    BINS,
    LEAST_SHARE,
    NO_EDGE,
    Drift,
    DriftBook,
    DriftCounts,
    DriftReference,
    DriftSpec,
    bin_edges,
    count_by_row,
    drift_of,
    expected,
    stability,
    z_scores,
)
from detector.features import FeatureBlock, vector_spec
from detector.latents import latent_messages
from detector.model import Normaliser
from detector.pipeline import Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.ticks import TickBatch, VectorBatch
from tests.models import block_of, part_of, random_artifact
from tests.streams import HOUR, START, market

FEATURES = 4
WINDOW_S = 600.0


def normaliser(seed: int = 0) -> Normaliser:
    """Two known instruments, keys 10 and 20."""
    rng = np.random.default_rng(seed)
    shape = (3, FEATURES)
    return Normaliser(np.array([10, 20]), rng.normal(size=shape), rng.uniform(0.5, 2.0, shape), 3.0)


def histogram(columns: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Histograms `(E, BINS)` of columns."""
    counts = np.zeros((1, len(edges), BINS), np.int32)
    count_by_row(columns, np.zeros(len(columns), np.int32), edges, counts)
    return np.asarray(counts[0])


def reference(seed: int = 0) -> DriftReference:
    """A reference of normal features, one of them mostly 0, and of a skewed score."""
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(5_000, FEATURES + 1)).astype(np.float32)
    columns[:, 1] *= rng.random(5_000) < 0.3
    columns[:, -1] = np.exp(columns[:, -1])
    edges = bin_edges(columns)
    names = tuple(f"f{j}" for j in range(FEATURES))
    counts = np.tile(histogram(columns, edges), (3, 1, 1))
    return DriftReference(names, normaliser(), edges, counts)


def rows(n: int, seed: int = 1, wait_s: float = 1.0) -> tuple[FeatureBlock, np.ndarray]:
    """Feature rows of three instruments, one unknown and some not ready, and their scores."""
    rng = np.random.default_rng(seed)
    keys = rng.choice(np.array([10, 20, 77]), n)
    ready = rng.random(n) < 0.8
    block = block_of(rng.normal(size=(n, FEATURES)).astype(np.float32), keys, ready)
    waits = rng.exponential(wait_s * 1e9, n).astype(np.int64)
    late = rng.integers(0, 2, n) * rng.integers(0, 5 * 10**9, n)  # time may go back a little
    score = np.where(ready, rng.exponential(size=n), np.nan)
    return replace(block, ts=START + np.cumsum(waits) - late), score


def run(book: DriftBook, block: FeatureBlock, score: np.ndarray, *cuts: int) -> DriftBook:
    """Update a book by the block, cut at these places."""
    edges = [0, *sorted(cuts), len(block)]
    for a, b in itertools.pairwise(edges):
        part = part_of(block, slice(a, b))
        book.update(part, normaliser().rows_for(part.keys), score[a:b])
    return book


def oracle(
    ref: DriftReference, spec: DriftSpec, block: FeatureBlock, score: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Count the sampled rows of the last two windows, one by one, the visits after the bins."""
    tables = ref.normaliser
    kept: list[tuple[int, int, list[float]]] = []
    present = None
    for number, i in enumerate(np.flatnonzero(block.ready).tolist(), start=1):
        if number % spec.every:
            continue
        own = int(block.ts[i]) // round(spec.window_s * 1e9) if spec.window_s else 0
        present = own if present is None else max(present, own)
        row = tables.rows_for(block.keys[i : i + 1])[0]
        z = (block.values[i] - tables.centre[row]) * (1.0 / tables.scale[row])
        kept.append((present, int(row), [*z.astype(np.float32), np.float32(score[i])]))
    counts, visits = np.zeros((FEATURES + 1, BINS), np.int64), np.zeros(3, np.int64)
    last_two = sorted({window for window, _, _ in kept})[-2:]
    for window, row, values in kept:
        if window in last_two:
            visits[row] += 1
            for j, value in enumerate(values):
                counts[j, sum(value >= edge for edge in ref.edges[j])] += 1
    return counts, visits


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize(
    ("window_s", "wait_s"), [(0.0, 1.0), (WINDOW_S, 1.0), (WINDOW_S, 20.0), (WINDOW_S, 900.0)]
)
def test_counts_equal_the_oracle(every: int, window_s: float, wait_s: float) -> None:
    """Bins, sampling and windows, with a stream inside one window, over many, and with gaps."""
    spec = DriftSpec(every, window_s)
    block, score = rows(1_500, wait_s=wait_s)
    found = run(DriftBook(reference(), spec), block, score).counts()
    bins, visits = oracle(reference(), spec, block, score)
    np.testing.assert_array_equal(found.bins, bins)
    np.testing.assert_array_equal(found.visits, visits)
    assert visits.sum() > 0


@given(st.lists(st.integers(0, 400), max_size=6), st.integers(1, 9))
def test_batches_change_nothing(cuts: list[int], every: int) -> None:
    """However a stream is cut, state and counts are the same."""
    spec = DriftSpec(every, WINDOW_S)
    block, score = rows(400, wait_s=6.0)
    whole = run(DriftBook(reference(), spec), block, score).snapshot()
    parts = run(DriftBook(reference(), spec), block, score, *cuts).snapshot()
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array)


@given(st.integers(0, 400))
def test_restored_book_goes_on_as_if_nothing_had_been(cut: int) -> None:
    """Snapshot, restore into a fresh book, go on: equal to going on."""
    spec = DriftSpec(7, WINDOW_S)
    block, score = rows(400, wait_s=6.0)
    whole = run(DriftBook(reference(), spec), block, score).snapshot()
    first = run(DriftBook(reference(), spec), part_of(block, slice(0, cut)), score[:cut])
    second = DriftBook(reference(), spec)
    second.restore(first.snapshot())
    run(second, part_of(block, slice(cut, None)), score[cut:])
    for name, array in second.snapshot().items():
        np.testing.assert_array_equal(array, whole[name])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("head"), "needed"),
        (lambda s: s.update(counts=s["counts"][:, 1:]), "counts is"),
        (lambda s: s.update(head=s["head"].astype(np.int32)), "head is"),
        (lambda s: s.update(counts=s["counts"] - 1), "negative"),
    ],
)
def test_wrong_snapshot_is_refused_and_changes_nothing(change: object, words: str) -> None:
    """Another shape, type, name or a negative count is named, and the state stays."""
    book = run(DriftBook(reference(), DriftSpec(1, 0.0)), *rows(100))
    before, wrong = book.snapshot(), book.snapshot()
    change(wrong)  # type: ignore[operator]
    with pytest.raises(ValueError, match=words):
        book.restore(wrong)
    np.testing.assert_array_equal(book.snapshot()["counts"], before["counts"])


def test_only_the_present_window_and_the_last_before_it_count() -> None:
    """Of the last window all is left, of the one before it nothing; a gap does not matter."""
    block, score = rows(50, wait_s=0.001)
    block = replace(block, ready=np.ones(50, np.bool_), ts=np.full(50, START // HOUR * HOUR))
    score = np.ones(50)
    book = DriftBook(reference(), DriftSpec(1, 3600.0))
    run(book, block, score)
    run(book, replace(block, ts=block.ts + HOUR), score)
    assert book.counts().visits.sum() == 100
    run(book, replace(block, ts=block.ts + 2 * HOUR), score)
    assert book.counts().visits.sum() == 100
    run(book, replace(block, ts=block.ts + 5 * HOUR), score)
    assert book.counts().visits.sum() == 100
    run(book, block, score)  # a day played again counts where the clock is
    assert book.counts().visits.sum() == 150
    run(book, replace(block, ts=block.ts + 6 * HOUR), score)
    assert book.counts().visits.sum() == 150


def test_stability_equals_the_formula() -> None:
    """The index of two small histograms, by hand; equal shares give 0."""
    q, p = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.4, 0.4])
    by_hand = -0.3 * np.log(0.2 / 0.5) + 0.1 * np.log(0.4 / 0.3) + 0.2 * np.log(0.4 / 0.2)
    assert stability(q, p) == pytest.approx(by_hand)
    assert stability(q, q) == 0.0


def test_empty_bin_is_finite() -> None:
    """A bin without a row counts as the least share, on either side."""
    index = stability(np.array([1.0, 0.0]), np.array([0.9, 0.1]))
    by_hand = -0.1 * np.log(0.9) + (0.1 - LEAST_SHARE) * np.log(0.1 / LEAST_SHARE)
    assert index == pytest.approx(by_hand)
    assert np.isfinite(stability(np.array([0.9, 0.1]), np.array([1.0, 0.0])))


def test_expectation_is_that_of_independent_rows() -> None:
    """Over 400 undrifted samples the mean index is (B - 1)(1/n + 1/m), within a tenth."""
    rng = np.random.default_rng(0)
    n, m = 2_000, 5_000
    found = rng.multinomial(n, np.full(BINS, 1 / BINS), 400)
    references = rng.multinomial(m, np.full(BINS, 1 / BINS), 400)
    mean = stability(references / m, found / n).mean()
    want = 9 * (1 / n + 1 / m)
    assert mean == pytest.approx(want, rel=0.1)
    assert expected(references[0] / m, n, np.array(m)) == pytest.approx(want)


def test_another_mix_of_the_same_instruments_is_no_drift() -> None:
    """Two instruments that look different: any mix of them is as expected, an exchange is not."""
    rng = np.random.default_rng(3)
    tables = normaliser()

    def columns(n: int, row: int) -> np.ndarray:
        return (rng.normal(size=(n, FEATURES + 1)) + row).astype(np.float32)

    edges = bin_edges(np.concatenate([columns(4_000, 1), columns(1_000, 2)]))
    counts = np.zeros((3, FEATURES + 1, BINS), np.int32)
    for row, n in ((1, 4_000), (2, 1_000)):
        counts[row] = histogram(columns(n, row), edges)
    counts[0] = counts.sum(axis=0)
    ref = DriftReference(("a", "b", "c", "d"), tables, edges, counts)

    def drift(rows: tuple[int, int], looks: tuple[int, int]) -> Drift:
        bins = sum(
            histogram(columns(n, look), edges).astype(np.int64)
            for n, look in zip(rows, looks, strict=True)
        )
        return drift_of(ref, DriftCounts(np.asarray(bins), np.array([0, *rows])))

    for rows in ((8_000, 2_000), (1_000, 9_000), (0, 10_000)):
        calm = drift(rows, (1, 2))
        assert max(calm.features.max(), calm.score) < 0.01
    exchanged = drift((5_000, 5_000), (2, 2))
    assert exchanged.features.min() > 0.1
    # An instrument that was not trained on is compared with all of them together.
    unknown = DriftCounts(
        histogram(columns(10_000, 2), edges).astype(np.int64), np.array([10_000, 0, 0])
    )
    assert drift_of(ref, unknown).features.min() > 0.25


def test_instrument_without_rows_of_its_own_is_compared_with_all() -> None:
    """Where an instrument has no reference rows, those of all are taken: no drift, no division."""
    ref = reference()
    counts = ref.counts.copy()
    counts[2] = 0
    found = DriftCounts(ref.counts[0].astype(np.int64), np.array([0, 0, 5_000]))
    drift = drift_of(replace(ref, counts=counts), found)
    assert (drift.features.max(), drift.score, drift.rows) == (0.0, 0.0, 5_000)


def test_edges_of_a_continuous_column_are_its_tenths() -> None:
    """Ten bins with a tenth of the rows each."""
    column = np.random.default_rng(0).normal(size=(1_000, 1)).astype(np.float32)
    counts = histogram(column, bin_edges(column))
    np.testing.assert_array_equal(counts, np.full((1, BINS), 100))


def test_a_common_value_has_a_bin_of_its_own() -> None:
    """Zeros in seven of ten rows: one bin holds them and nothing else, at either end too."""
    rng = np.random.default_rng(0)
    for spread in (rng.normal(size=1_000), rng.exponential(size=1_000)):
        column = (spread * (np.arange(1_000) % 10 >= 7)).astype(np.float32)[:, None]
        counts = histogram(column, bin_edges(column))
        assert 700 in counts
        assert (counts.sum(), counts.max()) == (1_000, 700)


def test_a_column_that_never_moved_is_seen_to_move() -> None:
    """Its value has a bin; a row below or above it falls into another."""
    edges = bin_edges(np.full((100, 1), 2.5, np.float32))
    assert (edges[0] == NO_EDGE).sum() == BINS - 3
    three = np.array([[2.4], [2.5], [2.6]], np.float32)
    assert histogram(three, edges)[0, :3].tolist() == [1, 1, 1]


def test_same_distribution_is_no_drift_and_a_shift_is() -> None:
    """Fresh rows of the reference's distribution: below 0.01; shifted by one deviation: moved."""
    rng = np.random.default_rng(5)
    ref = reference()
    tables = ref.normaliser
    n = 20_000

    def drift(shift: float) -> Drift:
        z = rng.normal(size=(n, FEATURES))
        z[:, 0] += shift
        values = (tables.centre[2] + tables.scale[2] * z).astype(np.float32)
        book = DriftBook(ref, DriftSpec(1, 0.0))
        rows = np.full(n, 2, np.int32)
        book.update(block_of(values, np.full(n, 20)), rows, np.exp(rng.normal(size=n)))
        return drift_of(ref, book.counts())

    same = [0, 2, 3]  # feature 1 is mostly 0 in the reference
    calm, moved = drift(0.0), drift(1.0)
    assert max(calm.features[same].max(), calm.score) < 0.01
    assert moved.features[same].argmax() == 0
    assert moved.features[0] > 0.5
    assert moved.top(2) == [("f1", moved.features[1]), ("f0", moved.features[0])]
    assert moved.moved == calm.moved + 1 == 2


def test_partitions_are_taken_together() -> None:
    """Two books compared together are one book of both streams."""
    ref, spec = reference(), DriftSpec(1, 0.0)
    one = run(DriftBook(ref, spec), *rows(500, seed=1))
    two = run(DriftBook(ref, spec), *rows(700, seed=2))
    both = run(run(DriftBook(ref, spec), *rows(500, seed=1)), *rows(700, seed=2))
    together = drift_of(ref, one.counts() + two.counts())
    alone = drift_of(ref, both.counts())
    np.testing.assert_array_equal(together.features, alone.features)
    assert (together.rows, together.score) == (alone.rows, alone.score)


def test_z_scores_are_those_that_are_counted() -> None:
    """A reference made of the very rows counted has no drift at all, to the last row."""
    block, score = rows(3_000)
    tables = normaliser()
    where = tables.rows_for(block.keys[block.ready])
    z = z_scores(tables, block.values[block.ready], where)
    columns = np.column_stack([z, score[block.ready].astype(np.float32)])
    edges = bin_edges(columns)
    counts = np.zeros((3, FEATURES + 1, BINS), np.int32)
    count_by_row(columns, where, edges, counts)
    ref = DriftReference(("a", "b", "c", "d"), tables, edges, counts)
    found = run(DriftBook(ref, DriftSpec(1, 0.0)), block, score).counts()
    np.testing.assert_array_equal(found.bins, counts.sum(axis=0))
    np.testing.assert_array_equal(found.visits, np.bincount(where, minlength=3))


@pytest.mark.parametrize(
    "wrong", [{"every": 0}, {"window_s": -1.0}, {"window_s": float("nan")}, {"least_rows": 0}]
)
def test_spec_refuses_what_makes_no_sense(wrong: dict[str, float]) -> None:
    """A parameter outside of what is allowed is named."""
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DriftSpec(**wrong)  # type: ignore[arg-type]


def test_pipeline_counts_each_partition_and_forgets_it(tmp_path: Path) -> None:
    """Every `every`-th ready tick is counted, in any batches; a released partition is gone."""
    artifact = random_artifact(tmp_path / "model")
    batch = TickBatch.from_ticks(market(9_000, 3, seed=2))
    spec = PipelineSpec(drift=DriftSpec(5, 86_400.0, least_rows=10))
    whole = Pipeline(artifact.features, Scorer(artifact), spec)
    assert whole.drift() is None
    ready = int(whole.process(batch).blocks[0].ready.sum())
    found = whole.drift()
    assert found is not None
    assert found.rows == ready // 5 > 100
    parts = Pipeline(artifact.features, Scorer(artifact), spec)
    for start in range(0, len(batch), 700):
        parts.process(batch[start : start + 700])
    again = parts.drift()
    assert again is not None
    np.testing.assert_array_equal(again.features, found.features)
    both = parts.process(replace(batch, partition=4))
    assert both.blocks[0].ready.sum() == ready
    together = parts.drift()
    assert together is not None
    assert together.rows == 2 * found.rows
    for partition in (0, 4):
        parts.release(partition)
    assert parts.drift() is None


def test_nothing_is_said_of_few_rows(tmp_path: Path) -> None:
    """Below the least number of rows there is no drift to speak of; without a spec, never."""
    artifact = random_artifact(tmp_path / "model")
    batch = TickBatch.from_ticks(market(9_000, 3, seed=2))
    for spec in (DriftSpec(5, 0.0, least_rows=1_000_000), None):
        pipeline = Pipeline(artifact.features, Scorer(artifact), PipelineSpec(drift=spec))
        pipeline.process(batch)
        assert pipeline.drift() is None


def test_window_never_starts_in_the_state_of_an_unused_book() -> None:
    """A book that counted nothing yet says so."""
    book = DriftBook(reference(), DriftSpec())
    assert book.snapshot()["head"].tolist() == [0, k.NEVER]
    assert book.counts().bins.sum() == 0
    assert drift_of(reference(), book.counts()).rows == 0


def test_vectors_drift_and_have_latents_too(tmp_path: Path) -> None:
    """A model of columns counts its features, and its rows' latents go out."""
    spec = vector_spec(("a", "b"))
    artifact = random_artifact(tmp_path / "model", spec)
    n = 3_000
    rng = np.random.default_rng(4)
    batch = VectorBatch(
        rng.normal(size=(n, 2)).astype(np.float32),
        rng.integers(1, 4, n),
        START + np.arange(n) * 60 * 10**9,
        0,
        np.arange(n),
        np.zeros(n, np.int32),
    )
    wanted = PipelineSpec(latent=True, drift=DriftSpec(every=1, window_s=0.0))
    pipeline = Pipeline(spec, Scorer(artifact), wanted)
    part = pipeline.prepare(batch)
    scores = pipeline.finish([part]).scores[0]
    found, ready = pipeline.drift(), int(part.block.ready.sum())
    assert found is not None
    assert (found.rows, found.names) == (ready, spec.names)
    sent = list(latent_messages(batch, part.block, scores, artifact.model_hash))
    assert (len(sent), sum(map(len, sent))) == (3, ready)
