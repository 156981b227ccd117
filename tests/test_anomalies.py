"""Anomalies in recorded ticks: halves, plans, the woven stream, labels, the command."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from detector.errors import RefusedError
from detector.feeds import Feed
from detector.offline import Files
from detector.planting import APPLICABLE, Planted, plan
from detector.readers import read_parquet, write_parquet
from detector.scripts import RANGES, WHOLE, AnomalyKind
from detector.synthetic import DEMO_START_NS, Instrument, Market, gather, generate
from detector.ticks import NS_PER_S, UNDEFINED_PRICE, TickBatch
from tests.conftest import REPOSITORY
from training.anomalies import inject, inject_files
from training.cli import register
from training.evaluation_plan import EVALUATION_PLAN
from training.halves import TEST_END, Half, half_ranges
from training.labels import KIND_INDEX, Label, LabelError, read_labels, tick_labels, write_labels
from training.planning import LEAST_TRADES, LEAST_WITHHELD, Policy, Survey, plan_stream, survey

START = DEMO_START_NS
HOUR = 3600 * NS_PER_S
MARKET = Market(
    (
        Instrument("ONE", rate_hz=8.0, spread_ticks=3.0),
        Instrument("TWO", price=5.0, tick_size=0.001, rate_hz=6.0, lot=100),
    ),
    seed=31,
)
KEYS = tuple(MARKET.symbols)
PLAN_DIGEST = "c106a41e93e16d896c195cc047afd810594ef2719de055716dff9aebf68ea726"
PARAMETERS = [(kind, name) for kind, some in RANGES.items() for name in some]


@pytest.fixture(scope="module")
def clean() -> TickBatch:
    """Forty minutes of two instruments."""
    return gather(generate(MARKET, START, 2400.0))


@pytest.fixture(scope="module")
def surveys(clean: TickBatch) -> dict[int, Survey]:
    """What planning knows of them."""
    return survey([clean])


@pytest.fixture(scope="module")
def planted(surveys: dict[int, Survey]) -> tuple[Planted, ...]:
    """Some of every kind in both."""
    return plan_stream(surveys, Policy(30.0, seed=4))


def silent(hours: float, feed: Feed = Feed.ORDERS, every_s: float = 1.0) -> Survey:
    """A stream with a tick every so many seconds and no trade."""
    ts = START + np.arange(0, hours * HOUR, every_s * NS_PER_S).astype(np.int64)
    return Survey("SILENT", feed, ts, np.zeros(0, np.int64))


# ---- halves --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), PARAMETERS)
def test_halves_share_no_value_and_miss_none(kind: AnomalyKind, name: str) -> None:
    """Each parameter's halves meet in the middle of its range, and the table says which tests."""
    low, high = RANGES[kind][name]
    train, test = half_ranges(Half.TRAIN)[kind][name], half_ranges(Half.TEST)[kind][name]
    lower, upper = (test, train) if TEST_END[kind][name] == "low" else (train, test)
    assert lower[0] == low
    assert upper[1] == high
    assert low <= lower[1] < upper[0] <= high
    assert lower[1] == pytest.approx((low + high) / 2, abs=0.5 * (name in WHOLE))
    assert upper[0] - lower[1] == pytest.approx(float(name in WHOLE), abs=1e-9)


def test_leading_parameters_are_tested_where_they_are_weak() -> None:
    """The ends alternate in the order of the ranges, low first, for every kind."""
    for kind, some in RANGES.items():
        want = list(itertools.islice(itertools.cycle(["low", "high"]), len(some)))
        assert [TEST_END[kind][name] for name in some] == want
    assert half_ranges(Half.BOTH) is RANGES


