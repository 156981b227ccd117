"""What /metrics tells: bulk histograms against a plain count, bounded labels."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import choose_encoder
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)
from prometheus_client.parser import text_string_to_metric_families

from detector.collectors import ArrayHistogram
from detector.drift import Drift
from detector.events import AnomalyEvent
from detector.kafka import Health
from detector.metrics import LATENCY_BUCKETS_S, Metrics
from detector.naming import TYPES, Name
from detector.open_episodes import TOLD
from tests.test_daemon import event_at


def buckets_of(histogram: ArrayHistogram) -> dict[float, float]:
    """Cumulative counts by upper bound."""
    family = next(iter(histogram.collect()))
    return {float(s.labels["le"]): s.value for s in family.samples if s.name.endswith("_bucket")}


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=64), max_size=50))
def test_array_histogram_equals_a_plain_count(values: list[float]) -> None:
    """Every bucket holds exactly the finite values at or below its bound."""
    histogram = ArrayHistogram("x", "x", lowest=-4, highest=4)
    histogram.observe(np.array(values, np.float64))
    finite = [v for v in values if math.isfinite(v)]
    for bound, count in buckets_of(histogram).items():
        assert count == sum(v <= bound for v in finite)


def test_bound_itself_is_inside_its_bucket() -> None:
    """`le` includes the bound: exact powers of two count in their own bucket."""
    histogram = ArrayHistogram("x", "x", lowest=-4, highest=4)
    histogram.observe(np.array([1.0, 2.0, 2.0**0.5]))
    counts = buckets_of(histogram)
    assert counts[1.0] == 1
    assert counts[2.0**0.5] == 2
    assert counts[2.0] == 3


def test_exposition_parses_and_has_every_fixed_series() -> None:
    """The text parses, and counters with fixed labels exist before they first count."""
    registry = CollectorRegistry()
    Metrics(registry)
    families = {
        f.name: f for f in text_string_to_metric_families(generate_latest(registry).decode())
    }
    assert all(name.startswith("tapewatch_") for name in families)
    assert len(families["tapewatch_events"].samples) >= 9
    reasons = {s.labels["reason"] for s in families["tapewatch_messages_rejected"].samples}
    assert "invalid_json" in reasons


def test_no_label_beyond_the_fixed_sets() -> None:
    """No metric has a label that could grow with the market, but the table of open episodes."""
    registry = CollectorRegistry()
    fill(Metrics(registry))
    allowed = {"partition", "stage", "type", "reason", "flag", "phase", "severity", "kind", "le"}
    allowed |= {"version", "python", "hash", "device", "client", "quantile", "feature"}
    allowed |= {"outcome", "source"}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            own = {"symbol", "rank"} if family.name == "tapewatch_open_episode_severity" else set()
            assert set(sample.labels) <= allowed | own, sample


def named(number: int) -> AnomalyEvent:
    """An event of an episode, an instrument and a type of its own."""
    return replace(
        event_at(0, number),
        episode_id=f"{number:032x}",
        symbol=f'S{number}"\n\\',
        name=Name(TYPES[number % len(TYPES)], 0.9, "spoofing"),
    )


def fill(metrics: Metrics, instruments: int = 1, partitions: int = 1, first: int = 0) -> None:
    """Give every metric something to tell."""
    statistics = {
        "brokers": {
            str(i): {"nodeid": i, "state": "UP", "rtt": {"cnt": 1, "p50": 5, "p99": 9}}
            for i in range(partitions)
        }
    }
    for client in ("consumer", "producer"):
        health = Health()
        health.on_statistics(json.dumps({**statistics, "type": client}))
        metrics.kafka.watch(cast("Any", client), health)
    metrics.memory.of_gpu = lambda: {"current": 1, "peak": 2}
    mine = dict.fromkeys(range(first, first + partitions), 1)
    metrics.observe_partitions(mine, mine, mine, mine)
    peaks = cast("Any", SimpleNamespace(asked="budget", value=6.0))
    metrics.observe_model(
        version="v",
        model_hash="h",
        device="cpu",
        created="2026-01-01T00:00:00Z",
        loaded_s=2.0,
        thresholds=cast("Any", SimpleNamespace(peaks=peaks)),
    )
    names = tuple(f"f{i}" for i in range(100))
    metrics.observe_drift(Drift(names, np.arange(100) / 100, 0.5, 2_000))
    metrics.score.observe(np.linspace(0.001, 1e6, 1_000))
    metrics.error.observe(np.linspace(0.001, 1e6, 1_000), "1")
    metrics.score_per_threshold.observe(np.linspace(0.001, 100.0, 1_000))
    for number in range(instruments):
        event = named(number)
        metrics.open_table.observe([event])
        metrics.observe_latency(10.0 ** (-6 + number % 8), event)
        metrics.events.labels(event.phase, event.severity).inc()
        assert event.name is not None
        metrics.named.labels(event.name.type).inc()
        metrics.batch_wait.observe(0.001)


def series_of(registry: CollectorRegistry) -> int:
    """Series that a scrape would store."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return sum(len(family.samples) for family in families)


