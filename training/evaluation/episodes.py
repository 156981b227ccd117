"""What a desk gets: episodes, and which of them told of a planted anomaly in time.

A *hit* is an episode that opens within `[start, end + 1 s]` of an anomaly of its instrument, after
at least 60 s in which no episode of that instrument was open. Only the first one counts. An episode
that opens there sooner after another one is *masked*: neither hit nor false. Any other one is
*false*. An instrument is in alarm from an episode's opening to the last tick that kept it open.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.events import EpisodeBook, EpisodePolicy
from detector.kernels_episodes import PEAK_COLUMNS
from detector.placing import Planted
from detector.thresholds import GAP_S
from detector.ticks import NS_PER_S
from training.evaluation.stream import windows

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

LATE_S: Final = 1
"""An episode may open so long after an anomaly's end and still be of it."""

QUIET_BEFORE_S: Final = 60
"""Time without alarm before an episode that counts as a hit."""

HIT, MASKED, FALSE = "hit", "masked", "false"

_NEVER: Final = np.iinfo(np.int64).max // 4
_NS_PER_HOUR: Final = 3600 * NS_PER_S


@dataclass(frozen=True, slots=True, eq=False)
class Episodes:
    """Episodes in order of opening.

    Parameters
    ----------
    key, start, end
        `(e,)` int64: instrument, event time of opening and of the last tick that kept it open.
    row
        `(e,)` int64: row of the tick that opened it.
    """

    key: Int64
    start: Int64
    end: Int64
    row: Int64

    def __len__(self) -> int:
        return len(self.key)


def episodes_of(
    keys: Int64,
    ts: Int64,
    score: Float64,
    threshold: Float64,
    policy: EpisodePolicy | None = None,
) -> Episodes:
    """Run the daemon's own episodes over scored rows of one partition.

    Parameters
    ----------
    keys, ts, score, threshold
        `(n,)` in order of arrival.
    policy
        When an episode closes; the daemon's default.
    """
    policy = policy or EpisodePolicy()
    n = len(ts)
    found, slots = np.unique(keys, return_inverse=True)
    # One more tick far in the future closes what is still open; updates are of no interest.
    book = EpisodeBook(
        len(found) + 1, EpisodePolicy(policy.close_ratio, policy.quiet_s, 1e-9 * _NEVER)
    )
    measures = np.zeros((PEAK_COLUMNS, n + 1))
    measures[0, :n], measures[1, :n] = score, threshold
    measures[0, n] = np.nan
    closed = [
        (one.key, one.ts_start, one.ts_alive, one.open_offset)
        for one in book.step(
            np.append(slots, len(found)).astype(np.int32),
            np.append(keys, -1),
            np.append(ts, _NEVER),
            np.arange(n + 1, dtype=np.int64),
            np.zeros(n + 1, np.int32),
            measures,
        )
        if one.phase == "close"
    ]
    table = np.array(closed, np.int64).reshape(-1, 4)
    return Episodes(*table[np.argsort(table[:, 3], kind="stable")].T)


@dataclass(frozen=True, slots=True, eq=False)
class Verdicts:
    """What each episode was, and which anomalies were told of.

    Parameters
    ----------
    verdict
        `(e,)` of `HIT`, `MASKED`, `FALSE`.
    told_by
        For each anomaly the episode that told of it; -1: none.
    masked
        For each anomaly whether an episode opened in it, too soon after another one.
    """

    verdict: npt.NDArray[np.str_]
    told_by: Int64
    masked: npt.NDArray[np.bool_]


def verdicts(episodes: Episodes, planted: Sequence[Planted]) -> Verdicts:
    """Hold episodes against anomalies; both in any order of instruments."""
    verdict = np.full(len(episodes), FALSE, f"<U{len(MASKED)}")
    told_by = np.full(len(planted), -1, np.int64)
    masked = np.zeros(len(planted), np.bool_)
    late, quiet = LATE_S * NS_PER_S, QUIET_BEFORE_S * NS_PER_S
    for key in np.unique(episodes.key).tolist():
        mine = [i for i, one in enumerate(planted) if one.key == key]
        mine.sort(key=lambda i: planted[i].start_ns)
        starts = np.array([planted[i].start_ns for i in mine], np.int64)
        free_at = -_NEVER
        for episode in np.flatnonzero(episodes.key == key).tolist():
            opens, before = int(episodes.start[episode]), free_at
            free_at = max(free_at, int(episodes.end[episode]))
            at = int(np.searchsorted(starts, opens, "right")) - 1
            if at < 0 or opens > planted[mine[at]].end_ns + late:
                continue
            anomaly = mine[at]
            fresh = opens - before >= quiet
            if fresh and told_by[anomaly] < 0:
                told_by[anomaly] = episode
            verdict[episode] = HIT if told_by[anomaly] == episode else MASKED
            masked[anomaly] |= not fresh
    return Verdicts(verdict, told_by, masked & (told_by < 0))


class TradingClock:
    """Trading time of one instrument: event time without silences longer than `GAP_S`."""

    def __init__(self, ts: Int64) -> None:
        self._ts = np.maximum.accumulate(ts)
        waits = np.diff(self._ts, prepend=self._ts[:1]).astype(np.float64)
        self._passed = np.cumsum(np.where(waits <= GAP_S * NS_PER_S, waits, 0.0)) / _NS_PER_HOUR

    @property
    def hours(self) -> float:
        """All of it."""
        return float(self._passed[-1]) if len(self._passed) else 0.0

    def at(self, ts: Int64) -> Float64:
        """Hours passed at event times; before the first tick 0, after the last all of them."""
        if not len(self._ts):
            return np.zeros(len(ts))
        first = self._ts[0]  # relative to it, because float64 does not hold epoch ns
        found: Float64 = np.interp(
            (ts - first).astype(np.float64), (self._ts - first).astype(np.float64), self._passed
        )
        return found


