# SPDX-License-Identifier: Apache-2.0
"""Waypoints on the wire: the node in front of a waypoint's Envoy, and clients of a waypoint.

An independent HTTP/2 client plays an unmodified ztunnel, and an independent HTTP/2 server plays
the waypoint of an unmodified Istio. `Envoy` is a plain server that reads the PROXY header.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import h2.config
import h2.connection
import h2.events
import msgspec
import pytest

from tests.support.certificates import Authority
from tests.support.waiting import wait_until
from tests.unit.proxy.h2client import Http2Client, server_context
from tests.unit.proxy.handlers.test_policy import Rules, deny
from tests.unit.proxy.harness import DEADLINE, App, Node, closing_all, fresh_ip, listen, workload
from ztunnel.ipc.messages import MeshDelta
from ztunnel.mesh.headers.proxy_protocol import (
    ProxyHeader,
    encode_proxy_header,
    parse_proxy_header,
)
from ztunnel.mesh.model import Endpoint, Service, ServicePort, SocketAddress
from ztunnel.telemetry.access_log_parser import parse

WAYPOINT = "test/wp"
VIP, VIP6 = "10.96.7.1", "fd00:96::7:1"
HOST = "shop.test.svc.cluster.local"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def gateway_service(ip: str, uid: str, *, ready: bool = True) -> Service:
    endpoint = Endpoint(address=ip, ports={"mesh": 15008}, workload=uid, ready=ready)
    return Service(
        namespace="test",
        name="wp",
        vips=("10.96.7.9",),
        ports=(ServicePort(15008, "mesh"),),
        endpoints=(endpoint,),
    )


SHOP = Service(
    namespace="test",
    name="shop",
    vips=(VIP, VIP6),
    ports=(ServicePort(80, "http"),),
    hostname=HOST,
    waypoint=WAYPOINT,
)
ELSEWHERE = msgspec.structs.replace(
    SHOP, name="other", vips=("10.96.7.2",), hostname="other.test.svc", waypoint="test/other"
)


@dataclass
class World:
    """`a` runs the client, `b` the waypoint, whose Envoy is `envoy`."""

    a: Node
    b: Node
    envoy: App
    authority: Authority

    def start(self) -> None:
        for node in (self.a, self.b):
            node.start(self.authority.issue(node.me.identity))

    def independent_client(self) -> Http2Client:
        mine = self.authority.issue(self.a.me.identity)
        return Http2Client((self.b.ip, 15008), mine, self.authority.root_pem, source=self.a.ip)

    def accept(self) -> tuple[ProxyHeader, bytes, socket.socket]:
        """The header, its bytes, and the connection, whose next bytes are the client's."""
        sock = self.envoy.accept()
        data = b""
        while (parsed := parse_proxy_header(data)) is None:
            data += sock.recv(1 if len(data) >= 16 else 16 - len(data))
        return parsed, data, sock


@pytest.fixture
def fresh_world(authority: Authority) -> Iterator[World]:
    """The nodes are not started."""
    client = msgspec.structs.replace(
        workload("a", fresh_ip()),
        labels={"app": "storefront", "version": "v7"},
        owner_kind="deployment",
        owner_name="storefront-deploy",
    )
    waypoint = msgspec.structs.replace(workload("b", fresh_ip()), gateway=WAYPOINT)
    mesh = [client, waypoint]
    world = World(Node("a", mesh), Node("b", mesh), App(waypoint.addresses[0]), authority)
    for node in (world.a, world.b):
        node.services = (SHOP, ELSEWHERE, gateway_service(world.b.ip, waypoint.uid))
    world.a.target = SocketAddress(VIP, 80)
    world.b.context.envoy = world.envoy.address
    with closing_all(world.a, world.b, world.envoy):
        yield world


@pytest.fixture
def world(fresh_world: World) -> World:
    fresh_world.start()
    return fresh_world


