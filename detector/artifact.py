"""The model folder: a manifest, arrays without executable content, and the hash of every file.

    model/
      manifest.sig             signature over the manifest, where there is one
      manifest.json            what the model is, and SHA-256 and size of every other file
      weights.safetensors      all autoencoders
      tables.safetensors       instruments, normaliser, tails, thresholds, reference histograms
      head.safetensors         the head that names anomalies, where there is one
      training_summary.json    data, splits, losses, test figures (for people)
      *.png                    training curves, error histograms (for people)

Where a public key is given, the manifest's signature is checked before the manifest is parsed.
Reading parses nothing but the manifest before every listed file has been hashed, opens no file that
the manifest does not list (others are never touched), and refuses any array, shape or value that
the manifest does not announce. The manifest's own hash is the model's identity.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from detector.bounded_files import read_bounded
from detector.drift import BINS, DriftReference
from detector.errors import RefusedError
from detector.features import FeatureSpec
from detector.model import (
    KNOTS,
    Combination,
    CombinationName,
    Normaliser,
    Rarity,
    Tails,
    TwoStageModel,
)
from detector.naming import MEASURES, ORDINARY, TYPES, UNKNOWN, Head
from detector.network import Sizes
from detector.signing import SIGNATURE_BYTES, SignatureError, check, sign
from detector.symbols import SymbolFileError, parse_symbols, write_symbols
from detector.tails import LARGEST_SHAPE, LEAST_SHAPE
from detector.thresholds import Peaks, Thresholds

Arrays = Mapping[str, npt.NDArray[Any]]
Variational: TypeAlias = Literal["none", "stage1", "stage2", "both"]
"""Which stages were trained with a sampled latent; scoring takes its mean."""

MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
WEIGHTS: Final = "weights.safetensors"
TABLES: Final = "tables.safetensors"
SUMMARY: Final = "training_summary.json"
SYMBOLS: Final = "symbols.csv"
HEAD: Final = "head.safetensors"
REQUIRED: Final = (WEIGHTS, TABLES, SUMMARY)
MAX_MANIFEST_BYTES: Final = 1 << 20
MAX_FILE_BYTES: Final = 1 << 28
MAX_FILES: Final = 32
FILE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,59}\.(csv|json|png|safetensors)")
SCHEMA_VERSION: Final = 2
TAIL_TABLES: Final = (
    "value_starts", "value_decades", "residual_starts", "residual_decades"
)  # fmt: skip
RARITY_TABLES: Final = ("lone", "rarity_knots", "rarity_steps")
HEAD_ARRAYS: Final = ("centre", "scale", "weights", "bias", "whitener", "means")
PEAK_TABLES: Final = ("tail_level", "tail_shape", "tail_scale", "tail_rate", "ticks_per_hour")

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Above0 = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=200)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ArtifactError(RefusedError):
    """A model folder cannot be used: which file, what was found, what was expected, what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class FileEntry(_Section):
    """Hash and size of one file of the folder."""

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]


class Features(_Section):
    """What the model's inputs are: the definition and the fingerprint of its computation."""

    fingerprint: Sha256
    spec: dict[str, Any]


class Architecture(_Section):
    """Sizes of the members' two autoencoders, and what they were trained as."""

    features: Positive
    hidden: Positive
    latent: Positive
    stage2_latent: Positive
    members: Annotated[int, Field(ge=1, le=100)]
    activation: Literal["tanh"] = "tanh"
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    whitened: bool
    variational: Variational = "none"

    @property
    def sizes(self) -> Sizes:
        """What the arrays of the weights must be."""
        return Sizes(
            self.features,
            self.hidden,
            self.latent,
            self.stage2_latent,
            self.members,
            self.whitened,
        )


class ScoreSection(_Section):
    """How errors and tails become one score, see `model.Combination`; no `cap`: without limit."""

    combination: CombinationName
    stage1_weight: NotNegative
    stage2_weight: NotNegative
    tail_weight: NotNegative
    cap: Above0 | None
    centre1: Finite
    gain1: Above0
    centre2: Finite
    gain2: Above0

    @classmethod
    def of(cls, combination: Combination) -> Self:
        """Return the section that says what a combination is."""
        values = asdict(combination)
        cap = values["cap"] if np.isfinite(values["cap"]) else None
        return cls(combination=values.pop("name"), **{**values, "cap": cap})

    def combined(self) -> Combination:
        """Return the combination that the section says."""
        values = self.model_dump()
        cap = np.inf if self.cap is None else self.cap
        return Combination(name=values.pop("combination"), **{**values, "cap": cap})


