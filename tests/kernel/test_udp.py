# SPDX-License-Identifier: Apache-2.0
"""UDP to carried destinations reaches the proxy's socket with its destination, answers come back
as from there, and everything else is left alone.

The test plays the proxy: it reads the pod's UDP socket and asks what tokens stand for.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.kernel.pocket import PEER4, PEER6, POD4, Pocket
from ztunnel.datapath import netns, sockopt
from ztunnel.datapath.udp import IP_PKTINFO, UdpMaps, udp_socket
from ztunnel.mesh.model import SocketAddress

AWAY = "10.99.0.7"  # a carried destination; nobody has it, so nothing can arrive by a plain way
AWAY2 = "10.99.0.8"
_PKTINFO = struct.Struct("=i4s4s")


class Proxy:
    """One worker's end in the pod."""

    def __init__(self, pocket: Pocket, sock: socket.socket) -> None:
        self.pocket = pocket
        self.sock = sock
        self.port = sock.getsockname()[1]

    def receive(self) -> tuple[bytes, str, tuple[str, int]]:
        """The next datagram, its token, and the app's address."""
        self.sock.settimeout(5)
        data, control, _, source = self.sock.recvmsg(65536, 64)
        (_, _, info) = control[0]
        return data, socket.inet_ntoa(_PKTINFO.unpack(info)[2]), source

    def destined(self) -> tuple[bytes, SocketAddress]:
        """The next datagram and where the app sent it."""
        data, token, _ = self.receive()
        return data, sockopt.udp_remote(self.sock, token)

    def send(self, data: bytes, token: str, app: tuple[str, int]) -> None:
        """Bring the app a datagram from whom the token stands for."""
        info = _PKTINFO.pack(0, socket.inet_aton(token), bytes(4))
        self.sock.sendmsg([data], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, app)


@pytest.fixture
def maps(pocket: Pocket) -> Iterator[UdpMaps]:
    made = UdpMaps(pocket.pin_dir)
    for address in (AWAY, AWAY2):
        made.add_destination(address)
    assert made.destinations() == {AWAY, AWAY2}
    yield made
    made.remove(pocket.cookie)
    for address in made.destinations():
        made.remove_destination(address)
    made.close()


@pytest.fixture
def proxy(pocket: Pocket, maps: UdpMaps) -> Iterator[Proxy]:
    with udp_socket(pocket.pod, pocket.maps) as sock:
        made = Proxy(pocket, sock)
        maps.set_ports(pocket.cookie, [made.port])
        yield made


def _app(pocket: Pocket, family: int = socket.AF_INET) -> socket.socket:
    return pocket.app_socket(family, socket.SOCK_DGRAM)


def test_unconnected_socket_reaches_several_destinations(pocket: Pocket, proxy: Proxy) -> None:
    with _app(pocket) as app:
        for ip, port in ((AWAY, 53), (AWAY2, 53), (AWAY, 99), (AWAY, 53)):
            app.sendto(b"to %s" % ip.encode(), (ip, port))
            assert proxy.destined() == (b"to %s" % ip.encode(), SocketAddress(ip, port))


def test_answer_comes_from_whom_the_app_asked(pocket: Pocket, proxy: Proxy) -> None:
    with _app(pocket) as app:
        app.sendto(b"one", (AWAY, 1000))
        app.sendto(b"two", (AWAY2, 2000))
        asked = [proxy.receive(), proxy.receive()]
        for data, token, source in reversed(asked):
            proxy.send(b"answer " + data, token, source)
        assert app.recvfrom(100) == (b"answer two", (AWAY2, 2000))
        assert app.recvfrom(100) == (b"answer one", (AWAY, 1000))


def test_connected_socket_sees_the_addresses_it_would_see(pocket: Pocket, proxy: Proxy) -> None:
    with _app(pocket) as app:
        app.connect((AWAY, 1000))
        assert app.getpeername() == (AWAY, 1000)
        assert app.getsockname()[0] == POD4
        app.send(b"hello")
        data, token, source = proxy.receive()
        assert (data, sockopt.udp_remote(proxy.sock, token)) == (
            b"hello",
            SocketAddress(AWAY, 1000),
        )
        other = sockopt.udp_token(proxy.sock, SocketAddress(AWAY2, 1000))
        proxy.send(b"a stranger's", other, source)
        proxy.send(b"answer", token, source)
        assert app.recvfrom(100) == (b"answer", (AWAY, 1000))