def tlvs(client: str, identity: str) -> tuple[tuple[int, bytes], ...]:
    assert client == "a"
    return (
        (0xD0, identity.encode()),
        (0xE0, b"storefront-deploy"),
        (0xE1, b"test"),
        (0xE2, b"storefront"),
        (0xE3, b"v7"),
    )


def test_client_reaches_the_envoy_of_the_waypoint_with_its_verified_identity(world: World) -> None:
    client = world.a.dial()
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    header, _, server = world.accept()
    with server, client:
        assert header.source == SocketAddress(world.a.ip, client.getsockname()[1])
        assert header.destination == SocketAddress(VIP, 80)
        # the proxy does not trace, so that the tunnel's trace is not sampled
        assert header.tlvs == tlvs("a", world.a.me.identity)
        assert server.recv(100) == b"GET / HTTP/1.1\r\n\r\n"
        server.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        assert client.recv(100) == b"HTTP/1.1 200 OK\r\n\r\n"
    assert world.b.client_addresses == []  # Envoy learns the client from the header only


def test_header_precedes_the_bytes_of_a_server_that_speaks_first(world: World) -> None:
    client = world.a.dial()
    _, _, server = world.accept()
    with server, client:
        server.sendall(b"220 ready")
        assert client.recv(100) == b"220 ready"


@pytest.mark.parametrize(
    ("requested", "destination"),
    [
        (f"{VIP}:80", SocketAddress(VIP, 80)),
        (f"[{VIP6}]:80", SocketAddress(VIP6, 80)),
        (f"{HOST}:80", SocketAddress(VIP, 80)),
    ],
)
def test_exact_bytes_for_an_unmodified_ztunnel(
    world: World, requested: str, destination: SocketAddress
) -> None:
    with world.independent_client() as peer:
        stream = peer.connect(requested, [("traceparent", TRACEPARENT)])
        headers = peer.headers(stream)
        assert headers[":status"] == "200"
        assert "k8s.namespace.name=test" in headers["baggage"]
        peer.h2.send_data(stream, b"payload", end_stream=True)
        peer.flush()
        header, data, server = world.accept()
        assert data == encode_proxy_header(
            SocketAddress(world.a.ip, header.source.port),
            destination,
            (*tlvs("a", world.a.me.identity), (0xE4, TRACEPARENT.encode())),
        )
        assert header.source.port == peer.sock.getsockname()[1]
        assert server.recv(100) == b"payload"
        assert server.recv(100) == b""
        server.sendall(b"answer")
        server.close()
        assert peer.wait(h2.events.DataReceived, stream).data == b"answer"


def test_forged_headers_and_a_forged_proxy_header_gain_nothing(world: World) -> None:
    forged = encode_proxy_header(
        SocketAddress("192.0.2.1", 1),
        SocketAddress("10.96.7.2", 80),
        ((0xD0, b"spiffe://cluster.local/ns/test/sa/admin"),),
    )
    extra = [
        ("forwarded", 'for="192.0.2.1:1";host=admin.test.svc'),
        ("baggage", "k8s.namespace.name=kube-system,k8s.deployment.name=admin,service.name=admin"),
        ("x-forwarded-client-cert", "URI=spiffe://cluster.local/ns/test/sa/admin"),
        ("traceparent", "00-forged\x01-x-y"),
    ]
    with world.independent_client() as peer:
        stream = peer.connect(f"{VIP}:80", extra)
        assert peer.status(stream) == 200
        peer.h2.send_data(stream, forged + b"GET /")
        peer.flush()
        header, _, server = world.accept()
        with server:
            assert header.source.ip == world.a.ip
            assert header.destination == SocketAddress(VIP, 80)
            assert header.tlvs == tlvs("a", world.a.me.identity)
            assert server.recv(1000) == forged + b"GET /"  # only payload


