"""How long partitions pause while two daemons are restarted one after the other, under load.

    python -m benchmarks.rolling_restart [--rate 20000] [--rest 15] [--delivery exactly_once]
        [--membership static] [--snapshot 60] [--model FOLDER]

Two daemons of one group share four partitions while the load generator of the latency row sends at
a steady rate. One is sent SIGTERM, and as soon as it has ended it is started again; when it is
ready and has caught up, the other one follows. All is read afterwards from the topics: a partition
pauses between two of its events, by their `ts_detected`, and with the benchmark's model a partition
has some sixty of them a second. Its lag is told from the times of its ticks. What a restart is made
of is read from the daemon's log. The daemons' events are judged in `tests/integration`, not here.

An orchestrator's own time, from the end of one process to the start of the next, comes on top.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise, product
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from benchmarks.latency import EPISODES
from benchmarks.machine import Quiet, describe
from benchmarks.processes import (
    Cluster,
    Daemon,
    MeasurementError,
    Topics,
    child,
    cluster,
    daemon,
    moment_of,
)
from benchmarks.workload import QUICK, Workload, prepare
from detector.bench import PARTITIONS
from tests.faults.verifier import reading

GUARANTEES: Final = ("exactly_once", "at_least_once")
MEMBERSHIPS: Final = ("static", "dynamic")
SESSION_MS: Final = 60_000  # as in deploy/kubernetes
LATE_S: Final = 0.5
"""A partition has caught up when a tick leads to its event within this."""
PAUSE_S: Final = 0.4
"""Shorter gaps between two events of a partition are no pause."""
STEPS: Final = {
    "start": "starting",
    "model": "ready to join",
    "join": "partitions assigned",
    "restore": "partition restored",
    "replay": "windows rebuilt",
}
"""What a start is made of: each step ends with the last of these lines of the daemon's log."""
_WARM_S: Final = 20.0  # the broker's Java code is compiled meanwhile
_WITHIN_S: Final = 60.0

Series = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is compared.

    Parameters
    ----------
    delivery
        The guarantee.
    membership
        `static`: each daemon has a `group.instance.id`; `dynamic`: none has.
    snapshot_s
        `state.snapshot_interval_s`.
    """

    delivery: str
    membership: str
    snapshot_s: float

    def properties(self, member: int) -> dict[str, str]:
        """Return a member's properties of Kafka's client."""
        name = {"group.instance.id": f"tapewatch-{member}"} if self.membership == "static" else {}
        return {"session.timeout.ms": str(SESSION_MS), **name}


@dataclass(frozen=True, slots=True)
class Restart:
    """One daemon's restart; moments are seconds since the epoch.

    Parameters
    ----------
    signalled, ended, ready
        When SIGTERM was sent, the process had ended, and its successor was ready.
    partitions
        What the daemon had.
    steps
        Seconds from one moment to the next one, by what happened in between.
    replayed
        Messages that were read into windows again.
    moved
        Whether the group's partitions were at another daemon meanwhile.
    """

    signalled: float
    ended: float
    ready: float
    partitions: frozenset[int]
    steps: dict[str, float]
    replayed: int
    moved: bool


@dataclass(frozen=True, slots=True)
class Pause:
    """How a partition fared during one restart: seconds, and messages of lag.

    Parameters
    ----------
    longest, total
        The longest pause, and the sum of all.
    times
        How many.
    lag
        The most messages that waited.
    catching_up
        From the end of the longest pause until ticks led to events in time again; infinite where
        that was not before what came next.
    """

    longest: float
    total: float
    times: int
    lag: int
    catching_up: float


class Pod:
    """One of the two daemons, over its restarts."""

    def __init__(self, make: Callable[[], AbstractContextManager[Daemon]]) -> None:
        self._make = make
        self._life = ExitStack()
        self.running: Daemon

    def start(self) -> None:
        """Start a process and wait until it is ready."""
        self.running = self._life.enter_context(self._make())

    def stop(self) -> None:
        """End it in order; raise if it does not end as it should."""
        self._life.close()

    def owned(self) -> frozenset[int]:
        """Return the partitions it has, by its log."""
        found: set[int] = set()
        for fact in self.running.facts():
            if fact["event"] == "partitions assigned":
                found |= set(fact["partitions"])
            elif fact["event"] in {"partitions revoked", "partitions lost"}:
                found -= set(fact["partitions"])
        return frozenset(found)

    def given_since(self, moment: float) -> bool:
        """Whether it was given partitions after a moment."""
        return any(
            fact["event"] == "partitions assigned"
            and fact["partitions"]
            and moment_of(fact) > moment
            for fact in self.running.facts()
        )

    def restart(self, other: Pod) -> Restart:
        """Restart it, and wait until the two share the partitions again."""
        mine = self.owned()
        signalled = time.time()
        self.stop()
        ended = time.time()
        self.start()
        ready = time.time()
        wait_shared((self, other))
        facts = self.running.facts()
        restored = [fact for fact in facts if fact["event"] == "partition restored"]
        return Restart(
            *(signalled, ended, ready, mine),
            {"end": ended - signalled, **steps(ended, facts)},
            sum(fact["next_offset"] - fact["replay_from"] for fact in restored),
            moved=other.given_since(signalled),
        )


def steps(started: float, facts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of a start, by what happened in between, from the daemon's log."""
    passed, found = started, {}
    for step, event in STEPS.items():
        moments = [moment_of(f) for f in facts if f["event"] == event and f.get("partitions", 1)]
        if moments:
            found[step] = max(0.0, moments[-1] - passed)
            passed = max(passed, moments[-1])
    return found


