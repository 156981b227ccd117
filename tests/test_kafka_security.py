"""TLS and SASL from the configuration: what is mapped, refused and warned of."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detector.cli import app
from detector.config import Config, ConfigError, load_config
from detector.kafka import Connection, check_properties
from detector.masking import MASK, Scrubbing, remember, scrub

SECRET = "correct-horse-battery"  # noqa: S105  (stands for one)


def load(folder: Path, text: str, environment: dict[str, str] | None = None) -> Config:
    """Load a configuration whose security section has these lines."""
    path = folder / "tapewatch.toml"
    path.write_text(f"[kafka.security]\n{text}\n")
    return load_config(path, environment or {})


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_passwords_are_mapped(tmp_path: Path, mechanism: str) -> None:
    """User, password and authority become librdkafka's properties, and verification is on."""
    (tmp_path / "ca.pem").write_text("x")
    config = load(
        tmp_path,
        f'protocol = "SASL_SSL"\nmechanism = "{mechanism}"\nusername = "tw"\nca_file = "ca.pem"',
        {"TAPEWATCH_KAFKA__SECURITY__PASSWORD": SECRET},
    )
    assert config.kafka.plain_properties() == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanisms": mechanism,
        "sasl.username": "tw",
        "sasl.password": SECRET,
        "ssl.ca.location": str(tmp_path / "ca.pem"),
        "enable.ssl.certificate.verification": "true",
        "ssl.endpoint.identification.algorithm": "https",
    }
    assert config.kafka.security.warnings() == []


def test_tokens_are_mapped_and_taken_by_the_client(tmp_path: Path) -> None:
    """OAUTHBEARER becomes client credentials of OIDC, which librdkafka accepts."""
    (tmp_path / "secret").write_text(SECRET + "\n")
    config = load(
        tmp_path,
        'protocol = "SASL_SSL"\nmechanism = "OAUTHBEARER"\nclient_id = "tw"\nscope = "kafka"\n'
        'token_endpoint = "https://login.example/token"\nclient_secret_file = "secret"',
    )
    found = config.kafka.plain_properties()
    assert found["sasl.oauthbearer.method"] == "oidc"
    assert found["sasl.oauthbearer.client.id"] == "tw"
    assert found["sasl.oauthbearer.client.secret"] == SECRET
    assert found["sasl.oauthbearer.token.endpoint.url"] == "https://login.example/token"
    assert found["sasl.oauthbearer.scope"] == "kafka"
    check_properties(Connection("127.0.0.1:1", properties=found), "group")


