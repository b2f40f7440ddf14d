# SPDX-License-Identifier: Apache-2.0
"""Finds the pods of a waypoint, and the destinations that a waypoint is in front of. Pure.

A client's node sends CONNECT with the address of the service (or of the pod) to a pod of the
waypoint. ztunnels of some versions of Istio send the service's hostname instead.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import NamedTuple

from ztunnel.mesh.address import family, is_special
from ztunnel.mesh.load_balancer import Backends
from ztunnel.mesh.model import Service, SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.ports import HBONE, RESERVED
from ztunnel.mesh.state import MeshState

MAX_AUTHORITY_BYTES = 259  # a DNS name of 253 characters, a colon, and a port
_NAMED = re.compile(rb"([A-Za-z0-9_][A-Za-z0-9_.-]{0,252}):([1-9][0-9]{0,4})")


class NamedAddress(NamedTuple):
    """A host name, lower case and without a final dot, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class WaypointPods(NamedTuple):
    """The pods that can receive a connection, by their addresses with port 15008."""

    backends: Backends
    by_address: dict[SocketAddress, Workload]


class WaypointDestination(NamedTuple):
    """A destination whose waypoint is `gateway_pod`; `service`: its hostname, empty for a pod."""

    address: SocketAddress
    service: str
    gateway_pod: Workload


def parse_named_authority(text: bytes) -> NamedAddress | None:
    """Parse `hostname:port`; None if the text is anything else, for example `ip:port`."""
    match = _NAMED.fullmatch(text) if len(text) <= MAX_AUTHORITY_BYTES else None
    if match is None:
        return None
    host, port = match[1].decode("ascii").lower().rstrip("."), int(match[2])
    # the last label of a name is not a number (RFC 3696, 2): that is an invalid address
    is_name = bool(host.rpartition(".")[2].strip("0123456789"))
    return NamedAddress(host, port) if is_name and port <= 65535 else None


def ready_pods(state: MeshState, waypoint: str, wanted: int) -> WaypointPods | str:
    """Return the waypoint's ready pods, or the reason why there is none.

    Pods whose node accepts HBONE for them take precedence, then addresses of the family `wanted`.
    Another pod is a target too: Istio's waypoints accept HBONE themselves, and a pod that does not
    accept it refuses the connection.
    """
    service = state.service(waypoint)
    if service is None:
        return f"waypoint {waypoint} has no Service"
    ranked: dict[SocketAddress, tuple[int, Workload]] = {}
    for endpoint in service.endpoints:
        pod = state.workload(endpoint.workload) if endpoint.ready else None
        if pod is None or pod.host_network:
            continue
        address = _address(pod, wanted, endpoint.address)
        rank = 2 * (pod.protocol is TunnelProtocol.HBONE) + (family(address) == wanted)
        ranked[SocketAddress(address, HBONE)] = rank, pod
    if not ranked:
        return f"waypoint {waypoint} has no ready pod"
    best = max(rank for rank, _ in ranked.values())
    chosen = {target: pod for target, (rank, pod) in ranked.items() if rank == best}
    weights = accumulate(max(1, pod.capacity) for pod in chosen.values())
    return WaypointPods(Backends(tuple(chosen), tuple(weights)), chosen)


def _address(pod: Workload, wanted: int, otherwise: str) -> str:
    for address in pod.addresses:
        if family(address) == wanted:
            return address
    return otherwise


def find_destination(
    state: MeshState, local_ip: str, authority: SocketAddress | NamedAddress
) -> WaypointDestination | str | None:
    """Find the destination that the pod at `local_ip` is the waypoint of.

    None if that pod runs no Gateway, or another one; the reason if the destination cannot be used.
    """
    pod = state.workload_at(local_ip)
    if pod is None or not pod.gateway:
        return None
    if isinstance(authority, NamedAddress):
        candidates = state.services_by_hostname(authority.host)
    else:
        candidates = state.services_at(authority.ip)
    service = next((each for each in candidates if each.waypoint == pod.gateway), None)
    if service is not None:
        return _of_service(service, pod, authority, family(local_ip))
    if isinstance(authority, NamedAddress):
        return None
    if state.is_of_cluster(authority, pod.namespace):
        return _of_workload(state, pod, authority)
    return _of_network(state, pod, authority)


def _of_network(
    state: MeshState, pod: Workload, authority: SocketAddress
) -> WaypointDestination | str | None:
    """An address outside the cluster, in a network of a ServiceEntry with resolution NONE."""
    entry = state.waypoint_entry_at(authority, pod.gateway)
    if entry is None or not entry.networks or is_special(authority.ip):
        return None
    if authority.port in RESERVED:
        return f"port {authority.port} is reserved for the mesh"
    return entry.waypoint_error or WaypointDestination(authority, entry.hostname, pod)


def _of_workload(
    state: MeshState, pod: Workload, authority: SocketAddress
) -> WaypointDestination | str | None:
    target = state.workload_at(authority.ip)
    if target is None or target.waypoint != pod.gateway:
        return None
    if authority.port in RESERVED:
        return f"port {authority.port} is reserved for the mesh"
    return target.waypoint_error or WaypointDestination(authority, "", pod)


def _of_service(
    service: Service, pod: Workload, authority: SocketAddress | NamedAddress, wanted: int
) -> WaypointDestination | str:
    if service.waypoint_error:
        return service.waypoint_error
    if all((p.port, p.protocol) != (authority.port, "TCP") for p in service.ports):
        return f"service {service.key} has no TCP port {authority.port}"
    if isinstance(authority, SocketAddress):
        return WaypointDestination(authority, service.hostname, pod)
    if not service.vips:
        return f"service {service.key} has no virtual address"
    vip = next((ip for ip in service.vips if family(ip) == wanted), service.vips[0])
    return WaypointDestination(SocketAddress(vip, authority.port), service.hostname, pod)
