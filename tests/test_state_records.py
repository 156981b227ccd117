"""Records of a state on a compacted topic: whatever is left of them, the state is right or refused.

A small state stands for a partition's: numbers by slot, of which a delta tells those that changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.snapshots import pack
from detector.state_layout import is_key, new_life, parsed
from detector.state_records import (
    Found,
    Name,
    Place,
    Record,
    Restorable,
    StateReader,
    StateWriter,
    Unusable,
)

PLACE = Place("group", "ticks", 3)
MINE = ("feed" * 16, "a" * 64, "v1")
Numbers = dict[int, int]


def delta_of(numbers: Numbers) -> dict[str, np.ndarray]:
    """Arrays that tell numbers by slot."""
    return {
        "slots": np.array(list(numbers), np.int32),
        "values": np.array(list(numbers.values()), np.int64),
    }


def state_of(found: Restorable) -> Numbers:
    """Apply what was found, as `Pipeline.restore` does."""
    if found.features:
        assert found.features["offset"].tolist() == [found.snapshot_offset]
    state: Numbers = {}
    for arrays in (found.decisions, *found.deltas):
        if arrays:
            state |= dict(zip(arrays["slots"].tolist(), arrays["values"].tolist(), strict=True))
    return state


def compacted(records: list[Record], *, tombstones: bool) -> list[Record]:
    """Keep the newest record of each key, in order; tombstones go in the end too."""
    newest = {key: i for i, (key, _) in enumerate(records)}
    kept = [record for i, record in enumerate(records) if newest[record[0]] == i]
    return kept if tombstones else [record for record in kept if record[1] is not None]


def read(records: list[Record]) -> StateReader:
    """Fold records."""
    reader = StateReader(PLACE)
    for key, value in records:
        reader.take(key, value)
    return reader


def found_at(records: list[Record], offset: int) -> Restorable | Unusable:
    """What there is at an offset, in features of the usual fingerprint."""
    return read(records).at(offset, MINE[0])


@dataclass
class Life:
    """A process that has, or believes to have, the partition: what it decided, and its writer."""

    number: int
    writer: StateWriter
    offset: int
    state: Numbers
    touched: Numbers = field(default_factory=dict)
    snapshot: Any = None

    def tick(self, step: int, slots: list[int]) -> None:
        """Let ticks change some slots: differently in every life, so that lives never mix."""
        self.offset += step
        for slot in slots:
            self.touched[slot] = self.state[slot] = self.number * 10_000 + self.offset

    def delta(self) -> list[Record]:
        """Tell what changed."""
        told, self.touched = delta_of(self.touched), {}
        return self.writer.delta(*MINE, self.offset, told)

    def begin_snapshot(self) -> None:
        """Take a copy of everything."""
        features = {"offset": np.array([self.offset])}
        self.snapshot = self.writer.snapshot(*MINE, self.offset, features, delta_of(self.state))


@dataclass
class Partition:
    """A partition over several lives: its topic, what was committed, and what is true of it."""

    topic: list[Record] = field(default_factory=list)
    committed: tuple[int, Numbers] | None = None
    lives: int = 0
    owner: Life = field(init=False)
    zombies: list[Life] = field(default_factory=list)
    refused: int = 0
    from_snapshot: int = 0

    def start(self, chunk_bytes: int) -> None:
        """Begin a life: restore what was committed, or begin anew where it was."""
        self.lives += 1
        offset, truth = self.committed or (10, {})
        reader = read(self.topic)
        found = reader.at(offset, MINE[0])
        if isinstance(found, Restorable):
            assert state_of(found) == truth
            self.from_snapshot += bool(found.features)
            writer = StateWriter(PLACE, reader.found(), chunk_bytes)
            self.owner = Life(self.lives, writer, offset, dict(truth))
            return
        self.refused += self.committed is not None
        if self.committed is not None:
            self.committed = offset, {}  # begun anew there: that is what is true from here on
        writer = StateWriter(PLACE, reader.found(), chunk_bytes, base_offset=offset)
        self.owner = Life(self.lives, writer, offset, {})

    @property
    def committed_here(self) -> bool:
        """Whether nothing came after what was committed."""
        return self.committed is not None and self.committed[0] == self.owner.offset

    def commit(self) -> None:
        """Commit where the owner stands."""
        self.committed = self.owner.offset, dict(self.owner.state)

    def freeze(self, chunk_bytes: int) -> None:
        """Give the partition to another life; this one does not know it yet."""
        self.zombies.append(self.owner)
        self.start(chunk_bytes)

    def wake(self, which: int, step: int, records: int) -> None:
        """Let a zombie write out what it has: a delta and some of its snapshot, not a commit."""
        zombie = self.zombies[which % len(self.zombies)]
        zombie.tick(step, [which, step] if step else [])
        self.topic += zombie.delta()
        self.topic += islice(zombie.snapshot or (), records)

    def snapshot_whole(self) -> None:
        """Commit, and write a whole snapshot."""
        self.topic += self.owner.delta()
        self.commit()
        self.owner.begin_snapshot()
        self.topic += self.owner.snapshot


STEP = st.one_of(
    st.tuples(st.just("tick"), st.integers(1, 5), st.lists(st.integers(0, 9), max_size=4)),
    st.tuples(st.just("delta"), st.booleans(), st.integers(0, 4)),
    st.tuples(st.just("begin"), st.just(0), st.just(0)),
    st.tuples(st.just("snapshot"), st.integers(1, 12), st.just(0)),
    st.tuples(st.just("crash"), st.integers(1, 300), st.just(0)),
    st.tuples(st.just("compact"), st.booleans(), st.just(0)),
)
ZOMBIE_STEP = st.one_of(
    STEP,
    st.tuples(st.just("freeze"), st.integers(1, 300), st.just(0)),
    st.tuples(st.just("wake"), st.integers(0, 9), st.tuples(st.integers(0, 5), st.integers(0, 12))),
)


def live(steps: list[Any], *, at_once: bool, committed_only: bool) -> Partition:
    """Go through the steps, crashes and all.

    With `at_once` records and commit are one transaction; without, a commit may come late, and a
    crash may fall between any two records of a delta. With `committed_only` snapshots are of what
    is committed.
    """
    partition = Partition()
    partition.start(150)
    for kind, a, b in steps:
        owner = partition.owner
        if kind == "tick":
            owner.tick(a, b)
        elif kind == "delta":
            records = owner.delta()
            cut = len(records) if at_once or a else min(b, len(records))
            partition.topic += records[:cut]
            if cut == len(records) and (at_once or a):
                partition.commit()
            elif cut < len(records):
                partition.start(200)
        elif kind == "begin" and (not committed_only or partition.committed_here):
            owner.begin_snapshot()
        elif kind == "snapshot" and owner.snapshot is not None:
            partition.topic += islice(owner.snapshot, a)
        elif kind == "crash":
            partition.start(a)
        elif kind == "compact":
            partition.topic = compacted(partition.topic, tombstones=a)
        elif kind == "freeze":
            partition.freeze(a)
        elif kind == "wake" and partition.zombies:
            partition.wake(a, *b)
    partition.start(100)
    return partition


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_transactions_always_lead_to_the_committed_state(steps: list[Any]) -> None:
    """Records and offset commit together: every restart finds exactly the state it left."""
    assert live(steps, at_once=True, committed_only=True).refused == 0


@settings(max_examples=300, deadline=None)
@given(st.lists(STEP, max_size=60))
def test_without_transactions_the_state_is_right_or_refused(steps: list[Any]) -> None:
    """Crashes between any two records, late commits, compaction: never another state."""
    live(steps, at_once=False, committed_only=False)


@settings(max_examples=300, deadline=None)
@given(st.lists(ZOMBIE_STEP, max_size=60))
def test_zombies_take_nothing_from_the_owner(steps: list[Any]) -> None:
    """Without transactions and with late writers, every restart finds exactly what was committed.

    And however much they left, whole snapshots of two later lives leave only their own records.
    """
    partition = live(steps, at_once=False, committed_only=True)
    assert partition.refused == 0
    for _ in range(2):
        partition.snapshot_whole()
        left = [parsed(key) for key, _ in compacted(partition.topic, tombstones=False)]
        assert len({name.life for name in left}) == 1
        assert {name.kind for name in left} == {"chunk", "head"}
        for which in range(len(partition.zombies)):
            partition.wake(which, 3, 100)
        partition.start(100)
    assert partition.refused == 0


def test_the_properties_are_about_something() -> None:
    """A story of three lives, with two snapshots and compaction, is restored from both."""
    told = [("tick", 1, [0, 1, 2]), ("delta", True, 0)]
    whole = [("begin", 0, 0), *[("snapshot", 12, 0)] * 20, *told]
    crash = [("compact", False, 0), ("crash", 60, 0)]
    story = [*told, *told, *crash, *whole, *crash, *told, *whole, *told]
    partition = live(story, at_once=True, committed_only=True)
    assert (partition.lives, partition.refused, partition.from_snapshot) == (4, 0, 2)
    # Of two lives that hold a chain and a snapshot under way each, the first one wakes last.
    half = [*told, ("begin", 0, 0), ("snapshot", 1, 0), ("freeze", 60, 0)]
    story = [
        *told,
        *whole,
        *half,
        *half,
        *told,
        ("wake", 1, (1, 9)),
        *told,
        ("wake", 0, (2, 9)),
        *crash,
    ]
    partition = live(story, at_once=False, committed_only=True)
    assert (partition.lives, partition.refused, partition.from_snapshot) == (5, 0, 4)
    assert len({parsed(key).life for key, _ in partition.topic}) == 3


def chain(writer: StateWriter, *offsets: int) -> list[Record]:
    """Deltas up to these offsets, each of one slot."""
    return [r for o in offsets for r in writer.delta(*MINE, o, delta_of({o % 7: o}))]


def snapshot(writer: StateWriter, offset: int, numbers: Numbers) -> list[Record]:
    """A whole snapshot."""
    features = {"offset": np.array([offset])}
    return list(writer.snapshot(*MINE, offset, features, delta_of(numbers)))


def test_every_prefix_and_its_compaction_is_right_or_refused() -> None:
    """Cut anywhere, compacted or not: at every offset the state is the true one, or there is none.

    At the offset that was committed last there always is one.
    """
    writer = StateWriter(PLACE, chunk_bytes=80, base_offset=10)
    truth: dict[int, Numbers] = {10: {}}
    records: list[Record] = []
    committed = [(0, 10)]
    for offset in range(11, 31):
        truth[offset] = truth[offset - 1] | {offset % 7: offset}
        records += chain(writer, offset)
        committed.append((len(records), offset))
        if offset % 5 == 0:
            records += snapshot(writer, offset, truth[offset])
    for cut in range(len(records) + 1):
        last = max(offset for length, offset in committed if length <= cut)
        prefix = records[:cut]
        for left in (prefix, *(compacted(prefix, tombstones=t) for t in (True, False))):
            reader = read(left)
            for offset in range(9, 33):
                found = reader.at(offset, MINE[0])
                assert isinstance(found, Unusable) or state_of(found) == truth[offset]
            if last > 10:
                assert isinstance(reader.at(last, MINE[0]), Restorable)


def test_a_delta_that_was_never_committed_is_never_applied() -> None:
    """What lies beyond the offset is passed over, and taken away with the next whole snapshot."""
    first = StateWriter(PLACE, base_offset=10)
    records = [*chain(first, 20, 30), *first.delta(*MINE, 40, delta_of({1: -1}))]
    reader = read(records)
    assert isinstance(reader.at(30, MINE[0]), Restorable)
    second = StateWriter(PLACE, reader.found())
    truth = {20 % 7: 20, 30 % 7: 30}
    for offset in (40, 50):  # the first one leads to where the other life's leads, too
        truth |= {2: offset}
        records += second.delta(*MINE, offset, delta_of({2: offset}))
        found = found_at(records, offset)
        assert isinstance(found, Restorable)
        assert state_of(found) == truth
    records += snapshot(second, 50, truth)
    assert isinstance(found_at(records, 40), Unusable)
    assert not [key for key, _ in compacted(records, tombstones=False) if b'"delta"' in key]


def two_owners() -> tuple[list[Record], StateWriter, StateWriter]:
    """A life that is thought dead, the one that has its partition, and the records of both."""
    first = StateWriter(PLACE, base_offset=10)
    records = chain(first, 20)
    reader = read(records)
    reader.at(20, MINE[0])
    return records, first, StateWriter(PLACE, reader.found())


@pytest.mark.parametrize("offset", [30, 33, 40])
def test_a_late_delta_leaves_the_present_chain_alone(offset: int) -> None:
    """A zombie's next delta is no other one's, wherever it leads, and whenever it comes."""
    records, zombie, owner = two_owners()
    mine = chain(owner, 30, 40)
    late = zombie.delta(*MINE, offset, delta_of({5: -1}))
    for order in ([*late, *mine], [mine[0], *late, mine[1]], [*mine, *late]):
        topic = compacted([*records, *order], tombstones=False)
        assert len(topic) == 4
        for end, truth in ((30, {6: 20, 2: 30}), (40, {6: 20, 2: 30, 5: 40})):
            found = found_at(topic, end)
            assert isinstance(found, Restorable)
            assert state_of(found) == truth


def test_a_late_snapshot_leaves_the_present_one_alone() -> None:
    """A zombie writes the rest of its own, head and tombstones, and the owner's stays whole."""
    for written in range(6):
        records, zombie, owner = two_owners()
        late = zombie.snapshot(*MINE, 20, {"offset": np.array([20])}, delta_of({6: 20}))
        records += islice(late, written)
        records += [*chain(owner, 30), *snapshot(owner, 30, {6: 20, 2: 30}), *chain(owner, 40)]
        records += late
        found = found_at(compacted(records, tombstones=False), 40)
        assert isinstance(found, Restorable)
        assert (found.snapshot_offset, len(found.deltas)) == (30, 1)


