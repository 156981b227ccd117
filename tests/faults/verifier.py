"""What the input topic must have led to, and how what was published differs from it.

Expected events are computed anew from the bytes on the tick topic, partition by partition in order
of offset, with the decoder and the pipeline that `tapewatch score` drives, in one uninterrupted
life. `judge` compares plain lists and knows neither Kafka nor a pipeline, so that it can be tested
with lists that were doctored.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import orjson
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from detector.artifact import read_artifact
from detector.pipeline import Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.symbols import SymbolMap
from detector.wire import make_decoder
from tests.faults.feed import FeedFormat

Delivery = Literal["exactly_once", "at_least_once"]

_CHUNK: Final = 1024
_READ_WITHIN_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Record:
    """One event or dead letter, reduced to what is compared.

    Parameters
    ----------
    identity
        Equal for a record and its repeat.
    group
        Within a group records must keep their order: the instrument's.
    content
        All that is a function of the input.
    told
        Which event it is and when it was told, for people.
    """

    identity: Hashable
    group: Hashable
    content: bytes
    told: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How what was seen differs from what was expected; all but the first two should be 0.

    Parameters
    ----------
    expected, seen
        Numbers of records.
    lost
        Expected and never seen.
    repeated
        Seen again, with equal content.
    altered
        Seen with content other than expected.
    unexpected
        Seen and never expected.
    out_of_order
        Seen for the first time after one that should have followed it.
    examples
        Some of the above, for people.
    """

    expected: int
    seen: int
    lost: int
    repeated: int
    altered: int
    unexpected: int
    out_of_order: int
    examples: tuple[str, ...] = ()

    def violations(self, delivery: Delivery) -> dict[str, int]:
        """Return what the guarantee forbids and happened all the same."""
        forbidden = ["lost", "altered", "unexpected", "out_of_order"]
        if delivery == "exactly_once":
            forbidden.append("repeated")
        return {name: n for name in forbidden if (n := getattr(self, name))}


def judge(expected: Sequence[Record], seen: Sequence[Record]) -> Verdict:
    """Compare the records of a topic, each group's in order, with those expected."""
    wanted = {record.identity: record for record in expected}
    place = {record.identity: i for i, record in enumerate(expected)}
    if len(wanted) != len(expected):
        raise ValueError(f"{len(expected) - len(wanted)} expected records have one identity")
    counts: Counter[str] = Counter()
    examples: list[str] = []
    latest: dict[Hashable, int] = {}
    met: set[Hashable] = set()
    told: dict[Hashable, str] = {}

    def note(what: str, record: Record, detail: str = "") -> None:
        counts[what] += 1
        if counts[what] <= 3:
            examples.append(f"{what}: {record.identity} of {record.group}{detail}")

    for record in seen:
        want = wanted.get(record.identity)
        if want is None:
            note("unexpected", record)
            continue
        if record.content != want.content:
            note("altered", record, f": {_difference(want.content, record.content)}")
        elif record.identity in met:
            note("repeated", record, f": first {told[record.identity]}, then {record.told}")
        if record.identity in met:
            continue
        met.add(record.identity)
        told[record.identity] = record.told
        at = place[record.identity]
        if at < latest.get(record.group, -1):
            note("out_of_order", record)
        latest[record.group] = max(at, latest.get(record.group, -1))
    for identity, record in wanted.items():
        if identity not in met:
            note("lost", record)
    kinds = ("lost", "repeated", "altered", "unexpected", "out_of_order")
    return Verdict(
        len(expected), len(seen), **{kind: counts[kind] for kind in kinds}, examples=tuple(examples)
    )


def _difference(want: bytes, got: bytes) -> str:
    """Say in which fields two contents differ, or what they are where they have no fields."""
    try:
        wanted, found = orjson.loads(want), orjson.loads(got)
        names = [n for n in sorted({*wanted, *found}) if wanted.get(n) != found.get(n)]
        return ", ".join(f"{n} {wanted.get(n)!r} became {found.get(n)!r}" for n in names)[:500]
    except (ValueError, TypeError):
        return f"{want[:100]!r} became {got[:100]!r}"


