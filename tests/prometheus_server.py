"""A real Prometheus for tests: our configuration and rules, sixty times faster.

`faster` copies `deploy/prometheus` and changes in the copy what would make a rehearsal last for
days, and nothing else:

- every `for:` and every window in brackets lasts a sixtieth: a minute becomes a second;
- scrapes and evaluations are a second apart, not fifteen;
- the market is always open: the trading hours are `vector(1)`, as that file's own head says;
- the only target is the daemon of the test.

Expressions, thresholds, labels, names of groups and files are those of production.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import yaml

from tests.kafka_broker import REPOSITORY, free_ports, start_owned

SOURCE: Final = REPOSITORY / "deploy" / "prometheus"
TIMES_FASTER: Final = 60
SCRAPE_S: Final = 1
TRADING_HOURS: Final = "global:tapewatch_trading_hours:bool"

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION: Final = re.compile(r"(\d+)([smhd])")
_WINDOW: Final = re.compile(r"\[(\d+[smhd])\]")
_ANSWER_WITHIN_S: Final = 20.0
_START_WITHIN_S: Final = 60.0


class PrometheusError(RuntimeError):
    """Prometheus did not start, or refused a query; the message says which and why."""


def sixtieth(duration: str) -> str:
    """Return a duration such as `5m`, sixty times shorter, in seconds.

    Raises
    ------
    ValueError
        If that is no whole number of seconds: the copy would round, and no longer be in proportion.
    """
    found = _DURATION.fullmatch(duration)
    if found is None:
        raise ValueError(f"{duration!r} is no duration such as 5m")
    seconds = int(found[1]) * _UNITS_S[found[2]]
    if seconds % TIMES_FASTER:
        raise ValueError(f"{duration} is no whole number of minutes")
    return f"{seconds // TIMES_FASTER}s"


def faster_rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    """Return a rule with a sixtieth of its waiting time and of its windows."""
    changed = dict(rule)
    changed["expr"] = _WINDOW.sub(lambda found: f"[{sixtieth(found[1])}]", rule["expr"])
    if "for" in rule:
        changed["for"] = sixtieth(rule["for"])
    if rule.get("record") == TRADING_HOURS:
        changed["expr"] = "vector(1)"
    return changed


def faster(target: Path, address: str) -> Path:
    """Copy configuration and rules into a new folder as the module says; return the new file."""
    shutil.copytree(SOURCE, target)
    for path in (target / "rules").glob("*.yml"):
        groups = yaml.safe_load(path.read_text())["groups"]
        for group in groups:
            group["rules"] = [faster_rule(rule) for rule in group["rules"]]
        path.write_text(yaml.safe_dump({"groups": groups}))
    config = target / "prometheus.yml"
    settings = yaml.safe_load(config.read_text())
    every = f"{SCRAPE_S}s"
    settings["global"] |= dict.fromkeys(
        ("scrape_interval", "scrape_timeout", "evaluation_interval"), every
    )
    config.write_text(yaml.safe_dump(settings))
    set_targets(target, [address])
    return config


def set_targets(folder: Path, addresses: list[str]) -> None:
    """Say which daemons there are; Prometheus watches the file, so it is replaced in one step."""
    path = folder / "targets" / "tapewatch.yml"
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump([{"targets": addresses}]))
    new.rename(path)


class PrometheusServer:
    """Debian's `prometheus` on a free port, from `with` to its end; killed however that comes.

    Parameters
    ----------
    config
        Its configuration.
    folder
        Where its log and its series go.
    """

    def __init__(self, config: Path, folder: Path) -> None:
        self.config, self._folder = config, folder
        self._log_file = folder / "prometheus.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{free_ports(1)[0]}"

    def __enter__(self) -> Self:
        program = shutil.which("prometheus")
        assert program is not None, "ask for prometheus before"
        command = [
            program,
            f"--config.file={self.config}",
            f"--storage.tsdb.path={self._folder / 'series'}",
            f"--web.listen-address={self.url.removeprefix('http://')}",
            "--enable-feature=exemplar-storage",  # as deploy/compose.yaml
            "--log.level=warn",
        ]
        with self._log_file.open("ab") as log:
            self._process = start_owned(command, log, self._folder)
        try:
            self._await_ready(time.monotonic() + _START_WITHIN_S)
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def kill(self) -> None:
        """SIGKILL: nobody reads its series any more."""
        process, self._process = self._process, None
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(_ANSWER_WITHIN_S)

    def _await_ready(self, deadline: float) -> None:
        assert self._process is not None
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2):  # noqa: S310
                    return
            except OSError:
                time.sleep(0.1)
        raise PrometheusError(f"Prometheus did not become ready:\n{self._log_file.read_text()}")

    def ask(self, path: str, **parameters: str | float) -> Any:
        """Return the `data` of an answer of its HTTP API.

        Raises
        ------
        PrometheusError
            If it refuses; the message holds what was asked.
        """
        request = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_WITHIN_S) as answer:  # noqa: S310
                said = json.load(answer)
        except urllib.error.HTTPError as error:
            raise PrometheusError(f"{path} {parameters}: {error.read().decode()}") from error
        if said["status"] != "success":
            raise PrometheusError(f"{path} {parameters}: {said}")
        return said["data"]

    def rules(self) -> Iterator[dict[str, Any]]:
        """Every rule with its `health`, and an alert's `state`."""
        for group in self.ask("rules")["groups"]:
            yield from group["rules"]

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {rule["name"] for rule in self.rules() if rule.get("state") == "firing"}
