"""The runner: which rows, how long, and where the results go."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.table import Table

from benchmarks import (
    capacity,
    engine,
    features,
    latency,
    memory,
    report,
    scoring,
    scrape,
    sizing,
    throughput,
)
from benchmarks.machine import Quiet, describe
from benchmarks.measure import Row
from benchmarks.processes import Cluster, cluster
from benchmarks.workload import FULL, QUICK, Sizes, Workload, prepare
from tests.kafka_broker import REPOSITORY, KafkaUnavailableError

ALONE: Final[dict[str, Callable[[Workload], list[Row]]]] = {
    "features": features.measure,
    "scoring": scoring.measure,
    "engine": engine.measure,
    "memory": memory.measure,
}
ON_KAFKA: Final[dict[str, Callable[[Workload, Cluster], list[Row]]]] = {
    "throughput": throughput.measure,
    "latency": latency.measure,
    "scrape": scrape.measure,
}
GROUPS: Final = ("features", "scoring", "engine", "throughput", "latency", "scrape", "memory")

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
out = Console()


@app.command()
def main(
    only: Annotated[
        str | None, typer.Option(help=f"Groups of rows, by comma: {', '.join(GROUPS)}.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A short tape and few rounds.")] = False,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Rounds of every row, instead of the usual ones.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="Model folder, instead of a default model trained now.")
    ] = None,
    bootstrap: Annotated[
        str | None, typer.Option(help="Kafka at host:port, instead of a broker started here.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the pages and results.json; a full run has its places."),
    ] = None,
) -> None:
    """Measure, print the table, and write it unless the run was shortened.

    Rows that were left out keep their last figures in the files, if they are of this machine.
    """
    groups = _groups(only)
    sizes = QUICK if quick else FULL
    if rounds is not None:
        sizes = replace(sizes, rounds=rounds, kafka_rounds=rounds)
    shortened = quick or rounds is not None or model is not None
    json_path, table_path = (
        (output / "results.json", output / "benchmarks.md")
        if output is not None
        else (REPOSITORY / "benchmarks" / "results.json", REPOSITORY / "docs" / "benchmarks.md")
    )
    machine = describe()
    rows = list(measured(groups, sizes, bootstrap, model))
    if output is not None or not shortened:
        results = report.in_order(report.merge(json_path, machine, rows), GROUPS)
        report.write(results, json_path, table_path)
        out.print(f"written: {table_path}, {json_path}", highlight=False)
        if sizing.complete(results):
            capacity_path = table_path.with_name("capacity.md")
            capacity_path.write_text(capacity.page(results), encoding="utf-8")
            out.print(f"written: {capacity_path}", highlight=False)


def measured(
    groups: tuple[str, ...],
    sizes: Sizes,
    bootstrap: str | None = None,
    model: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure groups of rows one after the other; each row is printed as soon as it is known."""
    with contextlib.ExitStack() as stack:
        out.print("simulating the tape, training the default model", style="dim")
        work = prepare(sizes, model=model)
        stack.callback(shutil.rmtree, work.folder, ignore_errors=True)
        kafka: Cluster | None = None
        for group in groups:
            out.print(f"measuring: {group}", style="dim")
            quiet, date = Quiet(), datetime.now(UTC).isoformat(timespec="minutes")
            if group in ALONE:
                rows = ALONE[group](work)
            else:
                try:
                    kafka = kafka or stack.enter_context(cluster(bootstrap))
                except KafkaUnavailableError as lacking:
                    out.print(f"left out: {group}: {lacking}", style="yellow")
                    continue
                rows = ON_KAFKA[group](work, kafka)
            facts = {"date": date, "quiet": quiet.facts(), "workload": work.describe()}
            _show(rows)
            yield from report.dated(rows, facts)


def _groups(only: str | None) -> tuple[str, ...]:
    wanted = GROUPS if only is None else tuple(name.strip() for name in only.split(","))
    unknown = sorted(set(wanted) - set(GROUPS))
    if unknown:
        raise typer.BadParameter(f"--only {', '.join(unknown)}: allowed are {', '.join(GROUPS)}")
    return tuple(group for group in GROUPS if group in wanted)


def _show(rows: list[Row]) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    for row in rows:
        ratio = "" if row.ratio is None else f"ratio {row.ratio.text('.2f')}"
        met = {True: "met", False: "missed", None: ""}[row.met]
        table.add_row(row.what, row.measured, row.ceiling, ratio, f"{row.target} {met}")
    out.print(table)
