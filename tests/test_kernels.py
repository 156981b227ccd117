"""The kernels against slow, obvious versions of the same."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector import kernels as k
from detector.features import FeatureBlock, FeatureSpec, vector_spec
from detector.ticks import TickArray, TickBatch
from tests.oracles import TickOracle, VectorOracle
from tests.streams import market, repetitive, roughened, vectors

RTOL, ATOL = 1e-5, 2e-6

QUICK = FeatureSpec(
    warmup_s=3.0
)  # ready within the streams here, at a time that is not the first ready event


def agree(found: np.ndarray, expected: np.ndarray, names: tuple[str, ...]) -> None:
    """Fail with the worst feature's name unless the two tables agree."""
    excess = np.abs(found - expected) - (ATOL + RTOL * np.abs(expected))
    row, column = np.unravel_index(np.argmax(excess), excess.shape)
    assert excess[row, column] <= 0, (
        f"{names[column]} in row {row}: {found[row, column]}, oracle {expected[row, column]}"
    )


def compare_ticks(spec: FeatureSpec, ticks: TickArray) -> FeatureBlock:
    """Fail unless the bank's block for the stream, which is returned, equals the oracle's."""
    oracle = TickOracle(spec)
    rows = [oracle.update(tick) for tick in ticks]
    block = spec.bank().update(TickBatch.from_ticks(ticks))
    assert block.quality.tolist() == [int(quality) for _, _, quality in rows]
    assert block.ready.tolist() == [ready for _, ready, _ in rows]
    agree(block.values, np.array([values for values, _, _ in rows]), spec.names)
    return block


@pytest.mark.parametrize("seed", range(4))
def test_features_of_an_ordinary_stream_equal_the_oracle(seed: int) -> None:
    """Every feature of an ordinary market of three instruments is what its definition says."""
    compare_ticks(QUICK, market(1200, 3, seed))


@pytest.mark.parametrize("seed", range(6))
def test_features_of_a_rough_stream_equal_the_oracle(seed: int) -> None:
    """So is every feature of a stream with all that may be wrong with a feed."""
    compare_ticks(QUICK, roughened(market(1200, 3, seed), seed))


@pytest.mark.parametrize("seed", range(3))
def test_features_of_a_repetitive_stream_equal_the_oracle(seed: int) -> None:
    """What ordinary streams seldom do, this one does: undo, trade back and forth, stand, burst."""
    block = compare_ticks(QUICK, repetitive(1200, 2, seed))
    rare = ("undo", "pingpong", "same_size", "gap_", "frozen", "wash_run")
    seldom = [n for n in QUICK.names if n.startswith(rare)]
    assert len(seldom) == 12
    for name in seldom:
        assert (block.values[:, QUICK.names.index(name)] > 0).mean() > 0.01, name


def test_every_feature_moves() -> None:
    """Over an ordinary, a rough and a repetitive stream no feature stays what it is."""
    streams = (market(900, 2, 1), roughened(market(900, 2, 2), 2), repetitive(900, 2, 3))
    values = np.concatenate(
        [QUICK.bank().update(TickBatch.from_ticks(ticks)).values for ticks in streams]
    )
    still = [name for name, x in zip(QUICK.names, values.T, strict=True) if len(np.unique(x)) < 2]
    assert not still


def test_features_of_other_parameters_equal_the_oracle() -> None:
    """Windows, half-lives and slow scales of other lengths are computed by the same definitions."""
    spec = FeatureSpec(
        short_window=6,
        recent_window=4,
        half_lives_s=(0.1, 0.3, 0.7, 2.0),
        slow_window=50,
        warmup=10,
        gap_s=100.0,
    )
    compare_ticks(spec, roughened(market(800, 2, 9), 9))


