# SPDX-License-Identifier: Apache-2.0
"""The names and addresses that belong to the cluster, so that no ServiceEntry may claim them.

addresses   of Nodes, of Pods (with those of the host network), ClusterIPs of Services
names       every name that the search list of a pod can make of a Service's full name:
            web.shop, web.shop.svc, web.shop.svc.cluster, the names below them, and wildcards
            that cover them
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ztunnel.mesh.model import DEFAULT_CLUSTER_DOMAIN

ANY = "*"


class ServiceName(NamedTuple):
    """A Service; ANY as `name`, or as both, matches every Service that exists."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class ClusterClaims:
    """Each owner, such as `Pod shop/web`, has the addresses that it was last set to."""

    def __init__(self, cluster_domain: str = DEFAULT_CLUSTER_DOMAIN) -> None:
        self._suffixes = tuple(_suffixes(cluster_domain))
        self._addresses_of: dict[str, tuple[str, ...]] = {}
        self._owners: dict[str, dict[str, None]] = {}  # by address
        self._services: dict[str, dict[str, None]] = {}  # names by namespace

    def set_addresses(self, owner: str, addresses: Iterable[str]) -> set[str]:
        """Set the canonical addresses of an owner; returns those that changed."""
        old, new = self._addresses_of.pop(owner, ()), tuple(addresses)
        if new:
            self._addresses_of[owner] = new
        changed = set(old) ^ set(new)
        for ip in changed:
            owners = self._owners.setdefault(ip, {})
            if ip in new:
                owners[owner] = None
            else:
                owners.pop(owner, None)
            if not owners:
                del self._owners[ip]
        return changed

    def address_owner(self, ip: str) -> str:
        """Return an owner of an address; empty if the cluster has none."""
        return next(iter(self._owners.get(ip, ())), "")

    def put_service(self, service: ServiceName) -> None:
        """A Service exists."""
        self._services.setdefault(service.namespace, {})[service.name] = None

    def drop_service(self, service: ServiceName) -> None:
        """A Service was deleted."""
        names = self._services.get(service.namespace, {})
        names.pop(service.name, None)
        if not names:
            self._services.pop(service.namespace, None)

    def conflicts(self, host: str) -> Iterator[ServiceName]:
        """Yield the Services, which may not exist, whose names a host (`*.` prefix allowed) takes.

        The number is that of the labels of the cluster's domain, at most.
        """
        base = host.removeprefix("*.")
        labels = base.split(".")
        for suffix in self._suffixes:
            if labels[len(labels) - len(suffix) :] != suffix:
                continue
            rest = labels[: len(labels) - len(suffix)]
            if len(rest) >= 2:
                yield ServiceName(rest[-1], rest[-2])
            elif base != host:
                yield ServiceName(rest[0], ANY) if rest else ServiceName(ANY, ANY)

    def existing(self, service: ServiceName) -> ServiceName | None:
        """Return a Service that exists and matches; None if there is none."""
        namespace = service.namespace
        if namespace == ANY:
            namespace = next(iter(self._services), "")
        names = self._services.get(namespace, {})
        name = next(iter(names), "") if service.name == ANY else service.name
        return ServiceName(namespace, name) if name in names else None


def _suffixes(cluster_domain: str) -> Iterator[list[str]]:
    """Yield the ends that a search list may leave: none, svc, svc.cluster, svc.cluster.local."""
    yield []
    labels = ["svc", *cluster_domain.split(".")]
    for count in range(1, len(labels) + 1):
        yield labels[:count]
