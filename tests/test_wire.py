"""Messages to ticks: golden bytes, our encoders, and what becomes of every kind of bad message."""

from __future__ import annotations

import re
from typing import Any

import databento_dbn
import numpy as np
import orjson
import pytest

from detector.readers import PUBLISHER
from detector.ticks import (
    DROPPED,
    MBP1_RTYPE,
    TICK,
    TRADE,
    UNDEFINED_PRICE,
    UNDEFINED_TIME,
    Quality,
    TickArray,
    TickBatch,
    VectorBatch,
    empty_ticks,
    instrument_key,
    stable_instrument_id,
)
from detector.wire import (
    REASONS,
    Decoded,
    encode_dbn,
    encode_json,
    encode_vector,
    make_decoder,
)
from tests.conftest import REPOSITORY
from tests.golden_files import golden

GOOD = encode_dbn(empty_ticks(2))
TRADES = golden("dbn_trades.hex")


def two_ticks() -> TickArray:
    """Build the ticks of `dbn_mbp1.hex` from their meaning."""
    ticks = empty_ticks(2)
    ticks["publisher_id"], ticks["instrument_id"] = 1, 118
    ticks["ts_event"] = [10_000_000_000, 10_000_000_001]
    ticks["price"] = [100_000_000, -1]
    ticks["size"] = [3, 1]
    ticks["action"] = [ord("A"), ord("T")]
    ticks["side"] = [ord("B"), ord("A")]
    ticks["flags"] = [130, 0]
    ticks["ts_recv"] = [10_000_000_001, UNDEFINED_TIME]
    ticks["ts_in_delta"] = [7, -7]
    ticks["sequence"] = [4_294_967_295, 0]
    ticks["bid_px"] = [100_000_000, -1]
    ticks["ask_px"] = [200_000_000, UNDEFINED_PRICE]
    ticks["bid_sz"], ticks["ask_sz"] = [3, 2], [4, 0]
    ticks["bid_ct"], ticks["ask_ct"] = [1, 0], [2, 0]
    return ticks


def ticks_of(decoded: Decoded) -> TickBatch:
    """Narrow a result that holds ticks."""
    assert isinstance(decoded.batch, TickBatch)
    return decoded.batch


def refused(decoded: Decoded) -> list[tuple[int, str]]:
    """Row and reason of the rejected messages."""
    return [(item.row, item.reason) for item in decoded.rejected]


