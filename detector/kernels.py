"""The feature kernels: one pass over a batch in arrival order, numpy in and out.

The state of one instrument is one row in each of a few matrices: slow scales, exponentially
decaying windows, sums and extremes of the last W events. A tick finds its row through an open-
addressing table; when all rows are taken the least recently seen instrument gives up its own.
Nothing here knows a batch boundary, the wall clock or another partition: what comes out depends
on the ticks so far and on nothing else, to the last bit. What each output means is written beside
its name in `detector.features`; `tests/oracles.py` computes the same from the definitions.

All helpers stand in this one file on purpose: Numba's disk cache looks only at the file of the
function it caches, so a helper changed elsewhere would leave a stale kernel behind.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

Float64s = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Integer = int | np.int64

VERSION: Final = 2  # part of every spec's fingerprint: raise it when an output changes its meaning

# --- parameters, as int64 array `par` and float64 array `rates` ----------------------------------
P_JUMP = 0  # ns: further than this from the partition's clock, a time is implausible
P_GAP = 1  # ns: a longer silence ends the session; 0: never
P_WARMUP = 2  # events before an instrument is ready
P_SHORT = 3  # W, events in the short window
P_LONG = 4  # vectors: events in the long window
P_SLOW = 5  # events that a slow scale looks back on
P_WARMUP_TIME = 6  # ns since the windows began before an instrument is ready
P_RECENT = 7  # V <= W, events and trades in the recent window
P_SIZE = 8

# --- header of a bank -----------------------------------------------------------------------------
H_CLOCK = 0
H_HAS_CLOCK = 1
H_CANDIDATE = 2
H_HAS_CANDIDATE = 3
H_USED = 4  # rows taken: always rows 0 .. used-1
H_EVICTIONS = 5
H_PREVIOUS = 6  # the clock before it last moved by a jump
H_HAS_PREVIOUS = 7
H_SIZE = 8

# --- int64 row ------------------------------------------------------------------------------------
I_LAST = 0  # ns, latest event time
I_EVENTS = 1  # events since the start; 0: never seen
I_COUNT = 2  # events in the ring; from here to I_HASH_POS a new session begins with zeros
I_POS = 3  # next ring position
I_FAR_LATE = 4  # consecutive ticks later than a session gap
I_BID = 5  # the book after the last event; NO_PRICE: no such side
I_ASK = 6
I_SIZES = 7  # bid size, ask size * 2**32
I_BID_BEFORE = 8  # the book after the event before that
I_ASK_BEFORE = 9
I_SIZES_BEFORE = 10
I_BOOK_SEEN = 11  # a two-sided book was seen this session: the mid is the reference price
I_HAS_REF = 12
I_BID_RUN = 13  # rises in a row, or minus falls in a row
I_ASK_RUN = 14
I_BOOK_SINCE = 15  # ns, last change of the book
I_BOOK_EVENTS = 16  # events since
I_TRADE = 17  # price and sign of the last trade with a price
I_HAS_TRADE = 18
I_TRADE_SIGN = 19
I_LAST_TRADE = 20  # ns, size and sign of the last trade
I_LAST_SIZE = 21
I_LAST_SIGN = 22
I_TRADE_RUN = 23  # trades in a row
I_TRADE_COUNT = 24  # trades in their ring
I_TRADE_POS = 25
I_WAIT_POS = 26  # position in the block of waits
I_RECENT_POS = 27  # position in the ring of waits
I_FLAGS = 28  # two words: sums over the short window, eight one-byte counters each
I_RECENT_FLAGS = 30  # two words: the same over the recent window
I_FROZEN_TRADES = 32  # trades since the last change of the book, see `FROZEN_BOOK_TRADES`
I_WASH_RUN = 33  # ping-pong trades in a row
I_CROSSED = 34  # crossed or locked events in a row
I_GAP_SINCE = 35  # ns, end of the gap of `F_GAP`
I_GAP_EVENTS = 36  # events since
I_HASH_POS = 37
I_BEGAN = 38  # ns, event time at which the windows began
I_RING = 39  # W flag words
RECORD_WORDS = 10  # a record is ten 8-byte words
HASHES = 64  # records remembered, to know a repeat: uint32 row

# --- float64 row of a tick instrument -------------------------------------------------------------
# Slow scales are pairs: mean, number of observations (at most P_SLOW).
F_SPREAD = 0
F_MOVE = 2  # size of the non-zero changes of the reference price
F_R2 = 4  # squares of the non-zero log returns
F_MOVING = 6  # share of events with a non-zero return
F_DEPTH = 8  # mean of the two best sizes
F_DT = 10  # non-zero inter-arrival times
F_WAITING = 12  # share of events with a non-zero inter-arrival time
F_TRADE = 14  # trade sizes
F_LOG_SIZE = 16  # mean and variance of log trade size
F_BOOK_WAIT = 18  # non-zero times between changes of the book
F_BOOK_WAITING = 20  # share of the changes of the book with a non-zero one
# Means over all events: the number of observations is that of the events.
F_TRADES = 22
F_CANCELS = 23
F_ADDS = 24
F_CHANGES = 25  # of the two best prices
F_FLOW = 26  # |order-flow imbalance|
F_BOOKS = 27  # changes of the book
F_REF = 28  # reference price; from here to F_BLOCK a new session begins with zeros
F_ABS_R = 29  # previous absolute log return
F_CARRIED_SPREAD = 30
F_FAST = 31  # messages in the fastest decaying window
F_PINGPONG = 32  # ping-pong trades in the slower of the two windows, and in the slowest
F_EW = 34  # decaying sums, first of the two windows, then second
F_GAP = 72  # s, the wait that no later one has matched yet, see `GAP_HALF_LIFE`
F_BLOCK = 73  # block sums of the short window, see `slide`

# decaying sums
E_N = 0
E_BUYS = 1  # a trade of unknown sign counts half on each side
E_SELLS = 2
E_BID_CANCELS = 3
E_ASK_CANCELS = 4
E_BID_ADDS = 5
E_ASK_ADDS = 6
E_R = 7
E_R2 = 8
E_ABS_R = 9
E_VOLUME = 10
E_SIGNED = 11
E_OFI = 12
E_ABS_OFI = 13
E_BID_MOVES = 14  # signs of the changes of the best bid
E_ASK_MOVES = 15
E_CHANGES = 16
E_FLIPS = 17
E_UNDOS = 18
E_SIZE = 19

# --- the short window ---------------------------------------------------------------------------
# Doubles, for what may cancel out (variances, signed sums, price levels): sums, then maxima.
W_IMBALANCE = 0
W_IMBALANCE2 = 1
W_DT = 2
W_DT2 = 3
W_REF = 4
W_R = 5
W_MOVE = 6
W_EFFECTIVE = 7
W_HIGH = 8
W_LOW = 9  # of the negative
WIDE_SUMS = 8
WIDE = 10
# Singles, half the memory, for the rest: sums, then maxima.
S_R2 = 0
S_BIPOWER = 1
S_ABS_MOVE = 2
S_SPREAD = 3
S_OFI = 4
S_ABS_OFI = 5
S_SIGNED = 6
S_VOLUME = 7
S_CANCELLED = 8
S_SPREAD_MAX = 9
S_SPREAD_MIN = 10  # of the negative
S_BID_SIZE_MAX = 11
S_ASK_SIZE_MAX = 12
S_VOLUME_MAX = 13
S_CANCELLED_MAX = 14
NARROW_SUMS = 9
NARROW = 15
LEAST: Final = -1e30  # below every price, size and spread: the maximum of nothing
# A single row: the block of the last GAP_EVENTS waits (see `slide_most`), the ring of the last V
# waits, the ring of the last V trades, the block of the short window.
GAP_EVENTS = 25
S_RECENT = GAP_EVENTS + 2
T_WAIT = 0  # since the trade before
T_VOLUME = 1
T_LOG_SIZE = 2
T_SAME = 3  # of the size of the trade before
T_PINGPONG = 4  # and of the opposite sign
TRADE_LINE = 5

# flag words: the bit at which a counter's byte starts. In the ring both words are one: what the
# second counts stands one bit higher.
A_ADD = 0
A_BID_CANCEL = 8
A_ASK_CANCEL = 16
A_BUY = 24
A_SELL = 32
A_TRADE = 40
A_CROSSED_LOCKED = 48
A_UNDO = 56
B_BID_UP = 0
B_BID_DOWN = 8
B_ASK_UP = 16
B_ASK_DOWN = 24
B_BID_FLIP = 32
B_ASK_FLIP = 40
B_BID_ADD = 48
B_ASK_ADD = 56
FIRST_BITS: Final = 0x0101010101010101

# --- outputs for ticks ----------------------------------------------------------------------------
# First what has heavy tails and becomes a logarithm, see `finish`: numbers, then ratios; then
# fractions, ratios that stay what they are, then the rest. Of a ratio or a fraction the kernel
# gives what is above and below the bar. Names that end in _H are pairs: the first and the second
# decaying window.
(
    RETURN_TICK,
    RETURN_SHORT,
    RANGE,
    MEAN_DEVIATION,
    REALISED_VARIANCE_SHORT,
    BIPOWER_VARIANCE,
    QUOTED_SPREAD,
    SPREAD_MEAN,
    SPREAD_MIN,
    SPREAD_MAX,
    EFFECTIVE_TICK,
    CROSSED_DEPTH,
    CROSSED_EVENTS,
    MICROPRICE_DEVIATION,
    BID_SIZE,
    ASK_SIZE,
    BID_SIZE_MAX,
    ASK_SIZE_MAX,
    BOOK_AGE,
    BOOK_AGE_EVENTS,
    BOOK_WAIT_EVENTS,
    OFI_TICK,
    OFI_SHORT,
    ORDER_FLOW,
    VOLUME,
    LARGEST_TRADE,
    TRADE_SIZE,
    TRADE_SIZE_Z,
    TRADE_SIZE_MEAN,
    TRADE_RUN,
    WASH_RUN,
    PINGPONG,
    PINGPONG_SLOW,
    GAP_BURST_COUNT,
    CANCEL_SIZE,
    CANCELLED_VOLUME,
    LARGEST_CANCEL,
    BID_RUN,
    ASK_RUN,
) = range(39)
(
    BID_MOVES_H,
    ASK_MOVES_H,
    FLIPS_H,
    UNDOS_H,
    NET_ADDS_H,
    NET_CANCELS_H,
    NET_BUYS_H,
) = range(39, 53, 2)
NUMBERS: Final = 53
(
    RETURN_H,
    ABSOLUTE_RETURN_H,
    REALISED_VARIANCE_H,
    ORDER_FLOW_H,
    VOLUME_H,
    MESSAGE_RATE_H,
    TRADE_RATE_H,
    ADD_RATE_H,
    CANCEL_RATE_H,
    CHANGE_RATE_H,
) = range(53, 73, 2)
(
    RELATIVE_SPREAD,
    EFFECTIVE_SPREAD,
    TRADE_SPAN,
    INTER_ARRIVAL,
    INTER_ARRIVAL_MEAN,
    BOOK_WAIT,
    GAP_BURST,
    MESSAGE_RATE_FAST,
    CANCEL_TO_TRADE,
    CANCEL_TO_TRADE_RECENT,
) = range(73, 83)
TICK_HEAVY: Final = 83
RATIOS: Final = TICK_HEAVY - NUMBERS
(
    OFI_H,
    SIGNED_VOLUME_H,
    CANCEL_IMBALANCE_H,
    BID_CANCEL_X_BUY_H,
    ASK_CANCEL_X_SELL_H,
) = range(83, 93, 2)
(
    PATH_EFFICIENCY,
    JUMP_RATIO,
    INTER_ARRIVAL_CV,
    TRADE_SIGN_IMBALANCE,
    SIGNED_VOLUME_SHORT,
    CANCEL_IMBALANCE,
    ADD_IMBALANCE_RECENT,
) = range(93, 100)
FRACTIONS: Final = 17
(
    CROSSED_LOCKED_TICK,
    CROSSED_LOCKED,
    QUEUE_IMBALANCE,
    QUEUE_IMBALANCE_MEAN,
    QUEUE_IMBALANCE_SD,
    TRADE_SHARE,
    SAME_SIZE_SHARE,
    PINGPONG_SHARE,
    TRADE_SIZE_SD,
    ADD_SHARE,
    ADD_SHARE_RECENT,
    BID_CANCEL_SHARE,
    BID_CANCEL_SHARE_RECENT,
    ASK_CANCEL_SHARE,
    ASK_CANCEL_SHARE_RECENT,
    BID_CANCEL_X_BUY,
    ASK_CANCEL_X_SELL,
    BID_CHANGES,
    ASK_CHANGES,
    BID_FLIPS,
    ASK_FLIPS,
    BID_IMPROVEMENT,
    ASK_IMPROVEMENT,
    BID_IMPROVEMENT_RECENT,
    ASK_IMPROVEMENT_RECENT,
    UNDO_SHARE,
    GAP_X_RATE,
    GAP_BURST_STRENGTH,
    FROZEN_BOOK_TRADES,
) = range(100, 129)
TICK_OUTPUTS: Final = 129
# beside the ratios: the two factors of GAP_X_RATE, one of GAP_BURST_STRENGTH, of FROZEN_BOOK_TRADES
FACTORS: Final = RATIOS
ROWS: Final = 16  # are finished at once

# --- outputs for vectors: two of the instrument, eight of each column, then the rank of each ------
VECTOR_OUTPUTS: Final = 2
COLUMN_OUTPUTS: Final = 8
C_CHANGE = 0  # mean and count of the size of the non-zero changes
C_SLOW = 2  # mean, variance, count
C_LONG = 5  # mean, variance
C_LAST = 7
COLUMN_STATE = 8  # then the ring of W values
V_DT = 0  # as F_DT and F_WAITING
V_WAITING = 2
V_RING = 4  # W inter-arrival times, then the columns
I_SINCE = 5  # vectors: events since the windows began
(CHANGE, LEVEL, SHORT_MEAN, SHORT_SD, LONG_MEAN, LONG_SD, HIGH, LOW) = range(8)  # then RANK

# --- constants of the definitions -----------------------------------------------------------------
HALF_PI: Final = np.float32(math.pi / 2.0)
SECOND: Final = 1e-9
NO_PRICE: Final = 2**63 - 1
FAR: Final = 12  # ticks ahead
NEAR: Final = 5
LINE: Final = 8  # words in a cache line
OUTLIER: Final = 32.0  # an observation counts for at most this many times the slow scale
FAR_LATE_LIMIT: Final = 2
WAIT_FLOOR: Final = 0.01  # of the mean wait: keeps the log of a wait of zero finite
WAITS: Final = 100.0  # one floor is 1 when a wait is counted in hundredths of the mean wait
SPANS: Final = 50.0  # the same for the span of trades, whose floor is 2 %
APART: Final = 100_000_000  # ns: trades no further apart than this may be fills of one order
GAP_HALF_LIFE: Final = 0.3  # s in which a wait counts for half, against the next one
BURST_SCALE: Final = 1e4  # 1/s: waits are compared from 0.1 ms on
ABSOLUTE_RETURN: Final = 0.3  # of the volatility: about the mean |return| where most are zero
LOG_SIZE_SD_FLOOR: Final = 0.1
SD_FLOOR: Final = 1e-6  # of the mean of a column
LITTLE: Final = 1e-30
TINY: Final = 1e-100
FUSED: Final = {"contract"}  # multiply-adds of one rounding; nothing else is reordered
MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio
MIX: Final = np.uint64(0xBF58476D1CE4E5B9)  # of splitmix64

ACTION_ADD: Final = ord("A")
ACTION_CANCEL: Final = ord("C")
ACTION_MODIFY: Final = ord("M")
ACTION_TRADE: Final = ord("T")
NONE: Final = ord("N")
BID: Final = ord("B")
ASK: Final = ord("A")

Q_REPEATED: Final = 1
Q_IMPLAUSIBLE_TIME: Final = 2
Q_NO_TIME: Final = 4
Q_NOT_FINITE: Final = 8
Q_LATE: Final = 256
Q_NONPOSITIVE_PRICE: Final = 512
Q_CROSSED: Final = 1024
Q_LOCKED: Final = 2048
Q_ZERO_SIZE: Final = 4096
Q_ONE_SIDED: Final = 8192

# the bits of a single, and log(1 + m) / m^3 + ... for `signed_logarithm`
MANTISSA_BITS: Final = np.int32(23)
MANTISSA: Final = np.int32((1 << 23) - 1)
EXPONENT_BIAS: Final = np.int32(127)
BITS_OF_ROOT: Final = np.int32(0x3F3504F3)  # of the root of 1/2
BITS_TO_ONE: Final = np.int32(0x3F800000 - 0x3F3504F3)
SIGN_BIT: Final = np.int32(-(2**31))
DOUBLE_MANTISSA_BITS: Final = np.int64(52)
DOUBLE_BIAS: Final = np.int64(1023)
FAINTEST: Final = -200.0  # a power of two: what is fainter is as good as nothing
LN2: Final = math.log(2.0)
ZERO: Final = np.float32(0.0)
HALF: Final = np.float32(0.5)
ONE: Final = np.float32(1.0)
MOST: Final = np.float32(1e30)
LOG2: Final = np.float32(math.log(2.0))
L0: Final = np.float32(7.0376836292e-2)
L1: Final = np.float32(-1.1514610310e-1)
L2: Final = np.float32(1.1676998740e-1)
L3: Final = np.float32(-1.2420140846e-1)
L4: Final = np.float32(1.4249322787e-1)
L5: Final = np.float32(-1.6668057665e-1)
L6: Final = np.float32(2.0000714765e-1)
L7: Final = np.float32(-2.4999993993e-1)
L8: Final = np.float32(3.3333331174e-1)


def _prefetch(typing_context: Any, array: Any, row: Any, column: Any) -> Any:  # noqa: ANN401, ARG001
    """Ask for the cache line of `array[row, column]`, which must exist; computes nothing.

    With 1,000 instruments the state no longer fits into the second-level cache, and a tick would
    wait for its lines one after the other.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        tools: Any = cgutils  # untyped
        kind = signature.args[0]
        matrix = context.make_array(kind)(context, builder, arguments[0])
        pointer = tools.get_item_pointer(
            context, builder, kind, matrix, list(arguments[1:]), wraparound=False
        )
        byte_pointer, number = cgutils.voidptr_t, cgutils.int32_t
        kind = tools.ir.FunctionType(tools.ir.VoidType(), [byte_pointer, *[number] * 3])
        fetch = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], kind)
        read, keep, data = number(0), number(3), number(1)
        builder.call(fetch, [builder.bitcast(pointer, byte_pointer), read, keep, data])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


