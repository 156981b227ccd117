"""What of one partition depends on scores, and what of that has changed since it was last told.

A `DecisionState` holds the partition's episodes and thresholds. It can be told whole, or as a
*delta*: the rows of the instruments (slots of the feature bank) that had a tick since the last
delta. A whole state and the deltas after it, applied in order, are the state again, to the last
bit: nothing is computed anew. Arrays in, arrays out; it knows no bytes, no Kafka and no clock.

Names in the arrays: `episodes.*` as `EpisodeBook` tells them, `thresholds.*` as `ThresholdBook`
does (absent where thresholds do not follow their alarms), `names.*`, and `reset`, empty, in a delta
before which another model took over: what was told before it is void, but for names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from detector.episodes import EpisodeBook
from detector.state_checks import Arrays, check_arrays
from detector.symbols import SymbolMap
from detector.thresholds import ThresholdBook
from detector.ticks import Batch

MOST_NAMES: Final = 250_000
"""Names that a partition's messages may bring: 25 bytes each in every snapshot, 250 in memory."""

RESET: Final = "reset"
_PARTS: Final = ("episodes", "thresholds", "names")


class Touched:
    """Which slots had a tick since the last delta: one byte an instrument."""

    def __init__(self, slots: int) -> None:
        self._marks = np.zeros(slots + 1, np.bool_)  # the last one is that of dropped ticks, -1

    def mark(self, slots: npt.NDArray[np.int32]) -> None:
        """Mark the `(n,)` slots of a batch, -1 where a tick was dropped."""
        self._marks[slots] = True

    @property
    def marks(self) -> npt.NDArray[np.bool_]:
        """`(slots,)` bool."""
        return self._marks[:-1]

    def clear(self) -> None:
        """Forget all marks."""
        self._marks[:] = False


class PartitionNames:
    """The names that a partition's messages brought, of each instrument the first.

    They are a function of the messages up to the last one that was decided: neither how these were
    cut into batches nor what other partitions hold changes them, and they go where the partition's
    state goes, back to what was committed too.

    Parameters
    ----------
    limit
        Beyond so many names nothing more is learnt.
    """

    def __init__(self, limit: int = MOST_NAMES) -> None:
        self._limit = limit
        self._names: dict[int, str] = {}
        self._untold: dict[int, str] = {}
        self._since: dict[int, int] = {}  # of names that the latest batch brought, its offsets

    def learn(self, batch: Batch, symbols: SymbolMap) -> dict[int, str]:
        """Take over the names that a batch gives; `symbols` is told of those refused.

        A piece of a batch has all of its names: those of messages behind the piece's last are left
        for the pieces that come.

        Returns
        -------
        fresh
            Names of instruments that had none from this partition.
        """
        found, known = batch.symbols, self._names
        if not len(batch) or found.items() <= known.items():  # as they are nearly always
            return {}
        last = int(batch.offsets[-1])
        fresh: dict[int, str] = {}
        since: dict[int, int] = {}
        for key, name in found.items():
            offset = batch.named_from.get(key, -1)
            if offset > last:
                continue
            kept = known.get(key)
            if kept is not None:
                if kept != name:
                    symbols.refuse(key, kept, name)
            elif len(known) < self._limit:
                known[key] = fresh[key] = name
                since[key] = offset
        self._untold |= fresh
        self._since = since
        return fresh

    def get(self, key: int, offset: int | None = None) -> str | None:
        """Return the name that the messages up to and with this offset give, if there is one.

        The offset is one of the latest batch's, or behind it, as None is.
        """
        # What an earlier batch brought holds everywhere in the latest one.
        if offset is not None and offset < self._since.get(key, -1):
            return None
        return self._names.get(key)

    def all(self) -> dict[str, npt.NDArray[Any]]:
        """Return every name."""
        return _name_arrays(self._names)

    def take_untold(self) -> dict[str, npt.NDArray[Any]]:
        """Return the names learnt since the last call."""
        untold, self._untold = self._untold, {}
        return _name_arrays(untold)

    def put(self, names: Mapping[int, str]) -> None:
        """Add names that were told before."""
        self._names.update(names)


@dataclass(slots=True)
class DecisionState:
    """Everything of one partition that depends on scores, the watermark, and the names.

    Parameters
    ----------
    book
        Its episodes.
    thresholds
        Its running thresholds; None where they do not follow their alarms.
    touched
        Slots with a tick since the last delta.
    names
        Instruments that its messages named.
    reset
        Whether what deltas told so far is void.
    """

    book: EpisodeBook
    thresholds: ThresholdBook | None
    touched: Touched
    names: PartitionNames = field(default_factory=PartitionNames)
    reset: bool = False

    def capture(self) -> dict[str, npt.NDArray[Any]]:
        """Copy the whole state out. Deltas go on as if it had not been asked for."""
        parts = {"episodes": self.book.snapshot(), "names": self.names.all()}
        if self.thresholds is not None:
            parts["thresholds"] = self.thresholds.snapshot()
        return _joined(parts)

    def take_delta(self) -> dict[str, npt.NDArray[Any]]:
        """Copy out what changed since the last call."""
        marks = self.touched.marks
        parts = {"episodes": self.book.delta(marks), "names": self.names.take_untold()}
        if self.thresholds is not None:
            parts["thresholds"] = self.thresholds.rows(np.flatnonzero(marks))
        arrays = _joined(parts)
        if self.reset:
            arrays[RESET] = np.zeros(0, np.bool_)
        self.touched.clear()
        self.reset = False
        return arrays

    def start_over(self, thresholds: ThresholdBook | None) -> None:
        """Note that another model takes over; the book has to start over itself."""
        self.thresholds = thresholds
        self.touched.clear()
        self.reset = True


