# SPDX-License-Identifier: Apache-2.0
"""The addresses of an ingress gateway, from its Service and the nodes of its pods. Pure.

    LoadBalancer   what the load balancer has assigned; none until then
    NodePort       the nodes on which a pod is ready: they answer under every traffic policy
    ClusterIP      the addresses of the Service

With host ports, the nodes' addresses come first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import ip_address
from typing import Any

from ztunnel.l7.status.facts import AddressType, GatewayAddress, ip_addresses


def gateway_addresses(
    service: Mapping[str, Any] | None, nodes: Iterable[str], *, host_ports: bool = False
) -> tuple[GatewayAddress, ...]:
    """Return the addresses, without duplicates. `nodes`: the IP addresses of the pods' nodes."""
    of_nodes = ip_addresses(sorted(set(nodes), key=_by_number))
    found: list[GatewayAddress] = list(of_nodes) if host_ports else []
    spec = _mapping((service or {}).get("spec"))
    match spec.get("type"):
        case "LoadBalancer":
            found += _load_balancer(service or {})
        case "NodePort":
            found += of_nodes
        case _:
            found += cluster_addresses(service)
    return tuple(dict.fromkeys(found))


def cluster_addresses(service: Mapping[str, Any] | None) -> tuple[GatewayAddress, ...]:
    """The cluster IPs of a Service."""
    spec = _mapping((service or {}).get("spec"))
    given = spec.get("clusterIPs") or [spec.get("clusterIP")]
    return ip_addresses([each for each in given if isinstance(each, str) and each not in _NONE])


def address_error(requested: Sequence[str], addresses: Sequence[GatewayAddress]) -> str:
    """Why `requested` addresses are not used; empty if the gateway has all of them."""
    known = {_normal(each.value) for each in addresses}
    missing = [each for each in requested if _normal(each) not in known]
    if not missing:
        return ""
    have = ", ".join(each.value for each in addresses) or "none"
    return f"the gateway has not got {', '.join(missing)}; it has: {have}"


_NONE = ("", "None")  # a headless Service


def _load_balancer(service: Mapping[str, Any]) -> list[GatewayAddress]:
    status = _mapping(_mapping(service.get("status")).get("loadBalancer"))
    found = []
    entries = status.get("ingress")
    for each in entries if isinstance(entries, list) else ():
        ip, hostname = _mapping(each).get("ip"), _mapping(each).get("hostname")
        if isinstance(ip, str) and ip:
            found.append(GatewayAddress(AddressType.IP, ip))
        elif isinstance(hostname, str) and hostname:
            found.append(GatewayAddress(AddressType.HOSTNAME, hostname))
    return found


def _normal(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        return text


def _by_number(text: str) -> tuple[int, int, str]:
    try:
        address = ip_address(text)
    except ValueError:
        return 9, 0, text
    return address.version, int(address), ""


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
