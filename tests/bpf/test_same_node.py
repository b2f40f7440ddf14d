# SPDX-License-Identifier: Apache-2.0
"""Connections by verdict: who gets one, who never does, and what is told of them."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.bpf.netns_fixture import PEER4, PEER6, POD4, Pocket, close_all, run
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
WAYS = {
    "ipv4": (socket.AF_INET, PEER4, TO4, ListenerKind.INBOUND4),
    "ipv6": (socket.AF_INET6, PEER6, TO6, ListenerKind.INBOUND6),
    "v4-mapped": (socket.AF_INET6, f"::ffff:{PEER4}", TO4, ListenerKind.INBOUND4),
}


class Pair:
    """Two pods of one node, the second with a server, and the verdict between them."""

    def __init__(self, pocket: Pocket) -> None:
        self.pocket = pocket
        pocket.enrol_peer()
        self.events = EventReader(pocket.pin_dir)
        self.verdicts = pocket.maps.same_node
        self.verdicts.renew_lease(LEASE)
        self.app = pocket.server(socket.AF_INET6, ("::", PORT), in_peer=True)

    def allow(self, destination: SocketAddress = TO4) -> None:
        pocket = self.pocket
        self.verdicts.allow(BypassEntry(pocket.cookie, destination, pocket.peer_cookie))

    def live(self) -> list[SameNodeConnection]:
        return list(self.verdicts.connections())

    def told(self, count: int) -> list[ConnectionEvent]:
        """The next events, once there are so many."""
        found: list[ConnectionEvent] = []

        def enough() -> bool:
            found.extend(self.events.drain(1 << 20))
            return len(found) >= count

        wait_until(enough, f"{count} events")
        return found

    def stolen(self, kind: ListenerKind) -> socket.socket:
        """The next connection at the proxy's listener in the destination pod."""
        listener = self.pocket.peer_listeners[kind]
        listener.settimeout(5)
        connection, _ = listener.accept()
        connection.settimeout(5)
        return connection

    def stat(self, name: str) -> int:
        return self.pocket.maps.stats()[name]

    def goes_to_the_proxy(self) -> bool:
        """Whether a new connection is redirected, as without a verdict."""
        with self.pocket.app_socket() as sock:
            sock.connect((PEER4, PORT))
            if self.pocket.maps.socket_role(sock) is not Role.REDIRECTED:
                self.app.accept()[0].close()
                return False
            self.pocket.accepted(ListenerKind.OUTBOUND4).close()
        return True

    def close(self) -> None:
        self.app.close()
        self.events.close()


@pytest.fixture
def pair(fresh_pocket: Pocket) -> Iterator[Pair]:
    made = Pair(fresh_pocket)
    yield made
    made.close()


@pytest.mark.parametrize("way", WAYS)
def test_authorised_connection_is_native(pair: Pair, way: str) -> None:
    family, target, destination, _ = WAYS[way]
    pair.allow(destination)
    with pair.pocket.app_socket(family) as sock:
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
            assert pair.pocket.maps.socket_role(sock) is Role.SAME_NODE
            assert pair.pocket.maps.pod_stats()[pair.pocket.cookie].same_node_bypass == 1
    wait_until(lambda: not pair.live(), "the entry to go with its socket")


@pytest.mark.parametrize("way", WAYS)
def test_without_verdict_the_proxy_has_it(pair: Pair, way: str) -> None:
    family, target, destination, _ = WAYS[way]
    pair.allow(SocketAddress(destination.ip, PORT + 1))
    outbound = ListenerKind.OUTBOUND4 if way != "ipv6" else ListenerKind.OUTBOUND6
    with pair.pocket.app_socket(family) as sock:
        sock.connect((target, PORT))
        pair.pocket.accepted(outbound).close()
    assert pair.live() == []


def test_revoked_verdicts_are_void_at_once(pair: Pair) -> None:
    pair.allow()
    assert not pair.goes_to_the_proxy()
    pair.verdicts.revoke()
    assert pair.goes_to_the_proxy()
    assert pair.verdicts.entries() == []
    pair.allow()
    assert not pair.goes_to_the_proxy()


def test_verdicts_lapse_without_the_agent(pair: Pair) -> None:
    pair.allow()
    pair.verdicts.renew_lease(0)
    assert pair.goes_to_the_proxy()
    pair.verdicts.renew_lease(LEASE)
    assert not pair.goes_to_the_proxy()


