"""The reference documents that are generated from definitions, so that they cannot disagree.

`python -m detector.documents` writes them into `docs/`; a test checks that the committed files are
in step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import orjson
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from detector.config import OWNED_PROPERTIES, Config
from detector.features import features_markdown
from detector.metrics import Metrics

_CONFIGURATION_HEAD: Final = """# Configuration

`tapewatch run --config tapewatch.toml` reads a TOML file; an environment variable
`TAPEWATCH_<SECTION>__<KEY>` overrides a key (`TAPEWATCH_BATCH__MAX_SIZE=1024`). Unknown keys and
values outside of what is allowed are refused, all of them in one message; what Kafka's client
says of `[kafka.properties]` comes once the rest is right. Relative paths are relative to the
file. `tapewatch config check` validates without starting anything; `tapewatch config show`
prints what is in force with secrets masked. Every key has a default: an empty file is valid.

This page is generated: `make docs`.
"""

_OWNED_HEAD: Final = """## librdkafka properties that tapewatch owns

Any other property goes into `[kafka.properties]`, for example `"fetch.min.bytes" = 7`.
Consumer and producer are given each their own: `"linger.ms"` means nothing to the first.
What `[kafka.security]` sets cannot be set here as well.
With `"group.protocol" = "consumer"` (KIP-848) the brokers decide on sessions, heartbeats and
assignor; a member that sets `session.timeout.ms`, `heartbeat.interval.ms`,
`partition.assignment.strategy` or `group.protocol.type` is refused.
Values whose name looks like a secret are masked wherever configuration is shown; give them by
environment (`TAPEWATCH_KAFKA__SECURITY__PASSWORD`) or by file (`password_file`).

| property | why it is refused |
|---|---|"""

_SUFFIXES: Final = {"counter": "_total", "info": "_info"}
_METRICS_HEAD: Final = """# Metrics

What `/metrics` tells, beside the usual `process_` and `python_` series. Times are in seconds, sizes
in bytes. No metric has a label that grows with the market: instruments are named in
`tapewatch_open_episode_severity` only, twenty at most. This page is generated: `make docs`.

A scraper that asks for OpenMetrics, as Prometheus does, gets exemplars too: each bucket of
`tapewatch_tick_to_event_seconds` carries the first 16 digits of the `event_id` of an event that
fell into it. Prometheus keeps them if it is started with `--enable-feature=exemplar-storage`.
[configuration](configuration.md#http) says how to protect `/metrics`.

| metric | type | labels | meaning |
|---|---|---|---|"""


def configuration_markdown() -> str:
    """Return `docs/configuration.md`."""
    parts = [_CONFIGURATION_HEAD, "## Top level\n", _table({"delivery": _field("delivery")})]
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            parts += _section(name, section)
    parts += [
        _OWNED_HEAD,
        *(f"| `{name}` | {reason} |" for name, reason in OWNED_PROPERTIES.items()),
        "",
    ]
    return "\n".join(parts)


def metrics_markdown() -> str:
    """Return `docs/metrics.md`."""
    registry = CollectorRegistry()
    Metrics(registry).model.info({"version": "", "hash": "", "device": ""})
    lines = [_METRICS_HEAD]
    for family in sorted(registry.collect(), key=lambda f: f.name):
        labels = sorted({k for s in family.samples for k in s.labels} - {"le"})
        if not labels:
            labels = sorted(_declared_labels(registry, family.name))
        name = family.name + _SUFFIXES.get(family.type, "")
        lines.append(f"| `{name}` | {family.type} | {', '.join(labels)} | {family.documentation} |")
    return "\n".join([*lines, ""])


DOCUMENTS: Final[Mapping[str, Callable[[], str]]] = {
    "configuration.md": configuration_markdown,
    "features.md": features_markdown,
    "metrics.md": metrics_markdown,
}


def _field(name: str) -> FieldInfo:
    return Config.model_fields[name]


def _declared_labels(registry: CollectorRegistry, name: str) -> set[str]:
    """Labels of a metric that has no series yet."""
    collector: Any = registry._names_to_collectors.get(name)  # noqa: SLF001
    return set(getattr(collector, "_labelnames", ()))


def _table(fields: Mapping[str, FieldInfo]) -> str:
    lines = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{name}` | {_allowed(field)} | {_default(field)} | {field.description or ''} |"
        for name, field in fields.items()
    ]
    return "\n".join([*lines, ""])


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined or value is None:
        return "not set"
    return f"`{orjson.dumps(str(value) if isinstance(value, Path) else value).decode()}`"


def _section(name: str, section: type[BaseModel]) -> list[str]:
    """Return heading, meaning and keys of a section, then of those inside it."""
    inner = {
        key: kind
        for key, field in section.model_fields.items()
        if isinstance(kind := field.annotation, type) and issubclass(kind, BaseModel)
    }
    plain = {key: field for key, field in section.model_fields.items() if key not in inner}
    parts = [f"## [{name}]\n", f"{section.__doc__}\n", _table(plain)]
    for key, kind in inner.items():
        parts += _section(f"{name}.{key}", kind)
    return parts


def _allowed(field: FieldInfo) -> str:
    """Return the type or the choices, with their bounds."""
    annotation = field.annotation
    choices = getattr(annotation, "__args__", ())
    if choices and getattr(choices[0], "__args__", ()):  # choices, or None
        choices = choices[0].__args__
    if choices and all(isinstance(choice, str) for choice in choices):
        return ", ".join(f'`"{choice}"`' for choice in choices)
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path"}
    kind = names.get(annotation, "") if isinstance(annotation, type) else ""
    if not kind:
        shape = str(annotation)
        kinds = {
            "dict": "table",
            "Secret": "secret text",
            "Path": "path",
            "tuple": "list of text",
            "str": "text",
        }
        kind = next(word for part, word in kinds.items() if part in shape)
    bounds = {type(rule).__name__.lower(): rule for rule in field.metadata}
    words = []
    if "gt" in bounds:
        words.append(f"above {bounds['gt'].gt:g}")
    if "ge" in bounds:
        words.append(f"from {bounds['ge'].ge:g}")
    if "le" in bounds:
        words.append(f"to {bounds['le'].le:g}")
    if "lt" in bounds:
        words.append(f"below {bounds['lt'].lt:g}")
    return " ".join([kind, *words])


def main(folder: Path = Path("docs")) -> None:
    """Write every document into the folder."""
    for name, render in DOCUMENTS.items():
        (folder / name).write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
