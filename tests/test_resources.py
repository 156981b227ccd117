"""What the process takes, and the memory limit of control groups, from files as Linux has them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector

from detector.metrics import Metrics
from detector.resources import LIMIT_HOLDS_S, MemoryMetrics, ProcessMetrics, memory_limit_bytes

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


def test_a_changed_limit_is_told_after_a_while(tmp_path: Path) -> None:
    """The limit is not looked for with every scrape, but one that was changed is found."""
    now = [0.0]
    registry = CollectorRegistry()
    MemoryMetrics(registry, lay_out(tmp_path, "0::/\n", memory_max=512), lambda: now[0])
    for at_s, limit, told in [
        (0.0, 512, 512),
        (LIMIT_HOLDS_S - 1, 600, 512),
        (LIMIT_HOLDS_S, 600, 600),
    ]:
        now[0] = at_s
        (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{limit}\n")
        assert registry.get_sample_value("tapewatch_memory_limit_bytes") == told


def test_process_metrics_are_those_of_the_client_library() -> None:
    """Each name, type and meaning is the library's, and each value is near its value."""
    registries = CollectorRegistry(), CollectorRegistry()
    ProcessCollector(registry=registries[0])
    registries[1].register(ProcessMetrics())
    theirs, ours = ({f.name: f for f in each.collect()} for each in registries)
    assert {(f.name, f.type, f.documentation) for f in ours.values()} == {
        (f.name, f.type, f.documentation) for f in theirs.values()
    }
    for name, family in theirs.items():
        expected = family.samples[0].value
        # Memory and time go on in between, files are opened by the library's own reading.
        near = pytest.approx(expected, rel=0.05, abs=3.0)
        assert ours[name].samples[0].value == near, name


def test_what_the_system_does_not_tell_has_no_series(tmp_path: Path) -> None:
    """Where there is no folder of the process, what is known without it is still told."""
    names = {family.name for family in ProcessMetrics(tmp_path / "none").collect()}
    assert names == {"process_cpu_seconds", "process_start_time_seconds", "process_max_fds"}


def test_without_a_count_the_open_files_are_listed(tmp_path: Path) -> None:
    """A folder without a size, as before Linux 6.2, is listed, and the count is right."""
    (tmp_path / "fd").symlink_to("/proc/self/attr", target_is_directory=True)
    assert (tmp_path / "fd").stat().st_size == 0, "proc tells no size of this folder"
    found = {f.name: f.samples[0].value for f in ProcessMetrics(tmp_path).collect()}
    assert found["process_open_fds"] == len(list((tmp_path / "fd").iterdir())) > 0


def test_a_scrape_opens_hardly_any_file() -> None:
    """Each opened file hands the interpreter to the ticks' threads several times."""
    registry = CollectorRegistry()
    registry.register(ProcessMetrics())
    Metrics(registry)
    opened: list[str] = []
    counting = False

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if counting and event == "open":
            opened.append(str(arguments[0]))

    sys.addaudithook(watch)
    list(registry.collect())  # the memory limit holds for a minute from here
    counting = True
    list(registry.collect())
    counting = False
    assert opened == ["/proc/self/statm"]
