"""Files to ticks: small files of every format made here, and every way in which one is broken."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

import databento_dbn
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from detector.readers import (
    COLUMNS,
    PUBLISHER,
    ReaderError,
    base,
    carry_books,
    guess_format,
    lean,
    merge_by_time,
    read_files,
    read_ticks,
    read_vector_files,
    read_vectors,
    vector_columns,
    write_parquet,
)
from detector.ticks import (
    UNDEFINED_PRICE,
    UNDEFINED_TIME,
    TickArray,
    TickBatch,
    empty_ticks,
    instrument_key,
    stable_instrument_id,
)
from detector.wire import encode_dbn

PAIR = "ABC_2012-06-21_34200000_57600000_{}_2.csv"
MESSAGES = """\
34200.017459617,1,11,5,2238200,1
34200.5,2,11,2,2238200,1
34201,3,12,100,2239500,-1
34201.000000001,4,11,3,2238200,1
34201.25,4,13,10,2239600,-1
34202,5,0,7,2238900,-1
34203.632812672004,6,-1,50,2239000,-1
34204,7,0,0,-1,-1
"""
BOOKS = """\
2239500,100,2238200,5,2239600,10,-9999999999,0
2239500,100,2238200,3,2239600,10,-9999999999,0
2239600,10,2238200,3,9999999999,0,-9999999999,0
2239600,10,-9999999999,0,9999999999,0,-9999999999,0
9999999999,0,-9999999999,0,9999999999,0,-9999999999,0
9999999999,0,-9999999999,0,9999999999,0,-9999999999,0
9999999999,0,-9999999999,0,9999999999,0,-9999999999,0
9999999999,0,-9999999999,0,9999999999,0,-9999999999,0
"""
# 2012-06-21 00:00 in New York, daylight saving time.
MIDNIGHT_2012 = 1_340_251_200_000_000_000


def all_ticks(batches: Iterable[TickBatch]) -> TickArray:
    """Ticks of all batches."""
    return np.concatenate([batch.ticks for batch in batches])


def letters(codes: np.ndarray) -> str:  # type: ignore[type-arg]
    """Action or side column as text."""
    return codes.tobytes().decode()


def zipped(path: Path, **members: str) -> Path:
    """Write a zip with these members, `.csv` added to their names."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(f"{name}.csv", text)
    return path


def lobster(folder: Path, messages: str = MESSAGES, books: str = BOOKS) -> Path:
    """Write a pair of LOBSTER files; gives the message file."""
    (folder / PAIR.format("orderbook")).write_text(books)
    path = folder / PAIR.format("message")
    path.write_text(messages)
    return path


