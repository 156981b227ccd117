"""Panels of bad input: messages rejected, ticks dropped or flagged, instruments torn apart."""

from __future__ import annotations

from .parts import Panel, Said, lines
from .queries import Query, of, rate, rise


def bad_input() -> list[Panel]:
    """Return them."""
    return [_rejected(), _dropped(), _flagged(), _instruments()]


def _rejected() -> Panel:
    return lines(
        Said(
            "Messages rejected",
            "Messages that could not be decoded, by reason; each becomes a dead letter.",
            "short",
            ("TapewatchRejectedInput", "TapewatchDeadLetters"),
        ),
        Query(rise("tapewatch_messages_rejected_total", by="reason"), "{{reason}}"),
        stacked=True,
        bars=True,
    )


def _dropped() -> Panel:
    return lines(
        Said(
            "Ticks dropped",
            "Share of the ticks that were dropped, by reason. Repeated ones are well where a feed "
            "is sent twice.",
            "percentunit",
            ("TapewatchTicksDropped",),
        ),
        Query(
            f"{rate('tapewatch_ticks_dropped_total', by='reason')} "
            f"/ on () group_left () {rate('tapewatch_ticks_total')}",
            "{{reason}}",
        ),
        stacked=True,
    )


def _flagged() -> Panel:
    return lines(
        Said(
            "Ticks flagged",
            "Share of the ticks that were unusual and processed all the same, by flag.",
            "percentunit",
        ),
        Query(
            f"{rate('tapewatch_ticks_flagged_total', by='flag')} "
            f"/ on () group_left () {rate('tapewatch_ticks_total')}",
            "{{flag}}",
        ),
        stacked=True,
    )


def _instruments() -> Panel:
    return lines(
        Said(
            "Instruments",
            "Instruments tracked, those evicted at the cap, those seen in two partitions: their "
            "windows are torn apart, the producer's key is wrong.",
            "short",
        ),
        Query(f"sum({of('tapewatch_instruments')})", "tracked"),
        Query(rise("tapewatch_instrument_evictions_total"), "evicted"),
        Query(rise("tapewatch_split_instruments_total"), "in two partitions"),
        Query(rise("tapewatch_symbol_collisions_total"), "names refused"),
    )
