# SPDX-License-Identifier: Apache-2.0
"""The listener of a waypoint: one chain per destination, selected by the address in the header.

Connections to other destinations match no chain, and Envoy closes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ztunnel.l7.config import Json
from ztunnel.l7.names import WAYPOINT_LISTENER, WAYPOINT_PORT, PeerState
from ztunnel.l7.routing.envoy.extensions import listener_filter, matcher_input
from ztunnel.l7.routing.protocols import SERVER_FIRST_PORTS
from ztunnel.l7.routing.units import ANY_PORT, Branch

# A server of an undeclared protocol that sends first has to wait for this long, and its connection
# is then forwarded as TCP. A client of HTTP sends its first request earlier.
_DETECTION_TIMEOUT = "5s"


def waypoint_listener(branches: Sequence[Branch], chains: Sequence[Json]) -> Json:
    """Return the listener. The first of two branches for one address and port is used."""
    listener: Json = {
        "name": WAYPOINT_LISTENER,
        "address": _loopback("127.0.0.1"),
        "traffic_direction": "INBOUND",
        "listener_filters": [_PROXY_PROTOCOL, *_inspectors(branches)],
        "listener_filters_timeout": _DETECTION_TIMEOUT,
        "continue_on_listener_filters_timeout": True,
        "filter_chains": list(chains),
        "per_connection_buffer_limit_bytes": 1 << 20,
    }
    if branches:
        listener["filter_chain_matcher"] = _by_address(branches)
    return listener


def _loopback(ip: str) -> Json:
    return {"socket_address": {"address": ip, "port_value": WAYPOINT_PORT}}


def _by_address(branches: Iterable[Branch]) -> Json:
    by_ip: dict[str, dict[int, Json]] = {}
    for branch in branches:
        by_ip.setdefault(branch.ip, {}).setdefault(branch.port, branch.on_match)
    matches = {ip: _by_port(ports) for ip, ports in by_ip.items()}
    value = matcher_input("destination_ip", "DestinationIPInput")
    networks = {ip: found for ip, found in matches.items() if "/" in ip}
    addresses = {ip: found for ip, found in matches.items() if ip not in networks}
    if not networks:
        return _exact(value, addresses)
    by_network = _by_network(value, networks)
    if not addresses:
        return by_network
    return {**_exact(value, addresses), "on_no_match": {"matcher": by_network}}


def _by_network(value: Json, networks: dict[str, Json]) -> Json:
    """The longest prefix that has a match for the port."""
    ranges = [
        {
            "ranges": [{"address_prefix": address, "prefix_len": int(length)}],
            "on_match": on_match,
        }
        for network, on_match in networks.items()
        for address, _, length in [network.partition("/")]
    ]
    kind = {"@type": "type.googleapis.com/xds.type.matcher.v3.IPMatcher", "range_matchers": ranges}
    custom = {"name": "envoy.matching.custom_matchers.trie_matcher", "typed_config": kind}
    return {"matcher_tree": {"input": value, "custom_match": custom}}


def _by_port(ports: dict[int, Json]) -> Json:
    exact = {str(port): on_match for port, on_match in ports.items() if port != ANY_PORT}
    rest = ports.get(ANY_PORT)
    if not exact and rest is not None:
        return rest
    matcher = _exact(matcher_input("destination_port", "DestinationPortInput"), exact)
    if rest is not None:
        matcher["on_no_match"] = rest
    return {"matcher": matcher}


def _exact(value: Json, matches: dict[str, Json]) -> Json:
    return {"matcher_tree": {"input": value, "exact_match_map": {"map": matches}}}


def _inspectors(branches: Sequence[Branch]) -> list[Json]:
    """The filters that detect protocols from the client's first bytes.

    A change of these filters makes Envoy drain all connections of the listener. So http_inspector
    runs everywhere, except on ports where servers may send first: they would wait for the client.
    """
    disabled = {"filter_disabled": _any_of(_raw_ports(branches))}
    http = listener_filter("http_inspector", "http_inspector.v3.HttpInspector") | disabled
    tls = {b.port for b in branches if b.inspect_tls}
    if not tls:
        return [http]
    only = {"filter_disabled": {"not_match": _any_of(tls)}}
    return [listener_filter("tls_inspector", "tls_inspector.v3.TlsInspector") | only, http]


def _raw_ports(branches: Sequence[Branch]) -> set[int]:
    """The port numbers that are declared as TCP, and on which no service needs detection.

    Pods need it on every port. There, only the waypoint's own namespace can declare otherwise:
    without detection, policies that name HTTP attributes reject the connections.
    """
    detected = {b.port for b in branches if b.inspect_http}
    serves_pods = ANY_PORT in detected
    declared = {b.port for b in branches if b.is_raw and (b.is_own or not serves_pods)}
    return (declared - detected) | SERVER_FIRST_PORTS


def _any_of(ports: set[int]) -> Json:
    ranges = [
        {"destination_port_range": {"start": port, "end": port + 1}} for port in sorted(ports)
    ]
    return {"or_match": {"rules": ranges}} if len(ranges) > 1 else ranges[0]


_PROXY_PROTOCOL = listener_filter(
    "proxy_protocol",
    "proxy_protocol.v3.ProxyProtocol",
    rules=[{"tlv_type": state.tlv, "on_tlv_present": {"key": state.value}} for state in PeerState],
    tlv_location="FILTER_STATE",
    disallowed_versions=["V1"],
)
