# SPDX-License-Identifier: Apache-2.0
"""The lab's objects for the benchmark. Pure, except that nginx's configuration is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.l7 import cases, nginx
from bench.l7.cases import PATHS
from ztunnel.mesh.enrollment import TUNNEL_HTTP, TUNNEL_LABEL

ENVOY_WORKERS = 1  # threads of every Envoy
Object = dict[str, Any]


def identity(account: str) -> str:
    """The SPIFFE ID of a service account of the namespace `meshed`."""
    return f"spiffe://cluster.local/ns/meshed/sa/{account}"


def waypoint(path: cases.Path) -> str:
    """The name of the waypoint of a path."""
    return f"waypoint-{path.proxy}"


def all_objects(directory: Path) -> list[Object]:
    """Namespaces, pods, services, waypoints and their policy."""
    return [
        manifest("v1", "Namespace", "meshed", "", labels={"istio.io/dataplane-mode": "ambient"}),
        manifest("v1", "Namespace", "plain", ""),
        manifest("v1", "ServiceAccount", "waypoint", "meshed"),
        *_pods(directory),
        *(_waypoint_object for node in ("node1", "node2") for _waypoint_object in _waypoint(node)),
        *(_service(path.service, path.server, waypoint(path)) for path in PATHS),
        *(_service(f"{node}-l4", node, "") for node in ("node1", "node2")),
        _policy(),
    ]


def _pods(directory: Path) -> list[Object]:
    sleep = ["sleep", "infinity"]
    pods = [
        app_pod(namespace, "client", cases.CLIENT_NODE, sleep) for namespace in ("meshed", "plain")
    ]
    for node in ("node1", "node2"):
        serve = nginx.argv(directory / f"nginx-meshed-{node}")
        pods.append(app_pod("meshed", f"server-{node}", node, serve))
        pods.append(app_pod("plain", f"server-{node}", node, sleep))
        pods.append(app_pod("plain", f"proxy-{node}", node, sleep))
    for path in PATHS:
        pod = app_pod("meshed", f"hbone-{path.service}", path.proxy, sleep)
        labels = {"istio.io/dataplane-mode": "none", TUNNEL_LABEL: TUNNEL_HTTP}
        pod["metadata"]["labels"] |= labels
        pod["spec"]["serviceAccountName"] = "waypoint"
        pods.append(pod)
    return pods


def _waypoint(node: str) -> list[Object]:
    name = f"waypoint-{node}"
    overlay = f"""\
spec:
  template:
    spec:
      nodeSelector: {{kubernetes.io/hostname: {node}}}
      containers:
      - name: istio-proxy
        resources: {{limits: {{cpu: "{ENVOY_WORKERS}"}}}}
"""
    parameters = manifest("v1", "ConfigMap", f"on-{node}", "meshed", data={"deployment": overlay})
    spec = {
        "gatewayClassName": "istio-waypoint",
        "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}],
        "infrastructure": {
            "parametersRef": {"group": "", "kind": "ConfigMap", "name": f"on-{node}"}
        },
    }
    api = "gateway.networking.k8s.io/v1"
    return [parameters, manifest(api, "Gateway", name, "meshed", spec=spec)]


def _policy() -> Object:
    """Allows what the client sends, by identity, method and path."""
    rule = {
        "from": [{"source": {"principals": [identity("default").removeprefix("spiffe://")]}}],
        "to": [{"operation": {"methods": ["GET", "HEAD"], "paths": ["/", "/api/*"]}}],
    }
    targets = [
        {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": f"waypoint-{node}"}
        for node in ("node1", "node2")
    ]
    spec = {"targetRefs": targets, "action": "ALLOW", "rules": [rule]}
    return manifest("security.istio.io/v1", "AuthorizationPolicy", "client", "meshed", spec=spec)


def _service(name: str, server: str, through: str) -> Object:
    labels = {"istio.io/use-waypoint": through} if through else {}
    port = {"name": "http", "port": 80, "targetPort": nginx.PORT, "appProtocol": "http"}
    spec = {"selector": {"app": f"server-{server}"}, "ports": [port]}
    return manifest("v1", "Service", name, "meshed", labels=labels, spec=spec)


def app_pod(namespace: str, name: str, node: str, command: list[str]) -> Object:
    """A pod of one process on a node; its label `app` is its name."""
    container = {"name": "app", "image": "debian", "command": command}
    spec = {"nodeSelector": {"kubernetes.io/hostname": node}, "containers": [container]}
    return manifest("v1", "Pod", name, namespace, labels={"app": name}, spec=spec)


def manifest(
    api: str,
    kind: str,
    name: str,
    namespace: str,
    *,
    labels: dict[str, str] | None = None,
    **parts: Any,
) -> Object:
    """An object; `parts` are its other fields, such as `spec`."""
    metadata: Object = {"name": name, "labels": labels or {}}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **parts}
