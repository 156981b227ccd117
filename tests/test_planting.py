"""Planted anomalies: each kind does what its description says, and nothing else changes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from detector.planting import RANGES, AnomalyKind, Planted, Planter, plan, plant
from detector.scripts import STEP, WHOLE, draw_parameters, script
from detector.synthetic import DEMO_START_NS, Instrument, Market, gather, generate
from detector.ticks import NS_PER_S, TICK, UNDEFINED_PRICE, TickArray

START = DEMO_START_NS
MARKET = Market((Instrument("PLANTED", price=80.0, rate_hz=40.0, spread_ticks=4.0),), seed=5)
ONE_TICK = Market((Instrument("TIGHT", price=20.0, tick_size=0.01, spread_ticks=1.0),), seed=6)
BOOK = ("bid_px", "ask_px", "bid_sz", "ask_sz", "bid_ct", "ask_ct")
KINDS = tuple(AnomalyKind)
WITH_STEPS = [k for k in KINDS if k not in (AnomalyKind.FROZEN_QUOTES, AnomalyKind.FEED_GAP)]
CENT = 10_000_000
KEY = next(iter(MARKET.symbols))


@pytest.fixture(scope="module")
def clean() -> TickArray:
    """Four minutes without an anomaly."""
    return gather(generate(MARKET, START, 240.0)).ticks


def one_of(kind: AnomalyKind, seed: int = 0, symbols: dict[int, str] | None = None) -> Planted:
    """Plan one anomaly of a kind within the four minutes."""
    names = symbols or MARKET.symbols
    return plan(names, 1, START, START + 240 * NS_PER_S, kinds=[kind], seed=seed)[0]


def within(ticks: TickArray, planned: Planted) -> np.ndarray:
    """Mask of the ticks in the time of an anomaly."""
    ts = ticks["ts_event"].astype(np.int64)
    return (ts >= planned.start_ns) & (ts <= planned.end_ns)


def inserted(clean: TickArray, ticks: TickArray, planned: Planted) -> TickArray:
    """Return the ticks of an anomaly's time that the clean stream has not."""
    known = set(clean["ts_event"].tolist())
    some = ticks[within(ticks, planned)]
    return some[[ts not in known for ts in some["ts_event"].tolist()]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_ordinary_ticks_are_untouched(clean: TickArray, kind: AnomalyKind, seed: int) -> None:
    """Outside the anomaly every byte is that of the clean stream; inside something differs."""
    planned = one_of(kind, seed)
    ticks = plant(clean, [planned])
    assert ticks[~within(ticks, planned)].tobytes() == clean[~within(clean, planned)].tobytes()
    assert ticks[within(ticks, planned)].tobytes() != clean[within(clean, planned)].tobytes()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", KINDS)
def test_planted_stream_is_sound(clean: TickArray, kind: AnomalyKind, seed: int) -> None:
    """Times and sequences ascend, prices stay on the grid and positive, one kind alone crosses."""
    planned = one_of(kind, seed)
    ticks = plant(clean, [planned])
    assert np.all(np.diff(ticks["ts_event"].astype(np.int64)) >= 0)
    assert np.all(np.diff(ticks["sequence"].astype(np.int64)) >= 0)
    assert np.all(ticks["ts_recv"] >= ticks["ts_event"])
    assert len({row.tobytes() for row in ticks}) == len(ticks)
    for name in ("price", "bid_px", "ask_px"):
        assert np.all(ticks[name] > 0)
        assert np.all(ticks[name] % 10_000_000 == 0)
    for name in ("bid_sz", "ask_sz", "bid_ct", "ask_ct", "size"):
        assert np.all(ticks[name] >= 1)
    crossed = ticks["bid_px"] >= ticks["ask_px"]
    assert crossed.any() == (kind == AnomalyKind.CROSSED_BOOK)
    assert not np.any(crossed & ~within(ticks, planned))


@pytest.mark.parametrize("kind", WITH_STEPS)
def test_clean_events_keep_their_place(clean: TickArray, kind: AnomalyKind) -> None:
    """Within an anomaly no clean event is lost, and its action, side and size are its own."""
    planned = one_of(kind, 1)
    ticks = plant(clean, [planned])
    kept = ticks[np.isin(ticks["ts_event"], clean["ts_event"])]
    for name in ("ts_event", "ts_recv", "action", "side", "size", "sequence"):
        assert np.array_equal(kept[name], clean[name])


@pytest.mark.parametrize("kind", WITH_STEPS)
def test_last_step_returns_to_the_clean_book(clean: TickArray, kind: AnomalyKind) -> None:
    """The book after the last planted event is the clean book of that moment."""
    for seed in range(5):
        planned = one_of(kind, seed)
        ticks = plant(clean, [planned])
        last = inserted(clean, ticks, planned)[-1]
        assert last["ts_event"] == planned.end_ns
        under = clean[np.searchsorted(clean["ts_event"], planned.end_ns, "right") - 1]
        assert [int(last[name]) for name in BOOK] == [int(under[name]) for name in BOOK]


def test_parameters_stay_within_their_ranges() -> None:
    """What a plan draws lies within the ranges it is given, and reaches their ends."""
    for low_end, high_end in ((0.0, 1.0), (0.0, 0.25), (0.75, 1.0)):
        ranges = {
            kind: {
                name: (low + low_end * (high - low), low + high_end * (high - low))
                for name, (low, high) in some.items()
                if name not in WHOLE
            }
            | {name: some[name] for name in some if name in WHOLE}
            for kind, some in RANGES.items()
        }
        drawn: dict[tuple[AnomalyKind, str], list[float]] = {}
        for one in plan({1: "X", 2: "Y"}, 900, 0, 10**14, ranges=ranges, seed=3):
            assert one.params.keys() - {"side"} == RANGES[one.kind].keys()
            assert one.params["side"] in (1.0, -1.0)
            for name in ranges[one.kind]:
                drawn.setdefault((one.kind, name), []).append(one.params[name])
        for (kind, name), values in drawn.items():
            low, high = ranges[kind][name]
            assert low <= min(values) <= low + 0.1 * (high - low)
            assert high - 0.1 * (high - low) <= max(values) <= high
            if name in WHOLE:
                assert all(value.is_integer() for value in values)


def test_whole_numbers_are_drawn_evenly() -> None:
    """Ten, eleven and twelve orders come equally often, and the ends no less than the middle."""
    rng = np.random.default_rng(0)
    kind = AnomalyKind.LAYERING
    drawn = [draw_parameters(kind, rng)["orders"] for _ in range(3000)]
    assert set(drawn) == {10.0, 11.0, 12.0}
    assert all(850 < drawn.count(value) < 1150 for value in set(drawn))


@pytest.mark.parametrize("seed", range(6))
def test_quote_stuffing(clean: TickArray, seed: int) -> None:
    """50 to 199 events at 8 to 9 a millisecond: add half a spread inside, cancel, small sizes."""
    planned = one_of(AnomalyKind.QUOTE_STUFFING, seed)
    made = inserted(clean, plant(clean, [planned]), planned)
    assert 50 <= len(made) <= 199
    per_ms = (len(made) - 1) / ((planned.end_ns - planned.start_ns) / 1e6)
    assert 8.0 <= per_ms <= 9.0
    assert bytes(made["action"].tolist()) == b"AC" * (len(made) // 2)
    before = clean[clean["ts_event"] < planned.start_ns][-512:]
    assert made["size"].max() <= max(np.quantile(before["size"], 0.1), 1)
    assert np.array_equal(made["size"][0::2], made["size"][1::2])
    assert np.array_equal(made["price"][0::2], made["price"][1::2])
    side, sign = ("bid_px", 1) if planned.params["side"] > 0 else ("ask_px", -1)
    spread = int(before["ask_px"][-1] - before["bid_px"][-1])
    half = spread // 2 // 10_000_000 * 10_000_000
    assert made["price"][0] == made[side][0] == before[side][-1] + sign * half


@pytest.mark.parametrize("seed", range(6))
def test_layering(clean: TickArray, seed: int) -> None:
    """One order in earnest, 10 to 12 on the other side, one trade, as many cancels."""
    planned = one_of(AnomalyKind.LAYERING, seed)
    made = inserted(clean, plant(clean, [planned]), planned)
    orders = int(planned.params["orders"])
    assert 10 <= orders <= 12
    assert bytes(made["action"].tolist()) == b"A" * (orders + 1) + b"T" + b"C" * orders
    spoof, earnest = (ord("B"), ord("A")) if planned.params["side"] > 0 else (ord("A"), ord("B"))
    assert made["side"][0] == earnest
    assert set(made["side"][1:].tolist()) == {spoof}
    before = clean[clean["ts_event"] < planned.start_ns][-512:]
    mean = before["size"].mean()
    assert 2 * mean - 1 <= made["size"][0] <= 3 * mean + 1
    assert made["size"][0] == made["size"][orders + 1]
    assert made["size"][1 : orders + 1].sum() == pytest.approx(6 * mean, abs=orders / 2)
    gaps = np.diff(made["ts_event"][: orders + 1].astype(np.int64)) / 1e6
    assert np.all((gaps >= 9) & (gaps <= 19))
    hold = (int(made["ts_event"][orders + 2]) - int(made["ts_event"][orders + 1])) / 1e6
    assert 100 <= hold <= 1000
    side, sign = ("bid_px", 1) if spoof == ord("B") else ("ask_px", -1)
    walk = sign * (made[side][orders] - made[side][0]) / before[side][-1] * 1e4
    assert -20 < walk <= 7 + 20  # the market itself moves meanwhile
    pulled = (int(made["ts_event"][-1]) - int(made["ts_event"][orders + 1])) / 1e6
    assert hold <= pulled <= hold + 1.2
    reaction = (int(made["ts_event"][orders + 1]) - int(made["ts_event"][orders])) / 1e6
    assert 5 <= reaction <= 15
    touch = "bid" if spoof == ord("B") else "ask"
    placed = made[1 : orders + 1]
    assert np.all(placed[f"{touch}_sz"] >= placed["size"])


def test_layering_counts_only_orders_at_the_best(clean: TickArray) -> None:
    """In a wide book each order that walks the price leaves those behind it, sizes included."""
    params = {"orders": 11.0, "walk_bps": 7.0, "bona_fide_means": 2.5, "hold_ms": 300.0}
    planned = replace(one_of(AnomalyKind.LAYERING, 2), params={**params, "side": 1.0})
    quiet = clean[clean["ts_event"] < planned.start_ns]  # nothing but the anomaly moves the book
    made = plant(quiet, [planned])[len(quiet) :]
    orders = int(planned.params["orders"])
    stack = made[1 : orders + 1]
    touch = "bid"
    walked = stack[f"{touch}_px"] != quiet[f"{touch}_px"][-1]
    assert walked[-1]
    for row in stack[walked]:
        level = stack[stack["ts_event"] <= row["ts_event"]]
        level = level[level["price"] == row["price"]]
        assert row[f"{touch}_ct"] == len(level)
        assert row[f"{touch}_sz"] == level["size"].sum()
    bps = abs(int(stack[f"{touch}_px"][-1]) - int(quiet[f"{touch}_px"][-1])) / int(
        quiet[f"{touch}_px"][-1]
    )
    assert 0 < bps <= 7e-4


@pytest.mark.parametrize("seed", range(4))
def test_pump_and_dump(clean: TickArray, seed: int) -> None:
    """Six purchases and six bids lift the price by 3 to 4 %, six cancels and sales undo it."""
    planned = one_of(AnomalyKind.PUMP_AND_DUMP, seed)
    made = inserted(clean, plant(clean, [planned]), planned)
    assert bytes(made["action"].tolist()) == b"TA" * 6 + b"CT" * 6
    assert bytes(made["side"].tolist()) == b"B" * 12 + b"BA" * 6
    mid = (made["bid_px"] + made["ask_px"]) / 2
    before = clean[clean["ts_event"] < planned.start_ns]
    start = (before["bid_px"][-1] + before["ask_px"][-1]) / 2
    assert 0.028 < mid[11] / start - 1 < 0.042  # the market itself moves meanwhile
    quiet = plant(before, [planned])[len(before) :]
    steps = np.diff(np.concatenate([before[-1:], quiet])["ask_px"][:13:2].astype(np.int64))
    assert 0.03 - 1e-4 <= steps.sum() / start <= 0.04 + 1e-4
    assert np.ptp(steps) <= CENT
    gaps = np.diff(made["ts_event"].astype(np.int64)) / 1e6
    assert np.all((gaps[:11] >= 63) & (gaps[:11] <= 103))
    assert np.all((gaps[11:] >= 190) & (gaps[11:] <= 310))
    mean = before["size"][-512:].mean()
    assert np.all((made["size"] >= 1.25 * mean - 1) & (made["size"] <= 2 * mean + 1))


@pytest.mark.parametrize("seed", range(6))
def test_fat_finger(clean: TickArray, seed: int) -> None:
    """One trade prints 0.5 to 5 % away from the best; the book is back within a second."""
    planned = one_of(AnomalyKind.FAT_FINGER, seed)
    made = inserted(clean, plant(clean, [planned]), planned)
    before = clean[clean["ts_event"] < planned.start_ns][-1]
    side = "ask_px" if planned.params["side"] > 0 else "bid_px"
    away = (int(made["price"][0]) - int(before[side])) / int(before[side])
    half_a_cent = CENT / 2 / int(before[side])
    assert 0.005 * 0.99 - half_a_cent < away * planned.params["side"] < 0.05 * 1.01 + half_a_cent
    assert (
        made["size"][0] >= 5 * clean[clean["ts_event"] < planned.start_ns][-512:]["size"].mean() - 1
    )
    assert bytes(made["action"].tolist()) == b"TAAAA"
    assert planned.end_ns - planned.start_ns <= NS_PER_S


@pytest.mark.parametrize("seed", range(6))
def test_momentum_ignition(clean: TickArray, seed: int) -> None:
    """5 to 15 trades of one side within half a second, each at the price the last one left."""
    planned = one_of(AnomalyKind.MOMENTUM_IGNITION, seed)
    made = inserted(clean, plant(clean, [planned]), planned)
    trades = made[made["action"] == ord("T")]
    assert 5 <= len(trades) <= 15
    assert len(set(trades["side"].tolist())) == 1
    assert int(trades["ts_event"][-1]) - int(trades["ts_event"][0]) <= NS_PER_S // 2
    side = "ask_px" if planned.params["side"] > 0 else "bid_px"
    quiet = clean[clean["ts_event"] < planned.start_ns]  # nothing but the anomaly moves the book
    alone = plant(quiet, [planned])[len(quiet) :]
    trades = alone[alone["action"] == ord("T")]
    assert trades["price"][0] == quiet[side][-1]
    assert np.array_equal(trades["price"][1:], trades[side][:-1])
    bps = (int(trades[side][-1]) / int(quiet[side][-1]) - 1) * 1e4 * planned.params["side"]
    assert 10 - 1 <= bps <= 50 + 1


@pytest.mark.parametrize("seed", range(6))
def test_wash_trades(clean: TickArray, seed: int) -> None:
    """10 to 30 orders half a spread inside, each hit at once for its whole size, in turns."""
    planned = one_of(AnomalyKind.WASH_TRADES, seed)
    made = inserted(clean, plant(clean, [planned]), planned)
    posts, fills = made[0::2], made[1::2]
    assert bytes(made["action"].tolist()) == b"AT" * (len(made) // 2)
    assert 10 <= len(fills) <= 30
    before = clean[clean["ts_event"] < planned.start_ns][-512:]
    mean = before["size"][before["action"] == ord("T")].mean()
    assert set(made["size"].tolist()) == {made["size"][0]}
    assert 2 * mean - 1 <= made["size"][0] <= 5 * mean + 1
    assert np.all(posts["side"] + fills["side"] == ord("A") + ord("B"))
    assert np.all(fills["side"][1:] != fills["side"][:-1])
    gaps = np.diff(posts["ts_event"].astype(np.int64)) / 1e6
    assert np.all((gaps >= 0.9 * 20) & (gaps <= 1.1 * 100))
    for row in posts:
        side = "bid" if row["side"] == ord("B") else "ask"
        assert row["price"] == row[f"{side}_px"]
        assert row[f"{side}_sz"] >= row["size"]
    quiet = clean[clean["ts_event"] < planned.start_ns]
    alone = plant(quiet, [planned])[len(quiet) :]
    assert np.array_equal(alone["price"][0::2], alone["price"][1::2])
    for name in BOOK:  # each trade takes back what its order added
        assert set(alone[name][1::2].tolist()) == {int(quiet[name][-1])}


@pytest.mark.parametrize("seed", range(6))
def test_feed_gap(clean: TickArray, seed: int) -> None:
    """For 5 to 20 s nothing comes; then every withheld tick within 50 to 500 ms, in its order."""
    planned = one_of(AnomalyKind.FEED_GAP, seed)
    ticks = plant(clean, [planned])
    late, own = ticks[within(ticks, planned)], clean[within(clean, planned)]
    silent = planned.start_ns + round(planned.params["gap_s"] * NS_PER_S)
    assert 5 * NS_PER_S <= silent - planned.start_ns <= 20 * NS_PER_S
    assert 50 <= (planned.end_ns - silent) / 1e6 <= 500
    assert len(late) == len(own) > 20
    assert silent <= late["ts_event"][0]
    assert late["ts_event"][-1] <= planned.end_ns
    for name in TICK.names or ():
        if name not in ("ts_event", "ts_recv"):
            assert np.array_equal(late[name], own[name])
    latency = late["ts_recv"] - late["ts_event"]
    assert np.array_equal(latency, own["ts_recv"] - own["ts_event"])


def test_frozen_quotes(clean: TickArray) -> None:
    """For 10 to 30 s only trades come, over the last book before, with their own price and size."""
    planned = one_of(AnomalyKind.FROZEN_QUOTES, 3)
    ticks = plant(clean, [planned])
    made, own = ticks[within(ticks, planned)], clean[within(clean, planned)]
    own = own[own["action"] == ord("T")]
    assert 10 * NS_PER_S <= planned.end_ns - planned.start_ns <= 30 * NS_PER_S
    assert len(made) == len(own) > 3
    for name in ("ts_event", "action", "side", "price", "size"):
        assert np.array_equal(made[name], own[name])
    before = clean[clean["ts_event"] < planned.start_ns][-1]
    for name in BOOK:
        assert set(made[name].tolist()) == {before[name]}


@pytest.mark.parametrize("ticks", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("side", [1.0, -1.0])
def test_crossed_book(clean: TickArray, ticks: float, side: float) -> None:
    """A stray order keeps the book locked or crossed from its arrival until it is cancelled."""
    drawn = one_of(AnomalyKind.CROSSED_BOOK, 1)
    planned = replace(drawn, params={**drawn.params, "ticks": ticks, "side": side})
    planted = plant(clean, [planned])
    ts = planted["ts_event"].astype(np.int64)
    during = (ts >= planned.start_ns) & (ts < planned.end_ns)
    through = planted["bid_px"].astype(np.int64) - planted["ask_px"]
    assert during.sum() > 1
    assert set(through[during].tolist()) == {ticks * CENT}
    assert np.all(through[~during] < 0)
    mine = inserted(clean, planted, planned)
    assert bytes(mine["side"].tolist()) == (b"BB" if side > 0 else b"AA")
    assert mine["price"][0] == mine["bid_px" if side > 0 else "ask_px"][0]


@pytest.mark.parametrize("kind", KINDS)
def test_one_tick_spread_is_no_obstacle(kind: AnomalyKind) -> None:
    """Where the spread leaves no room inside, orders join the best and the book stays uncrossed."""
    clean = gather(generate(ONE_TICK, START, 240.0)).ticks
    planned = one_of(kind, 1, ONE_TICK.symbols)
    ticks = plant(clean, [planned])
    crossed = ticks["bid_px"] >= ticks["ask_px"]
    assert crossed.any() == (kind == AnomalyKind.CROSSED_BOOK)


@pytest.mark.parametrize("kind", KINDS)
def test_scripts_are_mirrored(kind: AnomalyKind) -> None:
    """The two sides of a kind have the same times, actions and sizes and opposite signs."""
    params = draw_parameters(kind, np.random.default_rng(1))
    buy, sell = (script(kind, {**params, "side": side}, 4) for side in (1.0, -1.0))
    assert buy.steps.dtype == STEP
    assert buy.length_ns == sell.length_ns
    for name in ("after_ns", "action", "size"):
        assert np.array_equal(buy.steps[name], sell.steps[name])
    assert np.array_equal(buy.steps["bid_off"], -sell.steps["ask_off"])
    assert np.array_equal(buy.steps["bid_shift"], -sell.steps["ask_shift"])
    assert np.array_equal(buy.steps["cross"], -sell.steps["cross"])
    assert np.array_equal(buy.steps["bid_ct"], sell.steps["ask_ct"])


def test_plan_is_even_and_repeatable() -> None:
    """Kinds and instruments take turns, and the seed decides everything."""
    symbols = {1: "X", 2: "Y", 3: "Z"}
    first, again, other = (plan(symbols, 27, 0, 10**13, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    for attribute, count in (("kind", 3), ("key", 9)):
        values = [getattr(one, attribute) for one in first]
        assert {values.count(value) for value in values} == {count}
    assert [one.start_ns for one in first] == sorted(one.start_ns for one in first)


def test_plan_refuses() -> None:
    """Too many for the time, kinds without ranges and empty choices are refused."""
    with pytest.raises(ValueError, match="do not fit"):
        plan({1: "X"}, 10, 0, 60 * NS_PER_S)
    with pytest.raises(ValueError, match="nothing for layering"):
        plan({1: "X"}, 1, 0, 10**13, kinds=[AnomalyKind.LAYERING], ranges={})
    with pytest.raises(ValueError, match="neither may be empty"):
        plan({}, 1, 0, 10**13)
    with pytest.raises(ValueError, match="n=-1"):
        plan({1: "X"}, -1, 0, 10**13)


def test_planter_refuses(clean: TickArray) -> None:
    """Overlaps, several instruments, no quote before the start and time going back are refused."""
    planned = one_of(AnomalyKind.LAYERING)
    with pytest.raises(ValueError, match="overlap"):
        Planter([planned, planned])
    other = one_of(AnomalyKind.LAYERING, 1, {KEY + 1: "OTHER"})
    with pytest.raises(ValueError, match="several instruments"):
        Planter([planned, other])
    with pytest.raises(ValueError, match="no tick with bid and ask"):
        plant(clean[clean["ts_event"] > planned.start_ns], [planned])
    with pytest.raises(ValueError, match="must ascend"):
        plant(clean[::-1], [planned])


def test_one_sided_and_unpriced_ticks_pass(clean: TickArray) -> None:
    """Clean ticks without a side or a price keep their nulls; planted ones use the last quote."""
    planned = one_of(AnomalyKind.PUMP_AND_DUMP, 1)
    holed = clean.copy()
    inside = np.flatnonzero(within(clean, planned))
    holed["bid_px"][inside[::2]] = UNDEFINED_PRICE
    holed["price"][inside[1::2]] = UNDEFINED_PRICE
    ticks = plant(holed, [planned])
    kept = ticks[np.isin(ticks["ts_event"], holed["ts_event"][inside])]
    assert np.all(kept["bid_px"][::2] == UNDEFINED_PRICE)
    assert np.all(kept["price"][1::2] == UNDEFINED_PRICE)
    made = inserted(holed, ticks, planned)
    assert made["bid_px"].max() < 2 * clean["bid_px"].max()


def test_plan_is_plain_data() -> None:
    """A plan can be written down: kinds are strings, parameters plain numbers."""
    planned = one_of(AnomalyKind.FAT_FINGER)
    text = json.dumps({"kind": planned.kind, "params": dict(planned.params)})
    assert json.loads(text)["kind"] == "fat_finger"


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_clean_prices_move_with_their_side(clean: TickArray, side: float) -> None:
    """While a fat finger holds one side away, clean events there are priced with it, others not."""
    chosen = (one_of(AnomalyKind.FAT_FINGER, seed) for seed in range(40))
    planned = next(one for one in chosen if one.params["side"] == side)
    ticks = plant(clean, [planned])
    kept = ticks[np.isin(ticks["ts_event"], clean["ts_event"])]
    held = within(clean, planned)
    passive = np.where(
        clean["action"] == ord("T"), ord("A") + ord("B") - clean["side"], clean["side"]
    )
    for code, name in ((ord("B"), "bid_px"), (ord("A"), "ask_px")):
        rows = held & (passive == code)
        by = kept[name][rows] - clean[name][rows]
        assert np.array_equal(kept["price"][rows] - clean["price"][rows], by)
        assert np.any(by != 0) == ((code == ord("A")) == (side > 0))


def test_simultaneous_clean_tick_comes_first(clean: TickArray) -> None:
    """A clean tick at the very time of the first step precedes it, over the clean book."""
    planned = one_of(AnomalyKind.PUMP_AND_DUMP, 2)
    moved = clean.copy()
    row = int(np.searchsorted(moved["ts_event"], planned.start_ns))
    moved["ts_event"][row] = planned.start_ns
    moved["ts_recv"][row] = planned.start_ns + 1
    ticks = plant(moved, [planned])
    assert ticks[row].tobytes() == moved[row].tobytes()
    assert ticks["ts_event"][row + 1] == planned.start_ns
    assert ticks["ask_px"][row + 1] > moved["ask_px"][row]
