# SPDX-License-Identifier: Apache-2.0
"""The share of a namespace in the UDP route map: beyond it, objects fail closed."""

from __future__ import annotations

import msgspec

from tests.support.agent_fakes import workload
from ztunnel.agent.traffic.udp_route_share import (
    MAX_ROUTES_PER_NAMESPACE,
    Routes,
    RouteShares,
)
from ztunnel.agent.traffic.udp_routes import UdpRouteTable
from ztunnel.datapath.bpf.layout import UdpRoute
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.mesh.model import Endpoint, Service, ServicePort, SocketAddress, Workload
from ztunnel.mesh.policy.engine import PolicyEngine

REDIRECT, REFUSED = UdpRoute.REDIRECT, UdpRoute.REFUSED
PORTS = 3500


def many(ip: str, count: int) -> Routes:
    return {SocketAddress(ip, port): REDIRECT for port in range(1, count + 1)}


def refusal(*ips: str) -> Routes:
    return {SocketAddress(ip, 0): REFUSED for ip in ips}


def service(number: int, namespace: str = "tenant") -> Service:
    """A Service with 3,500 UDP ports, all of which the pod 10.2.0.1 serves."""
    ports = tuple(ServicePort(port, f"p{port}", "UDP") for port in range(1, PORTS + 1))
    endpoint = Endpoint(address="10.2.0.1", ports={port.name: port.port for port in ports})
    return Service(
        namespace=namespace,
        name=f"s{number}",
        vips=(f"10.96.0.{number}",),
        ports=ports,
        endpoints=(endpoint,),
    )


def remote_pod() -> Workload:
    return msgspec.structs.replace(workload("far", addresses=("10.2.0.1",)), node="n2")


def table() -> UdpRouteTable:
    made = UdpRouteTable("n1", PolicyEngine(), encrypted=False)
    made.apply(ViewChange((remote_pod(),)))
    return made


def test_object_beyond_the_share_gets_one_refused_route_per_address() -> None:
    shares = RouteShares(limit=10)
    assert shares.fit("a", "ns", many("10.0.0.1", 8)) == many("10.0.0.1", 8)
    two = {**many("10.0.0.2", 3), **many("10.0.0.3", 1)}
    assert shares.fit("b", "ns", two) == {**refusal("10.0.0.2"), **many("10.0.0.3", 1)}
    assert shares.used == {"ns": 10}
    assert shares.refused == {"ns": 1}
    assert shares.fit("c", "other", many("10.0.0.4", 10)) == many("10.0.0.4", 10)


def test_single_route_of_an_address_is_never_refused() -> None:
    """A large namespace of pods, each with one route, is not an attack."""
    shares = RouteShares(limit=2)
    for number in range(10):
        routes: Routes = {SocketAddress(f"10.0.0.{number}", 0): REDIRECT}
        assert shares.fit(str(number), "ns", routes) == routes
    assert shares.refused == {}
    assert shares.used == {"ns": 10}


def test_refused_object_is_retried_when_its_namespace_releases_routes() -> None:
    shares = RouteShares(limit=10)
    shares.fit("a", "ns", many("10.0.0.1", 8))
    shares.fit("b", "ns", many("10.0.0.2", 5))
    assert shares.pop_retries() == []
    shares.fit("a", "ns", {})
    assert shares.pop_retries() == ["b"]
    assert shares.pop_retries() == []
    assert shares.fit("b", "ns", many("10.0.0.2", 5)) == many("10.0.0.2", 5)
    assert (shares.used, shares.refused) == ({"ns": 5}, {})
    shares.fit("b", "ns", {})
    assert (shares.used, shares.refused) == ({}, {})


def test_services_of_one_namespace_cannot_fill_the_map() -> None:
    """Ten Services with 3,500 ports each: the attack of one tenant."""
    made = table()
    made.apply(ViewChange(services=tuple(service(number) for number in range(1, 11))))
    assert made.shares.used["tenant"] <= MAX_ROUTES_PER_NAMESPACE
    refused = {at.ip for at, route in made.routes.items() if route is REFUSED}
    redirected = {at.ip for at, route in made.routes.items() if route is REDIRECT and at.port}
    assert len(redirected) == MAX_ROUTES_PER_NAMESPACE // PORTS
    assert redirected | refused == {f"10.96.0.{number}" for number in range(1, 11)}
    assert not redirected & refused
    made.apply(ViewChange(services=(service(11, "victim"),)))
    assert made.routes[SocketAddress("10.96.0.11", PORTS)] is REDIRECT


def test_refused_service_is_redirected_when_another_is_deleted() -> None:
    made = table()
    made.apply(ViewChange(services=tuple(service(number) for number in (1, 2, 3))))
    assert made.routes[SocketAddress("10.96.0.3", 0)] is REFUSED
    made.apply(ViewChange(removed_services=("tenant/s1",)))
    assert SocketAddress("10.96.0.3", 0) not in made.routes
    assert made.routes[SocketAddress("10.96.0.3", PORTS)] is REDIRECT
    assert made.shares.refused == {}
