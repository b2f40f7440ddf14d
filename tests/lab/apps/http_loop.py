# SPDX-License-Identifier: Apache-2.0
"""Send HTTP requests at a steady rate, alternately on new and on kept connections.

usage: http_loop.py HOST PORT RATE

Until stdin ends. Prints the number of requests after every fiftieth, and at the end a JSON object:
the number of requests, the failures, and the longest response time in seconds.
"""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time

TIMEOUT_S = 10.0


class Client:
    """Counts requests and failures."""

    def __init__(self, host: str, port: int) -> None:
        self.requests, self.longest = 0, 0.0
        self.failures: list[str] = []
        self._kept = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        self._host, self._port = host, port

    def request(self) -> None:
        self.requests += 1
        began = time.monotonic()
        is_new = self.requests % 2 == 0
        connection = self._kept
        if is_new:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_S)
        try:
            self._exchange(connection)
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(f"{self.requests} {is_new}: {type(error).__name__}: {error}")
            connection.close()
        if is_new:
            connection.close()
        self.longest = max(self.longest, time.monotonic() - began)

    def _exchange(self, connection: http.client.HTTPConnection) -> None:
        connection.request("GET", "/")
        response = connection.getresponse()
        response.read()
        if response.status != 200:
            self.failures.append(f"{self.requests}: status {response.status}")


def main(host: str, port: int, rate: float) -> None:
    stop = threading.Event()

    def wait_for_end() -> None:
        sys.stdin.read()
        stop.set()

    threading.Thread(target=wait_for_end, daemon=True).start()
    client, due = Client(host, port), time.monotonic()
    while not stop.is_set():
        client.request()
        if client.requests % 50 == 0:
            print(client.requests, flush=True)
        due = max(due + 1 / rate, time.monotonic() - 1)
        time.sleep(max(0.0, due - time.monotonic()))
    report = {
        "requests": client.requests,
        "failures": client.failures,
        "longest": round(client.longest, 3),
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
