# SPDX-License-Identifier: Apache-2.0
"""Serves the TCP DNS connections of a pod, which the kernel redirects to port 15053.

    accepted → name server in the mesh: proxied like any other outbound connection, or reset if the
               responses for this pod must be filtered
             → otherwise: queries for names of the mesh are answered; the others are forwarded to
               the original name server on one connection, and everything it sends, zone transfers
               included, goes to the client

The client's end of stream is forwarded; that of the name server closes the connection. If the name
server cannot be reached, the queries for it are answered with SERVFAIL.
"""

from __future__ import annotations

import socket

import dns.rcode

from ztunnel.dns import message
from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.context import Context
from ztunnel.proxy.dns.responses import must_be_shown, name_lookup, remember, shown
from ztunnel.proxy.dns.udp_server import MAX_PENDING_QUERIES, passthrough_address
from ztunnel.proxy.handlers.outbound import OutboundServer
from ztunnel.proxy.io.connector import Connector
from ztunnel.proxy.io.event_loop import HANGUP, READ, WRITE
from ztunnel.proxy.io.sockets import fin_on_close
from ztunnel.proxy.local_pod import Pod
from ztunnel.telemetry.dns_counters import Outcome

IDLE_TIMEOUT_S = 30.0  # without data in either direction
READ_BYTES = 16 * 1024  # of one read
MAX_BUFFERED_BYTES = 256 * 1024  # for one side; then the other side is not read


class DnsTcpServer:
    """A pod's TCP listeners on port 15053."""

    def __init__(self, context: Context, pod: Pod) -> None:
        self._context = context
        self._pod = pod
        self._outbound = OutboundServer(context, pod)

    def accepted(self, sock: socket.socket) -> None:
        """Serve one connection of an application."""
        context, pod = self._context, self._pod
        try:
            server = context.original_destination(sock)
        except OSError:  # not redirected, but made to this port
            context.loop.close(sock)
            return
        address = passthrough_address(context, pod, server)
        if address is None:
            if must_be_shown(context, pod):
                context.loop.close(sock)  # a reset, see `sockets.reset_on_close`
            else:
                self._outbound.accepted(sock)
        elif len(pod.dns_queries) >= MAX_PENDING_QUERIES:
            context.loop.close(sock)  # a reset, see `sockets.reset_on_close`
        else:
            DnsTcpConnection(context, pod, sock, address).start()


class _StreamSide:
    """One of the two sockets with its buffers."""

    def __init__(self, connection: DnsTcpConnection, sock: socket.socket) -> None:
        self.sock = sock
        self.received = bytearray()  # an incomplete message
        self.unsent = bytearray()
        self.at_eof = False
        self._connection = connection
        self._mask = READ

    def watch(self, context: Context, *, readable: bool) -> None:
        """Wait for data if `readable`, and for buffer space if there is unsent data."""
        mask = (READ if readable and not self.at_eof else 0) | (WRITE if self.unsent else 0)
        if mask != self._mask:
            self._mask = mask
            context.loop.modify(self.sock.fileno(), mask)

    def on_ready(self, mask: int) -> None:
        self._connection.on_side_ready(self, mask)

    def on_failure(self, error: Exception) -> None:
        self._connection.abort(f"internal error: {error}")

    def receive(self) -> list[bytes]:
        """The complete messages received. Raises OSError."""
        data = self.sock.recv(READ_BYTES)
        if not data:
            self.at_eof = True
        self.received += data
        messages = []
        while len(self.received) >= 2:
            size = int.from_bytes(self.received[:2], "big")
            if len(self.received) < 2 + size:
                break
            messages.append(bytes(self.received[2 : 2 + size]))
            del self.received[: 2 + size]
        return messages

    def send(self, wire: bytes) -> None:
        """Buffer a message; `flush` sends it."""
        self.unsent += len(wire).to_bytes(2, "big") + wire

    def flush(self) -> None:
        """Send what the socket accepts. Raises OSError."""
        if self.unsent:
            try:
                del self.unsent[: self.sock.send(self.unsent)]
            except BlockingIOError:
                return