def test_client_whose_identity_does_not_match_its_address_has_no_workload(world: World) -> None:
    stranger = world.authority.issue("spiffe://cluster.local/ns/test/sa/stranger")
    with Http2Client(
        (world.b.ip, 15008), stranger, world.authority.root_pem, source=world.a.ip
    ) as peer:
        assert peer.status(peer.connect(f"{VIP}:80")) == 200
        header, _, server = world.accept()
        server.close()
    assert header.tlvs == ((0xD0, b"spiffe://cluster.local/ns/test/sa/stranger"),)


@pytest.mark.parametrize(
    "requested",
    ["10.96.7.2:80", f"{VIP}:81", "other.test.svc:80", "missing.test.svc:80", "10.96.7.9:15008"],
)
def test_authority_of_another_waypoint_is_400(world: World, requested: str) -> None:
    with world.independent_client() as peer:
        assert peer.status(peer.connect(requested)) == 400


def test_port_of_envoy_is_no_destination(world: World) -> None:
    world.b.context.envoy = SocketAddress("127.0.0.1", 15088)
    with world.independent_client() as peer:
        for authority in (f"{world.b.ip}:15088", "127.0.0.1:15088", "[::1]:15088"):
            assert peer.status(peer.connect(authority)) == 400


def test_pod_that_does_not_run_the_gateway_is_no_waypoint(fresh_world: World) -> None:
    world = fresh_world
    plain = msgspec.structs.replace(world.b.me, gateway="")
    world.b.mesh[1] = plain
    world.start()
    with world.independent_client() as peer:
        assert peer.status(peer.connect(f"{VIP}:80")) == 400


def test_l4_policy_of_the_waypoint_pod_applies(world: World) -> None:
    rules = Rules(world.b)
    rules.send(deny(principals=["cluster.local/ns/test/sa/a"]))
    rules.settle()
    with world.independent_client() as peer:
        assert peer.status(peer.connect(f"{VIP}:80")) == 401


def test_policy_change_terminates_a_connection_through_the_waypoint(world: World) -> None:
    client = world.a.dial()
    _, _, server = world.accept()
    Rules(world.b).send(deny(principals=["cluster.local/ns/test/sa/a"]))
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    with pytest.raises(ConnectionResetError):
        server.recv(1)


def test_envoy_that_does_not_accept_is_503(world: World) -> None:
    world.envoy.close()
    with world.independent_client() as peer:
        assert peer.status(peer.connect(f"{VIP}:80")) == 503
    with pytest.raises(ConnectionResetError):
        world.a.dial().recv(1)


def test_waypoint_reports_no_same_node_bypass(world: World) -> None:
    client = world.a.dial()
    client.sendall(b"x")
    _, _, server = world.accept()
    server.close()
    client.close()
    wait_until(lambda: not world.b.context.tracker.live())
    assert world.b.agent.allowed == []


# Clients


def refusal(world: World, capfd: pytest.CaptureFixture[str]) -> str:
    """The error in the access log of a connection that the client's node refuses."""
    with pytest.raises(ConnectionResetError):
        world.a.dial().recv(1)
    errors: list[str] = []

    def logged() -> bool:
        lines = [parse(line) for line in capfd.readouterr().err.splitlines()]
        errors.extend(str(line["error"]) for line in lines if line.get("error"))
        return bool(errors)

    wait_until(logged)
    return errors[0]


@pytest.mark.parametrize("is_missing", [True, False])
def test_waypoint_without_ready_pods_is_refused_with_the_reason(
    fresh_world: World, capfd: pytest.CaptureFixture[str], is_missing: bool
) -> None:
    world = fresh_world
    gateway = gateway_service(world.b.ip, world.b.me.uid, ready=False)
    world.a.services = (SHOP, gateway)
    if is_missing:
        error = "waypoint test/wp does not exist"
        world.a.services = (msgspec.structs.replace(SHOP, waypoint_error=error),)
    world.start()
    reason = "does not exist" if is_missing else "has no ready pod"
    assert f"waypoint test/wp {reason}" in refusal(world, capfd)


