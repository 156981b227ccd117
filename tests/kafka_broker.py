"""A real Apache Kafka for tests and benchmarks: one KRaft node on local ports.

Maven fetches the jars once, in the version that `tests/kafka/pom.xml` pins, into `.cache/`; each
`KafkaBroker` then is one Java process with a folder of its own. It can be stopped, killed with
SIGKILL and started again on the same port with the same log, which is what fault tests are about.

No Java process outlives its owner: `close` kills it, an exit handler closes what was forgotten,
and on Linux the kernel kills it when the owner dies without running any handler.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

REPOSITORY: Final = Path(__file__).resolve().parent.parent
POM: Final = REPOSITORY / "tests" / "kafka" / "pom.xml"
JAVA_NEEDED: Final = 17
PORTS: Final = range(20_000, 32_000)
"""Below the range that clients' own connections are given, or a killed broker's port could be
taken by one of them before the broker starts again."""

USUAL_PORT: Final = 9092
"""Where `make kafka` serves clients: every command looks for Kafka there by default."""

_START_WITHIN_S: Final = 60.0
_STOP_WITHIN_S: Final = 20.0
_FETCH_WITHIN_S: Final = 280.0

# Runs the command after asking the kernel to kill it with its parent. In a launcher of its own and
# not in a preexec_fn: the parent has threads (TensorFlow, librdkafka), and after a fork of such a
# process nothing but exec is safe.
_LAUNCHER: Final = """
import ctypes, os, sys
parent = int(sys.argv[1])
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() != parent:
    sys.exit("the parent is gone already")
os.execvp(sys.argv[2], sys.argv[2:])
"""

# The kernel's promise holds for the *thread* that started the process: a broker started by a test's
# helper thread would die with that thread. This one lives as long as the interpreter.
_starter = ThreadPoolExecutor(1, "owned-process-starter")
_running: set[KafkaBroker] = set()


def start_owned(command: Sequence[str], log: IO[bytes], folder: Path) -> subprocess.Popen[bytes]:
    """Start a server that does not outlive this interpreter, in a session of its own.

    Its output goes into `log`. Being in another session, it does not see a ctrl-C: that reaches the
    tests, which then close it.
    """
    launcher = [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]
    return _starter.submit(
        subprocess.Popen,
        [*launcher, *command],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=folder,
        start_new_session=True,
    ).result()


class KafkaUnavailableError(RuntimeError):
    """Apache Kafka cannot run on this machine; the message says what it lacks."""


class KafkaStartError(RuntimeError):
    """The broker did not become ready; the message ends with its log."""


def missing_tools() -> str | None:
    """Say what is missing to run Apache Kafka here, or None."""
    if shutil.which("java") is None:
        return f"Java {JAVA_NEEDED} is not installed"
    shown = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False)
    version = re.search(r'version "(\d+)', shown.stderr + shown.stdout)
    if version is None or int(version[1]) < JAVA_NEEDED:
        return f"Java {JAVA_NEEDED} is needed, found {version[1] if version else 'none that runs'}"
    if shutil.which("mvn") is None and not _jars_folder().is_dir():
        return "Maven is not installed (it fetches Apache Kafka)"
    return None


def kafka_version() -> str:
    """Version of Apache Kafka that the pom pins."""
    found = ET.parse(POM).getroot().find(".//{*}kafka.version")  # noqa: S314  our own file
    assert found is not None
    assert found.text is not None
    return found.text


def _jars_folder() -> Path:
    return REPOSITORY / ".cache" / f"kafka-{kafka_version()}" / "libs"


def kafka_jars() -> Path:
    """Folder of the jars, fetched by Maven where it is not there yet.

    Raises
    ------
    KafkaUnavailableError
        If Java or Maven is missing or Maven fails.
    """
    lacking = missing_tools()
    if lacking is not None:
        raise KafkaUnavailableError(lacking)
    libs = _jars_folder()
    if libs.is_dir():
        return libs
    libs.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own, renamed when complete: an interrupted fetch is never taken for Kafka,
    # and two sessions that fetch at once do not meet.
    fetched = Path(tempfile.mkdtemp(prefix="libs-", dir=libs.parent))
    try:
        goal = ["dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
        done = subprocess.run(
            ["mvn", "-q", "-B", "-f", str(POM), *goal],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_FETCH_WITHIN_S,
            check=False,
        )
        if done.returncode != 0:
            raise KafkaUnavailableError(f"Maven could not fetch Kafka:\n{done.stdout[-3000:]}")
        with contextlib.suppress(OSError):  # another session was faster: take its folder
            fetched.rename(libs)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return libs


def free_ports(count: int) -> list[int]:
    """Return `count` distinct ports on 127.0.0.1 that nobody listens on."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(PORTS, 500):
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise KafkaStartError(f"no {count} free ports between {PORTS.start} and {PORTS.stop}")


