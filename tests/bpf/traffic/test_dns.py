# SPDX-License-Identifier: Apache-2.0
"""DNS queries of apps are redirected to the resolver; replies show the original name server."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import ExitStack

import pytest

from tests.bpf.netns_fixture import POD4, POD6, BpfNode
from ztunnel.datapath import netns, sockopt
from ztunnel.datapath.bpf.layout import Role
from ztunnel.datapath.udp_admission_maps import UdpAdmissionMaps
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress

SERVERS = {
    "ipv4": (socket.AF_INET, "10.96.0.10", "10.96.0.10", 4),
    "ipv6": (socket.AF_INET6, "fd00:10:96::a", "fd00:10:96::a", 6),
    "v4-mapped": (socket.AF_INET6, "::ffff:10.96.0.10", "10.96.0.10", 4),
}
QUERIES = {
    4: (ListenerKind.QUERY4, ListenerKind.QUERY4_SECOND, ListenerKind.QUERY4_THIRD),
    6: (ListenerKind.QUERY6, ListenerKind.QUERY6_SECOND, ListenerKind.QUERY6_THIRD),
}

Way = tuple[int, str, str, int]


@pytest.fixture(params=SERVERS, ids=str)
def way(request: pytest.FixtureRequest) -> Way:
    return SERVERS[request.param]


def _app(node: BpfNode, family: int) -> socket.socket:
    return node.app_socket(family, socket.SOCK_DGRAM)


def _answer(node: BpfNode, kind: ListenerKind, expected: bytes, server: str) -> None:
    """Act as the resolver: read a query, check its original name server, reply."""
    sock = node.listeners[kind]
    sock.settimeout(5)
    query, source = sock.recvfrom(512)
    assert query == expected
    assert sockopt.original_dns_server(sock, source[1]) == SocketAddress(server, 53)
    sock.sendto(b"re " + query, source)


def _connected(app: socket.socket, server: str) -> None:
    app.connect((server, 53))
    app.send(b"query")


def _unconnected(app: socket.socket, server: str) -> None:
    app.sendto(b"query", (server, 53))


def _by_sendmsg(app: socket.socket, server: str) -> None:
    app.sendmsg([b"que", b"ry"], [], 0, (server, 53))


@pytest.mark.parametrize("ask", [_connected, _unconnected, _by_sendmsg])
def test_query_is_redirected_and_reply_shows_original_server(
    node: BpfNode, way: Way, ask: Callable[[socket.socket, str], None]
) -> None:
    family, dialed, server, version = way
    with _app(node, family) as app:
        ask(app, dialed)
        _answer(node, QUERIES[version][0], b"query", server)
        answer, source = app.recvfrom(512)
        assert answer == b"re query"
        assert source[:2] == (dialed, 53)


def test_recvmsg_shows_original_server(node: BpfNode, way: Way) -> None:
    family, dialed, server, version = way
    with _app(node, family) as app:
        app.sendto(b"query", (dialed, 53))
        _answer(node, QUERIES[version][0], b"query", server)
        answer, _, _, source = app.recvmsg(512)
        assert (answer, source[:2]) == (b"re query", (dialed, 53))


def test_connected_dns_socket_sees_original_addresses(node: BpfNode, way: Way) -> None:
    family, dialed, _, _ = way
    mine = {"10.96.0.10": POD4, "::ffff:10.96.0.10": f"::ffff:{POD4}"}.get(dialed, POD6)
    with _app(node, family) as app:
        app.connect((dialed, 53))
        assert app.getpeername()[:2] == (dialed, 53)
        assert app.getsockname()[0] == mine


def test_one_socket_with_three_servers_gets_a_reply_from_each(node: BpfNode) -> None:
    for version, family, prefix in (
        (4, socket.AF_INET, "10.96.0."),
        (6, socket.AF_INET6, "fd00::"),
    ):
        with _app(node, family) as app:
            for digit in (1, 2, 3):
                app.sendto(b"%d" % digit, (f"{prefix}{digit}", 53))
            for digit in (3, 1, 2):
                kind = QUERIES[version][digit - 1]
                _answer(node, kind, b"%d" % digit, f"{prefix}{digit}")
                answer, source = app.recvfrom(512)
                assert (answer, source[:2]) == (b"re %d" % digit, (f"{prefix}{digit}", 53))


def test_fourth_server_replaces_the_first(node: BpfNode) -> None:
    with _app(node, socket.AF_INET) as app:
        for digit in (1, 2, 3, 4):
            app.sendto(b"%d" % digit, (f"10.96.0.{digit}", 53))
        _answer(node, ListenerKind.QUERY4, b"1", "10.96.0.4")
        _answer(node, ListenerKind.QUERY4, b"4", "10.96.0.4")
        assert [app.recvfrom(512)[1][0] for _ in range(2)] == ["10.96.0.4"] * 2


def test_queries_of_sockets_bound_to_the_pod_address_are_redirected(node: BpfNode) -> None:
    for family, mine, dialed, version in (
        (socket.AF_INET, POD4, "10.96.0.10", 4),
        (socket.AF_INET6, POD6, "fd00:10:96::a", 6),
    ):
        with _app(node, family) as app:
            app.bind((mine, 0))
            app.sendto(b"query", (dialed, 53))
            _answer(node, QUERIES[version][0], b"query", dialed)
            assert app.recvfrom(512)[1][:2] == (dialed, 53)


def test_concurrent_sockets_get_their_own_replies(node: BpfNode) -> None:
    with ExitStack() as stack:
        apps = [stack.enter_context(_app(node, socket.AF_INET)) for _ in range(40)]
        for index, app in enumerate(apps):
            app.sendto(b"%d" % index, (f"10.96.1.{index + 1}", 53))
        for index in range(40):
            _answer(node, ListenerKind.QUERY4, b"%d" % index, f"10.96.1.{index + 1}")
        for index, app in enumerate(apps):
            answer, source = app.recvfrom(512)
            assert (answer, source) == (b"re %d" % index, (f"10.96.1.{index + 1}", 53))


def test_queries_are_counted(node: BpfNode) -> None:
    before = node.maps.pod_stats()[node.cookie]
    with _app(node, socket.AF_INET) as app:
        app.sendto(b"query", ("10.96.0.10", 53))
        _answer(node, ListenerKind.QUERY4, b"query", "10.96.0.10")
    with node.app_socket() as app:
        app.connect(("10.96.0.10", 53))
        node.accepted(ListenerKind.DNS4).close()
    after = node.maps.pod_stats()[node.cookie]
    assert after.dns == before.dns + 2
    assert after.redirected == before.redirected


def test_tcp_to_a_name_server_reaches_the_resolver(node: BpfNode, way: Way) -> None:
    family, dialed, server, version = way
    kind = ListenerKind.DNS4 if version == 4 else ListenerKind.DNS6
    with node.app_socket(family) as app:
        app.connect((dialed, 53))
        with node.accepted(kind) as accepted:
            assert sockopt.original_destination(accepted) == SocketAddress(server, 53)
            assert app.getpeername()[:2] == (dialed, 53)


@pytest.mark.parametrize("host", ["127.0.0.53", POD4, "127.0.0.1", "::1", POD6])
def test_query_to_a_name_server_inside_the_pod_is_not_redirected(node: BpfNode, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with netns.entered(node.pod):
        stub = socket.socket(family, socket.SOCK_DGRAM)
        stub.bind((host, 53))
    stub.settimeout(5)
    with stub, _app(node, family) as app:
        app.sendto(b"query", (host, 53))
        query, source = stub.recvfrom(512)
        stub.sendto(query, source)
        assert app.recvfrom(512)[1][:2] == (host, 53)


def test_reply_of_a_name_server_to_port_53_is_not_redirected(node: BpfNode) -> None:
    """A socket on port 53 is a name server, which sends replies."""
    with netns.entered(node.pod):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((POD4, 53))
    with netns.entered(node.peer):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.bind(("10.98.0.2", 53))
    with server, client:
        client.settimeout(5)
        server.sendto(b"answer", ("10.98.0.2", 53))
        assert client.recvfrom(64) == (b"answer", (POD4, 53))


def test_udp_to_other_ports_is_not_redirected(node: BpfNode) -> None:
    with netns.entered(node.peer):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("10.98.0.2", 5353))
    with server, _app(node, socket.AF_INET) as app:
        server.settimeout(5)
        app.sendto(b"plain", ("10.98.0.2", 5353))
        payload, source = server.recvfrom(64)
        assert (payload, source[0]) == (b"plain", POD4)


def test_queries_of_proxy_sockets_are_not_redirected(node: BpfNode) -> None:
    with netns.entered(node.peer):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("10.98.0.2", 53))
    own = netns.udp_sockets(node.pod, 4, 2, node.maps)
    with server, own[0], own[1]:
        server.settimeout(5)
        own[0].connect(("10.98.0.2", 53))
        own[0].send(b"connected")
        assert server.recvfrom(64)[0] == b"connected"
        own[1].sendto(b"not", ("10.98.0.2", 53))
        assert server.recvfrom(64)[0] == b"not"


def test_unredirected_datagram_has_no_original_server(node: BpfNode) -> None:
    resolver = node.listeners[ListenerKind.QUERY4]
    resolver.settimeout(5)
    with _app(node, socket.AF_INET) as app:
        app.sendto(b"direct", ("127.0.0.1", 15053))
        _, source = resolver.recvfrom(64)
        with pytest.raises(OSError):
            sockopt.original_dns_server(resolver, source[1])


def test_only_the_resolver_can_look_up_the_original_server(node: BpfNode) -> None:
    with _app(node, socket.AF_INET) as app:
        app.sendto(b"query", ("10.96.0.10", 53))
        _answer(node, ListenerKind.QUERY4, b"query", "10.96.0.10")
        with pytest.raises(OSError):
            sockopt.original_dns_server(app, app.getsockname()[1])
        assert node.maps.socket_role(app) is Role.NONE


def test_query_of_an_unenrolled_pod_is_not_redirected(node: BpfNode) -> None:
    entry = UdpAdmissionMaps(node.pin_dir, node.maps)
    entry.begin_epoch([POD4])
    entry.close()
    with netns.entered(node.pod):
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind((POD4, 53))
    with netns.entered(node.peer):
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with server, client:
        server.settimeout(5)
        client.sendto(b"query", (POD4, 53))
        assert server.recvfrom(64)[0] == b"query"


def test_queries_are_refused_without_proxy(fresh_node: BpfNode) -> None:
    fresh_node.close_listeners()
    with _app(fresh_node, socket.AF_INET) as app:
        app.connect(("10.98.0.2", 53))
        app.send(b"query")
        with pytest.raises(ConnectionRefusedError):
            app.recv(64)