def test_a_late_snapshot_may_stand_for_what_it_takes_away() -> None:
    """It takes away what the owner's chain begins with, and leads to where that goes on."""
    records, zombie, owner = two_owners()
    mine = chain(owner, 30)
    late = snapshot(zombie, 20, {6: 20})
    assert late[-1] == (records[0][0], None)
    for cut in range(len(late) + 1):
        found = found_at([*records, *mine, *late[:cut]], 30)
        assert isinstance(found, Restorable)
        assert state_of(found) == {6: 20, 2: 30}


def test_what_a_zombie_left_goes_with_the_next_snapshot_that_could_know() -> None:
    """What it wrote after the owner had read stays until the next life's first snapshot."""
    records, zombie, owner = two_owners()
    late = [*chain(zombie, 25), *snapshot(zombie, 25, {6: 20, 4: 25})]
    records += [*chain(owner, 30), *late, *snapshot(owner, 30, {6: 20, 2: 30})]
    assert len(lives(records)) == 2
    reader = read(records)
    found = reader.at(30, MINE[0])
    assert isinstance(found, Restorable)
    third = StateWriter(PLACE, reader.found())
    records += [*chain(third, 40), *snapshot(third, 40, {6: 20, 2: 30, 5: 40})]
    assert len(lives(records)) == 1