def restored(
    fresh: Callable[[], DecisionState],
    features: int,
    decisions: Arrays,
    deltas: Sequence[Arrays],
    *,
    same_model: bool = True,
) -> DecisionState:
    """Return the state that was told.

    Parameters
    ----------
    fresh
        Makes a state that has seen nothing.
    features
        Number of features that an explanation may speak of.
    decisions
        A whole state, or nothing.
    deltas
        Those after it, in order.
    same_model
        Whether it is the model that told it which goes on. If not, only the watermark and the names
        are taken over, and the next delta says that all others are void.

    Raises
    ------
    ValueError
        Something does not fit.
    """
    state = fresh()
    parts = [_parted(arrays) for arrays in (decisions, *deltas) if arrays]
    for part in parts:
        state.names.put(_names_of(part["names"]))
    state.reset = not (parts and same_model)
    if not same_model:
        if parts:
            state.book.start_at(_watermark_of(parts[-1]["episodes"]))
        return state
    # What came before a reset is another model's, and need not fit this one's.
    first = max((i for i, part in enumerate(parts) if RESET in part), default=0)
    for i, part in enumerate(parts[first:], start=first):
        whole = i == 0 and bool(decisions)
        (state.book.restore if whole else state.book.put)(part["episodes"])
        _check_explanations(part["episodes"], features)
        if "thresholds" not in part:  # it was told while they did not follow their alarms
            state.thresholds = fresh().thresholds
        elif state.thresholds is not None:
            (state.thresholds.restore if whole else state.thresholds.put)(part["thresholds"])
    return state


def _joined(parts: Mapping[str, Arrays]) -> dict[str, npt.NDArray[Any]]:
    return {
        f"{part}.{name}": array for part, arrays in parts.items() for name, array in arrays.items()
    }


def _parted(told: Arrays) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Undo `_joined`."""
    parts: dict[str, dict[str, npt.NDArray[Any]]] = {"episodes": {}, "names": {}}
    for full, array in told.items():
        part, _, name = full.partition(".")
        if part not in _PARTS and full != RESET:
            raise ValueError(f"decision state holds {full!r}; known: {', '.join(_PARTS)}, {RESET}")
        parts.setdefault(part, {})[name] = array
    return parts


def _name_arrays(names: Mapping[int, str]) -> dict[str, npt.NDArray[Any]]:
    texts = [name.encode("utf-8", "surrogatepass") for name in names.values()]
    return {
        "keys": np.fromiter(names, np.int64, len(names)),
        "ends": np.cumsum([len(text) for text in texts], dtype=np.int64),
        "text": np.frombuffer(b"".join(texts), np.uint8),
    }


def _names_of(arrays: Arrays) -> dict[int, str]:
    """Undo `_name_arrays`; raise ValueError where it cannot have been that."""
    what, text = "names", {name: a for name, a in arrays.items() if name == "text"}
    rest = {name: a for name, a in arrays.items() if name != "text"}
    whole = ((), np.dtype(np.int64))
    check_arrays(what, rest, {"keys": whole, "ends": whole}, "keys")
    length = check_arrays(what, text, {"text": ((), np.dtype(np.uint8))}, "text")
    ends = arrays["ends"].tolist()
    starts = [0, *ends[:-1]] if ends else []
    if any(a > b for a, b in zip(starts, ends, strict=True)) or (ends or [0])[-1] != length:
        raise ValueError(f"{what}: they do not end where their text does")
    data = arrays["text"].tobytes()
    return {
        key: data[a:b].decode("utf-8", "surrogatepass")
        for key, a, b in zip(arrays["keys"].tolist(), starts, ends, strict=True)
    }


def _watermark_of(episodes: Arrays) -> int:
    found = {name: a for name, a in episodes.items() if name == "watermark"}
    if check_arrays("episode state", found, {"watermark": ((), np.dtype(np.int64))}, "watermark"):
        return int(found["watermark"][0])
    raise ValueError("episode state: no watermark; needed: 1")


def _check_explanations(episodes: Arrays, features: int) -> None:
    top = episodes["top"]
    if top.size and (top.min() < 0 or top.max() >= features):
        raise ValueError(
            f"episode state: explained by features {top.min()} to {top.max()}; "
            f"there are 0 to {features - 1}"
        )
