# SPDX-License-Identifier: Apache-2.0
"""Connections into an enrolled pod: who gets them, and whom the app sees."""

from __future__ import annotations

import ctypes
import socket

import pytest

from tests.bpf.netns_fixture import PEER4, PEER6, POD4, POD6, Pocket
from tests.support.waiting import wait_until
from ztunnel.datapath import netns, sockopt
from ztunnel.datapath.bpf import links
from ztunnel.datapath.bpf.layout import FourTuple, Role
from ztunnel.datapath.bpf.syscall import RawMap
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress

WAYS = {
    "ipv4": (socket.AF_INET, (POD4, 8080), 4, (POD4, 8080), "10.244.7.7", "10.244.7.7"),
    "ipv6": (socket.AF_INET6, (POD6, 8080), 6, (POD6, 8080), "fd00::77", "fd00::77"),
    "v4-mapped": (socket.AF_INET6, ("::", 8081), 4, (POD4, 8081), "10.9.9.9", "::ffff:10.9.9.9"),
    "dual": (socket.AF_INET6, ("::", 8082), 6, (POD6, 8082), "fd00::78", "fd00::78"),
}


@pytest.mark.parametrize("way", WAYS)
def test_accept_and_getpeername_report_the_true_client(pocket: Pocket, way: str) -> None:
    family, bound, own_family, target, client, seen = WAYS[way]
    with pocket.server(family, bound) as server, pocket.own(own_family) as own:
        sockopt.set_client_address(own, SocketAddress(client, 45678))
        own.connect(target)
        connection, peer = server.accept()
        with connection:
            assert peer[:2] == (seen, 45678)
            assert connection.getpeername()[:2] == (seen, 45678)
            assert connection.getsockname()[1] == target[1]
        assert own.getpeername()[:2] == target  # the proxy itself sees the app


def test_own_socket_without_a_client_shows_itself(pocket: Pocket) -> None:
    with pocket.server(socket.AF_INET, (POD4, 8083)) as server, pocket.own(4) as own:
        own.connect((POD4, 8083))
        connection, peer = server.accept()
        with connection:
            assert peer == own.getsockname()


def test_app_may_not_claim_to_be_another_client(pocket: Pocket) -> None:
    with pocket.app_socket() as app, pytest.raises(PermissionError):
        sockopt.set_client_address(app, SocketAddress("10.6.6.6", 1))


def test_app_socket_is_never_taken_for_ours(pocket: Pocket) -> None:
    with pocket.app_socket() as app, pocket.own(4) as own:
        assert pocket.maps.socket_role(app) is Role.NONE
        assert pocket.maps.socket_role(own) is Role.PROXY


@pytest.mark.parametrize(
    ("family", "target", "listener", "source"),
    [
        (socket.AF_INET, POD4, ListenerKind.INBOUND4, PEER4),
        (socket.AF_INET6, POD6, ListenerKind.INBOUND6, PEER6),
    ],
    ids=["ipv4", "ipv6"],
)
def test_connection_from_outside_goes_to_the_proxy_with_its_addresses(
    pocket: Pocket, family: int, target: str, listener: ListenerKind, source: str
) -> None:
    with pocket.server(family, (target, 8084)), pocket.peer_socket(family) as peer:
        peer.connect((target, 8084))
        with pocket.accepted(listener) as stolen:
            assert stolen.getsockname()[:2] == (target, 8084)
            assert stolen.getpeername()[:2] == peer.getsockname()[:2]
            assert stolen.getpeername()[0] == source


@pytest.mark.parametrize("port", [15001, 15006, 9])
def test_every_port_from_outside_goes_to_the_proxy(pocket: Pocket, port: int) -> None:
    with pocket.peer_socket() as peer:
        peer.connect((POD4, port))
        with pocket.accepted(ListenerKind.INBOUND4) as stolen:
            assert stolen.getsockname() == (POD4, port)


@pytest.mark.parametrize(
    ("family", "target", "listener"),
    [
        (socket.AF_INET, POD4, ListenerKind.HBONE4),
        (socket.AF_INET6, POD6, ListenerKind.HBONE6),
    ],
    ids=["ipv4", "ipv6"],
)
def test_hbone_port_reaches_the_hbone_listener(
    pocket: Pocket, family: int, target: str, listener: ListenerKind
) -> None:
    with pocket.peer_socket(family) as peer:
        peer.connect((target, 15008))
        with pocket.accepted(listener) as accepted:
            assert accepted.getpeername()[:2] == peer.getsockname()[:2]


def test_nodes_own_address_reaches_the_app_directly(fresh_pocket: Pocket) -> None:
    pocket = fresh_pocket
    pocket.maps.set_node_addresses([PEER4, PEER6])
    assert pocket.maps.node_addresses() == sorted([PEER4, PEER6])
    for family, target in ((socket.AF_INET, POD4), (socket.AF_INET6, POD6)):
        with pocket.server(family, (target, 8085)) as server, pocket.peer_socket(family) as probe:
            probe.connect((target, 8085))
            server.accept()[0].close()
    pocket.maps.set_node_addresses([])
    assert pocket.maps.node_addresses() == []


@pytest.mark.parametrize(
    ("family", "target", "own", "listener"),
    [
        (socket.AF_INET, POD4, PEER4, ListenerKind.INBOUND4),
        (socket.AF_INET6, POD6, PEER6, ListenerKind.INBOUND6),
    ],
    ids=["ipv4", "ipv6"],
)
def test_what_the_node_forwards_is_not_its_own(
    fresh_pocket: Pocket, family: int, target: str, own: str, listener: ListenerKind
) -> None:
    """The neighbour is the node here: what is not of its namespace has only got its address."""
    pocket = fresh_pocket
    pocket.maps.set_node_addresses([own])
    with pocket.server(family, (target, 8085)) as server:
        pocket.maps.set_node_netns(netns.cookie(pocket.peer))
        with pocket.peer_socket(family) as probe:
            probe.connect((target, 8085))
            server.accept()[0].close()
        with pocket.peer_socket(family) as forwarded:
            pocket.maps.set_node_netns(pocket.cookie)  # ... of another namespace
            forwarded.connect((target, 8085))
            pocket.accepted(listener).close()
    path = pocket.pin_dir / "maps/zt_node_conns"
    kept = RawMap.open(path, ctypes.sizeof(FourTuple), 8, read_only=True)
    wait_until(lambda: not list(kept.keys()), "nothing is kept of a connection that is over")
    kept.close()


def test_without_the_proxy_nobody_gets_in(fresh_pocket: Pocket) -> None:
    pocket = fresh_pocket
    pocket.close_listeners()
    for family, target in ((socket.AF_INET, POD4), (socket.AF_INET6, POD6)):
        with (
            pocket.server(family, (target, 8086)),
            pocket.peer_socket(family) as peer,
            pytest.raises(ConnectionRefusedError),
        ):
            peer.connect((target, 8086))
    assert pocket.maps.stats()["no_listener"] == 2


def test_detached_pod_serves_directly(fresh_pocket: Pocket) -> None:
    pocket = fresh_pocket
    assert links.sk_lookup_cookies(pocket.pin_dir) == [pocket.cookie]
    assert links.detach_sk_lookup(pocket.pin_dir, pocket.cookie)
    assert not links.detach_sk_lookup(pocket.pin_dir, pocket.cookie)
    with pocket.server(socket.AF_INET, (POD4, 8087)) as server, pocket.peer_socket() as peer:
        peer.connect((POD4, 8087))
        server.accept()[0].close()
