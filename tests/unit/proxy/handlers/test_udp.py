# SPDX-License-Identifier: Apache-2.0
"""UDP between two workers: real sockets, TLS and HTTP/2; the harness emulates token addresses."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from tests.support.waiting import wait_until
from tests.unit.proxy.conftest import Pair
from tests.unit.proxy.handlers.test_policy import Rules, deny
from tests.unit.proxy.harness import Node
from ztunnel.hbone.constants import POOL_STREAMS
from ztunnel.ipc.messages import ConnectUdpUnsupported, MeshDelta, PodRemoved
from ztunnel.mesh.model import SocketAddress, TunnelProtocol
from ztunnel.proxy.conntrack import udp_flow_table as flows_module
from ztunnel.proxy.handlers.udp import PodUdp
from ztunnel.proxy.tunnel.pool import DialContext, TunnelCallback
from ztunnel.proxy.tunnel.pool_key import PoolKey
from ztunnel.proxy.tunnel.tunnel import Tunnel
from ztunnel.telemetry.udp_drop_counters import UdpDropCounters, UdpDropReason


@pytest.fixture
def ready(pair: Pair) -> Pair:
    for node in (pair.a, pair.b):
        pod = node.worker.pods[node.me.pod_uid]
        wait_until(lambda pod=pod: pod.udp, "UDP socket")  # type: ignore[misc]
    return pair


def udp(node: Node) -> PodUdp:
    found = node.worker.pods[node.me.pod_uid].udp
    assert isinstance(found, PodUdp)
    return found


@contextmanager
def app(node: Node) -> Iterator[tuple[socket.socket, SocketAddress]]:
    with node.udp_app() as sock:
        yield sock, SocketAddress(*sock.getsockname())


def source_of(node: Node, address: tuple[str, int]) -> SocketAddress:
    """The source address that recvmsg returns to an app, by its token."""
    return node.tokens[address[0]]


def test_datagrams_carry_original_addresses_in_both_directions(ready: Pair) -> None:
    a, b = ready.a, ready.b
    with app(a) as (client, here), app(b) as (server, there):
        for size in (0, 1, 1472, 9000, 65_507):
            payload = bytes(n & 0xFF for n in range(size))
            client.sendto(payload, a.udp_to(there))
            data, source = server.recvfrom(65_536)
            assert data == payload
            assert source_of(b, source) == here
            server.sendto(payload, source)
            data, source = client.recvfrom(65_536)
            assert data == payload
            assert source_of(a, source) == there
    assert len(udp(a).flows) == len(udp(b).flows) == 1
    assert len(a.context.pool.open) == 1


def test_one_socket_exchanges_datagrams_with_several_servers(ready: Pair) -> None:
    a, b = ready.a, ready.b
    with app(a) as (client, _), app(b) as (one, first), app(b) as (two, second):
        client.sendto(b"to one", a.udp_to(first))
        client.sendto(b"to two", a.udp_to(second))
        assert one.recv(100) == b"to one"
        assert two.recv(100) == b"to two"
    assert len(udp(a).flows) == 2
    assert len(a.context.pool.open) == 1  # both on one mTLS connection


def test_server_replies_late_unprompted_and_from_loopback(ready: Pair) -> None:
    """A connected socket of a server appears at loopback: replies must use that address."""
    a, b = ready.a, ready.b
    with app(a) as (client, _), app(b) as (server, there):
        client.sendto(b"question", a.udp_to(there))
        _, source = server.recvfrom(100)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as connected:
            connected.settimeout(10)
            connected.bind(("127.0.0.1", there.port))
            connected.sendto(b"answer", source)
            assert client.recv(100) == b"answer"
            client.sendto(b"more", a.udp_to(there))
            assert connected.recv(100) == b"more"


def test_flows_of_different_clients_are_separate(ready: Pair) -> None:
    a, b = ready.a, ready.b
    with app(a) as (one, first), app(a) as (two, second), app(b) as (server, there):
        one.sendto(b"one", a.udp_to(there))
        two.sendto(b"two", a.udp_to(there))
        received = dict(server.recvfrom(100) for _ in range(2))
        assert {data: source_of(b, source) for data, source in received.items()} == {
            b"one": first,
            b"two": second,
        }
        for data, source in received.items():
            server.sendto(b"for " + data, source)
        assert one.recv(100) == b"for one"
        assert two.recv(100) == b"for two"


def test_flows_beyond_the_stream_limit_use_another_tunnel(ready: Pair) -> None:
    a, b = ready.a, ready.b
    with app(b) as (server, there):
        clients = [a.udp_app() for _ in range(POOL_STREAMS + 20)]
        try:
            for number, client in enumerate(clients):
                client.sendto(b"%d" % number, a.udp_to(there))
                assert server.recv(100) == b"%d" % number
            assert len(a.context.pool.open) == 2
        finally:
            for client in clients:
                client.close()


def reported_drops(node: Node) -> dict[UdpDropReason, int]:
    """The drops in all counter reports of the node's worker."""
    node.query("stats")  # it reports before it replies
    total = UdpDropCounters()
    reports = {report.seq: report for report in node.agent.reports}
    for report in reports.values():
        if report.udp_drops is not None:
            total.add(report.udp_drops)
    return total.by_reason


