# SPDX-License-Identifier: Apache-2.0
"""The ServiceEntries of the cluster as services of the mesh, one per host. A part of the view.

    namespace/host -> Service whose hostname is the host

The services follow the objects, the pods that selectors match, and DNS results, which are injected
through `set_addresses`. If two entries of a namespace have the same host, the entry whose name is
first in alphabetical order wins.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

from ztunnel.kube.objects.fields import Object, ObjectKey
from ztunnel.kube.objects.service_entries import Entry, is_name, read_entry
from ztunnel.kube.objects.translation import Pod
from ztunnel.kube.view.tracked_map import TrackedMap
from ztunnel.mesh.model import Endpoint, Service

Pods = Callable[[str], Iterator[tuple[str, Pod]]]


class ServiceEntryIndex:
    """`pods(namespace)` returns the pods with their Workload.uid; `services` gets the result."""

    def __init__(self, cluster_domain: str, services: TrackedMap[Service], pods: Pods) -> None:
        self._cluster_domain = cluster_domain
        self._services = services
        self._pods = pods
        self._entries: dict[ObjectKey, Entry] = {}
        self._entries_of: dict[tuple[str, str], set[ObjectKey]] = defaultdict(set)
        self._with_selector: dict[str, set[ObjectKey]] = defaultdict(set)  # by namespace
        self._addresses: dict[str, tuple[str, ...]] = {}  # by resolved name
        self._stale: set[tuple[str, str]] = set()  # (namespace, host)

    def put(self, key: ObjectKey, obj: Object) -> str:
        """Add or replace a ServiceEntry; returns a warning, or "". Raises TranslateError."""
        entry = read_entry(obj, self._cluster_domain)
        self.drop(key)
        self._entries[key] = entry
        for host in entry.hosts:
            self._entries_of[key.namespace, host].add(key)
            self._stale.add((key.namespace, host))
        if entry.selector is not None:
            self._with_selector[key.namespace].add(key)
        return entry.warning or self._conflict(key, entry)

    def drop(self, key: ObjectKey) -> None:
        """Remove a ServiceEntry."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        for host in entry.hosts:
            self._stale.add((key.namespace, host))
            self._entries_of[key.namespace, host].discard(key)
            if not self._entries_of[key.namespace, host]:
                del self._entries_of[key.namespace, host]
        self._with_selector[key.namespace].discard(key)
        if not self._with_selector[key.namespace]:
            del self._with_selector[key.namespace]

    def pods_changed(self, namespace: str) -> None:
        """The pods of a namespace have changed."""
        for key in self._with_selector.get(namespace, ()):
            self._stale.update((namespace, host) for host in self._entries[key].hosts)

    def names(self) -> set[str]:
        """The names to resolve."""
        names: set[str] = set()
        for entry in self._entries.values():
            if entry.resolution == "DNS":
                names.update(_names(entry))
        return names

    def set_addresses(self, name: str, addresses: tuple[str, ...]) -> bool:
        """Set the canonical addresses of a name of `names()`; returns whether they differ."""
        if self._addresses.get(name, ()) == addresses:
            return False
        self._addresses[name] = addresses
        for entry in self._entries.values():
            if entry.resolution == "DNS" and name in _names(entry):
                self._stale.update((entry.namespace, host) for host in entry.hosts)
        return True

    def join(self) -> None:
        """Update the services whose entries, pods or addresses changed."""
        for namespace, host in sorted(self._stale):
            keys = self._entries_of.get((namespace, host))
            service = self._service(self._entries[min(keys)], host) if keys else None
            self._services.put(f"{namespace}/{host}", service)
        self._stale.clear()

    def _conflict(self, key: ObjectKey, entry: Entry) -> str:
        for host in entry.hosts:
            winner = min(self._entries_of[key.namespace, host])
            if winner != key:
                return f"{key}: host {host} is already defined by {winner}, which has precedence"
        return ""

    def _service(self, entry: Entry, host: str) -> Service:
        uses_own_dns = entry.resolution != "STATIC" and not entry.endpoints
        return Service(
            namespace=entry.namespace,
            name=host,
            vips=entry.vips,
            ports=entry.ports,
            endpoints=tuple({each.address: each for each in self._endpoints(entry, host)}.values()),
            hostname=host,
            is_service_entry=True,
            export_to=entry.export_to,
            networks=entry.networks,
            upstream_dns=uses_own_dns,
        )

    def _endpoints(self, entry: Entry, host: str) -> Iterator[Endpoint]:
        if entry.selector is not None:
            yield from self._selected(entry, entry.selector)
        elif entry.resolution == "DNS" and not entry.endpoints:
            for address in self._addresses.get(host, ()):
                yield Endpoint(address=address, ports=entry.targets)
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


def _names(entry: Entry) -> set[str]:
    if entry.endpoints:
        return {each.address for each in entry.endpoints if is_name(each.address)}
    return set(entry.hosts)
