# SPDX-License-Identifier: Apache-2.0
"""HttpConnectionManager of a waypoint, hardened as Istio's.

Headers that state facts about a client are not accepted from it: Envoy removes
x-forwarded-client-cert, and x-envoy-* from requests, because it considers no address internal.
"""

from __future__ import annotations

from ztunnel.l7.config import Filters, Json
from ztunnel.l7.inputs import Destination, Inputs
from ztunnel.l7.routing.envoy import dynamic_hosts
from ztunnel.l7.routing.envoy.extensions import http_filter, network_filter
from ztunnel.l7.routing.protocols import is_grpc_web, may_be_grpc
from ztunnel.l7.telemetry import fields as telemetry

# Statistics of all chains have one prefix: names by service would be unbounded.
STAT_PREFIX = "waypoint"
# An address that no client has: with an empty list, Envoy would use its own defaults.
_NO_INTERNAL_ADDRESS = {"cidr_ranges": [{"address_prefix": "255.255.255.255", "prefix_len": 32}]}
_MAX_STREAMS = 1024  # per client connection: Envoy's recommendation at the edge is 100
ADS = {"ads": {}, "resource_api_version": "V3"}
HTTP2_OPTIONS: Json = {
    "max_concurrent_streams": _MAX_STREAMS,
    "initial_stream_window_size": 256 * 1024,  # a client can make Envoy buffer so much
    "initial_connection_window_size": 1024 * 1024,
    "allow_connect": True,  # WebSocket over HTTP/2, RFC 8441; no route matches plain CONNECT
}

# Filters that do nothing unless a route configures them.
_CORS = http_filter("cors", "cors.v3.Cors")
_SESSIONS = http_filter("stateful_session", "stateful_session.v3.StatefulSession")
_FAULT = http_filter("fault", "fault.v3.HTTPFault")
_GRPC_WEB = http_filter("grpc_web", "grpc_web.v3.GrpcWeb")
_ROUTER = http_filter("router", "router.v3.Router", suppress_envoy_headers=True)


def http_connection_manager(
    inputs: Inputs,
    destination: Destination,
    policies: Filters,
    routes: Json,
    overrides: Json | None = None,
) -> Json:
    """Return the network filter. `routes` is `{"rds": ...}` or `{"route_config": ...}`.

    CORS precedes the policies, because a browser's preflight request carries no credentials.
    `overrides`: fields in place of those of a waypoint.
    """
    counts_messages = destination.edge is None and may_be_grpc(destination.port)
    grpc = telemetry.grpc(inputs, destination) if counts_messages else telemetry.NO_GRPC
    config = {
        **_HARDENED,
        **(overrides or {}),
        **dynamic_hosts.http_fields(destination),
        **routes,
        "http_filters": [
            *grpc.filters,
            _CORS,
            *policies.http,
            *([_GRPC_WEB] if is_grpc_web(destination.port) else []),
            _FAULT,
            _SESSIONS,
            *dynamic_hosts.http_filters(destination),
            _router(grpc.router),
        ],
        **telemetry.hcm(inputs, destination),
    }
    return network_filter(
        "http_connection_manager", "http_connection_manager.v3.HttpConnectionManager", **config
    )


def _router(fields: Json) -> Json:
    return {**_ROUTER, "typed_config": {**_ROUTER["typed_config"], **fields}} if fields else _ROUTER


_HARDENED: Json = {
    "stat_prefix": STAT_PREFIX,
    "codec_type": "AUTO",
    # Istio's default of meshConfig.pathNormalization is BASE.
    "normalize_path": True,
    "merge_slashes": False,
    "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
    "forward_client_cert_details": "SANITIZE",
    # The gateway in front of a waypoint sets x-forwarded-for and -proto: they are not replaced.
    "use_remote_address": False,
    "skip_xff_append": True,
    "internal_address_config": _NO_INTERNAL_ADDRESS,
    "generate_request_id": True,
    "preserve_external_request_id": True,
    "server_header_transformation": "PASS_THROUGH",
    "proxy_100_continue": True,
    "http_protocol_options": {"accept_http_10": True},
    "http2_protocol_options": HTTP2_OPTIONS,
    "upgrade_configs": [{"upgrade_type": "websocket"}],
    "stream_idle_timeout": "0s",  # as Istio: gRPC streams and WebSockets may be silent
    "request_headers_timeout": "60s",
}
