# SPDX-License-Identifier: Apache-2.0
"""Transport by exec: the API server streams to `ztctl stdio-proxy` in the agent's pod."""

from __future__ import annotations

import select
import socket
from typing import Any

from kubernetes import client as kube
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream
from kubernetes.stream.ws_client import ERROR_CHANNEL, STDERR_CHANNEL, STDOUT_CHANNEL
from urllib3.exceptions import HTTPError

from ztctl.transport.base import BUFFER_BYTES, Agent, api_error
from ztunnel.kube.constants import NAMESPACE

COMMAND = ["ztctl", "stdio-proxy"]
_POLL_INTERVAL_S = 0.5  # limits the delay until a close without an event is noticed


class Exec:
    """A running `ztctl stdio-proxy`."""

    def __init__(self, agent: Agent) -> None:
        """Raises TransportError."""
        api = agent.access.client()  # not shared: `stream` modifies it while it connects
        try:
            self._stream: Any = stream(
                kube.CoreV1Api(api).connect_get_namespaced_pod_exec,
                agent.pod,
                NAMESPACE,
                container="agent",
                command=COMMAND,
                stdin=True,
                stdout=True,
                stderr=True,
                tty=False,
                binary=True,
                _preload_content=False,
            )
        except (ApiException, HTTPError, OSError) as error:
            raise api_error(error, "get and create pods/exec") from error

    def forward(self, client: socket.socket) -> str:
        remote = self._stream
        has_responded, stderr = False, ""
        while True:
            readable, _, _ = select.select([client, remote.sock.sock], [], [], _POLL_INTERVAL_S)
            if client in readable:
                request = client.recv(BUFFER_BYTES)
                if not request:
                    return ""
                remote.write_stdin(request)
            if remote.sock.sock in readable:
                remote.update(timeout=0)
            is_closed = not remote.is_open()  # before the reads below, which receive more frames
            response = remote.read_channel(STDOUT_CHANNEL)
            if response:
                client.sendall(response)
                has_responded = True
            stderr += remote.read_channel(STDERR_CHANNEL).decode(errors="replace")
            if is_closed:
                status = remote.read_channel(ERROR_CHANNEL).decode(errors="replace")
                error = stderr or status or "the command sent no response"
                return "" if has_responded else " ".join(error.split())

    def close(self) -> None:
        self._stream.close()
