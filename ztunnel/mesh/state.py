# SPDX-License-Identifier: Apache-2.0
"""The mesh state of a node, indexed for decisions.

The cost of a delta is proportional to the delta. If two workloads claim one address (see
`mesh.address_index`), a workload that accepts HBONE owns it: if that is wrong, the identity check
rejects the connection, and no plaintext is sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any, NamedTuple, Protocol

from ztunnel.mesh.address import translated
from ztunnel.mesh.address_index import AddressIndex
from ztunnel.mesh.destination_index import DestinationIndex
from ztunnel.mesh.load_balancer import Backends, ready_backends
from ztunnel.mesh.model import Service, SocketAddress, TunnelProtocol, Workload
from ztunnel.mesh.policy.engine import PolicyChange, PolicyEngine


class Delta(PolicyChange, Protocol):
    """A change of the mesh: complete new values, and the keys of removed ones."""

    @property
    def workloads(self) -> Sequence[Workload]: ...
    @property
    def services(self) -> Sequence[Service]: ...
    @property
    def removed_workloads(self) -> Sequence[str]: ...
    @property
    def removed_services(self) -> Sequence[str]: ...


class ServiceAddress(NamedTuple):
    """A port of a service."""

    service: Service
    port: int


class _ExternalAddresses:
    """Finds services by addresses that are not virtual, and port and protocol.

    Addresses of load balancers are set by the cluster. External IPs are what the author of a
    service writes: they count for clients of its namespace only, so that others are unaffected.
    """

    def __init__(self) -> None:
        self._indexes = [_index() for _ in range(3)]

    def find(
        self, address: SocketAddress, protocol: str, namespace: str, *, is_node: bool
    ) -> Service | None:
        """Return the service at an address for clients of a namespace; `is_node`: of a node."""
        balancers, external, node_ports = self._indexes
        key = _external_key(address.ip, address.port, protocol)
        found = balancers.owner(key) or external.owner(f"{namespace} {key}")
        if found is None and is_node:
            found = node_ports.owner(_external_key("", address.port, protocol))
        return found

    def put(self, old: Service | None, new: Service | None) -> None:
        """Replace a service. Nearly all services have no such address."""
        before, after = _external_keys(old), _external_keys(new)
        for index, had, has in zip(self._indexes, before, after, strict=True):
            for key in had - has:
                index.release(key, old.key if old is not None else "")
            if new is not None:
                for key in has:
                    index.claim(key, new)


def _index() -> AddressIndex[Service]:
    return AddressIndex[Service](attrgetter("key"), lambda _: False)


def _external_key(ip: str, port: int, protocol: str) -> str:
    return f"{ip} {port} {protocol}"


def _external_keys(service: Service | None) -> tuple[set[str], set[str], set[str]]:
    """The keys in the three indexes."""
    if service is None:
        return set(), set(), set()
    ports = [(each.port, each.protocol) for each in service.ports]
    external = [f"{service.namespace} {ip}" for ip in service.external_ips]
    return (
        {_external_key(ip, *port) for ip in service.load_balancer_ips for port in ports},
        {_external_key(ip, *port) for ip in external for port in ports},
        {_external_key("", p.node_port, p.protocol) for p in service.ports if p.node_port},
    )


class MeshState:
    """Workloads by uid and address; services by key, virtual address and hostname; `policies`.

    `registry_only`: applications may reach no other destinations (Istio's outboundTrafficPolicy
    REGISTRY_ONLY). `same_node_direct`: connections within this node need no tunnel.
    """

    def __init__(self, registry_only: bool = False, *, same_node_direct: bool = False) -> None:
        self.registry_only = registry_only
        self.same_node_direct = same_node_direct
        self.policies = PolicyEngine()
        self._workloads: dict[str, Workload] = {}
        self._workload_at = AddressIndex[Workload](attrgetter("uid"), _accepts_hbone)
        self._services: dict[str, Service] = {}
        self._service_at = AddressIndex[Service](attrgetter("key"), _is_kubernetes_service)
        self._service_by_hostname = AddressIndex[Service](attrgetter("key"), _is_kubernetes_service)
        self._destinations = DestinationIndex()  # of ServiceEntry hosts
        self._external = _ExternalAddresses()
        self._dynamic: dict[str, Service] = {}  # those with `dynamic_ports`, by key
        self._host_network: Counter[str] = Counter()  # addresses of nodes, as their pods have them
        # caches, valid until the next delta
        self._backends: dict[tuple[str, int, int, str], Backends] = {}
        self.route_cache: dict[
            tuple[str, SocketAddress], Any
        ] = {}  # of `routing.outbound`, by the source's Gateway or namespace, and destination

    def apply(self, delta: Delta) -> None:
        """Apply a delta: removals first, so that an object in both lists exists afterwards."""
        self._backends.clear()
        self.route_cache.clear()
        for uid in delta.removed_workloads:
            self._remove_workload(uid)
        for key in delta.removed_services:
            self._remove_service(key)
        for workload in delta.workloads:
            self._put_workload(workload)
        for service in delta.services:
            self._put_service(service)
        self.policies.apply(delta)

    def workload(self, uid: str) -> Workload | None:
        """Return a workload by its mesh-wide uid."""
        return self._workloads.get(uid)

    def workload_at(self, ip: str) -> Workload | None:
        """Return the workload that owns an address (canonical).

        Host-network pods own no address, so the node's address never finds one.
        """
        return self._workload_at.owner(ip)

    def service(self, key: str) -> Service | None:
        """Return a service by `namespace/name`."""
        return self._services.get(key)

    def service_at(self, ip: str, namespace: str = "") -> Service | None:
        """Return the service of a virtual address (canonical), as visible to a namespace."""
        return _first_visible(self._service_at.claimants(ip), namespace)

    def external_service_at(
        self, address: SocketAddress, protocol: str, namespace: str
    ) -> ServiceAddress | None:
        """Return the service that nodes serve at an address (canonical) outside the cluster.

        That is an address of a load balancer, an external IP, or a node's with a node port. Nodes
        are known by the addresses of their host-network pods, such as the agent.
        """
        is_node = address.ip in self._host_network
        service = self._external.find(address, protocol, namespace, is_node=is_node)
        if service is None:
            return None
        ports = [each for each in service.ports if each.protocol == protocol]
        for each in ports:
            if each.port == address.port and address.ip in service.outside_ips:
                return ServiceAddress(service, each.port)
        number = next((each.port for each in ports if each.node_port == address.port), 0)
        return ServiceAddress(service, number)

    def services_at(self, ip: str) -> Iterator[Service]:
        """Iterate over all services that claim a virtual address (canonical)."""
        return self._service_at.claimants(ip)

    def services_by_hostname(self, hostname: str) -> Iterator[Service]:
        """Iterate over all services that claim a DNS name (lower case)."""
        return self._service_by_hostname.claimants(hostname)

    def service_by_hostname(self, hostname: str, namespace: str = "") -> Service | None:
        """Return the service of a DNS name, as visible to a namespace."""
        return _first_visible(self._service_by_hostname.claimants(hostname), namespace)

    def service_entry_at(self, address: SocketAddress, namespace: str) -> Service | None:
        """Return the ServiceEntry host with this endpoint address, or a CIDR that contains it."""
        return self._destinations.find(address, namespace)

    def waypoint_entry_at(self, address: SocketAddress, waypoint: str) -> Service | None:
        """Return the ServiceEntry host with this waypoint that covers a destination."""
        return self._destinations.find_of_waypoint(address, waypoint)

    def resolves_name(self, gateway: str, name: str) -> bool:
        """Return whether the Envoys of a gateway resolve a DNS name (lower case) themselves."""
        hosts = {each.hostname for each in self._dynamic.values() if each.waypoint == gateway}
        return bool(hosts) and any(host in hosts for host in _covering_hosts(name))

    def resolved_ports(self, gateway: str) -> frozenset[int]:
        """Return the ports at which the Envoys of a gateway dial names that they have resolved."""
        services = (each for each in self._dynamic.values() if each.waypoint == gateway)
        return frozenset(port for each in services for port in each.dynamic_ports.values())

    def is_cluster_address(self, ip: str) -> bool:
        """Return whether a pod, a Service, a host of a ServiceEntry or a node has an address."""
        return (
            self._workload_at.owner(ip) is not None
            or ip in self._host_network
            or next(self._service_at.claimants(ip), None) is not None
        )

    def is_of_cluster(self, address: SocketAddress, namespace: str) -> bool:
        """Return whether the cluster has an address, or serves it outside, as with load balancers.

        So it does if the address is translated to one of the cluster. `namespace`: of the client.
        """
        found = {address, SocketAddress(translated(address.ip), address.port)}
        return any(
            self.is_cluster_address(each.ip)
            or self.external_service_at(each, "TCP", namespace) is not None
            for each in found
        )

    def service_by_name(self, name: str) -> Service | None:
        """Return a service by full DNS name, or by `namespace/name`."""
        return self._service_by_hostname.owner(name) or self._services.get(name)

    def backends(
        self, service: Service, port: int, family: int, protocol: str = "TCP"
    ) -> Backends | None:
        """Return the ready backends of a service port and family; None if there is no such port."""
        key = (service.key, port, family, protocol)
        found = self._backends.get(key)
        if found is None:
            name = next(
                (p.name for p in service.ports if (p.port, p.protocol) == (port, protocol)), None
            )
            if name is None:
                return None
            found = self._backends[key] = ready_backends(service, name, family, self._capacity)
        return found

    def workloads(self) -> Iterator[Workload]:
        """Iterate over all workloads, in no particular order."""
        return iter(self._workloads.values())

    def services(self) -> Iterator[Service]:
        """Iterate over all services, in no particular order."""
        return iter(self._services.values())

    def _capacity(self, uid: str) -> int:
        workload = self._workloads.get(uid)
        return 1 if workload is None else workload.capacity

    def _put_workload(self, workload: Workload) -> None:
        old = self._workloads.get(workload.uid)
        self._workloads[workload.uid] = workload
        current = _claimed_addresses(workload)
        for ip in _claimed_addresses(old):
            if ip not in current:
                self._workload_at.release(ip, workload.uid)
        for ip in current:
            self._workload_at.claim(ip, workload)
        self._host_network.update(_node_addresses(workload))
        self._forget_node_addresses(old)

    def _remove_workload(self, uid: str) -> None:
        old = self._workloads.pop(uid, None)
        for ip in _claimed_addresses(old):
            self._workload_at.release(ip, uid)
        self._forget_node_addresses(old)

    def _forget_node_addresses(self, workload: Workload | None) -> None:
        for ip in _node_addresses(workload):
            self._host_network[ip] -= 1
            if not self._host_network[ip]:
                del self._host_network[ip]

    def _put_service(self, service: Service) -> None:
        old = self._services.get(service.key)
        self._services[service.key] = service
        self._external.put(old, service)
        if old is not None:
            self._remove_stale_keys(old, service)
        for ip in service.vips:
            self._service_at.claim(ip, service)
        if service.hostname:
            self._service_by_hostname.claim(service.hostname, service)
        if service.is_service_entry:
            self._destinations.put(service)
        if service.dynamic_ports:
            self._dynamic[service.key] = service

    def _remove_service(self, key: str) -> None:
        old = self._services.pop(key, None)
        if old is not None:
            self._external.put(old, None)
            self._remove_stale_keys(old, None)

    def _remove_stale_keys(self, old: Service, new: Service | None) -> None:
        """Remove the index keys that the new value no longer has."""
        for ip in old.vips:
            if new is None or ip not in new.vips:
                self._service_at.release(ip, old.key)
        if new is None or new.hostname != old.hostname:
            self._service_by_hostname.release(old.hostname, old.key)
        if new is None or not new.is_service_entry:
            self._destinations.remove(old.key)
        if new is None or not new.dynamic_ports:
            self._dynamic.pop(old.key, None)


def _accepts_hbone(workload: Workload) -> bool:
    return workload.protocol is TunnelProtocol.HBONE


def _is_kubernetes_service(service: Service) -> bool:
    """Services of the cluster take precedence over ServiceEntries."""
    return not service.is_service_entry


def _first_visible(services: Iterable[Service], namespace: str) -> Service | None:
    """Return the first visible service; the namespace's own ServiceEntries take precedence."""
    first: Service | None = None
    for each in services:
        if not each.is_visible_to(namespace):
            continue
        first = first or each
        if not first.is_service_entry or each.namespace == namespace:
            return each
    return first


def _node_addresses(workload: Workload | None) -> tuple[str, ...]:
    return workload.addresses if workload is not None and workload.host_network else ()


def _covering_hosts(name: str) -> Iterator[str]:
    """Yield the name, and the wildcards that cover it."""
    yield name
    while "." in name:
        name = name.partition(".")[2]
        yield f"*.{name}"


def _claimed_addresses(workload: Workload | None) -> tuple[str, ...]:
    return () if workload is None or workload.host_network else workload.addresses