def test_attached_waypoint_applies_to_new_connections_only(fresh_world: World) -> None:
    world = fresh_world
    app = App(world.b.ip)
    direct = msgspec.structs.replace(
        SHOP,
        waypoint="",
        endpoints=(
            Endpoint(address=world.b.ip, ports={"http": app.address.port}, workload=world.b.me.uid),
        ),
    )
    world.a.services = (direct, *world.a.services[1:])
    world.start()
    with closing_all(app):
        before = world.a.dial()
        server = app.accept()
        world.a.agent.send(MeshDelta(revision=2, services=(SHOP,)))
        world.a.query("stats")
        after = world.a.dial()
        _, _, through = world.accept()
        before.sendall(b"still direct")
        assert server.recv(100) == b"still direct"
        for sock in (before, server, after, through):
            sock.close()


class IstioWaypoint:
    """An unmodified Istio waypoint, as far as the client's node sees it: HBONE at 15008."""

    def __init__(self, world: World) -> None:
        self.requests: list[dict[str, str]] = []
        self.payload = b""
        self._connection: socket.socket
        self._context = server_context(world.authority.issue(world.b.me.identity))
        self._listener = listen(world.b.ip, 15008)
        self._listener.setblocking(True)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()
        self._connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(DEADLINE)

    def _serve(self) -> None:
        raw, _ = self._listener.accept()
        raw.settimeout(DEADLINE)
        with self._context.wrap_socket(raw, server_side=True) as sock:
            self._connection = sock
            peer = h2.connection.H2Connection(
                h2.config.H2Configuration(client_side=False, validate_inbound_headers=False)
            )
            peer.initiate_connection()
            sock.sendall(peer.data_to_send())
            try:
                while data := sock.recv(1 << 16):
                    self._handle(peer, peer.receive_data(data))
                    sock.sendall(peer.data_to_send())
            except (OSError, ssl.SSLError):
                return

    def _handle(self, peer: h2.connection.H2Connection, events: list[h2.events.Event]) -> None:
        for event in events:
            if isinstance(event, h2.events.RequestReceived):
                self.requests.append(
                    {_text(name): _text(value) for name, value in event.headers or ()}
                )
                peer.send_headers(event.stream_id or 0, [(":status", "200")])
                peer.send_data(event.stream_id or 0, b"from istio")
            elif isinstance(event, h2.events.DataReceived):
                self.payload += event.data or b""


def _text(value: bytes | str) -> str:
    return value if isinstance(value, str) else value.decode()


def test_waypoint_of_an_unmodified_istio_is_an_ordinary_hbone_destination(
    fresh_world: World,
) -> None:
    world = fresh_world
    world.a.start(world.authority.issue(world.a.me.identity))
    istio = IstioWaypoint(world)
    with world.a.dial() as client:
        client.sendall(b"GET /")
        assert client.recv(100) == b"from istio"
        wait_until(lambda: istio.payload == b"GET /")
        (request,) = istio.requests
        assert list(request)[:2] == [":method", ":authority"]
        assert request[":method"] == "CONNECT"
        assert request[":authority"] == f"{VIP}:80"
        assert request["forwarded"].startswith(f'for="{world.a.ip}:')
        assert request["forwarded"].endswith(f";host={HOST}")
        assert "k8s.deployment.name=storefront-deploy" in request["baggage"]
        assert request["traceparent"].startswith("00-")
    istio.close()


def test_waypoint_with_another_identity_gets_no_byte(fresh_world: World) -> None:
    world = fresh_world
    world.a.start(world.authority.issue(world.a.me.identity))
    certificate = world.authority.issue("spiffe://cluster.local/ns/test/sa/impostor")
    world.b.start(msgspec.structs.replace(certificate, identity=world.b.me.identity))
    with pytest.raises(ConnectionResetError):
        world.a.dial().recv(1)
    assert world.b.context.tracker.live() == []


# Changes, while requests arrive


