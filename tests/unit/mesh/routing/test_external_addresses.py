# SPDX-License-Identifier: Apache-2.0
"""Connections to load balancers, external IPs and node ports are routed as to the service."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mesh.builders import PLAIN, Mesh, addresses, endpoint, mesh, service, workload
from tests.unit.mesh.routing.test_waypoints import FIRST, GATEWAY_SERVICE, WAYPOINT, through
from ztunnel.mesh.model import Service, ServicePort, SocketAddress
from ztunnel.mesh.routing.decisions import Hbone, Passthrough, Refuse
from ztunnel.mesh.routing.outbound import route, route_udp
from ztunnel.mesh.state import MeshState

BALANCER, EXTERNAL, NODE = "203.0.113.1", "198.51.100.1", "172.30.0.2"
CLIENT = workload("client", "10.244.1.2", "fd00:10:244:1::2")
MESHED = workload("meshed", "10.244.2.2", "fd00:10:244:2::2", account="web")
NODE_POD = workload("node-pod", NODE, host_network=True, protocol=PLAIN)


def of(value: Service, **changes: object) -> Service:
    return msgspec.structs.replace(value, **changes)


WEB = of(
    service(
        "web",
        "10.96.0.1",
        "fd00:96::1",
        ports=(
            ServicePort(80, "http", node_port=30080),
            ServicePort(53, "dns", "UDP", node_port=30080),
        ),
        endpoints=(endpoint(MESHED, http=8080, dns=53), endpoint(MESHED, 1, http=8086)),
    ),
    load_balancer_ips=(BALANCER, "2001:db8::1"),
    external_ips=(EXTERNAL,),
)
WORLD = CLIENT, MESHED, NODE_POD, WEB


def at(ip: str, port: int) -> SocketAddress:
    return SocketAddress(ip, port)


@pytest.mark.parametrize(
    ("address", "endpoint_port"),
    [
        (at(BALANCER, 80), 8080),
        (at("2001:db8::1", 80), 8086),
        (at(EXTERNAL, 80), 8080),
        (at(NODE, 30080), 8080),
    ],
)
def test_destination_is_an_endpoint_of_the_service(
    address: SocketAddress, endpoint_port: int
) -> None:
    decision = route(mesh(*WORLD), CLIENT, address, 0.0)
    assert isinstance(decision, Hbone)
    assert decision.authority.port == endpoint_port
    assert decision.identities == (MESHED.identity,)
    assert decision.service == WEB.hostname


@pytest.mark.parametrize(
    "address",
    [
        at(BALANCER, 81),  # another service may share the address
        at(BALANCER, 53),  # a port of UDP
        at(BALANCER, 30080),
        at(EXTERNAL, 8080),
        at(NODE, 80),
        at(NODE, 30081),
        at("192.0.2.1", 30080),  # not a node
    ],
)
def test_other_ports_and_addresses_are_not_the_service(address: SocketAddress) -> None:
    assert route(mesh(*WORLD), CLIENT, address, 0.0) == Passthrough(address)


def test_address_of_a_pod_or_a_virtual_address_cannot_be_claimed() -> None:
    thief = of(
        service("thief", "10.96.0.66", ports=(ServicePort(80, "http"),)),
        external_ips=("10.96.0.1", MESHED.addresses[0], BALANCER),
    )
    state = mesh(*WORLD, thief)
    for ip in ("10.96.0.1", BALANCER, MESHED.addresses[0]):
        decision = route(state, CLIENT, at(ip, 80), 0.0)
        assert isinstance(decision, Hbone)
        assert decision.identities == (MESHED.identity,)


def test_load_balancer_precedes_external_ips_in_any_order() -> None:
    thief = of(
        service("thief", "10.96.0.66", ports=(ServicePort(80, "http"),)), external_ips=(BALANCER,)
    )
    for order in ((WEB, thief), (thief, WEB)):
        state = mesh(CLIENT, MESHED, *order)
        assert isinstance(route(state, CLIENT, at(BALANCER, 80), 0.0), Hbone)


def test_external_ips_count_for_the_clients_of_their_namespace_only() -> None:
    stranger = msgspec.structs.replace(CLIENT, namespace="other")
    state = mesh(*WORLD, stranger)
    address = at(EXTERNAL, 80)
    assert route(state, stranger, address, 0.0) == Passthrough(address)
    assert isinstance(route(state, CLIENT, address, 0.0), Hbone)
    assert isinstance(route(state, stranger, at(BALANCER, 80), 0.0), Hbone)


def test_waypoint_gets_the_virtual_address() -> None:
    behind = of(WEB, waypoint=WAYPOINT)
    first = of(GATEWAY_SERVICE, endpoints=GATEWAY_SERVICE.endpoints[:1])
    state = mesh(*WORLD, FIRST, first, behind)
    expected = through(at("10.96.0.1", 80), FIRST, "10.1.0.8", WEB.hostname)
    for address in (at(BALANCER, 80), at(EXTERNAL, 80), at(NODE, 30080)):
        assert route(state, CLIENT, address, 0.0) == expected


def test_service_without_ready_endpoints_is_refused() -> None:
    state = mesh(*WORLD, of(WEB, endpoints=()))
    assert isinstance(route(state, CLIENT, at(BALANCER, 80), 0.0), Refuse)


def test_registry_only_permits_them() -> None:
    state = Mesh(MeshState(registry_only=True)).put(*WORLD).state
    assert isinstance(route(state, CLIENT, at(BALANCER, 80), 0.0), Hbone)
    assert isinstance(route(state, CLIENT, at(BALANCER, 81), 0.0), Refuse)


def test_datagrams_to_the_load_balancer_reach_an_endpoint() -> None:
    decision = route_udp(mesh(*WORLD), CLIENT, at(BALANCER, 53), 0.0)
    assert isinstance(decision, Hbone)
    assert decision.authority == at(MESHED.addresses[0], 53)


def test_addresses_follow_the_service_and_the_nodes() -> None:
    found = mesh(*WORLD)
    world = Mesh(found)
    world.put(of(WEB, load_balancer_ips=(), external_ips=("192.0.2.9",)))
    assert isinstance(route(found, CLIENT, at(BALANCER, 80), 0.0), Passthrough)
    assert isinstance(route(found, CLIENT, at("192.0.2.9", 80), 0.0), Hbone)
    world.drop(NODE_POD)
    assert isinstance(route(found, CLIENT, at(NODE, 30080), 0.0), Passthrough)
    world.put(NODE_POD).drop(WEB)
    for address in (at("192.0.2.9", 80), at(NODE, 30080), at(EXTERNAL, 80)):
        assert isinstance(route(found, CLIENT, address, 0.0), Passthrough)


@given(
    st.lists(st.tuples(addresses, addresses), min_size=1, max_size=6),
    st.sampled_from(["TCP", "UDP"]),
)
def test_an_address_is_found_exactly_while_a_service_has_it(
    pairs: list[tuple[str, str]], protocol: str
) -> None:
    services = [
        of(
            service(f"s{number}", f"10.96.1.{number}", ports=(ServicePort(80, "p", protocol),)),
            load_balancer_ips=(balancer,),
            external_ips=(external,),
        )
        for number, (balancer, external) in enumerate(pairs)
    ]
    world = Mesh(MeshState()).put(*services)
    for service_, pair in zip(services, pairs, strict=True):
        world.drop(service_)
        rest = [ip for each in services[services.index(service_) + 1 :] for ip in each.outside_ips]
        for ip in pair:
            found = world.state.external_service_at(SocketAddress(ip, 80), protocol, "shop")
            assert (found is not None) is (ip in rest)
