"""The demo: what it counts as found, how it paces itself, and the command from end to end.

plant        |----------|--1 s--|
episodes   x o    o     o       o x       o: found, x: false alarm
"""

from __future__ import annotations

import html
import io
import json
import math
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from detector.broker import EmbeddedBroker
from detector.kafka import Connection
from detector.metrics import Metrics
from detector.planting import Planted
from detector.scripts import AnomalyKind
from detector.synthetic import DEMO_KINDS, DEMO_START_NS, generate
from detector.ticks import NS_PER_S, instrument_key, split_key
from tests.conftest import REPOSITORY
from training.demo import session
from training.demo.daemon import Reading, quantile_of
from training.demo.findings import Findings, Summary
from training.demo.picture import SHARE, PicturedView
from training.demo.scenario import LEAST_LIVE_S, Scenario
from training.demo.session import Moment
from training.demo.view import LiveView, PlainView, highest_bucket, print_summary

KEY = instrument_key(65_000, 7)
START, END = 100 * NS_PER_S, 110 * NS_PER_S
WITHIN_S = 280.0


def planted(key: int = KEY, start_ns: int = START, end_ns: int = END) -> Planted:
    """An anomaly of ten seconds."""
    return Planted(AnomalyKind.FAT_FINGER, key, "ABC", start_ns, end_ns, {}, 0)


def event(ts_event: int, name: str = "", key: int = KEY, phase: str = "open") -> dict[str, Any]:
    """What the demo reads of a published event."""
    publisher, instrument = split_key(key)
    return {
        "event_id": name or str(ts_event),
        "episode_id": "episode",
        "phase": phase,
        "publisher_id": publisher,
        "instrument_id": instrument,
        "symbol": "ABC",
        "ts_event": ts_event,
        "score": 9.0,
        "threshold": 7.0,
        "severity": "minor",
        "top_features": [{"name": "spread", "value": 1.0}],
    }


def summary(findings: Findings) -> Summary:
    """The summary of a run in which all went well."""
    return Summary(
        seed=7,
        instruments=20,
        live_event_s=180.0,
        produced=100,
        consumed=100,
        scored=90,
        findings=findings,
        events_published=len(findings.ids),
        latency_p50_ms=1.0,
        latency_p99_ms=2.0,
        metrics_url="http://127.0.0.1:1/metrics",
        train_seconds=1.0,
        live_seconds=2.0,
        total_seconds=3.0,
        threshold=7.0,
        quantile=0.9999,
        start_ns=0,
    )


# ---- what is found -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ts_event", "is_found"),
    [
        (START - 1, False),
        (START, True),
        (END, True),
        (END + NS_PER_S, True),
        (END + NS_PER_S + 1, False),
    ],
)
def test_an_anomaly_is_found_from_its_start_to_a_second_after_its_end(
    ts_event: int, is_found: bool
) -> None:
    """An episode that opens a nanosecond too early or too late is a false alarm."""
    findings = Findings((planted(),))
    findings.add(event(ts_event))
    assert (len(findings.found_by), len(findings.false_alarms)) == (is_found, not is_found)


def test_an_episode_of_another_instrument_finds_nothing() -> None:
    """The right time on the wrong instrument is a false alarm."""
    findings = Findings((planted(),))
    findings.add(event(START, key=instrument_key(65_000, 8)))
    assert not findings.found_by
    assert len(findings.false_alarms) == 1


def test_repeats_and_other_phases_count_nothing() -> None:
    """A repeated event, an update and a close change neither what is found nor the alarms."""
    findings = Findings((planted(),))
    for published in (
        event(START + 5, "a"),
        event(START + 5, "a"),
        event(END * 2, "b", phase="update"),
        event(END * 3, "c", phase="close"),
    ):
        findings.add(published)
    assert (len(findings.found_by), len(findings.false_alarms), len(findings.ids)) == (1, 0, 3)


def test_a_second_episode_within_an_anomaly_is_no_false_alarm() -> None:
    """What an anomaly caused is not held against the daemon; the first episode tells the delay."""
    findings = Findings((planted(),))
    findings.add(event(START + NS_PER_S))
    findings.add(event(START + 2 * NS_PER_S))
    assert findings.delay_s(0) == 1.0
    assert not findings.false_alarms