def wait_shared(pods: Sequence[Pod]) -> None:
    """Wait until the daemons have as many partitions each, and all of them."""
    deadline = time.monotonic() + _WITHIN_S
    while any(len(pod.owned()) * len(pods) != PARTITIONS for pod in pods):
        for pod in pods:
            pod.running.child.check()
        if time.monotonic() > deadline:
            raise MeasurementError(f"partitions: {[sorted(pod.owned()) for pod in pods]}")
        time.sleep(0.1)


class Roll:
    """One rolling restart under load, and what the topics tell of it."""

    def __init__(self, work: Workload, kafka: Cluster, setting: Setting, rate: float) -> None:
        self._work, self._kafka, self._setting, self._rate = work, kafka, setting, rate
        self._topics: Topics = kafka.topics(PARTITIONS)
        self._ended = 0.0  # the load
        self.restarts: list[Restart] = []

    def run(self, rest_s: float) -> None:
        """Restart both daemons, each `rest_s` after what went before."""
        pods = [Pod(lambda i=i: self._daemon(i)) for i in range(2)]  # type: ignore[misc]
        with ExitStack() as stack:
            for pod in pods:
                stack.callback(pod.stop)
                pod.start()
            wait_shared(pods)
            with self._load():
                time.sleep(_WARM_S)
                for pod, other in (pods, reversed(pods)):
                    time.sleep(rest_s)
                    self.restarts.append(pod.restart(other))
                time.sleep(rest_s)
                self._ended = time.time()

    def pauses(self) -> list[list[Pause]]:
        """Return how each partition fared, restart by restart."""
        sent, found = self._sent(), self._events()
        edges = [*(restart.signalled for restart in self.restarts), self._ended]
        return [
            [pause_of(sent[p], *found[p], begin, end) for p in range(PARTITIONS)]
            for begin, end in pairwise(edges)
        ]

    def usual(self) -> float:
        """Return the longest time between two events of a partition before the first restart."""
        end = self.restarts[0].signalled
        gaps = [np.diff(t[(t > end - 5.0) & (t < end)]).max() for t, _ in self._events()]
        return float(max(gaps))

    def _sent(self) -> list[Series]:
        """Return the times of each partition's ticks, by offset."""
        found: list[list[int]] = [[] for _ in range(PARTITIONS)]
        for message in reading(self._kafka.bootstrap, self._topics.ticks, PARTITIONS):
            found[message.partition() or 0].append(message.timestamp()[1])
        return [np.array(each, np.float64) / 1e3 for each in found]

    def _events(self) -> list[tuple[Series, npt.NDArray[np.int64]]]:
        """Return when each event was published first, and its tick's offset, by partition."""
        found: list[dict[str, tuple[float, int]]] = [{} for _ in range(PARTITIONS)]
        for message in reading(self._kafka.bootstrap, self._topics.anomalies, PARTITIONS):
            event = orjson.loads(message.value() or b"")
            source = event["source"]
            seen = (event["ts_detected"] / 1e9, source["offset"])
            found[source["partition"]].setdefault(event["event_id"], seen)
        by_time = [sorted(each.values()) for each in found]
        return [
            (np.array([t for t, _ in each]), np.array([o for _, o in each], np.int64))
            for each in by_time
        ]

    def _daemon(self, member: int) -> AbstractContextManager[Daemon]:
        work, setting = self._work, self._setting
        return daemon(
            *(work.folder, self._kafka, self._topics, work.latency_model, work.sizes.instruments),
            more=f"{EPISODES}\n[state]\nsnapshot_interval_s = {setting.snapshot_s}",
            delivery=setting.delivery,
            properties=setting.properties(member),
        )

    @contextmanager
    def _load(self) -> Iterator[None]:
        """Send for longer than the restarts can take; the generator is killed at the end."""
        tape = self._work.folder / "tape.npy"
        count = int(self._rate * 600)
        given = (self._kafka.bootstrap, self._topics.ticks, PARTITIONS, tape, self._rate, count, 0)
        with child(self._work.folder, "benchmarks.load", *given) as load:
            yield
            load.check()


