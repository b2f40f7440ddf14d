# SPDX-License-Identifier: Apache-2.0
"""Opens connections to a server that sends without end, and never reads.

flood.py serve PORT                send to every client as much as it takes
flood.py stall HOST PORT COUNT     open COUNT connections, print "opened", wait for end of input
"""

from __future__ import annotations

import selectors
import socket
import sys

BLOCK = bytes(64 * 1024)


def serve(port: int) -> None:
    listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                accepted, _ = listener.accept()
                accepted.setblocking(False)
                selector.register(accepted, selectors.EVENT_WRITE)
                continue
            assert isinstance(key.fileobj, socket.socket)
            try:
                key.fileobj.send(BLOCK)
            except BlockingIOError:
                pass
            except OSError:
                selector.unregister(key.fileobj)
                key.fileobj.close()


def stall(host: str, port: int, count: int) -> None:
    held = [socket.create_connection((host, port), timeout=10) for _ in range(count)]
    print("opened", len(held), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(int(sys.argv[2]))
    else:
        stall(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
