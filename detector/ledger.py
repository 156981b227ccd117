"""Which input offsets may be committed: those whose micro-batch has left nothing unacknowledged.

Tickets are opened in the order of the input, one a micro-batch. A ticket is settled when its
micro-batch is finished and every record it led to is acknowledged; a position is committable when
its ticket and all earlier ones are settled. The ledger knows neither Kafka nor ticks.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping


class Ticket:
    """One micro-batch's claim on its input positions; see `Ledger.open`."""

    def __init__(self, positions: Mapping[int, int], changed: threading.Condition) -> None:
        self.positions = dict(positions)
        self._changed = changed
        self._unacknowledged = 0
        self._finished = False

    def expect(self) -> None:
        """One more record is about to be published for this micro-batch."""
        with self._changed:
            self._unacknowledged += 1

    def acknowledge(self) -> None:
        """One of its records was acknowledged."""
        with self._changed:
            self._unacknowledged -= 1
            self._changed.notify_all()

    def finish(self) -> None:
        """No further record will be published for this micro-batch."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    @property
    def settled(self) -> bool:
        """Finished, and nothing unacknowledged."""
        return self._finished and self._unacknowledged == 0


class Ledger:
    """The open tickets in input order, and the positions that may be committed."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._tickets: deque[Ticket] = deque()
        self._committable: dict[int, int] = {}

    def open(self, positions: Mapping[int, int]) -> Ticket:
        """Open the next ticket for next-offsets by partition."""
        ticket = Ticket(positions, self._changed)
        with self._changed:
            self._tickets.append(ticket)
        return ticket

    def claim(self, ticket: Ticket, positions: Mapping[int, int]) -> None:
        """Let a ticket, opened without positions, stand for these."""
        with self._changed:
            ticket.positions.update(positions)

    def abandon(self) -> None:
        """Forget every ticket: what they stand for is taken in again."""
        with self._changed:
            self._tickets.clear()
            self._committable.clear()
            self._changed.notify_all()

    def take_committable(self) -> dict[int, int]:
        """Return the positions that became committable since the last call."""
        with self._changed:
            self._settle()
            taken, self._committable = self._committable, {}
        return taken

    def wait_settled(self, timeout_s: float) -> bool:
        """Wait until every ticket is settled; False if that took too long."""
        with self._changed:
            return self._changed.wait_for(
                lambda: all(ticket.settled for ticket in self._tickets), timeout_s
            )

    def forget(self, partitions: Iterable[int]) -> None:
        """Never report positions of these partitions from tickets open now."""
        with self._changed:
            self._settle()
            for partition in partitions:
                self._committable.pop(partition, None)
                for ticket in self._tickets:
                    ticket.positions.pop(partition, None)

    def _settle(self) -> None:
        while self._tickets and self._tickets[0].settled:
            self._committable.update(self._tickets.popleft().positions)
