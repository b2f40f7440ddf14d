# SPDX-License-Identifier: Apache-2.0
"""Flow entries neither leak nor become stale, regardless of how connections close."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.bpf.netns_fixture import POD4, BpfNode, run
from tests.support.waiting import wait_until
from ztunnel.datapath import netns, sockopt
from ztunnel.datapath.bpf.layout import Role
from ztunnel.datapath.bpf.maps import Maps
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress

RST = struct.pack("ii", 1, 0)  # struct linger: on, 0 s: close() sends RST
ROUNDS = 20_000


def _narrow_ports(node: BpfNode) -> None:
    """Limit the pod to a hundred source ports, so that each is reused about a hundred times."""
    argv = ("ip", "netns", "exec", node.pod_name, "sysctl", "-qw")
    run(*argv, "net.ipv4.ip_local_port_range=40000 40099")
    run(*argv, "net.ipv4.tcp_tw_reuse=1")


@pytest.mark.timeout(180)
def test_reused_port_never_serves_stale_destination(fresh_node: BpfNode) -> None:
    node = fresh_node
    _narrow_ports(node)
    baseline = node.maps.flow_count()
    listener = node.listeners[ListenerKind.OUTBOUND4]
    listener.setblocking(True)
    listener.settimeout(10)
    with netns.entered(node.pod):
        for round_number in range(ROUNDS):
            wanted = SocketAddress(f"10.7.{round_number >> 8 & 255}.{round_number & 255}", 80)
            _connect_and_end(node, listener, wanted, round_number)
    wait_until(lambda: node.maps.flow_count() == baseline, "zt_flows to return to its baseline")
    assert node.maps.stats()["flow_full"] == 0
    assert node.maps.pod_stats()[node.cookie].redirected == ROUNDS


def _connect_and_end(
    node: BpfNode, listener: socket.socket, wanted: SocketAddress, round_number: int
) -> None:
    with socket.socket() as app:
        app.connect((wanted.ip, wanted.port))
        accepted, _ = listener.accept()
        with accepted:
            assert sockopt.original_destination(accepted) == wanted
            # FIN by the app, RST by the app, RST by the proxy; TIME_WAIT must not use up the ports.
            if round_number % 3 == 1:
                app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            elif round_number % 3 == 2:
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            else:
                accepted.close()  # closes first, so TIME_WAIT is on the proxy's side
                assert app.recv(1) == b""
            if round_number % 3 == 1:
                app.close()
                with pytest.raises(ConnectionResetError):
                    accepted.recv(1)


def test_flow_exists_as_long_as_its_socket(node: BpfNode) -> None:
    reader = Maps(node.pin_dir, read_only=True)
    with node.app_socket() as app:
        app.connect(("10.5.5.5", 80))
        accepted = node.accepted(ListenerKind.OUTBOUND4)
        port = app.getsockname()[1]
        found = [flow for flow in reader.flows() if flow.source.port == port]
        assert [(flow.role, flow.address) for flow in found] == [
            (Role.REDIRECTED, SocketAddress("10.5.5.5", 80))
        ]
        accepted.close()
    wait_until(
        lambda: all(flow.source.port != port for flow in reader.flows()), "the entry to be deleted"
    )
    reader.close()


def test_inbound_flow_has_the_original_client(node: BpfNode) -> None:
    with node.server(socket.AF_INET, (POD4, 8200)) as server, node.proxy_socket(4) as own:
        sockopt.set_client_address(own, SocketAddress("10.244.1.9", 4242))
        own.connect((POD4, 8200))
        server.accept()[0].close()
        found = [flow for flow in node.maps.flows() if flow.port == 8200]
        assert [(flow.role, flow.address) for flow in found] == [
            (Role.PROXY, SocketAddress("10.244.1.9", 4242))
        ]


def test_refused_connect_leaves_no_entry(fresh_node: BpfNode) -> None:
    node = fresh_node
    node.close_listeners()
    for _ in range(50):
        with node.app_socket() as app, pytest.raises(ConnectionRefusedError):
            app.connect(("10.5.5.6", 80))
    assert node.maps.flow_count() == 0


def test_original_destination_is_available_only_to_the_proxy(node: BpfNode) -> None:
    with node.app_socket() as app:
        app.connect(("10.5.5.7", 80))
        node.accepted(ListenerKind.OUTBOUND4).close()
        with pytest.raises(OSError, match=r"\[Errno (2|92|99)\]"):
            sockopt.original_destination(app)


def test_read_only_maps_reject_writes(node: BpfNode) -> None:
    reader = Maps(node.pin_dir, read_only=True)
    assert [pod.netns_cookie for pod in reader.pods()] == [node.cookie]
    with pytest.raises(PermissionError):
        reader.unenroll(node.cookie)
    reader.close()
