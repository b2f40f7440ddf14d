# SPDX-License-Identifier: Apache-2.0
"""What becomes of the UDP that this node's captured pods send, by destination: a pure decision.

    pod of the mesh, its proxy takes connect-udp ─▶ carried; one of this node: only if encrypted
    pod of the mesh on this node                 ─▶ as it is: judged where it comes in
    any other pod, and it is STRICT              ─▶ refused
    service, all its endpoints of the mesh       ─▶ carried: the proxy chooses one; no ServiceEntry
    service, one of its endpoints refused        ─▶ refused
    all else                                     ─▶ as it is

A change costs what it changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from operator import attrgetter

from ztunnel.datapath.bpf.layout import UdpRoute
from ztunnel.mesh.address import family
from ztunnel.mesh.address_index import AddressIndex
from ztunnel.mesh.enrollment import has_native_tunnel
from ztunnel.mesh.model import Service, SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.mesh.policy.model import MtlsMode, PeerAuthentication
from ztunnel.mesh.state import Delta

Wanted = dict[SocketAddress, UdpRoute]


class UdpRouteTable:
    """All destinations that are not simply left alone. `silent`: nodes without connect-udp."""

    def __init__(self, node: str, policies: PolicyEngine, *, encrypted: bool) -> None:
        self.silent: set[str] = set()
        self.wanted: Wanted = {}
        self.touched: set[SocketAddress] = set()  # of `wanted`, since who reads it emptied this
        self._node = node
        self._policies = policies
        self._encrypted = encrypted
        self._workloads: dict[str, Workload] = {}
        self._services: dict[str, Service] = {}
        self._at = AddressIndex[Workload](
            attrgetter("uid"), lambda one: one.protocol is TunnelProtocol.HBONE
        )
        self._users: defaultdict[str, set[str]] = defaultdict(set)  # services by endpoint's address
        self._claims: defaultdict[SocketAddress, dict[str, UdpRoute]] = defaultdict(dict)
        self._said: dict[str, Wanted] = {}  # by who claims: a workload's uid, a service's key

    def workload(self, uid: str) -> Workload | None:
        """A workload by its mesh-wide uid."""
        return self._workloads.get(uid)

    def workload_at(self, ip: str) -> Workload | None:
        """The workload that has an address now."""
        return self._at.owner(ip)

    def changed(self, change: Delta) -> None:
        """Take in what is new."""
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
        if _concerns_modes(change):
            self.reckon()
            return
        for key in touched & self._services.keys():
            self._say(key, self._of_service(self._services[key]))

    def reckon(self) -> None:
        """Everything anew: policies, or the silent nodes, are others."""
        for uid, workload in self._workloads.items():
            self._say(uid, dict(self._of_workload(workload)))
        for key, service in self._services.items():
            self._say(key, self._of_service(service))

    def at(self, target: SocketAddress) -> UdpRoute:
        """What becomes of UDP to a pod's address and port, by the workload there."""
        workload = self._at.owner(target.ip)
        if workload is None:
            return UdpRoute.NATIVE
        if self._is_carried(workload):
            return UdpRoute.REDIRECT
        strict = self._policies.modes(workload).at(target.port).mode is MtlsMode.STRICT
        return UdpRoute.STRICT if strict and not self._is_near(workload) else UdpRoute.NATIVE

    def _put_workload(self, uid: str, workload: Workload | None) -> set[str]:
        """The services that may be concerned."""
        old = self._workloads.pop(uid, None)
        if workload is not None and workload.host_network:
            workload = None
        for ip in old.addresses if old else ():
            if workload is None or ip not in workload.addresses:
                self._at.release(ip, uid)
        if workload is not None:
            self._workloads[uid] = workload
            for ip in workload.addresses:
                self._at.claim(ip, workload)
            self._say(uid, dict(self._of_workload(workload)))
        else:
            self._say(uid, {})
        both = (*(old.addresses if old else ()), *(workload.addresses if workload else ()))
        return {key for ip in both for key in self._users.get(ip, ())}

    def _put_service(self, key: str, service: Service | None) -> None:
        old = self._services.pop(key, None)
        for one in old.endpoints if old else ():
            self._users[one.address].discard(key)
            if not self._users[one.address]:
                del self._users[one.address]
        if service is None:
            self._say(key, {})
            return
        self._services[key] = service
        for one in service.endpoints:
            self._users[one.address].add(key)
        self._say(key, self._of_service(service))

    def _of_workload(self, workload: Workload) -> Iterator[tuple[SocketAddress, UdpRoute]]:
        if self._is_near(workload):
            return
        carried = self._is_carried(workload)
        modes = self._policies.modes(workload)
        for ip in workload.addresses:
            if carried:
                yield SocketAddress(ip, 0), UdpRoute.REDIRECT
                continue
            strict = modes.general.mode is MtlsMode.STRICT
            if strict:
                yield SocketAddress(ip, 0), UdpRoute.STRICT
            for port, mode in modes.ports.items():
                if (mode.mode is MtlsMode.STRICT) is not strict:
                    yield SocketAddress(ip, port), UdpRoute.NATIVE if strict else UdpRoute.STRICT

    def _of_service(self, service: Service) -> Wanted:
        wanted: Wanted = {}
        for port in () if service.is_service_entry else service.ports:
            if port.protocol != "UDP":
                continue
            for vip in service.vips:
                ways = {
                    self._of_endpoint(SocketAddress(one.address, one.ports[port.name]))
                    for one in service.endpoints
                    if one.ready and port.name in one.ports and family(one.address) == family(vip)
                }
                if UdpRoute.STRICT in ways:
                    wanted[SocketAddress(vip, port.port)] = UdpRoute.STRICT
                elif ways == {UdpRoute.REDIRECT}:
                    wanted[SocketAddress(vip, port.port)] = UdpRoute.REDIRECT
        return wanted

    def _of_endpoint(self, target: SocketAddress) -> UdpRoute:
        workload = self._at.owner(target.ip)
        near = workload is not None and self._is_near(workload)
        return UdpRoute.REDIRECT if near else self.at(target)

    def _is_near(self, workload: Workload) -> bool:
        """Whether it is captured on this node, and reached without the proxy."""
        return workload.node == self._node and not self._encrypted and _is_tunnelled(workload)

    def _is_carried(self, workload: Workload) -> bool:
        return (
            _is_tunnelled(workload)
            and not self._is_near(workload)
            and workload.node not in self.silent
        )

    def _say(self, who: str, wanted: Wanted) -> None:
        """Two may claim an address for a moment: the stricter counts."""
        before = self._said.pop(who, {})
        if wanted:
            self._said[who] = wanted
        for at in before.keys() - wanted.keys():
            del self._claims[at][who]
        for at, what in wanted.items():
            self._claims[at][who] = what
        for at in before.keys() | wanted.keys():
            self._settle(at)

    def _settle(self, at: SocketAddress) -> None:
        self.touched.add(at)
        claims = self._claims[at]
        if claims:
            self.wanted[at] = max(claims.values())
        else:
            del self._claims[at]
            self.wanted.pop(at, None)


def _is_tunnelled(workload: Workload) -> bool:
    """Whether a node's proxy speaks for it; a sidecar takes TCP only."""
    return workload.protocol is TunnelProtocol.HBONE and not has_native_tunnel(workload.labels)


def _concerns_modes(change: Delta) -> bool:
    """Whether others may be STRICT than before. Authorization is the destination's matter."""
    return any(isinstance(one, PeerAuthentication) for one in change.policies) or any(
        key.startswith("PeerAuthentication/") for key in change.removed_policies
    )
