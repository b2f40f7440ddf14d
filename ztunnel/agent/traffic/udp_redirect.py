# SPDX-License-Identifier: Apache-2.0
"""Which UDP the kernel hands to the workers: the sockets that take it, the destinations it goes to.

Each worker has a UDP socket of each family in each pod, both on one port. What goes where is
decided by `udp_ways`; where a worker found a proxy that does not take connect-udp, UDP to the pods
of that node passes as it is, or is refused, until we ask again. What waited in the worker for that
answer is sent on.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.agent.traffic.udp_routes import UdpRouteTable
from ztunnel.agent.workers.handlers import MessageHandlers, SessionObserver
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.datapath.bpf.layout import UdpRoute
from ztunnel.ipc.messages import ConnectUdpUnsupported, UdpSocketRequest, UdpSockets
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer
from ztunnel.mesh.model import SocketAddress, Workload

ASK_AGAIN = 600.0  # seconds until a node whose proxy did not take connect-udp is tried again
REJOIN = 10.0  # seconds in which workers that outlived the last agent are back

log = structlog.get_logger()


class UdpPath(Protocol):
    """What is needed of the kernel; `datapath.udp.UdpPath` is the real one."""

    def sockets(self, netns_fd: int, *, ipv6: bool) -> list[socket.socket]:
        """UDP sockets in a pod on one port, IPv4 first, tagged as the proxy's. Raises OSError."""
        ...

    def send(
        self,
        netns_fd: int,
        source: SocketAddress,
        destination: SocketAddress,
        payloads: Iterable[bytes],
    ) -> None:
        """Send datagrams as the app of a pod would have. Raises OSError."""
        ...

    def worker_ports(self, netns_cookie: int) -> list[int]: ...
    def set_worker_ports(self, netns_cookie: int, ports: list[int]) -> None: ...
    def pods(self) -> set[int]: ...
    def routes(self) -> dict[SocketAddress, UdpRoute]: ...
    def set_route(self, to: SocketAddress, what: UdpRoute) -> None: ...
    def remove_route(self, to: SocketAddress) -> None: ...


