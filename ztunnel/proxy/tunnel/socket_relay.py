# SPDX-License-Identifier: Apache-2.0
"""Relays bytes between two sockets, for connections without HBONE.

Bytes that the target does not accept wait in the relay; meanwhile it does not read the source.
FIN is forwarded in each direction separately. A reset of either side resets the other.
"""

from __future__ import annotations

import socket

from ztunnel.hbone.buffer_budget import BufferShare
from ztunnel.proxy.conntrack.record import Record
from ztunnel.proxy.io.buffers import BUFFER_BYTES, BufferPool
from ztunnel.proxy.io.event_loop import ENDING, HANGUP, WRITE, EventLoop
from ztunnel.proxy.io.sockets import fin_on_close
from ztunnel.proxy.tunnel.stream_relay import APP_EVENTS, RelayEnded

SMALL_READ_BYTES = 4096  # at a time, while the pod's share of memory is used up


class SocketSide:
    """One socket of a SocketRelay, and the bytes that wait to be written to it."""

    __slots__ = (
        "closed", "ending", "pending", "pump_deferred", "relay", "shut", "sock", "watches_write",
    )  # fmt: skip

    def __init__(self, relay: SocketRelay, sock: socket.socket) -> None:
        self.relay = relay
        self.sock = sock
        self.pending = memoryview(b"")
        self.closed = False  # FIN was read
        self.shut = False  # FIN was sent
        self.ending = False  # FIN or an error follows the unread bytes
        self.pump_deferred = False
        self.watches_write = False

    def on_ready(self, mask: int) -> None:
        if mask & ENDING:
            self.ending = True
        self.relay.on_ready(self, mask)

    def pump(self) -> None:
        self.pump_deferred = False
        self.relay.pump(self)

    def on_failure(self, error: Exception) -> None:
        self.relay.abort(f"internal error: {error}")


class SocketRelay:
    """The relay. The loop must already watch both sockets for APP_EVENTS."""

    def __init__(
        self,
        loop: EventLoop,
        buffers: BufferPool,
        client: socket.socket,
        server: socket.socket,
        *,
        record: Record,
        ended: RelayEnded,
        share: BufferShare,
        inbound: bool = False,
        server_record: Record | None = None,
    ) -> None:
        """`ended` gets the server's socket. The pod is the server if `inbound`, else the client.

        `share`: the pod's, of the worker's memory for bytes that wait. `server_record`: if the
        server is a pod of this node, too.
        """
        self._share = share
        self._loop = loop
        self._buffers = buffers
        self._record = record
        self._server_record = server_record
        record.established = True
        if server_record is not None:
            server_record.established = True
        self._ended = ended
        self._is_closed = False
        self._client = SocketSide(self, client)
        self._server = SocketSide(self, server)
        self._pod = self._server if inbound else self._client

    def begin(
        self, seen_events: int = 0, *, server_events: int = 0, early_data: bytes = b""
    ) -> None:
        """Become the handler of both sockets. The relay may end before this returns.

        `seen_events`: earlier events of the client's socket, which the loop may not report again;
        `server_events`: those of the server's. `early_data`: of the client, read and counted.
        """
        for side in (self._client, self._server):
            self._loop.rebind(side.sock.fileno(), side)
        if early_data:
            if self._server_record is not None:
                self._server_record.received += len(early_data)
            self._write(self._server, memoryview(early_data))
        if server_events:
            self._server.on_ready(server_events)
        if seen_events:
            self._client.on_ready(seen_events)

    def on_ready(self, side: SocketSide, mask: int) -> None:
        if self._is_closed:
            return
        if mask & WRITE and side.pending:
            self._flush(side)
        if mask & ~WRITE and not self._is_closed:
            self.pump(side)
            if mask & HANGUP and self._other(side).pending and not self._is_closed:
                self._on_hangup(side)

    def pump(self, source: SocketSide) -> None:
        """Read once from `source` and write to the other side; defer another read if needed."""
        target = self._other(source)
        if self._is_closed or source.closed or target.pending:
            return
        buffer = self._buffers.acquire()
        room = BUFFER_BYTES if self._share.room > BUFFER_BYTES else SMALL_READ_BYTES
        try:
            count = source.sock.recv_into(buffer.view, room)
            if count:
                self._count(source, count)
                self._write(target, buffer.view[:count])
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(f"{self._name(source)}: {error.strerror}")
            return
        finally:
            self._buffers.release(buffer)
        if not count:
            source.closed = True
            self._shut(target)
        elif (count == room or source.ending) and not source.pump_deferred:
            source.pump_deferred = True
            self._loop.defer(source.pump)

    def abort(self, reason: str) -> None:
        """Reset both sides now."""
        if self._is_closed:
            return
        self._is_closed = True
        for side in (self._client, self._server):
            self._share.give_back(len(side.pending))
            side.pending = memoryview(b"")
            self._loop.close(side.sock)  # a reset, see `sockets.reset_on_close`
        self._ended(None, reason)

    def _write(self, target: SocketSide, payload: memoryview) -> None:
        try:
            count = target.sock.send(payload)
        except BlockingIOError:
            count = 0
        except OSError as error:
            self.abort(f"{self._name(target)}: {error.strerror}")
            return
        if count < len(payload):
            target.pending = memoryview(bytes(payload[count:]))
            self._share.add(len(target.pending))
            if not target.watches_write:
                target.watches_write = True
                self._loop.modify(target.sock.fileno(), APP_EVENTS | WRITE)

    def _flush(self, target: SocketSide) -> None:
        try:
            count = target.sock.send(target.pending)
        except BlockingIOError:
            return
        except OSError as error:
            self.abort(f"{self._name(target)}: {error.strerror}")
            return
        target.pending = target.pending[count:]
        self._share.give_back(count)
        if target.pending:
            return
        source = self._other(target)
        if source.closed:
            self._shut(target)
        else:
            self.pump(source)

    def _shut(self, target: SocketSide) -> None:
        if target.pending or target.shut:
            return
        target.shut = True
        try:
            target.sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            self.abort(f"{self._name(target)}: {error.strerror}")
            return
        if self._client.shut and self._server.shut:
            self._is_closed = True
            fin_on_close(self._client.sock)
            self._loop.close(self._client.sock, unshared=True)
            self._ended(self._server.sock, "")

    def _on_hangup(self, side: SocketSide) -> None:
        """The socket closed while bytes wait for the other side: reset if it failed."""
        if side.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.abort(f"{self._name(side)}: connection reset")

    def _other(self, side: SocketSide) -> SocketSide:
        return self._server if side is self._client else self._client

    def _name(self, side: SocketSide) -> str:
        return "client" if side is self._client else "server"

    def _count(self, source: SocketSide, count: int) -> None:
        if source is self._pod:
            self._record.sent += count
        else:
            self._record.received += count
        record = self._server_record
        if record is not None:
            if source is self._server:
                record.sent += count
            else:
                record.received += count
