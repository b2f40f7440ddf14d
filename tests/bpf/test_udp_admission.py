# SPDX-License-Identifier: Apache-2.0
"""Native UDP into a captured pod: let in by verdict, kept out by verdict, else given to the judge.

The test plays the agent.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.bpf.netns_fixture import PEER4, PEER6, POD4, POD6, Pocket
from ztunnel.datapath import netns
from ztunnel.datapath.udp_admission_maps import UdpAdmissionMaps, UdpDecision, deliver, receive
from ztunnel.datapath.udp_maps import UdpKernelApi, UdpMaps, udp_sockets
from ztunnel.mesh.model import SocketAddress

POD, PEER = {4: POD4, 6: POD6}, {4: PEER4, 6: PEER6}
AF = {4: socket.AF_INET, 6: socket.AF_INET6}
ANY = {4: "0.0.0.0", 6: "::"}
FAMILIES = pytest.mark.parametrize("family", [4, 6])
ROOM = memoryview(bytearray(65536))


class Gate:
    """The agent's ends: the maps, and a judge a family in the pod."""

    def __init__(self, pocket: Pocket) -> None:
        self.pocket = pocket
        self.entry = UdpAdmissionMaps(pocket.pin_dir, pocket.maps)
        self.judges = self.entry.sockets(pocket.pod, ipv6=True)
        for family, sock in self.judges.items():
            self.entry.set_authorizer_socket(POD[family], sock)
            sock.settimeout(5)
        self.entry.begin_epoch([])

    def judged(self, family: int) -> tuple[bytes, SocketAddress, SocketAddress]:
        """The next datagram that waits for judgement."""
        came = receive(self.judges[family], ROOM)
        assert came is not None
        return bytes(ROOM[: came[0]]), came[1], came[2]

    def give(self, family: int, port: int, *, allowed: bool, cookie: int = 0) -> None:
        to = SocketAddress(POD[family], port)
        self.entry.set_decision(UdpDecision(cookie, PEER[family], to, allowed))

    def count(self, name: str) -> int:
        return self.pocket.maps.stats()[name]

    def close(self) -> None:
        self.entry.begin_epoch([])
        for sock in self.judges.values():
            sock.close()
        self.entry.close()


@pytest.fixture
def gate(pocket: Pocket) -> Iterator[Gate]:
    made = Gate(pocket)
    yield made
    made.close()


def _sock(pocket: Pocket, family: int, *, in_peer: bool = False) -> socket.socket:
    with netns.entered(pocket.peer if in_peer else pocket.pod):
        made = socket.socket(AF[family], socket.SOCK_DGRAM)
    made.settimeout(5)
    made.bind((ANY[family], 0))
    return made


def _port(sock: socket.socket) -> int:
    port: int = sock.getsockname()[1]
    return port


@FAMILIES
def test_what_has_no_verdict_is_judged_and_the_first_datagram_is_not_lost(
    pocket: Pocket, gate: Gate, family: int
) -> None:
    workers = UdpMaps(pocket.pin_dir)
    worker = udp_sockets(pocket.pod, pocket.maps, ipv6=True)
    workers.set_worker_ports(pocket.cookie, [_port(worker[0])])
    with _sock(pocket, family) as app, _sock(pocket, family, in_peer=True) as peer:
        port = _port(app)
        peer.sendto(b"first", (POD[family], port))
        data, source, destination = gate.judged(family)
        assert (data, source) == (b"first", SocketAddress(PEER[family], _port(peer)))
        assert destination == SocketAddress(POD[family], port)
        gate.give(family, port, allowed=True)
        deliver(gate.judges[family], memoryview(data), source, destination)
        said, shown = app.recvfrom(100)
        assert (said, shown[:2]) == (b"first", (source.ip, source.port))
        app.sendto(b"answer", shown)
        assert peer.recvfrom(100)[0] == b"answer"
        peer.sendto(b"second", (POD[family], port))
        assert app.recvfrom(100)[0] == b"second"
    for sock in worker:
        sock.close()
    workers.remove(pocket.cookie)
    workers.close()


@FAMILIES
def test_denied_is_dropped_and_counted(pocket: Pocket, gate: Gate, family: int) -> None:
    with _sock(pocket, family) as app, _sock(pocket, family, in_peer=True) as peer:
        gate.give(family, _port(app), allowed=False)
        before = gate.count("udp_denied")
        peer.sendto(b"no", (POD[family], _port(app)))
        assert gate.count("udp_denied") == before + 1
        gate.give(family, _port(app), allowed=True)
        peer.sendto(b"yes", (POD[family], _port(app)))
        assert app.recvfrom(100)[0] == b"yes"


