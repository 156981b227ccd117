"""What a feed shows of a market event: single orders, the best quotes, or trades alone.

The same purchase is one record where single orders are sent, a trade and then a quote where trades
and quotes are, a quote where nothing else is, and a trade without any book on a tape. A planted
anomaly must speak its feed's language, or the language would give it away. Knows records, not
anomalies; `told` is the only place where the feeds differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from detector.ticks import UNDEFINED_PRICE, TickArray

Int64 = npt.NDArray[np.int64]
Book = Mapping[str, Int64]
"""Book columns by name, one row per event."""

BOOK: Final = ("bid_px", "ask_px", "bid_sz", "ask_sz", "bid_ct", "ask_ct")

_T, _M, _N = ord("T"), ord("M"), ord("N")
_RESOLUTIONS: Final = (10**6, 10**5, 10**4, 10**3, 10**2, 10)
_ENOUGH: Final = 8
"""Times from which a resolution may be concluded: of ns at random, one in 1e8 such sets lies on a
grid of ten."""


class Feed(StrEnum):
    """The kinds of feed."""

    ORDERS = "orders"  # adds, cancels and trades over a book: LOBSTER, Databento
    QUOTES_AND_TRADES = "quotes_and_trades"  # the best quotes, and trades beside: Lean equities
    QUOTES = "quotes"  # the best quotes only, often without sizes: Lean forex, bookTicker
    TRADES = "trades"  # no book: a tape


def feed_of(ticks: TickArray) -> Feed:
    """Tell the feed of an instrument by its ticks."""
    actions = set(np.unique(ticks["action"]).tolist())
    return feed_from(
        quoted=bool(two_sided(ticks).any()),
        orders=bool(actions & {ord("A"), ord("C")}),
        trades=_T in actions,
    )


def feed_from(*, quoted: bool, orders: bool, trades: bool) -> Feed:
    """Tell the feed by what was seen: a two-sided book, adds or cancels, trades."""
    if not quoted:
        return Feed.TRADES
    if orders:
        return Feed.ORDERS
    return Feed.QUOTES_AND_TRADES if trades else Feed.QUOTES


def told(feed: Feed, events: TickArray, before: Book, after: Book, like: TickArray) -> TickArray:
    """Say market events as a feed says them.

    Parameters
    ----------
    feed
        The feed.
    events
        `(n,)` events as a feed of orders has them; their book columns are not read.
    before, after
        `(n,)` book columns before and after each event.
    like
        Ticks of the feed: where none of its quotes (its trades) names a side, none is named.

    Returns
    -------
    `(m,)` ticks, in the order of the events. Among orders each event is a tick. Where quotes are
    told, an event that changes the best quotes is a quote; where trades are told, a trade is a tick
    of its own over the book before it. Only a feed of orders numbers them: others have row numbers
    of a file, and 0 says that there is none.
    """
    if feed == Feed.ORDERS:
        return _over(events.copy(), after)
    quotes, changed = _quotes(events, before, after, like)
    trades = _trades(events, before, like, booked=feed != Feed.TRADES)
    is_trade = events["action"] == _T
    parts, rows = [], []
    if feed != Feed.QUOTES:
        parts.append(trades[is_trade])
        rows.append(np.flatnonzero(is_trade))
    if feed != Feed.TRADES:
        parts.append(quotes[changed])
        rows.append(np.flatnonzero(changed))
    told_ = np.concatenate(parts)
    told_["sequence"] = 0
    ordered: TickArray = told_[np.argsort(np.concatenate(rows), kind="stable")]
    return ordered


def _over(ticks: TickArray, book: Book) -> TickArray:
    for name in BOOK:
        ticks[name] = book[name]
    return ticks


def _quotes(
    events: TickArray, before: Book, after: Book, like: TickArray
) -> tuple[TickArray, npt.NDArray[np.bool_]]:
    """Return quotes that name the side that changed, as the readers do; and which changed any."""
    quotes = _over(events.copy(), after)
    changed = {
        side: (after[f"{side}_px"] != before[f"{side}_px"])
        | (after[f"{side}_sz"] != before[f"{side}_sz"])
        for side in ("bid", "ask")
    }
    quotes["action"], quotes["side"] = _M, _N
    quotes["price"], quotes["size"] = UNDEFINED_PRICE, 0
    if _names_a_side(like, like["action"] != _T):
        for letter, side, other in (("B", "bid", "ask"), ("A", "ask", "bid")):
            rows = changed[side] & ~changed[other]
            quotes["side"][rows] = ord(letter)
            quotes["price"][rows] = quotes[f"{side}_px"][rows]
            quotes["size"][rows] = quotes[f"{side}_sz"][rows]
    return quotes, changed["bid"] | changed["ask"]


def _trades(events: TickArray, before: Book, like: TickArray, *, booked: bool) -> TickArray:
    trades = _over(events.copy(), before)
    if not booked:
        without_book(trades)
    if not _names_a_side(like, like["action"] == _T):
        trades["side"] = _N
    return trades


def _names_a_side(like: TickArray, rows: npt.NDArray[np.bool_]) -> bool:
    sides = like["side"][rows]
    return not len(sides) or bool(np.any(sides != _N))


def without_book(ticks: TickArray) -> None:
    """Take the book away, in place."""
    for name in BOOK:
        ticks[name] = UNDEFINED_PRICE if name.endswith("_px") else 0


def with_trades_as_book(ticks: TickArray) -> TickArray:
    """Return ticks whose book is the price of the trade, so that a tape has a place to start at."""
    lent = ticks.copy()
    rows = (ticks["action"] == _T) & (ticks["price"] != UNDEFINED_PRICE)
    for name in ("bid_px", "ask_px"):
        lent[name][rows] = ticks["price"][rows]
    return lent


def two_sided(ticks: TickArray) -> npt.NDArray[np.bool_]:
    """Mask of the ticks with a bid and an ask."""
    known: npt.NDArray[np.bool_] = (ticks["bid_px"] != UNDEFINED_PRICE) & (
        ticks["ask_px"] != UNDEFINED_PRICE
    )
    return known


def price_grid(quoted: TickArray) -> int:
    """Coarsest price grid on which the quotes lie: at most the spread, often the tick size."""
    bid, ask = quoted["bid_px"], quoted["ask_px"]
    return max(int(np.gcd.reduce(np.concatenate([bid - bid[0], ask - bid[0]]))), 1)


def clock_ns(ticks: TickArray) -> int:
    """Resolution of the event times, from 1 ns to 1 ms."""
    ts = ticks["ts_event"].astype(np.int64)
    if len(ts) < _ENOUGH:
        return 1
    return next((step for step in _RESOLUTIONS if not np.any(ts % step)), 1)
