"""The faults: what each does to daemons, broker and connections while the load goes on.

Each is a function of a run and of how many times it is to happen; all that is drawn comes from the
run's seed. None of them judges anything.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from tests.faults.feed import FeedFormat
from tests.faults.members import AtStep, FaultError, Life, Member
from tests.faults.run import POLL_S, SESSION_S, TRANSACTION_S, FaultRun, Place, Report, fault_run
from tests.faults.step_calls import StepCalls
from tests.faults.verifier import Delivery

STEPS: Final = (
    "after_begin",
    "after_produce",
    "after_offsets",
    "before_commit",
    "after_commit",
    "snapshotting",
    "replaying",
)
_SELDOM: Final = {"snapshotting": 2, "replaying": 1}
_STEP_WITHIN_S: Final = 30.0
_SLOW_BYTES_PER_S: Final = 2_000.0
_BEHIND: Final = 5_000  # messages: more than the daemon's queue, and a few seconds of the load
_QUEUE: Final = 50
_POLLS: Final = {"max.poll.interval.ms": f"{POLL_S * 1e3:.0f}"}
_LIVELY: Final = {"session.timeout.ms": f"{SESSION_S * 1e3:.0f}", **_POLLS}
_EAGER: Final = {"partition.assignment.strategy": "range,roundrobin", **_LIVELY}
# Sessions and heartbeats are the broker's there (`tests.faults.place`).
_CONSUMER: Final = {
    "group.protocol": "consumer",
    "session.timeout.ms": "",
    "heartbeat.interval.ms": "",
    **_POLLS,
}


def kill_at_random(run: FaultRun, times: int) -> None:
    """`kill -9` at random moments: two daemons, each killed soon after it joined, over and over."""
    members = [run.member(name) for name in ("tapewatch-0", "tapewatch-1")]
    shares = (times - times // 2, times // 2)

    def work(member: Member, share: int, rng: random.Random) -> None:
        for _ in range(share):
            life = member.start()
            life.wait_joined()
            # Half of the time within what was missed meanwhile, or the replay of it.
            time.sleep(rng.uniform(0.0, rng.choice([0.15, 1.0])))
            life.kill()
            run.report.kills += 1
            run.report.times += 1
        member.start()

    with ThreadPoolExecutor(2) as pool:
        seeds = [random.Random(run.rng.random()) for _ in members]  # noqa: S311
        for done in [pool.submit(work, *each) for each in zip(members, shares, seeds, strict=True)]:
            done.result()


def kill_at_steps(run: FaultRun, times: int) -> None:
    """`kill -9` at every named step; the next life begins with what that left behind."""
    member = run.member("tapewatch-0")
    member.start().wait_joined()
    run.nap(1.0, 2.0)
    member.life.kill()
    for step in STEPS * times:
        life = member.start(AtStep(step, run.rng.randint(1, _SELDOM.get(step, 15))))
        code = life.wait_dead(_STEP_WITHIN_S)
        if code != -signal.SIGKILL:
            raise FaultError(f"step {step} did not come, code {code}:\n{life.tail()}")
        run.report.kills += 1
        run.report.times += 1
    member.start()


def freeze(run: FaultRun, times: int) -> None:
    """SIGSTOP past the poll interval and the transaction timeout, then SIGCONT.

    In turns, another member takes the partitions over, or a replacement comes under the very name
    of the frozen one, as an orchestrator does with a node that it cannot reach.
    """
    members = [run.member(name) for name in ("tapewatch-0", "tapewatch-1")]
    for member in members:
        member.start()
    for member in members:
        member.life.wait_joined()
    for turn in range(times):
        zombie, other = run.rng.sample(members, 2)
        run.nap(0.5, 1.5)
        frozen, before = zombie.life, other.life.joined()
        frozen.send(signal.SIGSTOP)
        if turn % 2:
            zombie.start().wait_joined()
        time.sleep(max(POLL_S, TRANSACTION_S, SESSION_S) + 1.0)
        if not turn % 2:
            other.life.wait(lambda: other.life.joined() > before, 15.0, "take over")  # noqa: B023
        frozen.send(signal.SIGCONT)
        run.nap(1.5, 2.5)
        if frozen is not zombie.life:
            frozen.send(signal.SIGTERM)
            if frozen.wait_dead(15.0) is None:
                raise FaultError(f"the zombie did not end:\n{frozen.tail()}")
        elif not frozen.alive:
            run.note_end(zombie)
            zombie.start().wait_joined()
        run.report.times += 1


def restart_broker(run: FaultRun, times: int) -> None:
    """`kill -9` of the broker under load, and a start on the same data."""
    life = run.member("tapewatch-0").start()
    life.wait_joined()
    for _ in range(times):
        run.nap(1.0, 2.0)
        run.place.broker.kill()
        run.report.kills += 1
        run.nap(0.0, 2.0)
        run.place.broker.start()
        revive(run)
        run.report.times += 1
    run.nap(1.0, 2.0)


def trouble_connections(run: FaultRun, times: int) -> None:
    """Cut, refuse and delay connections, and let commits reach the broker without an answer."""
    proxy, member = run.place.proxy, run.member("tapewatch-0")
    with StepCalls() as calls:
        member.start(AtStep("before_commit", 1, calls.port)).wait_joined()
        for turn in range(times):
            run.nap(0.5, 1.5)
            kind = ("deaf_commit", "cut_commit", "cut", "refuse", "delay")[turn % 5]
            if kind.endswith("_commit"):
                deaf = kind.startswith("deaf")
                if not calls.once(proxy.deafen if deaf else proxy.cut):
                    raise FaultError(f"no commit came any more:\n{member.life.dump()}")
                if deaf:
                    run.nap(0.3, 1.0)
            elif kind == "cut":
                proxy.cut()
            elif kind == "refuse":
                proxy.refuse()
                run.nap(0.5, 1.5)
            else:
                proxy.delay(run.rng.uniform(0.05, 0.5))
                run.nap(1.0, 2.0)
            proxy.mend()
            if not member.alive:
                run.note_end(member)
                member.start(AtStep("before_commit", 1, calls.port)).wait_joined()
            run.report.times += 1
        run.nap(0.5, 1.0)


def slow_sink(run: FaultRun, times: int) -> None:
    """Let the brokers take far less than there is to be told: the input waits, memory does not."""
    proxy, member = run.place.proxy, run.member("tapewatch-0")
    member.start().wait_joined()
    for _ in range(times):
        run.nap(0.5, 1.5)
        proxy.throttle(_SLOW_BYTES_PER_S)
        member.life.wait(lambda: _behind(member.life) > _BEHIND, 30.0, "fall behind")
        for _ in range(10):
            waiting = member.life.metric("tapewatch_kafka_fetch_queue_messages", client="producer")
            if waiting > _QUEUE:
                raise FaultError(f"{waiting} records wait in the producer:\n{member.life.dump()}")
            time.sleep(0.3)
        proxy.mend()
        member.life.wait(lambda: _behind(member.life) < _BEHIND / 2, 60.0, "catch up")
        run.report.times += 1


def _behind(life: Life) -> float:
    return life.metric("tapewatch_consumer_lag_messages")


def rebalance(run: FaultRun, times: int) -> None:
    """Two to four daemons join and leave every few seconds, most in order, some by `kill -9`."""
    names = [f"tapewatch-{i}" for i in range(4)]
    running = [run.member(name) for name in names[:2]]
    for member in running:
        member.start()
    for member in running:
        member.life.wait_joined()
    for _ in range(times):
        run.nap(0.5, 2.0)
        revive(run, running)
        free = [run.member(name) for name in names if run.member(name) not in running]
        if len(running) == 2 or (free and run.rng.random() < 0.5):
            joins = run.rng.choice(free)
            joins.start().wait_joined()
            running.append(joins)
        else:
            leaves = running.pop(run.rng.randrange(len(running)))
            if run.rng.random() < 0.3:
                leaves.life.kill()
                run.report.kills += 1
            elif leaves.life.stop() != 0:
                run.note_end(leaves, "after SIGTERM")
        run.report.rebalances += 1
        run.report.times += 1


def revive(run: FaultRun, members: list[Member] | None = None) -> None:
    """Start again whoever ended by himself, as a supervisor would."""
    for member in members if members is not None else list(run.members.values()):
        if not member.alive:
            run.note_end(member)
            revived: Life = member.start()
            revived.wait_joined()


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault, how often it happens in the short and in the long form, and what it needs."""

    happen: Callable[[FaultRun, int], None]
    short: int
    long: int
    fmt: FeedFormat = "dbn"
    proxied: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)
    unit: int = 1  # how many single faults one of `times` is


