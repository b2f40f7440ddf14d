# SPDX-License-Identifier: Apache-2.0
"""Accepting connections on an in-pod listener that the agent made.

Several workers share a listener: the kernel wakes one of them, always the one that has watched it
longest. So who has accepted one goes to the end of that queue: they take turns. When descriptors
run out, accepting pauses briefly instead of spinning.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import structlog

from ztunnel.proxy.io.event_loop import ACCEPT, EventLoop, Timer
from ztunnel.proxy.io.sockets import no_delay, reset_on_close

# Of one turn. More would be cheaper by themselves; but what one turn accepts travels on together,
# so that both proxies, client and server end up working one after the other, and CPUs idle.
ACCEPT_BATCH = 4
ACCEPT_PAUSE_S = 0.1  # seconds without accepting when descriptors or memory run out
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = structlog.get_logger()


class Listener:
    """One listening socket; each connection goes to `accepted`, non-blocking."""

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        accepted: Callable[[socket.socket], None],
        paused: Callable[[], None],
        *,
        resets: bool,
        shared: bool = False,
    ) -> None:
        """`resets`: accepted sockets end in RST unless ended in order (`end_on_close`).

        `shared`: other workers listen too.
        """
        self.sock = sock
        self._family = sock.family
        self._loop = loop
        self._accepted = accepted
        self._paused = paused
        self._resume_timer: Timer | None = None
        self._closed = False
        self._resets = resets
        self._shared = shared
        self._accepts = 1 if shared else ACCEPT_BATCH
        no_delay(sock)  # accepted sockets inherit it
        self._watch()

    def close(self) -> None:
        """Stop accepting; with the last holder the kernel refuses new connections."""
        self._closed = True
        if self._resume_timer is not None:
            self._resume_timer.cancel()
        self._loop.close(self.sock)

    def on_ready(self, mask: int) -> None:
        for _ in range(self._accepts):
            if self._closed:
                return
            try:
                sock = self._accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._trouble(error)
                return
            sock.setblocking(False)
            if self._resets:
                reset_on_close(sock)
            self._hand_over(sock)
        if self._shared and not self._closed:
            self._go_behind()

    def _accept(self) -> socket.socket:
        """`socket.accept` without asking for what is known: that took longer than the call."""
        fd, _ = self.sock._accept()  # type: ignore[attr-defined]  # CPython's, under `accept`
        return socket.socket(self._family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)

    def on_failure(self, error: Exception) -> None:
        """Keep listening: one bad turn must not close the pod's door."""

    def _hand_over(self, sock: socket.socket) -> None:
        try:
            self._accepted(sock)
        except Exception as error:
            log.error("accept failed", exc_info=error)
            self._loop.close(sock)

    def _go_behind(self) -> None:
        self._loop.unregister(self.sock.fileno())
        self._watch()

    def _watch(self) -> None:
        self._loop.register(self.sock.fileno(), ACCEPT, self)

    def _trouble(self, error: OSError) -> None:
        if error.errno not in _EXHAUSTED:
            log.warning("accept failed", error=error.strerror)
            return
        log.warning("accept paused", error=error.strerror, seconds=ACCEPT_PAUSE_S)
        self._paused()
        self._loop.unregister(self.sock.fileno())
        self._resume_timer = self._loop.call_later(ACCEPT_PAUSE_S, self._resume)

    def _resume(self) -> None:
        if not self._closed:
            self._watch()
