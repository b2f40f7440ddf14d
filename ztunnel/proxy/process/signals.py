# SPDX-License-Identifier: Apache-2.0
"""Signals as bytes on a socket: the loop wakes, and nothing is interrupted."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterable

from ztunnel.proxy.io.event_loop import READ, Loop


class Signals:
    """For as long as the process lives, which can have one."""

    def __init__(
        self, loop: Loop, numbers: Iterable[signal.Signals], came: Callable[[bytes], None]
    ) -> None:
        """`came` is called by the loop with the numbers of those that have come."""
        self._loop = loop
        self._came = came
        self._read, self._written = socket.socketpair()
        for end in (self._read, self._written):
            end.setblocking(False)
        signal.set_wakeup_fd(self._written.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        loop.register(self._read.fileno(), READ, self)

    def on_ready(self, mask: int) -> None:
        self._came(self._read.recv(64))

    def on_failure(self, error: Exception) -> None:
        self._loop.stop()