def test_connected_socket_may_change_its_mind(pocket: Pocket, proxy: Proxy) -> None:
    with _app(pocket) as app, pocket.app_socket(kind=socket.SOCK_DGRAM) as local:
        local.bind(("127.0.0.1", 0))
        app.connect((AWAY, 1000))
        app.connect((AWAY2, 2000))
        app.send(b"second")
        assert proxy.destined() == (b"second", SocketAddress(AWAY2, 2000))
    with _app(pocket) as app, pocket.app_socket(kind=socket.SOCK_DGRAM) as plain:
        plain.bind((POD4, 0))
        app.connect((AWAY, 1000))
        app.connect(plain.getsockname())
        assert app.getpeername() == plain.getsockname()
        app.send(b"stays here")
        assert plain.recv(100) == b"stays here"


def test_v4_mapped_sockets(pocket: Pocket, proxy: Proxy) -> None:
    with _app(pocket, socket.AF_INET6) as app:
        app.sendto(b"one", (f"::ffff:{AWAY}", 1000))
        data, token, source = proxy.receive()
        assert (data, sockopt.udp_remote(proxy.sock, token)) == (b"one", SocketAddress(AWAY, 1000))
        proxy.send(b"answer", token, source)
        assert app.recvfrom(100)[1][:2] == (f"::ffff:{AWAY}", 1000)
        app.connect((f"::ffff:{AWAY2}", 2000))
        assert app.getpeername()[:2] == (f"::ffff:{AWAY2}", 2000)
        assert app.getsockname()[0] == f"::ffff:{POD4}"
        app.send(b"two")
        assert proxy.destined() == (b"two", SocketAddress(AWAY2, 2000))


@pytest.mark.parametrize("bound", ["0.0.0.0", POD4, "::"])
def test_server_sees_the_true_client_and_its_answer_finds_back(
    pocket: Pocket, proxy: Proxy, bound: str
) -> None:
    with _app(pocket, socket.AF_INET6 if bound == "::" else socket.AF_INET) as server:
        server.bind((bound, 0))
        port = server.getsockname()[1]
        client = SocketAddress(AWAY, 4444)
        token = sockopt.udp_token(proxy.sock, client)
        proxy.send(b"question", token, (POD4, port))
        data, source = server.recvfrom(100)
        prefix = "::ffff:" if bound == "::" else ""
        assert (data, source[:2]) == (b"question", (prefix + AWAY, 4444))
        server.sendto(b"answer", source)
        answer, answered, _ = proxy.receive()
        assert (answer, answered) == (b"answer", token)
        server.connect(source)
        server.send(b"connected answer")
        data, answered, now = proxy.receive()
        assert (data, answered, now[1]) == (b"connected answer", token, port)
        proxy.send(b"more", token, now)  # to where it spoke from: that may be loopback by now
        assert server.recv(100) == b"more"


def test_server_that_chooses_its_source_by_pktinfo(pocket: Pocket, proxy: Proxy) -> None:
    with _app(pocket) as server:
        server.bind(("0.0.0.0", 0))
        server.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        token = sockopt.udp_token(proxy.sock, SocketAddress(AWAY, 4444))
        proxy.send(b"question", token, (POD4, server.getsockname()[1]))
        _, control, _, source = server.recvmsg(100, 64)
        here = _PKTINFO.unpack(control[0][2])[2]
        assert socket.inet_ntoa(here) == POD4
        info = _PKTINFO.pack(0, here, bytes(4))
        server.sendmsg([b"answer"], [(socket.IPPROTO_IP, IP_PKTINFO, info)], 0, source)
        data, answered, app = proxy.receive()
        assert (data, answered, app[0]) == (b"answer", token, POD4)


@pytest.mark.parametrize("size", [0, 1, 1472, 1473, 9000, 65507])
def test_datagrams_of_every_size(pocket: Pocket, proxy: Proxy, size: int) -> None:
    with _app(pocket) as app:
        app.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        payload = bytes(n & 0xFF for n in range(size))
        app.sendto(payload, (AWAY, 7))
        data, token, source = proxy.receive()
        assert data == payload
        proxy.send(payload, token, source)
        assert app.recvfrom(65536) == (payload, (AWAY, 7))


