# SPDX-License-Identifier: Apache-2.0
"""A worker's state for one local pod: listeners, socket pools, and live connections."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Protocol

from ztunnel.hbone.buffer_budget import BufferShare
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


class LiveConnection(Protocol):
    """A connection of the pod, or a tunnel that a peer opened to it."""

    def abort(self, reason: str) -> None:
        """Reset it now."""

    def drain(self) -> None:
        """Accept nothing new, and close when idle."""


class Udp(LiveConnection, Protocol):
    """Forwards the pod's UDP: `ztunnel.proxy.handlers.udp.PodUdp`."""

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


class InPodListener(Protocol):
    """Accepts connections, or DNS queries by UDP, on a socket that the agent created."""

    sock: socket.socket

    def close(self) -> None:
        """Accept no more."""


RequestSockets = Callable[[int, int, bool], None]  # family, count, udp


class Pod:
    """A pod of this node."""

    def __init__(
        self,
        loop: EventLoop,
        added: PodAdded,
        request_sockets: RequestSockets,
        share: BufferShare,
    ) -> None:
        """`request_sockets(family, count, udp)` requests sockets from the agent.

        `share`: of the worker's memory for payload that the pod's applications do not read.
        """
        self.share = share
        self.uid = added.pod_uid
        self.workload = added.workload  # Workload.uid
        self.identity = added.identity
        self.netns_cookie = added.netns_cookie
        self.addresses = added.addresses
        self.listeners: dict[ListenerKind, InPodListener] = {}
        self.tcp_pools = {
            family: SocketPool(loop, _of_family(request_sockets, family)) for family in (4, 6)
        }
        self.udp_pools = {
            family: DatagramSocketPool(loop, _of_family(request_sockets, family, udp=True))
            for family in (4, 6)
        }
        self.live: set[LiveConnection] = set()
        self.dns_queries: set[LiveConnection] = set()  # those of `live` that are DNS: limited
        self.udp: Udp | None = None  # after the agent sent its sockets
        self.plans = PlanCache()
        self._baggage_workload: Workload | None = None
        self._baggage = b""

    def baggage(self, workload: Workload) -> bytes:
        """The `baggage` header of this pod, cached until the mesh replaces the workload."""
        if workload is not self._baggage_workload:
            self._baggage_workload = workload
            self._baggage = baggage(workload).encode("ascii")
        return self._baggage

    def address(self, family: int) -> str:
        """The pod's IP of that family (4 or 6), empty if it has none."""
        for address in self.addresses:
            if family_of(address) == family:
                return address
        return ""

    def socket_pool_for(self, address: SocketAddress) -> SocketPool:
        """The TCP sockets that can connect to `address`."""
        return self.tcp_pools[family_of(address.ip)]

    def update(self, added: PodAdded) -> None:
        """Apply a repeated PodAdded, perhaps with other addresses."""
        self.workload = added.workload
        self.identity = added.identity
        self.addresses = added.addresses
        self.plans.clear()

    def set_listener(self, kind: ListenerKind, listener: InPodListener) -> None:
        """Add a listener. Closes a previous one of the same kind."""
        previous = self.listeners.pop(kind, None)
        if previous is not None:
            previous.close()
        self.listeners[kind] = listener

    def held_listeners(self) -> tuple[HeldListeners, list[int]]:
        """The listeners for a Hello message, with their descriptors."""
        kinds = tuple(self.listeners)
        return (
            HeldListeners(self.uid, self.netns_cookie, kinds),
            [self.listeners[kind].sock.fileno() for kind in kinds],
        )

    def add_sockets(self, family: int, fds: list[int], *, udp: bool) -> None:
        """Add sockets from the agent to their pool. Removes the descriptors that it uses."""
        pool = (self.udp_pools if udp else self.tcp_pools).get(family)
        if pool is not None:
            pool.add([adopt(fds.pop(), family, udp=udp) for _ in range(len(fds))])

    def reset_socket_requests(self) -> None:
        """A new agent does not answer the socket requests sent to the previous one."""
        for pool in self._pools():
            pool.reset_requests()

    def refill(self) -> None:
        """Request sockets for the families of the pod's addresses, where a pool is low."""
        for family in {family_of(address) for address in self.addresses}:
            self.tcp_pools[family].refill()
            self.udp_pools[family].refill()

    def close(self, reason: str, *, abort: bool) -> None:
        """Stop serving. Live connections are reset if `abort`; otherwise they continue."""
        for listener in self.listeners.values():
            listener.close()
        self.listeners.clear()
        for pool in self._pools():
            pool.close()
        if self.udp is not None:
            self.udp.drain()
            self.udp = None
        for connection in list(self.live):
            if abort:
                connection.abort(reason)
            else:
                connection.drain()

    def _pools(self) -> list[SocketPool]:
        return [*self.tcp_pools.values(), *self.udp_pools.values()]


def add_sockets(pod: Pod | None, family: int, fds: list[int], *, udp: bool) -> None:
    """Add the agent's sockets to the pod's pool, or close them. Empties `fds`."""
    if pod is not None:
        pod.add_sockets(family, fds, udp=udp)
    while fds:
        os.close(fds.pop())


def _of_family(
    request_sockets: RequestSockets, family: int, *, udp: bool = False
) -> Callable[[int], None]:
    def request(count: int) -> None:
        request_sockets(family, count, udp)

    return request
