"""Anomalies planted in recorded ticks, labelled tick by tick.

Offline only. What an anomaly does is in `detector.scripts`, how it is woven in is in
`detector.planting`; the demo uses both without this module. `training.planning` says what is
planted where; here it is woven into a stream of any number of instruments, batch by batch
(`inject`) or from file to file (`inject_files`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from detector.errors import RefusedError
from detector.features import DEFAULT
from detector.feeds import Feed
from detector.offline import Files, staged
from detector.placing import HISTORY, Planted, join
from detector.planting import Planter
from detector.readers import write_parquet
from detector.ticks import TICK, TickArray, TickBatch
from training.halves import Half, half_ranges
from training.labels import Label, TickLabels, tick_labels, write_labels
from training.planning import PAUSE_S, Policy, Survey, plan_stream, survey

Int64 = npt.NDArray[np.int64]

__all__ = [
    "Half",
    "Injected",
    "InjectionSummary",
    "Policy",
    "Survey",
    "half_ranges",
    "inject",
    "inject_files",
    "plan_stream",
    "survey",
]


@dataclass(frozen=True, slots=True, eq=False)
class Injected:
    """Ticks with planted anomalies, and what each belongs to."""

    batch: TickBatch
    labels: TickLabels


def inject(
    batches: Iterable[TickBatch], planted: Sequence[Planted], feeds: Mapping[int, Feed]
) -> Iterator[Injected]:
    """Weave anomalies into a stream of any number of instruments.

    Ticks outside the anomalies keep their bytes and their order. How the stream is cut into batches
    changes nothing but where the result is cut.

    Parameters
    ----------
    batches
        In event-time order, such as `read_files` gives them; one partition.
    planted
        From `plan_stream`. Labels count them from 1 in this order.
    feeds
        By instrument key, for every instrument that is planted in.

    Yields
    ------
    Injected
        Non-empty; offsets number the ticks of the result from 0.

    Raises
    ------
    ValueError
        Ticks of an instrument with anomalies go back in time (`Survey.ascends`).
    """
    weaver = _Weaver(planted, feeds)
    offset = 0
    for ticks, symbols in weaver.weave(batches):
        if not len(ticks):
            continue
        offsets = np.arange(offset, offset + len(ticks), dtype=np.int64)
        batch = TickBatch(ticks, 0, offsets, np.zeros(len(ticks), np.int32), symbols)
        yield Injected(batch, tick_labels(batch.keys, batch.ts_event, planted))
        offset += len(ticks)


class _Weaver:
    """One planter an instrument; puts their ticks back among those of the others."""

    def __init__(self, planted: Sequence[Planted], feeds: Mapping[int, Feed]) -> None:
        self._planted = planted
        by_key: dict[int, list[Planted]] = {}
        for one in planted:
            by_key.setdefault(one.key, []).append(one)
        self._planters = {key: Planter(some, feeds[key]) for key, some in sorted(by_key.items())}
        self._held: TickArray = np.empty(0, TICK)
        self._latest = -1

    def weave(self, batches: Iterable[TickBatch]) -> Iterator[tuple[TickArray, dict[int, str]]]:
        symbols: dict[int, str] = {}
        for batch in batches:
            symbols = symbols | dict(batch.symbols)
            if len(batch):
                yield self._take(batch.ticks), symbols
        end = max([self._latest, *(one.end_ns for one in self._planted)]) + 1
        yield self._release(self._held, self._clock(self._held), end), symbols

    def _clock(self, rows: TickArray) -> Int64:
        """Event times that never go back: a late tick keeps its place."""
        return np.maximum.accumulate(np.maximum(rows["ts_event"].astype(np.int64), self._latest))

    def _take(self, fresh: TickArray) -> TickArray:
        """Give out all but the ticks of the latest time: more of that time may follow."""
        rows = join([self._held, fresh])
        held = len(self._held)
        times = np.concatenate([np.full(held, self._latest), self._clock(rows[held:])])
        self._latest = int(times[-1])
        cut = int(np.searchsorted(times, self._latest, "left"))
        self._held = rows[cut:].copy()
        return self._release(rows[:cut], times[:cut], self._latest)

    def _release(self, rows: TickArray, times: Int64, until_ns: int) -> TickArray:
        keys = TickBatch.from_ticks(rows).keys
        clean = tick_labels(keys, rows["ts_event"].astype(np.int64), self._planted).anomaly == 0
        parts, at = [rows[clean]], [times[clean]]
        for key, planter in self._planters.items():
            woven = planter.feed(rows[keys == key], until_ns)
            ts = woven["ts_event"].astype(np.int64)
            inside = tick_labels(np.full(len(ts), key), ts, planter.plants).anomaly > 0
            parts.append(woven[inside])
            at.append(ts[inside])
        # Stable: untouched ticks keep their order, planted ones come after those of the same time.
        order = np.argsort(np.concatenate(at), kind="stable")
        return np.ascontiguousarray(join(parts)[order])


@dataclass(frozen=True, slots=True)
class InjectionSummary:
    """What planting in files led to, as JSON types."""

    ticks_in: int
    ticks_out: int
    planted_ticks: int
    anomalies: int
    by_symbol: dict[str, dict[str, int]]


def inject_files(
    files: Files,
    out: Path,
    labels: Path,
    policy: Policy,
    tell: Callable[[str, int], None] | None = None,
) -> InjectionSummary:
    """Plant anomalies in files of ticks; write the planted stream and its labels.

    Parameters
    ----------
    files
        Of ticks; they are read twice.
    out
        Parquet file with our tick columns.
    labels
        Label file, see `training.labels`.
    policy
        How much of what.
    tell
        Called with `look` or `plant` and a number of ticks after each batch.

    Raises
    ------
    RefusedError
        No room for a single anomaly, ticks that go back in time, or what `Files` refuses.
    """

    def read(step: str) -> Iterator[TickBatch]:
        for batch in files.batches(DEFAULT):
            if not isinstance(batch, TickBatch):
                raise RefusedError("--ticks: vectors hold no book; give files of ticks")
            yield batch
            if tell is not None:
                tell(step, len(batch))

    surveys = survey(read("look"))
    if late := [one.symbol for one in surveys.values() if not one.ascends]:
        raise RefusedError(
            f"--ticks: ticks of {', '.join(late)} go back in time; sort the file by ts_event"
        )
    planned = plan_stream(surveys, policy)
    if not planned:
        raise RefusedError(
            f"--ticks: no room for an anomaly; needed is an instrument whose feed shows one of "
            f"{', '.join(policy.kinds)} and that trades for {1 / policy.per_hour:.3g} h "
            f"after its first {HISTORY} ticks, without a pause of {PAUSE_S:g} s"
        )
    counts = np.zeros(len(planned) + 1, np.int64)

    def planted() -> Iterator[TickBatch]:
        feeds = {key: one.feed for key, one in surveys.items()}
        for part in inject(read("plant"), planned, feeds):
            counts[:] += np.bincount(part.labels.anomaly, minlength=len(counts))
            yield part.batch

    with staged(out) as path:
        rows = write_parquet(path, planted())
        write_labels(
            labels,
            [
                Label(one, policy.half, count)
                for one, count in zip(planned, counts[1:].tolist(), strict=True)
            ],
        )
    by_symbol: dict[str, Counter[str]] = {}
    for one in planned:
        by_symbol.setdefault(one.symbol, Counter())[one.kind.value] += 1
    return InjectionSummary(
        ticks_in=sum(len(one.ts) for one in surveys.values()),
        ticks_out=rows,
        planted_ticks=int(counts[1:].sum()),
        anomalies=len(planned),
        by_symbol={symbol: dict(sorted(some.items())) for symbol, some in by_symbol.items()},
    )
