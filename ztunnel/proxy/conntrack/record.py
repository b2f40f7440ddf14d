# SPDX-License-Identifier: Apache-2.0
"""What a worker knows of a connection while it lives, and the sums of all. Pure data."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Direction(StrEnum):
    OUTBOUND = "outbound"
    INBOUND = "inbound"


class Peer(msgspec.Struct, frozen=True):
    """One end of a connection as far as we know it."""

    address: str
    workload: str = ""
    namespace: str = ""
    identity: str = ""


class Record(msgspec.Struct, kw_only=True):
    """A connection while it lives. `sent` counts bytes that the pod of this node sent, as in
    Istio's access log: the client's when outbound, the server's when inbound."""

    id: int
    direction: Direction
    source: Peer
    destination: Peer
    started: float  # Unix seconds
    hbone_addr: str = ""
    service: str = ""
    sent: int = 0
    received: int = 0
    protocol: str = "tcp"
    dropped: int = 0  # datagrams
    flags: str = ""  # Istio's response flag, DENY when policy ended it
    policy: str = ""  # which one
    rule: str = ""
    dry_run: str = ""  # what policies in dry run would have done
    trace: str = ""  # W3C traceparent: ours when outbound, the peer's when inbound
    established: bool = False  # bytes could flow: what ends it now is no failure to connect


class Stats(msgspec.Struct):
    """Sums since the worker started."""

    opened: int = 0
    closed: int = 0
    failed: int = 0
    refused: int = 0
    denied: int = 0  # by policy, new ones and live ones
    sent: int = 0
    received: int = 0
    handshakes_failed: int = 0
    accepts_paused: int = 0
    udp_refused: int = 0  # flows for which a pod had no room
    udp_dropped: int = 0  # datagrams
    queries: int = 0  # DNS, by UDP and TCP
    queries_answered: int = 0  # from the mesh
    queries_failed: int = 0  # SERVFAIL, or dropped
