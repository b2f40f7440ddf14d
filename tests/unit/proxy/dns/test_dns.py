# SPDX-License-Identifier: Apache-2.0
"""The proxy's DNS over real sockets: from the mesh, by the asked server, and when that fails."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import msgspec
import pytest

from tests.support.waiting import wait_until
from tests.unit.proxy.conftest import Pair
from tests.unit.proxy.harness import DEADLINE, Node, fresh_ip
from ztunnel.mesh.model import Service, ServicePort, SocketAddress
from ztunnel.proxy.dns import udp_server, upstream
from ztunnel.telemetry.dns_counters import DnsCounters, Outcome

WEB = Service(
    namespace="test",
    name="web",
    vips=("10.96.0.7",),
    ports=(ServicePort(80, "http"),),
    hostname="web.test.svc.cluster.local",
)


class NameServer:
    """What an app's resolv.conf names: a script with a UDP and a TCP socket."""

    def __init__(self) -> None:
        self.ip = fresh_ip()
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((self.ip, 0))
        self.address = SocketAddress(*self.udp.getsockname())
        self.tcp = socket.create_server((self.ip, self.address.port))
        for sock in (self.udp, self.tcp):
            sock.settimeout(DEADLINE)

    def query(self) -> tuple[dns.message.Message, tuple[str, int]]:
        wire, source = self.udp.recvfrom(65535)
        return dns.message.from_wire(wire), source

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


@pytest.fixture
def server() -> Iterator[NameServer]:
    made = NameServer()
    yield made
    made.close()


@pytest.fixture
def node(pair: Pair, server: NameServer) -> Node:
    """Node `a`, whose apps ask `server`."""
    pair.a.target = server.address
    mesh = pair.a.context.mesh
    assert mesh is not None
    pair.a.in_loop(lambda: mesh._put_service(WEB))
    return pair.a


