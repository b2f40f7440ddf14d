# SPDX-License-Identifier: Apache-2.0
"""Every method to open a TCP connection is redirected, with the original destination."""

from __future__ import annotations

import errno
import select
import socket
import subprocess
from pathlib import Path

import pytest

from tests.bpf.netns_fixture import PEER4, POD4, POD6, BpfNode
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


def _accept_with_destination(
    node: BpfNode, kind: ListenerKind, destination: SocketAddress
) -> socket.socket:
    accepted = node.accepted(kind)
    assert sockopt.original_destination(accepted) == destination
    return accepted


def test_blocking_connect_reaches_the_proxy(
    node: BpfNode, way: tuple[int, str, ListenerKind, str]
) -> None:
    family, dialed, listener, destination = way
    with node.app_socket(family) as app:
        app.connect((dialed, 80))
        with _accept_with_destination(node, listener, SocketAddress(destination, 80)):
            assert app.getpeername()[:2] == (dialed, 80)


def test_non_blocking_connect_reaches_the_proxy(
    node: BpfNode, way: tuple[int, str, ListenerKind, str]
) -> None:
    family, dialed, listener, destination = way
    with node.app_socket(family) as app:
        app.setblocking(False)
        assert app.connect_ex((dialed, 81)) in (0, errno.EINPROGRESS)
        select.select([], [app], [], 5)
        assert app.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
        _accept_with_destination(node, listener, SocketAddress(destination, 81)).close()


def test_fast_open_by_sendto_reaches_the_proxy(
    node: BpfNode, way: tuple[int, str, ListenerKind, str]
) -> None:
    family, dialed, listener, destination = way
    with node.app_socket(family) as app:
        app.setblocking(True)
        app.sendto(b"early", MSG_FASTOPEN, (dialed, 82))
        with _accept_with_destination(node, listener, SocketAddress(destination, 82)) as proxy:
            assert proxy.recv(16) == b"early"


def test_fast_open_connect_option_reaches_the_proxy(
    node: BpfNode, way: tuple[int, str, ListenerKind, str]
) -> None:
    family, dialed, listener, destination = way
    with node.app_socket(family) as app:
        app.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        app.connect((dialed, 83))
        app.sendall(b"early")
        with _accept_with_destination(node, listener, SocketAddress(destination, 83)) as proxy:
            assert proxy.recv(16) == b"early"


def test_mptcp_connect_reaches_the_proxy(
    node: BpfNode, way: tuple[int, str, ListenerKind, str]
) -> None:
    family, dialed, listener, destination = way
    try:
        app = node.app_socket(family, proto=IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"kernel without MPTCP: {error}")
    with app:
        app.connect((dialed, 84))
        _accept_with_destination(node, listener, SocketAddress(destination, 84)).close()


