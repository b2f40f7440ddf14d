# SPDX-License-Identifier: Apache-2.0
"""Native UDP to a captured pod: admitted or denied by decision, else sent to the authorizer.

The test acts as the agent.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.bpf.netns_fixture import PEER4, PEER6, POD4, POD6, BpfNode, run
from tests.support.waiting import wait_until
from ztunnel.datapath import netns
from ztunnel.datapath.sockopt import IPV6_FREEBIND
from ztunnel.datapath.udp_admission_maps import UdpAdmissionMaps, UdpDecision, deliver, receive
from ztunnel.datapath.udp_maps import UdpKernelApi, UdpMaps, udp_sockets
from ztunnel.mesh.model import SocketAddress

POD, PEER = {4: POD4, 6: POD6}, {4: PEER4, 6: PEER6}
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
ANY = {4: "0.0.0.0", 6: "::"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
ROOM = memoryview(bytearray(65536))


class Gate:
    """The agent's side: the maps, and one authorizer socket per family in the pod."""

    def __init__(self, node: BpfNode) -> None:
        self.node = node
        self.entry = UdpAdmissionMaps(node.pin_dir, node.maps)
        self.authorizers = self.entry.sockets(node.pod, ipv6=True)
        for family, sock in self.authorizers.items():
            self.entry.set_authorizer_socket(POD[family], sock)
            sock.settimeout(5)
        self.entry.begin_epoch([])

    def undecided(self, family: int) -> tuple[bytes, SocketAddress, SocketAddress]:
        """The next undecided datagram: payload, source and destination."""
        came = receive(self.authorizers[family], ROOM)
        assert came is not None
        return bytes(ROOM[: came[0]]), came[1], came[2]

    def decide(self, family: int, port: int, *, allowed: bool, cookie: int = 0) -> None:
        to = SocketAddress(POD[family], port)
        self.entry.set_decision(UdpDecision(cookie, PEER[family], to, allowed))

    def count(self, name: str) -> int:
        return self.node.maps.stats()[name]

    def close(self) -> None:
        self.entry.begin_epoch([])
        for sock in self.authorizers.values():
            sock.close()
        self.entry.close()


@pytest.fixture
def gate(node: BpfNode) -> Iterator[Gate]:
    made = Gate(node)
    yield made
    made.close()


def _sock(node: BpfNode, family: int, *, in_peer: bool = False) -> socket.socket:
    with netns.entered(node.peer if in_peer else node.pod):
        made = socket.socket(AF[family], socket.SOCK_DGRAM)
    made.settimeout(5)
    made.bind((ANY[family], 0))
    return made


