"""How long a daemon that was killed needs until it goes on where it was.

    python -m benchmarks.restore [--instruments 10000] [--rate 50000] [--interval 60] [--rounds 3]

A first daemon takes in a tape and writes a snapshot of every partition. A second one, which writes
none, takes in what comes within one snapshot interval at the given rate and is killed. What is
measured are those that follow: from the end of the process' own start-up (the model is warm, the
group not joined yet) until the last partition's windows are rebuilt, by the log's time stamps. Each
of them is killed too, before it could write a snapshot, so that every round restores the same.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from typing import Any, Final

from benchmarks.machine import describe
from benchmarks.measure import Spread
from benchmarks.processes import (
    Cluster,
    Daemon,
    MeasurementError,
    Topics,
    cluster,
    daemon,
    moment_of,
    publish,
)
from benchmarks.workload import QUICK, Workload, prepare
from detector.bench import PARTITIONS, messages_of
from detector.ticks import TickBatch

MOST_S: Final = 5.0
NEVER: Final = "[state]\nsnapshot_interval_s = 86400\n[commit]\ninterval_ms = 200"
SOON: Final = "[state]\nsnapshot_interval_s = 3\n[commit]\ninterval_ms = 200"
_WITHIN_S: Final = 300.0
_SETTLED_S: Final = 10.0
"""Longer than the interval of snapshots and a commit, after which everything is in a snapshot."""


class Restoring:
    """The topics, and the daemons that follow one another on them."""

    def __init__(self, work: Workload, kafka: Cluster, delivery: str) -> None:
        self._work, self._kafka, self._delivery = work, kafka, delivery
        self._topics: Topics = kafka.topics(PARTITIONS)

    def fill(self, first: int, stop: int) -> None:
        """Publish ticks of the tape, one a message."""
        ticks = TickBatch.from_ticks(self._work.tape[first:stop])
        publish(self._kafka, self._topics.ticks, messages_of(ticks, PARTITIONS, 1))
        self._kafka.wait_until_idle()

    def take_in(self, ticks: int, more: str, rest_s: float = 0.0) -> None:
        """Let a daemon take in what is there, wait, and kill it."""
        with self._daemon(more) as running:
            _wait(running, lambda: running.ticks() >= ticks)
            time.sleep(1.0 + rest_s)  # the last commit
            running.kill()

    def restored(self) -> dict[str, float]:
        """Start a daemon and kill it once all windows are rebuilt; seconds, messages replayed."""
        found: list[dict[str, Any]] = []

        def rebuilt() -> bool:
            found[:] = running.facts()
            return [fact["event"] for fact in found].count("windows rebuilt") >= PARTITIONS

        with self._daemon(NEVER) as running:
            _wait(running, rebuilt)
            running.kill()
        begun = next(moment_of(f) for f in found if f["event"] == "ready to join")
        ended = max(moment_of(f) for f in found if f["event"] == "windows rebuilt")
        places = [f for f in found if f["event"] == "partition restored"]
        if any(place["source"] != "snapshot" for place in places):
            raise MeasurementError(f"not restored from a snapshot: {places}")
        replayed = sum(place["next_offset"] - place["replay_from"] for place in places)
        return {"seconds": ended - begun, "replayed": replayed}

    def _daemon(self, more: str) -> AbstractContextManager[Daemon]:
        work = self._work
        where = (work.folder, self._kafka, self._topics, work.model, work.sizes.instruments)
        return daemon(*where, until="metrics", more=more, delivery=self._delivery)


def measure(
    work: Workload, kafka: Cluster, ticks: int, rounds: int, delivery: str
) -> dict[str, Any]:
    """Measure one guarantee."""
    stage = Restoring(work, kafka, delivery)
    before = len(work.tape) - ticks
    stage.fill(0, before)
    stage.take_in(before, SOON, _SETTLED_S)
    stage.fill(before, len(work.tape))
    stage.take_in(ticks, NEVER)
    runs = [stage.restored() for _ in range(rounds)]
    seconds = Spread.of([run["seconds"] for run in runs])
    return {
        "seconds": asdict(seconds),
        "replayed_messages": [run["replayed"] for run in runs],
        "target": f"<= {MOST_S}",
        "met": seconds.median <= MOST_S,
    }


def _wait(running: Daemon, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while not done():
        running.child.check()
        if time.monotonic() > deadline:
            raise MeasurementError(f"not there within {_WITHIN_S} s:\n{running.child.tail()}")
        time.sleep(0.1)


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restore")
    parser.add_argument("--instruments", type=int, default=10_000)
    parser.add_argument("--rate", type=float, default=50_000, help="half of the maximum, ticks/s")
    parser.add_argument("--interval", type=float, default=60.0, help="between two snapshots, s")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--delivery", choices=("exactly_once", "at_least_once"), default="exactly_once"
    )
    given = parser.parse_args()
    ticks = int(given.rate * given.interval)
    # Before the interval every instrument has traded, so that the snapshot is of its full size.
    before = 50 * given.instruments
    work = prepare(replace(QUICK, instruments=given.instruments, tape_ticks=ticks + before))
    try:
        with cluster(None) as kafka:
            facts = measure(work, kafka, ticks, given.rounds, given.delivery)
    finally:
        shutil.rmtree(work.folder, ignore_errors=True)
    facts = {"machine": describe(), **vars(given), "ticks": ticks, **facts}
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
