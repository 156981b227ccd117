"""The readers against real files: counts, first and last rows, aggressor side, book timing.

The figures were taken from the files with other tools (awk, Databento's own decoder), not with the
readers. Nothing of the files is kept here but counts and single rows.
"""

from __future__ import annotations

from pathlib import Path

import databento_dbn
import numpy as np
import pytest
import zstandard

from detector.readers import read_files, read_ticks, read_vectors
from detector.ticks import UNDEFINED_PRICE, UNDEFINED_TIME, TickArray

pytestmark = pytest.mark.data

TRADE, CANCEL = ord("T"), ord("C")
BUY, SELL = ord("B"), ord("A")


def ticks_of(*paths: Path) -> TickArray:
    """All ticks of these files."""
    return np.concatenate([batch.ticks for batch in read_files(paths)])


def utc(tick: np.void) -> str:
    """Event time of a tick."""
    return str(np.datetime64(int(tick["ts_event"]), "ns"))


def two_sided(ticks: TickArray) -> np.ndarray:  # type: ignore[type-arg]
    """Mask of the ticks with both sides of the book."""
    return (ticks["bid_px"] != UNDEFINED_PRICE) & (ticks["ask_px"] != UNDEFINED_PRICE)


class TestLobster:
    """NASDAQ 2012-06-21."""

    @pytest.mark.parametrize(
        ("name", "adds", "cancels", "trades"),
        [
            ("AAPL_2012-06-21_1", 54_818, 252 + 28_437, 23_658 + 11_332),
            ("AMZN_2012-06-21_1", 27_845, 16 + 18_235, 8_974 + 2_445),
            ("AMZN_2012-06-21_5", 77_381, 450 + 66_685, 8_974 + 2_445),
        ],
    )
    def test_counts(
        self, shared_data: Path, name: str, adds: int, cancels: int, trades: int
    ) -> None:
        """Every message is one tick, by action."""
        ticks = ticks_of(shared_data / "lobster" / f"LOBSTER_SampleFile_{name}.zip")
        counts = [int((ticks["action"] == ord(action)).sum()) for action in "ACT"]
        assert counts == [adds, cancels, trades]
        assert len(ticks) == adds + cancels + trades
        assert (np.diff(ticks["ts_event"].astype(np.int64)) >= 0).all()
        assert set(ticks["ts_recv"].tolist()) == {UNDEFINED_TIME}

    def test_first_and_last_row(self, shared_data: Path) -> None:
        """AMZN's first and last message, with their rows of the order book."""
        path = shared_data / "lobster" / "LOBSTER_SampleFile_AMZN_2012-06-21_1.zip"
        ticks = ticks_of(path)
        first, last = ticks[0], ticks[-1]
        assert utc(first) == "2012-06-21T13:30:00.017459617"
        assert (chr(first["action"]), chr(first["side"]), first["size"]) == ("T", "B", 1)
        assert first["price"] == 223_820_000_000
        book = [first[name] for name in ("bid_px", "bid_sz", "ask_px", "ask_sz")]
        assert book == [223_180_000_000, 100, 223_950_000_000, 100]
        assert utc(last) == "2012-06-21T19:59:59.959359650"
        assert (chr(last["action"]), chr(last["side"]), last["size"]) == ("C", "A", 100)
        book = [last[name] for name in ("bid_px", "bid_sz", "ask_px", "ask_sz")]
        assert book == [220_510_000_000, 249, 220_640_000_000, 100]
        assert last["sequence"] == 57_515

    def test_the_book_is_the_one_after_the_event(self, shared_data: Path) -> None:
        """A visible execution at the best price takes its size off the aggressor's other side."""
        path = shared_data / "lobster" / "LOBSTER_SampleFile_AAPL_2012-06-21_1.zip"
        ticks = ticks_of(path)
        before, after = ticks[:-1], ticks[1:]
        trade = after["action"] == TRADE
        for side, price, size in ((SELL, "bid_px", "bid_sz"), (BUY, "ask_px", "ask_sz")):
            hit = trade & (after["side"] == side) & (after["price"] == before[price])
            partly = hit & (after["size"] < before[size])
            assert partly.sum() > 2_000
            left = before[size].astype(np.int64) - after["size"]
            # Hidden executions at the best price leave the book as it was.
            shrunk = (after[size] == left)[partly].mean()
            unchanged = (after[size] == before[size])[partly].mean()
            assert shrunk > 0.8
            assert shrunk + unchanged > 0.99

    def test_the_side_of_a_trade_is_the_aggressor(self, shared_data: Path) -> None:
        """Buys trade nearer to the ask of the book before, sells nearer to the bid."""
        path = shared_data / "lobster" / "LOBSTER_SampleFile_AAPL_2012-06-21_1.zip"
        ticks = ticks_of(path)
        before, after = ticks[:-1], ticks[1:]
        to_bid = (after["price"] - before["bid_px"])[after["action"] == TRADE]
        to_ask = (before["ask_px"] - after["price"])[after["action"] == TRADE]
        buys = (after["side"] == BUY)[after["action"] == TRADE]
        assert (to_bid > to_ask)[buys].mean() > 0.9
        assert (to_bid < to_ask)[~buys].mean() > 0.9

    def test_levels_agree(self, shared_data: Path) -> None:
        """The trades of level 5 are those of level 1, with the same best bid and offer."""
        one, five = (
            ticks_of(shared_data / "lobster" / f"LOBSTER_SampleFile_AMZN_2012-06-21_{level}.zip")
            for level in (1, 5)
        )
        one, five = one[one["action"] == TRADE], five[five["action"] == TRADE]
        names = [name for name in one.dtype.names or () if name != "sequence"]
        assert one[names].tolist() == five[names].tolist()


