"""Which rows are fitted, calibrate and are judged, by both protocols."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from detector.errors import RefusedError
from detector.ticks import NS_PER_S
from tests.evaluated import START, planted, stream_of
from training.evaluation.protocols import (
    AROUND_S,
    SETTLING_S,
    Ends,
    Parts,
    published,
    time_ordered,
)


def seconds_of(part: np.ndarray) -> tuple[int, int, int]:
    """First, last and number of the rows of a part, of a stream with a row a second."""
    at = np.flatnonzero(part)
    return int(at[0]), int(at[-1]), len(at)


def ends(*at: int, gap: int = 10) -> Ends:
    """Boundaries so many seconds after the start."""
    return Ends(*(START + each * NS_PER_S for each in at), gap * NS_PER_S)


def disjoint(parts: Parts) -> bool:
    """No row has two uses."""
    uses = np.stack([parts.fit, parts.later, parts.calibration, parts.test])
    return bool((uses.sum(axis=0) <= 1).all())


def test_time_ordered_parts_follow_one_another() -> None:
    """Train, gap, later, calibration, gap, test: starts inclusive, ends exclusive."""
    parts = time_ordered(stream_of(range(1_000)), ends(5, 400, 500, 700))
    assert seconds_of(parts.fit) == (5, 399, 395)
    assert seconds_of(parts.later) == (410, 499, 90)
    assert seconds_of(parts.calibration) == (510, 699, 190)
    assert seconds_of(parts.test) == (710, 999, 290)
    assert disjoint(parts)


def test_time_ordered_leaves_out_what_an_anomaly_disturbs() -> None:
    """It and the time after it are neither fitted nor calibrate, but all of the test is judged."""
    stream = stream_of(range(1_000), anomalies=(planted(100, 110), planted(800, 810)))
    parts = time_ordered(stream, ends(0, 400, 500, 700))
    assert not parts.fit[100 : 110 + SETTLING_S + 1].any()
    assert parts.fit[[99, 111 + SETTLING_S]].all()
    assert parts.test[710:].all()


def test_published_parts() -> None:
    """Around anomalies is judged; ordinary rows away from them are fitted, the last fifth not."""
    stream = stream_of(range(2_000), anomalies=(planted(500, 510), planted(560, 570)))
    parts = published(stream)
    assert seconds_of(parts.test) == (500 - AROUND_S, 570 + AROUND_S, 141)
    settled = 570 + AROUND_S + SETTLING_S
    assert not (parts.train | parts.calibration)[465 : settled + 1].any()
    ordinary = 465 + 2_000 - (settled + 1)
    assert np.count_nonzero(parts.train) == pytest.approx(0.8 * ordinary, abs=1)
    assert np.count_nonzero(parts.later) == pytest.approx(0.08 * ordinary, abs=1)
    assert np.count_nonzero(parts.calibration) == pytest.approx(0.2 * ordinary, abs=1)
    assert np.flatnonzero(parts.calibration)[0] > np.flatnonzero(parts.train)[-1]
    assert disjoint(parts)


def test_published_shares_are_by_instrument() -> None:
    """An instrument with few rows is fitted and left out in the same shares."""
    keys = np.where(np.arange(1_000) % 10 == 0, 20, 10)
    parts = published(stream_of(range(1_000), keys))
    rare = keys == 20
    assert np.count_nonzero(parts.calibration & rare) == 20
    assert np.count_nonzero(parts.train & rare) == 80


@pytest.mark.parametrize(
    "summary",
    [{}, {"parts": {"gap_s": 1.0}}, {"parts": {"gap_s": 1.0, "boundaries_ns": {"AAPL": {}}}}],
)
def test_a_summary_without_boundaries_is_refused(summary: dict[str, Any]) -> None:
    """The message says what is missing and what to do."""
    with pytest.raises(RefusedError, match=r"boundaries_ns.*train the model anew"):
        Ends.of(summary)
