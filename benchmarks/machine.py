"""What the figures were taken on: machine, versions, and how quiet it was meanwhile."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import psutil
from threadpoolctl import threadpool_info  # type: ignore[import-untyped]

LIBRARIES: Final = ("numpy", "numba", "tensorflow", "keras", "confluent-kafka")


def describe() -> dict[str, Any]:
    """CPU, cores, memory, kernel, Python and library versions."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in LIBRARIES},
    }


def blas() -> list[dict[str, Any]]:
    """Which matrix-product kernel NumPy runs, and with how many threads."""
    wanted = ("internal_api", "version", "architecture", "num_threads")
    return [
        {key: pool[key] for key in wanted if key in pool}
        for pool in threadpool_info()
        if pool.get("user_api") == "blas"
    ]


class Quiet:
    """How busy other programs kept this machine, and its host, since `Quiet` was made."""

    def __init__(self) -> None:
        self._before = psutil.cpu_times()

    def facts(self) -> dict[str, float]:
        """Shares of all CPU time: stolen by the host, and idle."""
        now = psutil.cpu_times()
        spent = {name: getattr(now, name) - getattr(self._before, name) for name in now._fields}
        total = sum(spent.values()) or 1.0
        return {
            "stolen_share": round(spent.get("steal", 0.0) / total, 4),
            "idle_share": round(spent.get("idle", 0.0) / total, 4),
        }


def _cpu_model() -> str:
    """Name of the processor; in a virtual machine it often says little, hence family and model."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor() or platform.machine()
    pairs = (line.partition(":") for line in info.read_text().splitlines())
    found = {name.strip(): value.strip() for name, _, value in reversed(list(pairs))}
    return (
        f"{found.get('model name', platform.machine())}, family {found.get('cpu family', '?')} "
        f"model {found.get('model', '?')}"
    )
