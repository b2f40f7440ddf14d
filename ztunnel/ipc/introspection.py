# SPDX-License-Identifier: Apache-2.0
"""The bodies of `IntrospectionReply`, by the view that the agent requested.

    "connections"  list of ConnectionRow
    "tunnels"      list of TunnelRow
    "stats"        object of counters

The worker encodes its own records, which have these fields. A newer worker may add some, which the
agent omits.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import msgspec

from ztunnel.ipc.messages import Count, Name, Seconds, SpiffeId

Text = Annotated[str, msgspec.Meta(max_length=4096)]  # addresses, policies, trace contexts


class View(StrEnum):
    """What the agent can request of a worker."""

    CONNECTIONS = "connections"
    TUNNELS = "tunnels"
    STATS = "stats"


class PeerRow(msgspec.Struct, frozen=True):
    """One side of a connection, see `proxy.conntrack.record.Peer`."""

    address: Text
    workload: Name = ""
    namespace: Name = ""
    identity: SpiffeId = ""


class ConnectionRow(msgspec.Struct, frozen=True, kw_only=True):
    """A live connection, see `proxy.conntrack.record.Record`."""

    id: Count
    direction: Name
    source: PeerRow
    destination: PeerRow
    started: Seconds
    hbone_addr: Text = ""
    service: Text = ""
    sent: Count = 0
    received: Count = 0
    protocol: Name = "tcp"
    dropped: Count = 0
    flags: Name = ""
    policy: Text = ""
    rule: Text = ""
    dry_run: Text = ""
    trace: Text = ""
    established: bool = False


class TunnelRow(msgspec.Struct, frozen=True, kw_only=True):
    """A tunnel of the pool, see `proxy.agent_link.introspection`."""

    source: SpiffeId
    peer: SpiffeId
    address: Text
    workload: Name
    streams: Count
    served: Count


Stats = dict[Annotated[str, msgspec.Meta(max_length=64)], Count]

_DECODERS: dict[View, msgspec.msgpack.Decoder[Any]] = {
    View.CONNECTIONS: msgspec.msgpack.Decoder(list[ConnectionRow]),
    View.TUNNELS: msgspec.msgpack.Decoder(list[TunnelRow]),
    View.STATS: msgspec.msgpack.Decoder(Stats),
}


def decode(view: View, body: bytes) -> Any:
    """The body as JSON-able data: lists, objects, strings and finite numbers.

    Raises msgspec.DecodeError (ValidationError included) and RecursionError.
    """
    return msgspec.to_builtins(_DECODERS[view].decode(body))