@FAMILIES
def test_a_new_generation_voids_what_was_given(pocket: Pocket, gate: Gate, family: int) -> None:
    with _sock(pocket, family) as app, _sock(pocket, family, in_peer=True) as peer:
        gate.give(family, _port(app), allowed=True)
        peer.sendto(b"one", (POD[family], _port(app)))
        app.sendto(b"answer", app.recvfrom(100)[1])  # which makes the peer no one's answerer
        gate.entry.begin_epoch([])
        peer.sendto(b"two", (POD[family], _port(app)))
        assert gate.judged(family)[0] == b"two"
        gate.entry.begin_epoch([POD[family]])
        peer.sendto(b"three", (POD[family], _port(app)))
        assert app.recvfrom(100)[0] == b"three"


@FAMILIES
@pytest.mark.parametrize("connected", [False, True])
def test_answers_come_in_without_a_verdict(
    pocket: Pocket, gate: Gate, family: int, connected: bool
) -> None:
    with _sock(pocket, family) as app, _sock(pocket, family, in_peer=True) as peer:
        if connected:
            app.connect((PEER[family], _port(peer)))
            app.send(b"question")
        else:
            app.sendto(b"question", (PEER[family], _port(peer)))
        _, source = peer.recvfrom(100)
        peer.sendto(b"answer", source)
        assert app.recvfrom(100)[0] == b"answer"
        with _sock(pocket, family, in_peer=True) as stranger:
            stranger.sendto(b"stranger", source)
            if not connected:
                assert gate.judged(family)[0] == b"stranger"


@FAMILIES
@pytest.mark.parametrize("size", [0, 1, 1473, 9000])
def test_what_waited_is_sent_from_the_apps_own_port_and_answered(
    pocket: Pocket, gate: Gate, family: int, size: int
) -> None:
    path = UdpKernelApi(pocket.pin_dir, pocket.maps, gate.entry)
    with _sock(pocket, family) as app, _sock(pocket, family, in_peer=True) as peer:
        source = SocketAddress(POD[family], _port(app))
        path.send(pocket.pod, source, SocketAddress(PEER[family], _port(peer)), [bytes(size), b"2"])
        data, shown = peer.recvfrom(65536)
        assert (data, shown[:2]) == (bytes(size), (source.ip, source.port))
        assert peer.recv(100) == b"2"
        peer.sendto(b"answer", shown)
        assert app.recvfrom(100)[0] == b"answer"
    path.close()


def test_without_an_agent_what_is_not_decided_stays_out(pocket: Pocket, gate: Gate) -> None:
    for sock in gate.judges.values():
        sock.close()
    with _sock(pocket, 4) as app, _sock(pocket, 4, in_peer=True) as peer:
        before = gate.count("udp_no_authorizer")
        peer.sendto(b"x", (POD4, _port(app)))
        assert gate.count("udp_no_authorizer") == before + 1
        gate.entry.allow_all_sources(POD4)
        peer.sendto(b"open", (POD4, _port(app)))
        assert app.recvfrom(100)[0] == b"open"


def test_inside_a_pod_nothing_is_judged(pocket: Pocket, gate: Gate) -> None:
    for family, host in ((4, "127.0.0.1"), (4, POD4), (6, "::1"), (6, POD6)):
        with _sock(pocket, family) as app, _sock(pocket, family) as other:
            other.sendto(b"mine", (host, _port(app)))
            assert app.recvfrom(100)[0] == b"mine"


@pytest.mark.parametrize("connected", [False, True])
def test_a_pod_of_this_node_is_known_by_its_namespace(
    fresh_pocket: Pocket, connected: bool
) -> None:
    """A verdict for it is not one for who only has its address."""
    pocket = fresh_pocket
    pocket.enrol_peer()
    gate = Gate(pocket)
    try:
        for family in (4, 6):
            with netns.entered(pocket.peer):
                near = socket.socket(AF[family], socket.SOCK_DGRAM)
            with _sock(pocket, family) as app, near:
                to = (POD[family], _port(app))
                near.connect(to) if connected else near.sendto(b"x", to)
                if connected:
                    near.send(b"x")
                _, source, destination = gate.judged(family)
                assert gate.entry.source_pod(source, destination) == pocket.peer_cookie
                gate.give(family, to[1], allowed=True, cookie=pocket.peer_cookie)
                near.send(b"in") if connected else near.sendto(b"in", to)
                data, shown = app.recvfrom(100)
                assert (data, shown[:2]) == (b"in", (source.ip, source.port))
                app.sendto(b"answer", shown)
                near.settimeout(5)
                assert near.recv(100) == b"answer"
    finally:
        gate.close()
