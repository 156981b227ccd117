"""A partition restored from snapshot, deltas and replayed ticks goes on as if it had never stopped.

ticks       . . . . S . . . . C . . . . .
features    snapshot|= replay =|
decisions   whole   |d  d   d |             d: a delta
then                          |= equal in every bit =
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.artifact import Artifact
from detector.episodes import EpisodePolicy
from detector.features import FeatureSpec, vector_spec
from detector.pipeline import Outcome, Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.snapshots import pack, unpack
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
    other_one.process(replace(batches[-1], symbols={}))  # whatever it held before
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
    """Two states are the same to the last bit; a delta that was due earlier holds more rows."""
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
