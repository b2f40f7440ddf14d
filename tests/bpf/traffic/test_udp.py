# SPDX-License-Identifier: Apache-2.0
"""Redirected UDP: datagrams reach a worker's socket with a token, and replies show the remote.

The test acts as the proxy: it reads the worker's sockets in the pod and looks up tokens.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address

import pytest

from tests.bpf.netns_fixture import PEER4, PEER6, POD4, POD6, BpfNode
from ztunnel.agent.traffic.gateway_ports import UDP_PORTS
from ztunnel.datapath import netns, sockopt
from ztunnel.datapath.bpf.layout import CloseReason, UdpRoute
from ztunnel.datapath.bpf.ring_buffer import EventReader
from ztunnel.datapath.gateway_port_map import GatewayPortMap, OpenPort
from ztunnel.datapath.sockopt import IP_PKTINFO
from ztunnel.datapath.udp_admission_maps import UdpAdmissionMaps
from ztunnel.datapath.udp_maps import UdpMaps, udp_sockets
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.tunnel.udp_token_address import CONTROL_SPACE, TokenCodec4, TokenCodec6

# Redirected destinations. No host has these addresses, so native datagrams cannot arrive.
AWAY = {4: "10.99.0.7", 6: "fd99::7"}
AWAY2 = {4: "10.99.0.8", 6: "fd99::8"}
POD = {4: POD4, 6: POD6}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ANY = {4: "0.0.0.0", 6: "::"}
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@dataclass(frozen=True)
class Read:
    """A datagram of an app, decoded by the proxy."""

    data: bytes
    token: bytes
    app: tuple[str, int]
    connected: bool


class Proxy:
    """The sockets of one worker in the pod."""

    def __init__(self, socks: list[socket.socket]) -> None:
        self.ways: dict[int, TokenCodec4 | TokenCodec6] = {
            4: TokenCodec4(socks[0], POD4),
            6: TokenCodec6(socks[1], POD6),
        }
        self.port: int = socks[0].getsockname()[1]

    def receive(self, family: int) -> Read:
        """The next datagram of an app."""
        way = self.ways[family]
        way.sock.settimeout(5)
        data, control, _, source = way.sock.recvmsg(65536, CONTROL_SPACE)
        read = way.read(control, source)
        assert read is not None, source
        return Read(data, *read)

    def remote(self, family: int, token: bytes) -> SocketAddress:
        return sockopt.udp_remote(self.ways[family].sock, socket.inet_ntoa(token))

    def destined(self, family: int) -> tuple[bytes, SocketAddress]:
        """The next datagram and where the app sent it."""
        read = self.receive(family)
        return read.data, self.remote(family, read.token)

    def token(self, family: int, remote: SocketAddress) -> bytes:
        return socket.inet_aton(sockopt.udp_token(self.ways[family].sock, remote))

    def send(
        self,
        family: int,
        data: bytes,
        token: bytes,
        app: tuple[str, int],
        *,
        connected: bool = False,
    ) -> None:
        """Deliver a datagram to the app from the remote that the token represents."""
        way = self.ways[family]
        way.sock.sendmsg([data], way.control(token, connected=connected), 0, app)

    def answer(self, family: int, data: bytes, asked: Read) -> None:
        self.send(family, data, asked.token, asked.app, connected=asked.connected)

    def close(self) -> None:
        for way in self.ways.values():
            way.sock.close()


def _proxy(node: BpfNode) -> Proxy:
    return Proxy(udp_sockets(node.pod, node.maps, ipv6=True))


@pytest.fixture
def maps(node: BpfNode) -> Iterator[UdpMaps]:
    made = UdpMaps(node.pin_dir)
    away = {*AWAY.values(), *AWAY2.values()}
    for address in away:
        made.set_route(SocketAddress(address, 0), UdpRoute.REDIRECT)
    assert made.routes() == {SocketAddress(ip, 0): UdpRoute.REDIRECT for ip in away}
    yield made
    made.remove(node.cookie)
    for to in made.routes():
        made.remove_route(to)
    made.close()


@pytest.fixture
def entry(node: BpfNode) -> Iterator[UdpAdmissionMaps]:
    made = UdpAdmissionMaps(node.pin_dir, node.maps)
    yield made
    made.begin_epoch([])
    made.close()


@FAMILIES
@pytest.mark.parametrize("connected", [False, True])
def test_refused_default_route_drops_udp_to_unknown_destinations(
    node: BpfNode, maps: UdpMaps, family: int, connected: bool
) -> None:
    """The map is full: any destination without a route might be a pod of the mesh."""
    peer, own = {4: PEER4, 6: PEER6}[family], {4: POD4, 6: POD6}[family]
    loopback = {4: "127.0.0.1", 6: "::1"}[family]
    assert maps.default_route() is None
    maps.set_default_route(UdpRoute.NATIVE)
    assert maps.default_route() is UdpRoute.NATIVE
    maps.set_route(SocketAddress(peer, 53), UdpRoute.NATIVE)

    def send(to: str, port: int) -> None:
        with _app(node, family) as app:
            if connected:
                app.connect((to, port))
                app.send(b"x")
            else:
                app.sendto(b"x", (to, port))

    send(peer, 9000)
    maps.set_default_route(UdpRoute.REFUSED)
    assert SocketAddress("::", 0) not in maps.routes()
    before = node.maps.stats()["udp_no_route"]
    with pytest.raises(ConnectionRefusedError):
        send(peer, 9000)
    assert node.maps.stats()["udp_no_route"] == before + 1
    for to, port in ((peer, 53), (own, 9000), (loopback, 9000)):
        send(to, port)
    assert node.maps.stats()["udp_no_route"] == before + 1
    proxy = _proxy(node)
    maps.set_worker_ports(node.cookie, [proxy.port])
    send(AWAY[family], 9000)  # has a route: redirected
    proxy.close()
    maps.set_default_route(UdpRoute.NATIVE)
    send(peer, 9000)
    maps.remove_route(SocketAddress("::", 0))


def test_default_route_can_be_changed_in_a_full_map(fresh_node: BpfNode) -> None:
    maps = UdpMaps(fresh_node.pin_dir)
    maps.set_default_route(UdpRoute.NATIVE)
    with pytest.raises(OSError, match="Argument list too long"):
        _fill(maps)
    maps.set_default_route(UdpRoute.REFUSED)
    assert maps.default_route() is UdpRoute.REFUSED
    with _app(fresh_node, 4) as app, pytest.raises(ConnectionRefusedError):
        app.sendto(b"x", (PEER4, 9000))
    maps.close()


def _fill(maps: UdpMaps) -> None:
    for number in range(1 << 20):
        ip = str(ip_address("10.200.0.0") + number)
        maps.set_route(SocketAddress(ip, 1), UdpRoute.REDIRECT)


@FAMILIES
def test_strict_route_refuses_plaintext_and_emits_an_event(
    node: BpfNode, maps: UdpMaps, family: int
) -> None:
    """Another port of the same address can be exempt."""
    peer = {4: PEER4, 6: PEER6}[family]
    maps.set_worker_ports(node.cookie, [])
    maps.set_route(SocketAddress(peer, 0), UdpRoute.STRICT)
    maps.set_route(SocketAddress(peer, 53), UdpRoute.NATIVE)
    before = maps.counters()[node.cookie].strict
    events = EventReader(node.pin_dir)
    try:
        with _app(node, family) as app:
            with pytest.raises(ConnectionRefusedError):
                app.sendto(b"x", (peer, 7))
            with pytest.raises(ConnectionRefusedError):
                app.connect((peer, 7))
            app.sendto(b"x", (peer, 53))
        reported = [one for one in events.drain(100) if one.close_reason is CloseReason.UDP_STRICT]
    finally:
        events.close()
    assert maps.counters()[node.cookie].strict == before + 2
    assert reported[0].source.ip == POD[family]
    assert reported[0].destination == SocketAddress(peer, 7)
    assert reported[0].netns_cookie == node.cookie


@pytest.fixture
def proxy(node: BpfNode, maps: UdpMaps) -> Iterator[Proxy]:
    made = _proxy(node)
    maps.set_worker_ports(node.cookie, [made.port])
    yield made
    made.close()


def _app(node: BpfNode, family: int = 4) -> socket.socket:
    return node.app_socket(AF[family], socket.SOCK_DGRAM)


@FAMILIES
def test_unconnected_socket_reaches_several_destinations(
    node: BpfNode, proxy: Proxy, family: int
) -> None:
    one, two = AWAY[family], AWAY2[family]
    with _app(node, family) as app:
        for ip, port in ((one, 54), (two, 54), (one, 99), (one, 54)):
            app.sendto(b"to %s" % ip.encode(), (ip, port))
            assert proxy.destined(family) == (b"to %s" % ip.encode(), SocketAddress(ip, port))


def _drain(sock: socket.socket) -> None:
    """Remove what earlier tests sent."""
    sock.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            sock.recv(512)


@pytest.fixture
def gateway_ports(node: BpfNode) -> Iterator[GatewayPortMap]:
    made = GatewayPortMap(node.pin_dir)
    yield made
    made.close_ports(made.ports())
    made.close()


@FAMILIES
def test_datagrams_of_a_gateway_to_a_name_server_of_the_mesh_are_no_queries(
    node: BpfNode, proxy: Proxy, gateway_ports: GatewayPortMap, family: int
) -> None:
    query = node.listeners[ListenerKind.QUERY4 if family == 4 else ListenerKind.QUERY6]
    _drain(query)
    query.settimeout(5)
    elsewhere = {4: "10.96.0.10", 6: "fd00:10:96::a"}[family]
    with _app(node, family) as app:
        app.sendto(b"of an app", (AWAY[family], 53))
        assert query.recvfrom(512)[0] == b"of an app"
    gateway_ports.open(OpenPort(POD[family], UDP_PORTS, "UDP"))
    for connects in (False, True):
        with _app(node, family) as app:
            if connects:
                app.connect((AWAY[family], 53))
                app.send(b"of Envoy")
            else:
                app.sendto(b"of Envoy", (AWAY[family], 53))
            assert proxy.destined(family) == (b"of Envoy", SocketAddress(AWAY[family], 53))
    with _app(node, family) as app:
        app.sendto(b"to the resolver", (elsewhere, 53))
        assert query.recvfrom(512)[0] == b"to the resolver"


@FAMILIES
@pytest.mark.parametrize("bound", [False, True])
def test_reply_shows_the_original_destination(
    node: BpfNode, proxy: Proxy, family: int, bound: bool
) -> None:
    with _app(node, family) as app:
        if bound:
            app.bind((POD[family], 0))
        app.sendto(b"one", (AWAY[family], 1000))
        app.sendto(b"two", (AWAY2[family], 2000))
        asked = [proxy.receive(family), proxy.receive(family)]
        assert asked[0].app[1] == app.getsockname()[1]
        for each in reversed(asked):
            proxy.answer(family, b"answer " + each.data, each)
        for wanted in ((b"answer two", AWAY2[family], 2000), (b"answer one", AWAY[family], 1000)):
            data, source = app.recvfrom(100)
            assert (data, *source[:2]) == wanted


@FAMILIES
@pytest.mark.parametrize("bound", [False, True])
def test_connected_udp_socket_sees_original_addresses(
    node: BpfNode, proxy: Proxy, family: int, bound: bool
) -> None:
    with _app(node, family) as app:
        if bound:
            app.bind((POD[family], 0))
        app.connect((AWAY[family], 1000))
        assert app.getpeername()[:2] == (AWAY[family], 1000)
        assert app.getsockname()[0] == POD[family]
        app.send(b"hello")
        asked = proxy.receive(family)
        assert asked.data == b"hello"
        assert asked.app[1] == app.getsockname()[1]
        assert proxy.remote(family, asked.token) == SocketAddress(AWAY[family], 1000)
        other = proxy.token(family, SocketAddress(AWAY2[family], 1000))
        proxy.send(family, b"a stranger's", other, asked.app)
        proxy.answer(family, b"answer", asked)
        data, source = app.recvfrom(100)
        assert (data, source[:2]) == (b"answer", (AWAY[family], 1000))


@FAMILIES
def test_reconnected_udp_socket_has_the_new_destination(
    node: BpfNode, proxy: Proxy, family: int
) -> None:
    with _app(node, family) as app:
        app.connect((AWAY[family], 1000))
        app.connect((AWAY2[family], 2000))
        app.send(b"second")
        assert proxy.destined(family) == (b"second", SocketAddress(AWAY2[family], 2000))
    with _app(node, family) as app, _app(node, family) as plain:
        plain.bind((LOOPBACK[family], 0))
        app.connect((AWAY[family], 1000))
        app.connect(plain.getsockname())
        assert app.getpeername() == plain.getsockname()
        app.send(b"stays here")
        assert plain.recv(100) == b"stays here"


@FAMILIES
def test_reused_port_never_serves_a_stale_destination(
    node: BpfNode, proxy: Proxy, family: int
) -> None:
    with _app(node, family) as app:
        app.connect((AWAY[family], 1000))
        app.send(b"first")
        port = proxy.receive(family).app[1]
    with _app(node, family) as app:
        app.bind((ANY[family], port))
        app.connect((AWAY2[family], 2000))
        app.send(b"second")
        assert proxy.destined(family) == (b"second", SocketAddress(AWAY2[family], 2000))


def test_v4_mapped_sockets(node: BpfNode, proxy: Proxy) -> None:
    with _app(node, 6) as app:
        app.sendto(b"one", (f"::ffff:{AWAY[4]}", 1000))
        asked = proxy.receive(4)
        assert proxy.remote(4, asked.token) == SocketAddress(AWAY[4], 1000)
        proxy.answer(4, b"answer", asked)
        assert app.recvfrom(100)[1][:2] == (f"::ffff:{AWAY[4]}", 1000)
        app.connect((f"::ffff:{AWAY2[4]}", 2000))
        assert app.getpeername()[:2] == (f"::ffff:{AWAY2[4]}", 2000)
        assert app.getsockname()[0] == f"::ffff:{POD4}"
        app.send(b"two")
        assert proxy.destined(4) == (b"two", SocketAddress(AWAY2[4], 2000))


@pytest.mark.parametrize(
    ("family", "bound"), [(4, "0.0.0.0"), (4, POD4), (4, "::"), (6, "::"), (6, POD6)]
)
def test_server_sees_the_original_client_and_its_reply_returns(
    node: BpfNode, proxy: Proxy, family: int, bound: str
) -> None:
    with _app(node, 6 if ":" in bound else 4) as server:
        server.bind((bound, 0))
        port = server.getsockname()[1]
        token = proxy.token(family, SocketAddress(AWAY[family], 4444))
        proxy.send(family, b"question", token, (POD[family], port))
        data, source = server.recvfrom(100)
        mapped = "::ffff:" if family == 4 and bound == "::" else ""
        assert (data, source[:2]) == (b"question", (mapped + AWAY[family], 4444))
        server.sendto(b"answer", source)
        answer = proxy.receive(family)
        assert (answer.data, answer.token, answer.app[1]) == (b"answer", token, port)
        server.connect(source)
        server.send(b"connected answer")
        now = proxy.receive(family)
        assert (now.data, now.token, now.app[1]) == (b"connected answer", token, port)
        proxy.answer(family, b"more", now)  # to its current source, which can be loopback
        data, source = server.recvfrom(100)
        assert (data, source[:2]) == (b"more", (mapped + AWAY[family], 4444))


@FAMILIES
def test_reply_to_a_remote_behind_the_proxy_is_redirected(
    node: BpfNode, proxy: Proxy, family: int
) -> None:
    """Even without a route to the remote: a client of a service on this node."""
    peer = {4: PEER4, 6: PEER6}[family]
    with _app(node, family) as server:
        server.bind((ANY[family], 0))
        app = (POD[family], server.getsockname()[1])
        token = proxy.token(family, SocketAddress(peer, 4444))
        proxy.send(family, b"question", token, app)
        _, source = server.recvfrom(100)
        assert source[:2] == (peer, 4444)
        server.sendto(b"answer", source)
        assert proxy.destined(family) == (b"answer", SocketAddress(peer, 4444))
    with netns.entered(node.peer):
        other = socket.socket(AF[family], socket.SOCK_DGRAM)
    with other, _app(node, family) as app_socket:
        other.settimeout(5)
        other.bind((ANY[family], 0))
        app_socket.sendto(b"native", (peer, other.getsockname()[1]))
        assert other.recv(100) == b"native"


def test_reply_with_source_from_pktinfo_is_redirected(node: BpfNode, proxy: Proxy) -> None:
    with _app(node) as server:
        server.bind(("0.0.0.0", 0))
        server.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        token = proxy.token(4, SocketAddress(AWAY[4], 4444))
        proxy.send(4, b"question", token, (POD4, server.getsockname()[1]))
        _, control, _, source = server.recvmsg(100, 64)
        here = control[0][2][8:12]
        assert socket.inet_ntoa(here) == POD4
        info = bytes(4) + here + bytes(4)
        server.sendmsg([b"answer"], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, source)
        answer = proxy.receive(4)
        assert (answer.data, answer.token, answer.app[0]) == (b"answer", token, POD4)


def test_reply_with_source_from_ipv6_pktinfo_is_redirected(node: BpfNode, proxy: Proxy) -> None:
    with _app(node, 6) as server:
        server.bind(("::", 0))
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        token = proxy.token(6, SocketAddress(AWAY[6], 4444))
        proxy.send(6, b"question", token, (POD6, server.getsockname()[1]))
        _, control, _, source = server.recvmsg(100, 64)
        here = control[0][2][:16]
        assert socket.inet_ntop(socket.AF_INET6, here) == POD6
        info = here + bytes(4)
        server.sendmsg([b"answer"], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)], 0, source)
        answer = proxy.receive(6)
        assert (answer.data, answer.token) == (b"answer", token)


@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 9000, 65507])
def test_datagrams_of_all_sizes_are_forwarded(
    node: BpfNode, proxy: Proxy, family: int, size: int
) -> None:
    with _app(node, family) as app:
        app.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        payload = bytes(n & 0xFF for n in range(size))
        app.sendto(payload, (AWAY[family], 7))
        asked = proxy.receive(family)
        assert asked.data == payload
        proxy.answer(family, payload, asked)
        data, source = app.recvfrom(65536)
        assert (data, source[:2]) == (payload, (AWAY[family], 7))


def test_udp_without_route_is_not_redirected(node: BpfNode, proxy: Proxy) -> None:
    with netns.entered(node.peer):
        plain = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with plain, _app(node) as app, _app(node, 6) as app6:
        plain.settimeout(5)
        plain.bind(("::", 0))
        port = plain.getsockname()[1]
        app.sendto(b"plain", (PEER4, port))
        data, source = plain.recvfrom(100)
        assert (data, source[0]) == (b"plain", f"::ffff:{POD4}")
        plain.sendto(b"answer", source)
        assert app.recvfrom(100) == (b"answer", (PEER4, port))
        app6.sendto(b"plain6", (PEER6, port))
        data, source = plain.recvfrom(100)
        assert (data, source[0]) == (b"plain6", POD6)
        app6.connect((PEER6, port))
        app6.send(b"connected6")
        assert plain.recv(100) == b"connected6"
        assert app6.getpeername()[:2] == (PEER6, port)


def test_udp_of_an_unenrolled_pod_is_not_redirected(
    node: BpfNode, proxy: Proxy, maps: UdpMaps, entry: UdpAdmissionMaps
) -> None:
    entry.begin_epoch([POD4])
    maps.set_route(SocketAddress(POD4, 0), UdpRoute.REDIRECT)
    with _app(node) as server, netns.entered(node.peer):
        server.bind((POD4, 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"plain", server.getsockname())
            assert server.recvfrom(100)[0] == b"plain"


@FAMILIES
def test_redirected_udp_is_refused_without_worker(
    node: BpfNode, maps: UdpMaps, family: int
) -> None:
    maps.set_worker_ports(node.cookie, [])
    before = maps.counters()[node.cookie].refused
    with _app(node, family) as app:
        with pytest.raises(ConnectionRefusedError):
            app.sendto(b"x", (AWAY[family], 7))
        with pytest.raises(ConnectionRefusedError):
            app.connect((AWAY[family], 7))
    assert maps.counters()[node.cookie].refused == before + 2


@FAMILIES
def test_replies_go_to_the_worker_that_delivered_the_request(
    node: BpfNode, proxy: Proxy, maps: UdpMaps, family: int
) -> None:
    with ExitStack() as stack:
        others = [_proxy(node) for _ in range(3)]
        for other in others:
            stack.callback(other.close)
        workers = [proxy, *others]
        maps.set_worker_ports(node.cookie, [worker.port for worker in workers])
        server = stack.enter_context(_app(node, family))
        server.bind((ANY[family], 0))
        app = (POD[family], server.getsockname()[1])
        client = SocketAddress(AWAY[family], 5000)
        for number, worker in enumerate(workers * 2):
            worker.send(family, b"question", worker.token(family, client), app)
            _, source = server.recvfrom(100)
            server.sendto(b"answer %d" % number, source)
            assert worker.destined(family) == (b"answer %d" % number, client)
        maps.set_worker_ports(node.cookie, [proxy.port])  # without the last worker
        server.sendto(b"later", (client.ip, client.port))
        assert proxy.destined(family) == (b"later", client)


def test_worker_socket_is_unreachable_from_outside(node: BpfNode, proxy: Proxy) -> None:
    with netns.entered(node.peer):
        for family, target in ((4, POD4), (6, POD6)):
            with socket.socket(AF[family], socket.SOCK_DGRAM) as peer:
                peer.sendto(b"forged", (target, proxy.port))
    for family in (4, 6):
        with _app(node, family) as app:
            app.sendto(b"true", (AWAY[family], 7))
            assert proxy.destined(family) == (b"true", SocketAddress(AWAY[family], 7))


def test_apps_cannot_look_up_tokens(node: BpfNode, proxy: Proxy) -> None:
    with _app(node) as app:
        with pytest.raises(PermissionError):
            sockopt.udp_token(app, SocketAddress(AWAY[4], 7))
        with pytest.raises(PermissionError):
            sockopt.udp_remote(app, "127.64.0.1")


def test_tokens_are_invalid_in_another_pod(node: BpfNode, proxy: Proxy) -> None:
    token = sockopt.udp_token(proxy.ways[4].sock, SocketAddress(AWAY[4], 7))
    for other in udp_sockets(node.peer, node.maps, ipv6=True):
        with other:
            with pytest.raises(PermissionError):
                sockopt.udp_remote(other, token)
            with pytest.raises(PermissionError):
                sockopt.udp_token(other, SocketAddress(AWAY[4], 7))
