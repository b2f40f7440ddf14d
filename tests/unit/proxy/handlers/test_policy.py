# SPDX-License-Identifier: Apache-2.0
"""Authorization in a real worker: 401, reset, and the effect of changes on live connections."""

from __future__ import annotations

import errno
import socket
import threading
from typing import Any

import pytest

from tests.support.policies import Json, peer, policy
from tests.support.waiting import wait_until
from tests.unit.proxy.conftest import Pair
from tests.unit.proxy.handlers.test_inbound import client
from tests.unit.proxy.harness import DEADLINE, Node, listen
from ztunnel.ipc.messages import ListenerKind, MeshDelta
from ztunnel.kube.objects.policies import read_authorization_policy, read_peer_authentication
from ztunnel.mesh.policy.model import Policy
from ztunnel.proxy.conntrack.record import Stats
from ztunnel.telemetry.access_log_parser import parse

RESETS = ("ECONNRESET", "EPIPE", "ECONNABORTED")


def read(obj: Json) -> Policy:
    if obj["kind"] == "PeerAuthentication":
        return read_peer_authentication(obj, "istio-system")
    return read_authorization_policy(obj, "istio-system").policy


class Rules:
    """Sends policies to a node, each time with a new revision."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.revision = 1

    def send(self, *objects: Json, without: tuple[Policy, ...] = (), **parts: Any) -> None:
        self.revision += 1
        self.node.agent.send(
            MeshDelta(
                revision=self.revision,
                policies=tuple(map(read, objects)),
                removed_policies=tuple(each.key for each in without),
                **parts,
            )
        )

    def settle(self) -> None:
        """Wait until all changes apply: the agent link preserves the order."""
        self.node.query("stats")


def deny(name: str = "p", **source: Any) -> Json:
    rule = {"from": [{"source": source}]} if source else {}
    return policy([rule], "DENY", name=name, namespace="test")


def stats(node: Node) -> Stats:
    return node.context.tracker.stats


def denial(capfd: pytest.CaptureFixture[str]) -> dict[str, str]:
    """The log line of the only denial, in any log format."""
    found = [parse(line) for line in capfd.readouterr().err.splitlines()]
    (line,) = (each for each in found if each.get("response_flags") == "DENY")
    return line


@pytest.fixture
def rules(pair: Pair) -> Rules:
    return Rules(pair.b)


def end_of(sock: socket.socket) -> str:
    """Read until the end; returns `eof` or the name of the error."""
    try:
        while sock.recv(100):
            pass
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "eof"


def status(pair: Pair) -> int:
    with client(pair) as h2:
        found = h2.status(h2.connect(str(pair.app.address)))
        if found == 200:
            pair.app.accept().close()
        return found


def test_denied_by_principal_is_401_and_logged(
    pair: Pair, rules: Rules, capfd: pytest.CaptureFixture[str]
) -> None:
    rules.send(deny(principals=["cluster.local/ns/test/sa/a"]))
    rules.settle()
    assert status(pair) == 401
    wait_until(lambda: stats(pair.b).denied == 1, "the denial")
    pair.b.query("stats")  # one turn later the line is written
    line = denial(capfd)
    assert line["src.identity"] == "spiffe://cluster.local/ns/test/sa/a"
    assert line["dst.identity"] == "spiffe://cluster.local/ns/test/sa/b"
    assert line["policy"] == "AuthorizationPolicy test/p"
    assert line["rule"] == "rules[0]"
    assert line["dst.addr"] == str(pair.app.address)
    assert len(pair.b.context.admissions) == 0
    assert stats(pair.b).opened == 0


def test_removed_policy_allows_connections_again(pair: Pair, rules: Rules) -> None:
    rules.send(deny())
    rules.settle()
    assert status(pair) == 401
    rules.send(without=(read(deny()),))
    rules.settle()
    assert status(pair) == 200


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (deny(namespaces=["test"]), 401),
        (deny(namespaces=["other"]), 200),
        (deny(ipBlocks=["127.0.0.0/8"]), 401),
        (deny(ipBlocks=["10.0.0.0/8"]), 200),
        (policy(namespace="test"), 401),
        (policy([{}], namespace="test"), 200),
        (peer("STRICT", namespace="test"), 200),
        (policy([{"from": []}], namespace="test"), 401),  # refused
        (policy(namespace="test", annotations={"istio.io/dry-run": "true"}), 200),
        (policy(namespace="elsewhere"), 200),
    ],
)
def test_over_hbone(pair: Pair, rules: Rules, obj: Json, expected: int) -> None:
    rules.send(obj)
    rules.settle()
    assert status(pair) == expected


def test_policy_ports_match_the_port_of_the_app(pair: Pair, rules: Rules) -> None:
    port = pair.app.address.port
    rules.send(policy([{"to": [{"operation": {"ports": [str(port)]}}]}], "DENY", namespace="test"))
    rules.settle()
    assert status(pair) == 401
    other = [{"to": [{"operation": {"ports": [str(port ^ 1)]}}]}]
    rules.send(policy(other, "DENY", namespace="test"))
    rules.settle()
    assert status(pair) == 200


def test_the_app_of_a_denied_client_sees_a_reset(pair: Pair, rules: Rules) -> None:
    rules.send(deny())
    rules.settle()
    try:
        with pair.a.dial() as sock:
            end = end_of(sock)
    except ConnectionResetError:  # before connect() returned
        end = "ECONNRESET"
    assert end in RESETS


def test_policy_change_closes_denied_live_connections_only(
    pair: Pair, rules: Rules, capfd: pytest.CaptureFixture[str]
) -> None:
    with pair.a.dial() as sock:
        sock.sendall(b"hello")
        server = pair.app.accept()
        assert server.recv(5) == b"hello"
        assert len(pair.b.context.admissions) == 1
        rules.send(deny(namespaces=["elsewhere"]))
        rules.settle()
        server.sendall(b"still")
        assert sock.recv(5) == b"still"
        rules.send(deny(namespaces=["test"]))
        assert end_of(server) in RESETS
        assert end_of(sock) in RESETS
        server.close()
    rules.settle()
    line = denial(capfd)
    assert line["policy"] == "AuthorizationPolicy test/p"
    assert line["bytes_recv"] == "5"
    assert len(pair.b.context.admissions) == 0


def test_policy_change_denies_a_connection_that_is_being_dialed(pair: Pair, rules: Rules) -> None:
    """The app's backlog is full, so the dial stalls between authorization and response."""
    slow = listen(pair.b.ip, 0, backlog=0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(slow.getsockname())
        fillers.append(filler)
    with client(pair) as h2:
        stream = h2.connect(f"{pair.b.ip}:{slow.getsockname()[1]}")
        h2.flush()
        wait_until(lambda: len(pair.b.context.admissions) == 1, "the connection to be admitted")
        rules.send(deny())
        assert h2.status(stream) == 401
    wait_until(lambda: stats(pair.b).denied == 1)
    for each in (slow, *fillers):
        each.close()


def test_label_change_reevaluates_live_connections(pair: Pair, rules: Rules) -> None:
    selector = {"matchLabels": {"app": "closed"}}
    rules.send(policy(namespace="test", selector=selector))
    with pair.a.dial() as sock:
        sock.sendall(b"hello")
        server = pair.app.accept()
        changed = {**_fields(pair.b.me), "labels": {"app": "closed"}}
        rules.send(workloads=(type(pair.b.me)(**changed),))
        assert end_of(sock) in RESETS
        server.close()
    assert status(pair) == 401


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__}


