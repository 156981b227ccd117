"""What every decoder returns, and the reasons a message can be refused for.

A decoder turns Kafka message values into one batch of ticks in arrival order. It knows no Kafka
client object, keeps no state that changes what a message means, and never raises on any bytes: a
message is accepted whole or named in `Decoded.rejected` whole, so that the caller can dead-letter
it byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from detector.ticks import Batch

Offsets = Sequence[int] | npt.NDArray[np.int64]
Headers = Sequence[tuple[str, bytes | None]] | None
"""Headers of one message, as Kafka clients give them."""

REASONS: Final = (
    "empty",  # no bytes at all, or a tombstone
    "wrong_length",  # not a whole number of records or rows
    "unknown_record_type",  # dbn: a record that is neither MBP-1 nor Trades
    "mixed_record_types",  # dbn: both types in one message
    "invalid_json",  # not JSON; NaN and Infinity are not JSON
    "not_a_tick",  # json: something other than an object or a non-empty array of objects
    "missing_field",  # json: ts_event, action or the instrument is absent
    "bad_value",  # a field's value is outside of what the field can hold
    "bad_header",  # vector: wrong magic, version, or no row
    "wrong_columns",  # vector: not the columns the model was trained on
)
"""Every reason a message can be dead-lettered for; the values of a metric's `reason` label."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """One message that could not be decoded.

    Parameters
    ----------
    row
        Its position among the messages given to `decode`.
    reason
        One of `REASONS`.
    """

    row: int
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What a run of messages held.

    Parameters
    ----------
    batch
        Ticks of the accepted messages in arrival order; None when there are none.
    rejected
        The other messages, each exactly once, by ascending row.
    dropped
        Ticks of accepted messages that were left out, by reason; normally empty.
    """

    batch: Batch | None
    rejected: list[Rejected]
    dropped: Mapping[str, int] = field(default_factory=dict)


class Decoder(Protocol):
    """Message values to ticks."""

    @property
    def needs_headers(self) -> bool:
        """Whether `decode` has to be given the messages' headers."""
        ...

    def decode(
        self,
        values: Sequence[bytes | None],
        offsets: Offsets,
        partition: int,
        headers: Sequence[Headers] | None = None,
    ) -> Decoded:
        """Decode messages of one input partition, given in offset order.

        Parameters
        ----------
        values
            Message values; None is a tombstone and is rejected as `empty`.
        offsets
            Their offsets.
        partition
            The input partition.
        headers
            Their headers, for decoders with `needs_headers`.
        """
        ...


def tick_positions(
    counts: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Offset and index within its message of every tick, from the ticks per message."""
    total = int(counts.sum())
    if total == len(counts) and (counts == 1).all():
        return offsets, np.zeros(total, np.int32)
    first = np.cumsum(counts) - counts
    indices = (np.arange(total) - np.repeat(first, counts)).astype(np.int32)
    return np.repeat(offsets, counts), indices
