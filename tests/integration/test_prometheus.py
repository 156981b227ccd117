"""Our dashboards, rules and alerts in a real Prometheus that scrapes a real daemon under load.

One rehearsal, of which every test looks at a part. `tests/prometheus_server.py` says what is faster
here than in production, `tests/prometheus_queries.py` how everything is asked.

With `TAPEWATCH_PROMETHEUS_CHECK=docs/prometheus_check.md` the table of what answered is written
there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import REPOSITORY, leave_out
from tests.kafka_broker import KafkaBroker, kafka_version
from tests.prometheus_queries import Asker, every_query, rules
from tests.prometheus_rehearsal import DEPENDS, WITHOUT_DATA, Rehearsal, Stage, missing, rehearse
from tests.prometheus_server import PrometheusServer, faster, faster_rule, sixtieth
from tests.running import Tape, tapewatch
from tests.tick_feed import TickFeed

SPEED: Final = 6.0
REPORT: Final = REPOSITORY / "docs" / "prometheus_check.md"

UNEXPLAINED: Final = "not explained"
PLANTED: Final = (
    "TapewatchDeadLetters",
    "TapewatchRejectedInput",
    "TapewatchModelRefused",
    "TapewatchNoTicks",
    "TapewatchNotReady",
    "TapewatchDown",
    "TapewatchAbsent",
)

PAGE: Final = """# What a real Prometheus answered

Written on {day} from a run of `tests/integration/test_prometheus.py`:

```
TAPEWATCH_PROMETHEUS_CHECK=docs/prometheus_check.md .venv/bin/python -m pytest \\
    tests/integration/test_prometheus.py
```

Prometheus {prometheus} scraped one daemon on Apache Kafka {kafka}, which watched a feed with
planted anomalies and took a new model. Asked was every query of the dashboards (all jobs, all
instances) and every rule: {asked} in all, {answered} with data. The number is that of the series
with a number in them, the most at a time: zeros count, NaN, which a panel shows as nothing, does
not. Comparisons of alerts are asked with `bool`: they say 0 or 1 while all is well.

| query | series |
|---|---|
{rows}

## Planted faults

Seconds from the fault until its alert fired. Every wait and window of the rules lasts a sixtieth
here: a minute is a second. Before the faults, none of these alerts fired.

