"""Another model takes over between two batches: what ends with the old one, and what goes on.

ticks     . . X x x x|. . . X x        | another model from here on
episodes      open   close("model")    open, by the new model
windows   =============================  not touched
"""

from __future__ import annotations

import json
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.artifact import Artifact
from detector.drift import DriftSpec
from detector.errors import RefusedError
from detector.events import EpisodeBook, EpisodePolicy, event_schema
from detector.features import DEFAULT, vector_spec
from detector.model_changes import ModelChange, Timeline
from detector.model_replay import ModelReplay
from detector.offline import Files, score_files
from detector.pipeline import Pipeline, PipelineSpec
from detector.readers import write_parquet
from detector.scorer import Scorer
from detector.symbols import SymbolMap
from detector.ticks import TickBatch
from tests.models import random_artifact
from tests.streams import market
from tests.test_events import POLICY, phases, ticks_of
from tests.test_naming import named_artifact

N = 6_000
CUT = 3_500
SHORT = EpisodePolicy(close_ratio=1.0, quiet_s=0.5)
"""The scores of random weights hardly vary: with these episodes end all the same."""
LONG = EpisodePolicy(close_ratio=0.01, quiet_s=600.0, update_interval_s=20.0)
"""Episodes that nothing but another model ends."""


@pytest.fixture(scope="module")
def batch() -> TickBatch:
    """A small market of three instruments."""
    return TickBatch.from_ticks(market(N, 3, seed=2))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Artifact]:
    """Three models of the same features: plain, with a head and adapting, of another latent."""
    folder = tmp_path_factory.mktemp("models")
    return [
        random_artifact(folder / "a", threshold=11.0, version="a"),
        random_artifact(folder / "b", threshold=14.3, budget=200.0, seed=1, version="b"),
        random_artifact(folder / "c", threshold=15.0, seed=2, version="c", latent=4),
    ]


def told(events: Any) -> list[dict[str, Any]]:
    """Events as JSON types, each valid against the schema."""
    found = plain(events)
    for event in found:
        jsonschema.validate(event, event_schema())
    return found


def test_a_book_that_starts_over_closes_all_in_order_and_keeps_its_watermark() -> None:
    """Open episodes close with their peaks; what lags behind the watermark lags behind it still."""
    book = EpisodeBook(4, POLICY)
    book.step(**ticks_of([(3, 1000, 1.0), (2, 1, 20.0), (1, 0, 30.0), (2, 1, 40.0)]))
    closed = book.start_over(2)
    assert [(t.phase, t.reason, t.key, t.row, t.peak_row) for t in closed] == [
        ("close", "model", 2, -1, -1),
        ("close", "model", 1, -1, -1),
    ]
    assert [(t.ticks, t.alarms, t.peak[0]) for t in closed] == [(2, 2, 40.0), (1, 1, 30.0)]
    assert book.open_episodes == 0
    assert book.start_over(0) == []
    # Against a fresh book the instrument at 0 s would be silent as soon as the other is at 1002 s.
    found = book.step(**ticks_of([(1, 0, 20.0), (3, 1001, 1.0), (1, 1, 1.0)]))
    assert phases(found) == [("open", 0)]


def test_open_episodes_close_by_the_model_that_opened_them(
    batch: TickBatch, models: list[Artifact]
) -> None:
    """Every open episode closes at the change's offset, as the old model measured its peak."""
    old, new = models[:2]
    pipeline = Pipeline(DEFAULT, Scorer(old), PipelineSpec(policy=LONG))
    before = told(pipeline.process(batch[:CUT]).events)
    opened = [event for event in before if event["phase"] == "open"]
    assert len(opened) == 3
    assert pipeline.open_episodes() == {0: 3}
    closed = told(pipeline.change_model(Scorer(new), {0: CUT}))
    assert pipeline.open_episodes() == {0: 0}
    assert [e["episode_id"] for e in closed] == [e["episode_id"] for e in opened]
    for event in closed:
        assert event["summary"]["reason"] == "model"
        assert event["source"] == {"topic": "ticks", "partition": 0, "offset": CUT, "index": 0}
        assert event["model"] == {"version": "a", "hash": old.model_hash}
        mine = [e for e in before if e["episode_id"] == event["episode_id"]]
        assert event["score"] >= max(e["score"] for e in mine)
        assert event["top_features"]
    after = told(pipeline.process(batch[CUT:]).events)
    assert {(e["model"]["version"], e["model"]["hash"]) for e in after} == {("b", new.model_hash)}
    assert after[0]["phase"] == "open"
    ids = [e["event_id"] for e in (*before, *closed, *after)]
    assert len(set(ids)) == len(ids)


