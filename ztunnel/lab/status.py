# SPDX-License-Identifier: Apache-2.0
"""The status of a lab: its objects, with the state of their processes and namespaces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ztunnel.lab.cluster.external_addresses import ingress_addresses
from ztunnel.lab.cluster.kube_proxy import frontends
from ztunnel.lab.cluster.pod_fields import is_ready, pod_ips
from ztunnel.lab.components import Component
from ztunnel.lab.names import LabNames
from ztunnel.lab.network import addresses
from ztunnel.lab.network.addresses import Node
from ztunnel.lab.objects import Object, Objects, of_kind
from ztunnel.lab.runtime import capture_gate, containers, sandbox


def describe(
    names: LabNames,
    nodes: Sequence[Node],
    components: Mapping[str, Sequence[Component]],
    objects: Objects,
) -> dict[str, Any]:
    """The status as plain data. `components`: by node."""
    return {
        "name": names.name,
        "nodes": [_node(names, node, components[node.name]) for node in nodes],
        "pods": [_pod(names, pod, objects) for pod in of_kind(objects, "Pod")],
        "services": list(_services(objects)),
        "stateDir": str(names.state),
        "cgroup": str(names.cgroup),
    }


def _node(names: LabNames, node: Node, components: Sequence[Component]) -> dict[str, Any]:
    return {
        "name": node.name,
        "addresses": list(addresses.node_addresses(node.index)),
        "netns": names.node_netns(node.name),
        "pinDir": str(names.pin_dir(node.name)),
        "components": {
            component.kind.value: {
                "pid": component.pid,
                "ready": component.is_ready(),
                "log": str(component.log),
            }
            for component in components
        },
    }


def _pod(names: LabNames, pod: Object, objects: Objects) -> dict[str, Any]:
    metadata, node = pod["metadata"], pod["spec"].get("nodeName")
    row = {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata.get("uid"),
        "node": node,
        "addresses": pod_ips(pod),
        "ready": False,
        "status": pod.get("status", {}).get("phase", "Pending"),
        "dataplaneMode": capture_gate.dataplane_mode(pod, objects),
    }
    if node and metadata.get("uid"):
        pod_sandbox = sandbox.describe(names, pod)
        is_alive = sandbox.is_alive(names, pod_sandbox)
        is_running = is_alive and all(
            containers.is_running(names, pod_sandbox, container["name"])
            for container in pod["spec"]["containers"]
        )
        row |= {
            "netns": pod_sandbox.netns,
            "pausePid": pod_sandbox.pause_pid(names),
            "ready": is_running and is_ready(pod),
            "status": _phase(pod, is_alive=is_alive, is_running=is_running),
        }
    return row


def _phase(pod: Object, *, is_alive: bool, is_running: bool) -> str:
    for status in pod["status"].get("containerStatuses", []):
        if waiting := status.get("state", {}).get("waiting"):
            return str(waiting["reason"])
    if not is_alive:
        return "SandboxGone"
    return "Running" if is_running else "ContainerExited"


def _services(objects: Objects) -> Iterator[dict[str, Any]]:
    backends: dict[str, set[str]] = {}
    for entry in frontends(objects):
        backends.setdefault(entry.address, set()).update(
            f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip, port, *_ in entry.used
        )
    for service in of_kind(objects, "Service"):
        spec = service["spec"]
        ips = [ip for ip in spec.get("clusterIPs") or [] if ip != "None"]
        yield {
            "namespace": service["metadata"]["namespace"],
            "name": service["metadata"]["name"],
            "clusterIPs": ips,
            "externalIPs": ingress_addresses(service),
            "ports": [f"{port['port']}/{port['protocol']}" for port in spec.get("ports") or []],
            "endpoints": sorted(set().union(*(backends.get(ip, set()) for ip in ips))),
        }