class TestDatabento:
    """ES futures, 2024-07-01 23:58 to 2024-07-02 00:02."""

    NAME = "futures_{}_2024-07-01T23-58_2024-07-02T00-02.dbn.zst"

    def test_every_record_is_databentos(self, shared_data: Path) -> None:
        """All fields equal what Databento's own decoder gives, but the book of trades."""
        path = shared_data / "databento" / self.NAME.format("mbp-1")
        decoder = databento_dbn.DBNDecoder()
        with path.open("rb") as file:
            stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
            decoder.write(stream.read())
        records = [r for r in decoder.decode() if isinstance(r, databento_dbn.MBP1Msg)]
        ticks = ticks_of(path)
        assert len(ticks) == len(records) == 2_288
        for tick, record in zip(ticks, records, strict=True):
            level = record.levels[0]
            assert int(tick["ts_event"]) == record.ts_event
            assert int(tick["ts_recv"]) == record.ts_recv
            assert int(tick["price"]) == record.price
            assert chr(tick["action"]) == record.action.value
            assert chr(tick["side"]) == record.side.value
            assert (tick["bid_px"], tick["ask_px"]) == (level.bid_px, level.ask_px)
            if tick["action"] != TRADE:
                assert (tick["bid_sz"], tick["ask_sz"]) == (level.bid_sz, level.ask_sz)

    def test_a_trade_leaves_the_book_that_the_next_record_brings(self, shared_data: Path) -> None:
        """Where the level survives, the settled book is the next record's of the same event."""
        ticks = ticks_of(shared_data / "databento" / self.NAME.format("mbp-1"))
        assert int((ticks["action"] == TRADE).sum()) == 120
        now, following = ticks[:-1], ticks[1:]
        same_event = (now["action"] == TRADE) & (now["ts_event"] == following["ts_event"])
        survives = same_event & (now["bid_px"] == following["bid_px"])
        survives &= (now["ask_px"] == following["ask_px"]) & (following["action"] != TRADE)
        assert survives.sum() > 50
        for size in ("bid_sz", "ask_sz"):
            assert (now[size] == following[size])[survives].mean() > 0.95

    def test_trades(self, shared_data: Path) -> None:
        """The trades file holds the trades of the other one, and the symbol."""
        path = shared_data / "databento" / self.NAME.format("trades")
        trades = ticks_of(path)
        mbp = ticks_of(shared_data / "databento" / self.NAME.format("mbp-1"))
        mbp = mbp[mbp["action"] == TRADE]
        names = ["ts_event", "ts_recv", "price", "size", "side", "sequence"]
        assert trades[names].tolist() == mbp[names].tolist()
        assert len(trades) == 120
        assert [int((trades["side"] == side).sum()) for side in (SELL, BUY)] == [54, 66]
        assert set(trades["bid_px"].tolist()) == {UNDEFINED_PRICE}
        assert next(read_ticks(path)).symbols == {(1 << 32) | 118: "ESU4"}


