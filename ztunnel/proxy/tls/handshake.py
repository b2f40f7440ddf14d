# SPDX-License-Identifier: Apache-2.0
"""Turns a TCP socket into a verified TLS session, without blocking and with a timeout.

    client: CONNECTING ─▶ HANDSHAKING ─▶ ENDED (`handshake_done`)
    server:               HANDSHAKING ─▶ ENDED
                any failure or timeout ─▶ ENDED (`handshake_failed`, the socket is closed)

The handshake owns the socket until it passes the session to its owner.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from OpenSSL import SSL

from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.io.buffers import BufferPool
from ztunnel.proxy.io.event_loop import READ, WRITE, EventLoop
from ztunnel.proxy.io.sockets import fin_on_close, start_connect
from ztunnel.proxy.tls import credentials
from ztunnel.proxy.tls.session import CertificateError, TlsError, TlsSession
from ztunnel.telemetry.response_flags import Flag, Reason

HANDSHAKE_TIMEOUT_S = 10.0  # for TCP connect and TLS together, as in istio ztunnel


class HandshakeState(Enum):
    """See the diagram in the module's docstring."""

    CONNECTING = auto()
    HANDSHAKING = auto()
    ENDED = auto()


class HandshakeOwner(Protocol):
    """Receives the outcome: exactly one of the two methods is called, once."""

    def handshake_done(self, handshake: Handshake, session: TlsSession, peer: str) -> None: ...

    def handshake_failed(self, handshake: Handshake, reason: str) -> None: ...


class Handshake:
    """One handshake. `check_identity` returns why a SPIFFE ID is not acceptable, or ''."""

    def __init__(
        self,
        loop: EventLoop,
        sock: socket.socket,
        own: credentials.Credentials,
        buffers: BufferPool,
        owner: HandshakeOwner,
        *,
        check_identity: Callable[[str], str],
        resume: SSL.Session | None = None,
    ) -> None:
        """`own`: the credentials of this side; the peer must also be trusted by their successor.

        `resume` (client): a session of `own.client` to resume, if the server still accepts it.
        """
        self._loop = loop
        self._sock = sock
        self._own = own
        self._buffers = buffers
        self._owner = owner
        self._check_identity = check_identity
        self._resume = resume
        self._session: TlsSession | None = None
        self._mask = 0
        self._state = HandshakeState.CONNECTING
        self._timer = loop.call_later(HANDSHAKE_TIMEOUT_S, self._expired)

    def connect(self, address: SocketAddress) -> None:
        """Client: dial, then start TLS."""
        try:
            fin_on_close(self._sock)  # so that GOAWAY and close_notify are delivered
            connected = start_connect(self._sock, address)
        except OSError as error:
            self._fail(f"connect to {address}: {error.strerror or error}")
            return
        if connected:
            self._begin(server_side=False)
        else:
            self._watch(WRITE)

    def accept(self) -> None:
        """Server: start TLS on an accepted connection."""
        self._begin(server_side=True)

    def abort(self, reason: str) -> None:
        """Fail the handshake from outside, for a drain or a pod removal."""
        self._fail(reason)

    def on_ready(self, mask: int) -> None:
        if self._session is not None:
            self._step(self._session)
            return
        error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            self._fail(f"connect: {os.strerror(error)}")
        elif mask & WRITE:
            self._begin(server_side=False)

    def on_failure(self, error: Exception) -> None:
        self._fail(f"internal error: {error}")

    def _begin(self, *, server_side: bool) -> None:
        self._state = HandshakeState.HANDSHAKING
        self._session = TlsSession(
            self._sock,
            self._own.server if server_side else self._own.client,
            self._buffers,
            server_side=server_side,
            resume=self._resume,
        )
        self._step(self._session)

    def _step(self, session: TlsSession) -> None:
        try:
            wait_for = session.handshake()
            peer = "" if wait_for else self._check_peer(session)
        except credentials.PeerVerificationError as error:
            self._fail(Reason(str(error), Flag.IDENTITY_ERROR))
        except CertificateError as error:
            self._fail(Reason(f"certificate: {error}", Flag.TLS_FAILURE))
        except TlsError as error:
            self._fail(Reason(f"TLS: {error}", Flag.TLS_FAILURE))
        except OSError as error:
            self._fail(Reason(f"TLS: {error.strerror or error}", Flag.TLS_FAILURE))
        else:
            if wait_for:
                self._watch(wait_for)
            else:
                self._finish(session, peer)

    def _check_peer(self, session: TlsSession) -> str:
        """The peer's SPIFFE ID. The roots may have changed since the handshake began."""
        peer = credentials.check_peer(session)
        latest = self._own.latest
        if latest is not self._own and not latest.trusts(session):
            raise credentials.PeerVerificationError("certificate: its root has been removed")
        return peer

    def _finish(self, session: TlsSession, peer: str) -> None:
        refusal = self._check_identity(peer)
        if refusal:
            self._fail(Reason(refusal, Flag.IDENTITY_ERROR))
            return
        self._watch(READ)
        self._state = HandshakeState.ENDED
        self._timer.cancel()
        self._owner.handshake_done(self, session, peer)

    def _watch(self, mask: int) -> None:
        if self._mask == 0:
            self._loop.register(self._sock.fileno(), mask, self)
        elif mask != self._mask:
            self._loop.modify(self._sock.fileno(), mask)
        self._mask = mask

    def _expired(self) -> None:
        is_connecting = self._state is HandshakeState.CONNECTING
        flag = Flag.CONNECT if is_connecting else Flag.TLS_FAILURE
        self._fail(Reason(f"no handshake within {HANDSHAKE_TIMEOUT_S:.0f} s", flag))

    def _fail(self, reason: str) -> None:
        if self._state is HandshakeState.ENDED:
            return
        self._state = HandshakeState.ENDED
        self._timer.cancel()
        self._loop.close(self._sock)
        if self._session is not None:
            self._session.discard()
        self._owner.handshake_failed(self, reason)