def test_other_destinations_are_left_alone(pocket: Pocket, proxy: Proxy) -> None:
    with netns.entered(pocket.peer):
        plain = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    with plain, _app(pocket) as app, _app(pocket, socket.AF_INET6) as app6:
        plain.settimeout(5)
        plain.bind(("::", 0))
        port = plain.getsockname()[1]
        app.sendto(b"plain", (PEER4, port))
        data, source = plain.recvfrom(100)
        assert (data, source[0]) == (b"plain", f"::ffff:{POD4}")
        plain.sendto(b"answer", source)
        assert app.recvfrom(100) == (b"answer", (PEER4, port))
        app6.sendto(b"plain6", (PEER6, port))
        assert plain.recv(100) == b"plain6"
        app6.connect((PEER6, port))
        app6.send(b"connected6")
        assert plain.recv(100) == b"connected6"
        assert app6.getpeername()[:2] == (PEER6, port)


def test_an_unenrolled_pod_is_left_alone(pocket: Pocket, proxy: Proxy, maps: UdpMaps) -> None:
    maps.add_destination(POD4)
    with _app(pocket) as server, netns.entered(pocket.peer):
        server.bind((POD4, 0))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.sendto(b"plain", server.getsockname())
            assert server.recvfrom(100)[0] == b"plain"


def test_without_a_worker_carried_udp_is_refused(pocket: Pocket, maps: UdpMaps) -> None:
    maps.set_ports(pocket.cookie, [])
    with _app(pocket) as app:
        with pytest.raises(ConnectionRefusedError):
            app.sendto(b"x", (AWAY, 7))
        with pytest.raises(ConnectionRefusedError):
            app.connect((AWAY, 7))
    assert maps.counters()[pocket.cookie].refused == 2


def test_answers_go_to_the_worker_that_brought_the_question(
    pocket: Pocket, proxy: Proxy, maps: UdpMaps
) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(udp_socket(pocket.pod, pocket.maps)) for _ in range(3)]
        workers = [proxy, *(Proxy(pocket, sock) for sock in others)]
        maps.set_ports(pocket.cookie, [worker.port for worker in workers])
        server = stack.enter_context(_app(pocket))
        server.bind(("0.0.0.0", 0))
        app = (POD4, server.getsockname()[1])
        for number, worker in enumerate(workers * 2):
            client = SocketAddress(AWAY, 5000)
            worker.send(b"question", sockopt.udp_token(worker.sock, client), app)
            _, source = server.recvfrom(100)
            server.sendto(b"answer %d" % number, source)
            assert worker.destined() == (b"answer %d" % number, client)
        maps.set_ports(pocket.cookie, [proxy.port])  # the last worker's socket is gone
        server.sendto(b"later", (AWAY, 5000))
        assert proxy.destined() == (b"later", SocketAddress(AWAY, 5000))


def test_nobody_outside_reaches_the_workers_socket(pocket: Pocket, proxy: Proxy) -> None:
    with netns.entered(pocket.peer), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.sendto(b"forged", (POD4, proxy.port))
    with _app(pocket) as app:
        app.sendto(b"true", (AWAY, 7))
        assert proxy.destined() == (b"true", SocketAddress(AWAY, 7))


def test_apps_may_not_ask_for_tokens(pocket: Pocket, proxy: Proxy) -> None:
    with _app(pocket) as app:
        with pytest.raises(PermissionError):
            sockopt.udp_token(app, SocketAddress(AWAY, 7))
        with pytest.raises(PermissionError):
            sockopt.udp_remote(app, "127.64.0.1")


def test_tokens_of_one_pod_mean_nothing_in_another(pocket: Pocket, proxy: Proxy) -> None:
    token = sockopt.udp_token(proxy.sock, SocketAddress(AWAY, 7))
    with udp_socket(pocket.peer, pocket.maps) as other:
        with pytest.raises(PermissionError):
            sockopt.udp_remote(other, token)
        with pytest.raises(PermissionError):
            sockopt.udp_token(other, SocketAddress(AWAY, 7))
