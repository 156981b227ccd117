"""`tapewatch run` that dies, or calls the test, at a named step.

Run as `python -m tests.faults.launcher CONFIG STEP NTH PORT`. With port 0 the process kills itself
with SIGKILL when the step comes for the NTH time. Otherwise at every NTH time it connects to that
port on this machine and goes on when the other side hangs up, or when nobody listens: what the test
does meanwhile happens exactly there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from pathlib import Path

from detector.config import load_config
from detector.logs import configure_logs
from detector.service import Service, end_at_once, exit_if_stuck

_ANSWER_WITHIN_S = 20.0


class AtStep:
    """Dies or calls when a step comes for the nth time."""

    def __init__(self, step: str, nth: int, port: int) -> None:
        self._step, self._nth, self._port = step, nth, port
        self._came = 0

    def __call__(self, step: str) -> None:
        """Take note of a step; called by the daemon."""
        if step != self._step:
            return
        self._came += 1
        if self._came % self._nth:
            return
        if not self._port:
            os.kill(os.getpid(), signal.SIGKILL)
        with (
            contextlib.suppress(OSError),  # the test asks for nothing any more
            socket.create_connection(("127.0.0.1", self._port), _ANSWER_WITHIN_S) as test,
        ):
            test.recv(1)


def main(config: Path, step: str, nth: int, port: int) -> None:
    """Run the daemon until SIGTERM, or until it dies."""
    settings = load_config(config)
    configure_logs(settings.log.level, settings.log.format)
    service = Service(settings, on_step=AtStep(step, nth, port))

    def on_signal(*_: object) -> None:
        exit_if_stuck()
        service.stop()

    signal.signal(signal.SIGTERM, on_signal)
    with service:
        service.run()
    end_at_once(0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