class TestDbn:
    """DBN records."""

    def test_golden_records_are_read(self) -> None:
        """Two MBP-1 records written by hand come out field by field."""
        batch = ticks_of(make_decoder("dbn").decode([golden("dbn_mbp1.hex")], [40], 3))
        assert batch.ticks.tolist() == two_ticks().tolist()
        assert batch.partition == 3
        assert batch.offsets.tolist() == [40, 40]
        assert batch.indices.tolist() == [0, 1]

    def test_golden_records_are_written(self) -> None:
        """The encoder writes the bytes that were written by hand."""
        assert encode_dbn(two_ticks()) == golden("dbn_mbp1.hex")

    def test_databento_writes_the_same_bytes(self) -> None:
        """Our record is byte for byte what Databento's own library writes."""
        levels = databento_dbn.BidAskPair(100_000_000, 200_000_000, 3, 4, 1, 2)
        record = databento_dbn.MBP1Msg(
            publisher_id=1,
            instrument_id=118,
            ts_event=10_000_000_000,
            price=100_000_000,
            size=3,
            action=databento_dbn.Action.ADD,
            side=databento_dbn.Side.BID,
            flags=130,
            depth=0,
            ts_recv=10_000_000_001,
            ts_in_delta=7,
            sequence=4_294_967_295,
            levels=levels,
        )
        assert encode_dbn(two_ticks()[:1]) == bytes(record)

    def test_trades_are_widened(self) -> None:
        """A Trades record becomes a tick with a null book and the same fields otherwise."""
        tick = ticks_of(make_decoder("dbn").decode([TRADES], [0], 0)).ticks[0]
        assert (tick["length"], tick["rtype"]) == (TICK.itemsize // 4, MBP1_RTYPE)
        trade = np.frombuffer(TRADES, TRADE)[0]
        assert all(tick[name] == trade[name] for name in TRADE.names[2:])
        assert tick["sequence"] == 42
        assert tick["bid_px"] == tick["ask_px"] == UNDEFINED_PRICE
        assert tick["bid_sz"] == tick["ask_sz"] == tick["bid_ct"] == tick["ask_ct"] == 0

    def test_both_types_keep_the_order_of_arrival(self) -> None:
        """Messages of both record types in one batch come out in the order they came in."""
        ticks = two_ticks()
        values = [TRADES, encode_dbn(ticks), TRADES * 2, encode_dbn(ticks[:1])]
        batch = ticks_of(make_decoder("dbn").decode(values, [5, 6, 8, 9], 0))
        assert batch.ticks["sequence"].tolist() == [42, 4_294_967_295, 0, 42, 42, 4_294_967_295]
        assert batch.offsets.tolist() == [5, 6, 6, 8, 8, 9]
        assert batch.indices.tolist() == [0, 0, 1, 0, 1, 0]

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (None, "empty"),
            (b"", "empty"),
            (b"\x14", "wrong_length"),
            (GOOD[:2], "wrong_length"),
            (GOOD[:-1], "wrong_length"),
            (GOOD + b"\x00", "wrong_length"),
            (TRADES[:-1], "wrong_length"),
            (b"not a record at all", "unknown_record_type"),
            (b"\x14\x0a" + GOOD[2:], "unknown_record_type"),
            (b"\x13" + GOOD[1:], "unknown_record_type"),
            (GOOD[:80] + b"\x14\xa0" + GOOD[82:], "unknown_record_type"),
            (GOOD[:80] * 3 + TRADES * 5, "mixed_record_types"),
            (TRADES + GOOD, "mixed_record_types"),
            (GOOD + TRADES[:-1], "wrong_length"),
            (GOOD[:28] + b"X" + GOOD[29:], "bad_value"),
            (GOOD[:80] + GOOD[:29] + b"?" + GOOD[30:80], "bad_value"),
            (TRADES[:28] + b"\x00" + TRADES[29:], "bad_value"),
        ],
    )
    def test_bad_messages_are_refused_whole(self, value: bytes | None, reason: str) -> None:
        """A bad message is named once with its reason, and its good neighbours are untouched."""
        first, last = two_ticks()[:1], two_ticks()[1:]
        values = [encode_dbn(first), value, TRADES, value, encode_dbn(last)]
        decoded = make_decoder("dbn").decode(values, [10, 11, 12, 13, 14], 0)
        assert refused(decoded) == [(1, reason), (3, reason)]
        batch = ticks_of(decoded)
        assert batch.ticks["sequence"].tolist() == [4_294_967_295, 42, 0]
        assert batch.offsets.tolist() == [10, 12, 14]

    def test_nothing_good_gives_no_batch(self) -> None:
        """Without one good message there is no batch; without messages there is nothing at all."""
        decoded = make_decoder("dbn").decode([b"x", None], [0, 1], 0)
        assert decoded.batch is None
        assert len(decoded.rejected) == 2
        nothing = make_decoder("dbn").decode([], [], 0)
        assert nothing.batch is None
        assert nothing.rejected == []

    def test_ticks_can_be_written_to(self) -> None:
        """Kernels get the one array type they were compiled for: writable, whatever came in."""
        for values in ([GOOD], [TRADES], [GOOD, TRADES], [GOOD, b"x"]):
            batch = ticks_of(make_decoder("dbn").decode(values, range(len(values)), 0))
            assert batch.ticks.flags.writeable
            assert batch.ticks.flags.c_contiguous

    def test_a_book_before_the_trade_is_settled(self) -> None:
        """What traded leaves the side that was hit, unless that would leave nothing of it."""
        ticks = empty_ticks(5)
        ticks["action"] = ord("T")
        ticks["bid_px"], ticks["ask_px"] = 100, 101
        ticks["bid_sz"], ticks["ask_sz"] = 7, 5
        ticks["side"] = [ord(side) for side in "ABBNA"]
        ticks["price"] = [100, 101, 101, 100, 99]
        ticks["size"] = [3, 4, 5, 1, 1]
        value = encode_dbn(ticks)
        after = ticks_of(make_decoder("dbn", trade_book="before").decode([value], [0], 0)).ticks
        assert after["bid_sz"].tolist() == [4, 7, 7, 7, 7]
        assert after["ask_sz"].tolist() == [5, 1, 5, 5, 5]
        same = ticks_of(make_decoder("dbn").decode([value], [0], 0)).ticks
        assert same.tolist() == ticks.tolist()


