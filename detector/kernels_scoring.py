"""Pure Numba part of scoring: z-scores, autoencoders, tails and the score, tile by tile.

Rows are scored in tiles of `LANES`. Within a tile the rows lie side by side, one vector lane each,
and every step does the same to all of them: no sum runs across lanes. That is why a row's score
depends on nothing around it, to the bit, neither its place nor the tile's padding nor the width of
the machine's vectors. A tile's activations stay in the first-level cache from the features to the
errors. Numpy arrays in, numpy arrays out; knows no artifact, no scorer, no TensorFlow.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

EMPTY: Final = np.int32(-1)
"""Row of a free place in the key table."""

LANES: Final = 128
"""Rows of a tile: a whole number of any machine's vectors."""

UNIT: Final = 4
"""Layers are padded with zeros to a whole number of this many units, see `dense`."""

STRIP: Final = 16
"""Lanes that `dense` takes at once: with `UNIT` units, as many sums as AVX2 keeps under way."""

GROUPS: Final = 2
"""Groups of features whose tails are summed apart, at most."""

FARTHEST: Final = 1e12
"""Standard deviations from the mean that are told apart: single precision holds their products."""

LEAST_ERROR: Final = 1e-9
"""Added to an error before its logarithm is taken: a perfect reconstruction has one, too."""

# tanh(x) = x p(x^2) / q(x^2) for |x| up to where it is 1 in single precision: the minimax fit of
# Eigen (MathFunctionsImpl.h, ptanh_float). Largest error here 3e-7, measured against float64.
TANH_END: Final = np.float32(7.90531110763549805)
P0: Final = np.float32(4.89352455891786e-03)
P1: Final = np.float32(6.37261928875436e-04)
P2: Final = np.float32(1.48572235717979e-05)
P3: Final = np.float32(5.12229709037114e-08)
P4: Final = np.float32(-8.60467152213735e-11)
P5: Final = np.float32(2.00018790482477e-13)
P6: Final = np.float32(-2.76076847742355e-16)
Q0: Final = np.float32(4.89352518554385e-03)
Q1: Final = np.float32(2.26843463243900e-03)
Q2: Final = np.float32(1.18534705686654e-04)
Q3: Final = np.float32(1.19825839466702e-06)

Float32s = npt.NDArray[np.float32]
ORDINARY: Final = 2
"""Knot up to which nineteen training rows in twenty lie, see `rarity`."""

FUSED: Final = {"contract"}  # multiply-adds round once; nothing else may be rearranged


@njit(cache=True, nogil=True)
def _home(key: np.int64, mask: np.int64) -> np.int64:
    """First place of a key in a table of `mask + 1` places.

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014): keys differ in a few bits in the middle
    only (publisher, instrument), and every bit must reach the low ones that choose the place.
    """
    h = np.uint64(key)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.int64((h ^ (h >> np.uint64(31))) & np.uint64(mask))


@njit(cache=True, nogil=True)
def _row_of(
    key: np.int64, table_keys: npt.NDArray[np.int64], table_rows: npt.NDArray[np.int32]
) -> np.int32:
    """Row of an instrument, or 0 (pooled) for one the model was not trained on."""
    mask = np.int64(len(table_keys) - 1)
    place = _home(key, mask)
    while table_rows[place] != EMPTY:
        if table_keys[place] == key:
            return np.int32(table_rows[place])
        place = (place + 1) & mask
    return np.int32(0)


@njit(cache=True, nogil=True)
def fill_table(
    keys: npt.NDArray[np.int64],
    table_keys: npt.NDArray[np.int64],
    table_rows: npt.NDArray[np.int32],
) -> None:
    """Enter `keys[i]` with row `i + 1` into an empty open-addressing table.

    The table's length is a power of two above `len(keys)`; linear probing ends at a free place.
    """
    mask = np.int64(len(table_keys) - 1)
    for i in range(len(keys)):
        place = _home(keys[i], mask)
        while table_rows[place] != EMPTY:
            place = (place + 1) & mask
        table_keys[place] = keys[i]
        table_rows[place] = np.int32(i + 1)


