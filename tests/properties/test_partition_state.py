"""A partition restored from snapshot, deltas and replayed ticks goes on as if it had never stopped.

ticks       . . . . S . . . . C . . . . .
features    snapshot|= replay =|
decisions   whole   |d  d   d |             d: a delta
then                          |= equal in every bit =
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.artifact import Artifact
from detector.episodes import EpisodePolicy
from detector.features import DEFAULT, FeatureSpec, vector_spec
from detector.pipeline import Outcome, Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.snapshots import pack, unpack
from detector.state_records import Place, Record, StateReader, StateWriter, Unusable
from detector.ticks import TickBatch
from tests.models import random_artifact
from tests.streams import market, repetitive, roughened, vectors
from tests.test_naming import named_artifact

Arrays = dict[str, np.ndarray]
SECOND = 10**9
POLICY = EpisodePolicy(close_ratio=0.8, quiet_s=2.0, update_interval_s=3.0)
LONG = EpisodePolicy(close_ratio=0.3, quiet_s=60.0, update_interval_s=5.0)
N = 1_200
SMALL = FeatureSpec(short_window=4, recent_window=2, warmup=4, warmup_s=0.0, gap_s=600.0)
"""Ready after few ticks: instruments that are evicted all the time are scored too."""
COLUMNS = ("a", "b")
PLACE = Place("group", "ticks", 0)


@pytest.fixture(scope="module")
def scorers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scorer]:
    """Models: frozen thresholds, adapting to a budget or a risk, with a head, of vectors."""
    folder = tmp_path_factory.mktemp("models")
    made: dict[str, Artifact] = {
        "frozen": random_artifact(folder / "frozen", SMALL, threshold=11.0),
        "budget": random_artifact(
            folder / "budget", SMALL, threshold=10.5, budget=300.0, version="b"
        ),
        "head": named_artifact(folder, 11.2, SMALL),
        "vectors": random_artifact(folder / "v", vector_spec(COLUMNS), threshold=11.0, budget=60.0),
    }
    found = {name: Scorer(artifact) for name, artifact in made.items()}
    found["risk"] = Scorer(made["budget"])
    peaks = found["risk"].thresholds.peaks
    assert peaks is not None
    found["risk"].thresholds = replace(
        found["risk"].thresholds, peaks=replace(peaks, asked="risk", value=0.02)
    )
    return found


@dataclass(frozen=True)
class Story:
    """What a partition lives through: where it is cut, told, captured, stopped, and by what."""

    model: str
    other: str
    policy: EpisodePolicy
    cap: int
    seed: int
    kind: str
    cuts: tuple[int, ...]
    told: tuple[bool, ...]
    captured: int
    stopped: int
    changed: int


def stories(models: Sequence[str]) -> st.SearchStrategy[Story]:
    """Draw stories; the indices are those of batches, a change beyond the last never happens."""
    return st.integers(2, 9).flatmap(
        lambda n: st.builds(
            Story,
            model=st.sampled_from(models),
            other=st.sampled_from(models),
            policy=st.sampled_from([POLICY, LONG]),
            cap=st.sampled_from([3, 5, 8, 50]),
            seed=st.integers(0, 5),
            kind=st.sampled_from(["market", "repetitive", "rough"]),
            cuts=st.lists(st.integers(1, N - 1), min_size=n, max_size=n).map(
                lambda cuts: tuple(sorted(cuts))
            ),
            told=st.lists(st.booleans(), min_size=n, max_size=n).map(tuple),
            captured=st.integers(-1, n - 1),
            stopped=st.integers(0, n - 1),
            changed=st.integers(0, 2 * n),
        )
    )


def stream_of(story: Story) -> list[TickBatch]:
    """The batches of a story; each names two instruments, now and then by another name."""
    instruments = 6
    if story.kind == "repetitive":
        ticks = repetitive(N, instruments, story.seed)
    else:
        ticks = market(N, instruments, story.seed)
        ticks = roughened(ticks, story.seed) if story.kind == "rough" else ticks
    whole = TickBatch.from_ticks(ticks)
    edges = [0, *story.cuts, N]
    return [
        replace(whole[a:b], symbols=names_of(whole[a:b].keys, i))
        for i, (a, b) in enumerate(pairwise(edges))
    ]


def names_of(keys: np.ndarray, number: int) -> dict[int, str]:
    """Names of some of the keys; what the first batch that names one says holds."""
    return {int(key): f"N{key & 7}é{number // 3}" for key in np.unique(keys)[number % 2 :: 2]}


def wire(arrays: Arrays) -> Arrays:
    """Through bytes, as everything that is kept."""
    return unpack(pack(arrays))


def facts(outcome: Outcome) -> tuple[Any, ...]:
    """Everything that an outcome says, comparable."""
    return (
        [event.to_dict(0) for event in outcome.events],
        [(b.values.tobytes(), b.ready.tobytes(), b.slots.tobytes()) for b in outcome.blocks],
        [(s.score.tobytes(), s.threshold.tobytes()) for s in outcome.scores],
        outcome.dropped,
        outcome.flagged,
    )


def pipeline_of(story: Story, scorer: Scorer, spec: Any = SMALL) -> Pipeline:
    """Return a fresh pipeline."""
    return Pipeline(spec, scorer, PipelineSpec(max_instruments=story.cap, policy=story.policy))


def check(
    story: Story, batches: Sequence[Any], scorers: dict[str, Scorer], spec: Any = SMALL
) -> list[dict[str, Any]]:
    """Live through the story, stop, restore, and compare with never having stopped."""
    first, other = scorers[story.model], scorers[story.other]
    living = pipeline_of(story, first, spec)
    force = first
    features: Arrays = {}
    decisions: Arrays = {}
    captured = -1
    chain: list[Arrays] = []
    for i, batch in enumerate(batches[: story.stopped + 1]):
        if i == story.changed:
            living.change_model(other, {0: int(batch.offsets[0]) if len(batch) else 0})
            force = other
        living.process(batch)
        if story.told[i] or i == story.stopped:
            chain.append(wire(living.take_delta(0)))
        if i == min(story.captured, story.stopped) and i >= 0:
            features, decisions = (
                wire(living.capture_features(0)),
                wire(living.capture_decisions(0)),
            )
            captured, chain = i, []
            if i == story.stopped:
                break
    other_one = pipeline_of(story, force, spec)
    other_one.process(batches[-1])  # whatever it held before, later names too
    other_one.restore(0, features, decisions, chain)
    delta = other_one.take_delta(0)
    assert not len(delta["episodes.slots"])
    assert not len(delta.get("thresholds.slots", ()))
    assert not len(delta["names.keys"])
    for batch in batches[captured + 1 : story.stopped + 1]:
        other_one.replay(batch)
    assert other_one.open_episodes() == living.open_episodes()
    assert other_one.tracked_instruments() == living.tracked_instruments()
    told: list[dict[str, Any]] = []
    for i, batch in enumerate(batches[story.stopped + 1 :], start=story.stopped + 1):
        if i == story.changed:
            offsets = {0: int(batch.offsets[0]) if len(batch) else 0}
            mine, theirs = (p.change_model(other, offsets) for p in (living, other_one))
            assert [e.to_dict(0) for e in mine] == [e.to_dict(0) for e in theirs]
        want = living.process(batch)
        assert facts(other_one.process(batch)) == facts(want)
        told += [event.to_dict(0) for event in want.events]
    equal(living.take_delta(0), other_one.take_delta(0), story)
    equal(living.capture_decisions(0), other_one.capture_decisions(0), story)
    equal(living.capture_features(0), other_one.capture_features(0), story)
    return told


def equal(mine: Any, theirs: Any, story: Story) -> None:
    """Two states are the same to the last bit."""
    assert set(mine) == set(theirs), story
    for name in mine:
        assert mine[name].dtype == theirs[name].dtype
        assert mine[name].tobytes() == theirs[name].tobytes(), name


@settings(max_examples=150, deadline=None)
@given(story=stories(["frozen", "budget", "risk", "head"]))
def test_restored_partition_goes_on_to_the_same_bits(
    story: Story, scorers: dict[str, Scorer]
) -> None:
    """Any stream, split, snapshot, deltas, model change and stop: everything after is equal."""
    check(story, stream_of(story), scorers)


@settings(max_examples=15, deadline=None)
@given(story=stories(["vectors"]))
def test_a_partition_of_vectors_goes_on_to_the_same_bits(
    story: Story, scorers: dict[str, Scorer]
) -> None:
    """The same for vectors with named columns."""
    whole = vectors(N, len(COLUMNS), 4, story.seed)
    edges = [0, *story.cuts, N]
    batches = [whole[a:b] for a, b in pairwise(edges)]
    check(story, batches, scorers, vector_spec(COLUMNS))


def test_what_the_property_is_about_happens(scorers: dict[str, Scorer]) -> None:
    """In one story: episodes open across the stop, evictions, names, another model afterwards."""
    story = Story(
        "head", "budget", LONG, 5, 1, "market", (300, 500, 600, 900), (True,) * 4, 0, 2, 4
    )
    told = check(story, stream_of(story), scorers)
    opened = {e["episode_id"] for e in told if e["phase"] == "open"}
    assert any(e["episode_id"] not in opened for e in told if e["phase"] == "close")
    reasons = {e["summary"]["reason"] for e in told if e["phase"] == "close"}
    assert "evicted" in reasons
    assert any("anomaly_type" in e for e in told)
    assert {e["model"]["version"] for e in told} == {"named", "b"}
    assert any(e["symbol"].startswith("N") for e in told)


@settings(max_examples=60, deadline=None)
@given(
    story=stories(["budget", "head"]),
    crash=st.integers(0, 2_000),
    compact=st.booleans(),
    chunk_bytes=st.sampled_from([300, 5_000, 900_000]),
)
def test_a_crash_anywhere_between_the_records_restores_what_was_committed(
    story: Story, crash: int, chunk_bytes: int, scorers: dict[str, Scorer], *, compact: bool
) -> None:
    """By way of the topic: the records up to a crash, compacted or not, lead to the commit before.

    Every batch commits with its delta; a snapshot is written while the batches after it go on.
    """
    batches, scorer = stream_of(story), scorers[story.model]
    living = pipeline_of(story, scorer)
    writer = StateWriter(PLACE, chunk_bytes=chunk_bytes, base_offset=0)
    origin = (SMALL.fingerprint, scorer.model_hash, scorer.version)
    records: list[Record] = []
    commits = [(0, 0)]
    snapshot: Iterator[Record] = iter(())
    for i, batch in enumerate(batches):
        living.process(batch)
        offset = commits[-1][1] + len(batch)
        records += writer.delta(*origin, offset, living.take_delta(0))
        commits.append((len(records), offset))
        if story.told[i % len(story.told)]:
            features, decisions = living.capture_features(0), living.capture_decisions(0)
            records += snapshot  # one at a time: the one before has to end first
            commits[-1] = len(records), offset
            snapshot = writer.snapshot(*origin, offset, features, decisions)
        records += islice(snapshot, i % 4)
    records = records[: crash % (len(records) + 1)]
    committed = max(offset for length, offset in commits if length <= len(records))
    if compact:
        newest = {key: i for i, (key, _) in enumerate(records)}
        records = [record for i, record in enumerate(records) if newest[record[0]] == i]
    reader = StateReader(PLACE)
    for key, value in records:
        reader.take(key, value)
    found = reader.at(committed, SMALL.fingerprint)
    if isinstance(found, Unusable):
        assert committed == 0  # not even the first delta is whole
        return
    other, same = pipeline_of(story, scorer), pipeline_of(story, scorer)
    other.restore(0, found.features, found.decisions, found.deltas)
    whole = TickBatch.from_ticks(np.concatenate([batch.ticks for batch in batches]))
    names = [batch.symbols for batch in batches]
    starts = [0, *(offset for _, offset in commits[1:-1])]
    for start, batch, symbols in zip(starts, batches, names, strict=True):
        part = replace(whole[start : start + len(batch)], symbols=symbols)
        if start < committed:
            same.process(part)
            if start >= found.snapshot_offset:
                other.replay(part)
        else:
            assert facts(other.process(part)) == facts(same.process(part))


def test_replay_may_split_a_stream_anywhere(scorers: dict[str, Scorer]) -> None:
    """Features are rebuilt from ticks in any batches, and nothing is scored meanwhile."""
    story = Story("budget", "budget", LONG, 5, 2, "rough", (400,), (True,), 0, 0, 9)
    first, second = stream_of(story)
    living = pipeline_of(story, scorers["budget"])
    living.process(first)
    delta = living.take_delta(0)
    other = pipeline_of(story, scorers["budget"])
    other.restore(0, {}, {}, [delta])
    for start in range(0, 400, 37):
        other.replay(first[start : min(start + 37, 400)])
    assert facts(other.process(second)) == facts(living.process(second))


def test_a_capture_between_two_deltas_takes_nothing_from_them(scorers: dict[str, Scorer]) -> None:
    """The chain that began before a capture still leads to the state: it may never be finished."""
    story = Story("budget", "budget", LONG, 50, 1, "market", (300, 600, 602), (), 0, 0, 9)
    batches = stream_of(story)
    living, other = (pipeline_of(story, scorers["budget"]) for _ in range(2))
    chain = []
    for number, batch in enumerate(batches[:3]):
        living.process(batch)
        if number == 1:
            living.capture_decisions(0)
        else:
            chain.append(living.take_delta(0))
    other.restore(0, {}, {}, chain)
    for batch in batches[:3]:
        other.replay(batch)
    assert facts(other.process(batches[3])) == facts(living.process(batches[3]))
    equal(living.capture_decisions(0), other.capture_decisions(0), story)


def test_state_of_another_model_leaves_watermark_names_and_windows(
    scorers: dict[str, Scorer],
) -> None:
    """Nothing that the other model's scores led to comes back, and the next delta says so."""
    story = Story("head", "budget", LONG, 5, 1, "market", (600,), (True,), 0, 0, 9)
    first, second = stream_of(story)
    old = pipeline_of(story, scorers["head"])
    old.process(first)
    features, decisions = old.capture_features(0), old.capture_decisions(0)
    assert len(decisions["episodes.open"])
    swapped = pipeline_of(story, scorers["head"])
    swapped.process(first)
    swapped.change_model(scorers["budget"], {0: 600})
    new = pipeline_of(story, scorers["budget"])
    new.restore(0, features, decisions, (), same_model=False)
    assert new.open_episodes() == {0: 0}
    delta = new.take_delta(0)
    assert "reset" in delta
    assert delta["episodes.watermark"] == decisions["episodes.watermark"]
    assert facts(new.process(second)) == facts(swapped.process(second))
    again = pipeline_of(story, scorers["budget"])
    again.restore(0, features, decisions, [delta, new.take_delta(0)])
    equal(again.capture_decisions(0), new.capture_decisions(0), story)


