# SPDX-License-Identifier: Apache-2.0
"""Connections through waypoints: where a client's node sends them, and what a waypoint accepts."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mesh.builders import PLAIN, Mesh, endpoint, mesh, service, workload
from ztunnel.mesh.model import Endpoint, GatewayPort, Service, ServicePort, SocketAddress, Workload
from ztunnel.mesh.routing.decisions import Accept, Hbone, Passthrough, Refuse, Reject
from ztunnel.mesh.routing.inbound import check_connect
from ztunnel.mesh.routing.outbound import route, route_udp
from ztunnel.mesh.routing.waypoints import parse_named_authority

WAYPOINT = "shop/waypoint"


def with_(value: Workload, **changes: object) -> Workload:
    return msgspec.structs.replace(value, **changes)


def of(value: Service, **changes: object) -> Service:
    return msgspec.structs.replace(value, **changes)


CLIENT = workload("client", "10.1.0.1", "fd00:1::1", account="client")
WEB = workload("web", "10.1.0.2", "fd00:1::2", account="web")
FIRST = with_(workload("wp-1", "10.1.0.8", "fd00:1::8", account="wp"), gateway=WAYPOINT)
SECOND = with_(workload("wp-2", "10.1.0.9", account="wp"), gateway=WAYPOINT)
GATEWAY_SERVICE = service(
    "waypoint",
    "10.96.0.9",
    ports=(ServicePort(15008, "mesh"),),
    endpoints=(endpoint(FIRST, mesh=15008), endpoint(SECOND, mesh=15008)),
)
SHOP = of(
    service(
        "shop",
        "10.96.0.1",
        "fd00:96::1",
        ports=(ServicePort(80, "http"), ServicePort(53, "dns", "UDP")),
        endpoints=(endpoint(WEB, http=8080, dns=53),),
    ),
    waypoint=WAYPOINT,
)
NAME = "shop.shop.svc.cluster.local"
VIP = SocketAddress("10.96.0.1", 80)
VIP6 = SocketAddress("fd00:96::1", 80)
WORLD = (CLIENT, WEB, FIRST, SECOND, GATEWAY_SERVICE, SHOP)


def through(authority: SocketAddress, pod: Workload, ip: str, name: str = NAME) -> Hbone:
    return Hbone(authority, SocketAddress(ip, 15008), (pod.identity,), pod, name)


# Outbound


def test_service_with_a_waypoint_is_reached_through_its_ready_pods() -> None:
    state = mesh(*WORLD)
    assert route(state, CLIENT, VIP, 0.0) == through(VIP, FIRST, "10.1.0.8")
    assert route(state, CLIENT, VIP, 0.9) == through(VIP, SECOND, "10.1.0.9")
    assert route(state, CLIENT, VIP, 0.9) is route(state, CLIENT, VIP, 0.9)


def test_tunnel_has_the_family_of_the_destination_if_a_pod_has_it() -> None:
    assert route(mesh(*WORLD), CLIENT, VIP6, 0.9) == through(VIP6, FIRST, "fd00:1::8")


EDGE = with_(
    workload("edge", "10.1.0.6", "fd00:1::6", account="edge"),
    gateway="shop/edge",
    gateway_ports=(GatewayPort(443),),
)


def test_ingress_gateway_that_dials_the_virtual_address_passes_the_waypoint() -> None:
    state = mesh(*WORLD, EDGE)
    assert route(state, EDGE, VIP, 0.0) == through(VIP, FIRST, "10.1.0.8")
    assert route(state, EDGE, VIP6, 0.0) == through(VIP6, FIRST, "fd00:1::8")
    broken = mesh(*WORLD, EDGE, of(SHOP, waypoint_error="it does not exist"))
    assert route(broken, EDGE, VIP, 0.0) == Refuse("it does not exist")


def test_ingress_gateway_that_dials_an_endpoint_reaches_it_without_its_waypoint() -> None:
    behind = with_(WEB, waypoint=WAYPOINT)
    state = mesh(*WORLD, behind, EDGE)
    target = SocketAddress("10.1.0.2", 8080)
    direct = Hbone(target, SocketAddress("10.1.0.2", 15008), (WEB.identity,), behind)
    assert route(state, EDGE, target, 0.0) == direct
    assert route(state, CLIENT, target, 0.0) == through(target, FIRST, "10.1.0.8", "")
    without_listeners = mesh(*WORLD, behind, with_(EDGE, gateway_ports=()))
    edge = without_listeners.workload(EDGE.uid)
    assert edge is not None
    assert route(without_listeners, edge, target, 0.0) == through(target, FIRST, "10.1.0.8", "")


def test_tunnel_has_the_other_family_if_no_pod_has_the_one_of_the_destination() -> None:
    gateway = of(GATEWAY_SERVICE, endpoints=(endpoint(SECOND, mesh=15008),))
    state = mesh(CLIENT, SECOND, gateway, SHOP)
    assert route(state, CLIENT, VIP6, 0.0) == through(VIP6, SECOND, "10.1.0.9")


def test_pods_of_the_gateway_reach_the_endpoints_directly() -> None:
    state = mesh(*WORLD)
    direct = Hbone(
        SocketAddress("10.1.0.2", 8080), SocketAddress("10.1.0.2", 15008), (WEB.identity,), WEB,
        NAME,
    )  # fmt: skip
    assert route(state, FIRST, VIP, 0.0) == direct
    assert route(state, CLIENT, VIP, 0.0) == through(VIP, FIRST, "10.1.0.8")  # not cached for both
    other = with_(workload("other-gw", "10.1.0.7"), gateway="shop/other")
    assert route(mesh(*WORLD, other), other, VIP, 0.0) == through(VIP, FIRST, "10.1.0.8")


def test_address_of_a_pod_with_a_waypoint_is_reached_through_it() -> None:
    state = mesh(*WORLD, with_(WEB, waypoint=WAYPOINT))
    target = SocketAddress("10.1.0.2", 8080)
    assert route(state, CLIENT, target, 0.0) == through(target, FIRST, "10.1.0.8", "")
    assert isinstance(route(state, FIRST, target, 0.0), Hbone)
    assert route(state, FIRST, target, 0.0) != through(target, FIRST, "10.1.0.8", "")


def test_pod_outside_the_mesh_with_a_waypoint_gets_no_direct_connection() -> None:
    plain = with_(WEB, waypoint=WAYPOINT, protocol=PLAIN)
    target = SocketAddress("10.1.0.2", 8080)
    state = mesh(*WORLD, plain)
    assert route(state, CLIENT, target, 0.0) == through(target, FIRST, "10.1.0.8", "")
    assert isinstance(route(state, FIRST, target, 0.0), Passthrough)


@pytest.mark.parametrize(
    ("gateway", "reason"),
    [
        (None, "waypoint shop/waypoint has no Service"),
        (of(GATEWAY_SERVICE, endpoints=()), "waypoint shop/waypoint has no ready pod"),
        (
            of(GATEWAY_SERVICE, endpoints=(endpoint(FIRST, ready=False, mesh=15008),)),
            "waypoint shop/waypoint has no ready pod",
        ),
        (
            of(GATEWAY_SERVICE, endpoints=(endpoint("192.0.2.1", mesh=15008),)),
            "waypoint shop/waypoint has no ready pod",
        ),
    ],
)
def test_waypoint_without_a_ready_pod_refuses(gateway: Service | None, reason: str) -> None:
    world = [each for each in WORLD if each is not GATEWAY_SERVICE]
    state = mesh(*world, *([gateway] if gateway else []))
    assert route(state, CLIENT, VIP, 0.0) == Refuse(reason)


def test_error_of_the_waypoint_refuses_with_its_reason() -> None:
    reason = "waypoint shop/waypoint does not exist"
    state = mesh(*WORLD, of(SHOP, waypoint_error=reason), with_(WEB, waypoint=WAYPOINT))
    assert route(state, CLIENT, VIP, 0.0) == Refuse(reason)
    broken = with_(WEB, waypoint=WAYPOINT, waypoint_error=reason)
    assert route(mesh(*WORLD, broken), CLIENT, SocketAddress("10.1.0.2", 80), 0.0) == Refuse(reason)


def test_service_without_ready_endpoints_still_reaches_its_waypoint() -> None:
    state = mesh(*WORLD, of(SHOP, endpoints=()))
    assert route(state, CLIENT, VIP, 0.0) == through(VIP, FIRST, "10.1.0.8")
    unknown = route(state, CLIENT, SocketAddress("10.96.0.1", 81), 0.0)
    assert unknown == Refuse("service shop/shop has no TCP port 81")


def test_change_of_the_waypoint_applies_to_the_next_connection() -> None:
    world = Mesh().put(*WORLD)
    assert route(world.state, CLIENT, VIP, 0.0) == through(VIP, FIRST, "10.1.0.8")
    world.put(of(GATEWAY_SERVICE, endpoints=(endpoint(SECOND, mesh=15008),)))
    assert route(world.state, CLIENT, VIP, 0.0) == through(VIP, SECOND, "10.1.0.9")
    world.put(of(SHOP, waypoint=""))
    decision = route(world.state, CLIENT, VIP, 0.0)
    assert isinstance(decision, Hbone)
    assert decision.workload == WEB


def test_captured_pods_take_precedence_over_pods_that_may_not_accept_hbone() -> None:
    starting = with_(FIRST, protocol=PLAIN)
    state = mesh(*WORLD, starting)
    assert [route(state, CLIENT, VIP, chance) for chance in (0.0, 0.9)] == [
        through(VIP, SECOND, "10.1.0.9")
    ] * 2


def test_waypoint_of_istio_terminates_hbone_itself() -> None:
    """Its pods are not captured: the label networking.istio.io/tunnel need not be present."""
    istio = with_(FIRST, protocol=PLAIN, gateway="")
    gateway = of(GATEWAY_SERVICE, endpoints=(endpoint(istio, mesh=15008),))
    state = mesh(CLIENT, istio, gateway, SHOP)
    assert route(state, CLIENT, VIP, 0.0) == through(VIP, istio, "10.1.0.8")


def test_udp_does_not_pass_waypoints() -> None:
    found = route_udp(mesh(*WORLD), CLIENT, SocketAddress("10.96.0.1", 53), 0.0)
    assert isinstance(found, Hbone)
    assert found.workload == WEB


def test_entry_with_a_waypoint_but_without_a_virtual_address_is_refused() -> None:
    entry = Service(
        namespace="shop",
        name="api.example.com",
        hostname="api.example.com",
        ports=(ServicePort(443, "tls"),),
        endpoints=(Endpoint(address="192.0.2.1", ports={"tls": 443}),),
        is_service_entry=True,
        waypoint=WAYPOINT,
    )
    state = mesh(*WORLD, entry)
    decision = route(state, CLIENT, SocketAddress("192.0.2.1", 443), 0.0)
    assert isinstance(decision, Refuse)
    assert "api.example.com has the waypoint shop/waypoint but no virtual address" in str(decision)
    assert isinstance(route(state, FIRST, SocketAddress("192.0.2.1", 443), 0.0), Passthrough)


# Inbound


@dataclass(frozen=True)
class Connect:
    authority: bytes
    headers: tuple[tuple[bytes, bytes], ...] = ()
    method: bytes = b"CONNECT"
    protocol: bytes = b""
    path: bytes = b""


PEER = SocketAddress("10.1.0.1", 41000)
LOCAL = SocketAddress("10.1.0.8", 15008)
LOCAL6 = SocketAddress("fd00:1::8", 15008)


def check(
    request: Connect,
    *world: Workload | Service,
    local: SocketAddress = LOCAL,
    identity: str = CLIENT.identity,
) -> Accept | Reject:
    state = mesh(*(world or WORLD))
    return check_connect(state, request, local=local, peer=PEER, identity=identity)


def accepted(destination: SocketAddress, name: str = NAME) -> Accept:
    return Accept(PEER, destination, CLIENT, FIRST, name, to_waypoint=True)


def test_waypoint_accepts_the_virtual_addresses_of_its_services() -> None:
    assert check(Connect(b"10.96.0.1:80")) == accepted(VIP)
    assert check(Connect(b"[fd00:96::1]:80")) == accepted(VIP6)
    assert check(Connect(b"[FD00:96:0::1]:80"), local=LOCAL6) == accepted(VIP6)


@pytest.mark.parametrize(
    ("authority", "local", "destination"),
    [
        (b"shop.shop.svc.cluster.local:80", LOCAL, VIP),
        (b"shop.shop.svc.cluster.local:80", LOCAL6, VIP6),
        (b"SHOP.shop.svc.cluster.local.:80", LOCAL, VIP),
    ],
)
def test_hostname_authority_is_resolved_by_the_mesh(
    authority: bytes, local: SocketAddress, destination: SocketAddress
) -> None:
    assert check(Connect(authority), local=local) == accepted(destination)


def test_waypoint_accepts_the_pods_that_it_is_in_front_of() -> None:
    world = (*WORLD, with_(WEB, waypoint=WAYPOINT))
    destination = SocketAddress("10.1.0.2", 8080)
    assert check(Connect(b"10.1.0.2:8080"), *world) == accepted(destination, "")
    assert isinstance(check(Connect(b"10.1.0.2:15088"), *world), Reject)
    assert isinstance(check(Connect(b"10.1.0.2:8080")), Reject)


def test_own_address_of_the_waypoint_pod_is_an_ordinary_destination() -> None:
    decision = check(Connect(b"10.1.0.8:15020"))
    assert isinstance(decision, Accept)
    assert not decision.to_waypoint


OTHER = of(service("other", "10.96.0.2", ports=(ServicePort(80),)), waypoint="shop/another")
OPEN = service("open", "10.96.0.3", ports=(ServicePort(80),))


@pytest.mark.parametrize(
    "authority",
    [
        b"10.96.0.2:80",  # the waypoint of this service is another one
        b"other.shop.svc.cluster.local:80",
        b"10.96.0.3:80",  # no waypoint
        b"open.shop.svc.cluster.local:80",
        b"10.96.0.1:81",  # no such port
        b"10.96.0.1:53",  # UDP
        b"10.1.0.1:80",  # a pod without a waypoint
        b"10.1.0.9:80",  # another pod of the waypoint
        b"127.0.0.1:15088",
        b"10.1.0.8:15088",
        b"missing.shop.svc.cluster.local:80",
        b"shop.shop.svc.cluster.local:0",
        b"shop.shop.svc.cluster.local:65536",
        b"shop:80",
        b"user@shop.shop.svc.cluster.local:80",
        b"*.shop.svc.cluster.local:80",
        b".:80",
    ],
)
def test_waypoint_rejects_every_other_authority(authority: bytes) -> None:
    decision = check(Connect(authority), *WORLD, OTHER, OPEN)
    assert isinstance(decision, Reject)
    assert decision.status == 400


def test_pod_that_is_not_the_waypoint_rejects_service_authorities() -> None:
    local = SocketAddress("10.1.0.2", 15008)
    for authority in (b"10.96.0.1:80", b"shop.shop.svc.cluster.local:80"):
        decision = check(Connect(authority), local=local)
        assert isinstance(decision, Reject)
        assert decision.reason.endswith("is not this pod, 10.1.0.2")


def test_service_whose_waypoint_does_not_admit_it_is_rejected() -> None:
    refused = of(SHOP, waypoint_error="waypoint shop/waypoint does not admit")
    decision = check(Connect(b"10.96.0.1:80"), *WORLD, refused)
    assert decision == Reject(400, "waypoint shop/waypoint does not admit")


def test_connect_udp_to_a_service_is_rejected() -> None:
    path = b"/.well-known/masque/udp/10.96.0.1/53/"
    decision = check(Connect(b"10.96.0.1:53", protocol=b"connect-udp", path=path))
    assert isinstance(decision, Reject)


def test_forwarded_header_cannot_change_the_source_of_another_identity() -> None:
    """A workload's address in `forwarded` counts only with the identity of that workload."""
    forged = ((b"forwarded", b'for="10.1.0.2:1";host=evil.example.com'),)
    decision = check(Connect(b"10.96.0.1:80", forged))
    assert decision == accepted(VIP)  # the host that the client names is ignored
    stranger = check(Connect(b"10.96.0.1:80", forged), identity="spiffe://td/ns/x/sa/y")
    assert isinstance(stranger, Accept)
    assert stranger.source is None
    assert stranger.client == PEER


@given(st.binary(max_size=300))
def test_any_authority_is_decided_without_an_exception(authority: bytes) -> None:
    decision = check(Connect(authority))
    assert isinstance(decision, Reject) or decision.to_waypoint or decision.destination.ip


@given(st.binary(max_size=40))
def test_named_authority_is_a_lower_case_name_and_a_port(junk: bytes) -> None:
    parsed = parse_named_authority(junk)
    if parsed is not None:
        assert parsed.host == parsed.host.lower()
        assert 0 < parsed.port <= 65535
        assert not parsed.host.rpartition(".")[2].isdigit()
