# SPDX-License-Identifier: Apache-2.0
"""Gateways and the objects that run them, on a test's API server."""

from __future__ import annotations

import json
from typing import Any

from tests.support.apiserver.control_plane import ControlPlane, wait_until

Json = dict[str, Any]
GATEWAY = "gateway.networking.k8s.io"
OWNED = ("serviceaccount", "deployment", "service")
HBONE = {"name": "mesh", "port": 15008, "protocol": "HBONE"}


def get(mesh: ControlPlane, kind: str, namespace: str, name: str) -> Json | None:
    words = ("-n", namespace, "get", kind, name, "-o", "json", "--ignore-not-found")
    text = mesh.server.kubectl(*words)
    return json.loads(text) if text.strip() else None


def put_gateway(
    mesh: ControlPlane,
    namespace: str,
    name: str = "way",
    labels: Json | None = None,
    **spec: Any,
) -> None:
    mesh.namespace(namespace)
    body = {
        "apiVersion": f"{GATEWAY}/v1",
        "kind": "Gateway",
        "metadata": {"name": name, "namespace": namespace, "labels": labels or {}},
        "spec": {"gatewayClassName": "istio-waypoint", "listeners": [HBONE], **spec},
    }
    mesh.server.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(body))


def conditions(obj: Json | None) -> dict[str, tuple[str, str]]:
    """Status and reason by type."""
    found = ((obj or {}).get("status") or {}).get("conditions") or []
    return {each["type"]: (each["status"], each["reason"]) for each in found}


def owned(mesh: ControlPlane, namespace: str, name: str = "way") -> list[Json]:
    """Wait for the objects of a Gateway."""

    def all_of_them() -> list[Json] | None:
        found = [get(mesh, kind, namespace, name) for kind in OWNED]
        return None if None in found else found  # type: ignore[return-value]

    objects: list[Json] = wait_until(all_of_them, f"the objects of {namespace}/{name}")
    return objects


def set_ready(mesh: ControlPlane, namespace: str, ready: int, name: str = "way") -> None:
    """As the Deployment controller does."""
    status = {"replicas": ready, "readyReplicas": ready, "availableReplicas": ready}
    path = f"/apis/apps/v1/namespaces/{namespace}/deployments/{name}/status"
    mesh.server.request("PATCH", path, {"status": status})


def wait_condition(
    mesh: ControlPlane, kind: str, namespace: str, name: str, **wanted: tuple[str, str]
) -> Json:
    """Wait until an object has these conditions; returns it."""

    def current() -> Json | None:
        obj = get(mesh, kind, namespace, name)
        found = conditions(obj)
        return obj if all(found.get(key) == value for key, value in wanted.items()) else None

    obj: Json = wait_until(
        current, lambda: f"{wanted}, found {conditions(get(mesh, kind, namespace, name))}"
    )
    return obj