class TestLean:
    """NYSE and NASDAQ equities, 2013-10-07, and gold, 2014-05."""

    def test_quotes_are_the_best_bid_and_offer(self, shared_data: Path) -> None:
        """Rows come in pairs; as pairs they are a book that never crosses in regular hours."""
        path = shared_data / "lean" / "equity" / "bac" / "20131007_quote.zip"
        skipped: dict[str, int] = {}
        ticks = np.concatenate([b.ticks for b in read_ticks(path, skipped=skipped)])
        assert len(ticks) == (476_855 + 1) // 2
        assert skipped == {}
        assert utc(ticks[0]) == "2013-10-07T08:00:00.151000000"
        assert (ticks["ask_px"][0], ticks["ask_sz"][0]) == (14_020_000_000, 500)
        assert utc(ticks[-1]) == "2013-10-08T00:00:00.601000000"
        assert (ticks["ask_px"][-1], ticks["ask_sz"][-1]) == (13_860_000_000, 18_000)
        assert ticks["sequence"][-1] == 476_855
        whole = ticks[two_sided(ticks)]
        assert len(whole) == len(ticks) - 1
        assert (whole["bid_px"] <= whole["ask_px"]).all()
        assert (whole["bid_px"] == whole["ask_px"]).mean() < 0.03

    def test_suspicious_rows_are_left_out(self, shared_data: Path) -> None:
        """IBM's one suspicious quote is left out and counted."""
        path = shared_data / "lean" / "equity" / "ibm" / "20131007_quote.zip"
        skipped: dict[str, int] = {}
        rows = sum(len(batch) for batch in read_ticks(path, skipped=skipped))
        assert skipped == {"suspicious": 1}
        assert rows == 54_534

    @pytest.mark.parametrize(
        ("name", "rows"),
        [("bac/20131007", 88_172), ("ibm/20131007", 24_293), ("spy/20131007", 250_601)],
    )
    def test_trades(self, shared_data: Path, name: str, rows: int) -> None:
        """Every trade is there, none has a side or a book."""
        ticks = ticks_of(shared_data / "lean" / "equity" / f"{name}_trade.zip")
        assert len(ticks) == rows
        assert set(ticks["side"].tolist()) == {ord("N")}
        assert not two_sided(ticks).any()

    def test_trades_lie_within_the_quotes_they_met(self, shared_data: Path) -> None:
        """With quotes beside them, nearly all trades lie in the carried book and have a side."""
        folder = shared_data / "lean" / "equity" / "bac"
        ticks = ticks_of(folder / "20131007_quote.zip", folder / "20131007_trade.zip")
        assert len(ticks) == 238_428 + 88_172
        assert (np.diff(ticks["ts_event"].astype(np.int64)) >= 0).all()
        trades = ticks[(ticks["action"] == TRADE) & two_sided(ticks)]
        assert len(trades) == 88_172
        within = (trades["price"] >= trades["bid_px"]) & (trades["price"] <= trades["ask_px"])
        assert within.mean() > 0.99
        assert (trades["side"] == ord("N")).mean() < 0.05
        assert (trades["price"] == trades["ask_px"])[trades["side"] == BUY].mean() > 0.8

    def test_gold(self, shared_data: Path) -> None:
        """Every row is a quote in UTC, never crossed, with fractions of a millisecond kept."""
        ticks = ticks_of(shared_data / "lean" / "xauusd" / "20140501_quote.zip")
        assert len(ticks) == 129_744
        assert utc(ticks[0]) == "2014-05-01T00:00:00.043142000"
        assert (ticks["bid_px"][0], ticks["ask_px"][0]) == (1_291_677_000_000, 1_292_033_000_000)
        assert utc(ticks[2]) == "2014-05-01T00:00:00.062266200"
        assert utc(ticks[-1]) == "2014-05-01T23:59:54.432862000"
        assert (ticks["bid_px"] < ticks["ask_px"]).all()
        assert (ticks["bid_sz"] == 0).all()

    def test_the_burst_of_2014_05_02(self, shared_data: Path) -> None:
        """The minute of the payrolls release, 12:30 UTC, moves the most of that day."""
        ticks = ticks_of(shared_data / "lean" / "xauusd" / "20140502_quote.zip")
        minute = ticks["ts_event"] // np.uint64(60_000_000_000)
        _, start = np.unique(minute, return_index=True)
        mid = (ticks["bid_px"] + ticks["ask_px"]) / 2
        span = np.maximum.reduceat(mid, start) / np.minimum.reduceat(mid, start)
        busiest = ticks[start[int(np.argmax(span))]]
        assert utc(busiest).startswith("2014-05-02T12:30")


class TestVectors:
    """Numenta Anomaly Benchmark."""

    def test_every_series_is_read(self, shared_data: Path) -> None:
        """All series are read in order of time, finite, each with an id of its own."""
        paths = sorted((shared_data / "nab" / "data").glob("*/*.csv"))
        assert len(paths) == 51
        keys = set()
        for path in paths:
            batches = list(read_vectors(path))
            lines = sum(1 for line in path.read_text().splitlines() if line.strip()) - 1
            assert sum(map(len, batches)) == lines
            times = np.concatenate([batch.ts_event for batch in batches])
            assert np.isfinite(np.concatenate([batch.values for batch in batches])).all()
            assert (times > 1_300_000_000_000_000_000).all()
            keys |= set(batches[0].keys.tolist())
        assert len(keys) == 51
