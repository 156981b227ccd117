"""Windowed features: a frozen definition, a running state, and what comes out.

`FeatureSpec` says which features and with which parameters; `FeatureBank` holds the state of one
input partition and turns batches into `FeatureBlock`s; the arithmetic is in `detector.kernels` and
the meaning of every feature in `detector.definitions`. A bank knows no wall clock, no other
partition and no batch boundary.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from detector import kernels as k
from detector.definitions import Feature, tick_features, vector_features
from detector.feature_page import page
from detector.ticks import NS_PER_S, TICK, Batch, TickBatch, VectorBatch

MAX_INSTRUMENTS: Final = 10_000
DAY_S: Final = 86_400.0


@dataclass(frozen=True)
class FeatureSpec:
    """Which features, and with which parameters; the same spec gives the same numbers anywhere.

    Parameters
    ----------
    kind
        "tick" (quotes and trades) or "vector" (named columns).
    columns
        Column names; only and always with kind "vector".
    short_window
        Events in the short window.
    recent_window
        Events, and trades, in the window of the most recent ones: at most those of the short
        window; ticks only.
    half_lives_s
        Four half-lives, ascending: of a count of events, of the two decaying windows, and of a
        count of ping-pong trades; ticks only.
    long_window
        Events that the long window of a column looks back on; vectors only.
    slow_window
        Events that the slow scales look back on.
    warmup, warmup_s
        Events of an instrument before its first ready one, and the event time that has to pass
        since its windows began: a burst of 64 events says little about an instrument's usual pace.
    gap_s
        A silence longer than this ends the session: all windows begin anew, only the slow scales
        stay. 0: never.
    jump_s
        A time further than this from the partition's clock is implausible.
    """

    kind: Literal["tick", "vector"] = "tick"
    columns: tuple[str, ...] = ()
    short_window: int = 15
    recent_window: int = 8
    half_lives_s: tuple[float, float, float, float] = (0.02, 0.05, 0.2, 1.0)
    long_window: int = 256
    slow_window: int = 2000
    warmup: int = 64
    warmup_s: float = 20.0
    gap_s: float = 1800.0
    jump_s: float = 7 * DAY_S

    def __post_init__(self) -> None:
        if self.kind not in {"tick", "vector"}:
            raise ValueError(f"kind: {self.kind!r}; allowed: 'tick', 'vector'")
        if (self.kind == "vector") != bool(self.columns):
            raise ValueError(f"columns: {self.columns!r} with kind {self.kind!r}; name the columns "
                             "of vectors, and none for ticks")  # fmt: skip
        if any(not isinstance(c, str) or not c for c in self.columns):
            raise ValueError(f"columns: {self.columns!r}; allowed: non-empty names")
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"columns: {self.columns!r} name one twice")
        for name, low, high in (
            ("short_window", 2, 128),
            ("recent_window", 2, self.short_window if self.kind == "tick" else 128),
            ("long_window", 2, 10**6),
            ("slow_window", 16, 10**7),
            ("warmup", 2, 10**6),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ValueError(f"{name}: {value!r}; allowed: an integer, {low} to {high}")
        lives = self.half_lives_s
        if len(lives) != 4 or not all(0 < h < math.inf for h in lives) or list(lives) != sorted(
            set(lives)
        ):  # fmt: skip
            raise ValueError(f"half_lives_s: {lives!r}; allowed: four ascending positive seconds")
        if not 0 <= self.warmup_s < 1e6:
            raise ValueError(f"warmup_s: {self.warmup_s!r}; allowed: 0 to 1e6 seconds")
        if not 0 <= self.gap_s < 1e9 or not 0 < self.jump_s < 4e9:
            raise ValueError(f"gap_s {self.gap_s!r}, jump_s {self.jump_s!r}; allowed: 0 (never) "
                             "to 1e9 and above 0 to 4e9 seconds")  # fmt: skip

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """The features, in the order of the columns of a `FeatureBlock`."""
        if self.kind == "tick":
            return tick_features(self.short_window, self.recent_window, self.half_lives_s)
        return vector_features(self.columns, self.short_window, self.long_window)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the features, in order."""
        return tuple(f.name for f in self.features)

    def tail_groups(self) -> npt.NDArray[np.int8]:
        """Group of each feature, `(F,)` int8: 1 over a decaying window, 0 otherwise.

        A burst moves all features over decaying windows at once, and few of the others: a score
        weighs the two groups on their own.
        """
        return np.array([f.window == "time" for f in self.features], np.int8)

    def lone_features(self) -> npt.NDArray[np.bool_]:
        """Whether each feature, `(F,)` bool, is made for anomalies that show in it alone.

        A score over all features dilutes such an anomaly: it may judge these by themselves too.
        """
        return np.array([f.lone for f in self.features], np.bool_)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over the parameters, the names and the version of the kernels.

        Equal fingerprints: a model trained on one spec may score what the other computes.
        """
        what = {"spec": self.to_dict(), "names": self.names, "kernels": k.VERSION}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Return the parameters as JSON types."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }

    def to_json(self) -> str:
        """Return the parameters as canonical JSON; `from_json` reads it."""
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> FeatureSpec:
        """Read what `to_json` wrote.

        Raises
        ------
        ValueError
            Not JSON, an unknown or missing key, or a value that is not allowed.
        """
        found = json.loads(text)
        known = {f.name for f in fields(cls)}
        if not isinstance(found, dict) or set(found) != known:
            keys = sorted(found) if isinstance(found, dict) else type(found).__name__
            raise ValueError(f"feature spec: {keys}; needed: exactly {sorted(known)}")
        try:
            values: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
            return cls(**values)
        except TypeError as error:
            raise ValueError(f"feature spec: {error}") from error

    def bank(self, max_instruments: int = MAX_INSTRUMENTS) -> FeatureBank:
        """Fresh state for one input partition, with room for `max_instruments` instruments."""
        return FeatureBank(self, max_instruments)


DEFAULT: Final = FeatureSpec()


def vector_spec(columns: tuple[str, ...], **parameters: Any) -> FeatureSpec:  # noqa: ANN401
    """Return the spec for vectors of these columns; silences are not session gaps by default.

    Series of minutes to days are usual here, so a time is implausible only 400 days away.
    """
    return FeatureSpec(
        kind="vector",
        columns=columns,
        **{"gap_s": 0.0, "jump_s": 400 * DAY_S, "warmup_s": 0.0} | parameters,
    )


@dataclass(frozen=True, slots=True, eq=False)
class FeatureBlock:
    """Features of one batch, rows in arrival order.

    Parameters
    ----------
    values
        `(n, F)` float32, C-contiguous, always finite; zeros in dropped rows.
    ready
        `(n,)` bool: the instrument's warm-up is over and its short window full.
    quality
        `(n,)` uint16 of `ticks.Quality` bits.
    keys, ts
        `(n,)` int64 instrument keys and event times.
    slots
        `(n,)` int32 row of the instrument in the bank; -1 in dropped rows. The row of an evicted
        instrument passes to another.
    """

    values: npt.NDArray[np.float32]
    ready: npt.NDArray[np.bool_]
    quality: npt.NDArray[np.uint16]
    keys: npt.NDArray[np.int64]
    ts: npt.NDArray[np.int64]
    slots: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.values)


class FeatureBank:
    """State of all instruments of one input partition.

    Memory is reserved for `max_instruments` rows but touched only as instruments appear.

    Parameters
    ----------
    spec
        What to compute.
    max_instruments
        Rows; when all are taken, a new instrument gets the row of the least recently seen.
    """

    def __init__(self, spec: FeatureSpec, max_instruments: int = MAX_INSTRUMENTS) -> None:
        if not 1 <= max_instruments <= 2**28:
            raise ValueError(f"max_instruments: {max_instruments}; allowed: 1 to {2**28}")
        self.spec = spec
        self.max_instruments = max_instruments
        self._par = np.zeros(k.P_SIZE, np.int64)
        self._par[k.P_JUMP] = round(spec.jump_s * NS_PER_S)
        self._par[k.P_GAP] = round(spec.gap_s * NS_PER_S)
        self._par[k.P_WARMUP] = spec.warmup
        self._par[k.P_WARMUP_TIME] = round(spec.warmup_s * NS_PER_S)
        self._par[k.P_SHORT] = spec.short_window
        self._par[k.P_RECENT] = spec.recent_window
        self._par[k.P_LONG] = spec.long_window
        self._par[k.P_SLOW] = spec.slow_window
        self._rates = 1.0 / np.array(spec.half_lives_s)
        self._kernel: Any = k.update_ticks if spec.kind == "tick" else k.update_vectors
        self._rows = _rows(spec, max_instruments)
        self._keys = np.zeros(max_instruments, np.int64)
        self._table = np.full(_table_size(max_instruments), -1, np.int32)
        self._links = _empty_links(max_instruments)
        self._head = np.zeros(k.H_SIZE, np.int64)

    @property
    def instruments(self) -> int:
        """Instruments that have a row."""
        return int(self._head[k.H_USED])

    @property
    def tracked(self) -> npt.NDArray[np.int64]:
        """Keys of the instruments that have a row now, `(instruments,)`."""
        return self._keys[: self.instruments].copy()

    @property
    def evictions(self) -> int:
        """Instruments that lost their row to a newer one, so far."""
        return int(self._head[k.H_EVICTIONS])

    @property
    def state_bytes_per_instrument(self) -> int:
        """Bytes of state an instrument takes, its share of the lookup table included."""
        arrays = (*self._rows.values(), self._keys, self._table, self._links)
        return math.ceil(sum(a.nbytes for a in arrays) / self.max_instruments)

    def update(self, batch: Batch) -> FeatureBlock:
        """Take a batch into the state and return the features at each of its ticks.

        Raises
        ------
        TypeError
            The batch is not of the spec's kind.
        ValueError
            Vectors with another number of columns than the spec names.
        """
        n = len(batch)
        values = np.empty((n, len(self.spec.names)), np.float32)
        ready = np.empty(n, np.bool_)
        quality = np.empty(n, np.uint16)
        slots = np.empty(n, np.int32)
        out = (values, ready, quality, slots)
        if self.spec.kind == "tick":
            if not isinstance(batch, TickBatch):
                raise TypeError(f"{type(batch).__name__} for a spec of kind 'tick'")
            keys = np.empty(n, np.int64)
            ts = np.empty(n, np.int64)
            self._kernel(
                _words(batch), self._par, self._rates, *self._rows.values(),
                self._keys, self._table, self._links, self._head, *out, keys, ts,
            )  # fmt: skip
            return FeatureBlock(values, ready, quality, keys, ts, slots)
        if not isinstance(batch, VectorBatch):
            raise TypeError(f"{type(batch).__name__} for a spec of kind 'vector'")
        if batch.values.shape[1] != len(self.spec.columns):
            raise ValueError(
                f"vectors of {batch.values.shape[1]} columns; the spec names "
                f"{len(self.spec.columns)}: {', '.join(self.spec.columns)}"
            )
        data = _frozen(batch.values, np.float32)
        keys = _frozen(batch.keys, np.int64)
        ts = _frozen(batch.ts_event, np.int64)
        self._kernel(
            data, keys, ts, self._par, *self._rows.values(), self._keys,
            self._table, self._links, self._head, *out,
        )  # fmt: skip
        return FeatureBlock(values, ready, quality, keys, ts, slots)

    def snapshot(self) -> dict[str, npt.NDArray[Any]]:
        """Copy the state out: the rows in use, their keys, their order of last sight, the header.

        `restore` into a bank of the same spec and cap, going on from there, equals going on here,
        to the last bit.
        """
        used = self.instruments
        order = np.empty(used, np.int32)
        k.order_of(self._links, order)
        return {
            "fingerprint": np.frombuffer(bytes.fromhex(self.spec.fingerprint), np.uint8).copy(),
            "head": self._head.copy(),
            "keys": self._keys[:used].copy(),
            "order": order,
            **{name: rows[:used].copy() for name, rows in self._rows.items()},
        }

    def restore(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Replace the state by a snapshot.

        Raises
        ------
        ValueError
            An array is missing, unknown, or of another shape or type; the snapshot is of another
            spec, or holds more instruments than fit, or one twice. The state is then unchanged.
        """
        used = _check_snapshot(arrays, self.spec, self.max_instruments, self._rows)
        for name, rows in self._rows.items():
            rows[:used] = arrays[name]
            rows[used:] = 0
        self._head[:] = arrays["head"]
        self._keys[:used] = arrays["keys"]
        self._table.fill(-1)
        self._links[:] = _empty_links(self.max_instruments)
        for slot in arrays["order"]:
            k.insert(self._keys[slot], slot, self._table)
            k.touch(np.int64(slot), self._links)


