"""Features: the frozen definition, the bank's rules for bad data, and its snapshots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detector import definitions
from detector import kernels as k
from detector.features import (
    DEFAULT,
    FeatureBank,
    FeatureBlock,
    FeatureSpec,
    features_markdown,
    features_table,
    vector_spec,
)
from detector.ticks import (
    DROPPED,
    NS_PER_S,
    UNDEFINED_PRICE,
    UNDEFINED_TIME,
    Quality,
    TickArray,
    TickBatch,
    VectorBatch,
    instrument_key,
)
from tests.conftest import REPOSITORY
from tests.streams import CENT, START, market, roughened, vectors

DAY = 86_400 * NS_PER_S
BY_EVENTS = FeatureSpec(warmup_s=0.0)  # ready as soon as there were enough events


def quotes(times_s: list[float], instrument: int = 1) -> TickArray:
    """Quotes of one instrument at these times, each a little different."""
    ticks = market(len(times_s), 1, 0)
    ticks["ts_event"] = [START + round(t * 1e9) for t in times_s]
    ticks["action"] = ord("N")
    ticks["instrument_id"] = instrument
    return ticks


def run(ticks: TickArray, spec: FeatureSpec = DEFAULT, cap: int = 100) -> FeatureBlock:
    """Block of a fresh bank for the whole stream."""
    return spec.bank(cap).update(TickBatch.from_ticks(ticks))


def column(block: FeatureBlock, name: str, spec: FeatureSpec = DEFAULT) -> np.ndarray:
    """Values of one feature."""
    return block.values[:, spec.names.index(name)]


# --- definition -----------------------------------------------------------------------------------


def test_default_has_enough_distinct_and_described_features() -> None:
    """At least 50 features, no name twice, each with group, unit and definition."""
    rows = features_table()
    assert len(rows) >= 50
    assert len({row["name"] for row in rows}) == len(rows)
    assert all(row["group"] and row["unit"] and row["definition"] for row in rows)


def test_heavy_tailed_features_come_first() -> None:
    """The kernel compresses the first columns: just those whose unit says so."""
    for spec, heavy in ((DEFAULT, 83), (vector_spec(("a", "b", "c")), 26)):
        compressed = [f.unit in {"slog", "log"} for f in spec.features]
        assert compressed == [True] * heavy + [False] * (len(spec.names) - heavy)


def test_every_output_is_defined_once() -> None:
    """A feature is added or left out in two places; they agree."""
    assert len(DEFAULT.names) == k.TICK_OUTPUTS
    assert sorted(row[0] for row in definitions._TICK) == list(range(k.TICK_OUTPUTS))


def test_tail_groups_tell_decaying_windows_from_the_rest() -> None:
    """What looks back on a fraction of a second is one group, all else another."""
    groups = DEFAULT.tail_groups()
    assert groups.dtype == np.int8
    in_time = {f.name for f in DEFAULT.features if f.window == "time"}
    assert {n for n, g in zip(DEFAULT.names, groups, strict=True) if g == 1} == in_time
    assert in_time == {n for n in DEFAULT.names if n.endswith(("_20ms", "_50ms", "_200ms"))}
    assert not vector_spec(("a", "b")).tail_groups().any()


def test_lone_features_are_those_made_for_one_anomaly() -> None:
    """Six features of ticks are judged by themselves too, none of vectors."""
    lone = DEFAULT.lone_features()
    assert lone.dtype == np.bool_
    assert {n for n, alone in zip(DEFAULT.names, lone, strict=True) if alone} == {
        "crossed_events",
        "frozen_book_trades",
        "gap_burst_count",
        "gap_burst_strength",
        "gap_then_burst_25ev",
        "wash_run",
    }
    assert not (lone & (DEFAULT.tail_groups() == 1)).any()
    vector = vector_spec(("a", "b"))
    assert vector.lone_features().tolist() == [False] * len(vector.names)


def test_document_is_in_step() -> None:
    """The committed page is what the definitions give."""
    assert (REPOSITORY / "docs" / "features.md").read_text() == features_markdown()


@pytest.mark.parametrize("spec", [DEFAULT, vector_spec(("a", "b"), short_window=9, gap_s=60.0)])
def test_spec_survives_json(spec: FeatureSpec) -> None:
    """What is written is read back equal, fingerprint included."""
    again = FeatureSpec.from_json(spec.to_json())
    assert again == spec
    assert again.fingerprint == spec.fingerprint


def test_fingerprint_tells_specs_apart() -> None:
    """Any other parameter gives another fingerprint."""
    specs = [
        DEFAULT,
        FeatureSpec(short_window=16),
        FeatureSpec(recent_window=9),
        FeatureSpec(half_lives_s=(0.02, 0.05, 0.2, 2.0)),
        FeatureSpec(warmup=65),
        FeatureSpec(gap_s=60.0),
        vector_spec(("a",)),
        vector_spec(("b",)),
    ]
    assert len({spec.fingerprint for spec in specs}) == len(specs)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"kind": "bars"}, "kind"),
        ({"kind": "vector"}, "columns"),
        ({"columns": ("a",)}, "columns"),
        ({"kind": "vector", "columns": ("a", "a")}, "twice"),
        ({"kind": "vector", "columns": ("",)}, "columns"),
        ({"short_window": 1}, "short_window"),
        ({"short_window": 15.0}, "short_window"),
        ({"slow_window": 0}, "slow_window"),
        ({"warmup": True}, "warmup"),
        ({"recent_window": 1}, "recent_window"),
        ({"recent_window": 16}, "recent_window"),
        ({"half_lives_s": (0.05, 0.05, 0.2, 1.0)}, "half_lives_s"),
        ({"half_lives_s": (0.0, 0.05, 0.2, 1.0)}, "half_lives_s"),
        ({"gap_s": -1.0}, "gap_s"),
        ({"jump_s": 0.0}, "jump_s"),
        ({"jump_s": float("nan")}, "jump_s"),
    ],
)
def test_bad_parameters_are_refused_by_name(parameters: dict[str, Any], named: str) -> None:
    """A value that is not allowed names its parameter."""
    with pytest.raises(ValueError, match=named):
        FeatureSpec(**parameters)


@pytest.mark.parametrize("text", ["[]", '{"kind": "tick"}', "no json"])
def test_what_is_no_spec_is_refused(text: str) -> None:
    """Text that is not a whole spec is a ValueError, not a default."""
    with pytest.raises(ValueError):  # noqa: PT011 - the JSON library words one of them
        FeatureSpec.from_json(text)


# --- blocks ---------------------------------------------------------------------------------------


def test_block_has_the_promised_arrays() -> None:
    """Types, shapes and layout are those that the scorer relies on."""
    ticks = market(50, 3, 1)
    block = run(ticks)
    assert block.values.shape == (50, len(DEFAULT.names))
    assert block.values.dtype == np.float32
    assert block.values.flags.c_contiguous
    assert [a.dtype for a in (block.ready, block.quality, block.keys, block.ts, block.slots)] == [
        np.dtype(t) for t in ("bool", "u2", "i8", "i8", "i4")
    ]
    np.testing.assert_array_equal(block.keys, TickBatch.from_ticks(ticks).keys)
    np.testing.assert_array_equal(block.ts, ticks["ts_event"].astype(np.int64))


def test_read_only_and_strided_ticks_are_taken() -> None:
    """Bytes from a message are read-only, a filtered stream is not contiguous: both are ticks."""
    ticks = market(60, 2, 1)
    read_only = np.frombuffer(ticks.tobytes(), ticks.dtype)
    twice = np.repeat(ticks, 2)[::2]
    expected = run(ticks).values
    np.testing.assert_array_equal(run(read_only).values, expected)
    np.testing.assert_array_equal(run(twice).values, expected)


def test_wrong_batches_are_refused() -> None:
    """A bank takes only batches of its kind, with its number of columns."""
    spec = vector_spec(("a", "b"))
    with pytest.raises(TypeError, match="TickBatch"):
        spec.bank().update(TickBatch.from_ticks(market(1, 1, 0)))
    with pytest.raises(TypeError, match="VectorBatch"):
        DEFAULT.bank().update(vectors(1, 2, 1, 0))
    with pytest.raises(ValueError, match="3 columns"):
        spec.bank().update(vectors(1, 3, 1, 0))


def test_state_of_an_instrument_is_at_most_4_kib() -> None:
    """The bound that the capacity page promises."""
    assert DEFAULT.bank().state_bytes_per_instrument <= 4096


# --- warm-up and gaps -----------------------------------------------------------------------------


def test_ready_from_the_64th_event() -> None:
    """Warm-up ends with the 64th event of each instrument, not of the stream."""
    block = run(market(400, 3, 1), BY_EVENTS)
    for key in np.unique(block.keys):
        ready = block.ready[block.keys == key]
        assert not ready[:63].any()
        assert ready[63:].all()


def test_ready_after_twenty_seconds() -> None:
    """However many events there are, windows have to be 20 s old, anew after a gap."""
    times = [0.2 * i for i in range(150)]
    block = run(quotes(times + [3600 * 16 + t for t in times]))
    for start in (0, 150):
        assert not block.ready[start : start + 100].any()
        assert block.ready[start + 100 : start + 150].all()


def test_decaying_windows_are_full_when_an_instrument_is_ready() -> None:
    """The default time is many half-lives of the slowest: nothing is missing in a window."""
    assert 0.5 ** (DEFAULT.warmup_s / max(DEFAULT.half_lives_s)) < 1e-5


def test_a_gap_empties_the_windows_and_keeps_the_scales() -> None:
    """After the night the first tick is no return, and 15 events later all is as usual."""
    ticks = quotes([0.1 * i for i in range(100)] + [3600 * 16 + 0.1 * i for i in range(40)])
    ticks["bid_px"][100:] += 500 * CENT
    ticks["ask_px"][100:] += 500 * CENT
    block = run(ticks, BY_EVENTS)
    assert block.ready[63:100].all()
    assert not block.ready[100:114].any()
    assert block.ready[114:].all()
    for name in ("return_tick", "return_200ms", "range_15ev", "order_flow_imbalance_tick"):
        assert column(block, name)[100] == 0, name
    assert column(block, "inter_arrival")[100] == 0
    assert column(block, "quoted_spread")[100] > 0  # relative to yesterday's mean spread


def test_a_halt_shorter_than_a_gap_is_a_return() -> None:
    """A halt of ten minutes lets decaying windows fade, and its price move is a return."""
    ticks = quotes([0.1 * i for i in range(100)] + [600 + 0.1 * i for i in range(5)])
    ticks["bid_px"][100:] += 500 * CENT
    ticks["ask_px"][100:] += 500 * CENT
    block = run(ticks, BY_EVENTS)
    assert block.ready[63:].all()
    assert column(block, "return_tick")[100] > 2
    assert column(block, "message_rate_200ms")[100] < column(block, "message_rate_200ms")[99]


# --- bad data -------------------------------------------------------------------------------------


def test_repeated_records_are_dropped_and_equal_sequences_are_not() -> None:
    """Only the whole record makes a repeat: packets carry many records under one sequence."""
    ticks = quotes([1.0 * i for i in range(6)])
    ticks["sequence"] = 77
    ticks["ts_event"][3:5] = ticks["ts_event"][2]
    ticks["bid_sz"][2:5] = [10, 20, 30]
    ticks[5] = ticks[3]
    assert run(ticks).quality.tolist() == [0, 0, 0, 0, 0, Quality.REPEATED]


def test_equal_records_without_a_sequence_are_no_repeats() -> None:
    """A source without sequence numbers may well say the same twice."""
    ticks = quotes([1.0, 1.0])
    ticks["sequence"] = 0
    ticks[1] = ticks[0]
    assert run(ticks).quality.tolist() == [0, 0]


def test_a_repeat_is_known_among_the_last_64_records() -> None:
    """An older record is no longer remembered; it is late, and processed."""
    ticks = quotes([1.0 * i for i in range(66)])
    ticks["sequence"] = np.arange(1, 67)
    recent, old = ticks[[*range(65), 1]], ticks[[*range(65), 0]]
    assert run(recent).quality[-1] == Quality.REPEATED
    assert run(old).quality[-1] == Quality.LATE


@pytest.mark.parametrize("ts", [0, 2**63, UNDEFINED_TIME])
def test_ticks_without_a_time_are_dropped(ts: int) -> None:
    """A missing time changes nothing: the next tick's features are as if it had not been."""
    ticks = quotes([1.0 * i for i in range(20)])
    broken = np.insert(ticks, 10, ticks[10])
    broken["ts_event"][10] = ts
    block = run(broken)
    assert block.quality[10] == Quality.NO_TIME
    assert block.slots[10] == -1
    np.testing.assert_array_equal(np.delete(block.values, 10, axis=0), run(ticks).values)