def test_number_of_series_is_bounded() -> None:
    """Thousands of instruments add nineteen rows to the table of one; a partition adds four series.

    What a rebalance takes away leaves its counter of evictions behind, and nothing else.
    """
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    fill(metrics)
    few = series_of(registry)
    fill(metrics, instruments=5_000)
    assert series_of(registry) == few + TOLD - 1
    fill(metrics, instruments=10, partitions=64)
    assert series_of(registry) == few + TOLD - 1 + 63 * 4
    fill(metrics, instruments=10, partitions=64, first=64)
    assert series_of(registry) == few + TOLD - 1 + 63 * 4 + 64
    assert few < 650


def test_names_follow_the_conventions() -> None:
    """Base units in the name, `_total` on counters alone, every metric with a sentence of help."""
    registry = CollectorRegistry()
    fill(Metrics(registry))
    for family in registry.collect():
        assert re.fullmatch(r"tapewatch(_[a-z0-9]+)+", family.name)
        words = family.name.split("_")
        units = {"ms", "milliseconds", "us", "microseconds", "minutes", "kb", "mb", "percent", "ns"}
        assert not set(words) & units, family.name
        assert words[-1] not in {"total", "count", "sum", "bucket", "info"}
        assert family.documentation.endswith(".")
        assert family.documentation[0].isupper() or family.documentation[0].isdigit()
        if family.type == "counter":
            assert {s.name for s in family.samples} <= {f"{family.name}_total"}


def test_latency_buckets_resolve_their_range() -> None:
    """From 50 us to 10 s, no bound more than 1.7 times the one below."""
    bounds = np.array(LATENCY_BUCKETS_S)
    assert bounds[0] == 50e-6
    assert bounds[-1] == 10.0
    ratios = bounds[1:] / bounds[:-1]
    assert ratios.min() > 1.0
    assert ratios.max() < 1.7


