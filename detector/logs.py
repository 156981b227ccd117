"""The log: one fact a line on standard error, as JSON or as text for a terminal."""

from __future__ import annotations

import logging
import math
import re
import sys
from typing import Literal

import structlog

from detector.masking import scrub


class OncePerWhile(logging.Filter):
    """Lets a line of librdkafka through once in `interval_s`; a lost broker is told ten times a s.

    Lines count as the same when they differ in their numbers only.
    """

    def __init__(self, interval_s: float = 30.0) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._told: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the record is shown."""
        if record.name != "librdkafka":
            return True
        line = re.sub(r"\d+", "#", record.getMessage())
        if record.created - self._told.get(line, -math.inf) < self._interval_s:
            return False
        if len(self._told) > 1000:
            self._told.clear()
        self._told[line] = record.created
        return True


class _ScrubbedFormatter(structlog.stdlib.ProcessorFormatter):
    """Masks secrets in whole lines, tracebacks included."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line without secrets."""
        return scrub(super().format(record))


def configure_logs(level: str = "info", style: Literal["json", "console"] = "json") -> None:
    """Send structlog's and librdkafka's lines to standard error in one form."""
    number = logging.getLevelNamesMapping()[level.upper()]
    stamps: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if style == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    )
    structlog.configure(
        processors=[
            *stamps,
            structlog.processors.format_exc_info,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _ScrubbedFormatter(
            foreign_pre_chain=stamps,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    handler.addFilter(OncePerWhile())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.INFO))
    for noisy in ("tensorflow", "h5py", "matplotlib", "numba"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