def test_one_far_time_is_dropped_and_two_move_the_clock() -> None:
    """A wrong time is implausible, one more moves the clock, and a good one moves it back."""
    ticks = quotes([0, 1, 2, 3, 4, 5, 6])
    ticks["ts_event"][2] += 30 * DAY
    ticks["ts_event"][4:6] += 30 * DAY
    flags = run(ticks).quality.tolist()
    far = int(Quality.IMPLAUSIBLE_TIME)
    assert flags == [0, 0, far, 0, far, 0, 0]


def test_a_wrong_first_time_costs_two_ticks() -> None:
    """When the first tick has a wrong time, the clock finds the right one at the third."""
    ticks = quotes([0, 1, 2, 3])
    ticks["ts_event"][0] += 900 * DAY
    far = int(Quality.IMPLAUSIBLE_TIME)
    assert run(ticks).quality.tolist() == [0, far, 0, 0]


def test_a_late_tick_counts_as_simultaneous() -> None:
    """A tick from the past is flagged, processed, and does not turn the clock back."""
    ticks = quotes([1.0 * i for i in range(30)])
    ticks["ts_event"][20] -= 5 * NS_PER_S
    together = ticks.copy()
    together["ts_event"][20] = ticks["ts_event"][19]
    ticks["ts_recv"] = together["ts_recv"] = UNDEFINED_TIME
    late, simultaneous = run(ticks), run(together)
    assert late.quality[20] == Quality.LATE
    np.testing.assert_array_equal(late.values, simultaneous.values)


