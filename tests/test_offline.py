"""Files through the pipeline without Kafka: which rows, which offsets, which events."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest

from detector.drift import WHOLE_FILE
from detector.errors import RefusedError
from detector.events import EpisodePolicy, event_schema
from detector.features import DEFAULT
from detector.offline import SCHEMA, Files, drift_of_files, score_files
from detector.pipeline import Pipeline, PipelineSpec
from detector.readers import write_parquet
from detector.scorer import Scorer
from detector.ticks import TickBatch
from tests.models import random_artifact
from tests.streams import START, market

# The scores of random weights hardly vary: with these episodes end all the same.
CLOSING = PipelineSpec(policy=EpisodePolicy(close_ratio=1.0, quiet_s=0.5))


@pytest.fixture(scope="module")
def ticks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TickBatch]:
    """A file of a small market, and its content."""
    path = tmp_path_factory.mktemp("ticks") / "ticks.parquet"
    batch = TickBatch.from_ticks(market(9_000, 3, seed=2))
    write_parquet(path, [batch])
    return path, batch


def test_offsets_number_the_rows_that_a_time_range_leaves(ticks: tuple[Path, TickBatch]) -> None:
    """Rows before `since` are as if the file did not hold them: offsets begin at 0, no gaps."""
    path, batch = ticks
    since, until = int(batch.ts_event[1_000]), int(batch.ts_event[3_000])
    inside = (batch.ts_event >= since) & (batch.ts_event < until)
    found = list(Files((path,), since=since, until=until).batches(DEFAULT))
    offsets = np.concatenate([part.offsets for part in found])
    np.testing.assert_array_equal(offsets, np.arange(np.count_nonzero(inside)))
    assert int(found[0].ts_event[0]) == since > START


def test_events_are_those_of_the_pipeline(ticks: tuple[Path, TickBatch], tmp_path: Path) -> None:
    """The file of events holds every event of the same ticks, valid against the schema."""
    path, batch = ticks
    artifact = random_artifact(tmp_path / "model", threshold=2.0)
    done = score_files(
        artifact,
        Files((path,)),
        tmp_path / "scores.parquet",
        events=tmp_path / "events.jsonl",
    )
    found = [json.loads(line) for line in (tmp_path / "events.jsonl").read_bytes().splitlines()]
    pipeline = Pipeline(artifact.features, Scorer(artifact))
    want = [event.to_dict(0) for event in pipeline.process(batch).events]
    assert len(want) > 5
    assert found == want
    assert sum(done.events.values()) == len(found)
    for event in found:
        jsonschema.validate(event, event_schema())
    assert pq.read_table(tmp_path / "scores.parquet").num_rows == len(batch)


def test_rows_and_events_have_the_files_names_then_the_models(
    ticks: tuple[Path, TickBatch], tmp_path: Path
) -> None:
    """An instrument that no row names goes by the model's name, in both outputs."""
    _, batch = ticks
    ours, theirs, nobodys = np.unique(batch.keys).tolist()
    write_parquet(tmp_path / "named.parquet", [replace(batch, symbols={ours: "FILE"})])
    artifact = replace(
        random_artifact(tmp_path / "model", threshold=2.0), symbols={ours: "X", theirs: "MODEL"}
    )
    out, lines = tmp_path / "scores.parquet", tmp_path / "events.jsonl"
    score_files(artifact, Files((tmp_path / "named.parquet",)), out, events=lines)
    want = {ours: "FILE", theirs: "MODEL", nobodys: "7:3"}
    table = pq.read_table(out, columns=["symbol", "publisher_id", "instrument_id"]).to_pylist()
    events = [json.loads(line) for line in lines.read_bytes().splitlines()]
    for rows in (table, events):
        told = {(row["publisher_id"] << 32 | row["instrument_id"], row["symbol"]) for row in rows}
        assert told == set(want.items())


def test_thresholds_that_adapt_are_those_of_the_pipeline_in_any_batches(
    ticks: tuple[Path, TickBatch], tmp_path: Path
) -> None:
    """Offline thresholds, decisions and events equal those of micro-batches prepared ahead.

    The thresholds move, the Parquet file holds the ones applied, and every event carries its own.
    """
    path, batch = ticks
    artifact = random_artifact(tmp_path / "model", threshold=16.0, budget=200.0)
    out, lines = tmp_path / "scores.parquet", tmp_path / "events.jsonl"
    done = score_files(artifact, Files((path,)), out, pipeline_spec=CLOSING, events=lines)
    pipeline = Pipeline(artifact.features, Scorer(artifact), CLOSING)
    want: list[dict[str, Any]] = []
    applied: list[np.ndarray] = []
    prepared = [pipeline.prepare(batch[a : a + 700]) for a in range(0, len(batch), 700)]
    for part in prepared:
        outcome = pipeline.finish([part])
        want += [event.to_dict(0) for event in outcome.events]
        applied.append(outcome.scores[0].threshold)
    assert [json.loads(line) for line in lines.read_bytes().splitlines()] == want
    table = pq.read_table(out)
    threshold = table["threshold"].to_numpy()
    np.testing.assert_array_equal(threshold, np.concatenate(applied))
    ready = table["ready"].to_numpy()
    assert len(np.unique(threshold[ready])) > 100
    score = table["score"].to_numpy(zero_copy_only=False)
    np.testing.assert_array_equal(table["anomaly"].to_numpy(), score >= threshold)
    assert done.anomalies == np.count_nonzero(score >= threshold)
    opened = [event for event in want if event["phase"] == "open"]
    assert opened
    for event in opened:
        assert event["threshold"] == threshold[event["source"]["offset"]] <= event["score"]


