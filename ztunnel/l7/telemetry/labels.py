# SPDX-License-Identifier: Apache-2.0
"""The labels of Istio's metrics as tags of Envoy's `stats` access logger.

Names and order: istio.io, "Istio Standard Metrics". The client's labels come from the filter state
that the PROXY header fills, those of the server from the endpoint's metadata. Envoy formats a
missing value as an empty text; `telemetry.page` replaces it with Istio's `unknown`, because a rule
for each label would triple the size of a chain.
"""

from __future__ import annotations

from collections.abc import Mapping

from ztunnel.l7.config import Json
from ztunnel.l7.inputs import Destination, Edge, Settings
from ztunnel.l7.names import PeerState
from ztunnel.mesh import canonical_service
from ztunnel.mesh.model import Service, TunnelProtocol, Workload

METADATA = "ztunnel"  # namespace of the endpoint metadata
INVALID_GRPC_STATUS = "invalid"  # not in 0 to 16, google.golang.org/grpc/codes
OTHER_RESPONSE_CODE = "other"

_TYPE = "type.googleapis.com/"
_INPUT: Json = {
    "name": "value",
    "typed_config": {
        "@type": _TYPE + "envoy.extensions.matching.common_inputs.stats.v3.StatTagValueInput"
    },
}
_ACTION = _TYPE + "envoy.extensions.matching.actions.transform_stat.v3.TransformStat"
_SOURCE = {
    "source_workload": PeerState.WORKLOAD,
    "source_canonical_service": PeerState.APP,
    "source_canonical_revision": PeerState.VERSION,
    "source_workload_namespace": PeerState.NAMESPACE,
    "source_principal": PeerState.IDENTITY,
    "source_app": PeerState.APP,
    "source_version": PeerState.VERSION,
}
_DESTINATION = {  # label: key of the endpoint's metadata
    "destination_workload": "workload",
    "destination_workload_namespace": "workload_namespace",
    "destination_principal": "principal",
    "destination_app": "app",
    "destination_version": "version",
    "destination_service": "service",
    "destination_canonical_service": "app",
    "destination_canonical_revision": "version",
    "destination_service_name": "service_name",
    "destination_service_namespace": "service_namespace",
    "destination_cluster": "cluster",
}


def http_tags(destination: Destination, settings: Settings) -> list[Json]:
    """The tags of HTTP metrics, in Istio's order."""
    return [
        *_common(destination, settings),
        _tag("request_protocol", "%REQ(content-type)%", _REQUEST_PROTOCOL),
        _tag("response_code", "%RESPONSE_CODE%", _RESPONSE_CODE),
        _tag("grpc_response_status", "%GRPC_STATUS_NUMBER%", _GRPC_STATUS),
        _tag("response_flags", "%RESPONSE_FLAGS%"),
        _security_policy(destination),
    ]


def tcp_tags(destination: Destination, settings: Settings) -> list[Json]:
    """The tags of TCP metrics, in Istio's order."""
    return [
        *_common(destination, settings),
        _tag("request_protocol", "tcp"),
        _tag("response_flags", "%RESPONSE_FLAGS%"),
        _security_policy(destination),
    ]


def endpoint_labels(service: Service, workload: Workload | None, settings: Settings) -> Json:
    """The metadata of an endpoint from which `_DESTINATION` reads."""
    labels = service_labels(service)
    if workload is None:
        return labels
    labels |= {
        "workload": canonical_service.owner(workload)[1],
        "workload_namespace": workload.namespace,
        "app": canonical_service.service(workload),
        "version": canonical_service.revision(workload),
        "cluster": workload.cluster or settings.cluster,
    }
    if workload.protocol is TunnelProtocol.HBONE:
        labels["principal"] = workload.identity
    return labels


def service_labels(service: Service) -> dict[str, str]:
    """The labels of a service; the name of a ServiceEntry's host is the host."""
    return {
        "service": service.hostname or service.name,
        "service_name": service.name,
        "service_namespace": service.namespace,
    }


def _common(destination: Destination, settings: Settings) -> list[Json]:
    fallback = service_labels(destination.service) if destination.service else {}
    if destination.edge is not None:
        tags = [_tag("reporter", "source"), *_edge_tags(destination.edge, destination.namespace)]
    else:
        tags = [_tag("reporter", "waypoint")]
        tags += [_tag(label, f"%FILTER_STATE({key}:PLAIN)%") for label, key in _SOURCE.items()]
    tags.append(_tag("source_cluster", settings.cluster))
    tags += [
        _tag(
            label,
            f"%UPSTREAM_METADATA({METADATA}:{key})%",
            _if_missing(fallback[key]) if key in fallback else None,
        )
        for label, key in _DESTINATION.items()
    ]
    return tags


def _edge_tags(edge: Edge, namespace: str) -> list[Json]:
    """The source is the gateway itself, as in Istio: clients are not in the mesh."""
    values = {
        "source_workload": edge.name,
        "source_canonical_service": edge.canonical_service,
        "source_canonical_revision": edge.canonical_revision,
        "source_workload_namespace": namespace,
        "source_principal": edge.principal,
        "source_app": edge.canonical_service,
        "source_version": edge.canonical_revision,
    }
    # a `%` would begin a command operator
    return [_tag(k, value.replace("%", "%%") or "unknown") for k, value in values.items()]


def _security_policy(destination: Destination) -> Json:
    if destination.edge is not None:  # Istio: the source does not know it
        return _tag("connection_security_policy", "unknown")
    policy = f"%FILTER_STATE({PeerState.IDENTITY}:PLAIN)%"
    return _tag("connection_security_policy", policy, _SECURITY_POLICY)


def _tag(name: str, value_format: str, rules: Json | None = None) -> Json:
    tag: Json = {"name": name, "value_format": value_format}
    return tag | {"rules": rules} if rules else tag


def _set(value: str) -> Json:
    """An action that replaces the value."""
    config = {"@type": _ACTION, "update_tag": {"new_tag_value": value}}
    return {"action": {"name": "set", "typed_config": config}}


def _prefix(values: Mapping[str, str], otherwise: str) -> Json:
    tree = {"map": {key: _set(value) for key, value in values.items()}}
    matcher = {"input": _INPUT, "prefix_match_map": tree}
    return {"matcher_tree": matcher, "on_no_match": _set(otherwise)}


def _if_missing(value: str) -> Json:
    tree = {"map": {"": _set(value)}}
    return {"matcher_tree": {"input": _INPUT, "exact_match_map": tree}}


def _if_matches(regex: str, value: str) -> Json:
    match = {"safe_regex": {"google_re2": {}, "regex": regex}}
    predicate = {"single_predicate": {"input": _INPUT, "value_match": match}}
    return {"matcher_list": {"matchers": [{"predicate": predicate, "on_match": _set(value)}]}}


# A client that chooses the response code at an echoing server creates no series beyond the blocks
# of registered codes (IANA, "HTTP Status Code Registry") and one for all others.
_RESPONSE_CODE = _if_matches(
    "1[1-9].|2[13-9].|3[1-9].|4[46-9].|5[2-9].|[06-9]..|.{4,}", OTHER_RESPONSE_CODE
)
_GRPC_STATUS = _if_matches("-.*|1[7-9]|[2-9].|.{3,}", INVALID_GRPC_STATUS)
_REQUEST_PROTOCOL = _prefix({"application/grpc": "grpc", "application/grpc-web": "http"}, "http")
_SECURITY_POLICY = _prefix({"spiffe://": "mutual_tls"}, "none")