def lives(records: list[Record]) -> set[str]:
    """Whose records are left."""
    return {parsed(key).life for key, _ in compacted(records, tombstones=False)}


def test_a_writer_takes_nothing_away_before_its_own_snapshot() -> None:
    """One that read an outdated offset may find nothing, and the records that count be others'."""
    writer = StateWriter(PLACE, chunk_bytes=60, base_offset=10)
    records = [*chain(writer, 20), *snapshot(writer, 20, {6: 20}), *chain(writer, 30)]
    reader = read(records)
    assert isinstance(reader.at(15, MINE[0]), Unusable)
    late = StateWriter(PLACE, reader.found(), 60, base_offset=15)
    told = [*chain(late, 16, 17), *snapshot(late, 17, {2: 16, 3: 17})]
    head = next(i for i, (key, _) in enumerate(told) if b'"head"' in key)
    assert all(value is not None for _, value in told[: head + 1])
    found = found_at([*records, *told[: head + 1]], 30)
    assert isinstance(found, Restorable)
    assert state_of(found) == {6: 20, 2: 30}


def test_damaged_records_of_another_life_are_taken_away() -> None:
    """What cannot be read is known by its key."""
    writer = StateWriter(PLACE, base_offset=10)
    records = compacted([*chain(writer, 20), *snapshot(writer, 20, {6: 20})], tombstones=False)
    reader = read([(key, b"x") for key, _ in records])
    reader.at(20, MINE[0])
    other = StateWriter(PLACE, reader.found(), base_offset=20)
    records += snapshot(other, 20, {})
    assert len(lives(records)) == 1


