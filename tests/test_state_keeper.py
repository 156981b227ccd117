"""How a partition begins, and what a commit carries, with a list in place of the topic of state."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from detector.episodes import EpisodePolicy
from detector.features import FeatureSpec
from detector.kafka import Place
from detector.pipeline import Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.state_keeper import CHUNKS_A_COMMIT, StateKeeper, Take
from detector.ticks import TickBatch
from tests.models import random_artifact
from tests.streams import market

SMALL = FeatureSpec(short_window=4, recent_window=2, warmup=4, warmup_s=0.0, gap_s=600.0)
SPEC = PipelineSpec(max_instruments=50, policy=EpisodePolicy(0.8, 2.0, 3.0))
N = 600


class Topic:
    """The records that were committed, in order."""

    def __init__(self) -> None:
        self.records: list[tuple[int, bytes, bytes | None]] = []
        self.reachable = True

    def read(self, partitions: Iterable[int], take: Take) -> None:
        """Hand over every record of the partitions."""
        if not self.reachable:
            raise TimeoutError("nobody there")
        wanted = set(partitions)
        for partition, key, value in self.records:
            if partition in wanted:
                take(partition, key, value)


class Member:
    """A process: a pipeline and its keeper, on a topic that outlives it."""

    def __init__(
        self, scorer: Scorer, topic: Topic, warm_up: int = 1_000, snapshot_ticks: int = 1_000_000
    ) -> None:
        self.topic = topic
        self.pipeline = Pipeline(SMALL, scorer, SPEC)
        self.keeper = StateKeeper(
            "group",
            "ticks",
            SMALL.fingerprint,
            self.pipeline,
            topic.read,
            60.0,
            snapshot_ticks,
            warm_up,
        )

    def publish(self, moved: dict[int, int], *snapshots: int) -> int:
        """Write the state that belongs to offsets; return how many records that took."""
        begun = {p: (moved[p], self.pipeline.capture_features(p)) for p in snapshots}
        records = self.keeper.records(moved, begun)
        self.topic.records += [(p, key, value) for p, (key, value) in records]
        return len(records)

    def commit(self, moved: dict[int, int], *snapshots: int) -> int:
        """Commit offsets with their state; return how many records that took."""
        count = self.publish(moved, *snapshots)
        self.keeper.committed(moved)
        return count


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scorer, Scorer]:
    """Two models with the same features."""
    folder: Path = tmp_path_factory.mktemp("models")
    return tuple(  # type: ignore[return-value]
        Scorer(random_artifact(folder / v, SMALL, threshold=10.5, budget=300.0, version=v))
        for v in ("one", "two")
    )


@pytest.fixture
def ticks() -> TickBatch:
    """A market of six instruments; a tick's row is its offset."""
    return TickBatch.from_ticks(market(N, 6, 3))


def committed(offset: int, low: int = 0) -> dict[int, Place]:
    """Where the group stands in partition 0."""
    return {0: Place(low, offset, committed=True)}


def test_a_group_that_committed_nothing_begins_new(scorers: tuple[Scorer, Scorer]) -> None:
    """Nothing is there, and nothing should be: no warning, no replay."""
    (found,) = Member(scorers[0], Topic()).keeper.restore({0: Place(5, 5, committed=False)}, 0.0)
    assert (found.source, found.replay_from, found.next_offset, found.reason) == ("new", 5, 5, "")


def test_state_goes_on_to_the_bit(scorers: tuple[Scorer, Scorer], ticks: TickBatch) -> None:
    """A successor restores the snapshot and the deltas, replays, and tells what was to be told."""
    topic = Topic()
    first = Member(scorers[0], topic)
    first.keeper.restore({0: Place(0, 0, committed=False)}, 0.0)
    for start, stop in ((0, 200), (200, 300), (300, 400)):
        first.pipeline.process(ticks[start:stop])
        first.commit({0: stop}, *([0] if stop == 200 else []))
    second = Member(scorers[0], topic)
    (found,) = second.keeper.restore(committed(400), 0.0)
    assert (found.source, found.replay_from, found.next_offset) == ("snapshot", 200, 400)
    second.pipeline.replay(ticks[200:400])
    there, here = (m.pipeline.process(ticks[400:]) for m in (first, second))
    assert [e.to_dict(0) for e in there.events] == [e.to_dict(0) for e in here.events]
    assert len(here.events) > 0
    np.testing.assert_array_equal(there.scores[0].score, here.scores[0].score)
    np.testing.assert_array_equal(there.scores[0].threshold, here.scores[0].threshold)


