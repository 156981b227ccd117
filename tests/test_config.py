"""Configuration: what is refused, with which words, and what never leaves it."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from detector.cli import app
from detector.config import MASK, OWNED_PROPERTIES, Config, ConfigError, load_config
from detector.errors import RefusedError
from detector.masking import scrub


def load(tmp_path: Path, text: str, environment: dict[str, str] | None = None) -> Config:
    """Load a configuration from TOML text."""
    path = tmp_path / "tapewatch.toml"
    path.write_text(text)
    return load_config(path, environment or {})


def test_defaults_are_valid() -> None:
    """Without a file and without an environment the defaults hold."""
    assert load_config(None, {}) == Config()


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    """One message lists every wrong key with its value and what is allowed."""
    with pytest.raises(ConfigError) as refused:
        load(
            tmp_path,
            'delivery = "maybe"\n[batch]\nmax_size = 0\nmax_delay_ms = "soon"\n[kafka]\nfoo = 1\n',
        )
    text = str(refused.value)
    assert "delivery = 'maybe'" in text
    assert "at_least_once" in text
    assert "batch.max_size = 0" in text
    assert "batch.max_delay_ms = 'soon'" in text
    assert "kafka.foo: no such key" in text
    assert "bootstrap_servers" in text


@pytest.mark.parametrize("name", sorted(OWNED_PROPERTIES))
def test_owned_property_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    """A librdkafka property that the daemon owns is refused, and the message says why."""
    with pytest.raises(ConfigError, match="cannot be set") as refused:
        load(tmp_path, f'[kafka.properties]\n"{name}" = "x"\n')
    assert OWNED_PROPERTIES[name] in str(refused.value)


def test_other_properties_pass_through(tmp_path: Path) -> None:
    """Any other librdkafka property reaches the client, numbers and booleans as text."""
    config = load(
        tmp_path,
        '[kafka.properties]\n"security.protocol" = "SASL_SSL"\n"fetch.min.bytes" = 7\n'
        '"socket.keepalive.enable" = true\n',
    )
    assert config.kafka.plain_properties() == {
        "security.protocol": "SASL_SSL",
        "fetch.min.bytes": "7",
        "socket.keepalive.enable": "true",
    }


def test_secrets_are_masked_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A password shows in no dump, no repr, no error and no `config show`; the client gets it."""
    monkeypatch.setenv("TAPEWATCH_KAFKA__PROPERTIES__SASL_PASSWORD", "hunter2")
    config = load_config(None)
    assert config.kafka.plain_properties() == {"sasl.password": "hunter2"}
    shown = CliRunner().invoke(app, ["config", "show"]).output
    assert MASK in shown
    for text in (repr(config), config.model_dump_json(), shown):
        assert "hunter2" not in text
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, '[kafka.properties]\n"sasl.password" = ["hunter2"]\n')
    assert "hunter2" not in str(refused.value)


def test_environment_overrides_the_file(tmp_path: Path) -> None:
    """A variable wins over the file; one that names no key is refused."""
    config = load(tmp_path, "[batch]\nmax_size = 10\n", {"TAPEWATCH_BATCH__MAX_SIZE": "20"})
    assert config.batch.max_size == 20
    with pytest.raises(ConfigError, match="no section 'batsh'"):
        load(tmp_path, "", {"TAPEWATCH_BATSH__MAX_SIZE": "20"})
    with pytest.raises(ConfigError, match="no such key"):
        load(tmp_path, "", {"TAPEWATCH_BATCH__MAX_SIXE": "20"})