@pytest.mark.parametrize("kind", ["head", "delta"])
def test_a_record_under_another_life_s_key_is_damage(kind: str) -> None:
    """Key and value name the same writer, or the value is of neither."""
    writer = StateWriter(PLACE, base_offset=10)
    records = [*chain(writer, 20), *snapshot(writer, 20, {6: 20})]
    key, value = next(record for record in records if f'"{kind}"'.encode() in record[0])
    name = parsed(key)
    other = Name(kind, new_life(), name.numbers)
    found = found_at([(PLACE.key(other), value)], 20)
    assert isinstance(found, Unusable)
    assert found.reason == "damaged"
    assert name.life in found.detail


def test_a_later_life_is_above_what_it_knows() -> None:
    """Whatever the clocks say; and above what nobody knew, as far as they are right."""
    known = new_life()
    assert known < new_life()
    ahead = "f" + known[1:]
    assert ahead < new_life([known, ahead])
    assert is_key(PLACE.key(Name("head", new_life(["f" * 32]), (0,))))


def test_keys_are_taken_only_as_they_are_written() -> None:
    """A tombstone must hit the record that it is meant for: no second key for one name."""
    life = new_life()
    names = [Name("head", life, (1,)), Name("chunk", life, (0, 7)), Name("delta", life, (5, 0))]
    for name in names:
        assert parsed(PLACE.key(name)) == name
    begin, mine = PLACE.prefix.decode(), f'"{life}"'
    for rest in (
        f'"head",{mine},2]',
        f'"head",{mine},true]',
        f'"head",{mine},1.0]',
        f'"head",{mine},1,0]',
        f'"head",{mine}]',
        '"head",1]',
        f'"head",{mine.upper()},1]',
        f'"head","{life[1:]}",1]',
        f'"head","{life}\\n",1]',
        f'"chunk",{mine},0,-1]',
        f'"delta",{mine},5,false]',
        f'"delta",{mine},5, 0]',
        f'"delta",{mine},5,0] ',
        f'"other",{mine},5,0]',
    ):
        assert not is_key((begin + rest).encode()), rest
    assert is_key(f'{begin}"head",{mine},1]'.encode())


