"""Streams for the tests of the evaluation, from lines of text and from random numbers."""

from __future__ import annotations

import numpy as np

from detector.placing import Planted
from detector.scripts import AnomalyKind
from detector.ticks import NS_PER_S
from training.datasets import RowStore
from training.evaluation.stream import Stream
from training.labels import tick_labels

START = 1_700_000_000 * NS_PER_S


def planted(
    start_s: float,
    end_s: float,
    key: int = 10,
    kind: AnomalyKind = AnomalyKind.LAYERING,
    symbol: str = "AAA",
) -> Planted:
    """Return an anomaly from `start_s` to `end_s` seconds after `START`."""
    ends = (START + round(each * NS_PER_S) for each in (start_s, end_s))
    return Planted(kind, key, symbol, *ends, {}, 0)


def times(seconds: object) -> np.ndarray:
    """Event times so many seconds after `START`."""
    return START + np.round(np.asarray(seconds, float) * NS_PER_S).astype(np.int64)


def stream_of(
    seconds: object,
    keys: object = None,
    anomalies: tuple[Planted, ...] = (),
    values: np.ndarray | None = None,
) -> Stream:
    """Return a stream of ticks at these seconds; its features are random unless given."""
    ts = times(seconds)
    n = len(ts)
    key = np.full(n, 10, np.int64) if keys is None else np.asarray(keys, np.int64)
    if values is None:
        values = np.random.default_rng(0).normal(size=(n, 4)).astype(np.float32)
    return Stream(
        RowStore(values, key, ts),
        np.ones(n),
        np.arange(n),
        tick_labels(key, ts, anomalies).kind,
        anomalies,
        {each: f"I{each}" for each in np.unique(key).tolist()},
    )