class DnsTcpConnection:
    """One connection of a client."""

    def __init__(
        self, context: Context, pod: Pod, sock: socket.socket, server: SocketAddress
    ) -> None:
        self._context = context
        self._pod = pod
        self._server_address = server
        self._client = _StreamSide(self, sock)
        self._server: _StreamSide | None = None
        self._unforwarded: list[bytes] = []  # queries, until the name server is connected
        self._connector: Connector | None = None
        self._forwarded_eof = False
        self._active_at = context.loop.now
        self._closed = False
        self._timer = context.loop.call_later(IDLE_TIMEOUT_S, self._check_idle)

    def start(self) -> None:
        """Start reading."""
        self._pod.live.add(self)
        self._pod.dns_queries.add(self)
        self._context.loop.register(self._client.sock.fileno(), READ, self._client)

    def abort(self, reason: str) -> None:
        """Reset it now."""
        self._close(orderly=False)

    def drain(self) -> None:
        """Draining waits until a side closes the connection, or it is idle."""

    def on_side_ready(self, side: _StreamSide, mask: int) -> None:
        """A socket has data or buffer space."""
        self._active_at = self._context.loop.now
        if mask & HANGUP and side.at_eof:
            self._close(orderly=False)
            return
        try:
            if mask & (READ | HANGUP) and not side.at_eof:
                self._on_messages(side, side.receive())
            if not self._closed:
                self._flush()
        except BlockingIOError:
            return
        except OSError:
            self._close(orderly=False)

    def _on_messages(self, side: _StreamSide, messages: list[bytes]) -> None:
        if side is self._server:
            for wire in messages:
                self._respond(wire)
            return
        for wire in messages:
            self._context.tracker.stats.queries += 1
            self._serve(wire)

    def _respond(self, wire: bytes) -> None:
        """Send a message of the name server to the client."""
        name = message.question_name(wire)
        found = shown(self._context, self._pod, name, wire)
        if found is None:
            self._close(orderly=False)
            return
        remember(self._context, self._pod, name, found)
        self._client.send(found)

    def _serve(self, wire: bytes) -> None:
        context = self._context
        question = message.read_question(wire)
        if question is None:
            self._close(orderly=False)  # not a DNS client
            return
        lookup_name = name_lookup(context, self._pod)
        if lookup_name is None:
            self._fail(wire)
            return
        answer = message.answer(wire, lookup_name, limit=65535, shuffle=context.shuffle)
        if answer is not None:
            context.tracker.dns_query_ended(Outcome.MESH)
            remember(context, self._pod, question.name, answer)
            self._client.send(answer)
        elif self._server is not None:
            self._forward(self._server, wire)
        else:
            self._unforwarded.append(wire)
            self._connect()

    def _connect(self) -> None:
        if self._connector is not None:
            return
        pool = self._pod.socket_pool_for(self._server_address)
        self._connector = Connector(
            self._context.loop, pool, self._server_address, self._on_connected
        )
        self._connector.start()

    def _on_connected(self, sock: socket.socket | None, reason: str) -> None:
        self._connector = None
        queries, self._unforwarded = self._unforwarded, []
        if sock is None:
            for wire in queries:
                self._context.tracker.counters.dns.count_forward_failure()
                self._fail(wire)
        else:
            self._server = _StreamSide(self, sock)
            self._context.loop.rebind(sock.fileno(), self._server)
            self._context.loop.modify(sock.fileno(), READ)
            for wire in queries:
                self._forward(self._server, wire)
        self._context.loop.defer(self._flush_deferred)

    def _flush_deferred(self) -> None:
        if not self._closed:
            self.on_side_ready(self._client, 0)

    def _forward(self, server: _StreamSide, wire: bytes) -> None:
        self._context.tracker.dns_query_ended(Outcome.FORWARDED)
        server.send(wire)

    def _fail(self, wire: bytes) -> None:
        self._context.tracker.dns_query_ended(Outcome.FAILED)
        response = message.error_response(wire, dns.rcode.SERVFAIL)
        if response is not None:
            self._client.send(response)

    def _flush(self) -> None:
        client, server = self._client, self._server
        client.flush()
        if server is not None:
            server.flush()
            self._forward_eof(server)
            if server.at_eof and not client.unsent:
                self._close(orderly=True)
                return
        elif client.at_eof and not client.unsent and self._connector is None:
            self._close(orderly=True)
            return
        buffered = len(client.unsent) + (len(server.unsent) if server is not None else 0)
        buffered += sum(map(len, self._unforwarded))
        client.watch(self._context, readable=buffered < MAX_BUFFERED_BYTES)
        if server is not None:
            server.watch(self._context, readable=len(client.unsent) < MAX_BUFFERED_BYTES)

    def _forward_eof(self, server: _StreamSide) -> None:
        if self._client.at_eof and not server.unsent and not self._forwarded_eof:
            self._forwarded_eof = True
            server.sock.shutdown(socket.SHUT_WR)

    def _check_idle(self) -> None:
        remaining = self._active_at + IDLE_TIMEOUT_S - self._context.loop.now
        if remaining <= 0:
            self._close(orderly=True)
        else:
            self._timer = self._context.loop.call_later(remaining, self._check_idle)

    def _close(self, *, orderly: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self._timer.cancel()
        if self._connector is not None:
            self._connector.cancel()
        self._pod.live.discard(self)
        self._pod.dns_queries.discard(self)
        for side in (self._client, self._server):
            if side is not None:
                if orderly:
                    fin_on_close(side.sock)
                self._context.loop.close(side.sock)
