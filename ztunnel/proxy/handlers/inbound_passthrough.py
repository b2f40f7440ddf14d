# SPDX-License-Identifier: Apache-2.0
"""Connections to apps of a pod that come in the clear, stolen for 15006 by sk_lookup.

    accepted → checked → let in → dialled → relay → ended

The app is told the true client's address before it accepts.
"""

from __future__ import annotations

import socket

from ztunnel.mesh.model import SocketAddress
from ztunnel.mesh.policy.engine import Decision
from ztunnel.mesh.routing.decisions import Accept, Reject
from ztunnel.mesh.routing.inbound import check_plain
from ztunnel.mesh.state import MeshState
from ztunnel.proxy.conntrack.record import Direction, Record
from ztunnel.proxy.conntrack.tracker import make_peer
from ztunnel.proxy.context import Context
from ztunnel.proxy.io.connector import Connector
from ztunnel.proxy.io.event_loop import HANGUP
from ztunnel.proxy.io.socket_pool import SocketPool
from ztunnel.proxy.io.sockets import local_address, peer_address
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tunnel.relay import APP_EVENTS, SocketRelay
from ztunnel.telemetry.worker_counters import ConnectionPeers


class PassthroughServer:
    """A pod's listeners on 15006: the kernel gives us what others sent to the pod's own ports."""

    def __init__(self, context: Context, pod: Pod) -> None:
        self._context = context
        self._pod = pod

    def accepted(self, sock: socket.socket) -> None:
        """Serve one connection from outside the mesh."""
        PassthroughInbound(self._context, self._pod, sock).start()


class PassthroughInbound:
    """One connection in the clear to an app."""

    def __init__(self, context: Context, pod: Pod, sock: socket.socket) -> None:
        self._context = context
        self._pod = pod
        self._sock = sock
        self._client = SocketAddress("", 0)
        self._target = "unknown"
        self._record: Record | None = None
        self._sockets: SocketPool | None = None
        self._dial: Connector | None = None
        self._relay: SocketRelay | None = None
        self._seen = 0
        self._over = False

    def start(self) -> None:
        context, sock = self._context, self._sock
        context.loop.register(sock.fileno(), APP_EVENTS, self)
        self._pod.live.add(self)
        try:
            self._client = peer_address(sock)
            destination = local_address(sock)  # the listener's socket keeps the dialled address
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        self._target = str(destination)
        if context.mesh is None:
            self._fail("no mesh state from the agent yet")
            return
        match check_plain(context.mesh, self._pod.addresses, self._client, destination):
            case Reject(_, reason):
                self._fail(reason)
            case Accept() as accepted:
                self._judge(context.mesh, accepted)

    def _judge(self, mesh: MeshState, accepted: Accept) -> None:
        """Let in only whom policy allows; nobody has proven anything here."""
        source = make_peer(accepted.client, accepted.source)
        tracker, peers = self._context.tracker, ConnectionPeers(accepted.source, accepted.workload)
        decision = self._context.admissions.admit(mesh, self, accepted, identity="")
        if decision.allowed:
            destination = make_peer(accepted.destination, accepted.workload)
            self._record = tracker.connection_opened(
                Direction.INBOUND, source, destination, peers=peers
            )
            self._record.dry_run = decision.dry_run
            self._begin(accepted)
            return
        destination = make_peer(accepted.destination, accepted.workload, self._pod.identity)
        tracker.connection_denied(Direction.INBOUND, source, destination, decision, peers=peers)
        self._over = True  # its line is written
        self._pod.live.discard(self)
        self._context.loop.close(self._sock)  # a reset, see `sockets.reset_on_close`

    def _begin(self, accepted: Accept) -> None:
        context = self._context
        self._sockets = self._pod.socket_pool_for(accepted.destination)
        self._dial = Connector(
            context.loop,
            self._sockets,
            accepted.destination,
            self._dialled,
            lambda sock: context.set_client_address(sock, accepted.client),
        )
        self._dial.start()

    def _dialled(self, sock: socket.socket | None, reason: str) -> None:
        self._dial = None
        if sock is None:
            self._fail(reason)
            return
        assert self._record is not None
        self._relay = SocketRelay(
            self._context.loop,
            self._context.buffers,
            self._sock,
            sock,
            record=self._record,
            ended=self._ended,
            inbound=True,
        )
        self._relay.begin(self._seen)

    def on_ready(self, mask: int) -> None:
        self._seen |= mask
        if mask & HANGUP:
            self._fail("the client gave up")

    def on_failure(self, error: Exception) -> None:
        self._fail(f"internal error: {error}")

    def deny(self, decision: Decision) -> None:
        """Policy has changed against it."""
        if self._record is not None:
            self._context.tracker.mark_denied(self._record, decision)
        self.abort(decision.reason)

    def abort(self, reason: str) -> None:
        if self._relay is not None:
            self._relay.abort(reason)
        else:
            self._fail(reason)

    def drain(self) -> None:
        """A connection goes on until it ends by itself."""

    def _ended(self, sock: socket.socket | None, error: str) -> None:
        if sock is not None and self._sockets is not None:
            self._context.loop.unregister(sock.fileno())
            self._sockets.recycle(sock, inbound=True)
        self._finish(error)

    def _fail(self, reason: str) -> None:
        if self._over:
            return
        if self._dial is not None:
            self._dial.cancel()
        self._context.loop.close(self._sock)  # a reset, see `sockets.reset_on_close`
        self._finish(reason)

    def _finish(self, error: str) -> None:
        self._over = True
        self._context.admissions.remove(self)
        self._pod.live.discard(self)
        self._relay = self._dial = None
        if self._record is not None:
            self._context.tracker.connection_closed(self._record, error)
        else:
            self._context.tracker.connection_refused(
                Direction.INBOUND, str(self._client), self._target, error
            )
