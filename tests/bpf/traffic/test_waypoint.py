# SPDX-License-Identifier: Apache-2.0
"""The port of a waypoint's Envoy trusts the PROXY header: only the proxy's sockets may connect."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bpf.netns_fixture import PEER4, POD4, POD6, BpfNode
from tests.bpf.traffic.test_redirect import IPPROTO_MPTCP, MSG_FASTOPEN, TCP_FASTOPEN_CONNECT
from ztunnel.mesh.ports import WAYPOINT
from ztunnel.proxy.context import ENVOY
from ztunnel.proxy.io.sockets import disconnect

ADDRESSES = {
    "ipv4": (socket.AF_INET, "127.0.0.1"),
    "other loopback": (socket.AF_INET, "127.8.9.10"),
    "unspecified": (socket.AF_INET, "0.0.0.0"),
    "own address": (socket.AF_INET, POD4),
    "ipv6": (socket.AF_INET6, "::1"),
    "unspecified ipv6": (socket.AF_INET6, "::"),
    "own ipv6 address": (socket.AF_INET6, POD6),
    "v4-mapped": (socket.AF_INET6, "::ffff:127.0.0.1"),
    "v4-mapped other loopback": (socket.AF_INET6, "::ffff:127.8.9.10"),
    "v4-mapped unspecified": (socket.AF_INET6, "::ffff:0.0.0.0"),
    "v4-mapped own address": (socket.AF_INET6, f"::ffff:{POD4}"),
    "another pod": (socket.AF_INET, PEER4),
}


@pytest.fixture(params=ADDRESSES, ids=str)
def target(request: pytest.FixtureRequest) -> tuple[socket.AddressFamily, str]:
    return ADDRESSES[request.param]


@pytest.fixture(scope="module")
def envoy(node: BpfNode) -> Iterator[socket.socket]:
    """A listener at every address of the pod: Envoy's own is at 127.0.0.1 only."""
    with node.server(socket.AF_INET6, ("::", WAYPOINT)) as listener:
        yield listener


def nothing_arrived(listener: socket.socket) -> None:
    assert select.select([listener], [], [], 0)[0] == []


def test_connect_is_refused(
    node: BpfNode, envoy: socket.socket, target: tuple[socket.AddressFamily, str]
) -> None:
    family, dialed = target
    with node.app_socket(family) as app:
        assert app.connect_ex((dialed, WAYPOINT)) == errno.ECONNREFUSED
    with node.app_socket(family) as app:
        app.setblocking(False)
        assert app.connect_ex((dialed, WAYPOINT)) == errno.ECONNREFUSED
    nothing_arrived(envoy)


def test_fast_open_is_refused(
    node: BpfNode, envoy: socket.socket, target: tuple[socket.AddressFamily, str]
) -> None:
    family, dialed = target
    with node.app_socket(family) as app:
        app.setblocking(True)
        with pytest.raises(ConnectionRefusedError):
            app.sendto(b"forged", MSG_FASTOPEN, (dialed, WAYPOINT))
    with node.app_socket(family) as app:
        app.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        assert app.connect_ex((dialed, WAYPOINT)) == errno.ECONNREFUSED
    nothing_arrived(envoy)


def test_mptcp_is_refused(
    node: BpfNode, envoy: socket.socket, target: tuple[socket.AddressFamily, str]
) -> None:
    family, dialed = target
    try:
        app = node.app_socket(family, proto=IPPROTO_MPTCP)
    except OSError as error:
        pytest.skip(f"kernel without MPTCP: {error}")
    with app, pytest.raises(ConnectionRefusedError):
        app.connect((dialed, WAYPOINT))
    nothing_arrived(envoy)


@contextlib.contextmanager
def container(node: BpfNode, name: str) -> Iterator[Path]:
    """The cgroup of another container of the pod."""
    cgroup = node.cgroup / name
    cgroup.mkdir()
    try:
        yield cgroup / "cgroup.procs"
    finally:
        cgroup.rmdir()


_DIAL = """
import errno, os, socket, sys
open(sys.argv[1], "w").write(str(os.getpid()))
fd = os.open(sys.argv[2], os.O_RDONLY)
import ctypes
assert ctypes.CDLL(None).setns(fd, 0x40000000) == 0
for host in sys.argv[3:]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    print(socket.socket(family).connect_ex((host, 15088)))
"""


def test_another_container_of_the_pod_is_refused(node: BpfNode, envoy: socket.socket) -> None:
    hosts = [host for _, host in ADDRESSES.values()]
    with container(node, "sidecar") as procs:
        netns_path = f"/run/netns/{node.pod_name}"
        argv = [sys.executable, "-c", _DIAL, str(procs), netns_path, *hosts]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.split() == [str(errno.ECONNREFUSED)] * len(hosts)
    nothing_arrived(envoy)


def test_socket_of_the_proxy_is_connected(node: BpfNode, envoy: socket.socket) -> None:
    with node.proxy_socket(4) as proxy:
        proxy.connect((ENVOY.ip, ENVOY.port))
        proxy.sendall(b"\r\n\r\n\x00\r\nQUIT\n")
        accepted, _ = envoy.accept()
        with accepted:
            accepted.settimeout(5)
            assert accepted.recv(64) == b"\r\n\r\n\x00\r\nQUIT\n"
            assert accepted.getpeername()[0] == "::ffff:127.0.0.1"
            accepted.sendall(b"answer")
            assert proxy.recv(64) == b"answer"


def test_disconnected_socket_of_the_proxy_connects_to_the_waypoint_again(
    node: BpfNode, envoy: socket.socket
) -> None:
    """The proxy reuses its sockets."""
    with node.proxy_socket(4) as proxy:
        for _ in range(3):
            proxy.connect((ENVOY.ip, ENVOY.port))
            accepted, _ = envoy.accept()
            accepted.close()
            assert proxy.recv(1) == b""
            proxy.shutdown(socket.SHUT_WR)
            assert disconnect(proxy)


def test_inbound_connection_of_another_host_is_intercepted(
    node: BpfNode, envoy: socket.socket
) -> None:
    """It reaches the proxy's inbound listener, which rejects the port."""
    for family, ip in ((socket.AF_INET, POD4), (socket.AF_INET6, POD6)):
        with node.peer_socket(family) as outside:
            outside.connect((ip, WAYPOINT))
            nothing_arrived(envoy)
