# SPDX-License-Identifier: Apache-2.0
"""Bring the pods that are captured in line with those that should be.

Enrolling: find the namespace, open listeners in it, hand them to every worker, wait until one is
ready (a second at most: then the pod's connections are refused, never sent in plaintext), and only
then let the kernel redirect. Un-enrolling goes the other way: the kernel first, then the workers.

State belongs to a namespace cookie, never to a pod's name or address, so a pod that was re-created
inherits nothing. What an earlier agent left pinned is adopted as it is when its namespace is still
an enrolled pod's, and removed otherwise.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import structlog

from ztunnel.agent.datapath import DataPath
from ztunnel.agent.pods.netns_finder import HostNamespaceError, NetnsHandle
from ztunnel.agent.pods.pod import Pod, PodState, close_shown
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.workers.handlers import MessageHandlers, SessionObserver
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.ipc.messages import (
    Hello,
    PodReady,
    PodRemoved,
    SocketRequest,
    Sockets,
)
from ztunnel.mesh.model import Workload

READY_WAIT = 1.0  # seconds a new pod waits for a worker before it is captured all the same
BATCH = 64  # sockets in one message
MOST_SOCKETS = 512  # handed out for one request

log = structlog.get_logger()


class PodDiscovery(Protocol):
    """Locates the network namespaces of pods; see `cgroup_discovery` and `cri_discovery`."""

    def refresh(self, wanted: Iterable[str]) -> None: ...
    def open(self, pod_uid: str) -> NetnsHandle | None: ...


class Enroller(SessionObserver):
    """All local pods. Use from the event loop only."""

    def __init__(
        self,
        datapath: DataPath,
        discovery: PodDiscovery,
        pods: PodTable,
        sessions: SessionRegistry,
        *,
        on_captured: Sequence[Callable[[Pod], None]] = (),
    ) -> None:
        """`on_captured` is called, in order, with each pod when the kernel starts to redirect its
        new connections."""
        self._datapath = datapath
        self._discovery = discovery
        self._pods = pods
        self._sessions = sessions
        self._on_captured = on_captured
        self._present: set[str] = set()
        self._inherited = datapath.enrolled()
        self._unswept = datapath.attached() | set(self._inherited)

    def register(self, handlers: MessageHandlers) -> None:
        """Register the handlers of the messages about pods and their sockets."""
        handlers.register(Hello, self._adopt)
        handlers.register(PodReady, self._pod_ready)
        handlers.register(SocketRequest, self._send_sockets)

    @property
    def is_settled(self) -> bool:
        """Whether nothing is left to try again soon."""
        return not self._unswept and not any(pod.problem for pod in self._pods)

    def want(self, enrolled: Mapping[str, Workload], present: set[str]) -> None:
        """Set which pods (by pod uid) to capture, and all pod uids that exist on this node."""
        self._present = present
        for pod in self._pods:
            if pod.uid not in enrolled:
                self._release(pod, gone=pod.uid not in present)
        for uid, workload in enrolled.items():
            known = self._pods.get(uid)
            if known is None:
                self._pods.put(Pod(workload))
            elif known.workload != workload:
                self._guarded(self._changed, known, workload)
        self.recheck()

    def recheck(self) -> None:
        """Notice pods whose namespace has gone or been replaced, then `advance`."""
        self._discovery.refresh([pod.uid for pod in self._pods])
        for pod in self._pods:
            if pod.netns is not None and not self._is_same(pod):
                log.info("pod lost its namespace", pod=pod.workload.uid, cookie=pod.cookie)
                self._release(pod, gone=True)
                self._pods.put(Pod(pod.workload))
        self.advance()

    def advance(self) -> None:
        """Take every pod as far as it goes now."""
        self._discovery.refresh([pod.uid for pod in self._pods])
        for pod in self._pods:
            self._guarded(self._advance, pod)
        self._sweep()

    def close(self) -> None:
        """Let go of every descriptor; what is in the kernel stays."""
        for pod in self._pods:
            pod.close()

    # What workers say

    def _adopt(self, session: Session, hello: Hello, fds: list[int]) -> None:
        """Take copies of the listeners a worker holds; those of other pods it must drop."""
        for held in hello.pods:
            group = {kind: socket.socket(fileno=fds.pop(0)) for kind in held.listeners}
            pod = self._pods.get(held.pod_uid)
            if pod is None:
                close_shown({0: group})
                session.send(PodRemoved(held.pod_uid, gone=held.pod_uid not in self._present))
                continue
            close_shown({0: pod.shown.pop(held.netns_cookie, {})})
            pod.shown[held.netns_cookie] = group
            session.held.update((held.pod_uid, kind) for kind in group)
            self._take_shown(pod, [session])
            self._offer_to_earlier(pod, session)

    def _offer_to_earlier(self, pod: Pod, holder: Session) -> None:
        """A worker that joined before the listeners' holder got none: their ports were taken."""
        for session in self._sessions.sessions:
            if session is not holder and any(
                (pod.uid, kind) not in session.held for kind in pod.listeners
            ):
                self._offer(pod, session)

    def joined(self, session: Session) -> None:
        """A worker is there: it gets every pod whose namespace we know."""
        for pod in self._pods:
            if pod.netns is not None:
                self._open_listeners(pod)
                self._offer(pod, session)

    def _pod_ready(self, session: Session, message: PodReady, fds: list[int]) -> None:
        """A worker serves the pod."""
        session.ready.add(message.pod_uid)
        pod = self._pods.get(message.pod_uid)
        if pod is not None and pod.state is PodState.STARTING:
            self._guarded(self._commit, pod)

    def _send_sockets(self, session: Session, need: SocketRequest, fds: list[int]) -> None:
        """Open sockets in the pod for a worker."""
        pod = self._pods.get(need.pod_uid)
        if pod is None or pod.netns is None or need.family not in (4, 6):
            return
        left = min(max(need.count, 0), MOST_SOCKETS)
        while left > 0:
            made = self._datapath.sockets(pod.netns.fd, need.family, min(left, BATCH), udp=need.udp)
            session.send(Sockets(pod.uid, need.family, need.udp), [sock.fileno() for sock in made])
            left -= len(made)
            for sock in made:
                sock.close()

    def left(self, session: Session) -> None:
        """A worker is gone; with the last one go our listeners."""
        if self._sessions.sessions:
            return
        for pod in self._pods:
            pod.close_listeners()
            pod.listen_problem = ""

    # One pod

    def _advance(self, pod: Pod) -> None:
        is_news = pod.netns is None
        if is_news:
            self._start(pod)
        if pod.netns is None:
            return
        sessions = self._sessions.sessions
        if sessions and not pod.listeners:
            self._open_listeners(pod)
            is_news |= bool(pod.listeners)
        if is_news:
            for session in sessions:
                self._offer(pod, session)
        if pod.state is PodState.CAPTURED and pod.capture_problem:
            self._commit(pod)

    def _start(self, pod: Pod) -> None:
        found = self._find(pod)
        if found is None:
            return
        try:
            pod.cookie = self._datapath.cookie(found.fd)
        except OSError:
            found.close()
            raise
        pod.netns = found
        pod.state, pod.capture_problem = PodState.STARTING, "waiting for a worker"
        self._unswept.discard(pod.cookie)
        if self._inherited.pop(pod.cookie, None) == pod.addresses:
            attached = pod.cookie in self._datapath.attached()
            log.info("pod adopted", pod=pod.workload.uid, cookie=pod.cookie)
            pod.state = PodState.CAPTURED
            pod.capture_problem = "" if attached else "inbound connections are not stolen"
        else:
            loop = asyncio.get_running_loop()
            pod.timer = loop.call_later(READY_WAIT, self._waited, pod)
        self._take_shown(pod, self._sessions.sessions)

    def _is_same(self, pod: Pod) -> bool:
        """Whether the pod still lives in the namespace we hold."""
        now = self._find(pod)
        if now is None or pod.netns is None:
            return False
        try:
            return now.inode == pod.netns.inode
        finally:
            now.close()

    def _find(self, pod: Pod) -> NetnsHandle | None:
        try:
            return self._discovery.open(pod.uid)
        except HostNamespaceError as error:
            pod.capture_problem = str(error)
            return None

    def _take_shown(self, pod: Pod, holders: Sequence[Session]) -> None:
        """Once the pod's cookie is known, keep what workers showed of it and drop the rest."""
        if not pod.cookie:
            return
        for kind, sock in pod.shown.pop(pod.cookie, {}).items():
            is_good = self._datapath.is_listener(sock, kind, pod.cookie)
            if is_good and kind not in pod.listeners:
                pod.listeners[kind] = sock
                pod.listen_problem = ""  # it was these that took the port
                continue
            sock.close()
            if not is_good:
                for holder in holders:
                    holder.held.discard((pod.uid, kind))
        if pod.shown:  # of a namespace that the pod had before
            close_shown(pod.shown)
            for holder in holders:
                self._forget_in(holder, pod.uid, gone=True)
        self._steer(pod)

    def _open_listeners(self, pod: Pod) -> None:
        if pod.listeners or pod.netns is None:
            return
        ipv6 = any(":" in address for address in pod.workload.addresses)
        try:
            pod.listeners = self._datapath.listeners(pod.netns.fd, ipv6=ipv6)
        except OSError as error:
            problem = (
                "a process in the pod has port 15001, 15006, 15008 or one of 15053 to 15055; "
                "it must give it up"
                if error.errno == errno.EADDRINUSE
                else f"can't listen in the pod: {error.strerror}"
            )
            if pod.listen_problem != problem:
                log.warning("no listeners", pod=pod.workload.uid, problem=problem)
            pod.listen_problem = problem
            return
        pod.listen_problem = ""
        self._steer(pod)

    def _steer(self, pod: Pod) -> None:
        for address, listener in pod.steering():
            self._datapath.set_listener(address, listener)

    def _offer(self, pod: Pod, session: Session) -> None:
        kinds = tuple(kind for kind in pod.listeners if (pod.uid, kind) not in session.held)
        session.held.update((pod.uid, kind) for kind in kinds)
        session.send(pod.added(kinds), [pod.listeners[kind].fileno() for kind in kinds])

    def _waited(self, pod: Pod) -> None:
        if pod.state is PodState.STARTING:
            log.warning("no worker ready, refusing", pod=pod.workload.uid)
            self._guarded(self._commit, pod)

    def _commit(self, pod: Pod) -> None:
        """From here on the kernel redirects the pod's connections."""
        assert pod.netns is not None  # only a pod with a namespace leaves PENDING
        if pod.timer is not None:
            pod.timer.cancel()
            pod.timer = None
        is_new = pod.state is PodState.STARTING
        pod.state, pod.capture_problem = PodState.CAPTURED, "not in the kernel yet"
        self._steer(pod)
        self._datapath.enrol(pod.netns.fd, pod.cookie, pod.addresses)
        pod.capture_problem = ""
        if is_new:
            for notify in self._on_captured:
                notify(pod)
        log.info("pod captured", pod=pod.workload.uid, cookie=pod.cookie)

    def _changed(self, pod: Pod, workload: Workload) -> None:
        before, pod.workload = pod.workload, workload
        if pod.netns is None or _facts(before) == _facts(workload):
            return
        for address in set(before.addresses) - set(workload.addresses):
            self._remove_listener(address)
        if pod.state is PodState.CAPTURED:
            self._commit(pod)
        for session in self._sessions.sessions:
            self._offer(pod, session)

    def _release(self, pod: Pod, *, gone: bool) -> None:
        """Leave the pod alone: the kernel first, so that nothing is sent where nobody listens."""
        self._pods.remove(pod.uid)
        if pod.cookie:
            self._drop(pod.cookie)
            for address in pod.addresses:
                self._remove_listener(address)
            log.info("pod released", pod=pod.workload.uid, cookie=pod.cookie, gone=gone)
        for session in self._sessions.sessions:
            self._forget_in(session, pod.uid, gone=gone)
        pod.close()

    def _forget_in(self, session: Session, pod_uid: str, *, gone: bool) -> None:
        session.ready.discard(pod_uid)
        session.held = {(uid, kind) for uid, kind in session.held if uid != pod_uid}
        session.send(PodRemoved(pod_uid, gone=gone))

    def _drop(self, cookie: int) -> None:
        """Take a namespace out of the kernel's maps; tried again at the next sweep if it fails."""
        self._unswept.add(cookie)
        try:
            self._datapath.unenrol(cookie)
        except OSError as error:
            log.error("entry not removed", cookie=cookie, error=str(error))
            return
        log.info("entry removed", cookie=cookie)
        self._unswept.discard(cookie)
        self._inherited.pop(cookie, None)

    def _remove_listener(self, address: str) -> None:
        """Unless another pod has that address by now."""
        for other in self._pods:
            for claimed, listener in other.steering():
                if claimed == address:
                    self._datapath.set_listener(address, listener)
                    return
        self._datapath.remove_listener(address)

    def _guarded(self, step: Callable[..., None], pod: Pod, *args: Workload) -> None:
        """Do a step for one pod; its failure is noted and tried again, others go on."""
        try:
            step(pod, *args)
        except OSError as error:
            problem = f"kernel: {error}"
            if pod.capture_problem != problem:
                log.warning("pod not captured", pod=pod.workload.uid, problem=problem)
            pod.capture_problem = problem

    def _sweep(self) -> None:
        """Remove what an earlier agent left for namespaces that are nobody's now."""
        claimed = {
            address
            for pod in self._pods
            if pod.state is PodState.PENDING
            for address in pod.addresses
        }
        for cookie in sorted(self._unswept):
            if claimed.intersection(self._inherited.get(cookie, ())):
                continue  # perhaps the pod that we have not found yet
            self._drop(cookie)


def _facts(workload: Workload) -> tuple[object, ...]:
    """What a worker and the kernel know of a pod."""
    return workload.uid, workload.identity, workload.addresses
