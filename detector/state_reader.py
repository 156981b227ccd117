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
    Name,
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
    """

    id: str
    seq: int
    next_offset: int
    base_offset: int


@dataclass(frozen=True, slots=True)
class Found:
    """What of a place is on the topic.

    Parameters
    ----------
    live
        Every record that is no tombstone, of whatever life and chain, readable or not.
    link
        Where the last `StateReader.at` led; None where it led nowhere.
    """

    live: frozenset[Name] = frozenset()
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

    heads: dict[Name, Head] = field(default_factory=dict)
    chunks: dict[Name, Piece] = field(default_factory=dict)
    deltas: dict[Name, tuple[Delta, bytes]] = field(default_factory=dict)
    damage: dict[bytes, str] = field(default_factory=dict)

    def drop(self, name: Name) -> None:
        self.heads.pop(name, None)
        self.chunks.pop(name, None)
        self.deltas.pop(name, None)

    def put(self, name: Name, value: bytes) -> None:
        """Take a value in; raise ValueError where it is none of this key."""
        header, body = opened(value)
        if name.kind == "head":
            head = head_of(header)
            if (head.life, head.generation) != (name.life, *name.numbers):
                raise ValueError(f"head of generation {head.generation} of {head.life:.32}")
            self.heads[name] = head
        elif name.kind == "chunk":
            self.chunks[name] = Piece(text_of(header), body)
        else:
            delta = delta_of(header)
            seq, part = name.numbers
            if (delta.life, delta.origin.seq) != (name.life, seq) or part >= delta.parts:
                raise ValueError(
                    f"delta {delta.origin.seq} of {delta.parts} parts of {delta.life:.32}"
                )
            self.deltas[name] = delta, body


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
            name = parsed(key)
            self._records.drop(name)
            if value is not None:
                self._records.put(name, value)
        except ValueError as error:
            self._records.damage[key] = str(error)

    def found(self) -> Found:
        """Return what a writer must know; after `at`, so that it goes on from there."""
        records = self._records
        damaged = (parsed(key) for key in records.damage if is_key(key))
        return Found(
            live=frozenset((*damaged, *records.heads, *records.chunks, *records.deltas)),
            link=self._link,
        )

    def at(self, next_offset: int, fingerprint: str) -> Restorable | Unusable:
        """Find the state at an offset, in features of this fingerprint.

        Of several ends at the offset those of the latest life count, and of these the latest: an
        older life's is of a run whose commit never came, or of a zombie. Of several snapshots it is
        the one with the fewest deltas after it.
        """
        self._link = None
        records, deltas = self._records, self._whole_deltas()
        if not (records.heads or records.chunks or records.deltas or records.damage):
            return Unusable("none", "no record of this partition")
        told = [(delta.life, delta.origin, end) for end, (delta, _) in deltas.items()]
        told += [(head.life, head.origin, head.link) for head in records.heads.values()]
        led = [each for each in told if each[1].next_offset == next_offset]
        latest = max((life for life, _, _ in led), default="")
        ends = sorted(((o.seq, end) for life, o, end in led if life == latest), reverse=True)
        answers = [
            self._chain(end, latest, next_offset, fingerprint, deltas)
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
        for name, (delta, _) in self._records.deltas.items():
            seq, part = name.numbers
            if part or delta.parts > len(self._records.deltas):
                continue
            names = [Name("delta", name.life, (seq, each)) for each in range(delta.parts)]
            parts = [self._records.deltas.get(each) for each in names]
            body = b"".join(found[1] for found in parts if found is not None and found[0] == delta)
            if digest_of(body) == delta.digest:
                whole[delta.id] = delta, body
        return whole

    def _chain(
        self,
        end: str,
        life: str,
        next_offset: int,
        fingerprint: str,
        deltas: Mapping[str, tuple[Delta, bytes]],
    ) -> tuple[Link, Restorable] | Unusable:
        """Go back from the end of a chain, which this life told of, to where it begins."""
        steps: list[tuple[Delta, bytes]] = []
        at, head = end, self._whole_head(end, next_offset, next_offset, life)
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

    def _whole_head(self, link: str, least: int, most: int, life: str) -> Head | None:
        """Return the snapshot that holds the chain up to `link`, from an offset in this range.

        Where it knows ticks beyond `link`, they were decided in its writer's life: what follows, in
        this life, must then be of the same one.
        """
        heads = [
            head
            for head in self._records.heads.values()
            if head.link == link
            and least <= head.origin.next_offset <= most
            and (life == head.life or head.origin.next_offset == head.link_offset)
        ]
        heads.sort(key=lambda head: head.origin.next_offset, reverse=True)
        return next((head for head in heads if digest_of(self._body(head)) == head.digest), None)

    def _body(self, head: Head) -> bytes:
        """Return the chunks that are there of a snapshot, joined."""
        chunks = self._records.chunks
        if head.chunks > len(chunks):
            return b""
        names = [Name("chunk", head.life, (head.generation, i)) for i in range(head.chunks)]
        pieces = [chunks.get(name) for name in names]
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
