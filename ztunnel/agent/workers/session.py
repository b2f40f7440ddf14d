# SPDX-License-Identifier: Apache-2.0
"""The agent's side of the link: each proxy worker that dials `<run-dir>/agent.sock` is a session.

So is the gateway process that dials `<run-dir>/gateway.sock`, with messages of its own.

    GREETING --all Hellos read--> JOINED --Draining--> DRAINING
        |                            |                    |
        +------------- EOF, protocol error, slow reader --+--> CLOSED

    GREETING  the worker presents the listeners it holds
    JOINED    it receives a snapshot, certificates and pods, then every change
    DRAINING  it receives no changes; its messages, counters for example, are still handled
    CLOSED    the socket is closed

A worker runs as an unprivileged user and may be compromised. A message that does not decode to its
type, within its bounds, closes the session and is counted; it never raises into the agent.

A session never blocks the agent: packets that the socket does not accept wait in a bounded queue.
A worker that lets the queue fill up is disconnected; it dials again and gets a fresh snapshot.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import msgspec
import structlog

from ztunnel.agent.workers.handlers import (
    InvalidMessageError,
    MessageHandlers,
    SessionObserver,
)
from ztunnel.agent.workers.send_queue import SendQueue, close_fds
from ztunnel.ipc import introspection
from ztunnel.ipc.channel import DECODE_ERRORS, Channel, DescriptorsLostError, LinkError
from ztunnel.ipc.gateway_messages import GatewayHello
from ztunnel.ipc.introspection import View
from ztunnel.ipc.messages import Draining, Hello, IntrospectionReply, IntrospectionRequest

MESSAGE_BATCH = 64  # messages of one worker handled before other sockets have their turn

log = structlog.get_logger()


@dataclass(frozen=True)
class Peer:
    """The dialing process, as reported by the kernel."""

    pid: int
    uid: int


class SessionState(Enum):
    """See the drawing in the module's docstring."""

    GREETING = auto()
    JOINED = auto()
    DRAINING = auto()
    CLOSED = auto()


