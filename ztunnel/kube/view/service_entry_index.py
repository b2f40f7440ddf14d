# SPDX-License-Identifier: Apache-2.0
"""The ServiceEntries of the cluster as services of the mesh, one per host. A part of the view.

    namespace/host -> Service whose hostname is the host

The services follow the objects, the pods that selectors match, and DNS results, which are injected
through `set_addresses`. If two entries of a namespace have the same host, the entry whose name is
first in alphabetical order wins. An entry that exceeds a limit, or
claims a name or an address of the cluster, is rejected as a whole while it does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from itertools import islice
from typing import TypeVar

from ztunnel.kube.objects.fields import Object, ObjectKey
from ztunnel.kube.objects.service_entries import Entry, is_name, read_entry
from ztunnel.kube.objects.translation import Pod
from ztunnel.kube.objects.virtual_addresses import is_allocatable
from ztunnel.kube.objects.waypoints import Traffic
from ztunnel.kube.view.cluster_claims import ANY, ClusterClaims, ServiceName
from ztunnel.kube.view.tracked_map import TrackedMap
from ztunnel.kube.view.waypoint_index import WaypointIndex
from ztunnel.mesh.model import Endpoint, Service

MAX_DESTINATIONS = 16_384  # of an entry: hosts x addresses x ports x namespaces in exportTo
MAX_NAMESPACE_DESTINATIONS = 65_536  # of all entries of a namespace

Pods = Callable[[str], Iterator[tuple[str, Pod]]]
Endpoints = tuple[Endpoint, ...]
K = TypeVar("K")


class ServiceEntryIndex:
    """`pods(namespace)` returns the pods with their Workload.uid; `services` gets the result."""

    def __init__(
        self,
        cluster_domain: str,
        services: TrackedMap[Service],
        pods: Pods,
        waypoints: WaypointIndex,
    ) -> None:
        self._waypoints = waypoints
        self._cluster_domain = cluster_domain
        self._services = services
        self._pods = pods
        self._entries: dict[ObjectKey, Entry] = {}
        self._keys_in: dict[str, set[ObjectKey]] = defaultdict(set)  # by namespace
        self._entries_of: dict[tuple[str, str], set[ObjectKey]] = defaultdict(set)
        self._with_selector: dict[str, set[ObjectKey]] = defaultdict(set)  # by namespace
        self._resolving: dict[str, set[ObjectKey]] = defaultdict(set)  # by name to resolve
        self._addresses: dict[str, tuple[str, ...]] = {}  # by resolved name
        # The hosts of an entry share one tuple, in memory and in messages to workers.
        self._endpoints: dict[ObjectKey, Endpoints] = {}
        self._sizes: dict[ObjectKey, int] = {}  # see `_size`
        self._claims = ClusterClaims(cluster_domain)
        self._conflicts: dict[ObjectKey, str] = {}  # with the cluster's names and addresses
        self._by_address: dict[str, set[ObjectKey]] = defaultdict(set)
        self._by_service: dict[ServiceName, set[ObjectKey]] = defaultdict(set)
        self._rejected: dict[ObjectKey, str] = {}
        self._stale: set[ObjectKey] = set()
        self._stale_hosts: set[tuple[str, str]] = set()  # (namespace, host)

    def put(self, key: ObjectKey, obj: Object) -> str:
        """Add or replace a ServiceEntry; returns a warning, or "". Raises TranslateError."""
        entry = read_entry(obj, self._cluster_domain)
        known = self._endpoints.get(key)
        self.drop(key)
        if known is not None:
            self._endpoints[key] = known
        self._entries[key] = entry
        self._keys_in[key.namespace].add(key)
        for host in entry.hosts:
            self._entries_of[key.namespace, host].add(key)
        for name in _names(entry):
            self._resolving[name].add(key)
        for ip in _claimed_addresses(entry):
            self._stale.update(self._by_address[ip])
            self._by_address[ip].add(key)
        for service in self._claimed_services(entry):
            self._by_service[service].add(key)
        if entry.selector is not None:
            self._with_selector[key.namespace].add(key)
        self._stale.add(key)
        return self._rejected.get(key, "") or entry.warning or self._conflict(key, entry)

    def warning(self, key: ObjectKey) -> str:
        """What of an entry is not honoured, though it is in force; empty if nothing."""
        entry = self._entries.get(key)
        return entry.warning if entry is not None and key not in self._rejected else ""

    def drop(self, key: ObjectKey) -> None:
        """Remove a ServiceEntry."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._waypoints.forget(key)
        self._endpoints.pop(key, None)
        self._sizes.pop(key, None)
        self._conflicts.pop(key, None)
        self._stale.add(key)
        self._stale_hosts.update((key.namespace, host) for host in entry.hosts)
        _discard(self._keys_in, key.namespace, key)
        _discard(self._with_selector, key.namespace, key)
        for host in entry.hosts:
            _discard(self._entries_of, (key.namespace, host), key)
        for name in _names(entry):
            _discard(self._resolving, name, key)
        for ip in _claimed_addresses(entry):
            _discard(self._by_address, ip, key)
            self._stale.update(self._by_address.get(ip, ()))
        for service in self._claimed_services(entry):
            _discard(self._by_service, service, key)

    def set_cluster_addresses(self, owner: str, addresses: tuple[str, ...]) -> None:
        """Set the addresses of a Node, Pod or Service: no entry may claim them."""
        for ip in self._claims.set_addresses(owner, addresses):
            self._stale.update(self._by_address.get(ip, ()))

    def cluster_address_owner(self, ip: str) -> str:
        """Return the Node, Pod or Service that has an address; empty if there is none."""
        return self._claims.address_owner(ip)

    def put_cluster_service(self, service: ServiceName) -> None:
        """A Service exists: no entry may claim its names."""
        self._claims.put_service(service)
        self._service_changed(service)

    def drop_cluster_service(self, service: ServiceName) -> None:
        """A Service was deleted."""
        self._claims.drop_service(service)
        self._service_changed(service)

    def _service_changed(self, service: ServiceName) -> None:
        namespace = service.namespace
        for each in (service, ServiceName(namespace, ANY), ServiceName(ANY, ANY)):
            self._stale.update(self._by_service.get(each, ()))

    def _claimed_services(self, entry: Entry) -> set[ServiceName]:
        return {each for host in entry.hosts for each in self._claims.conflicts(host)}

    def _cluster_conflict(self, entry: Entry) -> str:
        """Why the entry claims what belongs to the cluster; empty if it does not."""
        for ip in _claimed_addresses(entry):
            if owner := self._claims.address_owner(ip):
                return f"address {ip} belongs to {owner}"
        for ip in filter(is_allocatable, entry.vips):
            for other in sorted(self._by_address.get(ip, ())):
                found = self._entries[other]
                is_allocated = ip in found.all_vips and ip not in found.vips
                if is_allocated and other.namespace != entry.namespace:
                    return f"address {ip} is allocated to {other}"
        for host in entry.hosts:
            for each in self._claims.conflicts(host):
                service = self._claims.existing(each)
                if service is not None:
                    return f"host {host} is, or covers, a name of Service {service}"
        return ""

    def pods_changed(self, namespace: str) -> None:
        """The pods of a namespace have changed."""
        self._stale.update(self._with_selector.get(namespace, ()))

    def waypoint_changed(self, key: ObjectKey) -> None:
        """The waypoint of an entry has changed."""
        self._stale.add(key)

    def namespace_changed(self, namespace: str) -> None:
        """The labels of a namespace have changed: it may have another waypoint."""
        self._stale.update(self._keys_in.get(namespace, ()))

    def names(self) -> set[str]:
        """The names to resolve."""
        return {name for name, keys in self._resolving.items() if not keys <= self._rejected.keys()}

    def set_addresses(self, name: str, addresses: tuple[str, ...]) -> bool:
        """Set the canonical addresses of a name of `names()`; returns whether they differ."""
        if self._addresses.get(name, ()) == addresses:
            return False
        self._addresses[name] = addresses
        self._stale.update(self._resolving.get(name, ()))
        return True

    def join(self) -> dict[ObjectKey, str]:
        """Update the services whose entries, pods or addresses changed.

        Returns the entries that are rejected now, or no longer, with the reason or a warning.
        """
        changed: dict[ObjectKey, str] = {}
        for key in self._stale & self._entries.keys():
            self._endpoints[key] = self._shared_endpoints(key)
            self._conflicts[key] = self._cluster_conflict(self._entries[key])
            self._sizes[key] = self._size(key)
            if self._sizes[key] > MAX_DESTINATIONS:
                self._endpoints[key] = ()  # rejected: needs no memory
        for namespace in {key.namespace for key in self._stale}:
            changed.update(self._update_rejections(namespace))
        for key in (self._stale | changed.keys()) & self._entries.keys():
            self._stale_hosts.update((key.namespace, host) for host in self._entries[key].hosts)
        for namespace, host in sorted(self._stale_hosts):
            accepted = self._entries_of.get((namespace, host), set()) - self._rejected.keys()
            service = self._service(min(accepted), host) if accepted else None
            self._services.put(f"{namespace}/{host}", service)
        self._stale.clear()
        self._stale_hosts.clear()
        return changed

    def _update_rejections(self, namespace: str) -> dict[ObjectKey, str]:
        """Apply the limits to the entries of a namespace, in the order of their names."""
        rejected: dict[ObjectKey, str] = {}
        used = 0
        for key in sorted(self._keys_in.get(namespace, ())):
            size = self._sizes[key]
            reason = self._conflicts[key] or _limit_error(size, used)
            if reason:
                rejected[key] = f"{key}: rejected: {reason}"
            else:
                used += size
        before = {key: why for key, why in self._rejected.items() if key.namespace == namespace}
        for key in before:
            del self._rejected[key]
        self._rejected.update(rejected)
        return {
            key: rejected.get(key) or self._entries[key].warning
            for key in (before.keys() | rejected.keys()) & self._entries.keys()
            if before.get(key) != rejected.get(key)
        }

    def _size(self, key: ObjectKey) -> int:
        """The number of destinations that an entry defines, as the workers index them."""
        entry = self._entries[key]
        vips = sum(len(entry.vips_of(host)) for host in entry.hosts)
        addresses = max(len(entry.hosts), vips + len(entry.hosts) * len(entry.networks))
        addresses += len(entry.hosts) * len(self._endpoints[key])
        if _uses_host_names(entry):
            addresses += sum(len(self._addresses.get(host, ())) for host in entry.hosts)
        return addresses * len(entry.ports) * max(1, len(entry.export_to))

    def _conflict(self, key: ObjectKey, entry: Entry) -> str:
        for host in entry.hosts:
            winner = min(self._entries_of[key.namespace, host])
            if winner != key:
                return f"{key}: host {host} is already defined by {winner}, which has precedence"
        return ""

    def _service(self, key: ObjectKey, host: str) -> Service:
        entry = self._entries[key]
        endpoints = self._endpoints[key]
        waypoint, error, from_ingress = self._waypoints.resolve(key, entry.labels, Traffic.SERVICE)
        if _uses_host_names(entry):
            addresses = self._addresses.get(host, ())
            endpoints = tuple(Endpoint(address=each, ports=entry.targets) for each in addresses)
        return Service(
            namespace=entry.namespace,
            name=host,
            vips=entry.vips_of(host),
            ports=entry.ports,
            endpoints=endpoints,
            hostname=host,
            is_service_entry=True,
            export_to=entry.export_to,
            networks=entry.networks,
            upstream_dns=entry.resolution != "STATIC" and not entry.endpoints,
            waypoint=waypoint,
            waypoint_error=error,
            ingress_use_waypoint=from_ingress,
            entry=entry.name,
            dynamic_ports=entry.targets if entry.resolution == "DYNAMIC_DNS" else {},
        )

    def _shared_endpoints(self, key: ObjectKey) -> Endpoints:
        """The endpoints of all hosts of an entry; an equal value remains the same object."""
        every = islice(self._all_endpoints(self._entries[key]), MAX_DESTINATIONS + 1)
        found = {each.address: each for each in every}
        endpoints = tuple(found.values())
        known = self._endpoints.get(key)
        return known if known == endpoints else endpoints

    def _all_endpoints(self, entry: Entry) -> Iterator[Endpoint]:
        if entry.selector is not None:
            yield from self._selected(entry, entry.selector)
        for each in entry.endpoints:
            addresses: tuple[str, ...] = (each.address,)
            if is_name(each.address):
                addresses = self._addresses.get(each.address, ())
            for address in addresses:
                yield Endpoint(address=address, ports=each.ports)

    def _selected(self, entry: Entry, labels: dict[str, str]) -> Iterator[Endpoint]:
        for uid, pod in self._pods(entry.namespace):
            if pod.is_workload and labels.items() <= pod.labels.items():
                for address in pod.addresses:
                    yield Endpoint(
                        address=address, ports=entry.targets, ready=pod.ready, workload=uid
                    )


