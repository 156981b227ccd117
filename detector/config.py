"""The daemon's configuration: one frozen object from TOML and environment, validated once.

Nothing else in tapewatch reads the environment or a configuration file. An environment variable
`TAPEWATCH_<SECTION>__<KEY>` overrides the file; in `[kafka.properties]` the dots of a librdkafka
property are written as underscores there (`TAPEWATCH_KAFKA__PROPERTIES__SASL_PASSWORD`).
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from detector.drift import DriftSpec
from detector.errors import RefusedError
from detector.events import EpisodePolicy
from detector.http_access import Access, Credentials, read_password, tls_context
from detector.kafka_security import ALIASES, PROPERTIES, SecurityConfig
from detector.masking import MASK, remember

ENVIRONMENT_PREFIX: Final = "TAPEWATCH_"

_OFFSETS_REASON = "tapewatch commits an offset only after the events it led to are acknowledged"
OWNED_PROPERTIES: Final[Mapping[str, str]] = {
    "enable.auto.commit": _OFFSETS_REASON,
    "enable.auto.offset.store": _OFFSETS_REASON,
    "isolation.level": "tapewatch chooses it from the delivery guarantee",
    "transactional.id": "tapewatch chooses it from the delivery guarantee",
    "plugin.library.paths": "it would load foreign code into the daemon",
    "bootstrap.servers": "set kafka.bootstrap_servers instead",
    "metadata.broker.list": "set kafka.bootstrap_servers instead",
    "group.id": "set kafka.group_id instead",
    "client.id": "set kafka.client_id instead",
    "enable.partition.eof": "tapewatch does not read to an end",
    "message.timeout.ms": "an event is retried until it is acknowledged",
    "delivery.timeout.ms": "an event is retried until it is acknowledged",
    "acks": "events are acknowledged by all in-sync replicas",
    "request.required.acks": "events are acknowledged by all in-sync replicas",
    "enable.idempotence": "repeats by the producer itself must not happen",
    "enable.ssl.certificate.verification": "set kafka.security.protocol; certificates are verified "
    "unless kafka.security.insecure_skip_certificate_verification says otherwise",
    "ssl.endpoint.identification.algorithm": "set kafka.security.protocol; host names are verified "
    "unless kafka.security.insecure_skip_hostname_verification says otherwise",
    "dr_cb": "callbacks are tapewatch's own",
    "error_cb": "callbacks are tapewatch's own",
    "stats_cb": "callbacks are tapewatch's own",
}
_OF_THE_BROKERS: Final[Mapping[str, str]] = {
    "session.timeout.ms": "the brokers' group.consumer.session.timeout.ms",
    "heartbeat.interval.ms": "the brokers' group.consumer.heartbeat.interval.ms",
    "partition.assignment.strategy": "group.remote.assignor, one of the brokers' "
    "group.consumer.assignors",
    "group.protocol.type": "nothing",
}
"""With group.protocol = consumer (KIP-848): what takes the place of a member's own property."""
_SECRET: Final = re.compile(r"password|secret|\.key\.pem$|oauthbearer\.config|token|jaas")
_TOPIC: Final = re.compile(r"^[a-zA-Z0-9._-]{1,249}$")


