"""Facts of the scenarios to `docs/evaluation.md`: one JSON file each, the page from all of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import orjson

from benchmarks.machine import describe
from tests.kafka_broker import REPOSITORY

FOLDER: Final = REPOSITORY / "docs" / "evaluation"
PAGE: Final = REPOSITORY / "docs" / "evaluation.md"
HEAD: Final = """# Evaluation on real data

Generated: `python -m benchmarks.real_data SCENARIO` measures one scenario (or `all`), writes its
facts to `docs/evaluation/SCENARIO.json` and this page from all of them. The data are not part of
the repository (`TAPEWATCH_TEST_DATA` names the folder). Everything runs through the commands a user
would type, each a process of its own, on a real Apache Kafka; detectors alone are compared inside
one process ([evaluating.md](evaluating.md)). Throughput and latency are in
[benchmarks.md](benchmarks.md).

Weights and thresholds of every model come from its training and calibration ticks alone. The
*recipe* was chosen on anomalies planted for development ([detection_study.md](detection_study.md)),
but not blindly: earlier recipes were tried on the injected LOBSTER set and on the XAUUSD days, and
their figures were seen before this one was chosen.

Each section names the commit it was measured at; "dirty" are the facts of scenarios measured just
before in the same folder. Features, networks and score have been the same since 7172b30; since
then a feature's share of an explanation no longer depends on the rows explained beside it, and
thresholds that follow their alarms may move by a factor of 10 instead of 4 (decision 8).
"""


def _commit() -> str:
    """Commit of the measured code, and whether there were changes beside it."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "an unknown commit"


COMMIT: Final = _commit()
"""Taken before anything is written."""


class Scenario(Protocol):
    """A module of this package."""

    TITLE: str

    def measure(self, data: Path, folder: Path, bootstrap: str | None) -> dict[str, Any]:
        """Run it."""

    def section(self, facts: dict[str, Any]) -> str:
        """Say what was found."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """Mean and standard deviation over seeds."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{np.mean(values):{form}} ± {np.std(values, ddof=1):{form}}"


def save(name: str, facts: dict[str, Any]) -> None:
    """Write a scenario's facts, with the day and the machine."""
    FOLDER.mkdir(exist_ok=True)
    stamped = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": COMMIT,
        "machine": describe(),
        "facts": facts,
    }
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    (FOLDER / f"{name}.json").write_bytes(orjson.dumps(stamped, option=options))


def write_page(
    scenarios: dict[str, Scenario], summary: Callable[[dict[str, Any]], str] | None = None
) -> None:
    """Write the page from the facts that are there.

    Parameters
    ----------
    scenarios
        In the order of the page.
    summary
        Gives the first section from the facts of all scenarios that were run, by name.
    """
    paths = {name: FOLDER / f"{name}.json" for name in scenarios}
    found = {name: orjson.loads(path.read_bytes()) for name, path in paths.items() if path.exists()}
    parts = [HEAD]
    if summary is not None:
        parts.append(summary({name: stamped["facts"] for name, stamped in found.items()}) + "\n")
    for name, scenario in scenarios.items():
        if name in found:
            stamped = found[name]
            libraries = stamped["machine"]["libraries"]
            taken = (
                f"Measured {stamped['date']} at {stamped['commit']}, "
                f"TensorFlow {libraries['tensorflow']}, Keras {libraries['keras']}, on the CPU: "
                f"`python -m benchmarks.real_data {name}`."
            )
            parts.append(
                f"## {scenario.TITLE}\n\n{scenario.section(stamped['facts'])}\n\n{taken}\n"
            )
    PAGE.write_text("\n".join(parts))
