"""A real Kafka behind SASL_SSL with access control: who gets in, who does not, and what is said."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from confluent_kafka.cimpl import NewTopic

from detector.wire import encode_dbn
from tests.certificates import Authority
from tests.integration.kafka_reading import produce_all
from tests.kafka_broker import KafkaBroker, free_ports
from tests.running import RunningDaemon, Tape, tapewatch, wait_until

PASSWORD = "right-horse-battery"  # noqa: S105  (of the test's own broker)
WRONG = "wrong-horse-battery"
TICKS, ANOMALIES, DEAD_LETTERS, POISON = "ticks", "anomalies", "anomalies.dlq", "poison"
STATE = "tapewatch.state"
TOPICS = (TICKS, ANOMALIES, DEAD_LETTERS, POISON, STATE)
GROUP = "tw"
ALL = frozenset({"ticks", "anomalies", "dlq", "group", "read-state", "write-state", "transactions"})
LACKING = {f"no-{right}": ALL - {right} for right in sorted(ALL)}
LOSING = {f"loses-{right}": ALL for right in ("ticks", "group", "anomalies", "write-state")}
USERS = {"tapewatch": ALL, "tapewatch-oauth": ALL, **LACKING, **LOSING}
EXITS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Secured:
    """Where the broker listens for strangers, and which authority signed its certificate."""

    broker: KafkaBroker
    bootstrap: str
    authority: Authority

    def config(self, model: Path, security: str, ticks: str = TICKS) -> str:
        """TOML of a daemon with these lines about security."""
        return f"""
