# SPDX-License-Identifier: Apache-2.0
"""Objects that a cluster has without manifests: nodes, namespaces, service accounts. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from ztunnel.lab.network import addresses
from ztunnel.lab.network.addresses import Node
from ztunnel.lab.objects import Key, Object, Objects

HOSTNAME_LABEL = "kubernetes.io/hostname"
SYSTEM_NAMESPACES = ("default", "kube-system")


def node_object(node: Node) -> Object:
    """The Node object."""
    cidrs = list(addresses.pod_cidrs(node.index))
    internal = [
        {"type": "InternalIP", "address": ip} for ip in addresses.node_addresses(node.index)
    ]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {HOSTNAME_LABEL: node.name}},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": {
            "addresses": [*internal, {"type": "Hostname", "address": node.name}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def system_objects(objects: Objects, nodes: Sequence[Node]) -> list[Object]:
    """All nodes, and the system namespaces and default service accounts that do not exist yet."""
    namespaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        for name in SYSTEM_NAMESPACES
        if Key("Namespace", "", name) not in objects
    ]
    names = {key.name for key in objects if key.kind == "Namespace"} | set(SYSTEM_NAMESPACES)
    accounts = [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": name},
        }
        for name in sorted(names)
        if Key("ServiceAccount", name, "default") not in objects
    ]
    return [*namespaces, *accounts, *(node_object(node) for node in nodes)]
