"""The daemon as a process of its own, as an operator would start it, and what its /metrics say.

It is told by a configuration file and nothing else, and observed from outside alone: its log on
standard error, its HTTP port, its exit code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from prometheus_client.parser import text_string_to_metric_families

from detector.config import ENVIRONMENT_PREFIX
from detector.errors import FailedError

READY_WITHIN_S: Final = 90.0
STOP_WITHIN_S: Final = 10.0
_ANSWER_WITHIN_S: Final = 10.0
_LOG_LINES: Final = 15

_CONFIG: Final = """\
[kafka]
bootstrap_servers = "{bootstrap}"
group_id = "tapewatch-demo"
# The embedded broker answers a fetch that found nothing only when its wait is over.
properties = {{ "fetch.wait.max.ms" = 5 }}

[model]
path = "{model}"

[http]
port = 0
"""

Histogram = tuple[tuple[float, float], ...]
"""Upper bounds and cumulative counts, ascending; the last bound is infinity."""


def quantile_of(histogram: Histogram, q: float) -> float | None:
    """Return a quantile, linear within its bucket as PromQL's `histogram_quantile`; None if empty.

    What lies beyond the last finite bound counts as that bound.
    """
    total = histogram[-1][1] if histogram else 0.0
    if not total:
        return None
    low, below = 0.0, 0.0
    for bound, count in histogram:
        if count >= q * total and count > below:
            return (
                low
                if bound == float("inf")
                else low + (bound - low) * (q * total - below) / (count - below)
            )
        low, below = bound, count
    return low


@dataclass(frozen=True, slots=True)
class Reading:
    """What one scrape of /metrics says.

    Parameters
    ----------
    ticks
        Ticks consumed.
    scored
        Ticks scored.
    events
        Events acknowledged by the anomaly topic.
    dead_letters
        Messages rejected.
    batches_taken, batches_decided
        Micro-batches read from Kafka; scored, decided and handed to the producer.
    latency_s, scores
        Tick-to-event latency and score.
    """

    ticks: int = 0
    scored: int = 0
    events: int = 0
    dead_letters: int = 0
    batches_taken: int = 0
    batches_decided: int = 0
    latency_s: Histogram = ()
    scores: Histogram = ()

    @classmethod
    def parse(cls, text: str) -> Reading:
        """Read the text format of Prometheus."""
        samples = [
            (sample.name.removeprefix("tapewatch_"), sample.labels, float(sample.value))
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]

        def total(name: str, **labels: str) -> int:
            return int(
                sum(v for n, has, v in samples if n == name and labels.items() <= has.items())
            )

        def histogram(name: str) -> Histogram:
            found = ((float(has["le"]), v) for n, has, v in samples if n == f"{name}_bucket")
            return tuple(sorted(found))

        return cls(
            ticks=total("ticks_total"),
            scored=total("ticks_scored_total"),
            events=total("events_total"),
            dead_letters=total("dead_letters_total"),
            batches_taken=total("micro_batch_ticks_count"),
            batches_decided=total("stage_duration_seconds_count", stage="scoring"),
            latency_s=histogram("tick_to_event_seconds"),
            scores=histogram("score"),
        )


class DaemonProcess:
    """`tapewatch run` with a configuration file, from construction to `stop`.

    Parameters
    ----------
    folder
        Where its configuration and its log go.
    bootstrap
        The brokers.
    model
        The model folder; relative paths are relative to `folder`.
    """

    def __init__(self, folder: Path, bootstrap: str, model: Path) -> None:
        config = folder / "tapewatch.toml"
        config.write_text(_CONFIG.format(bootstrap=bootstrap, model=model), encoding="utf-8")
        self._log = folder / "daemon.log"
        # What the user has set for a daemon of their own is not for this one.
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(ENVIRONMENT_PREFIX)
        }
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  (this very program)
                [sys.executable, "-P", "-m", "detector", "run", "--config", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self.metrics_url = ""

    def wait_ready(self) -> None:
        """Wait until `/readyz` says that ticks would be processed.

        Raises
        ------
        FailedError
            When it ends or takes too long instead.
        """
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._ready():
            if self._process.poll() is not None:
                raise FailedError(f"the daemon ended while starting:\n{self.last_words()}")
            if time.monotonic() > deadline:
                raise FailedError(
                    f"the daemon was not ready within {READY_WITHIN_S:.0f} s:\n{self.last_words()}"
                )
            time.sleep(0.1)

    def scrape(self) -> Reading:
        """Read /metrics.

        Raises
        ------
        FailedError
            When the daemon does not answer any more.
        """
        try:
            return Reading.parse(_get(self.metrics_url))
        except OSError as error:
            raise FailedError(f"the daemon ended or hangs: {error}\n{self.last_words()}") from error

    def stop(self) -> int:
        """Ask for an orderly end (SIGTERM) and return the exit code."""
        if self._process.poll() is None:
            self._process.terminate()
        try:
            return self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def last_words(self) -> str:
        """Return the end of its log."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-_LOG_LINES:])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _ready(self) -> bool:
        self.metrics_url = self.metrics_url or self._logged_url()
        if not self.metrics_url:
            return False
        try:
            _get(self.metrics_url.removesuffix("metrics") + "readyz")
        except OSError:  # also what urllib raises for 503
            return False
        return True

    def _logged_url(self) -> str:
        """Find the address in the log: the port is whichever was free."""
        for line in self._log.read_bytes().splitlines():
            try:
                fact = json.loads(line)
            except ValueError:
                continue  # a line of a library, or one that is being written
            if isinstance(fact, dict) and "metrics" in fact:
                return str(fact["metrics"])
        return ""


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=_ANSWER_WITHIN_S) as answer:  # noqa: S310  (our own)
        body: bytes = answer.read()
    return body.decode()
