# SPDX-License-Identifier: Apache-2.0
"""Accepts connections on an in-pod listener that the agent created.

Several workers may share a listener. The kernel wakes the worker that has watched it longest, so a
worker that accepted a connection registers the listener again: they take turns. When descriptors
run out, accepting pauses briefly instead of spinning.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

import structlog

from ztunnel.proxy.io.event_loop import ACCEPT, EventLoop, Timer
from ztunnel.proxy.io.sockets import no_delay, reset_on_close

# Connections per turn. A larger batch is cheaper for this worker, but a batch moves on as a whole:
# client, both proxies and server then work one after the other, and CPUs idle.
ACCEPT_BATCH = 4
ACCEPT_PAUSE_S = 0.1  # when descriptors or memory run out
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = structlog.get_logger()


class Listener:
    """One listening socket. `accepted` gets each connection as a non-blocking socket."""

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
        """`resets`: closing an accepted socket sends RST unless `fin_on_close` was called.

        `shared`: other workers accept from this listener too. `paused` is called when accepting
        pauses.
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
        """Stop accepting. The kernel refuses connections once all copies of it are closed."""
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
                self._on_accept_error(error)
                return
            sock.setblocking(False)
            if self._resets:
                reset_on_close(sock)
            self._deliver(sock)
        if self._shared and not self._closed:
            self._yield_turn()

    def _accept(self) -> socket.socket:
        """`socket.accept` without its queries for family, type and protocol, which cost more."""
        fd, _ = self.sock._accept()  # type: ignore[attr-defined]  # CPython's, under `accept`
        return socket.socket(self._family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)

    def on_failure(self, error: Exception) -> None:
        """Keep listening: one failed turn must not close the pod's listener."""

    def _deliver(self, sock: socket.socket) -> None:
        try:
            self._accepted(sock)
        except Exception as error:
            log.error("accept failed", exc_info=error)
            self._loop.close(sock)

    def _yield_turn(self) -> None:
        self._loop.unregister(self.sock.fileno())
        self._watch()

    def _watch(self) -> None:
        self._loop.register(self.sock.fileno(), ACCEPT, self)

    def _on_accept_error(self, error: OSError) -> None:
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
