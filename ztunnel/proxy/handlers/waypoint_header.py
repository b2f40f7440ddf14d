# SPDX-License-Identifier: Apache-2.0
"""The PROXY header for a connection to a waypoint's Envoy: the verified facts about the client.

The identity is that of the mTLS peer. The other facts are those of the workload that has the
client's address and this identity; without one, they are left out. No header of the request
contributes anything but the trace context.
"""

from __future__ import annotations

import re
import socket

from ztunnel.mesh import canonical_service
from ztunnel.mesh.headers import proxy_protocol
from ztunnel.mesh.headers.proxy_protocol import ProxyProtocolError, encode_proxy_header
from ztunnel.mesh.model import Workload
from ztunnel.mesh.routing.decisions import Accept

MAX_NAME_BYTES = 253  # of a Kubernetes name, the longest of these values
# W3C Trace Context, version 00, with the flag `sampled`. Requests continue the tunnel's trace, and
# none of them would be sampled if that one is not.
_SAMPLED = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf]")


def waypoint_header(accepted: Accept, identity: str, traceparent: bytes) -> bytes:
    """The header of one connection. `identity`: as the peer has proven it.

    Raises ProxyProtocolError if the identity is too long.
    """
    tlvs = [(proxy_protocol.TLV_IDENTITY, identity.encode())]
    if accepted.source is not None:
        tlvs += _workload_tlvs(accepted.source)
    if _SAMPLED.fullmatch(traceparent):
        tlvs.append((proxy_protocol.TLV_TRACEPARENT, traceparent))
    return encode_proxy_header(accepted.client, accepted.destination, tuple(tlvs))


def send_waypoint_header(
    sock: socket.socket, accepted: Accept, identity: str, traceparent: bytes, flags: int
) -> str:
    """Send the header, which precedes all other bytes; returns why that failed, or ""."""
    try:
        header = waypoint_header(accepted, identity, traceparent)
        if sock.send(header, flags) == len(header):
            return ""
    except ProxyProtocolError as error:
        return f"no PROXY header: {error}"
    except OSError as error:
        return f"waypoint: {error.strerror or error}"
    return "the send buffer has no room for the PROXY header"


def _workload_tlvs(source: Workload) -> list[tuple[int, bytes]]:
    """Names as in the metrics of `ztunnel.telemetry.labels`."""
    return [
        (proxy_protocol.TLV_WORKLOAD, _name(canonical_service.owner(source)[1])),
        (proxy_protocol.TLV_NAMESPACE, _name(source.namespace)),
        (proxy_protocol.TLV_APP, _name(canonical_service.service(source))),
        (proxy_protocol.TLV_VERSION, _name(canonical_service.revision(source))),
    ]


def _name(text: str) -> bytes:
    return text.encode()[:MAX_NAME_BYTES]
