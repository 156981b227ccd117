"""`python -m benchmarks.real_data SCENARIO...`: measure, print, write `docs/evaluation.md`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Final

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import typer

from benchmarks.real_data import (
    adbench,
    bars,
    fuzz,
    lobster,
    nab,
    names,
    planted,
    published,
    thresholds,
    xauusd,
)
from benchmarks.real_data.report import Scenario, save, write_page
from tests.kafka_broker import REPOSITORY

SCENARIOS: Final[dict[str, Scenario]] = {
    "lobster": lobster,
    "xauusd": xauusd,
    "published": published,
    "planted": planted,
    "adbench": adbench,
    "nab": nab,
    "thresholds": thresholds,
    "names": names,
    "fuzz": fuzz,
}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Annotated[list[str], typer.Argument(metavar="SCENARIO...", help="Or all, or page.")],
    data: Annotated[
        Path, typer.Option(envvar="TAPEWATCH_TEST_DATA", help="Folder of the market data.")
    ] = REPOSITORY.parent / "shared" / "data",
    bootstrap: Annotated[
        str | None,
        typer.Option(envvar="TAPEWATCH_TEST_BOOTSTRAP", help="A fresh Kafka; else one is started."),
    ] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for models and logs, kept.")] = None,
) -> None:
    """Show what the product does on real data.

    Example: python -m benchmarks.real_data xauusd nab
    """
    chosen = list(SCENARIOS) if names == ["all"] else [n for n in names if n != "page"]
    if unknown := [name for name in chosen if name not in SCENARIOS]:
        raise typer.BadParameter(f"{', '.join(unknown)}; allowed are {', '.join(SCENARIOS)}, all")
    if not data.is_dir():
        raise typer.BadParameter(f"{data}: no such folder; name it by TAPEWATCH_TEST_DATA")
    for name in chosen:
        with tempfile.TemporaryDirectory(prefix="tapewatch-real-") as scratch:
            folder = (keep or Path(scratch)) / name
            folder.mkdir(parents=True, exist_ok=True)
            facts = SCENARIOS[name].measure(data.resolve(), folder.resolve(), bootstrap)
        save(name, facts)
        print(f"## {SCENARIOS[name].TITLE}\n\n{SCENARIOS[name].section(facts)}\n", flush=True)
    write_page(SCENARIOS, lambda facts: f"## {bars.TITLE}\n\n{bars.section(facts)}")


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.real_data")
