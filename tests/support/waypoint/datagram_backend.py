# SPDX-License-Identifier: Apache-2.0
"""A UDP server that answers with its name and the datagram."""

from __future__ import annotations

import socket
import threading
from types import TracebackType


class DatagramBackend:
    """A server on 127.0.0.1 at `port`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.received = 0
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.bind(("127.0.0.1", 0))
        self.port: int = self._sock.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        while True:
            try:
                data, client = self._sock.recvfrom(65535)
            except OSError:
                return
            if client[1] == self.port:  # from `__exit__`
                return
            self.received += 1
            self._sock.sendto(self.name.encode() + b":" + data, client)

    def __enter__(self) -> DatagramBackend:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._sock.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(5)
        self._sock.close()


def exchange(port: int, data: bytes, timeout_s: float = 5.0) -> bytes:
    """Send a datagram to 127.0.0.1 from a new socket; the answer, or nothing after the timeout."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(("127.0.0.1", port))
        sock.send(data)
        try:
            return sock.recv(65535)
        except (TimeoutError, ConnectionRefusedError):
            return b""
