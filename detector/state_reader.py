"""What the records on a compacted topic say of a partition's state: the way back from them.

`StateReader` folds records in the order of the topic, and goes from the end of a chain of deltas
back to the snapshot that it begins with. Which chains there are is told in `state_records`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from detector.snapshots import Arrays, SnapshotError, unpack
from detector.state_layout import (
    DECISIONS,
    FEATURES,
    Delta,
    Head,
    Origin,
    Piece,
    Place,
    delta_of,
    digest_of,
    head_of,
    is_key,
    opened,
    parsed,
    root,
    text_of,
)

Reason = Literal["none", "fingerprint", "damaged", "offset", "gap"]


@dataclass(frozen=True, slots=True)
class Link:
    """The end of a chain of deltas: what the next one builds on.

    Parameters
    ----------
    id
        Digest of the last delta, or what stands for the empty state.
    seq
        Number of the last delta; -1: none.
    next_offset
        Where it leads.
    base_offset
        Where the state was empty.
    generation
        Of the snapshot that the chain begins with; None: it begins with the empty state.
    deltas
        Numbers of the deltas after it.
    """

    id: str
    seq: int
    next_offset: int
    base_offset: int
    generation: int | None = None
    deltas: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Found:
    """What of a place is on the topic.

    Parameters
    ----------
    seq
        Highest number of a delta that anything speaks of; -1: none.
    deltas
        Number and part of each live record of a delta, of whatever chain.
    chunks
        Indices of live chunks, by generation.
    heads
        Offset of each live head, by generation.
    newest
        Generation of the latest head, None without.
    link
        Where the last `StateReader.at` led; None where it led nowhere.
    """

    seq: int = -1
    deltas: frozenset[tuple[int, int]] = frozenset()
    chunks: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
    heads: Mapping[int, int] = field(default_factory=dict)
    newest: int | None = None
    link: Link | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Restorable:
    """A state that leads exactly to the wanted offset.

    Parameters
    ----------
    snapshot_offset
        Offset from which features are to be replayed.
    features, decisions
        The snapshot; both empty where nothing had been seen there yet.
    deltas
        In order.
    model_hash, model_version
        The model in force at the wanted offset.
    """

    snapshot_offset: int
    features: Arrays
    decisions: Arrays
    deltas: tuple[Arrays, ...]
    model_hash: str
    model_version: str


@dataclass(frozen=True, slots=True)
class Unusable:
    """Why there is none.

    Parameters
    ----------
    reason
        "none": nothing is there. "fingerprint": other features. "damaged": a record cannot be read.
        "offset": nothing leads to this offset. "gap": a part of what does is missing.
    detail
        For people.
    """

    reason: Reason
    detail: str


@dataclass(slots=True)
class _Records:
    """The newest value of every key of a place."""

    heads: dict[int, Head] = field(default_factory=dict)
    chunks: dict[tuple[int, int], Piece] = field(default_factory=dict)
    deltas: dict[tuple[int, int], tuple[Delta, bytes]] = field(default_factory=dict)
    damage: dict[bytes, str] = field(default_factory=dict)

    def drop(self, kind: str, numbers: tuple[int, ...]) -> None:
        if kind == "head":
            self.heads.pop(numbers[0], None)
        elif kind == "chunk":
            self.chunks.pop((numbers[0], numbers[1]), None)
        else:
            self.deltas.pop((numbers[0], numbers[1]), None)

    def put(self, kind: str, numbers: tuple[int, ...], value: bytes) -> None:
        """Take a value in; raise ValueError where it is none of this key."""
        header, body = opened(value)
        if kind == "head":
            head = head_of(header)
            if head.generation != numbers[0]:
                raise ValueError(f"head of generation {head.generation}")
            self.heads[head.generation] = head
        elif kind == "chunk":
            self.chunks[numbers[0], numbers[1]] = Piece(text_of(header), body)
        else:
            delta = delta_of(header)
            if delta.origin.seq != numbers[0] or numbers[1] >= delta.parts:
                raise ValueError(f"delta {delta.origin.seq} of {delta.parts} parts")
            self.deltas[numbers[0], numbers[1]] = delta, body


class StateReader:
    """Folds the records of a place, in the order of the topic, and finds the state in them.

    Parameters
    ----------
    place
        Whose state is wanted.
    """

    def __init__(self, place: Place) -> None:
        self._prefix = place.prefix
        self._records = _Records()
        self._link: Link | None = None

    def take(self, key: bytes, value: bytes | None) -> None:
        """Take in one record. Other places' are ignored; what cannot be read is remembered."""
        if not key.startswith(self._prefix):
            return
        self._records.damage.pop(key, None)
        try:
            kind, numbers = parsed(key)
            self._records.drop(kind, numbers)
            if value is not None:
                self._records.put(kind, numbers, value)
        except ValueError as error:
            self._records.damage[key] = str(error)

    def found(self) -> Found:
        """Return what a writer must know; after `at`, so that it goes on from there."""
        records = self._records
        live = [parsed(key) for key in records.damage if is_key(key)]
        live += [("delta", key) for key in records.deltas] + [("chunk", k) for k in records.chunks]
        deltas = {(numbers[0], numbers[1]) for kind, numbers in live if kind == "delta"}
        chunks = {(numbers[0], numbers[1]) for kind, numbers in live if kind == "chunk"}
        seqs = [seq for seq, _ in deltas] + [head.origin.seq for head in records.heads.values()]
        newest = max(
            records.heads.values(),
            key=lambda head: (head.origin.seq, head.origin.next_offset),
            default=None,
        )
        return Found(
            seq=max(seqs, default=-1),
            deltas=frozenset(deltas),
            chunks=(
                frozenset(index for generation, index in chunks if generation == 0),
                frozenset(index for generation, index in chunks if generation == 1),
            ),
            heads={g: head.origin.next_offset for g, head in records.heads.items()},
            newest=None if newest is None else newest.generation,
            link=self._link,
        )

    def at(self, next_offset: int, fingerprint: str) -> Restorable | Unusable:
        """Find the state at an offset, in features of this fingerprint.

        Of several ends at the offset the latest counts; of several snapshots the one with the
        fewest deltas after it.
        """
        self._link = None
        records, deltas = self._records, self._whole_deltas()
        if not (records.heads or records.chunks or records.deltas or records.damage):
            return Unusable("none", "no record of this partition")
        origins = [(delta.origin, end) for end, (delta, _) in deltas.items()]
        origins += [(head.origin, head.link) for head in records.heads.values()]
        ends = sorted(
            ((o.seq, end) for o, end in origins if o.next_offset == next_offset), reverse=True
        )
        answers = [
            self._chain(end, next_offset, fingerprint, deltas)
            for end in dict.fromkeys(end for _, end in ends)
        ] or [self._nothing_led_to(next_offset, fingerprint, deltas)]
        for answer in answers:
            if not isinstance(answer, Unusable):
                self._link, restorable = answer
                return restorable
        return next(answer for answer in answers if isinstance(answer, Unusable))

    def _whole_deltas(self) -> dict[str, tuple[Delta, bytes]]:
        """Return the deltas of which every part is there, by id, with their bytes."""
        whole: dict[str, tuple[Delta, bytes]] = {}
        for (_, part), (delta, _) in self._records.deltas.items():
            if part or delta.parts > len(self._records.deltas):
                continue
            parts = [
                self._records.deltas.get((delta.origin.seq, each)) for each in range(delta.parts)
            ]
            body = b"".join(found[1] for found in parts if found is not None and found[0] == delta)
            if digest_of(body) == delta.digest:
                whole[delta.id] = delta, body
        return whole

    def _chain(
        self,
        end: str,
        next_offset: int,
        fingerprint: str,
        deltas: Mapping[str, tuple[Delta, bytes]],
    ) -> tuple[Link, Restorable] | Unusable:
        """Go back from the end of a chain to where it begins."""
        steps: list[tuple[Delta, bytes]] = []
        at, head = end, self._whole_head(end, next_offset, next_offset)
        while head is None and not (steps and at == root(steps[-1][0].base_offset)):
            delta, body = deltas.get(at, (None, b""))
            if delta is None or not _follows(delta, steps, next_offset):
                return self._gap(f"offset {next_offset}: what comes before {_place_of(steps)}")
            steps.append((delta, body))
            at = delta.parent
            head = self._whole_head(at, 0, delta.origin.next_offset, delta.life)
        begin = steps[-1][0] if head is None else head
        last = steps[0][0].origin if steps else begin.origin
        link = Link(
            id=end,
            seq=last.seq,
            next_offset=next_offset,
            base_offset=begin.base_offset,
            generation=None if head is None else head.generation,
            deltas=frozenset(delta.origin.seq for delta, _ in steps),
        )
        origins = [begin.origin, *(delta.origin for delta, _ in steps)]
        others = {origin.fingerprint for origin in origins} - {fingerprint}
        if others:
            return Unusable("fingerprint", f"state of features {min(others)[:12]}, not "
                                           f"{fingerprint[:12]}")  # fmt: skip
        try:
            return link, self._restorable(head, steps, begin.base_offset, last)
        except SnapshotError as error:
            return Unusable("damaged", str(error))

    def _restorable(
        self,
        head: Head | None,
        steps: list[tuple[Delta, bytes]],
        base_offset: int,
        last: Origin,
    ) -> Restorable:
        both = {} if head is None else unpack(self._body(head))
        return Restorable(
            snapshot_offset=base_offset if head is None else head.origin.next_offset,
            features=_under(FEATURES, both),
            decisions=_under(DECISIONS, both),
            deltas=tuple(unpack(body) for _, body in reversed(steps)),
            model_hash=last.model_hash,
            model_version=last.model_version,
        )

    def _whole_head(self, link: str, least: int, most: int, life: str | None = None) -> Head | None:
        """Return the snapshot that holds the chain up to `link`, from an offset in this range.

        Where it knows ticks beyond `link`, they were decided in its writer's life: the delta that
        follows must then be of the same one.
        """
        heads = [
            head
            for head in self._records.heads.values()
            if head.link == link
            and least <= head.origin.next_offset <= most
            and (life in {None, head.life} or head.origin.next_offset == head.link_offset)
        ]
        heads.sort(key=lambda head: head.origin.next_offset, reverse=True)
        return next((head for head in heads if digest_of(self._body(head)) == head.digest), None)

    def _body(self, head: Head) -> bytes:
        """Return the chunks that are there of a snapshot, joined."""
        chunks = self._records.chunks
        if head.chunks > len(chunks):
            return b""
        pieces = [chunks.get((head.generation, index)) for index in range(head.chunks)]
        return b"".join(p.body for p in pieces if p is not None and p.digest == head.digest)

    def _nothing_led_to(
        self,
        next_offset: int,
        fingerprint: str,
        deltas: Mapping[str, tuple[Delta, bytes]],
    ) -> tuple[Link, Restorable] | Unusable:
        """Say why, unless this is where a chain begins, with nothing."""
        firsts = [delta for delta, _ in deltas.values() if delta.parent == root(next_offset)]
        for first in firsts:
            if first.origin.fingerprint == fingerprint:
                link = Link(first.parent, -1, next_offset, next_offset)
                return link, self._restorable(None, [], next_offset, first.origin)
        parts = [delta.origin.next_offset for delta, _ in self._records.deltas.values()]
        if self._records.damage or next_offset in parts:
            return self._gap(f"offset {next_offset}: what leads there")
        origins = [delta.origin for delta, _ in deltas.values()]
        origins += [head.origin for head in self._records.heads.values()]
        if origins and all(origin.fingerprint != fingerprint for origin in origins):
            return Unusable("fingerprint", f"state of features {origins[0].fingerprint[:12]}, not "
                                           f"{fingerprint[:12]}")  # fmt: skip
        known = sorted({origin.next_offset for origin in origins})
        return Unusable("offset", f"no state at offset {next_offset}; there is at {known[-5:]}")

    def _gap(self, what: str) -> Unusable:
        """Something is missing; where something else could not be read, it may be that."""
        for key, why in self._records.damage.items():
            return Unusable("damaged", f"{what}; {key.decode(errors='replace')}: {why}")
        return Unusable("gap", f"{what} is not there")


def _follows(delta: Delta, steps: list[tuple[Delta, bytes]], next_offset: int) -> bool:
    """Whether a delta may stand before the others, or as the last one lead to the offset."""
    if not steps:
        return delta.origin.next_offset == next_offset
    after = steps[-1][0].origin
    return delta.origin.seq < after.seq and delta.origin.next_offset <= after.next_offset


def _place_of(steps: list[tuple[Delta, bytes]]) -> str:
    return f"delta {steps[-1][0].origin.seq}" if steps else "it"


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }
