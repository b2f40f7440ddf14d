# SPDX-License-Identifier: Apache-2.0
"""Queries of a pod's apps by TCP, which the kernel brought to 15053 instead of a name server.

    accepted → the server is of the mesh: a connection like any other, through its tunnel
             → not: each message of the mesh is answered, the others go to the server on one
               connection, and all that comes from there to the client: transfers of zones too

The client's end of sending is passed on; the server's end is the end of all. A server that can't be
reached is SERVFAIL for what it was to be asked.
"""

from __future__ import annotations

import socket

import dns.rcode

from ztunnel.dns import message
from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.context import Context
from ztunnel.proxy.dns.udp_server import MOST, looker, plain_way
from ztunnel.proxy.handlers.outbound import OutboundServer
from ztunnel.proxy.io.connector import Connector
from ztunnel.proxy.io.event_loop import HANGUP, READ, WRITE
from ztunnel.proxy.io.sockets import fin_on_close
from ztunnel.proxy.local_pod import Pod
from ztunnel.telemetry.dns_counters import Outcome

IDLE = 30.0  # seconds without a byte from either side
PIECE = 16 * 1024  # bytes of one read
HIGH = 256 * 1024  # bytes waiting for one side until the other is not read any more


class QueryStreamServer:
    """A pod's TCP listeners on 15053."""

    def __init__(self, context: Context, pod: Pod) -> None:
        self._context = context
        self._pod = pod
        self._outbound = OutboundServer(context, pod)

    def accepted(self, sock: socket.socket) -> None:
        """Serve one connection of an app."""
        context, pod = self._context, self._pod
        try:
            server = context.original_destination(sock)
        except OSError:  # nobody was dialled: it came to our port by itself
            context.loop.close(sock)
            return
        way = plain_way(context, pod, server)
        if way is None:
            self._outbound.accepted(sock)
        elif len(pod.dns_queries) >= MOST:
            context.loop.close(sock)  # a reset, see `sockets.reset_on_close`
        else:
            QueryStream(context, pod, sock, way).start()


class _End:
    """One of the two sockets: what is read of it, what is to be written to it."""

    def __init__(self, stream: QueryStream, sock: socket.socket) -> None:
        self.sock = sock
        self.read = bytearray()
        self.left = bytearray()
        self.ended = False  # it will send no more
        self._stream = stream
        self._mask = READ

    def watch(self, context: Context, *, wants: bool) -> None:
        """Read if `wants`, and write if there is something left."""
        mask = (READ if wants and not self.ended else 0) | (WRITE if self.left else 0)
        if mask != self._mask:
            self._mask = mask
            context.loop.modify(self.sock.fileno(), mask)

    def on_ready(self, mask: int) -> None:
        self._stream.ready(self, mask)

    def on_failure(self, error: Exception) -> None:
        self._stream.abort(f"internal error: {error}")

    def receive(self) -> list[bytes]:
        """The whole messages that have come. Raises OSError."""
        piece = self.sock.recv(PIECE)
        if not piece:
            self.ended = True
        self.read += piece
        whole = []
        while len(self.read) >= 2:
            size = int.from_bytes(self.read[:2], "big")
            if len(self.read) < 2 + size:
                break
            whole.append(bytes(self.read[2 : 2 + size]))
            del self.read[: 2 + size]
        return whole

    def put(self, wire: bytes) -> None:
        """Queue a message to this side."""
        self.left += len(wire).to_bytes(2, "big") + wire

    def flush(self) -> None:
        """Write what there is. Raises OSError."""
        if self.left:
            try:
                del self.left[: self.sock.send(self.left)]
            except BlockingIOError:
                return