class TestLobster:
    """Message and order book files."""

    def test_every_event_type(self, tmp_path: Path) -> None:
        """Each type becomes its action; executions get the aggressor's side, others the order's."""
        ticks = all_ticks(read_ticks(lobster(tmp_path)))
        assert letters(ticks["action"]) == "ACCTTTTN"
        assert letters(ticks["side"]) == "BBAABBBN"
        assert ticks["size"].tolist() == [5, 2, 100, 3, 10, 7, 50, 0]
        assert ticks["price"].tolist()[:2] == [223_820_000_000] * 2
        assert ticks["price"][-1] == UNDEFINED_PRICE
        assert ticks["sequence"].tolist() == list(range(1, 9))

    def test_times_are_exact(self, tmp_path: Path) -> None:
        """Seconds after New York's midnight become UTC to the nanosecond."""
        ticks = all_ticks(read_ticks(lobster(tmp_path)))
        since = ticks["ts_event"] - np.uint64(MIDNIGHT_2012)
        assert since[:4].tolist() == [
            34_200_017_459_617,
            34_200_500_000_000,
            34_201_000_000_000,
            34_201_000_000_001,
        ]
        assert since[6] == 34_203_632_812_672

    def test_book_is_the_row_of_the_message(self, tmp_path: Path) -> None:
        """Row k of the order book is the book of tick k; an empty level is null."""
        ticks = all_ticks(read_ticks(lobster(tmp_path)))
        assert ticks["ask_px"][:3].tolist() == [223_950_000_000, 223_950_000_000, 223_960_000_000]
        assert ticks["bid_sz"].tolist() == [5, 3, 3, 0, 0, 0, 0, 0]
        assert ticks["bid_px"][3] == ticks["ask_px"][4] == UNDEFINED_PRICE

    def test_zip_and_folder_are_the_same(self, tmp_path: Path) -> None:
        """A day in a zip, in a folder, or named by its message file gives the same ticks."""
        message = lobster(tmp_path)
        archive = tmp_path / "day.zip"
        with zipfile.ZipFile(archive, "w") as target:
            target.writestr("readme.txt", "hello")
            for kind in ("orderbook", "message"):
                target.write(tmp_path / PAIR.format(kind), PAIR.format(kind))
        expected = all_ticks(read_ticks(message)).tolist()
        assert all_ticks(read_ticks(archive)).tolist() == expected
        assert all_ticks(read_ticks(tmp_path)).tolist() == expected

    def test_identity(self, tmp_path: Path) -> None:
        """Symbol and id come from the file name, or from the caller."""
        path = lobster(tmp_path)
        key = instrument_key(PUBLISHER["lobster"], stable_instrument_id("ABC"))
        batch = next(read_ticks(path))
        assert batch.symbols == {key: "ABC"}
        assert set(batch.keys.tolist()) == {key}
        assert set(next(read_ticks(path, symbol="XYZ")).symbols.values()) == {"XYZ"}

    def test_chunks_join_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The size of chunks changes nothing but the number of batches."""
        path = lobster(tmp_path)
        whole = next(read_ticks(path))
        monkeypatch.setattr(base, "CHUNK", 3)
        parts = list(read_ticks(path))
        assert [len(part) for part in parts] == [3, 3, 2]
        assert all_ticks(parts).tolist() == whole.ticks.tolist()
        assert [o for part in parts for o in part.offsets.tolist()] == list(range(8))

    @pytest.mark.parametrize(
        ("messages", "books", "match"),
        [
            (MESSAGES, BOOKS[: BOOKS.index("\n") + 1], "differ in their number of rows"),
            ("", BOOKS, "empty"),
            (MESSAGES, "", "empty"),
            (MESSAGES.replace(",3,12", ",8,12"), BOOKS, r"row 3: type 8.*allowed"),
            (MESSAGES.replace(",5,2238200,1", ",5,2238200,2"), BOOKS, r"row 1: .*direction 2"),
            (MESSAGES.replace(",100,", ",-100,"), BOOKS, r"row 3: size is -100; allowed"),
            (MESSAGES.replace(",100,", ",many,"), BOOKS, "many"),
            (MESSAGES.replace("34201,", ","), BOOKS, "time"),
            (MESSAGES.replace("34201,", "-5,"), BOOKS, r"row 3: time in ns is -5.*allowed"),
            (MESSAGES.replace("34204,7,0,0,-1,-1", "34204,7"), BOOKS, "Expected 6 columns"),
            (MESSAGES, BOOKS.replace(",-9999999999,0\n", "\n"), "6 columns; allowed are 4 per"),
            (MESSAGES, BOOKS.replace("2238200,5,", "2238200,-5,"), r"row 1: bid size is -5"),
            (
                MESSAGES,
                BOOKS.replace("2239500,100,2238200,5", "9,9,9223372036854775807,9"),
                "price",
            ),
        ],
    )
    def test_broken_files(self, tmp_path: Path, messages: str, books: str, match: str) -> None:
        """A broken file is an error that names the file and what is wrong."""
        path = lobster(tmp_path, messages, books)
        with pytest.raises(ReaderError, match=match) as error:
            list(read_ticks(path))
        assert str(tmp_path) in str(error.value)

    def test_a_missing_order_book(self, tmp_path: Path) -> None:
        """A message file without its order book says what is needed."""
        path = lobster(tmp_path)
        (tmp_path / PAIR.format("orderbook")).unlink()
        with pytest.raises(ReaderError, match="1 message and 0 orderbook"):
            list(read_ticks(path))


def dbn_file(path: Path, body: bytes, schema: str = "mbp-1", **options: object) -> Path:
    """Write a DBN file with Databento's own metadata."""
    metadata = databento_dbn.Metadata(
        dataset="GLBX.MDP3",
        start=0,
        stype_in=databento_dbn.SType.RAW_SYMBOL,
        stype_out=databento_dbn.SType.INSTRUMENT_ID,
        schema=databento_dbn.Schema.from_str(schema),
        **options,
    ).encode()
    if path.suffix == ".zst":
        compress = zstandard.ZstdCompressor().compress
        path.write_bytes(compress(metadata) + compress(body))
    else:
        path.write_bytes(metadata + body)
    return path


