# SPDX-License-Identifier: Apache-2.0
"""Decides where an outbound connection goes. Pure.

virtual address   ─▶ a ready endpoint of the same family ─┐  (of a ServiceEntry without one: any)
workload address  ────────────────────────────────────────┼▶ HBONE or passthrough
any other address ────────────────────────────────────────┘
address of a load balancer, external IP, node port
                  ─▶ as the virtual address of that service: kube-proxy selects an endpoint, too
virtual address, workload address or network of a ServiceEntry that has a waypoint
                  ─▶ HBONE to a ready pod of the waypoint, unless the source runs that Gateway, or,
                     for a workload address, an ingress gateway. An ingress gateway connects to the
                     virtual address of a service only if `Service.ingress_use_waypoint`
                  ─▶ refused, if there is none
workload address that a ServiceEntry lists       ─▶ the workload: no entry hijacks a pod
reserved port, no endpoint, no such port         ─▶ refused
any other address in a mesh with REGISTRY_ONLY   ─▶ refused, except
    the address of a host with a waypoint        ─▶ permitted to that waypoint only
    what a waypoint has resolved (DYNAMIC_DNS)   ─▶ permitted to that waypoint, at its ports
"""

from __future__ import annotations

from ztunnel.mesh.address import family, is_special
from ztunnel.mesh.load_balancer import Backends
from ztunnel.mesh.model import Service, SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.ports import HBONE, RESERVED
from ztunnel.mesh.routing.decisions import Hbone, Passthrough, Refuse, Route
from ztunnel.mesh.routing.waypoints import WaypointPods, ready_pods
from ztunnel.mesh.state import MeshState

ROUTE_CACHE_SIZE = 4096  # entries; bounded because an application may dial any number of addresses


def route(state: MeshState, source: Workload, destination: SocketAddress, chance: float) -> Route:
    """Decide on a connection of `source` to the address that its application dialed (canonical).

    `chance` is a random number in [0, 1) that selects the endpoint. Until the next delta, equal
    arguments return the same object.
    """
    key = (source.gateway or source.namespace, destination)  # a Gateway's key contains a slash
    cached: Route | _BalancedRoute | None = state.route_cache.get(key)
    if cached is None:
        if len(state.route_cache) >= ROUTE_CACHE_SIZE:
            state.route_cache.clear()
        cached = state.route_cache[key] = _resolve(state, source, destination)
    return cached.choose(state, chance) if isinstance(cached, _BalancedRoute) else cached


def _resolve(
    state: MeshState, source: Workload, destination: SocketAddress
) -> Route | _BalancedRoute:
    """Return the part of the decision that does not depend on `chance`.

    It depends on the source's Gateway or, without one, its namespace: see `route_cache`.
    """
    if destination.port in RESERVED:
        return Refuse(f"port {destination.port} is reserved for the mesh")
    namespace = source.namespace
    service = state.service_at(destination.ip, namespace)
    pod = state.workload_at(destination.ip)
    if service is not None and not (service.is_service_entry and pod is not None):
        if service.waypoint and service.waypoint != source.gateway:
            return _service_waypoint(state, service, destination)
        return _balance(state, service, destination, "TCP")
    if pod is not None and source.needs_waypoint_of(pod):
        return _waypoint(state, pod.waypoint, pod.waypoint_error, destination, "")
    virtual = _virtual_address(state, destination, "TCP", namespace) if pod is None else None
    if virtual is not None:
        return _resolve(state, source, virtual)
    return _resolve_address(state, source, destination, is_pod=pod is not None)


def _virtual_address(
    state: MeshState, destination: SocketAddress, protocol: str, namespace: str
) -> SocketAddress | None:
    """The virtual address of the service at an address outside the cluster; None if none is."""
    found = state.external_service_at(destination, protocol, namespace)
    if found is None or not found.service.vips:
        return None
    vips, wanted = found.service.vips, family(destination.ip)
    vip = next((ip for ip in vips if family(ip) == wanted), vips[0])
    return SocketAddress(vip, found.port)


def _resolve_address(
    state: MeshState, source: Workload, destination: SocketAddress, *, is_pod: bool
) -> Route | _BalancedRoute:
    """Decide on an address that is neither virtual nor of a pod with a waypoint."""
    entry = state.service_entry_at(destination, source.namespace)
    if entry is not None and not is_pod and _needs_waypoint(entry, source):
        if entry.networks:
            waypoint, error = entry.waypoint, entry.waypoint_error
            return _waypoint(state, waypoint, error, destination, entry.hostname)
        return Refuse(
            f"{entry.hostname} has the waypoint {entry.waypoint} but no virtual address; hint: "
            "set spec.addresses of the ServiceEntry"
        )
    if state.registry_only and not is_pod:
        reason = _not_in_registry(state, source, destination, entry)
        if reason:
            return Refuse(reason)
    return _route_to_address(state, destination, entry.hostname if entry is not None else "")


def _not_in_registry(
    state: MeshState, source: Workload, destination: SocketAddress, entry: Service | None
) -> str:
    """Why REGISTRY_ONLY refuses an address that no pod has; empty if it permits it."""
    if source.gateway and _is_resolved(state, source, destination):
        return ""
    if source.gateway and state.waypoint_entry_at(destination, source.gateway) is not None:
        return ""  # even if the entry is not exported to the namespace of the waypoint
    if entry is not None:
        if not entry.waypoint or entry.waypoint == source.gateway:
            return ""
        return (
            f"{entry.hostname} has the waypoint {entry.waypoint}, which connections to its own "
            "address do not pass (outbound traffic policy is REGISTRY_ONLY)"
        )
    return (
        f"{destination.ip} is neither a service nor a workload (outbound traffic policy is "
        "REGISTRY_ONLY)"
    )