def test_any_enrolment_or_release_revokes(pair: Pair) -> None:
    maps = pair.pocket.maps
    for change in (
        lambda: maps.enroll(PodEntry(4711, ("10.1.1.1",))),
        lambda: maps.unenroll(4711),
    ):
        pair.allow()
        assert not pair.goes_to_the_proxy()
        change()
        assert pair.goes_to_the_proxy()


def test_verdict_holds_only_while_both_pods_are_enrolled(pair: Pair) -> None:
    """Whatever wrote the verdict: here one for a namespace that is no pod's."""
    pair.verdicts.allow(BypassEntry(pair.pocket.cookie, TO4, 4711))
    assert pair.goes_to_the_proxy()


def test_verdict_of_one_pod_is_not_anothers(pair: Pair) -> None:
    """The source is its namespace: an address taken over by another pod changes nothing."""
    pair.verdicts.allow(BypassEntry(4711, TO4, pair.pocket.peer_cookie))
    assert pair.goes_to_the_proxy()


def test_syn_without_a_connecting_socket_is_stolen(pair: Pair) -> None:
    """A verdict alone opens nothing: who has no verdict of its own comes from an OWN socket."""
    pair.allow()
    with pair.pocket.own(4) as forged:
        forged.connect((PEER4, PORT))
        pair.stolen(ListenerKind.INBOUND4).close()
    assert pair.live() == []
    assert pair.stat("same_node_bypass") == 0


def test_foreign_source_address_is_not_vouched_for(pair: Pair) -> None:
    pair.allow()
    run("ip", "-n", pair.pocket.pod_name, "addr", "add", "10.98.0.77/24", "dev", "eth0")
    with pair.pocket.app_socket() as sock:
        sock.bind(("10.98.0.77", 0))
        sock.connect((PEER4, PORT))
        with pair.stolen(ListenerKind.INBOUND4) as stolen:
            assert stolen.getpeername()[0] == "10.98.0.77"
    assert pair.stat("same_node_bypass") == 0


def test_revoked_between_connect_and_syn_is_the_proxys(pair: Pair) -> None:
    """TCP_FASTOPEN_CONNECT: connect() is judged, the SYN leaves with the first byte."""
    pair.allow()
    for space in (pair.pocket.pod_name, pair.pocket.peer_name):
        run("ip", "netns", "exec", space, "sysctl", "-qw", "net.ipv4.tcp_fastopen=3")
    pair.app.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 16)
    with pair.pocket.app_socket() as first:  # fetches the cookie
        first.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        first.connect((PEER4, PORT))
        pair.app.accept()[0].close()
    with pair.pocket.app_socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        sock.connect((PEER4, PORT))
        assert pair.pocket.maps.socket_role(sock) is Role.SAME_NODE
        pair.verdicts.revoke()
        sock.sendall(b"x")
        with pair.stolen(ListenerKind.INBOUND4) as stolen:
            assert stolen.recv(1) == b"x"
        assert [entry.state for entry in pair.live()] == [SameNodeState.INTERCEPTED]
    assert pair.stat("same_node_bypass") == 1
    assert pair.stat("unexpected_peer") == 0


def test_without_the_proxys_listener_nobody_gets_in(pair: Pair) -> None:
    """Agent and proxy are both dead, the lease still runs: the destination refuses."""
    pair.allow()
    close_all(pair.pocket.peer_listeners)
    with pair.pocket.app_socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((PEER4, PORT))
    assert pair.told(1)[0].close_reason is CloseReason.REFUSED
    assert pair.live() == []