def test_windows_go_on_and_everything_else_is_the_new_models(
    batch: TickBatch, models: list[Artifact]
) -> None:
    """After a change features are those of an uninterrupted run, scores those of the new model."""
    old, new = models[0], models[2]
    spec = PipelineSpec(latent=True)
    pipeline, alone = (Pipeline(DEFAULT, Scorer(each), spec) for each in (old, new))
    assert pipeline.process(batch[:CUT]).scores[0].latent is not None
    alone.process(batch[:CUT])
    pipeline.change_model(Scorer(new), {0: CUT})
    got, want = pipeline.process(batch[CUT:]), alone.process(batch[CUT:])
    assert got.blocks[0].values.tobytes() == want.blocks[0].values.tobytes()
    assert got.scores[0].score.tobytes() == want.scores[0].score.tobytes()
    assert got.scores[0].latent is not None
    assert want.scores[0].latent is not None
    assert got.scores[0].latent.shape == (N - CUT, new.model.latents)
    assert got.scores[0].latent.tobytes() == want.scores[0].latent.tobytes()
    assert pipeline.model == ("c", new.model_hash)


def test_thresholds_start_from_the_new_models_priors(
    batch: TickBatch, models: list[Artifact]
) -> None:
    """What the old model's alarms had led to is gone, also when it comes back itself."""
    adapting, frozen = models[1], models[2]
    pipeline = Pipeline(DEFAULT, Scorer(adapting), PipelineSpec(policy=SHORT))
    moved = pipeline.process(batch[:CUT])
    assert len(set(moved.scores[0].threshold.tolist())) > 10
    pipeline.change_model(Scorer(frozen), {0: CUT})
    second = pipeline.process(batch[CUT : CUT + 500]).scores[0]
    assert set(second.threshold.tolist()) == {15.0}
    pipeline.change_model(Scorer(adapting), {0: CUT + 500})
    back = pipeline.process(batch[CUT + 500 :])
    keys = back.blocks[0].keys
    firsts = [int(np.flatnonzero(keys == key)[0]) for key in np.unique(keys)]
    assert back.scores[0].threshold[firsts].tolist() == [14.3] * 3
    assert len(set(back.scores[0].threshold.tolist())) > 10


def test_a_head_comes_and_goes_with_its_model(batch: TickBatch, tmp_path: Path) -> None:
    """Episodes of a model with a head are named by it to their end, those of another are not."""
    named = named_artifact(tmp_path / "named", threshold=2.0)
    plain = random_artifact(tmp_path / "plain", threshold=2.0)
    pipeline = Pipeline(DEFAULT, Scorer(plain), PipelineSpec(policy=LONG))
    pipeline.process(batch[:2_500])
    closed = told(pipeline.change_model(Scorer(named), {0: 2_500}))
    assert closed
    assert not any("anomaly_type" in event for event in closed)
    opened = told(pipeline.process(batch[2_500:CUT]).events)
    assert opened
    assert all("anomaly_type" in event for event in opened)
    closed = told(pipeline.change_model(Scorer(plain), {0: CUT}))
    assert closed
    assert all("anomaly_type" in event for event in closed)
    after = told(pipeline.process(batch[CUT:]).events)
    assert after
    assert not any("anomaly_type" in event for event in after)


