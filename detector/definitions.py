"""What every feature means: name, unit, definition and source.

`detector.kernels` computes, this module says what; `docs/features.md` and `tapewatch features` are
made from it. The words used:

- w: the last `short_window` events of the instrument, this one included, since its windows began.
- v: the last `recent_window` of them; for trades, the last `recent_window` trades.
- over h: an exponentially decaying window in event time with half-life h: what happened d seconds
  ago counts 2^(-d/h). The expected number of events in it is E = h / (ln 2 x mean wait).
- mean spread, depth, trade size, wait, volatility: slow scales of the instrument itself, taken
  *before* this event, so that an outlier does not shrink itself (see `SCALES`).
- reference price: the mid; the trade price in markets without a book.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

from detector import kernels as k

Window = Literal["tick", "events", "time"]


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of a `FeatureBlock`.

    `window` is what it looks back on, beside the slow scales: nothing but this tick and the state
    of the market ("tick"), a number of events or trades ("events"), or a decaying window of a
    fraction of a second ("time"). `lone`: rare alone, judged by itself too, see the scorer.
    """

    name: str
    group: str
    unit: str
    window: Window
    definition: str
    source: str = ""
    lone: bool = False


SCALES: Final = (
    ("mean spread", "positive quoted spreads; without any, the absolute non-zero price changes"),
    (
        "volatility",
        "sd of the log return per event: root of mean square non-zero return x their share",
    ),
    ("mean depth", "(bid size + ask size) / 2 of two-sided books"),
    ("mean wait", "non-zero inter-arrival times x their share of events"),
    ("mean book wait", "the same of the times between changes of the book"),
    ("mean trade", "trade sizes; also mean and variance of their logarithm"),
    (
        "shares",
        "trades, adds, cancels, changes of a best price and changes of the book per event",
    ),
    ("mean flow", "|order-flow imbalance| per event"),
)

_CKS = "Cont, Kukanov, Stoikov 2014, doi:10.1093/jjfinec/nbt003"
_BNS = "Barndorff-Nielsen, Shephard 2004, doi:10.1093/jjfinec/nbh001"
_LR = "Lee, Ready 1991, doi:10.1111/j.1540-6261.1991.tb02683.x"
_HASBROUCK = "Hasbrouck 2007, Empirical Market Microstructure"
_ABDL = "Andersen, Bollerslev, Diebold, Labys 2003, doi:10.1111/1468-0262.00418"

_CAO = "wash trades: Cao et al. 2016, doi:10.1109/TNNLS.2015.2480959"

_Row = tuple[int, str, str, str, Window, str, str]


def _over(
    output: int, name: str, group: str, unit: str, definition: str, source: str = ""
) -> tuple[_Row, _Row]:
    """Return the same over the first and over the second decaying window."""
    first, second = (
        (output + i, name.replace("{h}", h), group, unit, definition.replace("{h}", h))
        for i, h in enumerate(("{h1}", "{h2}"))
    )
    return (*first[:4], "time", first[4], source), (*second[:4], "time", second[4], source)


