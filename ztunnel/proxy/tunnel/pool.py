# SPDX-License-Identifier: Apache-2.0
"""Outbound tunnels, shared by the connections that may share them and by no others.

A key names both ends completely: who we are, from which pod, whom we expect, at which address,
and which incarnation of that workload. So a reused pod IP, a renewed pod or another expected
identity is another key and can never join a tunnel made before. One tunnel at a time is made per
key; who comes meanwhile waits. The next one is made before the last is full, and resumes the TLS
session of an earlier one of its key.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable
from functools import partial

from OpenSSL import SSL

from ztunnel.hbone.connection import Role
from ztunnel.hbone.constants import POOL_STREAMS
from ztunnel.hbone.events import RequestReceived
from ztunnel.proxy.io.buffers import BufferPool
from ztunnel.proxy.io.event_loop import EventLoop
from ztunnel.proxy.io.socket_pool import SocketPool
from ztunnel.proxy.tls.credentials import Credentials
from ztunnel.proxy.tls.handshake import Handshake
from ztunnel.proxy.tls.session import TlsSession
from ztunnel.proxy.tunnel.pool_key import PoolKey
from ztunnel.proxy.tunnel.tunnel import Tunnel

IDLE_TIMEOUT_S = 300.0  # seconds; istio ztunnel: pool_unused_release_timeout
SWEEP_INTERVAL_S = 15.0  # seconds between looks for idle tunnels
PREWARM_STREAMS = POOL_STREAMS // 10  # so little room left makes the next tunnel ahead of need
SESSION_TTL_S = 900.0  # seconds after the last tunnel that its TLS session is kept

TunnelCallback = Callable[[Tunnel | None, str], None]


class DialContext:
    """What the source pod lends to make a tunnel."""

    __slots__ = ("credentials", "sockets")

    def __init__(self, sockets: SocketPool, credentials: Credentials) -> None:
        self.sockets = sockets
        self.credentials = credentials


class TunnelPool:
    """All outbound tunnels of one worker."""

    def __init__(self, loop: EventLoop, buffers: BufferPool) -> None:
        self._loop = loop
        self._buffers = buffers
        self._groups: dict[PoolKey, PoolEntry] = {}
        self.open: set[Tunnel] = set()  # also retired ones, until they are closed
        loop.call_later(SWEEP_INTERVAL_S, self._sweep)

    def acquire(
        self, key: PoolKey, source: DialContext, taker: TunnelCallback, *, settled: bool = False
    ) -> None:
        """Call `taker` with a tunnel that has room for one stream, or with None and the reason.

        The taker opens its stream before it returns. `settled`: it wants to know what the peer
        can do, so the tunnel's peer must have sent its SETTINGS.
        """
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = PoolEntry(self._loop, self._buffers, key, self.open)
        group.acquire(PendingAcquire(source, taker, settled))

    def invalidate(
        self, stale: Callable[[PoolKey], bool], reason: str, *, fail_waiting: bool
    ) -> None:
        """Let no new stream join the tunnels whose key is `stale`; open streams go on."""
        for key in [key for key in self._groups if stale(key)]:
            self._groups.pop(key).invalidate(reason, fail_waiting=fail_waiting)

    def tunnels(self) -> list[tuple[PoolKey, Tunnel]]:
        """The open tunnels that new connections may join."""
        return [(key, tunnel) for key, group in self._groups.items() for tunnel in group.tunnels]

    def _sweep(self) -> None:
        self._loop.call_later(SWEEP_INTERVAL_S, self._sweep)
        for key, group in list(self._groups.items()):
            group.release_idle()
            if group.is_empty:
                del self._groups[key]


class PendingAcquire:
    """Who waits for a tunnel."""

    __slots__ = ("settled", "source", "taker")

    def __init__(self, source: DialContext, taker: TunnelCallback, settled: bool) -> None:
        self.source = source
        self.taker = taker
        self.settled = settled

    def fits(self, tunnel: Tunnel) -> bool:
        return _has_room(tunnel) and (not self.settled or tunnel.connection.peer_settled)


class PoolEntry:
    """The tunnels of one key. Owner of its tunnels and of the handshake that makes the next."""

    def __init__(
        self, loop: EventLoop, buffers: BufferPool, key: PoolKey, opened: set[Tunnel]
    ) -> None:
        self.loop = loop
        self.buffers = buffers
        self.key = key
        self.open = opened
        self.tunnels: list[Tunnel] = []
        self.waiting: deque[PendingAcquire] = deque()
        self.making = False
        self.retired = False
        self.resumable: tuple[SSL.Context, SSL.Session] | None = None
        self.fresh: Tunnel | None = None  # the newest, until its session can be resumed
        self.used = 0.0  # when there last was a tunnel

    @property
    def is_empty(self) -> bool:
        if self.tunnels or self.waiting or self.making:
            return False
        return self.resumable is None or self.loop.now - self.used > SESSION_TTL_S

    def acquire(self, wanted: PendingAcquire) -> None:
        for tunnel in self.tunnels:
            if wanted.fits(tunnel):
                wanted.taker(tunnel, "")
                if not tunnel.can_open or len(tunnel.streams) > POOL_STREAMS - PREWARM_STREAMS:
                    self._prewarm(wanted.source)
                return
        self.waiting.append(wanted)
        self._make_for_waiting()

    def invalidate(self, reason: str, *, fail_waiting: bool) -> None:
        self.retired = True
        for tunnel in list(self.tunnels):
            tunnel.drain()
        self.tunnels.clear()
        if fail_waiting:
            self._fail_waiting(reason)

    def release_idle(self) -> None:
        for tunnel in list(self.tunnels):
            if not tunnel.streams and self.loop.now - tunnel.last_used_at > IDLE_TIMEOUT_S:
                self.tunnels.remove(tunnel)
                tunnel.drain()

    # Making a tunnel

    def _prewarm(self, source: DialContext) -> None:
        room = sum(POOL_STREAMS - len(one.streams) for one in self.tunnels if one.can_open)
        if room < PREWARM_STREAMS:
            self._make(source)

    def _make_for_waiting(self) -> None:
        if self.waiting and not any(map(_awaits_settings, self.tunnels)):
            self._make(self.waiting[0].source)

    def _make(self, source: DialContext) -> None:
        if not self.making:
            self.making = True
            source.sockets.acquire(partial(self._dial, source))

    def _dial(self, source: DialContext, sock: socket.socket | None) -> None:
        if sock is None:
            self._failed("no socket inside the pod: the agent does not answer")
            return
        context = source.credentials.client
        resume = None
        if self.resumable is not None and self.resumable[0] is context:
            resume = self.resumable[1]
        handshake = Handshake(
            self.loop, sock, context, self.buffers, self, peer_ok=self._peer_ok, resume=resume
        )
        handshake.connect(self.key.address)

    def _peer_ok(self, peer: str) -> str:
        if peer in self.key.expected:
            return ""
        return f"identity {peer} is not the expected {' or '.join(sorted(self.key.expected))}"

    def handshake_done(self, handshake: Handshake, session: TlsSession, peer: str) -> None:
        self.making = False
        tunnel = Tunnel(self.loop, self.buffers, session, Role.CLIENT, peer=peer, owner=self)
        self.open.add(tunnel)
        self.tunnels.append(tunnel)
        self.fresh = tunnel
        self._serve(tunnel)
        if self.retired:
            self.tunnels.clear()
            tunnel.drain()

    def handshake_failed(self, handshake: Handshake, reason: str) -> None:
        self._failed(reason)

    def _failed(self, reason: str) -> None:
        self.making = False
        self.resumable = None  # it may be what failed
        self._fail_waiting(reason)

    def _fail_waiting(self, reason: str) -> None:
        waiting, self.waiting = self.waiting, deque()
        for wanted in waiting:
            wanted.taker(None, reason)

    def _serve(self, tunnel: Tunnel) -> None:
        for _ in range(len(self.waiting)):
            wanted = self.waiting.popleft()
            if wanted.fits(tunnel):
                wanted.taker(tunnel, "")
            else:
                self.waiting.append(wanted)
        self._make_for_waiting()

    # What tunnels tell

    def on_request(self, tunnel: Tunnel, request: RequestReceived) -> None:
        """A server does not open streams: the codec refuses them before we hear of it."""

    def on_capacity(self, tunnel: Tunnel) -> None:
        if self.waiting:
            self._serve(tunnel)
        if tunnel is self.fresh and (resumable := tunnel.resumable):
            self.resumable, self.fresh = resumable, None

    def on_closed(self, tunnel: Tunnel, reason: str) -> None:
        self.open.discard(tunnel)
        if tunnel in self.tunnels:
            self.tunnels.remove(tunnel)
        if tunnel is self.fresh:
            self.fresh = None
        self.used = self.loop.now
        self._make_for_waiting()


def _awaits_settings(tunnel: Tunnel) -> bool:
    """Whether those who wait may still get on it: its peer has not said what it can do."""
    return _has_room(tunnel) and not tunnel.connection.peer_settled


def _has_room(tunnel: Tunnel) -> bool:
    return tunnel.can_open and len(tunnel.streams) < POOL_STREAMS
