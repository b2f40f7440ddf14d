# SPDX-License-Identifier: Apache-2.0
"""The admin sockets of a cluster's agents, here: as `kubectl port-forward`, for unix sockets.

    ztctl ── <directory>/admin.sock ── `by_port` or `by_exec` ── /run/ztunnel/admin.sock

The admin API listens on a socket that only root of the node may open. The ways to it (0013) both
lead through the API server, which judges and audits who may.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ztctl import admin_client
from ztctl.admin_client import SOCKET
from ztctl.cluster import Cluster
from ztctl.errors import CommandError, NotReachableError
from ztctl.targets import Installation
from ztctl.transport.base import (
    PATIENCE,
    Agent,
    AgentIdentityMismatchError,
    Transport,
    TransportError,
    Via,
)
from ztctl.transport.exec import Exec
from ztctl.transport.port_forward import PortForward
from ztunnel.kube import admin_endpoint
from ztunnel.kube.client.access import Access
from ztunnel.kube.constants import NAMESPACE

AGENTS = "app.kubernetes.io/name=ztunnel-agent"


def installations(access: Access, node: str | None, via: Via) -> list[Installation]:
    """One for each node's agent, its admin socket forwarded. Raises CommandError."""
    cluster = Cluster(access.kubeconfig, access.context)
    try:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        pods = cluster.list(path, labelSelector=AGENTS, fieldSelector="status.phase=Running")
    finally:
        cluster.close()
    on = {agent.node: agent for agent in (_agent(access, pod) for pod in pods)}
    if not on:
        raise NotReachableError(
            f"{cluster.url} runs no agent in {NAMESPACE}; install the mesh: ztctl install"
        )
    if node is not None and node not in on:
        raise CommandError(f"no agent runs on node {node!r}; there are {', '.join(sorted(on))}")
    names = [node] if node is not None else sorted(on)
    root = Path(_keep(tempfile.TemporaryDirectory(prefix="ztctl-")).name)  # mode 0700
    return [
        _forwarded(root / str(number), TransportSelector(on[name], via))
        for number, name in enumerate(names)
    ]


def _agent(access: Access, pod: dict[str, Any]) -> Agent:
    metadata = pod["metadata"]
    said = (metadata.get("annotations") or {}).get(admin_endpoint.ANNOTATION, "")
    return Agent(access, pod["spec"]["nodeName"], metadata["name"], admin_endpoint.parse(said))


class TransportSelector:
    """To one agent. A way that failed is not tried again: a command asks several times."""

    def __init__(self, agent: Agent, via: Via) -> None:
        self.agent = agent
        kinds: dict[Via, Callable[[Agent], Transport]] = {
            Via.PORT_FORWARD: PortForward,
            Via.EXEC: Exec,
        }
        self._left = {name: kind for name, kind in kinds.items() if via in (name, Via.AUTO)}
        self._failed: dict[Via, str] = {}

    def dial(self) -> Transport:
        """By the first way that leads there. Raises NoWayError."""
        for name, kind in list(self._left.items()):
            try:
                return kind(self.agent)
            except AgentIdentityMismatchError:
                raise
            except TransportError as error:
                self._failed[name] = str(error)
                self._left.pop(name, None)
        raise TransportError(
            "; ".join(f"by {name.value}: {why}" for name, why in self._failed.items())
        )


def _forwarded(run_dir: Path, ways: TransportSelector) -> Installation:
    run_dir.mkdir()  # its path is short: a socket's has 107 characters
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(run_dir / SOCKET))
    listener.listen(8)
    admin_client.far[run_dir] = PATIENCE
    threading.Thread(target=_accept, args=(listener, ways), daemon=True).start()
    agent = ways.agent
    return Installation(agent.node, run_dir, run_dir / "maps-are-on-the-node", pod=agent.pod)


_kept: list[Any] = []


def _keep(directory: tempfile.TemporaryDirectory[str]) -> tempfile.TemporaryDirectory[str]:
    """It is removed when the process ends."""
    _kept.append(directory)
    return directory


def _accept(listener: socket.socket, ways: TransportSelector) -> None:
    while True:
        here, _ = listener.accept()
        threading.Thread(target=_serve, args=(here, ways), daemon=True).start()


def _serve(here: socket.socket, ways: TransportSelector) -> None:
    """One connection. What goes wrong before an answer is told as an answer."""
    with here:
        try:
            way = ways.dial()
        except TransportError as error:
            _complain(here, str(error))
            return
        try:
            complaint = way.carry(here)
            if complaint:
                _complain(here, complaint)
        except OSError:
            return  # ztctl has what it wanted
        finally:
            way.close()


def _complain(here: socket.socket, text: str) -> None:
    """Answer in HTTP what `admin` shows. Who is still asking must not find the socket closed."""
    body = f"no way to the agent in its pod: {text}\n".encode()
    head = f"HTTP/1.1 502 Bad Gateway\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError):  # ztctl has ended
        here.sendall(head.encode() + body)
        here.shutdown(socket.SHUT_WR)
        while here.recv(1 << 16):
            pass
