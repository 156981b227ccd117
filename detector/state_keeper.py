"""The state of this process' partitions on the topic of state: restored at an assignment, kept on.

Joins `pipeline` (what the state is), `state_records` (how it stands on the topic) and a reader of
that topic. States facts: the daemon logs and counts them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, Literal

from detector.kafka import Place
from detector.pipeline import Pipeline
from detector.state_checks import Arrays
from detector.state_records import Place as Owner
from detector.state_records import Record, Restorable, StateReader, StateWriter, Unusable

Source = Literal["new", "snapshot", "other_model", "warm_up"]
"""Where a partition's state is from: it is new; restored; restored, but for what depends on scores,
because that is another model's; or windows warmed with what the topic retains."""

CHUNKS_A_COMMIT: Final = 8
"""Records of a snapshot that one commit carries: a transaction must stay short."""

_SPREAD: Final = 0.618034  # neighbouring partitions' snapshots fall far from each other

Take = Callable[[int, bytes, bytes | None], None]
Read = Callable[[Iterable[int], Take], object]
"""Hands over every record of some partitions of the topic of state."""


@dataclass(frozen=True, slots=True)
class Restored:
    """How a partition begins.

    Parameters
    ----------
    partition
        Of the input topic.
    source
        Where its state is from.
    replay_from, next_offset
        Messages between the two are taken into the windows only; from the second on they are
        scored.
    reason
        Why the state on the topic was not used, where there should have been one.
    """

    partition: int
    source: Source
    replay_from: int
    next_offset: int
    reason: str = ""


