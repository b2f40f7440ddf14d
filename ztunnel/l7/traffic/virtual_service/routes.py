# SPDX-License-Identifier: Apache-2.0
"""The routes of a VirtualService for one service port."""

from __future__ import annotations

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.api.istio.values import Reporter, duration, integer
from ztunnel.l7.config import ClusterRef, Json, RouteTable
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Severity
from ztunnel.l7.traffic.retries import DEFAULT_RETRY
from ztunnel.l7.traffic.virtual_service import actions
from ztunnel.l7.traffic.virtual_service.destinations import Resolver
from ztunnel.l7.traffic.virtual_service.headers import header_fields, host_rewrite
from ztunnel.l7.traffic.virtual_service.matches import ANY, route_match

MAX_ROUTES = 256
_FIELDS = (
    *("name", "match", "route", "redirect", "directResponse", "delegate", "rewrite", "timeout"),
    *("retries", "fault", "mirror", "mirrors", "mirrorPercent", "mirrorPercentage", "corsPolicy"),
    "headers",
)
_SPEC = ("hosts", "gateways", "http", "tls", "tcp", "exportTo")
_NOT_FOUND: Json = {"match": ANY, "direct_response": {"status": 404}}
_REJECTED: Json = {"direct_response": {"status": 500}}
_UNRESOLVED: Json = {"direct_response": {"status": 503}}


