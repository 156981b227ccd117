"""An event's symbol is the first name that its partition's messages gave, up to the event's own.

offset     10     11     12     13
message    7      7 "X"  7 "Y"  7
event at   0:7    X      X      X       however these are decoded together, lost, and read again
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.episodes import EpisodePolicy
from detector.features import FeatureSpec
from detector.partition_state import PartitionNames
from detector.pipeline import Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.symbols import SymbolMap
from detector.ticks import Batch, TickBatch, empty_ticks
from detector.wire import encode_json, make_decoder
from tests.models import random_artifact
from tests.streams import market

N = 240
INSTRUMENTS = 3
FIRST = 50
"""Offset of a feed's first message."""
SPEC = FeatureSpec(short_window=4, recent_window=2, warmup=4, warmup_s=0.0, gap_s=600.0)
POLICY = EpisodePolicy(close_ratio=0.8, quiet_s=0.2, update_interval_s=0.05)
DECODER = make_decoder("json")

Event = dict[str, Any]


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """A model that knows no instrument by name, with episodes all the time."""
    folder = tmp_path_factory.mktemp("model") / "m"
    return Scorer(random_artifact(folder, SPEC, threshold=11.0, budget=300.0))


@dataclass(frozen=True)
class Feed:
    """Messages of one partition, some of them to be refused, and what their ticks are called."""

    values: list[bytes] = field(repr=False)
    names: list[list[tuple[int, str | None]]] = field(repr=False)
    """Of each message, key and name of its ticks; empty where it is refused."""

    def decoded(self, cuts: Sequence[int], start: int = 0) -> Iterator[Batch]:
        """The messages from `start` on, decoded in pieces that end at `cuts`."""
        n = len(self.values)
        edges = [start, *sorted(cut for cut in cuts if start < cut < n), n]
        for a, b in pairwise(edges):
            batch = DECODER.decode(self.values[a:b], np.arange(a, b) + FIRST, 0).batch
            if batch is not None:
                yield batch

    def symbol(self, key: int, offset: int) -> str:
        """What an event at this offset calls the instrument: looked for message by message."""
        for named in self.names[: offset - FIRST + 1]:
            for other, name in named:
                if other == key and name is not None:
                    return name
        return f"{key >> 32}:{key & 0xFFFF_FFFF}"


@st.composite
def feeds(draw: st.DrawFn) -> Feed:
    """Draw messages of one or more ticks; few name their instruments, and not always alike."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    share = draw(st.sampled_from([0.01, 0.05, 0.5]))
    ticks = market(N, INSTRUMENTS, draw(st.integers(0, 3)))
    keys = TickBatch.from_ticks(ticks).keys.tolist()
    values: list[bytes] = []
    names: list[list[tuple[int, str | None]]] = []
    at = 0
    while at < N:
        n = int(rng.choice([1, 1, 1, 2, 5]))
        rows = range(at, min(at + n, N))
        called = [str(rng.choice(["A", "B", "C"])) if rng.random() < share else None for _ in rows]
        objects = [orjson.loads(encode_json(ticks[i : i + 1], None)) for i in rows]
        for each, name in zip(objects, called, strict=True):
            each.update({} if name is None else {"symbol": name})
        if rng.random() < 0.05:
            objects[-1]["price"] = True  # nothing of it counts, its names neither
            values.append(orjson.dumps(objects))
            names.append([])
            continue
        values.append(orjson.dumps(objects if len(objects) > 1 else objects[0]))
        names.append([(keys[i], name) for i, name in zip(rows, called, strict=True)])
        at = rows.stop
    return Feed(values, names)


CUTS = st.lists(st.integers(1, N), max_size=12)


def pipeline_of(scorer: Scorer) -> Pipeline:
    """Return a fresh pipeline."""
    return Pipeline(SPEC, scorer, PipelineSpec(policy=POLICY))


def told(pipeline: Pipeline, batches: Iterator[Batch]) -> list[Event]:
    """What a pipeline says of batches."""
    return [event.to_dict(0) for batch in batches for event in pipeline.process(batch).events]


def check_symbols(events: Sequence[Event], feed: Feed) -> None:
    """Every event's symbol is the one looked for message by message."""
    for event in events:
        key = event["publisher_id"] << 32 | event["instrument_id"]
        assert event["symbol"] == feed.symbol(key, event["source"]["offset"])