class TestDatabento:
    """DBN files."""

    def records(self) -> TickArray:
        """Build a trade with the book before it, and the cancel that brings the book after."""
        ticks = empty_ticks(2)
        ticks["publisher_id"], ticks["instrument_id"] = 1, 118
        ticks["action"], ticks["side"] = [ord("T"), ord("C")], [ord("B"), ord("A")]
        ticks["price"], ticks["size"] = 101, 2
        ticks["bid_px"], ticks["ask_px"] = 100, 101
        ticks["bid_sz"], ticks["ask_sz"] = 29, [6, 4]
        return ticks

    @pytest.mark.parametrize("name", ["a.dbn", "a.dbn.zst"])
    def test_book_of_a_trade_is_the_one_after_it(self, tmp_path: Path, name: str) -> None:
        """What traded is taken off the side that was hit: the book is the next record's."""
        path = dbn_file(tmp_path / name, encode_dbn(self.records()))
        ticks = all_ticks(read_ticks(path))
        assert ticks["ask_sz"].tolist() == [4, 4]
        assert letters(ticks["side"]) == "BA"

    def test_trades_have_no_book(self, tmp_path: Path) -> None:
        """Trades records become ticks with a null book."""
        record = encode_dbn(self.records()[:1])[:48]
        path = dbn_file(tmp_path / "a.dbn", b"\x0c\x00" + record[2:], "trades")
        ticks = all_ticks(read_ticks(path, symbol="ES"))
        assert ticks["bid_px"].tolist() == [UNDEFINED_PRICE]
        assert ticks["size"].tolist() == [2]
        assert next(read_ticks(path, symbol="ES")).symbols == {instrument_key(1, 118): "ES"}

    @pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
    def test_download_that_broke_off_is_refused(self, tmp_path: Path, share: float) -> None:
        """A compressed file that ends within a frame is no shorter file, wherever it ends."""
        ticks = empty_ticks(50_000)
        ticks["publisher_id"], ticks["instrument_id"] = 1, 118
        ticks["action"], ticks["side"] = ord("A"), ord("B")
        ticks["ts_event"] = np.random.default_rng(0).integers(1, 2**62, len(ticks))  # no pattern
        path = dbn_file(tmp_path / "whole.dbn.zst", encode_dbn(ticks))
        assert len(all_ticks(read_ticks(path))) == len(ticks)
        raw = path.read_bytes()
        (tmp_path / "cut.dbn.zst").write_bytes(raw[: int(share * len(raw))])
        with pytest.raises(ReaderError, match="truncated: its last zstd frame is not complete"):
            all_ticks(read_ticks(tmp_path / "cut.dbn.zst"))

    def test_broken_files(self, tmp_path: Path) -> None:
        """Foreign, truncated and empty files, and other schemas, are errors that say so."""
        good = encode_dbn(self.records())
        cases = {
            "schema is ohlcv-1s": dbn_file(tmp_path / "schema.dbn", b"", "ohlcv-1s"),
            "truncated in the middle of record 2": dbn_file(tmp_path / "cut.dbn", good[:-1]),
            "no records": dbn_file(tmp_path / "empty.dbn", b""),
            "record 2 has type 2": dbn_file(tmp_path / "type.dbn", good[:81] + b"\x02" + good[82:]),
            "ts_out": dbn_file(tmp_path / "out.dbn", good, ts_out=True),
        }
        (tmp_path / "foreign.dbn").write_bytes(b"PK\x03\x04 and so on")
        cases["not a DBN file"] = tmp_path / "foreign.dbn"
        (tmp_path / "none.dbn").write_bytes(b"")
        cases["begins with b''"] = tmp_path / "none.dbn"
        (tmp_path / "metadata.dbn").write_bytes(b"DBN\x03\xff\x00\x00\x00junk")
        cases["broken DBN metadata"] = tmp_path / "metadata.dbn"
        whole = dbn_file(tmp_path / "whole.dbn.zst", good * 500).read_bytes()
        (tmp_path / "cut.dbn.zst").write_bytes(whole[:-5])
        cases["truncated|broken|no records"] = tmp_path / "cut.dbn.zst"
        for match, path in cases.items():
            with pytest.raises(ReaderError, match=match):
                list(read_ticks(path))


