# SPDX-License-Identifier: Apache-2.0
"""The ServiceEntries of the cluster as services of the mesh, one a host.

    namespace/host ──▶ a Service whose hostname is the host

Kept in step with the objects, with the pods that selectors take, and with what names resolve to,
which someone who may ask tells by `resolved`. Of two entries of a namespace with one host the one
whose name comes first counts. A part of the mirror.
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


class EntryBook:
    """`pods(namespace)` are the pods there with their Workload.uid; `services` gets the result."""

    def __init__(self, cluster_domain: str, services: TrackedMap[Service], pods: Pods) -> None:
        self._cluster_domain = cluster_domain
        self._services = services
        self._pods = pods
        self._entries: dict[ObjectKey, Entry] = {}
        self._of_host: dict[tuple[str, str], set[ObjectKey]] = defaultdict(set)
        self._selecting: dict[str, set[ObjectKey]] = defaultdict(set)  # by namespace
        self._resolved: dict[str, tuple[str, ...]] = {}
        self._stale: set[tuple[str, str]] = set()  # (namespace, host)

    def put(self, key: ObjectKey, obj: Object) -> str:
        """Take in a ServiceEntry; what of it is not as written. Raises TranslateError."""
        entry = read_entry(obj, self._cluster_domain)
        self.drop(key)
        self._entries[key] = entry
        for host in entry.hosts:
            self._of_host[key.namespace, host].add(key)
            self._stale.add((key.namespace, host))
        if entry.selector is not None:
            self._selecting[key.namespace].add(key)
        return entry.warning or self._contested(key, entry)

    def drop(self, key: ObjectKey) -> None:
        """Forget a ServiceEntry."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        for host in entry.hosts:
            self._stale.add((key.namespace, host))
            self._of_host[key.namespace, host].discard(key)
            if not self._of_host[key.namespace, host]:
                del self._of_host[key.namespace, host]
        self._selecting[key.namespace].discard(key)
        if not self._selecting[key.namespace]:
            del self._selecting[key.namespace]

    def pods_changed(self, namespace: str) -> None:
        """Pods there are other than they were."""
        for key in self._selecting.get(namespace, ()):
            self._stale.update((namespace, host) for host in self._entries[key].hosts)

    def names(self) -> set[str]:
        """What is to be resolved."""
        found: set[str] = set()
        for entry in self._entries.values():
            if entry.resolution == "DNS":
                found.update(_names(entry))
        return found

    def resolved(self, name: str, addresses: tuple[str, ...]) -> bool:
        """A name of `names()` has these addresses now, canonical; whether that is news."""
        if self._resolved.get(name, ()) == addresses:
            return False
        self._resolved[name] = addresses
        for entry in self._entries.values():
            if entry.resolution == "DNS" and name in _names(entry):
                self._stale.update((entry.namespace, host) for host in entry.hosts)
        return True

    def join(self) -> None:
        """Bring the services up to date."""
        for namespace, host in sorted(self._stale):
            keys = self._of_host.get((namespace, host))
            made = self._service(self._entries[min(keys)], host) if keys else None
            self._services.put(f"{namespace}/{host}", made)
        self._stale.clear()

    def _contested(self, key: ObjectKey, entry: Entry) -> str:
        for host in entry.hosts:
            first = min(self._of_host[key.namespace, host])
            if first != key:
                return f"{key}: {host} is that of {first}, which comes first"
        return ""

    def _service(self, entry: Entry, host: str) -> Service:
        itself = entry.resolution != "STATIC" and not entry.endpoints
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
            upstream_dns=itself,
        )

    def _endpoints(self, entry: Entry, host: str) -> Iterator[Endpoint]:
        if entry.selector is not None:
            yield from self._selected(entry, entry.selector)
        elif entry.resolution == "DNS" and not entry.endpoints:
            for address in self._resolved.get(host, ()):
                yield Endpoint(address=address, ports=entry.targets)
        for each in entry.endpoints:
            found = self._resolved.get(each.address, ()) if is_name(each.address) else None
            for address in (each.address,) if found is None else found:
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
