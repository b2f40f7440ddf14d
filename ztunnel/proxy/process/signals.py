# SPDX-License-Identifier: Apache-2.0
"""Delivers signals to the event loop as bytes on a socket, so that no handler interrupts code."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterable

from ztunnel.proxy.io.event_loop import READ, EventLoop


class Signals:
    """The process's signal handling, for the rest of its life. One per process."""

    def __init__(
        self,
        loop: EventLoop,
        numbers: Iterable[signal.Signals],
        on_signals: Callable[[bytes], None],
    ) -> None:
        """The loop calls `on_signals` with the numbers of the received signals, one per byte."""
        self._loop = loop
        self._on_signals = on_signals
        self._reader, self._writer = socket.socketpair()
        for sock in (self._reader, self._writer):
            sock.setblocking(False)
        signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        loop.register(self._reader.fileno(), READ, self)

    def on_ready(self, mask: int) -> None:
        self._on_signals(self._reader.recv(64))

    def on_failure(self, error: Exception) -> None:
        self._loop.stop()
