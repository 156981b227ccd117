"""The dashboards of tapewatch, as code: `python -m deploy.grafana.boards` writes their JSON.

`queries` says what is asked of Prometheus, `parts` how a panel looks, `board` what all boards
share; `overview`, `latency` and `model` are the boards, `findings` and `versions` hold panels of
more than one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from .board import Board
from .latency import latency
from .model import model
from .overview import overview

BOARDS: Final[Mapping[str, Callable[[], Board]]] = {
    "overview": overview,
    "latency": latency,
    "model": model,
}
"""The boards by the name of their file."""
