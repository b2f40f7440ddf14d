# SPDX-License-Identifier: Apache-2.0
"""HttpConnectionManager of an ingress gateway: an edge, which trusts no header of a client."""

from __future__ import annotations

from ztunnel.l7.config import Filters, Json
from ztunnel.l7.ingress.topology import ClientCertDetails, Topology
from ztunnel.l7.inputs import Destination, Inputs
from ztunnel.l7.routing.envoy.hcm import ADS, HTTP2_OPTIONS, http_connection_manager

STAT_PREFIX = "ingress"

_EDGE: Json = {
    "stat_prefix": STAT_PREFIX,
    # the client's address is that of its connection, and is appended to x-forwarded-for
    "use_remote_address": True,
    "skip_xff_append": False,
    "strip_trailing_host_dot": True,
    # Envoy's recommendations for edges ("Configuring Envoy as an edge proxy"), except for
    # request_timeout: uploads may take long
    "request_headers_timeout": "10s",
    "stream_idle_timeout": "3600s",  # of a request, response or WebSocket without any data
    "common_http_protocol_options": {"idle_timeout": "300s"},  # of a connection without requests
    "http2_protocol_options": {**HTTP2_OPTIONS, "max_concurrent_streams": 100},
}
_HTTP3: Json = {  # the limits of HTTP/2
    "quic_protocol_options": {
        "max_concurrent_streams": 100,
        "initial_stream_window_size": HTTP2_OPTIONS["initial_stream_window_size"],
        "initial_connection_window_size": HTTP2_OPTIONS["initial_connection_window_size"],
    }
}
_DETAILS: Json = {"subject": True, "cert": True, "dns": True, "uri": True}  # as Istio
_SETTING = (ClientCertDetails.SANITIZE_SET, ClientCertDetails.APPEND_FORWARD)


def request_manager(
    inputs: Inputs,
    destination: Destination,
    policies: Filters,
    route_name: str,
    topology: Topology,
    *,
    quic: bool = False,
) -> Json:
    """Return the network filter that routes by the route configuration of this name.

    `quic`: for HTTP/3.
    """
    routes = {"rds": {"route_config_name": route_name, "config_source": ADS}}
    edge = {
        **_EDGE,
        "xff_num_trusted_hops": topology.trusted_proxies,
        "forward_client_cert_details": topology.client_cert.value,
    }
    if topology.client_cert in _SETTING:
        edge["set_current_client_cert_details"] = _DETAILS
    if quic:
        edge |= {"codec_type": "HTTP3", "http3_protocol_options": _HTTP3}
    return http_connection_manager(inputs, destination, policies, routes, edge)
