"""compose.yaml and the manifests: valid by their schemas, restricted, and their containers run."""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import jsonschema_rs
import psycopg
import pytest
import redis
import yaml

from tests.support.books import channel, status_payload, traffic_payload
from tests.support.container import IMAGE_USER, Container
from tests.support.coturn_server import REALM, TurnServer, client_command
from tests.support.deployments import (
    COMPOSE,
    DEPLOY,
    KUBERNETES,
    Workload,
    compose,
    compose_workloads,
    kubernetes_workloads,
    manifests,
    pods,
)
from tests.support.postgres_programs import programs_directory
from tests.support.servers import PostgresServer, ValkeyServer, free_port, wait_until

SCHEMAS: Final = Path(__file__).resolve().parents[1] / "data" / "schemas"
PORTS: Final = {"ACCOUNTING_METRICS_LISTEN", "ACCOUNTING_WEB_LISTEN"}


def test_compose_accepts_the_file() -> None:
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    errors = jsonschema_rs.validator_for(schema).iter_errors(compose())
    assert [error.message for error in errors] == []


def test_kubernetes_accepts_every_manifest() -> None:
    schema = json.loads((SCHEMAS / "kubernetes-1.37.json").read_text())
    kinds = schema.pop("kinds")
    for name, manifest in manifests():
        document = {**schema, "$ref": f"#/$defs/{kinds[manifest['kind']]}"}
        errors = jsonschema_rs.validator_for(document).iter_errors(manifest)
        assert [(name, error.message) for error in errors] == []


def test_the_schemas_refuse_a_mistyped_field() -> None:
    """As the API server and Compose do: without it a probe or a limit would be lost unseen."""
    schema = json.loads((SCHEMAS / "kubernetes-1.37.json").read_text())
    kinds = schema.pop("kinds")
    [(_, template)] = [pod for pod in pods() if pod[0] == "serve"]
    template["spec"]["containers"][0]["readynessProbe"] = {}
    wrong = {"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": template}}
    document = {**schema, "$ref": f"#/$defs/{kinds['Deployment']}"}
    assert not jsonschema_rs.validator_for(document).is_valid(wrong)
    file = compose()
    file["services"]["serve"]["read_onli"] = True
    schema = json.loads((SCHEMAS / "compose-spec.json").read_text())
    assert not jsonschema_rs.validator_for(schema).is_valid(file)


def test_every_manifest_gets_the_image_by_kustomize() -> None:
    """Otherwise an engine looks for ``turn-accounting`` where anybody may have put one."""
    for directory in (KUBERNETES, *(KUBERNETES / name for name in ("upgrade", "export", "backup"))):
        kustomization = yaml.safe_load((directory / "kustomization.yaml").read_text())
        files = {path.name for path in directory.glob("*.yaml")} - {"kustomization.yaml"}
        assert set(kustomization["resources"]) == files
        for component in kustomization.get("components", ()):
            image = (directory / component / "kustomization.yaml").read_text()
            kustomization |= yaml.safe_load(image)
        [replaced] = kustomization["images"]
        for file in files:
            names = re.findall(r"\bimage: (\S+)", (directory / file).read_text())
            assert set(names) <= {replaced["name"]}
    assert {path.parent for path in KUBERNETES.rglob("*.yaml")} == {
        KUBERNETES,
        *(KUBERNETES / name for name in ("upgrade", "export", "backup", "image")),
    }


def test_a_collector_is_copied_as_its_file_says() -> None:
    """For another source: nothing of the first is left, and nothing else is replaced."""
    text = (KUBERNETES / "collect-default.yaml").read_text()
    command = re.search(r"^#   (sed .*) collect-default\.yaml > ", text, re.MULTILINE)
    assert command is not None
    made = subprocess.run(
        shlex.split(command[1]), input=text, capture_output=True, text=True, check=True
    )
    copies = [*yaml.safe_load_all(made.stdout)]
    schema = json.loads((SCHEMAS / "kubernetes-1.37.json").read_text())
    kinds = schema.pop("kinds")
    for copy in copies:
        document = {**schema, "$ref": f"#/$defs/{kinds[copy['kind']]}"}
        assert jsonschema_rs.validator_for(document).is_valid(copy)
        assert copy["metadata"]["name"] == "turn-accounting-collect-west"
    assert not re.search(r"\bdefault\b", json.dumps(copies))


