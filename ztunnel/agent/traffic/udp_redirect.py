# SPDX-License-Identifier: Apache-2.0
"""Controls which UDP the kernel redirects to the workers: their sockets, and the routes.

Each worker has one UDP socket per address family in each pod, both on the same port. `udp_routes`
decides the route of each destination. If a worker finds that a workload's proxy does not
support connect-udp, UDP to that workload is sent natively, or dropped if policy requires mTLS,
until the agent retries it. Datagrams that waited in the worker are sent natively then.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Protocol

import structlog

from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.agent.traffic.udp_route_share import MAX_ROUTES_PER_NAMESPACE
from ztunnel.agent.traffic.udp_routes import UdpRouteTable
from ztunnel.agent.workers.handlers import MessageHandlers, SessionObserver
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.datapath.bpf.layout import UdpRoute
from ztunnel.ipc.messages import ConnectUdpUnsupported, UdpSocketRequest, UdpSockets
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer
from ztunnel.mesh.address import family
from ztunnel.mesh.model import SocketAddress, Workload

CONNECT_UDP_RETRY_S = 600.0  # until a workload without connect-udp is tried again
RECONNECT_TIMEOUT_S = 10.0  # for workers that outlived the previous agent

log = structlog.get_logger()


class UdpKernel(Protocol):
    """The kernel's redirection of UDP; see `datapath.udp_maps.UdpKernelApi`."""

    def sockets(self, netns_fd: int, *, ipv6: bool) -> list[socket.socket]:
        """Open UDP sockets in a pod on one port, IPv4 first, tagged as the proxy's.

        Raises OSError.
        """
        ...

    def send(
        self,
        netns_fd: int,
        source: SocketAddress,
        destination: SocketAddress,
        payloads: Iterable[bytes],
    ) -> None:
        """Send datagrams as the app of a pod. Raises OSError."""
        ...

    def worker_ports(self, netns_cookie: int) -> list[int]: ...
    def set_worker_ports(self, netns_cookie: int, ports: list[int]) -> None: ...
    def pods(self) -> set[int]: ...
    def routes(self) -> dict[SocketAddress, UdpRoute]: ...
    def set_route(self, to: SocketAddress, what: UdpRoute) -> None: ...
    def remove_route(self, to: SocketAddress) -> None: ...
    def default_route(self) -> UdpRoute | None: ...
    def set_default_route(self, route: UdpRoute) -> None: ...