prefetch: Any = intrinsic(_prefetch)


def _reinterpret(result: Any, argument: Any) -> Any:  # noqa: ANN401
    """Return an intrinsic that takes the bits of a number for those of another type."""

    def typed(typing_context: Any, x: Any) -> Any:  # noqa: ANN401, ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
            return builder.bitcast(arguments[0], context.get_value_type(signature.return_type))

        return result(argument), generate

    return intrinsic(typed)


bits_of = _reinterpret(types.int32, types.float32)
single_of = _reinterpret(types.float32, types.int32)
double_of = _reinterpret(types.float64, types.int64)


@njit(cache=True, nogil=True, error_model="numpy")
def home(key: Integer, mask: Integer) -> Integer:
    """Where the search for `key` starts: Fibonacci hashing over a power of two."""
    mixed = np.uint64(key) * MULTIPLIER
    return np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(mask))


@njit(cache=True, nogil=True, error_model="numpy")
def find(key: Integer, table: Int32s, keys: Int64s) -> Integer:
    """Row of `key`, or -1."""
    mask = table.shape[0] - 1
    at = home(key, mask)
    while True:
        slot = table[at]
        if slot < 0:
            return np.int64(-1)
        if keys[slot] == key:
            return np.int64(slot)
        at = (at + 1) & mask


@njit(cache=True, nogil=True, error_model="numpy")
def insert(key: Integer, slot: Integer, table: Int32s) -> None:
    """Enter `key`, which must not be in the table; the table is at most half full."""
    mask = table.shape[0] - 1
    at = home(key, mask)
    while table[at] >= 0:
        at = (at + 1) & mask
    table[at] = slot


@njit(cache=True, nogil=True, error_model="numpy")
def remove(key: Integer, table: Int32s, keys: Int64s) -> None:
    """Take `key`, which must be in the table, out, and close the hole behind it.

    Backward shift (Knuth, TAOCP 3, 6.4, algorithm R): an entry moves into the hole unless its
    home lies cyclically in (hole, entry]. No tombstones, so searches never grow longer.
    """
    mask = table.shape[0] - 1
    hole = home(key, mask)
    while keys[table[hole]] != key:
        hole = (hole + 1) & mask
    at = hole
    while True:
        at = (at + 1) & mask
        slot = table[at]
        if slot < 0:
            break
        distance = (at - home(keys[slot], mask)) & mask
        if distance >= ((at - hole) & mask):
            table[hole] = slot
            hole = at
    table[hole] = -1


@njit(cache=True, nogil=True, error_model="numpy")
def touch(slot: Integer, links: Int32s) -> None:
    """Make `slot` the most recently seen. Row `len - 1` of `links` is the list's sentinel.

    Column 0 leads towards older rows, column 1 towards newer ones.
    """
    end = links.shape[0] - 1
    newest = links[end, 0]
    if newest == slot:
        return
    older = links[slot, 0]
    newer = links[slot, 1]
    if older >= 0:
        links[older, 1] = newer
        links[newer, 0] = older
    links[newest, 1] = slot
    links[slot, 0] = newest
    links[slot, 1] = end
    links[end, 0] = slot


@njit(cache=True, nogil=True, error_model="numpy")
def order_of(links: Int32s, out: Int32s) -> None:
    """Write the rows in use, from the least to the most recently seen; `out` has their number."""
    slot = links[links.shape[0] - 1, 1]
    for k in range(out.shape[0]):
        out[k] = slot
        slot = links[slot, 1]


@njit(cache=True, nogil=True, error_model="numpy")
def claim(key: Integer, table: Int32s, keys: Int64s, links: Int32s, head: Int64s) -> Integer:
    """Row for a new instrument: a free one, or that of the least recently seen (evicted)."""
    end = links.shape[0] - 1
    if head[H_USED] < end:
        slot: Integer = head[H_USED]
        head[H_USED] += 1
    else:
        slot = np.int64(links[end, 1])
        remove(keys[slot], table, keys)
        head[H_EVICTIONS] += 1
    keys[slot] = key
    insert(key, slot, table)
    touch(slot, links)
    return slot


