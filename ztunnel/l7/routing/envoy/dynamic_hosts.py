# SPDX-License-Identifier: Apache-2.0
"""Hosts of ServiceEntries whose names Envoy resolves: resolution DYNAMIC_DNS.

    HTTP   the virtual host of the entry's host ─▶ filter resolves Host ─▶ cluster dials the address
    TLS    the chain of the entry's host, by SNI ─▶ filter resolves SNI ─▶ cluster dials the address

The port is always the entry's, whatever port the request names. Names outside the entry's host
match no virtual host, and no chain. Envoy drops addresses that no external host has from answers
of DNS; the node's DNS proxy drops those of the cluster, which it knows (`ztunnel.proxy.dns`).
"""

from __future__ import annotations

from ztunnel.l7.config import Json
from ztunnel.l7.inputs import Destination
from ztunnel.l7.names import cluster_name
from ztunnel.l7.routing.envoy.extensions import (
    http_filter,
    matcher_input,
    network_filter,
    typed,
)
from ztunnel.mesh.address import SPECIAL_NETWORKS
from ztunnel.mesh.model import Service, ServicePort

MAX_NAMES = 1024  # in the DNS cache of a port: Envoy's default
_QUERY_TIMEOUT = "5s"
_HOST = "envoy.upstream.dynamic_host"  # Envoy's keys
_PORT = "envoy.upstream.dynamic_port"
_BALANCING = ("lb_policy", "load_balancing_policy", "common_lb_config")


def is_dynamic(service: Service | None) -> bool:
    """Whether Envoy resolves the names of a service."""
    return service is not None and bool(service.dynamic_ports)


def without_balancing(policy: Json) -> Json:
    """Return the fields of traffic policies without those of load balancing."""
    return {k: v for k, v in policy.items() if not _is_balancing(k)}


def dynamic_cluster(fields: Json, service: Service, port: ServicePort) -> Json:
    """Return the cluster that dials what the filter has resolved.

    `fields` of the cluster have no load balancing: each name is balanced over its own addresses.
    """
    config: Json = {
        "dns_cache_config": _dns_cache(service, port),
        # Envoy requires a check of the certificate by Host otherwise. `traffic.tls` decides.
        "allow_insecure_cluster_options": True,
    }
    kind = "clusters.dynamic_forward_proxy.v3.ClusterConfig"
    return {
        **fields,
        "lb_policy": "CLUSTER_PROVIDED",
        "cluster_type": typed("envoy.clusters.dynamic_forward_proxy", kind, **config),
    }


def http_fields(destination: Destination) -> Json:
    """Return fields of the connection manager."""
    return {"strip_any_host_port": True} if is_dynamic(destination.service) else {}


def http_filters(destination: Destination) -> tuple[Json, ...]:
    """Return the filters in front of the router; none for other services."""
    service, port = destination.service, destination.port
    if service is None or port is None or not is_dynamic(service):
        return ()
    values = [_state(_HOST, "%REQ(:AUTHORITY)%"), _state(_PORT, str(_target(service, port)))]
    return (
        http_filter("set_filter_state", "set_filter_state.v3.Config", on_request_headers=values),
        http_filter(
            "dynamic_forward_proxy",
            "dynamic_forward_proxy.v3.FilterConfig",
            dns_cache_config=_dns_cache(service, port),
            allow_dynamic_host_from_filter_state=True,
        ),
    )


def network_filters(destination: Destination) -> tuple[Json, ...]:
    """Return the filters in front of TcpProxy; none for other services."""
    service, port = destination.service, destination.port
    if service is None or port is None or not is_dynamic(service):
        return ()
    target = _target(service, port)
    return (
        network_filter(
            "set_filter_state",
            "set_filter_state.v3.Config",
            on_new_connection=[_state(_PORT, str(target))],
        ),
        network_filter(
            "sni_dynamic_forward_proxy",
            "sni_dynamic_forward_proxy.v3.FilterConfig",
            dns_cache_config=_dns_cache(service, port),
            port_value=target,
        ),
    )


def by_host_name(service: Service, on_match: Json) -> Json:
    """OnMatch that applies if the SNI is the host of a service, or below it if it is a wildcard."""
    host = service.hostname
    value = {"suffix": host[1:]} if host.startswith("*.") else {"exact": host}
    predicate = {"input": matcher_input("server_name", "ServerNameInput"), "value_match": value}
    matcher = {"predicate": {"single_predicate": predicate}, "on_match": on_match}
    return {"matcher": {"matcher_list": {"matchers": [matcher]}}}


def _target(service: Service, port: ServicePort) -> int:
    return service.dynamic_ports.get(port.name, port.port)


def _is_balancing(field: str) -> bool:
    return field in _BALANCING or field.endswith("_lb_config")


def _state(key: str, value: str) -> Json:
    return {
        "object_key": key,
        "format_string": {"text_format_source": {"inline_string": value}},
        "read_only": True,
    }


def _dns_cache(service: Service, port: ServicePort) -> Json:
    """The same for filter and cluster, which share the cache by its name."""
    resolver = "network.dns_resolver.cares.v3.CaresDnsResolverConfig"
    return {
        "name": cluster_name(service.key, port.port),
        "dns_lookup_family": "ALL",
        "max_hosts": MAX_NAMES,
        "dns_query_timeout": _QUERY_TIMEOUT,
        "resolved_address_filter": {"ranges": list(_SPECIAL)},
        "typed_dns_resolver_config": typed(
            "envoy.network.dns_resolver.cares",
            resolver,
            # the search list of a pod could make a name of the cluster of it
            dns_resolver_options={"no_default_search_domain": True},
            filter_unroutable_families=True,
        ),
    }


_SPECIAL = tuple(
    {"address_prefix": str(each.network_address), "prefix_len": each.prefixlen}
    for each in SPECIAL_NETWORKS
)
