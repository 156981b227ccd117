"""One small HTTP port: `/metrics`, `/healthz`, `/readyz`.

`/healthz` answers 200 while the daemon's loop is alive, `/readyz` while it is able to do its work;
both give the reason as text. The server runs in a thread of its own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.exposition import ThreadingWSGIServer

Check = Callable[[], tuple[bool, str]]
"""Returns whether all is well, and the reason in words."""


class _QuietHandler(WSGIRequestHandler):
    """Does not write a line to standard error for every scrape."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class HttpServer:
    """Serves the three paths from construction until `close`.

    Raises
    ------
    OSError
        When the address cannot be listened on.
    """

    def __init__(
        self, host: str, port: int, registry: CollectorRegistry, healthy: Check, ready: Check
    ) -> None:
        metrics = make_wsgi_app(registry)
        checks = {"/healthz": healthy, "/readyz": ready}

        def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
            path = environ.get("PATH_INFO", "")
            if path == "/metrics":
                body: Iterable[bytes] = metrics(environ, start)
                return body
            if path not in checks:
                start("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")])
                return [b"there are /metrics, /healthz and /readyz\n"]
            well, reason = checks[path]()
            status = "200 OK" if well else "503 Service Unavailable"
            start(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{reason}\n".encode()]

        self._server = make_server(
            host, port, app, server_class=ThreadingWSGIServer, handler_class=_QuietHandler
        )
        self.host, self.port = host, int(self._server.server_port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Return the address of `/metrics`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
