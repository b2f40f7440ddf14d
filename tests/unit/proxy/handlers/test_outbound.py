# SPDX-License-Identifier: Apache-2.0
"""Outbound connections: peer verification, sharing of tunnels, and operation without an agent."""

from __future__ import annotations

import socket
import threading

import msgspec
import pytest

from tests.support.certificates import Authority
from tests.support.waiting import wait_until
from tests.unit.proxy.conftest import Pair
from tests.unit.proxy.harness import DEADLINE
from ztunnel.ipc.messages import CertificateRemoved, ListenerKind, MeshDelta
from ztunnel.mesh.model import SocketAddress
from ztunnel.proxy.tunnel.state import TunnelState


def ping(pair: Pair) -> None:
    client = pair.a.dial()
    server = pair.app.accept()
    client.sendall(b"ping")
    assert server.recv(4) == b"ping"
    server.close()
    assert client.recv(1) == b""
    client.close()


def is_refused(pair: Pair) -> bool:
    try:
        pair.a.dial().close()
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:  # the reset arrived just before
        pass
    return False


def dial_is_reset(pair: Pair) -> None:
    with pytest.raises(ConnectionResetError):  # the reset may arrive during connect()
        pair.a.dial().recv(1)


def is_reset(sock: socket.socket) -> None:
    with pytest.raises(ConnectionResetError):
        sock.recv(1)


def test_server_of_another_ca_is_refused(fresh_pair: Pair) -> None:
    pair = fresh_pair
    pair.a.start(pair.authority.issue(pair.a.me.identity))
    pair.b.start(Authority().issue(pair.b.me.identity))
    dial_is_reset(pair)


def test_server_with_another_identity_is_refused(fresh_pair: Pair) -> None:
    pair = fresh_pair
    pair.a.start(pair.authority.issue(pair.a.me.identity))
    other = pair.authority.issue("spiffe://cluster.local/ns/test/sa/stranger")
    pair.b.start(msgspec.structs.replace(other, identity=pair.b.me.identity))
    dial_is_reset(pair)


def test_server_with_an_expired_certificate_is_refused(fresh_pair: Pair) -> None:
    pair = fresh_pair
    pair.a.start(pair.authority.issue(pair.a.me.identity))
    pair.b.start(pair.authority.issue(pair.b.me.identity, expired=True))
    dial_is_reset(pair)


def test_server_with_a_ca_certificate_is_refused(fresh_pair: Pair) -> None:
    pair = fresh_pair
    pair.a.start(pair.authority.issue(pair.a.me.identity))
    pair.b.start(pair.authority.issue(pair.b.me.identity, ca=True))
    dial_is_reset(pair)


def test_server_with_two_spiffe_ids_is_refused(fresh_pair: Pair) -> None:
    pair = fresh_pair
    pair.a.start(pair.authority.issue(pair.a.me.identity))
    pair.b.start(pair.authority.issue(pair.b.me.identity, "spiffe://cluster.local/ns/n/sa/x"))
    dial_is_reset(pair)


def test_without_certificate_no_plaintext_is_sent(fresh_pair: Pair) -> None:
    pair = fresh_pair
    pair.b.start(pair.authority.issue(pair.b.me.identity))
    pair.a.start(None)
    wait_until(lambda: pair.a.outbound[1], "listener")
    dial_is_reset(pair)


def test_connections_are_refused_before_a_complete_snapshot(fresh_pair: Pair) -> None:
    pair = fresh_pair
    pair.a.sync = False
    pair.a.start(pair.authority.issue(pair.a.me.identity))
    wait_until(lambda: pair.a.outbound[1], "listener")
    dial_is_reset(pair)
    pair.b.start(pair.authority.issue(pair.b.me.identity))
    mesh = tuple(pair.a.mesh)
    pair.a.agent.send(MeshDelta(revision=1, workloads=mesh, reset=True))
    dial_is_reset(pair)
    pair.a.agent.send(MeshDelta(revision=2, complete=True))
    wait_until(lambda: pair.a.context.mesh is not None, "sync")
    ping(pair)