class Udp(ViewConsumer, SessionObserver):
    """One per agent; used from the event loop only."""

    def __init__(
        self,
        path: UdpPath,
        ways: UdpRouteTable,
        pods: CapturedPods,
        sessions: SessionRegistry,
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._ways = ways
        self._pods = pods
        self._sessions = sessions
        self._clock = clock
        self._silent: dict[str, float] = {}  # nodes, and until when they are
        self._owed: list[tuple[Session, UdpSocketRequest]] = []  # what failed, to be tried again
        self._began = clock()
        self._settled = False
        self._known = path.routes()  # perhaps an earlier agent's
        self._unplaced: set[SocketAddress] = set(self._known)  # to be looked at next time
        self._is_full = False
        self.released = 0  # datagrams sent on to who does not take connect-udp

    def register(self, handlers: MessageHandlers) -> None:
        """Register the handlers of the messages about UDP."""
        handlers.register(UdpSocketRequest, self.need)
        handlers.register(ConnectUdpUnsupported, self.silent)

    # Destinations

    def apply(self, change: ViewChange) -> None:
        """Update the routes; the policy engine has applied the change already."""
        if change:
            self._ways.changed(change)
            self._apply()

    def silent(self, session: Session, news: ConnectUdpUnsupported, fds: list[int]) -> None:
        """A worker found that the proxy of a workload's node does not take connect-udp."""
        workload = self._ways.workload(news.workload)
        if workload is None:
            return
        if workload.node not in self._silent:
            log.warning(
                "UDP passes as it is, unless policy is STRICT",
                node=workload.node,
                reason="its proxy does not take connect-udp",
                seconds=ASK_AGAIN,
            )
            self._silent[workload.node] = self._clock() + ASK_AGAIN
            self._apply_silence()
        if news.datagrams:
            self._release(news, workload)

    def _release(self, news: ConnectUdpUnsupported, workload: Workload) -> None:
        """Send on what waited. The worker says from whom and to whom: it is believed only what it
        could have had from that pod."""
        source, to = news.source, news.destination
        pod = self._pods.get(news.pod_uid)
        if pod is None or pod.netns is None or source is None or to is None:
            return
        if source.ip not in pod.addresses or to.ip not in workload.addresses:
            return
        if self._ways.at(to) is not UdpRoute.NATIVE:
            log.warning(
                "UDP refused: plaintext, where mTLS is required",
                datagrams=len(news.datagrams),
                **{"src.workload": pod.workload.uid, "dst.workload": workload.uid},
            )
            return
        try:
            self._path.send(pod.netns.fd, source, to, news.datagrams)
            self.released += len(news.datagrams)
        except OSError as error:
            log.warning("datagrams lost", pod=pod.workload.uid, error=str(error))

    def sweep(self) -> None:
        """Ask again where it is time to, and forget the sockets of workers that never came back."""
        now = self._clock()
        over = [node for node, until in self._silent.items() if until <= now]
        for node in over:
            del self._silent[node]
        if over:
            self._apply_silence()
        elif self._unplaced:
            self._apply()
        owed, self._owed = self._owed, []
        for session, need in owed:
            if session in self._sessions.sessions:
                self.need(session, need, [])
        if not self._settled and now - self._began >= REJOIN:
            self._settled = True
            for cookie in self._path.pods():
                self._write(cookie, self._sessions.sessions)

    def view(self) -> dict[str, object]:
        """For people."""
        count = Counter(self._known.values())
        return {
            "destinations": count[UdpRoute.REDIRECT],
            "strict_destinations": count[UdpRoute.STRICT],
            "silent_nodes": sorted(self._silent),
            "released": self.released,
        }

    def _apply_silence(self) -> None:
        self._ways.silent = set(self._silent)
        self._ways.reckon()
        self._apply()

    def _apply(self) -> None:
        """Make the kernel's map right where it may not be; what finds no room is tried again."""
        due, self._unplaced = self._ways.touched | self._unplaced, set()
        self._ways.touched.clear()
        wanted = self._ways.wanted
        for at in due & self._known.keys() - wanted.keys():
            self._path.remove_route(at)
            del self._known[at]
        try:
            for at in due & wanted.keys():
                if self._known.get(at) is not wanted[at]:
                    self._path.set_route(at, wanted[at])
                    self._known[at] = wanted[at]
            self._is_full = False
        except OSError as error:
            self._unplaced = {at for at in due if self._known.get(at) is not wanted.get(at)}
            if not self._is_full:
                log.error("UDP not carried", error=str(error), destinations=len(self._unplaced))
            self._is_full = True

    # Sockets

    def need(self, session: Session, need: UdpSocketRequest, fds: list[int]) -> None:
        """A worker would carry a pod's UDP: it gets a socket, or has one of an earlier agent."""
        pod = self._pods.get(need.pod_uid)
        if pod is None or pod.netns is None:
            return
        if need.port and need.port in self._path.worker_ports(pod.cookie):
            session.udp[pod.cookie] = need.port
            return
        try:
            made = self._path.sockets(pod.netns.fd, ipv6=any(":" in ip for ip in pod.addresses))
        except OSError as error:
            log.error("no UDP sockets, tried again", pod=pod.workload.uid, error=str(error))
            self._owed.append((session, need))
            return
        try:
            session.udp[pod.cookie] = made[0].getsockname()[1]
            self._write(pod.cookie, [*self._sessions.sessions, session])
            session.send(UdpSockets(pod.uid), [sock.fileno() for sock in made])
        finally:
            for sock in made:
                sock.close()

    def left(self, session: Session) -> None:
        """A worker is gone, and with it its sockets."""
        for cookie in self._path.pods().intersection(session.udp):
            self._write(cookie, self._sessions.sessions)

    def _write(self, cookie: int, sessions: list[Session]) -> None:
        ports = dict.fromkeys(one.udp[cookie] for one in sessions if cookie in one.udp)
        self._path.set_worker_ports(cookie, list(ports))
