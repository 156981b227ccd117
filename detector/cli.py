"""The `tapewatch` command: every subcommand in a few lines, heavy imports only where needed.

Exit codes: 0 done, 1 failure, 2 bad usage, configuration or artifact.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import orjson
import typer
from rich.console import Console
from rich.table import Table

from detector import __version__
from detector.config import Config, load_config
from detector.errors import FailedError, RefusedError
from detector.masking import guard_tracebacks, scrub

app = typer.Typer(
    name="tapewatch",
    help="Watches a tape of market ticks on Kafka and says which ticks are anomalous, and why.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="Check or show the configuration.", no_args_is_help=True)
topics_app = typer.Typer(help="Create the topics tapewatch needs.", no_args_is_help=True)
app.add_typer(config_app, name="config")
app.add_typer(topics_app, name="topics")

out = Console()
err = Console(stderr=True)

_DISK_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_KERNELS: Final = (
    "compiled kernels are kept in the folder that the environment variable NUMBA_CACHE_DIR names, "
    "about 5 MB: it must be possible to write there"
)

ConfigPath = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="TOML file; docs/configuration.md lists the keys."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
Bootstrap = Annotated[
    str | None, typer.Option("--bootstrap", help="Brokers as host:port; else from --config.")
]


def main() -> None:
    """Run the command line; the entry point of the package."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    guard_tracebacks()
    _register_training()
    with _told():
        app()


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Turn what a user can mend into one message and an exit code; bugs keep their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except (RefusedError, FailedError) as error:
        err.print(scrub(str(error)), style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2 if isinstance(error, RefusedError) else 1)
    except RuntimeError as error:
        if "cannot cache function" not in str(error):
            raise
        err.print(f"{error}; {_KERNELS}", style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    except OSError as error:
        if error.filename is None and error.errno in _DISK_FULL:
            err.print(f"{error.strerror}; {_KERNELS}", style="red", markup=False, soft_wrap=True)
            sys.exit(1)
        if error.filename is None:
            raise
        err.print(f"{error.filename}: {error.strerror}", style="red", markup=False, soft_wrap=True)
        sys.exit(2)


def _register_training() -> None:
    """Add the offline commands by name: the runtime itself never imports `training`."""
    with contextlib.suppress(ModuleNotFoundError):
        importlib.import_module("training.cli").register(app)


def _version(wanted: bool) -> None:
    if wanted:
        out.print(f"tapewatch {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Watches a tape of market ticks on Kafka and says which ticks are anomalous, and why."""


# ---- run ---------------------------------------------------------------------------------------


@app.command()
def run(config: ConfigPath = None) -> None:
    """Run the daemon: consume ticks, publish anomaly events, until SIGTERM.

    Example: tapewatch run --config tapewatch.toml
    """
    from detector.logs import configure_logs  # noqa: PLC0415
    from detector.service import Service, end_at_once, exit_if_stuck  # noqa: PLC0415

    service: Service | None = None

    def on_signal(*_: object) -> None:
        exit_if_stuck()
        if service is None:
            # Nothing was taken in yet. An exception in the midst of Numba's compiling would be told
            # as a failure of Numba's.
            end_at_once(0)
        service.stop()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    settings = load_config(config)
    configure_logs(settings.log.level, settings.log.format)
    try:
        service = Service(settings)
    except OSError as error:
        raise RefusedError(
            f"http.host = {settings.http.host!r}, http.port = {settings.http.port}: "
            f"cannot listen there: {error.strerror}"
        ) from error

    code: str | int | None = 0
    with service:
        try:
            with _told():
                service.run()
        except SystemExit as told:
            code = told.code
    end_at_once(int(code or 0))


@config_app.command("check")
def config_check(config: ConfigPath = None) -> None:
    """Validate the configuration, librdkafka's properties and the files of [http] too.

    No broker is waited for.

    Example: tapewatch config check --config tapewatch.toml
    """
    from detector.kafka import check_properties  # noqa: PLC0415
    from detector.service import connection_of  # noqa: PLC0415

    settings = load_config(config)
    check_properties(connection_of(settings), settings.kafka.group_id)
    settings.http.access()
    out.print("the configuration is valid")


@config_app.command("show")
def config_show(config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Print the configuration in force, defaults and environment included, secrets masked.

    Example: tapewatch config show --config tapewatch.toml
    """
    values = load_config(config).model_dump(mode="json")
    if as_json:
        _print_json(values)
        return
    for section, keys in values.items():
        if not isinstance(keys, dict):
            out.print(f"{section} = {_toml(keys)}", highlight=False, markup=False, soft_wrap=True)
    for section, keys in values.items():
        if isinstance(keys, dict):
            out.print(f"\n[{section}]", highlight=False, markup=False, soft_wrap=True)
            _print_section(keys)


def _print_section(keys: dict[str, object]) -> None:
    for key, value in keys.items():
        if isinstance(value, dict):
            inner = ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items() if v is not None)
            line = f"{key} = {{ {inner} }}"
        elif value is None:
            line = f"# {key} is not set"
        else:
            line = f"{key} = {_toml(value)}"
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _toml(value: object) -> str:
    """Return a scalar or a list as TOML writes it; JSON's form of these is the same."""
    return orjson.dumps(value).decode()


# ---- topics and events -------------------------------------------------------------------------


EVENT_TOPIC: Final = {"cleanup.policy": "delete"}
"""Compaction would keep the last record of each key only."""
STATE_TOPIC: Final = {
    "cleanup.policy": "compact",
    "max.compaction.lag.ms": "600000",
    # Only full segments are compacted: with the default of 1 GB that much of void snapshots could
    # gather in each partition of a busy group.
    "segment.bytes": str(16 * 1024 * 1024),
    # Each delta has a key of its own, so that its tombstone stays this long; a day by default. A
    # reader slower than that meets deltas that lead nowhere, which it passes over anyway.
    "delete.retention.ms": "600000",
}
"""A reader of state reads the topic whole: what is void must not stay for days."""


@topics_app.command("create")
def topics_create(
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
    partitions: Annotated[
        int | None, typer.Option(min=1, help="Partitions of the input topic; 4 where it is new.")
    ] = None,
    replication: Annotated[int, typer.Option(min=1, help="Copies of every partition.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Create the topics for ticks, anomalies, dead letters, state and, if configured, latents.

    The topic of state is compacted and gets as many partitions as the input has. Topics that exist
    are left as they are; one with too few partitions or another cleanup policy is told, with the
    command that mends it and exit code 1.

    Example: tapewatch topics create --bootstrap localhost:9092 --partitions 8
    """
    from detector.kafka import TopicPlan, create_topics, partitions_of  # noqa: PLC0415
    from detector.service import connection_of  # noqa: PLC0415

    settings = _with_bootstrap(load_config(config), bootstrap)
    topics = settings.topics
    connection = connection_of(settings)
    new, least = partitions or 4, partitions or 1
    dead_letter_limit = {"max.message.bytes": str(16 * 1024 * 1024)}
    plans = [
        TopicPlan(topics.ticks, new, EVENT_TOPIC, least),
        TopicPlan(topics.anomalies, new, EVENT_TOPIC, least),
        TopicPlan(topics.dead_letters, 1, EVENT_TOPIC | dead_letter_limit),
    ]
    if topics.latents is not None:
        plans.append(TopicPlan(topics.latents, new, EVENT_TOPIC, least))
    if settings.state.keep:
        inputs = max(least, partitions_of(connection, topics.ticks) or new)
        plans.append(TopicPlan(topics.state, inputs, STATE_TOPIC, inputs))
    results = create_topics(connection, plans, replication)
    if as_json:
        _print_json(results)
    else:
        for name, result in results.items():
            out.print(scrub(f"{name}: {result}"), highlight=False, markup=False, soft_wrap=True)
    if not set(results.values()) <= {"created", "exists"}:
        raise FailedError("not every topic is there as it must be; see above")


@app.command()
def events(
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
    topic: Annotated[str | None, typer.Option(help="Topic; else from --config.")] = None,
    from_beginning: Annotated[
        bool, typer.Option("--from-beginning", help="Also what was published before.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, help="Stop after so many; 0 never stops.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Follow the anomaly topic, readably or as JSON lines.

    Example: tapewatch events --bootstrap localhost:9092 --from-beginning
    """
    from detector.event_view import line_of  # noqa: PLC0415
    from detector.kafka import follow  # noqa: PLC0415
    from detector.service import connection_of  # noqa: PLC0415

    settings = _with_bootstrap(load_config(config), bootstrap)
    name = topic or settings.topics.anomalies
    group = f"{settings.kafka.group_id}-events-{os.getpid()}"
    seen = 0
    for message in follow(connection_of(settings), name, group, from_beginning=from_beginning):
        if message is None:
            continue
        value = message.value() or b""
        if as_json:
            sys.stdout.write(value.decode("utf-8", "replace") + "\n")
            sys.stdout.flush()
        else:
            out.print(line_of(value), soft_wrap=True)
        seen += 1
        if limit and seen >= limit:
            return


# ---- replay ------------------------------------------------------------------------------------


@app.command()
def replay(
    ticks: Annotated[
        list[Path],
        typer.Option("--ticks", help="Tick files; more may follow, or repeat the option."),
    ],
    more: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", show_default=False)
    ] = None,
    config: ConfigPath = None,
    bootstrap: Bootstrap = None,
    topic: Annotated[str | None, typer.Option(help="Topic; else from --config.")] = None,
    speed: Annotated[str, typer.Option(help="Times faster than event time, or max.")] = "1",
    batch_ticks: Annotated[int, typer.Option(min=1, help="Most ticks in a message.")] = 1,
    message_format: Annotated[
        str, typer.Option("--message-format", help="Encoding of messages: dbn, json or vector.")
    ] = "dbn",
    file_format: Annotated[
        str | None, typer.Option("--format", help="Format of the files; else told by their names.")
    ] = None,
    symbol: Annotated[str | None, typer.Option(help="Name of the instrument in the file.")] = None,
    columns: Annotated[
        str | None, typer.Option(help="Vector files: columns to send, by comma.")
    ] = None,
    since: Annotated[
        str | None, typer.Option("--from", help="First event time, ISO 8601, inclusive.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--until", help="Last event time, ISO 8601, exclusive.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Publish tick files to a topic at the pace of their event times.

    Every instrument stays in one partition. Vector files become messages with `--message-format
    vector`.

    Example: tapewatch replay --ticks day.dbn.zst --topic ticks --speed 10 --batch-ticks 16
    """
    from detector.replaying import ReplayRequest, run_replay  # noqa: PLC0415

    settings = _with_bootstrap(load_config(config), bootstrap)
    request = ReplayRequest(
        files=(*ticks, *(more or ())),
        topic=topic or settings.topics.ticks,
        speed=speed,
        batch_ticks=batch_ticks,
        message_format=message_format,
        file_format=file_format,
        symbol=symbol,
        columns=None if columns is None else tuple(columns.split(",")),
        since=since,
        until=until,
    )
    done = run_replay(request, settings, err)
    if as_json:
        _print_json(done)
    else:
        out.print(
            f"{done['ticks']} ticks in {done['messages']} messages to {request.topic}, "
            f"{done['seconds']:.1f} s, at most {done['behind_s']:.3f} s behind",
            highlight=False,
        )


@app.command()
def features(
    vector: Annotated[
        str | None, typer.Option(help="Columns of vector messages, by comma, for their features.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the table of features with unit, definition and source.

    Example: tapewatch features
    """
    from detector.features import DEFAULT, features_table, vector_spec  # noqa: PLC0415

    spec = DEFAULT if vector is None else vector_spec(tuple(vector.split(",")))
    rows = features_table(spec)
    if as_json:
        _print_json({"fingerprint": spec.fingerprint, "features": rows})
        return
    columns = ("name", "group", "unit", "window", "definition", "source")
    table = Table(*columns, title=f"{len(rows)} features")
    for row in rows:
        table.add_row(*(row[column] for column in columns))
    out.print(table)


@app.command()
def bench(
    model: Annotated[Path, typer.Option("--model", help="Model folder to measure.")],
    instruments: Annotated[int, typer.Option(min=1, help="Instruments on the tape.")] = 1000,
    ticks: Annotated[int, typer.Option(min=10_000, help="Ticks on the tape.")] = 500_000,
    as_json: AsJson = False,
) -> None:
    """Measure features, scoring and the whole engine of a model on this machine, without Kafka.

    Example: tapewatch bench --model model
    """
    from detector.artifact import read_artifact  # noqa: PLC0415
    from detector.bench import bench_model  # noqa: PLC0415

    facts = bench_model(read_artifact(model), instruments=instruments, ticks=ticks)
    if as_json:
        _print_json(facts)
        return
    table = Table("what", "median", "lowest", "highest", "unit", title=f"{model}, this machine")
    for figure in facts["figures"]:
        shown = (f"{figure[name]:,.1f}" for name in ("value", "low", "high"))
        table.add_row(figure["name"], *shown, figure["unit"])
    out.print(table)
    out.print(
        f"{facts['features']} features, {facts['multiply_adds']:,} multiply-adds a tick, "
        f"{facts['instruments']:,} instruments",
        highlight=False,
    )


def _with_bootstrap(config: Config, bootstrap: str | None) -> Config:
    """Get ready to talk to Kafka, with the brokers of the command line if it names some."""
    from detector.logs import configure_logs  # noqa: PLC0415

    configure_logs(config.log.level, "console")  # of the client, once in a while and scrubbed
    for warning in config.kafka.security.warnings():
        err.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    if bootstrap is None:
        return config
    kafka = config.kafka.model_copy(update={"bootstrap_servers": bootstrap})
    return config.model_copy(update={"kafka": kafka})


def _print_json(value: object) -> None:
    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
