# SPDX-License-Identifier: Apache-2.0
"""When a tunnel sends PING, and when its peer counts as dead."""

from __future__ import annotations

from ztunnel.proxy.tunnel.keepalive import (
    IDLE_PROGRESS_TIMEOUT_S,
    PING_INTERVAL_S,
    PING_TIMEOUT_S,
    Keepalive,
)

OPENED = 1000.0  # monotonic seconds
TIMEOUT = PING_INTERVAL_S + PING_TIMEOUT_S


def active(*, is_server: bool) -> Keepalive:
    """The keepalive of a peer that has completed a frame one second after the tunnel opened."""
    keepalive = Keepalive(OPENED, is_server=is_server)
    keepalive.last_read_at = keepalive.last_event_at = OPENED + 1
    return keepalive


def test_ping_is_due_once_per_period_without_input() -> None:
    keepalive = active(is_server=False)
    silent_since = keepalive.last_read_at
    assert not keepalive.ping_due(silent_since + PING_INTERVAL_S - 0.1)
    assert keepalive.ping_due(silent_since + PING_INTERVAL_S)
    assert not keepalive.ping_due(silent_since + 2 * PING_INTERVAL_S)
    keepalive.last_read_at = silent_since + 2 * PING_INTERVAL_S
    assert not keepalive.ping_due(silent_since + 2.5 * PING_INTERVAL_S)
    assert keepalive.ping_due(silent_since + 3 * PING_INTERVAL_S)


def test_peer_without_input_times_out() -> None:
    keepalive = active(is_server=False)
    silent_since = keepalive.last_read_at
    assert keepalive.timeout(silent_since + TIMEOUT - 0.1, is_idle=True) == ""
    assert keepalive.timeout(silent_since + TIMEOUT, is_idle=False) == "no answer to PING"


def test_server_closes_an_idle_peer_that_never_completes_a_frame() -> None:
    keepalive = Keepalive(OPENED, is_server=True)
    now = OPENED + PING_INTERVAL_S
    keepalive.last_read_at = now - 0.1
    assert keepalive.timeout(now - 0.1, is_idle=True) == ""
    assert keepalive.timeout(now, is_idle=True) == "no complete frame"


def test_server_closes_an_idle_peer_that_stops_completing_frames() -> None:
    keepalive = active(is_server=True)
    keepalive.last_read_at = keepalive.last_event_at + IDLE_PROGRESS_TIMEOUT_S
    assert keepalive.timeout(keepalive.last_read_at, is_idle=True) == ""
    keepalive.last_read_at += 0.1
    assert keepalive.timeout(keepalive.last_read_at, is_idle=True) == "no complete frame"


def test_slow_frames_are_allowed_with_open_streams_and_for_clients() -> None:
    for is_server, is_idle in ((True, False), (False, True)):
        keepalive = active(is_server=is_server)
        keepalive.last_read_at = keepalive.last_event_at + IDLE_PROGRESS_TIMEOUT_S + 1
        assert keepalive.timeout(keepalive.last_read_at, is_idle=is_idle) == ""