@njit(cache=True, nogil=True, error_model="numpy")
def plausible(ts: Integer, head: Int64s, jump: Integer) -> bool:
    """Whether `ts` fits the partition's clock, which is the latest plausible time so far.

    A time further than `jump` from it is refused once; the next tick, if it is near the refused
    one, moves the clock there (a topic may begin with a wrong time, or be filled again). The clock
    goes back at once for a time near where it was: two wrong times that confirm each other cost no
    good tick.
    """
    near = head[H_HAS_CLOCK] == 0 or abs(ts - head[H_CLOCK]) <= jump
    if near:
        head[H_CLOCK] = max(ts, head[H_CLOCK] if head[H_HAS_CLOCK] else ts)
    elif head[H_HAS_PREVIOUS] and abs(ts - head[H_PREVIOUS]) <= jump:
        left = head[H_CLOCK]
        head[H_CLOCK] = max(ts, head[H_PREVIOUS])
        head[H_PREVIOUS] = left
    elif head[H_HAS_CANDIDATE] and abs(ts - head[H_CANDIDATE]) <= jump:
        head[H_PREVIOUS] = head[H_CLOCK]
        head[H_HAS_PREVIOUS] = 1
        head[H_CLOCK] = ts
    else:
        head[H_CANDIDATE] = ts
        head[H_HAS_CANDIDATE] = 1
        return False
    head[H_HAS_CLOCK] = 1
    head[H_HAS_CANDIDATE] = 0
    return True


@njit(cache=True, nogil=True, error_model="numpy")
def observed(mean: float, x: float, count: float) -> float:
    """Slow scale after its `count`-th observation x, which counts for at most `OUTLIER` times it.

    The mean of the first P_SLOW observations (`count` stays there), then an exponential average.
    """
    if mean > 0.0 and x > OUTLIER * mean:
        x = OUTLIER * mean
    return mean + (x - mean) / count


@njit(cache=True, nogil=True, error_model="numpy")
def inverse(x: float) -> float:
    """1 / x, and 0 where x is not above 0: what has no scale yet has no feature yet."""
    return 1.0 / x if x > 0.0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def contrast(a: float, b: float, offset: float) -> float:
    """Return x with sign(x) log(1 + |x|) = log((a + offset) / (b + offset)), for a, b >= 0."""
    return (a - b) / (min(a, b) + offset)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FUSED)
def signed_logarithm(x: np.float32) -> np.float32:
    """Return sign(x) log(1 + |x|); |x| beyond 1e30, NaN too, counts as that.

    Computed in single precision from the bits of the number, without branches, so that LLVM makes
    vector instructions of it: as many calls of `math.log1p` would cost more than all the rest of
    a tick. Polynomial of `logf` in Moshier's Cephes; error below 1e-7 (1 + log).
    """
    size = abs(x)
    word = np.int32(bits_of(ONE + (size if size < MOST else MOST)) + BITS_TO_ONE)
    exponent = np.float32(np.int32(np.int32(word >> MANTISSA_BITS) - EXPONENT_BIAS))
    m = single_of(np.int32(np.int32(word & MANTISSA) + BITS_OF_ROOT)) - ONE
    p = ((((((((L0 * m + L1) * m + L2) * m + L3) * m + L4) * m + L5) * m + L6) * m + L7)
         * m + L8)  # fmt: skip
    logarithm = m + m * m * (m * p - HALF) + exponent * LOG2
    signed: np.float32 = single_of(np.int32(bits_of(logarithm) | np.int32(bits_of(x) & SIGN_BIT)))
    return signed


@njit(cache=True, nogil=True, error_model="numpy")
def compress(values: Float32s, heavy: Integer) -> None:
    """Replace x by sign(x) log(1 + |x|) in the first `heavy` columns."""
    for i in range(values.shape[0]):
        for k in range(heavy):
            values[i, k] = signed_logarithm(values[i, k])


@njit(cache=True, nogil=True, error_model="numpy")
def finish(
    numbers: Float32s,
    ratios: Float32s,
    fractions: Float32s,
    values: Float32s,
) -> None:
    """Divide and take logarithms of some rows, and write them.

    All rows at once, in flat loops without a rest, are vector instructions. Some rows later, not
    at once: the processor can read a number as part of a vector only when it has left for the
    cache.

    Parameters
    ----------
    numbers : (ROWS, NUMBERS) float32
    ratios, fractions : (2, ROWS, .) float32
        Outputs from column NUMBERS and TICK_HEAVY on, above and below the bar; beside the ratios
        the factors of products.
    values
        At most ROWS rows of outputs; GAP_BURST_STRENGTH and FROZEN_BOOK_TRADES hold their other
        factor.
    """
    rows = values.shape[0]
    above = numbers.reshape(-1)
    for k in range(rows * numbers.shape[1]):
        above[k] = signed_logarithm(above[k])
    above = ratios[0].reshape(-1)
    below = ratios[1].reshape(-1)
    for k in range(rows * ratios.shape[2]):
        above[k] = signed_logarithm(above[k] / below[k])
    above = fractions[0].reshape(-1)
    below = fractions[1].reshape(-1)
    for k in range(rows * fractions.shape[2]):
        above[k] /= below[k]
    for i in range(rows):
        for k in range(NUMBERS):
            values[i, k] = numbers[i, k]
        for k in range(RATIOS):
            values[i, NUMBERS + k] = ratios[0, i, k]
        for k in range(FRACTIONS):
            values[i, TICK_HEAVY + k] = fractions[0, i, k]
        values[i, GAP_X_RATE] = ratios[0, i, FACTORS] * ratios[0, i, FACTORS + 1]
        values[i, GAP_BURST_STRENGTH] *= ratios[0, i, FACTORS + 2]
        values[i, FROZEN_BOOK_TRADES] *= ratios[0, i, FACTORS + 3]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FUSED)
def decay(halves: float) -> float:
    """2^-halves, for halves >= 0, with a relative error below 1e-9; 2^-200 from there on.

    Four calls of `math.exp` a tick are no small part of it.
    """
    x = max(-halves, FAINTEST)
    whole = np.int64(x - 0.5)
    y = LN2 * (x - float(whole))
    p = (((((((y / 40320.0 + 1.0 / 5040.0) * y + 1.0 / 720.0) * y + 1.0 / 120.0) * y + 1.0 / 24.0)
           * y + 1.0 / 6.0) * y + 0.5) * y + 1.0) * y + 1.0  # fmt: skip
    power: float = double_of(np.int64(np.int64(whole + DOUBLE_BIAS) << DOUBLE_MANTISSA_BITS))
    return p * power


@njit(cache=True, nogil=True, error_model="numpy")
def arrive(
    ts: Integer, slot: Integer, ints: Int64s, floats: Float64s, par: Int64s
) -> tuple[Integer, bool]:
    """Advance the instrument's clock to `ts`.

    Returns
    -------
    wait
        ns since the latest tick, 0 if this one is late; -1: the windows begin anew with this tick,
        because the instrument is new, silent for longer than a gap, or its time was wrong.
    late
        Whether the tick lies before the instrument's latest one.
    """
    if ints[slot, I_EVENTS] > 0:
        wait = ts - ints[slot, I_LAST]
        gap = par[P_GAP]
        far_late = gap > 0 and wait < -gap
        ints[slot, I_FAR_LATE] = ints[slot, I_FAR_LATE] + 1 if far_late else 0
        wrong = abs(wait) > par[P_JUMP] or ints[slot, I_FAR_LATE] >= FAR_LATE_LIMIT
        if not wrong and (gap == 0 or wait <= gap):
            if wait < 0:
                return np.int64(0), True
            ints[slot, I_LAST] = ts
            return wait, False
        if wrong:
            for k in range(I_HASH_POS):  # the hashes stay: a repeat is a repeat at any time
                ints[slot, k] = 0
            floats[slot, :] = 0.0
    ints[slot, I_LAST] = ts
    return np.int64(-1), False


@njit(cache=True, nogil=True, error_model="numpy")
def begin(
    slot: Integer,
    floats: Float64s,
    singles: Float32s,
    ints: Int64s,
    short: Integer,
    block: Integer,
) -> None:
    """Begin the windows of one instrument anew; its slow scales stay."""
    ints[slot, I_COUNT:I_HASH_POS] = 0
    ints[slot, I_BID] = NO_PRICE
    ints[slot, I_ASK] = NO_PRICE
    ints[slot, I_BID_BEFORE] = NO_PRICE
    ints[slot, I_ASK_BEFORE] = NO_PRICE
    ints[slot, I_BOOK_SINCE] = ints[slot, I_LAST]
    ints[slot, I_GAP_SINCE] = ints[slot, I_LAST]
    ints[slot, I_BEGAN] = ints[slot, I_LAST]
    floats[slot, F_REF:F_BLOCK] = 0.0
    singles[slot, :block] = ZERO
    for j in range(short + 2):
        for k in range(WIDE):
            floats[slot, F_BLOCK + j * WIDE + k] = 0.0 if k < WIDE_SUMS else LEAST
        for k in range(NARROW):
            singles[slot, block + j * NARROW + k] = 0.0 if k < NARROW_SUMS else LEAST


# A window that slides without subtracting, so that no error outlives its event: time is cut into
# blocks of W events, and the last W are the end of the last block and the beginning of this one
# (van Herk 1992, Gil and Werman 1993). Line 0 folds this block so far; line p + 1 holds what came
# at position p, or its fold to the end of the last block; line W + 1 is what changes nothing.


@njit(cache=True, nogil=True, error_model="numpy")
def slide(
    rows: npt.NDArray[Any],
    slot: Integer,
    block: Integer,
    line: Integer,
    width: Integer,
    column: Integer,
    x: Any,  # noqa: ANN401 - a double or a single, as `rows`
) -> Any:  # noqa: ANN401
    """Take x into a column of a block, at the line that begins at `line`; the window's sum."""
    # unsigned: Numba compares every signed index that it cannot foresee with 0
    here, next_line = np.uint64(line + column), np.uint64(line + width + column)
    total = rows[slot, np.uint64(block + column)] + x
    rows[slot, np.uint64(block + column)] = total
    rows[slot, here] = x
    return total + rows[slot, next_line]


@njit(cache=True, nogil=True, error_model="numpy")
def slide_most(
    rows: npt.NDArray[Any],
    slot: Integer,
    block: Integer,
    line: Integer,
    width: Integer,
    column: Integer,
    x: Any,  # noqa: ANN401
) -> Any:  # noqa: ANN401
    """Take x into a column, as `slide` does; return the window's maximum."""
    here, next_line = np.uint64(line + column), np.uint64(line + width + column)
    best = max(rows[slot, np.uint64(block + column)], x)
    rows[slot, np.uint64(block + column)] = best
    rows[slot, here] = x
    return max(best, rows[slot, next_line])


@njit(cache=True, nogil=True, error_model="numpy")
def fold(
    rows: npt.NDArray[Any],
    slot: Integer,
    first: Integer,
    lines: Integer,
    sums: Integer,
    carry: npt.NDArray[Any],
) -> None:
    """Fold a full block from its end, and begin the next; a line holds sums, then maxima.

    The width is taken from `carry`, not from a constant: loops of unknown length become vector
    instructions, short ones of known length are unrolled instead.
    """
    width = carry.shape[0]
    line = first + width * lines
    for k in range(width):
        carry[k] = rows[slot, np.uint64(line + k)]
        rows[slot, np.uint64(first + k)] = rows[slot, np.uint64(line + width + k)]
    for _ in range(lines - 1):
        line -= width
        for k in range(sums):
            carry[k] += rows[slot, np.uint64(line + k)]
        for k in range(sums, width):
            carry[k] = max(carry[k], rows[slot, np.uint64(line + k)])
        for k in range(width):
            rows[slot, np.uint64(line + k)] = carry[k]


