# SPDX-License-Identifier: Apache-2.0
"""The decisions on a connection, made by `routing.outbound` and `routing.inbound`.

They are structs because one is created per connection: three times as fast as a frozen dataclass.
"""

from __future__ import annotations

import msgspec

from ztunnel.mesh.model import SocketAddress, Workload


class Hbone(msgspec.Struct, frozen=True, gc=False):
    """Send CONNECT `authority` over mTLS to `tunnel`, which must prove one of `identities`."""

    authority: SocketAddress
    tunnel: SocketAddress
    identities: tuple[str, ...]
    workload: Workload
    service: str = ""


class Passthrough(msgspec.Struct, frozen=True, gc=False):
    """Connect to `address` without HBONE: the destination is not in the mesh."""

    address: SocketAddress
    workload: Workload | None = None
    service: str = ""


class Refuse(msgspec.Struct, frozen=True, gc=False):
    """Refuse the connection, with the reason."""

    reason: str


Route = Hbone | Passthrough | Refuse


class Accept(msgspec.Struct, frozen=True, gc=False):
    """Connect to `destination` on behalf of `client`.

    `source` is the client's workload, if its address is known and its identity matches. With
    `to_waypoint`, `workload` runs the waypoint of the destination.
    """

    client: SocketAddress
    destination: SocketAddress
    source: Workload | None
    workload: Workload
    service: str = ""
    udp: bool = False  # datagrams, not a connection
    to_waypoint: bool = False  # `destination` is not the pod's: the pod's Envoy forwards to it


class Reject(msgspec.Struct, frozen=True, gc=False):
    """Respond with `status`; `reason` is only logged."""

    status: int
    reason: str
