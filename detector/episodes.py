"""Episodes: one burst of anomalous ticks is one episode that opens, updates and closes.

`EpisodePolicy` says when; `EpisodeBook` is the running state of one partition; a `Transition` is
what happened. Time here is event time. The book knows nothing of Kafka, nor of what is published.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from detector import kernels_episodes as k
from detector.state_checks import Arrays, check_arrays, check_slots
from detector.ticks import NS_PER_S

Phase = Literal["open", "update", "close"]
CloseReason = Literal["quiet", "silent", "evicted", "model"]

PHASES: Final[tuple[Phase, ...]] = ("open", "update", "close")
CLOSE_REASONS: Final[tuple[CloseReason, ...]] = ("quiet", "silent", "evicted", "model")
"""The first three are the kernel's; "model": another model scores the partition from here on."""
_NO_ROWS: Final = np.empty(0, np.int64)
_NO_EVIDENCE: Final = np.empty((1, 0))
_BUFFER_ROWS: Final = 256
_EPISODE_ROWS: Final = 64
_FACTS: Final = 3  # of an explained feature: value, expected, share


@dataclass(frozen=True)
class EpisodePolicy:
    """When an episode updates and closes. It opens at once, with the score at its threshold.

    Parameters
    ----------
    close_ratio
        A tick keeps its episode open while its score is at least this share of the threshold.
    quiet_s
        Event time without such a tick after which the episode closes, in seconds. The same time
        counts for an instrument that sends nothing, on its partition's watermark.
    update_interval_s
        Least event time between two published updates, in seconds.
    """

    close_ratio: float = 0.8
    quiet_s: float = 5.0
    update_interval_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Transition:
    """What the episode kernel found: a phase of one episode, before it is explained.

    `row` is the batch row of the tick that caused it, -1 where none did. `peak_row` is the row of
    the episode's highest score, or -1 when that tick came in an earlier batch. `evidence` is the
    sum over the alarms so far of what each says about the episode.
    """

    phase: Phase
    reason: CloseReason
    row: int
    slot: int
    key: int
    ts_start: int
    ts_alive: int
    open_offset: int
    open_index: int
    ticks: int
    alarms: int
    peak_row: int
    peak: tuple[float, float, float, float, float, float]
    evidence: npt.NDArray[np.float64] = field(default_factory=lambda: _NO_EVIDENCE[0])


