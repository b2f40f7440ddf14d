# SPDX-License-Identifier: Apache-2.0
"""Reconciles the pods that are captured with those that should be.

To enroll a pod, the agent finds its network namespace, opens listeners in it, hands them to every
worker, waits until one is ready, and only then lets the kernel redirect. If no worker is ready
within `READY_TIMEOUT_S`, the kernel redirects nevertheless: connections are refused instead of
sent in plaintext. Unenrollment reverses these steps: the kernel first, then the workers.

`pod.PodState` has the state machine of one pod.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import structlog

from ztunnel.agent.datapath import DataPath
from ztunnel.agent.pods.kernel_entries import KernelEntries
from ztunnel.agent.pods.listeners import PodListeners
from ztunnel.agent.pods.netns_finder import HostNamespaceError, NetnsHandle
from ztunnel.agent.pods.pod import Pod, PodError, PodState, RetryReason, close_listeners
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.workers.handlers import (
    InvalidMessageError,
    MessageHandlers,
    SessionObserver,
)
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.ipc.messages import Hello, PodReady, PodRemoved, SocketRequest, Sockets
from ztunnel.mesh.model import Workload

READY_TIMEOUT_S = 1.0  # until a new pod is captured although no worker is ready
SOCKET_BATCH = 64  # sockets in one message
MAX_SOCKETS = 512  # sent for one request

_WORKER_NOT_READY = PodError(RetryReason.WORKER_NOT_READY, "waiting for a worker")
_NOT_REDIRECTED = PodError(RetryReason.NOT_REDIRECTED, "not in the kernel yet")
_INBOUND_NOT_REDIRECTED = PodError(
    RetryReason.INBOUND_NOT_REDIRECTED, "inbound connections are not redirected yet"
)

log = structlog.get_logger()


class PodDiscovery(Protocol):
    """Locates the network namespaces of pods; see `cgroup_discovery` and `cri_discovery`."""

    def refresh(self, wanted: Iterable[str]) -> None:
        """Look for the pods with these uids. Raises OSError."""
        ...

    def open(self, pod_uid: str) -> NetnsHandle | None:
        """The namespace of a pod; None if it has none.

        Raises HostNamespaceError, and OSError if it cannot be known.
        """
        ...

    def is_in_use(self, netns: NetnsHandle) -> bool:
        """Whether a process is in the namespace. Raises OSError if that cannot be known."""
        ...


class Enroller(SessionObserver):
    """All pods of the node. Use from the event loop only."""

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
        self._listeners = PodListeners(datapath, pods, sessions)
        self._entries = KernelEntries(datapath, pods)
        self._present: set[str] = set()

    def register(self, handlers: MessageHandlers) -> None:
        """Register the handlers of the messages about pods and their sockets."""
        handlers.register(Hello, self._adopt)
        handlers.register(PodReady, self._pod_ready)
        handlers.register(SocketRequest, self._send_sockets)

    @property
    def is_settled(self) -> bool:
        """Whether nothing needs a retry."""
        return self._entries.is_clean and not any(pod.error for pod in self._pods)

    def want(self, enrolled: Mapping[str, Workload], present: set[str]) -> None:
        """Set the pods to capture, by pod uid, and the uids of all pods that exist on the node."""
        self._present = present
        for pod in self._pods:
            if pod.uid not in enrolled:
                self._release(pod, gone=pod.uid not in present)
        for uid, workload in enrolled.items():
            known = self._pods.get(uid)
            if known is None:
                self._pods.put(Pod(workload))
            elif known.workload != workload:
                self._attempt(self._update, known, workload)
        self.recheck()

    def recheck(self) -> None:
        """Detect namespaces that are gone or replaced, then `advance`."""
        self._refresh()
        for pod in self._pods:
            if pod.netns is not None and self._has_lost_netns(pod, pod.netns):
                log.info("pod namespace gone", pod=pod.workload.uid, cookie=pod.cookie)
                self._release(pod, gone=True)
                self._pods.put(Pod(pod.workload))
        self.advance()

    def advance(self) -> None:
        """Take the next steps that are possible for every pod."""
        self._refresh()
        for pod in self._pods:
            self._attempt(self._advance, pod)
        self._entries.remove_stale()

    def close(self) -> None:
        """Close every descriptor; the kernel continues to capture."""
        for pod in self._pods:
            pod.close()

    # Messages and sessions

    def _adopt(self, session: Session, hello: Hello, fds: list[int]) -> None:
        for held in hello.pods:
            group = {kind: _socket(fds) for kind in held.listeners}
            pod = self._pods.get(held.pod_uid)
            if pod is None:
                close_listeners(group)
                session.send(PodRemoved(held.pod_uid, gone=held.pod_uid not in self._present))
            else:
                self._listeners.adopt(pod, session, held.netns_cookie, group)

    def _pod_ready(self, session: Session, message: PodReady, fds: list[int]) -> None:
        pod = self._pods.get(message.pod_uid)
        if pod is None:
            return
        session.ready.add(pod.uid)
        if pod.state is PodState.STARTING:
            self._attempt(self._capture, pod)

    def _send_sockets(self, session: Session, request: SocketRequest, fds: list[int]) -> None:
        pod = self._pods.get(request.pod_uid)
        if pod is None or pod.netns is None:
            return
        left = min(request.count, MAX_SOCKETS)
        while left > 0:
            batch = self._datapath.sockets(
                pod.netns.fd, request.family, min(left, SOCKET_BATCH), udp=request.udp
            )
            session.send(
                Sockets(pod.uid, request.family, request.udp), [sock.fileno() for sock in batch]
            )
            left -= len(batch)
            for sock in batch:
                sock.close()

    def joined(self, session: Session) -> None:
        """Add every pod with a known namespace to the worker."""
        for pod in self._pods:
            if pod.netns is not None:
                self._listeners.open(pod)
                self._listeners.offer(pod, session)

    def left(self, session: Session) -> None:
        """Without a worker, connections must be refused, not queued."""
        if self._sessions.sessions:
            return
        for pod in self._pods:
            pod.close_listeners()
            pod.listen_error = None

    # One pod

    def _advance(self, pod: Pod) -> None:
        is_changed = pod.netns is None
        if pod.netns is None:
            self._start(pod)
        if pod.netns is None:
            return
        sessions = self._sessions.sessions
        if sessions and not pod.listeners:
            self._listeners.open(pod)
            is_changed |= bool(pod.listeners)
        if is_changed:
            for session in sessions:
                self._listeners.offer(pod, session)
        if pod.state is PodState.CAPTURED and pod.capture_error:
            self._capture(pod)

    def _start(self, pod: Pod) -> None:
        netns = self._find(pod)
        if netns is None:
            return
        try:
            pod.cookie = self._datapath.cookie(netns.fd)
        except OSError:
            netns.close()
            raise
        pod.netns = netns
        pod.state, pod.capture_error = PodState.STARTING, _WORKER_NOT_READY
        if self._entries.claim(pod):
            is_attached = pod.cookie in self._datapath.attached()
            log.info("pod adopted", pod=pod.workload.uid, cookie=pod.cookie)
            pod.state = PodState.CAPTURED
            pod.capture_error = None if is_attached else _INBOUND_NOT_REDIRECTED
        else:
            loop = asyncio.get_running_loop()
            pod.timer = loop.call_later(READY_TIMEOUT_S, self._capture_without_worker, pod)
        self._listeners.take_offered(pod, self._sessions.sessions)

    def _refresh(self) -> None:
        try:
            self._discovery.refresh([pod.uid for pod in self._pods])
        except OSError as error:  # what is known remains; the next round tries again
            log.warning("pod discovery failed", error=str(error))

    def _has_lost_netns(self, pod: Pod, held: NetnsHandle) -> bool:
        """Whether the pod has another namespace, or none, and the held one has no process.

        False if it cannot be known: the traffic of a pod that lives would leave in plaintext.
        """
        try:
            found = self._find(pod)
            if found is None:
                return not self._discovery.is_in_use(held)
            try:
                return found.inode != held.inode
            finally:
                found.close()
        except OSError as error:
            log.warning("pod namespace unknown", pod=pod.workload.uid, error=str(error))
            return False

    def _find(self, pod: Pod) -> NetnsHandle | None:
        try:
            return self._discovery.open(pod.uid)
        except HostNamespaceError as error:
            pod.capture_error = PodError(RetryReason.HOST_NETNS, str(error))
            return None

    def _capture_without_worker(self, pod: Pod) -> None:
        if pod.state is PodState.STARTING:
            log.warning("no worker ready, connections refused", pod=pod.workload.uid)
            self._attempt(self._capture, pod)

    def _capture(self, pod: Pod) -> None:
        """Let the kernel redirect the pod's new connections."""
        assert pod.netns is not None  # only a pod with a namespace leaves PENDING
        pod.cancel_timer()
        is_new = pod.state is PodState.STARTING
        pod.state, pod.capture_error = PodState.CAPTURED, _NOT_REDIRECTED
        self._listeners.set_inbound(pod)
        self._datapath.enroll(pod.netns.fd, pod.cookie, pod.addresses)
        pod.capture_error = None
        if is_new:
            for notify in self._on_captured:
                notify(pod)
        log.info("pod captured", pod=pod.workload.uid, cookie=pod.cookie)

    def _update(self, pod: Pod, workload: Workload) -> None:
        before, pod.workload = pod.workload, workload
        if pod.netns is None or _captured_facts(before) == _captured_facts(workload):
            return
        for address in set(before.addresses) - set(workload.addresses):
            self._listeners.clear_inbound(address)
        if pod.state is PodState.CAPTURED:
            self._capture(pod)
        for session in self._sessions.sessions:
            self._listeners.offer(pod, session)

    def _release(self, pod: Pod, *, gone: bool) -> None:
        """Stop capturing: the kernel first, or connections would reach closed listeners."""
        self._pods.remove(pod.uid)
        if pod.cookie:
            self._entries.remove(pod.cookie)
            for address in pod.addresses:
                self._listeners.clear_inbound(address)
            log.info("pod released", pod=pod.workload.uid, cookie=pod.cookie, gone=gone)
        for session in self._sessions.sessions:
            self._listeners.remove_from(session, pod.uid, gone=gone)
        pod.close()

    def _attempt(self, step: Callable[..., None], pod: Pod, *args: Workload) -> None:
        """Run a step of one pod; a failure is recorded for a retry and does not affect others."""
        try:
            step(pod, *args)
        except OSError as error:
            failure = PodError(RetryReason.KERNEL_ERROR, f"kernel: {error}")
            if pod.capture_error != failure:
                log.warning("pod not captured", pod=pod.workload.uid, error=str(failure))
            pod.capture_error = failure


def _socket(fds: list[int]) -> socket.socket:
    """The socket of the first descriptor, which leaves the list."""
    try:
        sock = socket.socket(fileno=fds[0])
    except OSError as error:  # the session closes the descriptor
        raise InvalidMessageError(f"a listener is not a socket: {error}") from error
    del fds[0]
    return sock


def _captured_facts(workload: Workload) -> tuple[object, ...]:
    """What workers and the kernel know of a pod."""
    return workload.uid, workload.identity, workload.addresses