def test_columns_come_by_comma_from_the_environment() -> None:
    """The one list among the keys is written with commas in the environment."""
    config = load_config(None, {"TAPEWATCH_INPUT__COLUMNS": "a,b"})
    assert config.input.columns == ("a", "b")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    """A relative model path is found beside the configuration file, wherever one starts."""
    assert load(tmp_path, '[model]\npath = "m"\n').model.path == tmp_path / "m"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("not toml", "not valid TOML"),
        ("[topics]\nticks = 'a b'\n", "a topic name has"),
        ("[topics]\nticks = 'x'\nanomalies = 'x'\n", "must be different topics"),
        ("[batch]\nmax_delay_ms = nan\n", "finite"),
        ("kafka = 3\n", "kafka"),
    ],
)
def test_unusable_text_is_refused(tmp_path: Path, text: str, words: str) -> None:
    """What cannot be meant is refused in words."""
    with pytest.raises(ConfigError, match=words):
        load(tmp_path, text)


@pytest.mark.parametrize("line", ['"sasl.passwort" = 1', '"queue.buffering.max.messages" = "abc"'])
def test_check_asks_librdkafka_about_its_properties(tmp_path: Path, line: str) -> None:
    """A property that librdkafka does not know, or a value it does not take, is no valid one."""
    path = tmp_path / "tapewatch.toml"
    path.write_text(f"[kafka.properties]\n{line}\n")
    result = CliRunner().invoke(app, ["config", "check", "--config", str(path)])
    assert isinstance(result.exception, RefusedError)
    assert line.split('"')[1] in str(result.exception)
    path.write_text('[kafka.properties]\n"queue.buffering.max.messages" = 1000\n')
    assert CliRunner().invoke(app, ["config", "check", "--config", str(path)]).exit_code == 0


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("session.timeout.ms", "6000", "group.consumer.session.timeout.ms"),
        ("heartbeat.interval.ms", "500", "group.consumer.heartbeat.interval.ms"),
        ("partition.assignment.strategy", "range", "group.remote.assignor"),
        ("group.protocol.type", "consumer", "nothing"),
    ],
)
def test_what_is_the_brokers_with_the_newer_group_protocol_is_refused(
    tmp_path: Path, name: str, value: str, instead: str
) -> None:
    """With group.protocol = consumer a member's own session is refused, and its place is named."""
    line = f'"{name}" = "{value}"\n'
    with pytest.raises(ConfigError, match=r"group\.protocol = consumer") as refused:
        load(tmp_path, f'[kafka.properties]\n"group.protocol" = "consumer"\n{line}')
    assert f"{name} (in its place: " in str(refused.value)
    assert instead in str(refused.value)
    load(tmp_path, f"[kafka.properties]\n{line}")


def test_keys_that_do_not_fit_together_are_told_without_an_empty_key(tmp_path: Path) -> None:
    """What two sections contradict each other in has no one key to begin its line with."""
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, 'delivery = "exactly_once"\n[state]\nkeep = false\n')
    assert str(refused.value).splitlines()[1].startswith("  delivery = 'exactly_once' needs")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    """A file that is not there is named."""
    with pytest.raises(ConfigError, match=r"nowhere\.toml: cannot be read"):
        load_config(tmp_path / "nowhere.toml", {})


def test_show_prints_what_could_be_loaded_again(tmp_path: Path) -> None:
    """`config show` prints TOML that parses to the same values, and JSON on request."""
    shown = CliRunner().invoke(app, ["config", "show"]).output
    path = tmp_path / "again.toml"
    path.write_text(shown)
    again = load_config(path, {})
    assert again.batch == Config().batch
    assert tomllib.loads(shown)["delivery"] == "at_least_once"
    as_json = CliRunner().invoke(app, ["config", "show", "--json"]).output
    assert json.loads(as_json)["batch"]["max_size"] == Config().batch.max_size


def test_the_password_of_metrics_is_kept_out_of_messages(tmp_path: Path) -> None:
    """Once read, it is masked wherever a message would show it."""
    given = "zebra-crossing-7"
    load_config(None, {"TAPEWATCH_HTTP__USERNAME": "a", "TAPEWATCH_HTTP__PASSWORD": given})
    assert given not in scrub(f"refused: {given}")
    in_file = "zebra-crossing-8"
    (tmp_path / "password").write_text(in_file)
    load(tmp_path, '[http]\nusername = "a"\npassword_file = "password"').http.access()
    assert in_file not in scrub(f"refused: {in_file}")
