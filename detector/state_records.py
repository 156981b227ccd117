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
abandoned is never taken for the present one. `StateWriter` knows what of its partition is on the
topic, `StateReader` finds it out. Bytes in, bytes out: no Kafka, no state.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from typing import Final

from detector.snapshots import Arrays, pack
from detector.state_layout import (
    DECISIONS,
    FEATURES,
    Delta,
    Head,
    Origin,
    Place,
    cut,
    digest_of,
    root,
    value_of,
)
from detector.state_reader import Found, Link, Reason, Restorable, StateReader, Unusable

__all__ = [
    "CHUNK_BYTES",
    "Found",
    "Link",
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
        self._seq = found.seq
        self._link = link
        self._deltas = set(found.deltas)
        self._chunks = [set(indices) for indices in found.chunks]
        self._base = link.generation if link.generation is not None else found.newest
        self._life = uuid.uuid4().hex
        # Deltas of other chains and snapshots of ticks beyond: of lives whose commit never came.
        self._stale = sorted(key for key in found.deltas if key[0] not in link.deltas)
        self._dead = sorted(g for g, offset in found.heads.items() if offset > link.next_offset)

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
        parts = cut(body, self._bytes)
        delta = Delta(
            Origin(fingerprint, model_hash, model_version, next_offset, self._seq),
            self._link.id,
            self._life,
            self._link.base_offset,
            len(parts),
            digest_of(body),
        )
        records: list[Record] = [(self._place.key("head", each), None) for each in self._dead]
        records += self._drop(self._stale)
        self._dead, self._stale = [], []
        for part, piece in enumerate(parts):
            records.append((self._place.key("delta", self._seq, part), value_of(delta, piece)))
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
            {FEATURES + name: array for name, array in features.items()}
            | {DECISIONS + name: array for name, array in decisions.items()}
        )
        pieces, digest = cut(body, self._bytes), digest_of(body)
        for index, piece in enumerate(pieces):
            self._chunks[generation].add(index)
            yield self._place.key("chunk", generation, index), value_of(digest, piece)
        head = Head(
            *(origin, link.id, link.next_offset, self._life, link.base_offset),
            *(generation, len(pieces), digest),
        )
        self._base = generation
        yield self._place.key("head", generation), value_of(head, b"")
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