class ConfigError(RefusedError, ValueError):
    """Configuration that cannot be used; every line names a key, its value and what is allowed."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


Property = Annotated[
    str | SecretStr,
    PlainSerializer(lambda v: MASK if isinstance(v, SecretStr) else v, return_type=str),
]


class KafkaConfig(_Section):
    """How to reach Kafka."""

    bootstrap_servers: str = Field(
        default="localhost:9092", min_length=1, description="Brokers as host:port, by comma."
    )
    group_id: str = Field(
        default="tapewatch", min_length=1, description="Consumer group; its members share the work."
    )
    client_id: str = Field(default="tapewatch", description="Name in the brokers' logs and quotas.")
    properties: dict[str, Property] = Field(
        default_factory=dict,
        description="librdkafka properties passed through, for example fetch.min.bytes.",
    )
    security: SecurityConfig = Field(
        default=SecurityConfig(), description="TLS and SASL, see [kafka.security]."
    )

    @field_validator("properties", mode="before")
    @classmethod
    def _pass_through(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        return {name: _property(name, value) for name, value in given.items()}

    @model_validator(mode="after")
    def _one_place_each(self) -> KafkaConfig:
        keys = {property_: key for key, property_ in PROPERTIES.items()}
        taken = set(self.security.properties())
        if self.security.protocol is not None:
            taken |= set(keys)
        for name in self.properties:
            plain = ALIASES.get(name, name)
            if plain in taken:
                key = keys.get(plain, "mechanism")
                raise ValueError(
                    f"properties: {name} is set by [kafka.security]; set kafka.security.{key} there"
                )
        return self

    @model_validator(mode="after")
    def _fits_the_group_protocol(self) -> KafkaConfig:
        if str(self.properties.get("group.protocol", "classic")).lower() != "consumer":
            return self
        wrong = [
            f"{name} (in its place: {instead})"
            for name, instead in _OF_THE_BROKERS.items()
            if name in self.properties
        ]
        if wrong:
            raise ValueError(
                "properties: with group.protocol = consumer the brokers decide on the group, and a "
                f"member cannot set {', '.join(wrong)}"
            )
        return self

    def plain_properties(self) -> dict[str, str]:
        """Return all librdkafka properties with secrets in clear, for the client only."""
        passed = {
            name: value.get_secret_value() if isinstance(value, SecretStr) else value
            for name, value in self.properties.items()
        }
        return {**passed, **self.security.properties()}

    def secrets(self) -> list[str]:
        """Return every secret in clear, for masking only."""
        passed = [v.get_secret_value() for v in self.properties.values() if not isinstance(v, str)]
        return [*passed, *self.security.secrets()]


def _property(name: str, value: object) -> str | SecretStr:
    """Check one librdkafka property and hide its value if it is a secret."""
    if name in OWNED_PROPERTIES:
        raise ValueError(f"{name} cannot be set: {OWNED_PROPERTIES[name]}")
    if isinstance(value, SecretStr):
        return value
    if not isinstance(value, str | int | float | bool):
        # pydantic reports a ValueError with its key; a TypeError would pass through it
        raise ValueError(f"{name} must be a string, a number or a boolean")  # noqa: TRY004
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return SecretStr(text) if _SECRET.search(name) else text


class TopicsConfig(_Section):
    """Names of the topics."""

    ticks: str = Field(default="ticks", description="Input.")
    anomalies: str = Field(default="anomalies", description="Events, keyed by symbol.")
    dead_letters: str = Field(
        default="anomalies.dlq",
        description="Messages that could not be decoded, byte for byte unless too large.",
    )

    state: str = Field(
        default="tapewatch.state",
        description="State of the daemon: compacted, with as many partitions as the input.",
    )

    latents: str | None = Field(
        default=None,
        description="Latents of the scored ticks, keyed by symbol, see docs/latents.md; default: "
        "they are not published.",
    )

    @field_validator("*")
    @classmethod
    def _legal(cls, name: str | None) -> str | None:
        if name is None:
            return name
        if not _TOPIC.match(name) or name in {".", ".."}:
            raise ValueError("a topic name has 1 to 249 of the characters a-z A-Z 0-9 . _ -")
        return name

    @model_validator(mode="after")
    def _distinct(self) -> TopicsConfig:
        names = {self.ticks, self.anomalies, self.dead_letters, self.state, self.latents}
        if len(names) < 5:
            raise ValueError(
                "ticks, anomalies, dead_letters, state and latents must be different topics"
            )
        return self


class InputConfig(_Section):
    """What the messages of the tick topic look like."""

    format: Literal["dbn", "json", "vector"] = Field(
        default="dbn", description="Encoding of a message; docs/input.md defines each."
    )
    trade_book: Literal["before", "after"] = Field(
        default="after",
        description="Whether dbn trade records carry the book before or after the trade. "
        "Databento's own feed has it before; what `tapewatch replay` writes has it after.",
    )
    columns: tuple[str, ...] | None = Field(
        default=None, description="Column names of vector messages; default: the model's."
    )
    symbols_file: Path | None = Field(
        default=None,
        description="CSV with symbol,publisher_id,instrument_id; goes before the model's names.",
    )
    latency_from: Literal["kafka", "ts_recv"] = Field(
        default="kafka",
        description="Start of the tick-to-event latency: the record's Kafka timestamp, or the "
        "tick's ts_recv (live feeds only).",
    )


class ModelConfig(_Section):
    """Which artifact scores the ticks."""

    path: Path = Field(default=Path("model"), description="Folder written by `tapewatch train`.")
    public_key: Path | None = Field(
        default=None,
        description="PEM of an Ed25519 key; only models that it signed are taken "
        "(`tapewatch model sign`).",
    )
    watch_s: float = Field(
        default=5.0,
        ge=0,
        le=86_400,
        description="Time between two looks for a new version in the folder, in seconds; it is "
        "taken at the second look that finds it unchanged. 0: never.",
    )
    device: Literal["auto", "cpu", "gpu"] = Field(
        default="auto",
        description="Where ticks are scored: on the GPU where there is one, on the CPU, or on a "
        "GPU or not at all.",
    )


class BatchConfig(_Section):
    """Bounds of a micro-batch."""

    max_size: int = Field(default=4096, ge=1, le=65_536, description="Ticks in a micro-batch.")
    max_delay_ms: float = Field(
        default=1.0,
        ge=0,
        le=1000,
        description="How long a tick may wait for others to share its micro-batch, in ms.",
    )


class FeaturesConfig(_Section):
    """Caps of the feature state."""

    max_instruments: int = Field(
        default=10_000,
        ge=1,
        le=5_000_000,
        description="Instruments tracked per partition; beyond it the least recently seen goes.",
    )


class EpisodesConfig(_Section):
    """When an episode updates and closes."""

    close_ratio: float = Field(
        default=EpisodePolicy.close_ratio,
        gt=0,
        le=1,
        description="Share of the threshold that keeps an episode open.",
    )
    quiet_s: float = Field(
        default=EpisodePolicy.quiet_s,
        gt=0,
        le=86_400 * 30,
        description="Event time without such a tick after which it closes, in seconds; several "
        "times the usual wait between two ticks of an instrument.",
    )
    update_interval_s: float = Field(
        default=EpisodePolicy.update_interval_s,
        gt=0,
        le=86_400 * 30,
        description="Least event time between two updates, in seconds.",
    )

    def policy(self) -> EpisodePolicy:
        """Return the same as the pipeline's own type."""
        return EpisodePolicy(self.close_ratio, self.quiet_s, self.update_interval_s)


