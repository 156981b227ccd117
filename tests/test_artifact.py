"""The model folder: round trip, atomic writing, refusal of everything that is not as written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from detector import artifact as module
from detector.artifact import ArtifactError, read_artifact, unlisted_files, write_artifact
from detector.errors import RefusedError
from tests.models import folder_contents, random_artifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a valid model."""
    random_artifact(tmp_path / "model")
    return tmp_path / "model"


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest in place; nothing guards it but its own schema."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


def edit_tables(folder: Path, **arrays: np.ndarray) -> None:
    """Replace arrays of the tables, and make their hash right again."""
    rewrite(folder, "tables.safetensors", arrays)


def rewrite(folder: Path, name: str, arrays: dict[str, np.ndarray]) -> None:
    """Replace arrays of a file of arrays, and make its hash right again."""
    found = safetensors.numpy.load((folder / name).read_bytes())
    replace_file(folder, name, safetensors.numpy.save(found | arrays))


def replace_file(folder: Path, name: str, data: bytes) -> None:
    """Replace a file and make its entry in the manifest right again."""
    (folder / name).write_bytes(data)
    entry = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    edit_manifest(folder, lambda m: m["files"].__setitem__(name, entry))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    """Every array comes back to the bit, and the manifest's hash is the model's identity."""
    contents = folder_contents()
    written = write_artifact(tmp_path / "m", **contents)
    read = read_artifact(tmp_path / "m")
    for name, array in contents["weights"].items():
        np.testing.assert_array_equal(read.weights[name], array, strict=True)
    for name, array in contents["tables"].items():
        np.testing.assert_array_equal(read.tables[name], array, strict=True)
    digest = hashlib.sha256((tmp_path / "m" / "manifest.json").read_bytes()).hexdigest()
    assert read.model_hash == written.model_hash == digest
    assert read.version == "test-model"
    assert read.thresholds.pooled == 4.0
    assert read.features.fingerprint == contents["manifest"].features.fingerprint
    assert read.model.combination == written.model.combination
    np.testing.assert_array_equal(read.model.tails.table(), written.model.tails.table())


def test_manifest_lists_every_other_file_with_its_hash(folder: Path) -> None:
    """What the manifest lists is what the folder holds."""
    artifact = read_artifact(folder)
    assert {p.name for p in folder.iterdir()} == {"manifest.json", *artifact.manifest.files}
    for name, entry in artifact.manifest.files.items():
        data = (folder / name).read_bytes()
        assert entry.sha256 == hashlib.sha256(data).hexdigest()
        assert entry.size_bytes == len(data)


def test_arrays_cannot_be_changed_by_accident(folder: Path) -> None:
    """The arrays of a model that was read are read-only."""
    artifact = read_artifact(folder)
    with pytest.raises(ValueError, match="read-only"):
        artifact.tables["threshold"][0] = 0.0


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "tables.safetensors", "training_curves.png"]
)
def test_one_changed_byte_is_refused(folder: Path, name: str) -> None:
    """Any changed file is refused, with both hashes, before it is parsed."""
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(ArtifactError, match=rf"{name}: SHA-256 is .* says .* changed"):
        read_artifact(folder)