# By group: (output, name, group, unit, window, definition, source). {w} short and {v} recent
# window of events, {t} recent window of trades, {g} window of waits, {h0}.. half-lives. What
# counts trades over the slowest half-life is no window of a fraction of a second: "events".
_TICK: Final[tuple[_Row, ...]] = (
    (k.RETURN_TICK, "return_tick", "return", "slog", "tick",
     "log return of the reference price at this event / volatility; 0 if a price is not positive",
     ""),
    (k.RETURN_SHORT, "return_{w}", "return", "slog", "events",
     "sum of the log returns in w / (volatility x root of their number)", ""),
    *_over(k.RETURN_H, "return_{h}", "return", "slog",
           "decaying sum of log returns over {h} / (volatility x root of max(E/2, 1))"),
    *_over(k.ABSOLUTE_RETURN_H, "absolute_return_{h}", "return", "log",
           ("log((s / volatility + 1) / (0.3 E + 1)), s the decaying sum of |log returns| over "
            "{h}")),
    (k.PATH_EFFICIENCY, "path_efficiency_{w}", "return", "0..1", "events",
     "|net change| / sum of |changes| of the reference price in w; 0 without changes",
     "Kaufman 1995, Smarter Trading (efficiency ratio)"),
    (k.RANGE, "range_{w}", "return", "slog", "events",
     "(highest - lowest reference price in w) / mean spread", ""),
    (k.MEAN_DEVIATION, "mean_deviation_{w}", "return", "slog", "events",
     "(reference price - its mean in w) / mean spread", ""),
    (k.REALISED_VARIANCE_SHORT, "realised_variance_{w}", "volatility", "slog", "events",
     "mean squared log return in w / volatility^2", _ABDL),
    *_over(k.REALISED_VARIANCE_H, "realised_variance_{h}", "volatility", "slog",
           "decaying sum of squared log returns over {h} / (volatility^2 x max(E, 1))", _ABDL),
    (k.BIPOWER_VARIANCE, "bipower_variance_{w}", "volatility", "slog", "events",
     "pi/2 x mean of |log return x the one before it| in w / volatility^2", _BNS),
    (k.JUMP_RATIO, "jump_ratio_{w}", "volatility", "0..1", "events",
     "max(0, 1 - bipower variance / realised variance) in w; 0 without returns", _BNS),
    (k.QUOTED_SPREAD, "quoted_spread", "spread", "slog", "tick",
     "(ask - bid) / mean spread, the last known; negative when crossed", _HASBROUCK),
    (k.RELATIVE_SPREAD, "relative_spread", "spread", "slog", "tick",
     "(ask - bid) / reference price / volatility; 0 if the price is not positive", _HASBROUCK),
    (k.SPREAD_MEAN, "spread_mean_{w}", "spread", "slog", "events",
     "mean of ask - bid in w / mean spread", ""),
    (k.SPREAD_MIN, "spread_min_{w}", "spread", "slog", "events",
     "least ask - bid in w / mean spread", ""),
    (k.SPREAD_MAX, "spread_max_{w}", "spread", "slog", "events",
     "largest ask - bid in w / mean spread", ""),
    (k.EFFECTIVE_TICK, "effective_spread_tick", "spread", "slog", "tick",
     "2 x sign x (price - mid before the trade) / mean spread of this trade; 0 if not a trade",
     _HASBROUCK),
    (k.EFFECTIVE_SPREAD, "effective_spread_{w}", "spread", "slog", "events",
     "mean over the trades in w of 2 x sign x (price - mid before the trade) / mean spread",
     _HASBROUCK),
    (k.CROSSED_LOCKED_TICK, "crossed_locked_tick", "spread", "0..1", "tick",
     "1 where both sides are quoted and bid >= ask, else 0", ""),
    (k.CROSSED_LOCKED, "crossed_locked_{w}", "spread", "0..1", "events",
     "share of the events in w with a two-sided book and bid >= ask", ""),
    (k.CROSSED_DEPTH, "crossed_depth_tick", "spread", "slog", "tick",
     "(ask - bid) / mean spread where both sides are quoted and bid > ask, else 0", ""),
    (k.CROSSED_EVENTS, "crossed_events", "spread", "slog", "tick",
     "events in a row, this one included, with a two-sided book and bid >= ask; else 0", ""),
    (k.QUEUE_IMBALANCE, "queue_imbalance", "book", "-1..1", "tick",
     "(bid size - ask size) / (bid size + ask size); a missing side has size 0",
     "Gould, Bonart 2016, doi:10.1142/S2382626616500064"),
    (k.QUEUE_IMBALANCE_MEAN, "queue_imbalance_mean_{w}", "book", "-1..1", "events",
     "mean queue imbalance in w", ""),
    (k.QUEUE_IMBALANCE_SD, "queue_imbalance_sd_{w}", "book", "0..1", "events",
     "standard deviation of the queue imbalance in w", ""),
    (k.MICROPRICE_DEVIATION, "microprice_deviation", "book", "slog", "tick",
     "(microprice - mid) / mean spread = half the spread x queue imbalance / mean spread",
     "Stoikov 2018, doi:10.1080/14697688.2018.1489139"),
    (k.BID_SIZE, "bid_size", "book", "slog", "tick",
     "bid size / mean depth", ""),
    (k.ASK_SIZE, "ask_size", "book", "slog", "tick",
     "ask size / mean depth", ""),
    (k.BID_SIZE_MAX, "bid_size_max_{w}", "book", "slog", "events",
     "largest bid size in w / mean depth", ""),
    (k.ASK_SIZE_MAX, "ask_size_max_{w}", "book", "slog", "events",
     "largest ask size in w / mean depth", ""),
    (k.BOOK_AGE, "book_age", "book", "slog", "tick",
     "time since one of the best prices and sizes last changed / mean wait; 0 without a book", ""),
    (k.BOOK_AGE_EVENTS, "book_age_events", "book", "slog", "tick",
     "events since then; 0 without a book", ""),
    (k.BOOK_WAIT, "book_wait", "book", "log", "tick",
     ("log((t + f) / (mean book wait + f)), t the time that the book before this event had "
      "stood, f = 1 % of the mean; 0 without a book"), ""),
    (k.BOOK_WAIT_EVENTS, "book_wait_events", "book", "slog", "tick",
     "events through which the book before this event had stood; 0 without a book", ""),
    (k.FROZEN_BOOK_TRADES, "frozen_book_trades", "book", "count x log", "tick",
     ("n x log(1 + t x book changes per event / mean wait), t the time since one of the best "
      "prices and sizes last changed, n the trades since then that left the book as it was and had "
      "no other trade in the 0.1 s before; 0 if this is not a trade, and without a book"), ""),
    (k.UNDO_SHARE, "undo_share_{w}", "book", "0..1", "events",
     ("share of the events in w that undo the one before: prices and sizes change, and are those "
      "of two events ago"), ""),
    *_over(k.UNDOS_H, "undos_{h}", "book", "slog",
           "decaying number over {h} of events that undo the one before"),
    (k.OFI_TICK, "order_flow_imbalance_tick", "order flow", "slog", "tick",
     "order-flow imbalance e of this event / mean depth", _CKS),
    (k.OFI_SHORT, "order_flow_imbalance_{w}", "order flow", "slog", "events",
     "sum of e in w / (mean depth x root of the number of events)", _CKS),
    *_over(k.OFI_H, "order_flow_imbalance_{h}", "order flow", "-1..1",
           "decaying sum of e over {h} / (that of |e| + mean depth)", _CKS),
    (k.ORDER_FLOW, "order_flow_{w}", "order flow", "slog", "events",
     "mean |e| in w / mean depth", ""),
    *_over(k.ORDER_FLOW_H, "order_flow_{h}", "order flow", "log",
           ("log((s / mean depth + 1) / (E x mean flow / mean depth + 1)), s the decaying sum of "
            "|e| over {h}")),
    *_over(k.NET_ADDS_H, "net_bid_adds_{h}", "order flow", "slog",
           "decaying number over {h} of adds on the bid less that of adds on the ask"),
    (k.ADD_IMBALANCE_RECENT, "add_imbalance_{v}", "order flow", "-1..1", "events",
     "(adds on the bid - adds on the ask) / events that add, in v; 0 without", ""),
    (k.TRADE_SHARE, "trade_share_{w}", "trades", "0..1", "events",
     "share of trades among the events in w", ""),
    *_over(k.TRADE_RATE_H, "trade_rate_{h}", "trades", "log",
           "log((n + 1) / (E x trades per event + 1)), n the decaying number of trades over {h}"),
    (k.TRADE_RUN, "trade_run", "trades", "slog", "tick",
     "trades in a row, this event included; 0 if it is not a trade", ""),
    (k.TRADE_SIGN_IMBALANCE, "trade_sign_imbalance_{w}", "trades", "-1..1", "events",
     ("(buys - sells) / trades in w, by aggressor; unknown signs by the quote rule, then the "
      "tick rule"), _LR),
    *_over(k.NET_BUYS_H, "net_buys_{h}", "trades", "slog",
           "decaying number over {h} of buys less that of sells, by aggressor", _LR),
    (k.SIGNED_VOLUME_SHORT, "signed_volume_imbalance_{w}", "trades", "-1..1", "events",
     "(bought - sold volume) / traded volume in w", _LR),
    *_over(k.SIGNED_VOLUME_H, "signed_volume_imbalance_{h}", "trades", "-1..1",
           "decaying signed volume over {h} / (decaying volume + mean trade)", _LR),
    (k.VOLUME, "volume_{w}", "trades", "slog", "events",
     "traded volume in w / mean trade", ""),
    *_over(k.VOLUME_H, "volume_{h}", "trades", "log",
           ("log((s / mean trade + 1) / (E x trades per event + 1)), s the decaying volume over "
            "{h}")),
    (k.TRADE_SIZE, "trade_size_tick", "trades", "slog", "tick",
     "size of this trade / mean trade; 0 if not a trade", ""),
    (k.TRADE_SIZE_Z, "trade_size_z", "trades", "slog", "tick",
     "(log size - its mean) / (its sd + 0.1) of this trade; 0 if not a trade, or before 8 trades",
     ""),
    (k.LARGEST_TRADE, "largest_trade_{w}", "trades", "slog", "events",
     "largest trade in w / mean trade", ""),
    (k.TRADE_SIZE_MEAN, "trade_size_mean_{t}", "trades", "slog", "events",
     "mean size of the trades in v / mean trade; 0 if this is not a trade", ""),
    (k.TRADE_SIZE_SD, "trade_size_sd_{t}", "trades", "log sd", "events",
     "standard deviation of the log sizes of the trades in v; 0 if this is not a trade", ""),
    (k.TRADE_SPAN, "trade_span_{t}", "trades", "log", "events",
     ("log((t + f) / (u + f)), t the time from the first to the last trade in v, u = {v_trades} "
      "mean waits / trades per event, f = 2 % of u; 0 if this is not a trade, or before "
      "{v_trades} trades"), ""),
    (k.SAME_SIZE_SHARE, "same_size_share_{t}", "trades", "0..1", "events",
     "share of the trades in v of the size of the trade before; 0 if this is not a trade", ""),
    (k.PINGPONG_SHARE, "pingpong_share_{t}", "trades", "0..1", "events",
     ("share of the trades in v that are ping-pong: of the size of the trade before and the "
      "opposite sign; 0 if this is not a trade"), _CAO),
    (k.WASH_RUN, "wash_run", "trades", "slog", "tick",
     "ping-pong trades in a row, this one included; 0 if this is no ping-pong trade", _CAO),
    (k.PINGPONG, "pingpong_{h2}", "trades", "slog", "time",
     "decaying number of ping-pong trades over {h2}", _CAO),
    (k.PINGPONG_SLOW, "pingpong_{h3}", "trades", "slog", "events",
     "decaying number of ping-pong trades over {h3}", _CAO),
    (k.INTER_ARRIVAL, "inter_arrival", "arrivals", "log", "tick",
     "log((wait + f) / (mean wait + f)), f = 1 % of the mean wait", ""),
    (k.INTER_ARRIVAL_MEAN, "inter_arrival_mean_{w}", "arrivals", "log", "events",
     "log((mean wait in w + f) / (mean wait + f))", ""),
    (k.INTER_ARRIVAL_CV, "inter_arrival_cv_{w}", "arrivals", "ratio", "events",
     "standard deviation / mean of the waits in w", ""),
    (k.GAP_BURST, "wait_dominance_{v}", "arrivals", "log", "events",
     "log((longest wait in v + 0.1 ms) / (sum of the other waits in v + 0.1 ms))", ""),
    (k.GAP_X_RATE, "gap_then_burst_{g}", "arrivals", "log^2", "events",
     ("log(1 + n) x max(0, log((t + f) / (mean wait + f))), n the decaying number of events over "
      "{h2}, t the longest wait in the last {g_events} events"), ""),
    (k.GAP_BURST_COUNT, "gap_burst_count", "arrivals", "slog", "events",
     ("least of g / mean wait and c - s / mean wait, not below 0: g the gap, c and s the events "
      "and the time since its end; a wait is the new gap when it is longer than g x "
      "2^(-s/{gap_life})"), ""),
    (k.GAP_BURST_STRENGTH, "gap_burst_strength", "arrivals", "weight x log", "events",
     ("log(1 + g / mean wait x c / (1 + s / mean wait)) x 2^(-s/{gap_life}), g, c and s as in "
      "`gap_burst_count`"), ""),
    (k.MESSAGE_RATE_FAST, "message_rate_{h0}", "arrivals", "log", "time",
     "log((n + 1) / (E + 1)), n the decaying number of events over {h0}", ""),
    *_over(k.MESSAGE_RATE_H, "message_rate_{h}", "arrivals", "log",
           "log((n + 1) / (E + 1)), n the decaying number of events over {h}"),
    (k.ADD_SHARE, "add_share_{w}", "adds and cancels", "0..1", "events",
     "share of events in w that add liquidity", ""),
    (k.ADD_SHARE_RECENT, "add_share_{v}", "adds and cancels", "0..1", "events",
     "share of events in v that add liquidity", ""),
    *_over(k.ADD_RATE_H, "add_rate_{h}", "adds and cancels", "log",
           ("log((n + 1) / (E x adds per event + 1)), n the decaying number of adds over {h}, an "
            "event on both sides counting twice")),
    (k.BID_CANCEL_SHARE, "bid_cancel_share_{w}", "adds and cancels", "0..1", "events",
     "share of events in w that cancel on the bid", ""),
    (k.BID_CANCEL_SHARE_RECENT, "bid_cancel_share_{v}", "adds and cancels", "0..1", "events",
     "share of events in v that cancel on the bid", ""),
    (k.ASK_CANCEL_SHARE, "ask_cancel_share_{w}", "adds and cancels", "0..1", "events",
     "share of events in w that cancel on the ask", ""),
    (k.ASK_CANCEL_SHARE_RECENT, "ask_cancel_share_{v}", "adds and cancels", "0..1", "events",
     "share of events in v that cancel on the ask", ""),
    (k.CANCEL_TO_TRADE, "cancel_to_trade_{w}", "adds and cancels", "log", "events",
     "log((cancels + 1) / (trades + 1)) in w", ""),
    (k.CANCEL_TO_TRADE_RECENT, "cancel_to_trade_{v}", "adds and cancels", "log", "events",
     "log((cancels + 1) / (trades + 1)) in v", ""),
    *_over(k.CANCEL_RATE_H, "cancel_rate_{h}", "adds and cancels", "log",
           ("log((n + 1) / (E x cancels per event + 1)), n the decaying number of cancels over "
            "{h}, an event on both sides counting twice")),
    (k.CANCEL_IMBALANCE, "cancel_imbalance_{w}", "adds and cancels", "-1..1", "events",
     "(bid cancels - ask cancels) / cancels in w; 0 without", ""),
    *_over(k.CANCEL_IMBALANCE_H, "cancel_imbalance_{h}", "adds and cancels", "-1..1",
           "(b - a) / (b + a + 1), b and a the decaying numbers of bid and ask cancels over {h}"),
    *_over(k.NET_CANCELS_H, "net_bid_cancels_{h}", "adds and cancels", "slog",
           "decaying number over {h} of bid cancels less that of ask cancels"),
    (k.CANCEL_SIZE, "cancel_size_tick", "adds and cancels", "slog", "tick",
     "volume cancelled at this event / mean depth", ""),
    (k.CANCELLED_VOLUME, "cancelled_volume_{w}", "adds and cancels", "slog", "events",
     "cancelled volume in w / mean depth", ""),
    (k.LARGEST_CANCEL, "largest_cancel_{w}", "adds and cancels", "slog", "events",
     "largest volume cancelled at one event in w / mean depth", ""),
    (k.BID_CANCEL_X_BUY, "bid_cancel_x_buy_{w}", "adds and cancels", "0..1", "events",
     "root of (bid cancels x buys) / events in w: cancels opposite to the side that trades", ""),
    *_over(k.BID_CANCEL_X_BUY_H, "bid_cancel_x_buy_{h}", "adds and cancels", "0..1",
           ("root of (c x d) / (n + 1), c, d and n the decaying numbers of bid cancels, buys and "
            "events over {h}; a trade of unknown sign is half a buy")),
    (k.ASK_CANCEL_X_SELL, "ask_cancel_x_sell_{w}", "adds and cancels", "0..1", "events",
     "root of (ask cancels x sells) / events in w: cancels opposite to the side that trades", ""),
    *_over(k.ASK_CANCEL_X_SELL_H, "ask_cancel_x_sell_{h}", "adds and cancels", "0..1",
           ("root of (c x d) / (n + 1), c, d and n the decaying numbers of ask cancels, sells "
            "and events over {h}; a trade of unknown sign is half a sell")),
    (k.BID_CHANGES, "bid_changes_{w}", "best prices", "0..1", "events",
     "share of events in w that change the best bid price", ""),
    (k.ASK_CHANGES, "ask_changes_{w}", "best prices", "0..1", "events",
     "share of events in w that change the best ask price", ""),
    *_over(k.CHANGE_RATE_H, "price_change_rate_{h}", "best prices", "log",
           ("log((n + 1) / (E x changes per event + 1)), n the decaying number of changes of the "
            "best bid and the best ask price over {h}")),
    (k.BID_FLIPS, "bid_flips_{w}", "best prices", "0..1", "events",
     "share of events in w where the best bid reverses its last direction", ""),
    (k.ASK_FLIPS, "ask_flips_{w}", "best prices", "0..1", "events",
     "share of events in w where the best ask reverses its last direction", ""),
    *_over(k.FLIPS_H, "flips_{h}", "best prices", "slog",
           "decaying number over {h} of reversals of the best bid and the best ask"),
    (k.BID_IMPROVEMENT, "bid_improvement_{w}", "best prices", "-1..1", "events",
     "(rises - falls of the best bid) / events in w", ""),
    (k.BID_IMPROVEMENT_RECENT, "bid_improvement_{v}", "best prices", "-1..1", "events",
     "(rises - falls of the best bid) / events in v", ""),
    *_over(k.BID_MOVES_H, "bid_improvement_{h}", "best prices", "slog",
           "decaying number over {h} of rises of the best bid less that of its falls"),
    (k.BID_RUN, "bid_run", "best prices", "slog", "tick",
     ("rises of the best bid in a row, events without a change between them allowed; minus falls "
      "in a row"), ""),
    (k.ASK_IMPROVEMENT, "ask_improvement_{w}", "best prices", "-1..1", "events",
     "(falls - rises of the best ask) / events in w", ""),
    (k.ASK_IMPROVEMENT_RECENT, "ask_improvement_{v}", "best prices", "-1..1", "events",
     "(falls - rises of the best ask) / events in v", ""),
    *_over(k.ASK_MOVES_H, "ask_improvement_{h}", "best prices", "slog",
           "decaying number over {h} of falls of the best ask less that of its rises"),
    (k.ASK_RUN, "ask_run", "best prices", "slog", "tick",
     ("rises of the best ask in a row, events without a change between them allowed; minus falls "
      "in a row"), ""),
)  # fmt: skip

