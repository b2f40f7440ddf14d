# SPDX-License-Identifier: Apache-2.0
"""HTTP over a unix socket, for clients of the agent's admin API."""

from __future__ import annotations

import http.client
import socket
from pathlib import Path


class UnixHttpConnection(http.client.HTTPConnection):
    """An `HTTPConnection` to the unix socket at `path`."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket. Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