class RouteTableBuilder:
    """Builds the routes for HTTP requests."""

    def __init__(self, obj: L7Object, resolver: Resolver) -> None:
        self._object = obj
        self._resolver = resolver
        self._uses: set[ClusterRef] = set()
        self._reporter = Reporter(obj)

    def build(self) -> RouteTable | None:
        """Return the routes; None if the object has none for HTTP."""
        spec, routes = Fields(self._object.spec, "spec."), []
        try:
            spec.allow_only(*_SPEC)
            self._reporter.ignored(spec, "tls", why="has no effect at waypoints; use a TLSRoute")
            given = list(spec.mappings("http"))
            if len(given) > MAX_ROUTES:
                raise spec.error("http", f"at most {MAX_ROUTES} routes")
        except TranslateError as error:
            self._error("spec", f"{error}; requests to its hosts are rejected")
            return self._table([{"match": ANY, **_REJECTED}])
        for number, each in enumerate(given):
            routes += self._route(each, number)
        if not given:
            return None
        return self._table([*routes, _NOT_FOUND])

    def _table(self, routes: list[Json]) -> RouteTable:
        problems = tuple(self._reporter.problems)
        return RouteTable(tuple(routes), frozenset(self._uses), problems)

    def _error(self, path: str, message: str) -> None:
        self._reporter.report(Severity.ERROR, path, message, "Invalid")

    def _route(self, http: Fields, number: int) -> list[Json]:
        where = http.path("").rstrip(".")
        matches = self._matches(http, where)
        if not matches:
            return []
        obj = self._object
        own = f"{obj.kind}/{obj.namespace}/{obj.name}/{number}"
        try:
            http.allow_only(*_FIELDS)
            action = self._action(http)
        except TranslateError as error:
            self._error(where, f"{error}; the requests that the route matches get status 500")
            action = dict(_REJECTED)
        return [{"name": own, "match": match, **action} for match in matches]

    def _matches(self, http: Fields, where: str) -> list[Json]:
        """The matches that can apply; an invalid one matches no request."""
        try:
            given = list(http.mappings("match"))
        except TranslateError as error:
            self._error(where, f"{error}; the route matches no request")
            return []
        found = []
        for each in given:
            try:
                match = route_match(each, self._resolver.port)
            except TranslateError as error:
                message = f"{error}; the match matches no request"
                self._error(each.path("").rstrip("."), message)
                continue
            if match is not None:
                found.append(match)
        return found if given else [dict(ANY)]

    def _action(self, http: Fields) -> Json:
        if http.has("delegate"):
            raise http.error("delegate", "none: waypoints do not support delegation")
        common = header_fields(http.mapping("headers"))
        per_filter: Json = {}
        if http.has("fault"):
            per_filter["envoy.filters.http.fault"] = actions.fault_policy(http.mapping("fault"))
        if http.has("corsPolicy"):
            cors = actions.cors_policy(http.mapping("corsPolicy"))
            per_filter["envoy.filters.http.cors"] = cors
        if per_filter:
            common["typed_per_filter_config"] = per_filter
        if http.has("redirect"):
            port = self._resolver.port
            return {**common, "redirect": actions.redirect_action(http.mapping("redirect"), port)}
        if http.has("directResponse"):
            response = actions.direct_response(http.mapping("directResponse"))
            return {**common, "direct_response": response}
        return {**common, **self._forward(http)}

    def _forward(self, http: Fields) -> Json:
        route: Json = {
            "timeout": duration(http, "timeout", zero=True) or "0s",
            "retry_policy": DEFAULT_RETRY,
        }
        if http.has("retries"):
            del route["retry_policy"]
            route |= actions.retry_policy(http.mapping("retries"))
        clusters = self._clusters(http)
        if not clusters:
            return dict(_UNRESOLVED)
        if len(clusters) == 1 and clusters[0].keys() == {"name", "weight"}:
            route["cluster"] = clusters[0]["name"]
        else:
            route["weighted_clusters"] = {"clusters": clusters}
        route |= host_rewrite(http.mapping("headers"))
        route |= actions.rewrite_fields(http.mapping("rewrite"))
        if mirrors := self._mirrors(http):
            route["request_mirror_policies"] = mirrors
        return {"route": route}

    def _clusters(self, http: Fields) -> list[Json]:
        """The weighted clusters; a destination that cannot be used answers with 503."""
        found = []
        given = list(http.mappings("route"))
        if not given:
            raise http.error("route", "a route, redirect or directResponse")
        for each in given:
            each.allow_only("destination", "weight", "headers")
            weight = integer(each, "weight", 0, 2**31 - 1)
            weight = (100 if len(given) == 1 else 0) if weight is None else weight
            cluster: Json = {"name": self._cluster(each.mapping("destination")), "weight": weight}
            cluster |= header_fields(each.mapping("headers"))
            cluster |= host_rewrite(each.mapping("headers"))
            if weight:
                found.append(cluster)
        if sum(one["weight"] for one in found) >= 2**32:
            raise http.error("route", "weights whose sum is below 2^32")
        return found

    def _cluster(self, destination: Fields) -> str:
        try:
            found = self._resolver.resolve(destination)
        except TranslateError as error:
            path = destination.path("").rstrip(".")
            self._error(path, f"{error}; requests to it get status 503")
            return f"unresolved|{path}"
        if not self._resolver.has_subset(found):
            path = destination.path("subset")
            message = f"no DestinationRule defines subset {found.subset!r}"
            self._error(path, f"{message}; requests to it get status 503")
        self._uses.add(found)
        return found.name

    def _mirrors(self, http: Fields) -> list[Json]:
        found = []
        for each in http.mappings("mirrors"):
            each.allow_only("destination", "percentage")
            share = actions.mirror_share(each, "", "percentage")
            found += self._mirror(each.mapping("destination"), share)
        if http.has("mirror"):
            share = actions.mirror_share(http, "mirrorPercent", "mirrorPercentage")
            found += self._mirror(http.mapping("mirror"), share)
        return found

    def _mirror(self, destination: Fields, share: Json) -> list[Json]:
        """A mirror that cannot be used affects no request."""
        try:
            ref = self._resolver.resolve(destination)
        except TranslateError as error:
            path = destination.path("").rstrip(".")
            self._reporter.report(Severity.IGNORED, path, f"{error}; nothing is mirrored to it")
            return []
        self._uses.add(ref)
        return [{"cluster": ref.name, **share}]