def test_the_page_states_ranges_and_halves() -> None:
    """docs/anomalies.md names every parameter, and every test half with both its ends."""
    page = (REPOSITORY / "docs" / "anomalies.md").read_text()
    kinds, halves = page.split("### Halves")
    for kind, some in half_ranges(Half.TEST).items():
        described = next(line for line in kinds.splitlines() if line.startswith(f"| `{kind}` |"))
        cells = next(line for line in halves.splitlines() if line.startswith(f"| `{kind}` |"))
        low, high = cells.split("|")[2:4]
        for name, ends in some.items():
            assert f"`{name}`" in described
            assert "{}-{}".format(*(f"{each:,g}" for each in RANGES[kind][name])) in described
            told = "{} {}-{}".format(name, *(f"{round(each, 6):,g}" for each in ends))
            assert told in (low if TEST_END[kind][name] == "low" else high)


def test_no_test_parameter_was_trained_on(surveys: dict[int, Survey]) -> None:
    """What is drawn for the two halves never overlaps, in any parameter of any kind."""
    drawn: dict[Half, dict[tuple[AnomalyKind, str], list[float]]] = {}
    for half, seed in itertools.product((Half.TRAIN, Half.TEST), range(8)):
        for one in plan_stream(surveys, Policy(30.0, half=half, seed=seed)):
            for name in RANGES[one.kind]:
                of_half = drawn.setdefault(half, {})
                of_half.setdefault((one.kind, name), []).append(one.params[name])
    assert drawn[Half.TRAIN].keys() == drawn[Half.TEST].keys() == set(PARAMETERS)
    for parameter, trained in drawn[Half.TRAIN].items():
        tested = drawn[Half.TEST][parameter]
        assert max(trained) < min(tested) or max(tested) < min(trained), parameter


# ---- surveys and plans ---------------------------------------------------------------------------


def test_a_survey_tells_names_feeds_and_times(clean: TickBatch) -> None:
    """Per instrument: its symbol, what its feed shows, the times of its ticks and trades."""
    bare = clean.ticks.copy()
    bare["instrument_id"] = 77
    for name in ("bid_px", "ask_px"):
        bare[name] = UNDEFINED_PRICE
    found = survey([clean[:1000], clean[1000:], TickBatch.from_ticks(bare)])
    nameless = min(set(found) - set(KEYS))
    assert {key: one.feed for key, one in found.items()} == {
        KEYS[0]: Feed.ORDERS,
        KEYS[1]: Feed.ORDERS,
        nameless: Feed.TRADES,
    }
    assert found[KEYS[0]].symbol == "ONE"
    assert found[nameless].symbol == f"{MARKET.publisher_id}:77"
    for key in KEYS:
        mine = clean.keys == key
        assert np.array_equal(found[key].ts, clean.ts_event[mine])
        traded = mine & (clean.ticks["action"] == ord("T"))
        assert np.array_equal(found[key].trade_ts, clean.ts_event[traded])
        assert found[key].ascends


def test_plans_are_even_repeatable_and_apart(surveys: dict[int, Survey]) -> None:
    """Kinds come equally often, one seed gives one plan, and 60 s free of any before each start."""
    policy = Policy(30.0, seed=1)
    first, again, other = (
        plan_stream(surveys, each) for each in (policy, policy, replace(policy, seed=2))
    )
    assert first == again
    assert first != other
    for key in KEYS:
        mine = [one for one in first if one.key == key]
        counts = Counter(one.kind for one in mine)
        assert max(counts.values()) - min(counts.values()) <= 1
        assert len(counts) == len(AnomalyKind)
        free_from = int(surveys[key].ts[512])
        assert len(mine) == round(30 * (surveys[key].ts[-1] - free_from) / HOUR)
        for one in mine:
            assert one.start_ns - free_from >= 60 * NS_PER_S
            free_from = one.end_ns
        assert surveys[key].ts[-1] - free_from >= 60 * NS_PER_S
    orders = [[one.kind for one in first if one.key == key] for key in KEYS]
    assert orders[0] != orders[1]


