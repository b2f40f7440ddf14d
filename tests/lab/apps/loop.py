# SPDX-License-Identifier: Apache-2.0
"""Send requests, each on a new connection, until stdin ends.

usage: loop.py HOST PORT

Prints the number of requests after every tenth, so that a test can wait for progress, and at the
end a JSON object: the number of requests, and the error of each failed one.
"""

from __future__ import annotations

import json
import socket
import sys
import threading

TIMEOUT_S = 10  # seconds
EVERY = 10


def ask(host: str, port: int, text: str) -> str:
    """Return an empty string if the echo is right, else the error."""
    try:
        with socket.create_connection((host, port), timeout=TIMEOUT_S) as sock:
            sock.sendall(text.encode())
            said = b""
            while data := sock.recv(4096):
                said += data
                if len(said) >= len(text):
                    sock.shutdown(socket.SHUT_WR)  # FIN only after the answer: a sidecar may treat
                    # one that arrives with the first bytes as a closed client
    except OSError as error:
        return f"{text}: {type(error).__name__}: {error}"
    return "" if said.decode() == text else f"{text}: said {said!r}"


def main(host: str, port: int) -> None:
    stop, failures, count = threading.Event(), [], 0

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    while not stop.wait(0.01):
        count += 1
        failed = ask(host, port, f"request {count}")
        if failed:
            failures.append(failed)
        if count % EVERY == 0:
            print(count, flush=True)
    print(json.dumps({"requests": count, "failures": failures}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