class TestParquet:
    """Our own columns."""

    def ticks(self) -> TickArray:
        """Build two ticks of two instruments that use all the ranges."""
        ticks = empty_ticks(2)
        ticks["publisher_id"], ticks["instrument_id"] = [1, 65535], [118, 4_294_967_295]
        ticks["ts_event"] = [1, UNDEFINED_TIME]
        ticks["price"], ticks["bid_px"] = [-(2**63), 5], [UNDEFINED_PRICE, -1]
        ticks["action"], ticks["side"] = [ord("T"), ord("A")], [ord("A"), ord("B")]
        ticks["ts_in_delta"], ticks["sequence"] = [-(2**31), 7], [4_294_967_295, 0]
        ticks["flags"], ticks["size"] = [255, 0], [4_294_967_295, 1]
        return ticks

    def test_write_and_read(self, tmp_path: Path) -> None:
        """What is written is read back bit for bit, with the symbols that were known."""
        path = tmp_path / "a.parquet"
        symbols = {instrument_key(1, 118): "ESU4"}
        assert write_parquet(path, [TickBatch.from_ticks(self.ticks(), symbols=symbols)]) == 2
        batch = next(read_ticks(path))
        assert batch.ticks.tolist() == self.ticks().tolist()
        assert batch.symbols == symbols

    def test_few_columns_of_other_types(self, tmp_path: Path) -> None:
        """Only the needed columns, with timestamps and float prices; the rest is null or zero."""
        path = tmp_path / "a.parquet"
        table = pa.table(
            {
                "ts_event": pa.array([1_000, 2_000], pa.timestamp("us", "UTC")),
                "action": ["A", "T"],
                "side": ["B", None],
                "price": [1.25, None],
                "bid_px": pa.array([1.25, 585.33]),
                "bid_sz": pa.array([5, 6], pa.int8()),
                "symbol": ["X", "Y"],
                "note": ["not", "ours"],
            }
        )
        pq.write_table(table, path)
        batch = next(read_ticks(path))
        assert batch.ticks["ts_event"].tolist() == [1_000_000, 2_000_000]
        assert batch.ticks["price"].tolist() == [1_250_000_000, UNDEFINED_PRICE]
        assert batch.ticks["bid_px"].tolist() == [1_250_000_000, 585_330_000_000]
        assert letters(batch.ticks["side"]) == "BN"
        assert batch.ticks["ask_px"].tolist() == [UNDEFINED_PRICE] * 2
        assert batch.ticks["ts_recv"].tolist() == [UNDEFINED_TIME] * 2
        ids = [stable_instrument_id(name) for name in "XY"]
        assert batch.ticks["instrument_id"].tolist() == ids
        assert batch.symbols == dict(zip(ids, "XY", strict=True))

    @pytest.mark.parametrize(
        ("columns", "match"),
        [
            ({"ts_event": [1], "action": ["T"]}, "instrument_id or symbol is missing"),
            ({"ts_event": [1], "symbol": ["X"]}, "action is missing"),
            ({"ts_event": [None], "action": ["T"], "symbol": ["X"]}, r"row 1: ts_event is null"),
            ({"ts_event": [-1], "action": ["T"], "symbol": ["X"]}, "ts_event"),
            ({"ts_event": ["x"], "action": ["T"], "symbol": ["X"]}, "type is string; allowed"),
            (
                {"ts_event": [1], "action": ["Q"], "symbol": ["X"]},
                "action: allowed are the letters",
            ),
            ({"ts_event": [1], "action": ["TT"], "symbol": ["X"]}, "allowed are the letters"),
            (
                {"ts_event": [1], "action": ["T"], "symbol": ["X"], "price": [float("inf")]},
                "price: allowed are finite",
            ),
            (
                {"ts_event": [1], "action": ["T"], "symbol": ["X"], "size": [2**32]},
                "size: Integer value 4294967296 not in range",
            ),
        ],
    )
    def test_broken_files(
        self, tmp_path: Path, columns: dict[str, list[object]], match: str
    ) -> None:
        """Missing columns and values that do not fit are errors that name the column."""
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table(columns), path)
        with pytest.raises(ReaderError, match=match):
            list(read_ticks(path))

    def test_not_parquet(self, tmp_path: Path) -> None:
        """A file that is no Parquet is an error that names it."""
        path = tmp_path / "a.parquet"
        path.write_bytes(b"PAR1 not really")
        with pytest.raises(ReaderError, match=r"a\.parquet"):
            list(read_ticks(path))

    def test_columns_are_the_fields_of_a_tick(self) -> None:
        """The documented columns are the tick's fields but for the record header."""
        assert COLUMNS[:3] == ("publisher_id", "instrument_id", "ts_event")
        assert len(COLUMNS) == 18