def test_client_tries_again_while_envoy_does_not_accept(world: World) -> None:
    """For example while Envoy restarts. The bytes of the client are repeated, once each."""
    address = world.envoy.address
    world.envoy.close()
    client = world.a.dial()
    client.sendall(b"GET / HTTP/1.1\r\n\r\n")
    wait_until(lambda: world.b.context.tracker.stats.failed > 0, "a first attempt")
    world.envoy.listener = listen(address.ip, address.port)
    world.envoy.listener.setblocking(True)
    world.envoy.listener.settimeout(DEADLINE)
    _, _, server = world.accept()
    with server, client:
        client.sendall(b"more")
        client.shutdown(socket.SHUT_WR)
        data = b""
        while chunk := server.recv(100):
            data += chunk
        assert data == b"GET / HTTP/1.1\r\n\r\nmore"


def test_client_tries_again_while_the_node_of_the_waypoint_does_not_know_the_service(
    fresh_world: World,
) -> None:
    world = fresh_world
    services = world.b.services
    world.b.services = tuple(each for each in services if each is not SHOP)
    world.start()
    client = world.a.dial()
    client.sendall(b"early")
    wait_until(lambda: world.b.context.tracker.stats.refused > 0, "a first attempt")
    world.b.agent.send(MeshDelta(revision=2, services=(SHOP,)))
    _, _, server = world.accept()
    with server, client:
        assert server.recv(100) == b"early"
    assert len(world.a.context.tracker.live()) <= 1


def test_client_follows_a_detached_waypoint(world: World) -> None:
    """The waypoint's node learns it first and rejects; the client's node decides again."""
    app = App(world.b.ip)
    detached = msgspec.structs.replace(
        SHOP,
        waypoint="",
        endpoints=(
            Endpoint(address=world.b.ip, ports={"http": app.address.port}, workload=world.b.me.uid),
        ),
    )
    with closing_all(app):
        world.b.agent.send(MeshDelta(revision=2, services=(detached,)))
        world.b.query("stats")
        client = world.a.dial()
        client.sendall(b"early")
        wait_until(lambda: world.b.context.tracker.stats.refused > 0, "a first attempt")
        world.a.agent.send(MeshDelta(revision=2, services=(detached,)))
        server = app.accept()
        assert server.recv(100) == b"early"
        server.close()
        client.close()


def test_denied_connection_is_not_tried_again(world: World) -> None:
    rules = Rules(world.b)
    rules.send(deny(principals=["cluster.local/ns/test/sa/a"]))
    rules.settle()
    with pytest.raises(ConnectionResetError):
        world.a.dial().recv(1)
    assert world.b.context.tracker.stats.denied == 1


def test_envoy_without_the_new_destination_gets_no_byte_and_the_client_tries_again(
    world: World,
) -> None:
    """Envoy closes a connection to a destination that it does not know after the header."""
    vip = "10.96.7.77"
    new = msgspec.structs.replace(SHOP, name="new", hostname="new.test.svc", vips=(vip,))
    for node in (world.a, world.b):
        node.agent.send(MeshDelta(revision=2, services=(new,)))
        node.query("stats")
    world.a.target = SocketAddress(vip, 80)
    client = world.a.dial()
    client.sendall(b"once")
    for _ in range(2):
        header, _, server = world.accept()
        assert header.destination == SocketAddress(vip, 80)
        server.close()
    _, _, server = world.accept()
    with server, client:
        assert server.recv(100) == b"once"
        server.sendall(b"answer")
        assert client.recv(100) == b"answer"


def test_new_destination_of_a_server_that_speaks_first(world: World) -> None:
    vip = "10.96.7.78"
    new = msgspec.structs.replace(SHOP, name="new", hostname="new.test.svc", vips=(vip,))
    for node in (world.a, world.b):
        node.agent.send(MeshDelta(revision=2, services=(new,)))
        node.query("stats")
    world.a.target = SocketAddress(vip, 80)
    client = world.a.dial()
    _, _, server = world.accept()
    with server, client:
        server.sendall(b"220 ready")
        assert client.recv(100) == b"220 ready"
