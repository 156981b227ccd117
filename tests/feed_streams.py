"""The synthetic market as other feeds would tell it, and what an anomaly alone adds to a stream."""

from __future__ import annotations

import numpy as np

from detector.feeds import BOOK, Feed, without_book
from detector.placing import HISTORY, Planted
from detector.planting import plant
from detector.ticks import UNDEFINED_PRICE, TickArray

MS = 10**6


def as_feed(ticks: TickArray, feed: Feed) -> TickArray:
    """Ticks of one instrument of the synthetic market as a feed of another kind has them.

    Quotes and trades: stamped in ms, levels instead of orders, no counts, trades over the book
    before them. Quotes: neither trades nor sizes. Trades: no book, no aggressor.
    """
    if feed == Feed.ORDERS:
        return ticks
    told = ticks.copy()
    told["ts_event"] -= told["ts_event"] % np.uint64(MS)
    told["ts_recv"] = told["ts_event"]
    trade = told["action"] == ord("T")
    if feed == Feed.TRADES:
        tape = told[trade]
        without_book(tape)
        tape["side"] = ord("N")
        return tape
    for name in BOOK:
        told[name][1:][trade[1:]] = ticks[name][:-1][trade[1:]]
    for name in ("bid_ct", "ask_ct"):
        told[name] = 0
    told["action"][~trade] = ord("M")
    told["price"][~trade] = told["bid_px"][~trade]
    told["size"][~trade] = told["bid_sz"][~trade]
    told["side"][~trade] = ord("B")
    if feed == Feed.QUOTES_AND_TRADES:
        return told
    quotes = told[~trade]
    for name in ("bid_sz", "ask_sz", "size"):
        quotes[name] = 0
    quotes["side"], quotes["price"] = ord("N"), UNDEFINED_PRICE
    return quotes


def alone(clean: TickArray, planted: Planted, feed: Feed) -> tuple[TickArray, TickArray]:
    """Plant into a market that falls silent: some ticks before, and the anomaly's own."""
    quiet = clean[: np.searchsorted(clean["ts_event"], planted.start_ns)][-4 * HISTORY :]
    return quiet, plant(quiet, [planted], feed)[len(quiet) :]