@pytest.mark.parametrize("feed", Feed)
def test_plans_hold_only_what_the_feed_can_show(feed: Feed) -> None:
    """Every applicable kind is drawn and no other."""
    ts = START + np.arange(0, 3 * HOUR, NS_PER_S // 4)
    drawn = plan_stream({9: Survey("X", feed, ts, ts)}, Policy(20.0))
    assert {one.kind for one in drawn} == set(APPLICABLE[feed])


def test_plans_stay_within_spans_and_out_of_pauses(surveys: dict[int, Survey]) -> None:
    """Nothing is planted outside the asked times, nor across a night."""
    ts = surveys[KEYS[0]].ts
    night = 10 * HOUR
    two_days = replace(surveys[KEYS[0]], ts=np.concatenate([ts, ts + night]))
    two_days = replace(two_days, trade_ts=two_days.ts)
    drawn = plan_stream({KEYS[0]: two_days}, Policy(30.0))
    assert len(drawn) > 20
    for one in drawn:
        day = 0 if one.end_ns < START + night else night
        assert ts[0] + day + 60 * NS_PER_S <= one.start_ns
        assert one.end_ns <= ts[-1] + day - 60 * NS_PER_S
    low, high = START + 600 * NS_PER_S, START + 1500 * NS_PER_S
    inside = plan_stream(surveys, Policy(30.0), [(low, high)])
    assert len(inside) == 2 * round(30 * 900 / 3600)
    assert min(one.start_ns for one in inside) >= low + 60 * NS_PER_S
    assert max(one.end_ns for one in inside) <= high - 60 * NS_PER_S


def test_what_needs_ticks_is_planted_where_there_are_some() -> None:
    """Frozen quotes hold trades and gaps hold ticks, moved there if need be, still 60 s apart."""
    quiet = silent(4.0, every_s=20.0)  # at most one tick in the shortest gap
    busy = START + HOUR + np.arange(0, 1800 * NS_PER_S, NS_PER_S // 2)
    one = replace(quiet, ts=np.sort(np.concatenate([quiet.ts, busy])), trade_ts=busy)
    kinds = (AnomalyKind.FROZEN_QUOTES, AnomalyKind.FEED_GAP)
    drawn = plan_stream({1: one}, Policy(6.0, kinds))
    assert {each.kind for each in drawn} == set(kinds)
    assert len(drawn) < 18  # the others found no place between their neighbours
    for each in drawn:
        ts, least = (
            (one.trade_ts, LEAST_TRADES)
            if each.kind == AnomalyKind.FROZEN_QUOTES
            else (one.ts, LEAST_WITHHELD)
        )
        assert np.count_nonzero((ts >= each.start_ns) & (ts <= each.end_ns)) >= least
    for before, after in itertools.pairwise(drawn):
        assert after.start_ns - before.end_ns >= 60 * NS_PER_S
    assert plan_stream({1: silent(4.0)}, Policy(6.0, (AnomalyKind.FROZEN_QUOTES,))) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"per_hour": 0.0}, "per_hour is 0.0"),
        ({"per_hour": 41.0}, "at most 40"),
        ({"separation_s": -1.0}, "separation_s is -1.0"),
        ({"kinds": ()}, "kinds is empty"),
    ],
)
def test_a_policy_refuses(arguments: dict[str, Any], message: str) -> None:
    """What cannot be planted is refused with the reason."""
    with pytest.raises(ValueError, match=message):
        Policy(**arguments)


# ---- the woven stream ----------------------------------------------------------------------------


def woven(
    clean: TickBatch, planted: tuple[Planted, ...], cut: int = 0
) -> tuple[TickBatch, np.ndarray]:
    """The planted stream and the anomaly of each tick."""
    feeds = dict.fromkeys({one.key for one in planted}, Feed.ORDERS)
    step = cut or len(clean)
    parts = list(inject((clean[i : i + step] for i in range(0, len(clean), step)), planted, feeds))
    assert all(len(part.batch) == len(part.labels) > 0 for part in parts)
    return gather(part.batch for part in parts), np.concatenate(
        [part.labels.anomaly for part in parts]
    )


