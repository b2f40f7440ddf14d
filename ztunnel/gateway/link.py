# SPDX-License-Identifier: Apache-2.0
"""The gateway process's side of the agent link: connects, greets, exchanges messages, reconnects.

The loss of the agent does not affect Envoys: the process serves the state that it has.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from ztunnel.ipc.channel import Channel, LinkError
from ztunnel.ipc.gateway_messages import ToGateway

MIN_DELAY_S = 0.05
MAX_DELAY_S = 1.0
MIN_SESSION_S = 5.0  # a session that lasted so long resets the delay
MAX_QUEUED_MESSAGES = 4096  # then an agent that does not read is disconnected
MESSAGES_PER_TURN = 64

Message = tuple[msgspec.Struct, Sequence[int]]

log = structlog.get_logger()


class AgentLink:
    """One per process. `receive` takes the descriptors that it uses out of the list."""

    def __init__(
        self,
        path: Path,
        greet: Callable[[], list[Message]],
        receive: Callable[[Any, list[int]], None],
    ) -> None:
        """`greet` returns the first messages of each session."""
        self._path = path
        self._greet = greet
        self._receive = receive
        self._loop = asyncio.get_running_loop()
        self._channel: Channel[Any] | None = None
        self._queue: deque[Message] = deque()
        self._lost = asyncio.Event()

    @property
    def is_up(self) -> bool:
        """Whether an agent is connected."""
        return self._channel is not None

    async def run(self) -> None:
        """Connect again and again until cancelled."""
        delay, reported = MIN_DELAY_S, False
        try:
            while True:
                try:
                    await self._connect()
                except OSError as error:
                    if not reported:
                        log.warning(
                            "agent unreachable",
                            reason=f"connect to {self._path}: {error.strerror}",
                            hint="start `ztunnel agent` on this node",
                        )
                        reported = True
                else:
                    reported = False
                    began = self._loop.time()
                    await self._lost.wait()
                    if self._loop.time() - began >= MIN_SESSION_S:
                        delay = MIN_DELAY_S
                await asyncio.sleep(delay)
                delay = min(delay * 2, MAX_DELAY_S)
        finally:
            self.close()

    def send(self, message: msgspec.Struct, fds: Sequence[int] = ()) -> None:
        """Send or queue a message; dropped while no agent is connected."""
        if self._channel is None:
            return
        self._queue.append((message, fds))
        if len(self._queue) == 1:
            self._flush()
        elif len(self._queue) > MAX_QUEUED_MESSAGES:
            self._drop("agent does not read")

    def close(self) -> None:
        """Close the session."""
        if self._channel is not None:
            self._drop("stopping")

    async def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            await self._loop.sock_connect(sock, str(self._path))
        except OSError:
            sock.close()
            raise
        self._lost.clear()
        self._channel = Channel(sock, ToGateway)  # type: ignore[arg-type]  # a union
        self._loop.add_reader(sock.fileno(), self._read)
        for message, fds in self._greet():
            self.send(message, fds)
        log.info("agent connected", path=str(self._path))

    def _read(self) -> None:
        for _ in range(MESSAGES_PER_TURN):
            if self._channel is None:
                return
            try:
                received = self._channel.receive()
            except BlockingIOError:
                return
            except (OSError, LinkError) as error:
                self._drop(str(error))
                return
            if received is None:
                self._drop("closed by agent")
                return
            self._handle(*received)

    def _handle(self, message: msgspec.Struct, fds: list[int]) -> None:
        try:
            self._receive(message, fds)
        except Exception as error:  # a defect must not end the process
            log.error("message failed", message=type(message).__name__, exc_info=error)
        finally:
            for fd in fds:  # those that `receive` did not use
                os.close(fd)

    def _flush(self) -> None:
        channel = self._channel
        if channel is None:
            return
        self._loop.remove_writer(channel.fileno())
        try:
            while self._queue:
                channel.send(*self._queue[0])
                self._queue.popleft()
        except BlockingIOError:
            self._loop.add_writer(channel.fileno(), self._flush)
        except (OSError, LinkError) as error:
            self._drop(str(error))

    def _drop(self, reason: str) -> None:
        channel, self._channel = self._channel, None
        if channel is None:
            return
        self._loop.remove_reader(channel.fileno())
        self._loop.remove_writer(channel.fileno())
        channel.close()
        self._queue.clear()
        self._lost.set()
        log.warning("agent disconnected", reason=reason)