def test_full_flow_table_drops_and_counts_until_a_flow_is_idle(
    ready: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = ready.a, ready.b
    udp(a).flows._limit = 2
    with app(b) as (server, there), app(a) as (one, _), app(a) as (two, _), app(a) as (three, _):
        for client in (one, two):
            client.sendto(b"in", a.udp_to(there))
            assert server.recv(100) == b"in"
        three.sendto(b"no room", a.udp_to(there))
        wait_until(lambda: a.context.tracker.stats.udp_refused == 1, "refusal")
        assert a.context.tracker.stats.udp_dropped == 1
        assert reported_drops(a) == {"buffer_full": 1, "flow_limit": 1}
        monkeypatch.setattr(flows_module, "IN_USE_S", 0.0)
        three.sendto(b"now", a.udp_to(there))
        assert server.recv(100) == b"now"
        assert len(udp(a).flows) == 2


def test_idle_flows_expire_on_both_sides(ready: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = ready.a, ready.b
    with app(a) as (client, _), app(b) as (server, there):
        client.sendto(b"x", a.udp_to(there))
        assert server.recv(100) == b"x"
        monkeypatch.setattr(flows_module, "ONE_WAY_IDLE_TIMEOUT_S", 0.0)
        wait_until(lambda: not len(udp(a).flows) and not len(udp(b).flows), "flows to end")
        monkeypatch.undo()
        assert not a.context.tracker.live()
        assert not b.context.tracker.live()
        client.sendto(b"again", a.udp_to(there))
        assert server.recv(100) == b"again"


def test_datagrams_to_unknown_destinations_are_dropped(ready: Pair) -> None:
    a = ready.a
    with app(a) as (client, _):
        client.sendto(b"x", a.udp_to(SocketAddress("192.0.2.9", 9)))
        wait_until(lambda: a.context.tracker.stats.refused == 1, "refusal")
        client.sendto(b"y", a.udp_to(SocketAddress("192.0.2.9", 9)))
        wait_until(lambda: a.context.tracker.stats.udp_dropped == 2, "drop")
        assert a.context.tracker.stats.refused == 1  # not routed or logged again for each datagram
    assert len(udp(a).flows) == 0


def test_proxy_without_connect_udp_is_reported_to_the_agent(
    ready: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = ready.a, ready.b
    pool = a.context.pool

    class Silent:
        """The pool, with tunnels whose peers do not announce connect-udp."""

        def __getattr__(self, name: str) -> object:
            return getattr(pool, name)

        def acquire(
            self, key: PoolKey, source: DialContext, taker: TunnelCallback, *, settled: bool = False
        ) -> None:
            def established(tunnel: Tunnel | None, reason: str) -> None:
                assert tunnel is not None
                tunnel.connection._peer.extended_connect = False
                taker(tunnel, reason)

            pool.acquire(key, source, established, settled=settled)

    monkeypatch.setattr(a.context, "pool", Silent())
    with app(a) as (client, here), app(b) as (_, there):
        client.sendto(b"x", a.udp_to(there))
        wait_until(lambda: a.agent.connect_udp_unsupported, "the report to the agent")
        assert a.agent.connect_udp_unsupported == [
            ConnectUdpUnsupported(b.me.uid, a.me.pod_uid, here, there, (b"x",))
        ]
    wait_until(lambda: not len(udp(a).flows), "the flow to end")


def test_flows_move_to_a_new_tunnel_when_theirs_drains(ready: Pair) -> None:
    a, b = ready.a, ready.b
    with app(a) as (client, here), app(b) as (server, there):
        client.sendto(b"one", a.udp_to(there))
        _, source = server.recvfrom(100)
        a.agent.send(ready.authority.issue(a.me.identity))  # renewed: older tunnels drain
        wait_until(lambda: not a.context.pool.tunnels(), "the tunnel to drain")
        client.sendto(b"two", a.udp_to(there))
        data, source = server.recvfrom(100)
        assert (data, source_of(b, source)) == (b"two", here)
        server.sendto(b"answer", source)
        assert client.recv(100) == b"answer"
        wait_until(lambda: len(a.context.pool.open) == 1, "the old tunnel to end")


def test_lost_tunnel_is_established_again_by_either_side(ready: Pair) -> None:
    a, b = ready.a, ready.b
    with app(a) as (client, _), app(b) as (server, there):
        client.sendto(b"one", a.udp_to(there))
        _, source = server.recvfrom(100)
        tunnel = next(iter(a.context.pool.open))
        a.in_loop(lambda: tunnel.close("cut"))
        wait_until(lambda: not len(udp(b).flows), "the remote side to notice")
        server.sendto(b"late answer", (source[0], b.agent.udp_ports[-1]))
        data, source = client.recvfrom(100)
        assert (data, source_of(a, source)) == (b"late answer", there)


def test_destination_removed_from_the_mesh_gets_no_datagrams(ready: Pair) -> None:
    a, b = ready.a, ready.b
    with app(a) as (client, _), app(b) as (server, there):
        client.sendto(b"one", a.udp_to(there))
        assert server.recv(100) == b"one"
        plain = msgspec.structs.replace(b.me, protocol=TunnelProtocol.NONE, pod_uid="another")
        a.agent.send(MeshDelta(revision=2, workloads=(plain,)))
        wait_until(lambda: not a.context.pool.tunnels(), "the tunnel to drain")
        client.sendto(b"two", a.udp_to(there))
        wait_until(lambda: a.context.tracker.stats.refused == 1, "refusal")


def test_removed_pod_closes_its_udp_socket(ready: Pair) -> None:
    a, b = ready.a, ready.b
    with app(a) as (client, _), app(b) as (server, there):
        client.sendto(b"one", a.udp_to(there))
        assert server.recv(100) == b"one"
        held = udp(a)
        a.agent.send(PodRemoved(a.me.pod_uid, gone=True))
        wait_until(lambda: held.codecs[4].sock.fileno() < 0, "the socket to close")
        wait_until(lambda: not len(udp(b).flows), "the remote side to notice")


def test_stalled_peer_drops_datagrams_instead_of_buffering(
    ready: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remote side does not read: excess datagrams are dropped, later ones are delivered."""
    a, b = ready.a, ready.b
    with app(a) as (client, _), app(b) as (server, there):
        client.sendto(b"open", a.udp_to(there))
        assert server.recv(100) == b"open"
        monkeypatch.setattr(Tunnel, "claim", lambda *_: None)  # as if the tunnel were blocked
        before = a.context.tracker.stats.udp_dropped
        for _ in range(50):
            client.sendto(bytes(1000), a.udp_to(there))
        wait_until(lambda: a.context.tracker.stats.udp_dropped == before + 50, "drops")
        assert reported_drops(a) == {"buffer_full": before + 50, "flow_limit": 0}
        monkeypatch.undo()
        client.sendto(b"after", a.udp_to(there))
        assert server.recv(2000) == b"after"


def test_policy_applies_to_new_and_live_flows(ready: Pair) -> None:
    a, b = ready.a, ready.b
    rules = Rules(b)
    with app(a) as (client, _), app(a) as (other, _), app(b) as (server, there):
        client.sendto(b"before", a.udp_to(there))
        assert server.recv(100) == b"before"
        rules.send(deny(principals=[a.me.identity.removeprefix("spiffe://")]))
        wait_until(lambda: not len(udp(b).flows), "the flow's end")
        other.sendto(b"denied", a.udp_to(there))
        wait_until(lambda: b.context.tracker.stats.denied == 2, "the denial")
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.recv(100)
