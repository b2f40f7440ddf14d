# SPDX-License-Identifier: Apache-2.0
"""A UDP client that prints what an app can observe as JSON. Runs in a pod.

usage: udp_client.py WHAT HOST PORT [ARGUMENT]
"""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import sys
import time
from typing import Any

TIMEOUT_S = 5.0


def opened(host: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(TIMEOUT_S)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    return sock


def echo(host: str, port: int, text: str) -> dict[str, Any]:
    with opened(host) as sock:
        sock.sendto(text.encode(), (host, port))
        data, source = sock.recvfrom(65536)
        return {"said": data.decode(), "source": source[:2]}


def names(host: str, port: int, _: str) -> dict[str, Any]:
    """The addresses that client and server see, with a connected socket."""
    with opened(host) as sock:
        sock.connect((host, port))
        sock.send(b"who am I?")
        data, source = sock.recvfrom(65536)
        return {
            "server": json.loads(data),
            "source": source[:2],
            "getpeername": sock.getpeername()[:2],
            "getsockname": sock.getsockname()[:2],
        }


def bounce(host: str, port: int, text: str) -> dict[str, Any]:
    """Two round trips; the second reaches the connected socket of the server."""
    with opened(host) as sock:
        sock.sendto(text.encode(), (host, port))
        first, source = sock.recvfrom(65536)
        sock.sendto(b"again", source)
        return {"first": json.loads(first), "second": sock.recv(65536).decode()}


def sizes(host: str, port: int, numbers: str) -> dict[str, Any]:
    """Whether datagrams of these sizes return unchanged."""
    same = []
    with opened(host) as sock:
        for size in map(int, numbers.split(",")):
            payload = hashlib.shake_128(b"%d" % size).digest(size)
            sock.sendto(payload, (host, port))
            if sock.recv(65536) == payload:
                same.append(size)
    return {"same": same}


def several(host: str, port: int, others: str) -> dict[str, Any]:
    """One socket, several destinations: the sources of the replies, in request order."""
    answers = []
    with opened(host) as sock:
        for other in (host, *others.split(",")):
            sock.sendto(other.encode(), (other, port))
            data, source = sock.recvfrom(65536)
            answers.append([data.decode(), source[0]])
    return {"answers": answers}


def flood(host: str, port: int, what: str) -> dict[str, Any]:
    """Send `count x size` datagrams without pause, then request the number received."""
    number, size = map(int, what.split("x"))
    payload = bytes(size)
    with opened(host) as sock:
        sock.connect((host, port))
        for _ in range(number):
            sock.send(payload)
        sock.settimeout(0.5)
        said, since = [0, 0], time.monotonic()
        while time.monotonic() - since < 20:
            try:
                sock.send(b"count")
                now = json.loads(sock.recv(65536))
            except TimeoutError:
                continue
            if now == said and now[0]:
                break
            said = now
    return {"sent": number, "came": said[0]}


def refused(host: str, port: int, _: str) -> dict[str, Any]:
    """How a request without an answer ends."""
    with opened(host) as sock:
        sock.settimeout(1.0)
        try:
            sock.sendto(b"x", (host, port))
            sock.recv(100)
        except TimeoutError:
            return {"end": "silence"}
        except OSError as error:
            return {"end": errno.errorcode[error.errno or 0]}
    return {"end": "answered"}


def sweep(host: str, port: int, count: str) -> dict[str, Any]:
    """Send a datagram to each of that many ports from one socket."""
    with opened(host) as sock:
        for number in range(int(count)):
            sock.sendto(b"x", (host, port + number))
    return {"sent": int(count)}


def talk(host: str, port: int, _: str) -> dict[str, Any]:
    """For each line of stdin, send a datagram and print whether it was answered."""
    with opened(host) as sock:
        sock.settimeout(1.0)
        sock.connect((host, port))
        for line in sys.stdin:
            try:
                sock.send(line.encode())
                sock.recv(100)
                print("answered", flush=True)
            except OSError:
                print("silence", flush=True)
    return {}


if __name__ == "__main__":
    what, where, number = sys.argv[1], sys.argv[2], int(sys.argv[3])
    argument = sys.argv[4] if len(sys.argv) > 4 else ""
    print(json.dumps(globals()[what](where, number, argument)))
