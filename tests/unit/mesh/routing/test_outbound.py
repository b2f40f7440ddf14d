# SPDX-License-Identifier: Apache-2.0
"""Outbound decisions: the table of destinations, and endpoint selection."""

from __future__ import annotations

import math
from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.mesh.builders import (
    PLAIN,
    Mesh,
    addresses,
    endpoint,
    mesh,
    ports,
    service,
    workload,
)
from ztunnel.mesh.model import Endpoint, Service, ServicePort, SocketAddress
from ztunnel.mesh.ports import RESERVED
from ztunnel.mesh.routing.decisions import Hbone, Passthrough, Refuse, Route
from ztunnel.mesh.routing.outbound import ROUTE_CACHE_SIZE, route, route_udp
from ztunnel.mesh.state import MeshState

ALMOST_ONE = math.nextafter(1.0, 0.0)

CLIENT = workload("client", "10.244.1.2", "fd00:10:244:1::2")
MESHED = workload("meshed", "10.244.2.2", "fd00:10:244:2::2", account="web")
OTHER = workload("other", "10.244.2.3", "fd00:10:244:2::3", account="other")
PLAIN_POD = workload("plain", "10.244.2.4", protocol=PLAIN)
NODE_POD = workload("node-pod", "172.30.0.2", host_network=True, protocol=PLAIN)

WEB = service(
    "web",
    "10.96.0.1",
    "fd00:10:96::1",
    ports=(
        ServicePort(80, "http"),
        ServicePort(81, "plain"),
        ServicePort(82, "nowhere"),
        ServicePort(83, "sleepy"),
        ServicePort(84, "outside"),
        ServicePort(85, "loop"),
        ServicePort(86, "only4"),
        ServicePort(53, "dns", "UDP"),
        ServicePort(15008, "ours"),
        ServicePort(87, "node"),
    ),
    endpoints=(
        endpoint(MESHED, http=8080, ours=8080),
        endpoint(MESHED, 1, http=8086),
        endpoint(PLAIN_POD, plain=9090, only4=9091),
        endpoint(OTHER, ready=False, sleepy=7070),
        endpoint("192.0.2.7", outside=443),
        endpoint(MESHED, loop=15006, dns=53),
        endpoint(NODE_POD, node=9100),
    ),
)
UNNAMED = service(
    "unnamed",
    "10.96.0.2",
    ports=(ServicePort(80),),
    endpoints=(Endpoint(address="10.244.2.2", ports={"": 8000}, workload=MESHED.uid),),
)
EMPTY = service("empty", "10.96.0.3", ports=(ServicePort(80),))
STATE = mesh(CLIENT, MESHED, OTHER, PLAIN_POD, NODE_POD, WEB, UNNAMED, EMPTY)
WEB_NAME = "web.shop.svc.cluster.local"


def decide(ip: str, port: int, chance: float = 0.0) -> Route:
    return route(STATE, CLIENT, SocketAddress(ip, port), chance)


def tunnelled(ip: str, port: int, service_name: str = "") -> Hbone:
    return Hbone(
        SocketAddress(ip, port),
        SocketAddress(ip, 15008),
        ("spiffe://cluster.local/ns/shop/sa/web",),
        MESHED,
        service_name,
    )


@pytest.mark.parametrize(
    ("ip", "port", "expected"),
    [
        ("10.244.2.2", 5000, tunnelled("10.244.2.2", 5000)),
        ("fd00:10:244:2::2", 5000, tunnelled("fd00:10:244:2::2", 5000)),
        ("10.244.2.4", 5000, Passthrough(SocketAddress("10.244.2.4", 5000), PLAIN_POD)),
        ("192.0.2.1", 443, Passthrough(SocketAddress("192.0.2.1", 443))),
        ("2001:db8::1", 443, Passthrough(SocketAddress("2001:db8::1", 443))),
        ("172.30.0.2", 9100, Passthrough(SocketAddress("172.30.0.2", 9100))),
        ("10.96.0.1", 80, tunnelled("10.244.2.2", 8080, WEB_NAME)),
        ("fd00:10:96::1", 80, tunnelled("fd00:10:244:2::2", 8086, WEB_NAME)),
        ("10.96.0.2", 80, tunnelled("10.244.2.2", 8000, "unnamed.shop.svc.cluster.local")),
        (
            "10.96.0.1",
            81,
            Passthrough(SocketAddress("10.244.2.4", 9090), PLAIN_POD, WEB_NAME),
        ),
        ("10.96.0.1", 84, Passthrough(SocketAddress("192.0.2.7", 443), None, WEB_NAME)),
        ("10.96.0.1", 87, Passthrough(SocketAddress("172.30.0.2", 9100), None, WEB_NAME)),
    ],
)
def test_destination_uses_hbone_or_passthrough(ip: str, port: int, expected: Route) -> None:
    assert decide(ip, port) == expected


