# SPDX-License-Identifier: Apache-2.0
"""How the address of a datagram carries the token of its remote, for each IP family.

The BPF programs replace the application's destination by a token (decision 0015).

IPv4: the token is the destination address. A reply is sent from that address.
IPv6: the token is the source address, together with where the application's socket really is. A
      reply is sent from the token, or from [::1] to a socket that is connected there.
"""

from __future__ import annotations

import socket

from ztunnel.datapath.sockopt import PKTINFO4_SIZE, TOKEN_NET6, Control, token_source_control

Address = tuple[str, int]

# The second word of an IPv6 token: the kind of socket that sent the datagram.
_UNCONNECTED, _FROM_LOOPBACK, _FROM_POD = 0, 1, 2
CONTROL_SPACE = socket.CMSG_SPACE(PKTINFO4_SIZE)


class TokenCodec4:
    """Tokens on the pod's IPv4 socket."""

    family = 4

    def __init__(self, sock: socket.socket, pod_ip: str) -> None:
        self.sock = sock
        self.pod_ip = pod_ip

    def read(self, control: Control, source: Address) -> tuple[bytes, Address, bool] | None:
        """The token, the application's address, and whether its socket is connected.

        None for a datagram without a token.
        """
        return (control[0][2][8:12], source, False) if control else None

    def control(self, token: bytes, *, connected: bool) -> Control:
        """The ancillary data that sends a datagram from the token's address."""
        return token_source_control(4, token)


class TokenCodec6:
    """Tokens on the pod's IPv6 socket."""

    family = 6

    def __init__(self, sock: socket.socket, pod_ip: str) -> None:
        self.sock = sock
        self.pod_ip = pod_ip

    def read(self, control: Control, source: Address) -> tuple[bytes, Address, bool] | None:
        """As `TokenCodec4.read`. An application that sends to the proxy's port has no token."""
        packed = socket.inet_pton(socket.AF_INET6, source[0])
        if packed[:8] != TOKEN_NET6:
            return None
        where = int.from_bytes(packed[8:12], "big")
        app = "::1" if where == _FROM_LOOPBACK else self.pod_ip
        return packed[12:], (app, source[1]), where != _UNCONNECTED

    def control(self, token: bytes, *, connected: bool) -> Control:
        """As `TokenCodec4.control`. A connected socket accepts replies from [::1] only."""
        return [] if connected else token_source_control(6, token)


TokenCodec = TokenCodec4 | TokenCodec6