@njit(cache=True, nogil=True)
def normalise(
    values: npt.NDArray[np.floating],
    keys: npt.NDArray[np.int64],
    ready: npt.NDArray[np.bool_],
    table_keys: npt.NDArray[np.int64],
    table_rows: npt.NDArray[np.int32],
    centre: npt.NDArray[np.float64],
    inverse_scale: npt.NDArray[np.float64],
    out: Float32s,
    rows: npt.NDArray[np.int32],
) -> None:
    """Look up each row's instrument and take z-scores.

    Writes, for each of the `n` rows of `values` `(n, F)`:

    - `rows`: the instrument's row in `centre` and `inverse_scale` `(R, F)`, 0 where unknown;
    - `out`: the z-scores, at most `FARTHEST` from 0, into the first F columns of `(m, >= F)`,
      `m >= n`. Rows that are not `ready` get zeros.
    """
    n, features = values.shape
    known, row = np.int64(0), np.int32(-1)
    for i in range(n):
        if keys[i] != known or row < 0:  # ticks of one instrument come in runs
            known = keys[i]
            row = _row_of(known, table_keys, table_rows)
        rows[i] = row
        if not ready[i]:
            out[i] = np.float32(0.0)
            continue
        x, to, mid, inverse = values[i], out[i], centre[row], inverse_scale[row]
        for j in range(features):
            # In float64: a feature with a large offset and a small spread would lose its z-score to
            # cancellation in float32.
            z = (np.float64(x[j]) - mid[j]) * inverse[j]
            to[j] = np.float32(min(max(z, -FARTHEST), FARTHEST))


@njit(cache=True, nogil=True, fastmath=FUSED, error_model="numpy")
def hyperbolic_tangent(values: Float32s) -> None:
    """Replace every x of `(units, LANES)` by tanh(x)."""
    for j in range(values.shape[0]):
        row = values[j]
        for lane in range(LANES):
            x = row[lane]
            x = TANH_END if x > TANH_END else x
            x = -TANH_END if x < -TANH_END else x
            s = x * x
            p = ((((((P6 * s + P5) * s + P4) * s + P3) * s + P2) * s + P1) * s + P0) * x
            q = ((Q3 * s + Q2) * s + Q1) * s + Q0
            row[lane] = p / q


