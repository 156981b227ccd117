"""The benchmarks run, on sizes that measure nothing; no figure is judged here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from typer.testing import CliRunner

from benchmarks import load, memory, report, rolling_restart, run
from benchmarks.delivery import Transactions
from benchmarks.measure import Row, Spread, ratios, take_turns
from benchmarks.workload import Sizes, Workload, prepare
from detector.bench import (
    BenchError,
    FeaturePass,
    Progress,
    bench_model,
    decoder_for,
    fetches_of,
    messages_of,
    run_engine,
    synthetic_ticks,
    tape_for,
)
from detector.features import DEFAULT, vector_spec
from detector.pipeline import Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.ticks import TickBatch
from detector.wire import make_decoder

TINY = Sizes(
    instruments=4,
    train_ticks=6000,
    tape_ticks=6000,
    epochs=1,
    rounds=2,
    kafka_rounds=1,
    memory_instruments=(3,),
    quantile=0.98,
)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workload]:
    """A tiny tape and the default model trained on the half before it."""
    return prepare(TINY, tmp_path_factory.mktemp("work"))


def row(group: str, ratio: Spread | None = None) -> Row:
    """Return a row of a group."""
    return Row(group, f"{group} of something", "1 s", "", ratio, "", None)


FACTS: dict[str, Any] = {
    "date": "2026-01-05T08:00+00:00",
    "quiet": {"stolen_share": 0.0, "idle_share": 1.0},
    "workload": {
        "features": 2,
        "hidden": 2,
        "latent": 1,
        "members": 3,
        "stage2_latent": 1,
        "multiply_adds": 8,
        "quantile": 0.99,
        "instruments": 1,
        "tape_ticks": 10,
        "normaliser_rows": 2,
    },
}


def test_runner_measures_prints_and_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`python -m benchmarks --quick` without Kafka gives each group's row, table and JSON."""
    monkeypatch.setattr(run, "QUICK", TINY)
    groups = "features,scoring,engine"
    arguments = ["--quick", "--only", groups, "--output", str(tmp_path)]
    done = CliRunner().invoke(run.app, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    results = orjson.loads((tmp_path / "results.json").read_bytes())
    assert [row["group"] for row in results["rows"]] == groups.split(",")
    assert results["rows"][1]["ratio"]["median"] > 0
    assert results["rows"][2]["facts"]["ticks_per_s"]["median"] > 0
    table = (tmp_path / "benchmarks.md").read_text()
    for each in results["rows"]:
        assert each["what"] in table
        assert each["workload"]["multiply_adds"] > 1000


def test_runner_refuses_unknown_groups() -> None:
    """A group that does not exist is named, with those that do."""
    done = CliRunner().invoke(run.app, ["--only", "features,speed"])
    assert done.exit_code == 2
    assert "speed" in done.output


def test_a_group_measured_again_replaces_its_rows_only(tmp_path: Path) -> None:
    """Other groups' rows stay in the file, unless they were taken on another machine."""
    path = tmp_path / "results.json"
    machine = {"cpu": "one", "cores": 2, "memory_gib": 1, "kernel": "k", "python": "3"}
    machine["libraries"] = {"numpy": "2"}
    first = report.dated([row("features"), row("engine")], FACTS)
    report.write(report.merge(path, machine, first), path, tmp_path / "table.md")
    again = report.dated([row("engine", Spread.of([0.5]))], FACTS)
    merged = report.in_order(report.merge(path, machine, again), ("engine", "features"))
    assert [(r["group"], r["ratio"] is None) for r in merged["rows"]] == [
        ("engine", False),
        ("features", True),
    ]
    elsewhere = report.merge(path, machine | {"cpu": "two"}, again)
    assert [r["group"] for r in elsewhere["rows"]] == ["engine"]


def test_measures_take_turns_after_an_unrecorded_round() -> None:
    """A B, then A B A B: what disturbs the machine disturbs both sides."""
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return float(len(order))

    found = take_turns(2, a=lambda: measure("a"), b=lambda: measure("b"))
    assert order == ["a", "b"] * 3
    assert found == {"a": [3.0, 5.0], "b": [4.0, 6.0]}
    assert ratios(found["a"], found["b"]) == Spread.of([3 / 4, 5 / 6])


def test_a_rate_leaves_start_and_end_out() -> None:
    """A slow start and a slow end do not count, whatever the samples' distance."""
    seconds = np.array([0.0, 10.0, 11.0, 12.0, 13.0, 40.0])
    ticks = np.array([0, 20, 45, 70, 95, 100])
    assert Progress(seconds, ticks).rate(0.2, 0.95) == pytest.approx(25.0)


@pytest.mark.parametrize("features", [DEFAULT, vector_spec(("a", "b"))], ids=["ticks", "vectors"])
def test_messages_hold_the_tape(features: Any) -> None:
    """Decoding the messages gives every tick of a partition, in order, and no instrument twice."""
    tape = tape_for(features, 5, 1000)
    decoder = decoder_for(features)
    messages = messages_of(tape, 3, 16)
    seen: dict[int, set[int]] = {}
    for each in fetches_of(messages, 4):
        batch = decoder.decode(each.values, each.offsets, each.partition).batch
        assert batch is not None
        seen.setdefault(each.partition, set()).update(batch.keys.tolist())
    assert sum(map(len, seen.values())) == len(set(tape.keys.tolist()))
    for partition, mine in messages.items():
        values = [value for _, value in mine]
        decoded = decoder.decode(values, np.arange(len(values)), partition).batch
        wanted = tape.taken(np.flatnonzero(tape.keys % 3 == partition))
        assert decoded is not None
        assert np.array_equal(decoded.ts_event, wanted.ts_event)
        assert np.array_equal(decoded.keys, wanted.keys)


def test_a_feature_pass_repeats_the_same_work() -> None:
    """Each pass starts from the same warm state, so that rounds measure one thing."""
    tape = TickBatch.from_ticks(synthetic_ticks(3, 5000))
    passes = FeaturePass(DEFAULT, tape, 3)
    first = passes.blocks(1)[0]
    assert passes.seconds() > 0
    again = passes.blocks(1)[0]
    assert first.ready.any()
    assert np.array_equal(first.values, again.values)


def test_the_engine_on_two_threads_decides_as_one_does(work: Workload) -> None:
    """The measured engine takes in every tick and finds the events that a plain loop finds."""
    features, decoder = work.artifact.features, make_decoder("dbn")
    scorer = Scorer(work.artifact)
    fetched = fetches_of(messages_of(TickBatch.from_ticks(work.tape), 2, 16), 8)
    progress, events = run_engine(
        Pipeline(features, scorer, PipelineSpec(max_instruments=8)), decoder, fetched
    )
    plain = Pipeline(features, scorer, PipelineSpec(max_instruments=8))
    expected = 0
    for each in fetched:
        batch = decoder.decode(each.values, each.offsets, each.partition).batch
        assert batch is not None
        expected += len(plain.process(batch).events)
    assert progress.ticks[-1] == len(work.tape)
    assert events == expected > 0


def test_a_failure_while_deciding_reaches_the_caller(
    work: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decision thread that fails ends the measurement with its error instead of hanging."""

    def fail(*_: object) -> None:
        raise ArithmeticError("no decision")

    pipeline = Pipeline(work.artifact.features, Scorer(work.artifact))
    monkeypatch.setattr(pipeline, "finish", fail)
    fetched = fetches_of(messages_of(TickBatch.from_ticks(work.tape), 2, 16), 1)
    with pytest.raises(ArithmeticError, match="no decision"):
        run_engine(pipeline, make_decoder("dbn"), fetched)


def test_tapewatch_bench_measures_a_model(work: Workload) -> None:
    """A user gets features, scoring and the engine of a given model, and what was measured."""
    found = bench_model(work.artifact, instruments=4, ticks=3000)
    names = [figure["name"] for figure in found["figures"]]
    assert names[0] == "features"
    assert names[-1] == "engine"
    assert all(figure["low"] <= figure["value"] <= figure["high"] for figure in found["figures"])
    assert found["multiply_adds"] == work.describe()["multiply_adds"]
    with pytest.raises(BenchError, match="1,000"):
        bench_model(work.artifact, ticks=10)


def test_memory_counts_windows_and_episode(work: Workload) -> None:
    """State an instrument is what bank and book reserve; the process tracks as many as asked."""
    windows, episodes, thresholds = memory.state_bytes(DEFAULT, 1000)
    assert windows == DEFAULT.bank(1000).state_bytes_per_instrument
    assert episodes == 4  # the place of its open episode, if it has one
    assert windows + episodes + thresholds <= memory.TARGET_BYTES
    rows = memory.measure(work)
    assert [row.facts.get("instruments") for row in rows] == [None, 3]
    assert rows[1].facts["resident_bytes"] > 0


def test_the_generator_keeps_to_its_schedule_however_late_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Open loop: after a stall everything due is sent at once, and what is not due waits."""
    clock = [0]
    monkeypatch.setattr(load.time, "time_ns", lambda: clock[0])
    monkeypatch.setattr(load.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + int(s * 1e9)))
    intended = [1_000_000, 2_000_000, 3_000_000, 50_000_000]
    runs = []
    for first, stop in load._due(intended):
        assert all(at <= clock[0] for at in intended[first:stop])
        runs.append((first, stop))
        clock[0] = max(clock[0], 10_000_000)  # the first send stalls
    assert runs == [(0, 1), (1, 3), (3, 4)]


def test_a_pause_is_told_from_events_and_ticks() -> None:
    """Ten ticks a second, an event each at once; for three seconds none, then all that waited."""
    sent = np.arange(0.0, 20.0, 0.1)
    detected = sent + 0.01
    held = (sent > 8.0) & (sent < 11.0)
    detected[held] = 11.0 + 0.02 * np.arange(held.sum())
    detected[~held & (sent < 12.0) & (sent >= 11.0)] = 11.7
    offsets = np.arange(len(sent))
    pause = rolling_restart.pause_of(sent, detected, offsets, 7.5, 15.0)
    assert pause.longest == pytest.approx(2.99)
    assert (pause.total, pause.times) == (pytest.approx(2.99), 1)
    assert pause.lag == 28  # of 29, when the first of them has led to its event
    assert pause.catching_up == pytest.approx(0.7)
    calm = rolling_restart.pause_of(sent, detected, offsets, 13.0, 15.0)
    assert (calm.times, calm.total, calm.lag, calm.catching_up) == (0, 0.0, 0, 0.0)
    assert calm.longest == pytest.approx(0.1)


def test_the_steps_of_a_start_add_up() -> None:
    """Each step ends with the last line of its kind; lines that name no partition do not count."""
    log = [
        {"event": "starting", "timestamp": "2026-01-01T00:00:01Z"},
        {"event": "ready to join", "timestamp": "2026-01-01T00:00:03Z"},
        {"event": "partitions assigned", "partitions": [0], "timestamp": "2026-01-01T00:00:04Z"},
        {"event": "partitions assigned", "partitions": [], "timestamp": "2026-01-01T00:00:09Z"},
        {"event": "partition restored", "timestamp": "2026-01-01T00:00:05Z"},
        {"event": "partition restored", "timestamp": "2026-01-01T00:00:06Z"},
    ]
    began = rolling_restart.moment_of({"timestamp": "2026-01-01T00:00:00Z"})
    assert rolling_restart.steps(began, log) == {"start": 1, "model": 2, "join": 1, "restore": 2}


def test_the_time_of_a_transaction_is_read_from_the_daemons_histogram() -> None:
    """Interpolated within a bucket, of the stage asked for; nothing where none was committed."""
    line = 'tapewatch_stage_duration_seconds_bucket{le="%s",stage="%s"} %d\n'
    told = "# TYPE tapewatch_stage_duration_seconds histogram\n" + "".join(
        line % each
        for each in (
            *(("0.01", "decode", 900), ("+Inf", "decode", 900)),
            *(("0.01", "committing", 50), ("0.02", "committing", 98), ("0.04", "committing", 100)),
            ("+Inf", "committing", 100),
        )
    )
    found = Transactions.of(told.encode())
    assert found.committed == 100
    assert (found.p50_ms, found.p99_ms) == pytest.approx((10.0, 30.0))
    assert Transactions.of(b"").committed == 0
