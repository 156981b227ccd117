"""Files instead of Kafka: the same batches through the same pipeline, scores to Parquet.

`Files` is how training and scoring read files; `score_files` drives the pipeline that the daemon
drives, so that offline scores and decisions are those of the daemon.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from detector.artifact import Artifact
from detector.drift import WHOLE_FILE, Drift
from detector.errors import RefusedError
from detector.features import DEFAULT, FeatureBlock, FeatureSpec, vector_spec
from detector.model_changes import Timeline
from detector.model_replay import ModelReplay
from detector.pipeline import Pipeline, PipelineSpec
from detector.readers import FileFormat, ReaderError, read_files, read_vectors, vector_columns
from detector.scorer import ScoreBlock, Scorer
from detector.symbols import SymbolMap
from detector.ticks import Batch

ALL_COLUMNS: Final = "all"
ROW_GROUP: Final = 1 << 20

SCHEMA: Final = pa.schema(
    [
        ("ts_event", pa.timestamp("ns", tz="UTC")),
        ("symbol", pa.dictionary(pa.int32(), pa.string())),
        ("instrument_id", pa.uint32()),
        ("publisher_id", pa.uint16()),
        ("stage1", pa.float64()),
        ("stage2", pa.float64()),
        ("score", pa.float64()),
        ("threshold", pa.float64()),
        ("anomaly", pa.bool_()),
        ("ready", pa.bool_()),
    ]
)
"""One row per tick; errors and score are null while the instrument warms up or the tick was
dropped, the threshold is what would have applied."""


def score_schema(latent_width: int = 0) -> pa.Schema:
    """Return the columns of a score file: `SCHEMA`, then `latent_0` and so on, float32.

    Latents are null where errors are.
    """
    names = [f"latent_{j}" for j in range(latent_width)]
    return pa.schema([*SCHEMA, *((name, pa.float32()) for name in names)])


@dataclass(frozen=True, slots=True)
class Files:
    """Files of ticks, or of vectors.

    Parameters
    ----------
    paths
        In any order: ticks are merged by event time; each file of vectors is an instrument and an
        input partition of its own.
    format
        Of tick files; None: told by their names.
    symbol
        Name of the instrument, instead of what the files say.
    columns
        Columns of vector files, `("all",)` for every numeric one; None: the files hold ticks.
    since, until
        Event times in ns: rows before `since` and from `until` on are left out, as if the files
        did not hold them: offsets number the rows that remain.
    """

    paths: tuple[Path, ...]
    format: FileFormat | None = None
    symbol: str | None = None
    columns: tuple[str, ...] | None = None
    since: int | None = None
    until: int | None = None

    def spec(self) -> FeatureSpec:
        """Feature definition for these files: the default for ticks, per column for vectors."""
        if self.columns is None:
            return DEFAULT
        with self._refusing():
            if self.columns != (ALL_COLUMNS,):
                return vector_spec(self.columns)
            return vector_spec(vector_columns(self.paths[0]))

    def batches(self, spec: FeatureSpec) -> Iterator[Batch]:
        """Read the files, as batches of the kind that `spec` wants."""
        taken: Counter[int] = Counter()
        with self._refusing():
            for batch in self._read(spec):
                inside = np.ones(len(batch), np.bool_)
                if self.since is not None:
                    inside &= batch.ts_event >= self.since
                if self.until is not None:
                    inside &= batch.ts_event < self.until
                if inside.any():
                    first = taken[batch.partition]
                    part = batch if inside.all() else batch.taken(inside)
                    taken[batch.partition] += len(part)
                    yield replace(part, offsets=np.arange(first, first + len(part)))

    def _read(self, spec: FeatureSpec) -> Iterator[Batch]:
        if spec.kind == "tick":
            yield from read_files(self.paths, format=self.format, symbol=self.symbol)
            return
        for partition, path in enumerate(self.paths):
            for batch in read_vectors(path, spec.columns, self.symbol):
                yield replace(batch, partition=partition)

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """Turn what is wrong with the files into a refusal."""
        missing = [str(path) for path in self.paths if not path.exists()]
        if missing or not self.paths:
            raise RefusedError(
                f"--ticks {' '.join(missing) or 'names nothing'}: no such file; give files of ticks"
            )
        try:
            yield
        except ReaderError as error:
            raise RefusedError(str(error)) from error


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """What scoring files led to, as JSON types."""

    rows: int
    ready: int
    anomalies: int
    events: dict[str, int]
    dropped: dict[str, int]


def score_files(
    artifact: Artifact,
    files: Files,
    out: Path,
    tell: Callable[[int], None] | None = None,
    pipeline_spec: PipelineSpec | None = None,
    events: Path | None = None,
    *,
    latent: bool = False,
    others: Sequence[Artifact] = (),
    timeline: Timeline | None = None,
) -> ScoreSummary:
    """Score files through the pipeline and write one row per tick to a Parquet file.

    The events are those of a daemon whose topic has one partition and one tick a message: a row's
    number is its offset.

    Parameters
    ----------
    artifact
        The model; its feature definition says whether the files hold ticks or vectors.
    files
        What to read.
    out
        Parquet file, written beside its final name and moved there when complete.
    tell
        Called with the number of rows after each batch.
    pipeline_spec
        Topic name, caps and episode policy; the defaults of the daemon.
    events
        File for the events too, one JSON object a line; `ts_detected` is 0, nobody waited for them.
    latent
        Whether to write the latent too.
    others, timeline
        Which model scores from which offset on, and the models beside `artifact` that it names.

    Raises
    ------
    RefusedError
        The files or the models cannot be used, or hold no tick.
    """
    symbols = SymbolMap()
    spec = replace(pipeline_spec or PipelineSpec(), latent=latent)
    models = ModelReplay([artifact, *others], timeline or Timeline([]), spec, symbols)
    schema = score_schema(models.latent_width if latent else 0)
    rows: Counter[str] = Counter()
    counts: dict[str, Counter[str]] = {"events": Counter(), "dropped": Counter()}
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(staged(out))
        writer = stack.enter_context(pq.ParquetWriter(path, schema, compression="zstd"))
        lines = None
        if events is not None:
            lines = stack.enter_context(stack.enter_context(staged(events, "--events")).open("wb"))
        named = _named(files.batches(artifact.features), [artifact, *others], symbols)
        for outcome in models.outcomes(named):
            if lines is not None:
                lines.writelines(event.to_json(0) + b"\n" for event in outcome.events)
            counts["events"].update(event.phase for event in outcome.events)
            counts["dropped"].update(outcome.dropped)
            for block, scores in zip(outcome.blocks, outcome.scores, strict=True):
                writer.write_table(_table(block, scores, symbols, schema))
                rows["rows"] += len(block)
                rows["ready"] += int(np.count_nonzero(block.ready))
                rows["anomalies"] += int(np.count_nonzero(scores.anomaly))
                if tell is not None:
                    tell(len(block))
        if not rows["rows"]:  # within the contexts: no empty file takes its name
            raise RefusedError(
                "--ticks: hold no tick to score; give files with ticks, or a wider --from, --until"
            )
    return ScoreSummary(
        rows["rows"],
        rows["ready"],
        rows["anomalies"],
        dict(counts["events"]),
        dict(counts["dropped"]),
    )


def drift_of_files(
    artifact: Artifact,
    files: Files,
    tell: Callable[[int], None] | None = None,
    dropped: Counter[str] | None = None,
) -> Drift:
    """Compare every ready tick of files with the model's reference, through the pipeline.

    Parameters
    ----------
    artifact
        The model.
    files
        What to read.
    tell
        Called with the number of ticks after each batch.
    dropped
        Takes the number of ticks that were dropped, by reason.

    Raises
    ------
    RefusedError
        Too few ready ticks.
    """
    pipeline = Pipeline(artifact.features, Scorer(artifact), PipelineSpec(drift=WHOLE_FILE))
    ready = 0
    for batch in files.batches(artifact.features):
        outcome = pipeline.process(batch)
        ready += int(np.count_nonzero(outcome.blocks[0].ready))
        if dropped is not None:
            dropped.update(outcome.dropped)
        if tell is not None:
            tell(len(batch))
    found = pipeline.drift()
    if found is None:
        raise RefusedError(
            f"{ready:,} ready ticks, at least {WHOLE_FILE.least_rows:,} are needed to tell drift; "
            "give more ticks"
        )
    return found


def _named(
    batches: Iterable[Batch], artifacts: Sequence[Artifact], symbols: SymbolMap
) -> Iterator[Batch]:
    """Pass batches on, their names known before they are scored: rows and events use the same.

    Those of the files go before the models', as `--symbol` is among them.
    """
    for batch in batches:
        symbols.learn(batch.symbols)
        for artifact in artifacts:
            symbols.learn(artifact.symbols)
        yield batch


def _table(
    block: FeatureBlock, scores: ScoreBlock, symbols: SymbolMap, schema: pa.Schema
) -> pa.Table:
    keys, codes = np.unique(block.keys, return_inverse=True)
    names = [symbols.name(key) for key in keys.tolist()]
    unscored = ~block.ready

    def measured(column: npt.NDArray[Any]) -> "pa.Array[Any]":  # noqa: UP037 - types only
        found: pa.Array[Any] = pa.array(column, mask=unscored)
        return found

    columns = {
        "ts_event": pa.array(block.ts).cast(pa.timestamp("ns", tz="UTC")),
        "symbol": pa.DictionaryArray.from_arrays(codes.astype(np.int32), pa.array(names)),
        "publisher_id": pa.array((block.keys >> 32).astype(np.uint16)),
        "instrument_id": pa.array((block.keys & 0xFFFFFFFF).astype(np.uint32)),
        "stage1": measured(scores.stage1),
        "stage2": measured(scores.stage2),
        "score": measured(scores.score),
        "threshold": pa.array(scores.threshold),
        "anomaly": pa.array(scores.anomaly),
        "ready": pa.array(block.ready),
    }
    if scores.latent is not None:
        columns |= {f"latent_{j}": measured(c) for j, c in enumerate(scores.latent.T)}
    return pa.table([columns[name] for name in schema.names], schema=schema)


@contextlib.contextmanager
def staged(out: Path, option: str = "--out") -> Iterator[Path]:
    """Give a file beside `out` to write to; it takes that name only when all went well."""
    if not out.parent.is_dir():
        raise RefusedError(f"{option} {out}: folder {out.parent} does not exist; create it first")
    if out.exists() and not out.is_file():
        raise RefusedError(f"{option} {out}: is no plain file; give a file name")
    handle, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    os.close(handle)
    path = Path(name)
    try:
        yield path
        path.chmod(0o644)
        path.replace(out)
    finally:
        path.unlink(missing_ok=True)
