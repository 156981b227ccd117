"""Panels of what was found: alarms against the budget, severities, types."""

from __future__ import annotations

from typing import Final

from .parts import BLUE, ORANGE, RED, Panel, Said, bound, coloured, lines
from .queries import Query, of_job, rise

HOUR: Final = "job:tapewatch_alarms:increase1h"
HOUR_RATIO: Final = "job:tapewatch_alarms_per_alarms_asked:ratio_increase1h"
SIX_HOURS_RATIO: Final = "job:tapewatch_alarms_per_alarms_asked:ratio_increase6h"
ON_BUDGET: Final = ("TapewatchAlarmsAboveBudget", "TapewatchAlarmsBelowBudget")
"""Alerts on alarms against the budget."""


def alarms_against_budget(width: int) -> Panel:
    """Return alarms and budget of the last hour, in numbers."""
    panel = lines(
        Said(
            "Alarms against budget",
            "Episodes opened within the last hour, and how many the model's thresholds were set "
            "for in the instrument-hours scored meanwhile. Of the whole job.",
            "short",
            ON_BUDGET,
        ),
        Query(f"sum({of_job(HOUR)})", "alarms"),
        Query(f"sum({of_job('job:tapewatch_alarms_asked:increase1h')})", "budget"),
        width=width,
    )
    return coloured(bound(panel, "budget"), {"alarms": BLUE, "budget": ORANGE})


def share_of_budget(width: int) -> Panel:
    """Return alarms as a share of the budget, over one hour and six."""
    return lines(
        Said(
            "Alarms as a share of the budget",
            "Over an hour and over six; dashed, where tickets are opened: three times as many "
            "within an hour, or a third within six. Of the whole job.",
            "percentunit",
            ON_BUDGET,
        ),
        Query(f"max({of_job(HOUR_RATIO)})", "1h"),
        Query(f"max({of_job(SIX_HOURS_RATIO)})", "6h"),
        width=width,
        limits=[(1 / 3, ORANGE), (3, RED)],
    )


def severities(width: int) -> Panel:
    """Return how many episodes were opened, by severity."""
    panel = lines(
        Said(
            "Episodes opened, by severity",
            "Episodes opened, by severity at opening; it may grow while they last.",
            "short",
        ),
        Query(rise("tapewatch_events_total", 'phase="open"', by="severity"), "{{severity}}"),
        width=width,
        stacked=True,
        bars=True,
    )
    return coloured(panel, {"minor": BLUE, "major": ORANGE, "critical": RED})


def types(width: int) -> Panel:
    """Return how many episodes were closed, by what they resemble."""
    return lines(
        Said(
            "Closed episodes by type",
            "What the model's head called them; nothing where the model has no head. Many unknown: "
            "anomalies of a kind it was not taught.",
            "short",
        ),
        Query(rise("tapewatch_episodes_named_total", by="type"), "{{type}}"),
        width=width,
        stacked=True,
        bars=True,
    )