def test_false_alarms_are_told_apart_by_what_may_have_caused_them() -> None:
    """Cold windows come first, then the wake of an anomaly of the same instrument, then nothing."""
    findings = Findings((planted(),))
    other = instrument_key(65_000, 8)
    for ts, key in (
        (59 * NS_PER_S, KEY),
        (END + 2 * NS_PER_S, KEY),
        (END + 2 * NS_PER_S, other),
        (END + 60 * NS_PER_S, KEY),
    ):
        findings.add(event(ts, f"{ts} {key}", key))
    assert len(findings.false_alarms) == 4
    assert findings.excuses(0) == (1, 1)
    assert summary(findings).false_alarm_rate == pytest.approx(4.0)  # of 20 instruments in 3 min


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"consumed": 99}, "100 ticks produced, 99 consumed"),
        ({"events_published": 2}, "2 events published, 1 read"),
        ({"findings": Findings((planted(),)), "events_published": 0}, "none of 1 planted"),
    ],
)
def test_a_run_that_lost_or_found_nothing_fails(changes: dict[str, Any], words: str) -> None:
    """Each of the three failures is named, and a good run has none."""
    findings = Findings((planted(),))
    findings.add(event(START))
    assert summary(findings).failures() == []
    (failure,) = replace(summary(findings), **changes).failures()
    assert words in failure


# ---- what is simulated ---------------------------------------------------------------------------


def test_the_live_part_goes_on_where_training_ended() -> None:
    """Training is clean, the live part is the same market's next stretch with the anomalies."""
    scenario = Scenario(train_s=20, live_s=LEAST_LIVE_S)
    training = np.concatenate([batch.ticks for batch in scenario.training_ticks()])
    live = np.concatenate([batch.ticks for batch in scenario.live_ticks()])
    seconds = scenario.train_s + scenario.live_s
    clean = np.concatenate(
        [batch.ticks for batch in generate(scenario.market, DEMO_START_NS, seconds)]
    )
    assert training.tobytes() == clean[: len(training)].tobytes()
    quiet = live[live["ts_event"] < scenario.plants[0].start_ns]
    assert quiet.tobytes() == clean[len(training) :][: len(quiet)].tobytes()
    assert live.tobytes() != clean[len(training) :].tobytes()


def test_every_kind_is_planted_in_the_default_scenario() -> None:
    """Three of each of the demo's seven kinds, none in the first 45 seconds."""
    scenario = Scenario()
    kinds = [plant.kind for plant in scenario.plants]
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(DEMO_KINDS, 3)
    assert min(p.start_ns for p in scenario.plants) >= scenario.live_ns + 45 * NS_PER_S


# ---- what /metrics say ---------------------------------------------------------------------------


