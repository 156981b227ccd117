"""What /metrics tells: bulk histograms against a plain count, bounded labels, health answers."""

from __future__ import annotations

import math
import urllib.error
import urllib.request

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from detector.drift import Drift
from detector.endpoints import HttpServer
from detector.metrics import ArrayHistogram, Metrics


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
    """No metric has a label that could grow with the market."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.observe_partitions({0: 5}, {0: 1}, {0: 2}, {0: 9})
    allowed = {"partition", "stage", "type", "reason", "flag", "phase", "severity", "kind", "le"}
    allowed |= {"version", "python", "hash", "outcome"}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            assert set(sample.labels) <= allowed, sample


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


def test_port_answers_its_three_paths() -> None:
    """Metrics, health and readiness answer on one port with the right status."""
    registry = CollectorRegistry()
    Metrics(registry)
    state = {"ready": False}
    server = HttpServer(
        "127.0.0.1",
        0,
        registry,
        lambda: (True, "alive"),
        lambda: (state["ready"], "waiting for Kafka"),
    )
    base = server.url.removesuffix("/metrics")

    def status(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(base + path, timeout=10) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    try:
        assert status("/metrics")[0] == 200
        assert status("/healthz") == (200, "alive\n")
        assert status("/readyz") == (503, "waiting for Kafka\n")
        state["ready"] = True
        assert status("/readyz")[0] == 200
        assert status("/other")[0] == 404
    finally:
        server.close()


def test_taken_port_is_an_error() -> None:
    """A second server on the same port fails at once instead of hiding the first."""
    registry = CollectorRegistry()
    first = HttpServer("127.0.0.1", 0, registry, lambda: (True, ""), lambda: (True, ""))
    try:
        with pytest.raises(OSError, match="in use"):
            HttpServer("127.0.0.1", first.port, registry, lambda: (True, ""), lambda: (True, ""))
    finally:
        first.close()