def test_an_instrument_recovers_from_one_time_days_ahead() -> None:
    """One tick six days ahead makes the next ones late; the second of them starts over."""
    ticks = quotes([1.0 * i for i in range(200)])
    ticks["ts_event"][50] += 6 * DAY
    block = run(ticks, BY_EVENTS)
    assert block.quality[51] == Quality.LATE
    assert not block.quality[52:].any()
    assert block.ready[-1]


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"bid_px": 0}, Quality.NONPOSITIVE_PRICE),
        ({"price": -CENT}, Quality.NONPOSITIVE_PRICE),
        ({"bid_px": 200 * CENT, "ask_px": 100 * CENT}, Quality.CROSSED),
        ({"bid_px": 100 * CENT, "ask_px": 100 * CENT}, Quality.LOCKED),
        ({"bid_sz": 0}, Quality.ZERO_SIZE),
        ({"action": ord("T"), "size": 0}, Quality.ZERO_SIZE),
        ({"ask_px": UNDEFINED_PRICE}, Quality.ONE_SIDED),
        ({"ask_px": UNDEFINED_PRICE, "bid_px": UNDEFINED_PRICE}, Quality.ONE_SIDED),
        ({"action": ord("T"), "ask_px": UNDEFINED_PRICE, "bid_px": UNDEFINED_PRICE}, Quality(0)),
    ],
)
def test_unusual_values_are_flagged_and_processed(change: dict[str, int], flag: Quality) -> None:
    """What a market may legally send is processed, with a flag for what is unusual about it."""
    ticks = quotes([1.0 * i for i in range(80)])
    for name, value in change.items():
        ticks[name][70] = value
    block = run(ticks, BY_EVENTS)
    assert block.quality[70] == flag
    assert block.ready[70]
    assert np.isfinite(block.values).all()