@pytest.mark.parametrize(
    ("ip", "port", "reason"),
    [
        ("10.96.0.1", 8080, "service shop/web has no TCP port 8080"),
        ("10.96.0.1", 53, "service shop/web has no TCP port 53"),
        ("10.96.0.1", 82, "service shop/web has no ready endpoint for port 82"),
        ("10.96.0.1", 83, "service shop/web has no ready endpoint for port 83"),
        ("fd00:10:96::1", 86, "service shop/web has no ready endpoint for port 86"),
        ("10.96.0.3", 80, "service shop/empty has no ready endpoint for port 80"),
        ("10.96.0.1", 85, "service shop/web targets port 15006, which is reserved for the mesh"),
        ("10.96.0.1", 15008, "port 15008 is reserved for the mesh"),
    ],
)
def test_service_without_usable_backend_is_refused(ip: str, port: int, reason: str) -> None:
    assert decide(ip, port) == Refuse(reason)


@pytest.mark.parametrize("port", sorted(RESERVED))
@pytest.mark.parametrize("ip", ["10.244.2.2", "10.244.2.4", "10.96.0.1", "192.0.2.1", "::1"])
def test_reserved_ports_are_refused(ip: str, port: int) -> None:
    assert decide(ip, port) == Refuse(f"port {port} is reserved for the mesh")


@pytest.mark.parametrize(
    ("ip", "port", "reached"),
    [
        ("10.244.2.2", 5000, True),
        ("10.244.2.4", 5000, True),  # a workload, though not of the mesh
        ("10.96.0.1", 80, True),
        ("10.96.0.1", 84, True),  # the service's own endpoint is outside
        ("192.0.2.7", 443, False),  # the same, dialled directly
        ("192.0.2.1", 443, False),
        ("2001:db8::1", 443, False),
        ("172.30.0.2", 9100, False),  # a node is no workload
    ],
)
def test_registry_only_mesh_reaches_services_and_workloads_and_nothing_else(
    ip: str, port: int, reached: bool
) -> None:
    state = Mesh(MeshState(True)).put(CLIENT, MESHED, OTHER, PLAIN_POD, NODE_POD, WEB).state
    decided = route(state, CLIENT, SocketAddress(ip, port), 0.0)
    assert isinstance(decided, Refuse) is not reached
    assert reached or "REGISTRY_ONLY" in decided.reason  # type: ignore[union-attr]


@given(addresses, ports, st.floats(0, 1, exclude_max=True))
def test_unknown_destination_is_passed_through(ip: str, port: int, chance: float) -> None:
    destination = SocketAddress(ip, port)
    known = {*CLIENT.addresses, *MESHED.addresses, *OTHER.addresses, *PLAIN_POD.addresses}
    if ip in known | {*WEB.vips, *UNNAMED.vips, *EMPTY.vips} or port in RESERVED:
        return
    assert route(STATE, CLIENT, destination, chance) == Passthrough(destination)


def test_service_never_reaches_a_mesh_pod_in_plaintext() -> None:
    stale = endpoint(MESHED.addresses[0], http=8080)  # the slice does not say whose it is
    web = service("web", "10.96.0.1", ports=(ServicePort(80, "http"),), endpoints=(stale,))
    decision = route(mesh(MESHED, web), CLIENT, SocketAddress("10.96.0.1", 80), 0.0)
    assert decision == tunnelled("10.244.2.2", 8080, WEB_NAME)


def test_expected_identity_is_that_of_the_current_owner() -> None:
    reused = workload("reused", "10.244.2.2", account="new")
    web = service(
        "web",
        "10.96.0.1",
        ports=(ServicePort(80, "http"),),
        endpoints=(endpoint(MESHED, http=80),),  # not updated yet
    )
    decision = route(mesh(MESHED, reused, web), CLIENT, SocketAddress("10.96.0.1", 80), 0.0)
    assert isinstance(decision, Hbone)
    assert decision.identities == (reused.identity,)
    assert decision.workload == reused


def farm(capacities: list[int]) -> tuple[list[str], Service, list[Endpoint]]:
    ips = [f"10.244.3.{n}" for n in range(1, len(capacities) + 1)]
    endpoints = [
        endpoint(workload(ip, ip, capacity=capacity), http=80)
        for ip, capacity in zip(ips, capacities, strict=True)
    ]
    spread = service(
        "farm", "10.96.0.9", ports=(ServicePort(80, "http"),), endpoints=tuple(endpoints)
    )
    return ips, spread, endpoints


def chosen(capacities: list[int], chances: list[float]) -> list[str]:
    ips, spread, _ = farm(capacities)
    pods = [
        workload(ip, ip, capacity=capacity) for ip, capacity in zip(ips, capacities, strict=True)
    ]
    state = mesh(spread, *pods)
    found = []
    for chance in chances:
        decision = route(state, CLIENT, SocketAddress("10.96.0.9", 80), chance)
        assert isinstance(decision, Hbone)
        found.append(decision.authority.ip)
    return found


