"""What a partition's state looks like on a compacted topic, and how it is found again.

    chunk chunk ... head  delta delta delta   chunk ... head  (delta) (delta) (delta)  delta
    generation 0                              generation 1    tombstones

A *snapshot* is cut into chunks under one of two generations, and its head, which comes last, makes
it whole: while one generation is written the other stays. A *delta* says what changed up to its
`next_offset`. Deltas are a chain: each names the one before it, by a digest of all it says, and a
snapshot names the last one that it holds. So whatever a crash, a late writer or compaction leaves
behind, either a chain leads from a snapshot, or from the empty state at `base_offset`, exactly to
the wanted offset, or there is none; one that a restart abandoned is never taken for the present
one. `StateWriter` knows what of its partition is on the topic, `StateReader` finds it out. Bytes
in, bytes out: no Kafka, no state.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import orjson

from detector.snapshots import Arrays, SnapshotError, pack, unpack

Record = tuple[bytes, bytes | None]
"""Key and value; the value None is a tombstone."""

Reason = Literal["none", "fingerprint", "damaged", "offset", "gap"]

VERSION: Final = 1
"""Of keys and headers, part of every key: records of another version are another place's."""
CHUNK_BYTES: Final = 900_000
"""Below the 1 MB that brokers accept by default, headers included."""
_GENERATIONS: Final = (0, 1)
_FEATURES: Final = "features/"
_DECISIONS: Final = "decisions/"


@dataclass(frozen=True, slots=True)
class Place:
    """Whose state it is: consumer group, input topic, partition; the prefix of every key."""

    group: str
    topic: str
    partition: int

    def key(self, kind: str, *numbers: int) -> bytes:
        """Return a key: a JSON array, so that no name can be taken for a part of another."""
        return orjson.dumps([VERSION, self.group, self.topic, self.partition, kind, *numbers])

    @property
    def prefix(self) -> bytes:
        """What all keys of the place begin with, and no other does."""
        return orjson.dumps([VERSION, self.group, self.topic, self.partition])[:-1] + b","


