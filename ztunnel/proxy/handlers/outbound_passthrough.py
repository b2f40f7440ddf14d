# SPDX-License-Identifier: Apache-2.0
"""Outbound connections to destinations that do not accept HBONE: forwarded without mTLS."""

from __future__ import annotations

import socket

from ztunnel.mesh.model import Service, SocketAddress, Workload
from ztunnel.mesh.routing.decisions import Passthrough
from ztunnel.proxy.conntrack.record import Direction
from ztunnel.proxy.conntrack.tracker import make_peer
from ztunnel.proxy.context import Context
from ztunnel.proxy.handlers.outbound_connection import DIALING, OutboundConnection
from ztunnel.proxy.io.connector import Connector
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tunnel.socket_relay import SocketRelay
from ztunnel.telemetry.worker_counters import ConnectionPeers


class PassthroughOutbound(OutboundConnection):
    """One connection of an application: DIALING → RELAYING → CLOSED."""

    def __init__(
        self,
        context: Context,
        pod: Pod,
        sock: socket.socket,
        client: SocketAddress,
        *,
        source: Workload,
        decision: Passthrough,
        service: Service | None,
    ) -> None:
        """`service`: the service that the application addressed, if the mesh knows it."""
        record = context.tracker.connection_opened(
            Direction.OUTBOUND,
            make_peer(client, source),
            make_peer(decision.address, decision.workload),
            service=decision.service,
            peers=ConnectionPeers(source, decision.workload, service),
        )
        super().__init__(context, pod, sock, record, DIALING)
        self._sockets = pod.socket_pool_for(decision.address)
        self._dial: Connector | None = Connector(
            context.loop, self._sockets, decision.address, self._dialled
        )

    def start(self) -> None:
        """Dial the destination."""
        assert self._dial is not None
        self._dial.start()

    def _dialled(self, sock: socket.socket | None, reason: str) -> None:
        self._dial = None
        if sock is None:
            self._fail(reason)
            return
        context = self._context
        relay = SocketRelay(
            context.loop,
            context.buffers,
            self._sock,
            sock,
            record=self._record,
            ended=self._relay_ended,
            share=self._pod.share,
        )
        self._start_relay(relay)

    def _release_setup(self) -> None:
        if self._dial is not None:
            self._dial.cancel()
            self._dial = None

    def _release_socket(self, sock: socket.socket) -> None:
        self._context.loop.unregister(sock.fileno())
        self._sockets.recycle(sock)
