# SPDX-License-Identifier: Apache-2.0
"""The objects of an installation: deploy/ with settings put in. Pure but for reading the files.

deploy/ is the only source; `ztctl install` and `kubectl apply -k deploy` give the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ztctl.errors import CommandError
from ztctl.mesh_config import MeshSettings

Object = dict[str, Any]

KUSTOMIZATION = "kustomization.yaml"
IMAGE = "ztunnel:latest"  # as deploy/ names it
CRD = "CustomResourceDefinition"
WORKLOADS = ("DaemonSet", "Deployment")


def source_dir() -> Path:
    """deploy/: inside the package when it is installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "deploy", package.parents[1] / "deploy"):
        if (candidate / KUSTOMIZATION).is_file():
            return candidate
    raise CommandError(f"deploy/ is neither in {package} nor in its checkout; reinstall ztunnel")


def load() -> list[Object]:
    """All objects as deploy/ has them, in kustomization.yaml's order."""
    directory = source_dir()
    names = yaml.safe_load((directory / KUSTOMIZATION).read_text("utf-8"))["resources"]
    return [
        obj for name in names for obj in yaml.safe_load_all((directory / name).read_text("utf-8"))
    ]


def configured(settings: MeshSettings, image: str | None) -> list[Object]:
    """The objects with an image and a mesh's settings."""
    objects = load()
    for container in _containers(objects):
        if image is not None and container["image"] == IMAGE:
            container["image"] = image
        container["args"] = _arguments(container["args"], settings)
    return objects


def _containers(objects: list[Object]) -> Iterator[Object]:
    for obj in objects:
        if obj["kind"] in WORKLOADS:
            yield from obj["spec"]["template"]["spec"]["containers"]


def _arguments(arguments: list[str], settings: MeshSettings) -> list[str]:
    """`trustDomain` is agent's and signer's, the rest the agent's."""
    given: dict[str, str] = {}
    if settings.trust_domain is not None and arguments[0] in ("agent", "controller"):
        given["--trust-domain"] = settings.trust_domain
    if arguments[0] == "agent":
        if settings.root_namespace is not None:
            given["--root-namespace"] = settings.root_namespace
        if settings.discovery_selectors:
            text = json.dumps(list(settings.discovery_selectors), separators=(",", ":"))
            given["--discovery-selectors"] = text
        if settings.outbound is not None:
            given["--outbound-traffic-policy"] = settings.outbound.value
    kept = [each for each in arguments if each.partition("=")[0] not in given]
    return kept + [f"{name}={value}" for name, value in given.items()]


def title(obj: Object) -> str:
    """An object for people."""
    metadata = obj["metadata"]
    where = f"{metadata['namespace']}/" if metadata.get("namespace") else ""
    return f"{obj['kind']} {where}{metadata['name']}"


def is_ours(obj: Object) -> bool:
    """Whether an object on a server carries our label."""
    labels = obj["metadata"].get("labels") or {}
    return bool(labels.get("app.kubernetes.io/part-of") == "ztunnel")