[kafka]
bootstrap_servers = "{self.bootstrap}"
group_id = "{GROUP}"
[kafka.security]
protocol = "SASL_SSL"
ca_file = "{self.authority.ca_file}"
{security}
[topics]
ticks = "{ticks}"
[model]
path = "{model}"
[commit]
interval_ms = 100
[http]
port = 0
"""


def scram(user: str, password: str = PASSWORD) -> str:
    """Lines of the section for a user with a password."""
    return f'mechanism = "SCRAM-SHA-512"\nusername = "{user}"\npassword = "{password}"'


@pytest.fixture(scope="module")
def secured(
    start_kafka: Callable[..., KafkaBroker], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Secured]:
    """Kafka that knows its users by SCRAM, PLAIN or OAUTHBEARER and denies what no rule allows."""
    folder = tmp_path_factory.mktemp("secured")
    authority = Authority(folder, "authority")
    (port,) = free_ports(1)
    module = "org.apache.kafka.common.security"
    jaas = "listener.name.strangers."
    properties = {
        "listener.security.protocol.map": (
            "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,STRANGERS:SASL_SSL"
        ),
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(authority.issue("broker", "127.0.0.1")),
        "sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN,OAUTHBEARER",
        f"{jaas}scram-sha-512.sasl.jaas.config": f"{module}.scram.ScramLoginModule required;",
        f"{jaas}plain.sasl.jaas.config": (
            f'{module}.plain.PlainLoginModule required user_tapewatch="{PASSWORD}";'
        ),
        f"{jaas}oauthbearer.sasl.jaas.config": (
            f"{module}.oauthbearer.OAuthBearerLoginModule required;"
        ),
        f"{jaas}oauthbearer.sasl.server.callback.handler.class": (
            f"{module}.oauthbearer.internals.unsecured.OAuthBearerUnsecuredValidatorCallbackHandler"
        ),
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",  # the broker itself and this test, on the other listener
    }
    broker = start_kafka(
        properties,
        listener=f"STRANGERS://127.0.0.1:{port}",
        scram=dict.fromkeys(USERS, PASSWORD),
    )
    admin = AdminClient({"bootstrap.servers": broker.bootstrap})
    compact = {"cleanup.policy": "compact"}
    topics = [NewTopic(name, 1, 1, config=compact if name == STATE else {}) for name in TOPICS]
    for made in admin.create_topics(topics).values():
        made.result(30)
    rules = [rule for user, rights in USERS.items() for rule in _rules(user, rights)]
    for made in admin.create_acls(rules).values():
        made.result(30)
    produce_all(broker.bootstrap, POISON, [(b"", b"no tick")])
    yield Secured(broker, f"127.0.0.1:{port}", authority)
    broker.close()


def _rules(user: str, rights: frozenset[str]) -> Iterator[AclBinding]:
    topic, group = ResourceType.TOPIC, ResourceType.GROUP
    read, write, see = AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE
    granted = [(topic, name, see) for name in TOPICS]
    granted += [(topic, TICKS, write), (topic, ANOMALIES, read)]
    if "ticks" in rights:
        granted += [(topic, TICKS, read), (topic, POISON, read)]
    if "anomalies" in rights:
        granted.append((topic, ANOMALIES, write))
    if "dlq" in rights:
        granted.append((topic, DEAD_LETTERS, write))
    if "read-state" in rights:
        granted.append((topic, STATE, read))
    if "write-state" in rights:
        granted.append((topic, STATE, write))
    if "group" in rights:
        granted.append((group, GROUP, read))
    if "transactions" in rights:
        granted.append((ResourceType.TRANSACTIONAL_ID, GROUP, write))
    for kind, name, operation in granted:
        pattern = ResourcePatternType.LITERAL if kind is topic else ResourcePatternType.PREFIXED
        allow = AclPermissionType.ALLOW
        yield AclBinding(kind, name, pattern, f"User:{user}", "*", operation, allow)


def works_end_to_end(
    secured: Secured, security: str, model: Path, tape: Tape, start: Callable[..., RunningDaemon]
) -> None:
    """Replay, run and events, all with one configuration file."""
    config = secured.config(model, security)
    daemon = start(config)
    wait_until(lambda: daemon.get("/readyz")[0] == 200, daemon)
    path = daemon._log_path.parent / "tapewatch.toml"
    done = tapewatch(
        *("replay", "--ticks", tape.live, "--config", path, "--speed", "max"),
        *("--batch-ticks", "8", "--json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ticks"] == len(tape.live_ticks)
    wait_until(lambda: daemon.metric("tapewatch_events_total") > 0, daemon)
    shown = tapewatch(
        "events", "--config", path, "--from-beginning", "--limit", "1", "--json", wait_s=60
    )
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["phase"] == "open"
    made = tapewatch("topics", "create", "--config", path, "--json", wait_s=60)
    for text in (daemon.log, done.stderr, shown.stderr, made.stdout, made.stderr):
        assert PASSWORD not in text
    assert daemon.terminate() == 0


def test_right_credentials_work_end_to_end(
    secured: Secured, model: Path, tape: Tape, start_daemon: Callable[..., RunningDaemon]
) -> None:
    """Ticks go in and events come out over TLS, for a SCRAM user with just the rights needed."""
    works_end_to_end(secured, scram("tapewatch"), model, tape, start_daemon)


def test_plain_password_works(
    secured: Secured, model: Path, tmp_path: Path, start_daemon: Callable[..., RunningDaemon]
) -> None:
    """PLAIN over TLS joins the group, its password from a file."""
    (tmp_path / "password").write_text(PASSWORD + "\n")
    security = (
        f'mechanism = "PLAIN"\nusername = "tapewatch"\npassword_file = "{tmp_path / "password"}"'
    )
    daemon = start_daemon(secured.config(model, security))
    daemon.wait_ready()
    assert "open to every user" in daemon.log
    assert daemon.terminate() == 0


class _Tokens(BaseHTTPRequestHandler):
    """A token endpoint that gives an unsigned token for the right client credentials."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        given = self.headers.get("Authorization", "")
        right = base64.b64encode(f"tapewatch-oauth:{PASSWORD}".encode()).decode()
        allowed = given == f"Basic {right}" and parse_qs(body)["grant_type"] == [
            "client_credentials"
        ]
        now = int(time.time())
        claims = {"sub": "tapewatch-oauth", "iat": now, "exp": now + 600, "scope": "kafka"}
        parts = [
            base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
            for part in ({"alg": "none"}, claims)
        ]
        answer = {"access_token": f"{parts[0]}.{parts[1]}.", "token_type": "Bearer"}
        data = json.dumps(answer if allowed else {"error": "invalid_client"}).encode()
        self.send_response(200 if allowed else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def token_endpoint() -> Iterator[str]:
    """Address of a token endpoint on this host."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Tokens)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/token"
    server.shutdown()
    server.server_close()


def oauth(endpoint: str, secret: str) -> str:
    """Lines of the section for client credentials."""
    return (
        f'mechanism = "OAUTHBEARER"\ntoken_endpoint = "{endpoint}"\n'
        f'client_id = "tapewatch-oauth"\nclient_secret = "{secret}"\nscope = "kafka"'
    )


def test_client_credentials_work(
    secured: Secured, model: Path, token_endpoint: str, start_daemon: Callable[..., RunningDaemon]
) -> None:
    """A token had for client credentials lets the daemon join the group."""
    daemon = start_daemon(secured.config(model, oauth(token_endpoint, PASSWORD)))
    daemon.wait_ready()
    assert daemon.terminate() == 0


def run_to_its_end(folder: Path, config: str) -> subprocess.CompletedProcess[str]:
    """`tapewatch run`, which must end by itself in bounded time."""
    path = folder / "tapewatch.toml"
    path.write_text(config)
    done = tapewatch("run", "--config", path, wait_s=EXITS_WITHIN_S)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr, done.stderr[-6000:]
    for secret in (PASSWORD, WRONG):
        assert secret not in done.stdout + done.stderr
    return done


def last_line(done: subprocess.CompletedProcess[str]) -> str:
    """What the command says at its end."""
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("command", ["run", "replay", "events", "topics"])
@pytest.mark.parametrize("wrong", ["password", "authority", "client secret"])
def test_who_cannot_get_in_is_told(
    secured: Secured,
    model: Path,
    tape: Tape,
    tmp_path: Path,
    token_endpoint: str,
    command: str,
    wrong: str,
) -> None:
    """A wrong secret or a broker of an unknown authority ends every command with 1 and words."""
    config = secured.config(model, scram("tapewatch", WRONG))
    words = "Authentication failed"
    if wrong == "authority":
        config = secured.config(model, scram("tapewatch"))
        unknown = Authority(tmp_path, "unknown").ca_file
        config = config.replace(str(secured.authority.ca_file), str(unknown))
        words = "certificate verify failed"
    elif wrong == "client secret":
        config = secured.config(model, oauth(token_endpoint, WRONG))
        words = "token"
    path = tmp_path / "tapewatch.toml"
    path.write_text(config)
    arguments = {
        "run": ("run",),
        "replay": ("replay", "--ticks", tape.live, "--speed", "max"),
        "events": ("events", "--limit", "1"),
        "topics": ("topics", "create"),
    }[command]
    done = tapewatch(*arguments, "--config", path, wait_s=EXITS_WITHIN_S)
    assert done.returncode == 1, done.stdout + done.stderr
    assert words.lower() in last_line(done).lower(), done.stderr
    assert "Traceback" not in done.stderr, done.stderr[-6000:]
    assert PASSWORD not in done.stdout + done.stderr
    assert WRONG not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "topic", "words"),
    [
        ("ticks", TICKS, "TOPIC_AUTHORIZATION_FAILED"),
        ("anomalies", TICKS, "TOPIC_AUTHORIZATION_FAILED"),
        ("dlq", POISON, "TOPIC_AUTHORIZATION_FAILED"),
        ("group", TICKS, "GROUP_AUTHORIZATION_FAILED"),
        ("read-state", TICKS, "TOPIC_AUTHORIZATION_FAILED"),
        ("write-state", TICKS, "TOPIC_AUTHORIZATION_FAILED"),
        ("transactions", TICKS, "TRANSACTIONAL_ID_AUTHORIZATION_FAILED"),
    ],
)
def test_a_missing_right_is_named(
    secured: Secured, model: Path, tape: Tape, tmp_path: Path, right: str, topic: str, words: str
) -> None:
    """A user who lacks one right is told which, and the daemon ends with 1."""
    replayed = tmp_path / "replay.toml"
    replayed.write_text(secured.config(model, scram("tapewatch")))
    done = tapewatch("replay", "--ticks", tape.live, "--config", replayed, "--speed", "max")
    assert done.returncode == 0, done.stderr
    # A group of its own: where another one committed, nothing would be left to read.
    config = secured.config(model, scram(f"no-{right}"), topic)
    config = config.replace(f'group_id = "{GROUP}"', f'group_id = "{GROUP}-{right}"')
    if right == "transactions":
        config = f'delivery = "exactly_once"\n{config}'
    ended = run_to_its_end(tmp_path, config)
    assert words in last_line(ended), ended.stderr
    named = {"ticks": TICKS, "anomalies": ANOMALIES, "dlq": DEAD_LETTERS, "group": f"{GROUP}-group"}
    named |= {"read-state": STATE, "write-state": STATE, "transactions": f"{GROUP}-{right}"}
    assert named[right] in last_line(ended), ended.stderr


_rounds = itertools.count(1)


def later_records(tape: Tape) -> list[tuple[bytes, bytes]]:
    """Return ticks that lead to events, later than all that these tests have published before."""
    ticks = tape.live_ticks.ticks[:8000].copy()
    span = tape.live_ticks.ticks["ts_event"].max() - ticks["ts_event"].min()
    ticks["ts_event"] += next(_rounds) * 2 * span
    return [(b"k", encode_dbn(ticks[i : i + 8])) for i in range(0, len(ticks), 8)]


@pytest.mark.parametrize("user", sorted(LOSING))
def test_a_right_withdrawn_while_running_is_named(
    secured: Secured, model: Path, tape: Tape, start_daemon: Callable[..., RunningDaemon], user: str
) -> None:
    """A daemon that loses a right at work ends with 1 and says which, as one that never had it."""
    right = user.removeprefix("loses-")
    config = secured.config(model, scram(user))
    # Of its own, as is what it reads: others read the same topics.
    config = config.replace(f'group_id = "{GROUP}"', f'group_id = "{GROUP}-{user}"')
    daemon = start_daemon(config).wait_ready()
    produce_all(secured.broker.bootstrap, TICKS, later_records(tape))
    wait_until(lambda: daemon.metric("tapewatch_events_total", phase="open") > 0, daemon)
    kept = [(r.name, r.operation) for r in _rules(user, ALL - {right})]
    gone = [r for r in _rules(user, ALL) if (r.name, r.operation) not in kept]
    assert len(gone) >= 1
    admin = AdminClient({"bootstrap.servers": secured.broker.bootstrap})
    for rule in gone:
        place = (rule.restype, rule.name, rule.resource_pattern_type, rule.principal, rule.host)
        rules = AclBindingFilter(*place, rule.operation, rule.permission_type)
        (done,) = admin.delete_acls([rules]).values()
        assert len(done.result(30)) == 1
    produce_all(secured.broker.bootstrap, TICKS, later_records(tape))
    assert daemon.process.wait(EXITS_WITHIN_S) == 1, daemon.log
    said = daemon.log.strip().splitlines()[-1]
    named = {"ticks": TICKS, "anomalies": ANOMALIES, "group": f"{GROUP}-{user}"}
    assert "AUTHORIZATION_FAILED" in said
    assert (named | {"write-state": STATE})[right] in said
    assert "Traceback" not in daemon.log