def _multiply_strip(
    typing_context: Any,  # noqa: ANN401, ARG001
    layer: Any,  # noqa: ANN401
    x: Any,  # noqa: ANN401
    out: Any,  # noqa: ANN401
    unit: Any,  # noqa: ANN401, ARG001
    lane: Any,  # noqa: ANN401, ARG001
) -> Any:  # noqa: ANN401
    """Compute `UNIT` units of `dense` for `STRIP` lanes from `unit`, `lane` on; checks no bounds.

    Written as vector instructions, because LLVM finds no way of its own to keep the sums in
    registers over the whole loop: half the time of what it makes of the same loops in Python.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        tools: Any = cgutils  # untyped
        single, number = tools.ir.FloatType(), tools.intp_t
        strip = tools.ir.VectorType(single, STRIP)
        fma = tools.get_or_insert_function(
            builder.module, tools.ir.FunctionType(strip, [strip] * 3), f"llvm.fmuladd.v{STRIP}f32"
        )
        kinds = signature.args[:3]
        arrays = [
            context.make_array(kind)(context, builder, argument)
            for kind, argument in zip(kinds, arguments, strict=False)
        ]
        unit, lane = arguments[3:]

        def at(array: int, row: Any, column: Any) -> Any:  # noqa: ANN401
            return tools.get_item_pointer(
                context, builder, kinds[array], arrays[array], [row, column], wraparound=False
            )

        def spread(pointer: Any) -> Any:  # noqa: ANN401
            first = builder.insert_element(
                tools.ir.Constant(strip, tools.ir.Undefined), builder.load(pointer),
                tools.int32_t(0),
            )  # fmt: skip
            everywhere = tools.ir.Constant(
                tools.ir.VectorType(tools.int32_t, STRIP), [tools.int32_t(0)] * STRIP
            )
            return builder.shuffle_vector(first, first, everywhere)

        units = [builder.add(unit, number(u)) for u in range(UNIT)]
        sums = [tools.alloca_once(builder, strip) for _ in units]
        for each, total in zip(units, sums, strict=True):
            builder.store(spread(at(0, each, number(0))), total)
        inputs = tools.unpack_tuple(builder, arrays[1].shape)[0]
        with tools.for_range(builder, inputs) as loop:
            place = builder.bitcast(at(1, loop.index, lane), strip.as_pointer())
            inflow = builder.load(place, align=4)
            following = builder.add(loop.index, number(1))
            for each, total in zip(units, sums, strict=True):
                weight = spread(at(0, each, following))
                builder.store(builder.call(fma, [weight, inflow, builder.load(total)]), total)
        for each, total in zip(units, sums, strict=True):
            place = builder.bitcast(at(2, each, lane), strip.as_pointer())
            builder.store(builder.load(total), place, align=4)
        return context.get_dummy_value()

    return types.void(layer, x, out, types.intp, types.intp), generate


multiply_strip: Any = intrinsic(_multiply_strip)


@njit(cache=True, nogil=True, error_model="numpy")
def dense(layer: Float32s, x: Float32s, out: Float32s, lanes: int) -> None:
    """One layer for a tile: `out[j] = bias[j] + sum over k of weight[j, k] x[k]`, k ascending.

    Of the lanes only the first `lanes`, and those that share a strip with them, are computed.

    Parameters
    ----------
    layer : (J, 1 + K) float32
        The bias, then the weights, of each unit; J a multiple of `UNIT`.
    x : (K, LANES) float32
    out : (J, LANES) float32
    """
    for unit in range(0, layer.shape[0], UNIT):
        for lane in range(0, lanes, STRIP):
            multiply_strip(layer, x, out, unit, lane)


@njit(cache=True, nogil=True, fastmath=FUSED, error_model="numpy")
def add_squares(
    x: Float32s, rebuilt: Float32s, first: int, cap: float, error: Float32s, total: Float32s
) -> None:
    """Compare a few rebuilt features with the network's input.

    Turns `rebuilt` `(UNIT, LANES)`, features `first` on, into residuals, adds them to those rows of
    `total` `(F, LANES)`, and their squares, none more than `cap`, to `error` `(LANES,)`.
    """
    most = np.float32(cap)
    for u in range(min(UNIT, total.shape[0] - first)):
        theirs, mine, into = x[first + u], rebuilt[u], total[first + u]
        for lane in range(LANES):
            residual = mine[lane] - theirs[lane]
            mine[lane] = residual
            into[lane] += residual
            square = residual * residual
            error[lane] += square if square < most else most


@njit(cache=True, nogil=True, fastmath=FUSED, error_model="numpy")
def add_differences(x: Float32s, rebuilt: Float32s, units: int, error: Float32s) -> None:
    """Add the squares of `rebuilt - x` over the first `units` rows to `error` `(LANES,)`."""
    for j in range(units):
        mine, theirs = rebuilt[j], x[j]
        for lane in range(LANES):
            residual = mine[lane] - theirs[lane]
            error[lane] += residual * residual


def _multiply_factors(
    typing_context: Any,  # noqa: ANN401, ARG001
    z: Any,  # noqa: ANN401
    residual: Any,  # noqa: ANN401
    shared: Any,  # noqa: ANN401
    table: Any,  # noqa: ANN401
    products: Any,  # noqa: ANN401
    clip: Any,  # noqa: ANN401, ARG001
    lane: Any,  # noqa: ANN401, ARG001
    row: Any,  # noqa: ANN401, ARG001
) -> Any:  # noqa: ANN401
    """Write the products of a row's tail factors, `STRIP` of them for each group; see `factor`.

    Vector instructions again: LLVM makes few of the same loop in Python, at five times the cost.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ANN401
        tools: Any = cgutils  # untyped
        strip, number = tools.ir.VectorType(tools.ir.FloatType(), STRIP), tools.intp_t
        kinds = signature.args[:5]
        arrays = [
            context.make_array(kind)(context, builder, argument)
            for kind, argument in zip(kinds, arguments, strict=False)
        ]
        clip, lane, row = arguments[5:]

        def place(array: int, *indices: Any) -> Any:  # noqa: ANN401
            pointer = tools.get_item_pointer(
                context, builder, kinds[array], arrays[array], indices, wraparound=False
            )
            return builder.bitcast(pointer, strip.as_pointer())

        def spread(value: Any) -> Any:  # noqa: ANN401
            empty = tools.ir.Constant(strip, tools.ir.Undefined)
            first = builder.insert_element(empty, value, tools.int32_t(0))
            to = tools.ir.VectorType(tools.int32_t, STRIP)
            everywhere = tools.ir.Constant(to, [tools.int32_t(0)] * STRIP)
            return builder.shuffle_vector(first, first, everywhere)

        def larger(a: Any, b: Any) -> Any:  # noqa: ANN401
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        def smaller(a: Any, b: Any) -> Any:  # noqa: ANN401
            return builder.select(builder.fcmp_ordered("<", a, b), a, b)

        zero, one = (tools.ir.Constant(strip, [each] * STRIP) for each in (0.0, 1.0))
        high, low = spread(clip), spread(builder.fneg(clip))
        totals = [tools.alloca_once(builder, strip) for _ in range(GROUPS)]
        for total in totals:
            builder.store(one, total)
        width = tools.unpack_tuple(builder, arrays[2].shape)[1]
        with tools.for_range(builder, builder.udiv(width, number(STRIP))) as loop:
            j = builder.mul(loop.index, number(STRIP))

            def column(array: int, *indices: Any) -> Any:  # noqa: ANN401
                return builder.load(place(array, *indices, j), align=4)

            def beyond(value: Any, first: int) -> Any:  # noqa: ANN401
                above, wide, below, deep = (column(3, row, number(first + i)) for i in range(4))
                up = builder.fmul(builder.fsub(value, above), wide)
                down = builder.fmul(builder.fsub(below, value), deep)
                return larger(larger(up, down), zero)

            value = column(0, lane)
            kept = larger(smaller(value, high), low)
            hidden = builder.fmul(builder.fsub(kept, value), column(2, number(0)))
            u = builder.fadd(column(1, lane), hidden)
            decades = builder.fadd(beyond(value, 0), beyond(u, 4))
            for group, total in enumerate(totals):
                mine = builder.fmul(decades, column(2, number(1 + group)))
                factor = builder.fadd(mine, one)
                builder.store(builder.fmul(builder.load(total), factor), total)
        for group, total in enumerate(totals):
            builder.store(builder.load(total), place(4, number(group), number(0)), align=4)
        return context.get_dummy_value()

    numbers = types.float32, types.intp, types.intp
    return types.void(z, residual, shared, table, products, *numbers), generate


