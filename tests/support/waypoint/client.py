# SPDX-License-Identifier: Apache-2.0
"""A client that connects to a waypoint's Envoy as the proxy of a pod does."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ztunnel.l7.names import PeerState
from ztunnel.mesh.headers.proxy_protocol import encode_proxy_header
from ztunnel.mesh.model import SocketAddress

TIMEOUT_S = 10.0
DEFAULT_PEER = {
    PeerState.IDENTITY: "spiffe://cluster.local/ns/default/sa/client",
    PeerState.WORKLOAD: "client",
    PeerState.NAMESPACE: "default",
    PeerState.APP: "client",
    PeerState.VERSION: "v1",
}


@dataclass(frozen=True)
class Answer:
    """A response; `received` is what a `Backend` reports, empty if none has answered."""

    status: int
    headers: dict[str, str]
    body: bytes
    received: dict[str, Any] = field(default_factory=dict)

    @property
    def backend(self) -> str:
        """The name of the backend that answered, empty if Envoy answered itself."""
        return str(self.received.get("backend", ""))


def dial(
    port: int,
    destination: tuple[str, int],
    peer: Mapping[PeerState, str] = DEFAULT_PEER,
    source: tuple[str, int] = ("10.244.0.9", 40000),
) -> socket.socket:
    """Connect to the waypoint listener at `port`, and send the PROXY header with the TLVs."""
    sock = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    tlvs = tuple((key.tlv, value.encode()) for key, value in peer.items())
    sock.sendall(encode_proxy_header(SocketAddress(*source), SocketAddress(*destination), tlvs))
    return sock


def request(
    port: int,
    destination: tuple[str, int],
    method: str = "GET",
    path: str = "/",
    headers: Mapping[str, str] | None = None,
    *,
    body: bytes | None = None,
    peer: Mapping[PeerState, str] = DEFAULT_PEER,
) -> Answer:
    """Send one HTTP/1.1 request on a connection of its own."""
    connection = http.client.HTTPConnection(destination[0], destination[1], timeout=TIMEOUT_S)
    connection.sock = dial(port, destination, peer)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        content = response.read()
        found = {key.lower(): value for key, value in response.getheaders()}
        return Answer(response.status, found, content, _received(content))
    finally:
        connection.close()


def _received(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        return {}
    return value if isinstance(value, dict) and "backend" in value else {}
