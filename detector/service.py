"""From a configuration to a running daemon: what is built, in which order, and how it stops.

The artifact is verified and the model warmed before Kafka is joined, so that nothing is consumed
that could not be scored; the HTTP port answers from the start and says what is being waited for.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import sys
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Final, NoReturn, Self

import numpy as np
import orjson
import structlog
from prometheus_client import (
    GC_COLLECTOR,
    PLATFORM_COLLECTOR,
    CollectorRegistry,
)

from detector.artifact import Artifact, ArtifactError, read_artifact
from detector.compiled import gpu_memory_bytes
from detector.config import Config, ConfigError
from detector.daemon import Daemon, Settings
from detector.decision import Observer
from detector.drift import DriftSpec
from detector.endpoints import HttpServer
from detector.features import FeatureSpec
from detector.kafka import (
    Connection,
    Publisher,
    Step,
    TickConsumer,
    TransactionalPublisher,
    read_state,
)
from detector.metrics import Metrics
from detector.model_watch import LoadedModel, ModelWatch
from detector.pipeline import Pipeline, PipelineSpec
from detector.resources import ProcessMetrics
from detector.scorer import Scorer
from detector.state_keeper import StateKeeper
from detector.symbols import SymbolMap, read_symbol_file
from detector.ticks import TickBatch, VectorBatch, empty_ticks
from detector.wire import Decoder, make_decoder

_log = structlog.get_logger("tapewatch")
EXIT_WITHIN_S: Final = 10.0
READ_STATE_WITHIN_S: Final = 5.0
"""Without anything new. It is tried again, and in between the group sees that the member lives."""


def connection_of(config: Config) -> Connection:
    """Return how the configuration reaches Kafka."""
    kafka = config.kafka
    return Connection(kafka.bootstrap_servers, kafka.client_id, kafka.plain_properties())


def decoder_of(config: Config, features: FeatureSpec) -> Decoder:
    """Return the decoder of the configured format, checked against what the model was trained on.

    Raises
    ------
    ConfigError
        When the model's features cannot come from messages of that format.
    """
    needs = "vector" if features.kind == "vector" else "dbn or json"
    if (features.kind == "vector") != (config.input.format == "vector"):
        raise ConfigError(
            f"input.format = {config.input.format!r}: the model in {config.model.path} was trained "
            f"on {features.kind} features; allowed: {needs}"
        )
    columns = config.input.columns
    if features.kind == "vector" and columns is not None and columns != features.columns:
        raise ConfigError(
            f"input.columns = {','.join(columns)}: the model was trained on "
            f"{','.join(features.columns)}, in this order"
        )
    return make_decoder(
        config.input.format,
        trade_book=config.input.trade_book,
        columns=features.columns if features.kind == "vector" else None,
    )


def load_scorer(artifact: Artifact, config: Config) -> Scorer:
    """Build and warm the scorer.

    Raises
    ------
    NoGpuError
        The configuration asks for a GPU and there is none.
    """
    scorer = Scorer(artifact, config.model.device)
    scorer.warm()
    return scorer


def warm_up(features: FeatureSpec, scorer: Scorer) -> None:
    """Run every kernel once on a throw-away pipeline, so that the first tick waits for none."""
    n = 2
    nothing = np.zeros(n, np.int64)
    if features.kind == "vector":
        values = np.zeros((n, len(features.columns)), np.float32)
        batch: TickBatch | VectorBatch = VectorBatch(
            values, nothing, nothing + 1, 0, nothing, nothing.astype(np.int32)
        )
    else:
        batch = TickBatch.from_ticks(empty_ticks(n))
    spec = PipelineSpec(max_instruments=4, drift=DriftSpec())
    Pipeline(features, scorer, spec).process(batch)


def load_next(folder: Path, config: Config, features: FeatureSpec) -> LoadedModel:
    """Read, verify and warm a model that is to follow the one in force.

    Raises
    ------
    ArtifactError
        It cannot be used, or has other features than the windows that are running.
    """
    artifact = read_artifact(folder, config.model.public_key)
    if artifact.features.fingerprint != features.fingerprint:
        raise ArtifactError(
            f"{folder}: model {artifact.version} was trained on features "
            f"{artifact.features.fingerprint[:12]}, the running windows are "
            f"{features.fingerprint[:12]}; restart tapewatch to put it in force"
        )
    scorer = load_scorer(artifact, config)
    warm_up(features, scorer)
    return LoadedModel(scorer, artifact.manifest.created)


class Service:
    """The daemon with its HTTP port, from a configuration.

    Parameters
    ----------
    config
        The validated configuration.
    observer
        Sees every outcome; for the terminal view of the demo.
    on_step
        With exactly-once delivery, told of every step of a transaction, of snapshots and replay;
        for tests that end the process there.

    Raises
    ------
    ConfigError, HttpAccessError, ArtifactError, SymbolFileError
        When configuration, certificate, password, model or mapping file cannot be used.
    OSError
        When the HTTP address cannot be listened on.
    """

    def __init__(
        self, config: Config, observer: Observer | None = None, on_step: Step | None = None
    ) -> None:
        self._config = config
        self._on_step = on_step
        self._observer = observer
        self._daemon: Daemon | None = None
        self._stop = threading.Event()
        _log.info("starting", model=str(config.model.path))
        for warning in config.kafka.security.warnings():
            _log.warning("insecure connection", reason=warning)
        artifact = read_artifact(config.model.path, config.model.public_key)
        self.features = artifact.features
        decoder = decoder_of(config, self.features)
        symbols = SymbolMap(_names(config.input.symbols_file))
        self.registry = CollectorRegistry()
        for collector in (ProcessMetrics(), PLATFORM_COLLECTOR, GC_COLLECTOR):
            self.registry.register(collector)
        self.metrics = Metrics(self.registry)
        self.http = HttpServer(
            config.http.host,
            config.http.port,
            self.registry,
            self._healthy,
            self._ready,
            config.http.access(),
        )
        if lacks := self.http.lacks:
            _log.warning(
                "others can reach /metrics: the address is not this machine's own, and lacks "
                f"{lacks}",
                metrics=self.http.url,
            )
        try:
            scorer = load_scorer(artifact, config)
            warm_up(self.features, scorer)
            self.metrics.observe_model(
                version=scorer.version,
                model_hash=scorer.model_hash,
                device=scorer.device,
                created=artifact.manifest.created,
                loaded_s=time.time(),
                thresholds=scorer.thresholds,
            )
            if scorer.device == "gpu":
                self.metrics.memory.of_gpu = gpu_memory_bytes
            self._model_hash = scorer.model_hash
            self._daemon = self._build(decoder, scorer, symbols)
        except BaseException:
            self.http.close()
            raise
        _log.info(
            "ready to join",
            model=scorer.version,
            features=len(self.features.names),
            device=scorer.device,
            metrics=self.http.url,
            group=config.kafka.group_id,
        )

    def run(self) -> None:
        """Work until `stop`.

        Raises
        ------
        DaemonFailedError
            When Kafka refuses what the daemon needs.
        """
        if self._daemon is None or self._stop.is_set():
            return
        with contextlib.ExitStack() as stack:
            if self._config.model.watch_s > 0:
                stack.enter_context(self._watch(self._daemon))
            self._daemon.run()

    def _watch(self, daemon: Daemon) -> ModelWatch:
        config = self._config
        return ModelWatch(
            config.model.path,
            config.model.watch_s,
            self._model_hash,
            lambda folder: load_next(folder, config, self.features),
            daemon.offer,
            daemon.refuse,
        )

    def stop(self) -> None:
        """Ask for an orderly end; safe from a signal handler."""
        self._stop.set()
        if self._daemon is not None:
            self._daemon.stop()

    def close(self) -> None:
        """Close the HTTP port."""
        self.http.close()

    def ready(self) -> tuple[bool, str]:
        """Whether ticks would be processed now, and if not, what is being waited for."""
        return self._ready()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _healthy(self) -> tuple[bool, str]:
        return (True, "starting") if self._daemon is None else self._daemon.healthy()

    def _ready(self) -> tuple[bool, str]:
        return (False, "warming the model") if self._daemon is None else self._daemon.ready()

    def _build(self, decoder: Decoder, scorer: Scorer, symbols: SymbolMap) -> Daemon:
        config, connection = self._config, connection_of(self._config)
        topics = config.topics
        spec = PipelineSpec(
            topic=topics.ticks,
            max_instruments=config.features.max_instruments,
            policy=config.episodes.policy(),
            adapt=config.thresholds.adapt,
            latent=topics.latents is not None,
            drift=config.drift.spec(),
        )
        pipeline = Pipeline(self.features, scorer, spec, symbols)
        return Daemon(
            Settings(
                ticks=topics.ticks,
                anomalies=topics.anomalies,
                dead_letters=topics.dead_letters,
                latents=topics.latents,
                max_batch_size=config.batch.max_size,
                max_delay_s=config.batch.max_delay_ms / 1e3,
                commit_interval_s=config.commit.interval_ms / 1e3,
                latency_from_recv=config.input.latency_from == "ts_recv",
                state=topics.state,
            ),
            pipeline,
            decoder,
            lambda daemon: TickConsumer(connection, config.kafka.group_id, topics.ticks, daemon),
            self._publisher(connection),
            self.metrics,
            self._observer,
            self._keeper(connection, pipeline) if config.state.keep else None,
        )

    def _publisher(self, connection: Connection) -> Publisher:
        config = self._config
        if config.delivery == "at_least_once":
            return Publisher(connection)
        return TransactionalPublisher(
            connection,
            transactional_id(config),
            config.commit.transaction_timeout_ms / 1e3,
            self._on_step,
        )

    def _keeper(self, connection: Connection, pipeline: Pipeline) -> StateKeeper:
        config = self._config
        return StateKeeper(
            config.kafka.group_id,
            config.topics.ticks,
            self.features.fingerprint,
            pipeline,
            lambda partitions, take: read_state(
                connection, config.topics.state, partitions, take, READ_STATE_WITHIN_S
            ),
            config.state.snapshot_interval_s,
            config.state.snapshot_ticks,
            config.state.warm_up_messages,
        )


def transactional_id(config: Config) -> str:
    """Return a name for this member's transactions: the same at each start, if it can be.

    With static membership it is the member's own. Without it every run has another one: what a
    killed run left open then ends by `transaction_timeout_ms`. The digest at its end tells apart
    what only looks alike, as member b-c of group a and member c of group a-b: two that share a name
    would end each other's transactions for ever.
    """
    group = config.kafka.group_id
    member = config.kafka.plain_properties().get("group.instance.id") or uuid.uuid4().hex
    told_apart = hashlib.blake2b(orjson.dumps([group, member]), digest_size=8).hexdigest()
    return f"{group}-{member}-{told_apart}"


def exit_if_stuck(within_s: float = EXIT_WITHIN_S) -> threading.Timer:
    """End the process hard when an orderly end takes too long; a supervisor must not wait.

    What was not acknowledged is not committed either, so that the next start repeats it.
    """

    def give_up() -> None:
        _log.error("could not stop in time, ending now; what is uncommitted will be repeated")
        os._exit(1)

    timer = threading.Timer(within_s - 1.0, give_up)
    timer.daemon = True
    timer.start()
    return timer


def end_at_once(code: int) -> NoReturn:
    """End the process without taking down what is still there; everything is committed or lost.

    To destroy a Kafka client may wait for its threads: daemons that had stopped were seen to stand
    there for more than eight seconds.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _names(path: Path | None) -> dict[int, str]:
    return {} if path is None else read_symbol_file(path)