def test_openmetrics_has_exemplars_and_parses() -> None:
    """Who asks for OpenMetrics gets text that its parser takes, with an event in the bucket."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    fill(metrics, instruments=3)
    event = replace(named(1), event_id="0123456789abcdef" * 2)
    metrics.observe_latency(0.004, event)
    encoder, kind = choose_encoder(
        "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;q=0.5"
    )
    assert kind.startswith("application/openmetrics-text")
    text = encoder(registry).decode()
    assert text.endswith("# EOF\n")
    families = {family.name: family for family in openmetrics_families(text)}
    found = {
        sample.labels["le"]: sample.exemplar
        for sample in families["tapewatch_tick_to_event_seconds"].samples
        if sample.exemplar is not None
    }
    assert found["0.005"].labels == {"event_id": "0123456789abcdef"}
    assert found["0.005"].value == 0.004
    for exemplar in found.values():
        assert sum(len(k) + len(v) for k, v in exemplar.labels.items()) <= 128
    table = families["tapewatch_open_episode_severity"].samples
    assert {s.labels["symbol"] for s in table} == {f'S{i}"\n\\' for i in range(3)}


def test_classic_format_is_the_default_and_has_no_exemplars() -> None:
    """Who does not ask for OpenMetrics gets what every scraper reads."""
    registry = CollectorRegistry()
    fill(Metrics(registry), instruments=3)
    encoder, kind = choose_encoder("*/*")
    assert kind.startswith("text/plain")
    text = encoder(registry).decode()
    assert "event_id" not in text
    assert not re.search(r"_created[ {]", text)
    assert "tapewatch_tick_to_event_seconds_bucket" in text


@pytest.mark.parametrize(
    ("created", "seconds"),
    [
        ("1970-01-02T00:00:00+00:00", 86_400.0),
        ("1970-01-02T00:00:00Z", 86_400.0),
        ("1970-01-02T00:00:00", 86_400.0),
        ("1970-01-02T02:00:00+02:00", 86_400.0),
        ("last week", None),
    ],
)
def test_model_in_force(created: str, seconds: float | None) -> None:
    """Its times are told in seconds since the epoch; a creation that is no time is not told."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def tell(peaks: object, version: str) -> None:
        metrics.observe_model(
            version=version,
            model_hash="h",
            device="cpu",
            created=created,
            loaded_s=5.0,
            thresholds=cast("Any", SimpleNamespace(peaks=peaks)),
        )

    tell(SimpleNamespace(asked="budget", value=6.0), "1")
    value = registry.get_sample_value
    assert value("tapewatch_model_created_timestamp_seconds") == seconds
    assert value("tapewatch_model_loaded_timestamp_seconds") == 5.0
    assert value("tapewatch_alarms_asked_per_hour") == 6.0
    tell(SimpleNamespace(asked="risk", value=1e-4), "2")
    assert value("tapewatch_alarms_asked_per_hour") is None
    tell(None, "3")
    assert value("tapewatch_alarms_asked_per_hour") is None
    assert [s.labels["version"] for s in metrics.model.collect()[0].samples] == ["3"]


def test_drift_is_told_of_few_features_and_only_what_is_known() -> None:
    """Ten features at most; one that leaves them, and what is not known any more, has no series."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    def shown() -> dict[str, float]:
        families = text_string_to_metric_families(generate_latest(registry).decode())
        psi = next(f for f in families if f.name == "tapewatch_feature_psi")
        return {s.labels["feature"]: s.value for s in psi.samples}

    names = tuple(f"f{j}" for j in range(30))
    index = np.arange(30) / 100
    metrics.observe_drift(Drift(names, index, 0.5, 2_000))
    assert shown() == {f"f{j}": j / 100 for j in range(20, 30)}
    assert registry.get_sample_value("tapewatch_features_moved") == 5
    assert registry.get_sample_value("tapewatch_score_psi") == 0.5
    metrics.observe_drift(Drift(names, index[::-1], 0.1, 3_000))
    assert set(shown()) == {f"f{j}" for j in range(10)}
    assert registry.get_sample_value("tapewatch_drift_rows") == 3_000
    metrics.observe_drift(None)
    assert shown() == {}
    assert registry.get_sample_value("tapewatch_score_psi") is None


def test_scores_per_threshold_have_an_edge_where_alarms_begin() -> None:
    """From a 64th to 64 times the threshold, with a bound at the threshold itself."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.score_per_threshold.observe(np.array([0.001, 0.5, 0.99, 1.01, 3.0, 1e3, np.nan]))
    bounds = sorted(buckets_of(metrics.score_per_threshold))
    assert bounds[0] == 2.0**-6
    assert bounds[-2] == 2.0**6
    below = registry.get_sample_value("tapewatch_score_per_threshold_bucket", {"le": "1.0"})
    assert below == 3
    assert registry.get_sample_value("tapewatch_score_per_threshold_count") == 6


def test_released_partition_leaves_no_series() -> None:
    """Gauges of a partition that went away go too; its counter keeps what it counted."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.observe_partitions({0: 5, 1: 6}, {0: 3, 1: 0}, {0: 2, 1: 0}, {0: 9, 1: 9})
    metrics.observe_partitions({1: 6}, {1: 0}, {1: 0}, {1: 9})
    assert registry.get_sample_value("tapewatch_instruments", {"partition": "0"}) is None
    assert registry.get_sample_value("tapewatch_instruments", {"partition": "1"}) == 6
    counted = registry.get_sample_value("tapewatch_instrument_evictions_total", {"partition": "0"})
    assert counted == 3