class ThresholdsConfig(_Section):
    """How the model's thresholds are applied."""

    adapt: bool = Field(
        default=True,
        description="Thresholds follow the alarms they cause, if the model was trained for a "
        "budget or a risk and says so; otherwise they stay as trained.",
    )


class DriftConfig(_Section):
    """What the drift metrics are from; docs/drift.md says how to read them."""

    every: int = Field(
        default=DriftSpec.every,
        ge=1,
        le=1_000_000,
        description="One scored tick in so many is compared; an odd number, and 1 for slow series.",
    )
    window_s: float = Field(
        default=DriftSpec.window_s,
        gt=0,
        lt=1e9,
        description="Length of a window of event time, in seconds; the present one and the last "
        "one that had ticks are compared. 86400: from midnight UTC.",
    )
    least_rows: int = Field(
        default=DriftSpec.least_rows,
        ge=1,
        description="Compared ticks below which nothing is told.",
    )

    def spec(self) -> DriftSpec:
        """Return the same as the pipeline's own type."""
        return DriftSpec(self.every, self.window_s, self.least_rows)


class CommitConfig(_Section):
    """When input offsets are committed."""

    interval_ms: int = Field(
        default=1000, ge=10, le=60_000, description="Time between two offset commits, in ms."
    )

    transaction_timeout_ms: int = Field(
        default=10_000,
        ge=1000,
        le=900_000,
        description="With exactly_once: the cluster aborts a transaction left open for so long, in "
        "ms. What a killed daemon left open blocks readers until then, or until it is back.",
    )