def test_ordinary_ticks_keep_bytes_and_order(
    clean: TickBatch, planted: tuple[Planted, ...]
) -> None:
    """Outside the anomalies the streams agree byte for byte, across instruments."""
    batch, anomaly = woven(clean, planted)
    own = tick_labels(clean.keys, clean.ts_event, planted).anomaly
    assert set(anomaly.tolist()) == set(range(len(planted) + 1))
    assert batch.ticks[anomaly == 0].tobytes() == clean.ticks[own == 0].tobytes()
    assert np.all(np.diff(batch.ts_event) >= 0)
    assert batch.offsets.tolist() == list(range(len(batch)))
    assert batch.symbols == MARKET.symbols
    again, _ = woven(clean, planted)
    assert again.ticks.tobytes() == batch.ticks.tobytes()


def test_simultaneous_ticks_of_several_instruments_keep_their_order(clean: TickBatch) -> None:
    """On a feed of coarse times, where many share one, untouched ticks stay as they came."""
    coarse = clean.ticks.copy()
    coarse["ts_event"] -= coarse["ts_event"] % np.uint64(NS_PER_S // 2)
    coarse["ts_recv"] = coarse["ts_event"]
    batch = TickBatch.from_ticks(coarse, symbols=MARKET.symbols)
    surveys = survey([batch])
    planted = plan_stream(surveys, Policy(30.0, seed=2))
    own = tick_labels(batch.keys, batch.ts_event, planted).anomaly
    for cut in (0, 17):
        out, anomaly = woven(batch, planted, cut)
        assert out.ticks[anomaly == 0].tobytes() == coarse[own == 0].tobytes()


def test_a_late_tick_of_another_instrument_keeps_its_place(clean: TickBatch) -> None:
    """An instrument without anomalies may go back in time; its ticks stay where they came."""
    planted = tuple(one for one in plan_stream(survey([clean]), Policy(30.0)) if one.key == KEYS[0])
    late = clean.ticks.copy()
    rows = np.flatnonzero(clean.keys == KEYS[1])[50::100]
    late["ts_event"][rows] -= np.uint64(5 * NS_PER_S)
    batch = TickBatch.from_ticks(late, symbols=MARKET.symbols)
    out, anomaly = woven(batch, planted, 1000)
    own = tick_labels(batch.keys, batch.ts_event, planted).anomaly
    assert out.ticks[anomaly == 0].tobytes() == late[own == 0].tobytes()


def test_planting_itself_refuses_time_that_goes_back(clean: TickBatch) -> None:
    """An instrument that is planted in has to be in time order."""
    planted = plan({KEYS[0]: "ONE"}, 1, START + 600 * NS_PER_S, START + 900 * NS_PER_S)
    late = clean.ticks.copy()
    row = np.flatnonzero(clean.keys == KEYS[0])[500]
    late["ts_event"][row] -= np.uint64(60 * NS_PER_S)
    batch = TickBatch.from_ticks(late)
    assert not survey([batch])[KEYS[0]].ascends
    with pytest.raises(ValueError, match="must ascend"):
        woven(batch, planted, 100)


# ---- labels --------------------------------------------------------------------------------------


def test_tick_labels_agree_with_a_plain_loop(
    clean: TickBatch, planted: tuple[Planted, ...]
) -> None:
    """Kind and number of each tick are those of the anomaly whose time and instrument it has."""
    found = tick_labels(clean.keys, clean.ts_event, planted)
    kind, anomaly = np.zeros(len(clean), int), np.zeros(len(clean), int)
    ticks = list(zip(clean.keys.tolist(), clean.ts_event.tolist(), strict=True))
    for number, one in enumerate(planted, start=1):
        for row, (key, ts) in enumerate(ticks):
            if key == one.key and one.start_ns <= ts <= one.end_ns:
                kind[row], anomaly[row] = KIND_INDEX[one.kind], number
    assert np.count_nonzero(anomaly) > 100
    assert np.array_equal(found.kind, kind)
    assert np.array_equal(found.anomaly, anomaly)
    assert found.kind.dtype == np.uint8
    assert found.anomaly.dtype == np.int32


def test_both_ends_of_an_anomaly_are_its_own(planted: tuple[Planted, ...]) -> None:
    """The ticks at start and end belong to it, those a nanosecond outside do not."""
    one = planted[3]
    ts = np.array([one.start_ns - 1, one.start_ns, one.end_ns, one.end_ns + 1])
    assert tick_labels(np.full(4, one.key), ts, planted).anomaly.tolist() == [0, 4, 4, 0]
    others = tick_labels(np.full(4, 12345), ts, planted)
    assert not others.kind.any()


def test_kind_numbers_stay() -> None:
    """The number of a kind is part of the evaluation and never changes."""
    assert {kind.value: index for kind, index in KIND_INDEX.items()} == {
        "quote_stuffing": 1,
        "layering": 2,
        "pump_and_dump": 3,
        "fat_finger": 4,
        "momentum_ignition": 5,
        "frozen_quotes": 6,
        "crossed_book": 7,
        "wash_trades": 8,
        "feed_gap": 9,
    }


@pytest.fixture
def label_file(planted: tuple[Planted, ...], tmp_path: Path) -> Path:
    """A label file of all kinds."""
    path = tmp_path / "labels.parquet"
    write_labels(path, [Label(one, Half.TEST, 3 + n) for n, one in enumerate(planted)])
    return path


def test_labels_come_back_as_written(planted: tuple[Planted, ...], label_file: Path) -> None:
    """Kind, instrument, times, parameters to the last bit, seed, half and count survive."""
    read = read_labels(label_file)
    assert tuple(label.planted for label in read) == planted
    assert [label.ticks for label in read] == [3 + n for n in range(len(planted))]
    assert {label.half for label in read} == {Half.TEST}
    row = pq.read_table(label_file).to_pylist()[0]
    assert list(row) == [
        "symbol", "publisher_id", "instrument_id", "kind", "half", "start_ns", "end_ns", "ticks",
        "parameters", "seed",
    ]  # fmt: skip
    assert row["symbol"] in ("ONE", "TWO")
    assert json.loads(row["parameters"]) == planted[0].params


def test_a_label_file_may_be_empty(tmp_path: Path) -> None:
    """A stream without an anomaly has labels too: none."""
    write_labels(tmp_path / "none.parquet", [])
    assert read_labels(tmp_path / "none.parquet") == ()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("kind", "spoof", "row 2: kind is 'spoof'; allowed are quote_stuffing, layering"),
        ("half", "third", "row 2: half is 'third'; allowed are train, test, both"),
        ("end_ns", 5, "row 2: start_ns is .* and end_ns 5; needed is 0 <= start <= end"),
        ("start_ns", -5, "row 2: start_ns is -5"),
        ("ticks", -1, "row 2: ticks is -1"),
        ("symbol", None, "row 2: symbol is null"),
        ("parameters", "{", "row 2: parameters are not JSON"),
        ("parameters", "[1]", "row 2: parameters are .1.; .* needs an object with"),
        ("parameters", '{"side": 1}', "needs an object with"),
    ],
)
def test_a_row_that_cannot_be_is_named(
    label_file: Path, column: str, value: object, message: str
) -> None:
    """A malformed value is refused with file, row, what was found and what is allowed."""
    rows = pq.read_table(label_file).to_pylist()
    rows[1][column] = value
    schema = pq.read_schema(label_file)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), label_file)
    with pytest.raises(
        LabelError, match=rf"labels\.parquet: {message}" if "row" in message else message
    ):
        read_labels(label_file)


