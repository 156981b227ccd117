"""Long commands end at SIGTERM as they do at Ctrl-C: what they hold is let go, one line says so."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from functools import wraps
from typing import Final, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_AGAIN_S: Final = 0.05


class _TerminatedError(BaseException):
    """SIGTERM came. No `Exception`: nothing on the way may take it for a failure of its own."""


def ends_in_order(command: Callable[P, R]) -> Callable[P, R]:
    """Let a command unwind at SIGTERM and SIGINT: exit code 143 or 130, as shells have it."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        if threading.current_thread() is not threading.main_thread():
            return command(*args, **kwargs)  # Python takes signals in the main thread alone
        before = signal.signal(signal.SIGTERM, _terminate)
        hook, sys.unraisablehook = sys.unraisablehook, _send_again_what_was_ignored
        try:
            return command(*args, **kwargs)
        except (_TerminatedError, KeyboardInterrupt) as error:
            number = signal.SIGINT if isinstance(error, KeyboardInterrupt) else signal.SIGTERM
            sys.stderr.write(f"{command.__name__}: ended by {number.name} before it was done\n")
            raise SystemExit(128 + number) from None
        finally:
            sys.unraisablehook = hook
            signal.signal(signal.SIGTERM, before)

    return run


def _send_again_what_was_ignored(ignored: sys.UnraisableHookArgs) -> None:
    """Send a signal again that came where Python cannot raise: in a callback from a C library.

    Numba's compiler calls back; what is raised there is dropped, and the command would go on.
    """
    if not isinstance(ignored.exc_value, _TerminatedError | KeyboardInterrupt):
        sys.__unraisablehook__(ignored)
        return
    number = signal.SIGTERM if isinstance(ignored.exc_value, _TerminatedError) else signal.SIGINT
    again = threading.Timer(_AGAIN_S, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _terminate(*_: object) -> None:
    raise _TerminatedError