class Session:
    """One worker. `ready` holds the uids of the pods it serves."""

    def __init__(
        self,
        sock: socket.socket,
        peer: Peer,
        handlers: MessageHandlers,
        *,
        observers: Sequence[SessionObserver] = (),
        on_close: Callable[[Session], None],
        on_rejected: Callable[[], None] = lambda: None,
        process: str = "proxy",
    ) -> None:
        """`on_rejected` is called for an invalid message, before the session closes. `process`:
        the name of the program, for logs."""
        self.peer = peer
        self.worker = -1
        self.version = ""
        self.ready: set[str] = set()
        self.udp: dict[int, int] = {}  # port of its UDP socket by netns cookie
        self.held: set[tuple[str, str]] = set()  # (pod uid, kind of listener) it has descriptors of
        self.process = process
        self._handlers = handlers
        self._observers = observers
        self._on_close = on_close
        self._on_rejected = on_rejected
        self._state = SessionState.GREETING
        self._channel: Channel[Any] = Channel(sock, handlers.incoming)
        self._queue = SendQueue(self._channel, self.close)
        self._loop = asyncio.get_running_loop()
        self._queries: dict[int, tuple[View, asyncio.Future[Any]]] = {}
        self._last_query = 0
        self._loop.add_reader(sock.fileno(), self._read)

    @staticmethod
    def register(handlers: MessageHandlers) -> None:
        """Register the handlers of the messages that concern the session itself."""
        handlers.register(Draining, Session._drain)
        handlers.register(IntrospectionReply, Session._complete_query)

    @property
    def is_joined(self) -> bool:
        """Whether it receives changes."""
        return self._state is SessionState.JOINED

    @property
    def is_synced(self) -> bool:
        """Whether its socket has accepted everything that was sent."""
        return self.is_joined and self._queue.is_empty

    @property
    def queued_bytes(self) -> int:
        return self._queue.queued_bytes

    def raise_queue_limit(self, by_bytes: int) -> None:
        """Allow a larger queue until it is empty: a snapshot is as large as the mesh."""
        self._queue.raise_limit(by_bytes)

    def encode(self, message: msgspec.Struct) -> bytes:
        """The packet of a message, which several sessions may send."""
        return self._channel.encode(message)

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send a message with copies of `fds`, or queue it; never raises, never blocks.

        A message that is too large closes the session: the worker must not continue without it.
        """
        if self._state is SessionState.CLOSED:
            return
        try:
            packet = self.encode(message)
        except LinkError as error:
            log.error("message too large", worker=self.worker, error=str(error))
            self.close(str(error))
            return
        self._queue.send(packet, fds)

    def send_packet(self, packet: bytes) -> None:
        """The same for an encoded packet without descriptors."""
        self._queue.send(packet)

    async def query(self, view: View) -> Any:
        """The worker's view as JSON-able data. Raises ConnectionError if the session closes."""
        self._last_query += 1
        number = self._last_query
        reply: asyncio.Future[Any] = self._loop.create_future()
        self._queries[number] = view, reply
        try:
            self.send(IntrospectionRequest(number, view.value))
            return await reply
        finally:
            self._queries.pop(number, None)

    def close(self, reason: str) -> None:
        """Close the session. Idempotent."""
        if self._state is SessionState.CLOSED:
            return
        was_draining = self._state is SessionState.DRAINING
        self._state = SessionState.CLOSED
        self._loop.remove_reader(self._channel.fileno())
        self._queue.close()
        self._channel.close()
        for _, reply in self._queries.values():
            if not reply.done():
                reply.set_exception(ConnectionError(reason))
        log.info(
            "worker left",
            process=self.process,
            worker=self.worker,
            pid=self.peer.pid,
            reason=reason,
        )
        self._on_close(self)
        if not was_draining:
            self._notify_left()
        for observer in self._observers:
            observer.closed(self)

    def _read(self) -> None:
        for _ in range(MESSAGE_BATCH):
            try:
                received = self._channel.receive()
            except BlockingIOError:
                break
            except ConnectionResetError:  # once, if the worker exited before it read all: unix(7)
                continue
            except (OSError, DescriptorsLostError) as error:
                self.close(str(error))
                return
            except LinkError as error:
                self._reject(str(error))
                return
            if received is None:
                self.close("end of file")
                return
            self._handle(*received)
            if self._is_closed():
                return
        # A worker sends one Hello per packet of descriptors; all that have arrived are read.
        if self.version and self._state is SessionState.GREETING:
            self._join()

    def _join(self) -> None:
        self._state = SessionState.JOINED
        log.info("worker joined", process=self.process, worker=self.worker, pid=self.peer.pid)
        try:
            for observer in self._observers:
                observer.joined(self)
        except Exception as error:
            log.error("worker setup failed", worker=self.worker, exc_info=error)
            self.close("internal error")  # the worker dials again

    def _handle(self, message: msgspec.Struct, fds: list[int]) -> None:
        try:
            if isinstance(message, Hello | GatewayHello) and not self._greet(message, fds):
                return
            self._handlers.handle(self, message, fds)
        except InvalidMessageError as error:
            self._reject(str(error))
        except Exception as error:  # a fault in one handler must not end the agent
            log.error("message handler failed", message=type(message).__name__, exc_info=error)
        finally:
            close_fds(fds)

    def _greet(self, hello: Hello | GatewayHello, fds: list[int]) -> bool:
        if isinstance(hello, Hello):
            self.worker = hello.worker
        self.version = hello.version or "unknown"
        if len(fds) != sum(len(pod.listeners) for pod in hello.pods):
            self._reject("the Hello's descriptors do not match its pods")
            return False
        return True

    def _drain(self, _: Draining, fds: list[int]) -> None:
        if self._state is not SessionState.DRAINING:
            self._state = SessionState.DRAINING
            log.info("worker draining", process=self.process, worker=self.worker, pid=self.peer.pid)
            self._notify_left()

    def _complete_query(self, message: IntrospectionReply, fds: list[int]) -> None:
        view, reply = self._queries.get(message.id, (None, None))
        if view is None or reply is None or reply.done():
            return
        try:
            body = introspection.decode(view, message.body)
        except DECODE_ERRORS as error:
            self._reject(f"invalid reply: {error}")
            return
        reply.set_result(body)

    def _reject(self, reason: str) -> None:
        """Close the session because of an invalid message."""
        log.warning(
            "worker message rejected",
            process=self.process,
            worker=self.worker,
            pid=self.peer.pid,
            reason=reason,
        )
        self._on_rejected()
        self.close(reason)

    def _notify_left(self) -> None:
        for observer in self._observers:
            observer.left(self)

    def _is_closed(self) -> bool:
        return self._state is SessionState.CLOSED