@given(st.lists(st.integers(1, 12), min_size=1, max_size=12))
def test_share_of_an_endpoint_is_exactly_its_capacity(capacities: list[int]) -> None:
    total = sum(capacities)
    middles = [(n + 0.5) / total for n in range(total)]
    counts = Counter(chosen(capacities, middles))
    assert [counts[f"10.244.3.{n}"] for n in range(1, len(capacities) + 1)] == capacities


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=12))
def test_extremes_of_chance_choose_the_first_and_the_last(capacities: list[int]) -> None:
    assert chosen(capacities, [0.0, ALMOST_ONE]) == ["10.244.3.1", f"10.244.3.{len(capacities)}"]


@given(st.lists(st.integers(-1, 2**70), min_size=1, max_size=12), st.floats(0, 1, exclude_max=True))
def test_any_capacity_and_chance_choose_a_backend(capacities: list[int], chance: float) -> None:
    assert len(chosen(capacities, [chance, ALMOST_ONE])) == 2


def test_capacity_below_one_counts_as_one() -> None:
    assert Counter(chosen([0, -5, 2], [0.125, 0.375, 0.625, 0.875])) == {
        "10.244.3.1": 1,
        "10.244.3.2": 1,
        "10.244.3.3": 2,
    }


def test_endpoint_without_a_pod_has_weight_one() -> None:
    heavy = workload("heavy", "10.244.3.1", capacity=3)
    spread = service(
        "mixed",
        "10.96.0.9",
        ports=(ServicePort(80, "http"),),
        endpoints=(endpoint("192.0.2.7", http=80), endpoint(heavy, http=80)),
    )
    state = mesh(heavy, spread)
    decisions = [
        route(state, CLIENT, SocketAddress("10.96.0.9", 80), chance)
        for chance in (0.125, 0.375, 0.625, 0.875)
    ]
    assert [type(one) for one in decisions] == [Passthrough, Hbone, Hbone, Hbone]


@pytest.mark.parametrize("changed", ["capacity", "endpoints", "ports"])
def test_change_takes_effect_immediately(changed: str) -> None:
    ips, spread, _ = farm([1, 1])
    first, second = (workload(ip, ip) for ip in ips)
    change = Mesh().put(first, second, spread)
    destination = SocketAddress("10.96.0.9", 80)
    before = route(change.state, CLIENT, destination, 0.5)
    assert isinstance(before, Hbone)
    assert before.workload == second
    match changed:
        case "capacity":
            first = workload(ips[0], ips[0], capacity=9)
            change.put(first)
        case "endpoints":
            change.put(msgspec.structs.replace(spread, endpoints=spread.endpoints[:1]))
        case "ports":
            change.put(msgspec.structs.replace(spread, ports=()))
    after = route(change.state, CLIENT, destination, 0.5)
    if changed == "ports":
        assert after == Refuse("service shop/farm has no TCP port 80")
    else:
        assert isinstance(after, Hbone)
        assert after.workload == first


def test_removed_service_is_no_longer_resolved() -> None:
    change = Mesh().put(MESHED, WEB)
    destination = SocketAddress("10.96.0.1", 80)
    assert isinstance(route(change.state, CLIENT, destination, 0.0), Hbone)
    assert route(change.drop(WEB).state, CLIENT, destination, 0.0) == Passthrough(destination)


@pytest.mark.parametrize(
    ("destination", "wanted"),
    [
        ("10.96.0.1:53", "10.244.2.2:53"),  # the service's endpoint
        ("10.244.2.2:53", "10.244.2.2:53"),
        ("10.244.2.2:15008", "10.244.2.2:15008"),  # of UDP no port is ours
        ("10.96.0.1:80", "has no UDP port 80"),
        ("10.244.2.4:53", "no workload in the mesh owns the address 10.244.2.4"),
        ("192.0.2.1:53", "no workload in the mesh owns the address 192.0.2.1"),
    ],
)
def test_datagrams_go_only_to_hbone_workloads(destination: str, wanted: str) -> None:
    ip, _, port = destination.rpartition(":")
    decision = route_udp(STATE, CLIENT, SocketAddress(ip, int(port)), 0.0)
    if isinstance(decision, Refuse):
        assert wanted in decision.reason
    else:
        assert str(decision.authority) == wanted
        assert decision.service == ("" if ip != "10.96.0.1" else WEB.hostname or WEB.key)


@given(st.integers(0, 2**53 - 1).map(lambda n: n / 2**53))
def test_route_is_one_object_until_the_mesh_changes(chance: float) -> None:
    change = Mesh().put(CLIENT, MESHED, OTHER, WEB)
    for asked in (SocketAddress("10.244.2.2", 5000), SocketAddress("10.96.0.1", 80)):
        first = route(change.state, CLIENT, asked, chance)
        assert route(change.state, CLIENT, asked, chance) is first
        change.put(PLAIN_POD)
        second = route(change.state, CLIENT, asked, chance)
        assert second == first
        assert second is not first


def test_route_cache_is_bounded() -> None:
    change = Mesh().put(CLIENT, MESHED)
    for port in range(1, ROUTE_CACHE_SIZE + 100):
        route(change.state, CLIENT, SocketAddress("192.0.2.1", port), 0.0)
    assert len(change.state.route_cache) <= ROUTE_CACHE_SIZE
