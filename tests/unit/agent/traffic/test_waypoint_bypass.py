# SPDX-License-Identifier: Apache-2.0
"""Waypoints bypass the proxy to backends of their node from the first connection."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from tests.support.agent_fakes import FakeDataPath, workload
from ztunnel.agent.config import SameNode
from ztunnel.agent.log_settings import LogSettings
from ztunnel.agent.pods.pod import Pod, PodState
from ztunnel.agent.pods.registry import PodTable
from ztunnel.agent.traffic.same_node import SameNodeBypass
from ztunnel.agent.traffic.waypoint_bypass import WaypointBypass
from ztunnel.agent.workers.registry import SessionTable
from ztunnel.agent.workers.session import Session
from ztunnel.datapath.same_node_maps import BypassEntry
from ztunnel.kube.view.cluster_view import ViewChange
from ztunnel.mesh.model import Endpoint, GatewayPort, Service, ServicePort, SocketAddress
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.mesh.policy.model import Action, AuthorizationPolicy, Rule, Selection

WAYPOINT = "shop/waypoint"
CART = Service(
    namespace="shop",
    name="cart",
    vips=("10.96.0.1",),
    ports=(ServicePort(80, "http"), ServicePort(53, "dns", "UDP")),
    endpoints=(
        Endpoint(address="10.244.1.3", ports={"http": 8080, "dns": 5353}),
        Endpoint(address="10.244.2.3", ports={"http": 8080}),  # of another node
        Endpoint(address="10.244.1.4", ports={"http": 8080}, ready=False),
    ),
    waypoint=WAYPOINT,
)
ENTRY = BypassEntry(11, SocketAddress("10.244.1.3", 8080), 12)


def captured(name: str, ip: str, cookie: int, **fields: Any) -> Pod:
    made = workload(name, pod_uid=f"{name}-uid", addresses=(ip,), account=name)
    made = msgspec.structs.replace(made, namespace="shop", **fields)
    return Pod(made, PodState.CAPTURED, None, cookie=cookie)


class World:
    """A waypoint and two backends on one node; the service comes with `apply`."""

    def __init__(self, mode: SameNode = SameNode.DIRECT) -> None:
        self.kernel, self.pods, self.policies = FakeDataPath(), PodTable(), PolicyEngine()
        self.sessions = SessionTable()
        self.pods.put(captured("waypoint", "10.244.1.2", 11, gateway=WAYPOINT))
        self.pods.put(captured("a", "10.244.1.3", 12))
        self.pods.put(captured("b", "10.244.1.4", 13))
        bypass = SameNodeBypass(
            self.kernel, mode, self.pods, self.policies, self.sessions, logs=LogSettings()
        )
        self.waypoints = WaypointBypass(bypass, self.pods)

    def joined(self) -> World:
        self.sessions.add(cast("Session", SimpleNamespace(is_joined=True)))
        return self


def test_ready_backends_of_this_node_are_authorized() -> None:
    world = World().joined()
    world.waypoints.apply(ViewChange(services=(CART,)))
    assert world.kernel.given == [ENTRY]


def test_ingress_gateway_may_reach_the_backends_of_every_service() -> None:
    world = World().joined()
    edge = captured("edge", "10.244.1.5", 14, gateway="shop/edge", gateway_ports=(GatewayPort(80),))
    world.pods.put(edge)
    world.waypoints.apply(ViewChange(services=(msgspec.structs.replace(CART, waypoint=""),)))
    assert world.kernel.given == [BypassEntry(14, SocketAddress("10.244.1.3", 8080), 12)]


def test_endpoint_that_leaves_its_service_gets_no_entry() -> None:
    world = World().joined()
    world.waypoints.apply(ViewChange(services=(CART,)))
    world.kernel.given.clear()
    world.waypoints.apply(ViewChange(services=(msgspec.structs.replace(CART, endpoints=()),)))
    assert world.kernel.given == []


def test_backend_that_is_captured_later_is_authorized() -> None:
    world = World().joined()
    late = world.pods.get("a-uid")
    world.pods.remove("a-uid")
    world.waypoints.apply(ViewChange(services=(CART,)))
    assert world.kernel.given == []
    assert late is not None
    world.pods.put(late)
    world.waypoints.pod_captured(late)
    assert world.kernel.given == [ENTRY]


def detached(world: World) -> None:
    world.waypoints.apply(ViewChange(services=(msgspec.structs.replace(CART, waypoint=""),)))


def removed(world: World) -> None:
    world.waypoints.apply(ViewChange(removed_services=(CART.key,)))


@pytest.mark.parametrize("change", [detached, removed])
def test_service_without_the_waypoint_gets_no_entry(change: Callable[[World], None]) -> None:
    world = World().joined()
    world.waypoints.apply(ViewChange(services=(CART,)))
    change(world)
    world.kernel.given.clear()
    world.waypoints.authorize()
    assert world.kernel.given == []


def test_denied_pair_gets_no_entry() -> None:
    world = World().joined()
    deny = AuthorizationPolicy(
        namespace="shop",
        name="deny",
        action=Action.DENY,
        selections=(Selection("shop"),),
        rules=(Rule(0),),
    )
    world.policies.put(deny)
    world.waypoints.apply(ViewChange(services=(CART,)))
    assert world.kernel.given == []


def test_encrypting_node_and_node_without_workers_give_no_entry() -> None:
    for world in (World(SameNode.ENCRYPT).joined(), World()):
        world.waypoints.apply(ViewChange(services=(CART,)))
        assert world.kernel.given == []
