"""`tapewatch replay`: tick files to a topic, with a progress bar; joins readers, pace and Kafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, cast, get_args

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from detector.config import Config
from detector.errors import FailedError, RefusedError
from detector.kafka import Publisher
from detector.readers import FORMATS, read_files, read_vector_files, vector_columns
from detector.replay import Message, group, parse_speed, replay
from detector.replay import Progress as Pace
from detector.service import connection_of
from detector.ticks import NS_PER_S, Batch
from detector.wire import Format

_FLUSH_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class ReplayRequest:
    """What the command line asked for, as it was written; `run_replay` checks it."""

    files: tuple[Path, ...]
    topic: str
    speed: str = "1"
    batch_ticks: int = 1
    message_format: str = "dbn"
    file_format: str | None = None
    symbol: str | None = None
    columns: tuple[str, ...] | None = None
    since: str | None = None
    until: str | None = None


def run_replay(request: ReplayRequest, config: Config, console: Console) -> dict[str, Any]:
    """Publish the files; return messages, ticks, seconds and how far it fell behind.

    Raises
    ------
    RefusedError
        When something asked for cannot be meant, or a file cannot be read.
    FailedError
        When Kafka refuses a record or does not acknowledge the last ones in time.
    """
    speed = _speed(request.speed)
    if request.message_format not in get_args(Format):
        raise RefusedError(
            f"--message-format {request.message_format}: allowed are {', '.join(get_args(Format))}"
        )
    fmt = cast("Format", request.message_format)
    columns = _columns(request) if fmt == "vector" else None
    batches = _within(_read(request, columns), request)
    refused: list[str] = []

    def acknowledge(error: str | None) -> None:
        if error is not None:
            refused.append(error)

    with Publisher(connection_of(config), **{"linger.ms": 5}) as publisher:

        def publish(message: Message) -> None:
            if refused:
                raise FailedError(f"topic {request.topic}: {refused[0]}")
            if publisher.health.fatal is not None:
                raise publisher.health.fatal
            publisher.publish(
                request.topic, message.key, message.value, message.headers, acknowledge
            )

        publisher.require_topic(request.topic)
        began = time.monotonic()
        messages = group(batches, fmt, batch_ticks=request.batch_ticks, columns=columns)
        done = _with_progress(messages, publish, speed, console)
        left = publisher.flush(_FLUSH_S)
    if refused:
        raise FailedError(f"topic {request.topic}: {refused[0]}")
    if left:
        raise FailedError(
            f"{left} messages were not acknowledged within {_FLUSH_S:.0f} s: "
            f"{publisher.health.last_error}"
        )
    return {
        "messages": done.messages,
        "ticks": done.ticks,
        "seconds": time.monotonic() - began,
        "behind_s": done.behind_s,
    }


def event_time_ns(text: str, option: str) -> int:
    """Read an ISO 8601 time, UTC where it names no zone, as ns since the epoch."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise RefusedError(
            f"{option} {text}: not an ISO 8601 time such as 2014-05-02T12:30:00Z"
        ) from error
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    micros = (when - datetime(1970, 1, 1, tzinfo=UTC)) // (when.resolution)
    return micros * 1000


def _speed(text: str) -> float:
    try:
        return parse_speed(text)
    except ValueError as error:
        raise RefusedError(f"--speed: {error}") from error


def _columns(request: ReplayRequest) -> tuple[str, ...]:
    return request.columns or vector_columns(request.files[0])


def _read(request: ReplayRequest, columns: tuple[str, ...] | None) -> Iterator[Batch]:
    if columns is not None:
        yield from read_vector_files(request.files, columns=columns, symbol=request.symbol)
        return
    if request.file_format not in (None, *FORMATS):
        raise RefusedError(f"--format {request.file_format}: allowed are {', '.join(FORMATS)}")
    yield from read_files(
        request.files,
        format=request.file_format,
        symbol=request.symbol,
    )


def _within(batches: Iterator[Batch], request: ReplayRequest) -> Iterator[Batch]:
    """Leave out what lies before `since` or from `until` on."""
    since = None if request.since is None else event_time_ns(request.since, "--from")
    until = None if request.until is None else event_time_ns(request.until, "--until")
    for batch in batches:
        inside = np.ones(len(batch), np.bool_)
        if since is not None:
            inside &= batch.ts_event >= since
        if until is not None:
            inside &= batch.ts_event < until
        if inside.all():
            yield batch
        elif inside.any():
            yield batch.taken(inside)


def _with_progress(
    messages: Iterator[Message],
    publish: Callable[[Message], None],
    speed: float,
    console: Console,
) -> Pace:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("replay", total=None)

        def tell(pace: Pace) -> None:
            when = datetime.fromtimestamp(pace.event_ns / NS_PER_S, UTC)
            progress.update(
                task, description=f"{pace.ticks:,} ticks, event time {when:%Y-%m-%d %H:%M:%S}"
            )

        return replay(messages, publish, speed=speed, on_progress=tell)
