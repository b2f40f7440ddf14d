# SPDX-License-Identifier: Apache-2.0
"""How services are reached from outside the cluster: node ports and load balancer addresses. Pure.

NodePort, LoadBalancer   spec.ports[].nodePort, at every node
LoadBalancer             status.loadBalancer.ingress
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from ztunnel.lab.network import addresses
from ztunnel.lab.objects import Object, key_of

EXTERNAL_TYPES = frozenset({"NodePort", "LoadBalancer"})
NODE_PORTS = range(30000, 32768)  # kube-apiserver's --service-node-port-range

_PortKey = tuple[str, int]  # protocol, port


def set_external_addresses(services: Iterable[Object]) -> None:
    """Set what the manifests do not have. Existing values stay. Raises ValueError if none is free.

    `services`: all of them, with cluster addresses; their order decides when hashes collide.
    """
    services = [service for service in services if service["spec"].get("type") in EXTERNAL_TYPES]
    used_ports = {
        (port["protocol"], port["nodePort"])
        for service in services
        for port in service["spec"].get("ports") or []
        if "nodePort" in port
    }
    used_ips = {ip for service in services for ip in ingress_addresses(service)}
    for service in services:
        name = "/".join(key_of(service)[1:])
        if service["spec"].get("allocateLoadBalancerNodePorts", True):
            for port in service["spec"].get("ports") or []:
                _set_node_port(port, name, used_ports)
        if service["spec"]["type"] == "LoadBalancer" and not ingress_addresses(service):
            _set_ingress(service, name, used_ips)


def ingress_addresses(service: Object) -> list[str]:
    """The addresses of the service's load balancer; empty if it has none."""
    status = service.get("status") or {}
    ingress = (status.get("loadBalancer") or {}).get("ingress") or []
    is_balanced = service["spec"].get("type") == "LoadBalancer"
    return [entry["ip"] for entry in ingress if "ip" in entry] if is_balanced else []


def is_local(service: Object) -> bool:
    """Whether nodes forward connections from outside only to their own pods."""
    return bool(service["spec"].get("externalTrafficPolicy") == "Local")


def _set_node_port(port: dict[str, Any], service: str, used: set[_PortKey]) -> None:
    if "nodePort" in port:
        return
    seed = f"{service}:{port['port']}/{port['protocol']}".encode()
    start = int.from_bytes(hashlib.sha256(seed).digest()[:4], "big")
    for step in range(len(NODE_PORTS)):
        number = NODE_PORTS[(start + step) % len(NODE_PORTS)]
        if (port["protocol"], number) not in used:
            used.add((port["protocol"], number))
            port["nodePort"] = number
            return
    raise ValueError(f"no free node port: all {len(NODE_PORTS)} are in use")


def _set_ingress(service: Object, name: str, used: set[str]) -> None:
    spec = service["spec"]
    if spec.get("loadBalancerIP"):
        ips = [spec["loadBalancerIP"]]
    else:
        pair = addresses.balancer_addresses(name, used)
        ips = [pair[family == "IPv6"] for family in spec.get("ipFamilies") or ["IPv4"]]
    used.update(ips)
    status = service.setdefault("status", {})
    status["loadBalancer"] = {"ingress": [{"ip": ip, "ipMode": "VIP"} for ip in ips]}
