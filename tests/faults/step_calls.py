"""The test's end of a launcher's calls: runs what was asked for while the daemon waits."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

_WITHIN_S = 20.0


class StepCalls:
    """Answers daemons that call at a step: does what was asked for, or else `each`."""

    def __init__(self, each: Callable[[], None] = lambda: None) -> None:
        self._each = each
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="step-calls", daemon=True)

    def once(self, what: Callable[[], None]) -> bool:
        """Do it while the daemon waits at its next step; False if no step came in time."""
        self._done.clear()
        self._asked.put(what)
        return self._done.wait(_WITHIN_S)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Answer no more calls."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                call, _ = self._server.accept()
                with call:
                    try:
                        asked = self._asked.get_nowait()
                    except queue.Empty:
                        self._each()
                    else:
                        asked()
                        self._done.set()
