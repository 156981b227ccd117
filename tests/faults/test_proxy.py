"""The proxy of the fault tests forwards, cuts, refuses and swallows as it is told."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator

import pytest

from tests.faults.proxy import Proxy
from tests.kafka_broker import free_ports


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets."""

    def handle(self) -> None:
        """Until the other side ends."""
        while data := self.request.recv(1000):
            self.request.sendall(data)


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    """A proxy before an echo."""
    target, port = free_ports(2)
    server = socketserver.ThreadingTCPServer(("127.0.0.1", target), Echo)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Proxy(port, target) as running:
        yield running
    server.shutdown()
    server.server_close()


def connected(proxy: Proxy) -> socket.socket:
    """A client that waits no longer than two seconds."""
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=2)


def echoed(client: socket.socket, data: bytes) -> bytes:
    """What comes back."""
    client.sendall(data)
    return client.recv(1000)


def assert_ended(client: socket.socket) -> None:
    """The other side ended the connection."""
    with contextlib.suppress(ConnectionError):
        assert client.recv(1000) == b""


def test_it_forwards_both_ways(proxy: Proxy) -> None:
    """What is sent through it arrives and comes back; a delay changes nothing but time."""
    with connected(proxy) as client:
        assert echoed(client, b"one") == b"one"
        proxy.delay(0.05)
        assert echoed(client, b"two") == b"two"


def test_a_throttle_loses_nothing(proxy: Proxy) -> None:
    """What is forwarded slowly arrives whole, and mending ends it."""
    with connected(proxy) as client:
        proxy.throttle(100.0)
        assert echoed(client, b"slowly") == b"slowly"
        proxy.mend()
        assert echoed(client, b"two") == b"two"


def test_a_cut_ends_connections_and_takes_new_ones(proxy: Proxy) -> None:
    """After a cut the old connection is over and a new one works."""
    with connected(proxy) as client:
        assert echoed(client, b"one") == b"one"
        proxy.cut()
        assert_ended(client)
    with connected(proxy) as client:
        assert echoed(client, b"two") == b"two"


def test_it_refuses_until_mended(proxy: Proxy) -> None:
    """While it refuses no byte passes; mended, it forwards again."""
    proxy.refuse()
    with connected(proxy) as client:
        assert_ended(client)
    proxy.mend()
    with connected(proxy) as client:
        assert echoed(client, b"two") == b"two"


def test_it_swallows_answers(proxy: Proxy) -> None:
    """While deaf the request arrives and no answer comes back; mended, that connection is over."""
    with connected(proxy) as client:
        assert echoed(client, b"one") == b"one"
        proxy.deafen()
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            echoed(client, b"two")
        client.settimeout(2)
        proxy.mend()
        assert_ended(client)
    with connected(proxy) as client:
        assert echoed(client, b"three") == b"three"
