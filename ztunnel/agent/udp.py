# SPDX-License-Identifier: Apache-2.0
"""Which UDP the kernel hands to the workers: the sockets that take it, the destinations it goes to.

Each worker has a UDP socket of each family in each pod, both on one port. Carried are datagrams to
the mesh's pods on other nodes, except where a worker found a proxy that does not take connect-udp:
to the pods of that node UDP passes as it is, until we ask again. May import the agent's `pod`,
`workers`, datapath, link, mesh, structlog.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from ztunnel.agent.pod import Pod
from ztunnel.agent.workers import Session
from ztunnel.link.messages import NeedUdp, UdpSockets
from ztunnel.mesh.enrolment import has_own_tunnel
from ztunnel.mesh.model import TunnelProtocol, Workload

ASK_AGAIN = 600.0  # seconds until a node whose proxy did not take connect-udp is tried again
REJOIN = 10.0  # seconds in which workers that outlived the last agent are back

log = structlog.get_logger()


class UdpPath(Protocol):
    """What is needed of the kernel; `datapath.udp.UdpPath` is the real one."""

    def sockets(self, netns_fd: int, *, ipv6: bool) -> list[socket.socket]:
        """UDP sockets in a pod on one port, IPv4 first, tagged as the proxy's. Raises OSError."""
        ...

    def ports(self, netns_cookie: int) -> list[int]: ...
    def set_ports(self, netns_cookie: int, ports: list[int]) -> None: ...
    def pods(self) -> set[int]: ...
    def destinations(self) -> set[str]: ...
    def add_destination(self, address: str) -> None: ...
    def remove_destination(self, address: str) -> None: ...


class Udp:
    """One per agent; used from the event loop only."""

    def __init__(
        self,
        path: UdpPath,
        node: str,
        pods: Callable[[], list[Pod]],
        sessions: Callable[[], list[Session]],
        clock: Callable[[], float],
    ) -> None:
        self._path = path
        self._node = node
        self._pods = pods
        self._sessions = sessions
        self._clock = clock
        self._remote: dict[str, Workload] = {}  # the mesh's pods on other nodes, by uid
        self._silent: dict[
            str, float
        ] = {}  # nodes whose proxy takes no connect-udp, and until when
        self._owed: list[tuple[Session, NeedUdp]] = []  # what failed, to be tried again
        self._began = clock()
        self._settled = False
        self._claims: dict[str, tuple[str, ...]] = {}  # address → uids in `_remote`
        self._carried = set(path.destinations())
        self._inherited = set(self._carried)  # an earlier agent's, not looked at yet
        self._unplaced: set[str] = set()  # the kernel had no room for these: tried again

    # Destinations

    def changed(self, workloads: Iterable[Workload], removed: Iterable[str]) -> None:
        """What is new of the mesh's workloads. Costs what changed, not what there is."""
        touched, self._inherited = self._inherited, set()
        for uid in removed:
            touched |= self._unclaim(uid)
        for workload in workloads:
            touched |= self._unclaim(workload.uid)
            if self._is_candidate(workload):
                touched |= self._claim(workload)
        self._apply(touched)

    def silent(self, workload_uid: str) -> None:
        """A worker found that the proxy of a workload's node does not take connect-udp."""
        workload = self._remote.get(workload_uid)
        if workload is None or workload.node in self._silent:
            return
        log.warning(
            "UDP passes as it is",
            node=workload.node,
            reason="its proxy does not take connect-udp",
            seconds=ASK_AGAIN,
        )
        self._silent[workload.node] = self._clock() + ASK_AGAIN
        self._apply(self._addresses_on({workload.node}))

    def sweep(self) -> None:
        """Ask again where it is time to, and forget the sockets of workers that never came back."""
        now = self._clock()
        over = {node for node, until in self._silent.items() if until <= now}
        for node in over:
            del self._silent[node]
        if over or self._unplaced:
            self._apply(self._addresses_on(over) | self._unplaced)
        owed, self._owed = self._owed, []
        for session, need in owed:
            if session in self._sessions():
                self.need(session, need)
        if not self._settled and now - self._began >= REJOIN:
            self._settled = True
            for cookie in self._path.pods():
                self._write(cookie, self._sessions())

    def view(self) -> dict[str, object]:
        """For people."""
        return {"destinations": len(self._carried), "silent_nodes": sorted(self._silent)}

    def _is_candidate(self, workload: Workload) -> bool:
        return (
            workload.protocol is TunnelProtocol.HBONE
            and not has_own_tunnel(workload.labels)  # a sidecar takes TCP only
            and workload.node != self._node
            and not workload.host_network
        )

    def _claim(self, workload: Workload) -> set[str]:
        self._remote[workload.uid] = workload
        for address in workload.addresses:
            self._claims[address] = (*self._claims.get(address, ()), workload.uid)
        return set(workload.addresses)

    def _unclaim(self, uid: str) -> set[str]:
        workload = self._remote.pop(uid, None)
        if workload is None:
            return set()
        for address in workload.addresses:
            left = tuple(other for other in self._claims.pop(address) if other != uid)
            if left:
                self._claims[address] = left
        return set(workload.addresses)

    def _addresses_on(self, nodes: set[str]) -> set[str]:
        found = (workload for workload in self._remote.values() if workload.node in nodes)
        return {address for workload in found for address in workload.addresses}

    def _is_wanted(self, address: str) -> bool:
        claims = self._claims.get(address, ())
        return any(self._remote[uid].node not in self._silent for uid in claims)

    def _apply(self, addresses: set[str]) -> None:
        """Make the kernel's map right for these addresses."""
        wanted = {address for address in addresses if self._is_wanted(address)}
        for address in (addresses - wanted) & self._carried:
            self._path.remove_destination(address)
            self._carried.discard(address)
        had, self._unplaced = self._unplaced, self._unplaced - addresses
        try:
            for address in wanted - self._carried:
                self._path.add_destination(address)
                self._carried.add(address)
        except OSError as error:
            self._unplaced |= wanted - self._carried
            if not had:
                pods = len(self._unplaced)
                log.error("UDP to some pods is not carried", error=str(error), pods=pods)

    # Sockets

    def need(self, session: Session, need: NeedUdp) -> None:
        """A worker would carry a pod's UDP: it gets a socket, or has one of an earlier agent."""
        pod = next((one for one in self._pods() if one.uid == need.pod_uid), None)
        if pod is None or pod.netns is None:
            return
        if need.port and need.port in self._path.ports(pod.cookie):
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
            self._write(pod.cookie, [*self._sessions(), session])
            session.send(UdpSockets(pod.uid), [sock.fileno() for sock in made])
        finally:
            for sock in made:
                sock.close()

    def left(self, session: Session) -> None:
        """A worker is gone, and with it its sockets."""
        for cookie in self._path.pods().intersection(session.udp):
            self._write(cookie, self._sessions())

    def _write(self, cookie: int, sessions: list[Session]) -> None:
        ports = dict.fromkeys(one.udp[cookie] for one in sessions if cookie in one.udp)
        self._path.set_ports(cookie, list(ports))