def prepare(place: Place, name: str, seed: int, delivery: Delivery) -> FaultRun:
    """Create the topics of a run of the named fault."""
    fault = FAULTS[name]
    return FaultRun(
        *(place, name, seed, delivery, fault.fmt),
        proxied=fault.proxied,
        settings=fault.settings,
    )


def happen(run: FaultRun, times: int) -> Report:
    """Let the run's fault happen so many times under load, and judge what came of it.

    Raises
    ------
    FaultError
        A process did not do what it must; the message begins with fault and seed.
    """
    try:
        with fault_run(run):
            FAULTS[run.report.fault].happen(run, times)
        return run.judge()
    except FaultError as error:
        facts = run.report
        raise FaultError(
            f"{facts.fault}, {facts.delivery}, seed {facts.seed}, after {facts.times}: {error}"
        ) from error


FAULTS: Final[Mapping[str, Fault]] = {
    "kill": Fault(kill_at_random, 20, 200),
    "steps": Fault(kill_at_steps, 1, 10, "json", unit=len(STEPS)),
    "freeze": Fault(freeze, 2, 10, settings=_LIVELY),
    "broker": Fault(restart_broker, 2, 20, "json"),
    "connection": Fault(trouble_connections, 3, 30, proxied=True),
    "slow_sink": Fault(
        slow_sink, 1, 10, proxied=True, settings={"queue.buffering.max.messages": f"{_QUEUE}"}
    ),
    "rebalance": Fault(rebalance, 10, 100, "json", settings=_LIVELY),
    "rebalance_eager": Fault(rebalance, 4, 50, "json", settings=_EAGER),
    "rebalance_consumer": Fault(rebalance, 4, 50, "json", settings=_CONSUMER),
}
