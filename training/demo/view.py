"""The demo on a terminal: a live view where there is one, plain lines elsewhere.

Shows what `session` hands over and works nothing out beyond rates and colours.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Protocol, Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from detector.ticks import NS_PER_S
from training.demo.daemon import Histogram, quantile_of
from training.demo.findings import COLD_S, GRACE_S, WAKE_S, Event, Findings, Summary
from training.demo.scenario import Scenario
from training.demo.session import LOOK_EVERY_S, Moment, View

_SEVERITY: Final = {"minor": "yellow", "major": "dark_orange", "critical": "bold red"}
_CHART_ROWS: Final = (4, 8)  # on a low terminal, and else
_EVENTS: Final = (3, 7)
_TALL: Final = 32
_LINE_EVERY_S: Final = 5.0
_RATE_OVER_S: Final = 2.0


class ClosingView(View, Protocol):
    """A view that is opened before and closed after a run."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def view_on(console: Console) -> ClosingView:
    """Return the view that suits the console."""
    return LiveView(console) if console.is_terminal else PlainView(console)


class PlainView:
    """One line a step, and one every few seconds of the live part."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live_ns = 0
        self._told_s = -math.inf
        self._rate = _Rate()

    def step(self, text: str) -> None:
        """Print what begins."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def detail(self, text: str) -> None:
        """Leave it out."""

    def live(self, scenario: Scenario, threshold: float, metrics_url: str) -> None:
        """Print what begins and where /metrics are."""
        self._live_ns = scenario.live_ns
        self.step(
            f"live: {scenario.live_s} s of market time at {scenario.speed:g} times their pace, "
            f"threshold {threshold:.2f}, metrics at {metrics_url}"
        )

    def event(self, event: Event, findings: Findings) -> None:
        """Leave it to the summary."""

    def moment(self, moment: Moment, findings: Findings) -> None:
        """Print a line now and then."""
        rate = self._rate(moment)
        if moment.at_s - self._told_s < _LINE_EVERY_S:
            return
        self._told_s = moment.at_s
        self.step(
            f"  {_clock(moment.market_ns, self._live_ns)}  {rate:,.0f} ticks/s, "
            f"latency {_latency(moment.reading.latency_s)}, "
            f"{findings.begun(moment.market_ns)} planted so far, {len(findings.found_by)} found, "
            f"{len(findings.false_alarms)} false alarms"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to close."""


class LiveView:
    """Steps with a spinner, then panels that follow the live part."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._step = self._detail = ""
        self._step_began = time.monotonic()
        self._done: list[Text] = []
        self._spinner = Spinner("dots")
        self._panels: _Panels | None = None
        self._live = Live(console=console, refresh_per_second=8, get_renderable=self._render)

    def step(self, text: str) -> None:
        """Print the step before with its duration and spin on the next."""
        self._finish_step()
        self._step, self._detail, self._step_began = text, "", time.monotonic()

    def detail(self, text: str) -> None:
        """Show it beside the spinner."""
        self._detail = text

    def live(self, scenario: Scenario, threshold: float, metrics_url: str) -> None:
        """Open the panels."""
        self._finish_step()
        tall = self._console.height >= _TALL
        self._panels = _Panels(scenario, threshold, metrics_url, tall)

    def event(self, event: Event, findings: Findings) -> None:
        """Hand it to the panels."""
        if self._panels is not None:
            self._panels.event(event, findings)

    def moment(self, moment: Moment, findings: Findings) -> None:
        """Hand it to the panels."""
        if self._panels is not None:
            self._panels.moment(moment, findings)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._step = ""
        self._live.stop()

    def _finish_step(self) -> None:
        if self._step:
            seconds = time.monotonic() - self._step_began
            done = Text.assemble(("✓ ", "green"), self._step, (f"  {seconds:.1f} s", "dim"))
            self._live.console.print(done)
            self._done.append(done)
            self._step = ""

    def screen(self) -> RenderableType:
        """Return all that the terminal shows by now: the steps that are done, and what is live."""
        return Group(*self._done, self._render())

    def _render(self) -> RenderableType:
        parts: list[RenderableType] = []
        if self._panels is not None:
            parts.append(self._panels.render(self._console.width))
        if self._step:
            self._spinner.update(text=Text.assemble(self._step, "  ", (self._detail, "dim")))
            parts.append(self._spinner)
        return Group(*parts)


class _Panels:
    """The live part as four panels."""

    def __init__(self, scenario: Scenario, threshold: float, metrics_url: str, tall: bool) -> None:
        self._scenario, self._threshold, self._url = scenario, threshold, metrics_url
        self._moment: Moment | None = None
        self._findings = Findings(scenario.plants)
        self._rate, self._per_s = _Rate(), 0.0
        self._scores = _ScoreChart(threshold, _CHART_ROWS[tall])
        self._events = _EVENTS[tall]
        self._opened: deque[tuple[Event, str]] = deque(maxlen=self._events)

    def event(self, event: Event, findings: Findings) -> None:
        if event["phase"] == "open":
            self._opened.append((event, _verdict(event, findings)))

    def moment(self, moment: Moment, findings: Findings) -> None:
        self._moment, self._findings = moment, findings
        self._per_s = self._rate(moment)
        self._scores.add(moment)

    def render(self, width: int) -> RenderableType:
        if self._moment is None:
            return Text("waiting for the first ticks", style="dim")
        top = Table.grid(expand=True)
        top.add_column(ratio=1)
        top.add_column(width=28)
        top.add_row(self._flow(self._moment), self._planted(self._moment))
        return Group(top, self._scores.panel(width), self._episodes())

    def _flow(self, moment: Moment) -> Panel:
        reading, scenario = moment.reading, self._scenario
        gone = (moment.market_ns - scenario.live_ns) / NS_PER_S
        rate = len(self._findings.false_alarms) / (
            len(scenario.market.instruments) * max(gone, 1.0) / 3600
        )
        rows = Table.grid(padding=(0, 1))
        rows.add_column(style="dim", no_wrap=True)
        rows.add_column(no_wrap=True)
        clock = Text(f"{_clock(moment.market_ns, scenario.live_ns)} of {scenario.live_s // 60}:")
        clock.append(f"{scenario.live_s % 60:02d}, {scenario.speed:g} times its pace")
        rows.add_row("market", clock)
        rows.add_row("", ProgressBar(scenario.live_s, gone, width=34))
        rows.add_row("ticks/s", Text(f"{self._per_s:,.0f}", style="bold cyan"))
        rows.add_row("ticks", f"{moment.produced:,} produced, {reading.ticks:,} consumed")
        rows.add_row("latency", Text(_latency(reading.latency_s), style="cyan"))
        rows.add_row(
            "false alarms",
            f"{len(self._findings.false_alarms)}, {rate:.1f} per instrument-hour",
        )
        rows.add_row("/metrics", Text.assemble((self._url, "underline")))
        return Panel(rows, title="daemon", title_align="left", box=box.ROUNDED, height=9)

    def _planted(self, moment: Moment) -> Panel:
        """One mark an anomaly: found, missed, going on or still to come."""
        rows = Table.grid(padding=(0, 1))
        marks: dict[str, Text] = {}
        for number, plant in enumerate(self._findings.plants):
            marks.setdefault(plant.kind.value, Text()).append_text(
                self._mark(number, moment.market_ns)
            )
        for kind, text in sorted(marks.items()):
            rows.add_row(kind.replace("_", " "), text)
        begun, found = self._findings.begun(moment.market_ns), len(self._findings.found_by)
        title = f"planted {begun}, found {found}"
        return Panel(rows, title=title, title_align="left", box=box.ROUNDED, height=9)

    def _mark(self, number: int, market_ns: int) -> Text:
        plant = self._findings.plants[number]
        if number in self._findings.found_by:
            return Text("● ", style="bold green")
        if market_ns < plant.start_ns:
            return Text("· ", style="dim")
        over = market_ns > plant.end_ns + (GRACE_S + 5.0) * NS_PER_S
        return Text("○ ", style="bold red") if over else Text("◌ ", style="yellow")

    def _episodes(self) -> Panel:
        rows = Table.grid(padding=(0, 1), expand=True)
        for _ in range(6):
            rows.add_column(no_wrap=True)
        rows.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        for event, verdict in self._opened:
            top = ", ".join(f"{f['name']} {f['value']:.3g}" for f in event["top_features"][:3])
            rows.add_row(
                Text(_clock(event["ts_event"], self._scenario.live_ns), style="dim"),
                Text(event["symbol"], style="bold"),
                Text(f"{event['score']:5.1f} of {event['threshold']:.1f}"),
                Text(event["severity"], style=_SEVERITY[event["severity"]]),
                Text(verdict, style="dim" if verdict == "false alarm" else "green"),
                Text(event.get("anomaly_type", "")),
                Text(top, style="cyan"),
            )
        title = "last episodes: score of threshold, what it was, its name so far, top features"
        return Panel(
            rows, title=title, title_align="left", box=box.ROUNDED, height=self._events + 2
        )


class _ScoreChart:
    """Highest score since the look before as bars beside the threshold, on a logarithmic scale.

    /metrics hold scores in half octaves: a bar ends in the middle of the highest bucket that
    counted something, and is red when all of that bucket lies above the threshold.
    """

    def __init__(self, threshold: float, rows: int) -> None:
        self._threshold, self._rows = threshold, rows
        self._low, self._high = threshold / 4, threshold * 4
        self._before: Histogram = ()
        self._bars: deque[tuple[float, float]] = deque(maxlen=400)

    def add(self, moment: Moment) -> None:
        """Take the scores since the last bar."""
        scores = moment.reading.scores
        self._bars.append(highest_bucket(self._before, scores))
        self._before = scores

    def panel(self, width: int) -> Panel:
        """Draw as many of the last bars as fit."""
        room = max(width - 12, 10)
        bars = list(self._bars)[-room:]
        line_row = self._height(self._threshold)
        rows = []
        for row in reversed(range(self._rows)):
            edge = self._low * (self._high / self._low) ** ((row + 0.5) / self._rows)
            text = Text(f"{edge:6.1f} ", style="dim")
            for low, high in bars:
                text.append_text(self._cell(row, low, high, line_row))
            if int(line_row) == row:
                text.append("╌" * (room - len(bars)), style="red")
            rows.append(text)
        title = f"highest score every {LOOK_EVERY_S:g} s; threshold {self._threshold:.1f} (pooled)"
        return Panel(
            Group(*rows), title=title, title_align="left", box=box.ROUNDED, height=self._rows + 2
        )

    def _height(self, score: float) -> float:
        """Rows from the bottom, as a fraction."""
        share = math.log(max(score, self._low) / self._low) / math.log(self._high / self._low)
        return min(share, 1.0) * self._rows

    def _cell(self, row: int, low: float, high: float, line_row: float) -> Text:
        middle = math.sqrt(low * high) if high < math.inf else low
        filled = self._height(middle) - row if middle > 0 else 0.0
        style = "red" if low >= self._threshold else "green" if high < self._threshold else "yellow"
        if filled <= 0.0:
            return Text("╌", style="red") if int(line_row) == row else Text(" ")
        return Text("▁▂▃▄▅▆▇█"[min(7, int(filled * 8))], style=style)


def highest_bucket(before: Histogram, after: Histogram) -> tuple[float, float]:
    """Return the bounds of the highest bucket that counted more than before; zeros if none."""
    low = was_below = below = 0.0
    found = (0.0, 0.0)
    earlier = dict(before)
    for bound, count in after:
        was = earlier.get(bound, 0.0)
        if count - below > was - was_below:
            found = (low, bound)
        low, below, was_below = bound, count, was
    return found


class _Rate:
    """Ticks a second, over the last couple of seconds."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, moment: Moment) -> float:
        self._seen.append((moment.at_s, moment.reading.ticks))
        while len(self._seen) > 2 and moment.at_s - self._seen[1][0] > _RATE_OVER_S:
            self._seen.popleft()
        (since, before), (until, after) = self._seen[0], self._seen[-1]
        return (after - before) / (until - since) if until > since else 0.0


def _verdict(event: Event, findings: Findings) -> str:
    """Name the planted anomaly that an episode belongs to."""
    number = findings.planted_at(event)
    return "false alarm" if number is None else findings.plants[number].kind.value


def _clock(ts_ns: int, live_ns: int) -> str:
    seconds = max(0, ts_ns - live_ns) // NS_PER_S
    return f"{seconds // 60}:{seconds % 60:02d}"


def _latency(histogram: Histogram) -> str:
    """Percentiles for people, from the buckets of `tapewatch_tick_to_event_seconds`."""
    found = [quantile_of(histogram, q) for q in (0.5, 0.95, 0.99)]
    if found[0] is None:
        return "no event yet"
    named = zip((50, 95, 99), found, strict=True)
    return ", ".join(f"p{q} {1e3 * value:.1f}" for q, value in named if value is not None) + " ms"


def _called(anomaly: Mapping[str, Any]) -> Text:
    """Return what an anomaly was named, green where that is right."""
    if anomaly["named"] is None:
        return Text("")
    style = "green" if anomaly["named"] == anomaly["kind"] else "yellow"
    return Text(anomaly["named"].replace("_", " "), style=style)


def print_summary(summary: Summary, console: Console) -> None:
    """Print what the demo ends with, for people."""
    facts = summary.to_dict()
    table = Table(box=box.SIMPLE_HEAD, title="planted anomalies", title_justify="left")
    for name in ("anomaly", "instrument", "at", "lasts", "found after", "named"):
        left = name in {"anomaly", "instrument", "named"}
        table.add_column(name, justify="left" if left else "right")
    for anomaly in facts["anomalies"]:
        delay = anomaly["delay_s"]
        table.add_row(
            anomaly["kind"].replace("_", " "),
            anomaly["symbol"],
            _clock(anomaly["start_ns"], summary.start_ns),
            f"{(anomaly['end_ns'] - anomaly['start_ns']) / NS_PER_S:.3f} s",
            Text("missed", style="red") if delay is None else Text(f"{delay:.3f} s", style="green"),
            _called(anomaly),
        )
    console.print(table)
    latency = (
        "no event"
        if summary.latency_p50_ms is None
        else (f"p50 {summary.latency_p50_ms:.1f} ms, p99 {summary.latency_p99_ms:.1f} ms")
    )
    lines = {
        "ticks": f"{summary.produced:,} produced, {summary.consumed:,} consumed",
        "anomalies": f"{summary.planted} planted, {summary.found} found, "
        f"{facts['missed']} missed (found: an episode of the instrument opens before the "
        f"anomaly's end + {GRACE_S:g} s)",
        "names": f"{facts['named_rightly']} of {summary.found} found anomalies named rightly",
        "false alarms": f"{facts['false_alarms']}, {summary.false_alarm_rate:.1f} per "
        f"instrument-hour; {facts['false_alarms_cold']} in the first {COLD_S:.0f} s, with cold "
        f"windows, {facts['false_alarms_wake']} up to {WAKE_S:.0f} s after a planted anomaly of "
        "the instrument",
        "tick to event": f"{latency} (Kafka timestamp to acknowledged event, from /metrics)",
        "events": f"{facts['events']} read from the anomaly topic; /metrics was at "
        f"{summary.metrics_url}",
        "time": f"{summary.train_seconds:.1f} s training, {summary.live_seconds:.1f} s live, "
        f"{summary.total_seconds:.1f} s in all",
    }
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, text in lines.items():
        grid.add_row(name, text)
    console.print(grid, highlight=False)
