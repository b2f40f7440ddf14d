# SPDX-License-Identifier: Apache-2.0
"""Session resumption and prewarming of tunnels."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from tests.support.waiting import wait_until
from tests.unit.proxy.conftest import Pair
from tests.unit.proxy.handlers.test_outbound import dial_is_reset, ping
from ztunnel.proxy.tls import credentials
from ztunnel.proxy.tunnel.pool import PREWARM_STREAMS
from ztunnel.proxy.tunnel.state import TunnelState
from ztunnel.proxy.tunnel.tunnel import Tunnel


def only_tunnel(pair: Pair) -> Tunnel:
    ((_, tunnel),) = pair.a.context.pool.tunnels()
    return tunnel


def lose_tunnel(pair: Pair) -> None:
    """Close the tunnel, as if the other node had restarted."""
    tunnel = only_tunnel(pair)
    pair.a.in_loop(lambda: tunnel.close("test"))


def is_resumed(pair: Pair) -> bool:
    return bool(only_tunnel(pair)._session.resumed)


def test_session_of_a_lost_tunnel_is_resumed_with_the_same_identity(pair: Pair) -> None:
    ping(pair)
    assert not is_resumed(pair)
    lose_tunnel(pair)
    ping(pair)
    assert is_resumed(pair)
    assert only_tunnel(pair).peer == pair.b.me.identity


def test_renewed_certificate_of_either_side_prevents_resumption(pair: Pair) -> None:
    ping(pair)
    old = pair.b.context.credentials[pair.b.me.identity]
    pair.b.agent.send(pair.authority.issue(pair.b.me.identity))
    wait_until(lambda: pair.b.context.credentials[pair.b.me.identity] is not old, "renewal")
    lose_tunnel(pair)
    ping(pair)
    assert not is_resumed(pair)
    pair.a.agent.send(pair.authority.issue(pair.a.me.identity))
    wait_until(lambda: not pair.a.context.pool.tunnels(), "the tunnel to drain")
    ping(pair)
    assert not is_resumed(pair)


def test_resumed_session_is_rejected_after_the_peers_certificate_expires(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    ping(pair)
    lose_tunnel(pair)
    two_days_on = SimpleNamespace(time=lambda: time.time() + 48 * 3600)
    monkeypatch.setattr(credentials, "time", two_days_on)
    dial_is_reset(pair)


def test_tunnel_is_not_joined_after_the_peers_certificate_expires(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ztunnel.proxy.tunnel.keepalive.PING_INTERVAL_S", 0.25)
    ping(pair)
    old = only_tunnel(pair)
    with monkeypatch.context() as later:
        later.setattr(credentials, "time", SimpleNamespace(time=lambda: time.time() + 48 * 3600))
        wait_until(lambda: old.state is TunnelState.CLOSED, "the tunnel to close")
    assert not old.connection.failed
    assert not old.connection.can_open_stream  # GOAWAY was sent or received
    ping(pair)
    assert only_tunnel(pair) is not old


def test_next_tunnel_is_established_before_the_last_is_full(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = PREWARM_STREAMS + 1
    monkeypatch.setattr("ztunnel.proxy.tunnel.pool.POOL_STREAMS", few)
    clients = [pair.a.dial()]
    servers = [pair.app.accept()]
    assert len(pair.a.context.pool.tunnels()) == 1
    clients.append(pair.a.dial())
    servers.append(pair.app.accept())
    wait_until(lambda: len(pair.a.context.pool.tunnels()) == 2, "the prewarmed tunnel")
    assert sorted(len(one.streams) for _, one in pair.a.context.pool.tunnels()) == [0, 2]
    for sock in [*clients, *servers]:
        sock.close()