class ThresholdSection(_Section):
    """How the thresholds came about; their values are in the tables.

    With method "pot" either `budget` (episodes an instrument-hour) or `risk` (share of ticks) is
    what was asked for, and `adapt` says whether thresholds follow the alarms they cause.
    """

    method: Literal["quantile", "pot"] = "quantile"
    quantile: Annotated[float, Field(gt=0, lt=1)]
    pooled: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    calibration_rows: Count
    own: Count
    budget: Annotated[float, Field(gt=0, le=1e6)] | None = None
    risk: Annotated[float, Field(gt=0, lt=1)] | None = None
    adapt: bool = False

    @model_validator(mode="after")
    def _asked_for_one_thing(self) -> Self:
        asked = (self.budget is not None) + (self.risk is not None)
        if asked != (self.method == "pot"):
            raise ValueError("method pot has a budget or a risk, method quantile neither")
        if self.adapt and self.method != "pot":
            raise ValueError("only thresholds of method pot adapt")
        return self


class Classifier(_Section):
    """The head that names anomalies: classes, limits, and the episodes it was trained on."""

    classes: Annotated[list[Text], Field(min_length=2, max_length=len(TYPES))]
    clip: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    least_probability: Annotated[float, Field(ge=0, le=1)]
    most_distance: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    episodes: dict[str, Count]

    @model_validator(mode="after")
    def _classes_are_known(self) -> Self:
        allowed = ({*TYPES} - {UNKNOWN}) | {ORDINARY}
        if odd := sorted(set(self.classes) - allowed):
            raise ValueError(f"{', '.join(odd)}: allowed are {', '.join(sorted(allowed))}")
        if len(set(self.classes)) < len(self.classes) or set(self.classes) <= {ORDINARY}:
            raise ValueError("a class is named twice, or no type at all")
        return self


class Training(_Section):
    """The part of the training summary that a running model reports about itself."""

    seed: int
    instruments: Count
    train_rows: Count
    calibration_rows: Count
    test_rows: Count
    first_ts_event: int
    last_ts_event: int
    stage1_loss: Finite
    stage2_loss: Finite


class Manifest(_Section):
    """Everything about a model but its numbers."""

    schema_version: Literal[2] = 2
    version: Text
    created: Text
    libraries: dict[str, Text]
    features: Features
    architecture: Architecture
    score: ScoreSection
    thresholds: ThresholdSection
    training: Training
    classifier: Classifier | None = None
    files: Annotated[dict[str, FileEntry], Field(max_length=MAX_FILES)] = Field(
        default_factory=dict
    )


