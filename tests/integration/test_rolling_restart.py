"""Two daemons restarted one after the other under load, on a real Kafka: what a reader sees."""

from __future__ import annotations

import pytest

from tests.faults.members import JOINED, Life
from tests.faults.run import PARTITIONS, FaultRun, Place, fault_run
from tests.faults.test_delivery import place
from tests.faults.verifier import Delivery
from tests.integration.kafka_reading import group_members
from tests.running import wait_until

__all__ = ["place"]

SEED = 5
SESSION = {  # as in deploy/kubernetes
    "session.timeout.ms": "60000",
    "max.poll.interval.ms": "300000",
}
NAMES = ("tapewatch-0", "tapewatch-1")


def holders(run: FaultRun) -> dict[str, frozenset[int]]:
    """Partitions of the group's members."""
    return group_members(run.place.broker.bootstrap, run.group)


def shared(run: FaultRun) -> bool:
    """Whether both daemons are members and have partitions, and all partitions have a daemon."""
    held = list(holders(run).values())
    return len(held) == 2 and all(held) and sum(map(len, held)) == PARTITIONS


def start_both(run: FaultRun) -> None:
    """Start two daemons, and let them work for a while when each has partitions."""
    for name in NAMES:
        run.member(name).start().wait_ready()
    wait_until(lambda: shared(run))
    run.nap(1.5, 2.5)


def take_leave(run: FaultRun, name: str) -> Life:
    """SIGTERM for one of them, which must end with 0."""
    life = run.member(name).life
    assert life.stop() == 0, life.tail()
    return life


def judge(run: FaultRun) -> None:
    """Fail where the guarantee was violated, or where a daemon did not end in order."""
    report = run.judge()
    assert report.events is not None
    assert report.letters is not None
    told = "\n".join(report.events.examples + report.letters.examples)
    assert report.violations() == {}, told
    assert report.ended == []
    assert report.lives == 4
    logs = [life.log for member in run.members.values() for life in member.lives]
    assert not any(b"offset commit failed" in log for log in logs)
    assert report.events.expected >= 50
    assert report.letters.expected >= 50


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_static_members_keep_their_partitions(place: Place, delivery: Delivery) -> None:
    """Each daemon's partitions wait for it, the other's are left alone, and no event is lost."""
    run = FaultRun(place, "rolling", SEED, delivery, "dbn", settings=SESSION)
    with fault_run(run):
        start_both(run)
        before = holders(run)
        assert set(before) == set(NAMES)
        for name, other in (NAMES, reversed(NAMES)):
            given = run.member(other).life.log.count(JOINED)
            take_leave(run, name)
            assert holders(run) == before
            run.member(name).start().wait_ready()
            run.nap(1.5, 2.5)
            assert holders(run) == before
            assert run.member(other).life.log.count(JOINED) == given, "a rebalance touched it"
    judge(run)
    for name in NAMES:
        log = run.member(name).life.log
        assert log.count(b'"source": "snapshot"') == len(before[name])
        assert b"transaction lost" not in log


@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
def test_dynamic_members_hand_their_partitions_over(place: Place, delivery: Delivery) -> None:
    """Without a name a daemon leaves the group: the other one has all partitions meanwhile."""
    settings = {**SESSION, "group.instance.id": ""}
    run = FaultRun(place, "rolling", SEED, delivery, "dbn", settings=settings)
    with fault_run(run):
        start_both(run)
        for name in NAMES:
            take_leave(run, name)
            wait_until(lambda: list(map(len, holders(run).values())) == [PARTITIONS])
            run.nap(1.5, 2.5)
            run.member(name).start().wait_ready()
            wait_until(lambda: shared(run))
            run.nap(1.5, 2.5)
    judge(run)
