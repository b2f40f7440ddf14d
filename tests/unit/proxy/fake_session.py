# SPDX-License-Identifier: Apache-2.0
"""A tunnel's surroundings without TLS: what it writes is seen write by write."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field

from ztunnel.hbone.events import RequestReceived
from ztunnel.proxy.io.buffers import Buffer
from ztunnel.proxy.tunnel.tunnel import Tunnel


@dataclass
class Wire:
    """Stands for the TLS session: takes every write, or keeps it while it is `stuck`."""

    sock: socket.socket
    written: list[bytes] = field(default_factory=list)
    kept: list[bytes] = field(default_factory=list)
    stuck: bool = False
    end_reason: str = ""

    @property
    def pending(self) -> bool:
        return bool(self.kept)

    def read_into(self, buffer: Buffer) -> int:
        return 0

    def write(self, buffer: Buffer, length: int) -> bool:
        assert not self.pending, "written before what waits was flushed"
        self.kept.append(bytes(buffer.view[:length]))
        return self.flush()

    def flush(self) -> bool:
        if not self.stuck:
            self.written += self.kept
            self.kept = []
        return not self.kept

    def discard(self) -> None:
        self.kept = []

    def send_close_notify(self) -> None:
        """TLS's goodbye is not looked at."""


class Owner:
    def on_request(self, tunnel: Tunnel, request: RequestReceived) -> None: ...
    def on_capacity(self, tunnel: Tunnel) -> None: ...
    def on_closed(self, tunnel: Tunnel, reason: str) -> None: ...
