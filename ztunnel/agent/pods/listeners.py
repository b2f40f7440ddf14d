# SPDX-License-Identifier: Apache-2.0
"""The listeners in pods, which the agent and all workers share.

The agent opens them, hands descriptors to every worker, and keeps its own copies for workers that
join later. After a restart it adopts them from the workers, which still have the descriptors.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence

import structlog

from ztunnel.agent.datapath import DataPath
from ztunnel.agent.pods.pod import Listeners, Pod, PodError, RetryReason, close_listeners
from ztunnel.agent.pods.registry import CapturedPods
from ztunnel.agent.workers.registry import SessionRegistry
from ztunnel.agent.workers.session import Session
from ztunnel.ipc.messages import PodRemoved
from ztunnel.mesh.address import family

MAX_OFFERED_NAMESPACES = 4  # of one pod: each holds descriptors of the agent

log = structlog.get_logger()


class PodListeners:
    """Opens, adopts and distributes the listeners of all pods."""

    def __init__(self, datapath: DataPath, pods: CapturedPods, sessions: SessionRegistry) -> None:
        self._datapath = datapath
        self._pods = pods
        self._sessions = sessions

    def open(self, pod: Pod) -> None:
        """Open the listeners of a pod that has none, or set `listen_error`."""
        if pod.listeners or pod.netns is None:
            return
        ipv6 = any(family(address) == 6 for address in pod.workload.addresses)
        try:
            pod.listeners = self._datapath.listeners(pod.netns.fd, ipv6=ipv6)
        except OSError as error:
            failure = _listen_error(error)
            if pod.listen_error != failure:
                log.warning("listeners not opened", pod=pod.workload.uid, error=str(failure))
            pod.listen_error = failure
            return
        pod.listen_error = None
        self.set_inbound(pod)

    def offer(self, pod: Pod, session: Session) -> None:
        """Add the pod to a worker, with the listeners that it lacks."""
        kinds = tuple(kind for kind in pod.listeners if (pod.uid, kind) not in session.held)
        session.held.update((pod.uid, kind) for kind in kinds)
        session.send(pod.added(kinds), [pod.listeners[kind].fileno() for kind in kinds])

    def adopt(self, pod: Pod, session: Session, cookie: int, group: Listeners) -> None:
        """Take over listeners that a worker holds in the namespace with this cookie."""
        close_listeners(pod.offered.pop(cookie, {}))
        while len(pod.offered) >= MAX_OFFERED_NAMESPACES:
            close_listeners(pod.offered.pop(next(iter(pod.offered))))
        pod.offered[cookie] = group
        session.held.update((pod.uid, kind) for kind in group)
        self.take_offered(pod, [session])
        # Workers that joined earlier lack them: the agent could not open any while these existed.
        for earlier in self._sessions.sessions:
            if earlier is not session and any(
                (pod.uid, kind) not in earlier.held for kind in pod.listeners
            ):
                self.offer(pod, earlier)

    def take_offered(self, pod: Pod, holders: Sequence[Session]) -> None:
        """Once the pod's namespace is known, use the listeners offered in it and drop the rest."""
        if not pod.cookie:
            return
        offered = pod.offered.pop(pod.cookie, {})
        valid = {
            kind: self._datapath.is_listener(sock, kind, pod.cookie)
            for kind, sock in offered.items()
        }
        for kind, sock in offered.items():
            if all(valid.values()) and kind not in pod.listeners:
                pod.listeners[kind] = sock
                pod.listen_error = None  # these sockets had the ports
            else:
                sock.close()
        if not all(valid.values()):  # its other sockets in the pod are not tagged either
            for holder in holders:
                self.remove_from(holder, pod.uid, gone=False)
        if pod.offered:  # in a namespace that the pod had before
            pod.close_offered()
            for holder in holders:
                self.remove_from(holder, pod.uid, gone=True)
        self.set_inbound(pod)

    def remove_from(self, session: Session, pod_uid: str, *, gone: bool) -> None:
        """Remove the pod from a worker; `gone` if it no longer exists."""
        session.ready.discard(pod_uid)
        session.held = {(uid, kind) for uid, kind in session.held if uid != pod_uid}
        session.send(PodRemoved(pod_uid, gone=gone))

    def set_inbound(self, pod: Pod) -> None:
        """Let the kernel deliver inbound connections of the pod's addresses to its listeners."""
        for address, listener in pod.inbound_listeners():
            self._datapath.set_listener(address, listener)

    def clear_inbound(self, address: str) -> None:
        """Undo `set_inbound` for an address, unless another pod has it now."""
        for other in self._pods:
            for claimed, listener in other.inbound_listeners():
                if claimed == address:
                    self._datapath.set_listener(address, listener)
                    return
        self._datapath.remove_listener(address)


def _listen_error(error: OSError) -> PodError:
    if error.errno == errno.EADDRINUSE:
        return PodError(
            RetryReason.PORT_IN_USE,
            "a process in the pod listens on port 15001, 15006, 15008 or one of 15053 to 15055; "
            "hint: these ports are reserved for the mesh, change the app's port",
        )
    return PodError(RetryReason.LISTEN_ERROR, f"can't listen in the pod: {error.strerror}")
