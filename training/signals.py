"""Long commands end at SIGTERM as they do at Ctrl-C: what they hold is let go, one line says so."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class _TerminatedError(BaseException):
    """SIGTERM came. No `Exception`: nothing on the way may take it for a failure of its own."""


def ends_in_order(command: Callable[P, R]) -> Callable[P, R]:
    """Let a command unwind at SIGTERM and SIGINT: exit code 143 or 130, as shells have it."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if threading.current_thread() is not threading.main_thread():
            return command(*args, **kwargs)  # Python takes signals in the main thread alone
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            return command(*args, **kwargs)
        except (_TerminatedError, KeyboardInterrupt) as error:
            number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
            sys.stderr.write(f"{command.__name__}: ended by {number.name} before it was done\n")
            raise SystemExit(128 + number) from None
        finally:
            signal.signal(signal.SIGTERM, before)

    return run


def _terminate(*_: object) -> None:
    raise _TerminatedError
