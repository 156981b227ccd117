"""What every feature means: name, unit, definition and source.

`detector.kernels` computes, this module says what; `docs/features.md` and `tapewatch features` are
made from it. The words used:

- w: the last `short_window` events of the instrument, this one included, since its windows began.
- over h: an exponentially decaying window in event time with half-life h: what happened d seconds
  ago counts 2^(-d/h). The expected number of events in it is E = h / (ln 2 x mean wait).
- mean spread, depth, trade size, wait, volatility: slow scales of the instrument itself, taken
  *before* this event, so that an outlier does not shrink itself (see `SCALES`).
- reference price: the mid; the trade price in markets without a book.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from detector import kernels as k


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of a `FeatureBlock`."""

    name: str
    group: str
    unit: str
    definition: str
    source: str = ""


SCALES: Final = (
    ("mean spread", "positive quoted spreads; without any, the absolute non-zero price changes"),
    (
        "volatility",
        "sd of the log return per event: root of mean square non-zero return x their share",
    ),
    ("mean depth", "(bid size + ask size) / 2 of two-sided books"),
    ("mean wait", "non-zero inter-arrival times x their share of events"),
    ("mean trade", "trade sizes; also mean and variance of their logarithm"),
    ("shares", "trades per event, cancels per event"),
    ("mean latency", "ts_recv - ts_event where given"),
)

_CKS = "Cont, Kukanov, Stoikov 2014, doi:10.1093/jjfinec/nbt003"
_BNS = "Barndorff-Nielsen, Shephard 2004, doi:10.1093/jjfinec/nbh001"
_LR = "Lee, Ready 1991, doi:10.1111/j.1540-6261.1991.tb02683.x"
_HASBROUCK = "Hasbrouck 2007, Empirical Market Microstructure"
_ABDL = "Andersen, Bollerslev, Diebold, Labys 2003, doi:10.1111/1468-0262.00418"

_Row = tuple[int, str, str, str, str, str]

