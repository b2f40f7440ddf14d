# SPDX-License-Identifier: Apache-2.0
"""A tunnel's surroundings without TLS: what it writes is seen write by write."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass, field

from ztunnel.hbone.events import RequestReceived
from ztunnel.proxy.tunnel import Tunnel


@dataclass
class Wire:
    """Stands for the TLS socket: takes every write, or none while it is `stuck`."""

    sock: socket.socket
    written: list[bytes] = field(default_factory=list)
    stuck: bool = False

    def fileno(self) -> int:
        return self.sock.fileno()

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        return self.sock.getsockopt(level, option, size)

    def read(self, size: int, buffer: memoryview) -> int:
        raise ssl.SSLWantReadError

    def unwrap(self) -> None:
        """TLS's goodbye is not looked at."""

    def close(self) -> None:
        self.sock.close()

    def write(self, payload: memoryview) -> int:
        if self.stuck:
            raise ssl.SSLWantWriteError
        self.written.append(bytes(payload))
        return len(payload)


class Owner:
    def on_request(self, tunnel: Tunnel, request: RequestReceived) -> None: ...
    def on_capacity(self, tunnel: Tunnel) -> None: ...
    def on_closed(self, tunnel: Tunnel, reason: str) -> None: ...
