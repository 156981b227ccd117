"""Numba kernel of the synthetic market: one instrument, one event after the other.

Arrivals are a Hawkes process, the book is level 1, and what an arrival does to it depends on the
queues. The kernel knows parameters and state as plain arrays (indices below) and writes whole MBP-1
records; `detector.synthetic` owns their meaning and their units.

References
----------
Hawkes (1971), Biometrika 58; Ogata (1981), IEEE Trans. Inf. Theory 27 (thinning).
Cont, Stoikov, Talreja (2010), Operations Research 58 (queues, price moves on depletion).
Huang, Lehalle, Rosenbaum (2015), JASA 110 (queue-reactive intensities).
Steele, Lea, Flood (2014), OOPSLA (SplitMix64).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

# Parameters, float64.
BASE_RATE: Final = 0  # exogenous events per second
FAST_JUMP: Final = 1  # added to the intensity by an event, per second
FAST_DECAY: Final = 2  # per second
SLOW_JUMP: Final = 3
SLOW_DECAY: Final = 4
TRADE_SHARE: Final = 5
MODIFY_SHARE: Final = 6
QUEUE_ORDERS: Final = 7  # orders resting at the best price, about
SPREAD_TICKS: Final = 8  # where the spread reverts to
SIZE_MU: Final = 9  # of the log of an order's size in lots
SIZE_SIGMA: Final = 10
LOT: Final = 11
TICK_PX: Final = 12  # price units of one tick
REFERENCE: Final = 13  # ticks; the mid is pulled towards it
LATENCY_NS: Final = 14
PARAMETERS: Final = 15

# Running state, int64.
CLOCK: Final = 0  # ns since the start of the stream
BID: Final = 1  # ticks
ASK: Final = 2
BID_SZ: Final = 3
ASK_SZ: Final = 4
BID_CT: Final = 5
ASK_CT: Final = 6
SEQUENCE: Final = 7
LAST_SIGN: Final = 8  # aggressor of the last trade: +1 buy, -1 sell
RECEIVED: Final = 9  # latest ts_recv, ns since the start
STATE: Final = 10

# SplitMix64, written with uint64 throughout: a signed operand would promote to float64.
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(11)

_A, _B, _C, _M, _T = 65, 66, 67, 77, 84
_MAX_LOTS: Final = 2_000.0
_PULL: Final = 15.0  # a mid 1 % from the reference tilts a side's odds by 0.15
_MAX_PULL: Final = 0.3


@njit(cache=True, nogil=True)
def _uniform(rng: npt.NDArray[np.uint64]) -> float:
    """Next uniform number in [0, 1)."""
    rng[0] += _GAMMA
    z = rng[0]
    z = (z ^ (z >> _S30)) * _MIX_1
    z = (z ^ (z >> _S27)) * _MIX_2
    z = z ^ (z >> _S31)
    return float(z >> _S11) * 2.0**-53


@njit(cache=True, nogil=True)
def _exponential(rng: npt.NDArray[np.uint64]) -> float:
    """Next exponential number with mean 1."""
    return -math.log(1.0 - _uniform(rng))


@njit(cache=True, nogil=True)
def _order_size(p: npt.NDArray[np.float64], rng: npt.NDArray[np.uint64]) -> int:
    """Lognormal number of lots, half of the larger ones rounded to fives as people do."""
    normal = math.sqrt(2.0 * _exponential(rng)) * math.cos(2.0 * math.pi * _uniform(rng))
    lots = min(math.ceil(math.exp(p[SIZE_MU] + p[SIZE_SIGMA] * normal)), _MAX_LOTS)
    if lots > 7.0 and _uniform(rng) < 0.5:
        lots = 5.0 * math.floor(lots / 5.0 + 0.5)
    return int(max(lots, 1.0) * p[LOT])


@njit(cache=True, nogil=True)
def _fresh_queue(
    p: npt.NDArray[np.float64], s: npt.NDArray[np.int64], rng: npt.NDArray[np.uint64], side: int
) -> None:
    """Fill a side with the next level's orders: a geometric number of them."""
    orders = 1 + int(_exponential(rng) * (p[QUEUE_ORDERS] - 1.0))
    drawn = min(orders, 4)  # four draws scaled up: keeps the tail, bounds the cost
    total = 0
    for _ in range(drawn):
        total += _order_size(p, rng)
    lot = int(p[LOT])
    s[BID_SZ + side] = max(total * orders // drawn // lot * lot, orders * lot)
    s[BID_CT + side] = orders


@njit(cache=True, nogil=True)
def _deplete(
    p: npt.NDArray[np.float64], s: npt.NDArray[np.int64], rng: npt.NDArray[np.uint64], side: int
) -> None:
    """Move an emptied side to its next level; `side` 0 is the bid, 1 the ask."""
    gap = 1 + int(_exponential(rng) * 0.5 * (p[SPREAD_TICKS] - 1.0))
    if side == 1:
        s[ASK] += gap
    else:
        s[BID] = max(s[BID] - gap, 1)  # prices stay positive
    _fresh_queue(p, s, rng, side)


@njit(cache=True, nogil=True)
def _advance(
    p: npt.NDArray[np.float64],
    s: npt.NDArray[np.int64],
    x: npt.NDArray[np.float64],
    rng: npt.NDArray[np.uint64],
) -> None:
    """Draw the next arrival by thinning; `x` holds the fast and the slow excitation."""
    while True:
        bound = p[BASE_RATE] + x[0] + x[1]
        wait = _exponential(rng) / bound
        s[CLOCK] += max(int(wait * 1e9), 1)  # strictly increasing: no two equal records
        x[0] *= math.exp(-p[FAST_DECAY] * wait)
        x[1] *= math.exp(-p[SLOW_DECAY] * wait)
        if _uniform(rng) * bound <= p[BASE_RATE] + x[0] + x[1]:
            x[0] += p[FAST_JUMP]
            x[1] += p[SLOW_JUMP]
            return


@njit(cache=True, nogil=True)
def _arrive(
    p: npt.NDArray[np.float64], s: npt.NDArray[np.int64], rng: npt.NDArray[np.uint64]
) -> tuple[int, int, int, int]:
    """Let one event act on the book; returns `(action, side code, price in ticks, size)`."""
    spread = s[ASK] - s[BID]
    off = p[REFERENCE] / (0.5 * (s[ASK] + s[BID])) - 1.0
    pull = min(max(_PULL * off, -_MAX_PULL), _MAX_PULL)
    lot = int(p[LOT])
    u = _uniform(rng)
    if u < p[TRADE_SHARE]:
        # Signs persist (order splitting); otherwise the thin side is hit.
        if _uniform(rng) < 0.5:
            sign = s[LAST_SIGN]
        else:
            buy = s[BID_SZ] / (s[BID_SZ] + s[ASK_SZ]) + pull
            sign = 1 if _uniform(rng) < buy else -1
        s[LAST_SIGN] = sign
        hit = 1 if sign > 0 else 0
        price = s[BID + hit]
        queue = s[BID_SZ + hit]
        size = queue if _uniform(rng) < 0.15 else min(_order_size(p, rng), queue)
        left = queue - size
        if left == 0:
            _deplete(p, s, rng, hit)
        else:
            s[BID_SZ + hit] = left
            orders = -(-s[BID_CT + hit] * left // queue)  # rounded up, so at least one
            s[BID_CT + hit] = max(min(orders, left // lot), 1)
        return _T, _B if sign > 0 else _A, price, size

    if u < p[TRADE_SHARE] + p[MODIFY_SHARE]:
        side = 1 if _uniform(rng) < 0.5 else 0
        size = _order_size(p, rng)  # the order's new size; its old one is as likely larger
        change = size - _order_size(p, rng)
        s[BID_SZ + side] = max(s[BID_SZ + side] + change, s[BID_CT + side] * lot, size)
        return _M, _A if side == 1 else _B, s[BID + side], size

    # Queue-reactive: additions at a constant rate, cancellations as many as there are orders,
    # new levels inside the spread the sooner the wider it is.
    cancel_bid = 0.9 * s[BID_CT] / p[QUEUE_ORDERS]
    cancel_ask = 0.9 * s[ASK_CT] / p[QUEUE_ORDERS]
    ratio = spread / p[SPREAD_TICKS]
    inside = min(0.5 * ratio * ratio, 8.0) if spread > 1 else 0.0
    v = _uniform(rng) * (2.0 + inside + cancel_bid + cancel_ask)
    if v < 2.0:
        side = 1 if v < 1.0 else 0
        size = _order_size(p, rng)
        s[BID_SZ + side] += size
        s[BID_CT + side] += 1
        return _A, _A if side == 1 else _B, s[BID + side], size
    v -= 2.0
    if v < inside:
        side = 0 if _uniform(rng) < 0.5 + pull else 1
        w = _uniform(rng)
        step = 1 + int(w * w * (spread - 1))
        s[BID + side] += step if side == 0 else -step
        size = _order_size(p, rng)
        s[BID_SZ + side] = size
        s[BID_CT + side] = 1
        return _A, _A if side == 1 else _B, s[BID + side], size
    side = 0 if v - inside < cancel_bid else 1
    price = s[BID + side]
    if s[BID_CT + side] == 1:
        size = s[BID_SZ + side]
        _deplete(p, s, rng, side)
    else:
        s[BID_CT + side] -= 1
        size = min(_order_size(p, rng), s[BID_SZ + side] - s[BID_CT + side] * lot)
        size = max(size, lot)
        s[BID_SZ + side] = max(s[BID_SZ + side] - size, s[BID_CT + side] * lot)
    return _C, _A if side == 1 else _B, price, size


@njit(cache=True, nogil=True)
def open_book(
    p: npt.NDArray[np.float64],
    s: npt.NDArray[np.int64],
    x: npt.NDArray[np.float64],
    rng: npt.NDArray[np.uint64],
) -> None:
    """Set the first book around the reference price; excitation starts at its mean."""
    spread = max(int(p[SPREAD_TICKS]), 1)
    s[BID] = max(int(p[REFERENCE]) - spread // 2, 1)
    s[ASK] = s[BID] + spread
    s[LAST_SIGN] = 1
    _fresh_queue(p, s, rng, 0)
    _fresh_queue(p, s, rng, 1)
    fast = p[FAST_JUMP] / p[FAST_DECAY]
    slow = p[SLOW_JUMP] / p[SLOW_DECAY]
    rate = p[BASE_RATE] / (1.0 - fast - slow)
    x[0] = fast * rate
    x[1] = slow * rate


@njit(cache=True, nogil=True)
def run_book(
    p: npt.NDArray[np.float64],
    s: npt.NDArray[np.int64],
    x: npt.NDArray[np.float64],
    rng: npt.NDArray[np.uint64],
    start_ns: int,
    out: npt.NDArray[np.void],
) -> None:
    """Write the next `len(out)` events.

    Parameters
    ----------
    p, s, x, rng
        Parameters and running state, by the indices of this module.
    start_ns
        Epoch ns of the stream's start.
    out
        `(n,)` `TICK` records with the constant columns already filled in.
    """
    ts_event, ts_recv = out["ts_event"], out["ts_recv"]
    price, size = out["price"], out["size"]
    action, side, sequence = out["action"], out["side"], out["sequence"]
    bid_px, ask_px = out["bid_px"], out["ask_px"]
    bid_sz, ask_sz, bid_ct, ask_ct = out["bid_sz"], out["ask_sz"], out["bid_ct"], out["ask_ct"]
    tick = int(p[TICK_PX])
    for i in range(len(out)):
        _advance(p, s, x, rng)
        what, who, level, quantity = _arrive(p, s, rng)
        latency = int(p[LATENCY_NS] * (0.5 + 0.5 * _exponential(rng)))
        s[RECEIVED] = max(s[RECEIVED], s[CLOCK] + latency)  # captured in order
        s[SEQUENCE] += 1
        ts_event[i] = start_ns + s[CLOCK]
        ts_recv[i] = start_ns + s[RECEIVED]
        price[i] = level * tick
        size[i] = quantity
        action[i] = what
        side[i] = who
        sequence[i] = s[SEQUENCE]
        bid_px[i] = s[BID] * tick
        ask_px[i] = s[ASK] * tick
        bid_sz[i] = s[BID_SZ]
        ask_sz[i] = s[ASK_SZ]
        bid_ct[i] = s[BID_CT]
        ask_ct[i] = s[ASK_CT]