# By group: (output, name, group, unit, definition, source); {w} short window, {h0}.. half-lives.
_TICK: Final[tuple[_Row, ...]] = (
    (k.RETURN_TICK, "return_tick", "return", "slog",
     "log return of the reference price at this event / volatility; 0 if a price is not positive",
     ""),
    (k.RETURN_SHORT, "return_{w}", "return", "slog",
     "sum of the log returns in w / (volatility x root of their number)", ""),
    (k.RETURN_1, "return_{h1}", "return", "slog",
     "decaying sum of log returns over {h1} / (volatility x root of max(E/2, 1))", ""),
    (k.RETURN_2, "return_{h2}", "return", "slog",
     "decaying sum of log returns over {h2} / (volatility x root of max(E/2, 1))", ""),
    (k.RETURN_3, "return_{h3}", "return", "slog",
     "decaying sum of log returns over {h3} / (volatility x root of max(E/2, 1))", ""),
    (k.PATH_EFFICIENCY, "path_efficiency_{w}", "return", "0..1",
     "|net change| / sum of |changes| of the reference price in w; 0 without changes",
     "Kaufman 1995, Smarter Trading (efficiency ratio)"),
    (k.RANGE, "range_{w}", "return", "slog",
     "(highest - lowest reference price in w) / mean spread", ""),
    (k.MEAN_DEVIATION, "mean_deviation_{w}", "return", "slog",
     "(reference price - its mean in w) / mean spread", ""),
    (k.REALISED_VARIANCE_SHORT, "realised_variance_{w}", "volatility", "slog",
     "mean squared log return in w / volatility^2", _ABDL),
    (k.REALISED_VARIANCE_1, "realised_variance_{h1}", "volatility", "slog",
     "decaying sum of squared log returns over {h1} / (volatility^2 x max(E, 1))", _ABDL),
    (k.REALISED_VARIANCE_2, "realised_variance_{h2}", "volatility", "slog",
     "decaying sum of squared log returns over {h2} / (volatility^2 x max(E, 1))", _ABDL),
    (k.BIPOWER_VARIANCE, "bipower_variance_{w}", "volatility", "slog",
     "pi/2 x mean of |log return x the one before it| in w / volatility^2", _BNS),
    (k.JUMP_RATIO, "jump_ratio_{w}", "volatility", "0..1",
     "max(0, 1 - bipower variance / realised variance) in w; 0 without returns", _BNS),
    (k.QUOTED_SPREAD, "quoted_spread", "spread", "slog",
     "(ask - bid) / mean spread, the last known; negative when crossed", _HASBROUCK),
    (k.RELATIVE_SPREAD, "relative_spread", "spread", "slog",
     "(ask - bid) / reference price / volatility; 0 if the price is not positive", _HASBROUCK),
    (k.SPREAD_MEAN, "spread_mean_{w}", "spread", "slog",
     "mean of ask - bid in w / mean spread", ""),
    (k.SPREAD_MIN, "spread_min_{w}", "spread", "slog",
     "least ask - bid in w / mean spread", ""),
    (k.SPREAD_MAX, "spread_max_{w}", "spread", "slog",
     "largest ask - bid in w / mean spread", ""),
    (k.EFFECTIVE_SPREAD, "effective_spread_{w}", "spread", "slog",
     "mean over the trades in w of 2 x sign x (price - mid before the trade) / mean spread",
     _HASBROUCK),
    (k.ROLL_SPREAD, "roll_spread_{h3}", "spread", "slog",
     ("2 x root of max(0, -c) / mean spread, c the decaying mean over {h3} of the product of "
      "successive trade price changes"), "Roll 1984, doi:10.1111/j.1540-6261.1984.tb03897.x"),
    (k.CROSSED_LOCKED, "crossed_locked_{w}", "spread", "0..1",
     "share of the events in w with a two-sided book and bid >= ask", ""),
    (k.QUEUE_IMBALANCE, "queue_imbalance", "book", "-1..1",
     "(bid size - ask size) / (bid size + ask size); a missing side has size 0",
     "Gould, Bonart 2016, doi:10.1142/S2382626616500064"),
    (k.QUEUE_IMBALANCE_MEAN, "queue_imbalance_mean_{w}", "book", "-1..1",
     "mean queue imbalance in w", ""),
    (k.QUEUE_IMBALANCE_SD, "queue_imbalance_sd_{w}", "book", "0..1",
     "standard deviation of the queue imbalance in w", ""),
    (k.MICROPRICE_DEVIATION, "microprice_deviation", "book", "slog",
     "(microprice - mid) / mean spread = half the spread x queue imbalance / mean spread",
     "Stoikov 2018, doi:10.1080/14697688.2018.1489139"),
    (k.BID_SIZE, "bid_size", "book", "slog", "bid size / mean depth", ""),
    (k.ASK_SIZE, "ask_size", "book", "slog", "ask size / mean depth", ""),
    (k.BID_SIZE_MAX, "bid_size_max_{w}", "book", "slog", "largest bid size in w / mean depth", ""),
    (k.ASK_SIZE_MAX, "ask_size_max_{w}", "book", "slog", "largest ask size in w / mean depth", ""),
    (k.BID_SIZE_CV, "bid_size_cv_{w}", "book", "ratio",
     "standard deviation / mean of the bid size in w", ""),
    (k.ASK_SIZE_CV, "ask_size_cv_{w}", "book", "ratio",
     "standard deviation / mean of the ask size in w", ""),
    (k.BID_AGE, "bid_age", "book", "slog",
     "time since the best bid price last changed / mean wait", ""),
    (k.ASK_AGE, "ask_age", "book", "slog",
     "time since the best ask price last changed / mean wait", ""),
    (k.OFI_TICK, "order_flow_imbalance_tick", "order flow", "slog",
     "order-flow imbalance e of this event / mean depth", _CKS),
    (k.OFI_SHORT, "order_flow_imbalance_{w}", "order flow", "slog",
     "sum of e in w / (mean depth x root of the number of events)", _CKS),
    (k.ORDER_FLOW, "order_flow_{w}", "order flow", "slog", "mean |e| in w / mean depth", ""),
    (k.OFI_1, "order_flow_imbalance_{h1}", "order flow", "-1..1",
     "decaying sum of e over {h1} / (that of |e| + mean depth)", _CKS),
    (k.OFI_2, "order_flow_imbalance_{h2}", "order flow", "-1..1",
     "decaying sum of e over {h2} / (that of |e| + mean depth)", _CKS),
    (k.TRADE_SHARE, "trade_share_{w}", "trades", "0..1", "share of trades among the events in w",
     ""),
    (k.TRADE_SIGN_IMBALANCE, "trade_sign_imbalance_{w}", "trades", "-1..1",
     ("(buys - sells) / trades in w, by aggressor; unknown signs by the quote rule, then the tick "
      "rule"), _LR),
    (k.SIGNED_VOLUME_SHORT, "signed_volume_imbalance_{w}", "trades", "-1..1",
     "(bought - sold volume) / traded volume in w", _LR),
    (k.SIGNED_VOLUME_2, "signed_volume_imbalance_{h2}", "trades", "-1..1",
     "decaying signed volume over {h2} / (decaying volume + mean trade)", _LR),
    (k.VOLUME, "volume_{w}", "trades", "slog", "traded volume in w / mean trade", ""),
    (k.LARGEST_TRADE, "largest_trade_{w}", "trades", "slog", "largest trade in w / mean trade", ""),
    (k.TRADE_SIZE_Z, "trade_size_z", "trades", "slog",
     "(log size - its mean) / (its sd + 0.1) of this trade; 0 if not a trade, or before 8 trades",
     ""),
    (k.TRADE_RATE_1, "trade_rate_{h1}", "trades", "log",
     "log((n + 1) / (E x trades per event + 1)), n the decaying number of trades over {h1}", ""),
    (k.TRADE_RATE_2, "trade_rate_{h2}", "trades", "log",
     "log((n + 1) / (E x trades per event + 1)), n the decaying number of trades over {h2}", ""),
    (k.VWAP_DEVIATION, "vwap_deviation_{h3}", "trades", "slog",
     "(reference price - VWAP over {h3}) / mean spread; 0 without trades",
     "Berkowitz, Logue, Noser 1988, doi:10.1111/j.1540-6261.1988.tb02591.x"),
    (k.KYLE_LAMBDA, "kyle_lambda_{h3}", "trades", "slog",
     ("slope of the price change on signed volume q over {h3}: sum(change x q) / (sum(q^2) + "
      "mean trade^2), x mean trade / mean spread"), "Kyle 1985, doi:10.2307/1913210"),
    (k.AMIHUD, "amihud_{h2}", "trades", "slog",
     ("(decaying sum of |log return| over {h2} / volatility) / (decaying volume / mean trade + 1); "
      "0 before the first trade"), "Amihud 2002, doi:10.1016/S1386-4181(01)00024-6"),
    (k.INTER_ARRIVAL, "inter_arrival", "arrivals", "log",
     "log((wait + f) / (mean wait + f)), f = 1 % of the mean wait", ""),
    (k.INTER_ARRIVAL_MEAN, "inter_arrival_mean_{w}", "arrivals", "log",
     "log((mean wait in w + f) / (mean wait + f))", ""),
    (k.INTER_ARRIVAL_CV, "inter_arrival_cv_{w}", "arrivals", "ratio",
     "standard deviation / mean of the waits in w", ""),
    (k.MESSAGE_RATE_0, "message_rate_{h0}", "arrivals", "log",
     "log((n + 1) / (E + 1)), n the decaying number of events over {h0}", ""),
    (k.MESSAGE_RATE_1, "message_rate_{h1}", "arrivals", "log",
     "log((n + 1) / (E + 1)), n the decaying number of events over {h1}", ""),
    (k.MESSAGE_RATE_2, "message_rate_{h2}", "arrivals", "log",
     "log((n + 1) / (E + 1)), n the decaying number of events over {h2}", ""),
    (k.BURST_RATIO, "burst_ratio_{h1}_{h3}", "arrivals", "log",
     "log((n + 1) / (m {h1}/{h3} + 1)), n and m the decaying numbers of events over {h1} and {h3}",
     ""),
    (k.ADD_SHARE, "add_share_{w}", "cancels", "0..1", "share of events in w that add liquidity",
     ""),
    (k.BID_CANCEL_SHARE, "bid_cancel_share_{w}", "cancels", "0..1",
     "share of events in w that cancel on the bid", ""),
    (k.ASK_CANCEL_SHARE, "ask_cancel_share_{w}", "cancels", "0..1",
     "share of events in w that cancel on the ask", ""),
    (k.CANCEL_TO_TRADE, "cancel_to_trade_{w}", "cancels", "log",
     "log((cancels + 1) / (trades + 1)) in w", ""),
    (k.CANCEL_RATE_1, "cancel_rate_{h1}", "cancels", "log",
     "log((n + 1) / (E x cancels per event + 1)), n the decaying number of cancels over {h1}", ""),
    (k.CANCEL_RATE_2, "cancel_rate_{h2}", "cancels", "log",
     "log((n + 1) / (E x cancels per event + 1)), n the decaying number of cancels over {h2}", ""),
    (k.CANCEL_IMBALANCE, "cancel_imbalance_{w}", "cancels", "-1..1",
     "(bid cancels - ask cancels) / cancels in w; 0 without", ""),
    (k.CANCELLED_VOLUME, "cancelled_volume_{w}", "cancels", "slog",
     "cancelled volume in w / mean depth", ""),
    (k.LARGEST_CANCEL, "largest_cancel_{w}", "cancels", "slog",
     "largest volume cancelled at one event in w / mean depth", ""),
    (k.BID_CANCEL_X_BUY, "bid_cancel_x_buy_{w}", "cancels", "0..1",
     "root of (bid cancels x buys) / events in w: cancels opposite to the side that trades", ""),
    (k.ASK_CANCEL_X_SELL, "ask_cancel_x_sell_{w}", "cancels", "0..1",
     "root of (ask cancels x sells) / events in w: cancels opposite to the side that trades", ""),
    (k.BID_CHANGES, "bid_changes_{w}", "best prices", "0..1",
     "share of events in w that change the best bid price", ""),
    (k.ASK_CHANGES, "ask_changes_{w}", "best prices", "0..1",
     "share of events in w that change the best ask price", ""),
    (k.BID_FLIPS, "bid_flips_{w}", "best prices", "0..1",
     "share of events in w where the best bid reverses its last direction", ""),
    (k.ASK_FLIPS, "ask_flips_{w}", "best prices", "0..1",
     "share of events in w where the best ask reverses its last direction", ""),
    (k.BID_IMPROVEMENT, "bid_improvement_{w}", "best prices", "-1..1",
     "(rises - falls of the best bid) / events in w", ""),
    (k.ASK_IMPROVEMENT, "ask_improvement_{w}", "best prices", "-1..1",
     "(falls - rises of the best ask) / events in w", ""),
    (k.FLIP_SHARE, "flip_share_{h2}", "best prices", "0..2",
     "decaying number of flips of both best prices / decaying number of events, over {h2}", ""),
    (k.FEED_LATENCY, "feed_latency", "feed", "slog",
     "(ts_recv - ts_event) / its mean, at least 0; 0 where ts_recv is undefined", ""),
)  # fmt: skip