@dataclass(frozen=True, slots=True)
class Origin:
    """What made a snapshot or a delta.

    Parameters
    ----------
    fingerprint
        Of the features.
    model_hash, model_version
        The model in force at `next_offset`.
    next_offset
        Offset after the last message that the state knows.
    seq
        Number of the delta; of a snapshot, of the last delta that it holds, -1 for none.
    """

    fingerprint: str
    model_hash: str
    model_version: str
    next_offset: int
    seq: int


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
    newest
        Generation of the latest head, None without.
    link
        Where the last `StateReader.at` led; None where it led nowhere.
    """

    seq: int = -1
    deltas: frozenset[tuple[int, int]] = frozenset()
    chunks: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())
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


@dataclass(frozen=True, slots=True)
class _Head:
    """A snapshot: where it stands, how many chunks it has, and the digest of them together."""

    origin: Origin
    link: str
    base_offset: int
    generation: int
    chunks: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Delta:
    """A delta: what it builds on, how many parts it has, and the digest of them together."""

    origin: Origin
    parent: str
    base_offset: int
    parts: int
    digest: str

    @property
    def id(self) -> str:
        """Digest of all it says, and by that of all that it builds on."""
        return _digest(orjson.dumps(self, option=orjson.OPT_SORT_KEYS))


@dataclass(frozen=True, slots=True)
class _Piece:
    """A chunk or a part: the digest of what it is a piece of, and its bytes."""

    digest: str
    body: bytes


class StateWriter:
    """Makes the records of one partition, and knows which of them are on the topic.

    What it gave must be written, in order: after a failure (an aborted transaction) begin with a
    new reader and writer. One snapshot at a time.

    Parameters
    ----------
    place
        Whose state it is.
    found
        What is on the topic; None: nothing.
    chunk_bytes
        Most bytes of state in one record.
    base_offset
        Begin a new chain, with an empty state at this offset. None: go on from where the last
        `StateReader.at` led.

    Raises
    ------
    ValueError
        No `base_offset`, and nothing that was restored.
    """

    def __init__(
        self,
        place: Place,
        found: Found | None = None,
        chunk_bytes: int = CHUNK_BYTES,
        *,
        base_offset: int | None = None,
    ) -> None:
        found = found or Found()
        if chunk_bytes < 1:
            raise ValueError(f"chunk_bytes: {chunk_bytes}; allowed: 1 or more")
        if base_offset is not None:
            link = Link(_root(base_offset), -1, base_offset, base_offset)
        elif found.link is not None:
            link = found.link
        else:
            raise ValueError("base_offset: None, and no state was restored; needed: the offset "
                             "at which the state was empty")  # fmt: skip
        self._place = place
        self._bytes = chunk_bytes
        self._seq = found.seq
        self._link = link
        self._deltas = set(found.deltas)
        self._chunks = [set(indices) for indices in found.chunks]
        self._base = link.generation if link.generation is not None else found.newest
        # Deltas of other chains: those beyond an offset that was never committed, and leftovers.
        self._stale = sorted(key for key in found.deltas if key[0] not in link.deltas)

    def delta(
        self,
        fingerprint: str,
        model_hash: str,
        model_version: str,
        next_offset: int,
        arrays: Arrays,
    ) -> list[Record]:
        """Return the records of the next delta; all of them are needed to use it.

        The first one of a writer comes after tombstones for deltas that do not lead to it.

        Raises
        ------
        ValueError
            `next_offset` is below that of the delta before.
        """
        self._check(next_offset)
        self._seq += 1
        body = pack(arrays)
        parts = _cut(body, self._bytes)
        delta = _Delta(
            Origin(fingerprint, model_hash, model_version, next_offset, self._seq),
            self._link.id,
            self._link.base_offset,
            len(parts),
            _digest(body),
        )
        stale, self._stale = self._stale, []
        records = list(self._drop(stale))
        for part, piece in enumerate(parts):
            records.append((self._place.key("delta", self._seq, part), _value(delta, piece)))
            self._deltas.add((self._seq, part))
        self._link = Link(delta.id, self._seq, next_offset, self._link.base_offset)
        return records

    def snapshot(
        self,
        fingerprint: str,
        model_hash: str,
        model_version: str,
        next_offset: int,
        features: Arrays,
        decisions: Arrays,
    ) -> Iterator[Record]:
        """Return the records of a snapshot: chunks, then the head, then tombstones.

        It stands for all deltas given before this call. The tombstones are those of these deltas
        and of chunks that no head refers to; until `next_offset` is committed the deltas may still
        be needed, so do not write them before.

        Raises
        ------
        ValueError
            `next_offset` is below that of the last delta.
        """
        self._check(next_offset)
        origin = Origin(fingerprint, model_hash, model_version, next_offset, self._link.seq)
        generation = 0 if self._base is None else 1 - self._base
        return self._snapshot(origin, self._link, generation, features, decisions)

    def _snapshot(
        self, origin: Origin, link: Link, generation: int, features: Arrays, decisions: Arrays
    ) -> Iterator[Record]:
        body = pack(
            {_FEATURES + name: array for name, array in features.items()}
            | {_DECISIONS + name: array for name, array in decisions.items()}
        )
        pieces, digest = _cut(body, self._bytes), _digest(body)
        for index, piece in enumerate(pieces):
            self._chunks[generation].add(index)
            yield self._place.key("chunk", generation, index), _value(digest, piece)
        head = _Head(origin, link.id, link.base_offset, generation, len(pieces), digest)
        self._base = generation
        yield self._place.key("head", generation), _value(head, b"")
        yield from self._drop(sorted(key for key in self._deltas if key[0] <= origin.seq))
        for index in sorted(self._chunks[generation] - set(range(len(pieces)))):
            self._chunks[generation].discard(index)
            yield self._place.key("chunk", generation, index), None

    def _check(self, next_offset: int) -> None:
        if next_offset < self._link.next_offset:
            raise ValueError(
                f"next_offset: {next_offset}; allowed: {self._link.next_offset} or more, where "
                "the last delta led"
            )

    def _drop(self, deltas: Iterable[tuple[int, int]]) -> Iterator[Record]:
        for seq, part in deltas:
            self._deltas.discard((seq, part))
            yield self._place.key("delta", seq, part), None


@dataclass(slots=True)
class _Records:
    """The newest value of every key of a place."""

    heads: dict[int, _Head] = field(default_factory=dict)
    chunks: dict[tuple[int, int], _Piece] = field(default_factory=dict)
    deltas: dict[tuple[int, int], tuple[_Delta, bytes]] = field(default_factory=dict)
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
        header, body = _opened(value)
        if kind == "head":
            head = _head_of(header)
            if head.generation != numbers[0]:
                raise ValueError(f"head of generation {head.generation}")
            self.heads[head.generation] = head
        elif kind == "chunk":
            self.chunks[numbers[0], numbers[1]] = _Piece(_text(header), body)
        else:
            delta = _delta_of(header)
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
            kind, numbers = _parsed(key)
            self._records.drop(kind, numbers)
            if value is not None:
                self._records.put(kind, numbers, value)
        except ValueError as error:
            self._records.damage[key] = str(error)

    def found(self) -> Found:
        """Return what a writer must know; after `at`, so that it goes on from there."""
        records = self._records
        live = [_parsed(key) for key in records.damage if _is_ours(key)]
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

    def _whole_deltas(self) -> dict[str, tuple[_Delta, bytes]]:
        """Return the deltas of which every part is there, by id, with their bytes."""
        whole: dict[str, tuple[_Delta, bytes]] = {}
        for (_, part), (delta, _) in self._records.deltas.items():
            if part or delta.parts > len(self._records.deltas):
                continue
            parts = [
                self._records.deltas.get((delta.origin.seq, each)) for each in range(delta.parts)
            ]
            body = b"".join(found[1] for found in parts if found is not None and found[0] == delta)
            if _digest(body) == delta.digest:
                whole[delta.id] = delta, body
        return whole

    def _chain(
        self,
        end: str,
        next_offset: int,
        fingerprint: str,
        deltas: Mapping[str, tuple[_Delta, bytes]],
    ) -> tuple[Link, Restorable] | Unusable:
        """Go back from the end of a chain to where it begins."""
        steps: list[tuple[_Delta, bytes]] = []
        at, head = end, self._whole_head(end, next_offset, next_offset)
        while head is None and not (steps and at == _root(steps[-1][0].base_offset)):
            delta, body = deltas.get(at, (None, b""))
            if delta is None or not _follows(delta, steps, next_offset):
                return self._gap(f"offset {next_offset}: what comes before {_place_of(steps)}")
            steps.append((delta, body))
            at = delta.parent
            head = self._whole_head(at, 0, delta.origin.next_offset)
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
        head: _Head | None,
        steps: list[tuple[_Delta, bytes]],
        base_offset: int,
        last: Origin,
    ) -> Restorable:
        both = {} if head is None else unpack(self._body(head))
        return Restorable(
            snapshot_offset=base_offset if head is None else head.origin.next_offset,
            features=_under(_FEATURES, both),
            decisions=_under(_DECISIONS, both),
            deltas=tuple(unpack(body) for _, body in reversed(steps)),
            model_hash=last.model_hash,
            model_version=last.model_version,
        )

    def _whole_head(self, link: str, least: int, most: int) -> _Head | None:
        """Return the snapshot that holds the chain up to `link`, from an offset in this range."""
        heads = [
            head
            for head in self._records.heads.values()
            if head.link == link and least <= head.origin.next_offset <= most
        ]
        heads.sort(key=lambda head: head.origin.next_offset, reverse=True)
        return next((head for head in heads if _digest(self._body(head)) == head.digest), None)

    def _body(self, head: _Head) -> bytes:
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
        deltas: Mapping[str, tuple[_Delta, bytes]],
    ) -> tuple[Link, Restorable] | Unusable:
        """Say why, unless this is where a chain begins, with nothing."""
        firsts = [delta for delta, _ in deltas.values() if delta.parent == _root(next_offset)]
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


def _follows(delta: _Delta, steps: list[tuple[_Delta, bytes]], next_offset: int) -> bool:
    """Whether a delta may stand before the others, or as the last one lead to the offset."""
    if not steps:
        return delta.origin.next_offset == next_offset
    after = steps[-1][0].origin
    return delta.origin.seq < after.seq and delta.origin.next_offset <= after.next_offset


def _place_of(steps: list[tuple[_Delta, bytes]]) -> str:
    return f"delta {steps[-1][0].origin.seq}" if steps else "it"


def _root(base_offset: int) -> str:
    """Return the id that stands for an empty state at this offset."""
    return f"base {base_offset}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _cut(body: bytes, size: int) -> list[bytes]:
    return [body[start : start + size] for start in range(0, len(body), size)]


def _under(prefix: str, arrays: Arrays) -> Arrays:
    return {
        name.removeprefix(prefix): array
        for name, array in arrays.items()
        if name.startswith(prefix)
    }


def _value(header: _Head | _Delta | str, body: bytes) -> bytes:
    told = orjson.dumps(header)
    return pack({"header": np.frombuffer(told, np.uint8), "body": np.frombuffer(body, np.uint8)})


def _opened(value: bytes) -> tuple[Any, bytes]:
    """Undo `_value`; raise ValueError where it was none."""
    arrays = unpack(value)
    if set(arrays) != {"header", "body"} or any(a.dtype != np.uint8 for a in arrays.values()):
        raise ValueError(f"a record of {sorted(arrays)}; needed: body and header")
    return orjson.loads(arrays["header"].tobytes()), arrays["body"].tobytes()


def _parsed(key: bytes) -> tuple[str, tuple[int, ...]]:
    """Kind and numbers of a key; raise ValueError where it is none."""
    match [part for part in orjson.loads(key)[4:] if not isinstance(part, bool)]:
        case ["head", int(generation)] if generation in _GENERATIONS:
            return "head", (generation,)
        case ["chunk", int(generation), int(index)] if generation in _GENERATIONS and index >= 0:
            return "chunk", (generation, index)
        case ["delta", int(seq), int(part)] if seq >= 0 and part >= 0:
            return "delta", (seq, part)
        case rest:
            raise ValueError(f"unknown key {rest}")


def _is_ours(key: bytes) -> bool:
    try:
        _parsed(key)
    except ValueError:
        return False
    return True


def _text(found: Any) -> str:  # noqa: ANN401
    if not isinstance(found, str):
        raise ValueError(f"{found!r:.100} where a text should be")  # noqa: TRY004
    return found


def _number(found: Any, least: int = 0) -> int:  # noqa: ANN401
    if type(found) is not int or found < least:
        raise ValueError(f"{found!r:.100} where a number of {least} or more should be")
    return found


def _origin_of(found: Any) -> Origin:  # noqa: ANN401
    match found:
        case {"fingerprint": f, "model_hash": h, "model_version": v, "next_offset": n, "seq": s}:
            return Origin(_text(f), _text(h), _text(v), _number(n), _number(s, -1))
    raise ValueError(f"{found!r:.100} where an origin should be")


def _head_of(found: Any) -> _Head:  # noqa: ANN401
    match found:
        case {"origin": o, "link": k, "base_offset": b, "generation": g, "chunks": n, "digest": d}:
            return _Head(_origin_of(o), _text(k), _number(b), _number(g), _number(n, 1), _text(d))
    raise ValueError(f"{found!r:.100} where a head should be")


def _delta_of(found: Any) -> _Delta:  # noqa: ANN401
    match found:
        case {"origin": o, "parent": p, "base_offset": b, "parts": n, "digest": d}:
            return _Delta(_origin_of(o), _text(p), _number(b), _number(n, 1), _text(d))
    raise ValueError(f"{found!r:.100} where a delta should be")
