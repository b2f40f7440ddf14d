# SPDX-License-Identifier: Apache-2.0
"""A stub resolver inside a pod, as systemd-resolved is: 127.0.0.53:53 asks the server given.

python stub.py SERVER NAME RDTYPE: serves, asks itself, prints rcode and data as JSON.
"""

from __future__ import annotations

import json
import socket
import sys
import threading

import dns.message
import dns.query

STUB = "127.0.0.53"


def serve(listener: socket.socket, server: str) -> None:
    """One query after the other, forwarded as a client of its own, from a connected socket."""
    while True:
        wire, source = listener.recvfrom(65535)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as upstream:
            upstream.settimeout(5)
            upstream.connect((server, 53))
            upstream.send(wire)
            listener.sendto(upstream.recv(65535), source)


def main() -> None:
    server, name, rdtype = sys.argv[1:]
    listener = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    listener.bind((STUB, 53))
    threading.Thread(target=serve, args=(listener, server), daemon=True).start()
    reply = dns.query.udp(dns.message.make_query(name, rdtype), STUB, timeout=10)
    data = [rdata.to_text() for rrset in reply.answer for rdata in rrset]
    print(json.dumps({"rcode": reply.rcode().name, "data": data}))


if __name__ == "__main__":
    main()
