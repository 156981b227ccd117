"""One run of the demo: train, start broker and daemon, feed the live part, read what comes of it.

Three parties beside the daemon: the feeder's thread publishes ticks, the subscriber's thread reads
the anomaly topic as any consumer would, and this thread looks at /metrics a few times a second,
shows what it sees and decides when all is done.
"""

from __future__ import annotations

import json
import queue
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, Self

from detector.artifact import Artifact
from detector.broker import RETAINED_BYTES, EmbeddedBroker
from detector.config import TopicsConfig
from detector.errors import FailedError
from detector.features import DEFAULT
from detector.kafka import Connection, Publisher, follow
from detector.replay import Message, group, replay
from training.classify import TooFewEpisodesError, add_head, episodes_of, fit_head
from training.demo.daemon import DaemonProcess, Reading, quantile_of
from training.demo.findings import Event, Findings, Summary
from training.demo.scenario import Scenario
from training.halves import Half
from training.labels import Label
from training.train import train

TOPICS: Final = TopicsConfig()
LOOK_EVERY_S: Final = 0.25
"""Also the width of a bar of the score chart."""
SETTLE_WITHIN_S: Final = 20.0
"""Time for the daemon to catch up once the last tick is published."""

# The embedded broker forgets what a partition holds beyond its limit. Half of that, if every tick
# waited in one partition and took 200 bytes there (a record of 80, key and framing).
MOST_AHEAD: Final = RETAINED_BYTES // 2 // 200
_LEAST_WAIT_S: Final = 0.001


@dataclass(frozen=True, slots=True)
class Moment:
    """What is to be seen at one moment of the live part.

    Parameters
    ----------
    market_ns
        Event time of the latest tick published.
    produced
        Ticks acknowledged by the broker.
    reading
        The daemon's /metrics.
    at_s
        When they were read, seconds from any origin.
    """

    market_ns: int
    produced: int
    reading: Reading
    at_s: float


class View(Protocol):
    """Where a run is shown."""

    def step(self, text: str) -> None:
        """Say that the step before is done and what begins now."""

    def detail(self, text: str) -> None:
        """Say how far the present step is."""

    def live(self, scenario: Scenario, threshold: float, metrics_url: str) -> None:
        """Say that the live part begins."""

    def event(self, event: Event, findings: Findings) -> None:
        """Take an event that was read, and what is found by now."""

    def moment(self, moment: Moment, findings: Findings) -> None:
        """Show this moment."""


