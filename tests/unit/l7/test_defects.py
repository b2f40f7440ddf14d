# SPDX-License-Identifier: Apache-2.0
"""A defect of the compiler concerns one destination: its connections are refused, others work."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.waypoint.world import World
from ztunnel.l7 import compile as compile_module
from ztunnel.l7.compile import DEFECT, GatewayCompiler
from ztunnel.l7.names import TypeUrl
from ztunnel.l7.problems import Severity
from ztunnel.l7.routing.destinations import service_unit
from ztunnel.l7.routing.envoy.clusters import service_cluster
from ztunnel.mesh.model import Service


def world() -> World:
    made = World()
    for name in ("good", "bad"):
        made.service(name, backends=[8080])
    return made


def test_defect_in_a_destination_leaves_out_its_chains(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(inputs: Any, gateway: str, service: Service, routes: Any) -> Any:
        if service.name == "bad":
            raise KeyError("a defect")
        return service_unit(inputs, gateway, service, routes)

    monkeypatch.setattr(compile_module, "service_unit", fail)
    found = world().compile()
    (listener,) = found.resources[TypeUrl.LISTENER].values()
    assert [chain["name"] for chain in listener["filter_chains"]] == ["default/good|80"]
    (problem,) = (each for each in found.problems if each.reason == DEFECT)
    assert (problem.kind, problem.name, problem.severity) == ("Service", "bad", Severity.ERROR)
    assert "KeyError" in problem.message


def test_defect_in_a_cluster_leaves_out_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(inputs: Any, gateway: str, ref: Any) -> Any:
        if ref.service == "default/bad":
            raise RecursionError
        return service_cluster(inputs, gateway, ref)

    monkeypatch.setattr(compile_module, "service_cluster", fail)
    found = world().compile()
    assert "default/good|80" in found.resources[TypeUrl.CLUSTER]
    assert "default/bad|80" not in found.resources[TypeUrl.CLUSTER]
    assert [each.name for each in found.problems if each.reason == DEFECT] == ["bad"]


def test_destination_is_compiled_again_once_the_defect_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, compiler = world(), GatewayCompiler("default/waypoint")

    def fail(*_: Any) -> Any:
        raise ValueError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(compile_module, "service_unit", fail)
        assert compiler.compile(made.inputs).resources[TypeUrl.LISTENER] == {}
    made.service("bad", backends=[8081])  # a new version of the object
    (listener,) = compiler.compile(made.inputs).resources[TypeUrl.LISTENER].values()
    assert "default/bad|80" in [chain["name"] for chain in listener["filter_chains"]]