@njit(cache=True, nogil=True, error_model="numpy")
def fade(floats: Float64s, slot: Integer, at: Integer, fading: float, x: float) -> float:
    """Let a decaying sum fade, add x, and return it."""
    total: float = floats[slot, at] * fading + x
    floats[slot, at] = total
    return total


@njit(cache=True, nogil=True, error_model="numpy")
def put_fraction(fractions: Float32s, row: Integer, output: Integer, a: float, b: float) -> None:
    """Give a / b; where b is 0, so must a be, and so is the fraction."""
    fractions[0, row, output - TICK_HEAVY] = a
    fractions[1, row, output - TICK_HEAVY] = max(b, LITTLE)


@njit(cache=True, nogil=True, error_model="numpy")
def put_ratio(ratios: Float32s, row: Integer, output: Integer, a: float, b: float) -> None:
    """Give x = a / b, b > 0, which becomes sign(x) log(1 + |x|)."""
    ratios[0, row, output - NUMBERS] = a
    ratios[1, row, output - NUMBERS] = b


@njit(cache=True, nogil=True, error_model="numpy")
def put_log_ratio(ratios: Float32s, row: Integer, output: Integer, a: float, b: float) -> None:
    """Give what becomes log((a + 1) / (b + 1)), for a, b >= 0: see `contrast`."""
    ratios[0, row, output - NUMBERS] = a - b
    ratios[1, row, output - NUMBERS] = min(a, b) + 1.0


