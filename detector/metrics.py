"""Prometheus collectors on an injected registry, observed once a micro-batch.

Labels come from small fixed sets: partition, stage, reason, flag, phase, severity, type, and the
model's features, ten of them at a time. Never an instrument. `docs/metrics.md` describes each
metric.
"""

from __future__ import annotations

import math
import platform
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from detector import __version__
from detector.drift import MOVED, Drift
from detector.events import PHASES, SEVERITIES
from detector.naming import TYPES
from detector.thresholds import Thresholds
from detector.ticks import DROPPED, Quality
from detector.wire import REASONS

LATENCY_BUCKETS_S: Final = (
    *(50e-6, 100e-6, 200e-6, 500e-6),
    *(1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
STAGES: Final = ("batching", "decode", "features", "scoring", "publishing")
STALE_AFTER_S: Final = 60.0
DRIFT_FEATURES: Final = 10


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
            for value, counts in self._counts.items():
                cumulative = np.cumsum(counts).tolist()
                bounds = [*(repr(b) for b in self._bounds), "+Inf"]
                family.add_metric(
                    [value] if self._label else [],
                    list(zip(bounds, cumulative, strict=True)),
                    self._sums[value],
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


class Metrics:
    """Everything `/metrics` tells about the daemon.

    Parameters
    ----------
    registry
        Where the collectors are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.messages = Counter("tapewatch_messages", "Messages consumed.", registry=registry)
        self.ticks = Counter("tapewatch_ticks", "Ticks decoded.", registry=registry)
        self.scored = Counter("tapewatch_ticks_scored", "Ticks scored.", registry=registry)
        self.dropped = Counter(
            "tapewatch_ticks_dropped",
            "Ticks of good messages that were dropped, by reason.",
            ["reason"],
            registry=registry,
        )
        self.flagged = Counter(
            "tapewatch_ticks_flagged",
            "Ticks processed although unusual, by flag.",
            ["flag"],
            registry=registry,
        )
        self.rejected = Counter(
            "tapewatch_messages_rejected",
            "Messages that could not be decoded, by reason.",
            ["reason"],
            registry=registry,
        )
        self.dead_letters = Counter(
            "tapewatch_dead_letters",
            "Rejected messages acknowledged by the dead-letter topic.",
            registry=registry,
        )
        self.events = Counter(
            "tapewatch_events",
            "Anomaly events acknowledged by the anomaly topic.",
            ["phase", "severity"],
            registry=registry,
        )
        self.latents = Counter(
            "tapewatch_latents",
            "Ticks whose latent was acknowledged by the latent topic.",
            registry=registry,
        )
        self.latent_messages = Counter(
            "tapewatch_latent_messages",
            "Messages acknowledged by the latent topic.",
            registry=registry,
        )
        self.named = Counter(
            "tapewatch_episodes_named",
            "Closed episodes by what the model's head called them; none without a head.",
            ["type"],
            registry=registry,
        )
        self.publish_failures = Counter(
            "tapewatch_publish_failures", "Records Kafka refused for good.", registry=registry
        )
        self.stage = Histogram(
            "tapewatch_stage_duration_seconds",
            "Time a micro-batch spent in one stage.",
            ["stage"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.tick_to_event = Histogram(
            "tapewatch_tick_to_event_seconds",
            "From the tick's Kafka timestamp or ts_recv to the event's acknowledgement.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.stale = Counter(
            "tapewatch_tick_to_event_stale",
            f"Events whose tick was older than {STALE_AFTER_S:.0f} s or had no time; not observed.",
            registry=registry,
        )
        self.batch_ticks = Histogram(
            "tapewatch_micro_batch_ticks",
            "Ticks in a micro-batch.",
            buckets=[2.0**k for k in range(17)],
            registry=registry,
        )
        self.error = ArrayHistogram(
            "tapewatch_reconstruction_error",
            "Reconstruction error of scored ticks, by autoencoder.",
            "stage",
            ("1", "2"),
        )
        self.score = ArrayHistogram("tapewatch_score", "Anomaly score of scored ticks.")
        registry.register(self.error)
        registry.register(self.score)
        self.feature_psi = PresentGauge(
            "tapewatch_feature_psi",
            f"Population stability index of the {DRIFT_FEATURES} features that moved furthest from "
            "the training; none before there are enough ticks.",
            "feature",
        )
        self.features_moved = PresentGauge(
            "tapewatch_features_moved",
            f"How many features have a population stability index of {MOVED} or more.",
        )
        self.score_psi = PresentGauge(
            "tapewatch_score_psi",
            "Population stability index of the score against the calibration part's.",
        )
        self.drift_rows = PresentGauge(
            "tapewatch_drift_rows", "Sampled ticks that the stability indices are from."
        )
        for gauge in (self.feature_psi, self.features_moved, self.score_psi, self.drift_rows):
            registry.register(gauge)
        self.lag = Gauge(
            "tapewatch_consumer_lag_messages",
            "Messages not yet processed, by partition.",
            ["partition"],
            registry=registry,
        )
        self.instruments = Gauge(
            "tapewatch_instruments", "Instruments tracked.", ["partition"], registry=registry
        )
        self.open_episodes = Gauge(
            "tapewatch_open_episodes", "Open episodes.", ["partition"], registry=registry
        )
        self.evictions = Counter(
            "tapewatch_instrument_evictions",
            "Instruments evicted at the cap, by partition.",
            ["partition"],
            registry=registry,
        )
        self.split_instruments = Counter(
            "tapewatch_split_instruments",
            "Instruments seen in two partitions: their windows are torn apart.",
            registry=registry,
        )
        self.symbol_collisions = Counter(
            "tapewatch_symbol_collisions",
            "Names refused because another name has their instrument key.",
            registry=registry,
        )
        self.rebalances = Counter(
            "tapewatch_rebalances",
            "Changes of the assignment, by kind.",
            ["kind"],
            registry=registry,
        )
        self.commit_failures = Counter(
            "tapewatch_commit_failures", "Offset commits that failed.", registry=registry
        )
        self.ready = Gauge(
            "tapewatch_ready", "1 while /readyz says ready, else 0.", registry=registry
        )
        self._register_model(registry)
        self.model_swaps = Counter(
            "tapewatch_model_swaps",
            "New models that appeared while running, by what became of them.",
            ["outcome"],
            registry=registry,
        )
        self.model_from_offset = PresentGauge(
            "tapewatch_model_from_offset",
            "Offset from which the model in force scores, by partition.",
            "partition",
        )
        registry.register(self.model_from_offset)
        Info("tapewatch_build", "This program.", registry=registry).info(
            {"version": __version__, "python": platform.python_version()}
        )
        self._partitions: set[int] = set()
        self._evictions_seen: dict[int, int] = {}
        self._preset_labels()

    def observe_counts(self, dropped: Mapping[str, int], flagged: Mapping[str, int]) -> None:
        """Count dropped and flagged ticks by name."""
        for reason, n in dropped.items():
            self.dropped.labels(reason).inc(n)
        for flag, n in flagged.items():
            self.flagged.labels(flag).inc(n)

    def observe_model(
        self,
        *,
        version: str,
        model_hash: str,
        device: str,
        created: str,
        loaded_s: float,
        thresholds: Thresholds,
    ) -> None:
        """Tell of the model put in force.

        Parameters
        ----------
        version, model_hash, device
            What it is, and where it scores.
        created
            When it was trained, as ISO 8601; a time without a zone is UTC.
        loaded_s
            When it was put in force, in seconds since the epoch.
        thresholds
            Its thresholds.
        """
        self.model.info({"version": version, "hash": model_hash, "device": device})
        try:
            when = datetime.fromisoformat(created)
        except ValueError:  # the manifest takes any text there
            self.model_created.set({})
        else:
            when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
            self.model_created.set({"": when.timestamp()})
        self.model_loaded.set({"": loaded_s})
        peaks = thresholds.peaks
        budgeted = peaks is not None and peaks.asked == "budget"
        self.alarms_asked.set({"": peaks.value} if peaks is not None and budgeted else {})

    def observe_drift(self, drift: Drift | None) -> None:
        """Tell how far what is scored has moved from the training, as far as it is known."""
        if drift is None:
            for gauge in (self.feature_psi, self.features_moved, self.score_psi, self.drift_rows):
                gauge.set({})
            return
        self.feature_psi.set(dict(drift.top(DRIFT_FEATURES)))
        self.features_moved.set({"": drift.moved})
        self.score_psi.set({"": drift.score})
        self.drift_rows.set({"": drift.rows})

    def observe_partitions(
        self,
        instruments: Mapping[int, int],
        evictions: Mapping[int, int],
        open_episodes: Mapping[int, int],
        lag: Mapping[int, int],
    ) -> None:
        """Set what is told by partition, and drop the series of partitions no longer ours."""
        for gauge, values in (
            (self.instruments, instruments),
            (self.open_episodes, open_episodes),
            (self.lag, lag),
        ):
            for partition, value in values.items():
                gauge.labels(str(partition)).set(value)
        for partition, total in evictions.items():
            new = total - self._evictions_seen.get(partition, 0)
            self.evictions.labels(str(partition)).inc(max(0, new))
            self._evictions_seen[partition] = total
        ours = set(instruments) | set(lag)
        for gone in self._partitions - ours:
            for gauge in (self.instruments, self.open_episodes, self.lag):
                gauge.remove(str(gone))
            self._evictions_seen.pop(gone, None)
        self._partitions = ours
        for partition in ours:  # a partition without state still has its three series
            for gauge in (self.instruments, self.open_episodes, self.lag):
                gauge.labels(str(partition))

    def _register_model(self, registry: CollectorRegistry) -> None:
        self.model = Info("tapewatch_model", "The model in force.", registry=registry)
        self.alarms_asked = PresentGauge(
            "tapewatch_alarms_asked_per_hour",
            "Alarms an instrument-hour that the model's thresholds are for; none where they are "
            "for a quantile or a risk.",
        )
        self.model_created = PresentGauge(
            "tapewatch_model_created_timestamp_seconds",
            "When the model in force was trained, in seconds since the epoch.",
        )
        self.model_loaded = PresentGauge(
            "tapewatch_model_loaded_timestamp_seconds",
            "When the model in force was put in force, in seconds since the epoch.",
        )
        for gauge in (self.alarms_asked, self.model_created, self.model_loaded):
            registry.register(gauge)

    def _preset_labels(self) -> None:
        """Show every series of a fixed set from the start, so that a rate sees its first rise."""
        for quality in Quality:
            if quality & DROPPED:
                self.dropped.labels(quality.label)
            else:
                self.flagged.labels(quality.label)
        for reason in sorted(REASONS):
            self.rejected.labels(reason)
        for phase in PHASES:
            for severity in SEVERITIES:
                self.events.labels(phase, severity)
        for kind in TYPES:
            self.named.labels(kind)
        for stage in STAGES:
            self.stage.labels(stage)
        for kind in ("assigned", "revoked", "lost"):
            self.rebalances.labels(kind)
        for outcome in ("done", "refused"):
            self.model_swaps.labels(outcome)