def test_hashes_are_checked_before_anything_is_parsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a picture changed, not even the intact arrays are parsed."""
    (folder / "training_curves.png").write_bytes(b"other")

    def never(*_: object) -> None:
        pytest.fail("parsed before all hashes were checked")

    monkeypatch.setattr(module.safetensors.numpy, "load", never)
    with pytest.raises(ArtifactError, match=r"training_curves\.png"):
        read_artifact(folder)


@pytest.mark.parametrize("name", ["manifest.json", "weights.safetensors", "training_summary.json"])
def test_missing_file_is_refused_by_name(folder: Path, name: str) -> None:
    """A missing file is named, with what to do."""
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match=rf"{name}: cannot be read .*tapewatch train"):
        read_artifact(folder)


def test_missing_folder_is_a_refusal_not_a_bug(tmp_path: Path) -> None:
    """A wrong path is the user's to mend: exit code 2."""
    with pytest.raises(RefusedError, match="cannot be read"):
        read_artifact(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "name",
    ["../secret.json", "/etc/passwd", "a/b.json", "..", "WEIGHTS.json", "x.pkl", ".json", ""],
)
def test_names_that_could_leave_the_folder_are_refused(folder: Path, name: str) -> None:
    """No path, no other ending, no hidden file is ever opened because a manifest says so."""
    entry = {"sha256": "0" * 64, "size_bytes": 1}
    edit_manifest(folder, lambda m: m["files"].__setitem__(name, entry))
    with pytest.raises(ArtifactError, match="a name is lower-case letters"):
        read_artifact(folder)


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_no_manifest_is_refused(folder: Path, data: bytes) -> None:
    """Empty, cut off, of another type, no text, nested without end: refused by name."""
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        read_artifact(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(extra=1), "extra"),
        (lambda m: m.pop("version"), "version"),
        (lambda m: m["architecture"].update(clip=-1.0), r"architecture\.clip"),
        (lambda m: m["architecture"].update(hidden="48"), r"architecture\.hidden"),
        (lambda m: m["thresholds"].update(quantile=1.0), r"thresholds\.quantile"),
        (lambda m: m["features"].update(fingerprint="xyz"), r"features\.fingerprint"),
        (lambda m: m["files"].pop("weights.safetensors"), "does not list weights"),
        (
            lambda m: m.update(schema_version=1),
            "schema_version is 1, this tapewatch reads 2; train",
        ),
        (lambda m: m["architecture"].update(members=2), r"weights\.safetensors: .* expected"),
        (lambda m: m["architecture"].update(whitened=True), "expected: stage1.residual_mean"),
        (lambda m: m["architecture"].update(variational="all"), r"architecture\.variational"),
        (lambda m: m["score"].update(combination="weighted"), r"score\.combination"),
        (lambda m: m["score"].update(stage1_weight=-1.0), r"score\.stage1_weight"),
        (lambda m: m["score"].update(gain1=-1.0), r"score\.gain1"),
        (lambda m: m.pop("score"), "score"),
        (lambda m: m["architecture"].update(features=3), r"architecture\.features is 3"),
        (lambda m: m["architecture"].update(hidden=13), r"weights\.safetensors: .* expected"),
        (lambda m: m["thresholds"].update(pooled=4.5), "pooled threshold is 4.0"),
        (lambda m: m["thresholds"].update(method="pickle"), r"thresholds\.method"),
        (lambda m: m["thresholds"].update(budget=6.0), "method quantile neither"),
        (lambda m: m["thresholds"].update(method="pot"), "method pot has a budget or a risk"),
        (
            lambda m: m["thresholds"].update(method="pot", budget=6.0, risk=0.1),
            "method pot has a budget or a risk",
        ),
        (lambda m: m["thresholds"].update(adapt=True), "only thresholds of method pot adapt"),
        (lambda m: m["thresholds"].update(method="pot", budget=-1.0), r"thresholds\.budget"),
        (lambda m: m["thresholds"].update(method="pot", risk=1.0), r"thresholds\.risk"),
        (lambda m: m["thresholds"].update(method="pot", risk=0.1), "missing or not expected: tail"),
        (lambda m: m["features"]["spec"].update(warmup=-1), r"features\.spec"),
    ],
)
def test_manifest_with_a_wrong_value_is_refused(
    folder: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    """Unknown, missing, mistyped and impossible values are refused by name."""
    edit_manifest(folder, change)
    with pytest.raises(ArtifactError, match=message):
        read_artifact(folder)


def test_model_of_other_features_is_refused(folder: Path) -> None:
    """A fingerprint that this version does not compute means: train again."""
    edit_manifest(folder, lambda m: m["features"].update(fingerprint="0" * 64))
    with pytest.raises(ArtifactError, match=r"trained on features 000000000000.*train the model"):
        read_artifact(folder)


def test_arrays_must_be_what_the_manifest_announces(folder: Path) -> None:
    """Shape, type, order, sign and finiteness of the tables are checked, each with its name."""
    good = read_artifact(folder).tables
    bad: dict[str, tuple[np.ndarray, str]] = {
        "keys": (good["keys"][::-1].copy(), "keys must ascend"),
        "scale": (good["scale"] * 0, "scale must be positive"),
        "centre": (good["centre"].astype(np.float32), "centre is float32"),
        "threshold": (np.full_like(good["threshold"], np.nan), "threshold holds NaN"),
        "another": (np.zeros(1), "not expected: another"),
        "tail_groups": (good["tail_groups"] + np.int8(5), "tail_groups must be 0 or 1"),
        "value_starts": (good["value_starts"][:, ::-1].copy(), "the upper must not be below"),
        "residual_decades": (good["residual_decades"] * 0, "residual_decades must be positive"),
        "lone": (good["lone"][::-1].copy(), "lone must be ascending columns"),
        "rarity_knots": (good["rarity_knots"][..., ::-1].copy(), "rarity_knots must ascend"),
        "rarity_steps": (good["rarity_steps"] * 0, "rarity_steps must be positive"),
        "residual_starts": (good["residual_starts"][:, :1].copy(), "residual_starts is float32"),
    }
    for name, (array, message) in bad.items():
        original = (folder / "tables.safetensors").read_bytes()
        edit_tables(folder, **{name: array})
        with pytest.raises(ArtifactError, match=message):
            read_artifact(folder)
        replace_file(folder, "tables.safetensors", original)
    read_artifact(folder)


def test_a_score_without_a_cap_is_read_back(folder: Path) -> None:
    """JSON has no infinity: no cap is null, and infinite again when read."""
    edit_manifest(folder, lambda m: m["score"].update(cap=None))
    assert read_artifact(folder).model.combination.cap == np.inf


def test_manifest_of_an_earlier_version_has_quantile_thresholds(folder: Path) -> None:
    """A manifest that says nothing of budget, risk and adaptation is read as it was meant."""

    def forget(manifest: dict[str, Any]) -> None:
        for name in ("budget", "risk", "adapt"):
            manifest["thresholds"].pop(name)

    edit_manifest(folder, forget)
    thresholds = read_artifact(folder).thresholds
    assert (thresholds.method, thresholds.peaks, thresholds.adaptive) == ("quantile", None, False)


def test_tails_are_read_back_and_checked(tmp_path: Path) -> None:
    """A model for a budget carries its tails; wrong ones are refused by name."""
    folder = tmp_path / "budget"
    random_artifact(folder, budget=6.0)
    read = read_artifact(folder).thresholds
    assert read.peaks is not None
    assert (read.method, read.peaks.asked, read.peaks.value, read.adaptive) == (
        ("pot", "budget", 6.0, True)
    )
    np.testing.assert_array_equal(read.peaks.scale, np.full(len(read.values), 0.4), strict=True)
    good = read_artifact(folder).tables
    bad: dict[str, tuple[np.ndarray, str]] = {
        "tail_scale": (good["tail_scale"] * 0, "tail_scale must be positive"),
        "tail_rate": (good["tail_rate"] * np.nan, "tail_rate holds NaN"),
        "tail_shape": (good["tail_shape"] + 1, "tail_shape must lie from"),
        "ticks_per_hour": (good["ticks_per_hour"][1:], "ticks_per_hour is float64"),
    }
    original = (folder / "tables.safetensors").read_bytes()
    for name, (array, message) in bad.items():
        edit_tables(folder, **{name: array.copy()})
        with pytest.raises(ArtifactError, match=message):
            read_artifact(folder)
        replace_file(folder, "tables.safetensors", original)
    read_artifact(folder)


def test_weights_that_divide_by_zero_are_refused(folder: Path) -> None:
    """A residual scale of zero would make every score infinite."""
    found = read_artifact(folder).weights
    rewrite(folder, "weights.safetensors", {"stage1.residual_sd": found["stage1.residual_sd"] * 0})
    with pytest.raises(ArtifactError, match=r"stage1\.residual_sd must be positive"):
        read_artifact(folder)


def test_foreign_bytes_as_arrays_are_refused(folder: Path) -> None:
    """Bytes that are no safetensors file are refused although their hash is right."""
    replace_file(folder, "weights.safetensors", b"\x80\x04pickle")
    with pytest.raises(ArtifactError, match=r"weights\.safetensors: is no safetensors file"):
        read_artifact(folder)


def test_large_files_are_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file above the limit is refused by its size."""
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 1_000)
    with pytest.raises(ArtifactError, match="at most 1,000 are allowed"):
        read_artifact(folder)


def test_pipe_in_place_of_a_file_does_not_hang(folder: Path) -> None:
    """A named pipe is refused at once instead of waiting for a writer."""
    (folder / "weights.safetensors").unlink()
    os.mkfifo(folder / "weights.safetensors")
    with pytest.raises(ArtifactError, match="is no regular file"):
        read_artifact(folder)


def test_unlisted_files_are_ignored_and_named(folder: Path) -> None:
    """A file the manifest does not list changes nothing, and `unlisted_files` finds it."""
    before = read_artifact(folder).model_hash
    (folder / "weights.pkl").write_bytes(b"never opened")
    artifact = read_artifact(folder)
    assert artifact.model_hash == before
    assert unlisted_files(folder, artifact.manifest) == ["weights.pkl"]


def test_existing_model_is_replaced_only_when_asked(folder: Path) -> None:
    """Without `overwrite` the old model stays; with it the new one takes its place."""
    before = read_artifact(folder).model_hash
    with pytest.raises(ArtifactError, match="--overwrite"):
        write_artifact(folder, **folder_contents(seed=1))
    assert read_artifact(folder).model_hash == before
    after = write_artifact(folder, **folder_contents(seed=1), overwrite=True)
    assert read_artifact(folder).model_hash == after.model_hash != before


def test_overwriting_never_touches_what_is_no_model(tmp_path: Path) -> None:
    """A folder of other things is refused even with `overwrite`."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(ArtifactError, match="no model folder"):
        write_artifact(tmp_path / "photos", **folder_contents(), overwrite=True)
    assert (tmp_path / "photos" / "cat.jpg").exists()


def test_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk while writing leaves neither a model nor a temporary folder."""
    real = module._write_durably

    def full(path: Path, data: bytes) -> None:
        if path.name == "manifest.json":
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(module, "_write_durably", full)
    with pytest.raises(OSError, match="No space left"):
        write_artifact(tmp_path / "m", **folder_contents())
    assert list(tmp_path.iterdir()) == []


def test_model_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    """Writing verifies what it wrote before the folder gets its name."""
    contents = folder_contents()
    contents["tables"] = contents["tables"] | {"scale": contents["tables"]["scale"] * np.nan}
    with pytest.raises(ArtifactError, match="scale holds NaN"):
        write_artifact(tmp_path / "m", **contents)
    assert list(tmp_path.iterdir()) == []


def test_folder_that_another_run_made_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the check of the target and the renaming: refused, and nothing is left behind."""
    read = module.read_artifact

    def other(staged: Path) -> object:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "manifest.json").write_text("the first run's")
        return read(staged)

    monkeypatch.setattr(module, "read_artifact", other)
    with pytest.raises(ArtifactError, match="m: was made by another run meanwhile"):
        write_artifact(tmp_path / "m", **folder_contents())
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert (tmp_path / "m" / "manifest.json").read_text() == "the first run's"
