"""What a partition's state looks like on a compacted topic, and how it is found again.

    chunk chunk ... head  delta delta delta   chunk ... head  (delta) (delta) (delta)  delta
    generation 0                              generation 1    tombstones

A *snapshot* is cut into chunks under one of two generations, and its head, which comes last, makes
it whole: while one generation is written the other stays. A *delta* says what changed up to its
`next_offset`. Deltas are a chain: each names the one before it, by a digest of all it says, and a
snapshot names the last one that it holds. One that knows ticks beyond that delta is followed only
by deltas of its own writer's life: another life may have decided otherwise on them. So whatever a
crash, a late writer or compaction leaves behind, either a chain leads from a snapshot, or from the
empty state at `base_offset`, exactly to the wanted offset, or there is none; one that a restart
abandoned is never taken for the present one.

A process may be thought dead, and wake up when another one has its partition (a *zombie*); without
transactions nothing stops what it has still to write. So every key has its writer's life in it, a
writer overwrites nobody else's records, and it takes theirs away only once its own snapshot, of a
committed offset, is whole: that stands for all of them. What a zombie writes after that, or after
the present writer read, builds on nothing that counts; the next writer's snapshot takes it away.

`StateWriter` knows what of its partition is on the topic, `StateReader` finds it out. Bytes in,
bytes out: no Kafka, no state.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from detector.snapshots import Arrays, pack
from detector.state_layout import (
    DECISIONS,
    FEATURES,
    Delta,
    Head,
    Name,
    Origin,
    Place,
    cut,
    digest_of,
    new_life,
    root,
    value_of,
)
from detector.state_reader import Found, Link, Reason, Restorable, StateReader, Unusable

__all__ = [
    "CHUNK_BYTES",
    "Found",
    "Link",
    "Name",
    "Origin",
    "Place",
    "Reason",
    "Record",
    "Restorable",
    "StateReader",
    "StateWriter",
    "Unusable",
]

Record = tuple[bytes, bytes | None]
"""Key and value; the value None is a tombstone."""

CHUNK_BYTES: Final = 900_000
"""Below the 1 MB that brokers accept by default, headers included."""


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
            link = Link(root(base_offset), -1, base_offset, base_offset)
        elif found.link is not None:
            link = found.link
        else:
            raise ValueError("base_offset: None, and no state was restored; needed: the offset "
                             "at which the state was empty")  # fmt: skip
        self._place = place
        self._bytes = chunk_bytes
        self._link = link
        self._life = new_life(name.life for name in found.live)
        self._others = set(found.live)
        self._deltas: set[Name] = set()
        self._chunks: tuple[set[Name], set[Name]] = set(), set()
        self._generation = 1  # of the last whole snapshot; the first one's is 0

    def delta(
        self,
        fingerprint: str,
        model_hash: str,
        model_version: str,
        next_offset: int,
        arrays: Arrays,
    ) -> list[Record]:
        """Return the records of the next delta; all of them are needed to use it.

        Raises
        ------
        ValueError
            `next_offset` is below that of the delta before.
        """
        self._check(next_offset)
        seq = self._link.seq + 1
        body = pack(arrays)
        parts = cut(body, self._bytes)
        delta = Delta(
            Origin(fingerprint, model_hash, model_version, next_offset, seq),
            self._link.id,
            self._life,
            self._link.base_offset,
            len(parts),
            digest_of(body),
        )
        records: list[Record] = []
        for part, piece in enumerate(parts):
            name = Name("delta", self._life, (seq, part))
            self._deltas.add(name)
            records.append((self._place.key(name), value_of(delta, piece)))
        self._link = Link(delta.id, seq, next_offset, self._link.base_offset)
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

        It stands for all deltas given before this call, and for all that was found on the topic.
        The tombstones are those of both, and of chunks that no head refers to. Until `next_offset`
        is committed these may still be needed, and the partition may be another writer's: do not
        write them before.

        Raises
        ------
        ValueError
            `next_offset` is below that of the last delta.
        """
        self._check(next_offset)
        origin = Origin(fingerprint, model_hash, model_version, next_offset, self._link.seq)
        return self._snapshot(origin, self._link, 1 - self._generation, features, decisions)

    def _snapshot(
        self, origin: Origin, link: Link, generation: int, features: Arrays, decisions: Arrays
    ) -> Iterator[Record]:
        body = pack(
            {FEATURES + name: array for name, array in features.items()}
            | {DECISIONS + name: array for name, array in decisions.items()}
        )
        pieces, digest = cut(body, self._bytes), digest_of(body)
        chunks = [Name("chunk", self._life, (generation, i)) for i in range(len(pieces))]
        for chunk, piece in zip(chunks, pieces, strict=True):
            self._chunks[generation].add(chunk)
            yield self._place.key(chunk), value_of(digest, piece)
        head = Head(
            *(origin, link.id, link.next_offset, self._life, link.base_offset),
            *(generation, len(pieces), digest),
        )
        self._generation = generation
        yield self._place.key(Name("head", self._life, (generation,))), value_of(head, b"")
        held = {delta for delta in self._deltas if delta.numbers[0] <= origin.seq}
        yield from self._drop(self._deltas, held)
        yield from self._drop(self._chunks[generation], self._chunks[generation] - set(chunks))
        yield from self._drop(self._others, self._others)

    def _check(self, next_offset: int) -> None:
        if next_offset < self._link.next_offset:
            raise ValueError(
                f"next_offset: {next_offset}; allowed: {self._link.next_offset} or more, where "
                "the last delta led"
            )

    def _drop(self, known: set[Name], names: Iterable[Name]) -> Iterator[Record]:
        for name in sorted(names):
            known.discard(name)
            yield self._place.key(name), None
