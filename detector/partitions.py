"""What is known of the partitions assigned to this process; shared by its two threads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class Partitions:
    """The assignment.

    Parameters
    ----------
    joined
        Whether the group has assigned anything yet, be it nothing.
    positions
        Next offset of what was taken in, by partition.
    generations
        How often each partition was given up, or began anew.
    reached
        Next offset to be fetched, by partition.
    replaying
        Partitions whose messages before an offset are taken into the windows only.
    """

    joined: bool = False
    positions: dict[int, int] = field(default_factory=dict)
    generations: dict[int, int] = field(default_factory=dict)
    replaying: dict[int, int] = field(default_factory=dict)
    reached: dict[int, int] = field(default_factory=dict)

    def generations_of(self, partitions: Iterable[int]) -> dict[int, int]:
        """Return the present generation of each."""
        return {p: self.generations.get(p, 0) for p in partitions}

    def still(self, partition: int, generations: Mapping[int, int]) -> bool:
        """Whether a partition was not given up since those generations were noted."""
        return generations.get(partition) == self.generations.get(partition, 0)

    def forget(self, partitions: Iterable[int]) -> None:
        """Give partitions up: what was taken in of them before counts no more."""
        for partition in partitions:
            self.generations[partition] = self.generations.get(partition, 0) + 1
            self.positions.pop(partition, None)
            self.replaying.pop(partition, None)
            self.reached.pop(partition, None)