class TestJson:
    """JSON objects."""

    def test_golden_object_is_read(self) -> None:
        """One object with a symbol: exact prices, RFC 3339 time, unknown field ignored."""
        batch = ticks_of(make_decoder("json").decode([golden("json_one.json")], [7], 1))
        tick = batch.ticks[0]
        assert tick["ts_event"] == 10_000_000_001
        assert tick["price"] == 5_528_750_000_000
        assert tick["bid_px"] == 5_528_500_000_001
        assert tick["ask_px"] == UNDEFINED_PRICE
        assert (tick["size"], tick["bid_sz"]) == (2, 29)
        assert (chr(tick["action"]), chr(tick["side"])) == ("T", "B")
        assert tick["instrument_id"] == stable_instrument_id("ESU4")
        assert batch.symbols == {stable_instrument_id("ESU4"): "ESU4"}
        assert batch.named_from == {stable_instrument_id("ESU4"): 7}

    def test_golden_array_is_the_golden_records(self) -> None:
        """The array and the DBN records that say the same give the same ticks."""
        batch = ticks_of(make_decoder("json").decode([golden("json_many.json")], [7], 1))
        assert batch.ticks.tolist() == two_ticks().tolist()
        assert batch.symbols == {instrument_key(1, 118): "ESU4"}
        assert batch.indices.tolist() == [0, 1]

    def test_first_name_in_the_order_of_messages_counts(self) -> None:
        """Within a message, and among those decoded together; each is told with its offset."""
        es, nq, cl = instrument_key(1, 118), instrument_key(1, 119), stable_instrument_id("CLQ4")
        golden_names = golden("json_names.json")
        batch = ticks_of(make_decoder("json").decode([golden_names], [7], 1))
        assert batch.symbols == {nq: "NQU4", es: "ESU4", cl: "CLQ4"}
        assert list(batch.symbols) == [nq, es, cl]
        assert batch.named_from == {nq: 7, es: 7, cl: 7}
        values = [encode_json(two_ticks(), name) for name in (None, "A", "B", None)]
        batch = ticks_of(make_decoder("json").decode([*values, golden_names], [2, 3, 5, 8, 9], 1))
        assert batch.symbols == {es: "A", nq: "NQU4", cl: "CLQ4"}
        assert batch.named_from == {es: 3, nq: 9, cl: 9}

    def test_a_refused_message_names_nothing(self) -> None:
        """Not even an instrument that a good message is about, be the fault before or behind."""
        named, plain = (
            b'{"instrument_id": 118, "publisher_id": 1, "ts_event": 1, "action": "A"%s}' % more
            for more in (b', "symbol": "BAD"', b"")
        )
        wrong = plain.replace(b'"A"', b'"X"')
        values = [b"[%s,%s]" % (named, wrong), b"[%s,%s]" % (wrong, named), plain]
        batch = ticks_of(make_decoder("json").decode(values, [0, 1, 2], 0))
        assert (batch.symbols, batch.named_from) == ({}, {})
        values.append(encode_json(two_ticks(), "GOOD"))
        batch = ticks_of(make_decoder("json").decode(values, [0, 1, 2, 3], 0))
        assert batch.symbols == {instrument_key(1, 118): "GOOD"}
        assert batch.named_from == {instrument_key(1, 118): 3}

    def test_encoder_writes_one_object_for_one_tick(self) -> None:
        """One tick is an object, several are an array, and null fields are left out."""
        one = orjson.loads(encode_json(two_ticks()[1:], "ESU4"))
        assert one["symbol"] == "ESU4"
        assert one["price"] == "-0.000000001"
        assert "ask_px" not in one
        assert "ts_recv" not in one
        assert len(orjson.loads(encode_json(two_ticks(), None))) == 2

    @pytest.mark.parametrize(
        ("price", "expected"),
        [
            (100, 100_000_000_000),
            (585.33, 585_330_000_000),
            (-37.63, -37_630_000_000),
            (0, 0),
            ("0.000000001", 1),
            ("-0.5", -500_000_000),
            ("1.23456789049", 1_234_567_890),
            ("1e-3", 1_000_000),
            ("+2.", 2_000_000_000),
            ("9223372036.854775806", UNDEFINED_PRICE - 1),
            ("-9223372036.854775808", -(2**63)),
            ("2251799.813685249", 2_251_799_813_685_249),
            (None, UNDEFINED_PRICE),
        ],
    )
    def test_prices(self, price: Any, expected: int) -> None:
        """Numbers and strings become units of 1e-9, strings exactly."""
        value = orjson.dumps({"symbol": "X", "ts_event": 1, "action": "A", "price": price})
        assert ticks_of(make_decoder("json").decode([value], [0], 0)).ticks["price"] == [expected]

    @pytest.mark.parametrize(
        ("time", "expected"),
        [
            (0, 0),
            (UNDEFINED_TIME, UNDEFINED_TIME),
            ("1719878281218218853", 1_719_878_281_218_218_853),
            ("2024-07-01T23:58:01.218218853Z", 1_719_878_281_218_218_853),
            ("2024-07-02T01:58:01.5+02:00", 1_719_878_281_500_000_000),
        ],
    )
    def test_times(self, time: Any, expected: int) -> None:
        """Integers, their digits and RFC 3339 times become ns since the epoch."""
        value = orjson.dumps({"symbol": "X", "ts_event": time, "action": "A"})
        assert ticks_of(make_decoder("json").decode([value], [0], 0)).ticks["ts_event"] == expected

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (None, "empty"),
            (b"", "empty"),
            (b"{", "invalid_json"),
            (b'{"price": NaN}', "invalid_json"),
            (b'{"price": 1e400}', "invalid_json"),
            (b"\xff\xfe", "invalid_json"),
            (b"[" * 100_000, "invalid_json"),
            (b"[]", "not_a_tick"),
            (b"17", "not_a_tick"),
            (b"null", "not_a_tick"),
            (b"[[]]", "not_a_tick"),
            (b'[{"symbol":"X","ts_event":1,"action":"A"}, 1]', "not_a_tick"),
            (b'{"symbol":"X","ts_event":1}', "missing_field"),
            (b'{"symbol":"X","action":"A"}', "missing_field"),
            (b'{"ts_event":1,"action":"A"}', "missing_field"),
            (b'[{"symbol":"X","ts_event":1,"action":"A"}, {}]', "missing_field"),
        ],
    )
    def test_bad_messages_are_refused_whole(self, value: bytes | None, reason: str) -> None:
        """A bad message is named once with its reason, and its good neighbours are untouched."""
        good = encode_json(two_ticks(), None)
        decoded = make_decoder("json").decode([good, value, good], [0, 1, 2], 0)
        assert refused(decoded) == [(1, reason)]
        assert ticks_of(decoded).ticks.tolist() == two_ticks().tolist() * 2
        assert ticks_of(decoded).offsets.tolist() == [0, 0, 2, 2]

    @pytest.mark.parametrize(
        "field",
        [
            '"price": true',
            '"price": "NaN"',
            '"price": "Infinity"',
            '"price": "1e99"',
            '"price": "1e999999999"',
            '"price": 1e300',
            '"price": 100000000000000000000000000',
            '"price": "9223372036.854775807"',
            '"price": "1,2"',
            '"price": "1_0"',
            '"price": " 1"',
            '"price": "\u0661"',
            '"price": [1]',
            '"price": ""',
            '"size": -1',
            '"size": 1.5',
            '"size": "1"',
            '"size": true',
            '"size": 4294967296',
            '"flags": 256',
            '"publisher_id": 65536',
            '"instrument_id": 4294967296',
            '"instrument_id": -1',
            '"instrument_id": "118"',
            '"ts_in_delta": 2147483648',
            '"side": "AB"',
            '"side": ""',
            '"side": 66',
            '"action": "X"',
            '"ts_event": -1',
            '"ts_event": 1.5',
            '"ts_event": 18446744073709551616',
            '"ts_event": "yesterday"',
            '"ts_event": "2024-02-30T00:00:00Z"',
            '"ts_event": "2024-02-01T00:00:00"',
            '"ts_event": "9999-01-01T00:00:00Z"',
            '"symbol": ""',
            '"symbol": 5',
            '"symbol": {}',
            '"symbol": "a\\nb"',
            '"symbol": "' + "a" * 65 + '"',
        ],
    )
    def test_values_out_of_bounds_are_refused(self, field: str) -> None:
        """One value that a field cannot hold refuses its message and no other."""
        name = field.partition(":")[0].strip('"')
        fields = {"symbol": '"X"', "ts_event": "1", "action": '"A"'}
        fields.pop(name, None)
        rest = ",".join(f'"{key}": {text}' for key, text in fields.items())
        value = f"{{{rest},{field}}}".encode()
        good = encode_json(two_ticks(), "ESU4")
        decoded = make_decoder("json").decode([value, good], [0, 1], 0)
        assert refused(decoded) == [(0, "bad_value")]
        assert ticks_of(decoded).ticks.tolist() == two_ticks().tolist()
        assert ticks_of(decoded).symbols == {instrument_key(1, 118): "ESU4"}


