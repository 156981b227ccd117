"""The synthetic market: its statistics, a book that follows its events, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from detector import kernels_synthetic
from detector.planting import plan
from detector.synthetic import (
    DEMO_LIVE_S,
    DEMO_PLANTS,
    DEMO_SEPARATION_S,
    DEMO_START_NS,
    DEMO_TRAIN_S,
    SYNTHETIC_PUBLISHER,
    Instrument,
    Market,
    demo_market,
    demo_plan,
    gather,
    generate,
)
from detector.ticks import NS_PER_S, TICK, TickArray, TickBatch, stable_instrument_id

START = DEMO_START_NS
LIVELY = Instrument("LIVELY", price=50.0, tick_size=0.01, rate_hz=60.0, spread_ticks=2.5)
QUIET = Instrument("QUIET", price=4.0, tick_size=0.0005, rate_hz=12.0, lot=100, trade_share=0.1)
SMALL = Market((LIVELY, QUIET), seed=11)


def ticks_of(batch: TickBatch, instrument: Instrument) -> TickArray:
    """Rows of one instrument."""
    return batch.ticks[batch.ticks["instrument_id"] == instrument.instrument_id]


@pytest.fixture(scope="module")
def stream() -> TickBatch:
    """Twenty minutes of the small market."""
    return gather(generate(SMALL, START, 1200.0))


def test_same_seed_same_bytes() -> None:
    """Two runs of one definition agree in every byte."""
    one, two = (gather(generate(SMALL, START, 30.0)) for _ in range(2))
    assert one.ticks.tobytes() == two.ticks.tobytes()


def test_another_seed_another_market() -> None:
    """The seed reaches the ticks."""
    other = Market(SMALL.instruments, seed=12)
    one, two = gather(generate(SMALL, START, 10.0)), gather(generate(other, START, 10.0))
    assert one.ticks.tobytes() != two.ticks.tobytes()


def test_neighbours_change_nothing(stream: TickBatch) -> None:
    """An instrument's ticks are the same whichever instruments trade beside it."""
    alone = gather(generate(Market((QUIET,), seed=11), START, 1200.0))
    assert alone.ticks.tobytes() == ticks_of(stream, QUIET).tobytes()


def test_longer_run_begins_with_the_shorter_one(stream: TickBatch) -> None:
    """The duration cuts the stream and changes nothing before the cut."""
    short = gather(generate(SMALL, START, 100.0))
    assert short.ticks.tobytes() == stream.ticks[: len(short)].tobytes()


def test_rows_are_whole_records(stream: TickBatch) -> None:
    """Headers, identity, offsets and symbols are those of MBP-1 ticks of this market."""
    assert stream.ticks.dtype == TICK
    assert set(stream.ticks["length"].tolist()) == {20}
    assert set(stream.ticks["rtype"].tolist()) == {1}
    assert set(stream.ticks["publisher_id"].tolist()) == {SYNTHETIC_PUBLISHER}
    assert set(stream.keys.tolist()) == set(SMALL.symbols)
    assert stream.symbols == SMALL.symbols
    assert stream.offsets.tolist() == list(range(len(stream)))
    assert stable_instrument_id("QUIET") in set(stream.ticks["instrument_id"].tolist())


def test_times_and_sequences_ascend(stream: TickBatch) -> None:
    """Event times ascend over all, strictly within an instrument, as do its sequence numbers."""
    assert np.all(np.diff(stream.ts_event) >= 0)
    assert stream.ts_event[0] >= START
    assert stream.ts_event[-1] < START + 1200 * NS_PER_S
    for one in SMALL.instruments:
        ticks = ticks_of(stream, one)
        assert np.all(np.diff(ticks["ts_event"].astype(np.int64)) > 0)
        assert ticks["sequence"].tolist() == list(range(1, len(ticks) + 1))
        assert np.all(ticks["ts_recv"] >= ticks["ts_event"])
        assert np.all(np.diff(ticks["ts_recv"].astype(np.int64)) >= 0)
        latency = (ticks["ts_recv"] - ticks["ts_event"]).mean()
        assert latency == pytest.approx(one.latency_ns, rel=0.1)


