# SPDX-License-Identifier: Apache-2.0
"""To an agent by exec: the API server's stream to `ztctl relay` in its pod."""

from __future__ import annotations

import select
import socket
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import stream
from kubernetes.stream.ws_client import ERROR_CHANNEL, STDERR_CHANNEL, STDOUT_CHANNEL
from urllib3.exceptions import HTTPError

from ztctl.transport.base import BUFFER, Agent, refusal
from ztunnel.kube.constants import NAMESPACE

COMMAND = ["ztctl", "relay"]
_TURN = 0.5  # seconds until an end that nothing told of is noticed


class Exec:
    """A relay that runs."""

    def __init__(self, agent: Agent) -> None:
        """Raises NoWayError."""
        api = agent.access.client()  # one each: the library changes it while it dials
        try:
            self._stream: Any = stream(
                client.CoreV1Api(api).connect_get_namespaced_pod_exec,
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
            raise refusal(error, "get and create pods/exec") from error

    def carry(self, here: socket.socket) -> str:
        there = self._stream
        answered, complaint = False, ""
        while True:
            readable, _, _ = select.select([here, there.sock.sock], [], [], _TURN)
            if here in readable:
                asked = here.recv(BUFFER)
                if not asked:
                    return ""
                there.write_stdin(asked)
            if there.sock.sock in readable:
                there.update(timeout=0)
            ended = not there.is_open()  # asked before reading, which takes in more
            answer = there.read_channel(STDOUT_CHANNEL)
            if answer:
                here.sendall(answer)
                answered = True
            complaint += there.read_channel(STDERR_CHANNEL).decode(errors="replace")
            if ended:
                status = there.read_channel(ERROR_CHANNEL).decode(errors="replace")
                return "" if answered else " ".join((complaint or status or "no answer").split())

    def close(self) -> None:
        self._stream.close()
