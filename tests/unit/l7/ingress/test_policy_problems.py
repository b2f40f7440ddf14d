# SPDX-License-Identifier: Apache-2.0
"""What AuthorizationPolicies cannot match at an ingress gateway is reported."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.waypoint.world import World
from tests.unit.l7.ingress.test_hostile_gateways import GATEWAY, WORKING
from ztunnel.l7.problems import Severity


def problems(*rules: dict[str, Any], selects: str = GATEWAY) -> list[str]:
    world = World()
    world.service("web", backends=[8080], waypoint="")
    world.apply(WORKING)
    label = {"gateway.networking.k8s.io/gateway-name": selects.partition("/")[2]}
    spec = {"action": "DENY", "rules": list(rules), "selector": {"matchLabels": label}}
    metadata = {"name": "p", "namespace": "default"}
    world.add({"kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec})
    found = world.compile(GATEWAY).problems
    assert {each.severity for each in found} <= {Severity.WARNING}
    return [f"{each.field}: {each.message}" for each in found]


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ({"from": [{"source": {"principals": ["td/ns/a/sa/b"]}}]}, "source.principal"),
        ({"from": [{"source": {"notNamespaces": ["a"]}}]}, "source.namespace"),
        ({"when": [{"key": "source.serviceAccount", "values": ["a/b"]}]}, "source.serviceAccount"),
    ],
)
def test_identities_of_the_mesh_are_reported_for_the_rule(rule: dict[str, Any], name: str) -> None:
    (problem,) = problems({"to": [{"operation": {"paths": ["/x"]}}]}, rule)
    assert problem.startswith(f"spec.rules[1]: clients of an ingress gateway have no {name}")


def test_addresses_and_requests_are_matched_without_a_problem() -> None:
    source = {"source": {"remoteIpBlocks": ["192.0.2.0/24"], "requestPrincipals": ["*"]}}
    assert problems({"from": [source], "to": [{"operation": {"methods": ["GET"]}}]}) == []


def test_policies_of_other_workloads_are_not_reported() -> None:
    rule = {"from": [{"source": {"principals": ["td/ns/a/sa/b"]}}]}
    assert problems(rule, selects="default/other") == []
