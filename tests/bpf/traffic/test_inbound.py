# SPDX-License-Identifier: Apache-2.0
"""Inbound connections of an enrolled pod: interception, and the client that the app sees."""

from __future__ import annotations

import ctypes
import socket

import pytest

from tests.bpf.netns_fixture import PEER4, PEER6, POD4, POD6, BpfNode
from tests.support.waiting import wait_until
from ztunnel.datapath import netns, sockopt
from ztunnel.datapath.bpf import links
from ztunnel.datapath.bpf.layout import FourTuple, Role
from ztunnel.datapath.bpf.syscall import RawMap
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress

FAMILIES = {
    "ipv4": (socket.AF_INET, (POD4, 8080), 4, (POD4, 8080), "10.244.7.7", "10.244.7.7"),
    "ipv6": (socket.AF_INET6, (POD6, 8080), 6, (POD6, 8080), "fd00::77", "fd00::77"),
    "v4-mapped": (socket.AF_INET6, ("::", 8081), 4, (POD4, 8081), "10.9.9.9", "::ffff:10.9.9.9"),
    "dual": (socket.AF_INET6, ("::", 8082), 6, (POD6, 8082), "fd00::78", "fd00::78"),
}


@pytest.mark.parametrize("way", FAMILIES)
def test_accept_and_getpeername_report_the_original_client(node: BpfNode, way: str) -> None:
    family, bound, proxy_family, target, client, seen = FAMILIES[way]
    with node.server(family, bound) as server, node.proxy_socket(proxy_family) as own:
        sockopt.set_client_address(own, SocketAddress(client, 45678))
        own.connect(target)
        connection, peer = server.accept()
        with connection:
            assert peer[:2] == (seen, 45678)
            assert connection.getpeername()[:2] == (seen, 45678)
            assert connection.getsockname()[1] == target[1]
        assert own.getpeername()[:2] == target  # the proxy sees the app


def test_app_sees_the_proxy_socket_if_no_client_is_set(node: BpfNode) -> None:
    with node.server(socket.AF_INET, (POD4, 8083)) as server, node.proxy_socket(4) as own:
        own.connect((POD4, 8083))
        connection, peer = server.accept()
        with connection:
            assert peer == own.getsockname()


def test_app_cannot_set_a_client_address(node: BpfNode) -> None:
    with node.app_socket() as app, pytest.raises(PermissionError):
        sockopt.set_client_address(app, SocketAddress("10.6.6.6", 1))


def test_only_proxy_sockets_have_the_proxy_role(node: BpfNode) -> None:
    with node.app_socket() as app, node.proxy_socket(4) as own:
        assert node.maps.socket_role(app) is Role.NONE
        assert node.maps.socket_role(own) is Role.PROXY


@pytest.mark.parametrize(
    ("family", "target", "listener", "source"),
    [
        (socket.AF_INET, POD4, ListenerKind.INBOUND4, PEER4),
        (socket.AF_INET6, POD6, ListenerKind.INBOUND6, PEER6),
    ],
    ids=["ipv4", "ipv6"],
)
def test_inbound_connection_is_intercepted_with_original_addresses(
    node: BpfNode, family: int, target: str, listener: ListenerKind, source: str
) -> None:
    with node.server(family, (target, 8084)), node.peer_socket(family) as peer:
        peer.connect((target, 8084))
        with node.accepted(listener) as intercepted:
            assert intercepted.getsockname()[:2] == (target, 8084)
            assert intercepted.getpeername()[:2] == peer.getsockname()[:2]
            assert intercepted.getpeername()[0] == source


@pytest.mark.parametrize("port", [15001, 15006, 9])
def test_inbound_connections_to_all_ports_are_intercepted(node: BpfNode, port: int) -> None:
    with node.peer_socket() as peer:
        peer.connect((POD4, port))
        with node.accepted(ListenerKind.INBOUND4) as intercepted:
            assert intercepted.getsockname() == (POD4, port)


@pytest.mark.parametrize(
    ("family", "target", "listener"),
    [
        (socket.AF_INET, POD4, ListenerKind.HBONE4),
        (socket.AF_INET6, POD6, ListenerKind.HBONE6),
    ],
    ids=["ipv4", "ipv6"],
)
def test_hbone_port_reaches_the_hbone_listener(
    node: BpfNode, family: int, target: str, listener: ListenerKind
) -> None:
    with node.peer_socket(family) as peer:
        peer.connect((target, 15008))
        with node.accepted(listener) as accepted:
            assert accepted.getpeername()[:2] == peer.getsockname()[:2]


def test_connection_from_node_address_bypasses_the_proxy(fresh_node: BpfNode) -> None:
    node = fresh_node
    node.maps.set_node_addresses([PEER4, PEER6])
    assert node.maps.node_addresses() == sorted([PEER4, PEER6])
    for family, target in ((socket.AF_INET, POD4), (socket.AF_INET6, POD6)):
        with node.server(family, (target, 8085)) as server, node.peer_socket(family) as probe:
            probe.connect((target, 8085))
            server.accept()[0].close()
    node.maps.set_node_addresses([])
    assert node.maps.node_addresses() == []


@pytest.mark.parametrize(
    ("family", "target", "own", "listener"),
    [
        (socket.AF_INET, POD4, PEER4, ListenerKind.INBOUND4),
        (socket.AF_INET6, POD6, PEER6, ListenerKind.INBOUND6),
    ],
    ids=["ipv4", "ipv6"],
)
def test_forwarded_connection_with_node_address_is_intercepted(
    fresh_node: BpfNode, family: int, target: str, own: str, listener: ListenerKind
) -> None:
    """The peer acts as the node; a socket of another namespace has only its address."""
    node = fresh_node
    node.maps.set_node_addresses([own])
    with node.server(family, (target, 8085)) as server:
        node.maps.set_node_netns(netns.cookie(node.peer))
        with node.peer_socket(family) as probe:
            probe.connect((target, 8085))
            server.accept()[0].close()
        with node.peer_socket(family) as forwarded:
            node.maps.set_node_netns(node.cookie)  # another namespace
            forwarded.connect((target, 8085))
            node.accepted(listener).close()
    path = node.pin_dir / "maps/zt_node_conns"
    kept = RawMap.open(path, ctypes.sizeof(FourTuple), 8, read_only=True)
    wait_until(lambda: not list(kept.keys()), "nothing is kept of a connection that is over")
    kept.close()


def test_inbound_connections_are_refused_without_listener(fresh_node: BpfNode) -> None:
    node = fresh_node
    node.close_listeners()
    for family, target in ((socket.AF_INET, POD4), (socket.AF_INET6, POD6)):
        with (
            node.server(family, (target, 8086)),
            node.peer_socket(family) as peer,
            pytest.raises(ConnectionRefusedError),
        ):
            peer.connect((target, 8086))
    assert node.maps.stats()["no_listener"] == 2


def test_connection_to_detached_pod_is_not_intercepted(fresh_node: BpfNode) -> None:
    node = fresh_node
    assert links.sk_lookup_cookies(node.pin_dir) == [node.cookie]
    assert links.detach_sk_lookup(node.pin_dir, node.cookie)
    assert not links.detach_sk_lookup(node.pin_dir, node.cookie)
    with node.server(socket.AF_INET, (POD4, 8087)) as server, node.peer_socket() as peer:
        peer.connect((POD4, 8087))
        server.accept()[0].close()