def test_parameters_must_be_numbers(label_file: Path) -> None:
    """A parameter that is text or a truth value is refused."""
    schema = pq.read_schema(label_file)
    for wrong in ("1", True):
        rows = pq.read_table(label_file).to_pylist()
        params = json.loads(rows[0]["parameters"])
        rows[0]["parameters"] = json.dumps({**params, "side": wrong})
        broken = label_file.with_name("broken.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), broken)
        with pytest.raises(LabelError, match=r"row 1: .* must be numbers"):
            read_labels(broken)


def test_a_file_that_holds_no_labels_is_refused(label_file: Path, tmp_path: Path) -> None:
    """No file, no Parquet, a missing column, a column of another type, overlaps: all are named."""
    with pytest.raises(LabelError, match="no such file"):
        read_labels(tmp_path / "none.parquet")
    text = tmp_path / "text.parquet"
    text.write_text("symbol")
    with pytest.raises(LabelError, match=r"text\.parquet: not a Parquet file"):
        read_labels(text)
    table = pq.read_table(label_file)
    pq.write_table(table.drop_columns(["half"]), text)
    with pytest.raises(LabelError, match="column half is missing"):
        read_labels(text)
    at = table.column_names.index("ticks")
    pq.write_table(table.set_column(at, "ticks", table["ticks"].cast(pa.float64())), text)
    with pytest.raises(LabelError, match="column ticks is double; it must be int64"):
        read_labels(text)
    pq.write_table(pa.concat_tables([table, table]), text)
    with pytest.raises(LabelError, match="must not overlap"):
        read_labels(text)


# ---- the command ---------------------------------------------------------------------------------


class TestCommand:
    """`tapewatch inject` as a user calls it."""

    @pytest.fixture
    def file(self, clean: TickBatch, tmp_path: Path) -> Path:
        """Return the clean ticks as a Parquet file."""
        write_parquet(tmp_path / "ticks.parquet", [clean])
        return tmp_path / "ticks.parquet"

    @staticmethod
    def call(*arguments: object) -> str:
        """Call the command line and return what it printed; errors are raised."""
        app = typer.Typer()
        register(app)
        result = CliRunner().invoke(app, ["inject", *map(str, arguments)], catch_exceptions=True)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    def test_files_and_labels_agree(self, file: Path, clean: TickBatch, tmp_path: Path) -> None:
        """What is written are the planted ticks, and labels that count them right."""
        out, labels = tmp_path / "planted.parquet", tmp_path / "labels.parquet"
        done = json.loads(
            self.call("--ticks", file, "--out", out, "--labels", labels, "--half", "train",
                      "--kinds", "layering,fat_finger", "--per-hour", 30, "--seed", 5, "--json")
        )  # fmt: skip
        batch, read = gather(read_parquet(out)), read_labels(labels)
        policy = Policy(
            30.0, (AnomalyKind.LAYERING, AnomalyKind.FAT_FINGER), Half.TRAIN, 60.0, seed=5
        )
        want = plan_stream(survey([clean]), policy)
        assert tuple(label.planted for label in read) == want
        assert {label.half for label in read} == {Half.TRAIN}
        found = tick_labels(batch.keys, batch.ts_event, want).anomaly
        counts = np.bincount(found, minlength=len(want) + 1)
        assert [label.ticks for label in read] == counts[1:].tolist()
        assert min(counts[1:]) > 0
        assert done["anomalies"] == len(want)
        assert (done["ticks_in"], done["ticks_out"]) == (len(clean), len(batch))
        assert done["planted_ticks"] == counts[1:].sum()
        assert sum(sum(some.values()) for some in done["by_symbol"].values()) == len(want)
        assert batch.ticks.tobytes() == woven(clean, want)[0].ticks.tobytes()
        assert batch.symbols == MARKET.symbols

    def test_the_table_names_instruments_and_kinds(self, file: Path, tmp_path: Path) -> None:
        """Without --json a person reads what was planted where."""
        shown = self.call(
            "--ticks", file, "--out", tmp_path / "o", "--labels", tmp_path / "l", "--from",
            "2026-01-05T08:10:00", "--until", "2026-01-05T08:30:00",
        )  # fmt: skip
        assert "ONE" in shown
        assert "anomalies of" in shown
        times = [label.planted.start_ns for label in read_labels(tmp_path / "l")]
        assert START + 600 * NS_PER_S < min(times) < max(times) < START + 1800 * NS_PER_S

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--kinds", "spoof"], "--kinds spoof: allowed are quote_stuffing"),
            (["--per-hour", "99"], "per_hour is 99.0; allowed is"),
            (["--separation", "-1"], "separation_s is -1.0"),
            (["--separation", "inf"], "separation_s is inf; it must lie between 0 and 86400"),
            (["--separation", "nan"], "separation_s is nan; it must lie between 0 and 86400"),
            (["--kinds", ""], "--kinds '': allowed are quote_stuffing"),
            (["--until", "2026-01-05T08:01:00"], "no room for an anomaly"),
            (["--ticks", "{d}/no.parquet"], "no such file"),
            (["--labels", "{d}/out.parquet"], "is the file of --out"),
            (["--labels", "{d}/no/labels.parquet"], "--labels .*create it first"),
            (["--out", "{d}/no/out.parquet"], "--out .*create it first"),
        ],
    )
    def test_bad_usage_is_refused_with_the_reason(
        self, file: Path, tmp_path: Path, arguments: list[str], message: str
    ) -> None:
        """What a user can mend is a `RefusedError` (exit code 2), and no file is left behind."""
        usual = {"--ticks": str(file), "--out": f"{tmp_path}/out.parquet",
                 "--labels": f"{tmp_path}/labels.parquet"}  # fmt: skip
        given = usual | {arguments[0]: arguments[1].format(d=tmp_path)}
        with pytest.raises(RefusedError, match=message):
            self.call(*itertools.chain.from_iterable(given.items()))
        assert [path.name for path in tmp_path.iterdir()] == [file.name]

    def test_an_unknown_half_is_bad_usage(self, file: Path, tmp_path: Path) -> None:
        """Another half than train, test or both ends with exit code 2."""
        app = typer.Typer()
        register(app)
        arguments = ["--ticks", file, "--out", tmp_path / "o", "--labels", tmp_path / "l"]
        result = CliRunner().invoke(app, ["inject", *map(str, arguments), "--half", "third"])
        assert result.exit_code == 2

    def test_ticks_that_go_back_in_time_are_refused(self, clean: TickBatch, tmp_path: Path) -> None:
        """Planting needs time order; the message names the instrument."""
        late = clean.ticks.copy()
        row = np.flatnonzero(clean.keys == KEYS[1])[700]
        late["ts_event"][row] -= np.uint64(60 * NS_PER_S)
        path = tmp_path / "late.parquet"
        write_parquet(path, [TickBatch.from_ticks(late, symbols=MARKET.symbols)])
        with pytest.raises(RefusedError, match="ticks of TWO go back in time"):
            inject_files(Files((path,)), tmp_path / "o", tmp_path / "l", Policy())


