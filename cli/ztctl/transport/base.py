# SPDX-License-Identifier: Apache-2.0
"""What the ways to a cluster's agents have in common."""

from __future__ import annotations

import ast
import json
import re
import socket
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from kubernetes.client.exceptions import ApiException

from ztunnel.kube.admin_endpoint import AdminEndpoint
from ztunnel.kube.client.access import Access
from ztunnel.kube.constants import NAMESPACE

PATIENCE = 30.0  # seconds that a question may take
BUFFER = 1 << 16
_HANDSHAKE = re.compile(r"Handshake status (\d{3}) ")


class Via(StrEnum):
    """How an agent is reached. AUTO: by port-forward, and where that fails by exec."""

    AUTO = "auto"
    EXEC = "exec"
    PORT_FORWARD = "port-forward"


class TransportError(Exception):
    """This way does not lead to the agent; the text says why and what to do."""


class AgentIdentityMismatchError(TransportError):
    """Somebody else than the agent answered: no reason to try another way in silence."""


@dataclass(frozen=True)
class Agent:
    """An agent's pod, and what it says of its port, if anything."""

    access: Access
    node: str
    pod: str
    doorway: AdminEndpoint | None


class Transport(Protocol):
    """A connection that leads to an agent's admin socket."""

    def carry(self, here: socket.socket) -> str:
        """Bytes both ways until one side ends; what it complained of, if it never answered."""
        ...

    def close(self) -> None: ...


def refusal(error: Exception, asked: str) -> TransportError:
    """What the API server said to `asked`, with the right that was missing."""
    if not isinstance(error, ApiException):
        cause = getattr(error, "reason", None) or error
        return TransportError(" ".join(f"{asked}: {cause}".split()))
    handshake = _HANDSHAKE.match(str(error.reason))  # of a websocket: the library's text
    status = int(handshake[1]) if handshake else error.status
    text = f"{asked}: the API server answered {status}: {_said(error)}"
    if status in (401, 403):
        text += f"; it needs the right {asked} in {NAMESPACE}"
    return TransportError(text)


def _said(error: ApiException) -> str:
    """The message alone. Of a websocket's handshake all is in one text, headers and body too."""
    parts = str(error.reason).split(" -+-+- ")
    for text in (str(error.body or ""), parts[-1]):
        try:
            raw = ast.literal_eval(text) if text.startswith("b'") else text
            return str(json.loads(raw)["message"])
        except (ValueError, TypeError, KeyError, SyntaxError):
            continue
    return " ".join(parts[0].split())
