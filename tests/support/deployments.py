"""What the files of ``deploy`` say of the containers of the service, in one form."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.support.container import IMAGE_USER

DEPLOY: Final = Path(__file__).resolve().parents[2] / "deploy"
COMPOSE: Final = DEPLOY / "compose"
KUBERNETES: Final = DEPLOY / "kubernetes"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A container of the service. ``probes``: commands, and paths that HTTP answers."""

    name: str
    arguments: list[str]
    environment: dict[str, str]
    commands: list[list[str]]
    paths: list[str]
    user: int
    group: int


def compose() -> dict[str, Any]:
    """The parsed compose.yaml."""
    return dict(yaml.safe_load((COMPOSE / "compose.yaml").read_text()))


def manifests() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each Kubernetes object, with the name of its file."""
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            for document in yaml.safe_load_all(path.read_text()):
                yield path.name, document


def pod_template(manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """The template of the pods of a manifest, if it has any."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "CronJob":
        spec = spec["jobTemplate"]["spec"]
    template = spec.get("template")
    return template if isinstance(template, dict) else None


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Each template of pods, with the name of its component."""
    for _, manifest in manifests():
        template = pod_template(manifest)
        if template is not None:
            yield template["metadata"]["labels"]["app.kubernetes.io/component"], template


def compose_workloads() -> dict[str, Workload]:
    """The containers of the service in compose.yaml."""
    workloads = {}
    for name, service in compose()["services"].items():
        if service["image"] == "turn-accounting":
            user, group = map(int, service.get("user", f"{IMAGE_USER}:{IMAGE_USER}").split(":"))
            probe = service["healthcheck"].get("test")
            workloads[name] = Workload(
                name=name,
                arguments=service["command"],
                environment=service["environment"],
                commands=[probe[1:]] if probe else [],
                paths=[],
                user=user,
                group=group,
            )
    return workloads


def kubernetes_workloads() -> dict[str, Workload]:
    """The containers of the service in the manifests."""
    workloads = {}
    for name, template in pods():
        [container] = template["spec"]["containers"]
        if container["image"] != "turn-accounting":
            continue
        probes = [container[probe] for probe in container if probe.endswith("Probe")]
        workloads[name] = Workload(
            name=name,
            arguments=container["args"],
            environment={one["name"]: one["value"] for one in container["env"]},
            commands=[probe["exec"]["command"] for probe in probes if "exec" in probe],
            paths=[probe["httpGet"]["path"] for probe in probes if "httpGet" in probe],
            user=template["spec"]["securityContext"]["runAsUser"],
            group=template["spec"]["securityContext"]["runAsGroup"],
        )
    return workloads
