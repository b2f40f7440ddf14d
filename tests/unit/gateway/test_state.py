# SPDX-License-Identifier: Apache-2.0
"""The gateway process's state from the agent's messages."""

from __future__ import annotations

import json
from typing import Any

from tests.unit.mesh.builders import service, workload
from ztunnel.gateway.state import GatewayState
from ztunnel.ipc.gateway_messages import GatewaySettings, L7Delta, L7ObjectBody
from ztunnel.ipc.messages import MeshDelta


def body(name: str = "web", kind: str = "HTTPRoute", spec: Any = None) -> L7ObjectBody:
    text = json.dumps({"kind": kind, "metadata": {"namespace": "shop", "name": name}, "spec": spec})
    return L7ObjectBody(kind, "shop", name, text.encode())


def synced() -> GatewayState:
    state = GatewayState()
    state.apply(MeshDelta(revision=1, services=(service("web"),), reset=True, complete=True))
    state.apply(L7Delta(objects=(body(spec={"a": 1}),), reset=True, complete=True))
    return state


def names(state: GatewayState) -> list[str]:
    inputs = state.inputs()
    assert inputs is not None
    return [each.name for each in inputs.store.of_kind("HTTPRoute")]


def test_inputs_exist_once_both_snapshots_are_complete() -> None:
    state = GatewayState()
    state.apply(MeshDelta(revision=1, reset=True, complete=True))
    state.apply(L7Delta(objects=(body("a"),), reset=True))
    assert state.inputs() is None
    state.apply(L7Delta(objects=(body("b"),), complete=True))
    assert names(state) == ["a", "b"]


def test_previous_state_is_used_until_a_new_snapshot_is_complete() -> None:
    state = synced()
    state.apply(MeshDelta(revision=1, reset=True))
    state.apply(L7Delta(objects=(body("new"),), reset=True))
    assert names(state) == ["web"]
    inputs = state.inputs()
    assert inputs is not None
    assert len(list(inputs.mesh.services())) == 1
    state.apply(MeshDelta(revision=1, complete=True))
    state.apply(L7Delta(complete=True))
    assert names(state) == ["new"]
    assert list((state.inputs() or inputs).mesh.services()) == []


def test_parts_of_a_revision_apply_together() -> None:
    state = synced()
    inputs = state.inputs()
    assert inputs is not None
    state.apply(MeshDelta(revision=2, workloads=(workload("a"),), more=True))
    assert list(inputs.mesh.workloads()) == []
    state.apply(MeshDelta(revision=2, workloads=(workload("b"),)))
    assert len(list(inputs.mesh.workloads())) == 2


def test_objects_change_and_go() -> None:
    state = synced()
    state.apply(L7Delta(objects=(body(spec={"a": 2}), body("b"))))
    inputs = state.inputs()
    assert inputs is not None
    found = inputs.store.get("HTTPRoute", "shop", "web")
    assert found is not None
    assert found.spec == {"a": 2}
    state.apply(L7Delta(removed=("HTTPRoute shop/web",)))
    assert names(state) == ["b"]


def test_invalid_object_keeps_its_last_version_and_is_reported() -> None:
    state = synced()
    state.apply(L7Delta(objects=(body(spec="text"), L7ObjectBody("HTTPRoute", "shop", "x", b"{"))))
    assert names(state) == ["web"]
    assert state.invalid.keys() == {"HTTPRoute shop/web", "HTTPRoute shop/x"}
    state.apply(L7Delta(objects=(body(spec={}),)))
    assert state.invalid.keys() == {"HTTPRoute shop/x"}


def test_settings_are_part_of_the_inputs() -> None:
    state = synced()
    state.apply(GatewaySettings(trust_domain="td", root_namespace="r", cluster_domain="c"))
    inputs = state.inputs()
    assert inputs is not None
    assert (inputs.settings.trust_domain, inputs.settings.root_namespace) == ("td", "r")