@given(feed=feeds(), cuts=CUTS)
@settings(deadline=None, max_examples=60)
def test_names_do_not_depend_on_which_messages_are_decoded_together(
    feed: Feed, cuts: list[int]
) -> None:
    """The first name of every instrument and its offset, from one decoding or from many."""
    found: list[dict[int, tuple[str, int]]] = []
    for some in ([], cuts, range(1, len(feed.values))):
        names: dict[int, tuple[str, int]] = {}
        for batch in feed.decoded(some):
            assert batch.symbols.keys() == batch.named_from.keys()
            for key, name in batch.symbols.items():
                names.setdefault(key, (name, batch.named_from[key]))
        found.append(names)
    assert found[0] == found[1] == found[2]


@given(feed=feeds(), cuts=CUTS)
@settings(deadline=None, max_examples=60)
def test_events_do_not_depend_on_how_messages_are_cut_into_batches(
    feed: Feed, cuts: list[int], scorer: Scorer
) -> None:
    """Named, unnamed and renamed instruments: every field of every event is the same."""
    whole = told(pipeline_of(scorer), feed.decoded([]))
    assert whole
    check_symbols(whole, feed)
    assert told(pipeline_of(scorer), feed.decoded(cuts)) == whole


@given(feed=feeds(), cuts=CUTS, again=CUTS, stop=st.integers(0, N), snapshot=st.integers(0, N))
@settings(deadline=None, max_examples=60)
def test_names_of_a_lost_transaction_are_taken_back(
    feed: Feed, cuts: list[int], again: list[int], stop: int, snapshot: int, scorer: Scorer
) -> None:
    """What was decided after the last commit is read again, in other pieces: equal events.

    The same pipeline goes on, as in a daemon whose transaction was lost, and a new one, as after
    a kill.
    """
    stop = min(stop, len(feed.values))
    snapshot = min(snapshot, stop)
    whole = told(pipeline_of(scorer), feed.decoded([]))
    living = pipeline_of(scorer)
    features: dict[str, Any] = {}
    decisions: dict[str, Any] = {}
    deltas: list[dict[str, Any]] = []
    committed: list[Event] = []
    for batch in feed.decoded([*cuts, snapshot, stop] if snapshot else [*cuts, stop]):
        end = int(batch.offsets[-1]) + 1 - FIRST
        events = told(living, iter([batch]))
        if end > stop:
            continue  # its transaction is lost
        committed += events
        deltas.append(living.take_delta(0))
        if end <= snapshot:
            features, decisions = living.capture_features(0), living.capture_decisions(0)
            deltas = []
    for pipeline in (living, pipeline_of(scorer)):
        pipeline.release(0)
        pipeline.restore(0, features, decisions, deltas)
        before = replace(feed, values=feed.values[:stop], names=feed.names[:stop])
        for batch in before.decoded(again, snapshot if features else 0):
            pipeline.replay(batch)
        assert committed + told(pipeline, feed.decoded(again, stop)) == whole


def test_what_the_laws_are_about_happens(scorer: Scorer) -> None:
    """In one feed: events before their instrument has a name, after it, and after another one."""
    ticks = market(N, 1, 0)
    names = ["A" if 80 <= i < 160 else "B" if i >= 160 else None for i in range(N)]
    feed = Feed(
        [encode_json(ticks[i : i + 1], name) for i, name in enumerate(names)],
        [[(7 << 32 | 1, name)] for name in names],
    )
    events = told(pipeline_of(scorer), feed.decoded([]))
    check_symbols(events, feed)
    late = [e["symbol"] for e in events if e["source"]["offset"] >= FIRST + 160]
    assert {e["symbol"] for e in events} == {"7:1", "A"}
    assert set(late) == {"A"}


