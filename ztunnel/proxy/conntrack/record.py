# SPDX-License-Identifier: Apache-2.0
"""What a worker knows of a live connection, and sums over all connections. Data only."""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Direction(StrEnum):
    OUTBOUND = "outbound"
    INBOUND = "inbound"


class Peer(msgspec.Struct, frozen=True):
    """One side of a connection, as far as it is known."""

    address: str
    workload: str = ""
    namespace: str = ""
    identity: str = ""


class Record(msgspec.Struct, kw_only=True):
    """A live connection. `sent` counts the bytes sent by this node's pod, as in Istio's access
    log: those of the client if outbound, those of the server if inbound."""

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
    flags: str = ""  # Istio's response flag; DENY if policy terminated the connection
    policy: str = ""  # the policy that decided
    rule: str = ""
    dry_run: str = ""  # the decision of dry-run policies
    trace: str = ""  # W3C traceparent: sent if outbound, received if inbound
    established: bool = False  # once bytes can flow, an error is no longer a failure to connect


class Stats(msgspec.Struct):
    """Sums since the worker started, for introspection. Metrics use `WorkerCounters`."""

    opened: int = 0
    closed: int = 0
    failed: int = 0
    refused: int = 0
    denied: int = 0  # by policy: new and live connections
    sent: int = 0
    received: int = 0
    handshakes_failed: int = 0
    accepts_paused: int = 0
    udp_refused: int = 0  # flows beyond a pod's limit
    udp_dropped: int = 0  # datagrams
    queries: int = 0  # DNS, by UDP and TCP
    queries_answered: int = 0  # by the mesh
    queries_failed: int = 0  # SERVFAIL or dropped
