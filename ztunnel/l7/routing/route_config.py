# SPDX-License-Identifier: Apache-2.0
"""Route configurations of a waypoint."""

from __future__ import annotations

from ztunnel.l7.config import Json

# Istio's defaults (istio/istio, pilot/pkg/networking/core/route/retry). A retry selects another
# endpoint than the one that failed.
DEFAULT_RETRY: Json = {
    "retry_on": "connect-failure,refused-stream,unavailable,cancelled,reset-before-request",
    "num_retries": 2,
    "retry_host_predicate": [
        {
            "name": "envoy.retry_host_predicates.previous_hosts",
            "typed_config": {
                "@type": "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3"
                ".PreviousHostsPredicate"
            },
        }
    ],
    "host_selection_retry_max_attempts": "5",
}


def forward_all(name: str, cluster: str) -> Json:
    """Return a route configuration that forwards all requests to a cluster."""
    return route_configuration(name, [{"match": {"prefix": "/"}, "route": forward(cluster)}])


def forward(cluster: str) -> Json:
    """Return a route action without a timeout, Istio's default."""
    return {"cluster": cluster, "timeout": "0s", "retry_policy": DEFAULT_RETRY}


def route_configuration(name: str, routes: list[Json]) -> Json:
    """Return a route configuration with these routes for all hosts.

    The destination of the connection selects the configuration, so that hosts do not matter.
    """
    return {
        "name": name,
        "virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}],
        "validate_clusters": False,
    }