class StateKeeper:
    """Keeps the state of the assigned partitions.

    Parameters
    ----------
    group, topic
        Consumer group and input topic: whose state it is.
    fingerprint
        Of the features.
    pipeline
        Has the state.
    read
        Reads the topic of state.
    snapshot_interval_s
        Time between two snapshots of a partition, in seconds.
    snapshot_ticks
        Ticks since the last snapshots, of all partitions together, from which on they come sooner.
    warm_up_messages
        Most messages that windows are warmed with where there is no usable snapshot.
    """

    def __init__(
        self,
        group: str,
        topic: str,
        fingerprint: str,
        pipeline: Pipeline,
        read: Read,
        snapshot_interval_s: float,
        snapshot_ticks: int,
        warm_up_messages: int,
    ) -> None:
        self._group, self._topic = group, topic
        self._fingerprint = fingerprint
        self._pipeline = pipeline
        self._read = read
        self._interval_s = snapshot_interval_s
        self._most_ticks = snapshot_ticks
        self._warm_up = warm_up_messages
        self._lock = threading.Lock()  # partitions may go while a commit is prepared
        self._writers: dict[int, StateWriter] = {}
        self._due: dict[int, float] = {}
        self._since: dict[int, int] = {}  # ticks since the last snapshot began
        self._underway: dict[int, tuple[int, Iterator[Record]]] = {}
        self._committed: dict[int, int] = {}

    def restore(self, places: Mapping[int, Place], now_s: float) -> list[Restored]:
        """Give partitions the state that belongs to their next offsets.

        Raises
        ------
        TimeoutError
            The topic of state cannot be read now.
        """
        readers = {p: StateReader(Owner(self._group, self._topic, p)) for p in places}
        self._read(sorted(places), lambda p, key, value: readers[p].take(key, value))
        found = [self._restore(p, place, readers[p]) for p, place in sorted(places.items())]
        for each in found:
            wait_s = self._interval_s * (1 - 0.5 * (each.partition * _SPREAD % 1))
            self._due[each.partition] = now_s + (0.0 if each.source == "warm_up" else wait_s)
            self._since[each.partition] = 0
        return found

    def release(self, partitions: Iterable[int]) -> None:
        """Forget partitions that are not ours any more, or begin anew."""
        with self._lock:
            for partition in partitions:
                self._writers.pop(partition, None)
                self._underway.pop(partition, None)
                self._due.pop(partition, None)
                self._since.pop(partition, None)
                self._committed.pop(partition, None)

    def taken_in(self, partition: int, ticks: int) -> None:
        """Count ticks that went into the windows, be it for the second time."""
        if partition in self._since:
            self._since[partition] += ticks

    def due(self, partitions: Iterable[int], now_s: float) -> int | None:
        """Return one of the partitions if its next snapshot is due.

        It is when its time has come, and when too many ticks have come since the last snapshots of
        all partitions and at least its share of them is its own: then that with the most.
        """
        able = [p for p in partitions if p in self._due and p not in self._underway]
        found = next((p for p in able if now_s >= self._due[p]), None)
        if found is None and able and sum(self._since.values()) >= self._most_ticks:
            most = max(able, key=self._since.__getitem__)
            found = most if self._since[most] * len(self._since) >= self._most_ticks else None
        if found is not None:
            self._due[found] = now_s + self._interval_s
            self._since[found] = 0
        return found

    @property
    def busy(self) -> bool:
        """Whether a snapshot is still to be written out."""
        return bool(self._underway)

    def witnesses(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the committed offsets of these partitions, as far as they are known.

        Committed again with records of state they prove that the partitions are still ours: a
        commit without offsets is refused to nobody.
        """
        with self._lock:
            return {p: self._committed[p] for p in partitions if p in self._committed}

    def committed(self, positions: Mapping[int, int]) -> None:
        """Take note that these next offsets are committed."""
        with self._lock:
            self._committed.update({p: o for p, o in positions.items() if p in self._writers})

    def records(
        self,
        moved: Mapping[int, int],
        snapshots: Mapping[int, tuple[int, Arrays]],
    ) -> list[tuple[int, Record]]:
        """Return what a commit of these next offsets has to carry, by partition.

        Called where nothing beyond the offsets has been decided.

        Parameters
        ----------
        moved
            Next offset of each partition that has moved.
        snapshots
            Partitions whose snapshot begins: the next offset decided last, and their windows there.
        """
        version, model_hash = self._pipeline.model
        model = (self._fingerprint, model_hash, version)
        records: list[tuple[int, Record]] = []
        with self._lock:
            for partition, next_offset in sorted(moved.items()):
                writer = self._writers.get(partition)
                if writer is None:
                    continue
                delta = self._pipeline.take_delta(partition)
                told = writer.delta(*model, next_offset, delta)
                records += [(partition, record) for record in told]
            for partition, (next_offset, windows) in snapshots.items():
                if (writer := self._writers.get(partition)) is not None:
                    whole = self._pipeline.capture_decisions(partition)
                    kept = writer.snapshot(*model, next_offset, windows, whole)
                    self._underway[partition] = next_offset, kept
            for partition, (offset, kept) in list(self._underway.items()):
                # A snapshot voids what stood before it. It must not be ahead of the committed
                # offset: a start from there would find no state.
                if self._committed.get(partition, -1) < offset:
                    continue
                some = list(islice(kept, CHUNKS_A_COMMIT))
                records += [(partition, record) for record in some]
                if len(some) < CHUNKS_A_COMMIT:
                    del self._underway[partition]
        return records

    def _restore(self, partition: int, place: Place, reader: StateReader) -> Restored:
        found = reader.at(place.next_offset, self._fingerprint)
        if isinstance(found, Restorable) and found.snapshot_offset < place.low:
            found = Unusable(
                "offset",
                f"the topic begins at offset {place.low}, the snapshot at {found.snapshot_offset}",
            )
        if isinstance(found, Restorable):
            same = not found.deltas and not found.decisions
            same = same or found.model_hash == self._pipeline.model_hash
            try:
                self._pipeline.restore(
                    partition, found.features, found.decisions, found.deltas, same_model=same
                )
            except ValueError as error:
                found = Unusable("damaged", str(error))
        if isinstance(found, Restorable):
            base = found.snapshot_offset
            self._write_on(partition, reader)
            source: Source = "snapshot" if same else "other_model"
            other = "" if same else f"it is of model {found.model_version}"
            reason = "; ".join(filter(None, [place.note, other]))
            return Restored(partition, source, base, place.next_offset, reason)
        self._pipeline.restore(partition, {}, {}, ())
        new = not place.committed and found.reason == "none"
        base = place.next_offset if new else max(place.low, place.next_offset - self._warm_up)
        self._write_on(partition, reader, base)
        if new:
            return Restored(partition, "new", base, place.next_offset)
        reason = "; ".join(filter(None, [place.note, found.detail]))
        return Restored(partition, "warm_up", base, place.next_offset, reason)

    def _write_on(
        self, partition: int, reader: StateReader, base_offset: int | None = None
    ) -> None:
        owner = Owner(self._group, self._topic, partition)
        with self._lock:
            self._writers[partition] = StateWriter(owner, reader.found(), base_offset=base_offset)