def test_vectors_that_are_not_finite_are_dropped() -> None:
    """NaN or infinity in any column drops the row, and the rest is as if it had not come."""
    batch = vectors(60, 2, 1, 3)
    values = np.nan_to_num(batch.values)
    values[[20, 30], [0, 1]] = [np.nan, np.inf]
    ts = START + np.arange(60) * NS_PER_S
    broken = VectorBatch(values, batch.keys, ts, 0, batch.offsets, batch.indices)
    spec = vector_spec(("a", "b"))
    block = spec.bank().update(broken)
    assert np.flatnonzero(block.quality).tolist() == [20, 30]
    assert (block.quality[[20, 30]] == Quality.NOT_FINITE).all()
    assert not block.values[[20, 30]].any()


def test_a_wild_tick_is_forgotten() -> None:
    """A price of a billion is out of every window after 16 events and some seconds of decay."""
    ticks = market(3000, 1, 4)
    wild = ticks.copy()
    wild["ask_px"][1500] = 10**18
    clean, dirty = run(ticks), run(wild)
    end = slice(2900, None)
    spread = DEFAULT.names.index("quoted_spread")
    assert np.abs(clean.values[end, spread] - dirty.values[end, spread]).max() < 0.05
    exact = [
        n for n in DEFAULT.names if n.endswith(("_changes_15ev", "imbalance_15ev", "_flips_15ev"))
    ]
    for name in exact:
        np.testing.assert_allclose(column(clean, name)[end], column(dirty, name)[end], atol=0.05)


