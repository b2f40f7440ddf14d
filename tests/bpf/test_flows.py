# SPDX-License-Identifier: Apache-2.0
"""Original destinations neither leak nor go stale, however connections end."""

from __future__ import annotations

import socket
import struct

import pytest

from tests.bpf.netns_fixture import POD4, Pocket, run
from tests.support.waiting import wait_until
from ztunnel.datapath import netns, sockopt
from ztunnel.datapath.bpf.layout import Role
from ztunnel.datapath.bpf.maps import Maps
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress

RST = struct.pack("ii", 1, 0)  # struct linger: on, 0 s: close() sends RST
ROUNDS = 20_000


def _narrow_ports(pocket: Pocket) -> None:
    """A hundred source ports, so that each is used some hundred times."""
    argv = ("ip", "netns", "exec", pocket.pod_name, "sysctl", "-qw")
    run(*argv, "net.ipv4.ip_local_port_range=40000 40099")
    run(*argv, "net.ipv4.tcp_tw_reuse=1")


@pytest.mark.timeout(180)
def test_reused_port_never_serves_stale_destination(fresh_pocket: Pocket) -> None:
    pocket = fresh_pocket
    _narrow_ports(pocket)
    baseline = pocket.maps.flow_count()
    listener = pocket.listeners[ListenerKind.OUTBOUND4]
    listener.setblocking(True)
    listener.settimeout(10)
    with netns.entered(pocket.pod):
        for round_number in range(ROUNDS):
            wanted = SocketAddress(f"10.7.{round_number >> 8 & 255}.{round_number & 255}", 80)
            _connect_and_end(pocket, listener, wanted, round_number)
    wait_until(lambda: pocket.maps.flow_count() == baseline, "zt_flows to return to its baseline")
    assert pocket.maps.stats()["flow_full"] == 0
    assert pocket.maps.pod_stats()[pocket.cookie].redirected == ROUNDS


def _connect_and_end(
    pocket: Pocket, listener: socket.socket, wanted: SocketAddress, round_number: int
) -> None:
    with socket.socket() as app:
        app.connect((wanted.ip, wanted.port))
        accepted, _ = listener.accept()
        with accepted:
            assert sockopt.original_destination(accepted) == wanted
            # FIN by the app, RST by the app, RST by the proxy: no TIME_WAIT may eat all ports.
            if round_number % 3 == 1:
                app.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            elif round_number % 3 == 2:
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            else:
                accepted.close()  # the proxy is first: the TIME_WAIT is on its side
                assert app.recv(1) == b""
            if round_number % 3 == 1:
                app.close()
                with pytest.raises(ConnectionResetError):
                    accepted.recv(1)


def test_live_connection_is_listed_and_goes_with_its_socket(pocket: Pocket) -> None:
    reader = Maps(pocket.pin_dir, read_only=True)
    with pocket.app_socket() as app:
        app.connect(("10.5.5.5", 80))
        accepted = pocket.accepted(ListenerKind.OUTBOUND4)
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


def test_inbound_flow_names_the_true_client(pocket: Pocket) -> None:
    with pocket.server(socket.AF_INET, (POD4, 8200)) as server, pocket.own(4) as own:
        sockopt.set_client_address(own, SocketAddress("10.244.1.9", 4242))
        own.connect((POD4, 8200))
        server.accept()[0].close()
        found = [flow for flow in pocket.maps.flows() if flow.port == 8200]
        assert [(flow.role, flow.address) for flow in found] == [
            (Role.PROXY, SocketAddress("10.244.1.9", 4242))
        ]


def test_refused_connect_leaves_no_entry(fresh_pocket: Pocket) -> None:
    pocket = fresh_pocket
    pocket.close_listeners()
    for _ in range(50):
        with pocket.app_socket() as app, pytest.raises(ConnectionRefusedError):
            app.connect(("10.5.5.6", 80))
    assert pocket.maps.flow_count() == 0


def test_original_destination_is_only_answered_to_the_proxy(pocket: Pocket) -> None:
    with pocket.app_socket() as app:
        app.connect(("10.5.5.7", 80))
        pocket.accepted(ListenerKind.OUTBOUND4).close()
        with pytest.raises(OSError, match=r"\[Errno (2|92|99)\]"):
            sockopt.original_destination(app)


def test_inspection_has_no_write_access(pocket: Pocket) -> None:
    reader = Maps(pocket.pin_dir, read_only=True)
    assert [pod.netns_cookie for pod in reader.pods()] == [pocket.cookie]
    with pytest.raises(PermissionError):
        reader.unenroll(pocket.cookie)
    reader.close()
