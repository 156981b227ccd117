"""A hundred thousand bad and mutated messages among good ones, in all three formats.

Two kinds. *Broken* messages cannot be ticks by construction; they must be dead-lettered, once and
byte for byte. *Mutated* ones have bits or characters changed anywhere and may still be ticks: they
are dead-lettered, dropped and counted, or processed, as the same bytes are when decoded alone
without Kafka. They bear instruments of their own, so that they cannot rightly change a good score.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from confluent_kafka import Producer

from benchmarks.processes import MeasurementError, cluster
from benchmarks.real_data.report import table
from benchmarks.real_data.running import (
    Desk,
    Expected,
    Record,
    compare,
    expect,
    read_all,
    tapewatch,
    watch,
)
from detector.artifact import read_artifact
from detector.readers import read_files, read_vectors
from detector.ticks import DROPPED, TICK, TRADE, TickBatch
from detector.wire import Format, encode_dbn, encode_json, encode_vector, make_decoder

TITLE: Final = "A hundred thousand bad messages among good ones"
SEED: Final = 20120621
BAD: Final[dict[Format, int]] = {"dbn": 60_000, "json": 25_000, "vector": 15_000}
GOOD: Final = 30_000
"""Good messages of a format, at most."""
MUTATED_SHARE: Final = 0.4
PARTITIONS: Final = 2
HUGE: Final = 900_000
NOON: Final = "2012-06-21T16:45:00Z"
SERIES: Final = ("Twitter_volume_AAPL", "Twitter_volume_AMZN")
STRANGER: Final = 0xDEAD_0000
"""Instrument ids of mutated ticks: no few bits lead from here to a good one's."""

Good = list[tuple[int, bytes]]
"""Partition and value, in order."""
Maker = Callable[[random.Random, bytes], bytes | None]


def measure(data: Path, folder: Path, bootstrap: str | None) -> dict[str, Any]:
    """Run the scenario; the facts for JSON."""
    lobster = [
        data / "lobster" / f"LOBSTER_SampleFile_{s}_2012-06-21_1.zip" for s in ("AAPL", "AMZN")
    ]
    series = [data / "nab" / "data" / "realTweets" / f"{name}.csv" for name in SERIES]
    ticks, vectors = folder / "ticks", folder / "vectors"
    brief = ("--overwrite", "--epochs", 3, "--quantile", 0.995)
    tapewatch(
        *("train", "--ticks", lobster[0], "--ticks", lobster[1], "--until", NOON),
        *("--out", ticks, *brief),
    )
    tapewatch(
        *("train", "--ticks", series[0], "--ticks", series[1], "--columns", "value"),
        *("--out", vectors, *brief),
    )
    good: dict[Format, Good] = {
        "dbn": _tick_messages(lobster, encode_dbn),
        "json": _tick_messages(lobster, lambda part: encode_json(part, None)),
        "vector": _vector_messages(series),
    }
    formats = {}
    with cluster(bootstrap) as kafka:
        for fmt in BAD:
            model = vectors if fmt == "vector" else ticks
            desk = Desk(
                folder,
                kafka,
                model,
                name=fmt,
                suffix=f"-{fmt}",
                partitions=PARTITIONS,
                ticks=f"ticks-{fmt}",
                more=f'[input]\nformat = "{fmt}"\n',
            )
            formats[fmt] = _through(desk, fmt, good[fmt])
    return {"seed": SEED, "formats": formats}


def _tick_messages(files: Sequence[Path], encode: Callable[[npt.NDArray[np.void]], bytes]) -> Good:
    """Messages of one to three ticks of one stock, a stock a partition."""
    noon_ns = int(np.datetime64("2012-06-21T16:45:00", "ns").astype(np.int64))
    ticks = np.concatenate([batch.ticks for batch in read_files(files)])
    ticks = ticks[ticks["ts_event"] >= noon_ns]
    keys = np.unique(TickBatch.from_ticks(ticks).keys).tolist()
    rng, found = random.Random(SEED), []  # noqa: S311
    partition_of = {key & 0xFFFF_FFFF: i for i, key in enumerate(keys)}
    held: dict[int, list[npt.NDArray[np.void]]] = {i: [] for i in partition_of.values()}
    for row in range(len(ticks)):
        partition = partition_of[int(ticks["instrument_id"][row])]
        held[partition].append(ticks[row : row + 1])
        if len(held[partition]) >= rng.randint(1, 3):
            found.append((partition, encode(np.concatenate(held[partition]))))
            held[partition] = []
            if len(found) == GOOD:
                break
    return found


