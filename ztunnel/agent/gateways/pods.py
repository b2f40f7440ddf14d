# SPDX-License-Identifier: Apache-2.0
"""The gateway pods of this node, and the listeners in them that the gateway process serves.

pod is captured and runs a Gateway --> OPEN: the agent opens listeners, the process gets copies
the process is gone                --> the agent closes its copies: connections are refused
the agent restarts                 --> it adopts the listeners that the process still holds
the pod is gone                    --> the process stops; its connections end with the pod
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass, field

import structlog

from ztunnel.agent.datapath import DataPath
from ztunnel.agent.pods.pod import Pod
from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.agent.workers.handlers import InvalidMessageError, MessageHandlers, SessionObserver
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.ipc.gateway_messages import GatewayHello, GatewayListenerKind, GatewayPodAdded
from ztunnel.ipc.messages import PodRemoved, SocketRequest, Sockets
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.kube.view.publisher import ViewConsumer
from ztunnel.mesh.address import family
from ztunnel.mesh.model import Workload

MAX_SOCKETS = 16  # sent for one request

Listeners = dict[GatewayListenerKind, socket.socket]

log = structlog.get_logger()


@dataclass(eq=False)
class GatewayPod:
    """A captured pod that runs a Gateway, in one network namespace."""

    workload: Workload
    cookie: int
    listeners: Listeners = field(default_factory=dict)
    error: str = ""  # why it has no listeners

    def added(self, kinds: tuple[GatewayListenerKind, ...]) -> GatewayPodAdded:
        """The message that adds it to the process."""
        return GatewayPodAdded(
            pod_uid=self.workload.pod_uid,
            workload=self.workload.uid,
            gateway=self.workload.gateway,
            netns_cookie=self.cookie,
            listeners=kinds,
        )


class GatewayPods(ViewConsumer, SessionObserver):
    """All gateway pods of the node. Use from the event loop only."""

    def __init__(
        self, datapath: DataPath, captured: CapturedPods, sessions: SessionRegistry
    ) -> None:
        self._datapath = datapath
        self._captured = captured
        self._sessions = sessions
        self._pods: dict[str, GatewayPod] = {}  # by pod uid
        # by pod uid, what a process holds in a pod whose namespace is not known yet
        self._offered: dict[str, tuple[Session, Listeners]] = {}

    def register(self, handlers: MessageHandlers) -> None:
        """Register the handlers of the messages about gateway pods and their sockets."""
        handlers.register(GatewayHello, self._adopt)
        handlers.register(SocketRequest, self._send_sockets)

    def pods(self) -> list[GatewayPod]:
        """The gateway pods, in no particular order."""
        return list(self._pods.values())

    def apply(self, change: ViewChange) -> None:
        self.reconcile()

    def reconcile(self) -> None:
        """Compare with the captured pods. Call it often: namespaces appear without a change."""
        wanted = {pod.uid: pod for pod in self._captured if is_gateway_pod(pod)}
        for uid, known in list(self._pods.items()):
            pod = wanted.get(uid)
            if pod is None or pod.cookie != known.cookie:
                self._remove(uid)
        for uid, pod in wanted.items():
            found = self._pods.get(uid)
            if found is None:
                found = self._pods[uid] = GatewayPod(pod.workload, pod.cookie)
                if uid in self._offered:
                    self._take(found, pod, *self._offered.pop(uid))
                self._serve(found, pod)
            elif found.workload != pod.workload:
                is_moved = found.workload.gateway != pod.workload.gateway
                found.workload = pod.workload
                self._serve(found, pod, again=is_moved)
            elif not found.listeners:
                self._serve(found, pod)
        for uid in [uid for uid in self._offered if uid not in self._captured]:
            session, group = self._offered.pop(uid)
            _close(group)
            _drop(session, uid)

    def joined(self, session: Session) -> None:
        """Add every gateway pod to the process."""
        self.reconcile()
        for known in self._pods.values():
            self._offer(known, session)

    def left(self, session: Session) -> None:
        """Without a process, connections must be refused, not queued."""
        if not self._sessions.sessions:
            for known in self._pods.values():
                _close(known.listeners)

    def close(self) -> None:
        """Close every descriptor. A process that runs keeps its own."""
        for known in self._pods.values():
            _close(known.listeners)
        for _, group in self._offered.values():
            _close(group)
        self._offered.clear()

    def _serve(self, known: GatewayPod, pod: Pod, *, again: bool = False) -> None:
        """Open listeners if there is a process and the pod has none; add the pod to processes."""
        sessions = self._sessions.sessions
        if not sessions:
            return
        is_new = not known.listeners
        if is_new:
            self._open(known, pod)
        if is_new or again:
            for session in sessions:
                self._offer(known, session, again=again)

    def _open(self, known: GatewayPod, pod: Pod) -> None:
        if pod.netns is None:
            return
        ipv6 = any(family(address) == 6 for address in pod.workload.addresses)
        try:
            known.listeners = self._datapath.gateway_listeners(pod.netns.fd, ipv6=ipv6)
        except OSError as error:
            text = _listen_error(error)
            if text != known.error:
                log.warning("gateway listeners not opened", pod=pod.workload.uid, error=text)
            known.error = text
            return
        known.error = ""
        log.info("gateway pod found", pod=pod.workload.uid, gateway=pod.workload.gateway)

    def _offer(self, known: GatewayPod, session: Session, *, again: bool = False) -> None:
        uid = known.workload.pod_uid
        kinds = tuple(kind for kind in known.listeners if (uid, kind) not in session.held)
        if not kinds and not again and not any(held == uid for held, _ in session.held):
            return
        session.held.update((uid, kind) for kind in kinds)
        session.send(known.added(kinds), [known.listeners[kind].fileno() for kind in kinds])

    def _remove(self, uid: str) -> None:
        known = self._pods.pop(uid)
        _close(known.listeners)
        for session in self._sessions.sessions:
            _drop(session, uid)

    # Messages

    def _adopt(self, session: Session, hello: GatewayHello, fds: list[int]) -> None:
        """Take over the listeners that a process holds."""
        for held in hello.pods:
            group = {kind: _socket(fds) for kind in held.listeners}
            uid, pod = held.pod_uid, self._captured.get(held.pod_uid)
            if pod is None or not pod.workload.gateway:
                _close(group)
                _drop(session, uid)
            elif is_gateway_pod(pod):
                known = self._pods.setdefault(uid, GatewayPod(pod.workload, pod.cookie))
                self._take(known, pod, session, group)
            else:
                _close(self._offered.pop(uid, (session, {}))[1])
                self._offered[uid] = session, group

    def _take(self, known: GatewayPod, pod: Pod, session: Session, group: Listeners) -> None:
        """Use a process's listeners in the pod's namespace; drop all if one is not such a one."""
        if not all(
            self._datapath.is_gateway_listener(sock, kind, pod.cookie)
            for kind, sock in group.items()
        ):
            _close(group)
            _drop(session, pod.uid)
            return
        session.held.update((pod.uid, kind) for kind in group)
        for kind, sock in group.items():
            if kind in known.listeners:
                sock.close()
            else:
                known.listeners[kind] = sock
        if session.is_joined:
            self._offer(known, session)

    def _send_sockets(self, session: Session, request: SocketRequest, fds: list[int]) -> None:
        """To Envoy's admin port, which is on the pod's loopback. The agent connects them: sockets
        of the proxy would give the process more than it needs."""
        if request.udp or request.family != 4:
            raise InvalidMessageError("a gateway process needs TCP sockets of IPv4 only")
        pod = self._captured.get(request.pod_uid)
        if pod is None or pod.netns is None or request.pod_uid not in self._pods:
            return
        count = min(request.count, MAX_SOCKETS)
        batch = self._datapath.admin_sockets(pod.netns.fd, count)
        try:
            session.send(Sockets(pod.uid, request.family), [sock.fileno() for sock in batch])
        finally:
            for sock in batch:
                sock.close()


def is_gateway_pod(pod: Pod) -> bool:
    """Whether the gateway process is to serve the pod."""
    return bool(pod.workload.gateway) and pod.netns is not None and bool(pod.cookie)


def _drop(session: Session, uid: str) -> None:
    session.held = {(held, kind) for held, kind in session.held if held != uid}
    session.send(PodRemoved(uid, gone=True))


def _close(group: Listeners) -> None:
    for sock in group.values():
        sock.close()
    group.clear()


def _socket(fds: list[int]) -> socket.socket:
    """The socket of the first descriptor, which leaves the list."""
    try:
        sock = socket.socket(fileno=fds[0])
    except OSError as error:  # the session closes the descriptor
        raise InvalidMessageError(f"a listener is not a socket: {error}") from error
    del fds[0]
    return sock


def _listen_error(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            "a process in the pod listens on port 15010 or 15020; "
            "hint: these ports of a gateway pod are reserved for the mesh"
        )
    return f"can't listen in the pod: {error.strerror}"