def expected_records(
    messages: Sequence[Message], model: Path, fmt: FeedFormat, spec: PipelineSpec
) -> tuple[list[Record], list[Record]]:
    """Events and dead letters that the tick topic's messages must lead to.

    Each partition's messages must be in order of offset and complete from the topic's beginning.
    """
    artifact = read_artifact(model)
    decoder, scorer = make_decoder(fmt), Scorer(artifact, "cpu")
    events: list[Record] = []
    letters: list[Record] = []
    for partition, mine in _by_partition(messages).items():
        # A pipeline each: nothing may depend on what other partitions hold.
        pipeline = Pipeline(artifact.features, scorer, spec, SymbolMap(artifact.symbols))
        for start in range(0, len(mine), _CHUNK):
            chunk = mine[start : start + _CHUNK]
            values = [message.value() for message in chunk]
            offsets = [_offset(message) for message in chunk]
            decoded = decoder.decode(values, offsets, partition)
            for refused in decoded.rejected:
                value = values[refused.row]
                place = (partition, offsets[refused.row])
                letters.append(Record(place, place, _letter_content(value)))
            if decoded.batch is not None:
                found = pipeline.process(decoded.batch).events
                events += [event_record(event.to_dict(0)) for event in found]
    return events, letters


def event_record(event: dict[str, Any]) -> Record:
    """Reduce an event's JSON object; `ts_detected` alone is no function of the input."""
    content = {name: value for name, value in event.items() if name != "ts_detected"}
    instrument = (event["publisher_id"], event["instrument_id"])
    source = event["source"]
    told = (
        f"{event['phase']} at {source['partition']}@{source['offset']}, detected "
        f"{event['ts_detected'] / 1e9:.3f}"
    )
    content_json = orjson.dumps(content, option=orjson.OPT_SORT_KEYS)
    return Record(event["event_id"], instrument, content_json, told)


def letter_record(letter: Message) -> Record:
    """Reduce a dead letter; one that was cut for its size counts as whole if its digest says so.

    Each is a group of its own: a letter that was cut comes later, and no order is promised.
    """
    headers = cast("dict[str, bytes]", dict(letter.headers() or []))
    partition = int(headers["tapewatch_partition"])
    place = (partition, int(headers["tapewatch_offset"]))
    value = letter.value()
    if "tapewatch_sha256" in headers:
        size = headers["tapewatch_truncated_from"].decode()
        return Record(place, place, f"{size} {headers['tapewatch_sha256'].decode()}".encode())
    return Record(place, place, _letter_content(value))


def _letter_content(value: bytes | None) -> bytes:
    if value is None:
        return b"none"
    return f"{len(value)} {hashlib.sha256(value).hexdigest()}".encode()


def _by_partition(messages: Sequence[Message]) -> dict[int, list[Message]]:
    found: dict[int, list[Message]] = defaultdict(list)
    for message in messages:
        mine = found[message.partition() or 0]
        if _offset(message) != len(mine):
            raise ValueError(f"partition {message.partition()}: a gap before {message.offset()}")
        mine.append(message)
    return dict(sorted(found.items()))


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None
    return offset


def read_all(bootstrap: str, topic: str, partitions: int) -> list[Message]:
    """Read all that a read_committed consumer may see of a topic, now that nothing writes to it."""
    return list(reading(bootstrap, topic, partitions))


def reading(bootstrap: str, topic: str, partitions: int) -> Iterator[Message]:
    """Give the same one by one."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "verifier",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.message.max.bytes": 8 * 1024 * 1024,
        }
    )
    try:
        # To the last stable offset: to that of a transaction left open, if there is one.
        consumer.assign([TopicPartition(topic, p, 0) for p in range(partitions)])
        open_partitions = set(range(partitions))
        heard = time.monotonic()
        while open_partitions:
            fetched = consumer.consume(5000, 0.1)
            if fetched:
                heard = time.monotonic()
            elif time.monotonic() - heard > _READ_WITHIN_S:
                raise TimeoutError(f"{topic}: no answer within {_READ_WITHIN_S} s")
            for message in fetched:
                error = message.error()
                if error is None:
                    yield message
                elif error.code() == KafkaError._PARTITION_EOF:
                    open_partitions.discard(message.partition())
                else:
                    raise RuntimeError(f"{topic}: {error.str()}")
    finally:
        consumer.close()
