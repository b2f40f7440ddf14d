# SPDX-License-Identifier: Apache-2.0
"""UDP listeners: the oldest UDPRoute applies; a client's datagrams go to one endpoint.

    listener :53/udp ─▶ udp_proxy ─▶ one cluster ─▶ a locality per backend, with its weight

Envoy's UDP proxy selects a single cluster, so the cluster has the endpoints of all backends. The
share of a backend that is invalid or has no endpoints goes to the discard port, where it is lost.
"""

from __future__ import annotations

from collections.abc import Iterator

from ztunnel.l7.api.route_common import route_problem
from ztunnel.l7.api.route_fields import BackendRef
from ztunnel.l7.api.stream_route import StreamRoute
from ztunnel.l7.config import Json
from ztunnel.l7.ingress.port_listener import listen_address
from ztunnel.l7.ingress.units import ChainUnit, Known, StreamListener
from ztunnel.l7.inputs import Destination, Inputs, Protocol
from ztunnel.l7.problems import Problem, Severity, problem_of
from ztunnel.l7.routing.envoy.clusters import endpoint_list
from ztunnel.l7.routing.envoy.extensions import typed
from ztunnel.l7.routing.envoy.hcm import ADS
from ztunnel.l7.routing.protocols import service_port
from ztunnel.l7.routing.references import resolve
from ztunnel.l7.security.filters import effective_policies, filters
from ztunnel.l7.security.networks import Admission, admission
from ztunnel.l7.telemetry import fields as telemetry

SESSION_IDLE_TIMEOUT = "30s"  # a client is a source address and port; DNS clients use many
MAX_SESSIONS = 32_768  # of a listener; each has a socket
MAX_DATAGRAM_BYTES = 9_000  # larger ones are dropped; Envoy's default of 1,500 is small for LANs
_STAT_PREFIX = "ingress"
# 127.0.0.1, discard (RFC 863): in a pod, nothing listens there.
_DISCARD: Json = {
    "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9}}}
}
_FILTER = "filters.udp.udp_proxy.v3"


def udp_unit(inputs: Inputs, known: Known, stream: StreamListener) -> ChainUnit:
    """Return the listener of a UDP port, and its cluster."""
    if not stream.routes:
        return ChainUnit()
    route = stream.routes[0].route
    assert isinstance(route, StreamRoute)
    destination = Destination(gateway=known.spec.key, protocol=Protocol.TCP, edge=known.edge)
    port = stream.listener.listener.port
    policies = filters(inputs, destination)
    admitted = admission(effective_policies(inputs, destination), port)
    problems = [*policies.problems, *route.problems]
    if not admitted.is_exact:
        problems.append(_closed(stream))
        return ChainUnit(problems=tuple(problems))
    localities = []
    for ref in route.backends:
        found = _endpoints(inputs, route, ref)
        if isinstance(found, Problem):
            problems.append(found)
        if ref.weight:
            endpoints = [_DISCARD] if isinstance(found, Problem) or not found else found
            localities.append(_locality(ref, endpoints))
    if not localities or admitted.networks == ():
        return ChainUnit(problems=tuple(problems))
    name = f"udp|{stream.name}"
    return ChainUnit(
        clusters={name: _cluster(name)},
        endpoints={name: {"cluster_name": name, "endpoints": localities}},
        problems=tuple(problems),
        udp=_listener(inputs, known, destination, port, _route(name, admitted)),
    )


def _endpoints(inputs: Inputs, route: StreamRoute, ref: BackendRef) -> list[Json] | Problem:
    resolution = resolve(inputs, route.obj, None, ref)
    if resolution.cluster is None:
        return route_problem(route.obj, ref.where, resolution.message, resolution.reason)
    service = inputs.mesh.service(resolution.cluster.service)
    port = service_port(service, resolution.cluster.port, "UDP")
    return [] if service is None or port is None else endpoint_list(inputs, service, port)


def _locality(ref: BackendRef, endpoints: list[Json]) -> Json:
    return {
        "locality": {"region": ref.where},
        "lb_endpoints": endpoints,
        "load_balancing_weight": ref.weight,
    }


def _cluster(name: str) -> Json:
    return {
        "name": name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": ADS, "service_name": name},
        "common_lb_config": {"locality_weighted_lb_config": {}},
        "circuit_breakers": {"thresholds": [{"max_connections": MAX_SESSIONS}]},
    }


def _listener(
    inputs: Inputs, known: Known, destination: Destination, port: int, route: Json
) -> Json:
    proxy = typed(
        "envoy.filters.udp_listener.udp_proxy",
        f"{_FILTER}.UdpProxyConfig",
        stat_prefix=_STAT_PREFIX,
        idle_timeout=SESSION_IDLE_TIMEOUT,
        upstream_socket_config={"max_rx_datagram_size": MAX_DATAGRAM_BYTES},
        matcher=route,
        **telemetry.udp(inputs, destination),
    )
    address = {"protocol": "UDP", **listen_address(port, has_ipv6=known.edge.has_ipv6)}
    return {
        "name": f"ingress|{port}|udp",
        "address": {"socket_address": address},
        "traffic_direction": "OUTBOUND",
        "udp_listener_config": {
            "downstream_socket_config": {"max_rx_datagram_size": MAX_DATAGRAM_BYTES}
        },
        "listener_filters": [proxy],
    }


def _route(cluster: str, admitted: Admission) -> Json:
    """Datagrams of other clients match nothing and are dropped."""
    action = {
        "name": "route",
        "typed_config": {"@type": f"type.googleapis.com/envoy.extensions.{_FILTER}.Route"}
        | {"cluster": cluster},
    }
    if admitted.networks is None:
        return {"on_no_match": {"action": action}}
    source = typed("source", "matching.common_inputs.network.v3.SourceIPInput")
    networks = typed(
        "envoy.matching.matchers.ip",
        "matching.input_matchers.ip.v3.Ip",
        stat_prefix=_STAT_PREFIX,
        cidr_ranges=list(_ranges(admitted.networks)),
    )
    predicate = {"single_predicate": {"input": source, "custom_match": networks}}
    matchers = [{"predicate": predicate, "on_match": {"action": action}}]
    return {"matcher_list": {"matchers": matchers}}


def _ranges(networks: tuple[str, ...]) -> Iterator[Json]:
    for each in networks:
        address, _, length = each.partition("/")
        yield {"address_prefix": address, "prefix_len": int(length)}


def _closed(stream: StreamListener) -> Problem:
    owner = stream.listener.listener.owner
    return problem_of(
        owner,
        field=stream.listener.listener.where,
        message=(
            "an AuthorizationPolicy depends on more than the client's address, which cannot be "
            "enforced for UDP: the listener is closed"
        ),
        severity=Severity.ERROR,
        reason="UnsupportedValue",
    )
