# SPDX-License-Identifier: Apache-2.0
"""What the transports have in common: the agent they reach, their interface and their errors."""

from __future__ import annotations

import ast
import json
import re
import socket
from dataclasses import dataclass
from typing import Protocol

from kubernetes.client.exceptions import ApiException

from ztunnel.kube.admin_endpoint import AdminEndpoint
from ztunnel.kube.client.access import Access
from ztunnel.kube.constants import NAMESPACE

RESPONSE_TIMEOUT_S = 30.0
BUFFER_BYTES = 1 << 16
# The kubernetes package reports a failed websocket handshake only as text.
_HANDSHAKE_STATUS = re.compile(r"Handshake status (\d{3}) ")


class TransportError(Exception):
    """The transport cannot reach the agent; the message has the reason and what to do."""


class AgentIdentityMismatchError(TransportError):
    """Another process answers at the agent's port. No other transport is tried silently."""


@dataclass(frozen=True)
class Agent:
    """An agent's pod, and the endpoint in its annotation, if any."""

    access: Access
    node: str
    pod: str
    endpoint: AdminEndpoint | None


class Transport(Protocol):
    """A connection to an agent's admin socket."""

    def forward(self, client: socket.socket) -> str:
        """Forward bytes in both directions until one side closes.

        Returns the error text if the agent sent no response, otherwise an empty string.
        """
        ...

    def close(self) -> None: ...


def api_error(error: Exception, request: str) -> TransportError:
    """The error of a request to the API server, with the permission that is missing, if any.

    `request` names the verb and the resource, as in `create pods/exec`.
    """
    if not isinstance(error, ApiException):
        cause = getattr(error, "reason", None) or error
        return TransportError(" ".join(f"{request}: {cause}".split()))
    handshake = _HANDSHAKE_STATUS.match(str(error.reason))
    status = int(handshake[1]) if handshake else error.status
    text = f"{request}: the API server responded {status}: {_api_error_message(error)}"
    if status in (401, 403):
        text += f"; hint: grant the permission to {request} in namespace {NAMESPACE}"
    return TransportError(text)


def _api_error_message(error: ApiException) -> str:
    """The message of the Status object. A failed handshake has it in the text of the reason."""
    parts = str(error.reason).split(" -+-+- ")
    for text in (str(error.body or ""), parts[-1]):
        try:
            raw = ast.literal_eval(text) if text.startswith("b'") else text
            return str(json.loads(raw)["message"])
        except (ValueError, TypeError, KeyError, SyntaxError):
            continue
    return " ".join(parts[0].split())
