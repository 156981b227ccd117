"""What replacing the model under load does to tick-to-event latency.

    python -m benchmarks.model_swap [--seconds 45] [--rounds 2] [--load 0.5] [--every 6]

The load, the daemon and the reader are those of the latency row. In every other run a symbolic link
to the model is flipped to another version and back every few seconds; the runs between have the
same ticks and no swap. *Around a swap* is from the flip, which the daemon notices, reads, warms and
puts in force, to a second after it is in force. Every tick must have been taken in. A swap closes
open episodes and lets others open, so that the two kinds of run do not publish the same events.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from benchmarks.latency import EPISODES, Run, Stage
from benchmarks.machine import describe
from benchmarks.processes import Daemon, MeasurementError, cluster, daemon, moment_of
from benchmarks.workload import QUICK, Workload, prepare
from detector.artifact import MANIFEST
from detector.bench import PARTITIONS

AFTER_NS: Final = 10**9
WATCH_S: Final = 0.5
PERCENTILES: Final = (50.0, 99.0, 99.9)


@dataclass(frozen=True, slots=True)
class Swaps:
    """When the link was flipped, and when the daemon said that the model was in force, in ns."""

    flipped: tuple[int, ...]
    done: tuple[int, ...]

    def around(self, sent: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which ticks were sent around a swap."""
        found = np.zeros(len(sent), np.bool_)
        for flip, done in zip(self.flipped, self.done, strict=True):
            found |= (sent >= flip) & (sent <= done + AFTER_NS)
        return found


class Flipper:
    """Flips the link to the model now and then, in a thread of its own."""

    def __init__(self, link: Path, versions: tuple[Path, Path], every_s: float) -> None:
        self._link, self._versions, self._every_s = link, versions, every_s
        self._stop = threading.Event()
        self.flipped: list[int] = []

    def flip(self, version: Path) -> None:
        """Let the link name another version, in one step."""
        staged = self._link.with_name("staged")
        staged.symlink_to(version)
        staged.replace(self._link)

    @contextmanager
    def flipping(self, after_s: float, until_s: float) -> Iterator[None]:
        """Flip from `after_s` on, in seconds from now, not later than `until_s`."""
        began = time.monotonic()

        def work() -> None:
            self._stop.wait(after_s)
            while not self._stop.is_set() and time.monotonic() - began < until_s:
                self.flipped.append(time.time_ns())
                self.flip(self._versions[len(self.flipped) % 2])
                self._stop.wait(self._every_s)

        thread = threading.Thread(target=work, name="flipper")
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()


def other_version(model: Path, folder: Path) -> Path:
    """Copy a model folder under another version's name, which is another model to the daemon."""
    shutil.copytree(model, folder)
    manifest = json.loads((folder / MANIFEST).read_bytes())
    manifest["version"] = folder.name
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return folder


def one_run(stage: Stage, rate: float, seed: int, every_s: float) -> tuple[Run, Swaps]:
    """One run; with `every_s` 0 without swaps."""
    work = stage.work
    link, versions = work.folder / "current", (work.latency_model, work.folder / "second")
    flipper = Flipper(link, versions, every_s)
    flipper.flip(versions[0])
    topics = stage.cluster.topics(PARTITIONS)
    where = (work.folder, stage.cluster, topics, link, work.sizes.instruments)
    with daemon(*where, more=EPISODES, watch_s=WATCH_S) as running:
        seconds = work.sizes.latency_s
        with flipper.flipping(work.sizes.warm_s + 1, seconds - 4 if every_s else 0.0):
            run = stage.measure(topics, rate, seed)
        if running.ticks() != stage.ticks_at(rate):
            raise MeasurementError(f"{running.ticks()} of {stage.ticks_at(rate)} ticks came in")
        swaps = Swaps(tuple(flipper.flipped), _times_in_force(running))
    if len(swaps.done) != len(swaps.flipped):
        raise MeasurementError(f"{len(swaps.done)} swaps after {len(swaps.flipped)} flips")
    return run, swaps


def _times_in_force(running: Daemon) -> tuple[int, ...]:
    swapped = [fact for fact in running.facts() if fact["event"] == "model swapped"]
    return tuple(round(moment_of(fact) * 1e9) for fact in swapped)


def facts_of(run: Run, swaps: Swaps) -> dict[str, Any]:
    """Percentiles of a run, and of what was sent around swaps, in ms."""
    latency = run.latency_ns / 1e6
    around = swaps.around(run.sent_ns)
    p99 = float(np.percentile(latency, 99.0))
    facts = {
        "events": len(latency),
        "generator_most_behind_ms": round(run.behind_ms, 2),
        "all": _told(latency),
        "above_2_p99": int(np.count_nonzero(latency > 2 * p99)),
    }
    if swaps.done:
        seconds = [(b - a) / 1e9 for a, b in zip(swaps.flipped, swaps.done, strict=True)]
        facts |= {
            "swaps": len(swaps.done),
            "seconds_from_flip_to_force": [round(s, 2) for s in seconds],
            "events_around_swaps": int(np.count_nonzero(around)),
            "around_swaps": _told(latency[around]),
            "above_2_p99_around_swaps": int(np.count_nonzero(latency[around] > 2 * p99)),
        }
    return facts


def _told(latency: npt.NDArray[np.float64]) -> dict[str, float]:
    values = np.percentile(latency, PERCENTILES)
    told = {f"p{p:g}": round(float(v), 2) for p, v in zip(PERCENTILES, values, strict=True)}
    return {**told, "max": round(float(latency.max()), 2)}


def measure(work: Workload, rounds: int, load: float, every_s: float) -> dict[str, Any]:
    """Measure runs with and without swaps in turn."""
    other_version(work.latency_model, work.folder / "second")
    with cluster(None) as kafka:
        stage = Stage(work, kafka)
        most = stage.maximum()
        rate = load * most
        stage.daemon_run(rate, 0)  # until the broker's Java code is compiled
        found = [
            {
                "without": facts_of(*one_run(stage, rate, seed, 0.0)),
                "with": facts_of(*one_run(stage, rate, seed, every_s)),
            }
            for seed in range(rounds)
        ]
    return {"machine": describe(), "maximum": round(most), "rate": round(rate), "rounds": found}


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.model_swap")
    parser.add_argument("--seconds", type=float, default=45.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--load", type=float, default=0.5, help="share of the maximum")
    parser.add_argument("--every", type=float, default=6.0, help="seconds between two swaps")
    parser.add_argument("--ticks", type=int, default=2_000_000, help="length of the tape")
    given = parser.parse_args()
    sizes = replace(QUICK, latency_s=given.seconds, warm_s=5.0, tape_ticks=given.ticks)
    work = prepare(sizes)
    try:
        facts = measure(work, given.rounds, given.load, given.every)
    finally:
        shutil.rmtree(work.folder, ignore_errors=True)
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
