# SPDX-License-Identifier: Apache-2.0
"""Where an app's connection goes: a pure decision on the mesh state.

virtual address ─▶ one ready endpoint of that family ─┐
workload's address ───────────────────────────────────┼▶ HBONE, or as it is
any other address ────────────────────────────────────┘
a ServiceEntry's address that is a workload's ─▶ the workload: no entry takes a pod's traffic
one of our own ports, no endpoint, no such port ─▶ refused
any other address, and the mesh is REGISTRY_ONLY ─▶ refused
"""

from __future__ import annotations

from ztunnel.mesh.address import family
from ztunnel.mesh.model import Service, SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.ports import HBONE, OURS
from ztunnel.mesh.routing.decisions import Hbone, Passthrough, Refuse, Route
from ztunnel.mesh.routing.load_balancer import Backends
from ztunnel.mesh.state import MeshState

MOST_KNOWN = 4096  # answers remembered: an app may dial whatever it likes


def route(state: MeshState, source: Workload, destination: SocketAddress, chance: float) -> Route:
    """Decide for a connection of `source` to what its app dialled (canonical address).

    `chance` is a random number of [0, 1): it picks the endpoint. Until the next delta the same
    question gets the same object for an answer.
    """
    key = (source.namespace, destination)
    way: Route | _Balanced | None = state.ways.get(key)
    if way is None:
        if len(state.ways) >= MOST_KNOWN:
            state.ways.clear()
        way = state.ways[key] = _way(state, source.namespace, destination)
    return way.choose(state, chance) if isinstance(way, _Balanced) else way


def _way(state: MeshState, namespace: str, destination: SocketAddress) -> Route | _Balanced:
    """What does not hang on chance."""
    if destination.port in OURS:
        return Refuse(f"port {destination.port} is the mesh's own")
    service = state.service_at(destination.ip, namespace)
    pod = state.workload_at(destination.ip)
    if service is not None and not (service.entry and pod is not None):
        return _balanced(state, service, destination, "TCP")
    entry = state.entry_at(destination, namespace)
    if state.registry_only and pod is None and entry is None:
        return Refuse(
            f"{destination.ip} is neither a service nor a workload (outbound traffic policy is "
            "REGISTRY_ONLY)"
        )
    return _to_address(state, destination, entry.hostname if entry is not None else "")


def route_udp(
    state: MeshState, source: Workload, destination: SocketAddress, chance: float
) -> Hbone | Refuse:
    """Decide for datagrams that the kernel captured: only a workload of the mesh may get them.
    `chance` as in `route`; a flow keeps the endpoint that was chosen as it began."""
    service = state.service_at(destination.ip, source.namespace)
    if service is None or service.entry:
        target: Route = _to_address(state, destination, "")
    else:
        way = _balanced(state, service, destination, "UDP")
        target = way.choose(state, chance) if isinstance(way, _Balanced) else way
    if isinstance(target, Passthrough):
        return Refuse(f"no workload of the mesh has the address {target.address.ip}")
    return target


class _Balanced:
    """A service's port with ready endpoints: chance picks one, and each has its route."""

    __slots__ = ("_backends", "_is_tcp", "_routes", "_service")

    def __init__(self, service: Service, backends: Backends, *, is_tcp: bool) -> None:
        self._service = service
        self._backends = backends
        self._is_tcp = is_tcp
        self._routes: dict[SocketAddress, Route] = {}

    def choose(self, state: MeshState, chance: float) -> Route:
        target = self._backends.choose(chance)
        found = self._routes.get(target)
        if found is None:
            found = self._routes[target] = self._route(state, target)
        return found

    def _route(self, state: MeshState, target: SocketAddress) -> Route:
        service = self._service
        if target.port in OURS and self._is_tcp:
            return Refuse(f"service {service.key} leads to the mesh's own port {target.port}")
        return _to_address(state, target, service.hostname or service.key)


def _balanced(
    state: MeshState, service: Service, destination: SocketAddress, protocol: str
) -> _Balanced | Refuse:
    backends = state.backends(service, destination.port, family(destination.ip), protocol)
    if backends is None:
        return Refuse(f"service {service.key} has no {protocol} port {destination.port}")
    if not backends.targets:
        return Refuse(f"service {service.key} has no ready endpoint for port {destination.port}")
    return _Balanced(service, backends, is_tcp=protocol == "TCP")


def _to_address(state: MeshState, target: SocketAddress, service: str) -> Hbone | Passthrough:
    workload = state.workload_at(target.ip)
    if workload is None or workload.protocol is not TunnelProtocol.HBONE:
        return Passthrough(target, workload, service)
    tunnel = SocketAddress(target.ip, HBONE)
    return Hbone(target, tunnel, (workload.identity,), workload, service)
