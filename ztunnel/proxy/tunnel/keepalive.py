# SPDX-License-Identifier: Apache-2.0
"""When a tunnel sends PING, and when its peer counts as dead.

No clock: the tunnel passes the time and stores when it last read. All times are monotonic seconds.
"""

from __future__ import annotations

PING_INTERVAL_S = 10.0  # istio ztunnel: keep_alive_interval
PING_TIMEOUT_S = 20.0  # istio ztunnel: keep_alive_timeout
PING_PAYLOAD = b"ztunnel\0"  # 8 octets, RFC 9113 6.7
# A server closes a connection without streams that sends octets but completes no frame for so long.
IDLE_PROGRESS_TIMEOUT_S = PING_INTERVAL_S + PING_TIMEOUT_S


class Keepalive:
    """The liveness of one peer."""

    __slots__ = ("_is_server", "_opened_at", "_pinged_at", "last_event_at", "last_read_at")

    def __init__(self, now: float, *, is_server: bool) -> None:
        """`is_server`: this side did not open the tunnel."""
        self.last_read_at = now  # octets arrived
        self.last_event_at = now  # octets completed a frame
        self._opened_at = now
        self._pinged_at = 0.0
        self._is_server = is_server

    def timeout(self, now: float, *, is_idle: bool) -> str:
        """Why the tunnel must be closed now; empty while the peer is alive.

        `is_idle`: the tunnel has no streams.
        """
        if now - self.last_read_at >= PING_INTERVAL_S + PING_TIMEOUT_S:
            return "no answer to PING"
        if self._is_server and is_idle and self._is_stalled(now):
            return "no complete frame"
        return ""

    def ping_due(self, now: float) -> bool:
        """Whether to send PING now. True once for each period without input."""
        if now - self.last_read_at < PING_INTERVAL_S or self._pinged_at > self.last_read_at:
            return False
        self._pinged_at = now
        return True

    def _is_stalled(self, now: float) -> bool:
        """The peer sends octets but no complete frame: it only occupies the connection."""
        return self.last_read_at - self.last_event_at > IDLE_PROGRESS_TIMEOUT_S or (
            self.last_event_at == self._opened_at and now - self._opened_at >= PING_INTERVAL_S
        )
