# SPDX-License-Identifier: Apache-2.0
"""What all outbound connections of applications have in common, by HBONE or passthrough.

    HBONE        AWAITING_TUNNEL → AWAITING_RESPONSE ┐
                                                     ├→ RELAYING → CLOSED
    passthrough  DIALING ────────────────────────────┘
                    │ any failure or abort before the relay: the application gets RST
                    └──────────────────────────────────────────→ CLOSED

A failure before the relay is always a reset, never a clean end that looks like success.
"""

from __future__ import annotations

import socket
from enum import Enum, auto
from typing import Final

from ztunnel.proxy.conntrack.record import Record
from ztunnel.proxy.context import Context
from ztunnel.proxy.io.event_loop import HANGUP, INPUT
from ztunnel.proxy.local_pod import Pod
from ztunnel.proxy.tunnel.socket_relay import SocketRelay
from ztunnel.proxy.tunnel.stream_relay import APP_EVENTS, StreamRelay


class OutboundState(Enum):
    """See the diagram in the module's docstring."""

    AWAITING_TUNNEL = auto()
    AWAITING_RESPONSE = auto()
    DIALING = auto()
    RELAYING = auto()
    CLOSED = auto()


# Finals of the enum's type, not literals: compiled code reads them fast, and mypy does not assume
# that the state is the same after a call.
AWAITING_TUNNEL: Final[OutboundState] = OutboundState.AWAITING_TUNNEL
AWAITING_RESPONSE: Final[OutboundState] = OutboundState.AWAITING_RESPONSE
DIALING: Final[OutboundState] = OutboundState.DIALING
RELAYING: Final[OutboundState] = OutboundState.RELAYING
CLOSED: Final[OutboundState] = OutboundState.CLOSED


class OutboundConnection:
    """Handles the application's socket until the relay replaces it as the loop's handler."""

    def __init__(
        self,
        context: Context,
        pod: Pod,
        sock: socket.socket,
        record: Record,
        state: OutboundState,
    ) -> None:
        self._context = context
        self._pod = pod
        self._sock = sock
        self._record = record
        self._state = state
        self._relay: StreamRelay | SocketRelay | None = None
        self._seen_events = 0  # of the application's socket; the relay must act on them
        context.loop.register(sock.fileno(), APP_EVENTS, self)
        pod.live.add(self)

    # Steps that differ

    def _on_early_data(self) -> None:
        """The application has sent data before the relay. By default it waits for the relay."""

    def _release_setup(self) -> None:
        """Release what was acquired to establish the connection."""
        raise NotImplementedError

    def _release_socket(self, sock: socket.socket) -> None:
        """Release the socket that the relay returns after an orderly end."""
        raise NotImplementedError

    # Before the relay

    def on_ready(self, mask: int) -> None:
        """A close of the application ends the attempt; other events wait for the relay."""
        self._seen_events |= mask
        if mask & HANGUP:
            self._fail("the application closed the connection")
        elif mask & INPUT:
            self._on_early_data()

    def on_failure(self, error: Exception) -> None:
        self._fail(f"internal error: {error}")

    def _start_relay(self, relay: StreamRelay | SocketRelay) -> None:
        self._state = RELAYING
        self._relay = relay
        relay.begin(self._seen_events)

    # Closing

    def abort(self, reason: str) -> None:
        """Reset the connection now."""
        if self._relay is not None:
            self._relay.abort(reason)
        else:
            self._fail(reason)

    def drain(self) -> None:
        """Draining waits until the connection ends by itself."""

    def _relay_ended(self, sock: socket.socket | None, error: str) -> None:
        """The relay has released everything except `sock`."""
        if sock is not None:
            self._release_socket(sock)
        self._finish(error)

    def _fail(self, reason: str) -> None:
        """Reset the application's connection and release what was acquired for it."""
        if self._state is CLOSED:
            return
        self._release_setup()
        self._context.loop.close(self._sock)  # a reset, see `sockets.reset_on_close`
        self._finish(reason)

    def _finish(self, error: str) -> None:
        self._state = CLOSED
        self._pod.live.discard(self)
        self._relay = None  # no cycles for the garbage collector
        self._context.tracker.connection_closed(self._record, error)