def test_snapshots_take_turns_and_the_older_one_stays() -> None:
    """A snapshot that is never finished leaves the one before it, and its deltas, usable."""
    writer = StateWriter(PLACE, chunk_bytes=60, base_offset=10)
    records = [*chain(writer, 20), *snapshot(writer, 20, {6: 20}), *chain(writer, 30)]
    begun = snapshot(writer, 30, {6: 20, 2: 30})
    head = next(i for i, (key, _) in enumerate(begun) if b'"head"' in key)
    assert parsed(begun[head][0]).numbers == (1,)
    for cut in (0, 1, head):
        found = found_at([*records, *begun[:cut]], 30)
        assert isinstance(found, Restorable)
        assert (found.snapshot_offset, len(found.deltas)) == (20, 1)
    found = found_at([*records, *begun], 30)
    assert isinstance(found, Restorable)
    assert (found.snapshot_offset, found.deltas) == (30, ())


def test_a_smaller_snapshot_takes_away_the_chunks_of_a_larger_one() -> None:
    """Chunks that no head refers to are tombstoned, those of a begun one that failed too."""
    writer = StateWriter(PLACE, chunk_bytes=60, base_offset=10)
    records = [*chain(writer, 20), *snapshot(writer, 20, dict.fromkeys(range(90), 1))]
    reader = read(records)
    reader.at(20, MINE[0])
    writer = StateWriter(PLACE, reader.found(), 60)
    records += islice(writer.snapshot(*MINE, 20, {}, delta_of(dict.fromkeys(range(60), 1))), 20)
    for offset in (21, 22):
        reader = read(records)
        reader.at(offset - 1, MINE[0])
        writer = StateWriter(PLACE, reader.found(), 60)
        records += [*chain(writer, offset), *snapshot(writer, offset, {1: 1})]

    def chunks(records: list[Record]) -> int:
        return sum(b'"chunk"' in key for key, _ in compacted(records, tombstones=False))

    small = chunks(snapshot(StateWriter(PLACE, None, 60, base_offset=22), 22, {1: 1}))
    assert chunks(records) == small  # the lives before have none left
    records += snapshot(writer, 22, dict.fromkeys(range(90), 1))
    assert chunks(records) > 2 * small
    for _ in range(2):
        records += snapshot(writer, 22, {1: 1})
    assert chunks(records) == 2 * small  # one for each generation


