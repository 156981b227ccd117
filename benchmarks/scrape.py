"""What a scrape of the daemon costs while it is as busy as it can be.

A backlog of one tick a message keeps the threads of the daemon at work without a pause: the
interpreter is what they and the scrape compete for. It is scraped the way Prometheus does, as
OpenMetrics and compressed, only far more often, and the same backlog once more a tenth as often.
"""

from __future__ import annotations

import gzip
import statistics
import time
import urllib.request
from typing import Final

import numpy as np

from benchmarks.measure import Row, Spread, ratios
from benchmarks.processes import TICKS, Cluster, Daemon, MeasurementError, daemon
from benchmarks.throughput import Backlog
from benchmarks.workload import Workload
from detector.bench import PARTITIONS, Progress

TARGET_MS: Final = 50.0
OFTEN_S: Final = 0.05
SELDOM_S: Final = 0.5
_WITHIN_S: Final = 300.0
_AS_PROMETHEUS: Final = {
    "Accept": "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.2",
    "Accept-Encoding": "gzip",
}


def measure(work: Workload, cluster: Cluster) -> list[Row]:
    """Time of a scrape under full load, and what scraping takes from the ticks."""
    backlog = Backlog(work, cluster, len(work.tape) // 2, 1)
    _run(work, cluster, backlog, OFTEN_S)  # unrecorded: the broker's code is compiled
    often, seldom, waits = [], [], []
    for _ in range(work.sizes.kafka_rounds):
        rate, mine = _run(work, cluster, backlog, OFTEN_S)
        often.append(rate)
        waits.append(mine)
        seldom.append(_run(work, cluster, backlog, SELDOM_S)[0])
    times = [[float(np.percentile(mine, p)) * 1e3 for p in (50, 99, 100)] for mine in waits]
    told = [Spread.of(column) for column in zip(*times, strict=True)]
    ratio = ratios(often, seldom)
    return [
        Row(
            "scrape",
            f"scrape of /metrics at full load, {1 / OFTEN_S:.0f} a second, median / p99 / longest",
            f"{' / '.join(f'{each.median:.1f}' for each in told)} ms",
            f"ticks/s with {1 / OFTEN_S:.0f} scrapes a second, to those with {1 / SELDOM_S:.0f}",
            ratio,
            f"p99 ≤ {TARGET_MS:.0f} ms",
            told[1].median <= TARGET_MS,
            {
                "median_ms": told[0],
                "p99_ms": told[1],
                "longest_ms": told[2],
                "scrapes": statistics.median(map(len, waits)),
                "ticks_per_s": Spread.of(often),
                "ticks_per_s_seldom_scraped": Spread.of(seldom),
            },
        )
    ]


def _run(
    work: Workload, cluster: Cluster, backlog: Backlog, every_s: float
) -> tuple[float, list[float]]:
    """Ticks per second in the steady part, and how long each scrape there took, in seconds."""
    topics = cluster.topics(PARTITIONS, backlog.topic)
    where = (work.folder, cluster, topics, work.model, work.sizes.instruments)
    seconds: list[float] = []
    ticks: list[int] = []
    waits: list[float] = []
    with daemon(*where, until="metrics") as running:
        deadline = time.monotonic() + _WITHIN_S
        while not ticks or ticks[-1] < backlog.ticks:
            if time.monotonic() > deadline:
                raise MeasurementError(
                    f"the daemon stalled at {ticks[-1]} of {backlog.ticks} ticks"
                )
            began = time.perf_counter()
            ticks.append(_scrape(running))
            seconds.append(time.perf_counter())
            if 0 < ticks[-1] < backlog.ticks:
                waits.append(seconds[-1] - began)
            time.sleep(every_s)
    cluster.wait_until_idle()
    return Progress(np.array(seconds), np.array(ticks, np.int64)).rate(), waits


def _scrape(running: Daemon) -> int:
    """Scrape as Prometheus does; return the ticks taken in so far."""
    request = urllib.request.Request(f"{running.url}/metrics", headers=_AS_PROMETHEUS)  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        body = answer.read()
    found = TICKS.search(gzip.decompress(body))
    if found is None:
        raise MeasurementError("the daemon's /metrics has no tapewatch_ticks_total")
    return int(float(found[1]))
