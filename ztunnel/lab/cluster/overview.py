# SPDX-License-Identifier: Apache-2.0
"""What `ztctl lab status` tells: the objects' view joined with what the kernel has."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ztunnel.lab.cluster.scheduler import NodePlan, is_ready, pod_ips
from ztunnel.lab.components import Component
from ztunnel.lab.names import LabNames
from ztunnel.lab.network import addresses
from ztunnel.lab.network.kube_proxy import frontends
from ztunnel.lab.objects import Object, Objects, of_kind
from ztunnel.lab.runtime import capture_gate, containers, sandbox


def describe(
    names: LabNames,
    nodes: Sequence[NodePlan],
    components: Mapping[str, Sequence[Component]],
    objects: Objects,
) -> dict[str, Any]:
    """Plain data, the same for people and machines."""
    return {
        "name": names.name,
        "nodes": [_node(names, node, components[node.name]) for node in nodes],
        "pods": [_pod(names, pod, objects) for pod in of_kind(objects, "Pod")],
        "services": list(_services(objects)),
        "stateDir": str(names.state),
        "cgroup": str(names.cgroup),
    }


def _node(names: LabNames, node: NodePlan, components: Sequence[Component]) -> dict[str, Any]:
    return {
        "name": node.name,
        "addresses": list(addresses.node_addresses(node.index)),
        "netns": names.node_netns(node.name),
        "pinDir": str(names.pin_dir(node.name)),
        "components": {
            part.kind: {"pid": part.pid, "ready": part.is_ready(), "log": str(part.log)}
            for part in components
        },
    }


def _pod(names: LabNames, pod: Object, objects: Objects) -> dict[str, Any]:
    metadata, node = pod["metadata"], pod["spec"].get("nodeName")
    described = {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata.get("uid"),
        "node": node,
        "addresses": pod_ips(pod),
        "ready": False,
        "status": pod.get("status", {}).get("phase", "Pending"),
        "dataplaneMode": capture_gate.mode(pod, objects),
    }
    if node and metadata.get("uid"):
        box = sandbox.describe(names, pod)
        alive = sandbox.is_alive(names, box)
        running = alive and all(
            containers.is_running(names, box, container["name"])
            for container in pod["spec"]["containers"]
        )
        described |= {
            "netns": box.netns,
            "pausePid": box.pause_pid(names),
            "ready": running and is_ready(pod),
            "status": _phase(pod, alive=alive, running=running),
        }
    return described


def _phase(pod: Object, *, alive: bool, running: bool) -> str:
    for status in pod["status"].get("containerStatuses", []):
        if waiting := status.get("state", {}).get("waiting"):
            return str(waiting["reason"])
    if not alive:
        return "SandboxGone"
    return "Running" if running else "ContainerEnded"


def _services(objects: Objects) -> Iterator[dict[str, Any]]:
    backends: dict[str, set[str]] = {}
    for entry in frontends(objects):
        backends.setdefault(entry.address, set()).update(
            f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}" for ip, port in entry.backends
        )
    for service in of_kind(objects, "Service"):
        spec = service["spec"]
        ips = [ip for ip in spec.get("clusterIPs") or [] if ip != "None"]
        yield {
            "namespace": service["metadata"]["namespace"],
            "name": service["metadata"]["name"],
            "clusterIPs": ips,
            "ports": [f"{port['port']}/{port['protocol']}" for port in spec.get("ports") or []],
            "endpoints": sorted(set().union(*(backends.get(ip, set()) for ip in ips))),
        }