def test_deltas_that_a_snapshot_holds_are_taken_away() -> None:
    """Those given before the call, however long its records take; not those given meanwhile."""
    writer = StateWriter(PLACE, base_offset=10)
    records = chain(writer, 20, 30)
    taken = writer.snapshot(*MINE, 30, {"offset": np.array([30])}, delta_of({6: 20, 2: 30}))
    records += chain(writer, 40)
    records += taken
    left = [parsed(key) for key, _ in compacted(records, tombstones=False) if b'"delta"' in key]
    assert [name.numbers for name in left] == [(2, 0)]
    found = found_at(records, 40)
    assert isinstance(found, Restorable)
    assert (found.snapshot_offset, len(found.deltas)) == (30, 1)


def test_why_there_is_no_state() -> None:
    """Each reason, from what the records are."""
    writer = StateWriter(PLACE, base_offset=10)
    records = [*chain(writer, 20), *snapshot(writer, 20, {6: 20}), *chain(writer, 30, 40, 50)]
    live_records = compacted(records, tombstones=False)
    keys = [key for key, _ in live_records]

    def reason(offset: int, fingerprint: str = MINE[0], **changes: Any) -> str:
        values = dict(live_records)
        for name, value in changes.items():
            values[next(key for key in keys if name.encode() in key)] = value
        found = read(list(values.items())).at(offset, fingerprint)
        assert isinstance(found, Unusable)
        assert found.detail
        return found.reason

    found = StateReader(PLACE).at(20, MINE[0])
    assert isinstance(found, Unusable)
    assert found.reason == "none"
    assert reason(45) == "offset"
    assert reason(50, "0" * 64) == "fingerprint"
    assert reason(45, "0" * 64) == "fingerprint"
    assert reason(50, delta=b"x") == "damaged"
    assert reason(50, chunk=b"") == "damaged"
    assert reason(50, head=pack({})) == "damaged"
    assert reason(50, delta=None) == "gap"
    assert reason(50, chunk=None) == "gap"


def test_the_model_is_that_of_the_last_delta() -> None:
    """The one in force at the offset, whatever the snapshot was made under."""
    writer = StateWriter(PLACE, base_offset=10)
    records = [*chain(writer, 20), *snapshot(writer, 20, {})]
    records += writer.delta(MINE[0], "b" * 64, "v2", 30, delta_of({}))
    for offset, version in ((20, "v1"), (30, "v2")):
        found = found_at(records, offset)
        assert isinstance(found, Restorable)
        assert found.model_version == version
        assert found.model_hash == {"v1": "a", "v2": "b"}[version] * 64


def test_a_chain_begins_where_the_state_was_empty() -> None:
    """At its base there is nothing, and that is known; elsewhere nothing is known."""
    records = chain(StateWriter(PLACE, base_offset=10), 20)
    found = found_at(records, 10)
    assert isinstance(found, Restorable)
    assert found.snapshot_offset == 10
    assert (found.features, found.decisions, found.deltas) == ({}, {}, ())
    found = found_at(records, 20)
    assert isinstance(found, Restorable)
    assert (found.snapshot_offset, found.features, len(found.deltas)) == (10, {}, 1)
    assert isinstance(found_at(records, 15), Unusable)


def test_other_places_are_ignored() -> None:
    """Another group, topic or partition, of however similar a name, is none of ours."""
    others = [Place("group2", "ticks", 3), Place("group", "tick", 3), Place("group", "ticks", 33),
              Place('group","ticks', "ticks", 3)]  # fmt: skip
    reader = StateReader(PLACE)
    for place in others:
        for key, value in chain(StateWriter(place, base_offset=10), 20):
            reader.take(key, value)
    for key in (b"", b"\xff", b"[1]", b"{}"):
        reader.take(key, b"value")
    assert reader.found() == Found()


