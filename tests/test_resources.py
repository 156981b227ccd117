"""The memory limit of control groups, version 2 and 1, from files laid out as Linux does."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from detector.resources import MemoryMetrics, memory_limit_bytes

V1_NONE = 9_223_372_036_854_771_712
"""What version 1 says where there is no limit."""


def lay_out(root: Path, membership: str, **limits: int | str) -> Path:
    """Write /proc/self/cgroup and the limits by path, `__` for a slash."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for name, limit in limits.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_max", ".max")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{limit}\n")
    return root


@pytest.mark.parametrize(
    ("membership", "limits", "expected"),
    [
        ("0::/\n", {"memory_max": 512}, 512),
        ("0::/\n", {"memory_max": "max"}, None),
        ("0::/a/b\n", {"a__b__memory_max": 700, "a__memory_max": 600}, 600),
        ("0::/a/b\n", {"a__b__memory_max": 500, "a__memory_max": "max"}, 500),
        ("0::/not/visible/here\n", {"memory_max": 400}, 400),
        ("3:cpu:/\n4:memory:/x\n0::/\n", {"memory__x__memory.limit_in_bytes": 300}, 300),
        ("4:memory:/x\n", {"memory__memory.limit_in_bytes": V1_NONE}, None),
        ("4:cpu,memory:/x:y\n", {"cpu,memory__x:y__memory.limit_in_bytes": 200}, 200),
        ("0::/\n", {}, None),
    ],
)
def test_least_limit_counts(
    tmp_path: Path, membership: str, limits: dict[str, int | str], expected: int | None
) -> None:
    """Of the group and those around it, whichever version; none where nobody limits."""
    assert memory_limit_bytes(lay_out(tmp_path, membership, **limits)) == expected


def test_no_control_groups(tmp_path: Path) -> None:
    """Where there are none there is no limit, and no error."""
    assert memory_limit_bytes(tmp_path) is None


def test_gpu_memory_is_told_where_there_is_one() -> None:
    """Without a GPU there is no series; with one, what its allocator says."""
    registry = CollectorRegistry()
    metrics = MemoryMetrics(registry)
    assert registry.get_sample_value("tapewatch_gpu_memory_bytes") is None
    metrics.of_gpu = lambda: {"current": 5, "peak": 9}
    assert registry.get_sample_value("tapewatch_gpu_memory_bytes") == 5
    assert registry.get_sample_value("tapewatch_gpu_memory_peak_bytes") == 9
