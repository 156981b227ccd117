"""A rehearsal: everything asked of Prometheus while all is well, then one fault after the other.

The processes are real: a daemon on a Kafka of its own, a feed with planted anomalies, a Prometheus
that scrapes the daemon. What was seen comes back as frozen facts; the tests judge them.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from detector.artifact import WEIGHTS
from tests.integration.kafka_reading import read_topic
from tests.kafka_broker import KafkaBroker, free_ports
from tests.prometheus_queries import Asker, every_query, most_series
from tests.prometheus_server import PrometheusServer, set_targets
from tests.running import WAIT_S, RunningDaemon, tapewatch, wait_until
from tests.tick_feed import TickFeed

DATA_WITHIN_S: Final = 60.0

REFUSED: Final = "no model is refused before the faults; asked again then"
WITHOUT_DATA: Final[Mapping[str, str]] = {
    **{
        f"{board}, annotation 'Model refused'": REFUSED
        for board in ("latency", "model", "overview")
    },
    "alert TapewatchAbsent": "absent() is empty while there is a target",
}
"""What has no data while all is well, and why. Exact: an entry that has data fails."""

DEPENDS: Final[Mapping[str, str]] = {
    "overview, Memory (22), B": "tapewatch_memory_limit_bytes",
    "overview, Memory (22), C": "tapewatch_gpu_memory_bytes",
    "rule instance:tapewatch_memory_per_limit:ratio": "tapewatch_memory_limit_bytes",
    "alert TapewatchMemoryNearLimit": "tapewatch_memory_limit_bytes",
}
"""What has data exactly where the machine lets the daemon tell this metric."""


@dataclass(frozen=True)
class Rehearsal:
    """What was seen."""

    series: dict[str, int]
    """Most series of each query while nothing was wrong."""
    once_refused: dict[str, int]
    """The same of what shows a refused model, once one is."""
    told: frozenset[str]
    """Names of the metrics that the daemon told."""
    health: dict[str, str]
    """Of each rule in Prometheus: ok, or what is wrong."""
    fired_before: frozenset[str]
    fired: dict[str, float]
    """Seconds from the fault to the alert."""
    exemplars: frozenset[str]
    event_ids: frozenset[str]


class Stage:
    """The processes of the rehearsal, and the faults that can be planted."""

    def __init__(self, broker: KafkaBroker, models: tuple[Path, Path], folder: Path) -> None:
        self.broker, self._models, self._folder = broker, models, folder
        shutil.copytree(models[0], folder / "model")
        port = free_ports(1)[0]
        self.address = f"127.0.0.1:{port}"
        self.daemon = self._start_daemon(port)

    def _start_daemon(self, port: int) -> RunningDaemon:
        text = f"""
[kafka]
bootstrap_servers = "{self.broker.bootstrap}"
properties = {{ "session.timeout.ms" = "6000", "reconnect.backoff.max.ms" = "500" }}
[topics]
latents = "latents"
[model]
path = "{self._folder / "model"}"
watch_s = 0.5
[drift]
every = 1
least_rows = 200
[http]
port = {port}
"""
        path = self._folder / "topics.toml"
        path.write_text(text)
        done = tapewatch("topics", "create", "--config", path, "--partitions", "2")
        assert done.returncode == 0, done.stderr
        return RunningDaemon(self._folder / "daemon", text)

    def swap_model(self) -> None:
        """Put the second model in the first one's place."""
        self._put(self._models[1])

    def break_model(self) -> None:
        """Put the first model back, with half of its weights."""
        self._put(self._models[0], truncated=True)

    def _put(self, source: Path, *, truncated: bool = False) -> None:
        """Replace the folder in two renames, as `tapewatch train --overwrite` does."""
        staged, old = self._folder / "staged", self._folder / "old"
        shutil.copytree(source, staged)
        if truncated:
            os.truncate(staged / WEIGHTS, 1000)
        (self._folder / "model").rename(old)
        staged.rename(self._folder / "model")
        shutil.rmtree(old)


def rehearse(stage: Stage, asker: Asker, feed: TickFeed) -> Rehearsal:
    """Ask everything while all is well, then plant one fault after the other."""
    server, queries = asker.server, every_query()
    daemon = stage.daemon.wait_ready()
    stage.swap_model()
    wait_until(lambda: bool(server.ask("query", query="up == 1")["result"]), daemon)
    series = most_series(asker, queries, lambda found: not missing(found), DATA_WITHIN_S)
    health = {rule["name"]: rule.get("lastError") or rule["health"] for rule in server.rules()}
    fired_before = frozenset(server.firing())
    told = frozenset(
        line.split("{")[0].split(" ")[0] for line in daemon.get("/metrics")[1].split("\n")
    )
    exemplars = exemplar_ids(asker)
    event_ids = published_ids(stage.broker.bootstrap, exemplars)
    alerts = Alerts(server)
    alerts.await_after(feed.poison, "TapewatchDeadLetters", "TapewatchRejectedInput")
    alerts.await_after(stage.break_model, "TapewatchModelRefused")
    shown = [query for query in queries if WITHOUT_DATA.get(query.where) == REFUSED]
    # Not at once: the last point of a graph may lie before the scrape that the alert came from.
    once_refused = most_series(asker, shown, lambda found: all(found.values()), DATA_WITHIN_S)
    alerts.await_after(feed.stop, "TapewatchNoTicks")
    alerts.await_after(stage.broker.kill, "TapewatchNotReady")
    alerts.await_after(stage.daemon.kill, "TapewatchDown")
    alerts.await_after(lambda: set_targets(server.config.parent, []), "TapewatchAbsent")
    return Rehearsal(
        series, once_refused, told, health, fired_before, alerts.after_s, exemplars, event_ids
    )


class Alerts:
    """Faults, and how long after them their alerts fired."""

    def __init__(self, server: PrometheusServer) -> None:
        self._server = server
        self.after_s: dict[str, float] = {}

    def await_after(self, fault: Callable[[], object], *alerts: str) -> None:
        """Plant a fault and wait until its alerts fire; what does not is left out."""
        fault()
        since = time.monotonic()
        while not set(alerts) <= set(self.after_s) and time.monotonic() < since + WAIT_S:
            for alert in self._server.firing() & set(alerts):
                self.after_s.setdefault(alert, time.monotonic() - since)
            time.sleep(0.25)


def missing(found: Mapping[str, int]) -> set[str]:
    """What has no data yet although it should."""
    return {where for where, n in found.items() if not n} - set(WITHOUT_DATA) - set(DEPENDS)


def exemplar_ids(asker: Asker) -> frozenset[str]:
    """The event ids that Prometheus keeps beside the latency's buckets."""
    asked: dict[str, str | float] = {
        "query": "tapewatch_tick_to_event_seconds_bucket",
        "start": asker.start_s,
    }
    found = asker.server.ask("query_exemplars", **asked, end=time.time())
    return frozenset(each["labels"]["event_id"] for one in found for each in one["exemplars"])


def published_ids(bootstrap: str, exemplars: frozenset[str]) -> frozenset[str]:
    """The first 16 digits of the published events' ids, read until the exemplars are among them."""

    def ids(read: list[Any]) -> frozenset[str]:
        return frozenset(json.loads(m.value() or b"")["event_id"][:16] for m in read)

    return ids(read_topic(bootstrap, "anomalies", lambda read: ids(read) >= exemplars))
