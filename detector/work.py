"""A piece of work on its way from intake to decision: most often a micro-batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from detector.kafka import PartitionMessages
from detector.latents import LatentMessage
from detector.ledger import Ticket
from detector.model_changes import ModelChange
from detector.model_watch import LoadedModel
from detector.pipeline import Outcome, Prepared
from detector.state_checks import Arrays


@dataclass(slots=True, eq=False)
class Work:
    """What intake hands on, and what became of it.

    Parameters
    ----------
    ticket
        Its claim in the ledger.
    generations
        How often each of its partitions had been given up when it was taken in: a later number
        means that the partition is not ours any more, or begins anew.
    positions
        Next offset of each partition it is from.
    messages, prepared, rejected
        What was fetched; ticks with their features; messages that cannot be read: whose, row and
        reason.
    changes
        Which model scores from here on, where that is new.
    model
        To be put in force; such a work carries no ticks.
    checkpoint
        Commit what was done so far, with the state; such a work carries no ticks.
    snapshots
        Feature state by partition as it is at this checkpoint, to be kept.
    outcome, latents
        What deciding led to; latents with the name of their instrument.
    """

    ticket: Ticket
    generations: Mapping[int, int]
    positions: Mapping[int, int] = field(default_factory=dict)
    messages: Mapping[int, PartitionMessages] = field(default_factory=dict)
    prepared: list[Prepared] = field(default_factory=list)
    rejected: list[tuple[PartitionMessages, int, str]] = field(default_factory=list)
    changes: Sequence[ModelChange] = ()
    model: LoadedModel | None = None
    checkpoint: bool = False
    snapshots: Mapping[int, Arrays] = field(default_factory=dict)
    outcome: Outcome | None = None
    latents: Sequence[tuple[str, LatentMessage]] = ()

    @property
    def ticks(self) -> int:
        """How many ticks it carries."""
        return sum(len(prepared.batch) for prepared in self.prepared)
