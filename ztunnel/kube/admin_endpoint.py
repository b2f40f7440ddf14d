# SPDX-License-Identifier: Apache-2.0
"""The admin API through a forwarded port: what agent and ztctl agree on (0013).

The agent writes on its own pod at which port of loopback it listens and which key it has there;
who asks brings a token that was made for that key and for nothing else.

    client                                              agent
      TLS 1.3; is the certificate the one that the pod names?
      <token>\\n ─────────────────────────────────────────▶ TokenReview for `audience`
      ◀───────────────────────────────────────── ok\\n, or no: <why>\\n
      from here on the same bytes as on the admin socket
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ANNOTATION = "ztunnel.dev/admin"  # on the agent's pod: a Doorway's text
ACCOUNT = "ztunnel-admin"  # whose tokens open it: who may make one may look
TOKEN_SECONDS = 600  # Kubernetes makes none that is shorter
LONGEST_TOKEN = 8192  # bytes
OK, NO = "ok", "no: "
LONGEST_ANSWER = 1024  # bytes of the line that begins with one of them

_TEXT = re.compile(r"([0-9]{1,5}) sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class AdminEndpoint:
    """`port` of the node's loopback; `key`: SHA-256 of the certificate's DER, in hex."""

    port: int
    key: str

    def __str__(self) -> str:
        return f"{self.port} sha256:{self.key}"

    @property
    def audience(self) -> str:
        """Of the token: it opens the one agent that has this key, so nobody can pass it on."""
        return f"ztunnel-admin:{self.key}"


def parse(text: str) -> AdminEndpoint | None:
    """What an annotation says; None when it says nothing usable."""
    match = _TEXT.fullmatch(text)
    if match is None or not 0 < int(match[1]) < 65536:
        return None
    return AdminEndpoint(int(match[1]), match[2])
