"""Laws of the features: what may not change what comes out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.features import FeatureBank, FeatureBlock, FeatureSpec, vector_spec
from detector.ticks import DROPPED, TICK, TickArray, TickBatch, VectorBatch
from tests.streams import START, batches, market, roughened, vectors

seeds = st.integers(0, 2**32 - 1)
cuts = st.lists(st.integers(0, 400), max_size=8)
law = settings(max_examples=25, deadline=None)

QUICK = FeatureSpec(warmup_s=2.0)  # ready within the streams here


def joined(blocks: list[FeatureBlock]) -> list[np.ndarray]:
    """Each array of the blocks, end to end."""
    names = ("values", "ready", "quality", "keys", "ts", "slots")
    return [np.concatenate([getattr(b, name) for b in blocks]) for name in names]


def same(a: list[FeatureBlock], b: list[FeatureBlock]) -> None:
    """Fail unless the blocks hold the same, to the last bit."""
    for left, right in zip(joined(a), joined(b), strict=True):
        np.testing.assert_array_equal(left, right)


def rough(seed: int, n: int = 400, instruments: int = 5) -> TickArray:
    """A rough stream."""
    return roughened(market(n, instruments, seed), seed)


@law
@given(seeds, cuts, st.integers(1, 6))
def test_batches_change_nothing(seed: int, edges: list[int], cap: int) -> None:
    """However a stream is cut into batches, the features are the same to the last bit."""
    ticks = rough(seed)
    whole, pieces = QUICK.bank(cap), QUICK.bank(cap)
    same(
        [whole.update(TickBatch.from_ticks(ticks))],
        [pieces.update(batch) for batch in batches(ticks, edges)],
    )
    assert whole.evictions == pieces.evictions


@law
@given(seeds, cuts)
def test_batches_of_vectors_change_nothing(seed: int, edges: list[int]) -> None:
    """Vectors, too, may be cut anywhere."""
    spec = vector_spec(("a", "b"))
    batch = vectors(400, 2, 3, seed)
    bank = spec.bank()
    ends = [0, *sorted(edges), 400]
    pieces = [bank.update(batch[a:b]) for a, b in pairwise(ends)]
    same([spec.bank().update(batch)], pieces)


@law
@given(seeds, seeds, st.integers(0, 400))
def test_prefix_does_not_depend_on_what_follows(seed: int, other: int, at: int) -> None:
    """No feature looks ahead: another future leaves the past as it was."""
    ticks, changed = rough(seed), rough(seed)
    changed[at:] = rough(other)[at:]
    a = QUICK.bank().update(TickBatch.from_ticks(ticks))
    b = QUICK.bank().update(TickBatch.from_ticks(changed))
    np.testing.assert_array_equal(a.values[:at], b.values[:at])
    np.testing.assert_array_equal(a.quality[:at], b.quality[:at])


@law
@given(seeds)
def test_instruments_do_not_affect_one_another(seed: int) -> None:
    """Below the cap, an instrument alone has the features that it has among others."""
    ticks = market(400, 4, seed)
    together = QUICK.bank(4).update(TickBatch.from_ticks(ticks))
    for instrument in np.unique(ticks["instrument_id"]):
        own = ticks["instrument_id"] == instrument
        alone = QUICK.bank().update(TickBatch.from_ticks(ticks[own]))
        np.testing.assert_array_equal(together.values[own], alone.values)
        np.testing.assert_array_equal(together.ready[own], alone.ready)


@law
@given(seeds, st.integers(0, 400), st.integers(1, 6))
def test_snapshot_restore_and_go_on_equals_going_on(seed: int, at: int, cap: int) -> None:
    """State that went through arrays continues to the last bit, evictions included."""
    before, after = batches(rough(seed), [at])
    bank, other = QUICK.bank(cap), QUICK.bank(cap)
    bank.update(before)
    other.update(TickBatch.from_ticks(rough(seed + 1)))  # state that restoring must replace
    other.restore(bank.snapshot())
    same([bank.update(after)], [other.update(after)])
    for name, array in bank.snapshot().items():
        np.testing.assert_array_equal(array, other.snapshot()[name])


@law
@given(seeds, st.integers(0, 300))
def test_vector_snapshot_restore_and_go_on_equals_going_on(seed: int, at: int) -> None:
    """The same for vectors."""
    spec = vector_spec(("a", "b"))
    batch = vectors(300, 2, 3, seed)
    bank, other = spec.bank(2), spec.bank(2)
    bank.update(batch[:at])
    other.restore(bank.snapshot())
    same([bank.update(batch[at:])], [other.update(batch[at:])])


@law
@given(seeds)
def test_any_bytes_give_finite_features(seed: int) -> None:
    """Random bytes in place of ticks give neither NaN nor infinity, and zeros where dropped."""
    rng = np.random.default_rng(seed)
    ticks = np.frombuffer(rng.bytes(300 * TICK.itemsize), TICK).copy()
    plausible = rng.random(300) < 0.9
    ticks["ts_event"][plausible] = START + rng.integers(0, 10**12, plausible.sum())
    ticks["publisher_id"] = 1
    ticks["instrument_id"] = rng.integers(1, 4, 300)
    ticks["action"] = rng.choice([*b"ACMTFRN", 0, 255], 300)
    ticks["side"] = rng.choice([*b"ABN", 0], 300)
    block = QUICK.bank(2).update(TickBatch.from_ticks(ticks))
    assert np.isfinite(block.values).all()
    dropped = (block.quality & DROPPED) != 0
    assert not block.values[dropped].any()
    assert not block.ready[dropped].any()
    np.testing.assert_array_equal(block.slots < 0, dropped)


@law
@given(seeds)
def test_any_vector_gives_finite_features(seed: int) -> None:
    """Any float32 values in a column give neither NaN nor infinity."""
    rng = np.random.default_rng(seed)
    values = np.frombuffer(rng.bytes(4 * 600), np.float32).reshape(300, 2)
    ts = START + np.sort(rng.integers(0, 10**15, 300))
    batch = VectorBatch(values, np.ones(300, np.int64), ts, 0, np.arange(300), np.zeros(300, "i4"))
    block = vector_spec(("a", "b")).bank().update(batch)
    assert np.isfinite(block.values).all()


@law
@given(seeds, st.integers(1, 5))
def test_eviction_keeps_the_cap_and_is_counted(seed: int, cap: int) -> None:
    """Never more instruments than the cap; each new one beyond it counts one eviction."""
    ticks = market(300, 9, seed)
    bank = QUICK.bank(cap)
    block = bank.update(TickBatch.from_ticks(ticks))
    recent: list[int] = []
    evictions = 0
    for key in block.keys.tolist():
        if key in recent:
            recent.remove(key)
        elif len(recent) == cap:
            recent.pop(0)
            evictions += 1
        recent.append(key)
    assert bank.instruments == len(recent) <= cap
    assert bank.evictions == evictions
    assert block.slots.max() < cap


@pytest.mark.parametrize("seed", range(3))
def test_features_are_free_of_scale(seed: int) -> None:
    """Prices in another currency and sizes in other lots give the same features."""
    ticks = market(600, 2, seed)
    scaled = ticks.copy()
    for name in ("price", "bid_px", "ask_px"):
        scaled[name] *= 7
    for name in ("size", "bid_sz", "ask_sz"):
        scaled[name] *= 3
    a = QUICK.bank().update(TickBatch.from_ticks(ticks))
    b = QUICK.bank().update(TickBatch.from_ticks(scaled))
    assert a.ready.any()
    np.testing.assert_allclose(a.values, b.values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_vector_features_are_free_of_scale_and_level(factor: float) -> None:
    """A column in other units has the same features."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(400, 1)).cumsum(0)
    n = len(values)
    ts = START + np.arange(n) * 10**9

    def block(x: np.ndarray) -> FeatureBlock:
        x32 = x.astype(np.float32)
        return vector_spec(("a",)).bank().update(
            VectorBatch(x32, np.ones(n, np.int64), ts, 0, np.arange(n), np.zeros(n, np.int32))
        )  # fmt: skip

    a, b = block(values), block(factor * values)
    np.testing.assert_allclose(a.values[a.ready], b.values[a.ready], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shift_s", [86_400, 10**9])
def test_the_date_does_not_matter(shift_s: int) -> None:
    """The same stream at another time has the same features: nothing reads a clock."""
    ticks = market(400, 3, 2)
    shifted = ticks.copy()
    for name in ("ts_event", "ts_recv"):
        shifted[name] += np.uint64(shift_s * 10**9)
    a = QUICK.bank().update(TickBatch.from_ticks(ticks))
    b = QUICK.bank().update(TickBatch.from_ticks(shifted))
    np.testing.assert_array_equal(a.values, b.values)


@pytest.mark.parametrize("spec", [QUICK, vector_spec(("a", "b"))])
def test_empty_batches_are_taken(spec: FeatureSpec) -> None:
    """A batch without rows gives a block without rows and changes nothing."""
    bank: FeatureBank = spec.bank()
    if spec.kind == "tick":
        block = bank.update(TickBatch.from_ticks(market(0, 1, 0)))
    else:
        block = bank.update(vectors(0, 2, 1, 0))
    assert block.values.shape == (0, len(spec.names))
    assert bank.instruments == 0