class TestBinance:
    """Binance public data."""

    TRADES = "26129,0.01633102,4.70443515,27781,27781,1498793709153,true,true\n"
    FUTURES = (
        "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n"
        "4294967297,42314.0,0.00001,1,1,1735689600010866,false\n"
    )
    QUOTES = (
        "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,"
        "event_time\n12,42313.9,5.1,42314.0,0,1700000000000,1700000000005\n"
    )

    def test_spot_trades_without_names(self, tmp_path: Path) -> None:
        """Eight columns, no header, ms: a maker who buys means a seller who takes."""
        path = zipped(tmp_path / "x.zip", **{"BNBBTC-aggTrades-2017-06-30": self.TRADES})
        batch = next(read_ticks(path))
        tick = batch.ticks[0]
        assert tick["ts_event"] == 1_498_793_709_153_000_000
        assert tick["price"] == 16_331_020
        assert tick["size"] == 47_044
        assert (chr(tick["action"]), chr(tick["side"])) == ("T", "A")
        assert tick["sequence"] == 26_129
        assert set(batch.symbols.values()) == {"BNBBTC"}

    def test_futures_trades_with_names(self, tmp_path: Path) -> None:
        """Seven columns, header, us: the time unit is told by magnitude, no size becomes zero."""
        path = tmp_path / "BTCUSDT-aggTrades-2025-01.csv"
        path.write_text(self.FUTURES)
        tick = next(read_ticks(path)).ticks[0]
        assert tick["ts_event"] == 1_735_689_600_010_866_000
        assert chr(tick["side"]) == "B"
        assert tick["size"] == 1
        assert tick["sequence"] == 1

    def test_quotes(self, tmp_path: Path) -> None:
        """BookTicker rows become quotes with both sides and both times."""
        path = tmp_path / "BTCUSDT-bookTicker-2023-11-14.csv"
        path.write_text(self.QUOTES)
        tick = next(read_ticks(path, size_unit=Decimal("0.1"))).ticks[0]
        assert (chr(tick["action"]), tick["price"]) == ("M", UNDEFINED_PRICE)
        assert (tick["bid_px"], tick["bid_sz"]) == (42_313_900_000_000, 51)
        assert (tick["ask_px"], tick["ask_sz"]) == (42_314_000_000_000, 0)
        assert tick["ts_recv"] - tick["ts_event"] == 5_000_000

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("1,2,3\n", "3 columns; allowed are agg_trade_id"),
            ("", "empty"),
            (TRADES.replace("true", "maybe"), "maybe"),
            (TRADES.replace("4.70443515", "1000000"), "give a larger size_unit"),
            (TRADES.replace("4.70443515", "-1"), "quantity is -1"),
            (TRADES.replace("1498793709153", "-4"), "transact_time is -4"),
            (TRADES.replace("0.01633102", "nan"), "nan"),
        ],
    )
    def test_broken_files(self, tmp_path: Path, text: str, match: str) -> None:
        """Other columns and values that do not fit are errors that say what is allowed."""
        path = tmp_path / "BTCUSDT-aggTrades-2025-01.csv"
        path.write_text(text)
        with pytest.raises(ReaderError, match=match):
            list(read_ticks(path))