def _is_resolved(state: MeshState, source: Workload, destination: SocketAddress) -> bool:
    """Whether Envoy in a gateway's pod may have resolved a name to an address outside."""
    return (
        destination.port in state.resolved_ports(source.gateway)
        and not is_special(destination.ip)
        and not state.is_of_cluster(destination, source.namespace)
    )


def route_udp(
    state: MeshState, source: Workload, destination: SocketAddress, chance: float
) -> Hbone | Refuse:
    """Decide on captured datagrams, which only workloads that accept HBONE may receive.

    `chance` as in `route`; a flow stays with the endpoint that its first datagram selected.
    """
    if state.workload_at(destination.ip) is None:
        virtual = _virtual_address(state, destination, "UDP", source.namespace)
        destination = virtual or destination
    service = state.service_at(destination.ip, source.namespace)
    if service is None or service.is_service_entry:
        target: Route = _route_to_address(state, destination, "")
    else:
        balanced = _balance(state, service, destination, "UDP")
        target = (
            balanced.choose(state, chance) if isinstance(balanced, _BalancedRoute) else balanced
        )
    if isinstance(target, Passthrough):
        return Refuse(f"no workload in the mesh owns the address {target.address.ip}")
    return target


class _BalancedRoute:
    """Several targets, and the route to each of them."""

    __slots__ = ("_backends", "_routes")

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._routes: dict[SocketAddress, Route] = {}

    def choose(self, state: MeshState, chance: float) -> Route:
        target = self._backends.choose(chance)
        found = self._routes.get(target)
        if found is None:
            found = self._routes[target] = self._route(state, target)
        return found

    def _route(self, state: MeshState, target: SocketAddress) -> Route:
        """The route to one of the targets; called once for each."""
        raise NotImplementedError


class _ServiceRoute(_BalancedRoute):
    """A service port with ready endpoints."""

    __slots__ = ("_is_tcp", "_service")

    def __init__(self, service: Service, backends: Backends, *, is_tcp: bool) -> None:
        super().__init__(backends)
        self._service = service
        self._is_tcp = is_tcp

    def _route(self, state: MeshState, target: SocketAddress) -> Route:
        service = self._service
        if target.port in RESERVED and self._is_tcp:
            return Refuse(
                f"service {service.key} targets port {target.port}, which is reserved for the mesh"
            )
        return _route_to_address(state, target, service.hostname or service.key)


class _WaypointRoute(_BalancedRoute):
    """A destination that has a waypoint; the targets are the ready pods of the waypoint."""

    __slots__ = ("_authority", "_pods", "_service")

    def __init__(self, authority: SocketAddress, service: str, pods: WaypointPods) -> None:
        super().__init__(pods.backends)
        self._authority = authority
        self._pods = pods.by_address
        self._service = service

    def _route(self, state: MeshState, target: SocketAddress) -> Route:
        pod = self._pods[target]
        return Hbone(self._authority, target, (pod.identity,), pod, self._service)


def _service_waypoint(
    state: MeshState, service: Service, destination: SocketAddress
) -> _BalancedRoute | Refuse:
    if all((p.port, p.protocol) != (destination.port, "TCP") for p in service.ports):
        return Refuse(f"service {service.key} has no TCP port {destination.port}")
    name = service.hostname or service.key
    return _waypoint(state, service.waypoint, service.waypoint_error, destination, name)


def _waypoint(
    state: MeshState, waypoint: str, error: str, destination: SocketAddress, service: str
) -> _BalancedRoute | Refuse:
    """The route through a waypoint. `destination` becomes the authority."""
    if error:
        return Refuse(error)
    found = ready_pods(state, waypoint, family(destination.ip))
    if isinstance(found, str):
        return Refuse(found)
    return _WaypointRoute(destination, service, found)


def _needs_waypoint(entry: Service, source: Workload) -> bool:
    """Whether connections of the source to the entry's own addresses must pass a waypoint.

    A waypoint selects the service by the networks of the entry. Without networks it cannot.
    """
    return bool(entry.waypoint and not entry.vips and entry.waypoint != source.gateway)


def _balance(
    state: MeshState, service: Service, destination: SocketAddress, protocol: str
) -> _BalancedRoute | Refuse:
    if service.dynamic_ports:
        return Refuse(
            f"the names of {service.hostname} are resolved by a waypoint (DYNAMIC_DNS), and it has "
            "none; hint: label the ServiceEntry or its namespace istio.io/use-waypoint"
        )
    backends = state.backends(service, destination.port, family(destination.ip), protocol)
    if backends is None:
        return Refuse(f"service {service.key} has no {protocol} port {destination.port}")
    if not backends.targets and service.is_service_entry:
        # virtual addresses are allocated in both families, whatever families the endpoints have
        other = 10 - family(destination.ip)  # 4 and 6
        backends = state.backends(service, destination.port, other, protocol) or backends
    if not backends.targets:
        return Refuse(f"service {service.key} has no ready endpoint for port {destination.port}")
    return _ServiceRoute(service, backends, is_tcp=protocol == "TCP")


def _route_to_address(state: MeshState, target: SocketAddress, service: str) -> Hbone | Passthrough:
    workload = state.workload_at(target.ip)
    if workload is None or workload.protocol is not TunnelProtocol.HBONE:
        return Passthrough(target, workload, service)
    tunnel = SocketAddress(target.ip, HBONE)
    return Hbone(target, tunnel, (workload.identity,), workload, service)