def _vector_messages(files: Sequence[Path]) -> Good:
    found: list[tuple[int, int, bytes]] = []
    for partition, path in enumerate(files):
        for batch in read_vectors(path, ("value",)):
            for a in range(0, len(batch), 2):
                rows = slice(a, a + 2)
                value = encode_vector(batch.keys[rows], batch.ts_event[rows], batch.values[rows])
                found.append((int(batch.ts_event[a]), partition, value))
    return [(partition, value) for _, partition, value in sorted(found)][:GOOD]


def _through(desk: Desk, fmt: Format, good: Good) -> dict[str, Any]:
    """Send good and bad messages of one format through the daemon and account for each."""
    rng = random.Random(f"{SEED} {fmt}")  # noqa: S311
    messages, kinds = _mixture(rng, fmt, good)
    seen = watch(desk, lambda: _publish(desk, messages))
    records = read_all(desk, desk.ticks, PARTITIONS)
    kind_at: dict[tuple[int, int], str] = {}
    at: Counter[int] = Counter()
    for (partition, _), kind in zip(messages, kinds, strict=True):
        kind_at[partition, at[partition]] = kind
        at[partition] += 1
    every = expect(desk, fmt, records)
    clean = expect(desk, fmt, [r for r in records if kind_at[r.partition, r.offset] == "good"])
    letters = read_all(desk, desk.dead_letters, 1)
    return {
        "kinds": dict(Counter(kinds)),
        "messages": seen.metric("tapewatch_messages_total"),
        "sent": len(messages),
        "exit_code": seen.exit_code,
        "seconds": seen.seconds,
        "rejected": seen.by("tapewatch_messages_rejected_total", "reason"),
        "letters": _account_for_letters(letters, records, every, kind_at),
        "alone": _decoded_alone(desk, fmt, records, every),
        "ticks": [seen.metric("tapewatch_ticks_total"), every.ticks],
        "scored": [seen.metric("tapewatch_ticks_scored_total"), _scored(every)],
        "dropped": [seen.by("tapewatch_ticks_dropped_total", "reason"), _dropped(every)],
        "score_sums": [seen.metric("tapewatch_score_sum"), _score_sum(every)],
        "events": asdict(compare(seen.events, every.events)),
        "good": _good_scores(every, clean, kind_at),
    }


def _mixture(
    rng: random.Random, fmt: Format, good: Good
) -> tuple[list[tuple[int, bytes | None]], list[str]]:
    """Good messages in order, bad ones among them; mutated ones only in the second partition."""
    mutated = int(BAD[fmt] * MUTATED_SHARE)
    kinds = ["good"] * len(good)
    kinds += ["mutated"] * mutated + ["broken"] * (BAD[fmt] - mutated)
    rng.shuffle(kinds)
    rest = iter(good)
    sample = [value for _, value in good]
    messages: list[tuple[int, bytes | None]] = []
    for kind in kinds:
        if kind == "good":
            messages.append(next(rest))
        elif kind == "mutated":
            messages.append((1, MUTATE[fmt](rng, rng.choice(sample))))
        else:
            messages.append((rng.randrange(PARTITIONS), _broken(rng, fmt, rng.choice(sample))))
    return messages, kinds


def _broken(rng: random.Random, fmt: Format, value: bytes) -> bytes | None:
    """Something that no reading of the format takes for a tick."""
    if rng.random() < 1e-3:
        return b"\xff" + rng.randbytes(HUGE)
    return rng.choice(BREAK[fmt])(rng, value)


def _noise(rng: random.Random, value: bytes) -> bytes | None:  # noqa: ARG001
    return b"\xff" + rng.randbytes(rng.randrange(0, 400))


def _nothing(rng: random.Random, value: bytes) -> bytes | None:  # noqa: ARG001
    return rng.choice((None, b""))


def _cut_short(rng: random.Random, value: bytes) -> bytes | None:
    return value[: rng.randrange(1, 47)]


def _with_tail(rng: random.Random, value: bytes) -> bytes | None:
    return value + rng.randbytes(rng.randrange(1, 47))


