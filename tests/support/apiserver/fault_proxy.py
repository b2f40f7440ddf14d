# SPDX-License-Identifier: Apache-2.0
"""A TCP proxy in front of the API server that simulates network faults.

cut()      reset all connections; new ones are forwarded
freeze()   accept connections but forward no data, until `thaw`
refuse()   reset all connections, and new ones immediately, until `thaw`
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from types import TracebackType

_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() sends RST
_CHUNK = 1 << 16


class FaultProxy:
    """Forwards a new port on loopback to `target`. A `listener` may be passed that was created in
    another network namespace."""

    def __init__(self, target: int, listener: socket.socket | None = None) -> None:
        self._target = target
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._lock = threading.Lock()
        self._is_refusing = False
        self._carry = threading.Event()
        self._carry.set()
        self._ended = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def url(self) -> str:
        """The URL of the API server through the proxy."""
        return f"https://127.0.0.1:{self.port}"

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended = True
        self._carry.set()
        self._thread.join(10)
        self.cut()
        self._listener.close()
        self._selector.close()

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            for sock in list(self._peers):
                self._drop(sock)

    def freeze(self) -> None:
        """Forward no data; keep connections open."""
        self._carry.clear()

    def refuse(self) -> None:
        """Reset all connections, and new ones immediately."""
        self._is_refusing = True
        self.cut()

    def thaw(self) -> None:
        """Forward again."""
        self._is_refusing = False
        self._carry.set()

    def _run(self) -> None:
        while not self._ended:
            self._carry.wait()
            for key, _ in self._selector.select(0.02):
                if not self._carry.is_set():
                    break
                with self._lock:
                    self._serve(key.fileobj)  # type: ignore[arg-type]

    def _serve(self, sock: socket.socket) -> None:
        if sock is self._listener:
            self._accept()
        elif sock in self._peers:
            try:
                data = sock.recv(_CHUNK)
                if data:
                    self._peers[sock].sendall(data)
                    return
            except OSError:
                pass
            self._drop(sock)

    def _accept(self) -> None:
        inner, _ = self._listener.accept()
        try:
            if self._is_refusing:
                raise ConnectionRefusedError
            outer = socket.create_connection(("127.0.0.1", self._target), timeout=10)
        except OSError:
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            inner.close()
            return
        for one, other in ((inner, outer), (outer, inner)):
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _drop(self, sock: socket.socket) -> None:
        other = self._peers.get(sock)
        for one in (sock, other):
            if one is not None and self._peers.pop(one, None) is not None:
                with contextlib.suppress(KeyError, ValueError):
                    self._selector.unregister(one)
                with contextlib.suppress(OSError):
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                one.close()
