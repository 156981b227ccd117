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

VERSION: Final = 1  # part of every spec's fingerprint: raise it when an output changes its meaning

# --- parameters, as int64 array `par` and float64 array `rates` ----------------------------------
P_JUMP = 0  # ns: further than this from the partition's clock, a time is implausible
P_GAP = 1  # ns: a longer silence ends the session; 0: never
P_WARMUP = 2  # events before an instrument is ready
P_SHORT = 3  # W, events in the short window
P_LONG = 4  # vectors: events in the long window
P_SLOW = 5  # events that a slow scale looks back on
P_WARMUP_TIME = 6  # ns since the windows began before an instrument is ready
P_SIZE = 7

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
I_COUNT = 2  # events in the ring
I_POS = 3  # next ring position
I_FAR_LATE = 4  # consecutive ticks later than a session gap
I_BID = 5
I_ASK = 6
I_BID_SIZE = 7
I_ASK_SIZE = 8
I_SIDES = 9  # which sides the previous book had: 1 bid, 2 ask
I_BOOK_SEEN = 10  # a two-sided book was seen this session: the mid is the reference price
I_HAS_REF = 11
I_BID_DIR = 12
I_ASK_DIR = 13
I_BID_SINCE = 14
I_ASK_SINCE = 15
I_TRADE = 16  # last trade price
I_HAS_TRADE = 17
I_TRADE_SIGN = 18
I_HAS_CHANGE = 19  # F_CHANGE holds a trade price change
I_HASH_POS = 20
I_FLAGS = 21  # two words: sums over the ring, eight one-byte counters each
I_BEGAN = 23  # ns, event time at which the windows began
I_RING = 24  # W pairs of flag words
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
F_TRADES = 18  # trades per event
F_CANCELS = 20  # cancels per event
F_LATENCY = 22
F_REF = 24  # reference price
F_ABS_R = 25  # previous absolute log return
F_CHANGE = 26  # previous trade price change
F_CARRIED_SPREAD = 27
F_FAST = 28  # messages in the fastest decaying window
F_EW1 = 32  # sixteen decaying sums, second half-life
F_EW2 = 48  # the same, third half-life
F_EW3 = 64  # eight decaying sums, fourth half-life
F_BLOCK = 72  # block sums of the short window, see `slide`

# decaying sums of F_EW1 and F_EW2
E_N = 0
E_BUYS = 1  # a trade of unknown sign counts half on each side
E_SELLS = 2
E_BID_CANCELS = 3
E_ASK_CANCELS = 4
E_R = 5
E_R2 = 6
E_ABS_R = 7
E_VOLUME = 8
E_SIGNED = 9
E_OFI = 10
E_ABS_OFI = 11
E_FLIPS = 12
# decaying sums of F_EW3, eight
G_N = 0
G_VOLUME = 1  # of trades with a price
G_PRICE_VOLUME = 2
G_MOVE_SIGNED = 3
G_SIGNED2 = 4
G_ROLL = 5
G_ROLL_PAIRS = 6
G_R = 7

# --- the short window ---------------------------------------------------------------------------
# Doubles, for what may cancel out (variances, signed sums, price levels): sums, then maxima.
W_IMBALANCE = 0
W_IMBALANCE2 = 1
W_BID_SIZE = 2
W_BID_SIZE2 = 3
W_ASK_SIZE = 4
W_ASK_SIZE2 = 5
W_DT = 6
W_DT2 = 7
W_REF = 8
W_R = 9
W_MOVE = 10
W_EFFECTIVE = 11
W_HIGH = 12
W_LOW = 13  # of the negative
WIDE_SUMS = 12
WIDE = 14
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

# flag words: the bit at which a counter's byte starts
A_ADD = 0
A_BID_CANCEL = 8
A_ASK_CANCEL = 16
A_BUY = 24
A_SELL = 32
A_TRADE = 40
A_CROSSED_LOCKED = 48
B_BID_UP = 0
B_BID_DOWN = 8
B_ASK_UP = 16
B_ASK_DOWN = 24
B_BID_FLIP = 32
B_ASK_FLIP = 40

