"""The ready ticks of a stream with their features, on disk, and what was planted among them.

Everything that is compared reads the same rows from here: features are computed once, by the
detector's own bank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.features import MAX_INSTRUMENTS, FeatureBlock, FeatureSpec
from detector.placing import Planted
from detector.symbols import SymbolMap
from detector.ticks import PRICE_UNIT, UNDEFINED_PRICE, TickBatch
from training.datasets import CHUNK, Rows, RowStore, write_rows
from training.labels import tick_labels

Bool = npt.NDArray[np.bool_]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

PRICES: Final = "prices.f64"


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """Ready ticks in order of arrival, and the anomalies among them.

    Parameters
    ----------
    store
        Features, instrument keys and event times, `n` rows.
    price
        `(n,)` float64 mid price, or the price of the tick where there is no two-sided book.
    at
        `(n,)` int64 number of each tick among all ticks of the stream, ready or not.
    kind
        `(n,)` uint8, `labels.KIND_INDEX` of the anomaly a tick belongs to; 0: ordinary.
    planted
        The anomalies.
    names
        Of the instruments, by key.
    """

    store: RowStore
    price: Float64
    at: Int64
    kind: npt.NDArray[np.uint8]
    planted: tuple[Planted, ...]
    names: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.store)

    @property
    def keys(self) -> Int64:
        """`(n,)` instrument keys."""
        return self.store.keys

    @property
    def ts(self) -> Int64:
        """`(n,)` event times, ns."""
        return self.store.ts

    def rows(self, chosen: Bool) -> Rows:
        """Gather some rows in memory, for fitting."""
        whole = Rows.whole(np.ascontiguousarray(self.store.values[chosen]), self.keys[chosen])
        return Rows(whole.values, whole.keys, whole.spans, self.ts[chosen])

    def chunks(
        self, chosen: Bool
    ) -> Iterator[tuple[npt.NDArray[np.intp], npt.NDArray[np.float32], Int64]]:
        """Row numbers, features and keys of some rows, a chunk at a time."""
        every = np.flatnonzero(chosen)
        for start in range(0, len(every), CHUNK):
            at = every[start : start + CHUNK]
            yield at, np.ascontiguousarray(self.store.values[at]), np.array(self.keys[at])


def read_stream(
    batches: Iterable[TickBatch],
    spec: FeatureSpec,
    folder: Path,
    planted: Sequence[Planted] = (),
    tell: Callable[[int], None] | None = None,
) -> Stream:
    """Compute the features of a stream and keep those of its ready ticks in a folder.

    Parameters
    ----------
    batches
        In order of event time, one partition, as the daemon would see them.
    spec
        Feature definition.
    folder
        Where the rows go: `4 F + 24` bytes each. Must exist.
    planted
        The anomalies; those of one instrument must not overlap.
    tell
        Called with the number of ticks after each batch.
    """
    symbols, bank = SymbolMap(), spec.bank(MAX_INSTRUMENTS)
    numbers, seen = [np.empty(0, np.int64)], 0
    with (folder / PRICES).open("wb") as prices:

        def blocks() -> Iterator[FeatureBlock]:
            nonlocal seen
            for batch in batches:
                symbols.learn(batch.symbols)
                block = bank.update(batch)
                numbers.append(np.flatnonzero(block.ready) + seen)
                seen += len(batch)
                prices.write(np.ascontiguousarray(_price(batch)[block.ready]).data)
                yield block
                if tell is not None:
                    tell(len(batch))

        store = write_rows(blocks(), folder, len(spec.names))
    keys, ts = np.array(store.keys), np.array(store.ts)
    return Stream(
        RowStore(store.values, keys, ts),
        np.fromfile(folder / PRICES),
        np.concatenate(numbers),
        tick_labels(keys, ts, planted).kind,
        tuple(planted),
        {key: symbols.name(key) for key in np.unique(keys).tolist()},
    )


def _price(batch: TickBatch) -> Float64:
    ticks: Any = batch.ticks
    bid, ask, price = (ticks[name] for name in ("bid_px", "ask_px", "price"))
    mid = (bid.astype(np.float64) + ask) / 2
    told = np.where(price == UNDEFINED_PRICE, np.nan, price)
    quoted = (bid != UNDEFINED_PRICE) & (ask != UNDEFINED_PRICE)
    found: Float64 = np.where(quoted, mid, told) * PRICE_UNIT
    return found


def near(keys: Int64, ts: Int64, planted: Sequence[Planted], before_ns: int, after_ns: int) -> Bool:
    """`(n,)` bool: within `[start - before, end + after]` of an anomaly of the instrument.

    Both ends inclusive; stretches that overlap are one.
    """
    found = np.zeros(len(ts), np.bool_)
    for key, (starts, ends) in windows(planted, before_ns, after_ns).items():
        mine = np.flatnonzero(keys == key)
        at = np.searchsorted(starts, ts[mine], "right") - 1
        found[mine] = (at >= 0) & (ts[mine] <= ends[np.maximum(at, 0)])
    return found


def windows(
    planted: Sequence[Planted], before_ns: int, after_ns: int
) -> dict[int, tuple[Int64, Int64]]:
    """Merge the stretches around the anomalies of each instrument: starts, ends, ascending."""
    by_key: dict[int, list[tuple[int, int]]] = {}
    for one in planted:
        by_key.setdefault(one.key, []).append((one.start_ns - before_ns, one.end_ns + after_ns))
    found = {}
    for key, spans in by_key.items():
        starts, ends = np.array(sorted(spans), np.int64).T
        latest = np.maximum.accumulate(ends)
        first = np.append(True, starts[1:] > latest[:-1])
        found[key] = starts[first], latest[np.append(first[1:], True)]
    return found


def followed(chosen: Bool, keys: Int64, events: int) -> Bool:
    """`(n,)` bool: chosen, or among the `events` next ones of its instrument."""
    found = chosen.copy()
    for key in np.unique(keys[chosen]).tolist():
        mine = np.flatnonzero(keys == key)
        reach = np.convolve(chosen[mine], np.ones(events + 1))[: len(mine)]
        found[mine[reach > 0.5]] = True
    return found