def test_connection_without_original_destination_is_refused(pair: Pair) -> None:
    def absent(sock: socket.socket) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    pair.a.context.original_destination = absent  # type: ignore[assignment]
    dial_is_reset(pair)


def test_renewed_certificate_drains_tunnels_and_keeps_connections(pair: Pair) -> None:
    client = pair.a.dial()
    server = pair.app.accept()
    ((_, old),) = pair.a.context.pool.tunnels()
    pair.a.agent.send(pair.authority.issue(pair.a.me.identity))
    wait_until(lambda: not pair.a.context.pool.tunnels(), "the tunnel to drain")
    ping(pair)
    ((_, new),) = pair.a.context.pool.tunnels()
    assert new is not old
    client.sendall(b"still here")
    assert server.recv(100) == b"still here"
    client.close()
    server.close()
    wait_until(lambda: old.state is TunnelState.CLOSED, "old tunnel to close with its last stream")


def test_removed_certificate_stops_new_connections(pair: Pair) -> None:
    identity = pair.a.me.identity
    pair.a.agent.send(CertificateRemoved(identity))
    wait_until(lambda: identity not in pair.a.context.credentials, "the certificate to be removed")
    dial_is_reset(pair)
    pair.a.agent.send(pair.authority.issue(identity))
    wait_until(lambda: identity in pair.a.context.credentials, "a new certificate")
    ping(pair)


def test_new_pod_at_the_same_address_never_uses_the_old_tunnel(pair: Pair) -> None:
    ping(pair)
    ((_, old),) = pair.a.context.pool.tunnels()
    successor = msgspec.structs.replace(pair.b.me, pod_uid="uid-successor")
    pair.a.agent.send(MeshDelta(revision=2, workloads=(successor,)))
    wait_until(lambda: not pair.a.context.pool.tunnels(), "the tunnel to drain")
    wait_until(lambda: old.state is TunnelState.CLOSED, "the idle tunnel to close")
    ping(pair)
    ((key, new),) = pair.a.context.pool.tunnels()
    assert new is not old
    assert key.workload_pod == "uid-successor"


def test_unrelated_mesh_changes_keep_the_tunnel(pair: Pair) -> None:
    ping(pair)
    ((_, tunnel),) = pair.a.context.pool.tunnels()
    relabelled = msgspec.structs.replace(pair.b.me, labels={"app": "b"})
    pair.a.agent.send(MeshDelta(revision=2, workloads=(relabelled,)))
    ping(pair)
    assert [one for _, one in pair.a.context.pool.tunnels()] == [tunnel]


def test_agent_restart_does_not_interrupt_connections(pair: Pair) -> None:
    client = pair.a.dial()
    server = pair.app.accept()
    pair.a.agent.stop()
    ping(pair)
    client.sendall(b"x")
    assert server.recv(1) == b"x"
    pair.a.agent.ready.clear()
    pair.a.agent.start()
    wait_until(lambda: pair.a.me.pod_uid in pair.a.agent.ready, "ready again")
    held = pair.a.agent.hellos[-1].pods
    listeners = tuple(pair.a.worker.pods[pair.a.me.pod_uid].listeners)
    assert ListenerKind.OUTBOUND4 in listeners
    assert [(pod.pod_uid, pod.listeners) for pod in held] == [(pair.a.me.pod_uid, listeners)]
    client.sendall(b"y")
    assert server.recv(1) == b"y"
    ping(pair)


def test_unenrolled_pod_refuses_new_connections_and_keeps_live_ones(pair: Pair) -> None:
    client = pair.a.dial()
    server = pair.app.accept()
    pair.a.remove_pod(gone=False)
    wait_until(lambda: is_refused(pair), "refusal")
    client.sendall(b"x")
    assert server.recv(1) == b"x"


