# SPDX-License-Identifier: Apache-2.0
"""The streams of a tunnel that wait to send."""

from __future__ import annotations

from collections import deque

from ztunnel.proxy.tunnel.interfaces import TunnelStream


class SendQueue:
    """Two reasons to wait: the tunnel is blocked (served in turn), or there is no send window."""

    __slots__ = ("_blocked", "_no_window", "_order")

    def __init__(self) -> None:
        self._order: deque[TunnelStream] = deque()  # may name streams that were removed
        self._blocked: set[TunnelStream] = set()  # those of `_order` that still wait
        self._no_window: dict[int, TunnelStream] = {}

    def __len__(self) -> int:
        """How often `pop_blocked` may be called."""
        return len(self._order)

    def add_blocked(self, stream: TunnelStream) -> None:
        """Wait for the socket; once per stream."""
        if stream not in self._blocked:
            self._blocked.add(stream)
            self._order.append(stream)

    def add_no_window(self, stream: TunnelStream) -> None:
        """Wait for WINDOW_UPDATE."""
        self._no_window[stream.stream_id] = stream

    def pop_blocked(self) -> TunnelStream | None:
        """The stream that has waited longest for the socket; None if it was removed meanwhile."""
        stream = self._order.popleft()
        if stream not in self._blocked:
            return None
        self._blocked.discard(stream)
        return stream

    def pop_no_window(self, stream_id: int) -> list[TunnelStream]:
        """The streams that a wider window unblocks; id 0 means the connection's window."""
        if stream_id:
            stream = self._no_window.pop(stream_id, None)
            return [] if stream is None else [stream]
        streams = list(self._no_window.values())
        self._no_window.clear()
        return streams

    def remove(self, stream_id: int, stream: TunnelStream | None) -> None:
        """The stream ended. `stream` is None if no object was attached to the id."""
        self._no_window.pop(stream_id, None)
        if stream is not None:
            self._blocked.discard(stream)