def features_table(spec: FeatureSpec = DEFAULT) -> list[dict[str, Any]]:
    """One row per feature, in order: name, group, unit, window, definition, source, lone."""
    return [asdict(feature) for feature in spec.features]


def features_markdown() -> str:
    """Return the text of `docs/features.md`."""
    return page(DEFAULT.features, vector_spec(("x",)).features)


def _rows(spec: FeatureSpec, n: int) -> dict[str, npt.NDArray[Any]]:
    """State matrices, zero, in the order in which the kernels take them."""
    w = spec.short_window
    if spec.kind == "tick":
        recent = k.S_RECENT + spec.recent_window * (1 + k.TRADE_LINE)
        return {
            "floats": np.zeros((n, k.F_BLOCK + k.WIDE * (w + 2))),
            "singles": np.zeros((n, recent + k.NARROW * (w + 2)), np.float32),
            "ints": np.zeros((n, k.I_RING + w), np.int64),
            "hashes": np.zeros((n, k.HASHES), np.uint32),
        }
    width = k.V_RING + w + len(spec.columns) * (k.COLUMN_STATE + w)
    return {"floats": np.zeros((n, width)), "ints": np.zeros((n, k.I_RING), np.int64)}


def _empty_links(n: int) -> npt.NDArray[np.int32]:
    links = np.full((n + 1, 2), -1, np.int32)
    links[n] = n
    return links