def test_a_snapshot_is_written_only_once_its_offset_is_committed(
    scorers: tuple[Scorer, Scorer], ticks: TickBatch
) -> None:
    """Else a start from an earlier offset would find the deltas gone that lead to it."""
    member = Member(scorers[0], Topic())
    member.keeper.restore({0: Place(0, 0, committed=False)}, 0.0)
    member.pipeline.process(ticks[:200])
    assert member.commit({0: 200}, 0) == 1  # the delta alone
    assert member.keeper.busy
    (found,) = Member(scorers[0], member.topic).keeper.restore(committed(200), 0.0)
    assert found.replay_from == 0
    assert 2 <= member.commit({}) <= CHUNKS_A_COMMIT  # chunk, head and tombstone
    assert not member.keeper.busy
    (found,) = Member(scorers[0], member.topic).keeper.restore(committed(200), 0.0)
    assert (found.source, found.replay_from) == ("snapshot", 200)


def test_another_model_takes_over_windows_alone(
    scorers: tuple[Scorer, Scorer], ticks: TickBatch
) -> None:
    """The reason names the model that the state is of; what follows can be restored again."""
    topic = Topic()
    first = Member(scorers[0], topic)
    first.keeper.restore({0: Place(0, 0, committed=False)}, 0.0)
    first.pipeline.process(ticks[:300])
    first.commit({0: 300}, 0)
    first.commit({})
    second = Member(scorers[1], topic)
    (found,) = second.keeper.restore(committed(300), 0.0)
    assert found.source == "other_model"
    assert "one" in found.reason
    second.pipeline.process(ticks[300:400])
    second.commit({0: 400})
    third = Member(scorers[1], topic)
    (found,) = third.keeper.restore(committed(400), 0.0)
    assert (found.source, found.replay_from) == ("snapshot", 300)
    third.pipeline.replay(ticks[300:400])
    there, here = (m.pipeline.process(ticks[400:]) for m in (second, third))
    assert [e.to_dict(0) for e in there.events] == [e.to_dict(0) for e in here.events]


@pytest.mark.parametrize("snapshot", [False, True])
def test_a_member_that_wakes_up_late_takes_nothing_from_its_successor(
    scorers: tuple[Scorer, Scorer], ticks: TickBatch, *, snapshot: bool
) -> None:
    """Frozen past its session, with works or a snapshot to write: only its commit is refused."""
    topic = Topic()
    frozen, owner = (Member(scorers[0], topic) for _ in range(2))
    frozen.keeper.restore({0: Place(0, 0, committed=False)}, 0.0)
    frozen.pipeline.process(ticks[:200])
    frozen.commit({0: 200}, *([0] if snapshot else []))
    frozen.pipeline.process(ticks[200:260])

    (found,) = owner.keeper.restore(committed(200), 0.0)
    owner.pipeline.replay(ticks[found.replay_from : 200])
    for start, stop in ((200, 300), (300, 400)):
        owner.pipeline.process(ticks[start:stop])
        owner.commit({0: stop})
    assert frozen.publish({0: 260}) == (4 if snapshot else 1)  # a delta; chunk, head, tombstone

    third = Member(scorers[0], topic)
    (found,) = third.keeper.restore(committed(400), 0.0)
    assert (found.source, found.replay_from) == ("snapshot", 200 if snapshot else 0)
    third.pipeline.replay(ticks[found.replay_from : 400])
    there, here = (m.pipeline.process(ticks[400:]) for m in (owner, third))
    assert [e.to_dict(0) for e in there.events] == [e.to_dict(0) for e in here.events]
    assert len(here.events) > 0


@pytest.mark.parametrize(
    ("offset", "low", "says"),
    [(150, 0, "offset"), (200, 120, "begins at offset 120")],
)
def test_without_state_for_the_offset_windows_are_warmed(
    scorers: tuple[Scorer, Scorer], ticks: TickBatch, offset: int, low: int, says: str
) -> None:
    """Offsets reset by hand, or ticks since the snapshot gone: as much as is retained and asked."""
    topic = Topic()
    first = Member(scorers[0], topic)
    first.keeper.restore({0: Place(0, 0, committed=False)}, 0.0)
    first.pipeline.process(ticks[:100])
    first.commit({0: 100}, 0)
    first.commit({})
    first.pipeline.process(ticks[100:200])
    first.commit({0: 200})
    member = Member(scorers[0], topic, warm_up=70)
    (found,) = member.keeper.restore(committed(offset, low), 0.0)
    assert found.source == "warm_up"
    assert says in found.reason
    assert found.replay_from == max(low, offset - 70)
    # Its next snapshot is due at once: the warmed windows cannot be made again for long.
    assert member.keeper.due([0], 0.0) == 0


