"""A commit on its way to the cluster, on a thread of its own, so that nobody has to wait for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from detector.ledger import Ticket


class Commit:
    """One commit in flight, and what it is of.

    Parameters
    ----------
    call
        Commits; returns or raises when it is known what became of it.
    told
        Called with this commit when it is over, however it ended; from the commit's thread.
    positions
        Next offset of each partition that it commits.
    ticket
        Its claim in the ledger, to be finished when it is committed.
    began
        Reading of `time.perf_counter` when its records began to be made.
    """

    def __init__(
        self,
        call: Callable[[], object],
        told: Callable[[Commit], object],
        positions: Mapping[int, int],
        ticket: Ticket,
        began: float,
    ) -> None:
        self.positions = positions
        self.ticket = ticket
        self.seconds = 0.0
        self._call = call
        self._told = told
        self._began = began
        self._error: BaseException | None = None
        self._over = threading.Event()
        # A daemon thread: a call that is never answered must not keep the process.
        threading.Thread(target=self._run, name="commit", daemon=True).start()

    @property
    def over(self) -> bool:
        """Whether it is known what became of it: `end` does not wait."""
        return self._over.is_set()

    def end(self) -> None:
        """Wait until it is over; raise what its call raised."""
        self._over.wait()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            self._call()
        except BaseException as error:  # raised by `end`
            self._error = error
        self.seconds = time.perf_counter() - self._began
        self._over.set()
        self._told(self)
