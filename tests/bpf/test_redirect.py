# SPDX-License-Identifier: Apache-2.0
"""Every way an app can open a TCP connection ends at the proxy, which learns the destination."""

from __future__ import annotations

import errno
import select
import socket
import subprocess
from pathlib import Path

import pytest

from tests.bpf.netns_fixture import PEER4, POD4, POD6, Pocket
from tests.support.waiting import wait_until
from ztunnel.datapath import netns, sockopt
from ztunnel.datapath.bpf.layout import Role
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress

MSG_FASTOPEN = 0x20000000
TCP_FASTOPEN_CONNECT = 30
IPPROTO_MPTCP = 262
SO_MARK = 36

FAMILIES = {
    "ipv4": (socket.AF_INET, "10.1.2.3", ListenerKind.OUTBOUND4, "10.1.2.3"),
    "ipv6": (socket.AF_INET6, "fd00::5", ListenerKind.OUTBOUND6, "fd00::5"),
    "v4-mapped": (socket.AF_INET6, "::ffff:10.1.2.3", ListenerKind.OUTBOUND4, "10.1.2.3"),
}


@pytest.fixture(params=FAMILIES, ids=str)
def way(request: pytest.FixtureRequest) -> tuple[int, str, ListenerKind, str]:
    return FAMILIES[request.param]


def _arrives(pocket: Pocket, kind: ListenerKind, destination: SocketAddress) -> socket.socket:
    accepted = pocket.accepted(kind)
    assert sockopt.original_destination(accepted) == destination
    return accepted


def test_blocking_connect_reaches_the_proxy(
    pocket: Pocket, way: tuple[int, str, ListenerKind, str]
) -> None:
    family, dialled, listener, destination = way
    with pocket.app_socket(family) as app:
        app.connect((dialled, 80))
        with _arrives(pocket, listener, SocketAddress(destination, 80)):
            assert app.getpeername()[:2] == (dialled, 80)


def test_non_blocking_connect_reaches_the_proxy(
    pocket: Pocket, way: tuple[int, str, ListenerKind, str]
) -> None:
    family, dialled, listener, destination = way
    with pocket.app_socket(family) as app:
        app.setblocking(False)
        assert app.connect_ex((dialled, 81)) in (0, errno.EINPROGRESS)
        select.select([], [app], [], 5)
        assert app.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        _arrives(pocket, listener, SocketAddress(destination, 81)).close()


def test_fast_open_by_sendto_reaches_the_proxy(
    pocket: Pocket, way: tuple[int, str, ListenerKind, str]
) -> None:
    family, dialled, listener, destination = way
    with pocket.app_socket(family) as app:
        app.setblocking(True)
        app.sendto(b"early", MSG_FASTOPEN, (dialled, 82))
        with _arrives(pocket, listener, SocketAddress(destination, 82)) as proxy:
            assert proxy.recv(16) == b"early"


def test_fast_open_connect_option_reaches_the_proxy(
    pocket: Pocket, way: tuple[int, str, ListenerKind, str]
) -> None:
    family, dialled, listener, destination = way
    with pocket.app_socket(family) as app:
        app.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        app.connect((dialled, 83))
        app.sendall(b"early")
        with _arrives(pocket, listener, SocketAddress(destination, 83)) as proxy:
            assert proxy.recv(16) == b"early"


def test_mptcp_connect_reaches_the_proxy(
    pocket: Pocket, way: tuple[int, str, ListenerKind, str]
) -> None:
    family, dialled, listener, destination = way
    try:
        app = pocket.app_socket(family, proto=IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"kernel without MPTCP: {error}")
    with app:
        app.connect((dialled, 84))
        _arrives(pocket, listener, SocketAddress(destination, 84)).close()


