# SPDX-License-Identifier: Apache-2.0
"""A gateway process as the agent sees it, and the agent's components that serve it."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from typing import Any

import msgspec

from tests.support.agent_fakes import FakeDataPath, workload
from ztunnel.agent.gateways.broadcast import L7Broadcast
from ztunnel.agent.gateways.pods import GatewayPods
from ztunnel.agent.gateways.queries import GatewayQueries
from ztunnel.agent.gateways.rejections import RejectedConfig
from ztunnel.agent.pods.netns_finder import NetnsHandle
from ztunnel.agent.pods.pod import Pod
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.workers.handlers import MessageHandlers
from ztunnel.agent.workers.mesh_broadcast import MeshBroadcast
from ztunnel.agent.workers.registry import SessionTable
from ztunnel.agent.workers.server import AgentLinkServer
from ztunnel.ipc.channel import Channel
from ztunnel.ipc.gateway_messages import (
    FromGateway,
    GatewayHello,
    GatewayListenerKind,
    GatewayPodAdded,
    GatewaySettings,
    HeldGatewayListeners,
    ToGateway,
)
from ztunnel.ipc.messages import PodRemoved, Sockets
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.kube.view.publisher import ViewPublisher
from ztunnel.mesh.model import Workload

GATEWAY = "shop/waypoint"
Held = dict[str, tuple[int, dict[GatewayListenerKind, socket.socket]]]


def gateway_workload(name: str = "waypoint-0", gateway: str = GATEWAY) -> Workload:
    """A pod of node n1 that runs a Gateway."""
    return msgspec.structs.replace(workload(name, pod_uid=f"{name}-uid"), gateway=gateway)


class GatewayNode:
    """The agent's side over a fake data path."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.path = directory, directory / "gateway.sock"
        self.kernel, self.captured, self.sessions = FakeDataPath(), PodTable(), SessionTable()
        self.view = ClusterView("cluster.local", "Kubernetes", node="n1")
        self.publisher = ViewPublisher(self.view)
        self.pods = GatewayPods(self.kernel, self.captured, self.sessions)
        self.rejected, self.queries = RejectedConfig(self.pods), GatewayQueries(self.sessions)
        settings = GatewaySettings(
            trust_domain="td", root_namespace="root", cluster_domain="cluster.local"
        )
        mesh, l7 = (
            MeshBroadcast(self.view, self.sessions),
            L7Broadcast(self.view, self.sessions, settings),
        )
        self.publisher.subscribe((mesh, l7, self.pods))
        handlers = MessageHandlers(FromGateway)
        for each in (self.pods, self.rejected, self.queries):
            each.register(handlers)
        observers = (mesh, l7, self.pods, self.queries)
        self.server = AgentLinkServer(
            self.path, os.getuid(), self.sessions, handlers, observers, process="gateway"
        )
        self.server.start()

    def capture(self, pod: Workload, netns: str = "a") -> int:
        """The enroller has captured a pod; returns the cookie of its namespace."""
        path = self.directory / f"netns-{netns}"
        path.touch()
        fd = os.open(path, os.O_RDONLY)
        cookie = self.kernel.cookie(fd)
        self.captured.put(Pod(pod, netns=NetnsHandle(fd, 1), cookie=cookie))
        self.pods.reconcile()
        return cookie

    def release(self, uid: str) -> None:
        pod = self.captured.get(uid)
        self.captured.remove(uid)
        if pod is not None:
            pod.close()
        self.pods.reconcile()

    def close(self) -> None:
        self.server.close()
        self.pods.close()
        for pod in self.captured:
            pod.close()


class FakeGatewayProcess:
    """A gateway process on a real socket."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.connect(str(path))
        self.sock.setblocking(False)
        self.channel: Channel[Any] = Channel(self.sock, ToGateway)  # type: ignore[arg-type]
        self.messages: list[Any] = []
        self.listeners: dict[str, dict[GatewayListenerKind, socket.socket]] = {}
        self.sockets: list[socket.socket] = []
        self.ended = False
        asyncio.get_running_loop().add_reader(self.sock.fileno(), self._readable)

    def greet(self, held: Held | None = None) -> None:
        """Send the Hello, with listeners by pod uid and cookie."""
        held = held or {}
        pods = tuple(
            HeldGatewayListeners(uid, cookie, tuple(group)) for uid, (cookie, group) in held.items()
        )
        fds = [sock.fileno() for _, group in held.values() for sock in group.values()]
        self.channel.send(GatewayHello(version="1", pid=os.getpid(), pods=pods), fds)

    def of(self, kind: type) -> list[Any]:
        """The received messages of one type."""
        return [message for message in self.messages if isinstance(message, kind)]

    def close(self, *, keep_listeners: bool = False) -> None:
        if self.sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.sock.fileno())
            self.sock.close()
        for sock in self.sockets:
            sock.close()
        if not keep_listeners:
            for group in self.listeners.values():
                for sock in group.values():
                    sock.close()

    def _readable(self) -> None:
        while self.sock.fileno() >= 0:
            try:
                received = self.channel.receive()
            except BlockingIOError:
                return
            except ConnectionResetError:
                received = None
            if received is None:
                self.ended = True
                asyncio.get_running_loop().remove_reader(self.sock.fileno())
                self.sock.close()
                return
            message, fds = received
            self.messages.append(message)
            socks = [socket.socket(fileno=fd) for fd in fds]
            if isinstance(message, GatewayPodAdded):
                group = self.listeners.setdefault(message.pod_uid, {})
                group.update(zip(message.listeners, socks, strict=True))
            elif isinstance(message, PodRemoved):
                for sock in self.listeners.pop(message.pod_uid, {}).values():
                    sock.close()
            elif isinstance(message, Sockets):
                self.sockets += socks