def _table_size(instruments: int) -> int:
    return int(2 ** math.ceil(math.log2(2 * instruments + 1)))


def _frozen(array: npt.NDArray[Any], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Contiguous and read-only, so that each kernel is compiled for one type of input only."""
    view = np.ascontiguousarray(array, dtype).view()
    view.flags.writeable = False
    return view


def _words(batch: TickBatch) -> npt.NDArray[np.int64]:
    if batch.ticks.dtype != TICK:
        raise ValueError(f"ticks of dtype {batch.ticks.dtype}; needed: ticks.TICK")
    ticks = np.ascontiguousarray(batch.ticks)
    return _frozen(ticks.view(np.int64).reshape(len(ticks), TICK.itemsize // 8), np.int64)


def _check_snapshot(
    arrays: Mapping[str, npt.NDArray[Any]],
    spec: FeatureSpec,
    max_instruments: int,
    rows: Mapping[str, npt.NDArray[Any]],
) -> int:
    """Raise ValueError unless `arrays` is a snapshot that fits; return its number of rows."""
    names = {"fingerprint", "head", "keys", "order", *rows}
    if set(arrays) != names:
        raise ValueError(f"feature snapshot holds {sorted(arrays)}; needed: {sorted(names)}")
    if bytes(arrays["fingerprint"]).hex() != spec.fingerprint:
        raise ValueError(
            f"feature snapshot of fingerprint {bytes(arrays['fingerprint']).hex()[:12]}; this bank "
            f"computes {spec.fingerprint[:12]}: rebuild the state by replay"
        )
    used = arrays["keys"].size
    if used > max_instruments:
        raise ValueError(f"feature snapshot of {used} instruments; at most {max_instruments} fit")
    expected: dict[str, tuple[tuple[int, ...], Any]] = {
        "head": ((k.H_SIZE,), np.dtype(np.int64)),
        "keys": ((used,), np.dtype(np.int64)),
        "order": ((used,), np.dtype(np.int32)),
        **{name: ((used, r.shape[1]), r.dtype) for name, r in rows.items()},
    }
    for name, (shape, dtype) in expected.items():
        found = arrays[name]
        if found.shape != shape or found.dtype != dtype:
            raise ValueError(
                f"feature snapshot: {name} is {found.dtype}{found.shape}, needed {dtype}{shape}"
            )
    if arrays["head"][k.H_USED] != used:
        raise ValueError(f"feature snapshot: header says {arrays['head'][k.H_USED]} instruments, "
                         f"keys {used}")  # fmt: skip
    if len(np.unique(arrays["keys"])) != used or not np.array_equal(
        np.sort(arrays["order"]), np.arange(used)
    ):
        raise ValueError("feature snapshot: an instrument or a row occurs twice")
    _check_positions(arrays["ints"], spec)
    return used


def _check_positions(ints: npt.NDArray[np.int64], spec: FeatureSpec) -> None:
    """Raise ValueError unless the kernels, which do not check, may index by what rows say."""
    positions = {k.I_POS: spec.short_window - 1, k.I_COUNT: spec.short_window}
    if spec.kind == "tick":
        positions |= {
            k.I_WAIT_POS: k.GAP_EVENTS - 1,
            k.I_RECENT_POS: spec.recent_window - 1,
            k.I_TRADE_POS: spec.recent_window - 1,
            k.I_TRADE_COUNT: spec.recent_window,
            k.I_HASH_POS: k.HASHES - 1,
        }
    for column, most in positions.items():
        found = ints[:, column]
        if len(found) and (found.min() < 0 or found.max() > most):
            raise ValueError(
                f"feature snapshot: a ring position of {found.min()} or {found.max()}; "
                f"allowed: 0 to {most}"
            )
