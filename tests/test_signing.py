"""Signed models: made by the command, checked before anything is parsed, and by another program."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from detector import artifact as module
from detector.artifact import ArtifactError, read_artifact, sign_artifact
from detector.signing import SignatureError
from tests.models import random_artifact
from tests.running import tapewatch


def make_key(folder: Path, name: str, *options: str) -> tuple[Path, Path]:
    """Make a pair of Ed25519 keys as an operator would, with openssl."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    make = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", str(private), *options]
    subprocess.run(make, check=True, capture_output=True)
    password = ["-passin", "pass:opensesame"] if options else []
    show = ["openssl", "pkey", "-in", str(private), "-pubout", "-out", str(public), *password]
    subprocess.run(show, check=True, capture_output=True)
    return private, public


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of a valid, unsigned model."""
    random_artifact(tmp_path / "model")
    return tmp_path / "model"


def test_commands_sign_and_verify(tmp_path: Path, folder: Path) -> None:
    """A model signed by the command verifies, and openssl finds the same signature right."""
    private, public = make_key(tmp_path, "mine")
    done = tapewatch("model", "sign", folder, "--key", private)
    assert done.returncode == 0, done.stderr
    done = tapewatch("model", "verify", folder, "--public-key", public, "--json")
    assert json.loads(done.stdout)["signed"] is True
    openssl = ["openssl", "pkeyutl", "-verify", "-rawin", "-pubin", "-inkey", str(public)]
    openssl += ["-in", str(folder / "manifest.json"), "-sigfile", str(folder / "manifest.sig")]
    assert subprocess.run(openssl, check=False, capture_output=True).returncode == 0


def test_a_key_with_a_password_signs(tmp_path: Path, folder: Path) -> None:
    """A protected key opens with its password, and without it the command says so."""
    private, public = make_key(tmp_path, "mine", "-aes256", "-pass", "pass:opensesame")
    with pytest.raises(SignatureError, match=r"mine\.pem"):
        sign_artifact(folder, private)
    sign_artifact(folder, private, b"opensesame")
    read_artifact(folder, public)


@pytest.mark.parametrize("how", ["unsigned", "another key", "another model", "cut", "too long"])
def test_what_the_key_did_not_sign_is_refused_before_parsing(
    tmp_path: Path, folder: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No signature, one of another key or over another manifest: nothing is parsed."""
    private, public = make_key(tmp_path, "mine")
    signature = folder / "manifest.sig"
    if how != "unsigned":
        sign_artifact(folder, make_key(tmp_path, "theirs")[0] if how == "another key" else private)
    if how == "another model":
        manifest = folder / "manifest.json"
        manifest.write_bytes(manifest.read_bytes() + b"\n")
    if how == "cut":
        signature.write_bytes(signature.read_bytes()[:-1])
    if how == "too long":
        signature.write_bytes(signature.read_bytes() + b"\0")
    for parser in ("_parse_manifest", "_parse_tensors"):
        monkeypatch.setattr(module, parser, lambda *_: pytest.fail("something was parsed"))
    with pytest.raises(ArtifactError, match=r"manifest\.sig"):
        read_artifact(folder, public)


def test_changed_files_are_refused_before_they_are_parsed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that differs from the manifest reaches no parser, whichever file it is."""
    monkeypatch.setattr(
        module, "_parse_tensors", lambda *_: pytest.fail("a changed model was parsed")
    )
    for path in sorted(folder.iterdir()):
        if path.name == "manifest.json":
            continue
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ArtifactError, match="SHA-256"):
            read_artifact(folder)
        path.write_bytes(whole)


def test_hashes_made_right_do_not_help(tmp_path: Path, folder: Path) -> None:
    """Whoever changes a file and its hash in the manifest still lacks the key."""
    private, public = make_key(tmp_path, "mine")
    sign_artifact(folder, private)
    summary = folder / "training_summary.json"
    summary.write_text("{}")
    manifest = json.loads((folder / "manifest.json").read_bytes())
    data = summary.read_bytes()
    manifest["files"]["training_summary.json"] = {
        "sha256": hashlib.sha256(data).hexdigest(),
        "size_bytes": len(data),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    read_artifact(folder)
    with pytest.raises(ArtifactError, match="was not made over this manifest"):
        read_artifact(folder, public)


def test_only_ed25519_keys_are_taken(tmp_path: Path, folder: Path) -> None:
    """A key of another kind, a private key as the public one, or no key are refused in words."""
    private, _ = make_key(tmp_path, "mine")
    sign_artifact(folder, private)
    other = tmp_path / "ec.pem"
    make = ["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"]
    subprocess.run([*make, "-out", str(other)], check=True, capture_output=True)
    with pytest.raises(SignatureError, match="no Ed25519 key"):
        sign_artifact(folder, other)
    for wrong in (private, tmp_path / "nowhere.pub", folder / "manifest.json"):
        with pytest.raises(ArtifactError, match=wrong.name):
            read_artifact(folder, wrong)


@pytest.mark.usefixtures("folder")
def test_the_daemon_refuses_an_unsigned_model(tmp_path: Path) -> None:
    """With a key in the configuration an unsigned model ends the daemon with 2."""
    _, public = make_key(tmp_path, "mine")
    shutil.copy(public, tmp_path / "key.pub")
    config = tmp_path / "tapewatch.toml"
    config.write_text('[model]\npath = "model"\npublic_key = "key.pub"\n[http]\nport = 0\n')
    done = tapewatch("run", "--config", config, wait_s=60)
    assert done.returncode == 2, done.stderr
    assert "tapewatch model sign" in done.stderr
