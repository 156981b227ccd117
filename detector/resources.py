"""Memory beside what the usual process metrics tell: what is allowed, and the GPU's.

References
----------
Linux kernel, Documentation/admin-guide/cgroup-v2.rst (`memory.max`) and
cgroup-v1/memory.rst (`memory.limit_in_bytes`); cgroups(7) on /proc/self/cgroup.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from detector.collectors import ReadFamily, Readings

_NO_LIMIT: Final = 1 << 60  # cgroup v1 says "none" by the largest multiple of a page


class MemoryMetrics:
    """The memory limit, and what TensorFlow has allocated on the GPU; read when scraped.

    Parameters
    ----------
    registry
        Where the metrics are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.of_gpu: Callable[[], Mapping[str, int]] = dict
        """Returns `current` and `peak` in bytes; empty without a GPU."""
        limit = ReadFamily(
            "gauge",
            "tapewatch_memory_limit_bytes",
            "Memory that the process's control groups allow it; none without a limit.",
        )
        limit.read = _read_limit
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

    def _read_gpu(self, key: str) -> Readings:
        found = self.of_gpu()
        return [((), found[key])] if key in found else []


def _read_limit() -> Readings:
    limit = memory_limit_bytes()
    return [] if limit is None else [((), limit)]


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
        for top in tops:
            inside = Path(path.strip("/"))
            for group in (inside, *inside.parents):
                for text in _lines(top / group / name):
                    if text.isdecimal() and int(text) < _NO_LIMIT:
                        yield int(text)


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text().splitlines()
    return []