# --- outputs for ticks: first those with heavy tails, see `compress`, then shares and balances ----
(
    RETURN_TICK,
    RETURN_SHORT,
    RETURN_1,
    RETURN_2,
    RETURN_3,
    RANGE,
    MEAN_DEVIATION,
    REALISED_VARIANCE_SHORT,
    REALISED_VARIANCE_1,
    REALISED_VARIANCE_2,
    BIPOWER_VARIANCE,
    QUOTED_SPREAD,
    RELATIVE_SPREAD,
    SPREAD_MEAN,
    SPREAD_MIN,
    SPREAD_MAX,
    EFFECTIVE_SPREAD,
    ROLL_SPREAD,
    MICROPRICE_DEVIATION,
    BID_SIZE,
    ASK_SIZE,
    BID_SIZE_MAX,
    ASK_SIZE_MAX,
    BID_AGE,
    ASK_AGE,
    OFI_TICK,
    OFI_SHORT,
    ORDER_FLOW,
    VOLUME,
    LARGEST_TRADE,
    TRADE_SIZE_Z,
    TRADE_RATE_1,
    TRADE_RATE_2,
    VWAP_DEVIATION,
    KYLE_LAMBDA,
    AMIHUD,
    INTER_ARRIVAL,
    INTER_ARRIVAL_MEAN,
    MESSAGE_RATE_0,
    MESSAGE_RATE_1,
    MESSAGE_RATE_2,
    BURST_RATIO,
    CANCEL_TO_TRADE,
    CANCEL_RATE_1,
    CANCEL_RATE_2,
    CANCELLED_VOLUME,
    LARGEST_CANCEL,
    FEED_LATENCY,
) = range(48)
TICK_HEAVY: Final = 48
(
    PATH_EFFICIENCY,
    JUMP_RATIO,
    CROSSED_LOCKED,
    QUEUE_IMBALANCE,
    QUEUE_IMBALANCE_MEAN,
    QUEUE_IMBALANCE_SD,
    BID_SIZE_CV,
    ASK_SIZE_CV,
    OFI_1,
    OFI_2,
    TRADE_SHARE,
    TRADE_SIGN_IMBALANCE,
    SIGNED_VOLUME_SHORT,
    SIGNED_VOLUME_2,
    INTER_ARRIVAL_CV,
    ADD_SHARE,
    BID_CANCEL_SHARE,
    ASK_CANCEL_SHARE,
    CANCEL_IMBALANCE,
    BID_CANCEL_X_BUY,
    ASK_CANCEL_X_SELL,
    BID_CHANGES,
    ASK_CHANGES,
    BID_FLIPS,
    ASK_FLIPS,
    BID_IMPROVEMENT,
    ASK_IMPROVEMENT,
    FLIP_SHARE,
) = range(48, 76)
TICK_OUTPUTS: Final = 76

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
HALF_PI: Final = math.pi / 2.0
SECOND: Final = 1e-9
NO_PRICE: Final = 2**63 - 1
FAR: Final = 12  # ticks ahead
NEAR: Final = 5
LINE: Final = 8  # words in a cache line
OUTLIER: Final = 32.0  # an observation counts for at most this many times the slow scale
FAR_LATE_LIMIT: Final = 2
WAIT_FLOOR: Final = 0.01  # of the mean wait: keeps the log of a wait of zero finite
LOG_SIZE_SD_FLOOR: Final = 0.1
SD_FLOOR: Final = 1e-6  # of the mean of a column
TINY: Final = 1e-100
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

# the bits of a single, and log(1 + m) / m^3 + ... for `compress`
MANTISSA_BITS: Final = np.int32(23)
MANTISSA: Final = np.int32((1 << 23) - 1)
EXPONENT_BIAS: Final = np.int32(127)
EXPONENT_OF_ONE: Final = np.int32(127 << 23)
ZERO: Final = np.float32(0.0)
HALF: Final = np.float32(0.5)
ONE: Final = np.float32(1.0)
MOST: Final = np.float32(1e30)
SQRT2: Final = np.float32(math.sqrt(2.0))
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


@njit(cache=True, nogil=True, error_model="numpy")
def compress(values: Float32s, heavy: Integer) -> None:
    """Replace x by sign(x) log(1 + |x|) in the first `heavy` columns.

    The logarithm is computed in single precision from the bits of the number, without branches,
    so that LLVM makes vector instructions of it: 48 calls of `math.log1p` would cost more than
    all the rest of a tick. Polynomial of `logf` in Moshier's Cephes; error below 1e-7 (1 + log).
    """
    shifted = np.empty(heavy, np.float32)
    bits = shifted.view(np.int32)
    exponents = np.empty(heavy, np.float32)
    for i in range(values.shape[0]):
        for k in range(heavy):
            size = abs(values[i, k])
            size = size if size < MOST else MOST
            shifted[k] = ONE + size
        for k in range(heavy):
            word = bits[k]
            exponents[k] = np.float32(np.int32(np.int32(word >> MANTISSA_BITS) - EXPONENT_BIAS))
            bits[k] = np.int32(np.int32(word & MANTISSA) | EXPONENT_OF_ONE)
        for k in range(heavy):
            mantissa = shifted[k]
            exponent = exponents[k]
            above = mantissa > SQRT2
            mantissa = HALF * mantissa if above else mantissa
            exponent = exponent + ONE if above else exponent
            m = mantissa - ONE
            p = ((((((((L0 * m + L1) * m + L2) * m + L3) * m + L4) * m + L5) * m + L6) * m + L7)
                 * m + L8)  # fmt: skip
            log = m + m * m * (m * p - HALF) + exponent * LOG2
            values[i, k] = log if values[i, k] >= ZERO else -log


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
def begin(slot: Integer, floats: Float64s, singles: Float32s, ints: Int64s, short: Integer) -> None:
    """Begin the windows of one instrument anew; its slow scales stay."""
    ints[slot, I_COUNT:I_HASH_POS] = 0
    ints[slot, I_FLAGS] = 0
    ints[slot, I_FLAGS + 1] = 0
    ints[slot, I_BID_SINCE] = ints[slot, I_LAST]
    ints[slot, I_ASK_SINCE] = ints[slot, I_LAST]
    floats[slot, F_REF:F_BLOCK] = 0.0
    for j in range(short + 1):
        for k in range(WIDE):
            floats[slot, F_BLOCK + j * WIDE + k] = 0.0 if k < WIDE_SUMS else LEAST
        for k in range(NARROW):
            singles[slot, j * NARROW + k] = 0.0 if k < NARROW_SUMS else LEAST


