# SPDX-License-Identifier: Apache-2.0
"""Where an app's connection goes: a pure decision on the mesh state.

    virtual address ─▶ one ready endpoint of that family ─┐
    workload's address ───────────────────────────────────┼▶ HBONE, or as it is
    any other address ────────────────────────────────────┘
    a ServiceEntry's address that is a workload's ─▶ the workload: no entry takes a pod's traffic
    one of our own ports, no endpoint, no such port ─▶ refused
    any other address, and the mesh is REGISTRY_ONLY ─▶ refused

May import `mesh`.
"""

from __future__ import annotations

from dataclasses import dataclass

from ztunnel.mesh.address import family
from ztunnel.mesh.model import Service, SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.ports import HBONE, OURS
from ztunnel.mesh.state import MeshState


@dataclass(frozen=True, slots=True)
class Hbone:
    """Through a tunnel: CONNECT `authority` over mTLS to `tunnel`, which must prove one of
    `identities`."""

    authority: SocketAddress
    tunnel: SocketAddress
    identities: tuple[str, ...]
    workload: Workload
    service: str = ""


@dataclass(frozen=True, slots=True)
class Passthrough:
    """As it is, to `address`: the destination is not of the mesh."""

    address: SocketAddress
    workload: Workload | None = None
    service: str = ""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not at all, and why."""

    reason: str


Route = Hbone | Passthrough | Refuse


def route(state: MeshState, source: Workload, destination: SocketAddress, chance: float) -> Route:
    """Decide for a connection of `source` to what its app dialled (canonical address).

    `chance` is a random number of [0, 1): it picks the endpoint.
    """
    if destination.port in OURS:
        return Refuse(f"port {destination.port} is the mesh's own")
    service = state.service_at(destination.ip, source.namespace)
    pod = state.workload_at(destination.ip)
    if service is not None and not (service.entry and pod is not None):
        return _to_service(state, service, destination, chance)
    entry = state.entry_at(destination, source.namespace)
    if state.registry_only and pod is None and entry is None:
        return Refuse(
            f"{destination.ip} is neither a service nor a workload (outbound traffic policy is "
            "REGISTRY_ONLY)"
        )
    return _to_address(state, destination, entry.hostname if entry is not None else "")


def route_udp(state: MeshState, destination: SocketAddress) -> Hbone | Refuse:
    """Decide for datagrams that the kernel captured: only a workload of the mesh may get them."""
    target = _to_address(state, destination, "")
    if isinstance(target, Passthrough):
        return Refuse(f"no workload of the mesh has the address {destination.ip}")
    return target


def _to_service(
    state: MeshState, service: Service, destination: SocketAddress, chance: float
) -> Route:
    backends = state.backends(service, destination.port, family(destination.ip))
    if backends is None:
        return Refuse(f"service {service.key} has no TCP port {destination.port}")
    if not backends.targets:
        return Refuse(f"service {service.key} has no ready endpoint for port {destination.port}")
    target = backends.choose(chance)
    if target.port in OURS:
        return Refuse(f"service {service.key} leads to the mesh's own port {target.port}")
    return _to_address(state, target, service.hostname or service.key)


def _to_address(state: MeshState, target: SocketAddress, service: str) -> Hbone | Passthrough:
    workload = state.workload_at(target.ip)
    if workload is None or workload.protocol is not TunnelProtocol.HBONE:
        return Passthrough(target, workload, service)
    tunnel = SocketAddress(target.ip, HBONE)
    return Hbone(target, tunnel, (workload.identity,), workload, service)
