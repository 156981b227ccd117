"""Anomalies planted in real ticks: the published ranges, measured on what was planted.

One instrument of each kind of feed: AMZN (orders), BAC (quotes and trades), XAUUSD (quotes without
sizes), SPY (a tape). What an anomaly itself adds is measured on a market that falls silent when it
begins; that it disturbs nothing else, on the market as it went on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from detector.feeds import Feed, clock_ns, price_grid, two_sided
from detector.placing import HISTORY
from detector.planting import APPLICABLE, Planted
from detector.readers import read_files
from detector.scripts import RANGES, AnomalyKind
from detector.synthetic import gather
from detector.ticks import NS_PER_S, UNDEFINED_PRICE, TickArray, TickBatch
from tests.feed_streams import alone
from training.anomalies import inject
from training.evaluation_plan import EVALUATION_PLAN
from training.halves import Half
from training.labels import tick_labels
from training.planning import LEAST_TRADES, LEAST_WITHHELD, Policy, plan_stream, survey

pytestmark = pytest.mark.data

SOURCES = {
    "AMZN": (Feed.ORDERS, ["lobster/LOBSTER_SampleFile_AMZN_2012-06-21_1.zip"]),
    "BAC": (
        Feed.QUOTES_AND_TRADES,
        [f"lean/equity/bac/20131007_{what}.zip" for what in ("quote", "trade")],
    ),
    "XAUUSD": (Feed.QUOTES, ["lean/xauusd/20140506_quote.zip"]),
    "SPY": (Feed.TRADES, ["lean/equity/spy/20131007_trade.zip"]),
}
REGULAR = [
    (1_340_285_400 * NS_PER_S, 1_340_308_800 * NS_PER_S),  # 2012-06-21, 13:30 to 20:00 UTC
    (1_381_152_600 * NS_PER_S, 1_381_176_000 * NS_PER_S),  # 2013-10-07
    (1_399_356_000 * NS_PER_S, 1_399_392_000 * NS_PER_S),  # 2014-05-06, 06:00 to 16:00 UTC
]
SHOWN = [(symbol, kind) for symbol, (feed, _) in SOURCES.items() for kind in APPLICABLE[feed]]
OWN = [each for each in SHOWN if each[1] not in (AnomalyKind.FROZEN_QUOTES, AnomalyKind.FEED_GAP)]


@dataclass(frozen=True, eq=False)
class Day:
    """One day of one instrument, and anomalies of all kinds and the whole ranges in it."""

    clean: TickBatch
    feed: Feed
    planted: tuple[Planted, ...]
    out: TickBatch
    anomaly: np.ndarray

    def of(self, kind: AnomalyKind) -> list[Planted]:
        """Its anomalies of a kind."""
        return [one for one in self.planted if one.kind == kind]

    def before(self, one: Planted) -> TickArray:
        """The ticks from which an anomaly took its scale."""
        end = np.searchsorted(self.clean.ticks["ts_event"], one.start_ns)
        return self.clean.ticks[:end][-HISTORY:]


@pytest.fixture(scope="module")
def day(shared_data: Path) -> Callable[[str], Day]:
    """Read and plant a day, once."""
    days: dict[str, Day] = {}

    def of(symbol: str) -> Day:
        if symbol not in days:
            feed, files = SOURCES[symbol]
            clean = gather(read_files([shared_data / file for file in files]))
            surveys = survey([clean])
            planted = plan_stream(surveys, Policy(20.0, half=Half.BOTH, seed=6), REGULAR)
            pieces = (clean[i : i + 50_000] for i in range(0, len(clean), 50_000))
            parts = list(inject(pieces, planted, {key: one.feed for key, one in surveys.items()}))
            anomaly = np.concatenate([part.labels.anomaly for part in parts])
            days[symbol] = Day(clean, feed, planted, gather(p.batch for p in parts), anomaly)
            assert [one.feed for one in surveys.values()] == [feed]
        return days[symbol]

    return of


def in_ms(ticks: TickArray) -> np.ndarray:
    """Event times in ms after the first."""
    ts = ticks["ts_event"].astype(np.int64)
    return (ts - ts[0]) / 1e6


def mid(ticks: TickArray) -> float:
    """The last mid price, or the last price on a tape."""
    quoted = ticks[two_sided(ticks)]
    if not len(quoted):
        return float(ticks["price"][-1])
    return (int(quoted["bid_px"][-1]) + int(quoted["ask_px"][-1])) / 2


def trades_of(ticks: TickArray) -> TickArray:
    """The trades among ticks."""
    return ticks[ticks["action"] == ord("T")]


def mean_trade(ticks: TickArray) -> float:
    """Mean size of the trades among ticks."""
    return float(trades_of(ticks)["size"].mean())


@pytest.mark.parametrize("symbol", SOURCES)
def test_the_rest_of_the_day_is_untouched(day: Callable[[str], Day], symbol: str) -> None:
    """Outside the anomalies every byte is the day's own, and every anomaly has ticks."""
    it = day(symbol)
    own = tick_labels(it.clean.keys, it.clean.ts_event, it.planted).anomaly
    assert it.out.ticks[it.anomaly == 0].tobytes() == it.clean.ticks[own == 0].tobytes()
    assert set(it.anomaly.tolist()) == set(range(len(it.planted) + 1))
    assert {one.kind for one in it.planted} == set(APPLICABLE[it.feed])
    hours = 10 if symbol == "XAUUSD" else 6.5
    assert len(it.planted) == pytest.approx(20 * hours, abs=2)
    free_from = 0
    for one in it.planted:
        assert one.start_ns - free_from >= 60 * NS_PER_S
        free_from = one.end_ns


