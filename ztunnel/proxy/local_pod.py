# SPDX-License-Identifier: Apache-2.0
"""What a worker holds for one local pod: listeners, sockets in stock, live connections."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol

from ztunnel.ipc.messages import HeldListeners, ListenerKind, PodAdded
from ztunnel.mesh.address import family as family_of
from ztunnel.mesh.headers.baggage import baggage
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.routing.decisions import Accept
from ztunnel.proxy.conntrack.record import Record
from ztunnel.proxy.io.event_loop import EventLoop
from ztunnel.proxy.io.socket_pool import DatagramSocketPool, SocketPool
from ztunnel.proxy.io.sockets import adopt
from ztunnel.proxy.tunnel.connection_plan import PlanCache
from ztunnel.proxy.tunnel.datagram_relay import UdpFlow
from ztunnel.proxy.tunnel.tunnel import Tunnel


class Abortable(Protocol):
    """A connection, or a tunnel that others opened to the pod."""

    def abort(self, reason: str) -> None:
        """Reset it now."""

    def drain(self) -> None:
        """Take nothing new, and end when idle."""


class Udp(Abortable, Protocol):
    """Carries the pod's UDP: `ztunnel.proxy.handlers.udp.PodUdp`."""

    @property
    def port(self) -> int: ...

    def serve(
        self,
        tunnel: Tunnel,
        stream_id: int,
        accepted: Accept,
        record: Record,
        ended: Callable[[str], None],
    ) -> UdpFlow | None: ...


class Door(Protocol):
    """What takes connections, or queries, on a socket that the agent made."""

    sock: socket.socket

    def close(self) -> None:
        """Take no more."""


Ask = Callable[[int, int, bool], None]


class Pod:
    """A pod of this node."""

    def __init__(self, loop: EventLoop, added: PodAdded, ask: Ask) -> None:
        """`ask(family, count, udp)` requests sockets of the agent."""
        self.uid = added.pod_uid
        self.workload = added.workload  # Workload.uid
        self.identity = added.identity
        self.netns_cookie = added.netns_cookie
        self.addresses = added.addresses
        self.listeners: dict[ListenerKind, Door] = {}
        self.tcp_pools = {family: SocketPool(loop, _asker(ask, family)) for family in (4, 6)}
        self.udp_pools = {
            family: DatagramSocketPool(loop, _asker(ask, family, udp=True)) for family in (4, 6)
        }
        self.live: set[Abortable] = set()
        self.udp: Udp | None = None  # once the agent has given us the socket
        self.queries: set[Abortable] = set()  # those of `live` that are DNS: bounded
        self.plans = PlanCache()
        self._described: Workload | None = None
        self._baggage = b""

    def baggage(self, workload: Workload) -> bytes:
        """The header's value for this pod; made anew only when the mesh says something new."""
        if workload is not self._described:
            self._described = workload
            self._baggage = baggage(workload).encode("ascii")
        return self._baggage

    def address(self, family: int) -> str:
        """The pod's own IP of that family (4 or 6), empty when it has none."""
        for address in self.addresses:
            if family_of(address) == family:
                return address
        return ""

    def socket_pool_for(self, address: SocketAddress) -> SocketPool:
        """The sockets that can reach `address`."""
        return self.tcp_pools[family_of(address.ip)]

    def update(self, added: PodAdded) -> None:
        """The agent told of the pod again, perhaps with other addresses."""
        self.workload = added.workload
        self.identity = added.identity
        self.addresses = added.addresses
        self.plans.clear()

    def listen(self, kind: ListenerKind, listener: Door) -> None:
        """Hold a listener in place of the one of the same kind, if there is one."""
        former = self.listeners.pop(kind, None)
        if former is not None:
            former.close()
        self.listeners[kind] = listener

    def held(self) -> tuple[HeldListeners, list[int]]:
        """What we tell a new agent, with the descriptors."""
        kinds = tuple(self.listeners)
        return (
            HeldListeners(self.uid, self.netns_cookie, kinds),
            [self.listeners[kind].sock.fileno() for kind in kinds],
        )

    def reset_socket_requests(self) -> None:
        """The agent is another one: sockets asked for before will not come."""
        for pool in (*self.tcp_pools.values(), *self.udp_pools.values()):
            pool.reset_requests()

    def refill(self) -> None:
        """Order what is low, for the families that the pod has."""
        for family in {family_of(address) for address in self.addresses}:
            self.tcp_pools[family].refill()
            self.udp_pools[family].refill()

    def close(self, reason: str, *, abort: bool) -> None:
        """Stop serving; live connections are reset if `abort`, else they go on."""
        for listener in self.listeners.values():
            listener.close()
        self.listeners.clear()
        for pool in (*self.tcp_pools.values(), *self.udp_pools.values()):
            pool.close()
        if self.udp is not None:
            self.udp.drain()
            self.udp = None
        for connection in list(self.live):
            if abort:
                connection.abort(reason)
            else:
                connection.drain()


def take_sockets(pod: Pod | None, family: int, fds: list[int], *, udp: bool) -> None:
    """Put the agent's sockets in the pod's stock; `fds` is emptied."""
    while fds:
        fd = fds.pop()
        if pod is None or family not in pod.tcp_pools:
            os.close(fd)
            continue
        pool = pod.udp_pools[family] if udp else pod.tcp_pools[family]
        pool.add([adopt(fd, family, udp=udp)])


def _asker(ask: Ask, family: int, *, udp: bool = False) -> Callable[[int], None]:
    def of_family(count: int) -> None:
        ask(family, count, udp)

    return of_family
