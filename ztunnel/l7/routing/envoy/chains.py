# SPDX-License-Identifier: Apache-2.0
"""Filter chains of a waypoint's listener."""

from __future__ import annotations

from ztunnel.l7.config import Filters, Json
from ztunnel.l7.inputs import Destination, Inputs
from ztunnel.l7.names import PeerState
from ztunnel.l7.routing.envoy import dynamic_hosts
from ztunnel.l7.routing.envoy.extensions import matcher_input, network_filter
from ztunnel.l7.routing.envoy.hcm import ADS, STAT_PREFIX, http_connection_manager
from ztunnel.l7.telemetry import fields as telemetry

TLV_STATE = "envoy.network.proxy_protocol.tlv"  # Envoy's key, with TlvLocation FILTER_STATE

# What http_inspector detects; Envoy formats the list of protocols with quotes.
_HTTP_PROTOCOLS = ("'http/1.0'", "'http/1.1'", "'h2c'")


def http_chain(
    inputs: Inputs, destination: Destination, policies: Filters, name: str, route_name: str
) -> Json:
    """A chain that routes requests by the route configuration of this name."""
    routes = {"rds": {"route_config_name": route_name, "config_source": ADS}}
    hcm = http_connection_manager(inputs, destination, policies, routes)
    return _chain(name, policies, hcm)


def tcp_chain(
    inputs: Inputs, destination: Destination, policies: Filters, name: str, clusters: Json
) -> Json:
    """A chain that forwards connections. `clusters`: `cluster` or `weighted_clusters`."""
    proxy = network_filter(
        "tcp_proxy",
        "tcp_proxy.v3.TcpProxy",
        stat_prefix=STAT_PREFIX,
        **clusters,
        **telemetry.tcp(inputs, destination),
    )
    return _chain(name, policies, *dynamic_hosts.network_filters(destination), proxy)


def chain_action(name: str) -> Json:
    """OnMatch that selects the chain of this name."""
    value = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": name}
    return {"action": {"name": name, "typed_config": value}}


def by_detected_protocol(http: str, tcp: str) -> Json:
    """OnMatch that selects the chain `http` if http_inspector has detected HTTP."""
    tree = {
        "input": matcher_input("application_protocol", "ApplicationProtocolInput"),
        "exact_match_map": {"map": {each: chain_action(http) for each in _HTTP_PROTOCOLS}},
    }
    return {"matcher": {"matcher_tree": tree, "on_no_match": chain_action(tcp)}}


def _chain(name: str, policies: Filters, *last: Json) -> Json:
    return {"name": name, "filters": [_PEER_STATE, *policies.network, *last]}


def _peer_value(state: PeerState) -> Json:
    """Copy a TLV into a filter state of its own, which policies and routes can match."""
    return {
        "object_key": state.value,
        "factory_key": "envoy.string",
        "format_string": {
            "text_format_source": {
                "inline_string": f"%FILTER_STATE({TLV_STATE}:FIELD:{state.value})%"
            },
            "omit_empty_values": True,
        },
        "skip_if_empty": True,
    }


_PEER_STATE = network_filter(
    "set_filter_state",
    "set_filter_state.v3.Config",
    on_new_connection=[_peer_value(each) for each in PeerState],
)