def test_a_reading_finds_every_metric_under_the_daemons_own_name() -> None:
    """What the daemon's collectors count is what the demo reads from their text."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.ticks.inc(11)
    metrics.scored.inc(7)
    metrics.dead_letters.inc(2)
    metrics.events.labels("open", "minor").inc(3)
    metrics.events.labels("close", "critical").inc(1)
    metrics.batch_ticks.observe(11)
    metrics.stage.labels("scoring").observe(0.1)
    metrics.stage.labels("decode").observe(0.1)
    metrics.tick_to_event.observe(0.0018)
    metrics.score.observe(np.array([3.0, 5.0]))
    reading = Reading.parse(generate_latest(registry).decode())
    assert replace(reading, latency_s=(), scores=()) == Reading(
        ticks=11, scored=7, events=4, dead_letters=2, batches_taken=1, batches_decided=1
    )
    assert quantile_of(reading.latency_s, 0.5) == pytest.approx(0.00175)  # middle of 1.5 to 2 ms
    low, high = highest_bucket((), reading.scores)
    assert low < 5.0 <= high


def test_a_quantile_is_linear_within_its_bucket() -> None:
    """As in PromQL: of 10 values, 4 up to 1 and 4 more up to 3, the fifth is at 1.5."""
    histogram = ((1.0, 4.0), (3.0, 8.0), (math.inf, 10.0))
    assert quantile_of(histogram, 0.5) == pytest.approx(1.5)
    assert quantile_of(histogram, 0.2) == pytest.approx(0.5)
    assert quantile_of(histogram, 0.99) == 3.0
    assert quantile_of((), 0.5) is None
    assert quantile_of(((1.0, 0.0), (math.inf, 0.0)), 0.5) is None


def test_the_highest_bucket_is_that_of_the_values_since_the_last_look() -> None:
    """A high score of the past does not stay in the chart."""
    before = ((1.0, 5.0), (2.0, 5.0), (4.0, 6.0))
    after = ((1.0, 6.0), (2.0, 8.0), (4.0, 9.0))
    assert highest_bucket(before, after) == (1.0, 2.0)
    assert highest_bucket(after, after) == (0.0, 0.0)


# ---- how it is shown -----------------------------------------------------------------------------


@pytest.mark.parametrize("terminal", [True, False])
def test_a_view_shows_rates_latency_findings_and_features(terminal: bool) -> None:
    """Both views tell the same facts: on a terminal in panels, elsewhere in lines."""
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=110, height=50)
    scenario = Scenario()
    plant = scenario.plants[0]
    findings = Findings(scenario.plants)
    opened = event(plant.start_ns, key=plant.key)
    latency = ((0.001, 0.0), (0.002, 1.0), (math.inf, 1.0))
    with LiveView(console) if terminal else PlainView(console) as view:
        view.step("training")
        view.detail("epoch 1")
        view.live(scenario, 7.0, "http://127.0.0.1:1/metrics")
        findings.add(opened)
        view.event(opened, findings)
        for second in range(0, 20, 2):
            reading = Reading(ticks=5000 * second, latency_s=latency, scores=((8.0, 1.0 * second),))
            view.moment(Moment(plant.start_ns, 5000 * second, reading, float(second)), findings)
    text = shown.getvalue()
    for fact in ("5,000", "p50 1.5, p95 1.9", "http://127.0.0.1:1/metrics", "7.0"):
        assert fact in text
    assert ("spread 1" in text) == terminal


def picture() -> str:
    """The view's picture, and nothing of a run that is not late enough for it."""
    scenario = Scenario()
    findings = Findings(scenario.plants)
    latency = ((0.001, 0.0), (0.002, 1.0), (math.inf, 1.0))
    with PicturedView() as view:
        view.step("training")
        view.live(scenario, 7.0, "http://127.0.0.1:1/metrics")
        for share in (SHARE - 0.1, SHARE + 0.05, SHARE + 0.1):
            at_ns = scenario.live_ns + round(share * scenario.live_s) * NS_PER_S
            ticks = round(1000 * share)
            reading = Reading(ticks=ticks, latency_s=latency, scores=((8.0, 1.0 * ticks),))
            view.moment(Moment(at_ns, ticks, reading, share), findings)
    return view.svg


def words(svg: str) -> str:
    """Return the text that an SVG shows."""
    return " ".join(html.unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)", svg))


def test_the_picture_is_of_one_late_moment() -> None:
    """Steps and panels are on it once, as they were at the first moment late enough."""
    text = words(picture()).replace("\xa0", " ")
    assert "✓" in text
    assert text.count("consumed") == 1
    assert f"{round(1000 * (SHARE + 0.05))} consumed" in text
    assert "http" not in re.sub(r"http://127\.0\.0\.1:\d+/metrics|xmlns=\S+", "", text)


def test_the_committed_picture_shows_what_the_view_shows() -> None:
    """The names of rows and panels are those of today's view; nothing is asked of a server."""
    svg = (REPOSITORY / "docs" / "pictures" / "terminal.svg").read_text()
    shown, today = (words(each).replace("\xa0", " ") for each in (svg, picture()))
    names = ("daemon", "ticks/s", "latency", "false alarms", "/metrics", "last episodes")
    for name in (*names, *(kind.value.replace("_", " ") for kind in DEMO_KINDS)):
        assert name in shown
        assert name in today
    assert "@font-face" not in svg
    assert "url(http" not in svg


