# SPDX-License-Identifier: Apache-2.0
"""HBONE connections to a pod: accepted on port 15008, each a tunnel with many streams.

accepted → TLS handshake → tunnel → one `InboundStream` per CONNECT
"""

from __future__ import annotations

import socket

from ztunnel.hbone.connection import Role
from ztunnel.hbone.events import RequestReceived
from ztunnel.proxy.conntrack.record import Direction
from ztunnel.proxy.context import Context
from ztunnel.proxy.handlers.inbound_stream import InboundStream
from ztunnel.proxy.io.sockets import local_address, peer_address, reset_on_close
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tls import credentials as tls_credentials
from ztunnel.proxy.tls.handshake import Handshake
from ztunnel.proxy.tls.session import TlsSession
from ztunnel.proxy.tunnel.tunnel import Tunnel
from ztunnel.telemetry.worker_counters import ConnectionPeers

MAX_HANDSHAKES = 256  # unfinished ones per pod; a further one aborts the oldest


class HboneServer:
    """A pod's listeners on port 15008."""

    def __init__(self, context: Context, pod: Pod) -> None:
        self._context = context
        self._pod = pod
        self._handshakes: dict[Handshake, HboneConnection] = {}  # oldest first

    def accepted(self, sock: socket.socket) -> None:
        """Start the TLS handshake; reset the connection while there is no certificate or mesh."""
        credentials = self._context.credentials.get(self._pod.identity)
        if credentials is None or self._context.mesh is None:
            reset_on_close(sock)
            self._context.loop.close(sock)
            return
        if len(self._handshakes) >= MAX_HANDSHAKES:
            next(iter(self._handshakes)).abort("too many unfinished handshakes")
        connection = HboneConnection(self._context, self._pod, self, sock)
        handshake = Handshake(
            self._context.loop,
            sock,
            credentials,
            self._context.buffers,
            connection,
            check_identity=self._check_identity,
        )
        self._handshakes[handshake] = connection
        handshake.accept()

    def handshake_ended(self, handshake: Handshake) -> None:
        """The handshake succeeded or failed: it no longer counts as unfinished."""
        self._handshakes.pop(handshake, None)

    def _check_identity(self, peer: str) -> str:
        ours, theirs = (
            tls_credentials.trust_domain(self._pod.identity),
            tls_credentials.trust_domain(peer),
        )
        return "" if ours == theirs else f"trust domain {theirs} is not {ours}"


class HboneConnection:
    """One peer's TLS connection to the pod. Owns its tunnel."""

    def __init__(
        self, context: Context, pod: Pod, server: HboneServer, sock: socket.socket
    ) -> None:
        self.context = context
        self.pod = pod
        self.peer_address = peer_address(sock)
        self.local_address = local_address(sock)
        self._server = server
        self._tunnel: Tunnel | None = None

    def handshake_done(self, handshake: Handshake, session: TlsSession, peer: str) -> None:
        self._server.handshake_ended(handshake)
        self._tunnel = Tunnel(
            self.context.loop,
            self.context.buffers,
            session,
            Role.SERVER,
            peer=peer,
            owner=self,
            share=self.pod.share,
        )
        self.pod.live.add(self)

    def handshake_failed(self, handshake: Handshake, reason: str) -> None:
        self._server.handshake_ended(handshake)
        mesh = self.context.mesh
        self.context.tracker.handshake_failed(
            Direction.INBOUND,
            str(self.peer_address),
            str(self.local_address),
            reason,
            ConnectionPeers(None, mesh.workload(self.pod.workload) if mesh is not None else None),
        )

    def on_request(self, tunnel: Tunnel, request: RequestReceived) -> None:
        stream = InboundStream(
            self.context,
            self.pod,
            tunnel,
            request,
            local=self.local_address,
            peer=self.peer_address,
        )
        stream.start()

    def on_capacity(self, tunnel: Tunnel) -> None:
        """Only the peer opens streams on this tunnel."""

    def on_closed(self, tunnel: Tunnel, reason: str) -> None:
        self._tunnel = None
        self.pod.live.discard(self)

    @property
    def tunnel(self) -> Tunnel | None:
        """None once it is closed."""
        return self._tunnel

    def abort(self, reason: str) -> None:
        if self._tunnel is not None:
            self._tunnel.close(reason)

    def drain(self) -> None:
        if self._tunnel is not None:
            self._tunnel.drain()