class KafkaBroker:
    """One node of Apache Kafka, from `start` (or `with`) to `close`.

    Parameters
    ----------
    properties
        Broker settings on top of this module's, such as `{"message.max.bytes": "2000000"}`.
    heap
        The `-Xmx` of the Java process.
    listener
        Another listener for clients, as `NAME://host:port`; its settings go into `properties`.
    advertised
        Where that listener's clients are told to come, as `host:port`, if elsewhere: to a proxy.
    scram
        Passwords of users that may come in with SCRAM-SHA-512.
    port
        Where clients come; None: a free one.

    Attributes
    ----------
    bootstrap : str
        The `bootstrap.servers` of its clients; stays the same over restarts.
    """

    def __init__(
        self,
        properties: Mapping[str, str] | None = None,
        heap: str = "512m",
        listener: str | None = None,
        advertised: str | None = None,
        scram: Mapping[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self._libs = kafka_jars()
        self._heap = heap
        self._folder = Path(tempfile.mkdtemp(prefix="tapewatch-kafka-"))
        self._log_file = self._folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        free_port, controller_port = free_ports(2)
        port = port or free_port
        self.bootstrap = f"127.0.0.1:{port}"
        settings = _settings(self._folder, port, controller_port) | dict(properties or {})
        if listener is not None:
            name, _, address = listener.partition("://")
            settings["listeners"] += f",{listener}"
            settings["advertised.listeners"] += f",{name}://{advertised or address}"
        self._scram = dict(scram or {})
        self._config = self._folder / "server.properties"
        self._config.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        _running.add(self)
        self._format()

    @property
    def pid(self) -> int | None:
        """Process id of the running broker, None while it is down."""
        return self._process.pid if self._process is not None else None

    def start(self) -> Self:
        """Start the broker and return when it answers.

        Raises
        ------
        KafkaStartError
            If it ends, or does not answer within a minute; the message holds its log.
        """
        assert self._process is None, "the broker runs already"
        with self._log_file.open("ab") as log:
            command = self._java("kafka.Kafka", str(self._config))
            self._process = start_owned(command, log, self._folder)
        self._await_ready(time.monotonic() + _START_WITHIN_S)
        return self

    def stop(self) -> None:
        """Shut down in order (SIGTERM); keeps ports and data for another `start`."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill at once (SIGKILL); keeps ports and data for another `start`."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Kill where it runs, and start again on the same ports with the same data."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop it without a word (SIGSTOP): its connections stay open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on (SIGCONT)."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the broker and delete its data; calling it again does nothing."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        _running.discard(self)

    def wait(self) -> int:
        """Wait until the running broker ends by itself or by a signal; return its exit code."""
        assert self._process is not None, "the broker does not run"
        return self._process.wait()

    def log_tail(self, lines: int = 60) -> str:
        """Last lines of the broker's log."""
        if not self._log_file.exists():
            return "(the broker wrote no log)"
        return "\n".join(self._log_file.read_text(errors="replace").splitlines()[-lines:])

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _java(self, *main_class_and_arguments: str) -> list[str]:
        return [
            "java",
            f"-Xmx{self._heap}",
            "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
            "-Dorg.slf4j.simpleLogger.log.kafka.server=info",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
            "-cp",
            f"{self._libs}/*",
            *main_class_and_arguments,
        ]

    def _format(self) -> None:
        cluster = uuid.uuid4().hex[:22]
        command = self._java("kafka.tools.StorageTool", "format", "--standalone")
        command += ["--cluster-id", cluster, "--config", str(self._config)]
        for user, password in self._scram.items():
            command += ["--add-scram", f"SCRAM-SHA-512=[name={user},password={password}]"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_START_WITHIN_S, check=False
        )
        if done.returncode != 0:
            self.close()
            raise KafkaStartError(f"the log could not be formatted:\n{done.stdout}{done.stderr}")

    def _await_ready(self, deadline: float) -> None:
        assert self._process is not None
        # Connection refusals are expected here and not worth a line on the terminal.
        admin = AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0})
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                code, self._process = self._process.returncode, None
                raise KafkaStartError(f"Kafka ended with code {code}; its log:\n{self.log_tail()}")
            with contextlib.suppress(KafkaException):
                if admin.list_topics(timeout=1.0).brokers:
                    return
        raise KafkaStartError(
            f"Kafka did not answer within {_START_WITHIN_S} s; its log:\n{self.log_tail()}"
        )

    def _signal(self, which: signal.Signals) -> None:
        assert self._process is not None, "the broker does not run"
        os.killpg(self._process.pid, which)

    def _end(self, with_signal: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        for each in (with_signal, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, each)
            try:
                process.wait(timeout=_STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                continue
            return


def _settings(folder: Path, port: int, controller_port: int) -> dict[str, str]:
    """Broker settings: one node that is broker and controller, sized for a small machine."""
    return {
        "process.roles": "broker,controller",
        "node.id": "1",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port}",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller_port}",
        "log.dirs": str(folder / "data"),
        "auto.create.topics.enable": "false",
        "offsets.topic.replication.factor": "1",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.replication.factor": "1",
        "transaction.state.log.min.isr": "1",
        "transaction.state.log.num.partitions": "4",
        "share.coordinator.state.topic.replication.factor": "1",
        "share.coordinator.state.topic.min.isr": "1",
        "group.initial.rebalance.delay.ms": "0",
        # A killed broker may register again only when its old session is over: 9 s by default.
        "broker.heartbeat.interval.ms": "500",
        "broker.session.timeout.ms": "4000",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "log.cleaner.dedupe.buffer.size": str(16 * 1024 * 1024),
    }


def _close_all() -> None:
    for broker in list(_running):
        broker.close()


atexit.register(_close_all)


def _serve() -> None:
    """Run a broker on the usual port until ctrl-C: `make kafka`."""
    words = f"A Kafka on localhost:{USUAL_PORT} until ctrl-C, which deletes what it holds."
    argparse.ArgumentParser(prog="python -m tests.kafka_broker", description=words).parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with KafkaBroker(port=USUAL_PORT) as broker:
            print(f"Kafka answers at {broker.bootstrap} until ctrl-C, which deletes what it holds")
            sys.stdout.flush()
            code = broker.wait()
            sys.exit(f"Kafka ended with code {code}; its log:\n{broker.log_tail()}")
    except KeyboardInterrupt:
        sys.exit(0)
    except (KafkaStartError, KafkaUnavailableError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _serve()
