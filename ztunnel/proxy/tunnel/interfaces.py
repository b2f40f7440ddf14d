# SPDX-License-Identifier: Apache-2.0
"""Interfaces of a tunnel: the TLS session below it and the streams on it."""

from __future__ import annotations

import socket
from typing import Protocol

from cryptography import x509
from OpenSSL import SSL

from ztunnel.hbone.events import Header
from ztunnel.proxy.io.buffers import Buffer


class Session(Protocol):
    """The transport of a tunnel, see `TlsSession`."""

    sock: socket.socket
    context: SSL.Context
    end_reason: str

    @property
    def pending(self) -> bool: ...

    @property
    def resumed(self) -> bool: ...

    @property
    def resumable(self) -> SSL.Session | None: ...

    @property
    def peer_certificate(self) -> x509.Certificate: ...

    @property
    def peer_chain(self) -> list[x509.Certificate]: ...

    def read_into(self, buffer: Buffer) -> int: ...

    def write(self, buffer: Buffer, length: int) -> bool: ...

    def flush(self) -> bool: ...

    def send_close_notify(self) -> None: ...

    def discard(self) -> None: ...


class TunnelStream(Protocol):
    """Receives the events of one stream."""

    stream_id: int

    def on_response(self, status: int, headers: tuple[Header, ...]) -> None: ...

    def on_data(self, payload: memoryview) -> None:
        """Use or copy the payload before returning.

        The stream owes `Tunnel.consumed` for it, or `Tunnel.hold` now and `consumed_held` later.
        """

    def on_end(self) -> None: ...

    def on_reset(self, reason: str) -> None:
        """The stream no longer exists: peer reset, protocol error, or loss of the tunnel."""

    def pump(self) -> None:
        """Sending may be possible again."""

    def on_failure(self, error: Exception) -> None:
        """One of the methods above raised: reset the stream and its application connection."""