def test_every_pod_is_restricted() -> None:
    components = {}
    for component, template in pods():
        pod = template["spec"]
        components[component] = template["metadata"]["labels"]
        assert pod["automountServiceAccountToken"] is pod["enableServiceLinks"] is False
        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": IMAGE_USER,
            "runAsGroup": IMAGE_USER,
            "fsGroup": IMAGE_USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        [_] = pod["containers"]
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
            assert {"/data", "/tmp"} <= mounted  # noqa: S108  # a path in the container
            names = [one["name"] for one in container["env"]]
            assert not any("PASSWORD" in name or name.endswith("_URL") for name in names)
            secrets = [one for one in container["env"] if one["name"].endswith("FILE")]
            assert secrets
            assert {str(Path(one["value"]).parent) for one in secrets} <= mounted
    assert components.keys() == {"collect", "schedule", "serve", "export", "backup", "upgrade"}
    assert all(
        labels["app.kubernetes.io/name"] == "turn-accounting" for labels in components.values()
    )


def test_the_pods_that_run_have_probes_and_two_schedulers() -> None:
    found = {
        manifest["metadata"]["name"]: manifest["spec"]
        for _, manifest in manifests()
        if manifest["kind"] in {"StatefulSet", "Deployment"}
    }
    assert {name: spec["replicas"] for name, spec in found.items()} == {
        "turn-accounting-collect-default": 1,
        "turn-accounting-schedule": 2,
        "turn-accounting-serve": 2,
    }
    for spec in found.values():
        [container] = spec["template"]["spec"]["containers"]
        assert {"livenessProbe", "readinessProbe"} <= container.keys()
    # Pods that are not ready neither stop an upgrade nor keep a node from being drained.
    assert found["turn-accounting-collect-default"]["podManagementPolicy"] == "Parallel"
    [budget] = [one for _, one in manifests() if one["kind"] == "PodDisruptionBudget"]
    assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


def test_what_compose_refers_to_exists() -> None:
    file = compose()
    services = file["services"]
    put = re.findall(r"^put (\S+) (\d+):", (COMPOSE / "make-secrets").read_text(), re.MULTILINE)
    owners = {file: int(user) for file, user in put}
    assert (
        set(re.findall(r"/run/accounting/([\w.-]+)", (COMPOSE / "compose.yaml").read_text()))
        <= owners.keys()
    )
    for service in services.values():
        assert set(service.get("networks", [])) <= file["networks"].keys()
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            exists = (
                (COMPOSE / source).exists() if source.startswith(".") else source in file["volumes"]
            )
            assert exists, volume
        for other, wanted in service.get("depends_on", {}).items():
            healthy = wanted["condition"] == "service_healthy"
            assert "test" in services[other].get("healthcheck", {}) or not healthy
    # `up` starts coturn again when what its configuration is made of has changed.
    assert services["coturn"]["environment"] == services["secrets"]["environment"]
    for name, workload in compose_workloads().items():
        service = services[name]
        # No other secret: the page, which people reach, has the reader's password only.
        files = [value for key, value in workload.environment.items() if key.endswith("_FILE")]
        own = {file for file, owner in owners.items() if owner == workload.user}
        assert {Path(file).name for file in files} <= own
        assert own <= {"redis-url", "database-url"} or len(own) == 1
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_prometheus_scrapes_what_listens() -> None:
    listen = {
        name: workload.environment["ACCOUNTING_METRICS_LISTEN"].rpartition(":")[2]
        for name, workload in compose_workloads().items()
        if "ACCOUNTING_METRICS_LISTEN" in workload.environment
    }
    file = yaml.safe_load((COMPOSE / "prometheus.yaml").read_text())
    jobs = {job["job_name"]: job for job in file["scrape_configs"]}
    [targets] = jobs["turn-accounting"]["static_configs"]
    assert set(targets["targets"]) == {f"{name}:{port}" for name, port in listen.items()}
    file = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yaml").read_text())
    jobs = {job["job_name"]: job for job in file["scrape_configs"]}
    [targets] = jobs["turn-accounting"]["static_configs"]
    units = "".join(path.read_text() for path in (DEPLOY / "systemd").glob("*.service"))
    listening = re.findall(r"^Environment=ACCOUNTING_METRICS_LISTEN=(\S+)", units, re.MULTILINE)
    assert sorted(targets["targets"]) == sorted(listening)


