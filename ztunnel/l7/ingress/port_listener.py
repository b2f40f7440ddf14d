# SPDX-License-Identifier: Apache-2.0
"""The Envoy listeners of a port, to which clients connect directly: TCP, and UDP for HTTP/3."""

from __future__ import annotations

from collections.abc import Sequence

from ztunnel.l7.config import Json
from ztunnel.l7.ingress.units import ChainUnit, Known
from ztunnel.l7.routing.envoy.extensions import listener_filter

# A client that opens a connection and sends nothing does not hold it for longer.
_INSPECTION_TIMEOUT = "15s"


def port_listener(
    known: Known, port: int, units: Sequence[ChainUnit], refused: Sequence[Json] = ()
) -> Json | None:
    """Return the listener, or None if it has no chain: Envoy rejects such a listener.

    `refused`: access logs of connections with TLS that no chain gets.
    """
    chains = [chain for unit in units for chain in unit.chains]
    if not chains:
        return None
    inspect_tls = any(unit.inspect_tls for unit in units)
    return {
        "name": f"ingress|{port}",
        "address": {"socket_address": listen_address(port, has_ipv6=known.edge.has_ipv6)},
        "traffic_direction": "OUTBOUND",
        "listener_filters": [
            *([_PROXY_PROTOCOL] if known.topology.proxy_protocol else []),
            *([_TLS_INSPECTOR] if inspect_tls else []),
        ],
        "listener_filters_timeout": _INSPECTION_TIMEOUT,
        "filter_chains": chains,
        "access_log": list(refused) if inspect_tls else [],
        "per_connection_buffer_limit_bytes": 1 << 20,
    }


def quic_listener(known: Known, port: int, units: Sequence[ChainUnit]) -> Json | None:
    """Return the listener for HTTP/3, or None without chains."""
    chains = [chain for unit in units for chain in unit.quic]
    if not chains:
        return None
    address = {**listen_address(port, has_ipv6=known.edge.has_ipv6), "protocol": "UDP"}
    return {
        "name": f"ingress|{port}|quic",
        "address": {"socket_address": address},
        "traffic_direction": "OUTBOUND",
        "udp_listener_config": {"quic_options": {}, "downstream_socket_config": {}},
        "filter_chains": chains,
    }


def listen_address(port: int, *, has_ipv6: bool) -> Json:
    """Return the SocketAddress of a port of all the pod's addresses.

    Without IPv6, the kernel may refuse to create an IPv6 socket.
    """
    if has_ipv6:
        return {"address": "::", "port_value": port, "ipv4_compat": True}
    return {"address": "0.0.0.0", "port_value": port}


_PROXY_PROTOCOL = listener_filter("proxy_protocol", "proxy_protocol.v3.ProxyProtocol")
_TLS_INSPECTOR = listener_filter("tls_inspector", "tls_inspector.v3.TlsInspector")
