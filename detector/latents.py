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
from typing import Final, Self

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


def row_dtype(width: int) -> np.dtype[np.void]:
    """Layout of one row: event time, offset, index and latent, `20 + 4 L` bytes, packed."""
    return np.dtype(
        [("ts_event", "<i8"), ("offset", "<i8"), ("index", "<i4"), ("latent", "<f4", (width,))]
    )


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
    rows
        `(n,)` of `row_dtype(L)`: event time in ns since the epoch, offset of the input message that
        carried the tick, the tick's position within it, and its latent, finite.
    """

    key: int
    partition: int
    model: bytes
    rows: npt.NDArray[np.void]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def latent(self) -> npt.NDArray[np.float32]:
        """`(n, L)` float32."""
        return np.asarray(self.rows["latent"])

    def __bytes__(self) -> bytes:
        """Encode: the header, then row by row."""
        publisher, instrument = split_key(self.key)
        n, width = self.rows["latent"].shape
        header = HEADER.pack(
            MAGIC, VERSION, width, n, publisher, instrument, self.partition, self.model
        )
        return header + self.rows.tobytes()

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
        _, version, width, n, publisher, instrument, partition, model = HEADER.unpack_from(data)
        if version != VERSION:
            raise LatentMessageError(f"version {version}; this tapewatch reads {VERSION}")
        dtype = row_dtype(width)
        size = HEADER.size + n * dtype.itemsize
        if len(data) != size:
            raise LatentMessageError(
                f"{len(data)} bytes; {n} rows of width {width} are {size} bytes"
            )
        rows = np.frombuffer(data, dtype, n, HEADER.size)
        return cls(instrument_key(publisher, instrument), partition, model, rows)


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
    order = ready[np.argsort(block.keys[ready], kind="stable")]
    keys = block.keys[order]
    rows = np.empty(len(order), row_dtype(scores.latent.shape[1]))
    rows["ts_event"] = block.ts[order]
    rows["offset"], rows["index"] = batch.offsets[order], batch.indices[order]
    rows["latent"] = scores.latent[order]
    most = max(1, (MOST_BYTES - HEADER.size) // rows.itemsize)
    model = bytes.fromhex(model_hash)[:16]
    edges = [0, *(np.flatnonzero(np.diff(keys)) + 1).tolist(), len(keys)]
    for first, end in itertools.pairwise(edges):
        for start in range(first, end, most):
            part = rows[start : min(start + most, end)]
            yield LatentMessage(int(keys[first]), batch.partition, model, part)
