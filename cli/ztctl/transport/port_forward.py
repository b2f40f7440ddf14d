# SPDX-License-Identifier: Apache-2.0
"""To an agent by port-forward: TLS to a port of its node's loopback, through the API server.

    the key that the agent's pod names ──▶ a token for that key only ──▶ forwarded port
        ──▶ TLS with that very key, else ForeignAgentError ──▶ the token ──▶ ok

Anybody on the node could listen or dial there, so both sides prove themselves, and the token is
worth nothing to anybody else (0013).
"""

from __future__ import annotations

import hashlib
import hmac
import select
import socket
import ssl
from contextlib import suppress
from typing import Any

from kubernetes import client
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward
from urllib3.exceptions import HTTPError

from ztctl.transport.base import (
    BUFFER,
    PATIENCE,
    Agent,
    AgentIdentityMismatchError,
    TransportError,
    refusal,
)
from ztunnel.kube import admin_endpoint
from ztunnel.kube.admin_endpoint import ACCOUNT, AdminEndpoint
from ztunnel.kube.constants import NAMESPACE


class PortForward:
    """A port that is forwarded, both ends proven."""

    def __init__(self, agent: Agent) -> None:
        """Raises NoWayError, ForeignAgentError."""
        if agent.doorway is None:
            raise TransportError(
                f"pod {agent.pod} names no port in its annotation "
                f"{admin_endpoint.ANNOTATION}: its agent is older, starts just now, or has no --pod"
            )
        api = agent.access.client()  # one each: the library changes it while it dials
        core = client.CoreV1Api(api)
        token = _token(core, agent.doorway)
        try:
            self._forward: Any = portforward(
                core.connect_get_namespaced_pod_portforward,
                agent.pod,
                NAMESPACE,
                ports=str(agent.doorway.port),
            )
        except (ApiException, HTTPError, OSError) as error:
            raise refusal(error, "get and create pods/portforward") from error
        self._port = agent.doorway.port
        self._sock = socket.socket(fileno=self._forward.socket(self._port).detach())
        self._sock.settimeout(PATIENCE)
        try:
            self._tls = _context().wrap_socket(self._sock)
            self._sock = self._tls
            _recognise(self._tls, agent)
            _prove(self._tls, token)
        except (OSError, TransportError) as error:
            self.close()
            if isinstance(error, TransportError):
                raise
            said = self._forward.error(self._port) or error
            raise TransportError(
                " ".join(f"port {self._port} of pod {agent.pod}: {said}".split())
            ) from error

    def carry(self, here: socket.socket) -> str:
        there = self._tls
        answered = False
        while True:
            waiting = 0 if there.pending() else PATIENCE
            readable = select.select([here, there], [], [], waiting)[0]
            if not readable and waiting:
                return "" if answered else "no answer in time"
            if here in readable:
                asked = here.recv(BUFFER)
                if not asked:
                    return ""
                there.sendall(asked)
            if there in readable or not waiting:
                try:
                    answer = there.recv(BUFFER)
                except ssl.SSLError:  # an end without a farewell
                    answer = b""
                if not answer:
                    return "" if answered else "the agent hung up"
                here.sendall(answer)
                answered = True

    def close(self) -> None:
        with suppress(OSError):
            self._sock.close()


def _token(core: Any, at: AdminEndpoint) -> str:
    """For that door only. Raises NoWayError."""
    spec = client.V1TokenRequestSpec(
        audiences=[at.audience], expiration_seconds=admin_endpoint.TOKEN_SECONDS
    )
    asked = f"create serviceaccounts/token of {ACCOUNT}"
    try:
        made = core.create_namespaced_service_account_token(
            ACCOUNT, NAMESPACE, client.AuthenticationV1TokenRequest(spec=spec)
        )
    except (ApiException, HTTPError, OSError) as error:
        if getattr(error, "status", 0) == 404:
            raise TransportError(
                f"there is no service account {NAMESPACE}/{ACCOUNT}; `ztctl install` makes it"
            ) from error
        raise refusal(error, asked) from error
    return str(made.status.token)


def _context() -> ssl.SSLContext:
    """The peer is known by its key alone, see `_recognise`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _recognise(tls: ssl.SSLSocket, agent: Agent) -> None:
    """Nothing is said before this. Raises ForeignAgentError."""
    assert agent.doorway is not None
    shown = hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()
    if not hmac.compare_digest(shown, agent.doorway.key):
        raise AgentIdentityMismatchError(
            f"who answers at port {agent.doorway.port} of node {agent.node} has not the key that "
            f"pod {agent.pod} names: the agent restarts just now (try again), or another process "
            "of the node listens in its stead; --via exec does not pass there"
        )


def _prove(tls: ssl.SSLSocket, token: str) -> None:
    """Raises NoWayError, OSError."""
    tls.sendall(token.encode() + b"\n")
    line = b""
    while not line.endswith(b"\n") and len(line) < admin_endpoint.LONGEST_ANSWER:
        more = tls.recv(1)  # what follows is the admin API's
        if not more:
            raise TransportError("the agent hung up before it said whether the token is good")
        line += more
    said = line.decode("ascii", "replace").strip()
    if said != admin_endpoint.OK:
        raise TransportError(f"the agent refuses: {said.removeprefix(admin_endpoint.NO)}")
