"""How long a daemon that was killed needs until it goes on where it was.

    python -m benchmarks.restore [--instruments 10000] [--ticks 4000000] [--message-ticks 1]

A first daemon takes in a tape and writes a snapshot of every partition. A second one, with the
default settings of state, takes in a backlog as fast as it can and is killed in the midst of it, so
that what has to be read again is what the maximum rate leaves, not half of it. What is measured are
those that follow: from the end of the process' own start-up (the model is warm, the group not
joined yet) until the last partition's windows are rebuilt, by the log's time stamps, and the CPU
time that the process takes for it. Each of them is killed, too, and writes no snapshot; what it
has scored before it is killed the next one reads again.
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
NEVER: Final = (
    "[state]\nsnapshot_interval_s = 86400\nsnapshot_ticks = 1000000000\n[commit]\ninterval_ms = 200"
)
SOON: Final = "[state]\nsnapshot_interval_s = 3\n[commit]\ninterval_ms = 200"
_WITHIN_S: Final = 300.0
_SETTLED_S: Final = 10.0
"""Longer than the interval of snapshots and a commit, after which everything is in a snapshot."""
_KILLED_AT: Final = 0.8


class Restoring:
    """The topics, and the daemons that follow one another on them."""

    def __init__(self, work: Workload, kafka: Cluster, delivery: str, message_ticks: int) -> None:
        self._work, self._kafka, self._delivery = work, kafka, delivery
        self._message_ticks = message_ticks
        self._topics: Topics = kafka.topics(PARTITIONS)

    def fill(self, first: int, stop: int) -> None:
        """Publish ticks of the tape."""
        ticks = TickBatch.from_ticks(self._work.tape[first:stop])
        messages = messages_of(ticks, PARTITIONS, self._message_ticks)
        publish(self._kafka, self._topics.ticks, messages)
        self._kafka.wait_until_idle()

    def take_in(self, ticks: int) -> None:
        """Let a daemon take in what is there, wait for its snapshots, and kill it."""
        with self._daemon(SOON) as running:
            _wait(running, lambda: running.ticks() >= ticks)
            time.sleep(1.0 + _SETTLED_S)  # the last commit
            running.kill()

    def interrupt(self, ticks: int) -> float:
        """Let a daemon with default settings take in so many ticks, and kill it; ticks/s."""
        with self._daemon("") as running:
            _wait(running, lambda: running.ticks() > 0)
            first, began = running.ticks(), time.monotonic()
            _wait(running, lambda: running.ticks() >= ticks)
            rate = (running.ticks() - first) / (time.monotonic() - began)
            running.kill()
        return rate

    def restored(self) -> dict[str, float]:
        """Start a daemon and kill it once all windows are rebuilt; what took how long, and CPU."""
        found: list[dict[str, Any]] = []
        cpu_s: list[float] = []

        def rebuilt() -> bool:
            found[:] = running.facts()
            events = [fact["event"] for fact in found]
            if "ready to join" in events:
                cpu_s.append(running.child.cpu_s())
            return events.count("windows rebuilt") >= PARTITIONS

        with self._daemon(NEVER) as running:
            _wait(running, rebuilt)
            running.kill()
        at = {fact["event"]: moment_of(fact) for fact in found}  # of several the last counts
        places = [f for f in found if f["event"] == "partition restored"]
        if any(place["source"] != "snapshot" for place in places):
            raise MeasurementError(f"not restored from a snapshot: {places}")
        return {
            "seconds": at["windows rebuilt"] - at["ready to join"],
            "joining_s": at["partitions assigned"] - at["ready to join"],
            "state_s": at["partition restored"] - at["partitions assigned"],
            "replay_s": at["windows rebuilt"] - at["partition restored"],
            "replayed_messages": sum(p["next_offset"] - p["replay_from"] for p in places),
            "cpu_s": cpu_s[-1] - cpu_s[0],
        }

    def _daemon(self, more: str) -> AbstractContextManager[Daemon]:
        work = self._work
        where = (work.folder, self._kafka, self._topics, work.model, work.sizes.instruments)
        return daemon(*where, until="metrics", more=more, delivery=self._delivery)


def measure(
    work: Workload, kafka: Cluster, ticks: int, rounds: int, delivery: str, message_ticks: int
) -> dict[str, Any]:
    """Measure one guarantee."""
    stage = Restoring(work, kafka, delivery, message_ticks)
    before = len(work.tape) - ticks
    stage.fill(0, before)
    stage.take_in(before)
    stage.fill(before, len(work.tape))
    rate = stage.interrupt(int(_KILLED_AT * ticks))
    runs = [stage.restored() for _ in range(rounds)]
    seconds = Spread.of([run["seconds"] for run in runs])
    return {
        "ticks_per_s_before": round(rate),
        "rounds": runs,
        "seconds": asdict(seconds),
        "target": f"<= {MOST_S}",
        "met": seconds.median <= MOST_S,
    }


def _wait(running: Daemon, done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _WITHIN_S
    while not done():
        running.child.check()
        if time.monotonic() > deadline:
            raise MeasurementError(f"not there within {_WITHIN_S} s:\n{running.child.tail()}")
        time.sleep(0.05)


def main() -> None:
    """Parse the command line, measure, print JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restore")
    parser.add_argument("--instruments", type=int, default=10_000)
    parser.add_argument("--ticks", type=int, default=4_000_000, help="length of the backlog")
    parser.add_argument("--message-ticks", type=int, default=1, help="ticks in a message")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--delivery", choices=("exactly_once", "at_least_once"), default="exactly_once"
    )
    given = parser.parse_args()
    # Before the backlog every instrument has traded, so that the snapshot is of its full size.
    before = 50 * given.instruments
    work = prepare(replace(QUICK, instruments=given.instruments, tape_ticks=given.ticks + before))
    try:
        with cluster(None) as kafka:
            facts = measure(
                work, kafka, given.ticks, given.rounds, given.delivery, given.message_ticks
            )
    finally:
        shutil.rmtree(work.folder, ignore_errors=True)
    facts = {"machine": describe(), **vars(given), "measured": facts}
    sys.stdout.write(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
