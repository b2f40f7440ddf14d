# SPDX-License-Identifier: Apache-2.0
"""Outbound tunnels, shared by connections with the same `PoolKey` and by no others.

A key identifies both ends completely: source identity and pod, expected identity, address, and the
destination's pod UID. A reused pod IP, a replaced pod or another expected identity is therefore
another key, and never joins a tunnel that was established before.

Each key establishes one tunnel at a time; connections that need it wait. The next tunnel is
established before the last one is full, and resumes the TLS session of an earlier tunnel.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from functools import partial

from OpenSSL import SSL

from ztunnel.hbone.buffer_budget import BufferShare
from ztunnel.hbone.connection import Role
from ztunnel.hbone.constants import POOL_STREAMS
from ztunnel.hbone.events import RequestReceived
from ztunnel.proxy.io.buffers import BufferPool
from ztunnel.proxy.io.event_loop import EventLoop, call_contained
from ztunnel.proxy.io.socket_pool import SocketPool
from ztunnel.proxy.tls.credentials import Credentials
from ztunnel.proxy.tls.handshake import Handshake
from ztunnel.proxy.tls.session import TlsSession
from ztunnel.proxy.tunnel.pool_key import PoolKey
from ztunnel.proxy.tunnel.tunnel import Tunnel

IDLE_TIMEOUT_S = 300.0  # istio ztunnel: pool_unused_release_timeout
SWEEP_INTERVAL_S = 15.0  # between checks for idle tunnels
PREWARM_STREAMS = POOL_STREAMS // 10  # establish the next tunnel when fewer streams are free
SESSION_TTL_S = 900.0  # a TLS session expires this long after its key's last tunnel

TunnelCallback = Callable[[Tunnel | None, str], None]


class DialContext:
    """What the source pod provides to establish a tunnel."""

    __slots__ = ("credentials", "share", "sockets")

    def __init__(self, sockets: SocketPool, credentials: Credentials, share: BufferShare) -> None:
        self.sockets = sockets
        self.credentials = credentials
        self.share = share


class TunnelPool:
    """All outbound tunnels of one worker."""

    def __init__(self, loop: EventLoop, buffers: BufferPool) -> None:
        self._loop = loop
        self._buffers = buffers
        self._entries: dict[PoolKey, PoolEntry] = {}
        self.open: dict[Tunnel, PoolKey] = {}  # draining tunnels too, until they are closed
        loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    def acquire(
        self, key: PoolKey, dial: DialContext, callback: TunnelCallback, *, settled: bool = False
    ) -> None:
        """Call `callback` with a tunnel that has room for one stream, or with None and the reason.

        The callback opens its stream before it returns. `settled` waits for the peer's SETTINGS,
        which announce what the peer supports.
        """
        entry = self._entries.get(key)
        if entry is None:
            entry = PoolEntry(self._loop, self._buffers, key, self.open, dial.share)
            self._entries[key] = entry
        entry.acquire(PendingAcquire(dial, callback, settled))

    def invalidate(
        self, is_stale: Callable[[PoolKey], bool], reason: str, *, fail_waiting: bool
    ) -> None:
        """Drain the tunnels with stale keys: no new stream joins them, open streams continue."""
        for key in [key for key in self._entries if is_stale(key)]:
            self._entries.pop(key).invalidate(reason, fail_waiting=fail_waiting)

    def tunnels(self) -> list[tuple[PoolKey, Tunnel]]:
        """The open tunnels that new connections may join."""
        return [(key, tunnel) for key, entry in self._entries.items() for tunnel in entry.tunnels]

    def _sweep(self) -> None:
        self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        for key, entry in list(self._entries.items()):
            entry.drain_idle()
            if entry.is_empty:
                del self._entries[key]


class PendingAcquire:
    """A connection that waits for a tunnel."""

    __slots__ = ("callback", "dial", "settled")

    def __init__(self, dial: DialContext, callback: TunnelCallback, settled: bool) -> None:
        self.dial = dial
        self.callback = callback
        self.settled = settled

    def accepts(self, tunnel: Tunnel) -> bool:
        return _has_room(tunnel) and (not self.settled or tunnel.connection.settings_received)


class PoolEntry:
    """The tunnels of one key. Owns them, and the handshake that establishes the next one."""

    def __init__(
        self,
        loop: EventLoop,
        buffers: BufferPool,
        key: PoolKey,
        opened: dict[Tunnel, PoolKey],
        share: BufferShare,
    ) -> None:
        self._share = share
        self.loop = loop
        self.buffers = buffers
        self.key = key
        self.open = opened
        self.tunnels: list[Tunnel] = []
        self.waiting: deque[PendingAcquire] = deque()
        self.establishing = False
        self.serving = False
        self.invalidated = False
        self.resumable: tuple[SSL.Context, SSL.Session] | None = None
        self.newest: Tunnel | None = None  # until its TLS session can be resumed
        self.last_used_at = 0.0  # when the latest tunnel closed

    @property
    def is_empty(self) -> bool:
        if self.tunnels or self.waiting or self.establishing:
            return False
        return self.resumable is None or self.loop.now - self.last_used_at > SESSION_TTL_S

    def acquire(self, pending: PendingAcquire) -> None:
        for tunnel in self.tunnels:
            if pending.accepts(tunnel):
                pending.callback(tunnel, "")
                if not tunnel.can_open or len(tunnel.streams) > POOL_STREAMS - PREWARM_STREAMS:
                    self._prewarm(pending.dial)
                return
        self.waiting.append(pending)
        self._establish_for_waiting()

    def invalidate(self, reason: str, *, fail_waiting: bool) -> None:
        self.invalidated = True
        for tunnel in list(self.tunnels):
            tunnel.drain()
        self.tunnels.clear()
        if fail_waiting:
            self._fail_waiting(reason)

    def drain_idle(self) -> None:
        for tunnel in list(self.tunnels):
            if not tunnel.streams and self.loop.now - tunnel.last_used_at > IDLE_TIMEOUT_S:
                self.tunnels.remove(tunnel)
                tunnel.drain()

    # Establishing a tunnel

    def _prewarm(self, dial: DialContext) -> None:
        room = sum(POOL_STREAMS - len(one.streams) for one in self.tunnels if one.can_open)
        if room < PREWARM_STREAMS:
            self._establish(dial)

    def _establish_for_waiting(self) -> None:
        if self.waiting and not any(map(_awaits_settings, self.tunnels)):
            self._establish(self.waiting[0].dial)

    def _establish(self, dial: DialContext) -> None:
        if not self.establishing:
            self.establishing = True
            dial.sockets.acquire(partial(self._dial, dial))

    def _dial(self, dial: DialContext, sock: socket.socket | None) -> None:
        if sock is None:
            self._fail("no socket inside the pod: the agent does not respond")
            return
        resume = None
        if self.resumable is not None and self.resumable[0] is dial.credentials.client:
            resume = self.resumable[1]
        handshake = Handshake(
            self.loop,
            sock,
            dial.credentials,
            self.buffers,
            self,
            check_identity=self._check_identity,
            resume=resume,
        )
        handshake.connect(self.key.address)

    def _check_identity(self, peer: str) -> str:
        if peer in self.key.expected:
            return ""
        return f"identity {peer} is not the expected {' or '.join(sorted(self.key.expected))}"

    def handshake_done(self, handshake: Handshake, session: TlsSession, peer: str) -> None:
        self.establishing = False
        tunnel = Tunnel(
            self.loop,
            self.buffers,
            session,
            Role.CLIENT,
            peer=peer,
            owner=self,
            share=self._share,
        )
        self.open[tunnel] = self.key
        self.tunnels.append(tunnel)
        self.newest = tunnel
        self._serve_waiting()
        if self.invalidated:
            self.tunnels.clear()
            tunnel.drain()

    def handshake_failed(self, handshake: Handshake, reason: str) -> None:
        self._fail(reason)

    def _fail(self, reason: str) -> None:
        self.establishing = False
        self.resumable = None  # resuming may be what failed
        self._fail_waiting(reason)

    def _fail_waiting(self, reason: str) -> None:
        waiting, self.waiting = self.waiting, deque()
        for pending in waiting:
            call_contained(pending.callback, None, reason)

    def on_failure(self, error: Exception) -> None:
        """Dialing raised: another attempt may succeed."""
        self._fail(f"internal error: {error}")

    def _serve_waiting(self) -> None:
        """Serve in order. A call from within a callback leaves that to the outer call."""
        if self.serving:
            return
        self.serving = True
        try:
            while (match := self._next_match()) is not None:
                pending, tunnel = match
                call_contained(pending.callback, tunnel, "")
        finally:
            self.serving = False
        self._establish_for_waiting()

    def _next_match(self) -> tuple[PendingAcquire, Tunnel] | None:
        """Remove and return the first connection that an open tunnel accepts, with the tunnel."""
        tunnels = list(filter(_has_room, self.tunnels))
        if not tunnels:
            return None
        for index, pending in enumerate(self.waiting):
            for tunnel in tunnels:
                if pending.accepts(tunnel):
                    del self.waiting[index]
                    return pending, tunnel
        return None

    # Events of the tunnels

    def on_request(self, tunnel: Tunnel, request: RequestReceived) -> None:
        """Never called: the codec rejects streams that a server opens."""

    def on_capacity(self, tunnel: Tunnel) -> None:
        if self.waiting:
            self._serve_waiting()
        if tunnel is self.newest and (resumable := tunnel.resumable):
            self.resumable, self.newest = resumable, None

    def on_closed(self, tunnel: Tunnel, reason: str) -> None:
        self.open.pop(tunnel, None)
        if tunnel in self.tunnels:
            self.tunnels.remove(tunnel)
        if tunnel is self.newest:
            self.newest = None
        self.last_used_at = self.loop.now
        self._establish_for_waiting()


def _awaits_settings(tunnel: Tunnel) -> bool:
    """Whether waiting connections may still join: the peer's SETTINGS have not arrived."""
    return _has_room(tunnel) and not tunnel.connection.settings_received


def _has_room(tunnel: Tunnel) -> bool:
    return tunnel.can_open and len(tunnel.streams) < POOL_STREAMS
