"""Ed25519 signatures of a model's manifest, which holds the hash of every other file.

The signature is made over the manifest's bytes as they are, and checked before they are parsed. It
is the 64 bytes of RFC 8032, so that `openssl pkeyutl -verify -rawin` checks it as well. This module
knows bytes and keys, no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)

from detector.bounded_files import read_bounded
from detector.errors import RefusedError

SIGNATURE_BYTES: Final = 64
_MAX_KEY_BYTES: Final = 64 * 1024


class SignatureError(RefusedError):
    """A key cannot be used, or a signature is not one of that key over those bytes."""


def sign(data: bytes, key_file: Path, password: bytes | None = None) -> bytes:
    """Return the 64 bytes of the signature over `data`.

    Raises
    ------
    SignatureError
        When the file holds no Ed25519 private key in PEM, or the password does not open it.
    """
    try:
        key = load_pem_private_key(_read(key_file), password)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{key_file}: no private key in PEM that opens: {error}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(
            f"{key_file}: is no Ed25519 key; make one with `openssl genpkey -algorithm ed25519`"
        )
    return key.sign(data)


def check(data: bytes, signature: bytes, public_key_file: Path) -> None:
    """Check the signature over `data`.

    Raises
    ------
    SignatureError
        When the file holds no Ed25519 public key in PEM, or the signature does not match.
    """
    try:
        key = load_pem_public_key(_read(public_key_file))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise SignatureError(f"{public_key_file}: no public key in PEM: {error}") from None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(f"{public_key_file}: is no Ed25519 key; other kinds are not taken")
    try:
        key.verify(signature, data)
    except InvalidSignature:
        raise SignatureError(
            f"the signature was not made over this manifest with the key of {public_key_file}"
        ) from None


def _read(path: Path) -> bytes:
    try:
        return read_bounded(path, _MAX_KEY_BYTES)
    except ValueError as error:
        raise SignatureError(f"{path}: {error}; give a key in PEM") from None
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read: {error.strerror}") from error