class TestVector:
    """Feature vectors."""

    columns = ("a", "b", "c")

    def test_golden_rows_are_read(self) -> None:
        """Two rows written by hand come out with ids, times and all float32 values, NaN too."""
        decoder = make_decoder("vector", columns=self.columns)
        batch = decoder.decode([golden("vector.hex")], [4], 2).batch
        assert isinstance(batch, VectorBatch)
        assert batch.keys.tolist() == [instrument_key(9, 118), instrument_key(9, 119)]
        assert batch.ts_event.tolist() == [10_000_000_000, 10_000_000_001]
        expected = [[1.0, -2.0, np.nan], [0.5, 0.0, np.inf]]
        np.testing.assert_array_equal(batch.values, np.array(expected, np.float32))
        assert batch.offsets.tolist() == [4, 4]
        assert batch.indices.tolist() == [0, 1]
        assert batch.partition == 2

    def test_golden_rows_are_written(self) -> None:
        """The encoder writes the bytes that were written by hand."""
        keys = np.array([instrument_key(9, 118), instrument_key(9, 119)])
        values = np.array([[1.0, -2.0, np.nan], [0.5, 0.0, np.inf]], np.float32)
        times = np.array([10_000_000_000, 10_000_000_001])
        assert encode_vector(keys, times, values) == golden("vector.hex")

    def test_columns_are_found_by_name(self) -> None:
        """A header with more columns in another order gives the wanted ones in ours."""
        decoder = make_decoder("vector", columns=("c", "a"))
        header = [("trace", b"1"), ("columns", b"a, b,c")]
        batch = decoder.decode([golden("vector.hex")], [0], 0, [header]).batch
        assert isinstance(batch, VectorBatch)
        np.testing.assert_array_equal(batch.values[:, 1], np.array([1.0, 0.5], np.float32))
        assert np.isnan(batch.values[0, 0])

    def test_each_message_may_have_its_own_columns(self) -> None:
        """Messages with and without a header mix, in order of arrival."""
        decoder = make_decoder("vector", columns=self.columns)
        value = golden("vector.hex")
        headers = [None, [("columns", b"c,b,a")], [("columns", b"a,b")], [("columns", None)]]
        decoded = decoder.decode([value] * 4, range(4), 0, headers)
        assert refused(decoded) == [(2, "wrong_columns")]
        assert isinstance(decoded.batch, VectorBatch)
        assert decoded.batch.values[1::2, 0].tolist() == [0.5, np.inf, 0.5]
        assert decoded.batch.offsets.tolist() == [0, 0, 1, 1, 3, 3]

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            (None, "empty"),
            (b"", "empty"),
            (golden("vector.hex")[:15], "wrong_length"),
            (golden("vector.hex")[:-1], "wrong_length"),
            (golden("vector.hex") + b"\x00", "wrong_length"),
            (b"TWV2" + golden("vector.hex")[4:], "bad_header"),
            (golden("vector.hex")[:8] + bytes(8), "bad_header"),
            (golden("vector.hex")[:12] + b"\x01" + golden("vector.hex")[13:], "bad_header"),
            (
                encode_vector(np.array([1]), np.array([1]), np.zeros((1, 2), np.float32)),
                "wrong_columns",
            ),
            (golden("vector.hex")[:8] + b"\xff" * 4 + golden("vector.hex")[12:], "wrong_length"),
        ],
    )
    def test_bad_messages_are_refused_whole(self, value: bytes | None, reason: str) -> None:
        """A bad message is named once with its reason, and its good neighbours are untouched."""
        good = golden("vector.hex")
        decoder = make_decoder("vector", columns=self.columns)
        decoded = decoder.decode([good, value, good], [0, 1, 2], 0)
        assert refused(decoded) == [(1, reason)]
        assert isinstance(decoded.batch, VectorBatch)
        assert decoded.batch.offsets.tolist() == [0, 0, 2, 2]
        np.testing.assert_array_equal(decoded.batch.values[:2], decoded.batch.values[2:])

    def test_only_vectors_need_headers(self) -> None:
        """A caller fetches headers only for the format that looks at them."""
        assert make_decoder("vector", columns=("a",)).needs_headers
        assert not make_decoder("dbn").needs_headers
        assert not make_decoder("json").needs_headers


