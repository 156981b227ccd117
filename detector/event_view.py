"""An anomaly event as one line for people."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

import orjson
from rich.text import Text

_COLOURS: Final = {"minor": "yellow", "major": "dark_orange", "critical": "bold red"}


def line_of(value: bytes) -> Text:
    """Return phase, time, instrument, severity, type, score and top features as a coloured line.

    A value that is not one of our events is shown as it is, so that nothing on the topic is hidden.
    """
    try:
        event = orjson.loads(value)
        return _line(event)
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError):
        return Text(f"not an anomaly event: {value[:200]!r}", style="dim")


def _line(event: dict[str, Any]) -> Text:
    when = datetime.fromtimestamp(event["ts_event"] / 1e9, UTC)
    line = Text()
    line.append(f"{when:%Y-%m-%d %H:%M:%S.%f} ", style="dim")
    line.append(f"{event['phase']:<6} ", style="bold")
    line.append(f"{event['symbol']:<12} ")
    line.append(f"{event['severity']:<8} ", style=_COLOURS.get(event["severity"], ""))
    if "anomaly_type" in event:
        line.append(f"{_name(event)}  ", style="bold")
    line.append(f"score {event['score']:.1f} of {event['threshold']:.1f}  ")
    if event.get("raised_by") == "combination":
        line.append("combination  ", style="magenta")
    if "summary" in event:
        summary = event["summary"]
        line.append(
            f"{summary['duration_s']:.3f} s, {summary['ticks']} ticks, {summary['reason']}  "
        )
    top = ", ".join(
        f"{f['name']} {f['value']:.3g} (expected {f['expected']:.3g})"
        for f in event["top_features"][:3]
    )
    line.append(top, style="cyan")
    return line


def _name(event: dict[str, Any]) -> str:
    """`layering 0.93`, or `unknown (like layering 0.41)`."""
    likeliest = f"{event['likeliest_type']} {event['type_probability']:.2f}"
    return f"unknown (like {likeliest})" if event["anomaly_type"] == "unknown" else likeliest