class QueryStream:
    """One connection of a client."""

    def __init__(
        self, context: Context, pod: Pod, sock: socket.socket, server: SocketAddress
    ) -> None:
        self._context = context
        self._pod = pod
        self._address = server
        self._client = _End(self, sock)
        self._server: _End | None = None
        self._waiting: list[bytes] = []  # queries until the server is reached
        self._dial: Connector | None = None
        self._has_passed_end = False
        self._touched = context.loop.now
        self._over = False
        self._timer = context.loop.call_later(IDLE, self._check_idle)

    def start(self) -> None:
        """Begin to read."""
        self._pod.live.add(self)
        self._pod.dns_queries.add(self)
        self._context.loop.register(self._client.sock.fileno(), READ, self._client)

    def abort(self, reason: str) -> None:
        """Reset it now."""
        self._close(orderly=False)

    def drain(self) -> None:
        """It goes on until the client or the server ends it, or nobody speaks."""

    def ready(self, end: _End, mask: int) -> None:
        """One side has something to read, or room."""
        self._touched = self._context.loop.now
        if mask & HANGUP and end.ended:
            self._close(orderly=False)
            return
        try:
            if mask & (READ | HANGUP) and not end.ended:
                self._take(end, end.receive())
            if not self._over:
                self._flush()
        except BlockingIOError:
            return
        except OSError:
            self._close(orderly=False)

    def _take(self, end: _End, messages: list[bytes]) -> None:
        if end is self._server:
            for wire in messages:
                self._client.put(wire)
            return
        for wire in messages:
            self._context.tracker.stats.queries += 1
            self._serve(wire)

    def _serve(self, wire: bytes) -> None:
        context = self._context
        if message.read_question(wire) is None:
            self._close(orderly=False)  # what is no query is no client
            return
        look = looker(context, self._pod)
        if look is None:
            self._fail(wire)
            return
        answer = message.answer(wire, look, limit=65535, shuffle=context.shuffle)
        if answer is not None:
            context.tracker.dns_query_ended(Outcome.MESH)
            self._client.put(answer)
        elif self._server is not None:
            self._pass_on(self._server, wire)
        else:
            self._waiting.append(wire)
            self._reach()

    def _reach(self) -> None:
        if self._dial is not None:
            return
        stock = self._pod.socket_pool_for(self._address)
        self._dial = Connector(self._context.loop, stock, self._address, self._dialled)
        self._dial.start()

    def _dialled(self, sock: socket.socket | None, reason: str) -> None:
        self._dial = None
        waiting, self._waiting = self._waiting, []
        if sock is None:
            for wire in waiting:
                self._context.tracker.counters.dns.count_forward_failure()
                self._fail(wire)
        else:
            self._server = _End(self, sock)
            self._context.loop.rebind(sock.fileno(), self._server)
            self._context.loop.modify(sock.fileno(), READ)
            for wire in waiting:
                self._pass_on(self._server, wire)
        self._context.loop.defer(self._settle)

    def _settle(self) -> None:
        if not self._over:
            self.ready(self._client, 0)

    def _pass_on(self, server: _End, wire: bytes) -> None:
        self._context.tracker.dns_query_ended(Outcome.FORWARDED)
        server.put(wire)

    def _fail(self, wire: bytes) -> None:
        self._context.tracker.dns_query_ended(Outcome.FAILED)
        failed = message.error_response(wire, dns.rcode.SERVFAIL)
        if failed is not None:
            self._client.put(failed)

    def _flush(self) -> None:
        client, server = self._client, self._server
        client.flush()
        if server is not None:
            server.flush()
            self._pass_end(server)
            if server.ended and not client.left:
                self._close(orderly=True)
                return
        elif client.ended and not client.left and self._dial is None:
            self._close(orderly=True)
            return
        waiting = len(client.left) + (len(server.left) if server is not None else 0)
        waiting += sum(map(len, self._waiting))
        client.watch(self._context, wants=waiting < HIGH)
        if server is not None:
            server.watch(self._context, wants=len(client.left) < HIGH)

    def _pass_end(self, server: _End) -> None:
        if self._client.ended and not server.left and not self._has_passed_end:
            self._has_passed_end = True
            server.sock.shutdown(socket.SHUT_WR)

    def _check_idle(self) -> None:
        left = self._touched + IDLE - self._context.loop.now
        if left <= 0:
            self._close(orderly=True)
        else:
            self._timer = self._context.loop.call_later(left, self._check_idle)

    def _close(self, *, orderly: bool) -> None:
        if self._over:
            return
        self._over = True
        self._timer.cancel()
        if self._dial is not None:
            self._dial.cancel()
        self._pod.live.discard(self)
        self._pod.dns_queries.discard(self)
        for end in (self._client, self._server):
            if end is not None:
                if orderly:
                    fin_on_close(end.sock)
                self._context.loop.close(end.sock)
