"""Thresholds that follow the alarms they cause, as one pure Numba pass; `thresholds` wraps it.

One row of state per instrument, found by its feature-bank slot. Time is event time only, and the
threshold applied to a tick depends on the ticks before it: any batches give the same numbers.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
import numpy.typing as npt
from numba import njit

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]

# Columns of the integer state, one row an instrument.
KEY: Final = 0
SINCE: Final = 1  # up to when time has been counted; while an episode is open, since it counted
ALIVE: Final = 2  # event time of the tick that last kept its episode open, or one of:
INTEGERS: Final = 3

UNSEEN: Final = 0  # in ALIVE: nobody's row; zeros, so that memory is touched only when used
CALM: Final = np.int64(-(2**63))  # in ALIVE: no episode is open

# Columns of the floating state.
MOVED: Final = 0  # log(threshold / prior)
GUARD: Final = 1  # budget: how far it may still rise; risk: what MOVED may reach in this episode
FLOATS: Final = 2

NS_PER_HOUR: Final = 3.6e12


@njit(cache=True, nogil=True)
def apply_thresholds(
    slots: npt.NDArray[np.int32],
    keys: Int64Array,
    ts: Int64Array,
    rows: npt.NDArray[np.int32],
    score: Float64Array,
    prior: Float64Array,
    step: Float64Array,
    per_hour: float,
    per_tick: float,
    most: float,
    most_at_once: float,
    refill: float,
    close_ratio: float,
    quiet_ns: int,
    gap_ns: int,
    release_ns: int,
    integers: Int64Array,
    floats: Float64Array,
    threshold: Float64Array,
) -> None:
    """Write the threshold that applies to each tick, and learn from the tick.

    Parameters
    ----------
    slots, keys, ts, rows, score
        `(n,)` columns of the batch: slot in the bank, -1 where the tick was dropped; instrument;
        event time; row in `prior` and `step`; score, NaN where the tick was not scored.
    prior, step
        `(R,)` frozen threshold, and log rise of the threshold for an alarm that counts.
    per_hour, per_tick
        Alarms expected in an hour of event time, and at a tick; one of them is 0. With `per_hour`
        an episode is an alarm, with `per_tick` a tick at or above the threshold is one.
    most
        Bound of `|log(threshold / prior)|`.
    most_at_once, refill
        Log rise allowed at once or in one episode; and, with `per_hour`, how many times the
        expected rise an hour gives back of what was used.
    close_ratio, quiet_ns
        When an episode is over, as in `kernels_episodes`.
    gap_ns
        A longer silence is no trading time.
    release_ns
        An episode that lasts counts once more, and its time does not, each time so much event time
        has passed.
    integers, floats
        `(slots, 3)` and `(slots, 2)` state, changed in place.
    threshold
        `(n,)` output; where a tick was not scored, what would have applied.
    """
    for i in range(slots.shape[0]):
        slot = slots[i]
        row = rows[i]
        if slot < 0:
            threshold[i] = prior[row]
            continue
        state = integers[slot]
        level = floats[slot]
        now = ts[i]
        if state[ALIVE] == UNSEEN or state[KEY] != keys[i]:
            state[KEY] = keys[i]
            state[SINCE] = now
            state[ALIVE] = CALM
            level[MOVED] = 0.0
            level[GUARD] = most_at_once
        if max(state[SINCE], state[ALIVE]) - now > gap_ns:
            # Time went back by more than a gap: a day is played again, or one wrong time lay far
            # ahead. Counting goes on from here, or nothing would be counted until then.
            state[SINCE] = now
            if state[ALIVE] != CALM:
                state[ALIVE] = min(state[ALIVE], now)
        if np.isnan(score[i]):
            if state[ALIVE] == CALM:
                state[SINCE] = max(state[SINCE], now)  # unscored time expects no alarm
            threshold[i] = prior[row] * math.exp(level[MOVED])
            continue
        up = step[row]
        was_open = state[ALIVE] != CALM
        is_open = was_open and now - state[ALIVE] < quiet_ns
        long = is_open and now - state[SINCE] >= release_ns

        if per_hour > 0.0:
            # While an episode is open nothing moves: its time and its alarm are counted at the
            # first tick after it. Inside it ticks never were further apart than `quiet_ns`.
            if not is_open or long:
                spent = 0
                since = state[SINCE]
                if was_open and not is_open:
                    spent = max(state[ALIVE] - since, 0)
                    since = max(state[ALIVE], since)
                wait = now - since
                if wait > 0 and (wait <= gap_ns or long):
                    spent += wait
                hours = spent / NS_PER_HOUR
                moved = level[MOVED]
                if not long:  # or a market that has changed would pay back all it was raised by
                    moved -= up * per_hour * hours
                left = min(most_at_once, level[GUARD] + refill * up * per_hour * hours)
                if was_open:
                    rise = min(up, left)
                    left -= rise
                    moved += rise
                level[MOVED] = min(max(moved, -most), most)
                level[GUARD] = left
                state[SINCE] = max(state[SINCE], now)
        elif long:
            level[GUARD] += most_at_once
            state[SINCE] = now
        if not is_open:
            state[ALIVE] = CALM

        applied = prior[row] * math.exp(level[MOVED])
        threshold[i] = applied
        alarm = score[i] >= applied
        if alarm and not is_open:
            state[ALIVE] = now
            if per_tick > 0.0:
                state[SINCE] = now
                level[GUARD] = level[MOVED] + most_at_once
        elif is_open and score[i] >= close_ratio * applied:
            state[ALIVE] = max(state[ALIVE], now)
        if per_tick > 0.0:
            moved = level[MOVED] - up * per_tick
            if alarm:
                moved = max(moved, min(moved + up, level[GUARD]))
            level[MOVED] = min(max(moved, -most), most)
        if state[ALIVE] == UNSEEN:
            state[ALIVE] = CALM  # the first nanosecond of 1970: no market was open


@njit(cache=True, nogil=True)
def episodes_above(
    ts: Int64Array,
    score: Float64Array,
    level: float,
    close_ratio: float,
    quiet_ns: int,
    peaks: Float64Array,
) -> int:
    """Highest score of every episode that a fixed threshold `level` would open.

    Parameters
    ----------
    ts, score
        `(n,)` scored ticks of one instrument, in order of arrival.
    level
        The threshold.
    close_ratio, quiet_ns
        When an episode is over, as in `kernels_episodes`.
    peaks
        `(n,)` output, of which the first as many as there are episodes are written.

    Returns
    -------
    count
        Number of episodes.
    """
    count = 0
    is_open = False
    alive = np.int64(0)
    for i in range(ts.shape[0]):
        if is_open and ts[i] - alive >= quiet_ns:
            is_open = False
        if score[i] >= level and not is_open:
            is_open = True
            alive = ts[i]
            peaks[count] = score[i]
            count += 1
        elif is_open and score[i] >= close_ratio * level:
            alive = max(alive, ts[i])
            peaks[count - 1] = max(peaks[count - 1], score[i])
    return count


@njit(cache=True, nogil=True)
def hours_of(ts: Int64Array, gap_ns: int) -> float:
    """Trading time in hours: the waits between ticks that are no longer than `gap_ns`."""
    total = 0.0
    last = ts[0] if ts.shape[0] > 0 else np.int64(0)
    for i in range(1, ts.shape[0]):
        wait = ts[i] - last
        if 0 < wait <= gap_ns:
            total += wait
        last = max(last, ts[i])
    return total / NS_PER_HOUR


@njit(cache=True, nogil=True)
def add_hours(
    slots: npt.NDArray[np.int32],
    keys: Int64Array,
    ts: Int64Array,
    score: Float64Array,
    gap_ns: int,
    state: Int64Array,
) -> float:
    """Trading time in hours that a batch adds, over all its instruments, as `hours_of` counts it.

    Parameters
    ----------
    slots, keys, ts, score
        `(n,)` columns of the batch: slot in the bank, -1 where the tick was dropped; instrument;
        event time; score, NaN where the tick was not scored.
    gap_ns
        A longer silence is no trading time.
    state
        `(slots, 3)` int64: instrument, its last scored time, and 1 where there is one; changed in
        place.

    Returns
    -------
    hours
        Of scored time, summed over instruments.
    """
    total = 0.0
    for i in range(slots.shape[0]):
        if slots[i] < 0 or np.isnan(score[i]):
            continue
        mine = state[slots[i]]
        if mine[2] == 0 or mine[0] != keys[i]:
            mine[0] = keys[i]
            mine[1] = ts[i]
            mine[2] = 1
            continue
        wait = ts[i] - mine[1]
        if 0 < wait <= gap_ns:
            total += wait
        if wait > 0 or -wait > gap_ns:  # back by more than a gap: a day is played again
            mine[1] = ts[i]
    return total / NS_PER_HOUR