_LONE: Final = frozenset(
    {
        k.CROSSED_EVENTS,
        k.FROZEN_BOOK_TRADES,
        k.WASH_RUN,
        k.GAP_X_RATE,
        k.GAP_BURST_COUNT,
        k.GAP_BURST_STRENGTH,
    }
)

_INSTRUMENT: Final[tuple[_Row, ...]] = (
    (0, "inter_arrival", "arrivals", "log", "tick",
     "log((wait + f) / (mean wait + f)), f = 1 % of the mean wait", ""),
    (1, "inter_arrival_mean_{w}", "arrivals", "log", "events",
     "log((mean wait in w + f) / (mean wait + f))", ""),
)  # fmt: skip

_COLUMN: Final[tuple[_Row, ...]] = (
    (k.CHANGE, "change", "change", "slog", "tick",
     "value - the one before / mean size of the non-zero changes", ""),
    (k.LEVEL, "level", "level", "slog", "tick", "(value - slow mean) / slow sd", ""),
    (k.SHORT_MEAN, "mean_{w}", "level", "slog", "events", "(mean in w - slow mean) / slow sd", ""),
    (k.SHORT_SD, "sd_{w}", "deviation", "log", "events",
     "log((sd in w + f) / (slow sd + f)), f = 1 % of it", ""),
    (k.LONG_MEAN, "mean_{l}", "level", "slog", "events",
     "(mean fading over {l} - slow mean) / slow sd", ""),
    (k.LONG_SD, "sd_{l}", "deviation", "log", "events",
     "log((sd fading over {l} + f) / (slow sd + f)), f = 1 % of it", ""),
    (k.HIGH, "high_{w}", "extremes", "slog", "events",
     "how far the value lies above the window before it / slow sd; 0 inside", ""),
    (k.LOW, "low_{w}", "extremes", "slog", "events",
     "how far the value lies below the window before it / slow sd; 0 inside", ""),
)  # fmt: skip

