"""Alerts: they load, fire and stay silent as promtool finds, and ask only for what there is."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command

from detector.cli import _register_training, app
from detector.metrics import Metrics
from detector.resources import ProcessMetrics
from tests.conftest import REPOSITORY, leave_out
from tests.test_metrics import fill

PROMETHEUS = REPOSITORY / "deploy" / "prometheus"
RULE_FILES = sorted((PROMETHEUS / "rules").glob("*.yml"))
TEST_FILES = sorted((PROMETHEUS / "tests").glob("*.yml"))
ALERTS_FILE = PROMETHEUS / "rules" / "alerts.yml"
RUNBOOK = REPOSITORY / "docs" / "runbook.md"
RUNBOOK_URL = "https://example.com/tapewatch/docs/runbook.md"
SECTION = re.compile(r"^## (\S+)$", re.MULTILINE)
METRIC = re.compile(r"\b(?:tapewatch|process)_\w+|\b\w+:tapewatch_\w+:\w+|\bup\b")
SELECTOR = re.compile(r"(\w+)\{([^}]*)\}")
EQUAL = re.compile(r'(\w+)="([^"]*)"')


def rules() -> list[dict[str, Any]]:
    """Every rule of every file."""
    groups = [g for path in RULE_FILES for g in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}


def runbook_sections() -> dict[str, str]:
    """Text by heading of second order."""
    _, *parts = SECTION.split(RUNBOOK.read_text(encoding="utf-8"))
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(text: str, language: str) -> list[str]:
    """The lines of all code blocks in a language."""
    found = re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [line for block in found for line in block.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def exposed() -> dict[str, list[dict[str, str]]]:
    """Labels of every series that a daemon exposes, by name."""
    registry = CollectorRegistry()
    registry.register(ProcessMetrics())
    metrics = Metrics(registry)
    fill(metrics)
    series: dict[str, list[dict[str, str]]] = {"up": [{}]}  # the scrape itself makes this one
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels)
    # On a machine without a limit of memory there is no series of it.
    series.setdefault("tapewatch_memory_limit_bytes", [{}])
    return series


def promtool(*arguments: str | Path) -> str:
    """Run promtool and return what it says; fail with it if it does."""
    program = shutil.which("promtool")
    if program is None:
        leave_out("promtool is absent (Debian: apt-get install prometheus)")
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=250
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_prometheus_takes_configuration_and_rules() -> None:
    """`promtool check` finds the configuration, every rule file and no duplicate rule."""
    said = promtool("check", "config", PROMETHEUS / "prometheus.yml")
    assert f"SUCCESS: {len(RULE_FILES)} rule files found" in said
    assert "duplicate" not in promtool("check", "rules", *RULE_FILES)


@pytest.mark.parametrize("path", TEST_FILES, ids=lambda path: path.stem)
def test_rules_say_what_their_tests_expect(path: Path) -> None:
    """`promtool test rules` passes: alerts fire and do not fire, recording rules count right."""
    assert "SUCCESS" in promtool("test", "rules", path)


def expectations() -> Iterator[tuple[str, bool]]:
    """Alert and whether it is expected to fire, for every case of the unit tests."""
    for path in TEST_FILES:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test.get("alert_rule_test", ()):
                yield case["alertname"], bool(case["exp_alerts"])


def test_every_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    """A test of an alert that never fires, or always does, would prove nothing."""
    found = set(expectations())
    assert found == {(name, fires) for name in ALERTS for fires in (True, False)}


@pytest.mark.parametrize("name", ALERTS)
def test_alerts_say_what_a_person_needs(name: str) -> None:
    """Name, severity, what was measured where, and the address of the alert's own section."""
    alert = ALERTS[name]
    assert re.fullmatch(r"Tapewatch[A-Z]\w+", name)
    assert alert["labels"]["severity"] in {"page", "ticket"}
    notes = alert["annotations"]
    assert set(notes) == {"summary", "description", "runbook_url"}
    assert "$value" in notes["description"]
    assert re.search(r"\$labels\.(instance|job)\b", notes["description"])
    assert notes["runbook_url"] == f"{RUNBOOK_URL}#{name.lower()}"


def test_every_duration_is_on_a_line_of_its_own() -> None:
    """Whoever shortens the waits for a rehearsal can do so line by line."""
    lines = re.findall(r"^        for: \d+[smhd]$", ALERTS_FILE.read_text(), re.MULTILINE)
    assert len(lines) == len(ALERTS)


def assert_exists(expression: str, exposed: dict[str, list[dict[str, str]]]) -> None:
    """Every metric of an expression is exposed or recorded, and so is every label asked for."""
    names = METRIC.findall(expression)
    assert set(names) <= set(exposed) | RECORDED, expression
    for name, matchers in SELECTOR.findall(expression):
        for label, value in EQUAL.findall(matchers):
            if label != "job":
                assert value in {series.get(label) for series in exposed[name]}, expression


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_ask_for_what_there_is(
    rule: dict[str, Any], exposed: dict[str, list[dict[str, str]]]
) -> None:
    """A renamed metric would silence its alert without an error."""
    assert METRIC.search(rule["expr"]) or rule["record"] == "global:tapewatch_trading_hours:bool"
    assert_exists(rule["expr"], exposed)


def test_runbook_has_a_section_for_every_alert_and_none_without() -> None:
    """A link in a page at night ends at its section, and no section tells of an alert long gone."""
    assert set(runbook_sections()) == set(ALERTS)


@pytest.mark.parametrize("name", ALERTS)
def test_runbook_sections_answer_the_same_questions(name: str) -> None:
    """What it means, what it costs, where to look, what to do, when to call for help: in order."""
    found = re.findall(r"^\*\*([^*]+)\.\*\*", runbook_sections()[name], re.MULTILINE)
    assert found == ["Means", "Costs", "Look", "Do", "Escalate"]


def test_queries_of_the_runbook_work(
    tmp_path: Path, exposed: dict[str, list[dict[str, str]]]
) -> None:
    """Every query is valid PromQL and asks for metrics that there are."""
    queries = blocks(RUNBOOK.read_text(encoding="utf-8"), "promql")
    assert len(queries) >= len(ALERTS)
    for query in queries:
        assert_exists(query, exposed)
    wrapped = [{"record": f"query:number:{n}", "expr": query} for n, query in enumerate(queries)]
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "runbook", "rules": wrapped}]}))
    promtool("check", "rules", path)


def test_log_lines_of_the_runbook_are_written_by_the_daemon() -> None:
    """Whoever searches the log for a quoted line finds it where the code still writes it."""
    lines = re.findall(r"[Ll]og: `([^`]+)`", RUNBOOK.read_text(encoding="utf-8"))
    source = "".join(path.read_text() for path in (REPOSITORY / "detector").glob("*.py"))
    said = re.sub(r'"\s*f?"', "", source)  # what is wrapped over two lines of code
    said += said.replace("partitions {kind}", "partitions lost")
    assert len(lines) >= 10
    assert [line for line in lines if line not in said] == []


def test_commands_of_the_runbook_exist() -> None:
    """Every `tapewatch` command of the runbook is one, with all its options."""
    _register_training()
    commands = re.findall(
        r"^tapewatch (.+)$|`tapewatch ([^`]+)`", RUNBOOK.read_text(), re.MULTILINE
    )
    assert len(commands) >= 8
    for words in ((one or other).split() for one, other in commands):
        command: Any = get_command(app)
        while words and hasattr(command, "commands"):
            assert words[0] in command.commands, words
            command = command.commands[words.pop(0)]
        known = {name for parameter in command.params for name in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, (command.name, words)