multiply_factors: Any = intrinsic(_multiply_factors)


@njit(cache=True, nogil=True, error_model="numpy")
def tail_decades(
    z: Float32s,
    residual: Float32s,
    shared: Float32s,
    table: Float32s,
    clip: np.float32,
    lane: int,
    row: int,
    products: Float32s,
    share: float,
) -> float:
    """How far out one row lies by the training quantiles of its features and residuals.

    The sum over groups g of `sqrt(sum over j in g of ln(1 + d(z_j) + d(u_j)))`, times `share`; u_j
    is the residual of the z-score itself, not of the clipped one, and d(v) how many tail decades v
    lies beyond the quantile where the tail starts, on either side.

    Parameters
    ----------
    z, residual : (LANES, P) float32
        z-scores, and the members' mean residual of the clipped ones, of a tile; P is F, rounded up
        to a whole number of `STRIP`s.
    shared : (1 + GROUPS, P) float32
        What turns z-scores into residuals' units; 1 for the features of each group, else 0.
    table : (R, 8, P) float32
        For each row of the normaliser, of z and then of u: where the upper tail starts, the inverse
        of its decade, where the lower tail starts, the inverse of its decade.
    clip
        Where z-scores were cut off for the networks.
    lane, row
        Which row of the tile, and which of the table.
    products : (GROUPS, STRIP) float32
        Room.
    share
        One over the square root of the number of groups that have features.
    """
    # One logarithm a group instead of one a feature.
    multiply_factors(z, residual, shared, table, products, clip, lane, row)
    total = 0.0
    for group in range(GROUPS):
        a, b, c, d = 1.0, 1.0, 1.0, 1.0
        for s in range(0, STRIP, 4):  # four at once: one would wait for each multiplication
            a *= products[group, s]
            b *= products[group, s + 1]
            c *= products[group, s + 2]
            d *= products[group, s + 3]
        product = (a * b) * (c * d)
        if product < 1e300:
            total += math.sqrt(math.log(product))
            continue
        logs = 0.0  # overflow, here or in single precision: the sum is the same, slower
        for j in range(z.shape[1]):
            logs += math.log(factor(z, residual, shared, table, clip, lane, row, group, j))
        total += math.sqrt(logs)
    return float(total * share)