def test_deleted_pod_resets_its_connections(pair: Pair) -> None:
    client = pair.a.dial()
    server = pair.app.accept()
    pair.a.remove_pod(gone=True)
    is_reset(client)
    is_reset(server)


def test_drain_refuses_new_connections_and_waits_for_live_ones(pair: Pair) -> None:
    client = pair.a.dial()
    server = pair.app.accept()
    pair.a.in_loop(lambda: pair.a.worker.drain(5.0))
    wait_until(lambda: is_refused(pair), "refusal")
    client.sendall(b"last words")
    client.close()
    assert server.recv(100) == b"last words"
    server.close()
    pair.a._thread.join(5.0)
    assert not pair.a._thread.is_alive()


def test_drain_resets_live_connections_at_the_deadline(pair: Pair) -> None:
    client = pair.a.dial()
    server = pair.app.accept()
    pair.a.in_loop(lambda: pair.a.worker.drain(0.1))
    is_reset(client)
    is_reset(server)


def test_introspection_lists_live_connections(pair: Pair) -> None:
    client = pair.a.dial()
    server = pair.app.accept()
    client.sendall(b"12345")
    assert server.recv(5) == b"12345"
    (row,) = msgspec.msgpack.decode(pair.a.query("connections"))
    assert row["sent"] == 5
    assert row["destination"]["workload"] == "b"
    (tunnel,) = msgspec.msgpack.decode(pair.a.query("tunnels"))
    assert (tunnel["peer"], tunnel["streams"]) == (pair.b.me.identity, 1)
    assert msgspec.msgpack.decode(pair.a.query("stats"))["opened"] == 1


def test_last_bytes_of_a_drained_tunnel_arrive(pair: Pair) -> None:
    client = pair.a.dial()
    server = pair.app.accept()
    pair.a.agent.send(pair.authority.issue(pair.a.me.identity))
    wait_until(lambda: not pair.a.context.pool.tunnels(), "the tunnel to drain")
    client.shutdown(socket.SHUT_WR)
    assert server.recv(1) == b""
    total = 3 << 20  # less than the window: the server finishes before the client reads
    server.sendall(bytes(total))
    server.close()
    wait_until(lambda: not pair.b.context.tracker.live(), "the server's end")
    got = 0
    while data := client.recv(1 << 16):
        got += len(data)
    assert got == total
    wait_until(lambda: not pair.a.context.pool.open, "the drained tunnel to close")


class Held:
    """Stalls the pair's connections where they are accepted and where they reach the app."""

    def __init__(self, pair: Pair) -> None:
        ping(pair)
        self.live = pair.a.context.tracker.live
        wait_until(lambda: not self.live(), "the tunnel to be idle")
        self.accepted, self.arrived = threading.Event(), threading.Event()
        self._where = pair.a.context.original_destination
        pair.a.context.original_destination = self._accept
        pair.b.context.set_client_address = self._arrive

    def _accept(self, sock: socket.socket) -> SocketAddress:
        assert self.accepted.wait(DEADLINE)
        return self._where(sock)

    def _arrive(self, sock: socket.socket, client: SocketAddress) -> None:
        assert self.arrived.wait(DEADLINE)


@pytest.mark.parametrize("rest", [b"", b" and the rest"])
def test_early_data_is_sent_with_connect(pair: Pair, rest: bytes) -> None:
    held = Held(pair)
    client = pair.a.dial()
    client.sendall(b"first words")
    if not rest:
        client.shutdown(socket.SHUT_WR)
    held.accepted.set()
    wait_until(lambda: [one.sent for one in held.live()] == [11], "data before the response")
    assert not held.live()[0].established
    held.arrived.set()
    server = pair.app.accept()
    if rest:
        client.sendall(rest)
        client.shutdown(socket.SHUT_WR)
    got = b"".join(iter(lambda: server.recv(100), b""))
    assert got == b"first words" + rest
    server.sendall(b"answer")
    server.close()
    assert client.recv(6) == b"answer"
    client.close()
