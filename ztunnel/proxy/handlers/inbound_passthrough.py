# SPDX-License-Identifier: Apache-2.0
"""Plaintext connections to a pod: `zt_sk_lookup` redirects them to the listener on port 15006.

    CHECKING ── authorized ──▶ DIALING ── connected ──▶ RELAYING ──▶ CLOSED
        │ refused or denied: RST  │ failed or denied: RST              ▲
        └─────────────────────────┴────────────────────────────────────┘

The application sees the address of the original client: `set_client_address` sets it before the
proxy dials.
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
from ztunnel.proxy.handlers.inbound_stream import CHECKING, CLOSED, DIALING, RELAYING
from ztunnel.proxy.io.connector import Connector
from ztunnel.proxy.io.event_loop import HANGUP
from ztunnel.proxy.io.socket_pool import SocketPool
from ztunnel.proxy.io.sockets import local_address, peer_address
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tunnel.socket_relay import SocketRelay
from ztunnel.proxy.tunnel.stream_relay import APP_EVENTS
from ztunnel.telemetry.worker_counters import ConnectionPeers


class PassthroughServer:
    """A pod's listeners on port 15006."""

    def __init__(self, context: Context, pod: Pod) -> None:
        self._context = context
        self._pod = pod

    def accepted(self, sock: socket.socket) -> None:
        """Serve one connection from outside the mesh."""
        PassthroughInbound(self._context, self._pod, sock).start()


class PassthroughInbound:
    """One plaintext connection to an application."""

    def __init__(self, context: Context, pod: Pod, sock: socket.socket) -> None:
        self._context = context
        self._pod = pod
        self._sock = sock
        self._client = SocketAddress("", 0)
        self._target = "unknown"
        self._state = CHECKING
        self._record: Record | None = None
        self._sockets: SocketPool | None = None
        self._connector: Connector | None = None
        self._relay: SocketRelay | None = None
        self._seen_events = 0  # of the client's socket; the relay must act on them

    def start(self) -> None:
        context, sock = self._context, self._sock
        context.loop.register(sock.fileno(), APP_EVENTS, self)
        self._pod.live.add(self)
        try:
            self._client = peer_address(sock)
            destination = local_address(sock)  # sk_lookup keeps the address that was dialed
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
                self._authorize(context.mesh, accepted)

    def _authorize(self, mesh: MeshState, accepted: Accept) -> None:
        """Evaluate the authorization policies. The client has no identity."""
        source = make_peer(accepted.client, accepted.source)
        tracker, peers = self._context.tracker, ConnectionPeers(accepted.source, accepted.workload)
        decision = self._context.admissions.admit(mesh, self, accepted, identity="")
        if decision.allowed:
            destination = make_peer(accepted.destination, accepted.workload)
            self._record = tracker.connection_opened(
                Direction.INBOUND, source, destination, peers=peers
            )
            self._record.dry_run = decision.dry_run
            self._dial(accepted)
            return
        destination = make_peer(accepted.destination, accepted.workload, self._pod.identity)
        tracker.connection_denied(Direction.INBOUND, source, destination, decision, peers=peers)
        self._state = CLOSED  # the access log has its line
        self._pod.live.discard(self)
        self._context.loop.close(self._sock)  # a reset, see `sockets.reset_on_close`

    def _dial(self, accepted: Accept) -> None:
        context = self._context
        self._state = DIALING
        self._sockets = self._pod.socket_pool_for(accepted.destination)
        self._connector = Connector(
            context.loop,
            self._sockets,
            accepted.destination,
            self._dialled,
            lambda sock: context.set_client_address(sock, accepted.client),
        )
        self._connector.start()

    def _dialled(self, sock: socket.socket | None, reason: str) -> None:
        self._connector = None
        if sock is None:
            self._fail(reason)
            return
        assert self._record is not None
        self._state = RELAYING
        self._relay = SocketRelay(
            self._context.loop,
            self._context.buffers,
            self._sock,
            sock,
            record=self._record,
            ended=self._relay_ended,
            share=self._pod.share,
            inbound=True,
        )
        self._relay.begin(self._seen_events)

    def on_ready(self, mask: int) -> None:
        """A close of the client ends the attempt; other events wait for the relay."""
        self._seen_events |= mask
        if mask & HANGUP:
            self._fail("the client closed the connection")

    def on_failure(self, error: Exception) -> None:
        self._fail(f"internal error: {error}")

    # Closing

    def deny(self, decision: Decision) -> None:
        """A policy change denies this connection: reset it."""
        if self._record is not None:
            self._context.tracker.mark_denied(self._record, decision)
        self.abort(decision.reason)

    def abort(self, reason: str) -> None:
        if self._relay is not None:
            self._relay.abort(reason)
        else:
            self._fail(reason)

    def drain(self) -> None:
        """Draining waits until the connection ends by itself."""

    def _relay_ended(self, sock: socket.socket | None, error: str) -> None:
        """The relay has released everything except `sock`."""
        if sock is not None and self._sockets is not None:
            self._context.loop.unregister(sock.fileno())
            self._sockets.recycle(sock, inbound=True)
        self._finish(error)

    def _fail(self, reason: str) -> None:
        """Reset the client's connection and release what was acquired for it."""
        if self._state is CLOSED:
            return
        if self._connector is not None:
            self._connector.cancel()
        self._context.loop.close(self._sock)  # a reset, see `sockets.reset_on_close`
        self._finish(reason)

    def _finish(self, error: str) -> None:
        self._state = CLOSED
        self._context.admissions.remove(self)
        self._pod.live.discard(self)
        self._relay = self._connector = None
        if self._record is not None:
            self._context.tracker.connection_closed(self._record, error)
        else:
            self._context.tracker.connection_refused(
                Direction.INBOUND, str(self._client), self._target, error
            )
