# SPDX-License-Identifier: Apache-2.0
"""Traces: a span per request, sent over OTLP/gRPC to the collector of the mesh.

A request continues the trace of its own `traceparent` header (W3C Trace Context), and is sampled as
that one. If it has none, it continues the trace of the tunnel, which the node's proxy passes on
only if it is sampled. B3 headers are forwarded, but Envoy's tracer does not continue their traces.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ztunnel.l7.config import Json
from ztunnel.l7.names import PeerState
from ztunnel.mesh.address import AddressError, canonical

_TYPE = "type.googleapis.com/"
_EXPORT_TIMEOUT = "5s"
_MAX_PATH_BYTES = 256  # of a path in a span; Envoy's and Istio's default
_H2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": _TYPE + "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}


@dataclass(frozen=True)
class SpanSettings:
    """`collector`: the name of its cluster. `tags`: custom tags of Envoy.

    `sampling_percent` concerns requests that continue no trace.
    """

    collector: str
    sampling_percent: float
    tags: tuple[Json, ...] = field(default=())


def hcm_fields(settings: SpanSettings, service_name: str) -> Json:
    """Fields of HttpConnectionManager; `service_name` is that of the spans."""
    provider = {
        "name": "envoy.tracers.opentelemetry",
        "typed_config": {
            "@type": _TYPE + "envoy.config.trace.v3.OpenTelemetryConfig",
            "grpc_service": {
                "envoy_grpc": {"cluster_name": settings.collector},
                "timeout": _EXPORT_TIMEOUT,
            },
            "service_name": service_name,
            "sampler": _sampler(settings.sampling_percent),
        },
    }
    tracing: Json = {
        "client_sampling": {"value": 100},
        "random_sampling": {"value": 100},  # the tracer's sampler decides
        "overall_sampling": {"value": 100},
        "max_path_tag_length": _MAX_PATH_BYTES,
        "custom_tags": [_SOURCE_TAG, *settings.tags],
        "provider": provider,
    }
    return {"tracing": tracing, "early_header_mutation_extensions": [_JOIN_TUNNEL]}


def collector_cluster(provider: str, endpoint: str) -> Json:
    """The cluster of a collector at `host:port`. Raises ValueError."""
    name = f"ztunnel.tracing|{provider}"
    host, separator, port = endpoint.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(f"{endpoint!r} is not host:port")
    try:
        host, discovery = canonical(host), "STATIC"
    except AddressError:
        discovery = "STRICT_DNS"
    address = {"socket_address": {"address": host, "port_value": int(port)}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {
        "name": name,
        "type": discovery,
        "connect_timeout": _EXPORT_TIMEOUT,
        "typed_extension_protocol_options": _H2,
        "load_assignment": {"cluster_name": name, "endpoints": endpoints},
    }


def _sampler(percent: float) -> Json:
    """Sample a continued trace as its parent is sampled, and a share of new traces."""
    share = {"numerator": round(percent * 10_000), "denominator": "MILLION"}
    return _extension(
        "parent_based",
        "ParentBasedSamplerConfig",
        wrapped_sampler=_extension(
            "trace_id_ratio_based", "TraceIdRatioBasedSamplerConfig", sampling_percentage=share
        ),
    )


def _extension(name: str, kind: str, **values: Json) -> Json:
    package = "envoy.extensions.tracers.opentelemetry.samplers.v3"
    return {
        "name": f"envoy.tracers.opentelemetry.samplers.{name}",
        "typed_config": {"@type": f"{_TYPE}{package}.{kind}", **values},
    }


_SOURCE_TAG = {"tag": "source.principal", "value": f"%FILTER_STATE({PeerState.IDENTITY}:PLAIN)%"}
# The header is changed before the span starts, which reads it.
_JOIN_TUNNEL = {
    "name": "envoy.http.early_header_mutation.header_mutation",
    "typed_config": {
        "@type": _TYPE
        + "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": [
            {
                "append": {
                    "header": {
                        "key": "traceparent",
                        "value": f"%FILTER_STATE({PeerState.TRACEPARENT}:PLAIN)%",
                    },
                    "append_action": "ADD_IF_ABSENT",
                }
            }
        ],
    },
}