def test_adaptation_can_be_switched_off(ticks: tuple[Path, TickBatch], tmp_path: Path) -> None:
    """With `adapt` off a model's thresholds stay as trained, like those of a quantile model."""
    _, batch = ticks
    adaptive = random_artifact(tmp_path / "adaptive", threshold=16.0, budget=200.0)
    quantile = random_artifact(tmp_path / "quantile", threshold=16.0)
    frozen = Pipeline(adaptive.features, Scorer(adaptive), replace(CLOSING, adapt=False))
    off = frozen.process(batch)
    plain = Pipeline(quantile.features, Scorer(quantile)).process(batch)
    moved = Pipeline(adaptive.features, Scorer(adaptive), CLOSING).process(batch)
    np.testing.assert_array_equal(off.scores[0].threshold, plain.scores[0].threshold)
    assert set(plain.scores[0].threshold.tolist()) == {16.0}
    assert len(set(moved.scores[0].threshold.tolist())) > 100


def test_a_released_partition_begins_at_the_prior(
    ticks: tuple[Path, TickBatch], tmp_path: Path
) -> None:
    """What thresholds learned goes with the partition, and partitions do not share it."""
    _, batch = ticks
    artifact = random_artifact(tmp_path / "model", threshold=16.0, budget=200.0)
    pipeline = Pipeline(artifact.features, Scorer(artifact), CLOSING)
    first = pipeline.process(batch).scores[0].threshold
    other = pipeline.process(replace(batch, partition=5)).scores[0].threshold
    pipeline.release(0)
    again = pipeline.process(batch).scores[0].threshold
    assert len(np.unique(first)) > 100
    np.testing.assert_array_equal(other, first)
    np.testing.assert_array_equal(again, first)


def test_events_into_no_folder_are_refused(ticks: tuple[Path, TickBatch], tmp_path: Path) -> None:
    """A folder that does not exist is named with its option, and no scores are left behind."""
    artifact = random_artifact(tmp_path / "model")
    with pytest.raises(RefusedError, match=r"--events .*nowhere"):
        score_files(
            artifact,
            Files((ticks[0],)),
            tmp_path / "scores.parquet",
            events=tmp_path / "nowhere" / "events.jsonl",
        )
    assert not (tmp_path / "scores.parquet").exists()


def test_latent_is_written_where_asked_for(ticks: tuple[Path, TickBatch], tmp_path: Path) -> None:
    """`latent_0` and so on, float32, null where not scored; without it the file is as before."""
    path, batch = ticks
    artifact = random_artifact(tmp_path / "model", threshold=2.0)
    plain, more = tmp_path / "plain.parquet", tmp_path / "more.parquet"
    score_files(artifact, Files((path,)), plain)
    score_files(artifact, Files((path,)), more, latent=True)
    without, table = pq.read_table(plain), pq.read_table(more)
    assert without.schema.names == SCHEMA.names
    width = Scorer(artifact).latent_width
    names = [f"latent_{j}" for j in range(width)]
    assert table.schema.names == [*SCHEMA.names, *names]
    assert table.select(SCHEMA.names).equals(without)
    pipeline = Pipeline(artifact.features, Scorer(artifact), PipelineSpec(latent=True))
    outcome = pipeline.process(batch)
    block, latent = outcome.blocks[0], outcome.scores[0].latent
    assert latent is not None
    assert latent.shape == (len(batch), width)
    for name, want in zip(names, latent.T, strict=True):
        assert str(table.schema.field(name).type) == "float"
        found = table[name].to_numpy(zero_copy_only=False)
        np.testing.assert_array_equal(found[block.ready], want[block.ready])
        assert table[name].null_count == np.count_nonzero(~block.ready) > 0


def test_drift_of_files_is_that_of_the_pipeline(
    ticks: tuple[Path, TickBatch], tmp_path: Path
) -> None:
    """Every ready tick of a file is compared, however the reader cuts it; few are refused."""
    path, batch = ticks
    artifact = random_artifact(tmp_path / "model")
    found = drift_of_files(artifact, Files((path,)))
    pipeline = Pipeline(artifact.features, Scorer(artifact), PipelineSpec(drift=WHOLE_FILE))
    ready = pipeline.process(batch).blocks[0].ready
    want = pipeline.drift()
    assert want is not None
    assert found.rows == want.rows == ready.sum()
    assert (found.score, found.top(3)) == (want.score, want.top(3))
    until = int(batch.ts_event[np.flatnonzero(ready)[500]])
    with pytest.raises(RefusedError, match="ready ticks, at least 1,000 are needed"):
        drift_of_files(artifact, Files((path,), until=until))
