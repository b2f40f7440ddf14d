# SPDX-License-Identifier: Apache-2.0
"""Rules of HTTPRoute and GRPCRoute as routes of Envoy."""

from __future__ import annotations

from dataclasses import dataclass, field

from ztunnel.l7.api.request_rules import Backend, Cors, Redirect, Retry, Rewrite, Rule
from ztunnel.l7.api.route_common import route_problem
from ztunnel.l7.api.route_fields import BackendRef, HeaderModifier, Mirror
from ztunnel.l7.config import ClusterRef, Json
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.problems import Problem
from ztunnel.l7.routing.envoy.matches import route_match
from ztunnel.l7.routing.envoy.route_filters import (
    cors_policy,
    header_fields,
    host_rewrite,
    redirect_action,
    rewrite_fields,
    session_policy,
)
from ztunnel.l7.routing.precedence import Entry
from ztunnel.l7.routing.references import resolve
from ztunnel.l7.routing.units import UNRESOLVED
from ztunnel.l7.traffic.retries import DEFAULT_RETRY, duration, retry_policy
from ztunnel.mesh.model import Service


@dataclass
class RouteBuilder:
    """Builds the routes of one service port, or of a gateway's listener (`service` is None), and
    collects the clusters that they use.

    `port`, `scheme`: of the requests, for redirects.
    """

    inputs: Inputs
    service: Service | None
    port: int
    scheme: str = "http"
    uses: set[ClusterRef] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    def build(self, entry: Entry, namespace: str = "") -> Json:
        """Return the route of a match; `namespace` limits it to clients of a namespace."""
        rule = entry.rule
        obj = entry.route.obj
        route: Json = {
            "name": f"{obj.kind}/{obj.namespace}/{obj.name}/{entry.number}",
            "match": route_match(entry.match, namespace),
        }
        if rule.error:
            return {**route, **_unavailable(obj.kind)}
        for each in rule.filters:
            if isinstance(each, HeaderModifier):
                route |= header_fields(each)
        per_filter: Json = {}
        for each in rule.filters:
            if isinstance(each, Cors):
                per_filter["envoy.filters.http.cors"] = cors_policy(each)
        if rule.session is not None:
            per_filter["envoy.filters.http.stateful_session"] = session_policy(rule.session)
        if per_filter:
            route["typed_per_filter_config"] = per_filter
        return {**route, **self._action(entry)}

    def _action(self, entry: Entry) -> Json:
        for each in entry.rule.filters:
            if isinstance(each, Redirect):
                return {"redirect": redirect_action(each, entry.match, self.port, self.scheme)}
        clusters = self._clusters(entry)
        if not clusters:
            return _unavailable(entry.route.obj.kind)
        action: Json = {**_target(clusters), **_limits(entry.rule)}
        if entry.route.obj.kind == "HTTPRoute":
            action["cluster_not_found_response_code"] = "INTERNAL_SERVER_ERROR"
        for each in entry.rule.filters:
            if isinstance(each, Rewrite):
                action |= rewrite_fields(each, entry.match)
            elif isinstance(each, HeaderModifier) and not each.of_response:
                action = {**host_rewrite(each), **action}  # a rewrite takes precedence
        mirrors = [
            policy
            for each in entry.rule.filters
            if isinstance(each, Mirror)
            for policy in self._mirror(entry, each)
        ]
        if mirrors:
            action["request_mirror_policies"] = mirrors
        return {"route": action}

    def _clusters(self, entry: Entry) -> list[Json]:
        return [
            self._cluster(entry, backend) for backend in entry.rule.backends if backend.ref.weight
        ]

    def _cluster(self, entry: Entry, backend: Backend) -> Json:
        found = self._resolve(entry, backend.ref)
        if backend.error or found is None:
            return {"name": UNRESOLVED, "weight": backend.ref.weight}
        self.uses.add(found)
        cluster: Json = {"name": found.name, "weight": backend.ref.weight}
        for each in backend.filters:
            cluster |= header_fields(each)
            if not each.of_response:
                cluster |= host_rewrite(each)
        return cluster

    def _resolve(self, entry: Entry, ref: BackendRef) -> ClusterRef | None:
        obj = entry.route.obj
        found = resolve(self.inputs, obj, self.service, ref)
        if found.cluster is None:
            self.problems.append(route_problem(obj, ref.where, found.message, found.reason))
        return found.cluster

    def _mirror(self, entry: Entry, mirror: Mirror) -> list[Json]:
        """A copy of a request needs no backend: one that does not exist affects no request."""
        found = self._resolve(entry, mirror.backend)
        if found is None or not mirror.numerator:
            return []
        self.uses.add(found)
        policy: Json = {"cluster": found.name, "disable_shadow_host_suffix_append": True}
        if mirror.numerator != mirror.denominator:
            policy["runtime_fraction"] = {"default_value": _per_million(mirror)}
        return [policy]


def _unavailable(kind: str) -> Json:
    """Gateway API: 500 for HTTPRoute, UNAVAILABLE for GRPCRoute, to which Envoy maps 503."""
    return {"direct_response": {"status": 503 if kind == "GRPCRoute" else 500}}


def _target(clusters: list[Json]) -> Json:
    if len(clusters) == 1 and clusters[0].keys() == {"name", "weight"}:
        return {"cluster": clusters[0]["name"]}
    return {"weighted_clusters": {"clusters": clusters}}


def _limits(rule: Rule) -> Json:
    """Timeouts and retries; Istio has no timeout by default."""
    policy = DEFAULT_RETRY if rule.retry is None else _retry(rule.retry)
    if rule.backend_timeout_s:
        policy = {**policy, "per_try_timeout": duration(rule.backend_timeout_s)}
    return {"timeout": duration(rule.request_timeout_s or 0), "retry_policy": policy}


def _retry(retry: Retry) -> Json:
    return retry_policy(codes=retry.codes, attempts=retry.attempts, backoff_s=retry.backoff_s)


def _per_million(mirror: Mirror) -> Json:
    share = round(mirror.numerator * 1_000_000 / mirror.denominator)
    return {"numerator": share, "denominator": "MILLION"}
