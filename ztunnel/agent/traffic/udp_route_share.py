# SPDX-License-Identifier: Apache-2.0
"""Bounds the entries of the kernel's UDP route map that the objects of one namespace use.

Beyond the share, an object with several routes for an address gets a single one instead, which
refuses UDP to all ports of that address. The object concerned fails closed, and no other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from ztunnel.datapath.bpf.layout import UdpRoute
from ztunnel.mesh.model import SocketAddress

MAX_ROUTES_PER_NAMESPACE = 8192  # an eighth of ZT_MAX_UDP_ROUTES

Routes = dict[SocketAddress, UdpRoute]


class RouteShares:
    """The use of every namespace. Objects are named by uid or key, as in the route table."""

    def __init__(self, limit: int = MAX_ROUTES_PER_NAMESPACE) -> None:
        self._limit = limit
        self._used: Counter[str] = Counter()  # routes by namespace
        self._size: dict[str, int] = {}  # routes by object
        self._refused: defaultdict[str, set[str]] = defaultdict(set)  # objects by namespace
        self._freed: set[str] = set()  # namespaces with room for refused objects

    @property
    def used(self) -> Mapping[str, int]:
        """The routes of each namespace."""
        return self._used

    @property
    def refused(self) -> dict[str, int]:
        """The number of objects that exceed the share, by namespace."""
        return {namespace: len(objects) for namespace, objects in self._refused.items()}

    def fit(self, name: str, namespace: str, routes: Routes) -> Routes:
        """The routes that an object gets instead of `routes`, its former ones being released."""
        before = self._size.pop(name, 0)
        self._used[namespace] -= before
        if self._used[namespace] + len(routes) <= self._limit:
            self._refused[namespace].discard(name)
        else:
            granted = _one_per_address(routes)
            if granted != routes:
                self._refused[namespace].add(name)
            routes = granted
        if routes:
            self._size[name] = len(routes)
        self._used[namespace] += len(routes)
        self._drop_empty(namespace)
        if len(routes) < before and namespace in self._refused:
            self._freed.add(namespace)
        return routes

    def pop_retries(self) -> list[str]:
        """The refused objects of namespaces that released routes since the last call."""
        freed, self._freed = self._freed, set()
        return sorted(name for namespace in freed for name in self._refused.get(namespace, ()))

    def _drop_empty(self, namespace: str) -> None:
        if not self._used[namespace]:
            del self._used[namespace]
        if not self._refused[namespace]:
            del self._refused[namespace]


def _one_per_address(routes: Routes) -> Routes:
    """The only route of an address; or, in place of several, one that refuses all ports."""
    ports = Counter(at.ip for at in routes)
    return {
        (at if ports[at.ip] == 1 else SocketAddress(at.ip, 0)): (
            route if ports[at.ip] == 1 else UdpRoute.REFUSED
        )
        for at, route in routes.items()
    }
