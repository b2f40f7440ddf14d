# SPDX-License-Identifier: Apache-2.0
"""What is decided of a connection: `mesh.route` of one that goes out, `mesh.inbound` of one that
comes in.

Structs, because one is made for each connection: three times as fast as a frozen dataclass. May
import msgspec and `mesh.model`.
"""

from __future__ import annotations

import msgspec

from ztunnel.mesh.model import SocketAddress, Workload


class Hbone(msgspec.Struct, frozen=True, gc=False):
    """Through a tunnel: CONNECT `authority` over mTLS to `tunnel`, which must prove one of
    `identities`."""

    authority: SocketAddress
    tunnel: SocketAddress
    identities: tuple[str, ...]
    workload: Workload
    service: str = ""


class Passthrough(msgspec.Struct, frozen=True, gc=False):
    """As it is, to `address`: the destination is not of the mesh."""

    address: SocketAddress
    workload: Workload | None = None
    service: str = ""


class Refuse(msgspec.Struct, frozen=True, gc=False):
    """Not at all, and why."""

    reason: str


Route = Hbone | Passthrough | Refuse


class Accept(msgspec.Struct, frozen=True, gc=False):
    """Connect to `destination` on behalf of `client`. `source` is the client's workload, when
    its address is known and it may be what it claims."""

    client: SocketAddress
    destination: SocketAddress
    source: Workload | None
    workload: Workload
    service: str = ""
    udp: bool = False  # datagrams, not a connection


class Reject(msgspec.Struct, frozen=True, gc=False):
    """Answer `status`; `reason` is for the log only."""

    status: int
    reason: str