def test_a_writer_refuses_what_would_be_a_wrong_chain() -> None:
    """No base, an offset that goes back, no room in a record."""
    with pytest.raises(ValueError, match="base_offset"):
        StateWriter(PLACE)
    with pytest.raises(ValueError, match="chunk_bytes: 0"):
        StateWriter(PLACE, chunk_bytes=0, base_offset=1)
    writer = StateWriter(PLACE, base_offset=10)
    with pytest.raises(ValueError, match="next_offset: 9; allowed: 10 or more"):
        writer.delta(*MINE, 9, {})
    chain(writer, 20)
    with pytest.raises(ValueError, match="next_offset: 19"):
        writer.snapshot(*MINE, 19, {}, {})


@settings(max_examples=200)
@given(st.integers(0, 200), st.integers(0, 7), st.data())
def test_damage_of_any_bit_is_refused_or_passed_over(place: int, bit: int, data: Any) -> None:
    """A flipped bit in any key or value never raises and never gives another state."""
    writer = StateWriter(PLACE, chunk_bytes=90, base_offset=10)
    records = [*chain(writer, 20), *snapshot(writer, 20, {6: 20}), *chain(writer, 30, 40)]
    records = compacted(records, tombstones=False)
    at = data.draw(st.integers(0, len(records) - 1))
    key, value = records[at]
    assert value is not None
    which = data.draw(st.booleans())
    changed = bytearray(key if which else value)
    changed[place % len(changed)] ^= 1 << bit
    records[at] = (bytes(changed), value) if which else (key, bytes(changed))
    reader = read(records)
    found = reader.at(40, MINE[0])
    reader.found()
    if isinstance(found, Restorable):
        assert state_of(found) == {6: 20, 30 % 7: 30, 40 % 7: 40}


@settings(max_examples=100)
@given(st.binary(max_size=60), st.one_of(st.none(), st.binary(max_size=60)))
def test_any_record_whatever_is_taken(rest: bytes, value: bytes | None) -> None:
    """Nothing on the topic makes a reader fail."""
    reader = StateReader(PLACE)
    reader.take(PLACE.prefix + rest, value)
    reader.found()
    assert isinstance(reader.at(1, MINE[0]), Unusable)


def test_an_older_snapshot_does_not_stand_for_one_that_is_not_whole() -> None:
    """Two snapshots hold the same delta; the later one lacks a chunk: no state at its offset."""
    writer = StateWriter(PLACE, chunk_bytes=60, base_offset=10)
    records = [*chain(writer, 20), *snapshot(writer, 20, {6: 20})]
    later = snapshot(writer, 25, {6: 25})
    assert isinstance(found_at([*records, *later], 25), Restorable)
    found = found_at([*records, *later[1:]], 25)
    assert isinstance(found, Unusable)
    assert found.reason == "gap"
    assert isinstance(found_at([*records, *later[1:]], 20), Restorable)
    begun = [record for record in later[1:] if record[1] is not None]
    kept = [record for record in records if b'"delta"' in record[0] and record[1] is not None]
    assert isinstance(found_at([*kept, *begun], 20), Restorable)
    assert isinstance(found_at([*kept, *begun], 25), Unusable)


def test_a_snapshot_of_a_life_whose_commit_never_came_is_none_of_the_next_ones() -> None:
    """No delta of the next life follows it, whichever is written first; and it is taken away."""
    first = StateWriter(PLACE, base_offset=10)
    records = chain(first, 20)
    dead = snapshot(first, 25, {5: -1})[:2]
    reader = read([*records, *dead])
    assert isinstance(reader.at(20, MINE[0]), Restorable)
    second = StateWriter(PLACE, reader.found())
    mine = second.delta(*MINE, 30, delta_of({2: 30}))
    for left in ([*records, *dead, *mine], [*records, *mine, *dead]):
        found = found_at(left, 30)
        assert isinstance(found, Restorable)
        assert state_of(found) == {6: 20, 2: 30}
    assert (dead[1][0], None) in snapshot(second, 30, {6: 20, 2: 30})