_INSTRUMENT: Final[tuple[_Row, ...]] = (
    (0, "inter_arrival", "arrivals", "log",
     "log((wait + f) / (mean wait + f)), f = 1 % of the mean wait", ""),
    (1, "inter_arrival_mean_{w}", "arrivals", "log",
     "log((mean wait in w + f) / (mean wait + f))", ""),
)  # fmt: skip

_COLUMN: Final[tuple[_Row, ...]] = (
    (k.CHANGE, "change", "change", "slog",
     "value - the one before / mean size of the non-zero changes", ""),
    (k.LEVEL, "level", "level", "slog", "(value - slow mean) / slow sd", ""),
    (k.SHORT_MEAN, "mean_{w}", "level", "slog", "(mean in w - slow mean) / slow sd", ""),
    (k.SHORT_SD, "sd_{w}", "deviation", "log", "log((sd in w + f) / (slow sd + f)), f = 1 % of it",
     ""),
    (k.LONG_MEAN, "mean_{l}", "level", "slog",
     "(mean fading over {l} - slow mean) / slow sd", ""),
    (k.LONG_SD, "sd_{l}", "deviation", "log",
     "log((sd fading over {l} + f) / (slow sd + f)), f = 1 % of it", ""),
    (k.HIGH, "high_{w}", "extremes", "slog",
     "how far the value lies above the window before it / slow sd; 0 inside", ""),
    (k.LOW, "low_{w}", "extremes", "slog",
     "how far the value lies below the window before it / slow sd; 0 inside", ""),
)  # fmt: skip

