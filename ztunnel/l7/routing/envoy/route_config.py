# SPDX-License-Identifier: Apache-2.0
"""Route configurations of a waypoint."""

from __future__ import annotations

from collections.abc import Sequence

from ztunnel.l7.api.request_rules import RequestRoute
from ztunnel.l7.config import Json
from ztunnel.l7.routing.attachment import PRODUCER, PortRoutes
from ztunnel.l7.routing.envoy.matches import from_namespace
from ztunnel.l7.routing.envoy.request_routes import RouteBuilder
from ztunnel.l7.routing.precedence import in_order
from ztunnel.l7.traffic.retries import DEFAULT_RETRY

ANY_HOST = ("*",)
_NOT_FOUND = {"direct_response": {"status": 404}}  # for gRPC, Envoy makes it UNIMPLEMENTED


def port_route_configuration(
    name: str,
    routes: PortRoutes,
    builder: RouteBuilder,
    default: Sequence[Json],
    domains: Sequence[str] = ANY_HOST,
) -> Json:
    """Return the route configuration of a service port.

    A group of routes answers 404 to requests that none of them matches. `default`: the routes for
    clients to which no group applies. `domains`: the hosts of requests; others get 404.
    """
    found: list[Json] = []
    for group, members in sorted(routes.groups.items(), reverse=True):  # PRODUCER is last
        requests = [r for r in members if isinstance(r, RequestRoute)]
        found += [builder.build(entry, group) for entry in in_order(requests)]
        if group != PRODUCER:
            match = {"prefix": "/", "filter_state": [from_namespace(group)]}
            found.append({"match": match, **_NOT_FOUND})
    if PRODUCER not in routes.groups:
        found += default
    return route_configuration(name, found, domains)


def forward_all(name: str, cluster: str) -> Json:
    """Return a route configuration that forwards all requests to a cluster."""
    return route_configuration(name, [forward(cluster)])


def forward(cluster: str) -> Json:
    """Return a route that forwards all requests, without a timeout: Istio's default."""
    action = {"cluster": cluster, "timeout": "0s", "retry_policy": DEFAULT_RETRY}
    return {"match": {"prefix": "/"}, "route": action}


def route_configuration(name: str, routes: list[Json], domains: Sequence[str] = ANY_HOST) -> Json:
    """Return a route configuration with these routes.

    The destination of the connection selects the configuration, so that hosts do not matter,
    unless they select what Envoy dials.
    """
    return {
        "name": name,
        "virtual_hosts": [{"name": name, "domains": list(domains), "routes": routes}],
        "validate_clusters": False,
    }
