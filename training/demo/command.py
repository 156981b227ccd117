"""`tapewatch demo`: parse, run, print. Heavy imports only inside the command."""

from __future__ import annotations

import json
import signal
import time
from typing import Annotated

import typer
from rich.console import Console

from detector.errors import FailedError


def demo(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON for machines.")
    ] = False,
    seed: Annotated[
        int, typer.Option(min=0, max=2**31 - 1, help="Of market, anomalies and model.")
    ] = 7,
    seconds: Annotated[
        int, typer.Option(min=150, max=3600, help="Market time of the live part, in seconds.")
    ] = 300,
    speed: Annotated[
        float, typer.Option(min=0.1, max=100, help="Times faster than market time.")
    ] = 12.0,
) -> None:
    """Train on a synthetic market, run the daemon on an embedded broker, find planted anomalies.

    Needs no server and no file. The same seed leads to the same ticks and the same events.

    Example: tapewatch demo
    """
    began = time.monotonic()
    from training.demo.scenario import Scenario  # noqa: PLC0415
    from training.demo.session import run_demo  # noqa: PLC0415
    from training.demo.view import print_summary, view_on  # noqa: PLC0415

    signal.signal(signal.SIGTERM, _interrupt)
    console = Console(stderr=as_json)
    with view_on(console) as view:
        summary = run_demo(Scenario(seed=seed, live_s=seconds, speed=speed), view, began)
    if as_json:
        typer.echo(json.dumps(summary.to_dict(), indent=2))
    else:
        print_summary(summary, console)
    if failures := summary.failures():
        raise FailedError("; ".join(failures))


def _interrupt(*_: object) -> None:
    """End as for ctrl-C: the daemon and the temporary folder must not be left behind."""
    raise KeyboardInterrupt
