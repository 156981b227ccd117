"""The quick start from training to Prometheus, as a reader would type it, on real servers.

Other than on the page: ports, the tape (the reader's own there) and a shorter training.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from detector.event_view import line_of
from tests.conftest import REPOSITORY, leave_out
from tests.kafka_broker import KafkaBroker, free_ports, start_owned
from tests.pages import shell_blocks
from tests.prometheus_server import set_targets
from tests.running import Tape, plain_environment

BLOCK_WITHIN_S = 250


@contextmanager
def kept(text: str, folder: Path, name: str, environment: dict[str, str]) -> Iterator[None]:
    """Run a block in a terminal of its own, until the page is through."""
    with (folder / f"{name}.log").open("wb") as log:
        words = ["env", *(f"{k}={v}" for k, v in environment.items())]
        process = start_owned([*words, "bash", "-c", f"exec {text}"], log, folder)
    try:
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.mark.timeout(600)
def test_the_page_works_as_it_stands(kafka_broker: KafkaBroker, tape: Tape, tmp_path: Path) -> None:
    """Blocks marked to run, in order, end with the reader's ticks in Prometheus and an event."""
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        leave_out("prometheus is not installed")
    http, prometheus = free_ports(2)
    shutil.copytree(REPOSITORY / "deploy" / "prometheus", tmp_path / "deploy" / "prometheus")
    set_targets(tmp_path / "deploy" / "prometheus", [f"localhost:{http}"])
    (tmp_path / "examples").symlink_to(REPOSITORY / "examples")
    changes = {
        "localhost:9092": kafka_broker.bootstrap,
        "localhost:9108": f"localhost:{http}",
        "localhost:9090": f"localhost:{prometheus}",
        "prometheus --config": f"prometheus --web.listen-address=127.0.0.1:{prometheus} --config",
        "tapewatch train": "tapewatch train --epochs 2",
    }
    environment = plain_environment() | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "TRAIN": str(tape.train),
        "LIVE": str(tape.live),
        "TAPEWATCH_HTTP__PORT": str(http),
    }
    said = ""
    with ExitStack() as terminals:
        for number, block in enumerate(shell_blocks(page())):
            text = block.text
            for old, new in changes.items():
                text = text.replace(old, new)
            if block.mark == "keep":
                terminals.enter_context(kept(text, tmp_path, f"block{number}", environment))
            elif block.mark == "run":
                done = subprocess.run(
                    ["bash", "-euo", "pipefail", "-c", text],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                    cwd=tmp_path,
                    env=environment,
                    timeout=BLOCK_WITHIN_S,
                    check=False,
                )
                assert done.returncode == 0, f"{text}\nended with {done.returncode}:\n{done.stdout}"
                said += done.stdout
    counted = re.search(r"tapewatch_ticks_total\{.*\} => (\d+)", said)
    assert counted is not None, said
    assert int(counted[1]) == len(tape.live_ticks) + 1, "the tape's and the publisher's one"
    assert "ready with 4 partitions" in said
    assert "1 ticks published" in said
    # Which partition's first event is read first is Kafka's choice.
    offline = [
        line_of(event).plain for event in (tmp_path / "found.jsonl").read_bytes().splitlines()
    ]
    read = said.split("1 ticks published")[1]
    assert any(line in read for line in offline), f"none of the file's events in {read}"


def page() -> str:
    """Return the page."""
    return (REPOSITORY / "docs" / "quickstart.md").read_text()
