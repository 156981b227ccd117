"""Random tick streams with everything in them that a market, or a broken feed, may send."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from detector.ticks import (
    UNDEFINED_PRICE,
    UNDEFINED_TIME,
    TickArray,
    TickBatch,
    VectorBatch,
    empty_ticks,
)

START = 1_700_000_000 * 10**9
HOUR = 3_600 * 10**9
CENT = 10**7


def market(n: int, instruments: int, seed: int) -> TickArray:
    """`n` ordinary ticks: adds, cancels, modifications, trades and bare quotes, in time order."""
    rng = np.random.default_rng(seed)
    ticks = empty_ticks(n)
    ticks["publisher_id"] = 7
    ticks["instrument_id"] = rng.integers(1, instruments + 1, n)
    wait = rng.exponential(2e7, n) * (rng.random(n) > 0.2)
    ticks["ts_event"] = START + np.cumsum(wait).astype(np.int64)
    ticks["ts_recv"] = ticks["ts_event"] + rng.integers(10_000, 90_000, n).astype(np.uint64)
    mid = 10_000 + np.cumsum(rng.integers(-2, 3, n) * (rng.random(n) < 0.4))
    mid += 100 * ticks["instrument_id"]
    ticks["bid_px"] = mid * CENT
    ticks["ask_px"] = (mid + rng.integers(1, 5, n)) * CENT
    ticks["bid_sz"], ticks["ask_sz"] = rng.integers(1, 900, (2, n))
    ticks["size"] = rng.geometric(0.02, n)
    ticks["action"] = rng.choice([ord(c) for c in "AACCMTTNNF"], n)
    ticks["side"] = rng.choice([ord(c) for c in "BAN"], n, p=[0.4, 0.4, 0.2])
    ticks["price"] = np.where(rng.random(n) < 0.5, ticks["bid_px"], ticks["ask_px"])
    ticks["sequence"] = rng.integers(0, 3, n).astype(np.uint32) * np.arange(n, dtype=np.uint32)
    return ticks


def repetitive(n: int, instruments: int, seed: int) -> TickArray:
    """A market of few prices and sizes: it undoes itself, trades back and forth, stands, bursts."""
    rng = np.random.default_rng(seed)
    ticks = market(n, instruments, seed)
    mid = 10_000 + np.cumsum(rng.integers(-1, 2, n) * (rng.random(n) < 0.3)) % 3
    ticks["bid_px"] = mid * CENT
    ticks["ask_px"] = (mid + 1) * CENT
    ticks["bid_sz"], ticks["ask_sz"] = rng.integers(1, 3, (2, n))
    ticks["size"] = rng.integers(1, 3, n)
    ticks["action"] = np.repeat(rng.choice([ord(c) for c in "ACTTN"], n), 3)[:n]
    standing = np.repeat(rng.random(n) < 0.3, 4)[:n]
    for name in ("bid_px", "ask_px", "bid_sz", "ask_sz"):
        ticks[name][standing] = ticks[name][0]
    pauses = np.cumsum(rng.exponential(5e8, n) * (rng.random(n) < 0.03)).astype(np.uint64)
    ticks["ts_event"] += pauses
    return ticks


def roughened(ticks: TickArray, seed: int) -> TickArray:
    """The same stream, as a broken feed would send it.

    Missing sides, crossed and locked books, zero and absent sizes, prices that are not positive,
    late, repeated, far-future and timeless ticks, halts and wild values.
    """
    rng = np.random.default_rng(seed)
    ticks = ticks.copy()
    n = len(ticks)

    def some(share: float) -> np.ndarray:
        return rng.random(n) < share

    ticks["bid_px"][some(0.02)] = UNDEFINED_PRICE
    ticks["ask_px"][some(0.02)] = UNDEFINED_PRICE
    tapes = some(0.05) & (ticks["action"] == ord("T"))
    for side in ("bid_px", "ask_px"):
        ticks[side][tapes] = UNDEFINED_PRICE
    ticks["price"][some(0.02)] = UNDEFINED_PRICE
    locked = some(0.02)
    ticks["ask_px"][locked] = ticks["bid_px"][locked]
    crossed = some(0.02)
    ticks["ask_px"][crossed] = ticks["bid_px"][crossed] - 3 * CENT
    for size in ("bid_sz", "ask_sz", "size"):
        ticks[size][some(0.03)] = 0
    ticks["ts_recv"][some(0.1)] = UNDEFINED_TIME
    negative = some(0.01)
    ticks["bid_px"][negative] = -5 * CENT
    ticks["size"][some(0.005)] = 2**32 - 1
    ticks["price"][some(0.003)] = 2**62
    halts = np.cumsum(some(0.004) * rng.choice([60, 1200, 7200], n)) * 10**9
    ticks["ts_event"] += halts.astype(np.uint64)
    late = some(0.03)
    ticks["ts_event"][late] -= rng.integers(1, 10**9, late.sum()).astype(np.uint64)
    very_late = some(0.01)
    ticks["ts_event"][very_late] -= np.uint64(HOUR)
    ticks["ts_event"][some(0.005)] = UNDEFINED_TIME
    ticks["ts_event"][some(0.005)] += np.uint64(30 * 24 * HOUR)
    repeats = np.flatnonzero(some(0.03))
    for row in repeats[repeats > 4]:
        ticks[row] = ticks[row - rng.integers(1, 4)]
    return ticks


def batches(ticks: TickArray, cuts: list[int]) -> list[TickBatch]:
    """The stream in pieces that end at `cuts`."""
    whole = TickBatch.from_ticks(ticks)
    edges = [0, *sorted(min(c, len(ticks)) for c in cuts), len(ticks)]
    return [whole[a:b] for a, b in pairwise(edges)]


def vectors(n: int, columns: int, instruments: int, seed: int) -> VectorBatch:
    """`n` vectors of minute data with steps, constants, missing values and late rows."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, columns)).cumsum(0).astype(np.float32)
    values[:, -1] = np.round(values[:, -1])
    values[rng.random((n, columns)) < 0.01] *= 1000
    values[rng.random((n, columns)) < 0.005] = np.nan
    ts = START + np.cumsum(rng.integers(0, 3, n)) * 60 * 10**9
    ts[rng.random(n) < 0.02] -= 10**11
    ts[rng.random(n) < 0.01] += 2 * HOUR
    ts[rng.random(n) < 0.005] = -1
    keys = rng.integers(1, instruments + 1, n)
    return VectorBatch(values, keys, ts, 0, np.arange(n), np.zeros(n, np.int32))