@pytest.mark.parametrize(("symbol", "kind"), OWN)
def test_the_book_is_consistent(day: Callable[[str], Day], symbol: str, kind: AnomalyKind) -> None:
    """Prices positive, on the grid; sizes where the feed has sizes; the clean book at the end."""
    it = day(symbol)
    for one in it.of(kind):
        quiet, made = alone(it.clean.ticks, one, it.feed)
        assert len(made) > 0
        assert np.all(np.diff(in_ms(made)) >= 0)
        assert np.all(made["ts_event"] % np.uint64(clock_ns(quiet[-HISTORY:])) == 0)
        assert set(made["action"].tolist()) <= set(np.unique(it.clean.ticks["action"]).tolist())
        if it.feed == Feed.TRADES:
            assert np.all((made["bid_px"] == UNDEFINED_PRICE) & (made["ask_px"] == UNDEFINED_PRICE))
            assert np.all((made["price"] > 0) & (made["size"] >= 1))
            continue
        quoted = quiet[two_sided(quiet)]
        grid = price_grid(quoted[-HISTORY:])
        for name in ("bid_px", "ask_px"):
            assert np.all(made[name] > 0)
            assert np.all((made[name] - quoted[name][-1]) % grid == 0)
        for name in ("bid_sz", "ask_sz"):
            assert np.all(made[name] >= 1) == (it.feed != Feed.QUOTES)
        crossed = made["bid_px"] >= made["ask_px"]
        was = bool(quoted["bid_px"][-1] >= quoted["ask_px"][-1])
        assert crossed.any() == (kind == AnomalyKind.CROSSED_BOOK or was)
        for name in ("bid_px", "ask_px", "bid_sz", "ask_sz", "bid_ct", "ask_ct"):
            assert made[name][-1] == quoted[name][-1]