def run_demo(scenario: Scenario, view: View, began: float) -> Summary:
    """Run the demo once.

    Parameters
    ----------
    scenario
        What is simulated.
    view
        Where it is shown.
    began
        When the command began, `time.monotonic()`: imports are part of what a user waits for.

    Raises
    ------
    FailedError
        When broker or daemon fail.
    """
    with tempfile.TemporaryDirectory(prefix="tapewatch-demo-") as name:
        folder = Path(name)
        training = time.monotonic()
        artifact = _train(scenario, folder / "model", view)
        model = _classify(scenario, artifact, folder, view)
        trained = time.monotonic()
        view.step("starting an embedded broker and the daemon")
        with EmbeddedBroker() as broker:
            for topic in (TOPICS.ticks, TOPICS.anomalies, TOPICS.dead_letters, TOPICS.state):
                broker.create_topic(topic)
            with DaemonProcess(folder, broker.bootstrap, model) as daemon:
                run = _Run(scenario, artifact.thresholds.pooled, daemon, view)
                last, live_seconds = run.play(Connection(broker.bootstrap, "tapewatch-demo"))
                view.step("stopping the daemon")
                if exit_code := daemon.stop():
                    raise FailedError(
                        f"the daemon ended with exit code {exit_code}:\n{daemon.last_words()}"
                    )
    return Summary(
        seed=scenario.seed,
        instruments=len(scenario.market.instruments),
        live_event_s=float(scenario.live_s),
        produced=last.produced,
        consumed=last.reading.ticks,
        scored=last.reading.scored,
        findings=run.findings,
        events_published=last.reading.events,
        latency_p50_ms=_ms(quantile_of(last.reading.latency_s, 0.50)),
        latency_p99_ms=_ms(quantile_of(last.reading.latency_s, 0.99)),
        metrics_url=daemon.metrics_url,
        train_seconds=trained - training,
        live_seconds=live_seconds,
        total_seconds=time.monotonic() - began,
        threshold=artifact.thresholds.pooled,
        quantile=artifact.thresholds.quantile,
        start_ns=scenario.live_ns,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


# ---- training ------------------------------------------------------------------------------------


def _train(scenario: Scenario, folder: Path, view: View) -> Artifact:
    view.step(
        f"training on {scenario.train_s / 60:.0f} clean minutes of "
        f"{len(scenario.market.instruments)} synthetic instruments"
    )
    return train(
        scenario.training_ticks(), DEFAULT, folder, scenario.options(), progress=_Progress(view)
    )


def _classify(scenario: Scenario, artifact: Artifact, folder: Path, view: View) -> Path:
    """Add a head that names anomalies; the model's folder, below `folder`."""
    view.step(f"training names on {len(scenario.lessons)} anomalies planted in those minutes")
    labels = [Label(each, Half.BOTH, 0) for each in scenario.lessons]
    episodes = episodes_of(artifact, scenario.lesson_ticks(), labels)
    try:
        fitted = fit_head(episodes, scenario.seed)
    except TooFewEpisodesError:
        view.step("too few of them raised an alarm: episodes stay without names")
        return Path("model")
    add_head(folder / "model", folder / "named", fitted, version=f"{artifact.version}-named")
    return Path("named")


class _Progress:
    """A training's progress as details of one step."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._ticks = 0

    def features(self, rows: int, ready: int) -> None:  # noqa: ARG002 - what the protocol gives
        """Count ticks."""
        self._ticks += rows
        self._view.detail(f"features of {self._ticks:,} ticks")

    def epoch(self, stage: int, done: int, planned: int, error: float) -> None:
        """Name the epoch."""
        self._view.detail(f"autoencoder {stage}, epoch {done} of {planned}, error {error:.3f}")

    def step(self, name: str) -> None:
        """Name the step."""
        self._view.detail(name)


# ---- the live part -------------------------------------------------------------------------------


class _Run:
    """The live part: feeder, subscriber and the look at /metrics."""

    def __init__(
        self, scenario: Scenario, threshold: float, daemon: DaemonProcess, view: View
    ) -> None:
        self.findings = Findings(scenario.plants)
        self._scenario, self._threshold = scenario, threshold
        self._daemon, self._view = daemon, view

    def play(self, connection: Connection) -> tuple[Moment, float]:
        """Play the live part until all of it is processed; the last moment and its seconds."""
        with _Subscriber(connection, TOPICS.anomalies) as subscriber:
            self._daemon.wait_ready()
            self._view.live(self._scenario, self._threshold, self._daemon.metrics_url)
            began = time.monotonic()
            with Feeder(connection, TOPICS.ticks, self._scenario) as feeder:
                last = self._watch(feeder, subscriber)
            return last, time.monotonic() - began

    def _watch(self, feeder: Feeder, subscriber: _Subscriber) -> Moment:
        """Look until the daemon has caught up and every event it published is read."""
        deadline, settled = float("inf"), 0
        while True:
            reading = self._daemon.scrape()
            feeder.consumed = reading.ticks
            for event in subscriber.taken():
                self.findings.add(event)
                self._view.event(event, self.findings)
            now = time.monotonic()
            moment = Moment(feeder.market_ns, feeder.produced, reading, now)
            self._view.moment(moment, self.findings)
            if feeder.done():
                deadline = min(deadline, now + SETTLE_WITHIN_S)
                # Twice: the counters of one scrape are not read at one instant.
                settled = settled + 1 if self._caught_up(moment) else 0
            if settled == 2 or now > deadline:
                return moment
            time.sleep(LOOK_EVERY_S)

    def _caught_up(self, moment: Moment) -> bool:
        reading = moment.reading
        return (
            reading.ticks >= moment.produced
            and reading.batches_decided == reading.batches_taken
            and reading.events <= len(self.findings.ids)
        )


class _Background:
    """Something that works in a thread of its own until told to stop.

    The thread never keeps the process alive: an interrupt may come before anyone could stop it.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        raise NotImplementedError

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # told to whoever asks whether it is done
            self._error = error

    def done(self) -> bool:
        """Whether it has ended; raises what it failed with."""
        if self._thread.is_alive():
            return False
        if self._error is not None:
            raise self._error
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class _Subscriber(_Background):
    """Reads the anomaly topic from its beginning, as any consumer would."""

    def __init__(self, connection: Connection, topic: str) -> None:
        self._messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._connection, self._topic = connection, topic
        super().__init__()

    def taken(self) -> Iterator[dict[str, Any]]:
        """Yield the events that came since the last call."""
        self.done()
        while not self._messages.empty():
            event: dict[str, Any] = json.loads(self._messages.get())
            yield event

    def _work(self) -> None:
        group_id = "tapewatch-demo-reader"
        for message in follow(self._connection, self._topic, group_id, from_beginning=True):
            if message is not None:
                self._messages.put(message.value() or b"")
            elif self._stop.is_set():
                return


class _StoppedError(Exception):
    """The feeder was told to stop."""


class Feeder(_Background):
    """Publishes the live part at its pace, never further ahead of the daemon than is safe.

    Attributes
    ----------
    consumed
        Ticks the daemon has consumed; set by who reads its /metrics.
    produced
        Ticks acknowledged.
    market_ns
        Event time of the latest tick published.
    """

    def __init__(self, connection: Connection, topic: str, scenario: Scenario) -> None:
        self.consumed = self.produced = self._sent = 0
        self.market_ns = scenario.live_ns
        self._connection, self._topic, self._scenario = connection, topic, scenario
        self._refused: list[str] = []
        super().__init__()

    def _work(self) -> None:
        with Publisher(self._connection, **{"linger.ms": 5}) as publisher, suppress(_StoppedError):
            messages = group(self._scenario.live_ticks())
            replay(
                messages,
                lambda message: self._publish(publisher, message),
                speed=self._scenario.speed,
                sleep=_sleep_if_worth_it,
            )
            publisher.flush(SETTLE_WITHIN_S)
        if self._refused:
            raise FailedError(f"the embedded broker refused a tick: {self._refused[0]}")

    def _publish(self, publisher: Publisher, message: Message) -> None:
        while self._sent - self.consumed > MOST_AHEAD and not self._stop.is_set():
            time.sleep(LOOK_EVERY_S / 5)
        if self._stop.is_set():
            raise _StoppedError

        def acknowledge(error: str | None) -> None:
            if error is None:
                self.produced += message.ticks
            else:
                self._refused.append(error)

        publisher.publish(self._topic, message.key, message.value, (), acknowledge)
        self._sent += message.ticks
        self.market_ns = message.due_ns


def _sleep_if_worth_it(seconds: float) -> None:
    """Sleep, but not for less than a millisecond: thousands of wake-ups a second cost a core."""
    if seconds >= _LEAST_WAIT_S:
        time.sleep(seconds)