@njit(cache=True, nogil=True, error_model="numpy")
def factor(
    z: Float32s,
    residual: Float32s,
    shared: Float32s,
    table: Float32s,
    clip: np.float32,
    lane: int,
    row: int,
    group: int,
    j: int,
) -> float:
    """One feature's tail factor, `1 + d(z) + d(u)`; 1 where it belongs to another group."""
    value, own = z[lane, j], table[row]
    kept = max(min(value, clip), -clip)
    u = residual[lane, j] + (kept - value) * shared[0, j]
    beyond = max((value - own[0, j]) * own[1, j], (own[2, j] - value) * own[3, j], np.float32(0))
    beyond += max((u - own[4, j]) * own[5, j], (own[6, j] - u) * own[7, j], np.float32(0))
    return float(1.0 + np.float64(beyond) * shared[1 + group, j])


@njit(cache=True, nogil=True, fastmath=FUSED, error_model="numpy")
def add_capped(residual: Float32s, units: int, cap: float, error: Float32s) -> None:
    """Add the squares of the first `units` rows, none more than `cap`, to `error` `(LANES,)`."""
    most = np.float32(cap)
    for j in range(units):
        mine = residual[j]
        for lane in range(LANES):
            square = mine[lane] * mine[lane]
            error[lane] += square if square < most else most


@njit(cache=True, nogil=True, error_model="numpy")
def combine(
    stage1: npt.NDArray[np.float64],
    stage2: npt.NDArray[np.float64],
    tail: npt.NDArray[np.float64],
    facts: tuple[float, float, float, float, float, float, float],
    raw: npt.NDArray[np.float64],
) -> None:
    """Weigh `(n,)` errors and tail decades, see `model.Combination`; NaN stays NaN.

    A loop of the compiler's own logarithm: what a library takes for many numbers at once may differ
    in the last bit from what it takes for the last few.
    """
    centre1, gain1, centre2, gain2, weight1, weight2, weight_tail = facts
    for i in range(len(raw)):
        found = weight_tail * tail[i]
        if weight1 > 0.0:
            found += weight1 * (math.log(stage1[i] + LEAST_ERROR) - centre1) * gain1
        if weight2 > 0.0:
            found += weight2 * (math.log(stage2[i] + LEAST_ERROR) - centre2) * gain2
        raw[i] = found


@njit(cache=True, nogil=True, error_model="numpy")
def rarity(value: float, knots: npt.NDArray[np.float64], step: float) -> float:
    """Decades of rarity of one value: 3 where one training row in a thousand was as high.

    Parameters
    ----------
    value
        Not NaN.
    knots : (2, KNOTS) float64
        Values, ascending, and their decades. Linear between them.
    step
        What one decade beyond the last knot takes. From 6 decades on they count ever less (by their
        logarithm): nothing in the training says how rare such a value is, but a higher one must
        still be higher. Below the first knot likewise.
    """
    at, decades = knots[0], knots[1]
    if value <= at[0]:
        return float(decades[0] - math.log1p((at[0] - value) / step))
    last = len(at) - 1
    found = decades[last] + (value - at[last]) / step
    for i in range(1, last + 1):
        if value <= at[i]:
            part = (value - at[i - 1]) / (at[i] - at[i - 1])
            found = decades[i - 1] + part * (decades[i] - decades[i - 1])
            break
    return float(found if found <= 6.0 else 6.0 + 2.0 * math.log1p((found - 6.0) / 2.0))


@njit(cache=True, nogil=True, error_model="numpy")
def rarities(
    values: npt.NDArray[np.float64], knots: npt.NDArray[np.float64], step: float
) -> npt.NDArray[np.float64]:
    """`(n,)` float64: `rarity` of each of `(n,)` values."""
    found = np.empty(len(values))
    for i in range(len(values)):
        found[i] = rarity(values[i], knots, step)
    return found


