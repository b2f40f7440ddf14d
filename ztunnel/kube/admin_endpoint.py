# SPDX-License-Identifier: Apache-2.0
"""The protocol of the admin API over port-forward, shared by agent and ztctl (decision 0013).

The agent publishes its loopback port and its public key in an annotation of its own pod. The client
sends a ServiceAccount token whose audience contains that key.

    client                                              agent
      TLS 1.3; the client compares the certificate with the annotation
      <token>\\n ─────────────────────────────────────────▶ TokenReview for `audience`
      ◀───────────────────────────────────── ok\\n, or no: <reason>\\n
      then the same bytes as on the admin socket
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ANNOTATION = "ztunnel.dev/admin"  # of the agent's pod: an AdminEndpoint as text
ACCOUNT = "ztunnel-admin"  # users who may create tokens of this account have access
TOKEN_LIFETIME_S = 600  # Kubernetes' minimum
MAX_TOKEN_BYTES = 8192
OK, REJECTED = "ok", "no: "  # the agent's reply is one of these, REJECTED with a reason
MAX_REPLY_BYTES = 1024

_TEXT = re.compile(r"([0-9]{1,5}) sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class AdminEndpoint:
    """`port` on the node's loopback; `key`: SHA-256 of the certificate (DER), in hex."""

    port: int
    key: str

    def __str__(self) -> str:
        return f"{self.port} sha256:{self.key}"

    @property
    def audience(self) -> str:
        """The token's audience. An agent cannot use the token at another agent."""
        return f"ztunnel-admin:{self.key}"


def parse(text: str) -> AdminEndpoint | None:
    """Parse the annotation; None if it is invalid."""
    match = _TEXT.fullmatch(text)
    if match is None or not 0 < int(match[1]) < 65536:
        return None
    return AdminEndpoint(int(match[1]), match[2])
