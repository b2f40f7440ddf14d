# SPDX-License-Identifier: Apache-2.0
"""One pod that the agent captures: its state of enrollment and the descriptors that it needs."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from enum import StrEnum

from ztunnel.agent.pods.netns_finder import NetnsHandle
from ztunnel.ipc.messages import ListenerKind, PodAdded
from ztunnel.mesh.address import family
from ztunnel.mesh.model import Workload

Listeners = dict[ListenerKind, socket.socket]

_INBOUND = {4: ListenerKind.INBOUND4, 6: ListenerKind.INBOUND6}


class PodState(StrEnum):
    """The state of a pod's enrollment.

        PENDING --- namespace found ---> STARTING --- worker ready, or timeout ---> CAPTURED
         |  ^                               |                                         |  ^
         |  +--- namespace gone or replaced-+-----------------------------------------+  |
         +--- namespace found, and the kernel captures it for an earlier agent ----------+

    A pod that is no longer to be captured is released from any state.
    """

    PENDING = "pending"
    STARTING = "starting"
    CAPTURED = "captured"


class RetryReason(StrEnum):
    """Why the agent has to retry a step of a pod's enrollment."""

    NETNS_NOT_FOUND = "NetnsNotFound"
    HOST_NETNS = "HostNetns"
    WORKER_NOT_READY = "WorkerNotReady"
    NOT_REDIRECTED = "NotRedirected"
    INBOUND_NOT_REDIRECTED = "InboundNotRedirected"
    KERNEL_ERROR = "KernelError"
    PORT_IN_USE = "PortInUse"
    LISTEN_ERROR = "ListenError"


@dataclass(frozen=True)
class PodError:
    """What keeps a pod from being captured or served; `message` is for operators."""

    reason: RetryReason
    message: str

    def __str__(self) -> str:
        return self.message


NETNS_NOT_FOUND = PodError(RetryReason.NETNS_NOT_FOUND, "no process of the pod found yet")


@dataclass(eq=False)
class Pod:
    """The agent retries the capture while `capture_error` is set, the listeners while
    `listen_error` is."""

    workload: Workload
    state: PodState = PodState.PENDING
    capture_error: PodError | None = NETNS_NOT_FOUND
    listen_error: PodError | None = None
    netns: NetnsHandle | None = None
    cookie: int = 0  # of the namespace; 0 while it is unknown
    listeners: Listeners = field(default_factory=dict)
    offered: dict[int, Listeners] = field(default_factory=dict)  # by workers, with their cookie
    timer: asyncio.TimerHandle | None = None

    @property
    def uid(self) -> str:
        """Kubernetes' metadata.uid."""
        return self.workload.pod_uid

    @property
    def error(self) -> PodError | None:
        """What keeps the pod from being captured and served."""
        return self.capture_error or self.listen_error

    @property
    def addresses(self) -> tuple[str, ...]:
        """The first address of each family: the ones in the kernel's maps."""
        first: dict[int, str] = {}
        for address in self.workload.addresses:
            first.setdefault(family(address), address)
        return tuple(first[number] for number in sorted(first))

    def inbound_listeners(self) -> list[tuple[str, socket.socket]]:
        """The pod's addresses with the listeners that accept their inbound connections."""
        pairs = [(ip, self.listeners.get(_INBOUND[family(ip)])) for ip in self.addresses]
        return [(ip, sock) for ip, sock in pairs if sock is not None]

    def added(self, kinds: tuple[ListenerKind, ...]) -> PodAdded:
        """The message that adds the pod to a worker, with the listeners that it lacks."""
        return PodAdded(
            pod_uid=self.uid,
            workload=self.workload.uid,
            identity=self.workload.identity,
            netns_cookie=self.cookie,
            addresses=self.workload.addresses,
            listeners=kinds,
        )

    def cancel_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def close_listeners(self) -> None:
        """Close the agent's copies: without a proxy, connections must be refused, not queued."""
        close_listeners(self.listeners)

    def close(self) -> None:
        """Close everything in the pod: an open descriptor keeps its namespace alive."""
        self.cancel_timer()
        self.close_listeners()
        self.close_offered()
        if self.netns is not None:
            self.netns.close()
            self.netns = None
        self.cookie = 0

    def close_offered(self) -> None:
        """Close the listeners that workers offered."""
        for group in self.offered.values():
            close_listeners(group)
        self.offered.clear()


def close_listeners(group: Listeners) -> None:
    """Close the sockets and empty the group."""
    for sock in group.values():
        sock.close()
    group.clear()
