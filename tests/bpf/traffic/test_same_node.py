# SPDX-License-Identifier: Apache-2.0
"""Same-node bypass: valid and invalid entries, revocation, events."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bpf.netns_fixture import PEER4, PEER6, POD4, BpfNode, close_all, run
from tests.support.waiting import wait_until
from ztunnel.datapath import netns
from ztunnel.datapath.bpf.layout import CloseReason, Role, SameNodeState
from ztunnel.datapath.bpf.maps import PodEntry
from ztunnel.datapath.bpf.ring_buffer import ConnectionEvent, EventReader
from ztunnel.datapath.netlink import sock_diag
from ztunnel.datapath.same_node_maps import BypassEntry, SameNodeConnection
from ztunnel.ipc.messages import ListenerKind
from ztunnel.mesh.model import SocketAddress

PORT = 8080
LEASE = 600.0
TCP_FASTOPEN_CONNECT = 30  # linux/tcp.h
RST = struct.pack("ii", 1, 0)
TO4, TO6 = SocketAddress(PEER4, PORT), SocketAddress(PEER6, PORT)
FAMILIES = {
    "ipv4": (socket.AF_INET, PEER4, TO4, ListenerKind.INBOUND4),
    "ipv6": (socket.AF_INET6, PEER6, TO6, ListenerKind.INBOUND6),
    "v4-mapped": (socket.AF_INET6, f"::ffff:{PEER4}", TO4, ListenerKind.INBOUND4),
}


class Pair:
    """Two pods of one node; the second runs a server. `allow` adds a bypass entry."""

    def __init__(self, node: BpfNode) -> None:
        self.node = node
        node.enroll_peer()
        self.events = EventReader(node.pin_dir)
        self.bypass = node.maps.same_node
        self.bypass.renew_lease(LEASE)
        self.app = node.server(socket.AF_INET6, ("::", PORT), in_peer=True)

    def allow(self, destination: SocketAddress = TO4) -> None:
        node = self.node
        self.bypass.allow(BypassEntry(node.cookie, destination, node.peer_cookie))

    def live(self) -> list[SameNodeConnection]:
        return list(self.bypass.connections())

    def next_events(self, count: int) -> list[ConnectionEvent]:
        """Wait for `count` events and return all that arrived."""
        found: list[ConnectionEvent] = []

        def enough() -> bool:
            found.extend(self.events.drain(1 << 20))
            return len(found) >= count

        wait_until(enough, f"{count} events")
        return found

    def intercepted(self, kind: ListenerKind) -> socket.socket:
        """The next connection at the proxy's listener in the destination pod."""
        listener = self.node.peer_listeners[kind]
        listener.settimeout(5)
        connection, _ = listener.accept()
        connection.settimeout(5)
        return connection

    def stat(self, name: str) -> int:
        return self.node.maps.stats()[name]

    def is_redirected(self) -> bool:
        """Whether a new connection is redirected to the proxy."""
        with self.node.app_socket() as sock:
            sock.connect((PEER4, PORT))
            if self.node.maps.socket_role(sock) is not Role.REDIRECTED:
                self.app.accept()[0].close()
                return False
            self.node.accepted(ListenerKind.OUTBOUND4).close()
        return True

    def close(self) -> None:
        self.app.close()
        self.events.close()


@pytest.fixture
def pair(fresh_node: BpfNode) -> Iterator[Pair]:
    made = Pair(fresh_node)
    yield made
    made.close()


@pytest.mark.parametrize("way", FAMILIES)
def test_allowed_connection_bypasses_the_proxy(pair: Pair, way: str) -> None:
    family, target, destination, _ = FAMILIES[way]
    pair.allow(destination)
    with pair.node.app_socket(family) as sock:
        sock.connect((target, PORT))
        served, peer = pair.app.accept()
        with served:
            assert sock.getpeername()[:2] == (target, PORT)
            assert peer[:2] == served.getpeername()[:2]
            assert peer[0].removeprefix("::ffff:") == sock.getsockname()[0].removeprefix("::ffff:")
            assert peer[1] == sock.getsockname()[1]
            entry = pair.live()[0]
            assert entry.destination == destination
            assert entry.state is SameNodeState.ESTABLISHED
            assert pair.node.maps.socket_role(sock) is Role.SAME_NODE
            assert pair.node.maps.pod_stats()[pair.node.cookie].same_node_bypass == 1
    wait_until(lambda: not pair.live(), "the entry to go with its socket")


@pytest.mark.parametrize("way", FAMILIES)
def test_connection_without_entry_is_redirected(pair: Pair, way: str) -> None:
    family, target, destination, _ = FAMILIES[way]
    pair.allow(SocketAddress(destination.ip, PORT + 1))
    outbound = ListenerKind.OUTBOUND4 if way != "ipv6" else ListenerKind.OUTBOUND6
    with pair.node.app_socket(family) as sock:
        sock.connect((target, PORT))
        pair.node.accepted(outbound).close()
    assert pair.live() == []