@dataclass(frozen=True, slots=True, eq=False)
class Artifact:
    """A trained model, verified and in memory.

    Parameters
    ----------
    manifest
        What the model is.
    weights
        All members' autoencoders, names and shapes as in `network.Sizes.shapes`, float32.
    tables
        `keys` `(R-1,)` int64 ascending; `centre`, `scale` `(R, F)` float64; `tail_groups` `(F,)`
        int8 and `TAIL_TABLES`, `(R, 2, F)` float32 each, see `model.Tails`; with combination
        "tails" also `RARITY_TABLES`, see `model.Rarity`; `threshold` `(R,)` float64;
        `threshold_own` `(R,)` bool; with method "pot" also `PEAK_TABLES`, `(R,)` float64 each, see
        `thresholds.Peaks`; `reference_edges` `(F + 1, BINS - 1)` float32 and `reference_counts`
        `(R, F + 1, BINS)` int32, see `drift.DriftReference`. Row 0 of the tables with R rows is
        pooled over all instruments, row `i + 1` belongs to `keys[i]`.
    model_hash
        SHA-256 of the manifest file.
    symbols
        Names of the instruments it was trained on, by key, as far as their source told them.
    head_arrays
        Of the head that names anomalies, `HEAD_ARRAYS`, float64; empty without one.
    """

    manifest: Manifest
    weights: Arrays
    tables: Arrays
    model_hash: str
    symbols: Mapping[int, str] = field(default_factory=dict)
    head_arrays: Arrays = field(default_factory=dict)

    @property
    def head(self) -> Head | None:
        """What names anomalies, if the model has it."""
        section = self.manifest.classifier
        if section is None:
            return None
        return Head(
            tuple(section.classes),
            section.clip,
            section.least_probability,
            section.most_distance,
            *(self.head_arrays[name] for name in HEAD_ARRAYS),
        )

    @property
    def version(self) -> str:
        """The model's version, for people and for labels."""
        return self.manifest.version

    @property
    def features(self) -> FeatureSpec:
        """Definition of the model's inputs."""
        return FeatureSpec.from_json(json.dumps(self.manifest.features.spec))

    @property
    def model(self) -> TwoStageModel:
        """What the scorer runs."""
        tables, manifest = self.tables, self.manifest
        normaliser = Normaliser(
            tables["keys"], tables["centre"], tables["scale"], manifest.architecture.clip
        )
        tails = Tails(tables["tail_groups"], *(tables[name] for name in TAIL_TABLES))
        rarity = None
        if manifest.score.combination == "tails":
            rarity = Rarity(*(tables[name] for name in RARITY_TABLES))
        return TwoStageModel(normaliser, self.weights, tails, manifest.score.combined(), rarity)

    @property
    def reference(self) -> DriftReference:
        """What drift is measured against."""
        return DriftReference(
            self.features.names,
            self.model.normaliser,
            self.tables["reference_edges"],
            self.tables["reference_counts"],
        )

    @property
    def thresholds(self) -> Thresholds:
        """Decision thresholds, row-aligned with the normaliser."""
        section = self.manifest.thresholds
        peaks = None
        if section.method == "pot":
            budget, risk = section.budget, section.risk
            peaks = Peaks(
                "risk" if budget is None else "budget",
                (risk or 0.0) if budget is None else budget,
                section.adapt,
                *(self.tables[name] for name in PEAK_TABLES),
            )
        return Thresholds(
            section.quantile,
            self.tables["threshold"],
            self.tables["threshold_own"],
            section.method,
            peaks,
        )


def write_artifact(
    folder: Path,
    manifest: Manifest,
    weights: Arrays,
    tables: Arrays,
    summary: Mapping[str, Any],
    pictures: Mapping[str, bytes] | None = None,
    symbols: Mapping[int, str] | None = None,
    *,
    overwrite: bool = False,
) -> Artifact:
    """Write a model folder in one step: it is complete and verified, or it is not there.

    Parameters
    ----------
    folder
        Target; must not exist, be empty, or with `overwrite` be a model folder, which is replaced.
    manifest
        Without its `files`, which are filled in here.
    weights, tables
        As in `Artifact`.
    summary
        JSON-serialisable facts about the training, for people.
    pictures
        PNG files by name.
    symbols
        Names of the instruments, by key.
    """
    check_target(folder, overwrite=overwrite)
    contents = {
        WEIGHTS: safetensors.numpy.save({k: np.ascontiguousarray(a) for k, a in weights.items()}),
        TABLES: safetensors.numpy.save({k: np.ascontiguousarray(a) for k, a in tables.items()}),
        SUMMARY: _json_bytes(summary),
        SYMBOLS: write_symbols(symbols or {}),
        **(pictures or {}),
    }
    return _write(folder, manifest, contents, overwrite=overwrite)


def write_with_head(
    folder: Path, source: Path, head: Head, manifest: Manifest, *, overwrite: bool = False
) -> Artifact:
    """Write a copy of a model folder that has a head, in one step.

    Parameters
    ----------
    folder
        Target, as in `write_artifact`; never `source` itself.
    source
        Model folder; its files are verified again and copied as they are.
    head
        The trained head.
    manifest
        The source's, with its new version and `classifier`; `files` are filled in here.
    """
    check_target(folder, overwrite=overwrite)
    if folder.resolve() == source.resolve():
        raise ArtifactError(f"{folder}: is the model itself; give another folder")
    contents = {
        name: _read_verified(source / name, entry)
        for name, entry in manifest.files.items()
        if name != HEAD
    }
    arrays = {name: np.ascontiguousarray(getattr(head, name)) for name in HEAD_ARRAYS}
    contents[HEAD] = safetensors.numpy.save(arrays)
    return _write(folder, manifest, contents, overwrite=overwrite)


