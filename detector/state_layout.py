"""Keys and values of the records of a partition's state: what each says, and as which bytes.

A key is a JSON array of version, group, topic, partition, kind, life and numbers:

    [2, "group", "ticks", 3, "head",  LIFE, generation]
    [2, "group", "ticks", 3, "chunk", LIFE, generation, index]
    [2, "group", "ticks", 3, "delta", LIFE, number, part]

With its writer's life in every key, no writer can overwrite what another one wrote. A value is
`snapshots`' form of two arrays, a JSON header and a body, and carries its digest. Whatever cannot
have been written here raises ValueError. It knows neither chains nor Kafka.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import orjson

from detector.snapshots import pack, unpack

VERSION: Final = 2
"""Of keys and headers, part of every key: records of another version are another place's."""
GENERATIONS: Final = (0, 1)
FEATURES: Final = "features/"
DECISIONS: Final = "decisions/"
"""What the names of a snapshot's two sets of arrays begin with."""
_LIFE: Final = re.compile("[0-9a-f]{32}")
_BEGAN: Final = 16  # digits of a life that say when it began
_NUMBERS: Final = {"head": 1, "chunk": 2, "delta": 2}


@dataclass(frozen=True, slots=True, order=True)
class Name:
    """Which record of a place: all that its key says beyond whose state it is.

    Parameters
    ----------
    kind
        "head", "chunk" or "delta".
    life
        Of its writer; see `new_life`.
    numbers
        Of a head its generation, of a chunk generation and index, of a delta number and part.
    """

    kind: str
    life: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Whose state it is: consumer group, input topic, partition; the prefix of every key."""

    group: str
    topic: str
    partition: int

    def key(self, name: Name) -> bytes:
        """Return a key: a JSON array, so that no text can be taken for a part of another."""
        whose = (VERSION, self.group, self.topic, self.partition)
        return orjson.dumps([*whose, name.kind, name.life, *name.numbers])

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

    `link` is the last delta that it holds, which leads to `link_offset`; `life` is its writer's,
    and its chunks are those of the same life and generation.
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


def new_life(known: Iterable[str] = ()) -> str:
    """Return a life: 32 hexadecimal digits, of which the first 16 say when it began.

    It is above every known one; above others by the clock, in nanoseconds since 1970.
    """
    after = max((int(life[:_BEGAN], 16) + 1 for life in known), default=0)
    began = min(max(time.time_ns(), after), (1 << 4 * _BEGAN) - 1)
    return f"{began:0{_BEGAN}x}{secrets.token_hex(8)}"


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


def parsed(key: bytes) -> Name:
    """Return what a key names; raise ValueError where it is none as `Place.key` writes it.

    A tombstone goes to the key as it is written there: no other may stand for the same record.
    """
    found = orjson.loads(key)
    match found:
        case [_, _, _, _, str(kind), str(life), *numbers] if (
            _NUMBERS.get(kind) == len(numbers)
            and _LIFE.fullmatch(life)
            and all(type(number) is int and number >= 0 for number in numbers)
            and (kind == "delta" or numbers[0] in GENERATIONS)
            and orjson.dumps(found) == key
        ):
            return Name(kind, life, tuple(numbers))
    raise ValueError(f"unknown key {key!r:.200}")


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
