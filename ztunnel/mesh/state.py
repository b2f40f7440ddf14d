# SPDX-License-Identifier: Apache-2.0
"""All that a node knows of the mesh, indexed for decisions.

A delta costs what it changes. An address that two workloads claim (see `mesh.claims`) goes to one
of the mesh: a wrong guess is refused by the identity check, and never sent in plaintext.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from operator import attrgetter
from typing import Any, Protocol

from ztunnel.mesh.address_index import AddressIndex
from ztunnel.mesh.model import Service, SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.policy.engine import Change, Policies
from ztunnel.mesh.routing.load_balancer import Backends, backends


class Delta(Change, Protocol):
    """What changed: whole new values, and the names of what is gone."""

    @property
    def workloads(self) -> Sequence[Workload]: ...
    @property
    def services(self) -> Sequence[Service]: ...
    @property
    def removed_workloads(self) -> Sequence[str]: ...
    @property
    def removed_services(self) -> Sequence[str]: ...


class MeshState:
    """Workloads by uid and address; services by key, virtual address and hostname; `policies`.

    `registry_only`: apps may reach nothing but those (Istio's outboundTrafficPolicy REGISTRY_ONLY).
    """

    def __init__(self, registry_only: bool = False) -> None:
        self.registry_only = registry_only
        self.policies = Policies()
        self._workloads: dict[str, Workload] = {}
        self._workload_at = AddressIndex[Workload](attrgetter("uid"), _in_mesh)
        self._services: dict[str, Service] = {}
        self._service_at = AddressIndex[Service](attrgetter("key"), _of_cluster)
        self._service_named = AddressIndex[Service](attrgetter("key"), _of_cluster)
        self._entry_at = AddressIndex[Service](attrgetter("key"), lambda _: True)  # by endpoint
        self._networks: dict[str, Service] = {}  # entries that stand for networks, by key
        # computed since the last delta
        self._backends: dict[tuple[str, int, int, str], Backends] = {}
        self.ways: dict[tuple[str, SocketAddress], Any] = {}  # of `mesh.route`: by namespace, to

    def apply(self, delta: Delta) -> None:
        """Take in a delta: removals first, so that what is named in both is there after."""
        self._backends.clear()
        self.ways.clear()
        for uid in delta.removed_workloads:
            self._drop_workload(uid)
        for key in delta.removed_services:
            self._drop_service(key)
        for workload in delta.workloads:
            self._put_workload(workload)
        for service in delta.services:
            self._put_service(service)
        self.policies.apply(delta)

    def workload(self, uid: str) -> Workload | None:
        """A workload by its mesh-wide uid."""
        return self._workloads.get(uid)

    def workload_at(self, ip: str) -> Workload | None:
        """The workload that has an address (canonical text) now. Host-network pods have none of
        their own, so they are never found by the node's address."""
        return self._workload_at.holder(ip)

    def service(self, key: str) -> Service | None:
        """A service by `namespace/name`."""
        return self._services.get(key)

    def service_at(self, ip: str, namespace: str = "") -> Service | None:
        """The service behind a virtual address (canonical text), as pods of a namespace see it."""
        return _seen(self._service_at.claimants(ip), namespace)

    def service_named(self, hostname: str, namespace: str = "") -> Service | None:
        """The service with a full DNS name, lower case, no final dot, as a namespace sees it."""
        return _seen(self._service_named.claimants(hostname), namespace)

    def entry_at(self, address: SocketAddress, namespace: str) -> Service | None:
        """The ServiceEntry's host that has a place at this address, or stands for its network."""
        for service in self._entry_at.claimants(address.ip):
            places = (each for each in service.endpoints if each.address == address.ip)
            if service.is_seen_by(namespace) and any(
                address.port in each.ports.values() for each in places
            ):
                return service
        return next(
            (each for each in self._networks.values() if _stands_for(each, address, namespace)),
            None,
        )

    def service_called(self, name: str) -> Service | None:
        """The service that a route or a peer names: by full DNS name, or by `namespace/name`."""
        return self._service_named.holder(name) or self._services.get(name)

    def backends(
        self, service: Service, port: int, family: int, protocol: str = "TCP"
    ) -> Backends | None:
        """The ready backends of a service's port for a family; None if it has no such port."""
        key = (service.key, port, family, protocol)
        found = self._backends.get(key)
        if found is None:
            name = next(
                (p.name for p in service.ports if (p.port, p.protocol) == (port, protocol)), None
            )
            if name is None:
                return None
            found = self._backends[key] = backends(service, name, family, self._capacity)
        return found

    def workloads(self) -> Iterator[Workload]:
        """All workloads, in no order."""
        return iter(self._workloads.values())

    def services(self) -> Iterator[Service]:
        """All services, in no order."""
        return iter(self._services.values())

    def _capacity(self, uid: str) -> int:
        workload = self._workloads.get(uid)
        return 1 if workload is None else workload.capacity

    def _put_workload(self, workload: Workload) -> None:
        old = self._workloads.get(workload.uid)
        self._workloads[workload.uid] = workload
        kept = _claimed(workload)
        for ip in _claimed(old):
            if ip not in kept:
                self._workload_at.give_up(ip, workload.uid)
        for ip in kept:
            self._workload_at.claim(ip, workload)

    def _drop_workload(self, uid: str) -> None:
        for ip in _claimed(self._workloads.pop(uid, None)):
            self._workload_at.give_up(ip, uid)

    def _put_service(self, service: Service) -> None:
        old = self._services.get(service.key)
        self._services[service.key] = service
        if old is not None:
            self._forget_names(old, service)
        for ip in service.vips:
            self._service_at.claim(ip, service)
        if service.hostname:
            self._service_named.claim(service.hostname, service)
        for ip in _places(service):
            self._entry_at.claim(ip, service)
        if service.networks:
            self._networks[service.key] = service

    def _drop_service(self, key: str) -> None:
        old = self._services.pop(key, None)
        if old is not None:
            self._forget_names(old, None)

    def _forget_names(self, old: Service, new: Service | None) -> None:
        """What a service is no longer found by."""
        for ip in old.vips:
            if new is None or ip not in new.vips:
                self._service_at.give_up(ip, old.key)
        if new is None or new.hostname != old.hostname:
            self._service_named.give_up(old.hostname, old.key)
        for ip in _places(old) - _places(new):
            self._entry_at.give_up(ip, old.key)
        if new is None or not new.networks:
            self._networks.pop(old.key, None)


def _in_mesh(workload: Workload) -> bool:
    return workload.protocol is TunnelProtocol.HBONE


def _of_cluster(service: Service) -> bool:
    """A Service of the cluster goes before what a ServiceEntry says."""
    return not service.entry


def _seen(services: list[Service], namespace: str) -> Service | None:
    """The first that a namespace sees; of entries its own goes before others."""
    seen = [each for each in services if each.is_seen_by(namespace)]
    own = (each for each in seen if each.namespace == namespace)
    first = next(iter(seen), None)
    return first if first is None or not first.entry else next(own, first)


def _places(service: Service | None) -> set[str]:
    """Where the endpoints of a ServiceEntry's host are."""
    if service is None or not service.entry:
        return set()
    return {each.address for each in service.endpoints}


def _stands_for(service: Service, address: SocketAddress, namespace: str) -> bool:
    return (
        service.is_seen_by(namespace)
        and any(port.port == address.port for port in service.ports)
        and any(ip_address(address.ip) in ip_network(each) for each in service.networks)
    )


def _claimed(workload: Workload | None) -> tuple[str, ...]:
    return () if workload is None or workload.host_network else workload.addresses
