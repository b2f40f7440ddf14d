# SPDX-License-Identifier: Apache-2.0
"""The objects of an installation: the manifests in deploy/, with an image and mesh settings.

deploy/ is the only source, so `ztctl install` and `kubectl apply -k deploy` apply the same objects.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ztctl.cluster.mesh_config import MeshSettings
from ztctl.errors import CommandError

Object = dict[str, Any]

KUSTOMIZATION = "kustomization.yaml"
IMAGE = "ztunnel:latest"  # in deploy/
CRD = "CustomResourceDefinition"
CERTIFICATES = "ztunnel-controller-certificates"  # the role by which the controller reads Secrets
WORKLOAD_KINDS = ("DaemonSet", "Deployment")


@dataclass(frozen=True)
class GatewayOptions:
    """Rights of ingress gateways, which the administrator grants.

    `certificate_namespaces`: whose Secrets the controller reads; None for all, () for none.
    `host_port_namespaces`: whose gateways may bind ports of nodes; `*` stands for all.
    """

    certificate_namespaces: tuple[str, ...] | None = None
    host_port_namespaces: tuple[str, ...] = ()

    def flags(self) -> list[str]:
        """The options of `ztunnel controller`."""
        flags = [f"--host-port-namespace={name}" for name in self.host_port_namespaces]
        if self.certificate_namespaces == ():
            return [*flags, "--no-gateway-certificates"]
        names = self.certificate_namespaces or ()
        return [*flags, *(f"--certificate-namespace={name}" for name in names)]


def source_dir() -> Path:
    """The deploy/ directory: in the installed package, or in the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "deploy", package.parents[1] / "deploy"):
        if (candidate / KUSTOMIZATION).is_file():
            return candidate
    raise CommandError(
        f"deploy/ found neither in {package} nor in its checkout; hint: reinstall ztunnel"
    )


def load() -> list[Object]:
    """All objects in deploy/, in the order of kustomization.yaml."""
    directory = source_dir()
    names = yaml.safe_load((directory / KUSTOMIZATION).read_text("utf-8"))["resources"]
    return [
        obj for name in names for obj in yaml.safe_load_all((directory / name).read_text("utf-8"))
    ]


def load_configured(
    settings: MeshSettings,
    image: str | None,
    proxy_image: str | None = None,
    gateways: GatewayOptions | None = None,
) -> list[Object]:
    """All objects in deploy/, with the mesh settings and, unless None, the images.

    `proxy_image`: of the gateways and waypoints that the controller runs.
    """
    gateways = gateways or GatewayOptions()
    objects = [found for obj in load() for found in _bindings(obj, gateways)]
    for container in _containers(objects):
        if image is not None and container["image"] == IMAGE:
            container["image"] = image
        container["args"] = _configured_args(container["args"], settings)
        if proxy_image is not None and container["args"][0] == "controller":
            container["args"].append(f"--proxy-image={proxy_image}")
        if container["args"][0] == "controller":
            container["args"] += gateways.flags()
    return objects


def _bindings(obj: Object, gateways: GatewayOptions) -> list[Object]:
    """An object as it is; instead of the binding to all Secrets, one for each namespace."""
    namespaces = gateways.certificate_namespaces
    is_binding = (obj["kind"], obj["metadata"]["name"]) == ("ClusterRoleBinding", CERTIFICATES)
    if namespaces is None or not is_binding:
        return [obj]
    return [
        {**obj, "kind": "RoleBinding", "metadata": {**obj["metadata"], "namespace": name}}
        for name in namespaces
    ]


def _containers(objects: list[Object]) -> Iterator[Object]:
    for obj in objects:
        if obj["kind"] in WORKLOAD_KINDS:
            yield from obj["spec"]["template"]["spec"]["containers"]


def _configured_args(args: list[str], settings: MeshSettings) -> list[str]:
    """Agent and controller know trust domain and root namespace; the rest is the agent's."""
    flags: dict[str, str] = {}
    if args[0] in ("agent", "controller"):
        if settings.trust_domain is not None:
            flags["--trust-domain"] = settings.trust_domain
        if settings.root_namespace is not None:
            flags["--root-namespace"] = settings.root_namespace
    if args[0] == "agent":
        if settings.discovery_selectors:
            text = json.dumps(list(settings.discovery_selectors), separators=(",", ":"))
            flags["--discovery-selectors"] = text
        if settings.outbound is not None:
            flags["--outbound-traffic-policy"] = settings.outbound.value
    others = [arg for arg in args if arg.partition("=")[0] not in flags]
    return others + [f"{name}={value}" for name, value in flags.items()]


def title(obj: Object) -> str:
    """The object's kind and name, for output: `Kind namespace/name`."""
    metadata = obj["metadata"]
    namespace = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{obj['kind']} {namespace}{metadata['name']}"


def is_ours(obj: Object) -> bool:
    """Whether the object carries the label of this project."""
    labels = obj["metadata"].get("labels") or {}
    return bool(labels.get("app.kubernetes.io/part-of") == "ztunnel")