def test_revoked_entries_are_invalid_immediately(pair: Pair) -> None:
    pair.allow()
    assert not pair.is_redirected()
    pair.bypass.revoke()
    assert pair.is_redirected()
    assert pair.bypass.entries() == []
    pair.allow()
    assert not pair.is_redirected()


def test_entries_are_invalid_after_the_lease(pair: Pair) -> None:
    pair.allow()
    pair.bypass.renew_lease(0)
    assert pair.is_redirected()
    pair.bypass.renew_lease(LEASE)
    assert not pair.is_redirected()


def test_enrollment_and_unenrollment_revoke_entries(pair: Pair) -> None:
    maps = pair.node.maps
    for change in (
        lambda: maps.enroll(PodEntry(4711, ("10.1.1.1",))),
        lambda: maps.unenroll(4711),
    ):
        pair.allow()
        assert not pair.is_redirected()
        change()
        assert pair.is_redirected()


def test_entry_is_valid_only_while_both_pods_are_enrolled(pair: Pair) -> None:
    """The destination namespace of the entry is not that of an enrolled pod."""
    pair.bypass.allow(BypassEntry(pair.node.cookie, TO4, 4711))
    assert pair.is_redirected()


def test_entry_applies_only_to_its_source_namespace(pair: Pair) -> None:
    """The namespace identifies the source, so another pod with its address has no entry."""
    pair.bypass.allow(BypassEntry(4711, TO4, pair.node.peer_cookie))
    assert pair.is_redirected()


def test_syn_without_bypass_socket_is_intercepted(pair: Pair) -> None:
    """An entry of the pair does not admit a connection of a PROXY socket."""
    pair.allow()
    with pair.node.proxy_socket(4) as forged:
        forged.connect((PEER4, PORT))
        pair.intercepted(ListenerKind.INBOUND4).close()
    assert pair.live() == []
    assert pair.stat("same_node_bypass") == 0


def test_source_address_of_another_pod_is_intercepted(pair: Pair) -> None:
    pair.allow()
    run("ip", "-n", pair.node.pod_name, "addr", "add", "10.98.0.77/24", "dev", "eth0")
    with pair.node.app_socket() as sock:
        sock.bind(("10.98.0.77", 0))
        sock.connect((PEER4, PORT))
        with pair.intercepted(ListenerKind.INBOUND4) as intercepted:
            assert intercepted.getpeername()[0] == "10.98.0.77"
    assert pair.stat("same_node_bypass") == 0


def test_entry_revoked_between_connect_and_syn_is_intercepted(pair: Pair) -> None:
    """With TCP_FASTOPEN_CONNECT, connect() is authorized, but the first write sends the SYN."""
    pair.allow()
    for space in (pair.node.pod_name, pair.node.peer_name):
        run("ip", "netns", "exec", space, "sysctl", "-qw", "net.ipv4.tcp_fastopen=3")
    pair.app.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    with pair.node.app_socket() as first:  # fetches the cookie
        first.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        first.connect((PEER4, PORT))
        pair.app.accept()[0].close()
    with pair.node.app_socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        sock.connect((PEER4, PORT))
        assert pair.node.maps.socket_role(sock) is Role.SAME_NODE
        pair.bypass.revoke()
        sock.sendall(b"x")
        with pair.intercepted(ListenerKind.INBOUND4) as intercepted:
            assert intercepted.recv(1) == b"x"
        assert [entry.state for entry in pair.live()] == [SameNodeState.INTERCEPTED]
    assert pair.stat("same_node_bypass") == 1
    assert pair.stat("unexpected_peer") == 0


def test_bypass_is_refused_without_listener_in_the_destination(pair: Pair) -> None:
    """The agent and the proxy have exited, but the lease has not expired."""
    pair.allow()
    close_all(pair.node.peer_listeners)
    with pair.node.app_socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((PEER4, PORT))
    assert pair.next_events(1)[0].close_reason is CloseReason.REFUSED
    assert pair.live() == []