# ---- the plan of the evaluation ------------------------------------------------------------------


def test_the_evaluation_plan_has_not_changed() -> None:
    """Rate, separation, times, seeds, ranges and halves are those committed before any tuning."""
    assert (
        EVALUATION_PLAN.digest()
        == "c106a41e93e16d896c195cc047afd810594ef2719de055716dff9aebf68ea726"
    )


def test_the_evaluation_plan_is_in_time_order() -> None:
    """Training ends before calibration begins, calibration before the test, for every subject."""
    assert [subject.symbol for subject in EVALUATION_PLAN.subjects] == [
        "AAPL", "AMZN", "BAC", "IBM", "XAUUSD",
    ]  # fmt: skip
    for subject in EVALUATION_PLAN.subjects:
        edges = [
            edge
            for part in (subject.train, subject.calibration, subject.test)
            for span in part
            for edge in span.ns
        ]
        assert edges == sorted(edges)
        assert subject.spans(Half.TRAIN)[-1][1] <= subject.calibration[0].ns[0]
    assert EVALUATION_PLAN.separation_s >= 60.0
    assert not set(EVALUATION_PLAN.train_seeds) & set(EVALUATION_PLAN.test_seeds)


def test_the_evaluation_plan_refuses_what_it_does_not_hold() -> None:
    """Seeds of the other half, and no half at all, are refused."""
    with pytest.raises(ValueError, match="seed is 101"):
        EVALUATION_PLAN.policy(Half.TEST, 101)
    with pytest.raises(ValueError, match="half is both"):
        EVALUATION_PLAN.subjects[0].spans(Half.BOTH)
