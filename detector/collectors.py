"""Kinds of Prometheus collectors that the client library does not have.

Whole arrays into a histogram, gauges that may know nothing, and values read when scraped. None
holds a lock for longer than it takes to copy a few hundred numbers: the threads that observe are
those that the ticks wait for.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from numba import njit
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

Readings = Iterable[tuple[Sequence[str], float]]
"""Label values and value of each series there is now."""


@njit(cache=True, nogil=True)
def _count_half_octaves(
    values: npt.NDArray[np.float64], lowest: int, counts: npt.NDArray[np.int64]
) -> float:
    """Count finite values into buckets with upper bounds 2^((lowest + i) / 2); return their sum."""
    total = 0.0
    last = counts.shape[0] - 1
    for value in values:
        if not math.isfinite(value):
            continue
        total += value
        index = 0
        if value > 0.0:
            mantissa, exponent = math.frexp(value)  # mantissa in [0.5, 1)
            half = 2 * (exponent - 1)
            if mantissa > 0.5:
                half += 1 if mantissa <= 0.7071067811865476 else 2
            index = min(max(half - lowest, 0), last)
        counts[index] += 1
    return total


class ArrayHistogram(Collector):
    """A histogram that takes a whole array at once: a few nanoseconds a value.

    Upper bounds are half octaves, `2^(lowest/2)` to `2^(highest/2)`; NaN is not counted.

    Parameters
    ----------
    name, documentation
        As for any collector.
    label, values
        Name of the one label and its fixed set of values; `("", ("",))` for none.
    lowest, highest
        First and last bound in half octaves.
    """

    def __init__(
        self,
        name: str,
        documentation: str,
        label: str = "",
        values: tuple[str, ...] = ("",),
        lowest: int = -20,
        highest: int = 30,
    ) -> None:
        self._name, self._documentation, self._label = name, documentation, label
        self._lowest = lowest
        self._bounds = [2.0 ** (half / 2) for half in range(lowest, highest + 1)]
        self._counts = {v: np.zeros(len(self._bounds) + 1, np.int64) for v in values}
        self._sums = dict.fromkeys(values, 0.0)
        self._lock = threading.Lock()

    def observe(self, array: npt.NDArray[np.float64], value: str = "") -> None:
        """Count every finite element of a float64 array."""
        with self._lock:
            counts = self._counts[value]
            self._sums[value] += _count_half_octaves(array, self._lowest, counts)

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """Give the present state to the registry."""
        labels = [self._label] if self._label else []
        family = HistogramMetricFamily(self._name, self._documentation, labels=labels)
        with self._lock:
            now = [(value, c.copy(), self._sums[value]) for value, c in self._counts.items()]
        bounds = [*(repr(b) for b in self._bounds), "+Inf"]
        for value, counts, total in now:
            family.add_metric(
                [value] if self._label else [],
                list(zip(bounds, np.cumsum(counts).tolist(), strict=True)),
                total,
            )
        yield family


class PresentGauge(Collector):
    """A gauge that tells only what is known now: what `set` left out has no series any more.

    Parameters
    ----------
    name, documentation
        As for any collector.
    label
        Name of the one label; "" for none.
    """

    def __init__(self, name: str, documentation: str, label: str = "") -> None:
        self._name, self._documentation = name, documentation
        self._labelnames = (label,) if label else ()
        self._values: Mapping[str, float] = {}

    def set(self, values: Mapping[str, float]) -> None:
        """Replace all values, by label; without a label, the only one has the name ""."""
        self._values = dict(values)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Give name and meaning to the registry."""
        yield GaugeMetricFamily(self._name, self._documentation, labels=self._labelnames)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Give the present state to the registry."""
        family = GaugeMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for label, value in self._values.items():
            family.add_metric([label] if self._labelnames else [], value)
        yield family


class ReadFamily(Collector):
    """A metric whose series are read when it is scraped, from whoever `read` asks.

    Parameters
    ----------
    kind
        What it is to Prometheus.
    name, documentation
        As for any collector; a counter's name without `_total`.
    labels
        Names of its labels.
    """

    def __init__(
        self,
        kind: Literal["gauge", "counter"],
        name: str,
        documentation: str,
        labels: Sequence[str] = (),
    ) -> None:
        self._family = CounterMetricFamily if kind == "counter" else GaugeMetricFamily
        self._name, self._documentation, self._labelnames = name, documentation, tuple(labels)
        self.read: Callable[[], Readings] = tuple

    def describe(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Give name and meaning to the registry."""
        yield self._family(self._name, self._documentation, labels=self._labelnames)

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Give what there is now to the registry."""
        family = self._family(self._name, self._documentation, labels=self._labelnames)
        for labels, value in self.read():
            family.add_metric(labels, value)
        yield family
