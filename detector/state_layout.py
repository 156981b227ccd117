"""Keys and values of the records of a partition's state: what each says, and as which bytes.

A key is a JSON array: version, group, topic, partition, kind and numbers. A value is `snapshots`'
form of two arrays, a JSON header and a body, and carries its digest. Whatever cannot have been
written here raises ValueError. It knows neither chains nor Kafka.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from detector.snapshots import pack, unpack

VERSION: Final = 1
"""Of keys and headers, part of every key: records of another version are another place's."""
GENERATIONS: Final = (0, 1)
FEATURES: Final = "features/"
DECISIONS: Final = "decisions/"
"""What the names of a snapshot's two sets of arrays begin with."""


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
class Head:
    """A snapshot: where it stands, how many chunks it has, and the digest of them together.

    `link` is the last delta that it holds, which leads to `link_offset`; `life` is its writer's.
    """

    origin: Origin
    link: str
    link_offset: int
    life: str
    base_offset: int
    generation: int
    chunks: int
    digest: str


@dataclass(frozen=True, slots=True)
class Delta:
    """A delta: what it builds on, how many parts it has, and the digest of them together."""

    origin: Origin
    parent: str
    life: str
    base_offset: int
    parts: int
    digest: str

    @property
    def id(self) -> str:
        """Digest of all it says, and by that of all that it builds on."""
        return digest_of(orjson.dumps(self, option=orjson.OPT_SORT_KEYS))


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk or a part: the digest of what it is a piece of, and its bytes."""

    digest: str
    body: bytes


def root(base_offset: int) -> str:
    """Return the id that stands for an empty state at this offset."""
    return f"base {base_offset}"


def digest_of(data: bytes) -> str:
    """Return the BLAKE2b digest of 16 bytes, in hex."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def cut(body: bytes, size: int) -> list[bytes]:
    """Return the bytes in pieces of at most this size."""
    return [body[start : start + size] for start in range(0, len(body), size)]


def value_of(header: Head | Delta | str, body: bytes) -> bytes:
    """Return a value: of a head, of a part of a delta, or of a chunk of what has this digest."""
    told = orjson.dumps(header)
    return pack({"header": np.frombuffer(told, np.uint8), "body": np.frombuffer(body, np.uint8)})


def opened(value: bytes) -> tuple[Any, bytes]:
    """Undo `value_of`; raise ValueError where it was none."""
    arrays = unpack(value)
    if set(arrays) != {"header", "body"} or any(a.dtype != np.uint8 for a in arrays.values()):
        raise ValueError(f"a record of {sorted(arrays)}; needed: body and header")
    return orjson.loads(arrays["header"].tobytes()), arrays["body"].tobytes()


def parsed(key: bytes) -> tuple[str, tuple[int, ...]]:
    """Kind and numbers of a key; raise ValueError where it is none."""
    match [part for part in orjson.loads(key)[4:] if not isinstance(part, bool)]:
        case ["head", int(generation)] if generation in GENERATIONS:
            return "head", (generation,)
        case ["chunk", int(generation), int(index)] if generation in GENERATIONS and index >= 0:
            return "chunk", (generation, index)
        case ["delta", int(seq), int(part)] if seq >= 0 and part >= 0:
            return "delta", (seq, part)
        case rest:
            raise ValueError(f"unknown key {rest}")


def is_key(key: bytes) -> bool:
    """Whether `parsed` takes it."""
    try:
        parsed(key)
    except ValueError:
        return False
    return True


def text_of(found: Any) -> str:  # noqa: ANN401
    """Return what must be a text, or raise ValueError."""
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
            return Origin(text_of(f), text_of(h), text_of(v), _number(n), _number(s, -1))
    raise ValueError(f"{found!r:.100} where an origin should be")


def head_of(found: Any) -> Head:  # noqa: ANN401
    """Return the head that a header tells, or raise ValueError."""
    match found:
        case {"origin": origin, "link": link, "link_offset": offset, "life": life,
              "base_offset": base, "generation": generation, "chunks": n, "digest": d}:  # fmt: skip
            return Head(
                origin=_origin_of(origin),
                link=text_of(link),
                link_offset=_number(offset),
                life=text_of(life),
                base_offset=_number(base),
                generation=_number(generation),
                chunks=_number(n, 1),
                digest=text_of(d),
            )
    raise ValueError(f"{found!r:.100} where a head should be")


def delta_of(found: Any) -> Delta:  # noqa: ANN401
    """Return the delta that a header tells, or raise ValueError."""
    match found:
        case {"origin": o, "parent": p, "life": w, "base_offset": b, "parts": n, "digest": d}:
            return Delta(
                _origin_of(o), text_of(p), text_of(w), _number(b), _number(n, 1), text_of(d)
            )
    raise ValueError(f"{found!r:.100} where a delta should be")
