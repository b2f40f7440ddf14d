# SPDX-License-Identifier: Apache-2.0
"""Waits whether a waypoint's Envoy closes a connection to a destination that is new to it.

Envoy gets the configuration of a new destination later than the nodes learn that it exists. Until
then it closes such connections after the PROXY header. The node holds the client's bytes for a
moment, so that it can still reject the CONNECT, and the client's node tries another time.

    probing ── Envoy closes ──────────▶ rejected
            ── PROBE_S without that,
               or Envoy sends bytes ──▶ accepted
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Final

from ztunnel.proxy.io.event_loop import HANGUP, EventLoop, Timer

PROBE_S: Final = 0.05  # Envoy closes such a connection within milliseconds

ProbeDone = Callable[[socket.socket, bool, int], None]  # socket, accepted, seen events


class EnvoyProbe:
    """One connection, which the loop watches already. Calls `done` once, unless cancelled."""

    __slots__ = ("_done", "_loop", "_seen_events", "_sock", "_timer")

    def __init__(self, loop: EventLoop, sock: socket.socket, done: ProbeDone) -> None:
        self._loop = loop
        self._sock = sock
        self._done: ProbeDone | None = done
        self._seen_events = 0
        loop.rebind(sock.fileno(), self)
        self._timer: Timer = loop.add_timeout(PROBE_S, self._accept)

    def cancel(self) -> None:
        """Close the connection; `done` is not called."""
        self._timer.cancel()
        if self._done is not None:
            self._done = None
            self._loop.close(self._sock)

    def on_ready(self, mask: int) -> None:
        self._seen_events |= mask
        try:
            is_open = bool(self._sock.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            if not mask & HANGUP:
                return
            is_open = False
        except OSError:
            is_open = False
        self._finish(is_open)

    def on_failure(self, error: Exception) -> None:
        self._finish(False)

    def _accept(self) -> None:
        self._finish(True)

    def _finish(self, accepted: bool) -> None:
        self._timer.cancel()
        done, self._done = self._done, None
        if done is not None:
            done(self._sock, accepted, self._seen_events)
