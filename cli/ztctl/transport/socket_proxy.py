# SPDX-License-Identifier: Apache-2.0
"""Makes the admin sockets of a cluster's agents available as local unix sockets.

    ztctl ── <directory>/admin.sock ── PortForward or Exec ── /run/ztunnel/admin.sock

Only root of the node may open the agent's admin socket. Both transports go through the API server,
which authorizes and audits each request (decision 0013).
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
from ztctl.admin_client import ADMIN_SOCKET
from ztctl.cluster.api_client import ApiServer
from ztctl.errors import CommandError, NotReachableError
from ztctl.targets import Target, TransportKind
from ztctl.transport.base import (
    BUFFER_BYTES,
    RESPONSE_TIMEOUT_S,
    Agent,
    AgentIdentityMismatchError,
    Transport,
    TransportError,
)
from ztctl.transport.exec import Exec
from ztctl.transport.port_forward import PortForward
from ztunnel.kube import admin_endpoint
from ztunnel.kube.client.access import Access
from ztunnel.kube.constants import NAMESPACE

AGENT_SELECTOR = "app.kubernetes.io/name=ztunnel-agent"
_BACKLOG = 8
_directories: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process exits


def open_targets(access: Access, node: str | None, kind: TransportKind) -> list[Target]:
    """A target for each node's agent, or for that of one node. Raises CommandError."""
    api_server = ApiServer(access.kubeconfig, access.context)
    try:
        path = f"/api/v1/namespaces/{NAMESPACE}/pods"
        pods = api_server.list(
            path, labelSelector=AGENT_SELECTOR, fieldSelector="status.phase=Running"
        )
    finally:
        api_server.close()
    agents = {agent.node: agent for agent in (_agent(access, pod) for pod in pods)}
    if not agents:
        raise NotReachableError(
            f"no agent runs in namespace {NAMESPACE} at {api_server.url}; "
            "hint: install the mesh with `ztctl install`"
        )
    if node is not None and node not in agents:
        nodes = ", ".join(sorted(agents))
        raise CommandError(f"no agent runs on node {node!r}; hint: agents run on {nodes}")
    names = [node] if node is not None else sorted(agents)
    directory = tempfile.TemporaryDirectory(prefix="ztctl-")  # mode 0700
    _directories.append(directory)
    return [
        _serve_agent(Path(directory.name) / str(number), TransportSelector(agents[name], kind))
        for number, name in enumerate(names)
    ]


def _agent(access: Access, pod: dict[str, Any]) -> Agent:
    metadata = pod["metadata"]
    annotation = (metadata.get("annotations") or {}).get(admin_endpoint.ANNOTATION, "")
    endpoint = admin_endpoint.parse(annotation)
    return Agent(access, pod["spec"]["nodeName"], metadata["name"], endpoint)


class TransportSelector:
    """Connects to one agent, and remembers which transports have failed.

    A command sends several requests; a transport that failed once is not tried again.
    """

    def __init__(self, agent: Agent, kind: TransportKind) -> None:
        self.agent = agent
        transports: dict[TransportKind, Callable[[Agent], Transport]] = {
            TransportKind.PORT_FORWARD: PortForward,
            TransportKind.EXEC: Exec,
        }
        self._untried = {
            name: transport
            for name, transport in transports.items()
            if kind in (name, TransportKind.AUTO)
        }
        self._errors: dict[TransportKind, str] = {}

    def connect(self) -> Transport:
        """Connect by the first transport that works. Raises TransportError."""
        for name, transport in list(self._untried.items()):
            try:
                return transport(self.agent)
            except AgentIdentityMismatchError:
                raise
            except TransportError as error:
                self._errors[name] = str(error)
                self._untried.pop(name, None)
        raise TransportError(
            "; ".join(f"by {name.value}: {error}" for name, error in self._errors.items())
        )


def _serve_agent(run_dir: Path, selector: TransportSelector) -> Target:
    run_dir.mkdir()  # its path is short: the path of a unix socket has at most 107 bytes
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(str(run_dir / ADMIN_SOCKET))
    listener.listen(_BACKLOG)
    admin_client.min_timeouts_s[run_dir] = RESPONSE_TIMEOUT_S
    threading.Thread(target=_accept_all, args=(listener, selector), daemon=True).start()
    agent = selector.agent
    return Target(agent.node, run_dir, run_dir / "maps-are-on-the-node", pod=agent.pod)


def _accept_all(listener: socket.socket, selector: TransportSelector) -> None:
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_serve, args=(client, selector), daemon=True).start()


def _serve(client: socket.socket, selector: TransportSelector) -> None:
    """Serve one connection. A failure before the agent's response becomes an HTTP response."""
    with client:
        try:
            transport = selector.connect()
        except TransportError as error:
            _send_error(client, str(error))
            return
        try:
            error_text = transport.forward(client)
            if error_text:
                _send_error(client, error_text)
        except OSError:
            return  # the client has closed the connection
        finally:
            transport.close()


def _send_error(client: socket.socket, text: str) -> None:
    """Send an HTTP error, then drain the request: a close with unread data would reset it."""
    body = f"cannot reach the agent in its pod: {text}\n".encode()
    head = f"HTTP/1.1 502 Bad Gateway\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    with contextlib.suppress(OSError):  # the client has closed the connection
        client.sendall(head.encode() + body)
        client.shutdown(socket.SHUT_WR)
        while client.recv(BUFFER_BYTES):
            pass
