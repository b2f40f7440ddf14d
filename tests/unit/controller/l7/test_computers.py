# SPDX-License-Identifier: Apache-2.0
"""The status of each kind, from objects alone."""

from __future__ import annotations

from typing import Any

import pytest
import structlog

from ztunnel.controller.l7.computers import Computers, WaypointState
from ztunnel.controller.l7.model import Model
from ztunnel.l7.compile import GatewayCompiler
from ztunnel.l7.config import GatewayConfig
from ztunnel.l7.inputs import Inputs, Settings
from ztunnel.l7.traffic.backend_ca import RefError

Json = dict[str, Any]
LISTENER = {"name": "mesh", "port": 15008, "protocol": "HBONE"}


def obj(kind: str, name: str, spec: Json, **metadata: Any) -> Json:
    versions = {"Service": "v1", "Namespace": "v1"}
    return {
        "apiVersion": versions.get(kind, "gateway.networking.k8s.io/v1"),
        "kind": kind,
        "metadata": {"name": name, "namespace": "shop", "generation": 1, **metadata},
        "spec": spec,
    }


SERVICE = obj(
    "Service",
    "web",
    {
        "clusterIP": "10.96.0.1",
        "clusterIPs": ["10.96.0.1"],
        "ports": [{"name": "http", "port": 80}],
    },
    labels={"istio.io/use-waypoint": "way"},
)
GATEWAY = obj("Gateway", "way", {"gatewayClassName": "istio-waypoint", "listeners": [LISTENER]})
ROUTE = obj(
    "HTTPRoute",
    "web",
    {
        "parentRefs": [{"group": "", "kind": "Service", "name": "web"}],
        "rules": [{"backendRefs": [{"name": "web", "port": 80}]}],
    },
)


class World:
    """A model, and the facts that the computers get."""

    def __init__(self, *objects: Json) -> None:
        self.model = Model(Settings())
        namespace = {"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": "shop"}}
        for each in (namespace, *objects):
            assert self.model.put(each) == ""
        self.state = WaypointState(exists=True, ready=True)
        self.rejected: dict[str, str] = {}
        self.ref_errors: list[RefError] | None = None
        self.computers = Computers(
            self.model, lambda _: self.state, lambda: self.rejected, lambda _: self.ref_errors
        )

    def settle(self, one: Json) -> Json:
        """Write the status until there is nothing to write; returns it."""
        pending = self.computers.pending(one)
        assert pending is not None
        settled = {**one, "status": {**one.get("status", {}), **pending.status}}
        assert self.computers.pending(settled) is None
        return settled


def conditions(status: Json) -> dict[str, tuple[str, str]]:
    return {each["type"]: (each["status"], each["reason"]) for each in status["conditions"]}


def test_service_follows_the_state_of_its_waypoint() -> None:
    world = World(GATEWAY, SERVICE)
    bound = world.settle(SERVICE)
    assert conditions(bound["status"])["istio.io/WaypointBound"] == ("True", "WaypointAccepted")
    world.state = WaypointState(exists=True, ready=False)
    lost = world.settle(bound)
    assert conditions(lost["status"])["istio.io/WaypointBound"] == ("False", "WaypointIsNotReady")
    world.state = WaypointState(exists=True, ready=False, foreign="istio.io/mesh-controller")
    assert conditions(world.settle(lost)["status"])["istio.io/WaypointBound"][0] == "True"


