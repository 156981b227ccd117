"""The log stays readable while a broker is away."""

from __future__ import annotations

import logging

from detector.logs import OncePerWhile


def record(name: str, line: str, at: float) -> logging.LogRecord:
    """A log record at a time."""
    made = logging.LogRecord(name, logging.ERROR, "", 0, line, None, None)
    made.created = at
    return made


def test_client_lines_that_differ_in_numbers_only_come_once_in_a_while() -> None:
    """A repeated line of the client is held back for a while; another one, or ours, is not."""
    shown = OncePerWhile(interval_s=30.0).filter
    assert shown(record("librdkafka", "FAIL 10.0.0.1:9092 after 3 ms", 0.0))
    assert not shown(record("librdkafka", "FAIL 10.0.0.1:9092 after 41 ms", 10.0))
    assert shown(record("librdkafka", "SSL handshake failed", 10.0))
    assert shown(record("librdkafka", "FAIL 10.0.0.1:9092 after 7 ms", 31.0))
    assert shown(record("tapewatch", "stopped", 31.0))
    assert shown(record("tapewatch", "stopped", 31.1))
