# SPDX-License-Identifier: Apache-2.0
"""What all connections of one worker share, handed to them instead of being global."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from ztunnel.datapath import sockopt
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.agent_link.same_node_reporter import SameNodeReporter
from ztunnel.proxy.conntrack.admission import AdmissionTable
from ztunnel.proxy.conntrack.tracker import ConnectionTracker
from ztunnel.proxy.io.buffers import BufferPool
from ztunnel.proxy.io.event_loop import Loop
from ztunnel.proxy.tls.credentials import Credentials
from ztunnel.proxy.tunnel.pool import Pool
from ztunnel.telemetry.access_log import AccessLog, configured_renderer


@dataclass(slots=True, eq=False)
class Context:
    """One per worker. `mesh` is None until a snapshot is complete: then everything is refused."""

    loop: Loop
    buffers: BufferPool
    pool: Pool
    report: ConnectionTracker
    guard: AdmissionTable = field(default_factory=AdmissionTable)
    told: SameNodeReporter | None = (
        None  # who tells the agent whom we let in; None when nobody listens
    )
    mesh: MeshState | None = None
    credentials: dict[str, Credentials] = field(default_factory=dict)  # by identity
    workers: int = 1  # that serve this node
    choose: Callable[[], float] = random.random  # in [0, 1), which endpoint of a service
    shuffle: random.Random = field(default_factory=random.Random)  # the order of addresses
    asked_server: Callable[[socket.socket, int], SocketAddress] = sockopt.asked_server
    original_destination: Callable[[socket.socket], SocketAddress] = sockopt.original_destination
    udp_token: Callable[[socket.socket, SocketAddress], str] = sockopt.udp_token
    udp_remote: Callable[[socket.socket, str], SocketAddress] = sockopt.udp_remote
    set_client_address: Callable[[socket.socket, SocketAddress], None] = sockopt.set_client_address


def new_context(workers: int = 1) -> Context:
    """A fresh one with its own loop, for one of so many workers."""
    loop, buffers = Loop(), BufferPool()
    report = ConnectionTracker(AccessLog(loop.after_flushes, configured_renderer()))
    pool = Pool(loop, buffers)
    return Context(loop=loop, buffers=buffers, pool=pool, report=report, workers=workers)