def test_an_anomaly_has_the_name_of_its_episodes_last_event() -> None:
    """The close knows more than the opening; without a head there is no name."""
    findings = Findings((planted(),))
    findings.add(event(START + 1))
    assert findings.name(0) is None
    findings.add(event(START + 1, "named") | {"anomaly_type": "unknown"})
    kind = findings.plants[0].kind.value
    findings.add(event(START + 2, "close", phase="close") | {"anomaly_type": kind})
    assert findings.name(0) == kind
    assert summary(findings).to_dict()["named_rightly"] == 1


def test_the_printed_summary_names_every_anomaly() -> None:
    """Found ones with their delay, missed ones as missed, and both tick counts."""
    shown = io.StringIO()
    findings = Findings((planted(), planted(start_ns=END * 2, end_ns=END * 2 + 5)))
    findings.add(event(START + NS_PER_S // 4))
    print_summary(summary(findings), Console(file=shown, width=110))
    text = shown.getvalue()
    assert "0.250 s" in text
    assert "missed" in text
    assert "100 produced, 100 consumed" in text


# ---- how it runs ---------------------------------------------------------------------------------


def wait_for(condition: Callable[[], bool], within_s: float = WITHIN_S) -> None:
    """Wait for something that must come true."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


def test_the_feeder_waits_for_the_daemon(
    embedded_broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs ahead by the limit and one tick, and goes on by as much as was consumed."""
    monkeypatch.setattr(session, "MOST_AHEAD", 1000)
    embedded_broker.create_topic("ticks")
    scenario = Scenario(train_s=5, live_s=LEAST_LIVE_S, speed=100.0)
    with session.Feeder(Connection(embedded_broker.bootstrap), "ticks", scenario) as feeder:
        wait_for(lambda: feeder.produced >= 1001)
        feeder.consumed = 500
        wait_for(lambda: feeder.produced >= 1501)
    assert feeder.produced == 1501


DEMO = [sys.executable, "-P", "-m", "detector", "demo", "--json"]


@pytest.mark.timeout(2 * WITHIN_S + 60)
def test_two_demos_of_one_seed_find_the_same() -> None:
    """Side by side, so under pressure: nothing is lost, most is found, every event id is equal."""
    command = [*DEMO, "--seed", "3", "--seconds", str(LEAST_LIVE_S)]
    runs = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=2 * WITHIN_S) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    one, other = (json.loads(stdout) for stdout, _ in outputs)
    for result in (one, other):
        assert result["produced"] == result["consumed"] > 50_000
        assert result["planted"] == result["found"] + result["missed"] == len(result["anomalies"])
        assert result["found"] >= result["planted"] / 2
        assert sum(kind["found"] for kind in result["by_kind"].values()) == result["found"]
        assert result["latency_p50_ms"] <= result["latency_p99_ms"]
        assert result["metrics_url"].startswith("http://127.0.0.1:")
    told = ("anomalies", "events", "event_ids_sha256", "false_alarms", "threshold", "scored")
    assert {key: one[key] for key in told} == {key: other[key] for key in told}


@pytest.mark.timeout(WITHIN_S + 60)
def test_an_interrupted_demo_leaves_nothing_behind() -> None:
    """Ctrl-C during the live part ends with exit code 130, no JSON and no daemon left."""
    quick = (
        "import functools, sys, training.demo.scenario as s;"
        "s.Scenario = functools.partial(s.Scenario, train_s=400, epochs=1);"
        "sys.argv = ['tapewatch', 'demo', '--json'];"
        "from detector.cli import main; main()"
    )
    demo = subprocess.Popen(
        [sys.executable, "-c", quick], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert demo.stderr is not None
    told = ""
    while not told.startswith("live:"):
        told = demo.stderr.readline()
        assert told, f"ended with exit code {demo.wait()} before the live part"
    (daemon,) = psutil.Process(demo.pid).children()
    demo.send_signal(signal.SIGINT)
    stdout, _ = demo.communicate(timeout=WITHIN_S)
    assert (demo.returncode, stdout) == (130, "")
    assert not daemon.is_running()
