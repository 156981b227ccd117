"""Bytes of Kafka messages to ticks, and back.

`make_decoder` gives the decoder of an input format; the `encode_` functions are their inverses,
used by replay and by tests. `docs/input.md` describes the formats and what becomes of bad input.
"""

from __future__ import annotations

from typing import Literal

from detector.wire.base import REASONS, Decoded, Decoder, Rejected
from detector.wire.dbn import DbnDecoder, TradeBook, encode_dbn

Format = Literal["dbn", "json", "vector"]

__all__ = [
    "REASONS",
    "Decoded",
    "Decoder",
    "Format",
    "Rejected",
    "TradeBook",
    "encode_dbn",
    "make_decoder",
]


def make_decoder(
    fmt: Format,
    *,
    trade_book: TradeBook = "after",
    columns: tuple[str, ...] | None = None,
) -> Decoder:
    """Give the decoder of an input format."""
    if fmt == "dbn":
        return DbnDecoder(trade_book)
    raise ValueError(f"format is {fmt!r}; allowed are 'dbn', 'json', 'vector'", columns)
