# SPDX-License-Identifier: Apache-2.0
"""All that a node knows of the mesh, indexed for decisions. May import `mesh`.

A delta costs what it changes. An address that two workloads claim (see `mesh.claims`) goes to one
of the mesh: a wrong guess is refused by the identity check, and never sent in plaintext.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Protocol

from ztunnel.mesh.authorize import Change, Policies
from ztunnel.mesh.backends import Backends, backends
from ztunnel.mesh.claims import Claims
from ztunnel.mesh.model import Service, TunnelProtocol, Workload


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
        self._workload_at = Claims[Workload](attrgetter("uid"), _in_mesh)
        self._services: dict[str, Service] = {}
        self._service_at = Claims[Service](attrgetter("key"), lambda _: True)
        self._service_named: dict[str, Service] = {}
        self._backends: dict[
            tuple[str, int, int, str], Backends
        ] = {}  # computed since the last delta

    def apply(self, delta: Delta) -> None:
        """Take in a delta: removals first, so that what is named in both is there after."""
        self._backends.clear()
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

    def service_at(self, ip: str) -> Service | None:
        """The service behind a virtual address (canonical text)."""
        return self._service_at.holder(ip)

    def service_named(self, hostname: str) -> Service | None:
        """The service with a full DNS name, lower case, no final dot."""
        return self._service_named.get(hostname)

    def service_called(self, name: str) -> Service | None:
        """The service that a route or a peer names: by full DNS name, or by `namespace/name`."""
        return self._service_named.get(name) or self._services.get(name)

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
            self._service_named[service.hostname] = service

    def _drop_service(self, key: str) -> None:
        old = self._services.pop(key, None)
        if old is not None:
            self._forget_names(old, None)

    def _forget_names(self, old: Service, new: Service | None) -> None:
        """What a service is no longer found by."""
        for ip in old.vips:
            if new is None or ip not in new.vips:
                self._service_at.give_up(ip, old.key)
        if self._service_named.get(old.hostname) is old:
            del self._service_named[old.hostname]


def _in_mesh(workload: Workload) -> bool:
    return workload.protocol is TunnelProtocol.HBONE


def _claimed(workload: Workload | None) -> tuple[str, ...]:
    return () if workload is None or workload.host_network else workload.addresses