@pytest.mark.parametrize("lacking", ["sizes", "trades", "cancels", "book", "sequence"])
def test_features_of_a_market_that_lacks_something_equal_the_oracle(lacking: str) -> None:
    """Markets without sizes, trades, cancels or a book have features with a defined meaning."""
    ticks = market(800, 2, 5)
    if lacking == "sizes":
        for name in ("size", "bid_sz", "ask_sz"):
            ticks[name] = 0
        ticks["action"] = ord("N")
    elif lacking == "trades":
        ticks["action"][ticks["action"] == ord("T")] = ord("A")
    elif lacking == "cancels":
        ticks = ticks[ticks["action"] != ord("C")]
    elif lacking == "book":
        ticks["action"] = ord("T")
        for name in ("bid_px", "ask_px"):
            ticks[name] = 2**63 - 1
    else:
        ticks["sequence"] = 0
    compare_ticks(QUICK, ticks)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gap_s", [0.0, 1800.0])
def test_vector_features_equal_the_oracle(seed: int, gap_s: float) -> None:
    """Every feature of a column is what its definition says, with and without session gaps."""
    spec = vector_spec(("first", "second"), gap_s=gap_s)
    batch = vectors(900, 2, 2, seed)
    oracle = VectorOracle(spec)
    rows = [
        oracle.update_vector(int(key), int(ts), [float(v) for v in values])
        for key, ts, values in zip(batch.keys, batch.ts_event, batch.values, strict=True)
    ]
    block = spec.bank().update(batch)
    assert block.quality.tolist() == [int(quality) for _, _, quality in rows]
    assert block.ready.tolist() == [ready for _, ready, _ in rows]
    agree(block.values, np.array([values for values, _, _ in rows]), spec.names)


@pytest.mark.parametrize("size", [0.0, 1e-6, 0.3, 0.5, 1.0, 7.0, 1e3, 1e9, 1e30])
def test_compress_is_a_signed_logarithm(size: float) -> None:
    """The vectorised logarithm is that of the library, to the last bits of a float32."""
    x = np.linspace(-size, size, 97, dtype=np.float32).reshape(1, -1)
    values = x.copy()
    k.compress(values, 96)
    expected = np.sign(x) * np.log1p(np.abs(x.astype(np.float64)))
    np.testing.assert_allclose(values[:, :96], expected[:, :96], rtol=2e-7, atol=2e-7)
    assert values[0, 96] == x[0, 96]


def test_compress_of_infinity_is_finite() -> None:
    """A ratio beyond the range of float32 counts as 1e30."""
    values = np.array([[np.inf, -np.inf]], np.float32)
    k.compress(values, 2)
    np.testing.assert_allclose(values, [[69.07755, -69.07755]], rtol=1e-6)


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=300), st.integers(1, 8))
def test_key_table_and_eviction_equal_an_ordered_dict(
    steps: list[tuple[int, bool]], capacity: int
) -> None:
    """Whatever comes, the table finds what an ordered dict of the same capacity holds."""
    # A table that is nearly full, and keys with equal homes: long probes that wrap around its end.
    size = 16
    alike = [n for n in range(4000) if k.home(n, size - 1) in {14, 15, 0}][:13]
    table = np.full(size, -1, np.int32)
    keys = np.zeros(capacity, np.int64)
    links = np.full((capacity + 1, 2), -1, np.int32)
    links[capacity] = capacity
    head = np.zeros(k.H_SIZE, np.int64)
    model: OrderedDict[int, int] = OrderedDict()
    evictions = 0
    for pick, look in steps:
        key = alike[pick]
        assert k.find(key, table, keys) == model.get(key, -1)
        if look and key not in model:
            continue
        if key not in model:
            slot = len(model)
            if len(model) == capacity:
                _, slot = model.popitem(last=False)
                evictions += 1
            assert k.claim(key, table, keys, links, head) == slot
            model[key] = slot
        model.move_to_end(key)
        k.touch(model[key], links)
        order = np.empty(len(model), np.int32)
        k.order_of(links, order)
        assert order.tolist() == list(model.values())
    assert all(k.find(key, table, keys) == model.get(key, -1) for key in alike)
    assert head[k.H_USED] == len(model)
    assert head[k.H_EVICTIONS] == evictions
