"""Who may read the HTTP port, and how: optional TLS, and a user name with a password.

Knows no metric and no path; `endpoints` decides what is protected.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from detector.bounded_files import read_bounded
from detector.errors import RefusedError

MOST_PASSWORD_BYTES: Final = 1024
_MAX_FILE_BYTES: Final = 1 << 20


class HttpAccessError(RefusedError, ValueError):
    """A certificate, key or password that cannot be used."""


class Credentials:
    """A user name and password that requests are checked against; neither is kept in clear.

    Parameters
    ----------
    username, password
        What a client must send; not empty, no colon in the name.
    """

    def __init__(self, username: str, password: str) -> None:
        self._digest = _digest(f"{username}:{password}".encode())

    def allow(self, authorization: str) -> bool:
        """Whether an `Authorization` header is right; takes as long for every wrong one.

        Digests are compared, so that not even the length of the right answer can be timed.

        References
        ----------
        RFC 7617, The 'Basic' HTTP Authentication Scheme, with charset UTF-8.
        """
        scheme, _, encoded = authorization.partition(" ")
        if scheme.lower() != "basic":
            return False
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(_digest(given), self._digest)


@dataclass(frozen=True, slots=True, eq=False)
class Access:
    """How the port is protected; by default not at all.

    Parameters
    ----------
    tls
        Context of the server's side; None: in clear.
    credentials
        What `/metrics` asks for; None: nothing.
    """

    tls: ssl.SSLContext | None = None
    credentials: Credentials | None = None

    def lacks(self, address: str) -> str:
        """Return what an address that others can reach is missing, in words; "" if nothing is.

        Parameters
        ----------
        address
            The numerical address that is listened on.
        """
        if ip_address(address.partition("%")[0]).is_loopback:
            return ""
        missing = [
            *(["TLS (http.tls_certificate)"] if self.tls is None else []),
            *(["a password (http.username)"] if self.credentials is None else []),
        ]
        return " and ".join(missing)


def tls_context(certificate: Path, key: Path | None = None) -> ssl.SSLContext:
    """Return a server's context: TLS 1.2 or newer, with the certificate chain of the file.

    Parameters
    ----------
    certificate
        PEM file: the server's certificate, then those that signed it.
    key
        PEM file of the private key, not encrypted; None: it is in the certificate's file.

    Raises
    ------
    HttpAccessError
        A file cannot be read, or the two are not a certificate and its key.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    for name, path in (("tls_certificate", certificate), ("tls_key", key)):
        if path is not None:
            _read(name, path)
    try:
        # Without a password OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (ssl.SSLError, ValueError) as error:
        of = "" if key is None else f", http.tls_key = '{key}'"
        raise HttpAccessError(
            f"http.tls_certificate = '{certificate}'{of}: {error}; needed: PEM files of a "
            "certificate and of its own key, the key not encrypted"
        ) from error
    return context


def read_password(path: Path) -> str:
    """Return the first line of a file: the password, without the end of the line.

    Raises
    ------
    HttpAccessError
        The file cannot be read, holds more than one line, or nothing.
    """
    data = _read("password_file", path)
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:  # its own words would print what the file holds
        lines = []
    if len(lines) != 1 or not lines[0] or len(data) > MOST_PASSWORD_BYTES:
        raise HttpAccessError(
            f"http.password_file = '{path}': must hold one line of UTF-8 text, 1 to "
            f"{MOST_PASSWORD_BYTES} bytes, and nothing else"
        )
    return lines[0]


def _read(key: str, path: Path) -> bytes:
    try:
        return read_bounded(path, _MAX_FILE_BYTES)
    except ValueError as error:
        raise HttpAccessError(f"http.{key} = '{path}': {error}") from None
    except OSError as error:
        raise HttpAccessError(f"http.{key} = '{path}': cannot be read: {error.strerror}") from error


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