@pytest.mark.parametrize("way", WAYS)
def test_reused_address_never_gets_a_byte(pair: Pair, way: str) -> None:
    """The pod died and another namespace, which nobody enrolled yet, has its address."""
    family, target, destination, _ = WAYS[way]
    pair.allow(destination)
    pocket, other = pair.pocket, f"{pair.pocket.peer_name}b"
    pair.app.close()
    run("ip", "netns", "add", other)
    try:
        run("ip", "-n", pocket.peer_name, "link", "set", "eth1", "netns", other)
        run("ip", "-n", other, "addr", "add", f"{PEER4}/24", "dev", "eth1")
        run("ip", "-n", other, "addr", "add", f"{PEER6}/64", "dev", "eth1", "nodad")
        run("ip", "-n", other, "link", "set", "eth1", "up")
        with Path(f"/run/netns/{other}").open() as space, netns.entered(space.fileno()):
            thief = socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)
        with thief, pocket.app_socket(family) as sock:
            with suppress(OSError):  # IPv6 says at once that the network is unreachable
                sock.connect((target, PORT))
                sock.sendall(b"secret")
            thief.settimeout(1)
            with pytest.raises(TimeoutError):  # not even the handshake's last word gets there
                thief.accept()
            event = pair.told(1)[0]
            assert event.close_reason is CloseReason.UNEXPECTED_PEER
            assert pair.stat("unexpected_peer") == 1
            cut_off = event.source, event.destination, event.owner
            sock_diag.destroy(pocket.pod, *cut_off, interface=sock_diag.LOOPBACK_IFINDEX)
            with pytest.raises(OSError):
                sock.recv(1)
    finally:
        run("ip", "netns", "del", other)


def test_pods_new_namespace_inherits_nothing(pair: Pair) -> None:
    """Re-created with the same address: enrolled anew, so verdicts for the old one are void."""
    pair.allow()
    pair.pocket.maps.unenroll(pair.pocket.peer_cookie)
    pair.pocket.maps.enroll(PodEntry(pair.pocket.peer_cookie + 1, (PEER4, PEER6)))
    assert pair.goes_to_the_proxy()


@pytest.mark.parametrize("first", ["client", "server", "half-close"])
def test_end_tells_payload_exactly(pair: Pair, first: str) -> None:
    pair.allow()
    with pair.pocket.app_socket() as sock:
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
    event = pair.told(1)[0]
    assert (event.sent, event.received) == (1000, 70_000)
    assert event.close_reason is CloseReason.ORDERLY
    assert (event.netns_cookie, event.destination_cookie) == (
        pair.pocket.cookie,
        pair.pocket.peer_cookie,
    )
    assert event.source.ip == POD4
    assert event.destination == TO4
    assert 0 < event.duration < 5


def _exactly(sock: socket.socket, count: int) -> bool:
    while count:
        count -= len(sock.recv(count))
    return True


def test_resets_and_refusals_are_told(pair: Pair) -> None:
    pair.allow()
    pair.allow(SocketAddress(PEER4, 9))
    with pair.pocket.app_socket() as sock:
        sock.connect((PEER4, PORT))
        served, _ = pair.app.accept()
        served.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        served.close()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    with pair.pocket.app_socket() as sock, pytest.raises(ConnectionRefusedError):
        sock.connect((PEER4, 9))
    assert [event.close_reason for event in pair.told(2)] == [
        CloseReason.RESET,
        CloseReason.REFUSED,
    ]


@pytest.mark.timeout(120)
def test_entries_never_leak_and_every_end_is_told(pair: Pair) -> None:
    rounds = 5000
    pair.allow()
    with netns.entered(pair.pocket.pod):
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
    assert len(pair.told(rounds)) == rounds
    assert pair.pocket.maps.pod_stats()[pair.pocket.cookie].same_node_bypass == rounds
    assert pair.stat("same_node_bypass") >= rounds
    assert (pair.stat("event_lost"), pair.stat("flow_full"), pair.stat("unexpected_peer")) == (
        0,
        0,
        0,
    )


@pytest.mark.parametrize("way", WAYS)
def test_live_connection_is_destroyed(pair: Pair, way: str) -> None:
    family, target, destination, _ = WAYS[way]
    pair.allow(destination)
    with pair.pocket.app_socket(family) as sock:
        sock.connect((target, PORT))
        served, _ = pair.app.accept()
        with served:
            entry = pair.live()[0]
            pod = pair.pocket.pod
            assert not sock_diag.destroy(pod, entry.source, entry.destination, entry.owner + 1)
            assert sock_diag.destroy(pod, entry.source, entry.destination, entry.owner)
            with pytest.raises(ConnectionAbortedError):
                sock.recv(1)
            with pytest.raises(ConnectionResetError):
                served.recv(1)
            assert not sock_diag.destroy(pod, entry.source, entry.destination, entry.owner)
    wait_until(lambda: not pair.live(), "the entry to go")