@pytest.fixture
def app(node: Node) -> Iterator[socket.socket]:
    """An app's socket, connected to what it takes for its name server."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((node.ip, 0))
        sock.connect(node.dns)
        sock.settimeout(DEADLINE)
        yield sock


def _stream(node: Node) -> socket.socket:
    sock = socket.create_connection(node.dns_streams, DEADLINE, (node.ip, 0))
    sock.settimeout(DEADLINE)
    return sock


def _answer(query: dns.message.Message, *texts: str) -> dns.message.Message:
    reply = dns.message.make_response(query)
    if texts:
        name = query.question[0].name
        reply.answer.append(dns.rrset.from_text(name, 7, "IN", "A", *texts))
    return reply


def _send(sock: socket.socket, wire: bytes) -> None:
    sock.sendall(struct.pack("!H", len(wire)) + wire)


def _receive(sock: socket.socket) -> bytes:
    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = sock.recv(size - len(data))
            assert piece, "the connection ended"
            data += piece
        return data

    return exactly(struct.unpack("!H", exactly(2))[0])


def _replied(app: socket.socket) -> dns.message.Message:
    return dns.message.from_wire(app.recv(65535))


def test_mesh_name_is_answered_without_name_server(
    node: Node, app: socket.socket, server: NameServer
) -> None:
    query = dns.message.make_query("web.test.svc.cluster.local", "A")
    app.send(query.to_wire())
    reply = _replied(app)
    assert query.is_response(reply)
    assert [rrset.to_text() for rrset in reply.answer] == [
        "web.test.svc.cluster.local. 30 IN A 10.96.0.7"
    ]
    server.udp.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.query()


def test_other_name_is_forwarded_with_random_id(
    node: Node, app: socket.socket, server: NameServer
) -> None:
    ids, ports = set(), set()
    for _ in range(6):
        query = dns.message.make_query("example.org", "A", use_edns=0, payload=1400, id=77)
        app.send(query.to_wire())
        seen, source = server.query()
        assert (seen.question, seen.payload) == (query.question, 1400)
        ids.add(seen.id)
        ports.add(source[1])
        server.udp.sendto(_answer(seen, "192.0.2.1").to_wire(), source)
        reply = _replied(app)
        assert query.is_response(reply)
        assert reply.answer[0][0].to_text() == "192.0.2.1"
    assert len(ids) > 1
    assert len(ports) > 1


def test_forged_responses_are_ignored(node: Node, app: socket.socket, server: NameServer) -> None:
    query = dns.message.make_query("example.org", "A")
    app.send(query.to_wire())
    seen, source = server.query()
    other = _answer(seen, "192.0.2.66")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.bind((fresh_ip(), 0))
        stranger.sendto(other.to_wire(), source)  # right in all but where it comes from
    other.id ^= 1
    server.udp.sendto(other.to_wire(), source)
    wrong = dns.message.make_query("example.net", "A", id=seen.id)
    server.udp.sendto(_answer(wrong, "192.0.2.66").to_wire(), source)
    server.udp.sendto(b"rubbish", source)
    server.udp.sendto(_answer(seen, "192.0.2.1").to_wire(), source)
    assert _replied(app).answer[0][0].to_text() == "192.0.2.1"


def test_lost_query_is_sent_again(
    node: Node, app: socket.socket, server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "UDP_RETRY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(upstream, "MAX_UDP_ATTEMPTS", 100)
    app.send(dns.message.make_query("example.org", "A").to_wire())
    first, _ = server.query()
    second, source = server.query()
    assert first.to_wire() == second.to_wire()
    server.udp.sendto(_answer(second, "192.0.2.1").to_wire(), source)
    assert _replied(app).rcode() == dns.rcode.NOERROR


def test_unresponsive_name_server_yields_servfail(
    node: Node, app: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "UDP_RETRY_TIMEOUT_S", 0.05)
    query = dns.message.make_query("example.org", "A")
    app.send(query.to_wire())
    reply = _replied(app)
    assert query.is_response(reply)
    assert reply.rcode() == dns.rcode.SERVFAIL


def test_closed_port_yields_servfail_immediately(
    node: Node, app: socket.socket, server: NameServer
) -> None:
    server.udp.close()
    app.send(dns.message.make_query("example.org", "A").to_wire())
    assert _replied(app).rcode() == dns.rcode.SERVFAIL


def test_repeated_query_is_forwarded_once(
    node: Node, app: socket.socket, server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "UDP_RETRY_TIMEOUT_S", DEADLINE)
    query = dns.message.make_query("example.org", "A").to_wire()
    for _ in range(5):
        app.send(query)
    app.send(dns.message.make_query("example.net", "A").to_wire())
    names = [server.query()[0].question[0].name.to_text() for _ in range(2)]
    assert names == ["example.org.", "example.net."]


def test_pending_queries_are_limited(
    node: Node, app: socket.socket, server: NameServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_server, "MAX_PENDING_QUERIES", 3)
    monkeypatch.setattr(upstream, "UDP_RETRY_TIMEOUT_S", DEADLINE)
    for index in range(3):
        app.send(dns.message.make_query(f"n{index}.example.org", "A").to_wire())
        server.query()
    app.send(dns.message.make_query("more.example.org", "A").to_wire())
    assert _replied(app).rcode() == dns.rcode.SERVFAIL
    app.send(dns.message.make_query("web.test.svc.cluster.local", "A").to_wire())
    assert _replied(app).rcode() == dns.rcode.NOERROR


def test_truncated_response_is_fetched_by_tcp_if_client_accepts_more(
    node: Node, app: socket.socket, server: NameServer
) -> None:
    query = dns.message.make_query("example.org", "A", use_edns=0, payload=4096)
    app.send(query.to_wire())
    seen, source = server.query()
    cut = _answer(seen)
    cut.flags |= dns.flags.TC
    server.udp.sendto(cut.to_wire(), source)
    stream, _ = server.tcp.accept()
    with stream:
        stream.settimeout(DEADLINE)
        again = dns.message.from_wire(_receive(stream))
        _send(stream, _answer(again, *[f"192.0.2.{n}" for n in range(100)]).to_wire())
        reply = _replied(app)
    assert query.is_response(reply)
    assert len(reply.answer[0]) == 100
    assert not reply.flags & dns.flags.TC


def test_client_without_edns_gets_truncated_response(
    node: Node, app: socket.socket, server: NameServer
) -> None:
    query = dns.message.make_query("example.org", "A")
    app.send(query.to_wire())
    seen, source = server.query()
    cut = _answer(seen)
    cut.flags |= dns.flags.TC
    server.udp.sendto(cut.to_wire(), source)
    assert _replied(app).flags & dns.flags.TC


def test_tcp_connection_mixes_mesh_and_forwarded_answers(node: Node, server: NameServer) -> None:
    with _stream(node) as app:
        ours = dns.message.make_query("web.test.svc.cluster.local", "A")
        other = dns.message.make_query("example.org", "A")
        _send(app, other.to_wire())
        _send(app, ours.to_wire())
        assert ours.is_response(dns.message.from_wire(_receive(app)))
        stream, _ = server.tcp.accept()
        with stream:
            stream.settimeout(DEADLINE)
            seen = dns.message.from_wire(_receive(stream))
            assert seen.id == other.id
            for digit in (1, 2, 3):  # as a zone transfer: several messages for one question
                _send(stream, _answer(seen, f"192.0.2.{digit}").to_wire())
            replies = [dns.message.from_wire(_receive(app)) for _ in range(3)]
            assert [reply.answer[0][0].to_text()[-1] for reply in replies] == ["1", "2", "3"]
        assert app.recv(1) == b""  # the server's end is the client's


def test_half_closed_client_still_gets_its_response(node: Node, server: NameServer) -> None:
    with _stream(node) as app:
        query = dns.message.make_query("example.org", "A")
        _send(app, query.to_wire())
        app.shutdown(socket.SHUT_WR)
        stream, _ = server.tcp.accept()
        with stream:
            stream.settimeout(DEADLINE)
            seen = dns.message.from_wire(_receive(stream))
            assert stream.recv(1) == b""
            _send(stream, _answer(seen, "192.0.2.1").to_wire())
        assert query.is_response(dns.message.from_wire(_receive(app)))
        assert app.recv(1) == b""


def test_name_server_without_tcp_yields_servfail(node: Node, server: NameServer) -> None:
    server.tcp.close()
    with _stream(node) as app:
        query = dns.message.make_query("example.org", "A")
        _send(app, query.to_wire())
        reply = dns.message.from_wire(_receive(app))
        assert query.is_response(reply)
        assert reply.rcode() == dns.rcode.SERVFAIL


def test_malformed_message_by_tcp_resets_connection(node: Node) -> None:
    with _stream(node) as app:
        _send(app, b"short")
        with pytest.raises(ConnectionResetError):
            app.recv(1)


def test_tcp_to_name_server_in_mesh_is_tunneled(pair: Pair) -> None:
    """In the clear it would lose what the mesh promises; the server answers all names itself."""
    pair.a.target = pair.app.address
    with _stream(pair.a) as app:
        _send(app, dns.message.make_query("example.org", "A").to_wire())
        with pair.app.accept() as served:
            assert dns.message.from_wire(_receive(served)).question[0].name.to_text() == (
                "example.org."
            )
    assert pair.b.client_addresses  # by HBONE: the peer proxy set the client address


def test_query_that_was_not_redirected_is_dropped(node: Node, app: socket.socket) -> None:
    def not_redirected(sock: socket.socket, port: int) -> SocketAddress:
        raise OSError

    node.in_loop(lambda: setattr(node.context, "original_dns_server", not_redirected))
    app.send(dns.message.make_query("example.org", "A").to_wire())
    wait_until(lambda: node.context.tracker.stats.queries_failed == 1, "the query to be dropped")
    app.setblocking(False)
    with pytest.raises(BlockingIOError):
        app.recv(512)


def test_outcomes_and_response_times_are_reported(
    node: Node, app: socket.socket, server: NameServer
) -> None:
    app.send(dns.message.make_query("web.test.svc.cluster.local", "A").to_wire())
    _replied(app)
    app.send(dns.message.make_query("example.org", "A").to_wire())
    seen, source = server.query()
    server.udp.sendto(_answer(seen, "192.0.2.1").to_wire(), source)
    _replied(app)
    server.udp.close()
    app.send(dns.message.make_query("unanswered.example.org", "A").to_wire())
    assert _replied(app).rcode() == dns.rcode.SERVFAIL

    def reported() -> DnsCounters:
        node.query("stats")  # it reports before it replies
        total = DnsCounters()
        by_number = {each.seq: each.dns for each in node.agent.reports}
        for each in filter(None, by_number.values()):
            total.add(each)
        return total

    wait_until(lambda: sum(reported().outcomes.values()) == 3, "the counts")
    total = reported()
    assert total.outcomes == {Outcome.MESH: 1, Outcome.FORWARDED: 1, Outcome.FAILED: 1}
    assert total.forward_failures == 1
    assert sum(total.buckets) == 1
    assert total.seconds > 0


def test_servfail_before_first_mesh_snapshot(pair_unsynced: Node) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as app:
        app.settimeout(DEADLINE)
        wait_until(lambda: pair_unsynced.dns[1] != 0, "the resolver")
        app.sendto(dns.message.make_query("example.org", "A").to_wire(), pair_unsynced.dns)
        assert dns.message.from_wire(app.recv(512)).rcode() == dns.rcode.SERVFAIL


@pytest.fixture
def pair_unsynced(fresh_pair: Pair) -> Node:
    node = fresh_pair.a
    node.sync = False
    node.start(fresh_pair.authority.issue(node.me.identity))
    wait_until(lambda: node.agent.udp_sockets_sent > 0, "sockets")
    return node


def test_mesh_names_resolve_while_agent_is_unreachable(
    node: Node, app: socket.socket, server: NameServer
) -> None:
    """Sockets to ask with are used again: there are more queries than the agent ever gave."""
    wait_until(lambda: node.agent.udp_sockets_sent > 0, "sockets")
    node.agent.stop()
    for index in range(2 * node.agent.udp_sockets_sent):
        app.send(dns.message.make_query(f"n{index}.example.org", "A").to_wire())
        seen, source = server.query()
        server.udp.sendto(_answer(seen, "192.0.2.1").to_wire(), source)
        assert _replied(app).answer[0][0].to_text() == "192.0.2.1"


GATEWAY = "test/egress"
WILDCARD = Service(
    namespace="test",
    name="*.example.org",
    hostname="*.example.org",
    vips=("240.240.0.9",),
    ports=(ServicePort(80, "http"),),
    is_service_entry=True,
    waypoint=GATEWAY,
    dynamic_ports={"http": 80},
)


@pytest.fixture
def gateway(node: Node) -> Node:
    """The node's pod runs the waypoint of the names below example.org."""
    mesh = node.context.mesh
    assert mesh is not None
    pod = msgspec.structs.replace(node.me, gateway=GATEWAY)
    node.in_loop(lambda: mesh._put_service(WILDCARD))
    node.in_loop(lambda: mesh._put_workload(pod))
    return node


