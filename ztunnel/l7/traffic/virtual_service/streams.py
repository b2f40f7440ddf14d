# SPDX-License-Identifier: Apache-2.0
"""The TCP routes of a VirtualService for one service port."""

from __future__ import annotations

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.api.istio.values import Reporter, integer
from ztunnel.l7.config import ClusterRef, Json, StreamTable
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.traffic.virtual_service.destinations import Resolver
from ztunnel.l7.traffic.virtual_service.selection import is_for_mesh

_MATCH = ("port", "gateways", "destinationSubnets", "sourceLabels", "sourceNamespace")
# No cluster has this name: Envoy closes the connections.
_UNRESOLVED = "unresolved|tcp"


class StreamTableBuilder:
    """Selects the first route that applies to a port; None if there is none."""

    def __init__(self, obj: L7Object, resolver: Resolver) -> None:
        self._object = obj
        self._resolver = resolver
        self._uses: set[ClusterRef] = set()
        self._reporter = Reporter(obj)
        spec = Fields(obj.spec, "spec.")
        self._reporter.ignored(spec, "tls", why="has no effect at waypoints; use a TLSRoute")

    def build(self) -> StreamTable | None:
        """Return where connections go; an invalid route closes them."""
        spec = Fields(self._object.spec, "spec.")
        try:
            for route in spec.mappings("tcp"):
                if self._applies(route):
                    return self._table(self._clusters(route))
        except TranslateError as error:
            self._error("spec.tcp", f"{error}; the connections are closed")
            return self._table([{"name": _UNRESOLVED, "weight": 1}])
        return None

    @property
    def problems(self) -> tuple[Problem, ...]:
        """What is wrong, also if no route applies."""
        return tuple(self._reporter.problems)

    def _table(self, clusters: list[Json]) -> StreamTable:
        fields: Json = {"weighted_clusters": {"clusters": clusters}}
        if len(clusters) == 1:
            fields = {"cluster": clusters[0]["name"]}
        return StreamTable(fields, frozenset(self._uses), self.problems)

    def _applies(self, route: Fields) -> bool:
        route.allow_only("match", "route")
        matches = list(route.mappings("match"))
        found = not matches
        for each in matches:
            each.allow_only(*_MATCH)
            for name in ("destinationSubnets", "sourceLabels", "sourceNamespace"):
                if each.has(name):
                    raise each.error(name, "none: waypoints match port and gateways")
            found |= each.port("port") in (None, self._resolver.port) and is_for_mesh(each)
        return found

    def _clusters(self, route: Fields) -> list[Json]:
        given = list(route.mappings("route"))
        if not given:
            raise route.error("route", "destinations")
        found: list[Json] = []
        for each in given:
            each.allow_only("destination", "weight")
            weight = integer(each, "weight", 0, 2**31 - 1)
            weight = (100 if len(given) == 1 else 0) if weight is None else weight
            name = self._cluster(each.mapping("destination"))
            if weight:
                found.append({"name": name, "weight": weight})
        if not found or sum(one["weight"] for one in found) >= 2**32:
            raise route.error("route", "weights whose sum is from 1 to 2^32 - 1")
        return found

    def _cluster(self, destination: Fields) -> str:
        try:
            found = self._resolver.resolve(destination)
        except TranslateError as error:
            path = destination.path("").rstrip(".")
            self._error(path, f"{error}; connections to it are closed")
            return _UNRESOLVED
        self._uses.add(found)
        return found.name

    def _error(self, path: str, message: str) -> None:
        self._reporter.report(Severity.ERROR, path, message, "Invalid")