def told_of(scorers: dict[str, Scorer], model: str) -> tuple[Story, Arrays, Arrays, Arrays]:
    """A story with open episodes; its features, whole decision state, and a delta after it."""
    story = Story(model, model, LONG, 50, 1, "market", (700,), (True,), 0, 0, 9)
    pipeline = pipeline_of(story, scorers[model])
    first, second = stream_of(story)
    pipeline.process(first)
    pipeline.take_delta(0)
    whole = pipeline.capture_features(0), pipeline.capture_decisions(0)
    pipeline.process(second[:3])
    return story, *whole, pipeline.take_delta(0)


def with_slot(value: int) -> Any:
    """Put a value where the first slot, or row, stands."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array.flat[0] = value
        return array

    return change


REFUSED = [
    ("features", "fingerprint", with_slot(-1 % 7), "fingerprint"),
    ("features", "keys", lambda a: a[:-1], "needed int32"),
    ("features", "keys", lambda a: a[0], "keys"),
    ("features", "order", with_slot(10**6), "twice"),
    ("decisions", "episodes.open", with_slot(50), "slots from"),
    ("decisions", "episodes.open", lambda a: np.append(a, a[:1]), "twice"),
    ("decisions", "episodes.slots", with_slot(-1), "slots from"),
    ("decisions", "episodes.slots", lambda a: a[:-1], "state is"),
    ("decisions", "episodes.open", lambda a: a[1:], "not open"),
    ("decisions", "episodes.watermark", lambda a: np.repeat(a, 2), "2 watermarks"),
    ("decisions", "episodes.watermark", lambda a: a.astype(np.float64), "watermark is float64"),
    ("decisions", "episodes.peak", lambda a: a * np.nan, "NaN"),
    ("decisions", "episodes.peak", lambda a: a * 0, "not positive"),
    ("decisions", "episodes.state", lambda a: a * 0, "without ticks"),
    ("decisions", "episodes.sums", lambda a: a[:, 1:], "sums is"),
    ("decisions", "episodes.sums", lambda a: a * np.inf, "sums holds"),
    ("decisions", "episodes.top", lambda a: a + 10_000, "explained by"),
    ("decisions", "episodes.facts", lambda a: a[:, :, 1:], "facts is"),
    ("decisions", "thresholds.floats", lambda a: a * np.nan, "NaN"),
    ("decisions", "thresholds.integers", lambda a: a.astype(np.int32), "int32"),
    ("decisions", "thresholds.integers", lambda a: np.zeros((99, a.shape[1]), a.dtype), "99"),
    ("decisions", "names.ends", lambda a: a[::-1], "do not end"),
    ("decisions", "names.text", lambda a: a * 0 + 255, "utf-8"),
    ("delta", "thresholds.slots", with_slot(-1), "slots from"),
    ("delta", "thresholds.slots", lambda a: a * 0, "twice"),
    ("delta", "episodes.open", lambda a: np.append(a, 49).astype(np.int32), "without its row"),
]


@pytest.mark.parametrize(("part", "name", "change", "why"), REFUSED)
def test_what_does_not_fit_is_refused_whole(
    scorers: dict[str, Scorer], part: str, name: str, change: Any, why: str
) -> None:
    """A reason is given, and nothing of the partition is left, neither of it nor from before."""
    model = "budget" if name.startswith("thresholds") else "head"
    story, features, decisions, delta = told_of(scorers, model)
    parts = {"features": features, "decisions": decisions, "delta": delta}
    pipeline = pipeline_of(story, scorers[model])
    pipeline.restore(0, features, decisions, [delta])
    wrong = dict(parts[part])
    wrong[name] = change(wrong[name])
    with pytest.raises(ValueError, match=why):
        pipeline.restore(0, *({**parts, part: wrong}[p] for p in ("features", "decisions")),
                         [{**parts, part: wrong}["delta"]])  # fmt: skip
    assert (pipeline.tracked_instruments(), pipeline.open_episodes()) == ({}, {})
    for changed in ({k: v for k, v in parts[part].items() if k != name},
                    {**parts[part], "other": np.zeros(1)}):  # fmt: skip
        with pytest.raises(ValueError, match="hold"):
            pipeline.restore(0, *({**parts, part: changed}[p] for p in ("features", "decisions")),
                             [{**parts, part: changed}["delta"]])  # fmt: skip


def test_fewer_slots_than_instruments_and_another_evidence_are_refused(
    scorers: dict[str, Scorer],
) -> None:
    """A smaller cap, or a model whose head says more, cannot take the state over."""
    story, features, decisions, delta = told_of(scorers, "head")
    with pytest.raises(ValueError, match="at most 5 fit"):
        pipeline_of(replace(story, cap=5), scorers["head"]).restore(0, features, {}, [])
    with pytest.raises(ValueError, match="slots from"):
        pipeline_of(replace(story, cap=2), scorers["head"]).restore(0, {}, decisions, [])
    with pytest.raises(ValueError, match="sums is"):
        pipeline_of(story, scorers["budget"]).restore(0, features, decisions, [delta])


def test_a_snapshot_takes_at_most_four_kilobytes_an_instrument(
    tmp_path: Path,
) -> None:
    """Features, threshold, name, and an open episode of every tenth instrument, uncompressed."""
    instruments = 200
    ticks = market(40 * instruments, instruments, 1)
    names = {int(key): f"SYMBOL{key}" for key in np.unique(TickBatch.from_ticks(ticks).keys)}
    batch = TickBatch.from_ticks(ticks, symbols=names)
    spec = replace(DEFAULT, warmup=16, warmup_s=0.0)
    scorer = Scorer(random_artifact(tmp_path / "m", spec, threshold=12.5, budget=10.0))
    pipeline = Pipeline(spec, scorer, PipelineSpec(policy=LONG))
    pipeline.process(batch)
    assert pipeline.tracked_instruments() == {0: instruments}
    assert instruments / 20 < pipeline.open_episodes()[0]
    size = len(pack(pipeline.capture_features(0))) + len(pack(pipeline.capture_decisions(0)))
    assert size / instruments <= 4_096