# --- meaning --------------------------------------------------------------------------------------


def test_an_unseen_instrument_looks_like_those_before() -> None:
    """The first ready rows of a new instrument lie where the rows of a known one lie."""
    block = run(market(4000, 2, 7), BY_EVENTS)
    first = block.values[block.ready & (block.keys == instrument_key(7, 1))]
    newcomer = run(market(150, 1, 8), BY_EVENTS)
    fresh = newcomer.values[newcomer.ready]
    low, high = np.quantile(first, [0.001, 0.999], axis=0)
    margin = 0.5 + (high - low)
    inside = (fresh >= low - margin) & (fresh <= high + margin)
    assert inside.mean() > 0.98


def test_layering_raises_cancels_against_trades() -> None:
    """Bids that are cancelled while buyers trade raise the feature made for it, not its mirror."""
    ticks = quotes([0.1 * i for i in range(100)])
    ticks["action"][85:] = ord("C")
    ticks["side"][85:] = ord("B")
    ticks["action"][86::3] = ord("T")
    block = run(ticks)
    assert column(block, "bid_cancel_x_buy_15ev")[-1] > 0.3
    assert column(block, "ask_cancel_x_sell_15ev")[-1] == 0


def test_trades_against_a_frozen_book_count_when_apart() -> None:
    """Trades that leave the book alone add up; fills of one order count once, a change resets."""
    calm, step = [0.1 * i for i in range(60)], 0.3
    ticks = quotes(calm + [6 + step * i for i in range(8)])
    for name in ("bid_px", "ask_px", "bid_sz", "ask_sz"):
        ticks[name][60:] = ticks[name][59]
    ticks["action"][60:] = ord("T")
    ticks["ts_event"][63] = ticks["ts_event"][62] + 10**8  # not further than 0.1 s
    ticks["bid_sz"][66] += 1  # and the next one left this book as it was
    ticks["bid_sz"][67] += 1
    frozen = column(run(ticks, BY_EVENTS), "frozen_book_trades")
    assert not frozen[:60].any()
    age = 0.1 + step * np.array([0, 1, 2, 2 + 1 / 3, 4, 5])
    # before, a wait was 0.1 s and every event changed the book; the scales move a little since
    expected = np.array([1, 2, 3, 3, 4, 5]) * np.log1p(age / 0.1)
    np.testing.assert_allclose(frozen[60:66], expected, rtol=0.1)
    assert frozen[66] == 0
    assert 0 < frozen[67] < frozen[60] * 3


def test_wash_runs_and_crossed_runs_count_on_and_break() -> None:
    """Trades back and forth, and crossed events, in a row: one that is not ends the run."""
    ticks = quotes([0.1 * i for i in range(80)])
    ticks["action"][70:76] = ord("T")
    ticks["size"][70:76] = 5
    ticks["side"][70:76] = [ord(c) for c in "ABABBA"]
    ticks["ask_px"][[71, 72, 74]] = ticks["bid_px"][[71, 72, 74]] - [0, CENT, CENT]
    block = run(ticks, BY_EVENTS)
    runs = np.expm1(column(block, "wash_run")[70:77])
    np.testing.assert_allclose(runs, [0, 1, 2, 3, 0, 1, 0], rtol=1e-6)
    runs = np.expm1(column(block, "crossed_events")[70:76])
    np.testing.assert_allclose(runs, [0, 1, 2, 0, 1, 0], rtol=1e-6)


def test_a_burst_after_a_gap_counts_up_to_the_events_that_were_missing() -> None:
    """A feed that delivers late what it held back: 2 s of silence, then 20 events at once."""
    calm = [0.1 * i for i in range(80)]
    silence = quotes([*calm, *(9.9 + 0.001 * i for i in range(30))])
    no_burst = quotes([*calm, *(9.9 + 0.1 * i for i in range(30))])
    no_gap = quotes([*calm, *(8.0 + 0.001 * i for i in range(30))])
    after = slice(81, None)
    count = np.expm1(column(run(silence, BY_EVENTS), "gap_burst_count"))[after]
    np.testing.assert_allclose(count[:15], 0.99 * np.arange(1, 16), rtol=0.02)
    assert count.max() < 22  # as many as were missing
    for name in ("gap_burst_count", "gap_burst_strength"):
        most = column(run(silence, BY_EVENTS), name)[after].max()
        assert most > 2.5
        assert column(run(no_burst, BY_EVENTS), name)[after].max() < most / 2, name
        assert column(run(no_gap, BY_EVENTS), name)[after].max() < most, name