class StateConfig(_Section):
    """What of the windows, thresholds and episodes outlives the process."""

    keep: bool = Field(
        default=True,
        description="Keep state on topics.state, so that a restart or a rebalance goes on where "
        "it was. false: windows start cold; only with at_least_once.",
    )
    snapshot_interval_s: float = Field(
        default=60.0,
        ge=0.1,
        le=86_400,
        description="Time between two snapshots of a partition's windows, in seconds; a restart "
        "reads the ticks since the last one again.",
    )
    snapshot_ticks: int = Field(
        default=1_000_000,
        ge=1_000,
        description="Ticks since the last snapshots of a process' partitions, all together, from "
        "which on snapshots come sooner than snapshot_interval_s: it bounds what a restart reads "
        "again, whatever the rate.",
    )
    warm_up_messages: int = Field(
        default=1_000_000,
        ge=0,
        description="Most retained messages of a partition that warm its windows where there is "
        "no usable snapshot.",
    )


class HttpConfig(_Section):
    """The port of /metrics, /healthz and /readyz."""

    host: str = Field(
        default="127.0.0.1",
        min_length=1,
        description="Address to listen on; 0.0.0.0 or :: for all of this machine's.",
    )
    port: int = Field(default=9108, ge=0, le=65_535, description="Port; 0 takes a free one.")
    tls_certificate: Path | None = Field(
        default=None,
        description="PEM file of the server's certificate and those that signed it, read at the "
        "start; default: no TLS. TLS 1.2 is the least.",
    )
    tls_key: Path | None = Field(
        default=None,
        description="PEM file of the certificate's key, not encrypted; default: it is in the same "
        "file.",
    )
    username: str | None = Field(
        default=None,
        min_length=1,
        pattern="^[^:]+$",
        description="Name that /metrics asks for, by HTTP basic authentication; /healthz and "
        "/readyz never ask.",
    )
    password: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="Its password, by environment: TAPEWATCH_HTTP__PASSWORD. Masked wherever "
        "configuration is shown.",
    )
    password_file: Path | None = Field(
        default=None, description="File with the password on its only line, instead of password."
    )

    @model_validator(mode="after")
    def _whole(self) -> HttpConfig:
        if self.tls_key is not None and self.tls_certificate is None:
            raise ValueError("tls_key is set without tls_certificate; set both, or neither")
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password_file are both set; keep one")
        given = self.password is not None or self.password_file is not None
        if given != (self.username is not None):
            raise ValueError("username needs password or password_file, and they need username")
        return self

    def access(self) -> Access:
        """Read the files and return how the port is protected.

        Raises
        ------
        HttpAccessError
            A certificate, key or password file that cannot be used.
        """
        certificate = self.tls_certificate
        context = None if certificate is None else tls_context(certificate, self.tls_key)
        if self.username is None:
            return Access(context)
        if self.password_file is not None:
            password = read_password(self.password_file)
            remember(password)
        else:
            password = "" if self.password is None else self.password.get_secret_value()
        return Access(context, Credentials(self.username, password))

    def secrets(self) -> list[str]:
        """Return the password in clear, for masking only; one in a file is read by `access`."""
        return [] if self.password is None else [self.password.get_secret_value()]


class LogConfig(_Section):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="Least level shown."
    )
    format: Literal["json", "console"] = Field(
        default="json", description="One JSON object a line, or text for a terminal."
    )


class Config(_Section):
    """Everything `tapewatch run` can be told."""

    delivery: Literal["at_least_once", "exactly_once"] = Field(
        default="at_least_once",
        description="Guarantee for events. at_least_once: repeats are possible after a crash and "
        "carry the same event_id. exactly_once: a read_committed reader sees each event once; "
        "events become visible a transaction later. docs/guarantees.md defines both.",
    )
    kafka: KafkaConfig = KafkaConfig()
    topics: TopicsConfig = TopicsConfig()
    input: InputConfig = InputConfig()
    model: ModelConfig = ModelConfig()
    batch: BatchConfig = BatchConfig()
    features: FeaturesConfig = FeaturesConfig()
    episodes: EpisodesConfig = EpisodesConfig()
    thresholds: ThresholdsConfig = ThresholdsConfig()
    drift: DriftConfig = DriftConfig()
    commit: CommitConfig = CommitConfig()
    state: StateConfig = StateConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _keeps_what_it_promises(self) -> Config:
        if self.delivery == "exactly_once" and not self.state.keep:
            raise ValueError(
                "delivery = 'exactly_once' needs state.keep = true: without its state a restarted "
                "daemon tells other events"
            )
        return self