@njit(cache=True, nogil=True, error_model="numpy")
def update_ticks(
    words: Int64s,
    par: Int64s,
    rates: Float64s,
    floats: Float64s,
    singles: Float32s,
    ints: Int64s,
    hashes: npt.NDArray[np.uint32],
    keys: Int64s,
    table: Int32s,
    links: Int32s,
    head: Int64s,
    values: Float32s,
    ready: npt.NDArray[np.bool_],
    quality: npt.NDArray[np.uint16],
    slots: Int32s,
    out_keys: Int64s,
    out_ts: Int64s,
) -> None:
    """Update the state with `n` ticks and write their features.

    Parameters
    ----------
    words : (n, 10) int64
        The ticks (dtype `TICK`) as little-endian words.
    par : (P_SIZE,) int64
    rates : (4,) float64
        1 / half-life, 1/s.
    floats, singles, ints, hashes : (capacity, .) float64, float32, int64, uint32
        State rows.
    keys : (capacity,) int64
        Key of each row.
    table : (2**b,) int32
        Open-addressing table of rows; -1: empty.
    links : (capacity + 1, 2) int32
        Order of last sight, see `touch`.
    head : (H_SIZE,) int64
    values, ready, quality, slots, out_keys, out_ts
        Outputs: (n, F) float32, (n,) bool, uint16, int32, int64, int64.
    """
    carry_wide = np.zeros(WIDE)
    carry_narrow = np.zeros(NARROW, np.float32)
    carry_wait = np.zeros(1, np.float32)
    numbers = np.zeros((ROWS, NUMBERS), np.float32)
    ratios = np.ones((2, ROWS, RATIOS + 4), np.float32)
    fractions = np.ones((2, ROWS, FRACTIONS), np.float32)
    short = par[P_SHORT]
    recent = par[P_RECENT]
    jump = par[P_JUMP]
    limit = min(par[P_GAP], jump) if par[P_GAP] > 0 else jump
    most = float(par[P_SLOW])
    low = np.int64(0xFFFFFFFF)
    first_bits = np.int64(FIRST_BITS)
    mask = table.shape[0] - 1
    end = links.shape[0] - 1
    trades_at = S_RECENT + recent
    block = trades_at + TRADE_LINE * recent
    # times the events a second: those expected in a window, half-life / ln 2
    reach0 = 1.0 / (LN2 * rates[0])
    reach1 = 1.0 / (LN2 * rates[1])
    reach2 = 1.0 / (LN2 * rates[2])
    last_wait = np.int64(-1)
    decay0 = decay1 = decay2 = decay3 = 1.0

    count_rows = words.shape[0]
    for i in range(min(FAR, count_rows)):
        slots[i] = -1

    for i in range(count_rows):
        row = i & (ROWS - 1)
        if row == 0 and i > 0:
            finish(numbers, ratios, fractions, values[i - ROWS : i])
        # --- fetch the rows of coming ticks: twice, as the second needs what the first fetched ---
        if i + FAR < count_rows:
            word = words[i + FAR, 0]
            key = ((word >> 16) & 0xFFFF) << 32 | ((word >> 32) & low)
            soon = table[home(key, mask)]  # a guess: the first probe
            slots[i + FAR] = soon
            if soon >= 0:
                for k in range(0, I_RING, LINE):
                    prefetch(ints, soon, k)
                for k in range(0, F_BLOCK + WIDE, LINE):
                    prefetch(floats, soon, k)
                prefetch(singles, soon, S_RECENT)
                prefetch(singles, soon, block)
        if i + NEAR < count_rows and slots[i + NEAR] >= 0:
            soon = slots[i + NEAR]
            at = ints[soon, I_POS]
            if at + 1 < short:
                line = F_BLOCK + WIDE * (at + 1)
                prefetch(floats, soon, line)
                prefetch(floats, soon, line + LINE)
                prefetch(floats, soon, line + 2 * WIDE - 1)
                prefetch(singles, soon, block + NARROW * (at + 1))
                prefetch(singles, soon, block + NARROW * (at + 3) - 1)
            else:  # its block ends: all of it will be folded
                for k in range(F_BLOCK + WIDE, floats.shape[1], LINE):
                    prefetch(floats, soon, k)
                for k in range(block + NARROW, singles.shape[1], 2 * LINE):
                    prefetch(singles, soon, k)
            prefetch(ints, soon, I_RING + at)
            prefetch(singles, soon, ints[soon, I_WAIT_POS])
            prefetch(hashes, soon, ints[soon, I_HASH_POS])

        # --- identity and time ----------------------------------------------------------------
        word = words[i, 0]
        key = ((word >> 16) & 0xFFFF) << 32 | ((word >> 32) & low)
        ts = words[i, 1]
        out_keys[i] = key
        out_ts[i] = ts
        reason = 0
        if ts <= 0:
            reason = Q_NO_TIME
        elif (
            head[H_HAS_CLOCK] != 0
            and head[H_HAS_CANDIDATE] == 0
            and abs(ts - head[H_CLOCK]) <= jump
        ):
            head[H_CLOCK] = max(ts, head[H_CLOCK])
        elif not plausible(ts, head, jump):
            reason = Q_IMPLAUSIBLE_TIME
        slot: Integer = np.int64(-1)
        if reason == 0:
            at = home(key, mask)
            slot = np.int64(table[at])
            while slot >= 0 and keys[slot] != key:
                at = (at + 1) & mask
                slot = np.int64(table[at])
            if slot < 0:
                slot = claim(key, table, keys, links, head)
                floats[slot, :] = 0.0
                ints[slot, :] = 0
                hashes[slot, :] = 0
            if words[i, 5] >> 32 != 0:
                # A hash of the whole record. A repeat is never newer than the latest tick, so the
                # usual tick only writes. A false repeat takes the same 31 bits among 64 records:
                # 3 in 10**8 of the ticks at a time that does not advance.
                digest = MULTIPLIER
                for k in range(RECORD_WORDS):
                    digest = (digest ^ np.uint64(words[i, k])) * MIX
                    digest ^= digest >> np.uint64(29)
                short_digest = np.uint32((digest >> np.uint64(32)) | np.uint64(1))
                if ints[slot, I_EVENTS] > 0 and ts <= ints[slot, I_LAST]:
                    for k in range(HASHES):
                        if hashes[slot, k] == short_digest:
                            reason = Q_REPEATED
                if reason == 0:
                    at = ints[slot, I_HASH_POS]
                    hashes[slot, at] = short_digest
                    ints[slot, I_HASH_POS] = (at + 1) & (HASHES - 1)
        if reason != 0:
            quality[i] = reason
            ready[i] = False
            slots[i] = -1
            for k in range(TICK_OUTPUTS):
                values[i, k] = ZERO
            numbers[row, :] = ZERO
            ratios[0, row, :] = ZERO
            fractions[0, row, :] = ZERO
            continue
        newest = links[end, 0]
        if newest != slot:  # as in `touch`; here for its speed
            older = links[slot, 0]
            newer = links[slot, 1]
            links[older, 1] = newer
            links[newer, 0] = older
            links[newest, 1] = slot
            links[slot, 0] = newest
            links[slot, 1] = end
            links[end, 0] = slot
        wait = ts - ints[slot, I_LAST]
        late = False
        if ints[slot, I_EVENTS] > 0 and 0 <= wait <= limit:
            ints[slot, I_LAST] = ts
            ints[slot, I_FAR_LATE] = 0
        else:
            wait, late = arrive(ts, slot, ints, floats, par)
        flag = Q_LATE if late else 0
        now = ints[slot, I_LAST]
        fresh = wait < 0
        if fresh:
            begin(slot, floats, singles, ints, short, block)
            wait = np.int64(0)
        events = ints[slot, I_EVENTS] + 1
        ints[slot, I_EVENTS] = events
        before = ints[slot, I_COUNT]

        # --- slow scales before this tick -----------------------------------------------------
        per_price = inverse(
            floats[slot, F_SPREAD] if floats[slot, F_SPREAD + 1] > 0.0 else floats[slot, F_MOVE]
        )
        per_variance = inverse(floats[slot, F_R2] * floats[slot, F_MOVING])
        per_return = math.sqrt(per_variance)
        per_depth = inverse(floats[slot, F_DEPTH])
        mean_wait = floats[slot, F_DT] * floats[slot, F_WAITING]
        per_wait = inverse(mean_wait)
        mean_trade = floats[slot, F_TRADE]
        per_trade = inverse(mean_trade)

        # --- the record -----------------------------------------------------------------------
        price = words[i, 2]
        word = words[i, 3]
        size = word & low
        action = (word >> 32) & 0xFF
        side = (word >> 40) & 0xFF
        is_trade = action == ACTION_TRADE
        bid = words[i, 6]
        ask = words[i, 7]
        has_bid = bid != NO_PRICE
        has_ask = ask != NO_PRICE
        word = words[i, 8]
        bid_size = word & low if has_bid else np.int64(0)
        ask_size = (word >> 32) & low if has_ask else np.int64(0)
        has_price = price != NO_PRICE
        if (has_price and price <= 0) or bid <= 0 or ask <= 0:
            flag |= Q_NONPOSITIVE_PRICE
        if (is_trade and size == 0) or (has_bid and bid_size == 0) or (has_ask and ask_size == 0):
            flag |= Q_ZERO_SIZE
        old_bid = ints[slot, I_BID]
        old_ask = ints[slot, I_ASK]
        old_sizes = ints[slot, I_SIZES]
        old_bid_size = old_sizes & low
        old_ask_size = (old_sizes >> 32) & low
        had_bid = old_bid != NO_PRICE
        had_ask = old_ask != NO_PRICE
        if is_trade and not has_bid and not has_ask:
            # the record carries no book: the book stays as it was
            bid = old_bid
            ask = old_ask
            bid_size = old_bid_size
            ask_size = old_ask_size
            has_bid = had_bid
            has_ask = had_ask
        elif not (has_bid and has_ask):
            flag |= Q_ONE_SIDED
        elif bid > ask:
            flag |= Q_CROSSED
        elif bid == ask:
            flag |= Q_LOCKED
        if bid_size == 0 and ask_size == 0:
            # a market without sizes: each quoted side counts one
            bid_size = np.int64(1) if has_bid else np.int64(0)
            ask_size = np.int64(1) if has_ask else np.int64(0)
        two_sided = has_bid and has_ask
        has_book = has_bid or has_ask

        # --- what the book did ----------------------------------------------------------------
        bid_flow = 0.0
        ask_flow = 0.0
        word_a = np.int64(0)
        word_b = np.int64(0)
        flips = 0.0
        bid_move = 0.0
        ask_move = 0.0
        if has_bid and had_bid:
            bid_flow = (float(bid_size) if bid >= old_bid else 0.0) - (
                float(old_bid_size) if bid <= old_bid else 0.0
            )
            if bid != old_bid:
                run = ints[slot, I_BID_RUN]
                if bid > old_bid:
                    bid_move = 1.0
                    word_b |= np.int64(1) << B_BID_UP
                    turned = run < 0
                    ints[slot, I_BID_RUN] = max(run, np.int64(0)) + 1
                else:
                    bid_move = -1.0
                    word_b |= np.int64(1) << B_BID_DOWN
                    turned = run > 0
                    ints[slot, I_BID_RUN] = min(run, np.int64(0)) - 1
                if turned:
                    word_b |= np.int64(1) << B_BID_FLIP
                    flips += 1.0
        if has_ask and had_ask:
            ask_flow = (float(ask_size) if ask <= old_ask else 0.0) - (
                float(old_ask_size) if ask >= old_ask else 0.0
            )
            if ask != old_ask:
                run = ints[slot, I_ASK_RUN]
                if ask > old_ask:
                    ask_move = 1.0
                    word_b |= np.int64(1) << B_ASK_UP
                    turned = run < 0
                    ints[slot, I_ASK_RUN] = max(run, np.int64(0)) + 1
                else:
                    ask_move = -1.0
                    word_b |= np.int64(1) << B_ASK_DOWN
                    turned = run > 0
                    ints[slot, I_ASK_RUN] = min(run, np.int64(0)) - 1
                if turned:
                    word_b |= np.int64(1) << B_ASK_FLIP
                    flips += 1.0
        ofi = bid_flow - ask_flow
        changes = abs(bid_move) + abs(ask_move)

        # The book as a whole: how long the one before had stood, and whether this one is that of
        # two events ago.
        sizes = bid_size | ask_size << 32
        changed = not fresh and (bid != old_bid or ask != old_ask or sizes != old_sizes)
        book_wait = SECOND * float(now - ints[slot, I_BOOK_SINCE])
        book_wait_events = float(ints[slot, I_BOOK_EVENTS])
        undone = 0.0
        if changed:
            ints[slot, I_BOOK_SINCE] = now
            ints[slot, I_BOOK_EVENTS] = 0
            ints[slot, I_FROZEN_TRADES] = 0
            if (
                before > 1
                and bid == ints[slot, I_BID_BEFORE]
                and ask == ints[slot, I_ASK_BEFORE]
                and sizes == ints[slot, I_SIZES_BEFORE]
            ):
                undone = 1.0
                word_a |= np.int64(1) << A_UNDO
        elif not fresh:
            ints[slot, I_BOOK_EVENTS] += 1
        ints[slot, I_BID_BEFORE] = old_bid
        ints[slot, I_ASK_BEFORE] = old_ask
        ints[slot, I_SIZES_BEFORE] = old_sizes
        ints[slot, I_BID] = bid
        ints[slot, I_ASK] = ask
        ints[slot, I_SIZES] = sizes

        # --- adds and cancels -----------------------------------------------------------------
        bid_cancelled = 0.0
        ask_cancelled = 0.0
        bid_adds = False
        ask_adds = False
        bid_cancels = False
        ask_cancels = False
        if action in (ACTION_ADD, ACTION_CANCEL) and side in (BID, ASK):
            if action == ACTION_ADD:
                bid_adds = side == BID
                ask_adds = side == ASK
            elif side == BID:
                bid_cancels = True
                bid_cancelled = float(size)
            else:
                ask_cancels = True
                ask_cancelled = float(size)
        elif action in (NONE, ACTION_MODIFY, ACTION_ADD, ACTION_CANCEL):
            bid_adds = bid_flow > 0.0
            ask_adds = ask_flow > 0.0
            bid_cancels = bid_flow < 0.0
            ask_cancels = ask_flow < 0.0
            bid_cancelled = max(-bid_flow, 0.0)
            ask_cancelled = max(-ask_flow, 0.0)
        word_a |= np.int64(bid_adds or ask_adds) << A_ADD
        word_a |= np.int64(bid_cancels) << A_BID_CANCEL
        word_a |= np.int64(ask_cancels) << A_ASK_CANCEL
        word_b |= np.int64(bid_adds) << B_BID_ADD
        word_b |= np.int64(ask_adds) << B_ASK_ADD
        bid_add = 1.0 if bid_adds else 0.0
        ask_add = 1.0 if ask_adds else 0.0
        bid_cancel = 1.0 if bid_cancels else 0.0
        ask_cancel = 1.0 if ask_cancels else 0.0
        cancelled = bid_cancelled + ask_cancelled

        # --- trades ---------------------------------------------------------------------------
        old_ref = floats[slot, F_REF]
        had_ref = ints[slot, I_HAS_REF] != 0
        book_before = ints[slot, I_BOOK_SEEN] != 0
        volume = 0.0
        signed = 0.0
        buys = 0.0
        sells = 0.0
        effective = 0.0
        log_size = 0.0
        pingpong = 0.0
        trade_run = np.int64(0)
        wash_run = np.int64(0)
        frozen = np.int64(0)
        numbers[row, TRADE_SIZE_Z] = ZERO
        numbers[row, TRADE_SIZE_MEAN] = ZERO
        values[i, TRADE_SIZE_SD] = ZERO
        values[i, SAME_SIZE_SHARE] = ZERO
        values[i, PINGPONG_SHARE] = ZERO
        put_log_ratio(ratios, row, TRADE_SPAN, 0.0, 0.0)
        if is_trade:
            sign = np.int64(1) if side == BID else np.int64(-1) if side == ASK else np.int64(0)
            if sign == 0 and has_price:
                # quote rule, then tick rule (Lee and Ready 1991)
                if book_before and float(price) != old_ref:
                    sign = np.int64(1) if float(price) > old_ref else np.int64(-1)
                elif ints[slot, I_HAS_TRADE] != 0:
                    sign = ints[slot, I_TRADE_SIGN]
                    if price != ints[slot, I_TRADE]:
                        sign = np.int64(1) if price > ints[slot, I_TRADE] else np.int64(-1)
            size = max(size, np.int64(1))
            volume = float(size)
            signed = volume * sign
            buys = 1.0 if sign > 0 else 0.5 if sign == 0 else 0.0
            sells = 1.0 - buys
            word_a |= np.int64(1) << A_TRADE
            if sign > 0:
                word_a |= np.int64(1) << A_BUY
            if sign < 0:
                word_a |= np.int64(1) << A_SELL
            log_size = math.log(volume)
            if floats[slot, F_TRADE + 1] >= 8.0:
                sd = math.sqrt(floats[slot, F_LOG_SIZE + 1])
                numbers[row, TRADE_SIZE_Z] = (log_size - floats[slot, F_LOG_SIZE]) / (
                    sd + LOG_SIZE_SD_FLOOR
                )
            if has_price:
                if book_before:
                    effective = 2.0 * sign * (float(price) - old_ref)
                ints[slot, I_TRADE] = price
                ints[slot, I_HAS_TRADE] = 1
                ints[slot, I_TRADE_SIGN] = sign

            # the last V trades
            trade_run = ints[slot, I_TRADE_RUN] + 1
            known_trades = ints[slot, I_TRADE_COUNT]
            at = ints[slot, I_TRADE_POS]
            line = trades_at + TRADE_LINE * at
            same = known_trades > 0 and size == ints[slot, I_LAST_SIZE]
            if same and sign * ints[slot, I_LAST_SIGN] < 0:
                pingpong = 1.0
                wash_run = ints[slot, I_WASH_RUN] + 1
            ints[slot, I_WASH_RUN] = wash_run
            frozen = ints[slot, I_FROZEN_TRADES]
            if (
                not (changed or fresh)
                and has_book
                and (known_trades == 0 or now - ints[slot, I_LAST_TRADE] > APART)
            ):
                frozen += 1
                ints[slot, I_FROZEN_TRADES] = frozen
            trade_wait = SECOND * float(now - ints[slot, I_LAST_TRADE]) if known_trades > 0 else 0.0
            ints[slot, I_LAST_TRADE] = now
            ints[slot, I_LAST_SIZE] = size
            ints[slot, I_LAST_SIGN] = sign
            singles[slot, line + T_WAIT] = trade_wait
            singles[slot, line + T_VOLUME] = volume
            singles[slot, line + T_LOG_SIZE] = log_size
            singles[slot, line + T_SAME] = 1.0 if same else 0.0
            singles[slot, line + T_PINGPONG] = pingpong
            at = at + 1 if at + 1 < recent else np.int64(0)  # of the oldest, once the ring is full
            ints[slot, I_TRADE_POS] = at
            known_trades = min(known_trades + 1, recent)
            ints[slot, I_TRADE_COUNT] = known_trades
            span = total = logs = equal = back = 0.0
            for k in range(known_trades):
                line = trades_at + TRADE_LINE * k
                span += float(singles[slot, line + T_WAIT]) if k != at else 0.0
                total += float(singles[slot, line + T_VOLUME])
                logs += float(singles[slot, line + T_LOG_SIZE])
                equal += float(singles[slot, line + T_SAME])
                back += float(singles[slot, line + T_PINGPONG])
            per_known = 1.0 / known_trades
            logs *= per_known
            squares = 0.0
            for k in range(known_trades):
                deviation = float(singles[slot, trades_at + TRADE_LINE * k + T_LOG_SIZE]) - logs
                squares += deviation * deviation
            numbers[row, TRADE_SIZE_MEAN] = total * per_known * per_trade
            values[i, TRADE_SIZE_SD] = math.sqrt(squares * per_known)
            values[i, SAME_SIZE_SHARE] = equal * per_known
            values[i, PINGPONG_SHARE] = back * per_known
            if known_trades == recent and mean_wait > 0.0:
                hurry = floats[slot, F_TRADES] * per_wait / recent
                put_log_ratio(ratios, row, TRADE_SPAN, SPANS * span * hurry, SPANS)
        ints[slot, I_TRADE_RUN] = trade_run

        # --- reference price and return -------------------------------------------------------
        ref = old_ref
        has_ref = had_ref
        crossed = False
        if two_sided:
            ref = 0.5 * (float(bid) + float(ask))
            has_ref = True
            if not book_before:
                had_ref = False  # from trade prices to mids: not a move of the market
                ints[slot, I_BOOK_SEEN] = 1
            spread = float(ask) - float(bid)
            floats[slot, F_CARRIED_SPREAD] = spread
            crossed = spread <= 0.0
            word_a |= np.int64(crossed) << A_CROSSED_LOCKED
        elif is_trade and has_price and not book_before:
            ref = float(price)
            has_ref = True
        floats[slot, F_REF] = ref
        ints[slot, I_HAS_REF] = 1 if has_ref else 0
        move = 0.0
        r = 0.0
        if had_ref and ref != old_ref:
            move = ref - old_ref
            if ref > 0.0 and old_ref > 0.0:
                r = math.log(ref / old_ref)
        abs_r = abs(r)
        r2 = r * r
        spread = floats[slot, F_CARRIED_SPREAD]
        depth = float(bid_size + ask_size)
        imbalance = float(bid_size - ask_size) / depth if depth > 0.0 else 0.0
        abs_ofi = abs(ofi)

        # --- decaying windows -----------------------------------------------------------------
        if wait != last_wait:
            seconds = SECOND * float(wait)
            decay0 = decay(rates[0] * seconds)
            decay1 = decay(rates[1] * seconds)
            decay2 = decay(rates[2] * seconds)
            decay3 = decay(rates[3] * seconds)
            last_wait = wait
        mean_depth = floats[slot, F_DEPTH]
        share_trades = floats[slot, F_TRADES]
        share_cancels = floats[slot, F_CANCELS]
        share_adds = floats[slot, F_ADDS]
        share_changes = floats[slot, F_CHANGES]
        usual_flow = floats[slot, F_FLOW] * per_depth
        count_e = fade(floats, slot, F_FAST, decay0, 1.0)
        put_log_ratio(ratios, row, MESSAGE_RATE_FAST, count_e, per_wait * reach0)
        numbers[row, PINGPONG] = fade(floats, slot, F_PINGPONG, decay2, pingpong)
        numbers[row, PINGPONG_SLOW] = fade(floats, slot, F_PINGPONG + 1, decay3, pingpong)
        for h in range(2):
            at = F_EW + h * E_SIZE
            fading = decay1 if h == 0 else decay2
            usual = per_wait * (reach1 if h == 0 else reach2)
            count_e = fade(floats, slot, at + E_N, fading, 1.0)
            put_log_ratio(ratios, row, MESSAGE_RATE_H + h, count_e, usual)
            buys_e = fade(floats, slot, at + E_BUYS, fading, buys)
            sells_e = fade(floats, slot, at + E_SELLS, fading, sells)
            put_log_ratio(ratios, row, TRADE_RATE_H + h, buys_e + sells_e, usual * share_trades)
            numbers[row, NET_BUYS_H + h] = buys_e - sells_e
            bids_e = fade(floats, slot, at + E_BID_ADDS, fading, bid_add)
            asks_e = fade(floats, slot, at + E_ASK_ADDS, fading, ask_add)
            put_log_ratio(ratios, row, ADD_RATE_H + h, bids_e + asks_e, usual * share_adds)
            numbers[row, NET_ADDS_H + h] = bids_e - asks_e
            bids_e = fade(floats, slot, at + E_BID_CANCELS, fading, bid_cancel)
            asks_e = fade(floats, slot, at + E_ASK_CANCELS, fading, ask_cancel)
            put_log_ratio(ratios, row, CANCEL_RATE_H + h, bids_e + asks_e, usual * share_cancels)
            numbers[row, NET_CANCELS_H + h] = bids_e - asks_e
            put_fraction(
                fractions, row, CANCEL_IMBALANCE_H + h, bids_e - asks_e, bids_e + asks_e + 1.0
            )
            put_fraction(
                fractions, row, BID_CANCEL_X_BUY_H + h, math.sqrt(bids_e * buys_e), count_e + 1.0
            )
            put_fraction(
                fractions, row, ASK_CANCEL_X_SELL_H + h, math.sqrt(asks_e * sells_e), count_e + 1.0
            )
            changes_e = fade(floats, slot, at + E_CHANGES, fading, changes)
            put_log_ratio(ratios, row, CHANGE_RATE_H + h, changes_e, usual * share_changes)
            numbers[row, BID_MOVES_H + h] = fade(floats, slot, at + E_BID_MOVES, fading, bid_move)
            numbers[row, ASK_MOVES_H + h] = -fade(floats, slot, at + E_ASK_MOVES, fading, ask_move)
            numbers[row, FLIPS_H + h] = fade(floats, slot, at + E_FLIPS, fading, flips)
            numbers[row, UNDOS_H + h] = fade(floats, slot, at + E_UNDOS, fading, undone)
            ofi_e = fade(floats, slot, at + E_OFI, fading, ofi)
            flow_e = fade(floats, slot, at + E_ABS_OFI, fading, abs_ofi)
            put_fraction(fractions, row, OFI_H + h, ofi_e, flow_e + mean_depth)
            put_log_ratio(ratios, row, ORDER_FLOW_H + h, flow_e * per_depth, usual * usual_flow)
            signed_e = fade(floats, slot, at + E_SIGNED, fading, signed)
            volume_e = fade(floats, slot, at + E_VOLUME, fading, volume)
            put_fraction(fractions, row, SIGNED_VOLUME_H + h, signed_e, volume_e + mean_trade)
            put_log_ratio(ratios, row, VOLUME_H + h, volume_e * per_trade, usual * share_trades)
            r_e = fade(floats, slot, at + E_R, fading, r)
            put_ratio(ratios, row, RETURN_H + h, r_e * per_return, math.sqrt(max(0.5 * usual, 1.0)))
            r2_e = fade(floats, slot, at + E_R2, fading, r2)
            put_ratio(ratios, row, REALISED_VARIANCE_H + h, r2_e * per_variance, max(usual, 1.0))
            abs_r_e = fade(floats, slot, at + E_ABS_R, fading, abs_r)
            put_log_ratio(
                ratios, row, ABSOLUTE_RETURN_H + h, abs_r_e * per_return, ABSOLUTE_RETURN * usual
            )

        # --- the short window -----------------------------------------------------------------
        dt = SECOND * float(wait)
        waited = mean_wait if fresh else dt
        bid_q = float(bid_size)
        ask_q = float(ask_size)
        at = ints[slot, I_POS]
        line = F_BLOCK + WIDE * (at + 1)
        sum_imbalance = slide(floats, slot, F_BLOCK, line, WIDE, W_IMBALANCE, imbalance)
        sum_imbalance2 = slide(
            floats, slot, F_BLOCK, line, WIDE, W_IMBALANCE2, imbalance * imbalance
        )
        sum_dt = slide(floats, slot, F_BLOCK, line, WIDE, W_DT, waited)
        sum_dt2 = slide(floats, slot, F_BLOCK, line, WIDE, W_DT2, waited * waited)
        sum_ref = slide(floats, slot, F_BLOCK, line, WIDE, W_REF, ref)
        sum_r = slide(floats, slot, F_BLOCK, line, WIDE, W_R, r)
        sum_move = slide(floats, slot, F_BLOCK, line, WIDE, W_MOVE, move)
        sum_effective = slide(floats, slot, F_BLOCK, line, WIDE, W_EFFECTIVE, effective)
        high = slide_most(floats, slot, F_BLOCK, line, WIDE, W_HIGH, ref)
        low_negative = slide_most(floats, slot, F_BLOCK, line, WIDE, W_LOW, -ref)
        line = block + NARROW * (at + 1)
        x = np.float32(r2)
        realised = slide(singles, slot, block, line, NARROW, S_R2, x)
        x = np.float32(abs_r * floats[slot, F_ABS_R])
        bipower = HALF_PI * slide(singles, slot, block, line, NARROW, S_BIPOWER, x)
        floats[slot, F_ABS_R] = abs_r
        x = np.float32(abs(move))
        path = slide(singles, slot, block, line, NARROW, S_ABS_MOVE, x)
        x = np.float32(spread)
        sum_spread = slide(singles, slot, block, line, NARROW, S_SPREAD, x)
        most_spread = slide_most(singles, slot, block, line, NARROW, S_SPREAD_MAX, x)
        least_spread = -slide_most(singles, slot, block, line, NARROW, S_SPREAD_MIN, -x)
        x = np.float32(ofi)
        sum_ofi = slide(singles, slot, block, line, NARROW, S_OFI, x)
        sum_abs_ofi = slide(singles, slot, block, line, NARROW, S_ABS_OFI, abs(x))
        x = np.float32(signed)
        sum_signed = slide(singles, slot, block, line, NARROW, S_SIGNED, x)
        x = np.float32(volume)
        sum_volume = slide(singles, slot, block, line, NARROW, S_VOLUME, x)
        most_volume = slide_most(singles, slot, block, line, NARROW, S_VOLUME_MAX, x)
        x = np.float32(cancelled)
        sum_cancelled = slide(singles, slot, block, line, NARROW, S_CANCELLED, x)
        most_cancelled = slide_most(singles, slot, block, line, NARROW, S_CANCELLED_MAX, x)
        x = np.float32(bid_q)
        most_bid = slide_most(singles, slot, block, line, NARROW, S_BID_SIZE_MAX, x)
        x = np.float32(ask_q)
        most_ask = slide_most(singles, slot, block, line, NARROW, S_ASK_SIZE_MAX, x)
        count = min(before + 1, short)
        ints[slot, I_COUNT] = count
        if before == short:
            old = ints[slot, I_RING + at]
            ints[slot, I_FLAGS] -= old & first_bits
            ints[slot, I_FLAGS + 1] -= (old >> 1) & first_bits
        if before >= recent:
            old_at = at - recent
            old = ints[slot, I_RING + (old_at if old_at >= 0 else old_at + short)]
            ints[slot, I_RECENT_FLAGS] -= old & first_bits
            ints[slot, I_RECENT_FLAGS + 1] -= (old >> 1) & first_bits
        ints[slot, I_RING + at] = word_a | word_b << 1
        a = ints[slot, I_FLAGS] + word_a
        b = ints[slot, I_FLAGS + 1] + word_b
        ints[slot, I_FLAGS] = a
        ints[slot, I_FLAGS + 1] = b
        recent_a = ints[slot, I_RECENT_FLAGS] + word_a
        recent_b = ints[slot, I_RECENT_FLAGS + 1] + word_b
        ints[slot, I_RECENT_FLAGS] = recent_a
        ints[slot, I_RECENT_FLAGS + 1] = recent_b
        if at + 1 < short:
            ints[slot, I_POS] = at + 1
        else:
            ints[slot, I_POS] = 0
            fold(floats, slot, F_BLOCK, short, WIDE_SUMS, carry_wide)
            fold(singles, slot, block, short, NARROW_SUMS, carry_narrow)
        per_event = 1.0 / count
        per_recent = 1.0 / min(count, recent)
        root_event = math.sqrt(per_event)
        # in single precision, for what is
        event_single = np.float32(per_event)
        price_single = np.float32(per_price)
        depth_single = np.float32(per_depth)
        trade_single = np.float32(per_trade)
        variance_single = event_single * np.float32(per_variance)

        # --- waits: the longest of many, and of a few against the others ------------------------
        at = ints[slot, I_WAIT_POS]
        x = np.float32(waited)
        longest = float(slide_most(singles, slot, np.int64(0), at + 1, 1, 0, x))
        if at + 1 < GAP_EVENTS:
            ints[slot, I_WAIT_POS] = at + 1
        else:
            ints[slot, I_WAIT_POS] = 0
            fold(singles, slot, np.int64(0), GAP_EVENTS, 0, carry_wait)
        at = ints[slot, I_RECENT_POS]
        ints[slot, I_RECENT_POS] = at + 1 if at + 1 < recent else 0
        singles[slot, S_RECENT + at] = x
        total = 0.0
        longest_recent = 0.0
        for k in range(recent):
            seconds = float(singles[slot, np.uint64(S_RECENT + k)])
            total += seconds
            longest_recent = max(longest_recent, seconds)

        # --- a gap, and the burst after it ----------------------------------------------------
        weight = decay(SECOND / GAP_HALF_LIFE * float(now - ints[slot, I_GAP_SINCE]))
        if dt > floats[slot, F_GAP] * weight:
            floats[slot, F_GAP] = dt
            ints[slot, I_GAP_SINCE] = now
            ints[slot, I_GAP_EVENTS] = 0
            weight = 1.0
        else:
            ints[slot, I_GAP_EVENTS] += 1
        gap = floats[slot, F_GAP] * per_wait
        burst = float(ints[slot, I_GAP_EVENTS])
        expected = SECOND * float(now - ints[slot, I_GAP_SINCE]) * per_wait
        numbers[row, GAP_BURST_COUNT] = min(gap, max(burst - expected, 0.0))
        values[i, GAP_BURST_STRENGTH] = weight
        put_ratio(ratios, row, NUMBERS + FACTORS + 2, gap * burst, 1.0 + expected)

        # --- returns and volatility -----------------------------------------------------------
        numbers[row, RETURN_TICK] = r * per_return
        numbers[row, RETURN_SHORT] = sum_r * per_return * root_event
        put_fraction(fractions, row, PATH_EFFICIENCY, abs(sum_move), path)
        numbers[row, RANGE] = (high + low_negative) * per_price
        numbers[row, MEAN_DEVIATION] = (ref - sum_ref * per_event) * per_price
        numbers[row, REALISED_VARIANCE_SHORT] = realised * variance_single
        numbers[row, BIPOWER_VARIANCE] = bipower * variance_single
        put_fraction(fractions, row, JUMP_RATIO, max(realised - bipower, ZERO), realised)

        # --- spread and book ------------------------------------------------------------------
        numbers[row, QUOTED_SPREAD] = spread * per_price
        usual = ref if ref > 0.0 else math.inf
        put_ratio(ratios, row, RELATIVE_SPREAD, spread * per_return, usual)
        numbers[row, SPREAD_MEAN] = sum_spread * (event_single * price_single)
        numbers[row, SPREAD_MIN] = least_spread * price_single
        numbers[row, SPREAD_MAX] = most_spread * price_single
        trades = float((a >> A_TRADE) & 0xFF)
        numbers[row, EFFECTIVE_TICK] = effective * per_price
        put_ratio(ratios, row, EFFECTIVE_SPREAD, sum_effective * per_price, max(trades, 1.0))
        values[i, CROSSED_LOCKED_TICK] = 1.0 if crossed else 0.0
        ints[slot, I_CROSSED] = ints[slot, I_CROSSED] + 1 if crossed else 0
        numbers[row, CROSSED_EVENTS] = float(ints[slot, I_CROSSED])
        numbers[row, CROSSED_DEPTH] = min(spread, 0.0) * per_price if two_sided else 0.0
        values[i, CROSSED_LOCKED] = float((a >> A_CROSSED_LOCKED) & 0xFF) * per_event
        mean = sum_imbalance * per_event
        values[i, QUEUE_IMBALANCE] = imbalance
        values[i, QUEUE_IMBALANCE_MEAN] = mean
        variance = sum_imbalance2 * per_event - mean * mean
        values[i, QUEUE_IMBALANCE_SD] = math.sqrt(max(variance, 0.0))
        numbers[row, MICROPRICE_DEVIATION] = (
            0.5 * spread * imbalance * per_price if two_sided else 0.0
        )
        numbers[row, BID_SIZE] = bid_q * per_depth
        numbers[row, ASK_SIZE] = ask_q * per_depth
        numbers[row, BID_SIZE_MAX] = most_bid * depth_single
        numbers[row, ASK_SIZE_MAX] = most_ask * depth_single
        age = SECOND * float(now - ints[slot, I_BOOK_SINCE])
        numbers[row, BOOK_AGE] = age * per_wait if has_book else 0.0
        values[i, FROZEN_BOOK_TRADES] = float(frozen) if has_book else 0.0
        usual = age * per_wait * floats[slot, F_BOOKS]
        put_ratio(ratios, row, NUMBERS + FACTORS + 3, usual, 1.0)
        numbers[row, BOOK_AGE_EVENTS] = float(ints[slot, I_BOOK_EVENTS]) if has_book else 0.0
        numbers[row, BOOK_WAIT_EVENTS] = book_wait_events if has_book else 0.0
        usual = floats[slot, F_BOOK_WAIT] * floats[slot, F_BOOK_WAITING]
        scale = WAITS * inverse(usual) if has_book else 0.0
        put_log_ratio(ratios, row, BOOK_WAIT, book_wait * scale, WAITS if scale > 0.0 else 0.0)

        # --- order flow and trades ------------------------------------------------------------
        numbers[row, OFI_TICK] = ofi * per_depth
        numbers[row, OFI_SHORT] = sum_ofi * (depth_single * np.float32(root_event))
        numbers[row, ORDER_FLOW] = sum_abs_ofi * (event_single * depth_single)
        buys_short = float((a >> A_BUY) & 0xFF)
        sells_short = float((a >> A_SELL) & 0xFF)
        values[i, TRADE_SHARE] = trades * per_event
        put_fraction(
            fractions, row, TRADE_SIGN_IMBALANCE, buys_short - sells_short, max(trades, 1.0)
        )
        put_fraction(fractions, row, SIGNED_VOLUME_SHORT, sum_signed, sum_volume)
        numbers[row, VOLUME] = sum_volume * trade_single
        numbers[row, LARGEST_TRADE] = most_volume * trade_single
        numbers[row, TRADE_SIZE] = volume * per_trade
        numbers[row, TRADE_RUN] = float(trade_run)
        numbers[row, WASH_RUN] = float(wash_run)

        # --- arrivals -------------------------------------------------------------------------
        scale = WAITS * per_wait
        usual = WAITS if mean_wait > 0.0 else 0.0
        put_log_ratio(ratios, row, INTER_ARRIVAL, waited * scale, usual)
        put_log_ratio(ratios, row, INTER_ARRIVAL_MEAN, sum_dt * per_event * scale, usual)
        mean = sum_dt * per_event
        variance = sum_dt2 * per_event - mean * mean
        put_fraction(fractions, row, INTER_ARRIVAL_CV, math.sqrt(max(variance, 0.0)), mean)
        put_log_ratio(
            ratios,
            row,
            GAP_BURST,
            BURST_SCALE * longest_recent,
            BURST_SCALE * (total - longest_recent),
        )
        ratios[0, row, FACTORS] = count_e
        put_log_ratio(ratios, row, NUMBERS + FACTORS + 1, max(longest * scale, usual), usual)

        # --- cancels, changes, flips ----------------------------------------------------------
        bid_c = float((a >> A_BID_CANCEL) & 0xFF)
        ask_c = float((a >> A_ASK_CANCEL) & 0xFF)
        values[i, ADD_SHARE] = float((a >> A_ADD) & 0xFF) * per_event
        values[i, BID_CANCEL_SHARE] = bid_c * per_event
        values[i, ASK_CANCEL_SHARE] = ask_c * per_event
        put_log_ratio(ratios, row, CANCEL_TO_TRADE, bid_c + ask_c, trades)
        put_fraction(fractions, row, CANCEL_IMBALANCE, bid_c - ask_c, max(bid_c + ask_c, 1.0))
        numbers[row, CANCEL_SIZE] = cancelled * per_depth
        numbers[row, CANCELLED_VOLUME] = sum_cancelled * depth_single
        numbers[row, LARGEST_CANCEL] = most_cancelled * depth_single
        values[i, BID_CANCEL_X_BUY] = math.sqrt(bid_c * buys_short) * per_event
        values[i, ASK_CANCEL_X_SELL] = math.sqrt(ask_c * sells_short) * per_event
        bid_up = float((b >> B_BID_UP) & 0xFF)
        bid_down = float((b >> B_BID_DOWN) & 0xFF)
        ask_up = float((b >> B_ASK_UP) & 0xFF)
        ask_down = float((b >> B_ASK_DOWN) & 0xFF)
        values[i, BID_CHANGES] = (bid_up + bid_down) * per_event
        values[i, ASK_CHANGES] = (ask_up + ask_down) * per_event
        values[i, BID_FLIPS] = float((b >> B_BID_FLIP) & 0xFF) * per_event
        values[i, ASK_FLIPS] = float((b >> B_ASK_FLIP) & 0xFF) * per_event
        values[i, BID_IMPROVEMENT] = (bid_up - bid_down) * per_event
        values[i, ASK_IMPROVEMENT] = (ask_down - ask_up) * per_event
        numbers[row, BID_RUN] = float(ints[slot, I_BID_RUN])
        numbers[row, ASK_RUN] = float(ints[slot, I_ASK_RUN])
        values[i, UNDO_SHARE] = float((a >> A_UNDO) & 0xFF) * per_event

        # --- the recent window ----------------------------------------------------------------
        bid_c = float((recent_a >> A_BID_CANCEL) & 0xFF)
        ask_c = float((recent_a >> A_ASK_CANCEL) & 0xFF)
        adds = float((recent_a >> A_ADD) & 0xFF)
        values[i, ADD_SHARE_RECENT] = adds * per_recent
        values[i, BID_CANCEL_SHARE_RECENT] = bid_c * per_recent
        values[i, ASK_CANCEL_SHARE_RECENT] = ask_c * per_recent
        put_log_ratio(
            ratios, row, CANCEL_TO_TRADE_RECENT, bid_c + ask_c, float((recent_a >> A_TRADE) & 0xFF)
        )
        net = float(((recent_b >> B_BID_ADD) & 0xFF) - ((recent_b >> B_ASK_ADD) & 0xFF))
        put_fraction(fractions, row, ADD_IMBALANCE_RECENT, net, max(adds, 1.0))
        net = float(((recent_b >> B_BID_UP) & 0xFF) - ((recent_b >> B_BID_DOWN) & 0xFF))
        values[i, BID_IMPROVEMENT_RECENT] = net * per_recent
        net = float(((recent_b >> B_ASK_DOWN) & 0xFF) - ((recent_b >> B_ASK_UP) & 0xFF))
        values[i, ASK_IMPROVEMENT_RECENT] = net * per_recent

        ready[i] = (
            events >= par[P_WARMUP]
            and count == short
            and (ints[slot, I_LAST] - ints[slot, I_BEGAN] >= par[P_WARMUP_TIME])
        )
        quality[i] = flag
        slots[i] = slot

        # --- slow scales after this tick ------------------------------------------------------
        if two_sided and spread > 0.0:
            known = min(floats[slot, F_SPREAD + 1] + 1.0, most)
            floats[slot, F_SPREAD + 1] = known
            floats[slot, F_SPREAD] = observed(floats[slot, F_SPREAD], spread, known)
        if two_sided and depth > 0.0:
            known = min(floats[slot, F_DEPTH + 1] + 1.0, most)
            floats[slot, F_DEPTH + 1] = known
            floats[slot, F_DEPTH] = observed(floats[slot, F_DEPTH], 0.5 * depth, known)
        if had_ref:
            if move != 0.0:
                known = min(floats[slot, F_MOVE + 1] + 1.0, most)
                floats[slot, F_MOVE + 1] = known
                floats[slot, F_MOVE] = observed(floats[slot, F_MOVE], abs(move), known)
            if r2 > 0.0:
                known = min(floats[slot, F_R2 + 1] + 1.0, most)
                floats[slot, F_R2 + 1] = known
                floats[slot, F_R2] = observed(floats[slot, F_R2], r2, known)
            known = min(floats[slot, F_MOVING + 1] + 1.0, most)
            floats[slot, F_MOVING + 1] = known
            floats[slot, F_MOVING] += ((1.0 if r2 > 0.0 else 0.0) - floats[slot, F_MOVING]) / known
        if not fresh:
            if wait > 0:
                known = min(floats[slot, F_DT + 1] + 1.0, most)
                floats[slot, F_DT + 1] = known
                floats[slot, F_DT] = observed(floats[slot, F_DT], dt, known)
            known = min(floats[slot, F_WAITING + 1] + 1.0, most)
            floats[slot, F_WAITING + 1] = known
            floats[slot, F_WAITING] += (
                (1.0 if wait > 0 else 0.0) - floats[slot, F_WAITING]
            ) / known
        if changed:
            if book_wait > 0.0:
                known = min(floats[slot, F_BOOK_WAIT + 1] + 1.0, most)
                floats[slot, F_BOOK_WAIT + 1] = known
                floats[slot, F_BOOK_WAIT] = observed(floats[slot, F_BOOK_WAIT], book_wait, known)
            known = min(floats[slot, F_BOOK_WAITING + 1] + 1.0, most)
            floats[slot, F_BOOK_WAITING + 1] = known
            floats[slot, F_BOOK_WAITING] += (
                (1.0 if book_wait > 0.0 else 0.0) - floats[slot, F_BOOK_WAITING]
            ) / known
        if is_trade:
            known = min(floats[slot, F_TRADE + 1] + 1.0, most)
            floats[slot, F_TRADE + 1] = known
            floats[slot, F_TRADE] = observed(floats[slot, F_TRADE], volume, known)
            deviation = log_size - floats[slot, F_LOG_SIZE]
            share = 1.0 / known
            floats[slot, F_LOG_SIZE] += share * deviation
            floats[slot, F_LOG_SIZE + 1] = (1.0 - share) * (
                floats[slot, F_LOG_SIZE + 1] + share * deviation * deviation
            )
        share = 1.0 / min(float(events), most)
        floats[slot, F_TRADES] += share * ((1.0 if is_trade else 0.0) - floats[slot, F_TRADES])
        floats[slot, F_CANCELS] += share * (bid_cancel + ask_cancel - floats[slot, F_CANCELS])
        floats[slot, F_ADDS] += share * (bid_add + ask_add - floats[slot, F_ADDS])
        floats[slot, F_CHANGES] += share * (changes - floats[slot, F_CHANGES])
        floats[slot, F_BOOKS] += share * ((1.0 if changed else 0.0) - floats[slot, F_BOOKS])
        flow = floats[slot, F_FLOW]
        floats[slot, F_FLOW] += share * (
            (min(abs_ofi, OUTLIER * flow) if flow > 0.0 else abs_ofi) - flow
        )
    if count_rows > 0:
        start = (count_rows - 1) & ~(ROWS - 1)
        finish(numbers, ratios, fractions, values[start:])