@njit(cache=True, nogil=True, error_model="numpy")
def end_block(
    slot: Integer,
    floats: Float64s,
    singles: Float32s,
    short: Integer,
    new_wide: Float64s,
    wide: Float64s,
    new_narrow: Float32s,
    narrow: Float32s,
) -> None:
    """Take in the last event of a block, write the window, and fold the block from its end.

    The widths are taken from the arrays, not from the constants: loops of unknown length become
    vector instructions, short ones of known length are unrolled instead.
    """
    columns = new_wide.shape[0]
    sums = columns - (WIDE - WIDE_SUMS)
    line = F_BLOCK + WIDE * short
    for k in range(sums):
        wide[k] = floats[slot, F_BLOCK + k] + new_wide[k]
        floats[slot, F_BLOCK + k] = 0.0
    for k in range(sums, columns):
        wide[k] = max(floats[slot, F_BLOCK + k], new_wide[k])
        floats[slot, F_BLOCK + k] = LEAST
    for k in range(columns):
        floats[slot, line + k] = new_wide[k]
    for _ in range(short - 1):
        line -= WIDE
        for k in range(sums):
            new_wide[k] += floats[slot, line + k]
        for k in range(sums, columns):
            new_wide[k] = max(new_wide[k], floats[slot, line + k])
        for k in range(columns):
            floats[slot, line + k] = new_wide[k]
    columns = new_narrow.shape[0]
    sums = columns - (NARROW - NARROW_SUMS)
    line = NARROW * short
    for k in range(sums):
        narrow[k] = singles[slot, k] + new_narrow[k]
        singles[slot, k] = ZERO
    for k in range(sums, columns):
        narrow[k] = max(singles[slot, k], new_narrow[k])
        singles[slot, k] = LEAST
    for k in range(columns):
        singles[slot, line + k] = new_narrow[k]
    for _ in range(short - 1):
        line -= NARROW
        for k in range(sums):
            new_narrow[k] += singles[slot, line + k]
        for k in range(sums, columns):
            new_narrow[k] = max(new_narrow[k], singles[slot, line + k])
        for k in range(columns):
            singles[slot, line + k] = new_narrow[k]


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
        Decay rates ln(2) / half-life, 1/s.
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
    new_wide = np.zeros(WIDE)
    wide = np.zeros(WIDE)
    new_narrow = np.zeros(NARROW, np.float32)
    narrow = np.zeros(NARROW, np.float32)
    short = par[P_SHORT]
    jump = par[P_JUMP]
    limit = min(par[P_GAP], jump) if par[P_GAP] > 0 else jump
    most = float(par[P_SLOW])
    low = np.int64(0xFFFFFFFF)
    mask = table.shape[0] - 1
    end = links.shape[0] - 1
    last_wait = np.int64(-1)
    decay0 = decay1 = decay2 = decay3 = 1.0

    count_rows = words.shape[0]
    for i in range(min(FAR, count_rows)):
        slots[i] = -1

    for i in range(count_rows):
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
                prefetch(singles, soon, 0)
        if i + NEAR < count_rows and slots[i + NEAR] >= 0:
            soon = slots[i + NEAR]
            at = ints[soon, I_POS]
            if at + 1 < short:
                line = F_BLOCK + WIDE * (at + 1)
                prefetch(floats, soon, line)
                prefetch(floats, soon, line + LINE)
                prefetch(floats, soon, line + 2 * LINE)
                prefetch(floats, soon, line + 2 * WIDE - 1)
                prefetch(singles, soon, NARROW * (at + 1))
                prefetch(singles, soon, NARROW * (at + 2))
            else:  # its block ends: all of it will be folded
                for k in range(F_BLOCK + WIDE, floats.shape[1], LINE):
                    prefetch(floats, soon, k)
                for k in range(NARROW, singles.shape[1], 2 * LINE):
                    prefetch(singles, soon, k)
            prefetch(ints, soon, I_RING + 2 * at)
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
            begin(slot, floats, singles, ints, short)
            ints[slot, I_BEGAN] = now
            wait = np.int64(0)
        events = ints[slot, I_EVENTS] + 1
        ints[slot, I_EVENTS] = events

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
        before = ints[slot, I_SIDES]
        old_bid = ints[slot, I_BID]
        old_ask = ints[slot, I_ASK]
        old_bid_size = ints[slot, I_BID_SIZE]
        old_ask_size = ints[slot, I_ASK_SIZE]
        if is_trade and not has_bid and not has_ask:
            # the record carries no book: the book stays as it was
            bid = old_bid
            ask = old_ask
            bid_size = old_bid_size
            ask_size = old_ask_size
            has_bid = before & 1 != 0
            has_ask = before & 2 != 0
        else:
            if not (has_bid and has_ask):
                flag |= Q_ONE_SIDED
            elif bid > ask:
                flag |= Q_CROSSED
            elif bid == ask:
                flag |= Q_LOCKED
            if bid_size == 0 and ask_size == 0:
                # a market without sizes: each quoted side counts one
                bid_size = np.int64(1) if has_bid else np.int64(0)
                ask_size = np.int64(1) if has_ask else np.int64(0)
            ints[slot, I_BID] = bid
            ints[slot, I_ASK] = ask
            ints[slot, I_BID_SIZE] = bid_size
            ints[slot, I_ASK_SIZE] = ask_size
            ints[slot, I_SIDES] = (1 if has_bid else 0) | (2 if has_ask else 0)
        two_sided = has_bid and has_ask

        # --- what the book did ----------------------------------------------------------------
        bid_flow = 0.0
        ask_flow = 0.0
        word_a = np.int64(0)
        word_b = np.int64(0)
        flips = 0.0
        if has_bid and before & 1 != 0:
            bid_flow = (float(bid_size) if bid >= old_bid else 0.0) - (
                float(old_bid_size) if bid <= old_bid else 0.0
            )
            if bid != old_bid:
                up = bid > old_bid
                direction = np.int64(1) if up else np.int64(-1)
                word_b |= np.int64(1) << (B_BID_UP if up else B_BID_DOWN)
                if ints[slot, I_BID_DIR] == -direction:
                    word_b |= np.int64(1) << B_BID_FLIP
                    flips += 1.0
                ints[slot, I_BID_DIR] = direction
                ints[slot, I_BID_SINCE] = now
        if has_ask and before & 2 != 0:
            ask_flow = (float(ask_size) if ask <= old_ask else 0.0) - (
                float(old_ask_size) if ask >= old_ask else 0.0
            )
            if ask != old_ask:
                up = ask > old_ask
                direction = np.int64(1) if up else np.int64(-1)
                word_b |= np.int64(1) << (B_ASK_UP if up else B_ASK_DOWN)
                if ints[slot, I_ASK_DIR] == -direction:
                    word_b |= np.int64(1) << B_ASK_FLIP
                    flips += 1.0
                ints[slot, I_ASK_DIR] = direction
                ints[slot, I_ASK_SINCE] = now
        ofi = bid_flow - ask_flow

        # --- adds and cancels -----------------------------------------------------------------
        bid_cancelled = 0.0
        ask_cancelled = 0.0
        adds = False
        bid_cancels = False
        ask_cancels = False
        if action in (ACTION_ADD, ACTION_CANCEL) and side in (BID, ASK):
            if action == ACTION_ADD:
                adds = True
            elif side == BID:
                bid_cancels = True
                bid_cancelled = float(size)
            else:
                ask_cancels = True
                ask_cancelled = float(size)
        elif action in (NONE, ACTION_MODIFY, ACTION_ADD, ACTION_CANCEL):
            adds = bid_flow > 0.0 or ask_flow > 0.0
            bid_cancels = bid_flow < 0.0
            ask_cancels = ask_flow < 0.0
            bid_cancelled = max(-bid_flow, 0.0)
            ask_cancelled = max(-ask_flow, 0.0)
        if adds:
            word_a |= np.int64(1) << A_ADD
        if bid_cancels:
            word_a |= np.int64(1) << A_BID_CANCEL
        if ask_cancels:
            word_a |= np.int64(1) << A_ASK_CANCEL

        # --- trades ---------------------------------------------------------------------------
        old_ref = floats[slot, F_REF]
        had_ref = ints[slot, I_HAS_REF] != 0
        book_before = ints[slot, I_BOOK_SEEN] != 0
        volume = 0.0
        signed = 0.0
        buys = 0.0
        sells = 0.0
        effective = 0.0
        size_z = 0.0
        log_size = 0.0
        roll = 0.0
        roll_pairs = 0.0
        priced = 0.0
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
            volume = float(size) if size > 0 else 1.0
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
                size_z = (log_size - floats[slot, F_LOG_SIZE]) / (sd + LOG_SIZE_SD_FLOOR)
            if has_price:
                priced = volume
                if book_before:
                    effective = 2.0 * sign * (float(price) - old_ref)
                if ints[slot, I_HAS_TRADE] != 0:
                    change = float(price) - float(ints[slot, I_TRADE])
                    if ints[slot, I_HAS_CHANGE] != 0:
                        roll = change * floats[slot, F_CHANGE]
                        roll_pairs = 1.0
                    floats[slot, F_CHANGE] = change
                    ints[slot, I_HAS_CHANGE] = 1
                ints[slot, I_TRADE] = price
                ints[slot, I_HAS_TRADE] = 1
                ints[slot, I_TRADE_SIGN] = sign

        # --- reference price and return -------------------------------------------------------
        ref = old_ref
        has_ref = had_ref
        if two_sided:
            ref = 0.5 * (float(bid) + float(ask))
            has_ref = True
            if not book_before:
                had_ref = False  # from trade prices to mids: not a move of the market
                ints[slot, I_BOOK_SEEN] = 1
            spread = float(ask) - float(bid)
            floats[slot, F_CARRIED_SPREAD] = spread
            if spread <= 0.0:
                word_a |= np.int64(1) << A_CROSSED_LOCKED
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
        spread = floats[slot, F_CARRIED_SPREAD]
        depth = float(bid_size + ask_size)
        imbalance = float(bid_size - ask_size) / depth if depth > 0.0 else 0.0

        # --- decaying windows -----------------------------------------------------------------
        if wait != last_wait:
            seconds = -SECOND * float(wait)
            decay0 = math.exp(rates[0] * seconds)
            decay1 = math.exp(rates[1] * seconds)
            decay2 = math.exp(rates[2] * seconds)
            decay3 = math.exp(rates[3] * seconds)
            last_wait = wait
        r2 = r * r
        bid_cancel = 1.0 if bid_cancels else 0.0
        ask_cancel = 1.0 if ask_cancels else 0.0
        abs_ofi = abs(ofi)
        floats[slot, F_FAST] = floats[slot, F_FAST] * decay0 + 1.0
        floats[slot, F_EW1 + E_N] = floats[slot, F_EW1 + E_N] * decay1 + 1.0
        floats[slot, F_EW1 + E_BUYS] = floats[slot, F_EW1 + E_BUYS] * decay1 + buys
        floats[slot, F_EW1 + E_SELLS] = floats[slot, F_EW1 + E_SELLS] * decay1 + sells
        floats[slot, F_EW1 + E_BID_CANCELS] = (
            floats[slot, F_EW1 + E_BID_CANCELS] * decay1 + bid_cancel
        )
        floats[slot, F_EW1 + E_ASK_CANCELS] = (
            floats[slot, F_EW1 + E_ASK_CANCELS] * decay1 + ask_cancel
        )
        floats[slot, F_EW1 + E_R] = floats[slot, F_EW1 + E_R] * decay1 + r
        floats[slot, F_EW1 + E_R2] = floats[slot, F_EW1 + E_R2] * decay1 + r2
        floats[slot, F_EW1 + E_OFI] = floats[slot, F_EW1 + E_OFI] * decay1 + ofi
        floats[slot, F_EW1 + E_ABS_OFI] = floats[slot, F_EW1 + E_ABS_OFI] * decay1 + abs_ofi
        floats[slot, F_EW2 + E_N] = floats[slot, F_EW2 + E_N] * decay2 + 1.0
        floats[slot, F_EW2 + E_BUYS] = floats[slot, F_EW2 + E_BUYS] * decay2 + buys
        floats[slot, F_EW2 + E_SELLS] = floats[slot, F_EW2 + E_SELLS] * decay2 + sells
        floats[slot, F_EW2 + E_BID_CANCELS] = (
            floats[slot, F_EW2 + E_BID_CANCELS] * decay2 + bid_cancel
        )
        floats[slot, F_EW2 + E_ASK_CANCELS] = (
            floats[slot, F_EW2 + E_ASK_CANCELS] * decay2 + ask_cancel
        )
        floats[slot, F_EW2 + E_R] = floats[slot, F_EW2 + E_R] * decay2 + r
        floats[slot, F_EW2 + E_R2] = floats[slot, F_EW2 + E_R2] * decay2 + r2
        floats[slot, F_EW2 + E_ABS_R] = floats[slot, F_EW2 + E_ABS_R] * decay2 + abs_r
        floats[slot, F_EW2 + E_VOLUME] = floats[slot, F_EW2 + E_VOLUME] * decay2 + volume
        floats[slot, F_EW2 + E_SIGNED] = floats[slot, F_EW2 + E_SIGNED] * decay2 + signed
        floats[slot, F_EW2 + E_OFI] = floats[slot, F_EW2 + E_OFI] * decay2 + ofi
        floats[slot, F_EW2 + E_ABS_OFI] = floats[slot, F_EW2 + E_ABS_OFI] * decay2 + abs_ofi
        floats[slot, F_EW2 + E_FLIPS] = floats[slot, F_EW2 + E_FLIPS] * decay2 + flips
        floats[slot, F_EW3 + G_N] = floats[slot, F_EW3 + G_N] * decay3 + 1.0
        floats[slot, F_EW3 + G_VOLUME] = floats[slot, F_EW3 + G_VOLUME] * decay3 + priced
        floats[slot, F_EW3 + G_PRICE_VOLUME] = floats[
            slot, F_EW3 + G_PRICE_VOLUME
        ] * decay3 + priced * float(price)
        floats[slot, F_EW3 + G_MOVE_SIGNED] = (
            floats[slot, F_EW3 + G_MOVE_SIGNED] * decay3 + move * signed
        )
        floats[slot, F_EW3 + G_SIGNED2] = floats[slot, F_EW3 + G_SIGNED2] * decay3 + signed * signed
        floats[slot, F_EW3 + G_ROLL] = floats[slot, F_EW3 + G_ROLL] * decay3 + roll
        floats[slot, F_EW3 + G_ROLL_PAIRS] = (
            floats[slot, F_EW3 + G_ROLL_PAIRS] * decay3 + roll_pairs
        )
        floats[slot, F_EW3 + G_R] = floats[slot, F_EW3 + G_R] * decay3 + r

        # --- the short window -----------------------------------------------------------------
        dt = SECOND * float(wait)
        waited = mean_wait if fresh else dt
        bid_q = float(bid_size)
        ask_q = float(ask_size)
        cancelled = bid_cancelled + ask_cancelled
        new_wide[W_IMBALANCE] = imbalance
        new_wide[W_IMBALANCE2] = imbalance * imbalance
        new_wide[W_BID_SIZE] = bid_q
        new_wide[W_BID_SIZE2] = bid_q * bid_q
        new_wide[W_ASK_SIZE] = ask_q
        new_wide[W_ASK_SIZE2] = ask_q * ask_q
        new_wide[W_DT] = waited
        new_wide[W_DT2] = waited * waited
        new_wide[W_REF] = ref
        new_wide[W_HIGH] = ref
        new_wide[W_LOW] = -ref
        new_wide[W_R] = r
        new_narrow[S_R2] = r2
        new_narrow[S_BIPOWER] = abs_r * floats[slot, F_ABS_R]
        new_wide[W_MOVE] = move
        new_narrow[S_ABS_MOVE] = abs(move)
        new_narrow[S_SPREAD] = spread
        new_narrow[S_OFI] = ofi
        new_narrow[S_ABS_OFI] = abs_ofi
        new_narrow[S_SIGNED] = signed
        new_narrow[S_VOLUME] = volume
        new_narrow[S_CANCELLED] = cancelled
        new_wide[W_EFFECTIVE] = effective
        new_narrow[S_SPREAD_MAX] = spread
        new_narrow[S_SPREAD_MIN] = -spread
        new_narrow[S_BID_SIZE_MAX] = bid_q
        new_narrow[S_ASK_SIZE_MAX] = ask_q
        new_narrow[S_VOLUME_MAX] = volume
        new_narrow[S_CANCELLED_MAX] = cancelled
        floats[slot, F_ABS_R] = abs_r
        at = ints[slot, I_POS]
        # A window that slides without subtracting, so that no error outlives its event: time is cut
        # into blocks of W events, and the last W are the end of the last block and the beginning
        # of this one (van Herk 1992, Gil and Werman 1993). Line 0 folds this block so far; line
        # p + 1 holds what came at position p, or its fold to the end of the last block.
        line = F_BLOCK + WIDE * (at + 1)
        line_n = NARROW * (at + 1)
        if at + 1 < short:
            for k in range(WIDE_SUMS):
                total = floats[slot, F_BLOCK + k] + new_wide[k]
                floats[slot, F_BLOCK + k] = total
                floats[slot, line + k] = new_wide[k]
                wide[k] = total + floats[slot, line + WIDE + k]
            for k in range(WIDE_SUMS, WIDE):
                best = max(floats[slot, F_BLOCK + k], new_wide[k])
                floats[slot, F_BLOCK + k] = best
                floats[slot, line + k] = new_wide[k]
                wide[k] = max(best, floats[slot, line + WIDE + k])
            for k in range(NARROW_SUMS):
                total_n = singles[slot, k] + new_narrow[k]
                singles[slot, k] = total_n
                singles[slot, line_n + k] = new_narrow[k]
                narrow[k] = total_n + singles[slot, line_n + NARROW + k]
            for k in range(NARROW_SUMS, NARROW):
                best_n = max(singles[slot, k], new_narrow[k])
                singles[slot, k] = best_n
                singles[slot, line_n + k] = new_narrow[k]
                narrow[k] = max(best_n, singles[slot, line_n + NARROW + k])
        else:
            end_block(slot, floats, singles, short, new_wide, wide, new_narrow, narrow)
        count = ints[slot, I_COUNT]
        flags_at = I_RING + 2 * at
        if count == short:
            ints[slot, I_FLAGS] -= ints[slot, flags_at]
            ints[slot, I_FLAGS + 1] -= ints[slot, flags_at + 1]
        else:
            count += 1
            ints[slot, I_COUNT] = count
        ints[slot, flags_at] = word_a
        ints[slot, flags_at + 1] = word_b
        ints[slot, I_FLAGS] += word_a
        ints[slot, I_FLAGS + 1] += word_b
        ints[slot, I_POS] = at + 1 if at + 1 < short else 0
        a = ints[slot, I_FLAGS]
        b = ints[slot, I_FLAGS + 1]
        per_event = 1.0 / count

        # --- returns and volatility -----------------------------------------------------------
        half1 = per_wait / rates[1]  # expected events in the window: half-life / ln 2 / mean wait
        half2 = per_wait / rates[2]
        values[i, RETURN_TICK] = r * per_return
        values[i, RETURN_SHORT] = wide[W_R] * per_return * math.sqrt(per_event)
        values[i, RETURN_1] = (
            floats[slot, F_EW1 + E_R] * per_return / math.sqrt(max(0.5 * half1, 1.0))
        )
        values[i, RETURN_2] = (
            floats[slot, F_EW2 + E_R] * per_return / math.sqrt(max(0.5 * half2, 1.0))
        )
        half3 = per_wait / rates[3]
        values[i, RETURN_3] = (
            floats[slot, F_EW3 + G_R] * per_return / math.sqrt(max(0.5 * half3, 1.0))
        )
        path = float(narrow[S_ABS_MOVE])
        values[i, PATH_EFFICIENCY] = abs(wide[W_MOVE]) / path if path > 0.0 else 0.0
        values[i, RANGE] = (wide[W_HIGH] + wide[W_LOW]) * per_price
        values[i, MEAN_DEVIATION] = (ref - wide[W_REF] * per_event) * per_price
        bipower = HALF_PI * float(narrow[S_BIPOWER])
        realised = float(narrow[S_R2])
        values[i, REALISED_VARIANCE_SHORT] = realised * per_event * per_variance
        values[i, REALISED_VARIANCE_1] = floats[slot, F_EW1 + E_R2] * per_variance / max(half1, 1.0)
        values[i, REALISED_VARIANCE_2] = floats[slot, F_EW2 + E_R2] * per_variance / max(half2, 1.0)
        values[i, BIPOWER_VARIANCE] = bipower * per_event * per_variance
        jumps = 1.0 - bipower / realised if realised > 0.0 else 0.0
        values[i, JUMP_RATIO] = max(jumps, 0.0)

        # --- spread and book ------------------------------------------------------------------
        values[i, QUOTED_SPREAD] = spread * per_price
        values[i, RELATIVE_SPREAD] = spread / ref * per_return if ref > 0.0 else 0.0
        values[i, SPREAD_MEAN] = float(narrow[S_SPREAD]) * per_event * per_price
        values[i, SPREAD_MIN] = -float(narrow[S_SPREAD_MIN]) * per_price
        values[i, SPREAD_MAX] = float(narrow[S_SPREAD_MAX]) * per_price
        trades = float((a >> A_TRADE) & 0xFF)
        values[i, EFFECTIVE_SPREAD] = wide[W_EFFECTIVE] * per_price / max(trades, 1.0)
        pairs = floats[slot, F_EW3 + G_ROLL_PAIRS]
        covariance = floats[slot, F_EW3 + G_ROLL] / pairs if pairs > TINY else 0.0
        values[i, ROLL_SPREAD] = 2.0 * math.sqrt(max(-covariance, 0.0)) * per_price
        values[i, CROSSED_LOCKED] = float((a >> A_CROSSED_LOCKED) & 0xFF) * per_event
        mean = wide[W_IMBALANCE] * per_event
        values[i, QUEUE_IMBALANCE] = imbalance
        values[i, QUEUE_IMBALANCE_MEAN] = mean
        variance = wide[W_IMBALANCE2] * per_event - mean * mean
        values[i, QUEUE_IMBALANCE_SD] = math.sqrt(max(variance, 0.0))
        values[i, MICROPRICE_DEVIATION] = 0.5 * spread * imbalance * per_price if two_sided else 0.0
        values[i, BID_SIZE] = float(bid_size) * per_depth
        values[i, ASK_SIZE] = float(ask_size) * per_depth
        values[i, BID_SIZE_MAX] = float(narrow[S_BID_SIZE_MAX]) * per_depth
        values[i, ASK_SIZE_MAX] = float(narrow[S_ASK_SIZE_MAX]) * per_depth
        mean = wide[W_BID_SIZE] * per_event
        variance = wide[W_BID_SIZE2] * per_event - mean * mean
        values[i, BID_SIZE_CV] = math.sqrt(max(variance, 0.0)) / mean if mean > 0.0 else 0.0
        mean = wide[W_ASK_SIZE] * per_event
        variance = wide[W_ASK_SIZE2] * per_event - mean * mean
        values[i, ASK_SIZE_CV] = math.sqrt(max(variance, 0.0)) / mean if mean > 0.0 else 0.0
        values[i, BID_AGE] = (
            SECOND * float(now - ints[slot, I_BID_SINCE]) * per_wait if has_bid else 0.0
        )
        values[i, ASK_AGE] = (
            SECOND * float(now - ints[slot, I_ASK_SINCE]) * per_wait if has_ask else 0.0
        )

        # --- order flow and trades ------------------------------------------------------------
        values[i, OFI_TICK] = ofi * per_depth
        values[i, OFI_SHORT] = float(narrow[S_OFI]) * per_depth * math.sqrt(per_event)
        values[i, ORDER_FLOW] = float(narrow[S_ABS_OFI]) * per_event * per_depth
        scale = floats[slot, F_EW1 + E_ABS_OFI] + floats[slot, F_DEPTH]
        values[i, OFI_1] = floats[slot, F_EW1 + E_OFI] / scale if scale > 0.0 else 0.0
        scale = floats[slot, F_EW2 + E_ABS_OFI] + floats[slot, F_DEPTH]
        values[i, OFI_2] = floats[slot, F_EW2 + E_OFI] / scale if scale > 0.0 else 0.0
        buys_short = float((a >> A_BUY) & 0xFF)
        sells_short = float((a >> A_SELL) & 0xFF)
        values[i, TRADE_SHARE] = trades * per_event
        values[i, TRADE_SIGN_IMBALANCE] = (buys_short - sells_short) / max(trades, 1.0)
        traded = float(narrow[S_VOLUME])
        values[i, SIGNED_VOLUME_SHORT] = float(narrow[S_SIGNED]) / traded if traded > 0.0 else 0.0
        scale = floats[slot, F_EW2 + E_VOLUME] + mean_trade
        values[i, SIGNED_VOLUME_2] = floats[slot, F_EW2 + E_SIGNED] / scale if scale > 0.0 else 0.0
        values[i, VOLUME] = traded * per_trade
        values[i, LARGEST_TRADE] = float(narrow[S_VOLUME_MAX]) * per_trade
        values[i, TRADE_SIZE_Z] = size_z
        count1 = floats[slot, F_EW1 + E_BUYS] + floats[slot, F_EW1 + E_SELLS]
        count2 = floats[slot, F_EW2 + E_BUYS] + floats[slot, F_EW2 + E_SELLS]
        values[i, TRADE_RATE_1] = contrast(count1, floats[slot, F_TRADES] * half1, 1.0)
        values[i, TRADE_RATE_2] = contrast(count2, floats[slot, F_TRADES] * half2, 1.0)
        traded = floats[slot, F_EW3 + G_VOLUME]
        values[i, VWAP_DEVIATION] = (
            (ref - floats[slot, F_EW3 + G_PRICE_VOLUME] / traded) * per_price
            if traded > TINY
            else 0.0
        )
        scale = floats[slot, F_EW3 + G_SIGNED2] + mean_trade * mean_trade
        values[i, KYLE_LAMBDA] = (
            floats[slot, F_EW3 + G_MOVE_SIGNED] / scale * mean_trade * per_price
            if scale > 0.0
            else 0.0
        )
        values[i, AMIHUD] = (
            floats[slot, F_EW2 + E_ABS_R]
            * per_return
            / (floats[slot, F_EW2 + E_VOLUME] * per_trade + 1.0)
            if per_trade > 0.0
            else 0.0
        )

        # --- arrivals -------------------------------------------------------------------------
        floor = WAIT_FLOOR * mean_wait
        if mean_wait > 0.0:
            values[i, INTER_ARRIVAL] = contrast(waited, mean_wait, floor)
            values[i, INTER_ARRIVAL_MEAN] = contrast(wide[W_DT] * per_event, mean_wait, floor)
        else:
            values[i, INTER_ARRIVAL] = 0.0
            values[i, INTER_ARRIVAL_MEAN] = 0.0
        mean = wide[W_DT] * per_event
        variance = wide[W_DT2] * per_event - mean * mean
        values[i, INTER_ARRIVAL_CV] = math.sqrt(max(variance, 0.0)) / mean if mean > 0.0 else 0.0
        n1 = floats[slot, F_EW1 + E_N]
        n2 = floats[slot, F_EW2 + E_N]
        values[i, MESSAGE_RATE_0] = contrast(floats[slot, F_FAST], per_wait / rates[0], 1.0)
        values[i, MESSAGE_RATE_1] = contrast(n1, half1, 1.0)
        values[i, MESSAGE_RATE_2] = contrast(n2, half2, 1.0)
        values[i, BURST_RATIO] = contrast(
            n1, floats[slot, F_EW3 + G_N] * (rates[3] / rates[1]), 1.0
        )

        # --- cancels, changes, flips ----------------------------------------------------------
        bid_c = float((a >> A_BID_CANCEL) & 0xFF)
        ask_c = float((a >> A_ASK_CANCEL) & 0xFF)
        values[i, ADD_SHARE] = float((a >> A_ADD) & 0xFF) * per_event
        values[i, BID_CANCEL_SHARE] = bid_c * per_event
        values[i, ASK_CANCEL_SHARE] = ask_c * per_event
        values[i, CANCEL_TO_TRADE] = contrast(bid_c + ask_c, trades, 1.0)
        count1 = floats[slot, F_EW1 + E_BID_CANCELS] + floats[slot, F_EW1 + E_ASK_CANCELS]
        count2 = floats[slot, F_EW2 + E_BID_CANCELS] + floats[slot, F_EW2 + E_ASK_CANCELS]
        values[i, CANCEL_RATE_1] = contrast(count1, floats[slot, F_CANCELS] * half1, 1.0)
        values[i, CANCEL_RATE_2] = contrast(count2, floats[slot, F_CANCELS] * half2, 1.0)
        values[i, CANCEL_IMBALANCE] = (bid_c - ask_c) / max(bid_c + ask_c, 1.0)
        values[i, CANCELLED_VOLUME] = float(narrow[S_CANCELLED]) * per_depth
        values[i, LARGEST_CANCEL] = float(narrow[S_CANCELLED_MAX]) * per_depth
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
        values[i, FLIP_SHARE] = floats[slot, F_EW2 + E_FLIPS] / n2

        # --- feed latency ---------------------------------------------------------------------
        received = words[i, 4]
        values[i, FEED_LATENCY] = 0.0
        if received > 0:
            latency = SECOND * float(max(received - ts, 0))
            values[i, FEED_LATENCY] = latency * inverse(floats[slot, F_LATENCY])
            known = min(floats[slot, F_LATENCY + 1] + 1.0, most)
            floats[slot, F_LATENCY + 1] = known
            floats[slot, F_LATENCY] = observed(floats[slot, F_LATENCY], latency, known)

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
        known = min(floats[slot, F_TRADES + 1] + 1.0, most)
        floats[slot, F_TRADES + 1] = known
        floats[slot, F_TRADES] += ((1.0 if is_trade else 0.0) - floats[slot, F_TRADES]) / known
        known = min(floats[slot, F_CANCELS + 1] + 1.0, most)
        floats[slot, F_CANCELS + 1] = known
        floats[slot, F_CANCELS] += (bid_cancel + ask_cancel - floats[slot, F_CANCELS]) / known
        if is_trade:
            known = min(floats[slot, F_TRADE + 1] + 1.0, most)
            floats[slot, F_TRADE + 1] = known
            floats[slot, F_TRADE] = observed(floats[slot, F_TRADE], volume, known)
            deviation = log_size - floats[slot, F_LOG_SIZE]
            fade = 1.0 / known
            floats[slot, F_LOG_SIZE] += fade * deviation
            floats[slot, F_LOG_SIZE + 1] = (1.0 - fade) * (
                floats[slot, F_LOG_SIZE + 1] + fade * deviation * deviation
            )
    compress(values, TICK_HEAVY)


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
