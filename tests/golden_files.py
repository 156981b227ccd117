"""Reads the golden bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Final

GOLDEN: Final = Path(__file__).parent / "golden"


def golden(name: str) -> bytes:
    """Bytes of a golden file; a `.hex` file is spelled out, with comments."""
    path = GOLDEN / name
    if path.suffix != ".hex":
        return path.read_bytes()
    return bytes.fromhex(" ".join(line.partition("#")[0] for line in path.read_text().splitlines()))