@njit(cache=True, nogil=True, error_model="numpy")
def update_column(
    floats: Float64s,
    slot: Integer,
    at: Integer,
    x: float,
    since: Integer,
    count: Integer,
    position: Integer,
    short: Integer,
    long_window: Integer,
    most: float,
    values: Float32s,
    i: Integer,
    first: Integer,
    rank: Integer,
) -> None:
    """Update one column of one instrument with `x`, and write its outputs.

    The column's state begins at `floats[slot, at]`; `count` values lie in its ring, the next goes
    to `position`; `since` counts the values since the windows began, this one included.
    """
    slow = at + C_SLOW
    known = floats[slot, slow + 2]
    level = floats[slot, slow] if known > 0.0 else x
    sd = math.sqrt(floats[slot, slow + 1])
    scale = max(sd, SD_FLOOR * abs(level), TINY)
    clipped = x
    if known >= 16.0 and sd > 0.0:
        clipped = min(max(x, level - OUTLIER * sd), level + OUTLIER * sd)

    highest = x
    lowest = x
    below = 0.0
    ring = at + COLUMN_STATE
    for k in range(count):
        value = floats[slot, ring + k]
        highest = value if k == 0 or value > highest else highest
        lowest = value if k == 0 or value < lowest else lowest
        below += 1.0 if value < x else 0.5 if value == x else 0.0
    floats[slot, ring + position] = x
    held = min(count + 1, short)
    mean = 0.0
    for k in range(held):
        mean += floats[slot, ring + k] / held
    variance = 0.0
    for k in range(held):
        deviation = floats[slot, ring + k] - mean
        variance += deviation * deviation / held
    change = x - floats[slot, at + C_LAST] if since > 1 else 0.0
    floats[slot, at + C_LAST] = x
    fade = 1.0 / min(since, long_window)
    deviation = clipped - floats[slot, at + C_LONG]
    long_mean = floats[slot, at + C_LONG] + fade * deviation
    long_variance = (1.0 - fade) * (floats[slot, at + C_LONG + 1] + fade * deviation * deviation)
    floats[slot, at + C_LONG] = long_mean
    floats[slot, at + C_LONG + 1] = long_variance

    step = floats[slot, at + C_CHANGE]
    floor = WAIT_FLOOR * scale
    values[i, first + CHANGE] = change / (step if step > 0.0 else scale)
    values[i, first + LEVEL] = (x - level) / scale
    values[i, first + SHORT_MEAN] = (mean - level) / scale
    values[i, first + SHORT_SD] = contrast(math.sqrt(variance), scale, floor)
    values[i, first + LONG_MEAN] = (long_mean - level) / scale
    values[i, first + LONG_SD] = contrast(math.sqrt(long_variance), scale, floor)
    values[i, first + HIGH] = max(x - highest, 0.0) / scale
    values[i, first + LOW] = max(lowest - x, 0.0) / scale
    values[i, rank] = 2.0 * below / count - 1.0 if count > 0 else 0.0

    known = min(known + 1.0, most)
    floats[slot, slow + 2] = known
    fade = 1.0 / known
    deviation = clipped - floats[slot, slow]
    floats[slot, slow] += fade * deviation
    variance = floats[slot, slow + 1] + fade * deviation * deviation
    floats[slot, slow + 1] = (1.0 - fade) * variance
    if change != 0.0:
        known = min(floats[slot, at + C_CHANGE + 1] + 1.0, most)
        floats[slot, at + C_CHANGE + 1] = known
        floats[slot, at + C_CHANGE] = observed(step, abs(change), known)