def test_drift_is_against_the_new_models_reference(
    batch: TickBatch, models: list[Artifact]
) -> None:
    """Counting begins anew: nothing is told until enough ticks were compared with the new one."""
    drift = DriftSpec(every=1, window_s=0.0, least_rows=1_000)
    pipeline = Pipeline(DEFAULT, Scorer(models[0]), PipelineSpec(drift=drift))
    pipeline.process(batch[:CUT])
    before = pipeline.drift()
    assert before is not None
    pipeline.change_model(Scorer(models[2]), {0: CUT})
    assert pipeline.drift() is None
    pipeline.process(batch[CUT:])
    after = pipeline.drift()
    alone = Pipeline(DEFAULT, Scorer(models[2]), PipelineSpec(drift=drift))
    alone.prepare(batch[:CUT])
    alone.process(batch[CUT:])
    want = alone.drift()
    assert after is not None
    assert want is not None
    assert after.features.tobytes() == want.features.tobytes()
    assert (after.score, after.rows) == (want.score, want.rows)


def test_nothing_of_the_old_model_is_kept(batch: TickBatch, models: list[Artifact]) -> None:
    """Once another model is in force the old one's memory is free, without a collection."""
    spec = PipelineSpec(policy=LONG, drift=DriftSpec(), latent=True)
    pipeline = Pipeline(DEFAULT, Scorer(models[1]), spec)
    pipeline.process(batch[:CUT])
    old = weakref.ref(pipeline._scorer._scorer)  # type: ignore[attr-defined]
    assert old() is not None
    pipeline.change_model(Scorer(models[0]), {0: CUT})
    assert old() is None


def test_other_features_are_refused(models: list[Artifact], tmp_path: Path) -> None:
    """Windows of other features could not be scored: nothing changes."""
    other = random_artifact(tmp_path / "other", vector_spec(("x", "y")))
    pipeline = Pipeline(DEFAULT, Scorer(models[0]))
    with pytest.raises(ValueError, match="has features"):
        pipeline.change_model(Scorer(other), {})
    assert pipeline.model == ("a", models[0].model_hash)


def test_names_are_those_of_the_model_in_force(models: list[Artifact]) -> None:
    """As after a restart with it: behind the mapping file's, before those of messages."""
    old, new = (
        replace(models[0], symbols={1: "OLD", 2: "OLD", 3: "OLD"}),
        replace(models[1], symbols={1: "NEW", 2: "NEW"}),
    )
    names = dict.fromkeys((2, 3, 4), "MESSAGE")
    part = TickBatch.from_ticks(market(10, 4, 1), symbols=names)
    swapped = Pipeline(DEFAULT, Scorer(old), symbols=SymbolMap({1: "FILE"}))
    swapped.process(part)
    assert [swapped.name(0, key) for key in range(1, 6)] == ["FILE", "OLD", "OLD", "MESSAGE", "0:5"]
    swapped.change_model(Scorer(new), {})
    restarted = Pipeline(DEFAULT, Scorer(new), symbols=SymbolMap({1: "FILE"}))
    restarted.restore(0, {}, {}, [swapped.take_delta(0)])
    for pipeline in (swapped, restarted):
        told = [pipeline.name(0, key) for key in range(1, 6)]
        assert told == ["FILE", "NEW", "MESSAGE", "MESSAGE", "0:5"]


def plain(events: Any) -> list[dict[str, Any]]:
    """Events as JSON types, unchecked: validating thousands takes minutes."""
    return [json.loads(event.to_json(0)) for event in events]