def pause_of(
    sent: Series, detected: Series, offsets: npt.NDArray[np.int64], begin: float, end: float
) -> Pause:
    """Return how a partition fared between two moments.

    Parameters
    ----------
    sent
        Times of its ticks by offset, seconds.
    detected, offsets
        Times of its events, ascending, and their ticks' offsets.
    begin, end
        The moments.
    """
    inside = (detected > begin) & (detected < end)
    inside[max(0, int(np.argmax(inside)) - 1)] = True  # the last event before
    times, places = detected[inside], offsets[inside]
    gaps = np.diff(times)
    long = np.flatnonzero(gaps >= PAUSE_S)
    waiting = np.searchsorted(sent, times[1:]) - (places[1:] + 1)
    catching_up = 0.0
    if len(long):
        after = int(np.argmax(gaps)) + 1
        in_time = np.flatnonzero(times[after:] - sent[places[after:]] < LATE_S)
        caught_up = times[after + in_time[0]] if len(in_time) else np.inf
        catching_up = float(caught_up - times[after])
    return Pause(
        float(gaps.max()), float(gaps[long].sum()), len(long), int(waiting.max()), catching_up
    )


def table(setting: Setting, roll: Roll) -> Iterator[str]:
    """Give the lines of one setting's tables."""
    yield (
        f"{setting.delivery}, {setting.membership} membership, a snapshot every "
        f"{setting.snapshot_s:g} s; before, at most {roll.usual():.2f} s between two events of a "
        "partition:"
    )
    yield ""
    yield "| restart | partition | pause s | all pauses s | lag, messages | catching up s |"
    yield "|---|---|---|---|---|---|"
    for number, (restart, fared) in enumerate(zip(roll.restarts, roll.pauses(), strict=True), 1):
        for partition, pause in enumerate(fared):
            whose = "its own" if partition in restart.partitions else "the other's"
            yield (
                f"| {number} | {partition}, {whose} | {pause.longest:.2f} | {pause.total:.2f} in "
                f"{pause.times} | {pause.lag:,} | {pause.catching_up:.2f} |"
            )
    yield ""
    for number, restart in enumerate(roll.restarts, 1):
        told = ", ".join(f"{step} {seconds:.2f}" for step, seconds in restart.steps.items())
        yield (
            f"Restart {number}: {told} s; {restart.replayed:,} messages read again; partitions "
            f"{'moved' if restart.moved else 'stayed'}."
        )
    yield ""


def main() -> None:
    """Parse the command line, measure, print tables in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rolling_restart")
    parser.add_argument("--rate", type=float, default=20_000, help="ticks a second")
    parser.add_argument("--rest", type=float, default=15.0, help="seconds after each restart")
    parser.add_argument("--delivery", choices=GUARANTEES, action="append")
    parser.add_argument("--membership", choices=MEMBERSHIPS, action="append")
    parser.add_argument("--snapshot", type=float, action="append", help="seconds; may be repeated")
    parser.add_argument("--model", type=Path, help="instead of a default model trained now")
    given = parser.parse_args()
    settings = [
        Setting(*each)
        for each in product(
            given.delivery or GUARANTEES, given.membership or MEMBERSHIPS, given.snapshot or (60.0,)
        )
    ]
    work = prepare(QUICK, model=given.model)
    np.save(work.folder / "tape.npy", work.tape)
    try:
        with cluster(None) as kafka:
            for setting in settings:
                quiet, date = Quiet(), datetime.now(UTC).isoformat(timespec="minutes")
                roll = Roll(work, kafka, setting, given.rate)
                roll.run(given.rest)
                facts = {"date": date, "rate": given.rate, **quiet.facts()}
                sys.stdout.write("\n".join([*table(setting, roll), f"{facts}", "", ""]))
                sys.stdout.flush()
    finally:
        shutil.rmtree(work.folder, ignore_errors=True)
    sys.stdout.write(f"{describe()}\n")


if __name__ == "__main__":
    main()
