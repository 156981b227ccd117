"""Prometheus collectors on an injected registry, observed once a micro-batch.

Labels come from small fixed sets: partition, stage, reason, flag, phase, severity, type, and the
model's features, ten of them at a time. The one metric with instruments in it has twenty of them at
most. `docs/metrics.md` describes each metric.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
)

from detector import __version__
from detector.collectors import ArrayHistogram, PresentGauge, ReadFamily
from detector.drift import MOVED, Drift
from detector.events import PHASES, SEVERITIES, AnomalyEvent
from detector.kafka_metrics import KafkaMetrics
from detector.naming import TYPES
from detector.open_episodes import TOLD, OpenEpisodes
from detector.resources import MemoryMetrics
from detector.thresholds import Thresholds
from detector.ticks import DROPPED, Quality
from detector.wire import REASONS

LATENCY_BUCKETS_S: Final = (
    *(50e-6, 70e-6),
    *(100e-6, 150e-6, 200e-6, 300e-6, 500e-6, 700e-6),
    *(1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 7e-3),
    *(10e-3, 15e-3, 20e-3, 30e-3, 50e-3, 70e-3),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.7),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0),
)
"""Upper bounds, at most 1.7 times the one below: a quantile read from them is not further off."""

STAGES: Final = ("batching", "decode", "features", "scoring", "publishing", "committing")
STALE_AFTER_S: Final = 60.0
DRIFT_FEATURES: Final = 10
EXEMPLAR_DIGITS: Final = 16
"""Of an event's id, in an exemplar: OpenMetrics allows 128 characters for all labels together."""


class Metrics:
    """Everything `/metrics` tells about the daemon.

    Parameters
    ----------
    registry
        Where the collectors are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        # Else every counter and histogram has a second series that says when it began.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.messages = Counter("tapewatch_messages", "Messages consumed.", registry=registry)
        self.ticks = Counter("tapewatch_ticks", "Ticks decoded.", registry=registry)
        self.scored = Counter("tapewatch_ticks_scored", "Ticks scored.", registry=registry)
        self.instrument_hours = Counter(
            "tapewatch_instrument_hours",
            "Hours of event time over which instruments were scored, summed over instruments; "
            "silences of more than half an hour are none.",
            registry=registry,
        )
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
        self.batch_wait = Histogram(
            "tapewatch_batch_wait_seconds",
            "How long the first tick of a micro-batch waited for others, before it was decoded.",
            buckets=LATENCY_BUCKETS_S,
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
        self.score_per_threshold = ArrayHistogram(
            "tapewatch_score_per_threshold",
            "Anomaly score of scored ticks in multiples of the threshold in force; 1 is an alarm.",
            lowest=-12,
            highest=12,
        )
        for histogram in (self.error, self.score, self.score_per_threshold):
            registry.register(histogram)
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
            "tapewatch_commit_failures",
            "Offset commits that failed, and transactions that were lost.",
            registry=registry,
        )
        self._register_ready(registry)
        self._register_model(registry)
        self._register_state(registry)
        self.kafka = KafkaMetrics(registry)
        self.memory = MemoryMetrics(registry)
        self.open_table = OpenEpisodes()
        table = ReadFamily(
            "gauge",
            "tapewatch_open_episode_severity",
            f"Highest severity told of the {TOLD} open episodes where it is highest, ranked.",
            ("symbol", "type", "rank"),
        )
        table.read = self.open_table.read
        registry.register(table)
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

    def observe_latency(self, latency_s: float, event: AnomalyEvent) -> None:
        """Observe one event's latency from tick to acknowledgement, with the event as exemplar."""
        self.tick_to_event.observe(latency_s, {"event_id": event.event_id[:EXEMPLAR_DIGITS]})

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

    def _register_ready(self, registry: CollectorRegistry) -> None:
        """Ask when scraped, instead of being told: a loop that hangs would no longer tell."""
        self.is_ready: Callable[[], bool] = bool
        ready = ReadFamily("gauge", "tapewatch_ready", "1 while /readyz says ready, else 0.")
        ready.read = lambda: [((), float(self.is_ready()))]
        registry.register(ready)

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

    def _register_state(self, registry: CollectorRegistry) -> None:
        self.transactions = Counter(
            "tapewatch_transactions",
            "Transactions of exactly-once delivery, by what became of them.",
            ["outcome"],
            registry=registry,
        )
        self.restored = Counter(
            "tapewatch_partitions_restored",
            "Partitions taken up, by where their state was from.",
            ["source"],
            registry=registry,
        )
        self.restore = Histogram(
            "tapewatch_restore_duration_seconds",
            "Reading and restoring the state of the partitions of one assignment, without replay.",
            buckets=[0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0],
            registry=registry,
        )
        self.replayed = Counter(
            "tapewatch_messages_replayed",
            "Messages taken into the windows a second time, to rebuild them.",
            registry=registry,
        )
        self.state_bytes = Counter(
            "tapewatch_state_bytes",
            "Bytes of keys and values acknowledged by the topic of state.",
            registry=registry,
        )
        for outcome in ("committed", "aborted"):
            self.transactions.labels(outcome)
        for source in ("new", "snapshot", "other_model", "warm_up"):
            self.restored.labels(source)

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
