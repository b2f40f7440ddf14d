# SPDX-License-Identifier: Apache-2.0
"""The worker's side of the agent link: connects, greets, exchanges messages, and reconnects.

    disconnected --dial--> connected --EOF or error--> disconnected (dials after a growing delay)

The loss of the agent does not affect connections: the worker continues with the state it has.
A session that ends soon counts as a failure: a worker without free descriptors loses each one at
the first message that carries some.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import structlog

from ztunnel.ipc.channel import Channel, DescriptorsLostError, LinkError
from ztunnel.ipc.messages import ToWorker
from ztunnel.proxy.io.event_loop import READ, WRITE, EventLoop

MIN_RECONNECT_DELAY_S = 0.05
MAX_RECONNECT_DELAY_S = 1.0
MAX_DESCRIPTORS_DELAY_S = 30.0  # while this process is out of descriptors
MIN_SESSION_S = 5.0  # a session that lasted so long resets the delay
MAX_QUEUED_MESSAGES = 4096  # then an agent that does not read is disconnected
MAX_MESSAGES_PER_TURN = 64  # limits the delay of connections

Message = tuple[msgspec.Struct, Sequence[int]]
log = structlog.get_logger()


class Session:
    """One worker's connection to the agent."""

    def __init__(
        self,
        loop: EventLoop,
        path: str,
        greet: Callable[[], list[Message]],
        receive: Callable[[ToWorker, list[int]], None],
    ) -> None:
        """`greet` returns the first messages of each session. `receive` removes the descriptors
        that it uses from the list."""
        self._loop = loop
        self._path = path
        self._greet = greet
        self._receive = receive
        self._channel: Channel[ToWorker] | None = None
        self._queue: deque[Message] = deque()
        self._delay = MIN_RECONNECT_DELAY_S
        self._connected_at = 0.0  # the loop's seconds
        self._stopped = False

    @property
    def is_up(self) -> bool:
        return self._channel is not None

    def dial(self) -> None:
        """Connect to the agent; retry later if that fails."""
        if self._stopped:
            return
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:  # out of descriptors
            self._retry(f"socket: {error.strerror}", MAX_DESCRIPTORS_DELAY_S)
            return
        try:
            sock.setblocking(False)
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            self._retry(f"connect to {self._path}: {error.strerror}")
            return
        self.adopt(sock)

    def adopt(self, sock: socket.socket) -> None:
        """Start a session over a connected socket."""
        self._channel = Channel(sock, ToWorker)  # type: ignore[arg-type]  # a union
        self._loop.register(sock.fileno(), READ, self)
        self._connected_at = self._loop.now
        self._queue.clear()
        for message, fds in self._greet():
            self.send(message, fds)
        log.info("agent connected", path=self._path)

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send or queue a message; dropped while no agent is connected."""
        if self._channel is None:
            return
        self._queue.append((message, fds))
        if len(self._queue) == 1:
            self._flush()
        elif len(self._queue) > MAX_QUEUED_MESSAGES:
            self._lost("agent does not read")

    def close_after(self, message: msgspec.Struct) -> None:
        """Send a message and never reconnect. Messages can still be sent until `stop`."""
        self._stopped = True
        self.send(message)

    def stop(self) -> None:
        """Close the session and never reconnect."""
        self._stopped = True
        if self._channel is not None:
            self._loop.close(self._channel.sock)
            self._channel = None

    def on_ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        if mask & ~WRITE:
            self._read()

    def on_failure(self, error: Exception) -> None:
        self._lost(f"internal error: {error}")

    def _read(self) -> None:
        for _ in range(MAX_MESSAGES_PER_TURN):
            if self._channel is None:
                return
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except DescriptorsLostError as error:
                self._lost(str(error), MAX_DESCRIPTORS_DELAY_S)
                return
            except (OSError, LinkError) as error:
                self._lost(str(error))
                return
            if received is None:
                self._lost("closed by agent")
                return
            self._handle(*received)

    def _handle(self, message: ToWorker, fds: list[int]) -> None:
        try:
            self._receive(message, fds)
        except Exception as error:
            for fd in fds:  # those that `receive` did not use
                os.close(fd)
            log.error("message failed", message=type(message).__name__, exc_info=error)

    def _flush(self) -> None:
        channel = self._channel
        if channel is None:
            return
        try:
            while self._queue:
                channel.send(*self._queue[0])
                self._queue.popleft()
        except BlockingIOError:
            self._loop.modify(channel.fileno(), READ | WRITE)
        except (OSError, LinkError) as error:
            self._lost(str(error))
        else:
            self._loop.modify(channel.fileno(), READ)

    def _lost(self, reason: str, max_delay_s: float = MAX_RECONNECT_DELAY_S) -> None:
        if self._channel is None:
            return
        if self._loop.now - self._connected_at >= MIN_SESSION_S:
            self._delay = MIN_RECONNECT_DELAY_S
        self._loop.close(self._channel.sock)
        self._channel = None
        self._queue.clear()
        self._retry(reason, max_delay_s)

    def _retry(self, reason: str, max_delay_s: float = MAX_RECONNECT_DELAY_S) -> None:
        if self._stopped:
            return
        if self._delay == MIN_RECONNECT_DELAY_S:  # log it once
            log.warning(
                "agent unreachable", reason=reason, hint="start `ztunnel agent` on this node"
            )
        self._loop.call_later(min(self._delay, max_delay_s), self.dial)
        self._delay = min(self._delay * 2, max_delay_s)