class TestMakeDecoder:
    """What a decoder refuses to be made from."""

    @pytest.mark.parametrize("columns", [None, (), ("a", "a")])
    def test_vectors_need_columns(self, columns: tuple[str, ...] | None) -> None:
        """Vectors without columns, or with a name twice, are refused at once."""
        with pytest.raises(ValueError, match="columns"):
            make_decoder("vector", columns=columns)

    def test_unknown_names_are_refused(self) -> None:
        """An unknown format or trade book names itself and what is allowed."""
        with pytest.raises(ValueError, match=r"'xml'.*allowed"):
            make_decoder("xml")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"'during'.*allowed"):
            make_decoder("dbn", trade_book="during")  # type: ignore[arg-type]

    def test_every_reason_is_listed_once(self) -> None:
        """The reasons are a fixed set, fit for a metric label."""
        assert len(set(REASONS)) == len(REASONS)
        assert all(reason == reason.lower() and " " not in reason for reason in REASONS)

    def test_vectors_of_two_publishers_cannot_be_encoded(self) -> None:
        """A vector message has one publisher."""
        with pytest.raises(ValueError, match="2 publishers"):
            encode_vector(np.array([0, 1 << 32]), np.zeros(2, np.int64), np.zeros((2, 1), "f4"))


class TestDocument:
    """`docs/input.md` and the code say the same."""

    page = (REPOSITORY / "docs" / "input.md").read_text()

    def test_every_reason_has_its_line(self) -> None:
        """Each dead-letter reason is a row of the table, and no other is."""
        section = self.page.split("## What is wrong with a message")[1].split("\n## ")[0]
        assert sorted(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == sorted(REASONS)

    def test_every_quality_flag_has_its_line(self) -> None:
        """Each quality flag is named, on a row that says dropped exactly where it is dropped."""
        section = self.page.split("## What is wrong with a tick")[1]
        for flag in Quality:
            (fate,) = re.findall(rf"^\|.*`{flag.label}`.* \| (\w+) \|", section, re.MULTILINE)
            assert fate == ("dropped" if flag & DROPPED else "processed")

    def test_the_example_is_a_tick(self) -> None:
        """The JSON example of the page decodes to what it says."""
        example = self.page.split("```json\n")[1].split("```")[0].encode()
        tick = ticks_of(make_decoder("json").decode([example], [0], 0)).ticks[0]
        assert tick["ts_event"] == 1_719_878_281_218_218_853
        assert tick["price"] == tick["ask_px"] == 5_528_750_000_000

    def test_publisher_ids_are_as_listed(self) -> None:
        """The table of publisher ids is the readers'."""
        assert sorted(map(int, re.findall(r"\| (600\d\d) \|", self.page))) == sorted(
            PUBLISHER.values()
        )
