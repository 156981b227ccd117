"""The service's HTTP port from a configuration: what it tells, protects, warns of and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from detector.cli import app
from detector.config import load_config
from detector.http_access import HttpAccessError
from detector.service import Service
from tests.models import random_artifact
from tests.test_endpoints import PASSWORD, ask, basic, certificate

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a certificate, its key and a password file."""
    folder = tmp_path_factory.mktemp("service")
    random_artifact(folder / "model")
    certificate(folder)
    (folder / "password").write_text(PASSWORD + "\n")
    return folder


def config_of(folder: Path, http: str) -> Path:
    """Write a configuration whose brokers are nowhere."""
    path = folder / "tapewatch.toml"
    path.write_text(
        '[kafka]\nbootstrap_servers = "127.0.0.1:1"\n[model]\ndevice = "cpu"\n'
        f"[http]\nport = 0\n{http}"
    )
    return path


PROTECTED = """
tls_certificate = "own.crt"
tls_key = "own.key"
username = "prometheus"
password_file = "password"
"""


def test_protected_service_tells_of_its_model(folder: Path) -> None:
    """Over TLS and with the password /metrics tells the model in force; without, nothing."""
    config = load_config(config_of(folder, PROTECTED), {})
    with structlog.testing.capture_logs() as lines, Service(config) as service:
        assert ask(service.http, "/metrics", trusted=folder / "own.crt")[0] == 401
        headers = basic("prometheus", PASSWORD)
        status, text, _ = ask(service.http, "/metrics", headers, trusted=folder / "own.crt")
        assert status == 200
        assert ask(service.http, "/healthz", trusted=folder / "own.crt")[0] == 200
        assert ask(service.http, "/readyz", trusted=folder / "own.crt")[0] == 503
    assert not [line for line in lines if line["log_level"] == "warning"]
    assert PASSWORD not in str(lines)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert families["process_resident_memory_bytes"].samples[0].value > 1e6
    (model,) = families["tapewatch_model_info"].samples
    assert model.labels["device"] == "cpu"
    (loaded,) = families["tapewatch_model_loaded_timestamp_seconds"].samples
    (created,) = families["tapewatch_model_created_timestamp_seconds"].samples
    assert 1.6e9 < created.value <= loaded.value
    assert not families["tapewatch_gpu_memory_bytes"].samples


@pytest.mark.parametrize(
    ("http", "lacks"),
    [
        ("", ["TLS", "password"]),
        ('tls_certificate = "own.crt"\ntls_key = "own.key"', ["password"]),
        ('username = "prometheus"\npassword_file = "password"', ["TLS"]),
        (PROTECTED, []),
    ],
)
def test_open_port_is_warned_of(folder: Path, http: str, lacks: list[str]) -> None:
    """An address that others can reach is warned of unless it has both TLS and a password."""
    config = load_config(config_of(folder, f'host = "0.0.0.0"\n{http}'), {})
    with structlog.testing.capture_logs() as lines, Service(config):
        pass
    warnings = [line["event"] for line in lines if line["log_level"] == "warning"]
    assert len(warnings) == bool(lacks)
    for warning in warnings:
        assert "others can reach /metrics" in warning
        assert [word for word in ("TLS", "password") if word in warning] == lacks


def test_default_address_is_not_warned_of(folder: Path) -> None:
    """On this machine alone nothing needs protection."""
    with (
        structlog.testing.capture_logs() as lines,
        Service(load_config(config_of(folder, ""), {})) as service,
    ):
        assert service.http.host == "127.0.0.1"
    assert not [line for line in lines if line["log_level"] == "warning"]


@pytest.mark.parametrize(
    ("http", "told"),
    [
        ('tls_certificate = "none.crt"', "http.tls_certificate"),
        ('tls_certificate = "own.crt"\ntls_key = "password"', "http.tls_key"),
        ('username = "a"\npassword_file = "none"', "http.password_file"),
    ],
)
def test_wrong_files_are_refused_at_start(folder: Path, http: str, told: str) -> None:
    """The service does not start, `config check` refuses too, and both name the key."""
    path = config_of(folder, http)
    with pytest.raises(HttpAccessError, match=told):
        Service(load_config(path, {}))
    done = RUNNER.invoke(app, ["config", "check", "--config", str(path)])
    assert isinstance(done.exception, HttpAccessError), done.output
    assert told in str(done.exception)