def test_parts_of_a_mesh_change_apply_atomically(pair: Pair, rules: Rules) -> None:
    """One DENY policy replaces another: no connection is allowed between the two parts."""
    rules.send(deny("old"))
    rules.settle()
    assert status(pair) == 401
    rules.send(without=(read(deny("old")),), more=True)
    rules.settle()
    assert status(pair) == 401
    rules.send(deny("new"))
    rules.settle()
    assert status(pair) == 401
    assert [each.name for each in pair.b.context.mesh.policies] == ["new"]  # type: ignore[union-attr]


def test_complete_snapshot_closes_connections_that_it_denies(pair: Pair, rules: Rules) -> None:
    with pair.a.dial() as sock:
        sock.sendall(b"hello")
        server = pair.app.accept()
        rules.send(deny(), reset=True, workloads=tuple(pair.b.mesh))
        rules.settle()
        server.sendall(b"still")
        assert sock.recv(5) == b"still"
        assert status(pair) == 200  # the old state applies until the new one is complete
        rules.send(complete=True)
        assert end_of(sock) in RESETS
        server.close()
    assert status(pair) == 401


# Plaintext


def plaintext_door(pair: Pair) -> tuple[str, int]:
    """A listener that receives the app's connections, as after a redirect by sk_lookup.

    It has the app's address itself, so an admitted connection arrives here again.
    """
    door = listen(pair.b.ip, 0)
    where: tuple[str, int] = door.getsockname()
    pair.b.agent.pod_added(pair.b.me, {ListenerKind.INBOUND4: door})
    door.close()
    pair.b.query("stats")
    return where


def knock(where: tuple[str, int]) -> str:
    """How a connection from outside the mesh ends, perhaps during connect()."""
    try:
        with socket.create_connection(where, timeout=DEADLINE) as sock:
            return end_of(sock)
    except ConnectionResetError:
        return "ECONNRESET"


@pytest.mark.parametrize(
    ("obj", "denied"),
    [
        (peer("STRICT", namespace="test"), True),
        (peer("STRICT", namespace="istio-system"), True),
        (peer("PERMISSIVE", namespace="test"), False),
        (policy(namespace="test"), True),
        (deny(notPrincipals=["*"]), True),
        (deny(principals=["*"]), False),
        (deny(ipBlocks=["127.0.0.0/8"]), True),
    ],
)
def test_plaintext(pair: Pair, rules: Rules, obj: Json, denied: bool) -> None:
    rules.send(obj)
    where = plaintext_door(pair)
    thread = threading.Thread(target=knock, args=(where,), daemon=True)
    thread.start()
    wait_until(lambda: stats(pair.b).denied or stats(pair.b).opened, "a decision")
    assert bool(stats(pair.b).denied) == denied
    rules.send(deny())  # ends a connection that would loop to its own listener
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_denied_plaintext_connection_is_reset(pair: Pair, rules: Rules) -> None:
    rules.send(peer("STRICT", namespace="test"))
    assert knock(plaintext_door(pair)) in RESETS
