"""Bytes of Kafka messages to ticks, and back.

`make_decoder` gives the decoder of an input format; the `encode_` functions are their inverses,
used by replay and by tests. `docs/input.md` describes the formats and what becomes of bad input.
"""

from __future__ import annotations

from typing import Literal

from detector.wire.base import REASONS, Decoded, Decoder, Rejected
from detector.wire.dbn import DbnDecoder, TradeBook, encode_dbn
from detector.wire.json import JsonDecoder, encode_json
from detector.wire.vector import COLUMNS_HEADER, VectorDecoder, encode_vector

Format = Literal["dbn", "json", "vector"]

__all__ = [
    "COLUMNS_HEADER",
    "REASONS",
    "Decoded",
    "Decoder",
    "Format",
    "Rejected",
    "TradeBook",
    "encode_dbn",
    "encode_json",
    "encode_vector",
    "make_decoder",
]


def make_decoder(
    fmt: Format,
    *,
    trade_book: TradeBook = "after",
    columns: tuple[str, ...] | None = None,
) -> Decoder:
    """Give the decoder of an input format.

    Parameters
    ----------
    fmt
        "dbn", "json" or "vector".
    trade_book
        For "dbn": whether a trade's book is the one before or after it; see `DbnDecoder`.
    columns
        For "vector", and needed there: the columns wanted, in the model's order.

    Raises
    ------
    ValueError
        An unknown format, or vectors without columns.
    """
    if trade_book not in ("before", "after"):
        raise ValueError(f"trade_book is {trade_book!r}; allowed are 'before' and 'after'")
    if fmt == "dbn":
        return DbnDecoder(trade_book)
    if fmt == "json":
        return JsonDecoder()
    if fmt == "vector":
        return VectorDecoder(columns or ())
    raise ValueError(f"format is {fmt!r}; allowed are 'dbn', 'json' and 'vector'")
