"""What a soak is judged by tells a leak and a drift from none; the soak itself is not run here."""

from __future__ import annotations

import math

import pytest

from tests.faults.soak import Sample, summarise


def samples(leak: float, slower: float) -> list[Sample]:
    """Half an hour; memory grows by `leak` of itself over it, and the last third is slower."""
    made = []
    counts = {0.01: 0.0, 0.02: 0.0, 0.04: 0.0, math.inf: 0.0}
    for i in range(180):
        bound = 0.02 if i <= 120 else 0.02 * slower
        for each in counts:
            counts[each] += 100.0 * (each >= bound)
        resident = round(3e8 * (1 + leak * i / 180))
        made.append(Sample(10.0 * i, resident, 1000 * i, dict(counts)))
    return made


def test_a_steady_run_is_met() -> None:
    """Constant memory and latency are what is wanted."""
    report = summarise(samples(0.0, 1.0), 1800.0, 100.0, 200.0)
    assert report.met
    assert report.growth == 0.0
    assert report.drift == pytest.approx(1.0)
    assert 10 < report.p99_ms[0] <= 20


def test_a_leak_is_found() -> None:
    """Three per cent over the half hour are two over what counts."""
    report = summarise(samples(0.03, 1.0), 1800.0, 100.0, 200.0)
    assert report.growth == pytest.approx(0.02, abs=0.003)
    assert not report.met


def test_a_drift_is_found() -> None:
    """Latencies twice as long in the last third are missed."""
    report = summarise(samples(0.0, 2.0), 1800.0, 100.0, 200.0)
    assert report.drift > 1.5
    assert not report.met
