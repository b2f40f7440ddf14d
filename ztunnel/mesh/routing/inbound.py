# SPDX-License-Identifier: Apache-2.0
"""Decides on a connection into a pod. Pure.

Status codes (istio/ztunnel, proxy/inbound.rs): 400, the request is not a CONNECT to this pod; 503,
the pod is unknown. A pod that runs a Gateway also accepts the services and workloads whose waypoint
that Gateway is; every other authority that is not the pod is rejected. Authorization (401) follows
after `Accept`, in `mesh.policy.engine`.
"""

from __future__ import annotations

from typing import Protocol

from ztunnel.mesh.address import AddressError, parse_authority
from ztunnel.mesh.headers.connect_udp import PROTOCOL, parse_target
from ztunnel.mesh.headers.forwarded import ForwardedError, parse_forwarded
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.ports import RESERVED
from ztunnel.mesh.routing.decisions import Accept, Reject
from ztunnel.mesh.routing.waypoints import (
    NamedAddress,
    WaypointDestination,
    find_destination,
    parse_named_authority,
)
from ztunnel.mesh.state import MeshState

BAD_REQUEST = 400
DENIED = 401
UNAVAILABLE = 503


class Request(Protocol):
    """A CONNECT request as decoded by the codec."""

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
    """Decide on a CONNECT over the connection `peer` → `local`, authenticated as `identity`."""
    destination = _destination(request)
    if isinstance(destination, Reject):
        return destination
    udp = request.protocol == PROTOCOL
    if isinstance(destination, NamedAddress) or destination.ip != local.ip:
        waypoint = None if udp else find_destination(state, local.ip, destination)
        if waypoint is None:
            return Reject(BAD_REQUEST, f"authority {destination} is not this pod, {local.ip}")
        client, _ = _forwarded(state, request, peer, identity)
        return _accept_for_waypoint(state, client, identity, waypoint)
    if destination.port in RESERVED and not udp:
        return Reject(BAD_REQUEST, f"port {destination.port} is reserved for the mesh")
    workload = state.workload_at(local.ip)
    if workload is None:
        return Reject(UNAVAILABLE, f"no workload owns the address {local.ip}")
    client, service = _forwarded(state, request, peer, identity)
    source = state.workload_at(client.ip)
    if source is not None and source.identity != identity:
        source = None
    return Accept(client, destination, source, workload, service, udp)


def check_handover(
    state: MeshState,
    destination: SocketAddress,
    *,
    local: SocketAddress,
    client: SocketAddress,
    identity: str,
) -> Accept | Reject:
    """Decide on a connection that the proxy hands over to a waypoint's pod without a tunnel.

    As `check_connect` for CONNECT `destination` to `local`, over a connection from `client`, which
    is an address of a pod of this node with `identity`.
    """
    waypoint = find_destination(state, local.ip, destination)
    if waypoint is None:
        return Reject(BAD_REQUEST, f"authority {destination} is not this pod, {local.ip}")
    return _accept_for_waypoint(state, client, identity, waypoint)


def _accept_for_waypoint(
    state: MeshState,
    client: SocketAddress,
    identity: str,
    found: WaypointDestination | str,
) -> Accept | Reject:
    """Decide on a connection to a destination whose waypoint is the local pod."""
    if isinstance(found, str):
        return Reject(BAD_REQUEST, found)
    source = state.workload_at(client.ip)
    if source is not None and source.identity != identity:
        source = None
    return Accept(client, found.address, source, found.gateway_pod, found.service, to_waypoint=True)


def _destination(request: Request) -> SocketAddress | NamedAddress | Reject:
    """Return the destination: the authority of a connection, the path of a connect-udp request."""
    if request.method != b"CONNECT":
        return Reject(BAD_REQUEST, f"method {request.method[:16]!r} is not CONNECT")
    if request.protocol not in (b"", PROTOCOL):
        return Reject(BAD_REQUEST, f"protocol {request.protocol[:16]!r} is not connect-udp")
    try:
        if request.protocol:
            return parse_target(request.path)
        return parse_authority(request.authority.decode("ascii"))
    except (AddressError, UnicodeDecodeError):
        named = None if request.protocol else parse_named_authority(request.authority)
        if named is not None:
            return named
        target = request.path if request.protocol else request.authority
        return Reject(BAD_REQUEST, f"authority {target[:64]!r} is not ip:port")


def check_plain(
    state: MeshState,
    addresses: tuple[str, ...],
    client: SocketAddress,
    destination: SocketAddress,
) -> Accept | Reject:
    """Decide on a plaintext connection to a pod that owns `addresses`."""
    if destination.ip not in addresses:
        return Reject(BAD_REQUEST, f"{destination.ip} is not this pod")
    if destination.port in RESERVED:
        return Reject(BAD_REQUEST, f"port {destination.port} is reserved for the mesh")
    workload = state.workload_at(destination.ip)
    if workload is None:
        return Reject(UNAVAILABLE, f"no workload owns the address {destination.ip}")
    return Accept(client, destination, state.workload_at(client.ip), workload)


def _forwarded(
    state: MeshState, request: Request, peer: SocketAddress, identity: str
) -> tuple[SocketAddress, str]:
    """Return the client address and the dialed service from the `forwarded` header.

    The address is trusted only if it is the source of the connection, or belongs to a workload
    with the identity that the peer has proven; otherwise a peer could impersonate other clients.
    """
    text: bytes | None = None
    for name, value in request.headers:
        if name == b"forwarded":
            text = value
            break
    if text is None:
        return peer, ""
    try:
        forwarded = parse_forwarded(text)
    except ForwardedError:
        return peer, ""
    workload = state.workload_at(forwarded.client.ip)
    is_trusted = forwarded.client.ip == peer.ip or (
        workload is not None and workload.identity == identity
    )
    return (forwarded.client if is_trusted else peer), forwarded.host