def _wrong_type(rng: random.Random, value: bytes) -> bytes | None:
    return bytes([value[0], rng.randrange(2, 256)]) + value[2:]


def _wrong_action(rng: random.Random, value: bytes) -> bytes | None:
    place = TICK.fields["action"][1]  # type: ignore[index]
    return value[:place] + rng.choice((b"\0", b"x", b"\xff")) + value[place + 1 :]


def _both_types(rng: random.Random, value: bytes) -> bytes | None:  # noqa: ARG001
    tick = np.frombuffer(value[: TICK.itemsize], TICK)
    trade = np.zeros(1, TRADE)
    for name in TRADE.names or ():
        trade[name] = tick[name]
    trade["length"], trade["rtype"] = TRADE.itemsize // 4, 0
    return value + trade.tobytes()


def _not_json(rng: random.Random, value: bytes) -> bytes | None:
    return rng.choice((value[:-1], value + b"}", b"[" * 5_000, b"NaN", value.replace(b":", b"", 1)))


def _no_tick(rng: random.Random, value: bytes) -> bytes | None:  # noqa: ARG001
    return rng.choice((b"[]", b"1", b'"tick"', b"null", b"[1]", b"[[]]", b"{}", b"[{}]"))


def _field_wrong(rng: random.Random, value: bytes) -> bytes | None:
    """One field of one of the message's ticks is missing or of a wrong kind."""
    ticks = json.loads(value)
    tick = rng.choice(ticks) if isinstance(ticks, list) else ticks
    name = rng.choice(("ts_event", "action", "size", "price"))
    if name in ("ts_event", "action") and rng.random() < 0.5:
        del tick[name]
    else:
        tick[name] = rng.choice(([], {}, True, "many", -1 if name == "size" else {"a": 1}))
    return json.dumps(ticks).encode()


def _wrong_head(rng: random.Random, value: bytes) -> bytes | None:
    place = rng.choice((0, 1, 2, 3, 12, 13, 14, 15))  # magic and reserved bytes
    return value[:place] + bytes([value[place] ^ rng.randrange(1, 256)]) + value[place + 1 :]


def _wrong_count(rng: random.Random, value: bytes) -> bytes | None:
    rows = rng.choice((3, 7, 2**31, 2**32 - 1))
    return value[:8] + rows.to_bytes(4, "little") + value[12:]


def _wrong_columns(rng: random.Random, value: bytes) -> bytes | None:
    return value[:4] + rng.choice((0, 2, 65_535)).to_bytes(2, "little") + value[6:]