@pytest.fixture(scope="module")
def uring_connect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C program that connects by io_uring, without liburing."""
    program = tmp_path_factory.mktemp("uring") / "uring_connect"
    source = Path(__file__).with_name("uring_connect.c")
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-o", program, source], check=True, timeout=60)
    return program


def test_io_uring_connect_reaches_the_proxy(
    pocket: Pocket, uring_connect: Path, way: tuple[int, str, ListenerKind, str]
) -> None:
    _, dialled, listener, destination = way
    argv = ["ip", "netns", "exec", pocket.pod_name, str(uring_connect), dialled, "85"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as app:
        assert app.stdout is not None
        said = app.stdout.readline().strip()
        if said == "unsupported":
            pytest.skip("io_uring is switched off here")
        assert said == "connected"
        _arrives(pocket, listener, SocketAddress(destination, 85)).close()


def test_socket_taken_to_another_namespace_is_still_captured(pocket: Pocket) -> None:
    app = pocket.app_socket()
    with app, netns.entered(pocket.peer):
        app.connect(("10.1.2.3", 86))
        _arrives(pocket, ListenerKind.OUTBOUND4, SocketAddress("10.1.2.3", 86)).close()


def test_socket_inherited_from_outside_keeps_its_own_network(pocket: Pocket) -> None:
    """It is no traffic of the pod: it leaves from where it was made (docs/threat-model.md)."""
    with netns.entered(pocket.peer):
        server = socket.create_server((PEER4, 8900))
    with server, pocket.peer_socket() as inherited:
        with netns.entered(pocket.pod):
            inherited.connect((PEER4, 8900))
        assert inherited.getsockname()[0] == PEER4
        assert pocket.maps.socket_role(inherited) is Role.NONE


def test_process_that_joins_the_pod_from_another_cgroup_is_captured(pocket: Pocket) -> None:
    other = pocket.cgroup / "visitor"
    other.mkdir()
    script = (
        f"echo $$ > {other}/cgroup.procs; exec ip netns exec {pocket.pod_name} "
        "bash -c 'exec 3<>/dev/tcp/10.1.2.3/87; read _ <&3'"
    )
    with subprocess.Popen(["sh", "-c", script]):
        _arrives(pocket, ListenerKind.OUTBOUND4, SocketAddress("10.1.2.3", 87)).close()
    wait_until(lambda: not (other / "cgroup.procs").read_text(), "the visitor to leave")
    other.rmdir()


def test_a_mark_is_no_way_round(pocket: Pocket) -> None:
    with pocket.app_socket() as app:
        app.setsockopt(socket.SOL_SOCKET, SO_MARK, 0x539)  # what Istio's proxy sets
        app.connect(("10.1.2.3", 88))
        _arrives(pocket, ListenerKind.OUTBOUND4, SocketAddress("10.1.2.3", 88)).close()


def test_app_bound_to_the_pods_address_is_captured(pocket: Pocket) -> None:
    with pocket.app_socket() as app:
        app.bind((POD4, 0))
        app.connect(("10.1.2.3", 89))
        _arrives(pocket, ListenerKind.OUTBOUND4, SocketAddress("10.1.2.3", 89)).close()


@pytest.mark.parametrize("port", [15001, 15006, 15008])
@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", POD4, "::1", POD6])
def test_our_own_ports_are_refused_to_apps(pocket: Pocket, host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with pocket.app_socket(family) as app, pytest.raises(ConnectionRefusedError):
        app.connect((host, port))


def test_link_local_destination_is_refused(pocket: Pocket) -> None:
    with pocket.app_socket(socket.AF_INET6) as app, pytest.raises(ConnectionRefusedError):
        app.connect(("fe80::1", 80, 0, 2))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
def test_the_pods_own_loopback_is_left_alone(pocket: Pocket, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with pocket.server(family, (host, 8901)) as server, pocket.app_socket(family) as app:
        app.connect((host, 8901))
        connection, peer = server.accept()
        with connection:
            assert peer[:2] == app.getsockname()[:2]


def test_socket_used_again_forgets_its_first_destination(pocket: Pocket) -> None:
    with pocket.server(socket.AF_INET, ("127.0.0.1", 8902)), pocket.app_socket() as app:
        app.connect(("10.1.2.3", 90))
        pocket.accepted(ListenerKind.OUTBOUND4).close()
        _disconnect(app)
        app.connect(("127.0.0.1", 8902))
        assert app.getpeername() == ("127.0.0.1", 8902)


def test_app_sees_the_pods_address_as_its_own(pocket: Pocket) -> None:
    with pocket.app_socket() as app, pocket.app_socket(socket.AF_INET6) as app6:
        app.connect(("10.1.2.3", 91))
        app6.connect(("fd00::5", 91))
        assert app.getsockname()[0] == POD4
        assert app6.getsockname()[0] == POD6
        pocket.accepted(ListenerKind.OUTBOUND4).close()
        pocket.accepted(ListenerKind.OUTBOUND6).close()


def test_udp_and_other_pods_are_left_alone(pocket: Pocket) -> None:
    with pocket.app_socket(kind=socket.SOCK_DGRAM) as app:
        app.connect((PEER4, 53))
        assert app.getpeername() == (PEER4, 53)
    with pocket.server(socket.AF_INET, (POD4, 8903)), pocket.peer_socket() as neighbour:
        neighbour.connect((POD4, 8903))  # from outside: stolen, see test_inbound
        pocket.accepted(ListenerKind.INBOUND4).close()


def test_without_the_proxy_connections_are_refused(fresh_pocket: Pocket) -> None:
    fresh_pocket.close_listeners()
    for family, dialled, _, _ in FAMILIES.values():
        with fresh_pocket.app_socket(family) as app, pytest.raises(ConnectionRefusedError):
            app.connect((dialled, 80))


def test_unenrolled_pod_connects_directly(fresh_pocket: Pocket) -> None:
    assert fresh_pocket.maps.unenroll(fresh_pocket.cookie)
    with netns.entered(fresh_pocket.peer):
        server = socket.create_server((PEER4, 8904))
    with server, fresh_pocket.app_socket() as app:
        app.connect((PEER4, 8904))
        connection, peer = server.accept()
        with connection:
            assert peer[0] == POD4


def _disconnect(sock: socket.socket) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    unspec = ctypes.create_string_buffer(16)
    assert libc.connect(sock.fileno(), unspec, 16) == 0
