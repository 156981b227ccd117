"""A tape, a model trained on its first part, and the real daemon as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from detector.planting import plan
from detector.readers import write_parquet
from detector.synthetic import DEMO_KINDS, Instrument, Market, gather, generate
from detector.ticks import TickBatch

START_NS = 1_750_000_000 * 10**9
TRAIN_S = 900
LIVE_S = 150
WAIT_S = 90.0


@dataclass(frozen=True)
class Tape:
    """A synthetic market's ticks: an ordinary part to train on, and one with planted anomalies."""

    train: Path
    live: Path
    live_ticks: TickBatch


def small_market(seed: int) -> Market:
    """Six instruments that differ in price and rate."""
    return Market(
        tuple(Instrument(f"S{i}", price=20.0 + 30 * i, rate_hz=12 + 4 * i) for i in range(6)),
        seed=seed,
    )


@pytest.fixture(scope="session")
def tape(tmp_path_factory: pytest.TempPathFactory) -> Tape:
    """Six instruments; the first part is ordinary, anomalies are planted in the second."""
    return make_tape(tmp_path_factory.mktemp("tape"))


def make_tape(folder: Path) -> Tape:
    """Write the tape's files."""
    market = small_market(seed=3)
    live_from = START_NS + TRAIN_S * 10**9
    end = live_from + LIVE_S * 10**9
    plants = plan(market.symbols, 12, live_from, end, min_separation_s=20, kinds=DEMO_KINDS, seed=3)
    ticks = gather(generate(market, START_NS, TRAIN_S + LIVE_S, plants))
    later = ticks.ts_event >= live_from
    train, live = ticks.taken(~later), ticks.taken(later)
    paths = folder / "train.parquet", folder / "live.parquet"
    for path, part in zip(paths, (train, live), strict=True):
        write_parquet(path, [part])
    n = len(live)
    live = TickBatch.from_ticks(np.ascontiguousarray(live.ticks), symbols=market.symbols)
    assert n > 1000
    return Tape(paths[0], paths[1], live)


def tapewatch(*arguments: str | Path, wait_s: float = 240.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "detector", *map(str, arguments)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=wait_s,
        check=False,
        env=plain_environment(),
    )


def plain_environment() -> dict[str, str]:
    """The environment without settings of this machine's user."""
    return {k: v for k, v in os.environ.items() if not k.startswith("TAPEWATCH_")}


@pytest.fixture(scope="session")
def model(tape: Tape, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, trained by the command a user would type."""
    return train_model(tape, tmp_path_factory.mktemp("model") / "artifact")


def train_model(tape: Tape, folder: Path) -> Path:
    """Train a small model on the tape's ordinary part."""
    done = tapewatch(
        *("train", "--ticks", tape.train, "--out", folder),
        *("--epochs", "3", "--quantile", "0.998", "--seed", "1"),
    )
    assert done.returncode == 0, done.stderr
    return folder


def metric_in(text: str, name: str, **labels: str) -> float:
    """Sum of a scrape's samples of a metric that carry the labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


class RunningDaemon:
    """`tapewatch run` as a process of its own, with its metrics and its log.

    With `calls` it calls that port at every time of that step (`tests.faults.launcher`).
    """

    def __init__(self, folder: Path, config: str, calls: tuple[str, int] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "tapewatch.toml"
        path.write_text(config)
        self._log_path = folder / "log"
        self._log_file = self._log_path.open("w")
        words = ["detector", "run", "--config", str(path)]
        if calls is not None:
            words = ["tests.faults.launcher", str(path), calls[0], "1", str(calls[1])]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words],
            stderr=self._log_file,
            env=plain_environment(),
        )
        self._url = ""

    @property
    def log(self) -> str:
        """What it logged so far."""
        return self._log_path.read_text()

    def get(self, path: str) -> tuple[int, str]:
        """Ask one of its paths; status 0 where nobody answers."""
        if not self._url:
            self._url = logged_url(self.log)
        return ask(self._url + path) if self._url else (0, "")

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples that carry the labels."""
        status, text = self.get("/metrics")
        assert status == 200, self.log
        return metric_in(text, name, **labels)

    def wait_ready(self) -> RunningDaemon:
        """Wait until `/readyz` says ready."""
        wait_until(lambda: self.get("/readyz")[0] == 200, self)
        return self

    def terminate(self) -> int:
        """SIGTERM; return the exit code, which must come within ten seconds."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(10)

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        """Leave nothing behind."""
        if self.process.poll() is None:
            self.kill()
        self._log_file.close()


def logged_url(log: str) -> str:
    """Where a daemon's HTTP port is, by its log; "" as long as it has not said."""
    lines = [line for line in log.splitlines() if '"metrics": "http' in line]
    return lines[0].split('"metrics": "')[1].split("/metrics")[0] if lines else ""


def ask(url: str) -> tuple[int, str]:
    """Status and text of an answer; status 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def wait_until(
    condition: Callable[[], bool], daemon: RunningDaemon | None = None, wait_s: float = WAIT_S
) -> None:
    """Wait until the condition holds; fail with the daemon's log if it never does or it ended."""
    deadline = time.monotonic() + wait_s
    while not condition():
        if daemon is not None and daemon.process.poll() is not None:
            pytest.fail(f"the daemon ended with {daemon.process.returncode}:\n{daemon.log}")
        if time.monotonic() > deadline:
            pytest.fail("waited too long" + (f":\n{daemon.log}" if daemon else ""))
        time.sleep(0.05)


@pytest.fixture
def start_daemon(tmp_path: Path) -> Iterator[Callable[[str], RunningDaemon]]:
    """Start daemons that end with the test."""
    running: list[RunningDaemon] = []

    def start(config: str) -> RunningDaemon:
        daemon = RunningDaemon(tmp_path / f"daemon{len(running)}", config)
        running.append(daemon)
        return daemon

    yield start
    for daemon in running:
        daemon.close()
