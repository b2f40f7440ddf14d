# SPDX-License-Identifier: Apache-2.0
"""Client and waypoint are pods of one worker: connections are handed over without a tunnel."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import pytest

from tests.support.certificates import Authority
from tests.support.waiting import wait_until
from tests.unit.proxy.handlers.test_policy import RESETS, Rules, deny, end_of
from tests.unit.proxy.handlers.test_waypoint import (
    HOST,
    SHOP,
    VIP,
    WAYPOINT,
    gateway_service,
    tlvs,
)
from tests.unit.proxy.harness import App, Node, closing_all, fresh_ip, listen, workload
from ztunnel.ipc.messages import ListenerKind, MeshDelta, PodRemoved
from ztunnel.mesh.headers.proxy_protocol import ProxyHeader, parse_proxy_header
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.proxy.conntrack.record import Stats
from ztunnel.telemetry.access_log_parser import parse


@dataclass
class World:
    """A node with the pods `a`, the client, and `b`, the waypoint, whose Envoy is `envoy`."""

    node: Node
    waypoint: Workload
    envoy: App
    authority: Authority

    def start(self) -> None:
        self.node.start(self.authority.issue(self.node.me.identity))
        self.add_waypoint()

    def add_waypoint(self) -> None:
        agent = self.node.agent
        agent.send(self.authority.issue(self.waypoint.identity))
        door = listen(self.waypoint.addresses[0], 15008)
        agent.pod_added(self.waypoint, {ListenerKind.HBONE4: door})
        door.close()
        wait_until(lambda: self.waypoint.pod_uid in agent.ready, "the waypoint is ready")

    def accept(self) -> tuple[ProxyHeader, socket.socket]:
        sock = self.envoy.accept()
        data = b""
        while (parsed := parse_proxy_header(data)) is None:
            data += sock.recv(1 if len(data) >= 16 else 16 - len(data))
        return parsed, sock

    @property
    def tunnels(self) -> int:
        """How many tunnels the worker has opened to the waypoint."""
        return len(self.node.context.pool.open)

    @property
    def stats(self) -> Stats:
        return self.node.context.tracker.stats

    def lines(self, capfd: pytest.CaptureFixture[str], count: int) -> list[dict[str, str]]:
        """The access log, once it has so many lines."""
        found: list[dict[str, str]] = []

        def complete() -> bool:
            lines = [parse(line) for line in capfd.readouterr().err.splitlines()]
            found.extend(line for line in lines if line.get("direction"))
            return len(found) >= count

        wait_until(complete, lambda: str(found))
        return found


@pytest.fixture
def fresh_world(authority: Authority) -> Iterator[World]:
    """The node is not started."""
    client = msgspec.structs.replace(
        workload("a", fresh_ip()),
        labels={"app": "storefront", "version": "v7"},
        owner_kind="deployment",
        owner_name="storefront-deploy",
    )
    waypoint = msgspec.structs.replace(workload("b", fresh_ip()), gateway=WAYPOINT)
    node = Node("a", [client, waypoint])
    node.same_node_direct = True
    node.target = SocketAddress(VIP, 80)
    node.services = (SHOP, gateway_service(waypoint.addresses[0], waypoint.uid))
    world = World(node, waypoint, App(waypoint.addresses[0]), authority)
    node.context.envoy = world.envoy.address
    with closing_all(node, world.envoy):
        yield world


@pytest.fixture
def world(fresh_world: World) -> World:
    fresh_world.start()
    return fresh_world


def exchange(client: socket.socket, server: socket.socket) -> None:
    client.sendall(b"question")
    assert server.recv(100) == b"question"
    server.sendall(b"the answer")
    assert client.recv(100) == b"the answer"


def test_envoy_gets_the_verified_client_without_a_tunnel(world: World) -> None:
    with world.node.dial() as client:
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        header, server = world.accept()
        with server:
            assert header.source == SocketAddress(world.node.ip, client.getsockname()[1])
            assert header.destination == SocketAddress(VIP, 80)
            assert header.tlvs == tlvs("a", world.node.me.identity)
            assert server.recv(100) == b"GET / HTTP/1.1\r\n\r\n"
            exchange(client, server)
    assert world.tunnels == 0
    assert world.node.client_addresses == []  # Envoy learns the client from the header only


def test_server_may_speak_first(world: World) -> None:
    with world.node.dial() as client:
        _, server = world.accept()
        with server:
            server.sendall(b"220 ready")
            assert client.recv(100) == b"220 ready"


@pytest.mark.parametrize("is_direct", [True, False])
def test_both_modes_log_and_count_the_same(
    fresh_world: World, capfd: pytest.CaptureFixture[str], is_direct: bool
) -> None:
    world = fresh_world
    world.node.same_node_direct = is_direct
    world.start()
    with world.node.dial() as client:
        _, server = world.accept()
        with server:
            exchange(client, server)
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
        assert client.recv(1) == b""
    assert world.tunnels == (0 if is_direct else 1)
    source, destination = world.node.me.identity, world.waypoint.identity
    lines = {line["direction"]: line for line in world.lines(capfd, 2)}
    for line in lines.values():
        assert line["src.identity"] == source
        assert line["src.workload"] == "a"
        assert line["dst.identity"] == destination
        assert line["dst.workload"] == "b"
        assert line["dst.service"] == HOST
        assert "error" not in line
    tunnel = f"{world.waypoint.addresses[0]}:15008"
    outbound, inbound = lines["outbound"], lines["inbound"]
    assert (outbound["bytes_sent"], outbound["bytes_recv"]) == ("8", "10")
    assert (inbound["bytes_sent"], inbound["bytes_recv"]) == ("10", "8")
    assert (outbound["dst.addr"], outbound["dst.hbone_addr"]) == (tunnel, f"{VIP}:80")
    assert (inbound["dst.addr"], inbound["dst.hbone_addr"]) == (f"{VIP}:80", tunnel)
    assert (world.stats.opened, world.stats.closed, world.stats.failed) == (2, 2, 0)
    assert len(world.node.context.admissions) == 0


def test_sockets_of_the_waypoint_pod_are_reused(world: World) -> None:
    for _ in range(50):
        with world.node.dial() as client:
            _, server = world.accept()
            with server:
                client.shutdown(socket.SHUT_WR)
                assert server.recv(1) == b""
            assert client.recv(1) == b""
    wait_until(lambda: not world.node.context.tracker.live())
    assert world.node.agent.sockets_sent < 50


def test_reset_by_envoy_resets_the_client(world: World) -> None:
    with world.node.dial() as client:
        _, server = world.accept()
        linger = b"\1\0\0\0\0\0\0\0"
        server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        server.close()
        assert end_of(client) in RESETS


# Policy


def end_of_dialed(world: World) -> str:
    """How a new connection ends. The reset may arrive during connect()."""
    try:
        with world.node.dial() as client:
            return end_of(client)
    except ConnectionResetError as error:
        return errno.errorcode[error.errno or 0]


def test_policy_of_the_waypoint_pod_denies(world: World, capfd: pytest.CaptureFixture[str]) -> None:
    rules = Rules(world.node)
    rules.send(deny(principals=["cluster.local/ns/test/sa/a"]))
    rules.settle()
    assert end_of_dialed(world) in RESETS
    lines = {line["direction"]: line for line in world.lines(capfd, 2)}
    assert lines["inbound"]["policy"] == "AuthorizationPolicy test/p"
    assert lines["inbound"]["response_flags"] == "DENY"
    assert lines["outbound"]["error"] == "the destination's proxy answered 401"
    assert world.stats.denied == 1  # it is not tried again
    world.envoy.listener.settimeout(0.1)
    with pytest.raises(TimeoutError):
        world.envoy.accept()


def test_policy_change_terminates_the_connection(
    world: World, capfd: pytest.CaptureFixture[str]
) -> None:
    with world.node.dial() as client:
        _, server = world.accept()
        with server:
            exchange(client, server)
            rules = Rules(world.node)
            rules.send(deny(namespaces=["elsewhere"]))
            rules.settle()
            exchange(client, server)
            rules.send(deny(principals=["cluster.local/ns/test/sa/a"]))
            assert end_of(client) in RESETS
            assert end_of(server) in RESETS
    lines = {line["direction"]: line for line in world.lines(capfd, 2)}
    assert lines["inbound"]["policy"] == "AuthorizationPolicy test/p"
    assert lines["inbound"]["bytes_recv"] == "16"
    assert "error" in lines["outbound"]
    assert len(world.node.context.admissions) == 0


def test_authority_that_the_waypoint_does_not_serve_is_refused(world: World) -> None:
    """The node decides as for a CONNECT of a peer: here the pod runs another Gateway meanwhile."""
    other = msgspec.structs.replace(world.waypoint, gateway="test/other")
    world.node.agent.send(MeshDelta(revision=2, workloads=(other,)))
    assert end_of_dialed(world) in RESETS
    assert world.stats.refused > 1  # it was tried again: nodes learn of a change at different times


# Conditions that are not met: a tunnel


def tunnelled(world: World) -> bool:
    with world.node.dial() as client:
        _, server = world.accept()
        with server:
            exchange(client, server)
            return world.tunnels == 1


def test_pod_with_another_identity_than_the_mesh_knows_gets_no_byte(fresh_world: World) -> None:
    world = fresh_world
    impostor = msgspec.structs.replace(world.waypoint, service_account="impostor")
    world.node.start(world.authority.issue(world.node.me.identity))
    world.waypoint = impostor
    world.add_waypoint()
    assert end_of_dialed(world) in RESETS
    assert world.stats.opened == 1


def test_pod_of_another_node_needs_a_tunnel(world: World) -> None:
    moved = msgspec.structs.replace(world.waypoint, pod_uid="uid-elsewhere")
    world.node.agent.send(MeshDelta(revision=2, workloads=(moved,)))
    assert tunnelled(world)


@pytest.mark.parametrize("kind", ["expired", "foreign root", "another identity"])
def test_certificates_that_tls_rejects_get_no_byte(fresh_world: World, kind: str) -> None:
    """Without mutual trust a tunnel is tried, whose handshake fails."""
    world = fresh_world
    world.node.start(world.authority.issue(world.node.me.identity))
    identity = world.waypoint.identity
    bad = world.authority.issue(identity, expired=kind == "expired")
    if kind == "foreign root":
        bad = Authority().issue(identity)
    elif kind == "another identity":
        other = world.authority.issue("spiffe://cluster.local/ns/test/sa/c")
        bad = msgspec.structs.replace(other, identity=identity)
    door = listen(world.waypoint.addresses[0], 15008)
    world.node.agent.send(bad)
    world.node.agent.pod_added(world.waypoint, {ListenerKind.HBONE4: door})
    door.close()
    wait_until(lambda: world.waypoint.pod_uid in world.node.agent.ready)
    assert end_of_dialed(world) in RESETS
    world.envoy.listener.settimeout(0.1)
    with pytest.raises(TimeoutError):
        world.envoy.accept()


# Changes of pods and certificates


@pytest.mark.parametrize("side", ["client", "waypoint"])
def test_removed_root_terminates_the_connection(world: World, side: str) -> None:
    identity = world.node.me.identity if side == "client" else world.waypoint.identity
    with world.node.dial() as client:
        _, server = world.accept()
        with server:
            exchange(client, server)
            world.node.agent.send(world.authority.issue(identity))  # a renewal alone
            world.node.query("stats")
            exchange(client, server)
            world.node.agent.send(Authority().issue(identity))  # of another root
            assert end_of(client) in RESETS
            assert end_of(server) in RESETS


@pytest.mark.parametrize("gone", [True, False])
def test_removed_waypoint_pod(world: World, gone: bool) -> None:
    """A pod that is gone ends its connections; one that left the mesh keeps them."""
    with world.node.dial() as client:
        _, server = world.accept()
        with server:
            exchange(client, server)
            world.node.agent.send(PodRemoved(world.waypoint.pod_uid, gone=gone))
            world.node.query("stats")
            if gone:
                assert end_of(client) in RESETS
                assert end_of(server) in RESETS
            else:
                exchange(client, server)


def test_drain_lets_connections_finish(world: World) -> None:
    with world.node.dial() as client:
        _, server = world.accept()
        with server:
            world.node.in_loop(lambda: world.node.worker.drain(5.0))
            exchange(client, server)
            client.shutdown(socket.SHUT_WR)
            assert server.recv(1) == b""
        assert client.recv(1) == b""


def test_client_tries_again_while_envoy_does_not_accept(world: World) -> None:
    address = world.envoy.address
    world.envoy.close()
    client = world.node.dial()
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    wait_until(lambda: world.stats.failed > 0, "a first attempt")
    world.envoy.listener = listen(address.ip, address.port)
    world.envoy.listener.setblocking(True)
    world.envoy.listener.settimeout(10)
    _, server = world.accept()
    with server, client:
        assert server.recv(100) == b"GET / HTTP/1.1\r\n\r\n"
        exchange(client, server)


def test_connection_is_tried_again_with_another_transport(world: World) -> None:
    """The bytes that a rejected tunnel carried follow the PROXY header of the next attempt."""
    moved = msgspec.structs.replace(world.waypoint, pod_uid="uid-elsewhere")
    world.node.agent.send(MeshDelta(revision=2, workloads=(moved,)))
    world.node.query("stats")
    address = world.envoy.address
    world.envoy.close()
    client = world.node.dial()
    client.sendall(b"once")
    wait_until(lambda: world.stats.failed > 0, "an attempt by a tunnel")
    world.node.agent.send(MeshDelta(revision=3, workloads=(world.waypoint,)))
    world.node.query("stats")
    world.envoy.listener = listen(address.ip, address.port)
    world.envoy.listener.setblocking(True)
    world.envoy.listener.settimeout(10)
    _, server = world.accept()
    with server, client:
        assert server.recv(100) == b"once"
        exchange(client, server)


@pytest.mark.parametrize("speaks_first", [True, False])
def test_new_destination_waits_for_envoy(world: World, speaks_first: bool) -> None:
    vip = "10.96.7.79"
    new = msgspec.structs.replace(SHOP, name="new", hostname="new.test.svc", vips=(vip,))
    world.node.agent.send(MeshDelta(revision=2, services=(new,)))
    world.node.query("stats")
    world.node.target = SocketAddress(vip, 80)
    with world.node.dial() as client:
        client.sendall(b"once")
        _, server = world.accept()
        server.close()  # Envoy has no configuration for it yet
        _, server = world.accept()
        with server:
            if speaks_first:
                server.sendall(b"220 ready")
                assert client.recv(100) == b"220 ready"
            assert server.recv(100) == b"once"
            exchange(client, server)


def test_client_that_gives_up_leaves_nothing(world: World) -> None:
    """The application closes while the waypoint's Envoy does not answer."""
    full = listen(world.waypoint.addresses[0], 0, backlog=0)
    fillers = [socket.socket() for _ in range(3)]
    for filler in fillers:
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
    world.node.context.envoy = SocketAddress(*full.getsockname())
    client = world.node.dial()
    tracker = world.node.context.tracker
    wait_until(lambda: len(tracker.live()) == 2, "both halves wait")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    wait_until(lambda: not tracker.live(), "both halves end")
    assert len(world.node.context.admissions) == 0
    assert not world.node.worker.pods[world.waypoint.pod_uid].live
    for sock in (full, *fillers):
        sock.close()