@pytest.mark.parametrize("way", FAMILIES)
def test_pod_that_reuses_an_address_receives_no_data(pair: Pair, way: str) -> None:
    """Another namespace, which is not enrolled, has the address of a deleted pod."""
    family, target, destination, _ = FAMILIES[way]
    pair.allow(destination)
    node, other = pair.node, f"{pair.node.peer_name}b"
    pair.app.close()
    run("ip", "netns", "add", other)
    try:
        run("ip", "-n", node.peer_name, "link", "set", "eth1", "netns", other)
        run("ip", "-n", other, "addr", "add", f"{PEER4}/24", "dev", "eth1")
        run("ip", "-n", other, "addr", "add", f"{PEER6}/64", "dev", "eth1", "nodad")
        run("ip", "-n", other, "link", "set", "eth1", "up")
        with Path(f"/run/netns/{other}").open() as space, netns.entered(space.fileno()):
            thief = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
        with thief, node.app_socket(family) as sock:
            with suppress(OSError):  # IPv6 fails immediately: network unreachable
                sock.connect((target, PORT))
                sock.sendall(b"secret")
            thief.settimeout(1)
            with pytest.raises(TimeoutError):  # the last packet of the handshake does not arrive
                thief.accept()
            event = pair.next_events(1)[0]
            assert event.close_reason is CloseReason.UNEXPECTED_PEER
            assert pair.stat("unexpected_peer") == 1
            cut_off = event.source, event.destination, event.owner
            sock_diag.destroy(node.pod, *cut_off, interface=sock_diag.LOOPBACK_IFINDEX)
            with pytest.raises(OSError):
                sock.recv(1)
    finally:
        run("ip", "netns", "del", other)


def test_recreated_pod_does_not_inherit_entries(pair: Pair) -> None:
    """A new namespace with the same address: its enrollment revokes the old entries."""
    pair.allow()
    pair.node.maps.unenroll(pair.node.peer_cookie)
    pair.node.maps.enroll(PodEntry(pair.node.peer_cookie + 1, (PEER4, PEER6)))
    assert pair.is_redirected()


@pytest.mark.parametrize("first", ["client", "server", "half-close"])
def test_close_event_has_the_exact_payload_counts(pair: Pair, first: str) -> None:
    pair.allow()
    with pair.node.app_socket() as sock:
        sock.connect((PEER4, PORT))
        served, _ = pair.app.accept()
        sock.sendall(b"a" * 1000)
        assert _exactly(served, 1000)
        served.sendall(b"b" * 70_000)
        assert _exactly(sock, 70_000)
        if first == "server":
            served.close()
            assert sock.recv(1) == b""
        elif first == "half-close":
            sock.shutdown(socket.SHUT_WR)
            assert served.recv(1) == b""
            served.close()
            assert sock.recv(1) == b""
    if first == "client":
        assert served.recv(1) == b""
        served.close()
    event = pair.next_events(1)[0]
    assert (event.sent, event.received) == (1000, 70_000)
    assert event.close_reason is CloseReason.ORDERLY
    assert (event.netns_cookie, event.destination_cookie) == (
        pair.node.cookie,
        pair.node.peer_cookie,
    )
    assert event.source.ip == POD4
    assert event.destination == TO4
    assert 0 < event.duration < 5


def _exactly(sock: socket.socket, count: int) -> bool:
    while count:
        count -= len(sock.recv(count))
    return True


def test_resets_and_refusals_emit_events(pair: Pair) -> None:
    pair.allow()
    pair.allow(SocketAddress(PEER4, 9))
    with pair.node.app_socket() as sock:
        sock.connect((PEER4, PORT))
        served, _ = pair.app.accept()
        served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        served.close()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    with pair.node.app_socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((PEER4, 9))
    assert [event.close_reason for event in pair.next_events(2)] == [
        CloseReason.RESET,
        CloseReason.REFUSED,
    ]


@pytest.mark.timeout(120)
def test_no_entry_leaks_and_every_close_emits_an_event(pair: Pair) -> None:
    rounds = 5000
    pair.allow()
    with netns.entered(pair.node.pod):
        for number in range(rounds):
            with socket.socket() as sock:
                sock.connect((PEER4, PORT))
                served, _ = pair.app.accept()
                with served:
                    for one in (sock, served)[: number % 3]:
                        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
                    if number % 2:
                        served.close()
    wait_until(lambda: not pair.live(), "zt_same_node_conns to be empty")
    assert len(pair.next_events(rounds)) == rounds
    assert pair.node.maps.pod_stats()[pair.node.cookie].same_node_bypass == rounds
    assert pair.stat("same_node_bypass") >= rounds
    assert (pair.stat("event_lost"), pair.stat("flow_full"), pair.stat("unexpected_peer")) == (
        0,
        0,
        0,
    )


@pytest.mark.parametrize("way", FAMILIES)
def test_live_connection_is_destroyed(pair: Pair, way: str) -> None:
    family, target, destination, _ = FAMILIES[way]
    pair.allow(destination)
    with pair.node.app_socket(family) as sock:
        sock.connect((target, PORT))
        served, _ = pair.app.accept()
        with served:
            entry = pair.live()[0]
            pod = pair.node.pod
            assert not sock_diag.destroy(pod, entry.source, entry.destination, entry.owner + 1)
            assert sock_diag.destroy(pod, entry.source, entry.destination, entry.owner)
            with pytest.raises(ConnectionAbortedError):
                sock.recv(1)
            with pytest.raises(ConnectionResetError):
                served.recv(1)
            assert not sock_diag.destroy(pod, entry.source, entry.destination, entry.owner)
    wait_until(lambda: not pair.live(), "the entry to go")
