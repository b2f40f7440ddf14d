# SPDX-License-Identifier: Apache-2.0
"""A name server on port 53 that answers every query for an address record with 192.0.2.53."""

from __future__ import annotations

import selectors
import socket

import dns.message
import dns.rrset


def main() -> None:
    """Serve UDP on both families."""
    selector = selectors.DefaultSelector()
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        sock = socket.socket(family, socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((address, 53))
        selector.register(sock, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            sock = key.fileobj  # type: ignore[assignment]
            data, client = sock.recvfrom(4096)
            response = dns.message.make_response(dns.message.from_wire(data))
            name = response.question[0].name
            response.answer = [dns.rrset.from_text(name, 30, "IN", "A", "192.0.2.53")]
            sock.sendto(response.to_wire(), client)


if __name__ == "__main__":
    main()
