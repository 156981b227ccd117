"""Files through the pipeline without Kafka: which rows, which offsets, which events."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest

from detector.errors import RefusedError
from detector.events import event_schema
from detector.features import DEFAULT
from detector.offline import Files, score_files
from detector.pipeline import Pipeline
from detector.readers import write_parquet
from detector.scorer import Scorer
from detector.ticks import TickBatch
from tests.models import random_artifact
from tests.streams import START, market


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