@njit(cache=True, nogil=True, error_model="numpy")
def update_vectors(
    data: Float32s,
    in_keys: Int64s,
    in_ts: Int64s,
    par: Int64s,
    floats: Float64s,
    ints: Int64s,
    keys: Int64s,
    table: Int32s,
    links: Int32s,
    head: Int64s,
    values: Float32s,
    ready: npt.NDArray[np.bool_],
    quality: npt.NDArray[np.uint16],
    slots: Int32s,
) -> None:
    """Update the state with `n` vectors of C columns and write their features.

    Parameters
    ----------
    data : (n, C) float32
    in_keys, in_ts : (n,) int64
    par, floats, ints, keys, table, links, head, values, ready, quality, slots
        As in `update_ticks`.
    """
    columns = data.shape[1]
    heavy = VECTOR_OUTPUTS + columns * COLUMN_OUTPUTS
    short = par[P_SHORT]
    most = float(par[P_SLOW])
    width = COLUMN_STATE + short

    for i in range(data.shape[0]):
        ts = in_ts[i]
        reason = Q_NO_TIME if ts <= 0 else 0
        for c in range(columns):
            if not math.isfinite(data[i, c]):
                reason |= Q_NOT_FINITE
        if reason == 0 and not plausible(ts, head, par[P_JUMP]):
            reason = Q_IMPLAUSIBLE_TIME
        if reason != 0:
            quality[i] = reason
            ready[i] = False
            slots[i] = -1
            values[i, :] = ZERO
            continue
        key = in_keys[i]
        slot = find(key, table, keys)
        if slot < 0:
            slot = claim(key, table, keys, links, head)
            floats[slot, :] = 0.0
            ints[slot, :] = 0
        touch(slot, links)
        wait, late = arrive(ts, slot, ints, floats, par)
        fresh = wait < 0
        if fresh:
            ints[slot, I_COUNT] = 0
            ints[slot, I_POS] = 0
            ints[slot, I_FAR_LATE] = 0
            ints[slot, I_SINCE] = 0
            ints[slot, I_BEGAN] = ints[slot, I_LAST]
            wait = np.int64(0)
        events = ints[slot, I_EVENTS] + 1
        ints[slot, I_EVENTS] = events
        ints[slot, I_SINCE] += 1
        count = ints[slot, I_COUNT]
        at = ints[slot, I_POS]

        for c in range(columns):
            update_column(
                floats, slot, V_RING + short + c * width, float(data[i, c]), ints[slot, I_SINCE],
                count, at, short, par[P_LONG], most,
                values, i, VECTOR_OUTPUTS + c * COLUMN_OUTPUTS, heavy + c,
            )  # fmt: skip

        mean_wait = floats[slot, V_DT] * floats[slot, V_WAITING]
        dt = SECOND * float(wait)
        waited = mean_wait if fresh else dt
        floats[slot, V_RING + at] = waited
        count = min(count + 1, short)
        total = 0.0
        for k in range(count):
            total += floats[slot, V_RING + k]
        values[i, 0] = ZERO
        values[i, 1] = ZERO
        if mean_wait > 0.0:
            values[i, 0] = contrast(waited, mean_wait, WAIT_FLOOR * mean_wait)
            values[i, 1] = contrast(total / count, mean_wait, WAIT_FLOOR * mean_wait)
        ints[slot, I_COUNT] = count
        ints[slot, I_POS] = at + 1 if at + 1 < short else 0
        if not fresh:
            if wait > 0:
                known = min(floats[slot, V_DT + 1] + 1.0, most)
                floats[slot, V_DT + 1] = known
                floats[slot, V_DT] = observed(floats[slot, V_DT], dt, known)
            known = min(floats[slot, V_WAITING + 1] + 1.0, most)
            floats[slot, V_WAITING + 1] = known
            waiting = 1.0 if wait > 0 else 0.0
            floats[slot, V_WAITING] += (waiting - floats[slot, V_WAITING]) / known

        ready[i] = (
            events >= par[P_WARMUP]
            and count == short
            and (ints[slot, I_LAST] - ints[slot, I_BEGAN] >= par[P_WARMUP_TIME])
        )
        quality[i] = Q_LATE if late else 0
        slots[i] = slot
    compress(values, heavy)