@pytest.mark.parametrize("symbol", ["AMZN", "BAC", "XAUUSD"])
def test_quote_stuffing(day: Callable[[str], Day], symbol: str) -> None:
    """50 to 199 events, 8 to 9 a ms, half a spread inside, sizes up to the 10th percentile."""
    it = day(symbol)
    for one in it.of(AnomalyKind.QUOTE_STUFFING):
        quiet, made = alone(it.clean.ticks, one, it.feed)
        assert 50 <= len(made) <= 199
        assert len(made) % 2 == 0
        assert 8.0 <= (len(made) - 1) / ((one.end_ns - one.start_ns) / 1e6) <= 9.0
        last, side = quiet[-1], "bid" if one.params["side"] > 0 else "ask"
        grid = price_grid(quiet[two_sided(quiet)][-HISTORY:])
        inside = abs(int(made[f"{side}_px"][0]) - int(last[f"{side}_px"]))
        assert inside == (int(last["ask_px"]) - int(last["bid_px"])) // (2 * grid) * grid
        assert set(made[f"{side}_px"][1::2].tolist()) == {int(last[f"{side}_px"])}
        if it.feed == Feed.ORDERS:
            assert bytes(made["action"].tolist()) == b"AC" * (len(made) // 2)
            assert made["size"].max() <= np.quantile(it.before(one)["size"], 0.1)
        if it.feed == Feed.QUOTES_AND_TRADES:
            shown = it.before(one)
            levels = np.concatenate([shown["bid_sz"], shown["ask_sz"]])
            joined = np.where(inside, 0, last[f"{side}_sz"])
            assert (made[f"{side}_sz"][0::2] - joined).max() <= np.quantile(levels, 0.1)


@pytest.mark.parametrize("symbol", ["AMZN", "BAC"])
def test_layering(day: Callable[[str], Day], symbol: str) -> None:
    """2-3 means in earnest; 10-12 orders of 6 means every 14 ± 5 ms, within 7 bps; then cancels."""
    it = day(symbol)
    for one in it.of(AnomalyKind.LAYERING):
        quiet, made = alone(it.clean.ticks, one, it.feed)
        up = one.params["side"] > 0
        stack, earnest = ("bid", "ask") if up else ("ask", "bid")
        shown, last = it.before(one), quiet[-1]
        orders = it.feed == Feed.ORDERS
        mean = (
            shown["size"].mean()
            if orders
            else np.concatenate([shown["bid_sz"], shown["ask_sz"]]).mean()
        )
        at = in_ms(made)
        traded = np.flatnonzero(made["action"] == ord("T"))
        assert len(traded) == 1
        placed = int(traded[0])
        assert 10 + 1 <= placed <= 12 + 1
        slack = 0.0 if orders else 1.0  # a clock of 1 ms
        assert np.all(np.abs(np.diff(at[:placed]) - 14) <= 5 + slack)
        assert abs(at[placed] - at[placed - 1] - 10) <= 5 + slack
        pulled = at[placed + (1 if orders else 2) :] - at[placed]
        assert pulled.min() >= 100 - slack
        assert pulled.max() <= 1000 + 1.2 + slack
        offered = int(made[f"{earnest}_sz"][0]) - int(last[f"{earnest}_sz"])
        assert 2 * mean - 1 <= offered <= 3 * mean + 1
        trade_mean = mean if orders else mean_trade(shown)
        assert 2 * trade_mean - 1 <= made["size"][placed] <= 3 * trade_mean + 1
        walk = abs(int(made[f"{stack}_px"][placed]) - int(last[f"{stack}_px"]))
        assert walk <= 7e-4 * mid(quiet)
        if orders:
            assert bytes(made["action"].tolist()) == b"A" * placed + b"T" + b"C" * (placed - 1)
            assert made["size"][1:placed].sum() == pytest.approx(6 * mean, abs=placed / 2)
        elif not walk:
            total = int(made[f"{stack}_sz"][placed]) - int(last[f"{stack}_sz"])
            assert total == pytest.approx(6 * mean, abs=placed / 2)


@pytest.mark.parametrize("symbol", SOURCES)
def test_pump_and_dump(day: Callable[[str], Day], symbol: str) -> None:
    """+3 to 4 % in 6 + 6 steps of 83 ± 20 ms, then 6 cancels and 6 trades of 250 ± 60 ms."""
    it = day(symbol)
    for one in it.of(AnomalyKind.PUMP_AND_DUMP):
        quiet, made = alone(it.clean.ticks, one, it.feed)
        assert one.params["side"] == 1.0
        start, trades = mid(quiet), trades_of(made)
        assert len(trades) == (0 if it.feed == Feed.QUOTES else 12)
        if len(trades):
            shown = it.before(one)
            mean = shown["size"].mean() if it.feed == Feed.ORDERS else mean_trade(shown)
            assert 1.25 * mean - 1 <= trades["size"].min()
            assert trades["size"].max() <= 2 * mean + 1
        if it.feed == Feed.TRADES:
            assert np.all(np.abs(np.diff(in_ms(trades))[:5] - 2 * 83) <= 2 * 20 + 1)
            assert np.all(np.abs(np.diff(in_ms(trades))[6:] - 2 * 250) <= 2 * 60 + 1)
            assert 0.03 * 5 / 6 - 1e-5 <= trades["price"].max() / start - 1 <= 0.04
            continue
        grid = price_grid(quiet[two_sided(quiet)][-HISTORY:]) / start
        top = (made["bid_px"].max() + made["ask_px"].max()) / 2
        assert 0.03 - grid <= top / start - 1 <= 0.04 + grid
        # Trade and quote are one step where both are told.
        steps = made if it.feed != Feed.QUOTES_AND_TRADES else made[made["action"] != ord("T")]
        assert len(steps) == 24
        if it.feed == Feed.ORDERS:
            assert bytes(made["action"].tolist()) == b"TA" * 6 + b"CT" * 6
        slack = 0.0 if it.feed == Feed.ORDERS else 1.0
        gaps = np.diff(in_ms(steps))
        assert np.all(np.abs(gaps[:11] - 83) <= 20 + slack)
        assert np.all(np.abs(gaps[11:] - 250) <= 60 + slack)


@pytest.mark.parametrize("symbol", SOURCES)
def test_fat_finger(day: Callable[[str], Day], symbol: str) -> None:
    """A trade, or a quote where no trade is told, 0.5 to 5 % away; back within a second."""
    it = day(symbol)
    for one in it.of(AnomalyKind.FAT_FINGER):
        quiet, made = alone(it.clean.ticks, one, it.feed)
        name = "ask_px" if one.params["side"] > 0 else "bid_px"
        if it.feed == Feed.TRADES:
            last, far, grid = quiet["price"][-1], made["price"][0], 1e5 / mid(quiet)
        else:
            quoted = quiet[two_sided(quiet)]
            last, grid = quoted[name][-1], price_grid(quoted[-HISTORY:]) / mid(quiet)
            far = made["price"][0] if it.feed != Feed.QUOTES else made[name][0]
        away = (int(far) - int(last)) / mid(quiet) * one.params["side"]
        assert 0.005 - grid / 2 <= away <= 0.05 + grid / 2
        assert len(trades_of(made)) == (0 if it.feed == Feed.QUOTES else 1)
        assert one.end_ns - one.start_ns <= NS_PER_S
        assert in_ms(made)[-1] <= 1000


@pytest.mark.parametrize("symbol", ["AMZN", "BAC", "SPY"])
def test_momentum_ignition(day: Callable[[str], Day], symbol: str) -> None:
    """5 to 15 trades of one aggressor within 500 ms, each at the price the one before left."""
    it = day(symbol)
    for one in it.of(AnomalyKind.MOMENTUM_IGNITION):
        quiet, made = alone(it.clean.ticks, one, it.feed)
        trades = trades_of(made)
        assert 5 <= len(trades) <= 15
        assert in_ms(trades)[-1] <= 500 + 1
        aggressor = "B" if one.params["side"] > 0 else "A"
        assert bytes(set(trades["side"].tolist())).decode() == (
            "N" if it.feed == Feed.TRADES else aggressor
        )
        moved = np.diff(trades["price"].astype(np.int64)) * one.params["side"]
        assert np.all(moved >= 0)
        assert moved.sum() > 0
        assert moved.sum() / mid(quiet) <= 50e-4


@pytest.mark.parametrize("symbol", ["AMZN", "BAC", "SPY"])
def test_wash_trades(day: Callable[[str], Day], symbol: str) -> None:
    """10 to 30 trades of one size, 2 to 5 mean trades, every 20 to 100 ms, now sold, now bought."""
    it = day(symbol)
    for one in it.of(AnomalyKind.WASH_TRADES):
        quiet, made = alone(it.clean.ticks, one, it.feed)
        trades, mean = trades_of(made), mean_trade(it.before(one))
        assert 10 <= len(trades) <= 30
        assert len(set(trades["size"].tolist())) == 1
        assert 2 * mean - 1 <= trades["size"][0] <= 5 * mean + 1
        gaps = np.diff(in_ms(trades))
        assert np.all((gaps >= 0.9 * 20 - 1) & (gaps <= 1.1 * 100 + 1))
        last = quiet[-1]
        if it.feed == Feed.TRADES:
            assert set(trades["price"].tolist()) == {int(last["price"])}
            continue
        assert np.all(trades["side"][1:] != trades["side"][:-1])
        assert np.all((trades["price"] >= last["bid_px"]) & (trades["price"] <= last["ask_px"]))


@pytest.mark.parametrize("symbol", ["AMZN", "BAC"])
def test_frozen_quotes(day: Callable[[str], Day], symbol: str) -> None:
    """For 10 to 30 s trades alone, at least three, over one book."""
    it = day(symbol)
    for number, one in enumerate(it.planted, start=1):
        if one.kind != AnomalyKind.FROZEN_QUOTES:
            continue
        assert 10 * NS_PER_S <= one.end_ns - one.start_ns <= 30 * NS_PER_S
        ticks = it.out.ticks[it.anomaly == number]
        assert len(ticks) >= LEAST_TRADES
        assert set(ticks["action"].tolist()) == {ord("T")}
        for name in ("bid_px", "ask_px", "bid_sz", "ask_sz"):
            assert set(ticks[name].tolist()) == {int(it.before(one)[name][-1])}


@pytest.mark.parametrize("symbol", SOURCES)
def test_feed_gap(day: Callable[[str], Day], symbol: str) -> None:
    """5 to 20 s of nothing, then what was withheld, at least five ticks, within 50 to 500 ms."""
    it = day(symbol)
    own = tick_labels(it.clean.keys, it.clean.ts_event, it.planted).anomaly
    for number, one in enumerate(it.planted, start=1):
        if one.kind != AnomalyKind.FEED_GAP:
            continue
        ticks, withheld = it.out.ticks[it.anomaly == number], it.clean.ticks[own == number]
        assert len(ticks) == len(withheld) >= LEAST_WITHHELD
        assert np.array_equal(ticks["price"], withheld["price"])
        first = int(ticks["ts_event"][0]) - one.start_ns
        low, high = RANGES[one.kind]["gap_s"]
        assert first >= low * NS_PER_S - 10**6
        assert one.params["gap_s"] <= high
        assert in_ms(ticks)[-1] <= 500
        assert one.end_ns - one.start_ns == pytest.approx(
            one.params["gap_s"] * 1e9 + one.params["burst_ms"] * 1e6, abs=2
        )


@pytest.mark.parametrize("symbol", ["AMZN", "BAC", "XAUUSD"])
def test_crossed_book(day: Callable[[str], Day], symbol: str) -> None:
    """Bid at the ask or up to five ticks above it, from its arrival until it is cancelled."""
    it = day(symbol)
    for number, one in enumerate(it.planted, start=1):
        if one.kind != AnomalyKind.CROSSED_BOOK:
            continue
        quiet, made = alone(it.clean.ticks, one, it.feed)
        grid = price_grid(quiet[two_sided(quiet)][-HISTORY:])
        assert int(made["bid_px"][0]) - int(made["ask_px"][0]) == one.params["ticks"] * grid
        ticks = it.out.ticks[it.anomaly == number]
        crossed = ticks["bid_px"] >= ticks["ask_px"]
        after = ticks["ts_event"].astype(np.int64) - one.start_ns
        during = (after > 10**6) & (after < one.end_ns - one.start_ns - 10**6)
        assert np.all(crossed[during])


@pytest.mark.parametrize("subject", EVALUATION_PLAN.subjects, ids=lambda each: each.symbol)
def test_the_evaluation_plan_fits_its_data(subject: object, shared_data: Path) -> None:
    """Every part of every subject has ticks, and its anomalies lie where the plan says."""
    assert isinstance(subject, type(EVALUATION_PLAN.subjects[0]))
    clean = gather(read_files([shared_data / name for name in subject.files]))
    surveys = survey([clean])
    assert [one.symbol for one in surveys.values()] == [subject.symbol]
    for span in (*subject.train, *subject.calibration, *subject.test):
        low, high = span.ns
        ts = clean.ts_event[(clean.ts_event >= low) & (clean.ts_event < high)]
        assert len(ts) > 5000
        assert ts[0] - low < 600 * NS_PER_S
        assert high - ts[-1] < 600 * NS_PER_S
    for half, seed in ((Half.TRAIN, 101), (Half.TEST, 1)):
        spans = subject.spans(half)
        planted = EVALUATION_PLAN.planted(subject, surveys, half, seed)
        assert {one.kind for one in planted} == set(APPLICABLE[next(iter(surveys.values())).feed])
        hours = sum(high - low for low, high in spans) / NS_PER_S / 3600
        assert len(planted) == pytest.approx(EVALUATION_PLAN.per_hour * hours, abs=len(spans) + 5)
        free_from = 0
        for one in planted:
            assert any(low <= one.start_ns and one.end_ns < high for low, high in spans)
            assert one.start_ns - free_from >= 60 * NS_PER_S
            free_from = one.end_ns
