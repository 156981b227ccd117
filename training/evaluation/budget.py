"""Did the alarms keep their budget? Realised against asked, instrument by instrument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from scipy.stats import poisson

MANY: Final = 100
"""Expected alarms from which on the factor is judged; below, it is mostly chance, and the 95 %
Poisson interval of the count is."""

WITHIN: Final = 1.5
"""A factor up to this keeps the budget, both ways."""


def kept(alarms: int, hours: float, per_hour: float) -> dict[str, Any]:
    """Hold a count of alarms in some hours against a budget, as JSON types."""
    asked = per_hour * hours
    low, high = (int(poisson.ppf(p, asked)) for p in (0.025, 0.975))
    facts: dict[str, Any] = {
        "asked": asked,
        "realised": alarms,
        "factor": alarms / asked if asked else None,
    }
    if asked >= MANY:
        factor = max(alarms / asked, asked / max(alarms, 0.5))
        return {**facts, "judged_by": "factor", "kept": factor <= WITHIN}
    return {
        **facts,
        "judged_by": "interval",
        "interval": [low, high],
        "kept": low <= alarms <= high,
    }


def budgets(instruments: Mapping[str, Mapping[str, Any]], per_hour: float) -> dict[str, Any]:
    """Hold false episodes in clean time against a budget, by instrument of `judge_episodes`."""
    return {
        name: kept(one["false"], one["clean_hours"], per_hour) for name, one in instruments.items()
    }