def test_snapshots_are_due_by_turns(scorers: tuple[Scorer, Scorer]) -> None:
    """Partitions restored together are snapshotted one at a time, spread over half an interval."""
    member = Member(scorers[0], Topic())
    member.keeper.restore({p: Place(0, 0, committed=False) for p in range(4)}, 0.0)
    assert member.keeper.due(range(4), 0.0) is None
    times: dict[int, float] = {}
    for second in range(200):
        partition = member.keeper.due(range(4), float(second))
        if partition is not None and partition not in times:
            times[partition] = second
    assert set(times) == set(range(4))
    assert len(set(times.values())) == 4
    assert all(30 <= at <= 60 for at in times.values())


@pytest.mark.parametrize("shares", [(1, 1, 1, 1), (0, 1, 2, 9), (0, 0, 0, 1)])
def test_ticks_to_be_read_again_are_bounded(
    scorers: tuple[Scorer, Scorer], shares: tuple[int, ...]
) -> None:
    """Whatever the rates, the sum stays below the bound and a batch; snapshots are as few as that.

    Between two of them at least a partition's share of the bound comes in.
    """
    bound, batch = 1_000, 13
    member = Member(scorers[0], Topic(), snapshot_ticks=bound)
    member.keeper.restore({p: Place(0, 0, committed=False) for p in range(4)}, 0.0)
    since, taken, snapshots = dict.fromkeys(range(4), 0), 0, 0
    for number in range(2_000):
        partition = [p for p in range(4) for _ in range(shares[p])][number % sum(shares)]
        member.keeper.taken_in(partition, batch)
        since[partition] += batch
        taken += batch
        while (due := member.keeper.due(range(4), 0.0)) is not None:
            since[due] = 0
            snapshots += 1
        assert sum(since.values()) < bound
    assert 0 < snapshots <= taken // (bound // 4)


def test_a_partition_without_its_share_waits_for_the_others(
    scorers: tuple[Scorer, Scorer],
) -> None:
    """Of a batch of one partition, a snapshot that takes next to nothing off the sum is not due."""
    member = Member(scorers[0], Topic(), snapshot_ticks=1_000)
    member.keeper.restore({p: Place(0, 0, committed=False) for p in range(2)}, 0.0)
    member.keeper.taken_in(0, 950)
    member.keeper.taken_in(1, 60)
    assert member.keeper.due([1], 0.0) is None
    assert member.keeper.due([0, 1], 0.0) == 0
    assert member.keeper.due([0, 1], 0.0) is None


def test_a_snapshot_under_way_is_not_begun_again(
    scorers: tuple[Scorer, Scorer], ticks: TickBatch
) -> None:
    """While one is written, more ticks bring no second one of the same partition."""
    member = Member(scorers[0], Topic(), snapshot_ticks=1_000)
    member.keeper.restore({0: Place(0, 0, committed=False)}, 0.0)
    member.pipeline.process(ticks[:200])
    member.keeper.taken_in(0, 1_000)
    assert member.keeper.due([0], 0.0) == 0
    member.commit({0: 200}, 0)
    member.keeper.taken_in(0, 1_000)
    assert member.keeper.due([0], 0.0) is None
    member.commit({})
    assert member.keeper.due([0], 0.0) == 0


def test_released_partitions_count_no_more(scorers: tuple[Scorer, Scorer]) -> None:
    """Nor does what is still taken in of them."""
    member = Member(scorers[0], Topic(), snapshot_ticks=1_000)
    member.keeper.restore({p: Place(0, 0, committed=False) for p in range(2)}, 0.0)
    member.keeper.taken_in(0, 900)
    member.keeper.release([0])
    member.keeper.taken_in(0, 900)
    member.keeper.taken_in(1, 900)
    assert member.keeper.due([0, 1], 0.0) is None
    member.keeper.taken_in(1, 100)
    assert member.keeper.due([0, 1], 0.0) == 1


def test_what_is_released_is_not_told(scorers: tuple[Scorer, Scorer], ticks: TickBatch) -> None:
    """After a revocation nothing of the partition is written, snapshots under way included."""
    member = Member(scorers[0], Topic())
    member.keeper.restore({0: Place(0, 0, committed=False)}, 0.0)
    member.pipeline.process(ticks[:200])
    member.commit({0: 200}, 0)
    member.keeper.release([0])
    assert member.commit({0: 200}) == 0


def test_a_topic_that_cannot_be_read_now_changes_nothing(scorers: tuple[Scorer, Scorer]) -> None:
    """It is tried again."""
    member = Member(scorers[0], Topic())
    member.topic.reachable = False
    with pytest.raises(TimeoutError):
        member.keeper.restore({0: Place(0, 0, committed=False)}, 0.0)
    member.topic.reachable = True
    assert member.keeper.restore({0: Place(0, 0, committed=False)}, 0.0)
