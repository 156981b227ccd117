"""One small HTTP port: `/metrics`, `/healthz`, `/readyz`.

`/healthz` answers 200 while the daemon's loop is alive, `/readyz` while it is able to do its work;
both give the reason as text. `/metrics` speaks the classic text format, and OpenMetrics with
exemplars to who asks for it. The server runs in a thread of its own, each connection in another.

TLS, where configured, is on the whole port; the password only on `/metrics`: whoever probes a
process has none, and learns nothing from a probe but a sentence.
"""

from __future__ import annotations

import gzip
import logging
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer, choose_encoder, gzip_accepted
from prometheus_client.openmetrics import exposition as openmetrics

from detector.http_access import Access

Check = Callable[[], tuple[bool, str]]
"""Returns whether all is well, and the reason in words."""

CONNECTION_S: Final = 10.0
"""A client that says nothing for so long is dropped; it holds a thread until then."""

_COMPRESSION: Final = 1
_TEXT: Final = ("Content-Type", "text/plain; charset=utf-8")
_log: Final = logging.getLogger("tapewatch.http")


class _QuietHandler(WSGIRequestHandler):
    """Does not write a line to standard error for every scrape."""

    timeout = CONNECTION_S
    # One call to send an answer, not one for each line of its head: every call hands the
    # interpreter to the ticks' threads, which return it when it suits them.
    wbufsize = 1 << 18

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class _Server(ThreadingWSGIServer):
    """Shakes hands in the connection's own thread, where a slow client holds up nobody else."""

    access: Access

    def get_request(self) -> tuple[Any, Any]:
        """Accept a connection; with TLS its first read makes the handshake."""
        connection, address = super().get_request()
        if self.access.tls is not None:
            connection = self.access.tls.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Clients that break off, or talk no TLS, are no bug and get no traceback."""
        del request
        _log.debug("connection from %s failed", client_address, exc_info=True)


class HttpServer:
    """Serves the three paths from construction until `close`.

    Parameters
    ----------
    host, port
        Where to listen; port 0 takes a free one.
    registry
        What `/metrics` tells.
    healthy, ready
        Answers of the two probes.
    access
        TLS and credentials.

    Raises
    ------
    OSError
        When the address cannot be listened on.
    """

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        healthy: Check,
        ready: Check,
        access: Access | None = None,
    ) -> None:
        self._access = access or Access()
        app = _application(registry, {"/healthz": healthy, "/readyz": ready}, self._access)
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        # Of a name with both kinds of address the older one, which every probe tries.
        family, _, _, _, place = min(found, key=lambda each: each[0] != socket.AF_INET)

        class Server(_Server):
            address_family = family
            access = self._access

        self._server = make_server(
            str(place[0]), port, app, server_class=Server, handler_class=_QuietHandler
        )
        self.host, self.port = host, int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Return the address of `/metrics`."""
        scheme = "http" if self._access.tls is None else "https"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/metrics"

    @property
    def lacks(self) -> str:
        """What the port is missing for where it listens, in words; "" if nothing is."""
        return self._access.lacks(str(self._server.socket.getsockname()[0]))

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _application(
    registry: CollectorRegistry, checks: dict[str, Check], access: Access
) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "")
        if path == "/metrics":
            allowed = access.credentials
            if allowed is not None and not allowed.allow(environ.get("HTTP_AUTHORIZATION", "")):
                ask = ("WWW-Authenticate", 'Basic realm="tapewatch", charset="UTF-8"')
                start("401 Unauthorized", [_TEXT, ask])
                return [b"/metrics needs a user name and a password\n"]
            body, headers = _scrape(
                registry, environ.get("HTTP_ACCEPT", ""), environ.get("HTTP_ACCEPT_ENCODING", "")
            )
            start("200 OK", headers)
            return [body]
        if path not in checks:
            start("404 Not Found", [_TEXT])
            return [b"there are /metrics, /healthz and /readyz\n"]
        well, reason = checks[path]()
        start("200 OK" if well else "503 Service Unavailable", [_TEXT])
        return [f"{reason}\n".encode()]

    return app


def _scrape(
    registry: CollectorRegistry, accept: str, accept_encoding: str
) -> tuple[bytes, list[tuple[str, str]]]:
    """Return the text in the format asked for, compressed if asked for, and its headers.

    The client's own application does the same, but checks names of metrics and labels rune by rune
    for scrapers that want them escaped, and compresses as hard as it can. Our names need no
    escaping, and a scrape competes with the ticks' threads for the interpreter: without the two it
    took 0.6 times the CPU time (610 series, 5 ms).
    """
    encode, kind = choose_encoder(accept)
    if kind.startswith("application/openmetrics-text"):
        body = openmetrics.generate_latest(  # type: ignore[no-untyped-call]
            registry, escaping=openmetrics.ALLOWUTF8
        )
    else:
        body = encode(registry)
    headers = [("Content-Type", kind)]
    if gzip_accepted(accept_encoding):
        body = gzip.compress(body, _COMPRESSION)
        headers.append(("Content-Encoding", "gzip"))
    return body, headers