class TestLean:
    """QuantConnect Lean tick zips."""

    QUOTES = """\
14400151,0,0,140200,500,Q,1,0
14400554,138400,700,0,0,P,1,0
14400554,0,0,139500,20000,P,1,0
14400600,138500,100,0,0,K,1,0
14400600,0,0,139500,20000,P,1,0
14400601,138500,100,0,0,K,1,1
14400602,0,0,0,0,K,1,0
14400603,138500,100,0,0,K,1,0
14400604,0,0,139400,7,K,1,0
"""
    TRADES = """\
14400554,139500,500,P,20002020,0
14400600,138450,300,P,20002020,0
14400601,100,100,P,0,1
14400700,139000,100,P,20002020,0
14400700,138500,1,P,20002020,0
"""
    # 2013-10-07 00:00 in New York.
    MIDNIGHT = 1_381_118_400_000

    def quotes(self, folder: Path) -> Path:
        """Write the quotes as Lean zips them."""
        return zipped(folder / "20131007_quote.zip", **{"20131007_bac_Quote_Tick": self.QUOTES})

    def trades(self, folder: Path) -> Path:
        """Write the trades as Lean zips them."""
        return zipped(folder / "20131007_trade.zip", **{"20131007_bac_Trade_Tick": self.TRADES})

    def test_quotes_become_the_best_bid_and_offer(self, tmp_path: Path) -> None:
        """A bid row and the ask row after it are one quote; each side stays until it changes."""
        skipped: dict[str, int] = {}
        ticks = all_ticks(read_ticks(self.quotes(tmp_path), skipped=skipped))
        times = (ticks["ts_event"] // 1_000_000).astype(np.int64) - self.MIDNIGHT
        assert times.tolist() == [14_400_151, 14_400_554, 14_400_600, 14_400_603, 14_400_604]
        assert ticks["bid_px"].tolist() == [
            UNDEFINED_PRICE,
            13_840_000_000,
            *[13_850_000_000] * 3,
        ]
        assert ticks["ask_px"].tolist() == [14_020_000_000, *[13_950_000_000] * 3, 13_940_000_000]
        assert ticks["bid_sz"].tolist() == [0, 700, 100, 100, 100]
        assert ticks["ask_sz"].tolist() == [500, 20_000, 20_000, 20_000, 7]
        assert letters(ticks["action"]) == "MMMMM"
        assert letters(ticks["side"]) == "ANBNA"
        assert ticks["price"][2] == 13_850_000_000
        assert ticks["sequence"].tolist() == [1, 3, 5, 8, 9]
        assert skipped == {"suspicious": 1, "no_side": 1}

    @pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5])
    def test_chunks_join_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
    ) -> None:
        """Wherever chunks end, quotes stay whole and sides are carried over."""
        path = self.quotes(tmp_path)
        whole = all_ticks(read_ticks(path)).tolist()
        monkeypatch.setattr(base, "CHUNK", chunk)
        assert all_ticks(lean.read_lean(path)).tolist() == whole

    def test_trades_have_no_side_and_no_book(self, tmp_path: Path) -> None:
        """Trades come as the file has them, without the suspicious ones."""
        skipped: dict[str, int] = {}
        ticks = all_ticks(read_ticks(self.trades(tmp_path), skipped=skipped))
        assert letters(ticks["side"]) == "NNNN"
        assert ticks["price"][0] == 13_950_000_000
        assert set(ticks["bid_px"].tolist()) == {UNDEFINED_PRICE}
        assert skipped == {"suspicious": 1}

    def test_trades_and_quotes_together(self, tmp_path: Path) -> None:
        """Trades get the book before their millisecond, and the side that the quote rule gives."""
        ticks = all_ticks(read_files([self.quotes(tmp_path), self.trades(tmp_path)]))
        assert letters(ticks["action"]) == "MTMTMMMTT"
        trades = ticks[ticks["action"] == ord("T")]
        assert trades["bid_px"].tolist() == [
            UNDEFINED_PRICE,
            13_840_000_000,
            13_850_000_000,
            13_850_000_000,
        ]
        assert trades["ask_sz"].tolist() == [500, 20_000, 7, 7]
        assert letters(trades["side"]) == "NABA"

    def test_forex_quotes(self, tmp_path: Path) -> None:
        """Three columns are quotes without sizes, fractional ms since midnight UTC."""
        name = "20140501_xauusd_tick_quote"
        path = zipped(tmp_path / "x.zip", **{name: "43.142,1291.677,1292.033\n"})
        batch = next(read_ticks(path))
        tick = batch.ticks[0]
        assert tick["ts_event"] == 1_398_902_400_043_142_000
        assert (tick["bid_px"], tick["ask_px"]) == (1_291_677_000_000, 1_292_033_000_000)
        assert tick["bid_sz"] == tick["ask_sz"] == 0
        assert batch.symbols == {
            instrument_key(PUBLISHER["lean_forex"], stable_instrument_id("XAUUSD")): "XAUUSD"
        }

    def test_broken_files(self, tmp_path: Path) -> None:
        """Wrong columns, more than one member and truncated zips are errors that name the file."""
        wide = zipped(tmp_path / "wide.zip", **{"20131007_bac_Quote_Tick": "1,2,3,4\n"})
        two = zipped(tmp_path / "two.zip", a="1\n", b="2\n")
        cut = tmp_path / "cut.zip"
        cut.write_bytes(self.quotes(tmp_path).read_bytes()[:-30])
        torn = tmp_path / "torn.zip"
        data = bytearray(self.quotes(tmp_path).read_bytes())
        data[60:80] = bytes(20)
        torn.write_bytes(data)
        for path, match in (
            (wide, r"wide\.zip: a quote file with 4 columns; allowed"),
            (two, r"two\.zip: holds 2 CSV files"),
            (cut, r"cut\.zip: .*zip"),
            (torn, r"torn\.zip: "),
        ):
            with pytest.raises(ReaderError, match=match):
                list(read_ticks(path))


