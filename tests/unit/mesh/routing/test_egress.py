# SPDX-License-Identifier: Apache-2.0
"""Hosts of ServiceEntries with a waypoint: what reaches them, past the waypoint or by it."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.mesh.builders import PLAIN, Mesh, endpoint, workload
from ztunnel.mesh.dns_names import lookup
from ztunnel.mesh.model import Service, ServicePort, SocketAddress, Workload
from ztunnel.mesh.routing.decisions import Hbone, Passthrough, Refuse
from ztunnel.mesh.routing.outbound import route
from ztunnel.mesh.routing.waypoints import WaypointDestination, find_destination
from ztunnel.mesh.state import MeshState

GATEWAY = "istio-egress/egress"
CLIENT = workload("client", "10.244.1.2")
EGRESS = msgspec.structs.replace(workload("egress", "10.244.2.2"), gateway=GATEWAY)
NODE_POD = workload("node-pod", "172.30.0.2", host_network=True, protocol=PLAIN)
WAYPOINT = Service(
    namespace="istio-egress",
    name="egress",
    ports=(ServicePort(15008, "mesh"),),
    endpoints=(endpoint(EGRESS, mesh=15008),),
)
VIP, EXTERNAL = "240.240.0.1", "192.0.2.7"


def host(name: str, vip: str, **fields: object) -> Service:
    base: dict[str, object] = {
        "namespace": "shop",
        "name": name,
        "hostname": name,
        "vips": (vip,) if vip else (),
        "ports": (ServicePort(80, "http"),),
        "is_service_entry": True,
        "waypoint": GATEWAY,
    }
    return Service(**(base | fields))  # type: ignore[arg-type]


API = host("api.example.com", VIP, endpoints=(endpoint(EXTERNAL, http=443),))
WILDCARD = host("*.example.org", "240.240.0.2", dynamic_ports={"http": 8443})


def made(*services: Service, registry_only: bool = True) -> MeshState:
    return Mesh(MeshState(registry_only)).put(CLIENT, EGRESS, NODE_POD, WAYPOINT, *services).state


def decide(state: MeshState, source: Workload, ip: str, port: int) -> object:
    return route(state, source, SocketAddress(ip, port), 0.0)


def test_virtual_address_leads_to_the_waypoint() -> None:
    for service in (API, WILDCARD):
        decision = decide(made(API, WILDCARD), CLIENT, service.vips[0], 80)
        assert isinstance(decision, Hbone)
        assert decision.workload == EGRESS


def test_hosts_own_address_is_refused_to_clients_with_registry_only() -> None:
    decision = decide(made(API), CLIENT, EXTERNAL, 443)
    assert isinstance(decision, Refuse)
    assert GATEWAY in decision.reason
    assert isinstance(decide(made(API), EGRESS, EXTERNAL, 443), Passthrough)
    assert isinstance(decide(made(API, registry_only=False), CLIENT, EXTERNAL, 443), Passthrough)


def test_host_without_waypoint_is_reached_directly_with_registry_only() -> None:
    free = msgspec.structs.replace(API, waypoint="")
    assert isinstance(decide(made(free), CLIENT, EXTERNAL, 443), Passthrough)


@pytest.mark.parametrize(
    ("ip", "port", "reached"),
    [
        ("198.51.100.9", 8443, True),
        ("2001:db8::9", 8443, True),
        ("198.51.100.9", 80, False),  # another port
        ("172.30.0.2", 8443, False),  # a node
        ("169.254.169.254", 8443, False),
    ],
)
def test_waypoint_dials_what_it_resolved_at_its_ports_only(
    ip: str, port: int, reached: bool
) -> None:
    state = made(WILDCARD)
    assert isinstance(decide(state, EGRESS, ip, port), Passthrough) is reached
    assert isinstance(decide(state, CLIENT, ip, port), Refuse)
    assert isinstance(decide(made(), EGRESS, ip, port), Refuse)


def test_dynamic_host_without_waypoint_is_refused() -> None:
    decision = decide(
        made(msgspec.structs.replace(WILDCARD, waypoint="")), CLIENT, WILDCARD.vips[0], 80
    )
    assert isinstance(decision, Refuse)
    assert "istio.io/use-waypoint" in decision.reason


def test_any_name_below_a_wildcard_has_its_virtual_address() -> None:
    state = made(WILDCARD)
    for name in ("a.example.org", "a.b.example.org"):
        found = lookup(state, "shop", name)
        assert found is not None
        assert found.addresses == WILDCARD.vips
    assert lookup(state, "shop", "example.org") is None


def test_dynamic_host_without_virtual_address_has_no_data() -> None:
    state = made(host("*.example.org", "", dynamic_ports={"http": 80}))
    found = lookup(state, "shop", "a.example.org")
    assert found is not None
    assert (found.exists, found.addresses) == (True, ())


def test_gateway_resolves_names_below_its_own_wildcards_only() -> None:
    state = made(WILDCARD, API)
    assert state.resolves_name(GATEWAY, "a.example.org")
    assert not state.resolves_name(GATEWAY, "example.org")
    assert not state.resolves_name(GATEWAY, "api.example.com")
    assert not state.resolves_name("other/gateway", "a.example.org")
    assert state.resolved_ports(GATEWAY) == {8443}


def test_dynamic_hosts_are_forgotten() -> None:
    mesh = Mesh().put(WILDCARD)
    mesh.put(msgspec.structs.replace(WILDCARD, dynamic_ports={}))
    assert not mesh.state.resolves_name(GATEWAY, "a.example.org")
    mesh.put(WILDCARD).drop(WILDCARD)
    assert not mesh.state.resolves_name(GATEWAY, "a.example.org")


def test_addresses_of_the_cluster() -> None:
    mesh = Mesh().put(CLIENT, NODE_POD, API)
    for ip in ("10.244.1.2", "172.30.0.2", VIP):
        assert mesh.state.is_cluster_address(ip)
    assert not mesh.state.is_cluster_address(EXTERNAL)
    other = msgspec.structs.replace(NODE_POD, uid="other")
    mesh.put(other).drop(NODE_POD)
    assert mesh.state.is_cluster_address("172.30.0.2")
    mesh.put(msgspec.structs.replace(other, addresses=("172.30.0.3",)))
    assert not mesh.state.is_cluster_address("172.30.0.2")
    mesh.drop(other)
    assert not mesh.state.is_cluster_address("172.30.0.3")


NETWORK = host(
    "net.example.com", "", networks=("198.51.100.0/24", "2001:db8::/32"), export_to=("shop",)
)


@pytest.mark.parametrize("ip", ["198.51.100.9", "2001:db8::9"])
def test_network_leads_to_the_waypoint_with_the_same_authority(ip: str) -> None:
    state = made(NETWORK)
    decision = decide(state, CLIENT, ip, 80)
    assert isinstance(decision, Hbone)
    assert (decision.workload, decision.authority) == (EGRESS, SocketAddress(ip, 80))
    assert isinstance(decide(state, CLIENT, ip, 81), Refuse)
    # the waypoint dials it although the entry is not exported to its namespace
    elsewhere = msgspec.structs.replace(EGRESS, namespace="istio-egress")
    assert isinstance(decide(state, elsewhere, ip, 80), Passthrough)


def test_waypoint_accepts_authorities_in_its_networks_only() -> None:
    wide = host("wide.example.com", "", networks=("0.0.0.0/0", "::/0"))
    other = host("o.example.com", "", networks=("203.0.113.0/24",), waypoint="other/waypoint")

    def found(state: MeshState, ip: str, port: int = 80) -> object:
        return find_destination(state, "10.244.2.2", SocketAddress(ip, port))

    state = made(NETWORK, other)
    accepted = found(state, "198.51.100.9")
    assert isinstance(accepted, WaypointDestination)
    assert (accepted.address.ip, accepted.service) == ("198.51.100.9", "net.example.com")
    assert found(state, "198.51.100.9", 81) is None
    assert found(state, "203.0.113.1") is None
    every = made(wide)
    for ip in ("10.244.1.2", "172.30.0.2", "127.0.0.1", "169.254.169.254", "::1"):
        assert found(every, ip) is None  # a pod, a node, and special addresses
    assert isinstance(found(every, "203.0.113.1"), WaypointDestination)
    balanced = Service(
        namespace="shop",
        name="web",
        ports=(ServicePort(80, "http"),),
        load_balancer_ips=("203.0.113.1",),
    )
    assert found(made(wide, balanced), "203.0.113.1") is None


@pytest.mark.parametrize("vip", [VIP, "2001:2::1"])
def test_endpoint_of_the_other_family_is_used_if_there_is_no_other(vip: str) -> None:
    api = msgspec.structs.replace(API, waypoint="", vips=(VIP, "2001:2::1"))
    decision = decide(made(api), CLIENT, vip, 80)
    assert isinstance(decision, Passthrough)
    assert decision.address == SocketAddress(EXTERNAL, 443)
    both = msgspec.structs.replace(
        api, endpoints=(*api.endpoints, endpoint("2001:db8::7", http=443))
    )
    decision = decide(made(both), CLIENT, vip, 80)
    assert isinstance(decision, Passthrough)
    assert (":" in decision.address.ip) == (":" in vip)


@pytest.mark.parametrize("ip", ["64:ff9b::af4:102", "2002:af4:102::1", "64:ff9b::ac1e:2"])
def test_translated_addresses_of_the_cluster(ip: str) -> None:
    state = made(API)
    assert state.is_of_cluster(SocketAddress(ip, 80), "shop")
    assert not state.is_of_cluster(SocketAddress("64:ff9b::c000:207", 80), "shop")