class EpisodeBook:
    """The running episodes of one input partition: four bytes an instrument, a row an open one.

    Parameters
    ----------
    slots
        Size of the feature bank the slots come from.
    policy
        When episodes update and close.
    evidence
        Numbers of an alarm's evidence, V; 0: episodes have no names.
    """

    def __init__(self, slots: int, policy: EpisodePolicy, evidence: int = 0) -> None:
        self._policy = policy
        self._places = np.full(slots, k.CLOSED, np.int32)
        self._partition = np.array([np.iinfo(np.int64).min, k.NEVER, 0], np.int64)
        # What an open episode's peak was: indices of features, then value, expected, share of each.
        self._explained: dict[int, tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]] = {}
        self._sums: npt.NDArray[np.float64]
        self._clear(evidence)

    @property
    def open_episodes(self) -> int:
        """How many episodes are open now."""
        return int(self._partition[k.OPEN_COUNT])

    def step(
        self,
        slots: npt.NDArray[np.int32],
        keys: npt.NDArray[np.int64],
        ts: npt.NDArray[np.int64],
        offsets: npt.NDArray[np.int64],
        indices: npt.NDArray[np.int32],
        measures: npt.NDArray[np.float64],
        alarm_rows: npt.NDArray[np.int64] = _NO_ROWS,
        evidence: npt.NDArray[np.float64] | None = None,
    ) -> list[Transition]:
        """Advance by one batch and return what happened, in order.

        `measures` is `(6, n)` float64: score, threshold, stage 1, stage 2, tail and alone, NaN
        where a tick was not scored. The other columns are `(n,)`. Where episodes are named,
        `alarm_rows` `(m,)` are all rows that reach their threshold, ascending, and `evidence` is
        `(m, V)`.
        """
        if evidence is None:
            evidence = np.empty((0, self._sums.shape[1]))
        found: list[Transition] = []
        self._age_peaks()
        first, n = 0, len(slots)
        while first < n:
            self._make_room()
            first, count = k.step_episodes(
                first,
                slots,
                keys,
                ts,
                offsets,
                indices,
                measures,
                alarm_rows,
                evidence,
                self._state,
                self._peak,
                self._sums,
                self._partition,
                self._places,
                self._open_slots,
                self._free,
                self._policy.close_ratio,
                round(self._policy.quiet_s * NS_PER_S),
                round(self._policy.update_interval_s * NS_PER_S),
                self._transitions,
                self._peaks,
                self._told_sums,
            )
            found.extend(self._taken(count))
        return found

    def improved_peaks(self) -> list[tuple[int, int]]:
        """`(slot, row)` of the open episodes whose highest score lies in the last batch."""
        open_slots = self._open_slots[: self.open_episodes]
        rows = self._state[self._places[open_slots], k.PEAK_ROW]
        return [(int(s), int(r)) for s, r in zip(open_slots, rows, strict=True) if r >= 0]

    def remember(self, slot: int, index: npt.NDArray[np.int16], values: npt.NDArray[Any]) -> None:
        """Keep the explanation of an episode's peak: `(K,)` feature indices, `(K, 3)` values."""
        self._explained[slot] = index, values

    def remembered(self, slot: int) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.float64]]:
        """Return what `remember` kept for the slot, as `(index, values)`."""
        return self._explained[slot]

    def start_over(self, evidence: int) -> list[Transition]:
        """Close every open episode because another model takes over; between two batches only.

        Afterwards the book is as new, with alarms of `evidence` numbers each, but for the
        partition's watermark, which follows from the ticks alone. What `remember` kept for the
        closed ones can be had until the next `step`. In order of opening.
        """
        slots = self._open_slots[: self.open_episodes].copy()
        places = self._places[slots]
        self._state[places, k.PEAK_ROW] = -1
        found = [
            _transition("close", "model", -1, slot, state, peak, sums)
            for slot, state, peak, sums in zip(
                slots.tolist(),
                self._state[places].tolist(),
                self._peak[places].tolist(),
                self._sums[places].copy(),
                strict=True,
            )
        ]
        self._places[slots] = k.CLOSED
        self._partition[[k.NEXT_DEADLINE, k.OPEN_COUNT]] = k.NEVER, 0
        self._clear(evidence)
        return found

    def start_at(self, watermark: int) -> None:
        """Let a fresh book's partition have come to this time, in ns since the epoch."""
        self._partition[k.WATERMARK] = watermark

    def snapshot(self) -> dict[str, npt.NDArray[Any]]:
        """Copy the state out, between two batches whose peaks are explained.

        `restore` into a book of the same size, policy and evidence, going on from there, equals
        going on here.

        Returns
        -------
        arrays
            `watermark` `(1,)`; `open` `(m,)` int32, the slots with an open episode in their order
            of opening; `slots` `(m,)` int32, and with a row for each of these `state`, `peak`,
            `sums`, `top` (indices of the features that explain its peak) and `facts` about them.
        """
        return self._rows(self._open_slots[: self.open_episodes])

    def delta(self, touched: npt.NDArray[np.bool_]) -> dict[str, npt.NDArray[Any]]:
        """Return what `snapshot` does, but in `slots` only those of `touched`, `(slots,)` bool.

        Those are enough where `touched` marks all slots that had a tick since the last delta: an
        episode changes at its own instrument's ticks only, and closes by leaving `open`.
        """
        open_slots = self._open_slots[: self.open_episodes]
        return self._rows(open_slots[touched[open_slots]])

    def _rows(self, slots: npt.NDArray[np.int32]) -> dict[str, npt.NDArray[Any]]:
        places = self._places[slots]
        state = self._state[places]
        state[:, k.PEAK_ROW] = -1  # as it will be at the next batch
        reasons = [self._explained[slot] for slot in slots.tolist()]
        width = len(reasons[0][0]) if reasons else 0
        facts = np.array([facts for _, facts in reasons], np.float64)
        return {
            "watermark": self._partition[[k.WATERMARK]],
            "open": self._open_slots[: self.open_episodes].copy(),
            "slots": slots.copy(),
            "state": state,
            "peak": self._peak[places],
            "sums": self._sums[places],
            "top": np.array([top for top, _ in reasons], np.int16).reshape(len(slots), width),
            "facts": facts.reshape(len(slots), width, _FACTS),
        }

    def restore(self, arrays: Arrays) -> None:
        """Replace the state by a snapshot.

        Raises
        ------
        ValueError
            An array is missing, unknown, of another shape or type; a slot does not exist or occurs
            twice, an open one has no row; a row cannot be. The state is then unchanged.
        """
        self._check(arrays, np.zeros(len(self._places), np.bool_))
        self._explained = {}
        self._take(arrays)

    def put(self, arrays: Arrays) -> None:
        """Apply what `delta` gave to the state that the delta before it led to.

        Raises
        ------
        ValueError
            As in `restore`; an open slot has a row neither in the delta nor here.
        """
        self._check(arrays, self._places != k.CLOSED)
        self._take(arrays)

    def _check(self, arrays: Arrays, known: npt.NDArray[np.bool_]) -> None:
        """Raise ValueError unless the arrays are a state that the kernel can go on from."""
        what = "episode state"
        alone: dict[str, Any] = {"watermark": np.dtype(np.int64), "open": np.dtype(np.int32)}
        for name, dtype in alone.items():
            found = {name: arrays[name]} if name in arrays else {}
            check_arrays(what, found, {name: ((), dtype)}, name)
        if len(arrays["watermark"]) != 1:
            raise ValueError(f"{what}: {len(arrays['watermark'])} watermarks; needed: 1")
        width = arrays["top"].shape[1] if "top" in arrays and arrays["top"].ndim > 1 else 0
        floats = np.dtype(np.float64)
        check_arrays(
            what,
            {name: found for name, found in arrays.items() if name not in alone},
            {
                "slots": ((), np.dtype(np.int32)),
                "state": ((k.STATE_COLUMNS,), np.dtype(np.int64)),
                "peak": ((k.PEAK_COLUMNS,), floats),
                "sums": ((self._sums.shape[1],), floats),
                "top": ((width,), np.dtype(np.int16)),
                "facts": ((width, _FACTS), floats),
            },
            "slots",
        )
        for name in ("open", "slots"):
            check_slots(f"{what}: {name}", arrays[name], len(self._places))
        given = known.copy()
        given[arrays["slots"]] = True
        if not given[arrays["open"]].all():
            raise ValueError(f"{what}: an open episode without its row")
        if not np.isin(arrays["slots"], arrays["open"]).all():
            raise ValueError(f"{what}: a row of an episode that is not open")
        if (arrays["state"][:, [k.TICKS, k.ALARMS]] < 1).any():
            raise ValueError(f"{what}: an open episode without ticks or without an alarm")
        if np.isnan(arrays["peak"]).any() or (arrays["peak"][:, k.PEAK_SCORE] <= 0).any():
            raise ValueError(f"{what}: peak holds NaN, or a score that is not positive")
        if not np.isfinite(arrays["sums"]).all():
            raise ValueError(f"{what}: sums holds NaN or infinite values")

    def _take(self, arrays: Arrays) -> None:
        """Make the arrays, and where they have no row the present ones, the state."""
        slots, given = arrays["open"], np.isin(arrays["open"], arrays["slots"])
        at = np.zeros(len(self._places), np.int64)
        at[arrays["slots"]] = np.arange(len(arrays["slots"]))
        mine, theirs = self._places[slots[~given]], at[slots[given]]
        merged = []
        for present, name in ((self._state, "state"), (self._peak, "peak"), (self._sums, "sums")):
            rows = np.empty((len(slots), present.shape[1]), present.dtype)
            rows[given], rows[~given] = arrays[name][theirs], present[mine]
            merged.append(rows)
        # Copied, or the rows would keep all of the snapshot's bytes.
        top, facts = arrays["top"].copy(), arrays["facts"].copy()
        self._explained.update(
            zip(arrays["slots"].tolist(), zip(top, facts, strict=True), strict=True)
        )
        self._install(slots, merged)
        self._partition[k.WATERMARK] = arrays["watermark"][0]

    def _install(self, slots: npt.NDArray[np.int32], rows: list[npt.NDArray[Any]]) -> None:
        """Let just these episodes be open, in this order."""
        n = len(slots)
        room = -(-n // _EPISODE_ROWS) * _EPISODE_ROWS
        self._clear(self._sums.shape[1])
        state, peak, sums = (
            np.concatenate([part, np.zeros((room - n, part.shape[1]), part.dtype)]) for part in rows
        )
        self._state, self._peak = state, peak
        self._sums = sums
        self._state[:n, k.PEAK_ROW] = -1
        self._open_slots = np.zeros(room, np.int32)
        self._open_slots[:n] = slots
        self._free = np.zeros(room, np.int32)
        self._free[: room - n] = np.arange(room - 1, n - 1, -1)
        self._places.fill(k.CLOSED)
        self._places[slots] = np.arange(n)
        quiet_ns = round(self._policy.quiet_s * NS_PER_S)
        due = self._state[:n, k.ALIVE_WATERMARK] + quiet_ns
        self._partition[k.NEXT_DEADLINE] = due.min() if n else k.NEVER
        self._partition[k.OPEN_COUNT] = n

    def _clear(self, evidence: int) -> None:
        """Give the book no room for open episodes yet, and buffers for transitions."""
        self._state = np.zeros((0, k.STATE_COLUMNS), np.int64)
        self._peak = np.zeros((0, k.PEAK_COLUMNS), np.float64)
        self._sums = np.zeros((0, evidence), np.float64)
        self._open_slots = np.zeros(0, np.int32)
        self._free = np.zeros(0, np.int32)
        self._transitions = np.zeros((_BUFFER_ROWS, k.TRANSITION_COLUMNS), np.int64)
        self._peaks = np.zeros((_BUFFER_ROWS, k.PEAK_COLUMNS), np.float64)
        self._told_sums = np.zeros((_BUFFER_ROWS, evidence), np.float64)

    def _age_peaks(self) -> None:
        """Peaks of the last batch become peaks of an earlier one; closed ones are forgotten."""
        open_slots = self._open_slots[: self.open_episodes]
        self._state[self._places[open_slots], k.PEAK_ROW] = -1
        if len(self._explained) > 2 * len(open_slots) + _EPISODE_ROWS:
            kept = self._explained
            self._explained = {slot: kept[slot] for slot in open_slots.tolist()}

    def _make_room(self) -> None:
        """Let at least one more episode open, and every one of them close at one tick."""
        rows = len(self._state)
        if self.open_episodes == rows:
            more = max(_EPISODE_ROWS, rows)
            self._state = np.concatenate([self._state, np.zeros((more, k.STATE_COLUMNS), np.int64)])
            self._peak = np.concatenate([self._peak, np.zeros((more, k.PEAK_COLUMNS))])
            width = self._sums.shape[1]
            self._sums = np.concatenate([self._sums, np.zeros((more, width))])
            self._open_slots = np.concatenate([self._open_slots, np.zeros(more, np.int32)])
            # None is free now: the new rows are the free ones, at the front of the list.
            self._free = np.zeros(rows + more, np.int32)
            self._free[:more] = np.arange(rows + more - 1, rows - 1, -1)
        need = self.open_episodes + _BUFFER_ROWS
        if need > len(self._transitions):
            self._transitions = np.zeros((2 * need, k.TRANSITION_COLUMNS), np.int64)
            self._peaks = np.zeros((2 * need, k.PEAK_COLUMNS), np.float64)
            self._told_sums = np.zeros((2 * need, self._sums.shape[1]), np.float64)

    def _taken(self, count: int) -> Iterator[Transition]:
        for t, peak, evidence in zip(
            self._transitions[:count].tolist(),
            self._peaks[:count].tolist(),
            self._told_sums[:count].copy(),
            strict=True,
        ):
            yield _transition(
                PHASES[t[k.KIND]],
                CLOSE_REASONS[t[k.REASON]],
                t[k.ROW],
                t[k.SLOT],
                t[k.STATE :],
                peak,
                evidence,
            )


def _transition(
    phase: Phase,
    reason: CloseReason,
    row: int,
    slot: int,
    state: list[int],
    peak: list[float],
    evidence: npt.NDArray[np.float64],
) -> Transition:
    """Make a transition of a row of the integer and one of the floating state."""
    score, threshold, stage1, stage2, tail, alone = peak
    return Transition(
        phase=phase,
        reason=reason,
        row=row,
        slot=slot,
        key=state[k.KEY],
        ts_start=state[k.START_TS],
        ts_alive=state[k.ALIVE_TS],
        open_offset=state[k.OPEN_OFFSET],
        open_index=state[k.OPEN_INDEX],
        ticks=state[k.TICKS],
        alarms=state[k.ALARMS],
        peak_row=state[k.PEAK_ROW],
        peak=(score, threshold, stage1, stage2, tail, alone),
        evidence=evidence,
    )
