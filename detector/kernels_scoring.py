"""Pure Numba part of scoring: instrument lookup, z-scores, and both autoencoders, tile by tile.

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
    gain: npt.NDArray[np.float32],
    shift: npt.NDArray[np.float32],
    clip: float,
    out: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int32],
    excess: npt.NDArray[np.float64],
) -> None:
    """Look up each row's instrument, take z-scores, clip them, and measure what was clipped.

    Writes, for each of the `n` rows of `values` `(n, F)`:

    - `rows`: the instrument's row in `centre` and `inverse_scale` `(R, F)`, 0 where unknown;
    - `out`: `clip(z, -clip, clip) * gain + shift`, the network's input (`(m, F)`, `m >= n`; rows
      from `n` on are left alone);
    - `excess`: the mean over features of `log(1 + max(|z| - clip, 0))`.

    Rows that are not `ready` get zeros and NaN excess.
    """
    n, features = values.shape
    beyond = np.ones((features + 3) // 4 * 4, np.float64)  # 1 + how far beyond the clip
    known, row = np.int64(0), np.int32(-1)
    for i in range(n):
        if keys[i] != known or row < 0:  # ticks of one instrument come in runs
            known = keys[i]
            row = _row_of(known, table_keys, table_rows)
        rows[i] = row
        if not ready[i]:
            out[i] = np.float32(0.0)
            excess[i] = np.nan
            continue
        x, to, mid, inverse = values[i], out[i], centre[row], inverse_scale[row]
        clipped = 0
        for j in range(features):
            # In float64: a feature with a large offset and a small spread would lose its z-score to
            # cancellation in float32.
            z = (np.float64(x[j]) - mid[j]) * inverse[j]
            kept = min(max(z, -clip), clip)
            beyond[j] = 1.0 + abs(z - kept)
            clipped += z != kept
            to[j] = np.float32(kept) * gain[j] + shift[j]
        excess[i] = _log_product(beyond) / features if clipped > 0 else 0.0


@njit(cache=True, nogil=True)
def _log_product(factors: npt.NDArray[np.float64]) -> float:
    """Logarithm of the product of `(4k,)` factors of at least 1.

    One logarithm instead of one per factor, and four running products instead of one, which would
    wait for each multiplication: 5 times faster where most features are clipped.
    """
    a, b, c, d = 1.0, 1.0, 1.0, 1.0
    for j in range(0, len(factors), 4):
        a *= factors[j]
        b *= factors[j + 1]
        c *= factors[j + 2]
        d *= factors[j + 3]
    product = (a * b) * (c * d)
    if product < 1e300:
        return math.log(product)
    total = 0.0  # overflow: the sum is the same, slower
    for j in range(len(factors)):
        total += math.log(factors[j])
    return total


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
def subtract_and_square(x: Float32s, rebuilt: Float32s, units: int, error: Float32s) -> None:
    """Turn `rebuilt` into residuals, and write the mean of the squares of the first `units`."""
    error[:] = np.float32(0.0)
    for j in range(units):
        mine, theirs = rebuilt[j], x[j]
        for lane in range(LANES):
            residual = mine[lane] - theirs[lane]
            mine[lane] = residual
            error[lane] += residual * residual
    share = np.float32(1.0) / np.float32(units)
    for lane in range(LANES):
        error[lane] *= share


@njit(cache=True, nogil=True, error_model="numpy")
def score_rows(
    values: npt.NDArray[np.floating],
    keys: npt.NDArray[np.int64],
    ready: npt.NDArray[np.bool_],
    table_keys: npt.NDArray[np.int64],
    table_rows: npt.NDArray[np.int32],
    centre: npt.NDArray[np.float64],
    inverse_scale: npt.NDArray[np.float64],
    gain: Float32s,
    shift: Float32s,
    clip: float,
    layers: tuple[Float32s, Float32s, Float32s, Float32s, Float32s, Float32s],
    latent_units: int,
    errors: npt.NDArray[np.float64],
    excess: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int32],
    latent: Float32s,
    residual: Float32s,
) -> None:
    """Reconstruction errors of both stages for `(n, F)` values.

    Parameters
    ----------
    values, keys, ready, table_keys, table_rows, centre, inverse_scale, gain, shift, clip
        As in `normalise`.
    layers
        Six layers as in `dense`: stage 1's hidden, latent, decoder and output, stage 2's encoder
        and decoder; the arrays of `network.Folded`, padded.
    latent_units
        Stage 1's latent units, L.
    errors : (2, n) float64, out
        Stages 1 and 2; NaN where not ready.
    excess, rows : out
        As in `normalise`.
    latent : (n, L) or (0, 0) float32, out
        The latent in units of stage 2's residuals, where wanted.
    residual : (n, F) or (0, 0) float32, out
        Stage 1's residuals in training standard deviations, where wanted.
    """
    n, features = values.shape
    first, second, third, fourth, fifth, sixth = layers
    tile = np.zeros((LANES, features), np.float32)
    x = np.zeros((first.shape[1] - 1, LANES), np.float32)
    hidden = np.zeros((first.shape[0], LANES), np.float32)
    code = np.zeros((second.shape[0], LANES), np.float32)
    decoded = np.zeros((third.shape[0], LANES), np.float32)
    rebuilt = np.zeros((fourth.shape[0], LANES), np.float32)
    narrow = np.zeros((fifth.shape[0], LANES), np.float32)
    again = np.zeros((sixth.shape[0], LANES), np.float32)
    error1 = np.empty(LANES, np.float32)
    error2 = np.empty(LANES, np.float32)
    for start in range(0, n, LANES):
        stop = min(start + LANES, n)
        count = stop - start
        normalise(
            values[start:stop], keys[start:stop], ready[start:stop], table_keys, table_rows,
            centre, inverse_scale, gain, shift, clip, tile, rows[start:stop], excess[start:stop],
        )  # fmt: skip
        for j in range(features):  # lanes from `count` on hold an earlier tile's rows: harmless
            for lane in range(LANES):
                x[j, lane] = tile[lane, j]
        dense(first, x, hidden, count)
        hyperbolic_tangent(hidden)
        dense(second, hidden, code, count)
        dense(third, code, decoded, count)
        hyperbolic_tangent(decoded)
        dense(fourth, decoded, rebuilt, count)
        subtract_and_square(x, rebuilt, features, error1)
        dense(fifth, code, narrow, count)
        dense(sixth, narrow, again, count)
        subtract_and_square(code, again, latent_units, error2)
        for lane in range(count):
            row_ready = ready[start + lane]
            errors[0, start + lane] = error1[lane] if row_ready else np.nan
            errors[1, start + lane] = error2[lane] if row_ready else np.nan
        for lane in range(min(count, latent.shape[0])):
            for j in range(latent_units):
                latent[start + lane, j] = code[j, lane]
        for lane in range(min(count, residual.shape[0])):
            for j in range(features):
                residual[start + lane, j] = rebuilt[j, lane]
