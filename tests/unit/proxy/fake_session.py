# SPDX-License-Identifier: Apache-2.0
"""A session without TLS and an owner for a tunnel under test. Records each write separately."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from ztunnel.hbone.events import RequestReceived
from ztunnel.proxy.io.buffers import Buffer
from ztunnel.proxy.tunnel.tunnel import Tunnel


@dataclass
class FakeSession:
    """A session that accepts every write, or leaves it pending while it is `stuck`."""

    sock: socket.socket
    written: list[bytes] = field(default_factory=list)
    unsent: list[bytes] = field(default_factory=list)
    stuck: bool = False
    end_reason: str = ""

    @property
    def pending(self) -> bool:
        return bool(self.unsent)

    def read_into(self, buffer: Buffer) -> int:
        return 0

    def write(self, buffer: Buffer, length: int) -> bool:
        assert not self.pending, "write before pending bytes were flushed"
        self.unsent.append(bytes(buffer.view[:length]))
        return self.flush()

    def flush(self) -> bool:
        if not self.stuck:
            self.written += self.unsent
            self.unsent = []
        return not self.unsent

    def discard(self) -> None:
        self.unsent = []

    def send_close_notify(self) -> None:
        """Not recorded."""


class NullOwner:
    def on_request(self, tunnel: Tunnel, request: RequestReceived) -> None: ...
    def on_capacity(self, tunnel: Tunnel) -> None: ...
    def on_closed(self, tunnel: Tunnel, reason: str) -> None: ...
