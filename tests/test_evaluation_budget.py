"""Alarm budgets: the factor where many alarms are expected, a Poisson interval where few are."""

from __future__ import annotations

import pytest

from training.evaluation.budget import budgets, kept


@pytest.mark.parametrize(
    ("alarms", "hours", "judged_by", "good"),
    [
        (150, 20.0, "factor", True),
        (181, 20.0, "factor", False),
        (80, 20.0, "factor", True),
        (79, 20.0, "factor", False),
        (0, 20.0, "factor", False),
        (7, 1.0, "interval", True),
        (11, 1.0, "interval", True),
        (12, 1.0, "interval", False),
        (0, 0.5, "interval", True),
        (1, 2.0, "interval", False),
    ],
)
def test_kept(alarms: int, hours: float, judged_by: str, good: bool) -> None:
    """At six an hour; 95 % of Poisson counts of mean 6 lie from 2 to 11."""
    found = kept(alarms, hours, 6.0)
    assert (found["judged_by"], found["kept"]) == (judged_by, good)
    assert found["asked"] == pytest.approx(6 * hours)


def test_budgets_are_by_instrument_and_of_clean_time() -> None:
    """False episodes by the hours without anomalies, not all episodes by all hours."""
    found = budgets(
        {"A": {"false": 3, "hit": 40, "clean_hours": 0.5}, "B": {"false": 0, "clean_hours": 0.0}},
        6.0,
    )
    assert found["A"]["factor"] == pytest.approx(1.0)
    assert found["B"]["factor"] is None
