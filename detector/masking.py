"""Keeps known secrets out of whatever is printed: log lines, error messages and tracebacks.

Configuration hands every secret it reads to `remember`. The configuration's own types never print
a secret; this module is for texts that others make: an error of librdkafka, the traceback of a bug.
It knows no configuration and no Kafka.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Final

MASK: Final = "**********"
LEAST_LENGTH: Final = 4
"""Shorter secrets are not looked for: replacing them would make every text unreadable."""

_known: set[str] = set()


def remember(secret: str) -> None:
    """Let `scrub` take this secret out of texts, also as JSON and `repr` escape it."""
    if len(secret) >= LEAST_LENGTH:
        _known.update({secret, json.dumps(secret)[1:-1], repr(secret)[1:-1]})


def scrub(text: str) -> str:
    """Return the text with every known secret masked."""
    for secret in sorted(_known, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, MASK)
    return text


class Scrubbing(logging.Filter):
    """Masks secrets in a record before any handler sees it."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Rewrite the record's message; every record passes."""
        record.msg, record.args = scrub(record.getMessage()), ()
        return True


def guard_tracebacks() -> None:
    """Print tracebacks that nobody catches with secrets masked, in every thread."""

    def show(
        kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stderr.write(scrub("".join(traceback.format_exception(kind, error, trace))))

    def in_thread(raised: threading.ExceptHookArgs) -> None:
        show(raised.exc_type, raised.exc_value, raised.exc_traceback)

    sys.excepthook = show
    threading.excepthook = in_thread
