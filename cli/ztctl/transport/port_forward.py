# SPDX-License-Identifier: Apache-2.0
"""Transport by port-forward: TLS to a port on the node's loopback, through the API server.

    the key fingerprint in the pod's annotation ──▶ a token with that audience ──▶ port-forward
        ──▶ TLS; the peer's key must match, else AgentIdentityMismatchError ──▶ token ──▶ ok

Every process of the node can listen or connect there, so both sides authenticate. The token is
valid only for the agent with that key (decision 0013).
"""

from __future__ import annotations

import hashlib
import hmac
import select
import socket
import ssl
from contextlib import suppress
from typing import Any

from kubernetes import client as kube
from kubernetes.client.exceptions import ApiException
from kubernetes.stream import portforward
from urllib3.exceptions import HTTPError

from ztctl.transport.base import (
    BUFFER_BYTES,
    RESPONSE_TIMEOUT_S,
    Agent,
    AgentIdentityMismatchError,
    TransportError,
    api_error,
)
from ztunnel.kube import admin_endpoint
from ztunnel.kube.admin_endpoint import ACCOUNT, AdminEndpoint
from ztunnel.kube.constants import NAMESPACE


class PortForward:
    """A forwarded port on which both sides have authenticated."""

    def __init__(self, agent: Agent) -> None:
        """Raises TransportError."""
        if agent.endpoint is None:
            raise TransportError(
                f"pod {agent.pod} has no valid annotation {admin_endpoint.ANNOTATION}; hint: the "
                "agent may be starting, older than this feature, or running without --pod-name"
            )
        api = agent.access.client()  # not shared: `portforward` modifies it while it connects
        core = kube.CoreV1Api(api)
        token = _request_token(core, agent.endpoint)
        self._port = agent.endpoint.port
        try:
            self._forward: Any = portforward(
                core.connect_get_namespaced_pod_portforward,
                agent.pod,
                NAMESPACE,
                ports=str(self._port),
            )
        except (ApiException, HTTPError, OSError) as error:
            raise api_error(error, "get and create pods/portforward") from error
        self._sock = socket.socket(fileno=self._forward.socket(self._port).detach())
        self._sock.settimeout(RESPONSE_TIMEOUT_S)
        try:
            self._tls = _tls_context().wrap_socket(self._sock)
            self._sock = self._tls
            _verify_peer_key(self._tls, agent, agent.endpoint)
            _authenticate(self._tls, token)
        except (OSError, TransportError) as error:
            self.close()
            if isinstance(error, TransportError):
                raise
            cause = self._forward.error(self._port) or error
            raise TransportError(
                " ".join(f"port {self._port} of pod {agent.pod}: {cause}".split())
            ) from error

    def forward(self, client: socket.socket) -> str:
        remote = self._tls
        has_responded = False
        while True:
            timeout_s = 0 if remote.pending() else RESPONSE_TIMEOUT_S
            readable = select.select([client, remote], [], [], timeout_s)[0]
            if not readable and timeout_s:
                return "" if has_responded else "timed out"
            if client in readable:
                request = client.recv(BUFFER_BYTES)
                if not request:
                    return ""
                remote.sendall(request)
            if remote in readable or not timeout_s:
                try:
                    response = remote.recv(BUFFER_BYTES)
                except ssl.SSLError:  # closed without close_notify
                    response = b""
                if not response:
                    return "" if has_responded else "the agent closed the connection"
                client.sendall(response)
                has_responded = True

    def close(self) -> None:
        with suppress(OSError):
            self._sock.close()


def _request_token(core: Any, endpoint: AdminEndpoint) -> str:
    """A token that only this endpoint accepts. Raises TransportError."""
    spec = kube.V1TokenRequestSpec(
        audiences=[endpoint.audience], expiration_seconds=admin_endpoint.TOKEN_LIFETIME_S
    )
    try:
        response = core.create_namespaced_service_account_token(
            ACCOUNT, NAMESPACE, kube.AuthenticationV1TokenRequest(spec=spec)
        )
    except (ApiException, HTTPError, OSError) as error:
        if getattr(error, "status", 0) == 404:
            raise TransportError(
                f"service account {NAMESPACE}/{ACCOUNT} does not exist; hint: run `ztctl install`"
            ) from error
        raise api_error(error, f"create serviceaccounts/token of {ACCOUNT}") from error
    return str(response.status.token)


def _tls_context() -> ssl.SSLContext:
    """Without certificate verification: `_verify_peer_key` checks the key alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _verify_peer_key(tls: ssl.SSLSocket, agent: Agent, endpoint: AdminEndpoint) -> None:
    """Must run before anything is sent. Raises AgentIdentityMismatchError."""
    fingerprint = hashlib.sha256(tls.getpeercert(binary_form=True) or b"").hexdigest()
    if not hmac.compare_digest(fingerprint, endpoint.key):
        raise AgentIdentityMismatchError(
            f"certificate mismatch on node {agent.node} port {endpoint.port}: expected the key "
            f"in the annotation of pod {agent.pod}; hint: the agent may be restarting (retry), or "
            "another process on the node is bound to the port; --transport exec does not use it"
        )


def _authenticate(tls: ssl.SSLSocket, token: str) -> None:
    """Send the token and read the result. Raises TransportError, OSError."""
    tls.sendall(token.encode() + b"\n")
    line = b""
    while not line.endswith(b"\n") and len(line) < admin_endpoint.MAX_REPLY_BYTES:
        byte = tls.recv(1)  # the bytes after the line belong to the admin API
        if not byte:
            raise TransportError("the agent closed the connection during authentication")
        line += byte
    result = line.decode("ascii", "replace").strip()
    if result != admin_endpoint.OK:
        raise TransportError(
            f"the agent rejects the token: {result.removeprefix(admin_endpoint.REJECTED)}"
        )