| alert | seconds |
|---|---|
{waits}
"""


@pytest.fixture(scope="module")
def budget_model(tape: Tape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with thresholds for a budget of alarms."""
    folder = tmp_path_factory.mktemp("budget") / "artifact"
    done = tapewatch(
        *("train", "--ticks", tape.train, "--out", folder),
        *("--epochs", "2", "--budget", "30", "--seed", "1"),
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def rehearsal(
    start_kafka: Callable[..., KafkaBroker],
    tape: Tape,
    model: Path,
    budget_model: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Rehearsal]:
    """Everything is started, asked, broken and killed once."""
    if shutil.which("prometheus") is None:
        leave_out("prometheus is absent (Debian: apt-get install prometheus)")
    folder = tmp_path_factory.mktemp("rehearsal")
    broker = start_kafka()
    began = time.time()
    stage = Stage(broker, (model, budget_model), folder)
    config = faster(folder / "prometheus", stage.address)
    ticks = tape.live_ticks.ticks
    try:
        with (
            PrometheusServer(config, folder) as server,
            TickFeed(broker.bootstrap, "ticks", ticks, SPEED) as feed,
        ):
            yield rehearse(stage, Asker(server, began), feed)
    finally:
        stage.daemon.close()
        broker.close()


def report(rehearsal: Rehearsal) -> str:
    """Return the page on what answered."""
    said = subprocess.run(["prometheus", "--version"], capture_output=True, text=True, check=True)
    reasons = dict(WITHOUT_DATA)
    reasons |= {w: f"the daemon tells no `{name}` on this machine" for w, name in DEPENDS.items()}
    series = rehearsal.series
    rows = [f"| {w} | {n or '0: ' + reasons.get(w, UNEXPLAINED)} |" for w, n in series.items()]
    return PAGE.format(
        day=f"{datetime.now(UTC):%Y-%m-%d}",
        prometheus=(said.stdout + said.stderr).split()[2],
        kafka=kafka_version(),
        asked=len(series),
        answered=sum(n > 0 for n in series.values()),
        rows="\n".join(rows),
        waits="\n".join(f"| {alert} | {s:.1f} |" for alert, s in rehearsal.fired.items()),
    )


def test_everything_asked_has_data(rehearsal: Rehearsal) -> None:
    """Panels, annotations, variables, rules and alerts all get series of the daemon under load."""
    assert missing(rehearsal.series) == set()


def test_the_list_of_what_has_no_data_is_exact(rehearsal: Rehearsal) -> None:
    """Nothing on it has data, and nothing that is gone is on it."""
    assert set(WITHOUT_DATA) | set(DEPENDS) <= set(rehearsal.series)
    assert [where for where in WITHOUT_DATA if rehearsal.series[where]] == []


@pytest.mark.parametrize("where", DEPENDS)
def test_what_the_machine_lacks_has_no_data(rehearsal: Rehearsal, where: str) -> None:
    """A query for the machine's own has data exactly where the daemon tells it."""
    assert bool(rehearsal.series[where]) == (DEPENDS[where] in rehearsal.told)


def test_prometheus_evaluates_every_rule(rehearsal: Rehearsal) -> None:
    """All rules are loaded, and none of them ends in an error."""
    names = {rule.get("alert") or rule["record"] for rule in rules()}
    assert rehearsal.health == dict.fromkeys(names, "ok")


def test_no_planted_alert_fires_before_its_fault(rehearsal: Rehearsal) -> None:
    """While all is well, none of the alerts that come later fires."""
    assert rehearsal.fired_before & set(PLANTED) == set()


@pytest.mark.parametrize("alert", PLANTED)
def test_planted_fault_fires_its_alert(rehearsal: Rehearsal, alert: str) -> None:
    """A stopped feed, poison, a broken model, a killed broker, a killed daemon: each is told."""
    assert alert in rehearsal.fired


def test_exemplars_name_published_events(rehearsal: Rehearsal) -> None:
    """Whoever clicks on a late point finds an event of the anomaly topic."""
    assert rehearsal.exemplars
    assert rehearsal.exemplars <= rehearsal.event_ids


def test_what_a_refused_model_shows_has_data_then(rehearsal: Rehearsal) -> None:
    """The boards mark the time of a refused model once there is one."""
    assert rehearsal.once_refused
    assert all(rehearsal.once_refused.values()), rehearsal.once_refused


def test_report_has_a_number_or_a_reason_for_everything(
    rehearsal: Rehearsal, tmp_path: Path
) -> None:
    """Nothing in the table is without data and without a reason; it is kept where asked for."""
    text = report(rehearsal)
    path = Path(os.environ.get("TAPEWATCH_PROMETHEUS_CHECK") or tmp_path / REPORT.name)
    path.write_text(text, encoding="utf-8")
    assert UNEXPLAINED not in text


def test_the_committed_report_names_everything_asked() -> None:
    """docs/prometheus_check.md is of today's dashboards and rules, or is to be written anew."""
    table = REPORT.read_text(encoding="utf-8").split("\n## ")[0]
    asked = re.findall(r"^\| ((?:\w+, |rule |alert ).+?) \|", table, re.MULTILINE)
    assert asked == [query.where for query in every_query()]


@pytest.mark.parametrize(("duration", "want"), [("1m", "1s"), ("6h", "360s"), ("0m", "0s")])
def test_a_minute_becomes_a_second(duration: str, want: str) -> None:
    """Waits and windows of the copy are in proportion to those of production."""
    assert sixtieth(duration) == want


@pytest.mark.parametrize("duration", ["90s", "5", "1w"])
def test_what_has_no_whole_sixtieth_is_refused(duration: str) -> None:
    """A copy that rounds would not be in proportion any more."""
    with pytest.raises(ValueError, match=duration):
        sixtieth(duration)


def test_a_faster_rule_keeps_all_but_its_times() -> None:
    """Thresholds, metrics and labels are those of production."""
    rule = {"alert": "A", "expr": "rate(a[5m]) > 5 and b[1h]", "for": "2m", "labels": {"b": "5m"}}
    assert faster_rule(rule) == rule | {"expr": "rate(a[5s]) > 5 and b[60s]", "for": "2s"}