def _ask(app: socket.socket, name: str) -> dns.message.Message:
    query = dns.message.make_query(name, "A")
    app.send(query.to_wire())
    return query


def test_gateway_gets_a_forwarded_answer_without_addresses_of_the_cluster(
    gateway: Node, app: socket.socket, server: NameServer
) -> None:
    _ask(app, "a.example.org")
    seen, source = server.query()
    inside = (gateway.me.addresses[0], "10.96.0.7", "127.0.0.1", "169.254.169.254", "240.240.0.9")
    server.udp.sendto(_answer(seen, "192.0.2.1", *inside).to_wire(), source)
    assert [r.to_text() for r in _replied(app).answer[0]] == ["192.0.2.1"]
    assert gateway.context.tracker.counters.dns.dropped_addresses == len(inside)


def test_gateways_other_names_are_those_of_the_mesh(
    gateway: Node, app: socket.socket, server: NameServer
) -> None:
    _ask(app, "web.test.svc.cluster.local")
    assert _replied(app).answer[0][0].to_text() == "10.96.0.7"
    _ask(app, "a.example.org.test.svc.cluster.local")  # a search list must not lead to the VIP
    assert _replied(app).rcode() == dns.rcode.NXDOMAIN


def test_gateway_gets_filtered_answers_by_tcp(gateway: Node, server: NameServer) -> None:
    with _stream(gateway) as sock:
        _send(sock, dns.message.make_query("a.example.org", "A").to_wire())
        upstream_sock, _ = server.tcp.accept()
        with upstream_sock:
            upstream_sock.settimeout(DEADLINE)
            seen = dns.message.from_wire(_receive(upstream_sock))
            _send(upstream_sock, _answer(seen, "192.0.2.1", "127.0.0.1").to_wire())
            reply = dns.message.from_wire(_receive(sock))
    assert [r.to_text() for r in reply.answer[0]] == ["192.0.2.1"]


