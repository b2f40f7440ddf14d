# SPDX-License-Identifier: Apache-2.0
"""A client that opens connections to a port and sends nothing."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass
class SilentConnections:
    """What `silent_connections` has opened so far."""

    opened: list[socket.socket] = field(default_factory=list)


@contextlib.contextmanager
def silent_connections(
    port: int, sources: list[str], per_second: int
) -> Iterator[SilentConnections]:
    """Open connections from `sources`, in turn, in a thread, while the context is entered."""
    made, stop = SilentConnections(), threading.Event()

    def run() -> None:
        started_at, number = time.monotonic(), 0
        while not stop.is_set():
            for _ in range(int((time.monotonic() - started_at) * per_second) - number):
                source = (sources[number % len(sources)], 0)
                number += 1
                with contextlib.suppress(OSError):
                    made.opened.append(socket.create_connection(("127.0.0.1", port), 1, source))
                if len(made.opened) > 512:  # the server has closed the oldest long ago
                    made.opened.pop(0).close()
            time.sleep(0.005)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield made
    finally:
        stop.set()
        thread.join()
        for sock in made.opened:
            sock.close()
