"""`[kafka.security]`: TLS and SASL, checked once and mapped to librdkafka's properties.

Certificates are verified unless a key that says so in its name turns that off. Secrets come from
the file, the environment or a file of their own. This module knows no client.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from detector.bounded_files import read_bounded

PROPERTIES: Final = {
    "protocol": "security.protocol",
    "ca_file": "ssl.ca.location",
    "certificate_file": "ssl.certificate.location",
    "key_file": "ssl.key.location",
    "key_password": "ssl.key.password",
    "mechanism": "sasl.mechanisms",
    "username": "sasl.username",
    "password": "sasl.password",
    "token_endpoint": "sasl.oauthbearer.token.endpoint.url",
    "token_ca_file": "https.ca.location",
    "client_id": "sasl.oauthbearer.client.id",
    "client_secret": "sasl.oauthbearer.client.secret",
    "scope": "sasl.oauthbearer.scope",
    "extensions": "sasl.oauthbearer.extensions",
}
"""The librdkafka property that each key sets."""

ALIASES: Final = {"sasl.mechanism": "sasl.mechanisms"}
_FILES: Final = ("ca_file", "certificate_file", "key_file", "token_ca_file")
_SECRETS: Final = ("password", "key_password", "client_secret")
PATHS: Final = (*_FILES, *(f"{name}_file" for name in _SECRETS))
_PRIVATE: Final = ("key_file", *(f"{name}_file" for name in _SECRETS))
_TLS: Final = (
    "ca_file",
    "certificate_file",
    "key_file",
    "key_password",
    "key_password_file",
    "insecure_skip_certificate_verification",
    "insecure_skip_hostname_verification",
)
_OAUTH: Final = (
    "token_endpoint",
    "token_ca_file",
    "client_id",
    "client_secret",
    "client_secret_file",
    "scope",
    "extensions",
)
_PASSWORD: Final = ("username", "password", "password_file")
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_FILE_BYTES: Final = 4 << 20  # bundles of all public authorities have a few 100 kB


class SecurityConfig(BaseModel):
    """TLS and SASL of the connection to Kafka; docs/security.md says what they protect."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] | None = Field(
        default=None, description="How brokers are talked to; default: in clear."
    )
    ca_file: Path | None = Field(
        default=None, description="PEM of the authorities trusted; default: the system's."
    )
    certificate_file: Path | None = Field(
        default=None, description="PEM of our certificate, for brokers that ask for one."
    )
    key_file: Path | None = Field(default=None, description="PEM of that certificate's key.")
    key_password: SecretStr | None = Field(default=None, description="Password of the key file.")
    key_password_file: Path | None = Field(default=None, description="File that holds it.")
    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        default=None, description="How we say who we are, with SASL."
    )
    username: str | None = Field(default=None, description="For PLAIN and SCRAM.")
    password: SecretStr | None = Field(default=None, description="For PLAIN and SCRAM.")
    password_file: Path | None = Field(default=None, description="File that holds it.")
    token_endpoint: str | None = Field(
        default=None, description="OAUTHBEARER: where tokens are had for client credentials; https."
    )
    token_ca_file: Path | None = Field(
        default=None, description="PEM of the authorities trusted there; default: the system's."
    )
    client_id: str | None = Field(default=None, description="OAUTHBEARER: our name there.")
    client_secret: SecretStr | None = Field(default=None, description="OAUTHBEARER: our secret.")
    client_secret_file: Path | None = Field(default=None, description="File that holds it.")
    scope: str | None = Field(default=None, description="OAUTHBEARER: scope asked for.")
    extensions: str | None = Field(
        default=None, description="OAUTHBEARER: SASL extensions, `name=value` by comma."
    )
    insecure_skip_certificate_verification: bool = Field(
        default=False, description="Talk to anyone who claims to be a broker; warned of at start."
    )
    insecure_skip_hostname_verification: bool = Field(
        default=False,
        description="Take any certificate of a trusted authority, whatever host it is for; "
        "warned of at start.",
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        wrong = list(self._mistakes())
        if wrong:
            raise ValueError("; ".join(wrong))
        return self

    def _given(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) not in (None, False)]

    def _mistakes(self) -> Iterator[str]:
        protocol = self.protocol or "PLAINTEXT"
        for name in _SECRETS:
            if len(self._given(name, f"{name}_file")) == 2:
                yield f"{name} and {name}_file are both set; keep one"
        if not protocol.endswith("SSL") and (odd := self._given(*_TLS)):
            yield f"{', '.join(odd)}: need TLS; set protocol to SSL or SASL_SSL"
        if len(self._given("certificate_file", "key_file")) == 1:
            yield "certificate_file and key_file belong together; set both"
        if self._given("key_password", "key_password_file") and self.key_file is None:
            yield "key_password without key_file; set key_file"
        if not protocol.startswith("SASL"):
            if odd := self._given("mechanism", *_PASSWORD, *_OAUTH):
                yield f"{', '.join(odd)}: need SASL; set protocol to SASL_SSL"
        elif self.mechanism is None:
            yield (
                f"protocol = {protocol} needs mechanism: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or "
                "OAUTHBEARER"
            )
        elif self.mechanism == "OAUTHBEARER":
            yield from self._mistakes_of_tokens()
        else:
            yield from self._mistakes_of_passwords()

    def _mistakes_of_passwords(self) -> Iterator[str]:
        if self.username is None:
            yield f"mechanism = {self.mechanism} needs username"
        if not self._given("password", "password_file"):
            yield f"mechanism = {self.mechanism} needs password or password_file"
        if odd := self._given(*_OAUTH):
            yield f"{', '.join(odd)}: for OAUTHBEARER only"

    def _mistakes_of_tokens(self) -> Iterator[str]:
        for name in ("token_endpoint", "client_id"):
            if getattr(self, name) is None:
                yield f"mechanism = OAUTHBEARER needs {name}"
        if not self._given("client_secret", "client_secret_file"):
            yield "mechanism = OAUTHBEARER needs client_secret or client_secret_file"
        if odd := self._given(*_PASSWORD):
            yield f"{', '.join(odd)}: not for OAUTHBEARER"
        if self.token_endpoint is not None:
            where = urlsplit(self.token_endpoint)
            local = where.scheme == "http" and where.hostname in _LOOPBACK
            if not (local or (where.scheme == "https" and where.hostname)):
                yield "token_endpoint must be an https:// address (http:// on this host only)"
            if where.username or where.password:
                yield "token_endpoint must not carry credentials; set client_id and client_secret"

    def anchored(self, folder: Path) -> SecurityConfig:
        """Return the same with relative paths made relative to the folder."""
        paths = {name: folder / getattr(self, name) for name in self._given(*PATHS)}
        return self.model_copy(update=paths)

    def with_secrets_read(self) -> SecurityConfig:
        """Check that every file can be read, and fill in the secrets that files hold.

        Raises
        ------
        ValueError
            Names every key whose file cannot be read or holds nothing.
        """
        wrong, secrets = [], {}
        for name in self._given(*PATHS):
            try:
                data = read_bounded(getattr(self, name), _MAX_FILE_BYTES)
                if name not in _FILES:
                    secrets[name.removesuffix("_file")] = SecretStr(_secret(data))
            except UnicodeDecodeError:  # its own words would print what the file holds
                wrong.append(f"kafka.security.{name} = '{getattr(self, name)}': is not UTF-8 text")
            except OSError as error:
                wrong.append(
                    f"kafka.security.{name} = '{getattr(self, name)}': cannot be read: "
                    f"{error.strerror}"
                )
            except ValueError as error:
                wrong.append(f"kafka.security.{name} = '{getattr(self, name)}': {error}")
        if wrong:
            raise ValueError("\n  ".join(wrong))
        return self.model_copy(update=secrets)

    def properties(self) -> dict[str, str]:
        """Return librdkafka's properties with secrets in clear, for the client only."""
        found = {}
        for name in self._given(*PROPERTIES):
            value = getattr(self, name)
            secret = isinstance(value, SecretStr)
            found[PROPERTIES[name]] = value.get_secret_value() if secret else str(value)
        if self.mechanism == "OAUTHBEARER":
            found["sasl.oauthbearer.method"] = "oidc"
        if self.protocol in {"SSL", "SASL_SSL"}:
            verified = not self.insecure_skip_certificate_verification
            named = verified and not self.insecure_skip_hostname_verification
            found["enable.ssl.certificate.verification"] = str(verified).lower()
            found["ssl.endpoint.identification.algorithm"] = "https" if named else "none"
        return found

    def secrets(self) -> list[str]:
        """Return the secrets in clear, for masking only."""
        return [getattr(self, name).get_secret_value() for name in self._given(*_SECRETS)]

    def warnings(self) -> list[str]:
        """Return what an operator must know about this way to connect, one sentence each."""
        found = []
        if self.insecure_skip_certificate_verification:
            found.append(
                "kafka.security.insecure_skip_certificate_verification is on: anyone between here "
                "and Kafka can read and change everything, credentials included"
            )
        if self.insecure_skip_hostname_verification:
            found.append(
                "kafka.security.insecure_skip_hostname_verification is on: any holder of a "
                "certificate of a trusted authority can pass for a broker"
            )
        if self.protocol == "SASL_PLAINTEXT":
            found.append(
                "kafka.security.protocol is SASL_PLAINTEXT: credentials and ticks go unencrypted"
            )
        for name in self._given(*_PRIVATE):
            path = getattr(self, name)
            if path.stat().st_mode & 0o007:
                found.append(
                    f"kafka.security.{name} = '{path}' is open to every user of this machine; "
                    "take that away with chmod o="
                )
        return found


def _secret(data: bytes) -> str:
    text = data.decode().rstrip("\r\n")
    if not text:
        raise ValueError("is empty")
    return text
