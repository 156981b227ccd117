"""What the process takes of the machine, its memory limit, and the GPU's memory; read when scraped.

A scrape competes with the ticks' threads for the interpreter. Each call to the system hands the
interpreter to whoever waits for it, and under full load getting it back takes longer than the call;
hence as few calls as possible.

References
----------
Linux kernel, Documentation/admin-guide/cgroup-v2.rst (`memory.max`) and
cgroup-v1/memory.rst (`memory.limit_in_bytes`); cgroups(7) on /proc/self/cgroup.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import psutil
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from detector.collectors import ReadFamily, Readings

LIMIT_HOLDS_S: Final = 60.0
"""A limit may be changed while the process runs, but is not looked for with every scrape."""

_STATM_BYTES: Final = 128
_NO_LIMIT: Final = 1 << 60  # cgroup v1 says "none" by the largest multiple of a page


class ProcessMetrics(Collector):
    """The usual `process_` metrics, by the same names and meanings as from Prometheus' client.

    That one opens two files and lists a folder, entry by entry; this one opens one file. What the
    system does not tell has no series.

    Parameters
    ----------
    proc
        The process's folder.
    """

    def __init__(self, proc: Path = Path("/proc/self")) -> None:
        self._statm, self._fd = str(proc / "statm"), str(proc / "fd")
        self._page_bytes = os.sysconf("SC_PAGE_SIZE")
        self._began_s = psutil.Process().create_time()

    def collect(self) -> Iterable[GaugeMetricFamily | CounterMetricFamily]:
        """Give what is so now to the registry."""
        yield CounterMetricFamily(
            "process_cpu_seconds_total",
            "Total user and system CPU time spent in seconds.",
            value=time.process_time(),
        )
        gauges: list[tuple[str, str, float]] = [
            (
                "start_time_seconds",
                "Start time of the process since unix epoch in seconds.",
                self._began_s,
            ),
            (
                "max_fds",
                "Maximum number of open file descriptors.",
                resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            ),
        ]
        with contextlib.suppress(OSError):
            virtual, resident = (
                int(pages) * self._page_bytes for pages in self._read_statm().split()[:2]
            )
            gauges += [
                ("virtual_memory_bytes", "Virtual memory size in bytes.", virtual),
                ("resident_memory_bytes", "Resident memory size in bytes.", resident),
            ]
        with contextlib.suppress(OSError):
            # Linux tells the number as the folder's size from 6.2 on, and 0 before.
            count = os.stat(self._fd).st_size or len(os.listdir(self._fd))  # noqa: PTH116, PTH208
            gauges.append(("open_fds", "Number of open file descriptors.", count))
        for name, what, value in gauges:
            yield GaugeMetricFamily(f"process_{name}", what, value=value)

    def _read_statm(self) -> bytes:
        """Read by three calls; a file object takes eight."""
        file = os.open(self._statm, os.O_RDONLY)
        try:
            return os.read(file, _STATM_BYTES)
        finally:
            os.close(file)


class MemoryMetrics:
    """The memory limit, and what TensorFlow has allocated on the GPU.

    Parameters
    ----------
    registry
        Where the metrics are registered.
    root
        Where `proc` and `sys` are.
    clock
        Seconds from any origin, never backwards.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        root: Path = Path("/"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._root, self._clock = root, clock
        self._limit: int | None = None
        self._look_again_s = -math.inf
        self.of_gpu: Callable[[], Mapping[str, int]] = dict
        """Returns `current` and `peak` in bytes; empty without a GPU."""
        limit = ReadFamily(
            "gauge",
            "tapewatch_memory_limit_bytes",
            "Memory that the process's control groups allow it; none without a limit.",
        )
        limit.read = self._read_limit
        registry.register(limit)
        for name, key, what in (
            ("tapewatch_gpu_memory_bytes", "current", "Memory"),
            ("tapewatch_gpu_memory_peak_bytes", "peak", "Most memory so far"),
        ):
            gauge = ReadFamily(
                "gauge", name, f"{what} that TensorFlow has allocated on the GPU; none without one."
            )
            gauge.read = partial(self._read_gpu, key)
            registry.register(gauge)

    def _read_limit(self) -> Readings:
        now = self._clock()
        if now >= self._look_again_s:
            self._limit, self._look_again_s = memory_limit_bytes(self._root), now + LIMIT_HOLDS_S
        return [] if self._limit is None else [((), self._limit)]

    def _read_gpu(self, key: str) -> Readings:
        found = self.of_gpu()
        return [((), found[key])] if key in found else []


def memory_limit_bytes(root: Path = Path("/")) -> int | None:
    """Return the least memory limit of the process's control groups, in bytes; None without one.

    A group is bound by those around it, too: of all of them up to the root, the least counts. In a
    container the group's own path may not be visible; what is mounted then is the group itself.

    Parameters
    ----------
    root
        Where `proc` and `sys` are.
    """
    limits = list(_limits(root))
    return min(limits) if limits else None


def _limits(root: Path) -> Iterator[int]:
    mounted = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            tops, name = (mounted, mounted / "unified"), "memory.max"
        elif "memory" in controllers.split(","):
            tops, name = (mounted / controllers, mounted / "memory"), "memory.limit_in_bytes"
        else:
            continue
        for top in dict.fromkeys(tops):
            inside = Path(path.strip("/"))
            for group in (inside, *inside.parents):
                for text in _lines(top / group / name):
                    if text.isdecimal() and int(text) < _NO_LIMIT:
                        yield int(text)


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text().splitlines()
    return []