def test_files_hold_secrets(tmp_path: Path) -> None:
    """A password is read from its file, without the line's end, and shows nowhere."""
    (tmp_path / "pw").write_text(SECRET + "\n")
    (tmp_path / "pw").chmod(0o600)
    text = 'protocol = "SASL_SSL"\nmechanism = "PLAIN"\nusername = "tw"\npassword_file = "pw"'
    config = load(tmp_path, text)
    assert config.kafka.plain_properties()["sasl.password"] == SECRET
    shown = CliRunner().invoke(app, ["config", "show", "-c", str(tmp_path / "tapewatch.toml")])
    assert MASK in shown.output
    for printed in (shown.output, repr(config), config.model_dump_json(), str(config.kafka)):
        assert SECRET not in printed
    assert config.kafka.security.warnings() == []
    (tmp_path / "pw").chmod(0o644)
    assert "open to every user" in config.kafka.security.warnings()[0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('protocol = "TLS"', "'SASL_SSL'"),
        ('protocol = "SASL_SSL"', "needs mechanism: PLAIN"),
        ('protocol = "SASL_SSL"\nmechanism = "GSSAPI"', "'SCRAM-SHA-512'"),
        ('protocol = "SASL_SSL"\nmechanism = "PLAIN"', "needs username"),
        ('protocol = "SASL_SSL"\nmechanism = "PLAIN"\nusername = "u"', "password_file"),
        ('protocol = "SSL"\nusername = "u"', "need SASL"),
        ('ca_file = "ca.pem"', "need TLS"),
        ("insecure_skip_certificate_verification = true", "need TLS"),
        ('protocol = "SSL"\nkey_file = "k"', "belong together"),
        ('protocol = "SSL"\nkey_password = "battery"', "set key_file"),
        ('protocol = "SSL"\nca_file = "nowhere.pem"', "ca_file.*cannot be read"),
        ('protocol = "SSL"\nca_file = "."', "ca_file.*cannot be read"),
        (
            'protocol = "SSL"\nkey_password = "battery"\nkey_password_file = "b"',
            "keep one",
        ),
        ('protocol = "SASL_SSL"\nmechanism = "OAUTHBEARER"', "needs token_endpoint"),
        (
            'protocol = "SASL_SSL"\nmechanism = "OAUTHBEARER"\ntoken_endpoint = "http://a.example"',
            "https://",
        ),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """Values outside the allowed and combinations that lack something are refused in words."""
    with pytest.raises(ConfigError, match=words) as refused:
        load(tmp_path, text)
    assert "battery" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe" + SECRET.encode()])
def test_a_secret_file_without_text_is_refused(tmp_path: Path, content: bytes) -> None:
    """An empty file, or one that is no text, holds no password; what it holds is not printed."""
    (tmp_path / "pw").write_bytes(content)
    with pytest.raises(ConfigError, match="password_file") as refused:
        load(
            tmp_path,
            'protocol = "SASL_SSL"\nmechanism = "PLAIN"\nusername = "u"\npassword_file = "pw"',
        )
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    "name", ["security.protocol", "sasl.mechanism", "sasl.password", "ssl.ca.location"]
)
def test_a_property_beside_the_section_is_refused(tmp_path: Path, name: str) -> None:
    """What the section decides cannot be decided a second time by a property."""
    with pytest.raises(ConfigError, match=r"is set by \[kafka\.security\]") as refused:
        load(tmp_path, f'protocol = "SSL"\n[kafka.properties]\n"{name}" = "{SECRET}"')
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize(
    ("key", "certificate", "host"),
    [
        ("insecure_skip_certificate_verification", "false", "none"),
        ("insecure_skip_hostname_verification", "true", "none"),
    ],
)
def test_verification_goes_only_with_a_warning(
    tmp_path: Path, key: str, certificate: str, host: str
) -> None:
    """Each kind of verification has a key of its own, and commands say that it is off."""
    config = load(tmp_path, f'protocol = "SSL"\n{key} = true')
    found = config.kafka.plain_properties()
    assert found["enable.ssl.certificate.verification"] == certificate
    assert found["ssl.endpoint.identification.algorithm"] == host
    assert key in config.kafka.security.warnings()[0]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "detector", "replay", "--ticks", "no.parquet"),
            *("--speed", "wrong", "-c", str(tmp_path / "tapewatch.toml")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"warning: kafka.security.{key} is on" in done.stderr


def test_secrets_are_scrubbed_from_texts_of_others() -> None:
    """A known secret is masked in any text, also where JSON or `repr` escaped it."""
    remember('pa"ss\\word')
    for text in ('pa"ss\\word', r"pa\"ss\\word", repr('x pa"ss\\word')):
        assert "word" not in scrub(text)
    record = logging.LogRecord("librdkafka", 3, "", 0, "bad %s", ('pa"ss\\word',), None)
    assert Scrubbing().filter(record)
    assert record.getMessage() == f"bad {MASK}"


@pytest.mark.parametrize("where", ["main", "thread", "log"])
def test_tracebacks_are_scrubbed(where: str) -> None:
    """An error nobody caught is printed without the secret, from any thread and by the log."""
    code = f"""
import threading, structlog
from detector.logs import configure_logs
from detector.masking import guard_tracebacks, remember
remember({SECRET!r}); guard_tracebacks(); configure_logs()
def fail():
    raise RuntimeError("told " + "-".join(["correct", "horse", "battery"]))
if {where!r} == "thread":
    thread = threading.Thread(target=fail); thread.start(); thread.join()
elif {where!r} == "log":
    try: fail()
    except RuntimeError: structlog.get_logger("x").error("bug", exc_info=True)
else:
    fail()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"told {MASK}" in done.stderr
    assert SECRET not in done.stderr