_RANK: Final[tuple[_Row, ...]] = (
    (0, "rank_{w}", "extremes", "-1..1",
     "rank within the window before it: -1 below all, 1 above all, ties half", ""),
)  # fmt: skip


def seconds_label(seconds: float) -> str:
    """`0.1` -> `100ms`, `10.0` -> `10s`."""
    return f"{seconds:g}s" if seconds >= 1 else f"{seconds * 1000:g}ms"


def tick_features(short_window: int, half_lives_s: tuple[float, ...]) -> tuple[Feature, ...]:
    """Definitions of the outputs of `kernels.update_ticks`, in order."""
    words = {f"h{i}": seconds_label(h) for i, h in enumerate(half_lives_s)}
    return _fill(_TICK, words | {"w": f"{short_window}ev"})


def vector_features(
    columns: tuple[str, ...], short_window: int, long_window: int
) -> tuple[Feature, ...]:
    """Definitions of the outputs of `kernels.update_vectors`, in order."""
    words = {"w": f"{short_window}ev", "l": f"{long_window}ev"}
    per_column = [
        Feature(f"{column}.{f.name}", f.group, f.unit, f"{column}: {f.definition}", f.source)
        for rows in (_COLUMN, _RANK)
        for column in columns
        for f in _fill(rows, words)
    ]
    return _fill(_INSTRUMENT, words) + tuple(per_column)


def _fill(rows: tuple[_Row, ...], words: dict[str, str]) -> tuple[Feature, ...]:
    return tuple(
        Feature(name.format(**words), group, unit, definition.format(**words), source)
        for _, name, group, unit, definition, source in sorted(rows)
    )
