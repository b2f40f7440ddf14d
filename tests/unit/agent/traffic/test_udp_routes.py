# SPDX-License-Identifier: Apache-2.0
"""The routes of UDP: by support of connect-udp, by policy, by service."""

from __future__ import annotations

import msgspec

from tests.support.agent_fakes import workload
from ztunnel.agent.traffic.udp_routes import UdpRouteTable
from ztunnel.datapath.bpf.layout import UdpRoute
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.mesh.model import (
    Endpoint,
    Service,
    ServicePort,
    SocketAddress,
    TunnelProtocol,
    Workload,
)
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.mesh.policy.model import Level, MtlsMode, PeerAuthentication, Selection

CARRY, STRICT, PLAIN = UdpRoute.REDIRECT, UdpRoute.STRICT, UdpRoute.NATIVE
VIP = SocketAddress("10.96.0.1", 53)


def pod(ip: str, *, node: str = "n2", plain: bool = False) -> Workload:
    made = workload(ip, addresses=(ip,))
    protocol = TunnelProtocol.NONE if plain else TunnelProtocol.HBONE
    return msgspec.structs.replace(made, node=node, protocol=protocol)


def service(*addresses: str) -> Service:
    ends = tuple(Endpoint(address=ip, ports={"dns": 5300, "tcp": 80}) for ip in addresses)
    ports = (ServicePort(53, "dns", "UDP"), ServicePort(80, "tcp"))
    return Service(namespace="shop", name="dns", vips=(VIP.ip,), ports=ports, endpoints=ends)


def strict(ports: dict[int, MtlsMode] | None = None) -> PeerAuthentication:
    return PeerAuthentication(
        namespace="shop",
        name="default",
        level=Level.NAMESPACE,
        selection=Selection(namespace="shop"),
        mode=MtlsMode.STRICT,
        ports=ports or {},
    )


def ways(*, encrypted: bool = False) -> tuple[UdpRouteTable, PolicyEngine]:
    policies = PolicyEngine()
    return UdpRouteTable("n1", policies, encrypted=encrypted), policies


def at(ip: str, port: int = 0) -> SocketAddress:
    return SocketAddress(ip, port)


def test_local_pods_are_redirected_only_if_encrypted() -> None:
    near = pod("10.1.0.1", node="n1")
    for encrypted in (False, True):
        made, _ = ways(encrypted=encrypted)
        made.apply(ViewChange((near,)))
        assert made.routes == ({at("10.1.0.1"): CARRY} if encrypted else {})


def test_strict_drops_udp_only_to_workloads_without_connect_udp() -> None:
    made, policies = ways()
    policies.put(strict())
    pods = pod("10.2.0.1"), pod("10.2.0.2", plain=True), pod("10.1.0.1", node="n1")
    made.apply(ViewChange(pods))
    assert made.routes == {at("10.2.0.1"): CARRY, at("10.2.0.2"): STRICT}
    made.set_without_connect_udp({pods[0].uid})
    assert made.routes == {at("10.2.0.1"): STRICT, at("10.2.0.2"): STRICT}
    policies.remove(strict().key)
    made.apply(ViewChange(removed_policies=(strict().key,)))
    assert made.routes == {}


def test_port_level_mtls_mode_overrides_strict() -> None:
    made, policies = ways()
    there = pod("10.2.0.1", plain=True)
    made.apply(ViewChange((there,)))
    mine = msgspec.structs.replace(
        strict({53: MtlsMode.PERMISSIVE}),
        level=Level.WORKLOAD,
        selection=Selection(namespace="shop", uid=there.uid),
    )
    policies.put(mine)
    made.apply(ViewChange(policies=(mine,)))
    assert made.routes == {at("10.2.0.1"): STRICT, at("10.2.0.1", 53): PLAIN}
    assert made.route_of(at("10.2.0.1", 53)) is PLAIN
    assert made.route_of(at("10.2.0.1", 54)) is STRICT
    assert made.route_of(at("10.9.9.9", 54)) is PLAIN


def test_service_is_redirected_if_all_endpoints_are_in_the_mesh() -> None:
    made, policies = ways()
    far, near, plain = pod("10.2.0.1"), pod("10.1.0.1", node="n1"), pod("10.2.0.9", plain=True)
    made.apply(ViewChange((far, near, plain), (service("10.2.0.1", "10.1.0.1"),)))
    assert made.routes[VIP] is CARRY
    assert at(VIP.ip, 80) not in made.routes
    made.apply(ViewChange((), (service("10.2.0.1", "10.2.0.9"),)))
    assert VIP not in made.routes
    policies.put(strict())
    made.apply(ViewChange(policies=(strict(),)))
    assert made.routes[VIP] is STRICT
    made.apply(ViewChange((msgspec.structs.replace(plain, protocol=TunnelProtocol.HBONE),)))
    assert made.routes[VIP] is CARRY  # by the change of the workload alone
    made.apply(ViewChange(removed_services=("shop/dns",), removed_workloads=(plain.uid,)))
    assert made.routes == {at("10.2.0.1"): CARRY}


def test_routes_exist_for_load_balancers_and_not_for_external_ips() -> None:
    made, _ = ways()
    outside = msgspec.structs.replace(
        service("10.2.0.1"), load_balancer_ips=("203.0.113.1",), external_ips=("198.51.100.1",)
    )
    made.apply(ViewChange((pod("10.2.0.1"),), (outside,)))
    assert made.routes == {at("10.2.0.1"): CARRY, VIP: CARRY, at("203.0.113.1", 53): CARRY}


def test_stricter_of_two_claims_on_address_wins() -> None:
    made, policies = ways()
    policies.put(strict())
    old = msgspec.structs.replace(pod("10.2.0.1", plain=True), uid="old")
    new = pod("10.2.0.1")
    made.apply(ViewChange((old, new)))
    assert made.routes == {at("10.2.0.1"): STRICT}
    made.apply(ViewChange(removed_workloads=("old",)))
    assert made.routes == {at("10.2.0.1"): CARRY}
    assert made.workload_at("10.2.0.1") == new
