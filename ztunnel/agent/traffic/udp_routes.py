# SPDX-License-Identifier: Apache-2.0
"""Decides the route of UDP that this node's captured pods send, by destination; does no I/O.

    pod of the mesh, its proxy supports connect-udp -> redirect; a local pod only if encrypted
    pod of the mesh on this node                    -> native: authorized at the destination
    any other pod that requires mTLS                -> strict: the kernel drops it
    service, all its endpoints are in the mesh      -> redirect: the proxy selects an endpoint;
                                                       not for a ServiceEntry
    service, one of its endpoints requires mTLS     -> strict
    everything else                                 -> native
    object beyond its namespace's share             -> refused, see `udp_route_share`

The cost of a change is proportional to its size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from operator import attrgetter

from ztunnel.agent.traffic.udp_route_share import Routes, RouteShares
from ztunnel.datapath.bpf.layout import UdpRoute
from ztunnel.mesh.address import family
from ztunnel.mesh.address_index import AddressIndex
from ztunnel.mesh.enrollment import has_native_tunnel
from ztunnel.mesh.model import Service, SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.mesh.policy.model import MtlsMode, PeerAuthentication
from ztunnel.mesh.state import Delta


class UdpRouteTable:
    """`routes` has all destinations that are not native."""

    def __init__(self, node: str, policies: PolicyEngine, *, encrypted: bool) -> None:
        self.routes: Routes = {}
        self.shares = RouteShares()
        self._changed: set[SocketAddress] = set()  # keys of `routes`, since `pop_changed`
        self._without_connect_udp: set[str] = set()  # Workload.uid
        self._node = node
        self._policies = policies
        self._encrypted = encrypted
        self._workloads: dict[str, Workload] = {}
        self._services: dict[str, Service] = {}
        self._by_address = AddressIndex[Workload](
            attrgetter("uid"), lambda workload: workload.protocol is TunnelProtocol.HBONE
        )
        self._services_of: defaultdict[str, set[str]] = defaultdict(set)  # by endpoint address
        self._claims: defaultdict[SocketAddress, dict[str, UdpRoute]] = defaultdict(dict)
        self._routes_of: dict[str, Routes] = {}  # by claimant: Workload.uid or Service.key

    def workload(self, uid: str) -> Workload | None:
        """A workload by its mesh-wide uid."""
        return self._workloads.get(uid)

    def workload_at(self, ip: str) -> Workload | None:
        """The workload that has an address now."""
        return self._by_address.owner(ip)

    def apply(self, change: Delta) -> None:
        """Update the routes that a change affects."""
        touched: set[str] = set()
        for uid in change.removed_workloads:
            touched |= self._put_workload(uid, None)
        for key in change.removed_services:
            self._put_service(key, None)
        for workload in change.workloads:
            touched |= self._put_workload(workload.uid, workload)
        for service in change.services:
            self._put_service(service.key, service)
            touched.discard(service.key)
        if _affects_mtls_modes(change):
            self._recompute()
            return
        for key in touched & self._services.keys():
            self._set_service_routes(self._services[key])
        self._retry_refused()

    def set_without_connect_udp(self, uids: set[str]) -> None:
        """Do not redirect UDP to these workloads, and only to these."""
        changed = (self._without_connect_udp ^ uids) & self._workloads.keys()
        self._without_connect_udp = uids
        touched: set[str] = set()
        for uid in changed:
            workload = self._workloads[uid]
            self._set_workload_routes(workload)
            touched.update(*(self._services_of.get(ip, ()) for ip in workload.addresses))
        for key in touched:
            self._set_service_routes(self._services[key])
        self._retry_refused()

    def pop_changed(self) -> set[SocketAddress]:
        """The destinations whose route may have changed since the last call."""
        changed, self._changed = self._changed, set()
        return changed

    def _recompute(self) -> None:
        for workload in self._workloads.values():
            self._set_workload_routes(workload)
        for service in self._services.values():
            self._set_service_routes(service)
        self._retry_refused()

    def _retry_refused(self) -> None:
        for name in self.shares.pop_retries():
            if name in self._workloads:
                self._set_workload_routes(self._workloads[name])
            else:
                self._set_service_routes(self._services[name])

    def route_of(self, target: SocketAddress) -> UdpRoute:
        """The route of UDP to the workload with this address, and to this port of it."""
        workload = self._by_address.owner(target.ip)
        if workload is None:
            return UdpRoute.NATIVE
        if self._is_redirected(workload):
            return UdpRoute.REDIRECT
        strict = self._policies.modes(workload).at(target.port).mode is MtlsMode.STRICT
        return UdpRoute.STRICT if strict and not self._is_local(workload) else UdpRoute.NATIVE

    def _put_workload(self, uid: str, workload: Workload | None) -> set[str]:
        """Set or remove a workload; returns the keys of services that may be affected."""
        old = self._workloads.pop(uid, None)
        if workload is not None and workload.host_network:
            workload = None
        for ip in old.addresses if old else ():
            if workload is None or ip not in workload.addresses:
                self._by_address.release(ip, uid)
        if workload is not None:
            self._workloads[uid] = workload
            for ip in workload.addresses:
                self._by_address.claim(ip, workload)
            self._set_workload_routes(workload)
        elif old is not None:
            self._set_routes(uid, old.namespace, {})
        addresses = (*(old.addresses if old else ()), *(workload.addresses if workload else ()))
        return {key for ip in addresses for key in self._services_of.get(ip, ())}

    def _put_service(self, key: str, service: Service | None) -> None:
        old = self._services.pop(key, None)
        for endpoint in old.endpoints if old else ():
            self._services_of[endpoint.address].discard(key)
            if not self._services_of[endpoint.address]:
                del self._services_of[endpoint.address]
        if service is None:
            if old is not None:
                self._set_routes(key, old.namespace, {})
            return
        self._services[key] = service
        for endpoint in service.endpoints:
            self._services_of[endpoint.address].add(key)
        self._set_service_routes(service)

    def _set_workload_routes(self, workload: Workload) -> None:
        self._set_routes(workload.uid, workload.namespace, dict(self._of_workload(workload)))

    def _set_service_routes(self, service: Service) -> None:
        self._set_routes(service.key, service.namespace, self._of_service(service))

    def _of_workload(self, workload: Workload) -> Iterator[tuple[SocketAddress, UdpRoute]]:
        if self._is_local(workload):
            return
        redirected = self._is_redirected(workload)
        modes = self._policies.modes(workload)
        for ip in workload.addresses:
            if redirected:
                yield SocketAddress(ip, 0), UdpRoute.REDIRECT
                continue
            strict = modes.general.mode is MtlsMode.STRICT
            if strict:
                yield SocketAddress(ip, 0), UdpRoute.STRICT
            for port, mode in modes.ports.items():
                if (mode.mode is MtlsMode.STRICT) is not strict:
                    yield SocketAddress(ip, port), UdpRoute.NATIVE if strict else UdpRoute.STRICT

    def _of_service(self, service: Service) -> Routes:
        routes: Routes = {}
        for port in () if service.is_service_entry else service.ports:
            if port.protocol != "UDP":
                continue
            # not of external IPs: any author of a service could claim the addresses of others
            for vip in (*service.vips, *service.load_balancer_ips):
                endpoint_routes = {
                    self._of_endpoint(SocketAddress(one.address, one.ports[port.name]))
                    for one in service.endpoints
                    if one.ready and port.name in one.ports and family(one.address) == family(vip)
                }
                if UdpRoute.STRICT in endpoint_routes:
                    routes[SocketAddress(vip, port.port)] = UdpRoute.STRICT
                elif endpoint_routes == {UdpRoute.REDIRECT}:
                    routes[SocketAddress(vip, port.port)] = UdpRoute.REDIRECT
        return routes

    def _of_endpoint(self, target: SocketAddress) -> UdpRoute:
        workload = self._by_address.owner(target.ip)
        is_local = workload is not None and self._is_local(workload)
        return UdpRoute.REDIRECT if is_local else self.route_of(target)

    def _is_local(self, workload: Workload) -> bool:
        """Whether it is a captured pod of this node, which the proxy is bypassed for."""
        return workload.node == self._node and not self._encrypted and _has_node_proxy(workload)

    def _is_redirected(self, workload: Workload) -> bool:
        return (
            _has_node_proxy(workload)
            and not self._is_local(workload)
            and workload.uid not in self._without_connect_udp
        )

    def _set_routes(self, claimant: str, namespace: str, routes: Routes) -> None:
        """Set the routes of a workload or a service, as far as the namespace's share permits."""
        routes = self.shares.fit(claimant, namespace, routes)
        before = self._routes_of.pop(claimant, {})
        if routes:
            self._routes_of[claimant] = routes
        for at in before.keys() - routes.keys():
            del self._claims[at][claimant]
        for at, route in routes.items():
            self._claims[at][claimant] = route
        for at in before.keys() | routes.keys():
            self._resolve_claims(at)

    def _resolve_claims(self, at: SocketAddress) -> None:
        """Two claimants may have an address for a moment: the stricter route wins."""
        self._changed.add(at)
        claims = self._claims[at]
        if claims:
            self.routes[at] = max(claims.values())
        else:
            del self._claims[at]
            self.routes.pop(at, None)


def _has_node_proxy(workload: Workload) -> bool:
    """Whether a node's proxy accepts its HBONE; a sidecar supports TCP only."""
    return workload.protocol is TunnelProtocol.HBONE and not has_native_tunnel(workload.labels)


def _affects_mtls_modes(change: Delta) -> bool:
    """Whether mTLS modes may differ. Authorization policies do not affect the sender."""
    return any(isinstance(one, PeerAuthentication) for one in change.policies) or any(
        key.startswith("PeerAuthentication/") for key in change.removed_policies
    )