@njit(cache=True, nogil=True, error_model="numpy")
def alone_decades(
    values: npt.NDArray[np.floating],
    rows: npt.NDArray[np.int32],
    ready: npt.NDArray[np.bool_],
    columns: npt.NDArray[np.int64],
    knots: npt.NDArray[np.float64],
    steps: npt.NDArray[np.float64],
    gate: float,
    alone: npt.NDArray[np.float64],
) -> None:
    """How rare the rarest of a few features is, each judged by itself, upward.

    Parameters
    ----------
    values, ready : (n, F), (n,)
        Features, finite where ready.
    rows : (n,) int32
        Table rows.
    columns : (K,) int64
        Which features.
    knots, steps : (R, K + 2, 2, KNOTS), (R, K + 2) float64
        As in `rarity`: of the raw score (not used here), of the greatest rarity of the K features,
        and of each of them.
    gate
        Decades up to which the rarest feature is not worth a mention.
    alone : (n,) float64, out
        Rarity of the greatest rarity; 0 up to the gate, NaN where not ready.
    """
    for i in range(len(alone)):
        if not ready[i]:
            alone[i] = np.nan
            continue
        row, most = rows[i], 0.0
        for k in range(len(columns)):
            value = np.float64(values[i, columns[k]])
            if value > knots[row, k + 2, 0, ORDINARY]:  # else among the ordinary nineteen in twenty
                most = max(most, rarity(value, knots[row, k + 2], steps[row, k + 2]))
        found = rarity(most, knots[row, 1], steps[row, 1]) if most > 0.0 else 0.0
        alone[i] = found if found > gate else 0.0


@njit(cache=True, nogil=True, error_model="numpy")
def score_decades(
    raw: npt.NDArray[np.float64],
    alone: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int32],
    knots: npt.NDArray[np.float64],
    steps: npt.NDArray[np.float64],
    scale: float,
    score: npt.NDArray[np.float64],
) -> None:
    """Scores `10^(D / scale)`, D the greater of the rarity of `raw` and of `alone`, `(n,)` each."""
    for i in range(len(score)):
        if math.isnan(raw[i]):
            score[i] = np.nan
            continue
        found = rarity(raw[i], knots[rows[i], 0], steps[rows[i], 0])
        # alone is 0 where it says nothing: rarities below 0 stay apart
        found = max(found, alone[i]) if alone[i] > 0.0 else found
        score[i] = 10.0 ** (found / scale)