def _port(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


@FAMILIES
def test_undecided_datagram_goes_to_the_authorizer_and_is_delivered(
    node: BpfNode, gate: Gate, family: int
) -> None:
    workers = UdpMaps(node.pin_dir)
    worker = udp_sockets(node.pod, node.maps, ipv6=True)
    workers.set_worker_ports(node.cookie, [_port(worker[0])])
    with _sock(node, family) as app, _sock(node, family, in_peer=True) as peer:
        port = _port(app)
        peer.sendto(b"first", (POD[family], port))
        data, source, destination = gate.undecided(family)
        assert (data, source) == (b"first", SocketAddress(PEER[family], _port(peer)))
        assert destination == SocketAddress(POD[family], port)
        gate.decide(family, port, allowed=True)
        deliver(gate.authorizers[family], memoryview(data), source, destination)
        said, shown = app.recvfrom(100)
        assert (said, shown[:2]) == (b"first", (source.ip, source.port))
        app.sendto(b"answer", shown)
        assert peer.recvfrom(100)[0] == b"answer"
        peer.sendto(b"second", (POD[family], port))
        assert app.recvfrom(100)[0] == b"second"
    for sock in worker:
        sock.close()
    workers.remove(node.cookie)
    workers.close()


@FAMILIES
def test_denied_datagram_is_dropped_and_counted(node: BpfNode, gate: Gate, family: int) -> None:
    with _sock(node, family) as app, _sock(node, family, in_peer=True) as peer:
        gate.decide(family, _port(app), allowed=False)
        before = gate.count("udp_denied")
        peer.sendto(b"no", (POD[family], _port(app)))
        assert gate.count("udp_denied") == before + 1
        gate.decide(family, _port(app), allowed=True)
        peer.sendto(b"yes", (POD[family], _port(app)))
        assert app.recvfrom(100)[0] == b"yes"


@FAMILIES
def test_new_epoch_revokes_decisions(node: BpfNode, gate: Gate, family: int) -> None:
    with _sock(node, family) as app, _sock(node, family, in_peer=True) as peer:
        gate.decide(family, _port(app), allowed=True)
        peer.sendto(b"one", (POD[family], _port(app)))
        app.sendto(b"answer", app.recvfrom(100)[1])  # so the pair is not a reply of the app
        gate.entry.begin_epoch([])
        peer.sendto(b"two", (POD[family], _port(app)))
        assert gate.undecided(family)[0] == b"two"
        gate.entry.begin_epoch([POD[family]])
        peer.sendto(b"three", (POD[family], _port(app)))
        assert app.recvfrom(100)[0] == b"three"


@FAMILIES
@pytest.mark.parametrize("connected", [False, True])
def test_replies_are_admitted_without_decision(
    node: BpfNode, gate: Gate, family: int, connected: bool
) -> None:
    with _sock(node, family) as app, _sock(node, family, in_peer=True) as peer:
        if connected:
            app.connect((PEER[family], _port(peer)))
            app.send(b"question")
        else:
            app.sendto(b"question", (PEER[family], _port(peer)))
        _, source = peer.recvfrom(100)
        peer.sendto(b"answer", source)
        assert app.recvfrom(100)[0] == b"answer"
        with _sock(node, family, in_peer=True) as stranger:
            stranger.sendto(b"stranger", source)
            assert gate.undecided(family)[0] == b"stranger"


@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 1473, 9000])
def test_raw_send_uses_the_app_port_and_admits_the_reply(
    node: BpfNode, gate: Gate, family: int, size: int
) -> None:
    path = UdpKernelApi(node.pin_dir, node.maps, gate.entry)
    with _sock(node, family) as app, _sock(node, family, in_peer=True) as peer:
        source = SocketAddress(POD[family], _port(app))
        path.send(node.pod, source, SocketAddress(PEER[family], _port(peer)), [bytes(size), b"2"])
        data, shown = peer.recvfrom(65536)
        assert (data, shown[:2]) == (bytes(size), (source.ip, source.port))
        assert peer.recv(100) == b"2"
        peer.sendto(b"answer", shown)
        assert app.recvfrom(100)[0] == b"answer"
    path.close()


def test_undecided_datagram_is_dropped_without_agent(node: BpfNode, gate: Gate) -> None:
    for sock in gate.authorizers.values():
        sock.close()
    with _sock(node, 4) as app, _sock(node, 4, in_peer=True) as peer:
        before = gate.count("udp_no_authorizer")
        peer.sendto(b"x", (POD4, _port(app)))
        assert gate.count("udp_no_authorizer") == before + 1
        gate.entry.allow_all_sources(POD4)
        peer.sendto(b"open", (POD4, _port(app)))
        assert app.recvfrom(100)[0] == b"open"


def test_datagrams_inside_a_pod_need_no_decision(node: BpfNode, gate: Gate) -> None:
    for family, host in ((4, "127.0.0.1"), (4, POD4), (6, "::1"), (6, POD6)):
        with _sock(node, family) as app, _sock(node, family) as other:
            other.sendto(b"mine", (host, _port(app)))
            assert app.recvfrom(100)[0] == b"mine"


@pytest.mark.parametrize("connected", [False, True])
def test_datagrams_to_own_ipv6_address_are_delivered_in_both_directions(
    node: BpfNode, gate: Gate, connected: bool
) -> None:
    before = gate.count("udp_forged")
    with netns.entered(node.pod):
        client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    client.settimeout(5)
    with _sock(node, 6) as server, client:
        to = (POD6, _port(server))
        if connected:
            client.connect(to)
            client.send(b"question")
        else:
            client.sendto(b"question", to)
        data, source = server.recvfrom(100)
        assert (data, source[0]) == (b"question", POD6)
        server.sendto(b"answer", source)
        assert client.recv(100) == b"answer"
    assert gate.count("udp_forged") == before