class UdpRedirector(ViewConsumer, SessionObserver):
    """One per agent; used from the event loop only."""

    def __init__(
        self,
        kernel: UdpKernel,
        table: UdpRouteTable,
        pods: CapturedPods,
        sessions: SessionRegistry,
        clock: Callable[[], float],
    ) -> None:
        self.natively_sent = 0  # datagrams that had waited for a proxy without connect-udp
        self._kernel = kernel
        self._table = table
        self._pods = pods
        self._sessions = sessions
        self._clock = clock
        self._retry_at: dict[str, float] = {}  # Workload.uid without connect-udp: when to retry
        # To be retried; by id of the session and uid of the pod, so a worker cannot add more.
        self._failed_requests: dict[tuple[int, str], tuple[Session, UdpSocketRequest]] = {}
        self._started_at = clock()
        self._has_removed_lost_workers = False
        self._installed = kernel.routes()  # possibly by the previous agent
        self._pending: set[SocketAddress] = set(self._installed)  # to be compared at the next sync
        self._missing = 0  # routes that the kernel lacks
        self._failed_ports: set[int] = set()  # cookies of pods whose ports were not written
        self._reported: dict[str, int] = {}  # refused objects by namespace, as logged
        self._default = kernel.default_route()
        if self._default is None:
            self._set_default(UdpRoute.NATIVE)  # while the map has room for it

    def register(self, handlers: MessageHandlers) -> None:
        """Register the handlers of the messages about UDP."""
        handlers.register(UdpSocketRequest, self.open_sockets)
        handlers.register(ConnectUdpUnsupported, self.connect_udp_unsupported)

    # Routes

    def apply(self, change: ViewChange) -> None:
        """Update the routes; the policy engine has applied the change already."""
        if change:
            self._table.apply(change)
            self._sync_routes()
            self._report_refused()

    def connect_udp_unsupported(
        self, session: Session, report: ConnectUdpUnsupported, fds: list[int]
    ) -> None:
        """Stop redirecting UDP to a workload whose proxy lacks connect-udp.

        Only to this workload: each pod may run a peer of its own that answers for it.
        """
        workload = self._table.workload(report.workload)
        if workload is None:
            return
        if workload.uid not in self._retry_at:
            log.warning(
                "connect-udp unsupported",
                workload=workload.uid,
                note="UDP is sent natively, or dropped if policy requires mTLS",
                retry_s=CONNECT_UDP_RETRY_S,
            )
            self._retry_at[workload.uid] = self._clock() + CONNECT_UDP_RETRY_S
            self._update_unsupported()
        if report.datagrams:
            self._send_natively(report, workload)

    def _send_natively(self, report: ConnectUdpUnsupported, workload: Workload) -> None:
        """Send the datagrams that waited, if that pod can have sent them to that workload."""
        source, to = report.source, report.destination
        pod = self._pods.get(report.pod_uid)
        if pod is None or pod.netns is None or source is None or to is None:
            return
        if source.ip not in pod.addresses or to.ip not in workload.addresses:
            return
        if self._table.route_of(to) is not UdpRoute.NATIVE:
            log.warning(
                "udp datagrams dropped",
                reason="plaintext, but mTLS is required",
                datagrams=len(report.datagrams),
                **{"src.workload": pod.workload.uid, "dst.workload": workload.uid},
            )
            return
        try:
            self._kernel.send(pod.netns.fd, source, to, report.datagrams)
            self.natively_sent += len(report.datagrams)
        except OSError as error:
            log.warning("udp datagrams not sent", pod=pod.workload.uid, error=str(error))

    def sweep(self) -> None:
        """Retry what is due, and remove the ports of workers that did not reconnect."""
        now = self._clock()
        due = [uid for uid, retry_at in self._retry_at.items() if retry_at <= now]
        for uid in due:
            del self._retry_at[uid]
        if due:
            self._update_unsupported()
        elif self._pending:
            self._sync_routes()
        self._failed_ports.intersection_update(pod.cookie for pod in self._pods)
        for cookie in list(self._failed_ports):
            self._write_ports(cookie, self._sessions.sessions)
        failed, self._failed_requests = self._failed_requests, {}
        for session, request in failed.values():
            if session in self._sessions.sessions:
                self.open_sockets(session, request, [])
        if not self._has_removed_lost_workers and now - self._started_at >= RECONNECT_TIMEOUT_S:
            self._has_removed_lost_workers = True
            for cookie in self._kernel.pods():
                self._write_ports(cookie, self._sessions.sessions)

    def view(self) -> dict[str, object]:
        """The section `udp` of the data path's status."""
        count = Counter(self._installed.values())
        return {
            "redirected_destinations": count[UdpRoute.REDIRECT],
            "strict_destinations": count[UdpRoute.STRICT],
            "refused_destinations": count[UdpRoute.REFUSED],
            "missing_routes": self._missing,
            "routes_by_namespace": dict(self._table.shares.used),
            "refused_objects_by_namespace": self._table.shares.refused,
            "workloads_without_connect_udp": sorted(self._retry_at),
            "natively_sent": self.natively_sent,
        }

    def _update_unsupported(self) -> None:
        self._table.set_without_connect_udp(set(self._retry_at))
        self._sync_routes()

    def _sync_routes(self) -> None:
        """Update the kernel's routes where they may differ; `sweep` retries those that fail.

        While routes are missing, the kernel refuses UDP to every destination that it has no route
        for: it cannot know which of them would be plaintext to a pod of the mesh.
        """
        due, wanted = self._table.pop_changed() | self._pending, self._table.routes
        failure = self._remove_routes(due - wanted.keys())
        failure = self._write_routes(due & wanted.keys()) or failure
        self._pending = {at for at in due if self._installed.get(at) is not wanted.get(at)}
        missing = len(self._pending & wanted.keys())
        self._set_default(UdpRoute.REFUSED if missing else UdpRoute.NATIVE)
        if failure is not None and not self._missing:
            log.error(
                "udp routes not updated",
                error=str(failure),
                routes=len(self._pending),
                note="UDP to destinations without a route is refused",
            )
        self._missing = missing

    def _remove_routes(self, at: set[SocketAddress]) -> OSError | None:
        """Remove the routes of destinations; returns the last error."""
        failure = None
        for destination in at & self._installed.keys():
            try:
                self._kernel.remove_route(destination)
                del self._installed[destination]
            except OSError as error:
                failure = error
        return failure

    def _write_routes(self, at: set[SocketAddress]) -> OSError | None:
        """Write the routes of destinations; returns the last error."""
        failure, wanted, is_full = None, self._table.routes, False
        for destination in at:
            known = self._installed.get(destination)
            if known is wanted[destination] or (is_full and known is None):
                continue  # a full map still accepts new values of the destinations that it has
            try:
                self._kernel.set_route(destination, wanted[destination])
                self._installed[destination] = wanted[destination]
            except OSError as error:
                failure = error
                is_full = is_full or error.errno in (errno.E2BIG, errno.ENOSPC)
        return failure

    def _set_default(self, route: UdpRoute) -> None:
        if route is not self._default:
            self._kernel.set_default_route(route)
            self._default = route

    def _report_refused(self) -> None:
        """Log each namespace whose objects begin to exceed its share."""
        refused = self._table.shares.refused
        for namespace in refused.keys() - self._reported.keys():
            log.warning(
                "udp routes refused",
                namespace=namespace,
                objects=refused[namespace],
                max_routes=MAX_ROUTES_PER_NAMESPACE,
                hint="use fewer UDP ports per Service or per PeerAuthentication",
            )
        self._reported = refused

    # Sockets

    def open_sockets(self, session: Session, request: UdpSocketRequest, fds: list[int]) -> None:
        """Send sockets for a pod's UDP to a worker, unless it has some from an earlier agent."""
        pod = self._pods.get(request.pod_uid)
        if pod is None or pod.netns is None:
            return
        if request.port and request.port in self._kernel.worker_ports(pod.cookie):
            session.udp[pod.cookie] = request.port
            return
        try:
            ipv6 = any(family(ip) == 6 for ip in pod.addresses)
            opened = self._kernel.sockets(pod.netns.fd, ipv6=ipv6)
        except OSError as error:
            log.error("udp sockets not opened, will retry", pod=pod.workload.uid, error=str(error))
            self._failed_requests[id(session), pod.uid] = session, request
            return
        try:
            session.udp[pod.cookie] = opened[0].getsockname()[1]
            self._write_ports(pod.cookie, [*self._sessions.sessions, session])
            session.send(UdpSockets(pod.uid), [sock.fileno() for sock in opened])
        finally:
            for sock in opened:
                sock.close()

    def left(self, session: Session) -> None:
        """Remove the ports of the worker."""
        for cookie in self._kernel.pods().intersection(session.udp):
            self._write_ports(cookie, self._sessions.sessions)

    def _write_ports(self, cookie: int, sessions: list[Session]) -> None:
        ports = dict.fromkeys(each.udp[cookie] for each in sessions if cookie in each.udp)
        try:
            self._kernel.set_worker_ports(cookie, list(ports))
            self._failed_ports.discard(cookie)
        except OSError as error:  # without ports, the kernel refuses the pod's UDP
            self._failed_ports.add(cookie)
            log.error("udp ports not written, will retry", cookie=cookie, error=str(error))
