# SPDX-License-Identifier: Apache-2.0
"""One enrolled pod of this node, as far as the agent got with it. A value with its resources.

PENDING --namespace found--> STARTING --a worker is ready, or 1 s--> CAPTURED
   ^                                                                    |
   +-------------------- its namespace is another one ------------------+
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from enum import StrEnum

from ztunnel.agent.pods.netns_finder import NetnsHandle
from ztunnel.ipc.messages import ListenerKind, PodAdded
from ztunnel.mesh.model import Workload

_INBOUND = {4: ListenerKind.INBOUND4, 6: ListenerKind.INBOUND6}


class PodState(StrEnum):
    """How far the capture of a pod is."""

    PENDING = "pending"
    STARTING = "starting"
    CAPTURED = "captured"


@dataclass(eq=False)
class Pod:
    """`capture_problem` and `listen_problem` say what to try again; empty when nothing is."""

    workload: Workload
    state: PodState = PodState.PENDING
    capture_problem: str = "no process of the pod found yet"
    listen_problem: str = ""
    netns: NetnsHandle | None = None
    cookie: int = 0
    listeners: dict[ListenerKind, socket.socket] = field(default_factory=dict)
    shown: dict[int, dict[ListenerKind, socket.socket]] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None

    @property
    def uid(self) -> str:
        """Kubernetes' metadata.uid."""
        return self.workload.pod_uid

    @property
    def problem(self) -> str:
        """What keeps the pod from being captured and served; empty when nothing does."""
        return self.capture_problem or self.listen_problem

    @property
    def addresses(self) -> tuple[str, ...]:
        """The first address of each family: what the kernel keeps."""
        first: dict[int, str] = {}
        for address in self.workload.addresses:
            first.setdefault(family_of(address), address)
        return tuple(first[family] for family in sorted(first))

    def steering(self) -> list[tuple[str, socket.socket]]:
        """Which listener takes the inbound connections of which address."""
        pairs = [(ip, self.listeners.get(_INBOUND[family_of(ip)])) for ip in self.addresses]
        return [(ip, sock) for ip, sock in pairs if sock is not None]

    def added(self, kinds: tuple[ListenerKind, ...]) -> PodAdded:
        """What a worker is told, with the listeners that it does not have yet."""
        return PodAdded(
            pod_uid=self.uid,
            workload=self.workload.uid,
            identity=self.workload.identity,
            netns_cookie=self.cookie,
            addresses=self.workload.addresses,
            listeners=kinds,
        )

    def close_listeners(self) -> None:
        """Let go of our copies: without a proxy connections must be refused, not queued."""
        for sock in self.listeners.values():
            sock.close()
        self.listeners.clear()

    def close(self) -> None:
        """Let go of everything in the pod: what stays open keeps its namespace alive."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.close_listeners()
        close_shown(self.shown)
        if self.netns is not None:
            self.netns.close()
            self.netns = None
        self.cookie = 0


def family_of(ip: str) -> int:
    """4 or 6."""
    return 6 if ":" in ip else 4


def close_shown(shown: dict[int, dict[ListenerKind, socket.socket]]) -> None:
    """Close listeners that workers showed, by the cookie they claimed."""
    for group in shown.values():
        for sock in group.values():
            sock.close()
    shown.clear()