@pytest.fixture(scope="module")
def uring_connect(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A C program that connects with io_uring, without liburing."""
    program = tmp_path_factory.mktemp("uring") / "uring_connect"
    source = Path(__file__).with_name("uring_connect.c")
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-o", program, source], check=True, timeout=60)
    return program


def test_io_uring_connect_reaches_the_proxy(
    node: BpfNode, uring_connect: Path, way: tuple[int, str, ListenerKind, str]
) -> None:
    _, dialed, listener, destination = way
    argv = ["ip", "netns", "exec", node.pod_name, str(uring_connect), dialed, "85"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True) as app:
        assert app.stdout is not None
        said = app.stdout.readline().strip()
        if said == "unsupported":
            pytest.skip("io_uring is switched off here")
        assert said == "connected"
        _accept_with_destination(node, listener, SocketAddress(destination, 85)).close()


def test_socket_of_the_pod_is_captured_in_another_namespace(node: BpfNode) -> None:
    app = node.app_socket()
    with app, netns.entered(node.peer):
        app.connect(("10.1.2.3", 86))
        _accept_with_destination(
            node, ListenerKind.OUTBOUND4, SocketAddress("10.1.2.3", 86)
        ).close()


def test_socket_created_outside_of_the_pod_is_not_captured(node: BpfNode) -> None:
    """It belongs to the namespace in which it was created (docs/threat-model.md)."""
    with netns.entered(node.peer):
        server = socket.create_server((PEER4, 8900))
    with server, node.peer_socket() as inherited:
        with netns.entered(node.pod):
            inherited.connect((PEER4, 8900))
        assert inherited.getsockname()[0] == PEER4
        assert node.maps.socket_role(inherited) is Role.NONE


def test_process_that_joins_the_pod_from_another_cgroup_is_captured(node: BpfNode) -> None:
    other = node.cgroup / "visitor"
    other.mkdir()
    script = (
        f"echo $$ > {other}/cgroup.procs; exec ip netns exec {node.pod_name} "
        "bash -c 'exec 3<>/dev/tcp/10.1.2.3/87; read _ <&3'"
    )
    with subprocess.Popen(["sh", "-c", script]):
        _accept_with_destination(
            node, ListenerKind.OUTBOUND4, SocketAddress("10.1.2.3", 87)
        ).close()
    wait_until(lambda: not (other / "cgroup.procs").read_text(), "the visitor to leave")
    other.rmdir()


def test_socket_mark_does_not_bypass_the_proxy(node: BpfNode) -> None:
    with node.app_socket() as app:
        app.setsockopt(socket.SOL_SOCKET, SO_MARK, 0x539)  # the mark of Istio's proxy
        app.connect(("10.1.2.3", 88))
        _accept_with_destination(
            node, ListenerKind.OUTBOUND4, SocketAddress("10.1.2.3", 88)
        ).close()


def test_app_bound_to_the_pods_address_is_captured(node: BpfNode) -> None:
    with node.app_socket() as app:
        app.bind((POD4, 0))
        app.connect(("10.1.2.3", 89))
        _accept_with_destination(
            node, ListenerKind.OUTBOUND4, SocketAddress("10.1.2.3", 89)
        ).close()


@pytest.mark.parametrize("port", [15001, 15006, 15008])
@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3", POD4, "::1", POD6])
def test_apps_cannot_connect_to_proxy_ports(node: BpfNode, host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with node.app_socket(family) as app, pytest.raises(ConnectionRefusedError):
        app.connect((host, port))


def test_link_local_destination_is_refused(node: BpfNode) -> None:
    with node.app_socket(socket.AF_INET6) as app, pytest.raises(ConnectionRefusedError):
        app.connect(("fe80::1", 80, 0, 2))


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1"])
def test_loopback_connections_are_not_redirected(node: BpfNode, host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with node.server(family, (host, 8901)) as server, node.app_socket(family) as app:
        app.connect((host, 8901))
        connection, peer = server.accept()
        with connection:
            assert peer[:2] == app.getsockname()[:2]


def test_reconnected_socket_has_the_new_destination(node: BpfNode) -> None:
    with node.server(socket.AF_INET, ("127.0.0.1", 8902)), node.app_socket() as app:
        app.connect(("10.1.2.3", 90))
        node.accepted(ListenerKind.OUTBOUND4).close()
        _disconnect(app)
        app.connect(("127.0.0.1", 8902))
        assert app.getpeername() == ("127.0.0.1", 8902)


def test_getsockname_reports_the_pod_address(node: BpfNode) -> None:
    with node.app_socket() as app, node.app_socket(socket.AF_INET6) as app6:
        app.connect(("10.1.2.3", 91))
        app6.connect(("fd00::5", 91))
        assert app.getsockname()[0] == POD4
        assert app6.getsockname()[0] == POD6
        node.accepted(ListenerKind.OUTBOUND4).close()
        node.accepted(ListenerKind.OUTBOUND6).close()


def test_udp_and_unenrolled_pods_are_not_redirected(node: BpfNode) -> None:
    with node.app_socket(kind=socket.SOCK_DGRAM) as app:
        app.connect((PEER4, 53))
        assert app.getpeername() == (PEER4, 53)
    with node.server(socket.AF_INET, (POD4, 8903)), node.peer_socket() as neighbour:
        neighbour.connect((POD4, 8903))  # inbound: intercepted, see test_inbound
        node.accepted(ListenerKind.INBOUND4).close()


def test_connections_are_refused_without_listeners(fresh_node: BpfNode) -> None:
    fresh_node.close_listeners()
    for family, dialed, _, _ in FAMILIES.values():
        with fresh_node.app_socket(family) as app, pytest.raises(ConnectionRefusedError):
            app.connect((dialed, 80))


def test_unenrolled_pod_connects_directly(fresh_node: BpfNode) -> None:
    assert fresh_node.maps.unenroll(fresh_node.cookie)
    with netns.entered(fresh_node.peer):
        server = socket.create_server((PEER4, 8904))
    with server, fresh_node.app_socket() as app:
        app.connect((PEER4, 8904))
        connection, peer = server.accept()
        with connection:
            assert peer[0] == POD4


def _disconnect(sock: socket.socket) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    unspec = ctypes.create_string_buffer(16)
    assert libc.connect(sock.fileno(), unspec, 16) == 0
