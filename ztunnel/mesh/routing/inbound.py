# SPDX-License-Identifier: Apache-2.0
"""What to do with a connection that comes into a pod: a pure decision.

Statuses (istio/ztunnel, proxy/inbound.rs): 400 not a CONNECT to this very pod; 503 the pod is
unknown. A policy's denial (401) is decided where policies are known, after `Accept`.
"""

from __future__ import annotations

from typing import Protocol

from ztunnel.mesh.address import AddressError, parse_authority
from ztunnel.mesh.headers.connect_udp import PROTOCOL, parse_target
from ztunnel.mesh.headers.forwarded import ForwardedError, parse_forwarded
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.ports import OURS
from ztunnel.mesh.routing.decisions import Accept, Reject
from ztunnel.mesh.state import MeshState

BAD_REQUEST = 400
DENIED = 401
UNAVAILABLE = 503


class Request(Protocol):
    """A CONNECT request as the codec gives it."""

    @property
    def method(self) -> bytes: ...
    @property
    def authority(self) -> bytes: ...
    @property
    def protocol(self) -> bytes: ...
    @property
    def path(self) -> bytes: ...
    @property
    def headers(self) -> tuple[tuple[bytes, bytes], ...]: ...


def check_connect(
    state: MeshState,
    request: Request,
    *,
    local: SocketAddress,
    peer: SocketAddress,
    identity: str,
) -> Accept | Reject:
    """Decide on a CONNECT that came over a connection `peer` → `local`, proven by `identity`."""
    destination = _destination(request)
    if isinstance(destination, Reject):
        return destination
    udp = request.protocol == PROTOCOL
    if destination.ip != local.ip:
        return Reject(BAD_REQUEST, f"authority {destination} is not this pod, {local.ip}")
    if destination.port in OURS and not udp:
        return Reject(BAD_REQUEST, f"port {destination.port} is the mesh's own")
    workload = state.workload_at(local.ip)
    if workload is None:
        return Reject(UNAVAILABLE, f"no workload has the address {local.ip}")
    client, service = _forwarded(state, request, peer, identity)
    source = state.workload_at(client.ip)
    if source is not None and source.identity != identity:
        source = None
    return Accept(client, destination, source, workload, service, udp)


def _destination(request: Request) -> SocketAddress | Reject:
    """What the request asks for: a connection by its authority, datagrams by its path."""
    if request.method != b"CONNECT":
        return Reject(BAD_REQUEST, f"method {request.method[:16]!r} is not CONNECT")
    if request.protocol not in (b"", PROTOCOL):
        return Reject(BAD_REQUEST, f"protocol {request.protocol[:16]!r} is not connect-udp")
    try:
        if request.protocol:
            return parse_target(request.path)
        return parse_authority(request.authority.decode("ascii"))
    except (AddressError, UnicodeDecodeError):
        asked = request.path if request.protocol else request.authority
        return Reject(BAD_REQUEST, f"authority {asked[:64]!r} is no ip:port")


def check_plain(
    state: MeshState,
    addresses: tuple[str, ...],
    client: SocketAddress,
    destination: SocketAddress,
) -> Accept | Reject:
    """Decide on a connection without HBONE to a pod that has `addresses`."""
    if destination.ip not in addresses:
        return Reject(BAD_REQUEST, f"{destination.ip} is not this pod")
    if destination.port in OURS:
        return Reject(BAD_REQUEST, f"port {destination.port} is the mesh's own")
    workload = state.workload_at(destination.ip)
    if workload is None:
        return Reject(UNAVAILABLE, f"no workload has the address {destination.ip}")
    return Accept(client, destination, state.workload_at(client.ip), workload)


def _forwarded(
    state: MeshState, request: Request, peer: SocketAddress, identity: str
) -> tuple[SocketAddress, str]:
    """The client's true address and the service it dialled, as far as the peer may say so.

    The address is believed only when it is the connection's own source, or that of a workload
    with the identity that the peer has proven: else it could speak for others.
    """
    text: bytes | None = None
    for name, value in request.headers:
        if name == b"forwarded":
            text = value
            break
    if text is None:
        return peer, ""
    try:
        said = parse_forwarded(text)
    except ForwardedError:
        return peer, ""
    workload = state.workload_at(said.client.ip)
    believed = said.client.ip == peer.ip or (workload is not None and workload.identity == identity)
    return (said.client if believed else peer), said.host