class TestVectors:
    """Plain number series."""

    def test_csv_with_date_and_time(self, tmp_path: Path) -> None:
        """A CSV with timestamp and value gives UTC times and float32; a gap is NaN."""
        path = tmp_path / "cpu.csv"
        path.write_text(
            "timestamp,value,note\n2014-04-01 00:05:00,20.5,a\n2014-04-01 00:10:00,,b\n"
        )
        assert vector_columns(path) == ("value",)
        batch = next(read_vectors(path))
        assert batch.ts_event.tolist() == [1_396_310_700_000_000_000, 1_396_311_000_000_000_000]
        np.testing.assert_array_equal(batch.values, np.array([[20.5], [np.nan]], np.float32))
        key = instrument_key(PUBLISHER["vectors"], stable_instrument_id("cpu"))
        assert batch.symbols == {key: "cpu"}
        assert batch.keys.tolist() == [key, key]

    def test_parquet_with_chosen_columns(self, tmp_path: Path) -> None:
        """A Parquet with ns times gives the wanted columns in the wanted order."""
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table({"ts_event": [5, 6], "a": [1, 2], "b": [0.5, 0.25]}), path)
        batch = next(read_vectors(path, columns=("b", "a"), symbol="S"))
        assert batch.values.tolist() == [[0.5, 1.0], [0.25, 2.0]]
        assert batch.ts_event.tolist() == [5, 6]

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("value\n1\n", "no column named ts_event, timestamp, time"),
            ("timestamp,value\n", "no rows"),
            ("", "a.csv"),
            ("timestamp,value\nyesterday,1\n", "holds string; allowed"),
            ("timestamp,note\n2014-04-01 00:05:00,x\n", "column of numbers is missing"),
            ("timestamp,value\n2014-04-01 00:05:00,1\n,2\n", "row 2: timestamp is missing"),
        ],
    )
    def test_broken_files(self, tmp_path: Path, text: str, match: str) -> None:
        """Without times, rows or numbers there is an error that says so."""
        path = tmp_path / "a.csv"
        path.write_text(text)
        with pytest.raises(ReaderError, match=match):
            list(read_vectors(path))

    def test_a_column_that_is_not_there(self, tmp_path: Path) -> None:
        """A wanted column that the file lacks is named."""
        path = tmp_path / "a.csv"
        path.write_text("timestamp,value\n2014-04-01 00:05:00,1\n")
        with pytest.raises(ReaderError, match="column price is missing; it has timestamp, value"):
            list(read_vectors(path, columns=("price",)))

    def test_several_files_are_merged(self, tmp_path: Path) -> None:
        """Several files become one stream by time, each file an instrument of its own."""
        one, two = tmp_path / "one.csv", tmp_path / "two.csv"
        one.write_text("time,a\n1,0.5\n4,1.5\n")
        two.write_text("time,b,a\n1,9,2.5\n2,9,3.5\n")
        batches = list(read_vector_files([one, two]))
        assert np.concatenate([b.values for b in batches]).tolist() == [[0.5], [2.5], [3.5], [1.5]]
        assert np.concatenate([b.ts_event for b in batches]).tolist() == [1, 1, 2, 4]
        names = [batches[-1].symbols[key] for b in batches for key in b.keys.tolist()]
        assert names == ["one", "two", "two", "one"]
        assert np.concatenate([b.offsets for b in batches]).tolist() == [0, 1, 2, 3]