def _flipped(rng: random.Random, value: bytes) -> bytes:
    """Change one to four bits anywhere."""
    changed = bytearray(value)
    for _ in range(rng.randint(1, 4)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _mutated_dbn(rng: random.Random, value: bytes) -> bytes:
    ticks = np.frombuffer(value, TICK).copy()
    ticks["instrument_id"] = STRANGER + rng.randrange(50)
    return _flipped(rng, ticks.tobytes())


def _mutated_json(rng: random.Random, value: bytes) -> bytes:
    ticks = json.loads(value)
    for tick in ticks if isinstance(ticks, list) else [ticks]:
        tick["instrument_id"] = STRANGER + rng.randrange(50)
    text = bytearray(json.dumps(ticks).encode())
    place = rng.randrange(len(text))
    text[place : place + rng.randint(0, 2)] = rng.choice((b"", b"9", b"-", b'"', b"e", b",", b"\0"))
    return bytes(text)


def _mutated_vector(rng: random.Random, value: bytes) -> bytes:
    changed = bytearray(value)
    changed[16:20] = (STRANGER + rng.randrange(50)).to_bytes(4, "little")
    row = 16 + 16
    for place in range(row, len(changed), 16):
        changed[place : place + 4] = changed[16:20]
    if rng.random() < 0.2:
        changed[28:32] = np.float32(rng.choice((np.nan, np.inf, -np.inf))).tobytes()
    return _flipped(rng, bytes(changed))


BREAK: Final[dict[Format, tuple[Maker, ...]]] = {
    "dbn": (_noise, _nothing, _cut_short, _with_tail, _wrong_type, _wrong_action, _both_types),
    "json": (_noise, _nothing, _cut_short, _not_json, _no_tick, _field_wrong),
    "vector": (
        *(_noise, _nothing, _cut_short, _with_tail),
        *(_wrong_head, _wrong_count, _wrong_columns),
    ),
}
MUTATE: Final[dict[Format, Callable[[random.Random, bytes], bytes]]] = {
    "dbn": _mutated_dbn,
    "json": _mutated_json,
    "vector": _mutated_vector,
}


def _publish(desk: Desk, messages: Sequence[tuple[int, bytes | None]]) -> int:
    producer = Producer({"bootstrap.servers": desk.cluster.bootstrap, "linger.ms": 20})
    for number, (partition, value) in enumerate(messages):
        key = b"%d" % number
        while True:
            try:
                producer.produce(desk.ticks, value, key, partition)
            except BufferError:
                producer.poll(0.1)
            else:
                break
        producer.poll(0)
    if left := producer.flush(60.0):
        raise MeasurementError(f"{left} messages were not acknowledged")
    return len(messages)


def _account_for_letters(
    letters: Sequence[Record],
    records: Sequence[Record],
    every: Expected,
    kind_at: dict[tuple[int, int], str],
) -> dict[str, Any]:
    """Compare the dead letters with what was on the tick topic."""
    source = {(r.partition, r.offset): r for r in records}
    places = [
        (int(each.headers["tapewatch_partition"]), int(each.headers["tapewatch_offset"]))
        for each in letters
    ]
    same = sum(
        letter.value == source[place].value and letter.key == source[place].key
        for letter, place in zip(letters, places, strict=True)
    )
    reasons = sum(
        letter.headers["tapewatch_reason"].decode() == every.rejected.get(place)
        for letter, place in zip(letters, places, strict=True)
    )
    broken = {place for place, kind in kind_at.items() if kind == "broken"}
    good = {place for place, kind in kind_at.items() if kind == "good"}
    return {
        "letters": len(letters),
        "expected": len(every.rejected),
        "repeats": len(places) - len(set(places)),
        "as_expected": set(places) == set(every.rejected),
        "byte_for_byte": same,
        "with_the_right_reason": reasons,
        "broken_missing": len(broken - set(places)),
        "good_among_them": len(good & set(places)),
    }


def _decoded_alone(
    desk: Desk, fmt: Format, records: Sequence[Record], every: Expected
) -> dict[str, int]:
    """Decode every message without its neighbours; how many verdicts differ from the batch's."""
    columns = read_artifact(desk.model).features.columns or None
    decoder = make_decoder(fmt, columns=columns)
    differ = 0
    for r in records:
        rejected = decoder.decode([r.value], [r.offset], r.partition).rejected
        reason = rejected[0].reason if rejected else None
        differ += reason != every.rejected.get((r.partition, r.offset))
    return {"decoded": len(records), "verdicts_that_differ": differ}


def _scored(found: Expected) -> int:
    return sum(
        int(np.count_nonzero(o.blocks[0].ready)) for part in found.outcomes.values() for o in part
    )


def _dropped(found: Expected) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in found.outcomes.values():
        for outcome in part:
            total.update(outcome.dropped)
    return dict(total)


def _score_sum(found: Expected) -> float:
    return float(
        sum(np.nansum(o.scores[0].score) for part in found.outcomes.values() for o in part)
    )


def _good_scores(
    every: Expected, clean: Expected, kind_at: dict[tuple[int, int], str]
) -> dict[str, Any]:
    """Compare the good ticks' scores among all messages with those without the bad ones."""
    total = scored = dropped = 0
    differ: Counter[str] = Counter({"0": 0, "1": 0})
    for partition, part in clean.outcomes.items():
        want = np.concatenate([o.scores[0].score for o in part])
        key = {int(k) for o in part for k in np.unique(o.blocks[0].keys)}
        mixed = every.outcomes[partition]
        of_good = np.isin(np.concatenate([o.blocks[0].keys for o in mixed]), sorted(key))
        got = np.concatenate([o.scores[0].score for o in mixed])[of_good]
        quality = np.concatenate([o.blocks[0].quality for o in mixed])[of_good]
        dropped += int(np.count_nonzero(quality & DROPPED))
        if len(got) != len(want):
            raise MeasurementError(
                f"partition {partition}: {len(got)} good ticks, {len(want)} sent"
            )
        total += len(want)
        scored += int(np.count_nonzero(np.isfinite(want)))
        differ[str(partition)] += int(
            np.count_nonzero(~((got == want) | (np.isnan(got) & np.isnan(want))))
        )
    messages = sum(kind == "good" for kind in kind_at.values())
    return {
        "messages": messages,
        "ticks": total,
        "scored": scored,
        "dropped_among_bad": dropped,
        "scores_that_differ": dict(differ),
    }


def section(facts: dict[str, Any]) -> str:
    """Say what was found, in Markdown."""
    formats = facts["formats"]

    def row(name: str, tell: Callable[[dict[str, Any]], str]) -> tuple[str, ...]:
        return (name, *(tell(found) for found in formats.values()))

    bad = sum(f["kinds"]["broken"] + f["kinds"]["mutated"] for f in formats.values())
    rows = (
        row("good messages", lambda f: f"{f['kinds']['good']:,}"),
        row("broken", lambda f: f"{f['kinds']['broken']:,}"),
        row("mutated", lambda f: f"{f['kinds']['mutated']:,}"),
        row("consumed of sent", lambda f: f"{f['messages']:,.0f} of {f['sent']:,}"),
        row(
            "dead-lettered of those to be",
            lambda f: f"{f['letters']['letters']:,} of {f['letters']['expected']:,}",
        ),
        row("byte for byte, key too", lambda f: f"{f['letters']['byte_for_byte']:,}"),
        row("with the right reason", lambda f: f"{f['letters']['with_the_right_reason']:,}"),
        row("more than once", lambda f: str(f["letters"]["repeats"])),
        row("broken but not dead-lettered", lambda f: str(f["letters"]["broken_missing"])),
        row("good but dead-lettered", lambda f: str(f["letters"]["good_among_them"])),
        row(
            "verdicts that differ when decoded alone",
            lambda f: str(f["alone"]["verdicts_that_differ"]),
        ),
        row("ticks in the daemon / offline", lambda f: _pair(f["ticks"])),
        row("dropped, by reason, in the daemon", lambda f: _reasons(f["dropped"][0])),
        row("the same offline", lambda f: "yes" if f["dropped"][0] == f["dropped"][1] else "no"),
        row("scored in the daemon / offline", lambda f: _pair(f["scored"])),
        row(
            "relative difference of the sum of all scores",
            lambda f: f"{abs(f['score_sums'][0] - f['score_sums'][1]) / f['score_sums'][1]:.0e}",
        ),
        row(
            "events equal to offline in every field",
            lambda f: f"{f['events']['identical']:,} of {f['events']['wanted']:,}",
        ),
        row("good ticks / scored", lambda f: f"{f['good']['ticks']:,} / {f['good']['scored']:,}"),
        row(
            "of them, scores changed by bad messages, partition of broken ones only",
            lambda f: str(f["good"]["scores_that_differ"]["0"]),
        ),
        row(
            "the same, partition with mutated ones too",
            lambda f: str(f["good"]["scores_that_differ"]["1"]),
        ),
        row(
            "good ticks dropped because a mutated time was confirmed",
            lambda f: str(f["good"]["dropped_among_bad"]),
        ),
        row("exit code of the daemon", lambda f: str(f["exit_code"])),
    )
    return f"""
{bad:,} bad messages (seed {facts["seed"]}) among good ones of two instruments, in two partitions.
Broken ones cannot be read as ticks: noise, tombstones, cut or lengthened messages, foreign types,
mixed types, wrong heads and counts, invalid JSON, fields missing or of a wrong kind, a few of
{HUGE // 1000} kB. Mutated ones are good messages of other instruments with bits or characters
changed anywhere, and may still be ticks. "Offline" is decoder and pipeline on the same messages,
without Kafka, in one thread and in batches of another size.

{table(("", *formats), rows)}

Good ticks that were not scored are those of the instruments' warm-up. Where two mutated ticks in a
row claim the same far time, they confirm each other as a jump of the partition's clock
([input.md](input.md), `implausible_time`), and the good tick after them is dropped and counted; a
window that missed a tick gives slightly different scores from then on.
""".strip()


def _pair(values: Sequence[float]) -> str:
    return " / ".join(f"{value:,.0f}" for value in values)


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{n:,} {name}" for name, n in sorted(counts.items())) or "none"
