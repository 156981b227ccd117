"""The faults in their long form: `python -m tests.faults.chaos --long`, or `make chaos`.

    python -m tests.faults.chaos [--long] [--only FAULT] [--seed N] [--times N] [--delivery HOW]
    python -m tests.faults.chaos --only soak [--soak-seconds N]

Each fault has topics of its own on one Kafka that is started for all of them. The seed is printed;
with it, `--only` and `--times` the same feed meets the same draws again. Ends with 1 if a guarantee
was violated anywhere.
"""

from __future__ import annotations

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.faults.faults import FAULTS, happen, prepare
from tests.faults.members import FaultError
from tests.faults.place import Ports
from tests.faults.run import FaultRun, Place, Report
from tests.faults.soak import SECONDS, soak
from tests.faults.verifier import Delivery, Verdict
from tests.kafka_broker import KafkaBroker
from tests.running import make_tape, train_model

DELIVERIES: Final[tuple[Delivery, ...]] = ("exactly_once", "at_least_once")
COLUMNS: Final = (
    *("fault", "delivery", "seed", "times", "kills", "rebalances", "lives", "messages", "of"),
    *("expected", "seen", "lost", "repeated", "altered", "unexpected", "out of order", "s"),
)
SOAK: Final = "soak"
out = Console(width=None if sys.stdout.isatty() else 200)  # a table in a file is whole


def main() -> int:
    """Parse the command line, let the faults happen, print the table."""
    given = _parser().parse_args()
    names = given.only or [*FAULTS, *([SOAK] if given.long else [])]
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    out.print(f"seed {seed}")
    reports: list[Report] = []
    failures: list[str] = []
    if faults := [name for name in names if name != SOAK]:
        _happen_all(faults, given, seed, reports, failures)
        out.print(table(reports))
    if SOAK in names:
        _soak(given.soak_seconds, failures)
    failures += [line for report in reports for line in _told(report)]
    for line in failures:
        out.print(line, style="red", highlight=False, markup=False)
    return 1 if failures else 0


def _happen_all(
    names: list[str],
    given: argparse.Namespace,
    seed: int,
    reports: list[Report],
    failures: list[str],
) -> None:
    """Let one fault after the other happen; a run that cannot be judged is a failure."""
    deliveries = DELIVERIES if given.delivery == "both" else (given.delivery,)
    folder = Path(tempfile.mkdtemp(prefix="tapewatch-chaos-"))
    try:
        ports = Ports.free()
        model = given.model or _model(folder)
        with KafkaBroker(**ports.broker()) as broker, ports.proxy() as proxy:
            place = Place(broker, proxy, model, folder)
            for name, delivery in itertools.product(names, deliveries):
                fault = FAULTS[name]
                times = given.times or (fault.long if given.long else fault.short)
                run = prepare(place, name, seed, delivery)
                try:
                    with _progress(run, times * fault.unit):
                        reports.append(happen(run, times))
                except FaultError as error:
                    failures.append(str(error))
                else:
                    for line in (*_told(reports[-1]), *reports[-1].ended):
                        out.print(line, style="red", highlight=False, markup=False)
    finally:
        if given.keep:
            out.print(f"kept: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _soak(seconds: float, failures: list[str]) -> None:
    """Show how far it is, and what it came to."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=out) as shown:
        task = shown.add_task("soak, exactly_once", total=seconds)
        report = soak(seconds, lambda passed: shown.update(task, completed=passed))
    out.print(report.text(), highlight=False)
    if not report.met:
        failures.append(report.text())


def table(reports: list[Report]) -> Table:
    """One row for the events of each fault, and one for its dead letters."""
    made = Table(*COLUMNS, title="What happened, and what came of it")
    for report in reports:
        facts = (
            *(report.fault, report.delivery, report.seed, report.times, report.kills),
            *(report.rebalances, report.lives, report.messages),
        )
        for what, verdict in (("events", report.events), ("dead letters", report.letters)):
            assert verdict is not None
            row = (*facts, what, *_figures(verdict), f"{report.seconds:.0f}")
            made.add_row(*map(str, row), style="red" if verdict.violations(report.delivery) else "")
    return made


def _figures(verdict: Verdict) -> tuple[int, ...]:
    return (
        *(verdict.expected, verdict.seen, verdict.lost, verdict.repeated),
        *(verdict.altered, verdict.unexpected, verdict.out_of_order),
    )


def _told(report: Report) -> Iterator[str]:
    """Say what a run violated, with examples."""
    for topic, wrong in report.violations().items():
        yield f"{report.fault}, {report.delivery}, seed {report.seed}: {topic}: {wrong}"
        verdict = report.events if topic == "events" else report.letters
        assert verdict is not None
        yield from (f"  {example}" for example in verdict.examples)


@contextmanager
def _progress(run: FaultRun, total: int) -> Iterator[None]:
    """Show how many of the faults have happened."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    over = threading.Event()
    with Progress(*columns, TimeElapsedColumn(), console=out) as shown:
        report = run.report
        task = shown.add_task(f"{report.fault}, {report.delivery}", total=total)

        def follow() -> None:
            while not over.wait(0.5):
                shown.update(task, completed=report.times)
            shown.update(task, completed=report.times)

        following = threading.Thread(target=follow)
        following.start()
        try:
            yield
        finally:
            over.set()
            following.join()


def _model(folder: Path) -> Path:
    out.print("training a small model", style="dim")
    tape = folder / "tape"
    tape.mkdir()
    return train_model(make_tape(tape), folder / "model")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos")
    parser.add_argument("--long", action="store_true", help="ten times as often")
    parser.add_argument("--only", action="append", choices=[*FAULTS, SOAK], help="may be repeated")
    parser.add_argument("--seed", type=int, help="of feed and faults; default: a new one")
    parser.add_argument("--times", type=int, help="how often each fault happens")
    parser.add_argument("--delivery", choices=[*DELIVERIES, "both"], default="exactly_once")
    parser.add_argument("--model", type=Path, help="a model folder, instead of one trained now")
    parser.add_argument("--soak-seconds", type=float, default=SECONDS)
    parser.add_argument("--keep", action="store_true", help="keep configurations and logs")
    return parser


if __name__ == "__main__":
    sys.exit(main())
