"""The HTTP port: its paths, TLS, the password, and what it refuses; real sockets on both sides."""

from __future__ import annotations

import base64
import contextlib
import gzip
import socket
import socketserver
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from detector.config import ConfigError, HttpConfig, load_config
from detector.endpoints import HttpServer
from detector.http_access import Access, Credentials, HttpAccessError, read_password, tls_context
from detector.metrics import Metrics
from tests.conftest import leave_out

PASSWORD = "correct horse, battery"  # noqa: S105


def certificate(folder: Path, name: str = "own") -> tuple[Path, Path]:
    """Make a certificate for 127.0.0.1 that signs itself, and its key."""
    files = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-nodes", "-days", "1", "-subj", f"/CN={name}", "-out", files[0], "-keyout"),
            *(files[1], "-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate and its key."""
    return certificate(tmp_path_factory.mktemp("tls"))


@contextlib.contextmanager
def serving(access: Access | None = None, ready: bool = True) -> Iterator[HttpServer]:
    """The real server on a free port of this machine."""
    registry = CollectorRegistry()
    Metrics(registry)
    server = HttpServer(
        "127.0.0.1", 0, registry, lambda: (True, "alive"), lambda: (ready, "as told"), access
    )
    try:
        yield server
    finally:
        server.close()


def ask(
    server: HttpServer,
    path: str,
    headers: Mapping[str, str] | None = None,
    trusted: Path | None = None,
) -> tuple[int, str, Mapping[str, str]]:
    """Status, text and headers of an answer."""
    context = None if trusted is None else ssl.create_default_context(cafile=trusted)
    request = urllib.request.Request(  # noqa: S310
        server.url.removesuffix("/metrics") + path, headers=dict(headers or {})
    )
    try:
        with urllib.request.urlopen(request, timeout=10, context=context) as answer:  # noqa: S310
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(), error.headers


def basic(username: str, password: str) -> dict[str, str]:
    """The header of RFC 7617."""
    encoded = base64.b64encode(f"{username}:{password}".encode()).decode()
    return {"Authorization": f"Basic {encoded}"}


@pytest.mark.parametrize("ready", [True, False])
def test_port_answers_its_three_paths(ready: bool) -> None:
    """Metrics, health and readiness answer on one port with the right status."""
    with serving(ready=ready) as server:
        assert ask(server, "/metrics")[0] == 200
        assert ask(server, "/healthz")[:2] == (200, "alive\n")
        assert ask(server, "/readyz")[:2] == (200 if ready else 503, "as told\n")
        assert ask(server, "/other")[0] == 404


def test_taken_port_is_an_error() -> None:
    """A second server on the same port fails at once instead of hiding the first."""
    with serving() as first, pytest.raises(OSError, match="in use"):
        HttpServer(
            "127.0.0.1", first.port, CollectorRegistry(), lambda: (True, ""), lambda: (True, "")
        )


def test_ipv6_address_can_be_listened_on() -> None:
    """A pod may have no other address."""
    if not socket.has_ipv6:
        leave_out("this machine has no IPv6")
    try:
        server = HttpServer(
            "::1", 0, CollectorRegistry(), lambda: (True, "alive"), lambda: (True, "")
        )
    except OSError as error:
        leave_out(f"this machine has no IPv6 loopback: {error}")
    try:
        assert ask(server, "/healthz")[0] == 200
        assert server.lacks == ""
    finally:
        server.close()


def test_password_is_asked_for_by_metrics_only() -> None:
    """Without it /metrics answers 401 and says what it wants; the probes answer as ever."""
    with serving(Access(credentials=Credentials("prometheus", PASSWORD))) as server:
        status, text, headers = ask(server, "/metrics")
        assert status == 401
        assert headers["WWW-Authenticate"].startswith("Basic ")
        assert "tapewatch_" not in text
        assert ask(server, "/metrics", basic("prometheus", PASSWORD))[0] == 200
        assert ask(server, "/metrics", basic("prometheus", PASSWORD + "x"))[0] == 401
        assert ask(server, "/healthz")[0] == ask(server, "/readyz")[0] == 200


@given(st.text(), st.text(), st.text(), st.text())
def test_only_the_right_pair_is_allowed(name: str, secret: str, other: str, wrong: str) -> None:
    """Any other name or password is refused, whatever characters they are of."""
    name, other = name.replace(":", ""), other.replace(":", "")
    try:
        headers = basic(name, secret), basic(other, wrong)
    except UnicodeEncodeError:  # lone surrogates are no text
        return
    credentials = Credentials(name, secret)
    right, guess = (each["Authorization"] for each in headers)
    assert credentials.allow(right)
    assert credentials.allow(guess) == ((name, secret) == (other, wrong))


@pytest.mark.parametrize(
    "header", ["", "Basic", "Basic !!!", "Bearer abc", "Basic Zm9v", "basic \xff", "Basic é"]
)
def test_malformed_header_is_refused(header: str) -> None:
    """What is no basic authentication at all is a wrong password, not a bug."""
    assert not Credentials("a", "b").allow(header)


def test_metrics_over_tls(files: tuple[Path, Path]) -> None:
    """A client that trusts the certificate reads all paths over TLS, 1.2 at least."""
    access = Access(tls_context(*files), Credentials("prometheus", PASSWORD))
    with serving(access) as server:
        assert server.url.startswith("https://")
        answer = ask(server, "/metrics", basic("prometheus", PASSWORD), trusted=files[0])
        assert answer[0] == 200
        assert "tapewatch_ready" in answer[1]
        assert ask(server, "/metrics", trusted=files[0])[0] == 401
        assert ask(server, "/healthz", trusted=files[0])[0] == 200
        with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
            ask(server, "/healthz")


def shake(server: HttpServer, version: ssl.TLSVersion) -> str:
    """Make a handshake of one version; return what was agreed on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection((server.host, server.port), 10) as plain,
        context.wrap_socket(plain) as secure,
    ):
        return str(secure.version())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_older_tls_is_refused(files: tuple[Path, Path]) -> None:
    """TLS 1.1 gets no handshake from a server that speaks 1.2 and 1.3."""
    with serving(Access(tls_context(*files))) as server:
        assert shake(server, ssl.TLSVersion.TLSv1_2) == "TLSv1.2"
        assert shake(server, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
        with pytest.raises((ssl.SSLError, ConnectionError)):
            shake(server, ssl.TLSVersion.TLSv1_1)


def test_silent_and_plain_clients_hold_up_nobody(
    files: tuple[Path, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Clients that make no handshake, or none at all, delay no scrape and print no traceback."""
    with serving(Access(tls_context(*files))) as server, contextlib.ExitStack() as stack:
        for _ in range(5):
            stack.enter_context(socket.create_connection((server.host, server.port), 10))
        plain = stack.enter_context(socket.create_connection((server.host, server.port), 10))
        plain.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            assert b"tapewatch" not in plain.recv(4096)
        assert ask(server, "/metrics", trusted=files[0])[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_certificates_that_cannot_be_used(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """A missing file, another's key, no PEM, an encrypted key: each is refused by its name."""
    other = certificate(tmp_path, "other")
    nonsense = tmp_path / "nonsense"
    nonsense.write_text("nothing")
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(
        [
            *("openssl", "pkcs8", "-topk8", "-in", files[1], "-out", encrypted),
            *("-passout", "pass:secret"),
        ],
        check=True,
        capture_output=True,
    )
    for pair, told in (
        ((tmp_path / "none", None), "http.tls_certificate = '.*none': cannot be read: No such"),
        ((files[0], tmp_path / "none"), "http.tls_key = '.*none': cannot be read: No such file"),
        ((files[0], other[1]), "http.tls_key = '.*other.key': .*needed: PEM files"),
        ((nonsense, None), "http.tls_certificate = '.*nonsense': .*needed: PEM files"),
        ((files[0], None), "http.tls_certificate = .*needed: PEM files"),
        ((files[0], encrypted), "the key not encrypted"),
    ):
        with pytest.raises(HttpAccessError, match=told):
            tls_context(*pair)


def test_key_may_be_in_the_certificates_file(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """One file with both is enough."""
    both = tmp_path / "both.pem"
    both.write_bytes(files[0].read_bytes() + files[1].read_bytes())
    with serving(Access(tls_context(both))) as server:
        assert ask(server, "/readyz", trusted=files[0])[0] == 200


def test_password_file(tmp_path: Path) -> None:
    """Its only line is the password; the end of the line is not; anything else is refused."""
    path = tmp_path / "password"
    path.write_bytes(PASSWORD.encode() + b"\n")
    assert read_password(path) == PASSWORD
    for data in (b"", b"\n", b"one\ntwo\n", b"\xff\xfe", b"x" * 2000):
        path.write_bytes(data)
        with pytest.raises(HttpAccessError, match="must hold one line") as refused:
            read_password(path)
        assert "two" not in str(refused.value)
    with pytest.raises(HttpAccessError, match="cannot be read: No such file"):
        read_password(tmp_path / "none")


def test_what_an_address_lacks(files: tuple[Path, Path]) -> None:
    """Loopback addresses lack nothing; others both TLS and a password, by name."""
    assert Access().lacks("127.0.0.1") == Access().lacks("::1") == ""
    assert Access().lacks("0.0.0.0") == "TLS (http.tls_certificate) and a password (http.username)"  # noqa: S104
    both = Access(tls_context(*files), Credentials("a", "b"))
    assert both.lacks("10.0.0.1") == both.lacks("::") == ""
    assert Access(both.tls).lacks("fe80::1%eth0") == "a password (http.username)"
    assert Access(None, both.credentials).lacks("10.0.0.1") == "TLS (http.tls_certificate)"


def test_password_by_environment_is_masked() -> None:
    """It reaches the server, and neither what is shown of the configuration nor a refusal."""
    environment = {"TAPEWATCH_HTTP__USERNAME": "prometheus", "TAPEWATCH_HTTP__PASSWORD": PASSWORD}
    config = load_config(None, environment)
    credentials = config.http.access().credentials
    assert credentials is not None
    assert credentials.allow(basic("prometheus", PASSWORD)["Authorization"])
    for shown in (repr(config), str(config.model_dump(mode="json")), config.model_dump_json()):
        assert PASSWORD not in shown
    assert config.model_dump(mode="json")["http"]["password"] == "**********"  # noqa: S105
    with pytest.raises(ConfigError) as refused:
        load_config(None, {**environment, "TAPEWATCH_HTTP__PASSWORD_FILE": "x"})
    assert "keep one" in str(refused.value)
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    ("given_", "told"),
    [
        ({"username": "a"}, "username needs password"),
        ({"password": "b"}, "they need username"),
        ({"password_file": "b"}, "they need username"),
        ({"username": "a:b", "password": "c"}, "username"),
        ({"tls_key": "k"}, "tls_key is set without tls_certificate"),
    ],
)
def test_halves_are_refused(given_: dict[str, str], told: str) -> None:
    """A name without a password, a key without a certificate, and the other ways round."""
    environment = {f"TAPEWATCH_HTTP__{key.upper()}": value for key, value in given_.items()}
    with pytest.raises(ConfigError, match=told):
        load_config(None, environment)


def test_paths_are_relative_to_the_file(tmp_path: Path, files: tuple[Path, Path]) -> None:
    """Certificate, key and password lie beside the configuration, wherever it is read from."""
    for source, name in zip(files, ("tls.crt", "tls.key"), strict=True):
        (tmp_path / name).write_bytes(source.read_bytes())
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "tapewatch.toml").write_text(
        '[http]\ntls_certificate = "tls.crt"\ntls_key = "tls.key"\n'
        'username = "prometheus"\npassword_file = "password"\n'
    )
    access = load_config(tmp_path / "tapewatch.toml", {}).http.access()
    with serving(access) as server:
        headers = basic("prometheus", PASSWORD)
        assert ask(server, "/metrics", headers, trusted=files[0])[0] == 200


def test_default_is_this_machine_only() -> None:
    """Nobody else can reach the port unless told so."""
    assert HttpConfig().host == "127.0.0.1"


@pytest.mark.parametrize("escaping", ["", ";escaping=allow-utf-8", ";escaping=underscores"])
def test_openmetrics_for_who_asks(escaping: str) -> None:
    """OpenMetrics and compression are negotiated; the text is what the client library makes."""
    with serving() as server:
        accept = f"application/openmetrics-text;version=1.0.0{escaping};q=0.5,*/*;q=0.1"
        status, text, headers = ask(server, "/metrics", {"Accept": accept})
        assert status == 200
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
        registry = CollectorRegistry()
        Metrics(registry)
        assert text == choose_encoder(accept)[0](registry).decode()
        assert ask(server, "/metrics")[2]["Content-Type"].startswith("text/plain")
        request = urllib.request.Request(  # noqa: S310
            server.url, headers={"Accept": accept, "Accept-Encoding": "gzip"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            assert answer.headers["Content-Encoding"] == "gzip"
            assert gzip.decompress(answer.read()).decode() == text


def test_an_answer_is_sent_by_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Head and body go out together: each call hands the interpreter to the ticks' threads."""
    sent: list[int] = []

    def counted(kind: type, name: str) -> None:
        write = getattr(kind, name)

        def count(self: object, data: bytes) -> int:
            sent.append(len(data))
            return int(write(self, data))

        monkeypatch.setattr(kind, name, count)

    with serving() as server:
        counted(socket.SocketIO, "write")  # below a buffered stream
        counted(socketserver._SocketWriter, "write")  # the stream without a buffer
        with socket.create_connection((server.host, server.port), timeout=10) as client:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            received = b"".join(iter(lambda: client.recv(1 << 16), b""))
    assert sent == [len(received)]