@pytest.mark.parametrize("one", SMALL.instruments, ids=lambda one: one.symbol)
def test_book_is_sound(stream: TickBatch, one: Instrument) -> None:
    """Prices lie on the grid, the bid below the ask, and no side is without a lot per order."""
    ticks = ticks_of(stream, one)
    grid = round(one.tick_size * 1e9)
    for name in ("price", "bid_px", "ask_px"):
        assert np.all(ticks[name] > 0)
        assert np.all(ticks[name] % grid == 0)
    assert np.all(ticks["bid_px"] < ticks["ask_px"])
    for side in ("bid", "ask"):
        assert np.all(ticks[f"{side}_ct"] >= 1)
        assert np.all(ticks[f"{side}_sz"] >= ticks[f"{side}_ct"] * one.lot)
    assert np.all(ticks["size"] >= one.lot)
    assert np.all(ticks["size"] % one.lot == 0)


@pytest.mark.parametrize("one", SMALL.instruments, ids=lambda one: one.symbol)
@pytest.mark.parametrize(("code", "side", "sign"), [("A", "bid", -1), ("B", "ask", 1)])
def test_trade_takes_from_the_side_it_hits(
    stream: TickBatch, one: Instrument, code: str, side: str, sign: int
) -> None:
    """A trade prints at the best price before it and takes its size away, or the whole level."""
    ticks = ticks_of(stream, one)
    rows = np.flatnonzero((ticks["action"] == ord("T")) & (ticks["side"] == ord(code)))
    rows = rows[rows > 0]
    assert len(rows) > 100
    before, after = ticks[rows - 1], ticks[rows]
    other = "ask" if side == "bid" else "bid"
    assert np.array_equal(after["price"], before[f"{side}_px"])
    whole = after["size"] == before[f"{side}_sz"]
    assert 0 < whole.sum() < len(rows)
    left = before[f"{side}_sz"] - after["size"]
    assert np.array_equal(after[f"{side}_sz"][~whole], left[~whole])
    assert np.array_equal(after[f"{side}_px"][~whole], before[f"{side}_px"][~whole])
    moved = (after[f"{side}_px"] - before[f"{side}_px"])[whole] * sign
    assert np.all(moved > 0)
    for name in ("px", "sz", "ct"):
        assert np.array_equal(after[f"{other}_{name}"], before[f"{other}_{name}"])


@pytest.mark.parametrize("one", SMALL.instruments, ids=lambda one: one.symbol)
@pytest.mark.parametrize(("code", "side", "sign"), [("B", "bid", 1), ("A", "ask", -1)])
def test_additions_and_cancels_move_their_queue(
    stream: TickBatch, one: Instrument, code: str, side: str, sign: int
) -> None:
    """Additions join the best or better it; cancels take one order, and the last one the level."""
    ticks = ticks_of(stream, one)
    mine = ticks["side"] == ord(code)
    for action, change in (("A", 1), ("C", -1)):
        rows = np.flatnonzero((ticks["action"] == ord(action)) & mine)
        rows = rows[rows > 0]
        before, after = ticks[rows - 1], ticks[rows]
        same = before[f"{side}_px"] == after[f"{side}_px"]
        orders = after[f"{side}_ct"].astype(int) - before[f"{side}_ct"]
        assert np.all(orders[same] == change)
        better = (after[f"{side}_px"] - before[f"{side}_px"]) * sign
        assert np.all(better * change >= 0)
        assert np.any(~same)
        if action == "A":
            added = after[f"{side}_sz"][same] - before[f"{side}_sz"][same]
            assert np.array_equal(added, after["size"][same])
            assert np.array_equal(after["price"], after[f"{side}_px"])
            assert np.array_equal(after["size"][~same], after[f"{side}_sz"][~same])
        else:
            assert np.array_equal(after["price"], before[f"{side}_px"])
            assert np.array_equal(after["size"][~same], before[f"{side}_sz"][~same])


@pytest.mark.parametrize("one", SMALL.instruments, ids=lambda one: one.symbol)
def test_statistics_are_those_asked_for(stream: TickBatch, one: Instrument) -> None:
    """Rate and trade share are near their parameters; arrivals cluster; sizes have a heavy tail."""
    ticks = ticks_of(stream, one)
    gaps = np.diff(ticks["ts_event"].astype(np.int64))
    assert len(ticks) / 1200.0 == pytest.approx(one.rate_hz, rel=0.15)
    assert gaps.std() / gaps.mean() > 1.3
    share = {code: np.mean(ticks["action"] == ord(code)) for code in "ACMT"}
    assert share["T"] == pytest.approx(one.trade_share, abs=0.01)
    assert share["M"] == pytest.approx(one.modify_share, abs=0.01)
    assert share["A"] + share["C"] > 0.8
    assert ticks["size"].max() > 10 * np.median(ticks["size"])