_RANK: Final[tuple[_Row, ...]] = (
    (0, "rank_{w}", "extremes", "-1..1", "events",
     "rank within the window before it: -1 below all, 1 above all, ties half", ""),
)  # fmt: skip


def seconds_label(seconds: float) -> str:
    """`0.1` -> `100ms`, `10.0` -> `10s`."""
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


def tick_features(
    short_window: int, recent_window: int, half_lives_s: tuple[float, ...]
) -> tuple[Feature, ...]:
    """Definitions of the outputs of `kernels.update_ticks`, in order."""
    words = {f"h{i}": seconds_label(h) for i, h in enumerate(half_lives_s)}
    words |= {"w": f"{short_window}ev", "v": f"{recent_window}ev", "t": f"{recent_window}tr"}
    words |= {"g": f"{k.GAP_EVENTS}ev", "g_events": str(k.GAP_EVENTS)}
    words |= {"v_trades": str(recent_window), "gap_life": f"{k.GAP_HALF_LIFE:g} s"}
    return _fill(_TICK, words, _LONE)


def vector_features(
    columns: tuple[str, ...], short_window: int, long_window: int
) -> tuple[Feature, ...]:
    """Definitions of the outputs of `kernels.update_vectors`, in order."""
    words = {"w": f"{short_window}ev", "l": f"{long_window}ev"}
    per_column = [
        replace(f, name=f"{column}.{f.name}", definition=f"{column}: {f.definition}")
        for rows in (_COLUMN, _RANK)
        for column in columns
        for f in _fill(rows, words)
    ]
    return _fill(_INSTRUMENT, words) + tuple(per_column)


def _fill(
    rows: tuple[_Row, ...], words: dict[str, str], lone: frozenset[int] = frozenset()
) -> tuple[Feature, ...]:
    return tuple(
        Feature(
            name.format(**words), group, unit, window, definition.format(**words), source,
            lone=output in lone,
        )
        for output, name, group, unit, window, definition, source in sorted(rows)
    )  # fmt: skip
