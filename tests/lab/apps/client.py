# SPDX-License-Identifier: Apache-2.0
"""A TCP client that prints what an app can observe as JSON. Runs in a pod.

usage: client.py WHAT HOST PORT [ARGUMENT]
"""

from __future__ import annotations

import errno
import hashlib
import json
import select
import socket
import struct
import sys
import time
from typing import Any

CHUNK = 1 << 18


def connected(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.settimeout(30)
    sock.connect((host, port))
    return sock


def everything(sock: socket.socket) -> bytes:
    parts = []
    while data := sock.recv(CHUNK):
        parts.append(data)
    return b"".join(parts)


def names(host: str, port: int, _: str) -> dict[str, Any]:
    """The addresses that client and server see; port 7001 sends those of the server."""
    with connected(host, port) as sock:
        mine = {"getpeername": sock.getpeername()[:2], "getsockname": sock.getsockname()[:2]}
        return {"client": mine, "server": json.loads(everything(sock))}


def echo(host: str, port: int, text: str) -> dict[str, Any]:
    with connected(host, port) as sock:
        sock.sendall(text.encode())
        sock.shutdown(socket.SHUT_WR)
        return {"said": everything(sock).decode()}


def talk(host: str, port: int, text: str) -> dict[str, Any]:
    """Like `echo`, with FIN only after the answer."""
    with connected(host, port) as sock:
        sock.sendall(text.encode())
        said = b""
        while len(said) < len(text) and (data := sock.recv(CHUNK)):
            said += data
        sock.shutdown(socket.SHUT_WR)
        return {"said": (said + everything(sock)).decode()}


def upload(host: str, port: int, size: str) -> dict[str, Any]:
    """Send `size` bytes and FIN, then read the digest of the server (half-close)."""
    total, left, block = hashlib.sha256(), int(size), bytes(range(256)) * 1024
    with connected(host, port) as sock:
        while left:
            part = block[: min(left, len(block))]
            sock.sendall(part)
            total.update(part)
            left -= len(part)
        sock.shutdown(socket.SHUT_WR)
        return {"sent": f"{size} {total.hexdigest()}", "server": everything(sock).decode().strip()}


def download(host: str, port: int, size: str) -> dict[str, Any]:
    total, count = hashlib.sha256(), 0
    with connected(host, port) as sock:
        sock.sendall(f"{size}\n".encode())
        while data := sock.recv(CHUNK):
            total.update(data)
            count += len(data)
    return {"size": count, "digest": total.hexdigest()}


def fin_first(host: str, port: int, size: str) -> dict[str, Any]:
    """The server sends FIN first; the client can still send."""
    with connected(host, port) as sock:
        first = sock.recv(1)
        sock.sendall(b"x" * int(size))
        sock.shutdown(socket.SHUT_WR)
        return {"first": first.decode(), "sent": int(size)}


def poke(host: str, port: int, _: str) -> dict[str, Any]:
    """Connect, send a byte, and return how the connection ends."""
    try:
        with connected(host, port) as sock:
            sock.sendall(b"x")
            data = sock.recv(1)
            return {"end": "eof" if not data else "data"}
    except OSError as error:
        return {"end": errno.errorcode.get(error.errno or 0, str(error))}


def reconnect(host: str, port: int, _: str) -> dict[str, Any]:
    """Run `poke` repeatedly until stdin closes; count the results."""
    ends: dict[str, int] = {}
    print("started", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        end = poke(host, port, "")["end"]
        ends[end] = ends.get(end, 0) + 1
    return ends


def abort(host: str, port: int, _: str) -> dict[str, Any]:
    """Connect, receive an echo, and reset the connection."""
    with connected(host, port) as sock:
        sock.sendall(b"x")
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return {"end": "reset"}


def repeat(host: str, port: int, seconds: str) -> dict[str, Any]:
    """Open connections one after the other; count successes and errors."""
    good, bad, deadline = 0, [], time.monotonic() + float(seconds)
    while time.monotonic() < deadline:
        try:
            if echo(host, port, "ping")["said"] != "ping":
                bad.append("short")
            good += 1
        except OSError as error:
            bad.append(str(error))
            time.sleep(0.01)
    return {"good": good, "bad": bad[:20], "failed": len(bad)}


def hold(host: str, port: int, _: str) -> dict[str, Any]:
    """Keep one connection open and echo each line of stdin over it until stdin closes."""
    with connected(host, port) as sock:
        print("connected", flush=True)
        for line in sys.stdin:
            sock.sendall(line.encode())
            got = b""
            while not got.endswith(b"\n"):
                data = sock.recv(4096)
                if not data:
                    return {"end": "eof"}
                got += data
            print(got.decode().strip(), flush=True)
    return {"end": "closed"}


def main() -> None:
    what, host, port, *rest = sys.argv[1:]
    action = {
        each.__name__.replace("_", "-"): each
        for each in (
            names,
            echo,
            talk,
            upload,
            download,
            fin_first,
            poke,
            reconnect,
            abort,
            repeat,
            hold,
        )
    }[what]
    print(json.dumps(action(host, int(port), rest[0] if rest else "")))


if __name__ == "__main__":
    main()
