"""Laws of the synthetic market: cuts, neighbours and plants change only what they may."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.planting import AnomalyKind, Planter, plan, plant
from detector.synthetic import DEMO_START_NS, Instrument, Market, gather, generate
from detector.ticks import NS_PER_S

START = DEMO_START_NS
SECONDS = 120
MARKET = Market(
    (
        Instrument("ONE", rate_hz=30.0, spread_ticks=3.0),
        Instrument("TWO", price=5.0, tick_size=0.001, rate_hz=15.0, lot=100),
    ),
    seed=21,
)
CLEAN = gather(generate(MARKET, START, SECONDS))
KEY = CLEAN.keys[0]
ALONE = CLEAN.ticks[CLEAN.keys == KEY]

seeds = st.integers(0, 2**32 - 1)


@settings(max_examples=15, deadline=None)
@given(chunk_s=st.floats(0.05, 2.0 * SECONDS), seed=seeds)
def test_chunks_change_nothing(chunk_s: float, seed: int) -> None:
    """Any chunk length gives the same bytes, with anomalies across the cuts."""
    plants = plan(
        MARKET.symbols, 4, START, START + SECONDS * NS_PER_S, min_separation_s=5, seed=seed
    )
    whole = gather(generate(MARKET, START, SECONDS, plants, chunk_s=2.0 * SECONDS))
    parts = list(generate(MARKET, START, SECONDS, plants, chunk_s=chunk_s))
    cut = gather(parts)
    assert cut.ticks.tobytes() == whole.ticks.tobytes()
    assert cut.offsets.tolist() == list(range(len(whole)))
    assert all(len(part) for part in parts)


@settings(max_examples=30, deadline=None)
@given(seed=seeds, cuts=st.lists(st.floats(0.0, float(SECONDS)), max_size=12))
def test_planter_may_be_fed_in_any_pieces(seed: int, cuts: list[float]) -> None:
    """A stream planted piece by piece equals the stream planted whole, wherever it is cut."""
    end = START + SECONDS * NS_PER_S
    plants = plan({int(KEY): "ONE"}, 3, START, end, min_separation_s=2, seed=seed)
    whole = plant(ALONE, plants)
    planter = Planter(plants)
    ts = ALONE["ts_event"].astype(np.int64)
    edges = [START, *sorted(START + round(cut * NS_PER_S) for cut in cuts), end]
    pieces = [
        planter.feed(ALONE[np.searchsorted(ts, low) : np.searchsorted(ts, high)], high)
        for low, high in itertools.pairwise(edges)
    ]
    assert b"".join(piece.tobytes() for piece in pieces) == whole.tobytes()


@settings(max_examples=20, deadline=None)
@given(seed=seeds)
def test_plants_leave_the_rest_alone(seed: int) -> None:
    """Outside the planted times and in other instruments every byte is that of the clean market."""
    end = START + SECONDS * NS_PER_S
    plants = plan({int(KEY): "ONE"}, 3, START, end, min_separation_s=2, seed=seed)
    planted = gather(generate(MARKET, START, SECONDS, plants))

    def ordinary(batch: object) -> bytes:
        assert isinstance(batch, type(CLEAN))
        ts = batch.ts_event
        hit = np.zeros(len(ts), bool)
        for one in plants:
            hit |= (ts >= one.start_ns) & (ts <= one.end_ns) & (batch.keys == one.key)
        return batch.ticks[~hit].tobytes()

    assert ordinary(planted) == ordinary(CLEAN)


@settings(max_examples=50, deadline=None)
@given(
    seed=seeds,
    n=st.integers(0, 40),
    instruments=st.integers(1, 5),
    separation_s=st.floats(0.0, 90.0),
)
def test_plans_keep_their_separation(
    seed: int, n: int, instruments: int, separation_s: float
) -> None:
    """An instrument's anomalies leave the asked time between them, before and after."""
    start, end = START, START + 7200 * NS_PER_S
    symbols = {number: f"S{number}" for number in range(1, instruments + 1)}
    planned = plan(symbols, n, start, end, min_separation_s=separation_s, seed=seed)
    assert len(planned) == n
    gap = round(separation_s * NS_PER_S)
    for key in symbols:
        mine = [one for one in planned if one.key == key]
        assert all(one.end_ns >= one.start_ns for one in mine)
        if mine:
            assert mine[0].start_ns >= start + gap
            assert mine[-1].end_ns + gap < end
        for one, after in itertools.pairwise(mine):
            assert after.start_ns >= one.end_ns + gap
    assert {one.kind for one in planned} <= set(AnomalyKind)


@settings(max_examples=20, deadline=None)
@given(
    seed=seeds,
    price=st.floats(1.0, 5000.0),
    rate_hz=st.floats(0.5, 2000.0),
    spread_ticks=st.floats(1.0, 12.0),
    queue_orders=st.floats(1.0, 60.0),
    trade_share=st.floats(0.0, 0.5),
    lot=st.sampled_from([1, 7, 100]),
)
def test_every_market_is_sound(
    seed: int,
    price: float,
    rate_hz: float,
    spread_ticks: float,
    queue_orders: float,
    trade_share: float,
    lot: int,
) -> None:
    """Whatever the parameters: positive grid prices, bid below ask, sizes of at least a lot."""
    one = Instrument(
        "ANY",
        price=price,
        rate_hz=rate_hz,
        spread_ticks=spread_ticks,
        queue_orders=queue_orders,
        trade_share=trade_share,
        lot=lot,
    )
    ticks = gather(generate(Market((one,), seed), START, 2000.0 / rate_hz)).ticks
    assert len(ticks) > 0
    for name in ("price", "bid_px", "ask_px"):
        assert np.all((ticks[name] > 0) & (ticks[name] % 10_000_000 == 0))
    assert np.all(ticks["bid_px"] < ticks["ask_px"])
    for side in ("bid", "ask"):
        assert np.all(ticks[f"{side}_sz"] >= ticks[f"{side}_ct"] * lot)
        assert np.all(ticks[f"{side}_ct"] >= 1)
        assert np.all(ticks[f"{side}_sz"] < 2**31)
    assert np.all(np.diff(ticks["ts_event"].astype(np.int64)) > 0)