def in_pieces(
    batch: TickBatch, models: list[Artifact], cuts: list[int], changes: list[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Events of a pipeline that gets batches cut anywhere, and changes where they are due."""
    pipeline = Pipeline(DEFAULT, Scorer(models[0]), PipelineSpec(policy=SHORT))
    events: list[dict[str, Any]] = []
    at = dict(changes)
    edges = sorted({0, len(batch), *cuts, *at})
    for start, stop in zip(edges, [*edges[1:], len(batch)], strict=True):
        if start in at:
            scorer = Scorer(models[at[start]])
            if scorer.model_hash != pipeline.model_hash:
                events += plain(pipeline.change_model(scorer, {0: start}))
        if start < stop:
            events += plain(pipeline.process(batch[start:stop]).events)
    return events


def replayed(
    batch: TickBatch, models: list[Artifact], changes: list[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Events of the same by a replay."""
    line = Timeline(
        [ModelChange(0, at, models[m].model_hash, models[m].version) for at, m in changes]
    )
    replay = ModelReplay(models, line, PipelineSpec(policy=SHORT), SymbolMap())
    return [event for outcome in replay.outcomes([batch]) for event in plain(outcome.events)]


@given(
    st.lists(st.integers(0, N), max_size=5),
    st.lists(st.tuples(st.integers(0, N), st.integers(0, 2)), max_size=4, unique_by=lambda x: x[0]),
)
@settings(max_examples=15, deadline=None)
def test_a_replay_gives_the_events_of_any_batches(
    batch: TickBatch, models: list[Artifact], cuts: list[int], changes: list[tuple[int, int]]
) -> None:
    """However ticks were cut into batches: the same offsets of changes, the same events."""
    changes = sorted(changes)
    assert replayed(batch, models, changes) == in_pieces(batch, models, cuts, changes)


def test_the_laws_events_close_by_models(batch: TickBatch, models: list[Artifact]) -> None:
    """What the property compares holds episodes that another model closed, and others."""
    events = replayed(batch, models, [(2_000, 1), (3_000, 2), (N, 0)])
    reasons = {event["summary"]["reason"] for event in events if event["phase"] == "close"}
    assert reasons == {"model", "quiet", "silent"}
    assert {e["source"]["offset"] for e in events if is_by_model(e)} >= {2_000, N}
    assert {e["model"]["version"] for e in events} == {"a", "b", "c"}


def is_by_model(event: dict[str, Any]) -> bool:
    """Whether an event closes an episode because of another model."""
    return event["phase"] == "close" and event["summary"]["reason"] == "model"


def test_a_model_that_is_not_there_is_named(models: list[Artifact]) -> None:
    """A replay says which model it lacks, and from which offset on it was in force."""
    line = Timeline([ModelChange(2, 17, "f" * 64, "lost")])
    with pytest.raises(RefusedError, match=r"offset 17 of partition 2 on, model lost .* ffffffff"):
        ModelReplay(models, line, PipelineSpec(), SymbolMap())


def test_models_that_cannot_share_a_file_are_refused(
    models: list[Artifact], tmp_path: Path
) -> None:
    """Other features never, another latent's width not where latents are written."""
    other = random_artifact(tmp_path / "other", vector_spec(("x", "y")))
    with pytest.raises(RefusedError, match="differ in their features"):
        ModelReplay([models[0], other], Timeline([]), PipelineSpec(), SymbolMap())
    with pytest.raises(RefusedError, match="differ in their latent widths"):
        ModelReplay(models, Timeline([]), PipelineSpec(latent=True), SymbolMap())


def test_files_are_scored_with_each_offsets_model(
    batch: TickBatch, models: list[Artifact], tmp_path: Path
) -> None:
    """`score_files` writes every row once, with scores and events of the model in force there."""
    path, out, lines = tmp_path / "t.parquet", tmp_path / "o.parquet", tmp_path / "e.jsonl"
    write_parquet(path, [batch])
    changes = [(2_000, 1), (CUT, 0)]
    line = Timeline(
        [ModelChange(0, at, models[m].model_hash, models[m].version) for at, m in changes]
    )
    done = score_files(
        *(models[0], Files((path,)), out),
        pipeline_spec=PipelineSpec(policy=SHORT),
        events=lines,
        others=models[1:2],
        timeline=line,
    )
    assert done.rows == N
    found = [json.loads(text) for text in lines.read_bytes().splitlines()]
    assert found == replayed(batch, models, changes)
    assert sum(done.events.values()) == len(found)
