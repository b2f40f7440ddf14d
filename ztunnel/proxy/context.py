# SPDX-License-Identifier: Apache-2.0
"""The state that all connections of one worker share. It is passed to them explicitly."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from ztunnel.datapath import sockopt
from ztunnel.hbone.buffer_budget import BufferBudget
from ztunnel.hbone.constants import BUFFER_BUDGET_BYTES
from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.ports import WAYPOINT
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.agent_link.same_node_reporter import SameNodeReporter
from ztunnel.proxy.conntrack.admission import AdmissionTable
from ztunnel.proxy.conntrack.recent_answers import RecentAnswers
from ztunnel.proxy.conntrack.recent_destinations import RecentDestinations
from ztunnel.proxy.conntrack.tracker import ConnectionTracker
from ztunnel.proxy.io.buffers import BufferPool
from ztunnel.proxy.io.event_loop import EventLoop
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tls.credentials import Credentials
from ztunnel.proxy.tls.local_trust import LocalTrust
from ztunnel.proxy.tunnel.pool import TunnelPool
from ztunnel.telemetry.access_log import AccessLog, configured_renderer

# Every network namespace has this address, also that of a pod with IPv6 only.
ENVOY = SocketAddress("127.0.0.1", WAYPOINT)


@dataclass(slots=True, eq=False)
class Context:
    """One per worker. While `mesh` is None, before the first complete snapshot, the worker refuses
    every connection."""

    loop: EventLoop
    buffers: BufferPool
    pool: TunnelPool
    tracker: ConnectionTracker
    admissions: AdmissionTable
    budget: BufferBudget
    same_node_reporter: SameNodeReporter | None = None
    mesh: MeshState | None = None
    credentials: dict[str, Credentials] = field(default_factory=dict)  # by identity
    pods: dict[str, Pod] = field(default_factory=dict)  # of this node, by uid
    local_trust: LocalTrust = field(default_factory=LocalTrust)
    workers: int = 1  # worker processes of this node
    envoy: SocketAddress = ENVOY  # in a waypoint's pod
    recent_destinations: RecentDestinations = field(default_factory=RecentDestinations)
    recent_answers: RecentAnswers = field(default_factory=RecentAnswers)  # of all workers
    choose: Callable[[], float] = random.random  # in [0, 1): selects an endpoint
    shuffle: random.Random = field(default_factory=random.Random)  # orders addresses in DNS answers
    original_dns_server: Callable[[socket.socket, int], SocketAddress] = sockopt.original_dns_server
    original_destination: Callable[[socket.socket], SocketAddress] = sockopt.original_destination
    udp_token: Callable[[socket.socket, SocketAddress], str] = sockopt.udp_token
    udp_remote: Callable[[socket.socket, str], SocketAddress] = sockopt.udp_remote
    set_client_address: Callable[[socket.socket, SocketAddress], None] = sockopt.set_client_address


def new_context(workers: int = 1, buffer_bytes: int = BUFFER_BUDGET_BYTES) -> Context:
    """A context with its own event loop. `workers` is the number of worker processes.

    `buffer_bytes`: the memory of this worker for payload that applications do not read.
    """
    loop, buffers = EventLoop(), BufferPool()
    tracker = ConnectionTracker(AccessLog(loop.after_flushes, configured_renderer()))
    pool = TunnelPool(loop, buffers)
    return Context(
        loop=loop,
        buffers=buffers,
        pool=pool,
        tracker=tracker,
        admissions=AdmissionTable(loop.defer),
        budget=BufferBudget(buffer_bytes),
        workers=workers,
    )