# --- snapshots ------------------------------------------------------------------------------------


def filled(spec: FeatureSpec = DEFAULT) -> FeatureBank:
    """A bank of three instruments."""
    bank = spec.bank(5)
    bank.update(TickBatch.from_ticks(roughened(market(300, 3, 3), 3)))
    return bank


def test_snapshot_is_a_copy() -> None:
    """Going on does not change a snapshot taken before."""
    bank = filled()
    taken = bank.snapshot()
    kept = {name: array.copy() for name, array in taken.items()}
    bank.update(TickBatch.from_ticks(market(50, 3, 9)))
    for name, array in taken.items():
        np.testing.assert_array_equal(array, kept[name])


def test_restore_into_a_larger_bank_keeps_the_instruments() -> None:
    """The cap may be raised between snapshot and restore."""
    larger = DEFAULT.bank(50)
    larger.restore(filled().snapshot())
    assert larger.instruments == 3
    more = TickBatch.from_ticks(market(50, 3, 9))
    np.testing.assert_array_equal(larger.update(more).values, filled().update(more).values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("ints"), "needed"),
        (lambda s: s.update(extra=np.zeros(1)), "extra"),
        (lambda s: s.update(fingerprint=np.zeros(32, np.uint8)), "fingerprint 000000000000"),
        (lambda s: s.update(floats=s["floats"][:, :-1]), "floats"),
        (lambda s: s.update(singles=s["singles"].astype(np.float64)), "singles"),
        (lambda s: s.update(keys=np.repeat(s["keys"][:1], 3)), "twice"),
        (lambda s: s.update(order=np.array([0, 0, 1], np.int32)), "twice"),
        (lambda s: s["head"].__setitem__(4, 2), "header"),
        (lambda s: s["ints"].__setitem__((0, k.I_POS), 15), "position"),
        (lambda s: s["ints"].__setitem__((0, k.I_WAIT_POS), k.GAP_EVENTS), "position"),
        (lambda s: s["ints"].__setitem__((0, k.I_RECENT_POS), 8), "position"),
        (lambda s: s["ints"].__setitem__((0, k.I_TRADE_POS), 8), "position"),
        (lambda s: s["ints"].__setitem__((0, k.I_TRADE_COUNT), 9), "position"),
        (lambda s: s["ints"].__setitem__((0, k.I_HASH_POS), -1), "position"),
    ],
)
def test_snapshots_that_do_not_fit_are_refused(change: Any, message: str) -> None:
    """A damaged or foreign snapshot is a ValueError that says what is wrong; state stays."""
    bank = filled()
    before = bank.snapshot()
    broken = filled().snapshot()
    change(broken)
    with pytest.raises(ValueError, match=message):
        bank.restore(broken)
    for name, array in bank.snapshot().items():
        np.testing.assert_array_equal(array, before[name])


def test_snapshot_larger_than_the_cap_is_refused() -> None:
    """More instruments than fit is an error, not an eviction."""
    with pytest.raises(ValueError, match="at most 2 fit"):
        DEFAULT.bank(2).restore(filled().snapshot())


@pytest.mark.parametrize("cap", [0, -1])
def test_a_bank_without_room_is_refused(cap: int) -> None:
    """The cap is at least one."""
    with pytest.raises(ValueError, match="max_instruments"):
        DEFAULT.bank(cap)


def test_dropped_ticks_take_no_row() -> None:
    """A flood of instruments with implausible times evicts nobody."""
    bank = filled()
    flood = market(100, 90, 1)
    flood["instrument_id"] += 1000
    flood["ts_event"] += (np.arange(100) * 30 * DAY + 60 * DAY).astype(np.uint64)
    block = bank.update(TickBatch.from_ticks(flood))
    assert ((block.quality & DROPPED) != 0).all()
    assert bank.instruments == 3
    assert bank.evictions == 0
