"""Files of ticks to batches of ticks."""

from __future__ import annotations

from detector.readers.base import CHUNK, PUBLISHER, ReaderError
from detector.readers.lobster import read_lobster

__all__ = ["CHUNK", "PUBLISHER", "ReaderError", "read_lobster"]
