"""A seeded stream of messages without end: a market with anomalies, and all that may go wrong.

One seed gives one stream, in either format. Ordinary ticks come one or several a message; among
them are late, repeated and wild ticks, floods of instruments never seen before, and messages that
cannot be decoded, some of them larger than the dead-letter topic takes. Knows no Kafka.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from detector.planting import plan
from detector.synthetic import DEMO_KINDS, generate
from detector.ticks import TickArray, TickBatch, empty_ticks
from detector.wire import encode_dbn, encode_json
from tests.running import START_NS, TRAIN_S, small_market

FeedFormat = Literal["dbn", "json"]

INSTRUMENT_CAP: Final = 8
"""Instruments a partition may track: a flood drives out those of the market."""
FLOOD: Final = 40
FLOOD_EVERY_S: Final = 120
LETTER_LIMIT_BYTES: Final = 300_000
"""Largest record that the dead-letter topic takes; some bad messages are larger."""
MESSAGE_LIMIT_BYTES: Final = 1_040_000

_HOUR_S: Final = 3600.0
_SECOND: Final = 10**9
_FLOOD_PUBLISHER: Final = 900


@dataclass(frozen=True, slots=True)
class FeedMessage:
    """One message on its way to the tick topic."""

    partition: int
    key: bytes
    value: bytes | None
    ticks: int


class Feed:
    """The stream of one seed.

    Parameters
    ----------
    seed
        Fixes every byte.
    fmt
        Format of the good messages.
    partitions
        Each instrument keeps to one.
    poison_share
        Share of messages that cannot be decoded.
    """

    def __init__(
        self, seed: int, fmt: FeedFormat, partitions: int, poison_share: float = 0.01
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._seed, self._format, self._partitions = seed, fmt, partitions
        self._poison_share = poison_share
        self._flooded = 0

    def messages(self) -> Iterator[FeedMessage]:
        """Give the messages in order, for hours of market time."""
        for second, batch in enumerate(self._market()):
            ticks = self._unruly(batch.ticks)
            if second % FLOOD_EVERY_S == FLOOD_EVERY_S - 1:
                ticks = np.concatenate([ticks, self._flood(ticks)])
            yield from self._packed(ticks, dict(batch.symbols))

    def _market(self) -> Iterator[TickBatch]:
        """Hours of the market that the model was trained on, each with anomalies of its own."""
        hour = 0
        while True:
            seed = self._seed + 7919 * hour
            market = small_market(seed)
            start = START_NS + round((TRAIN_S + hour * _HOUR_S) * _SECOND)
            end = start + round(_HOUR_S * _SECOND)
            plants = plan(
                *(market.symbols, 480, start, end),
                min_separation_s=8,
                kinds=DEMO_KINDS,
                seed=seed,
            )
            yield from generate(market, start, _HOUR_S, plants)
            hour += 1

    def _unruly(self, ticks: TickArray) -> TickArray:
        """Make some ticks late, very late, repeated or wild."""
        ticks, n, rng = ticks.copy(), len(ticks), self._rng

        def some(share: float) -> np.ndarray:
            return rng.random(n) < share

        late, very_late, wild = some(0.01), some(0.002), some(0.002)
        ticks["ts_event"][late] -= rng.integers(1, _SECOND, late.sum()).astype(np.uint64)
        ticks["ts_event"][very_late] -= np.uint64(600 * _SECOND)
        ticks["size"][wild] = 2**32 - 1
        return np.repeat(ticks, 1 + some(0.01))

    def _flood(self, ticks: TickArray) -> TickArray:
        """One tick of each of many instruments never seen before."""
        flood = empty_ticks(FLOOD)
        flood[:] = ticks[-1]
        flood["publisher_id"] = _FLOOD_PUBLISHER
        flood["instrument_id"] = self._flooded + np.arange(1, FLOOD + 1)
        self._flooded += FLOOD
        return flood

    def _packed(self, ticks: TickArray, symbols: dict[int, str]) -> Iterator[FeedMessage]:
        """Pack the ticks into messages of one instrument each, with bad ones between them."""
        keys = TickBatch.from_ticks(ticks).keys.tolist()
        at = 0
        while at < len(ticks):
            wanted = 1 if self._rng.random() < 0.8 else int(self._rng.integers(2, 6))
            n = 1
            while n < wanted and at + n < len(ticks) and keys[at + n] == keys[at]:
                n += 1
            home, some = keys[at] % self._partitions, ticks[at : at + n]
            yield FeedMessage(home, b"%d" % keys[at], self._encoded(some, symbols), n)
            if self._rng.random() < self._poison_share:
                yield FeedMessage(home, b"bad", self._poison(some, symbols), 0)
            at += n

    def _encoded(self, ticks: TickArray, symbols: dict[int, str]) -> bytes:
        if self._format == "dbn":
            return encode_dbn(ticks)
        (key,) = set(TickBatch.from_ticks(ticks).keys.tolist())
        return encode_json(ticks, symbols.get(key, f"F{key}"))

    def _poison(self, ticks: TickArray, symbols: dict[int, str]) -> bytes | None:
        """Give a message that no decoder takes: noise, cut, empty, none at all, or very large."""
        kinds: tuple[Callable[[], bytes | None], ...] = (
            lambda: b"not a tick %d" % self._rng.integers(2**40),
            lambda: self._encoded(ticks, symbols)[:-3],
            lambda: b"",
            lambda: None,
        )
        draw = self._rng.random()
        if draw < 0.01:
            return self._noise(MESSAGE_LIMIT_BYTES - int(self._rng.integers(1000)))
        if draw < 0.04:
            return self._noise(LETTER_LIMIT_BYTES + int(self._rng.integers(1, 1000)))
        return kinds[int(self._rng.integers(len(kinds)))]()

    def _noise(self, size: int) -> bytes:
        """Give bytes that no compression makes small enough, and no decoder takes."""
        return b"\xff\xff" + self._rng.bytes(size - 2)