class TestGuess:
    """Telling formats apart."""

    def test_formats(self, tmp_path: Path) -> None:
        """A file's name, or its member's, tells the format; the caller may too."""
        lobster(tmp_path)
        assert guess_format(tmp_path / PAIR.format("message")) == "lobster"
        assert guess_format(tmp_path) == "lobster"
        assert guess_format(Path("x.dbn.zst")) == "dbn"
        assert guess_format(Path("X.PARQUET")) == "parquet"
        assert guess_format(Path("BTCUSDT-bookTicker-2023-11-14.csv")) == "binance"
        assert guess_format(TestLean().quotes(tmp_path)) == "lean"
        with pytest.raises(ReaderError, match="its name tells no format; give one of dbn"):
            guess_format(Path("ticks.txt"))

    def test_a_missing_file(self, tmp_path: Path) -> None:
        """A file that is not there is named."""
        with pytest.raises(ReaderError, match="no such file"):
            read_ticks(tmp_path / "no.dbn")

    def test_unknown_format(self, tmp_path: Path) -> None:
        """A format that we do not have is refused with those that we have."""
        with pytest.raises(ReaderError, match="'xml'; allowed are dbn"):
            read_ticks(tmp_path, format="xml")  # type: ignore[arg-type]


class TestMerge:
    """Several streams as one."""

    @staticmethod
    def stream(times: list[int], instrument: int, chunk: int = 2) -> list[TickBatch]:
        """Cut ticks of one instrument at these times into batches."""
        ticks = empty_ticks(len(times))
        ticks["ts_event"], ticks["instrument_id"] = times, instrument
        ticks["sequence"] = np.arange(len(times))
        names = {instrument: f"I{instrument}"}
        parts = [ticks[i : i + chunk] for i in range(0, len(times), chunk)]
        return [TickBatch.from_ticks(part, symbols=names) for part in parts]

    def test_equal_times_keep_the_order_of_streams(self) -> None:
        """At equal times the first stream goes first, even over the ends of its chunks."""
        merged = list(
            merge_by_time([self.stream([1, 5, 5, 5, 9], 1), self.stream([5, 5, 6], 2), []])
        )
        ticks = all_ticks(merged)
        assert ticks["ts_event"].tolist() == [1, 5, 5, 5, 5, 5, 6, 9]
        assert ticks["instrument_id"].tolist() == [1, 1, 1, 1, 2, 2, 2, 1]
        assert [o for batch in merged for o in batch.offsets.tolist()] == list(range(8))
        assert merged[-1].symbols == {1: "I1", 2: "I2"}

    def test_a_late_tick_keeps_its_place(self) -> None:
        """A tick behind its stream's time stays after the tick it came after."""
        ticks = all_ticks(merge_by_time([self.stream([1, 8, 2, 9], 1), self.stream([3, 8], 2)]))
        assert ticks["ts_event"].tolist() == [1, 3, 8, 2, 8, 9]

    def test_undefined_times_are_not_lost(self) -> None:
        """Ticks without a usable time stay where they came."""
        streams = [self.stream([UNDEFINED_TIME, 4, 2**63 - 1], 1), self.stream([UNDEFINED_TIME], 2)]
        assert len(all_ticks(merge_by_time(streams))) == 4

    def test_books_are_carried_per_instrument(self) -> None:
        """A trade without a book gets its own instrument's last one, over the ends of batches."""
        ticks = empty_ticks(6)
        ticks["instrument_id"] = [1, 2, 1, 2, 1, 3]
        ticks["action"] = [ord(a) for a in "MMTTTT"]
        ticks["price"] = [0, 0, 12, 21, 11, 5]
        ticks["bid_px"][:2], ticks["ask_px"][:2] = [10, 20], [12, 22]
        ticks["bid_sz"][:2] = [7, 8]
        whole = TickBatch.from_ticks(ticks)
        for cut in range(7):
            carried = all_ticks(carry_books([whole[:cut], whole[cut:]]))
            assert carried["bid_px"].tolist() == [10, 20, 10, 20, 10, UNDEFINED_PRICE]
            assert carried["bid_sz"].tolist() == [7, 8, 7, 8, 7, 0]
            assert letters(carried["side"]) == "NNBNNN"
        unsigned = all_ticks(carry_books([whole], sign_trades=False))
        assert letters(unsigned["side"]) == "NNNNNN"
        assert ticks["bid_px"][2] == UNDEFINED_PRICE
