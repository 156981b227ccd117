"""The ledger lets an offset be committed only when nothing before it can still be lost."""

from __future__ import annotations

import threading

from hypothesis import given
from hypothesis import strategies as st

from detector.ledger import Ledger


def test_position_waits_for_acknowledgement() -> None:
    """A finished micro-batch with an unacknowledged event commits nothing."""
    ledger = Ledger()
    ticket = ledger.open({0: 5})
    ticket.expect()
    ticket.finish()
    assert ledger.take_committable() == {}
    ticket.acknowledge()
    assert ledger.take_committable() == {0: 5}
    assert ledger.take_committable() == {}


def test_later_ticket_waits_for_earlier() -> None:
    """An acknowledged micro-batch waits for the one before it."""
    ledger = Ledger()
    first, second = ledger.open({0: 5}), ledger.open({0: 9, 1: 3})
    second.finish()
    assert ledger.take_committable() == {}
    first.finish()
    assert ledger.take_committable() == {0: 9, 1: 3}


def test_forgotten_partition_is_never_committed() -> None:
    """What was revoked is not committed, whether its ticket settled before or settles later."""
    ledger = Ledger()
    ledger.open({0: 5, 1: 5}).finish()
    open_ticket = ledger.open({0: 9, 1: 9})
    ledger.forget([0])
    open_ticket.finish()
    assert ledger.take_committable() == {1: 9}


def test_wait_settled_wakes_on_the_last_acknowledgement() -> None:
    """Waiting ends when another thread acknowledges, and says so."""
    ledger = Ledger()
    ticket = ledger.open({0: 1})
    ticket.expect()
    ticket.finish()
    assert not ledger.wait_settled(0.01)
    waker = threading.Timer(0.05, ticket.acknowledge)
    waker.start()
    assert ledger.wait_settled(30.0)
    waker.join()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_committed_is_always_a_settled_prefix(counts: list[int], random: object) -> None:
    """In whatever order acknowledgements come, only a prefix without gaps is committable."""
    ledger = Ledger()
    tickets = [ledger.open({0: i + 1}) for i in range(len(counts))]
    pending = dict(enumerate(counts))
    steps = [i for i, n in enumerate(counts) for _ in range(n)]
    for i, n in enumerate(counts):
        for _ in range(n):
            tickets[i].expect()
        tickets[i].finish()
    random.shuffle(steps)  # type: ignore[attr-defined]
    committed = ledger.take_committable().get(0, 0)
    for i in steps:
        tickets[i].acknowledge()
        pending[i] -= 1
        prefix = next((k for k in sorted(pending) if pending[k]), len(counts))
        committed = max(committed, ledger.take_committable().get(0, 0))
        assert committed == prefix
    assert committed == len(counts) or not steps