def _limit_error(size: int, used: int) -> str:
    if size > MAX_DESTINATIONS:
        return (
            f"hosts x addresses x ports x namespaces in exportTo are {size}, of at most "
            f"{MAX_DESTINATIONS}; hint: split the entry"
        )
    if used + size > MAX_NAMESPACE_DESTINATIONS:
        return (
            f"the entries of its namespace define more than {MAX_NAMESPACE_DESTINATIONS} "
            "destinations; hint: delete some, or export them to fewer namespaces"
        )
    return ""


def _claimed_addresses(entry: Entry) -> set[str]:
    """The virtual addresses, and networks of one address."""
    single = (each for each in entry.networks if each.endswith(("/32", "/128")))
    own = {each.partition("/")[0] for each in single if ip_network(each).num_addresses == 1}
    return own.union(entry.all_vips)


def _uses_host_names(entry: Entry) -> bool:
    """Whether the addresses of each host are those of its own name."""
    return entry.resolution == "DNS" and not entry.endpoints and entry.selector is None


def _names(entry: Entry) -> set[str]:
    if entry.resolution != "DNS":
        return set()
    if entry.endpoints:
        return {each.address for each in entry.endpoints if is_name(each.address)}
    return set(entry.hosts)


def _discard(index: dict[K, set[ObjectKey]], name: K, key: ObjectKey) -> None:
    keys = index.get(name, set())
    keys.discard(key)
    if not keys:
        index.pop(name, None)
