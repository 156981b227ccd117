"""Interleaved rounds, and the frozen facts that a benchmark row states.

Machines differ and this one is shared: an absolute time says little. What is measured and its
ceiling therefore take turns within one run (A B A B ...), and their ratio is taken round by round.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """Median over rounds, the lowest and the highest."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values), len(values))

    def text(self, form: str = ".3g") -> str:
        """Median, with the range where there is more than one round."""
        if self.rounds == 1:
            return f"{self.median:{form}}"
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Parameters
    ----------
    group
        The module that measured it.
    what
        What was measured, with sizes.
    measured, ceiling
        For people; the ceiling is empty where the target is absolute.
    ratio
        Of measured to ceiling, or None.
    target
        What the project promises.
    met
        Whether it was reached; None where only a figure is stated.
    facts
        Every number behind it, for machines.
    """

    group: str
    what: str
    measured: str
    ceiling: str
    ratio: Spread | None
    target: str
    met: bool | None
    facts: Mapping[str, Any] = field(default_factory=dict)


def take_turns(rounds: int, **measures: Callable[[], float]) -> dict[str, list[float]]:
    """Run every measure once a round, in turn, after one unrecorded round; values by name."""
    for measure in measures.values():
        measure()
    found: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(rounds):
        for name, measure in measures.items():
            found[name].append(measure())
    return found


def ratios(of: Sequence[float], to: Sequence[float]) -> Spread:
    """Return the ratio `of / to`, round by round."""
    return Spread.of([a / b for a, b in zip(of, to, strict=True)])