@pytest.mark.parametrize("one", SMALL.instruments, ids=lambda one: one.symbol)
def test_spread_reverts_and_price_stays_near(stream: TickBatch, one: Instrument) -> None:
    """The spread falls back from wide states, and 20 minutes stay within 10 % of the reference."""
    ticks = ticks_of(stream, one)
    spread = (ticks["ask_px"] - ticks["bid_px"]) / round(one.tick_size * 1e9)
    assert spread.mean() < 2 * one.spread_ticks
    wide = np.flatnonzero(spread[:-50] >= spread.mean() + 2)
    assert len(wide) > 20
    assert spread[wide + 50].mean() < spread[wide].mean() - 1
    mid = (ticks["bid_px"] + ticks["ask_px"]) * 0.5e-9
    assert np.abs(mid / one.price - 1.0).max() < 0.1
    assert len(np.unique(mid)) > 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rate_hz": 0.0}, "rate_hz=0.0"),
        ({"price": float("nan")}, "price=nan"),
        ({"spread_ticks": 0.5}, "spread_ticks=0.5"),
        ({"tick_size": 1.5e-9}, "multiples"),
        ({"trade_share": -0.1}, "trade_share=-0.1"),
        ({"lot": 0}, "lot=0"),
    ],
)
def test_instrument_refuses(change: dict[str, float], message: str) -> None:
    """A parameter out of range is named, with its value."""
    with pytest.raises(ValueError, match=message):
        Instrument("X", **change)  # type: ignore[arg-type]


def test_market_refuses_doubles_and_nothing() -> None:
    """Two instruments of one name, or none at all, make no market."""
    with pytest.raises(ValueError, match="must differ"):
        Market((LIVELY, LIVELY))
    with pytest.raises(ValueError, match="at least one"):
        Market(())


@pytest.mark.parametrize("name", ["duration_s", "chunk_s"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_generate_refuses_durations(name: str, value: float) -> None:
    """A duration that is no positive number is refused at the call, not at the first tick."""
    settings = {"duration_s": 1.0, "chunk_s": 1.0, name: value}
    with pytest.raises(ValueError, match=name):
        generate(SMALL, START, settings["duration_s"], chunk_s=settings["chunk_s"])


def test_generate_refuses_plants_elsewhere() -> None:
    """A plant of another market or outside the time is refused."""
    stranger = plan({7: "STRANGER"}, 1, START, START + 200 * NS_PER_S)
    with pytest.raises(ValueError, match="no such key"):
        generate(SMALL, START, 200.0, stranger)
    late = plan(SMALL.symbols, 1, START + 100 * NS_PER_S, START + 300 * NS_PER_S)
    with pytest.raises(ValueError, match="allowed is from"):
        generate(SMALL, START, 100.0, late)


def test_gather_of_nothing_is_empty() -> None:
    """No batches give an empty batch."""
    assert len(gather([])) == 0


def test_demo_market_is_varied() -> None:
    """The demo's instruments differ in price, grid, rate and lot by large factors."""
    instruments = demo_market().instruments
    assert len(instruments) == 20
    for name, factor in (("price", 20), ("tick_size", 50), ("rate_hz", 4), ("lot", 100)):
        values = [getattr(one, name) for one in instruments]
        assert max(values) / min(values) >= factor
    assert demo_market(1) != demo_market(2)


def test_demo_plan_leaves_training_and_warm_up_clean() -> None:
    """All plants are in the live part and after its warm-up; every kind comes three times."""
    planned = demo_plan(demo_market())
    begin = START + round((DEMO_TRAIN_S + DEMO_SEPARATION_S) * NS_PER_S)
    assert len(planned) == DEMO_PLANTS
    assert min(one.start_ns for one in planned) >= begin
    assert max(one.end_ns for one in planned) < START + (DEMO_TRAIN_S + DEMO_LIVE_S) * NS_PER_S
    kinds = [one.kind for one in planned]
    assert {kinds.count(kind) for kind in kinds} == {3}


def test_bid_never_falls_below_one_tick() -> None:
    """A bid at the lowest price of the grid is refilled there when its queue empties."""
    parameters = np.ones(kernels_synthetic.PARAMETERS)
    state = np.ones(kernels_synthetic.STATE, np.int64)
    kernels_synthetic._deplete(parameters, state, np.array([3], np.uint64), 0)
    assert state[kernels_synthetic.BID] == 1
