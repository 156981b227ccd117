"""The latent as a Kafka message: one for each micro-batch and instrument, binary, self-contained.

Rows are the instrument's scored ticks in order; each says which input record it is about, so that a
reader can join it to the tick, and can tell a repeat. `docs/latents.md` defines every byte. Knows
no Kafka client.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from detector.features import FeatureBlock
from detector.scorer import ScoreBlock
from detector.ticks import Batch, instrument_key, split_key

MAGIC: Final = b"TWLT"
VERSION: Final = 1
HEADER: Final = struct.Struct("<4sHHIHxxIi16s")
"""Magic, version, width, rows, publisher, two zeros, instrument, partition, model: 40 bytes."""

MOST_BYTES: Final = 512 * 1024
"""Larger ones are split: brokers refuse messages from a mebibyte on, by default."""


class LatentMessageError(ValueError):
    """Bytes that are no latent message: what was found, what was expected."""


@dataclass(frozen=True, slots=True, eq=False)
class LatentMessage:
    """Latents of some consecutive scored ticks of one instrument.

    Parameters
    ----------
    key
        The instrument, see `ticks.instrument_key`.
    partition
        Input partition.
    model
        First 16 bytes of the model's hash: latents of two models have nothing to do with each
        other.
    ts
        `(n,)` int64 event times, ns since the epoch.
    offsets, indices
        `(n,)` int64 and int32: offset of the input message that carried the tick, and the tick's
        position within it.
    latent
        `(n, L)` float32, finite.
    """

    key: int
    partition: int
    model: bytes
    ts: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    latent: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.ts)

    def __bytes__(self) -> bytes:
        """Encode: the header, then column by column."""
        publisher, instrument = split_key(self.key)
        rows, width = self.latent.shape
        header = HEADER.pack(
            MAGIC, VERSION, width, rows, publisher, instrument, self.partition, self.model
        )
        columns = (
            self.ts.astype("<i8", copy=False),
            self.offsets.astype("<i8", copy=False),
            self.indices.astype("<i4", copy=False),
            self.latent.astype("<f4", copy=False),
        )
        return b"".join((header, *(column.tobytes() for column in columns)))

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Read what `bytes(message)` gave.

        Raises
        ------
        LatentMessageError
            Not such a message, of another version, or cut.
        """
        if len(data) < HEADER.size or data[:4] != MAGIC:
            raise LatentMessageError(f"{data[:4]!r}: no latent message; it begins with {MAGIC!r}")
        _, version, width, rows, publisher, instrument, partition, model = HEADER.unpack_from(data)
        if version != VERSION:
            raise LatentMessageError(f"version {version}; this tapewatch reads {VERSION}")
        size = HEADER.size + rows * row_bytes(width)
        if len(data) != size:
            raise LatentMessageError(
                f"{len(data)} bytes; {rows} rows of width {width} are {size} bytes"
            )
        at = HEADER.size

        def taken(dtype: str, count: int) -> npt.NDArray[Any]:
            nonlocal at
            column = np.frombuffer(data, dtype, count, at)
            at += column.nbytes
            return column

        return cls(
            key=instrument_key(publisher, instrument),
            partition=partition,
            model=model,
            ts=taken("<i8", rows),
            offsets=taken("<i8", rows),
            indices=taken("<i4", rows),
            latent=taken("<f4", rows * width).reshape(rows, width),
        )


def row_bytes(width: int) -> int:
    """Size of one row of a message."""
    return 8 + 8 + 4 + 4 * width


def latent_messages(
    batch: Batch, block: FeatureBlock, scores: ScoreBlock, model_hash: str
) -> Iterator[LatentMessage]:
    """Messages of one partition's scored batch: instrument by instrument, in order of its ticks.

    Parameters
    ----------
    batch, block, scores
        One partition's ticks, features and scores, row by row; scores with the latent.
    model_hash
        The model's, in hex.
    """
    if scores.latent is None:
        raise ValueError("scores without the latent; ask the pipeline for it (PipelineSpec.latent)")
    ready = np.flatnonzero(block.ready)
    keys = block.keys[ready]
    order = np.argsort(keys, kind="stable")
    rows, keys = ready[order], keys[order]
    edges = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
    most = max(1, (MOST_BYTES - HEADER.size) // row_bytes(scores.latent.shape[1]))
    ts, offsets, indices = block.ts[rows], batch.offsets[rows], batch.indices[rows]
    latent = scores.latent[rows]
    model = bytes.fromhex(model_hash)[:16]
    for first, end in itertools.pairwise(edges):
        for start in range(first, end, most):
            part = slice(start, min(start + most, end))
            yield LatentMessage(
                key=int(keys[first]),
                partition=batch.partition,
                model=model,
                ts=ts[part],
                offsets=offsets[part],
                indices=indices[part],
                latent=latent[part],
            )
