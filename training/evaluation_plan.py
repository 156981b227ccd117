"""What is planted where to judge detection: decided once, before any detector was tuned, and kept.

Frozen on purpose. Later code reads `EVALUATION_PLAN` and changes nothing in it; a test holds its
digest together with that of every parameter range and half, so that a change cannot slip in. The
files are not part of the repository; names are below the folder of the market data.

Time is cut in the order of the market: a training part (fit on it; anomalies for the classifier
head are planted here, from the training halves), a calibration part (thresholds; nothing is planted
here), a test part (anomalies from the test halves). Regular hours only. The two XAUUSD days with
natural bursts, 2014-05-02 and 05-07, are left out.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from detector.offline import Files
from detector.placing import Planted
from detector.scripts import RANGES
from detector.ticks import NS_PER_S
from training.halves import TEST_END, Half, half_ranges
from training.planning import Policy, Survey, plan_stream


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of event time, ISO 8601 in UTC; the start inclusive, the end exclusive."""

    start: str
    end: str

    @property
    def ns(self) -> tuple[int, int]:
        """Epoch ns."""
        start, end = (datetime.fromisoformat(each) for each in (self.start, self.end))
        return int(start.timestamp()) * NS_PER_S, int(end.timestamp()) * NS_PER_S


@dataclass(frozen=True, slots=True)
class Subject:
    """One instrument of the evaluation.

    Parameters
    ----------
    symbol
        Its name, as the readers give it.
    files
        Below the folder of the market data.
    train, calibration, test
        The parts of its time, in this order.
    """

    symbol: str
    files: tuple[str, ...]
    train: tuple[Span, ...]
    calibration: tuple[Span, ...]
    test: tuple[Span, ...]

    def ticks(self, folder: Path) -> Files:
        """Return its files, all parts in one stream."""
        return Files(tuple(folder / name for name in self.files))

    def spans(self, half: Half) -> tuple[tuple[int, int], ...]:
        """Epoch ns of the part in which a half is planted."""
        if half == Half.BOTH:
            raise ValueError("half is both; an evaluation plants either train or test")
        part = self.train if half == Half.TRAIN else self.test
        return tuple(span.ns for span in part)


@dataclass(frozen=True, slots=True)
class EvaluationPlan:
    """How much is planted, where, and by which seeds.

    Parameters
    ----------
    subjects
        The instruments.
    per_hour
        Anomalies per instrument-hour: one in three minutes.
    separation_s
        Time without an anomaly before each start, after each end, and at the ends of every part.
    train_seeds, test_seeds
        One stream is planted for each.
    """

    subjects: tuple[Subject, ...]
    per_hour: float
    separation_s: float
    train_seeds: tuple[int, ...]
    test_seeds: tuple[int, ...]

    def policy(self, half: Half, seed: int) -> Policy:
        """Return the policy of one planted stream."""
        allowed = self.train_seeds if half == Half.TRAIN else self.test_seeds
        if seed not in allowed:
            raise ValueError(f"seed is {seed}; the plan's seeds for {half} are {allowed}")
        return Policy(self.per_hour, half=half, separation_s=self.separation_s, seed=seed)

    def planted(
        self, subject: Subject, surveys: dict[int, Survey], half: Half, seed: int
    ) -> tuple[Planted, ...]:
        """Return the anomalies of one planted stream of one instrument."""
        return plan_stream(surveys, self.policy(half, seed), subject.spans(half))

    def digest(self) -> str:
        """SHA-256 (hex) of the plan, the parameter ranges and their halves."""
        halves = {half.value: _plain(half_ranges(half)) for half in Half}
        text = repr((asdict(self), _plain(RANGES), _plain(TEST_END), halves))
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(table: object) -> object:
    """Dicts and tuples only, keys as text, so that `repr` depends on values alone."""
    if hasattr(table, "items"):
        return {str(key): _plain(value) for key, value in table.items()}
    return table


def _lobster(symbol: str) -> Subject:
    day = "2012-06-21T{}:00+00:00"
    train, calibration, test, end = (day.format(at) for at in ("13:30", "16:45", "18:00", "20:00"))
    return Subject(
        symbol,
        (f"lobster/LOBSTER_SampleFile_{symbol}_2012-06-21_1.zip",),
        (Span(train, calibration),),
        (Span(calibration, test),),
        (Span(test, end),),
    )


def _lean(symbol: str) -> Subject:
    def span(day: int, start: str, end: str) -> Span:
        return Span(f"2013-10-{day:02d}T{start}:00+00:00", f"2013-10-{day:02d}T{end}:00+00:00")

    return Subject(
        symbol,
        tuple(
            f"lean/equity/{symbol.lower()}/201310{day:02d}_{what}.zip"
            for day in (7, 8, 9)
            for what in ("quote", "trade")
        ),
        (span(7, "13:30", "20:00"),),
        (span(8, "13:30", "16:30"),),
        (span(8, "16:30", "20:00"), span(9, "13:30", "20:00")),
    )


_XAUUSD: Final = Subject(
    "XAUUSD",
    tuple(f"lean/xauusd/201405{day:02d}_quote.zip" for day in (1, 5, 6)),
    (Span("2014-05-01T00:00:00+00:00", "2014-05-01T21:00:00+00:00"),),
    (Span("2014-05-05T06:00:00+00:00", "2014-05-05T18:00:00+00:00"),),
    (Span("2014-05-06T06:00:00+00:00", "2014-05-06T16:00:00+00:00"),),
)

EVALUATION_PLAN: Final = EvaluationPlan(
    subjects=(_lobster("AAPL"), _lobster("AMZN"), _lean("BAC"), _lean("IBM"), _XAUUSD),
    per_hour=20.0,
    separation_s=60.0,
    train_seeds=(101, 102, 103),
    test_seeds=(1, 2, 3, 4, 5),
)
"""The evaluation. Committed before detection was tuned; it stays."""
