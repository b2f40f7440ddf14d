# SPDX-License-Identifier: Apache-2.0
"""The Envoy listener of a port, to which clients connect directly."""

from __future__ import annotations

from collections.abc import Sequence

from ztunnel.l7.config import Json
from ztunnel.l7.ingress.units import ChainUnit
from ztunnel.l7.routing.envoy.extensions import listener_filter

# A client that opens a connection and sends nothing does not hold it for longer.
_INSPECTION_TIMEOUT = "15s"


def port_listener(port: int, units: Sequence[ChainUnit]) -> Json | None:
    """Return the listener, or None if it has no chain: Envoy rejects such a listener."""
    chains = [chain for unit in units for chain in unit.chains]
    if not chains:
        return None
    inspect_tls = any(unit.inspect_tls for unit in units)
    return {
        "name": f"ingress|{port}",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "traffic_direction": "OUTBOUND",
        "listener_filters": [_TLS_INSPECTOR] if inspect_tls else [],
        "listener_filters_timeout": _INSPECTION_TIMEOUT,
        "filter_chains": chains,
        "per_connection_buffer_limit_bytes": 1 << 20,
    }


_TLS_INSPECTOR = listener_filter("tls_inspector", "tls_inspector.v3.TlsInspector")
