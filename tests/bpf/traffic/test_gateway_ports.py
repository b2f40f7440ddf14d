# SPDX-License-Identifier: Apache-2.0
"""Listener ports of an ingress gateway are not captured; all other ports of the pod are."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.bpf.netns_fixture import PEER4, PEER6, POD4, POD6, BpfNode
from tests.bpf.traffic.test_udp_admission import Gate
from ztunnel.datapath import netns
from ztunnel.datapath.bpf import loader
from ztunnel.datapath.gateway_port_map import GatewayPortMap, OpenPort
from ztunnel.datapath.same_node_maps import BypassEntry
from ztunnel.datapath.sockopt import IPV6_FREEBIND
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress

POD, PEER = {4: POD4, 6: POD6}, {4: PEER4, 6: PEER6}
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
INBOUND = {4: ListenerKind.INBOUND4, 6: ListenerKind.INBOUND6}
FAMILIES = pytest.mark.parametrize("family", [4, 6])


@pytest.fixture
def ports(node: BpfNode) -> Iterator[GatewayPortMap]:
    made = GatewayPortMap(node.pin_dir)
    yield made
    made.close_ports(made.ports())
    made.close()


def exchange(server: socket.socket, client: socket.socket) -> tuple[str, int]:
    """Accept the client's connection; returns the client that the app sees."""
    connection, peer = server.accept()
    with connection:
        client.sendall(b"x")
        assert connection.recv(1) == b"x"
        assert connection.getpeername() == peer
    return peer[0], peer[1]


@FAMILIES
def test_connection_to_a_listener_port_reaches_the_app_with_the_true_client(
    node: BpfNode, ports: GatewayPortMap, family: int
) -> None:
    port = OpenPort(POD[family], 443, "TCP")
    ports.open(port)
    with (
        node.server(AF[family], (POD[family], 443)) as server,
        node.peer_socket(AF[family]) as peer,
    ):
        peer.connect((POD[family], 443))
        assert exchange(server, peer) == peer.getsockname()[:2]
    assert ports.ports() == {port: 1}


@FAMILIES
def test_other_ports_of_the_pod_stay_captured(
    node: BpfNode, ports: GatewayPortMap, family: int
) -> None:
    ports.open(OpenPort(POD[family], 443, "TCP"))
    ports.open(OpenPort(POD[family], 8443, "UDP"))
    ports.open(OpenPort(PEER[family], 8443, "TCP"))
    with node.server(AF[family], (POD[family], 8443)), node.peer_socket(AF[family]) as peer:
        peer.connect((POD[family], 8443))
        with node.accepted(INBOUND[family]) as intercepted:
            assert intercepted.getsockname()[:2] == (POD[family], 8443)


@FAMILIES
def test_a_closed_port_is_captured_again(node: BpfNode, ports: GatewayPortMap, family: int) -> None:
    port = OpenPort(POD[family], 444, "TCP")
    ports.open(port)
    with node.server(AF[family], (POD[family], 444)) as server:
        with node.peer_socket(AF[family]) as peer:
            peer.connect((POD[family], 444))
            server.accept()[0].close()
        ports.close_ports([port])
        with node.peer_socket(AF[family]) as peer:
            peer.connect((POD[family], 444))
            node.accepted(INBOUND[family]).close()


def test_open_ports_survive_an_update_of_the_programs(node: BpfNode, ports: GatewayPortMap) -> None:
    port = OpenPort(POD4, 445, "TCP")
    ports.open(port)
    (node.pin_dir / "progs" / "zt_sk_lookup").unlink()  # as if another build had been pinned
    assert loader.load(node.cgroup, node.pin_dir) == "updated"
    with node.server(socket.AF_INET, (POD4, 445)) as server, node.peer_socket() as peer:
        peer.connect((POD4, 445))
        server.accept()[0].close()


@FAMILIES
def test_pod_of_the_same_node_bypasses_the_proxy_to_a_listener_port(
    fresh_node: BpfNode, family: int
) -> None:
    """The source's connection awaits the answer of the authorized pod: it is not cut off."""
    node, target = fresh_node, SocketAddress(POD[family], 443)
    node.enroll_peer()
    ports = GatewayPortMap(node.pin_dir)
    ports.open(OpenPort(target.ip, 443, "TCP"))
    node.maps.same_node.revoke()
    node.maps.same_node.renew_lease(60)
    node.maps.same_node.allow(BypassEntry(node.peer_cookie, target, node.cookie))
    with node.server(AF[family], (target.ip, 443)) as server, node.peer_socket(AF[family]) as peer:
        peer.connect((target.ip, 443))
        assert exchange(server, peer) == peer.getsockname()[:2]
        assert [each.source.port for each in node.maps.same_node.connections()] == [
            peer.getsockname()[1]
        ]
    assert node.maps.stats()["unexpected_peer"] == 0
    ports.close()


# UDP


def udp_socket(node: BpfNode, family: int, address: str, *, in_peer: bool) -> socket.socket:
    with netns.entered(node.peer if in_peer else node.pod):
        made = socket.socket(AF[family], socket.SOCK_DGRAM)
    made.settimeout(5)
    made.bind((address, 0))
    return made


@FAMILIES
def test_datagrams_to_a_listener_port_need_no_decision_and_are_answered(
    node: BpfNode, ports: GatewayPortMap, family: int
) -> None:
    gate = Gate(node)  # denies: no datagram is decided
    app = udp_socket(node, family, POD[family], in_peer=False)
    peer = udp_socket(node, family, PEER[family], in_peer=True)
    port = OpenPort(POD[family], app.getsockname()[1], "UDP")
    ports.open(port)
    with app, peer:
        peer.sendto(b"ping", app.getsockname()[:2])
        payload, source = app.recvfrom(16)
        assert (payload, source[:2]) == (b"ping", peer.getsockname()[:2])
        app.sendto(b"pong", source)
        assert peer.recvfrom(16)[0] == b"pong"
        assert ports.ports() == {port: 1}
        ports.close_ports([port])
        peer.sendto(b"late", app.getsockname()[:2])
        assert gate.undecided(family)[0] == b"late"
    gate.close()


def test_datagram_from_a_forged_token_address_is_not_admitted(
    node: BpfNode, ports: GatewayPortMap
) -> None:
    gate = Gate(node)
    app = udp_socket(node, 6, POD6, in_peer=False)
    ports.open(OpenPort(POD6, app.getsockname()[1], "UDP"))
    with netns.entered(node.peer):
        forger = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    forger.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    forger.bind(("fd5a:7464::127.64.0.9", 15001))
    with app, forger:
        forger.sendto(b"forged", app.getsockname()[:2])
        assert gate.undecided(6)[0] == b"forged"
        assert list(ports.ports().values()) == [0]
    gate.close()