def test_route_keeps_its_acceptance_when_envoy_rejects_it() -> None:
    world = World(GATEWAY, SERVICE, ROUTE)
    accepted = world.settle(ROUTE)
    (parent,) = accepted["status"]["parents"]
    assert conditions(parent) == {
        "Accepted": ("True", "Accepted"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
    }
    world.rejected = {"shop/web": "unknown filter"}
    rejected = world.settle(accepted)
    (parent,) = rejected["status"]["parents"]
    assert conditions(parent)["Accepted"] == ("True", "Accepted")
    assert conditions(parent)["PartiallyInvalid"] == ("True", "RejectedByProxy")
    assert "unknown filter" in str(parent)
    world.rejected = {}
    (parent,) = world.settle(rejected)["status"]["parents"]
    assert "PartiallyInvalid" not in conditions(parent)


def test_route_of_another_gateway_has_no_status_of_ours() -> None:
    edge = {**ROUTE, "spec": {"parentRefs": [{"name": "edge"}], "rules": []}}
    assert World(edge).computers.pending(edge) is None


@pytest.mark.parametrize(
    ("labels", "expected"),
    [({}, None), ({"istio.io/use-waypoint": "way"}, "Accepted")],
)
def test_targeted_policy_is_reported_where_it_is_enforced(
    labels: Json, expected: str | None
) -> None:
    service = {**SERVICE, "metadata": {**SERVICE["metadata"], "labels": labels}}
    policy = obj(
        "AuthorizationPolicy",
        "get",
        {
            "targetRefs": [{"group": "", "kind": "Service", "name": "web"}],
            "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}],
        },
    )
    found = World(GATEWAY, service).computers.authorization_condition(policy)
    assert (found.reason if found else None) == expected


def test_policy_with_a_selector_is_left_to_the_nodes() -> None:
    policy = obj("AuthorizationPolicy", "all", {"selector": {"matchLabels": {"a": "b"}}})
    assert World(GATEWAY, SERVICE).computers.authorization_condition(policy) is None


def tls_policy(pem: str = "") -> Json:
    validation = {
        "hostname": "web.example.com",
        "caCertificateRefs": [{"group": "", "kind": "ConfigMap", "name": "ca"}],
    }
    targets = [{"group": "", "kind": "Service", "name": "web"}]
    annotations = {"ztunnel.dev/ca-certificates": pem} if pem else {}
    spec = {"targetRefs": targets, "validation": validation}
    return obj("BackendTLSPolicy", "tls", spec, annotations=annotations)


def tls_conditions(world: World, policy: Json) -> dict[str, tuple[str, str]]:
    world.model.put(policy)
    (ancestor,) = world.settle(policy)["status"]["ancestors"]
    return conditions(ancestor)


PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def test_backend_tls_policy_has_no_status_before_its_references_are_read() -> None:
    world = World(GATEWAY, SERVICE, tls_policy())
    world.computers.compile()
    assert world.computers.pending(tls_policy()) is None
    world.ref_errors = []
    assert world.computers.pending(tls_policy()) is None  # the annotation is not visible yet
    assert tls_conditions(world, tls_policy(PEM)) == {
        "Accepted": ("True", "Accepted"),
        "ResolvedRefs": ("True", "ResolvedRefs"),
    }


@pytest.mark.parametrize(
    ("pem", "accepted"),
    [("", ("False", "NoValidCACertificate")), (PEM, ("True", "Accepted"))],
)
def test_invalid_references_of_a_backend_tls_policy_are_reported(
    pem: str, accepted: tuple[str, str]
) -> None:
    world = World(GATEWAY, SERVICE)
    world.ref_errors = [RefError("InvalidKind", "a Secret")]
    found = tls_conditions(world, tls_policy(pem))
    assert found == {"Accepted": accepted, "ResolvedRefs": ("False", "InvalidKind")}


def test_defect_of_one_gateway_does_not_affect_others(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_or_raise(self: GatewayCompiler, inputs: Inputs) -> GatewayConfig:
        if self.gateway == "shop/broken":
            raise KeyError("a defect")
        compiled.append(self.gateway)
        return GatewayConfig({})

    monkeypatch.setattr(GatewayCompiler, "compile", compile_or_raise)
    listener = {"name": "http", "port": 80, "protocol": "HTTP"}
    broken, edge = (
        obj("Gateway", name, {"gatewayClassName": "ztunnel", "listeners": [listener]})
        for name in ("broken", "edge")
    )
    with structlog.testing.capture_logs() as logs:
        World(broken, edge).computers.compile()
    assert compiled == ["shop/edge"]
    assert [(each["event"], each["gateway"]) for each in logs] == [
        ("gateway not compiled", "shop/broken")
    ]
