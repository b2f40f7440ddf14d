# SPDX-License-Identifier: Apache-2.0
"""Policies of any form are parsed, attached as Istio attaches them, and fail closed."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.envoy.security.rig import (
    Object,
    PolicyWorld,
    Rig,
    authorization_policy,
    request_authentication,
    rule,
    target,
)
from ztunnel.l7.api.authorization_policy import Action, parse_authorization_policy
from ztunnel.l7.api.extension_providers import parse_extension_providers
from ztunnel.l7.api.request_authentication import parse_request_authentication
from ztunnel.l7.compile import GatewayCompiler
from ztunnel.l7.inputs import Destination, Protocol
from ztunnel.l7.objects import L7Object, l7_object
from ztunnel.l7.problems import Severity
from ztunnel.l7.security.filters import filters

ROOT = "istio-system"
_KEYS = st.sampled_from(
    [
        *("selector", "targetRefs", "action", "provider", "rules", "from", "to", "when", "source"),
        *("operation", "principals", "notPaths", "paths", "key", "values", "name", "kind", "group"),
        *("jwtRules", "issuer", "jwks", "jwksUri", "fromHeaders", "extensionProviders"),
        *("envoyExtAuthzGrpc", "service", "port"),
    ]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=12,
)


def policy(spec: object) -> L7Object:
    return L7Object(kind="AuthorizationPolicy", namespace="a", name="p", spec=spec)  # type: ignore[arg-type]


@given(st.dictionaries(_KEYS, JSON, max_size=6))
def test_parsers_never_raise(spec: dict[str, Any]) -> None:
    parsed = parse_authorization_policy(policy(spec), ROOT)
    if parsed.refused:
        assert parsed.action is Action.AUDIT or parsed.action is Action.ALLOW or parsed.rules
        assert any(problem.severity is Severity.ERROR for problem in parsed.problems)
    obj = msgspec.structs.replace(policy(spec), kind="RequestAuthentication")
    tokens = parse_request_authentication(obj, ROOT)
    assert not (tokens.refused and tokens.rules)
    parse_extension_providers(spec)


@pytest.mark.parametrize(
    ("spec", "action", "matches"),
    [
        ({"rules": [{"form": []}]}, Action.ALLOW, False),
        ({"action": "DENY", "rules": [{"form": []}]}, Action.DENY, True),
        ({"action": "CUSTOM", "rules": [{}]}, Action.DENY, True),
        ({"action": "BLOCK"}, Action.DENY, True),
        ({"action": 1}, Action.DENY, True),
        ({"action": "AUDIT", "rules": 1}, Action.AUDIT, False),
        ({"rules": [{"from": []}]}, Action.ALLOW, False),
        ({"rules": [{"from": [{"source": {}}]}]}, Action.ALLOW, False),
        ({"rules": [{"to": [{"operation": {"paths": ["/a*b"]}}]}]}, Action.ALLOW, False),
        ({"rules": [{"to": [{"operation": {"paths": ["/{x}/{*}"]}}]}]}, Action.ALLOW, False),
        ({"rules": [{"to": [{"operation": {"paths": ["/{**}/{*}"]}}]}]}, Action.ALLOW, False),
        ({"rules": [{"to": [{"operation": {"ports": ["http"]}}]}]}, Action.ALLOW, False),
        ({"rules": [{"when": [{"key": "x", "values": ["y"]}]}]}, Action.ALLOW, False),
        ({"rules": [{"when": [{"key": "request.headers", "values": ["y"]}]}]}, Action.ALLOW, False),
        ({"provider": {"name": "x"}, "rules": [{}]}, Action.ALLOW, False),
    ],
)
def test_invalid_policy_is_replaced_by_one_that_fails_closed(
    spec: Object, action: Action, matches: bool
) -> None:
    parsed = parse_authorization_policy(
        policy({"targetRefs": [target("Service", "s")], **spec}), ROOT
    )
    assert parsed.refused
    assert parsed.action is action
    assert bool(parsed.rules) is matches
    assert parsed.targets


@pytest.mark.parametrize(
    ("refs", "everywhere"),
    [
        ([target("Service", "s")], False),
        ([{"kind": "Service", "name": "s"}], False),
        ([target("Gateway", "g")], False),
        ([{"kind": "Gateway", "name": "g"}], True),
        ([{**target("Gateway", "g"), "group": "networking.istio.io"}], True),
        ([target("GatewayClass", "istio-waypoint")], True),
        ([{**target("Service", "s"), "namespace": "b"}], True),
        ([{**target("Service", "s"), "namespace": "a"}], False),
        ([{"kind": "HTTPRoute", "group": "gateway.networking.k8s.io", "name": "r"}], True),
        ([target("Service", "")], True),
        ([target("Service", str(number)) for number in range(17)], True),
        ("all", True),
    ],
)
def test_policy_with_invalid_targets_applies_to_its_namespace(
    refs: object, everywhere: bool
) -> None:
    parsed = parse_authorization_policy(policy({"targetRefs": refs, "action": "DENY"}), ROOT)
    assert parsed.everywhere is everywhere
    assert bool(parsed.refused) is everywhere


def test_defect_of_a_parser_fails_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("ztunnel.l7.api.authorization_policy._rule", fail)
    monkeypatch.setattr("ztunnel.l7.api.request_authentication._rule", fail)
    spec = {"targetRefs": [target("Service", "s")], "action": "DENY", "rules": [{}]}
    parsed = parse_authorization_policy(policy(spec), ROOT)
    assert (parsed.refused, parsed.action) == ("ZeroDivisionError: oops", Action.DENY)
    assert parsed.rules
    obj = request_authentication("r", {}, target=target("Service", "s"))
    assert parse_request_authentication(l7_object(obj), ROOT).refused == "ZeroDivisionError: oops"


@pytest.mark.parametrize("spec", [[], "x", 1])
def test_unreadable_spec_applies_to_its_namespace(spec: object) -> None:
    body = {
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "a"},
        "spec": spec,
    }
    assert parse_authorization_policy(l7_object(body), ROOT).everywhere


def _denies(rig: Rig, destination: Destination) -> bool:
    return bool(filters(rig.world.inputs, destination).http)


def test_policy_of_a_service_entry_names_the_object(tmp_path: object) -> None:
    rig = Rig()
    rig.add("api.example.com")
    service = rig.world.mesh.state.service("default/api.example.com")
    assert service is not None
    entry = msgspec.structs.replace(service, is_service_entry=True, entry="external")
    rig.world.mesh.put(entry)
    destination = rig.destination("api.example.com")
    for kind, name, expected in (
        ("Service", "api.example.com", False),
        ("ServiceEntry", "api.example.com", False),
        ("ServiceEntry", "external", True),
    ):
        rig.world.add(authorization_policy("p", [], target=target(kind, name)))
        assert _denies(rig, destination) is expected


def test_policies_of_services_do_not_apply_to_pods() -> None:
    rig = Rig()
    rig.add("web", [authorization_policy("service", [])])
    pod = rig.world.pod("web", waypoint="default/waypoint")
    destination = Destination(gateway="default/waypoint", protocol=Protocol.HTTP, workload=pod)
    assert not _denies(rig, destination)
    rig.world.add(authorization_policy("gateway", [], target=target("Gateway", "waypoint")))
    assert _denies(rig, destination)


def test_root_namespace_with_invalid_targets_applies_everywhere() -> None:
    rig = Rig()
    rig.add("web")
    rig.world.add(authorization_policy("p", [], "DENY", namespace=ROOT, target={"kind": "Pod"}))
    assert _denies(rig, rig.destination("web"))


def test_change_of_one_policy_parses_only_that_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from ztunnel.l7.security import filters as module

    parsed: list[str] = []

    def parse(obj: L7Object, root: str) -> Any:
        parsed.append(obj.name)
        return parse_authorization_policy(obj, root)

    monkeypatch.setattr(module.AUTHORIZATION_POLICIES, "_parse", parse)
    world = PolicyWorld()
    for number in range(20):
        ref = target("Service", f"s{number}")
        world.add(authorization_policy(f"p{number}", [], target=ref, namespace="one"))
        world.service(f"s{number}", namespace="one")
    world.compile()
    assert sorted(parsed) == sorted(f"p{number}" for number in range(20))
    parsed.clear()
    world.add(authorization_policy("p7", [{}], target=target("Service", "s7"), namespace="one"))
    world.compile()
    assert parsed == ["p7"]


def test_change_of_a_policy_compiles_only_what_it_targets() -> None:
    world = PolicyWorld()
    for number in range(10):
        ref = target("Service", f"s{number}")
        world.add(authorization_policy(f"p{number}", [], target=ref))
        world.service(f"s{number}")
    compiler = GatewayCompiler("default/waypoint")
    compiler.compile(world.inputs)
    for obj, expected in (
        (authorization_policy("p7", [{}], target=target("Service", "s7")), 1),
        (authorization_policy("p7", [{}], target=target("Service", "s8")), 2),
        (authorization_policy("p8", [{}], target=target("Service", "none")), 1),
        (authorization_policy("all", [{}], target=target("Gateway", "waypoint")), 10),
        (authorization_policy("other", [{}], target=target("Gateway", "other")), 0),
        (authorization_policy("bad", [], "DENY", target={"kind": "x"}), 10),
    ):
        world.add(obj)
        compiler.compile(world.inputs)
        assert compiler.recompiled[0] == expected, obj


@pytest.mark.parametrize(
    ("value", "word"),
    [("admin", "begin with /"), ("/a?b", "query"), ("/a/../b", "normalized"), ("/a", "")],
)
def test_paths_that_never_match_are_reported(value: str, word: str) -> None:
    obj = authorization_policy("p", [rule(None, {"paths": [value]})], target=target("Service", "s"))
    problems = parse_authorization_policy(l7_object(obj), ROOT).problems
    assert [word in problem.message for problem in problems] == ([True] if word else [])


def test_rules_of_tokens_are_checked() -> None:
    for fields, word in (
        ({}, "issuer"),
        ({"issuer": "i"}, "exactly one of jwks and jwksUri"),
        ({"issuer": "i", "jwks": "{}", "jwksUri": "http://x"}, "exactly one"),
        ({"issuer": "i", "jwks": "{}"}, "has no list of 1 to 128 keys"),
        ({"issuer": "i", "jwksUri": "http://x", "outputPayloadToHeader": "host"}, "route requests"),
        ({"issuer": "i", "jwksUri": "http://x", "timeout": "1h"}, "duration"),
        ({"issuer": "i", "jwksUri": "http://x", "fromHeader": []}, "no such field"),
    ):
        obj = request_authentication("r", fields, target=target("Service", "s"))
        parsed = parse_request_authentication(l7_object(obj), ROOT)
        assert word in parsed.refused, fields