@njit(cache=True, nogil=True, error_model="numpy")
def score_rows(
    values: npt.NDArray[np.floating],
    keys: npt.NDArray[np.int64],
    ready: npt.NDArray[np.bool_],
    table_keys: npt.NDArray[np.int64],
    table_rows: npt.NDArray[np.int32],
    centre: npt.NDArray[np.float64],
    inverse_scale: npt.NDArray[np.float64],
    clip: float,
    cap: float,
    layers: tuple[Float32s, Float32s, Float32s, Float32s, Float32s, Float32s, Float32s],
    shared: Float32s,
    tails: Float32s,
    share: float,
    errors: npt.NDArray[np.float64],
    tail: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int32],
    latent: Float32s,
    normal: Float32s,
    residual: Float32s,
) -> None:
    """Reconstruction errors of both stages and tail decades for `(n, F)` values.

    Parameters
    ----------
    values, keys, ready, table_keys, table_rows, centre, inverse_scale
        As in `normalise`.
    clip
        z-scores are cut off at plus and minus this before stage 1.
    cap
        Most that one squared residual of stage 1 counts.
    layers
        Seven layers as in `dense`, the arrays of `network.Folded`, padded. Stage 1's hidden layer,
        of all members one after the other. Then with one layer a member: stage 1's latent, decoder
        and output, stage 2's encoder and decoder, and what whitens stage 1's residuals (no member:
        they stay as they are).
    shared, tails, share
        As in `tail_decades`.
    errors : (2, n) float64, out
        Stages 1 and 2, means over the members; NaN where not ready.
    tail : (n,) float64, out
        See `tail_decades`; NaN where not ready.
    rows : out
        As in `normalise`.
    latent : (n, M L) or (0, 0) float32, out
        The members' latents in units of stage 2's residuals, where wanted.
    normal, residual : (n, F) or (0, 0) float32, out
        z-scores, and the members' mean residual of the clipped ones in training standard
        deviations, where wanted.
    """
    n, features = values.shape
    first, second, third, fourth, fifth, sixth, white = layers
    members, hidden_units = second.shape[0], second.shape[2] - 1
    latent_units, narrow_units = third.shape[2] - 1, sixth.shape[2] - 1
    whitened = white.shape[0] > 0
    width = shared.shape[1]
    gain = shared[0]
    tile = np.zeros((LANES, width), np.float32)
    back = np.zeros((LANES, width), np.float32)
    x = np.zeros((features, LANES), np.float32)
    hidden = np.zeros((first.shape[0], LANES), np.float32)
    code = np.zeros((members, second.shape[1], LANES), np.float32)
    decoded = np.zeros((third.shape[1], LANES), np.float32)
    decoders = np.zeros((members, hidden_units, LANES), np.float32)
    rebuilt = np.zeros((UNIT, LANES), np.float32)
    apart = np.zeros((members if whitened else 0, features, LANES), np.float32)
    sphere = np.zeros((white.shape[1], LANES), np.float32)
    total = np.zeros((features, LANES), np.float32)
    narrow = np.zeros((fifth.shape[1], LANES), np.float32)
    again = np.zeros((sixth.shape[1], LANES), np.float32)
    products = np.ones((GROUPS, STRIP), np.float32)
    error1 = np.empty(LANES, np.float32)
    error2 = np.empty(LANES, np.float32)
    low, high = np.float32(-clip), np.float32(clip)
    share1 = np.float32(1.0) / np.float32(members * features)
    share2 = np.float32(1.0) / np.float32(members * latent_units)
    share_of = np.float32(1.0) / np.float32(members)
    for start in range(0, n, LANES):
        stop = min(start + LANES, n)
        count = stop - start
        normalise(
            values[start:stop], keys[start:stop], ready[start:stop], table_keys, table_rows,
            centre, inverse_scale, tile, rows[start:stop],
        )  # fmt: skip
        for j in range(features):  # lanes from `count` on hold an earlier tile's rows: harmless
            for lane in range(LANES):
                z = tile[lane, j]
                z = high if z > high else z
                x[j, lane] = (low if z < low else z) * gain[j]
        dense(first, x, hidden, count)
        hyperbolic_tangent(hidden)
        error1[:] = np.float32(0.0)
        error2[:] = np.float32(0.0)
        total[:] = np.float32(0.0)
        for m in range(members):
            dense(second[m], hidden[m * hidden_units : (m + 1) * hidden_units], code[m], count)
            mine = code[m, :latent_units]
            dense(third[m], mine, decoded, count)
            decoders[m] = decoded[:hidden_units]
            dense(fifth[m], mine, narrow, count)
            dense(sixth[m], narrow[:narrow_units], again, count)
            add_differences(mine, again, latent_units, error2)
        for m in range(members):
            hyperbolic_tangent(decoders[m])
        for j in range(0, features, UNIT):  # few enough rows of every member stay in the cache
            for m in range(members):
                dense(fourth[m, j : j + UNIT], decoders[m], rebuilt, count)
                add_squares(x, rebuilt, j, cap, error1, total)
                if whitened:
                    for u in range(min(UNIT, features - j)):
                        apart[m, j + u] = rebuilt[u]
        if whitened:
            error1[:] = np.float32(0.0)
            for m in range(members):
                dense(white[m], apart[m], sphere, count)
                add_capped(sphere, features, cap, error1)
        for j in range(features):
            for lane in range(LANES):
                back[lane, j] = total[j, lane] * share_of
        for lane in range(count):
            i = start + lane
            if ready[i]:
                errors[0, i] = error1[lane] * share1
                errors[1, i] = error2[lane] * share2
                tail[i] = tail_decades(
                    tile, back, shared, tails, high, lane, rows[i], products, share
                )
            else:
                errors[:, i] = np.nan
                tail[i] = np.nan
        for lane in range(min(count, latent.shape[0])):
            for m in range(members):
                for j in range(latent_units):
                    latent[start + lane, m * latent_units + j] = code[m, j, lane]
        for lane in range(min(count, normal.shape[0])):
            normal[start + lane] = tile[lane, :features]
            residual[start + lane] = back[lane, :features]
