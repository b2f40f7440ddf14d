# SPDX-License-Identifier: Apache-2.0
"""How a datagram says which remote it is for, by family: what bpf/zt_udp.h does, seen from here.

IPv4: the token is the destination it came to; an answer is sent from there.
IPv6: the token is the source it came from, with where the app's socket truly is; an answer is
      sent from the token, or from [::1] to a socket that is connected there.
"""

from __future__ import annotations

import socket

from ztunnel.datapath.sockopt import PKTINFO4_SIZE, TOKEN_NET6, Control, token_source_control

Address = tuple[str, int]

_UNCONNECTED, _FROM_LOOPBACK, _FROM_POD = 0, 1, 2  # the word after it
CONTROL_SPACE = socket.CMSG_SPACE(PKTINFO4_SIZE)


class TokenCodec4:
    """The pod's IPv4 socket."""

    family = 4

    def __init__(self, sock: socket.socket, pod_ip: str) -> None:
        self.sock = sock
        self.pod_ip = pod_ip

    def read(self, control: Control, source: Address) -> tuple[bytes, Address, bool] | None:
        """The token, where the app is, and whether it is connected and must be answered as such."""
        return (control[0][2][8:12], source, False) if control else None

    def control(self, token: bytes, *, connected: bool) -> Control:
        """What makes a datagram come from the token."""
        return token_source_control(4, token)


class TokenCodec6:
    """The pod's IPv6 socket."""

    family = 6

    def __init__(self, sock: socket.socket, pod_ip: str) -> None:
        self.sock = sock
        self.pod_ip = pod_ip

    def read(self, control: Control, source: Address) -> tuple[bytes, Address, bool] | None:
        """As `TokenCodec4.read`; None for what comes from no token: an app that found our port."""
        packed = socket.inet_pton(socket.AF_INET6, source[0])
        if packed[:8] != TOKEN_NET6:
            return None
        where = int.from_bytes(packed[8:12], "big")
        app = "::1" if where == _FROM_LOOPBACK else self.pod_ip
        return packed[12:], (app, source[1]), where != _UNCONNECTED

    def control(self, token: bytes, *, connected: bool) -> Control:
        """As `TokenCodec4.control`; a connected socket hears only [::1], as ours does."""
        return [] if connected else token_source_control(6, token)


TokenCodec = TokenCodec4 | TokenCodec6