def test_application_gets_the_virtual_address_of_a_wildcard_and_it_is_remembered(
    gateway: Node, app: socket.socket
) -> None:
    mesh = gateway.context.mesh
    assert mesh is not None
    gateway.in_loop(lambda: mesh._put_workload(gateway.me))  # no gateway any more
    _ask(app, "a.example.org")
    assert _replied(app).answer[0][0].to_text() == "240.240.0.9"
    (pod,) = gateway.worker.pods.values()
    assert gateway.context.recent_answers.name(pod.netns_cookie, "240.240.0.9") == "a.example.org"


def test_refused_connection_is_logged_with_the_name_that_was_resolved(
    node: Node, app: socket.socket, server: NameServer, capfd: pytest.CaptureFixture[str]
) -> None:
    mesh = node.context.mesh
    assert mesh is not None
    mesh.registry_only = True
    node.in_loop(mesh.route_cache.clear)
    _ask(app, "api.vendor.example")
    seen, source = server.query()
    server.udp.sendto(_answer(seen, "192.0.2.44").to_wire(), source)
    _replied(app)
    for ip, wanted in (("192.0.2.44", True), ("192.0.2.45", False)):
        node.target = SocketAddress(ip, 443)
        with contextlib.suppress(OSError), node.dial() as sock:
            sock.recv(1)
        wait_until(lambda ip=ip: f"{ip}:443" in _log(capfd), _shown)  # type: ignore[misc]
        line = next(each for each in _shown().splitlines() if f"{ip}:443" in each)
        assert ("dns_name=api.vendor.example" in line) is wanted
        assert "REGISTRY_ONLY" in line


_lines: list[str] = []


def _log(capfd: pytest.CaptureFixture[str]) -> str:
    _lines.append(capfd.readouterr().err)
    return _shown()


def _shown() -> str:
    return "".join(_lines)
