# SPDX-License-Identifier: Apache-2.0
"""The worker's side of the link to the agent: dial, say what we hold, listen, dial again.

    AWAY --dial--> SPEAKING --EOF or error--> AWAY (next dial after a growing delay)

A lost agent changes nothing for connections: the worker goes on with what it knows.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import structlog

from ztunnel.ipc.channel import Channel, LinkError
from ztunnel.ipc.messages import ToWorker
from ztunnel.proxy.io.event_loop import READ, WRITE, EventLoop

FIRST_DELAY = 0.05  # seconds before the first redial
LONGEST_DELAY = 1.0
MAX_QUEUE = 4096  # messages a stuck agent may leave with us
MAX_MESSAGES = 64  # handled in one turn, so that connections are not kept waiting

Message = tuple[msgspec.Struct, Sequence[int]]
log = structlog.get_logger()


class Session:
    """Keeps one link alive."""

    def __init__(
        self,
        loop: EventLoop,
        path: str,
        greet: Callable[[], list[Message]],
        receive: Callable[[ToWorker, list[int]], None],
    ) -> None:
        """`greet` gives the first messages of each session; `receive` owns the fds it is given."""
        self._loop = loop
        self._path = path
        self._greet = greet
        self._receive = receive
        self._channel: Channel[ToWorker] | None = None
        self._queue: deque[Message] = deque()
        self._delay = FIRST_DELAY
        self._stopped = False

    @property
    def is_up(self) -> bool:
        return self._channel is not None

    def dial(self) -> None:
        """Connect to the agent; if it is not there, try again later."""
        if self._stopped:
            return
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            self._retry(f"dialled {self._path}: {error.strerror}")
            return
        self.adopt(sock)

    def adopt(self, sock: socket.socket) -> None:
        """Speak over a connected socket."""
        self._channel = Channel(sock, ToWorker)  # type: ignore[arg-type]  # a union is no type
        self._loop.register(sock.fileno(), READ, self)
        self._queue.clear()
        for message, fds in self._greet():
            self.send(message, fds)
        log.info("agent connected", path=self._path)

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send, or queue what the socket does not take; dropped while the agent is away."""
        if self._channel is None:
            return
        self._queue.append((message, fds))
        if len(self._queue) == 1:
            self._flush()
        elif len(self._queue) > MAX_QUEUE:
            self._lost("agent does not read")

    def leave(self, word: msgspec.Struct) -> None:
        """Say a last word and dial no more; what is still to be said can be, until `stop`."""
        self._stopped = True
        self.send(word)

    def stop(self) -> None:
        """End the session for good."""
        self._stopped = True
        if self._channel is not None:
            self._loop.close(self._channel.sock)
            self._channel = None

    def on_ready(self, mask: int) -> None:
        if mask & WRITE:
            self._flush()
        if mask & ~WRITE:
            self._listen()

    def on_failure(self, error: Exception) -> None:
        self._lost(f"internal error: {error}")

    def _listen(self) -> None:
        for _ in range(MAX_MESSAGES):
            if self._channel is None:
                return
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except (OSError, LinkError) as error:
                self._lost(str(error))
                return
            if received is None:
                self._lost("closed by agent")
                return
            self._delay = FIRST_DELAY
            self._handle(*received)

    def _handle(self, message: ToWorker, fds: list[int]) -> None:
        try:
            self._receive(message, fds)
        except Exception as error:
            for fd in fds:  # the receiver empties the list as it takes them over
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

    def _lost(self, reason: str) -> None:
        if self._channel is None:
            return
        self._loop.close(self._channel.sock)
        self._channel = None
        self._queue.clear()
        self._retry(reason)

    def _retry(self, reason: str) -> None:
        if self._stopped:
            return
        if self._delay == FIRST_DELAY:  # once an absence
            log.warning("agent away", reason=reason, mend="start `ztunnel agent` on this node")
        self._loop.call_later(self._delay, self.dial)
        self._delay = min(self._delay * 2, LONGEST_DELAY)