@given(feed=feeds(), other=feeds(), cuts=CUTS, first=st.booleans())
@settings(deadline=None, max_examples=20)
def test_names_of_other_partitions_do_not_count(
    feed: Feed, other: Feed, cuts: list[int], scorer: Scorer, *, first: bool
) -> None:
    """The same instruments, named otherwise in another partition, before or together with it."""
    alone = told(pipeline_of(scorer), feed.decoded(cuts))
    pipeline = pipeline_of(scorer)
    theirs = [replace(batch, partition=1) for batch in other.decoded([])]
    if first:
        for batch in theirs:
            pipeline.process(batch)
        theirs = []
    events: list[Event] = []
    for batch in feed.decoded(cuts):
        prepared = [pipeline.prepare(each) for each in (batch, *theirs)]
        theirs = []
        events += [e.to_dict(0) for e in pipeline.finish(prepared).events]
    assert [event for event in events if event["source"]["partition"] == 0] == alone


def named(names: dict[int, str], offset: int) -> TickBatch:
    """A batch of one message that names instruments."""
    n = np.zeros(1, np.int32)
    at = dict.fromkeys(names, offset)
    return TickBatch(empty_ticks(1), 0, np.array([offset]), n, names, at)


def test_a_piece_of_a_batch_leaves_later_names_to_later_pieces() -> None:
    """A model change cuts a batch: a name from behind the cut is not known before it."""
    names, symbols = PartitionNames(), SymbolMap()
    ticks, indices = empty_ticks(4), np.zeros(4, np.int32)
    whole = TickBatch(ticks, 0, np.arange(4), indices, {1: "A", 2: "B"}, {1: 1, 2: 2})
    assert names.learn(whole[:2], symbols) == {1: "A"}
    assert [names.get(1, 0), names.get(1, 1), names.get(2)] == [None, "A", None]
    assert names.learn(whole[2:], symbols) == {2: "B"}
    assert [names.get(1, 2), names.get(2, 2), names.get(2)] == ["A", "B", "B"]


def test_a_flood_of_names_is_bounded_in_the_order_of_messages() -> None:
    """Beyond the limit of its partition nothing more is learnt, however messages are cut."""
    symbols = SymbolMap()
    one, two = PartitionNames(limit=2), PartitionNames(limit=2)
    one.learn(named({5: "E", 3: "C", 4: "D"}, 9), symbols)
    for offset, (key, name) in enumerate([(5, "E"), (3, "C"), (4, "D")]):
        two.learn(named({key: name}, offset), symbols)
    for names in (one, two):
        assert [names.get(key) for key in (5, 3, 4)] == ["E", "C", None]


def test_refused_names_are_told_once_for_each_that_is_kept(scorer: Scorer) -> None:
    """A second name of a message, and a first one that the model or the mapping file overrides."""
    model = replace_symbols(scorer, {2: "MODEL", 3: "M"})
    pipeline = Pipeline(SPEC, model, symbols=SymbolMap({3: "FILE"}))
    for offset, names in enumerate([{1: "A", 2: "B", 3: "FILE"}, {1: "Z"}]):
        pipeline.process(named(names, offset))
    assert sorted(pipeline.symbols.take_collisions()) == [(1, "A", "Z"), (2, "MODEL", "B")]
    assert [pipeline.name(0, key) for key in (1, 2, 3, 4)] == ["A", "MODEL", "FILE", "0:4"]


def replace_symbols(scorer: Scorer, symbols: dict[int, str]) -> Scorer:
    """Return the scorer of the same model with other names."""
    made = object.__new__(Scorer)
    made.__dict__.update(scorer.__dict__, symbols=symbols)
    return made