def load_config(path: Path | None, environment: Mapping[str, str] | None = None) -> Config:
    """Read the file, if any, lay the environment over it and validate both together.

    Relative paths in the file are relative to the file's folder.

    Raises
    ------
    ConfigError
        Names every wrong key with the value received and what is allowed.
    """
    values = {} if path is None else _read_toml(path)
    environment = os.environ if environment is None else environment
    _overlay(values, environment)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from None  # the cause would print secrets
    config = _with_secrets(config if path is None else _anchor(config, path.parent))
    for secret in (*config.kafka.secrets(), *config.http.secrets()):
        remember(secret)
    return config


def _with_secrets(config: Config) -> Config:
    try:
        security = config.kafka.security.with_secrets_read()
    except ValueError as error:
        raise ConfigError(f"configuration cannot be used:\n  {error}") from None
    kafka = config.kafka.model_copy(update={"security": security})
    return config.model_copy(update={"kafka": kafka})


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid TOML: {error}") from error


def _overlay(values: dict[str, Any], environment: Mapping[str, str]) -> None:
    """Lay `TAPEWATCH_*` variables over the values, refusing those that name no key."""
    for variable, text in sorted(environment.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable.startswith(
            f"{ENVIRONMENT_PREFIX}TEST_"
        ):
            continue
        parts = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if parts[0] not in Config.model_fields:
            if len(parts) == 1:
                continue  # a variable of another tapewatch command
            raise ConfigError(f"environment {variable}: there is no section '{parts[0]}'")
        if parts[:2] == ["kafka", "properties"] and len(parts) == 3:
            parts[2] = parts[2].replace("_", ".")
        place = values
        for part in parts[:-1]:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise ConfigError(f"environment {variable}: '{part}' is not a section")
        place[parts[-1]] = tuple(text.split(",")) if parts[-1] == "columns" else text


def _explain(error: ValidationError, path: Path | None) -> str:
    """One line for each wrong key: key, value unless secret, what is allowed."""
    lines = [f"configuration {path if path is not None else '(environment)'} cannot be used:"]
    for problem in error.errors(include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            allowed = ", ".join(_siblings(problem["loc"]))
            lines.append(f"  {key}: no such key; allowed here: {allowed}")
            continue
        given = problem["input"]
        shown = (
            "" if isinstance(given, dict | BaseModel) or _SECRET.search(key) else f" = {given!r}"
        )
        place = f"{key}{shown}: " if key else ""  # none where keys of two sections do not fit
        lines.append(f"  {place}{problem['msg'].removeprefix('Value error, ')}")
    return "\n".join(lines)


def _siblings(place: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = Config
    for part in place[:-1]:
        section = model.model_fields[str(part)].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            break
        model = section
    return list(model.model_fields)


def _anchor(config: Config, folder: Path) -> Config:
    """Make the relative paths of a file relative to that file."""
    symbols, key = config.input.symbols_file, config.model.public_key
    http = {
        name: folder / path
        for name in ("tls_certificate", "tls_key", "password_file")
        if (path := getattr(config.http, name)) is not None
    }
    return config.model_copy(
        update={
            "http": config.http.model_copy(update=http),
            "kafka": config.kafka.model_copy(
                update={"security": config.kafka.security.anchored(folder)}
            ),
            "model": config.model.model_copy(
                update={
                    "path": folder / config.model.path,
                    "public_key": None if key is None else folder / key,
                }
            ),
            "input": config.input.model_copy(
                update={"symbols_file": None if symbols is None else folder / symbols}
            ),
        }
    )
