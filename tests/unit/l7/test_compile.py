# SPDX-License-Identifier: Apache-2.0
"""A change compiles only what depends on it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.support.waypoint.world import GATEWAY, World
from ztunnel.l7.compile import GatewayCompiler, compile_gateway
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.names import TypeUrl
from ztunnel.l7.objects import L7Key

SERVICES = 20


def route(number: int, value: str = "a", backend: str = "") -> dict[str, Any]:
    return {
        "kind": "HTTPRoute",
        "metadata": {"name": f"r{number}", "namespace": "default"},
        "spec": {
            "parentRefs": [{"group": "", "kind": "Service", "name": f"s{number}"}],
            "rules": [
                {
                    "matches": [{"path": {"value": f"/{value}"}}],
                    "backendRefs": [{"name": backend or f"s{number}", "port": 80}],
                }
            ],
        },
    }


class Compiled:
    def __init__(self) -> None:
        self.world = World()
        for number in range(SERVICES):
            self.world.service(f"s{number}", backends=[8080, 8081])
            self.world.add(route(number))
        self.compiler = GatewayCompiler(GATEWAY)
        self.last = self.compile()

    def compile(self) -> GatewayConfig:
        self.last = self.compiler.compile(self.world.inputs)
        return self.last

    def changed(self) -> dict[TypeUrl, set[str]]:
        """The names of the resources that are not the identical objects as before."""
        before = self.last.resources
        after = self.compile().resources
        return {
            kind: names
            for kind in after
            if (
                names := {
                    name
                    for name in before[kind].keys() | after[kind].keys()
                    if before[kind].get(name) is not after[kind].get(name)
                }
            )
        }


@pytest.fixture
def compiled() -> Compiled:
    return Compiled()


def test_result_equals_that_of_a_new_compiler(compiled: Compiled) -> None:
    compiled.world.add(route(3, "b"))
    compiled.world.store.remove(L7Key("HTTPRoute", "default", "r4"))
    compiled.compile()
    assert compiled.last == compile_gateway(compiled.world.inputs, GATEWAY)


def test_unchanged_inputs_compile_nothing(compiled: Compiled) -> None:
    assert not {TypeUrl.ROUTE, TypeUrl.CLUSTER, TypeUrl.ENDPOINT} & compiled.changed().keys()
    assert compiled.compiler.recompiled == (0, 0)


def test_changed_route_compiles_one_service(compiled: Compiled) -> None:
    compiled.world.add(route(3, "b"))
    changed = compiled.changed()
    assert changed[TypeUrl.ROUTE] == {"default/s3|80"}
    assert compiled.compiler.recompiled == (1, 0)


def test_changed_route_leaves_the_listener_equal(compiled: Compiled) -> None:
    before = compiled.last.resources[TypeUrl.LISTENER]
    compiled.world.add(route(3, "b"))
    assert compiled.compile().resources[TypeUrl.LISTENER] == before


def test_changed_endpoints_change_one_resource(compiled: Compiled) -> None:
    service = compiled.world.mesh.state.service("default/s3")
    assert service is not None
    fewer = msgspec.structs.replace(service, endpoints=service.endpoints[:1])
    compiled.world.mesh.put(fewer)
    changed = compiled.changed()
    assert changed[TypeUrl.ENDPOINT] == {"default/s3|80"}
    assert TypeUrl.ROUTE not in changed
    assert TypeUrl.CLUSTER not in changed


def test_backend_that_appears_is_used(compiled: Compiled) -> None:
    compiled.world.add(route(3, "a", "late"))
    compiled.compile()
    assert any(p.reason == "BackendNotFound" for p in compiled.last.problems)
    compiled.world.service("late", backends=[1], waypoint="")
    changed = compiled.changed()
    assert changed[TypeUrl.CLUSTER] == {"default/late|80"}
    assert changed[TypeUrl.ROUTE] == {"default/s3|80"}
    assert not [p for p in compiled.last.problems if p.reason == "BackendNotFound"]


def test_other_waypoints_services_are_not_compiled(compiled: Compiled) -> None:
    compiled.world.service("theirs", waypoint="default/other")
    assert not any("theirs" in name for name in compiled.compile().resources[TypeUrl.ROUTE])


def test_invalid_route_affects_no_other(compiled: Compiled) -> None:
    before = compiled.last.resources[TypeUrl.ROUTE]
    broken = route(5)
    broken["spec"]["rules"][0]["matches"][0]["path"] = {"type": "RegularExpression", "value": "("}
    compiled.world.add(broken)
    after = compiled.compile().resources[TypeUrl.ROUTE]
    assert {n for n in before if before[n] != after[n]} == {"default/s5|80"}
    (found,) = after["default/s5|80"]["virtual_hosts"][0]["routes"]
    assert found["direct_response"] == {"status": 500}
    assert any("regular expression" in p.message for p in compiled.last.problems)


def test_route_whose_rules_are_no_list_rejects_all_requests(compiled: Compiled) -> None:
    broken = route(5)
    broken["spec"]["rules"] = "none"
    compiled.world.add(broken)
    after = compiled.compile().resources[TypeUrl.ROUTE]
    (found,) = after["default/s5|80"]["virtual_hosts"][0]["routes"]
    assert (found["match"], found["direct_response"]) == ({"prefix": "/"}, {"status": 500})


def chain_of(config: GatewayConfig, vip: str) -> str:
    matcher = config.resources[TypeUrl.LISTENER]["waypoint"]["filter_chain_matcher"]
    by_ip = matcher["matcher_tree"]["exact_match_map"]["map"]
    by_port = by_ip[vip]["matcher"]["matcher_tree"]["exact_match_map"]["map"]
    return str(by_port["80"]["action"]["name"])


def test_service_entry_cannot_take_over_the_address_of_a_service(compiled: Compiled) -> None:
    service = compiled.world.mesh.state.service("default/s3")
    assert service is not None
    claim = {"namespace": "a", "name": "evil.example", "is_service_entry": True}
    compiled.world.mesh.put(msgspec.structs.replace(service, **claim, hostname="evil.example"))
    assert chain_of(compiled.compile(), service.vips[0]) == "default/s3|80"


def test_service_that_the_waypoint_does_not_admit_is_not_served(compiled: Compiled) -> None:
    service = compiled.world.mesh.state.service("default/s3")
    assert service is not None
    compiled.world.mesh.put(msgspec.structs.replace(service, waypoint_error="not admitted"))
    assert "default/s3|80" not in compiled.compile().resources[TypeUrl.ROUTE]
