"""Feeds: told apart by their ticks, and every anomaly told in the language of its feed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from detector.feeds import BOOK, Feed, clock_ns, feed_of, price_grid
from detector.planting import APPLICABLE, Planted, Planter, plan, plant
from detector.scripts import AnomalyKind
from detector.synthetic import DEMO_START_NS, Instrument, Market, gather, generate
from detector.ticks import NS_PER_S, UNDEFINED_PRICE, TickArray
from tests.feed_streams import MS, alone, as_feed

START = DEMO_START_NS
MARKET = Market((Instrument("FED", price=80.0, rate_hz=40.0, spread_ticks=4.0),), seed=8)
CENT = 10_000_000
SHOWN = [(feed, kind) for feed in Feed for kind in APPLICABLE[feed]]
INSERTED = [
    (feed, kind)
    for feed, kind in SHOWN
    if kind not in (AnomalyKind.FROZEN_QUOTES, AnomalyKind.FEED_GAP)
]


@pytest.fixture(scope="module")
def streams() -> dict[Feed, TickArray]:
    """Four minutes of one market, as each feed tells them."""
    ticks = gather(generate(MARKET, START, 240.0)).ticks
    return {feed: as_feed(ticks, feed) for feed in Feed}


def one_of(kind: AnomalyKind, seed: int = 0) -> Planted:
    """Plan one anomaly of a kind in the later three minutes."""
    end = START + 240 * NS_PER_S
    return plan(MARKET.symbols, 1, START + 60 * NS_PER_S, end, kinds=[kind], seed=seed)[0]


def within(ticks: TickArray, planted: Planted) -> np.ndarray:
    """Mask of the ticks in the time of an anomaly."""
    ts = ticks["ts_event"].astype(np.int64)
    return (ts >= planted.start_ns) & (ts <= planted.end_ns)


def test_a_feed_is_told_by_its_ticks(streams: dict[Feed, TickArray]) -> None:
    """Adds or cancels, quotes with trades, quotes alone, and a tape are told apart."""
    assert {feed: feed_of(ticks) for feed, ticks in streams.items()} == {
        feed: feed for feed in Feed
    }


@pytest.mark.parametrize(("feed", "kind"), SHOWN)
def test_untouched_ticks_keep_their_bytes(
    streams: dict[Feed, TickArray], feed: Feed, kind: AnomalyKind
) -> None:
    """In every feed the stream outside an anomaly is the clean one; inside something differs."""
    clean = streams[feed]
    for seed in range(3):
        planted = one_of(kind, seed)
        ticks = plant(clean, [planted])
        assert ticks[~within(ticks, planted)].tobytes() == clean[~within(clean, planted)].tobytes()
        assert ticks[within(ticks, planted)].tobytes() != clean[within(clean, planted)].tobytes()
        assert np.all(np.diff(ticks["ts_event"].astype(np.int64)) >= 0)


@pytest.mark.parametrize(("feed", "kind"), INSERTED)
def test_planted_ticks_speak_the_language_of_the_feed(
    streams: dict[Feed, TickArray], feed: Feed, kind: AnomalyKind
) -> None:
    """Actions, sides, sizes, counts, clock and book are such as the feed has, and none it lacks."""
    clean = streams[feed]
    planted = one_of(kind, 1)
    _, made = alone(clean, planted, feed)
    assert len(made) > 0
    assert set(made["action"].tolist()) <= set(clean["action"].tolist())
    assert np.all(made["ts_event"] % np.uint64(clock_ns(clean)) == 0)
    assert np.all(within(made, planted))
    for name in ("bid_ct", "ask_ct", "bid_sz", "ask_sz"):
        assert made[name].any() == clean[name].any()
    for name in ("bid_px", "ask_px", "price"):
        assert np.all((made[name] == UNDEFINED_PRICE) | (made[name] % CENT == 0))
    if feed == Feed.TRADES:
        assert np.all(made["bid_px"] == UNDEFINED_PRICE)
        assert set(made["side"].tolist()) == {ord("N")}
        assert np.all(made["size"] >= 1)
    if feed == Feed.QUOTES:
        assert set(made["side"].tolist()) == {ord("N")}
        assert np.all(made["price"] == UNDEFINED_PRICE)
        assert not made["size"].any()
    assert np.all(made["sequence"] == 0) == (feed != Feed.ORDERS)


@pytest.mark.parametrize(("feed", "kind"), [each for each in INSERTED if each[0] != Feed.TRADES])
def test_the_book_is_restored_and_crosses_only_where_it_should(
    streams: dict[Feed, TickArray], feed: Feed, kind: AnomalyKind
) -> None:
    """The last book is the one before; none is crossed or locked but by the kind that says so."""
    for seed in range(3):
        quiet, made = alone(streams[feed], one_of(kind, seed), feed)
        assert [int(made[name][-1]) for name in BOOK] == [int(quiet[name][-1]) for name in BOOK]
        crossed = made["bid_px"] >= made["ask_px"]
        assert crossed.any() == (kind == AnomalyKind.CROSSED_BOOK)
        ticks = plant(streams[feed], [one_of(kind, seed)], feed)
        crossed = ticks["bid_px"] >= ticks["ask_px"]
        assert crossed.any() == (kind == AnomalyKind.CROSSED_BOOK)


@pytest.mark.parametrize("kind", [kind for feed, kind in INSERTED if feed == Feed.ORDERS])
def test_quotes_name_the_side_that_changed(
    streams: dict[Feed, TickArray], kind: AnomalyKind
) -> None:
    """A quote has the side, price and size of what changed; trades lie over the book before."""
    quiet, made = alone(streams[Feed.QUOTES_AND_TRADES], one_of(kind, 2), Feed.QUOTES_AND_TRADES)
    before = quiet[-1]
    for row in made:
        changed = {
            side: any(row[f"{side}_{what}"] != before[f"{side}_{what}"] for what in ("px", "sz"))
            for side in ("bid", "ask")
        }
        if row["action"] == ord("T"):
            assert not any(changed.values())
        elif all(changed.values()):
            assert (row["side"], row["price"], row["size"]) == (ord("N"), UNDEFINED_PRICE, 0)
        else:
            assert any(changed.values())
            side = "bid" if changed["bid"] else "ask"
            assert row["side"] == (ord("B") if side == "bid" else ord("A"))
            assert (row["price"], row["size"]) == (row[f"{side}_px"], row[f"{side}_sz"])
        before = row


def test_the_same_trades_are_told_by_every_feed_that_has_trades(
    streams: dict[Feed, TickArray],
) -> None:
    """A pump and dump has twelve trades, six up and six down, whichever feed tells them."""
    planted = one_of(AnomalyKind.PUMP_AND_DUMP, 3)
    for feed in (Feed.ORDERS, Feed.QUOTES_AND_TRADES, Feed.TRADES):
        quiet, made = alone(streams[feed], planted, feed)
        trades = made[made["action"] == ord("T")]
        assert len(trades) == 12
        level = trades["price"] / quiet[quiet["action"] == ord("T")]["price"][-1] - 1
        assert np.all(np.diff(level[:6]) > 0)
        assert np.all(np.diff(level[6:]) < 0)
        assert 0.03 * 5 / 6 - 0.003 < level.max() < 0.04 + 0.003


def test_a_tape_prints_a_fat_finger_and_goes_on(streams: dict[Feed, TickArray]) -> None:
    """One print 0.5 to 5 % from the last one; the clean trades after it keep their prices."""
    planted = one_of(AnomalyKind.FAT_FINGER, 2)
    quiet, made = alone(streams[Feed.TRADES], planted, Feed.TRADES)
    assert len(made) == 1
    away = (made["price"][0] / quiet["price"][-1] - 1) * planted.params["side"]
    assert 0.005 - 1e-4 <= away <= 0.05 + 1e-4


def test_sizes_of_quotes_are_measured_by_levels_and_of_trades_by_trades(
    streams: dict[Feed, TickArray],
) -> None:
    """Where levels are shown, orders are multiples of the mean level, trades of the mean trade."""
    clean = streams[Feed.QUOTES_AND_TRADES]
    planted = one_of(AnomalyKind.LAYERING, 1)
    quiet, made = alone(clean, planted, Feed.QUOTES_AND_TRADES)
    last = quiet[-512:]
    level = np.concatenate([last["bid_sz"], last["ask_sz"]]).mean()
    traded = last["size"][last["action"] == ord("T")].mean()
    assert level > 2 * traded
    earnest = "ask_sz" if planted.params["side"] > 0 else "bid_sz"
    added = int(made[earnest][0]) - int(last[earnest][-1])
    assert 2 * level - 1 <= added <= 3 * level + 1
    sale = made[made["action"] == ord("T")]
    assert 2 * traded - 1 <= sale["size"][0] <= 3 * traded + 1


def test_kinds_that_a_feed_cannot_show_are_refused() -> None:
    """A planter names the kind, the feed and what is allowed."""
    for feed, kind in itertools.product(Feed, AnomalyKind):
        if kind in APPLICABLE[feed]:
            Planter([one_of(kind)], feed)
        else:
            with pytest.raises(ValueError, match=f"{kind} cannot be shown by a feed of {feed}"):
                Planter([one_of(kind)], feed)


def test_the_clock_is_as_coarse_as_all_times(streams: dict[Feed, TickArray]) -> None:
    """Whole milliseconds, whole tens of ns and single ns are told apart; few times say nothing."""
    coarse = streams[Feed.QUOTES].copy()
    assert clock_ns(coarse) == MS
    coarse["ts_event"][100] += 30
    assert clock_ns(coarse) == 10
    assert clock_ns(streams[Feed.ORDERS]) == 1
    assert clock_ns(streams[Feed.QUOTES][:5]) == 1


def test_the_grid_is_the_coarsest_that_holds_all_quotes(streams: dict[Feed, TickArray]) -> None:
    """The market's tick size is found; a single locked quote has the finest grid."""
    quotes = streams[Feed.QUOTES]
    assert price_grid(quotes) == CENT
    locked = quotes[:1].copy()
    locked["ask_px"] = locked["bid_px"]
    assert price_grid(locked) == 1
