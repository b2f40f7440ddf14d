# SPDX-License-Identifier: Apache-2.0
"""Clusters and endpoints of service ports, and of pods that are addressed directly."""

from __future__ import annotations

from collections.abc import Mapping

from ztunnel.l7.config import ClusterRef, Json
from ztunnel.l7.inputs import Inputs, Protocol
from ztunnel.l7.routing.envoy.dynamic_hosts import dynamic_cluster, is_dynamic, without_balancing
from ztunnel.l7.routing.envoy.hcm import ADS
from ztunnel.l7.routing.protocols import declared_protocol, service_port
from ztunnel.l7.routing.units import ClusterUnit
from ztunnel.l7.telemetry import fields as telemetry
from ztunnel.l7.traffic import cluster as traffic
from ztunnel.l7.traffic.endpoints import arrange
from ztunnel.l7.traffic.merging import merge_fields
from ztunnel.mesh.model import Endpoint, Service, ServicePort, Workload

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_H2: Json = {"allow_connect": True}
# A backend gets the version of HTTP that the client uses, unless its port declares HTTP/2.
_UPSTREAM: dict[Protocol, Json] = {
    Protocol.HTTP: {
        "use_downstream_protocol_config": {
            "http_protocol_options": {},
            "http2_protocol_options": _H2,
        }
    },
    Protocol.HTTP2: {"explicit_http_config": {"http2_protocol_options": _H2}},
}
_DIAL_TIMEOUT = "10s"  # Istio's default, meshConfig.connectTimeout


# An ingress gateway translates: browsers use HTTP/2 that few backends accept without TLS.
_EDGE_UPSTREAM: dict[Protocol, Json] = {
    **_UPSTREAM,
    Protocol.HTTP: {"explicit_http_config": {"http_protocol_options": {}}},
}


def service_cluster(
    inputs: Inputs, gateway: str, ref: ClusterRef, *, at_edge: bool = False
) -> ClusterUnit:
    """Return the cluster of a service port with its ready endpoints.

    `at_edge`: for an ingress gateway.
    """
    service = inputs.mesh.service(ref.service)
    port = service_port(service, ref.port)
    if service is None or port is None:
        return ClusterUnit(None, None)
    protocol = _protocol(port, ref)
    policy = traffic.cluster_fields(inputs, gateway, service, port, ref.subset, protocol=protocol)
    options = _protocol_options(protocol, _EDGE_UPSTREAM if at_edge else _UPSTREAM)
    common: Json = {"connect_timeout": _DIAL_TIMEOUT, **options}
    is_own = service.waypoint == gateway  # others cannot restrict the destinations
    if is_own and not policy.rejected and not policy.labels:
        common |= _metadata(telemetry.endpoint_metadata(inputs, service, None))
        fields = {"name": ref.name, **merge_fields(common, without_balancing(policy.fields))}
        if is_dynamic(service):
            found = dynamic_cluster(fields, service, port)
            return ClusterUnit(found, None, policy.problems)
        if service.networks:
            found = {**fields, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED"}
            return ClusterUnit(found, None, policy.problems)
    common = {"connect_timeout": _DIAL_TIMEOUT, **options}
    cluster: Json = {
        "name": ref.name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": ADS, "service_name": ref.name},
        **common,
    }
    localities = [
        {"lb_endpoints": [_endpoint(inputs, service, port, e) for e in g.endpoints], **g.fields}
        for g in arrange(inputs, policy, _ready(service, port))
    ]
    assignment: Json = {"cluster_name": ref.name}
    if localities:
        assignment["endpoints"] = localities
    fields = traffic.without_tls(policy.fields) if ref.opaque else policy.fields
    return ClusterUnit(merge_fields(cluster, fields), assignment, policy.problems)


def endpoint_list(inputs: Inputs, service: Service, port: ServicePort) -> list[Json]:
    """Return the LbEndpoints of the ready endpoints of a service port."""
    return [_endpoint(inputs, service, port, each) for each in _ready(service, port)]


def waypoint_cluster(inputs: Inputs, ref: ClusterRef) -> ClusterUnit | None:
    """Return the cluster of an ingress gateway for a service that clients of gateways reach through
    its waypoint; None for other services.

    Its only endpoint is the service's address, so that the node proxy tunnels to the waypoint. The
    traffic policy of the service is the waypoint's task.
    """
    service = inputs.mesh.service(ref.service)
    port = service_port(service, ref.port)
    if service is None or port is None or not service.ingress_use_waypoint or not service.vips:
        return None
    protocol = _protocol(port, ref)
    cluster: Json = {
        "name": ref.name,
        "type": "EDS",
        "eds_cluster_config": {"eds_config": ADS, "service_name": ref.name},
        "connect_timeout": _DIAL_TIMEOUT,
        **_protocol_options(protocol, _EDGE_UPSTREAM),
    }
    address = {"address": service.vips[0], "port_value": port.port}
    endpoint = {
        "endpoint": {"address": {"socket_address": address}},
        **_metadata(telemetry.endpoint_metadata(inputs, service, None)),
    }
    assignment: Json = {"cluster_name": ref.name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return ClusterUnit(merge_fields(cluster, traffic.default_fields(protocol)), assignment)


def pod_cluster(inputs: Inputs, workload: Workload, name: str) -> Json:
    """Return a cluster that dials the pod's address and port that the client has dialed."""
    owner = Service(namespace=workload.namespace, name="")
    return {
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": _DIAL_TIMEOUT,
        **_protocol_options(Protocol.HTTP, _UPSTREAM),
        **_metadata(telemetry.endpoint_metadata(inputs, owner, workload)),
    }


def _protocol(port: ServicePort, ref: ClusterRef) -> Protocol:
    found = declared_protocol(port) or Protocol.HTTP
    return Protocol.HTTP2 if found is Protocol.HTTP and ref.http2 else found


def _protocol_options(protocol: Protocol, upstream: Mapping[Protocol, Json]) -> Json:
    config = upstream.get(protocol)
    if config is None:
        return {}
    options = {"@type": f"type.googleapis.com/{_HTTP_OPTIONS}", **config}
    return {"typed_extension_protocol_options": {_HTTP_OPTIONS: options}}


def _ready(service: Service, port: ServicePort) -> tuple[Endpoint, ...]:
    """The ready endpoints. A dual-stack pod is one endpoint, by its first address (IPv4 first)."""
    found: dict[str, Endpoint] = {}
    ready = [e for e in service.endpoints if e.ready and port.name in e.ports]
    for endpoint in sorted(ready, key=lambda e: (":" in e.address, e.address)):
        found.setdefault(endpoint.workload or endpoint.address, endpoint)
    return tuple(found.values())


def _endpoint(inputs: Inputs, service: Service, port: ServicePort, endpoint: Endpoint) -> Json:
    workload = inputs.mesh.workload(endpoint.workload) if endpoint.workload else None
    address = {"address": endpoint.address, "port_value": endpoint.ports[port.name]}
    result: Json = {
        "endpoint": {"address": {"socket_address": address}},
        **_metadata(telemetry.endpoint_metadata(inputs, service, workload)),
    }
    if workload is not None and workload.capacity > 1:
        result["load_balancing_weight"] = workload.capacity
    return result


def _metadata(value: Json) -> Json:
    return {"metadata": value} if value else {}