def _write(
    folder: Path, manifest: Manifest, contents: Mapping[str, bytes], *, overwrite: bool
) -> Artifact:
    """Write the files and the manifest that lists them, read them back, move them into place."""
    files = {
        name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
        for name, data in sorted(contents.items())
    }
    complete = manifest.model_copy(update={"files": files})
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        for name, data in contents.items():
            _write_durably(staged / name, data)
        _write_durably(staged / MANIFEST, _json_bytes(complete.model_dump(mode="json")))
        staged.chmod(0o755)  # mkdtemp makes it private; the daemon is often another user
        artifact = read_artifact(staged)
        _replace(folder, staged, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    return artifact


def check_target(folder: Path, *, overwrite: bool) -> None:
    """Refuse a target folder that holds something: before the training, not after it."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: is a file; give a folder that does not exist yet")
    if not (folder / MANIFEST).is_file():
        raise ArtifactError(
            f"{folder}: not empty and no model folder (no {MANIFEST}); give another folder"
        )
    if not overwrite:
        raise ArtifactError(
            f"{folder}: holds a model already; give another folder, or --overwrite to replace it"
        )


def read_artifact(folder: Path, public_key: Path | None = None) -> Artifact:
    """Read and verify a model folder.

    Parameters
    ----------
    folder
        The model folder.
    public_key
        PEM of an Ed25519 key; without a signature of it over the manifest nothing is parsed.

    Raises
    ------
    ArtifactError
        It is not signed by the key, or a file is missing, too large, changed, malformed, or
        belongs to other features than this version of tapewatch computes.
    """
    data = _read_bounded(folder / MANIFEST, MAX_MANIFEST_BYTES)
    if public_key is not None:
        _check_signature(folder, data, public_key)
    manifest = _parse_manifest(folder / MANIFEST, data)
    contents = {
        name: _read_verified(folder / name, entry) for name, entry in manifest.files.items()
    }
    features = _check_features(folder / MANIFEST, manifest)
    weights = _parse_tensors(folder / WEIGHTS, contents[WEIGHTS])
    tables = _parse_tensors(folder / TABLES, contents[TABLES])
    _check_weights(folder / WEIGHTS, weights, manifest.architecture)
    _check_tables(
        folder / TABLES,
        tables,
        len(features.names),
        manifest.thresholds.method,
        manifest.score.combination,
    )
    if tables["threshold"][0] != manifest.thresholds.pooled:
        raise ArtifactError(
            f"{folder / TABLES}: pooled threshold is {tables['threshold'][0]}, {MANIFEST} says "
            f"{manifest.thresholds.pooled}; train the model again"
        )
    symbols = _parse_symbols(folder / SYMBOLS, contents.get(SYMBOLS))
    head = _parse_head(folder / HEAD, contents.get(HEAD), manifest.classifier, weights)
    return Artifact(manifest, weights, tables, hashlib.sha256(data).hexdigest(), symbols, head)


def unlisted_files(folder: Path, manifest: Manifest) -> list[str]:
    """Names in a model folder that its manifest does not list; reading never opens them."""
    known = {MANIFEST, SIGNATURE, *manifest.files}
    return sorted({path.name for path in folder.iterdir()} - known)


def sign_artifact(folder: Path, key_file: Path, password: bytes | None = None) -> Path:
    """Verify a model folder, sign its manifest and return the signature's file.

    Raises
    ------
    ArtifactError, SignatureError
        When the folder is not as written, or the key cannot be used.
    """
    read_artifact(folder)
    signature = sign(_read_bounded(folder / MANIFEST, MAX_MANIFEST_BYTES), key_file, password)
    staged = folder / f".{SIGNATURE}"
    _write_durably(staged, signature)
    staged.replace(folder / SIGNATURE)
    return folder / SIGNATURE


def _check_signature(folder: Path, manifest: bytes, public_key: Path) -> None:
    path = folder / SIGNATURE
    if not path.exists():
        raise ArtifactError(
            f"{path}: is missing, and only models signed for {public_key} are taken; "
            "sign it with `tapewatch model sign`"
        )
    try:
        check(manifest, _read_bounded(path, SIGNATURE_BYTES), public_key)
    except SignatureError as error:
        raise ArtifactError(f"{path}: {error}; the model is refused") from error


def _read_bounded(path: Path, limit: int) -> bytes:
    try:
        return read_bounded(path, limit)
    except ValueError as error:
        raise ArtifactError(f"{path}: {error}; restore the model folder") from None
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror}); give a folder that `tapewatch train` wrote"
        ) from error


def _read_verified(path: Path, entry: FileEntry) -> bytes:
    data = _read_bounded(path, MAX_FILE_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256 or len(data) != entry.size_bytes:
        raise ArtifactError(
            f"{path}: SHA-256 is {digest} over {len(data):,} bytes, {MANIFEST} says "
            f"{entry.sha256} over {entry.size_bytes:,}; the file was changed: restore it"
        )
    return data


def _parse_manifest(path: Path, data: bytes) -> Manifest:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: is not JSON ({error}); restore the model folder") from error
    version = found.get("schema_version") if isinstance(found, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path}: schema_version is {version!r}, this tapewatch reads {SCHEMA_VERSION}; "
            "train the model again with it, or use the tapewatch that wrote it"
        )
    try:
        manifest = Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"{path}: {where or 'manifest'} is {first['input']!r:.80}: {first['msg']}; "
            "restore the model folder"
        ) from error
    for name in manifest.files:
        if not FILE_NAME.fullmatch(name):
            raise ArtifactError(
                f"{path}: files lists {name!r:.80}; a name is lower-case letters, digits, _ and -, "
                "and ends in .csv, .json, .png or .safetensors"
            )
    if missing := set(REQUIRED) - set(manifest.files):
        raise ArtifactError(f"{path}: files does not list {', '.join(sorted(missing))}")
    return manifest


def _check_features(path: Path, manifest: Manifest) -> FeatureSpec:
    try:
        spec = FeatureSpec.from_json(json.dumps(manifest.features.spec))
    except (ValueError, TypeError, KeyError) as error:
        raise ArtifactError(
            f"{path}: features.spec: {error}; train the model again with this tapewatch"
        ) from error
    if spec.fingerprint != manifest.features.fingerprint:
        raise ArtifactError(
            f"{path}: the model was trained on features {manifest.features.fingerprint[:12]}, this "
            f"tapewatch computes {spec.fingerprint[:12]} from the same definition: "
            "train the model again with it"
        )
    if len(spec.names) != manifest.architecture.features:
        raise ArtifactError(
            f"{path}: architecture.features is {manifest.architecture.features}, the feature "
            f"definition has {len(spec.names)}; restore the model folder"
        )
    return spec


def _parse_tensors(path: Path, data: bytes) -> dict[str, npt.NDArray[Any]]:
    try:
        arrays: dict[str, npt.NDArray[Any]] = safetensors.numpy.load(data)
    except (safetensors.SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ArtifactError(f"{path}: is no safetensors file ({error}); restore it") from error
    for array in arrays.values():
        with contextlib.suppress(ValueError):
            array.setflags(write=False)
    return arrays


def _expect(path: Path, arrays: Arrays, shapes: Mapping[str, tuple[tuple[int, ...], str]]) -> None:
    if set(arrays) != set(shapes):
        odd = sorted(set(arrays) ^ set(shapes))
        raise ArtifactError(f"{path}: arrays missing or not expected: {', '.join(odd)[:300]}")
    for name, (shape, dtype) in shapes.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.dtype(dtype):
            raise ArtifactError(
                f"{path}: {name} is {array.dtype} {array.shape}, expected {dtype} {shape}"
            )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ArtifactError(f"{path}: {name} holds NaN or infinite values; train again")


def _parse_symbols(path: Path, data: bytes | None) -> dict[int, str]:
    try:
        return {} if data is None else parse_symbols(data, path)
    except SymbolFileError as error:
        raise ArtifactError(f"{error}; restore the model folder") from error


def _check_weights(path: Path, weights: Arrays, sizes: Architecture) -> None:
    shapes = sizes.sizes.shapes()
    _expect(path, weights, {name: (shape, "float32") for name, shape in shapes.items()})
    for name in ("stage1.residual_sd", "stage2.residual_sd", "stage2.scale"):
        if not (weights[name] > 0).all():
            raise ArtifactError(f"{path}: {name} must be positive everywhere; train again")


def _check_tables(
    path: Path,
    tables: Arrays,
    features: int,
    method: Literal["quantile", "pot"],
    combination: CombinationName,
) -> None:
    peaks = PEAK_TABLES if method == "pot" else ()
    lone = tables["lone"].size if "lone" in tables else 0
    rows = len(tables["keys"]) + 1 if "keys" in tables and tables["keys"].ndim == 1 else 1
    _expect(
        path,
        tables,
        {
            "keys": ((rows - 1,), "int64"),
            "centre": ((rows, features), "float64"),
            "scale": ((rows, features), "float64"),
            "tail_groups": ((features,), "int8"),
            **dict.fromkeys(TAIL_TABLES, ((rows, 2, features), "float32")),
            "threshold": ((rows,), "float64"),
            "threshold_own": ((rows,), "bool"),
            "reference_edges": ((features + 1, BINS - 1), "float32"),
            "reference_counts": ((rows, features + 1, BINS), "int32"),
            **dict.fromkeys(peaks, ((rows,), "float64")),
            **(_rarity_shapes(rows, lone) if combination == "tails" else {}),
        },
    )
    if combination == "tails":
        _check_rarity(path, tables, features)
    if not (np.diff(tables["keys"]) > 0).all():
        raise ArtifactError(f"{path}: keys must ascend without repeats; train again")
    edges, counts = tables["reference_edges"], tables["reference_counts"]
    if (np.diff(edges) < 0).any() or (counts < 0).any() or (counts[0].sum(axis=1) == 0).any():
        raise ArtifactError(
            f"{path}: reference_edges must ascend, reference_counts must not be negative, nor "
            "empty in row 0; train again"
        )
    if not np.isin(tables["tail_groups"], (0, 1)).all():
        raise ArtifactError(f"{path}: tail_groups must be 0 or 1; train again")
    for name in ("value_starts", "residual_starts"):
        if not (tables[name][:, 0] >= tables[name][:, 1]).all():
            raise ArtifactError(f"{path}: {name}: the upper must not be below the lower")
    for name in ("scale", "threshold", "value_decades", "residual_decades", *peaks):
        if name != "tail_shape" and not (tables[name] > 0).all():
            raise ArtifactError(f"{path}: {name} must be positive everywhere; train again")
    if (
        peaks
        and not (
            (tables["tail_shape"] >= LEAST_SHAPE) & (tables["tail_shape"] <= LARGEST_SHAPE)
        ).all()
    ):
        raise ArtifactError(
            f"{path}: tail_shape must lie from {LEAST_SHAPE} to {LARGEST_SHAPE}; train again"
        )


def _rarity_shapes(rows: int, lone: int) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        "lone": ((lone,), "int64"),
        "rarity_knots": ((rows, lone + 2, 2, KNOTS), "float64"),
        "rarity_steps": ((rows, lone + 2), "float64"),
    }


def _check_rarity(path: Path, tables: Arrays, features: int) -> None:
    lone, knots = tables["lone"], tables["rarity_knots"]
    if (np.diff(lone) <= 0).any() or (lone < 0).any() or (lone >= features).any():
        raise ArtifactError(f"{path}: lone must be ascending columns of the features; train again")
    if (np.diff(knots, axis=-1) < 0).any() or not (np.diff(knots[..., 0, :2]) > 0).all():
        raise ArtifactError(f"{path}: rarity_knots must ascend; train again")
    if not (tables["rarity_steps"] > 0).all():
        raise ArtifactError(f"{path}: rarity_steps must be positive; train again")


def _parse_head(
    path: Path, data: bytes | None, section: Classifier | None, weights: Arrays
) -> dict[str, npt.NDArray[Any]]:
    if (data is None) != (section is None):
        raise ArtifactError(
            f"{path}: {MANIFEST} lists {'no' if data is None else 'the'} file and has "
            f"{'no' if section is None else 'a'} classifier; restore the model folder"
        )
    if data is None or section is None:
        return {}
    arrays = _parse_tensors(path, data)
    classes, inputs = len(section.classes), weights["stage2.centre"].size + MEASURES
    shapes = {
        "centre": (inputs,),
        "scale": (inputs,),
        "weights": (classes, inputs),
        "bias": (classes,),
        "whitener": (inputs, inputs),
        "means": (classes, inputs),
    }
    _expect(path, arrays, {name: (shape, "float64") for name, shape in shapes.items()})
    if not (arrays["scale"] > 0).all():
        raise ArtifactError(f"{path}: scale must be positive everywhere; train the head again")
    return arrays


def _json_bytes(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n").encode()


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _replace(folder: Path, staged: Path, *, overwrite: bool) -> None:
    """Move the finished folder into place; an old one goes only once its successor stands."""
    if overwrite and folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
        folder.rename(old / folder.name)
        staged.rename(folder)
        shutil.rmtree(old)
    else:
        try:
            staged.rename(folder)
        except OSError as error:
            raise ArtifactError(
                f"{folder}: was made by another run meanwhile; give another folder"
            ) from error