@dataclass(frozen=True, slots=True)
class Clean:
    """Clean time of an instrument, and how much of it was spent in alarm, in hours."""

    hours: float
    alarm_hours: float


def clean_time(ts: Int64, start: Int64, end: Int64, stretches: tuple[Int64, Int64]) -> Clean:
    """Trading time outside of anomalies.

    Parameters
    ----------
    ts
        `(n,)` event times of an instrument's scored ticks.
    start, end
        `(e,)` its episodes; they do not overlap.
    stretches
        Starts and ends of its anomalies, merged.
    """
    clock = TradingClock(ts)
    opened, closed = clock.at(start), clock.at(end)
    low, high = (clock.at(part) for part in stretches)
    both = np.minimum(closed[:, None], high) - np.maximum(opened[:, None], low)
    return Clean(
        hours=clock.hours - float(np.sum(high - low)),
        alarm_hours=float(np.sum(closed - opened) - np.sum(np.maximum(both, 0.0))),
    )


def judge_episodes(
    episodes: Episodes,
    found: Verdicts,
    planted: Sequence[Planted],
    keys: Int64,
    ts: Int64,
    names: Mapping[int, str],
) -> dict[str, Any]:
    """Recall and delay by type, false episodes and clean time by instrument, as JSON types.

    Parameters
    ----------
    episodes, found, planted
        All that was opened, and what it was.
    keys, ts
        `(n,)` of the scored rows.
    names
        Of the instruments, by key.
    """
    kinds: dict[str, dict[str, Any]] = {}
    delays: dict[str, list[tuple[float, float]]] = {"all": []}
    for anomaly, one in enumerate(planted):
        kind = kinds.setdefault(one.kind.value, {"planted": 0, "hit": 0, "masked": 0})
        kind["planted"] += 1
        kind["masked"] += int(found.masked[anomaly])
        if (episode := int(found.told_by[anomaly])) >= 0:
            kind["hit"] += 1
            delay = _delay(episodes, episode, one, keys, ts)
            delays.setdefault(one.kind.value, []).append(delay)
            delays["all"].append(delay)
    for name, kind in kinds.items():
        kind["recall"] = kind["hit"] / kind["planted"]
        kind.update(_medians(delays.get(name, [])))
    every = sum(kind["planted"] for kind in kinds.values())
    hit = sum(kind["hit"] for kind in kinds.values())
    instruments = _by_instrument(episodes, found, planted, keys, ts, names)
    hours = sum(one["clean_hours"] for one in instruments.values())
    false = sum(one["false"] for one in instruments.values())
    in_alarm = sum(one["alarm_hours"] for one in instruments.values())
    return {
        "planted": every,
        "hit": hit,
        "masked": sum(kind["masked"] for kind in kinds.values()),
        "recall": hit / every if every else None,
        "mean_recall_over_types": (
            float(np.mean([kind["recall"] for kind in kinds.values()])) if kinds else None
        ),
        **_medians(delays["all"]),
        "false": false,
        "clean_hours": hours,
        "false_per_hour": false / hours if hours else None,
        "clean_time_in_alarm": in_alarm / hours if hours else None,
        "types": dict(sorted(kinds.items())),
        "instruments": instruments,
    }


def _delay(
    episodes: Episodes, episode: int, one: Planted, keys: Int64, ts: Int64
) -> tuple[float, float]:
    """Events of the instrument from the anomaly's first to the one that opened; and ms."""
    row = int(episodes.row[episode])
    between = (keys[:row] == one.key) & (ts[:row] >= one.start_ns)
    waited = int(episodes.start[episode]) - one.start_ns
    return float(np.count_nonzero(between)), waited / 1e6


def _medians(delays: Sequence[tuple[float, float]]) -> dict[str, float | None]:
    if not delays:
        return {"median_delay_events": None, "median_delay_ms": None}
    events, ms = np.median(np.array(delays), axis=0).tolist()
    return {"median_delay_events": events, "median_delay_ms": ms}


def _by_instrument(
    episodes: Episodes,
    found: Verdicts,
    planted: Sequence[Planted],
    keys: Int64,
    ts: Int64,
    names: Mapping[int, str],
) -> dict[str, dict[str, Any]]:
    anomalous = windows(planted, 0, LATE_S * NS_PER_S)
    none = np.empty(0, np.int64), np.empty(0, np.int64)
    rows = {}
    for key in np.unique(keys).tolist():
        mine = episodes.key == key
        clean = clean_time(
            ts[keys == key], episodes.start[mine], episodes.end[mine], anomalous.get(key, none)
        )
        count = {what: int(np.sum(found.verdict[mine] == what)) for what in (HIT, MASKED, FALSE)}
        rows[names.get(key, str(key))] = {
            "opened": int(np.count_nonzero(mine)),
            "hit": count[HIT],
            "masked_episodes": count[MASKED],
            "false": count[FALSE],
            "clean_hours": clean.hours,
            "alarm_hours": clean.alarm_hours,
        }
    return rows