@pytest.mark.parametrize("is_open", [False, True])
def test_datagram_forged_from_the_destinations_own_address_is_dropped(
    node: BpfNode, gate: Gate, is_open: bool
) -> None:
    """IPV6_FREEBIND needs no capability."""
    gate.entry.begin_epoch([POD6] if is_open else [])
    with _sock(node, 6) as app, _forger(node, POD6) as forger:
        before = gate.count("udp_forged")
        forger.sendto(b"forged", (POD6, _port(app)))
        # Twice: the kernel also looks up the socket for the ICMP error that the drop causes.
        wait_until(lambda: gate.count("udp_forged") == before + 2, "the drop to be counted")
        with _sock(node, 6) as other:
            other.sendto(b"mine", (POD6, _port(app)))
            assert app.recvfrom(100)[0] == b"mine"


def test_datagrams_to_an_own_address_that_is_not_captured_are_delivered(
    fresh_node: BpfNode,
) -> None:
    """For example an address of a second network."""
    run("ip", "-n", fresh_node.pod_name, "addr", "add", "fd97::1/64", "dev", "eth0", "nodad")
    with _sock(fresh_node, 6) as app, _sock(fresh_node, 6) as other:
        other.sendto(b"mine", ("fd97::1", _port(app)))
        assert app.recvfrom(100)[0] == b"mine"


def _forger(node: BpfNode, source: str) -> socket.socket:
    """A socket of the peer that sends from another address."""
    with netns.entered(node.peer):
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.setsockopt(socket.IPPROTO_IPV6, IPV6_FREEBIND, 1)
    made.bind((source, 0))
    return made


@pytest.fixture
def node_address(node: BpfNode) -> Iterator[None]:
    """The peer acts as the node: its addresses and its namespace are the node's."""
    node.maps.set_node_addresses([PEER4, PEER6])
    node.maps.set_node_netns(netns.cookie(node.peer))
    yield
    node.maps.set_node_netns(0)
    node.maps.set_node_addresses([])


@FAMILIES
@pytest.mark.parametrize("connected", [False, True])
@pytest.mark.usefixtures("node_address")
def test_datagrams_of_node_sockets_need_no_decision(
    node: BpfNode, gate: Gate, family: int, connected: bool
) -> None:
    with netns.entered(node.peer):
        sock = socket.socket(AF[family], socket.SOCK_DGRAM)
    with _sock(node, family) as app, sock:
        to = (POD[family], _port(app))
        for number in range(3):
            if connected and number == 0:
                sock.connect(to)
            sock.send(b"x") if connected else sock.sendto(b"x", to)
            assert app.recvfrom(100)[1][0] == PEER[family]


@FAMILIES
@pytest.mark.usefixtures("node_address")
def test_datagrams_with_node_address_that_no_node_socket_sent_are_undecided(
    node: BpfNode, gate: Gate, family: int
) -> None:
    """For example those that kube-proxy forwards from a NodePort."""
    node.maps.set_node_netns(node.cookie)  # another namespace than the sender's
    with _sock(node, family) as app, _sock(node, family, in_peer=True) as forwarded:
        forwarded.sendto(b"forwarded", (POD[family], _port(app)))
        assert gate.undecided(family)[0] == b"forwarded"


@pytest.mark.parametrize("connected", [False, True])
def test_source_pod_of_this_node_is_identified_by_namespace(
    fresh_node: BpfNode, connected: bool
) -> None:
    """A decision for the pod does not apply to another sender with its address."""
    node = fresh_node
    node.enroll_peer()
    gate = Gate(node)
    try:
        for family in (4, 6):
            with netns.entered(node.peer):
                near = socket.socket(AF[family], socket.SOCK_DGRAM)
            with _sock(node, family) as app, near:
                to = (POD[family], _port(app))
                near.connect(to) if connected else near.sendto(b"x", to)
                if connected:
                    near.send(b"x")
                _, source, destination = gate.undecided(family)
                assert gate.entry.source_pod(source, destination) == node.peer_cookie
                gate.decide(family, to[1], allowed=True, cookie=node.peer_cookie)
                near.send(b"in") if connected else near.sendto(b"in", to)
                data, shown = app.recvfrom(100)
                assert (data, shown[:2]) == (b"in", (source.ip, source.port))
                app.sendto(b"answer", shown)
                near.settimeout(5)
                assert near.recv(100) == b"answer"
    finally:
        gate.close()
