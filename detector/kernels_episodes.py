"""The episode state machine as one pure Numba pass; `events` wraps it.

One row of state per open episode, found by the instrument's feature-bank slot. Time is event time
only: the kernel never sees a clock, so the same ticks in any batches give the same transitions.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]
Int32Array = npt.NDArray[np.int32]

OPEN: Final = 0
UPDATE: Final = 1
CLOSE: Final = 2

QUIET: Final = 0  # its own ticks stayed below the closing level for long enough
SILENT: Final = 1  # it sent no tick while the partition's watermark moved on
EVICTED: Final = 2  # its slot in the feature bank went to another instrument

# Columns of the integer state, one row an open episode.
KEY: Final = 0
START_TS: Final = 1
ALIVE_TS: Final = 2
ALIVE_WATERMARK: Final = 3
PUBLISHED_TS: Final = 4
OPEN_OFFSET: Final = 5
OPEN_INDEX: Final = 6
TICKS: Final = 7
ALARMS: Final = 8
PEAK_ROW: Final = 9  # row of the peak in the present batch, -1 once it lies in an earlier one
STATE_COLUMNS: Final = 10

CLOSED: Final = -1  # in `places`: the slot's instrument has no open episode

# Columns of the floating state: what was measured at the episode's peak.
PEAK_SCORE: Final = 0
PEAK_THRESHOLD: Final = 1
PEAK_STAGE1: Final = 2
PEAK_STAGE2: Final = 3
PEAK_TAIL: Final = 4
PEAK_COLUMNS: Final = 6

# Columns of a transition: three of its own, then the integer state as it was at that moment.
KIND: Final = 0
REASON: Final = 1
ROW: Final = 2
SLOT: Final = 3
STATE: Final = 4
TRANSITION_COLUMNS: Final = STATE + STATE_COLUMNS

# The partition's own state.
WATERMARK: Final = 0
NEXT_DEADLINE: Final = 1
OPEN_COUNT: Final = 2
PARTITION_COLUMNS: Final = 3

NEVER: Final = np.int64(2**63 - 1)


@njit(cache=True, nogil=True)
def _emit(
    kind: int,
    reason: int,
    row: int,
    slot: int,
    place: int,
    state: Int64Array,
    peak: Float64Array,
    sums: Float64Array,
    transitions: Int64Array,
    peaks: Float64Array,
    told_sums: Float64Array,
    count: int,
) -> int:
    transitions[count, KIND] = kind
    transitions[count, REASON] = reason
    transitions[count, ROW] = row
    transitions[count, SLOT] = slot
    for c in range(STATE_COLUMNS):
        transitions[count, STATE + c] = state[place, c]
    for c in range(PEAK_COLUMNS):
        peaks[count, c] = peak[place, c]
    for c in range(sums.shape[1]):
        told_sums[count, c] = sums[place, c]
    return count + 1


@njit(cache=True, nogil=True)
def _forget(
    slot: int, places: Int32Array, partition: Int64Array, open_slots: Int32Array, free: Int32Array
) -> None:
    """Take a slot out of the list of open ones, keeping the others in their order of opening."""
    n = partition[OPEN_COUNT]
    free[free.shape[0] - n] = places[slot]  # as many places are free as slots are not open
    places[slot] = CLOSED
    found = False
    for i in range(n):
        if open_slots[i] == slot:
            found = True
        if found and i + 1 < n:
            open_slots[i] = open_slots[i + 1]
    partition[OPEN_COUNT] = n - 1


@njit(cache=True, nogil=True)
def step_episodes(
    first: int,
    slots: npt.NDArray[np.int32],
    keys: Int64Array,
    ts: Int64Array,
    offsets: Int64Array,
    indices: npt.NDArray[np.int32],
    measures: Float64Array,
    alarm_rows: Int64Array,
    evidence: Float64Array,
    state: Int64Array,
    peak: Float64Array,
    sums: Float64Array,
    partition: Int64Array,
    places: Int32Array,
    open_slots: Int32Array,
    free: Int32Array,
    close_ratio: float,
    quiet_ns: int,
    update_ns: int,
    transitions: Int64Array,
    peaks: Float64Array,
    told_sums: Float64Array,
) -> tuple[int, int]:
    """Advance the episodes of one partition from row `first` on.

    Parameters
    ----------
    first
        Row to start from.
    slots, keys, ts, offsets, indices
        `(n,)` columns of the batch; a slot of -1 marks a dropped tick.
    measures
        `(6, n)` float64: score, threshold, stage 1, stage 2, tail, alone; NaN where not
        scored.
    alarm_rows, evidence
        `(m,)` rows of the alarms, ascending, and `(m, V)` what each says about its episode; with V
        0 no episode is named, and `m` may be 0.
    state, peak, sums, partition
        The running state, changed in place; `state`, `peak` and `sums`, `(E, V)`, have a row for
        each of the E episodes that may be open.
    places
        `(slots,)` the row of the slot's open episode, or `CLOSED`.
    open_slots, free
        `(E,)` slots with an open episode, in their order of opening, and the free rows: the first
        E - open of them are meant.
    close_ratio, quiet_ns, update_ns
        The policy.
    transitions, peaks, told_sums
        Output buffers with the same number of rows.

    Returns
    -------
    (next_row, count)
        `next_row < n` when the buffers are full or no row is free: take the transitions, make room
        and call again from there.
    """
    n = slots.shape[0]
    count = 0
    values = evidence.shape[1]
    alarms = np.searchsorted(alarm_rows, first)
    for row in range(first, n):
        slot = slots[row]
        if slot < 0:
            continue
        # One tick closes at most every open episode, and opens or updates one.
        if count + partition[OPEN_COUNT] + 2 > transitions.shape[0]:
            return row, count
        if partition[OPEN_COUNT] == state.shape[0]:
            return row, count
        now = ts[row]
        watermark = max(partition[WATERMARK], now)
        partition[WATERMARK] = watermark

        if watermark >= partition[NEXT_DEADLINE]:
            deadline = NEVER
            i = 0
            while i < partition[OPEN_COUNT]:
                other = open_slots[i]
                at = places[other]
                due = state[at, ALIVE_WATERMARK] + quiet_ns
                if watermark >= due:
                    reason = QUIET if other == slot else SILENT
                    count = _emit(
                        CLOSE, reason, row, other, at, state, peak, sums, transitions, peaks,
                        told_sums, count,
                    )  # fmt: skip
                    _forget(other, places, partition, open_slots, free)
                else:
                    deadline = min(deadline, due)
                    i += 1
            partition[NEXT_DEADLINE] = deadline

        place = places[slot]
        if place != CLOSED:
            reason = -1
            if state[place, KEY] != keys[row]:
                reason = EVICTED
            elif now - state[place, ALIVE_TS] >= quiet_ns:
                reason = QUIET
            if reason >= 0:
                count = _emit(
                    CLOSE, reason, row, slot, place, state, peak, sums, transitions, peaks,
                    told_sums, count,
                )  # fmt: skip
                _forget(slot, places, partition, open_slots, free)
                place = CLOSED

        score = measures[0, row]
        threshold = measures[1, row]
        if np.isnan(score):
            continue
        alarm = score >= threshold
        if alarm and values > 0:
            while alarm_rows[alarms] < row:
                alarms += 1
        if place == CLOSED:
            if not alarm:
                continue
            place = free[free.shape[0] - 1 - partition[OPEN_COUNT]]
            places[slot] = place
            state[place, KEY] = keys[row]
            state[place, START_TS] = now
            state[place, ALIVE_TS] = now
            state[place, ALIVE_WATERMARK] = watermark
            state[place, PUBLISHED_TS] = now
            state[place, OPEN_OFFSET] = offsets[row]
            state[place, OPEN_INDEX] = indices[row]
            state[place, TICKS] = 1
            state[place, ALARMS] = 1
            state[place, PEAK_ROW] = row
            for c in range(PEAK_COLUMNS):
                peak[place, c] = measures[c, row]
            for c in range(values):
                sums[place, c] = evidence[alarms, c]
            open_slots[partition[OPEN_COUNT]] = slot
            partition[OPEN_COUNT] += 1
            partition[NEXT_DEADLINE] = min(partition[NEXT_DEADLINE], watermark + quiet_ns)
            count = _emit(
                OPEN, 0, row, slot, place, state, peak, sums, transitions, peaks, told_sums, count
            )
            continue
        state[place, TICKS] += 1
        if score < close_ratio * threshold:
            continue
        state[place, ALIVE_TS] = max(state[place, ALIVE_TS], now)
        state[place, ALIVE_WATERMARK] = watermark
        if alarm:
            state[place, ALARMS] += 1
            for c in range(values):
                sums[place, c] += evidence[alarms, c]
        if score > peak[place, PEAK_SCORE]:
            state[place, PEAK_ROW] = row
            for c in range(PEAK_COLUMNS):
                peak[place, c] = measures[c, row]
        if now - state[place, PUBLISHED_TS] >= update_ns:
            state[place, PUBLISHED_TS] = now
            count = _emit(
                UPDATE, 0, row, slot, place, state, peak, sums, transitions, peaks, told_sums, count
            )
    return n, count