def create_database(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE accounting")


def make_secrets(directory: Path, postgres: PostgresServer, valkey: ValkeyServer) -> None:
    """As compose does, with the addresses of these servers in place of its own."""
    environment = {"TURN_REALM": "example.org", "TURN_USER": "alice", "PATH": os.environ["PATH"]}
    for _ in range(2):  # another `up` keeps the passwords
        before = {path.name: path.read_text() for path in directory.iterdir()}
        subprocess.run(
            ["sh", COMPOSE / "make-secrets", directory], env=environment, check=True, timeout=30
        )
        after = {path.name: path.read_text() for path in directory.iterdir()}
        assert {**after, **before} == after
    host = str(postgres.running.socket_dir)
    subprocess.run(
        ["sh", COMPOSE / "make-logins"],
        env={
            "PATH": f"{programs_directory()}:{os.environ['PATH']}",
            "PGHOST": host,
            "POSTGRES_USER": "postgres",
            "POSTGRES_DB": "accounting",
            "SECRETS": str(directory),
        },
        check=True,
        timeout=30,
    )
    for path in directory.glob("database-url*"):
        assert path.stat().st_mode & 0o777 == 0o400
        path.write_text(
            path.read_text().replace("@postgres:5432/accounting", f"@/accounting?host={host}")
        )
    with redis.Redis.from_url(valkey.url) as client:
        # The user default, as which this connection has logged in, loses its rights last.
        for line in reversed((directory / "valkey.acl").read_text().splitlines()):
            client.execute_command("ACL", "SETUSER", *line.split()[1:])
    path = directory / "redis-url"
    path.write_text(path.read_text().replace("@valkey:6379", f"@127.0.0.1:{valkey.port}"))


PEERS: Final[Mapping[str, bytes]] = {
    "172.20.0.5": b"error 403: Forbidden IP",
    "192.168.1.1": b"error 403: Forbidden IP",
    "10.1.2.4": b"error 403: Forbidden IP",
    "10.1.2.3": b"success",
    "10.9.1.1": b"success",
}


def answer_to(server: TurnServer, user: str) -> bytes | None:
    """How coturn answered the user's request for a channel, once it did."""
    pattern = rf"user <{re.escape(user)}>: incoming packet CHANNEL_BIND processed, ([^\n]+)\n"
    found = re.search(pattern.encode(), server.log_bytes())
    return found and found[1]


@pytest.mark.needs_root
@pytest.mark.needs_coturn
def test_coturn_relays_to_no_private_network(tmp_path: Path) -> None:
    """Such as that of Postgres and Prometheus, unless it is allowed."""
    settings = {
        "TURN_REALM": REALM,
        "TURN_USER": "alice",
        "TURN_ALLOWED_PEERS": "10.1.2.3 10.9.0.0-10.9.255.255",
        "PATH": os.environ["PATH"],
    }
    subprocess.run(["sh", COMPOSE / "make-secrets", tmp_path], env=settings, check=True, timeout=30)
    made = (tmp_path / "turnserver.conf").read_text()
    rules = re.findall(r"^((?:denied|allowed)-peer-ip=\S+|no-multicast-peers)$", made, re.MULTILINE)
    options = [f"--{rule}" for rule in rules]
    users = dict.fromkeys(PEERS, "secret")
    with (
        ValkeyServer() as valkey,
        TurnServer(valkey.port, users=users, options=options) as server,
        ExitStack() as clients,
    ):
        for peer in PEERS:
            words = client_command(server, peer, "secret", peer_port=9)
            words[words.index("-e") + 1] = peer
            client = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
            clients.callback(client.wait)
            clients.callback(client.kill)  # nobody answers there, so it would go on
        for peer, answer in PEERS.items():
            wait_until(partial(answer_to, server, peer), 20, server.log_text())
            assert answer_to(server, peer) == answer, peer


def container(
    workload: Workload,
    secrets: Path,
    postgres: PostgresServer,
    data: Path,
    ports: Mapping[str, int],
) -> Container:
    """The container as its file says, on free ports of this machine."""
    environment = dict(workload.environment)
    for name in PORTS & environment.keys():
        environment[name] = f"0.0.0.0:{ports[workload.name]}"
    data.mkdir()
    os.chown(data, workload.user, workload.group)
    places = {str(Path(value).parent) for name, value in environment.items() if "_FILE" in name}
    sockets = postgres.running.socket_dir
    return Container(
        arguments=workload.arguments,
        environment=environment,
        volumes={"/data": data},
        files={**dict.fromkeys(places, secrets), str(sockets): sockets},
        user=workload.user,
        group=workload.group,
    )


@pytest.mark.long
@pytest.mark.needs_root
@pytest.mark.parametrize(
    "workloads", [compose_workloads(), kubernetes_workloads()], ids=["compose", "kubernetes"]
)
def test_the_containers_keep_the_books(
    workloads: Mapping[str, Workload],
    servers: tuple[PostgresServer, ValkeyServer],
    tmp_path: Path,
) -> None:
    """As their user, with a root that can't be written, secrets in files, and probes that pass."""
    postgres, valkey = servers
    create_database(postgres)
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    for directory in (tmp_path, *tmp_path.parents[:3]):
        directory.chmod(directory.stat().st_mode | 0o011)
    make_secrets(secrets, postgres, valkey)
    if {workload.user for workload in workloads.values()} == {IMAGE_USER}:
        for path in secrets.glob("*-url*"):  # Kubernetes mounts in each pod what it names
            os.chown(path, IMAGE_USER, IMAGE_USER)
    ports = {name: free_port() for name in workloads}
    with container(workloads["upgrade"], secrets, postgres, tmp_path / "upgrade", ports) as upgrade:
        assert upgrade.wait() == 0, upgrade.log_text()
    with (
        ExitStack() as stack,
        psycopg.connect(postgres.url(database="accounting"), autocommit=True) as admin,
    ):
        running: dict[str, Container] = {
            name: stack.enter_context(
                container(workloads[name], secrets, postgres, tmp_path / name, ports)
            )
            for name in ("collect", "schedule", "serve")
        }
        url = valkey.url.replace("//", f"//:{(secrets / '.coturn').read_text()}@")
        client = stack.enter_context(redis.Redis.from_url(url))

        def holds(query: str) -> bool:
            row = admin.execute(query.encode()).fetchone()
            return row is not None and row[0] is not None

        captured = "SELECT max(captured_until) FROM reporting.sources"
        wait_until(lambda: holds(captured), 60, running["collect"].log_text())
        for word, payload in (
            ("status", status_payload("new")),
            ("traffic", traffic_payload(1, 100, 1, 50)),
            ("status", b"deleted"),
            ("total_traffic", traffic_payload(1, 100, 1, 50)),
        ):
            client.publish(channel(word), payload)
        usage = "SELECT sum(received_bytes) FROM reporting.user_usage_hourly"
        wait_until(lambda: holds(usage), 60, running["schedule"].log_text())
        row = admin.execute(usage.encode()).fetchone()
        assert row == (100,)
        made = running["schedule"].execute(
            "python", "-m", "accounting", "token", "create", "--label", "me"
        )
        assert made.returncode == 0, made.stderr
        serve = HTTPConnection("127.0.0.1", ports["serve"], timeout=30)
        stack.callback(serve.close)
        bearer = {"Authorization": f"Bearer {made.stdout.strip()}"}
        for headers, code in (({}, 401), (bearer, 200)):
            serve.request("GET", "/api/v1/realms", headers=headers)
            answer = serve.getresponse()
            answer.read()
            assert answer.status == code
        for name, one in running.items():
            assert_probes_pass(one, workloads[name], ports[name])
            status = one.status()
            assert set(status["Uid"].split()) == {str(workloads[name].user)}
            assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
            assert status["NoNewPrivs"] == "1"
            refused = one.execute("touch", "/etc/hosts")
            assert "Read-only file system" in refused.stderr
        for one in running.values():
            assert one.stop() == 0, one.log_text()


def passes(one: Container, words: Sequence[str]) -> bool:
    return one.execute(*words).returncode == 0


def assert_probes_pass(one: Container, workload: Workload, port: int) -> None:
    for command in workload.commands:
        words = [word.replace(":8400", f":{port}") for word in command]
        wait_until(partial(passes, one, words), 30, f"{words} fails: {one.log_text()}")
    for path in workload.paths:
        with urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            assert answer.status == 200


@pytest.mark.long
@pytest.mark.needs_root
def test_any_user_may_run_it(servers: tuple[PostgresServer, ValkeyServer], tmp_path: Path) -> None:
    """As on OpenShift: a user that nobody knows, of group 0, without a home."""
    user, group = 1_000_660_000, 0
    postgres, valkey = servers
    create_database(postgres)
    for directory in (tmp_path, *tmp_path.parents[:3]):
        directory.chmod(directory.stat().st_mode | 0o011)
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, IMAGE_USER, group)
    data.chmod(0o770)
    sockets = postgres.running.socket_dir
    settings: dict[str, Any] = {
        "environment": {
            "ACCOUNTING_DATABASE_URL": postgres.url(database="accounting"),
            "ACCOUNTING_REDIS_URL": valkey.url,
            "ACCOUNTING_WEB_LISTEN": f"127.0.0.1:{free_port()}",
        },
        "volumes": {"/data": data},
        "files": {str(sockets): sockets},
        "user": user,
        "group": group,
    }
    with Container(arguments=["up"], **settings) as up:
        wait_until(lambda: "redis-statsdb=" in up.log_text(), 60, up.log_text())
        assert set(up.status()["Uid"].split()) == {str(user)}
        assert up.stop() == 0, up.log_text()
