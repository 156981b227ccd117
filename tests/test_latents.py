"""The latent message: its bytes, what it holds of a batch, and what is refused."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.artifact import Artifact
from detector.latents import (
    MOST_BYTES,
    LatentMessage,
    LatentMessageError,
    latent_messages,
    row_dtype,
)
from detector.pipeline import Pipeline, PipelineSpec
from detector.scorer import Scorer
from detector.ticks import TickBatch, instrument_key
from tests.models import random_artifact
from tests.streams import market

HASH = "ab" * 32


def message(rows: int = 2, width: int = 3) -> LatentMessage:
    """A small message."""
    found = np.zeros(rows, row_dtype(width))
    found["ts_event"] = np.arange(rows) + 1_700_000_000 * 10**9
    found["offset"], found["index"] = np.arange(rows) + 2**40, np.arange(rows)
    found["latent"] = np.arange(rows * width).reshape(rows, width) / 3
    return LatentMessage(instrument_key(7, 42), 5, bytes.fromhex(HASH)[:16], found)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A random model."""
    return random_artifact(tmp_path_factory.mktemp("latents") / "model")


def test_bytes_are_those_of_the_documented_layout() -> None:
    """Header and rows, as docs/latents.md lists them, written here by hand."""
    want = b"TWLT" + struct.pack("<HHIHHIi", 1, 3, 2, 7, 0, 42, 5) + b"\xab" * 16
    for row in (0, 1):
        want += struct.pack("<qqi", 1_700_000_000 * 10**9 + row, 2**40 + row, row)
        want += struct.pack("<3f", *((3 * row + j) / 3 for j in range(3)))
    assert bytes(message()) == want


@given(st.integers(0, 40), st.integers(1, 64))
def test_parsing_gives_back_what_was_encoded(rows: int, width: int) -> None:
    """Any number of rows and any width."""
    sent = message(rows, width)
    found = LatentMessage.parse(bytes(sent))
    assert (found.key, found.partition, found.model) == (sent.key, sent.partition, sent.model)
    assert found.rows.dtype == sent.rows.dtype
    np.testing.assert_array_equal(found.rows, sent.rows)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "no latent message"),
        (b"{}" * 40, "no latent message"),
        (bytes(message())[:39], "no latent message"),
        (bytes(message())[:-1], "2 rows of width 3 are 104 bytes"),
        (bytes(message()) + b"x", "105 bytes"),
        (b"TWLT\x02\x00" + bytes(message())[6:], "version 2"),
    ],
)
def test_other_bytes_are_refused(data: bytes, words: str) -> None:
    """Bytes that are no such message are refused with what was found."""
    with pytest.raises(LatentMessageError, match=words):
        LatentMessage.parse(data)


@given(st.binary(max_size=200))
def test_no_bytes_break_the_parser(data: bytes) -> None:
    """Whatever comes: a message or a refusal, never another error."""
    for each in (data, b"TWLT\x01\x00" + data):
        try:
            LatentMessage.parse(each)
        except LatentMessageError:
            continue


def published(artifact: Artifact, batch: TickBatch, size: int) -> list[LatentMessage]:
    """Messages of a stream cut into batches of a size."""
    pipeline = Pipeline(artifact.features, Scorer(artifact), PipelineSpec(latent=True))
    found: list[LatentMessage] = []
    for start in range(0, len(batch), size):
        part = pipeline.prepare(batch[start : start + size])
        scores = pipeline.finish([part]).scores[0]
        found += latent_messages(part.batch, part.block, scores, artifact.model_hash)
    return found


def test_messages_hold_every_scored_tick_once_and_in_order(artifact: Artifact) -> None:
    """By instrument: the ready ticks, in order, with the scorer's latents, however it is cut."""
    batch = TickBatch.from_ticks(market(9_000, 3, seed=2), partition=4)
    pipeline = Pipeline(artifact.features, Scorer(artifact), PipelineSpec(latent=True))
    outcome = pipeline.process(batch)
    block, scores = outcome.blocks[0], outcome.scores[0]
    assert scores.latent is not None
    assert np.isnan(scores.latent[~block.ready]).all()
    for size in (len(batch), 517):
        found = published(artifact, batch, size)
        assert {m.partition for m in found} == {4}
        assert {m.model.hex() for m in found} == {artifact.model_hash[:32]}
        for key in np.unique(block.keys).tolist():
            mine = [m for m in found if m.key == key]
            rows = np.flatnonzero(block.ready & (block.keys == key))
            assert len(rows) > 100
            assert sum(map(len, mine)) == len(rows)
            for name, want in (
                ("ts_event", block.ts),
                ("offset", batch.offsets),
                ("index", batch.indices),
                ("latent", scores.latent),
            ):
                column = np.concatenate([m.rows[name] for m in mine])
                np.testing.assert_array_equal(column, want[rows])
        assert sum(map(len, found)) == block.ready.sum()


def test_nothing_ready_is_no_message(artifact: Artifact) -> None:
    """While every instrument warms up, nothing is published."""
    assert published(artifact, TickBatch.from_ticks(market(50, 3, seed=2)), 50) == []


def test_large_micro_batch_is_split(artifact: Artifact) -> None:
    """No message is larger than brokers take; together they are the whole, in order."""
    batch = TickBatch.from_ticks(market(9_000, 1, seed=2))
    pipeline = Pipeline(artifact.features, Scorer(artifact), PipelineSpec(latent=True))
    part = pipeline.prepare(batch)
    scores = pipeline.finish([part]).scores[0]
    wide = replace(scores, latent=np.zeros((len(batch), 64), np.float32))
    found = list(latent_messages(part.batch, part.block, wide, artifact.model_hash))
    assert len(found) > 2
    assert max(len(bytes(m)) for m in found) <= MOST_BYTES
    offsets = np.concatenate([m.rows["offset"] for m in found])
    np.testing.assert_array_equal(offsets, batch.offsets[part.block.ready])


def test_scores_without_latent_are_a_bug_that_says_so(artifact: Artifact) -> None:
    """A pipeline that was not asked for latents cannot be published from."""
    batch = TickBatch.from_ticks(market(200, 1, seed=2))
    pipeline = Pipeline(artifact.features, Scorer(artifact))
    part = pipeline.prepare(batch)
    scores = pipeline.finish([part]).scores[0]
    assert scores.latent is None
    with pytest.raises(ValueError, match=r"PipelineSpec\.latent"):
        list(latent_messages(part.batch, part.block, scores, artifact.model_hash))
