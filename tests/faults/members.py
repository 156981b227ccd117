"""Daemons as processes that are killed, frozen, ended and started again under one name each."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.running import ask, logged_url, metric_in, plain_environment

START_WITHIN_S: Final = 60.0
STOP_WITHIN_S: Final = 8.0
"""A daemon that hangs ends itself after nine seconds: before that it can still be asked where."""
JOINED: Final = b"partitions assigned"


class FaultError(AssertionError):
    """The run cannot be judged: a process did not do what it must; the message has its log."""


@dataclass(frozen=True, slots=True)
class AtStep:
    """Die at the nth time of a step; with a port, call the test there every nth time."""

    step: str
    nth: int
    port: int = 0


class Life:
    """One process of a member, from its start to its end."""

    def __init__(self, config: Path, log: Path, at: AtStep | None = None) -> None:
        self.log_path = log
        self.ended = False  # by us
        if at is None:
            command = ["-m", "detector", "run", "--config", str(config)]
        else:
            more = (str(config), at.step, str(at.nth), str(at.port))
            command = ["-m", "tests.faults.launcher", *more]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**plain_environment(), "PYTHONFAULTHANDLER": "1"},
            )

    @property
    def alive(self) -> bool:
        """Whether it still runs, frozen or not."""
        return self.process.poll() is None

    @property
    def log(self) -> bytes:
        """What it logged so far."""
        return self.log_path.read_bytes()

    def joined(self) -> int:
        """How often it was given partitions, or told that there are none for it."""
        return self.log.count(JOINED)

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry the labels; of a process that has its port."""
        url = self.log.split(b'"metrics": "')[1].split(b'"')[0].decode()
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return metric_in(answer.read().decode(), name, **labels)

    def wait_joined(self) -> None:
        """Wait until it is a member of its group; raise if it ended before."""
        self.wait(lambda: self.joined() > 0, START_WITHIN_S, "join its group")

    def wait_ready(self) -> None:
        """Wait until `/readyz` says that ticks are processed; raise if it ended before."""

        def ready() -> bool:
            url = logged_url(self.log.decode(errors="replace"))
            return bool(url) and ask(f"{url}/readyz")[0] == 200

        self.wait(ready, START_WITHIN_S, "become ready")

    def wait(self, condition: Callable[[], bool], within_s: float, what: str) -> None:
        """Wait for a condition while the process lives."""
        deadline = time.monotonic() + within_s
        while not condition():
            if not self.alive:
                raise FaultError(
                    f"ended with {self.process.returncode} before it could {what}:\n{self.tail()}"
                )
            if time.monotonic() > deadline:
                raise FaultError(f"did not {what} within {within_s} s:\n{self.dump()}")
            time.sleep(0.02)

    def wait_dead(self, within_s: float) -> int | None:
        """Wait for its end; None if it did not come in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(within_s)
        return None

    def send(self, what: signal.Signals) -> None:
        """Send a signal; one that ended already takes none."""
        if self.alive:
            self.process.send_signal(what)

    def kill(self) -> None:
        """SIGKILL, frozen or not."""
        self.ended = True
        self.send(signal.SIGKILL)
        self.process.wait(STOP_WITHIN_S)

    def dump(self) -> str:
        """End it with SIGABRT, so that its log ends with what every thread was at; return that."""
        self.ended = True
        self.send(signal.SIGCONT)
        self.send(signal.SIGABRT)
        self.wait_dead(STOP_WITHIN_S)
        return self.tail(120)

    def stop(self) -> int:
        """SIGTERM; return the exit code, that of SIGABRT where it did not end in time."""
        self.ended = True
        self.send(signal.SIGTERM)
        code = self.wait_dead(STOP_WITHIN_S)
        if code is None:
            self.dump()
            code = self.process.wait(STOP_WITHIN_S)
        return code

    def tail(self, lines: int = 25) -> str:
        """Last lines of its log."""
        return "\n".join(self.log.decode(errors="replace").splitlines()[-lines:])


class Member:
    """One name in the group, with one process at a time, or two while one of them is a zombie."""

    def __init__(self, name: str, folder: Path, config: str) -> None:
        self.name = name
        self._folder = folder
        self._config = folder / f"{name}.toml"
        self._config.write_text(config)
        self.lives: list[Life] = []

    @property
    def life(self) -> Life:
        """Return the latest process."""
        return self.lives[-1]

    @property
    def alive(self) -> bool:
        """Whether the latest process runs."""
        return bool(self.lives) and self.life.alive

    def start(self, at: AtStep | None = None) -> Life:
        """Start another process under the name."""
        log = self._folder / f"{self.name}-{len(self.lives)}.log"
        self.lives.append(Life(self._config, log, at))
        return self.life

    def close(self) -> None:
        """Leave no process behind."""
        for life in self.lives:
            life.kill()
