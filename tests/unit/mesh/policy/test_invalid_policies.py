# SPDX-License-Identifier: Apache-2.0
"""Invalid policies are rejected with a reason and fail closed."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.policies import (
    DB,
    OTHER,
    ROOT,
    WEB,
    Json,
    authz_request,
    peer,
    policies,
    policy,
)
from ztunnel.kube.objects import policies as parser
from ztunnel.kube.objects.policies import (
    MAX_POLICY_BYTES,
    read_authorization_policy,
    read_peer_authentication,
)
from ztunnel.kube.view.cluster_view import ClusterView
from ztunnel.mesh.policy.model import Action, AuthorizationPolicy, MtlsMode, Selection


def rule(**fields: Any) -> Json:
    return {"from": [{"source": fields}]}


WRONG_RULES: list[tuple[Any, str]] = [
    ({"from": []}, "rules[0].from"),
    ({"to": []}, "rules[0].to"),
    ({"from": [{}]}, "rules[0].from[0].source is empty"),
    ({"from": [{"source": {}}]}, "source is empty"),
    ({"from": [{"source": {"principals": []}}]}, "source is empty"),
    ({"from": [{"source": {"principal": ["a"]}}]}, "principal: no such field"),
    ({"from": [{"sources": {"principals": ["a"]}}]}, "sources: no such field"),
    ({"form": [{"source": {"principals": ["a"]}}]}, "form: no such field"),
    ({"from": {"source": {"principals": ["a"]}}}, "want a list"),
    (rule(principals="a"), "want a list"),
    (rule(principals=[1]), "want a list of strings"),
    (rule(principals=[""]), "with * only"),
    (rule(principals=["a*b"]), "with * only"),
    (rule(principals=["*a*"]), "with * only"),
    (rule(namespaces=["**"]), "with * only"),
    (rule(serviceAccounts=["*"]), "no wildcards"),
    (rule(serviceAccounts=["a/b/c"]), "service accounts"),
    (rule(serviceAccounts=["a/"]), "service accounts"),
    (rule(ipBlocks=["10.0.0.0/33"]), "networks"),
    (rule(ipBlocks=["10.0.0"]), "networks"),
    (rule(ipBlocks=["10.0.0.0/255.0.0.0"]), "networks"),
    (rule(ipBlocks=["fe80::1%eth0"]), "networks"),
    (rule(ipBlocks=["client"]), "networks"),
    ({"to": [{"operation": {"ports": [80]}}]}, "strings"),
    ({"to": [{"operation": {"ports": ["http"]}}]}, "port numbers"),
    ({"to": [{"operation": {"ports": ["0"]}}]}, "port numbers"),
    ({"to": [{"operation": {"ports": ["65536"]}}]}, "port numbers"),
    ({"to": [{"operation": {"ports": ["*"]}}]}, "port numbers"),
    ({"when": [{"key": "source.ip"}]}, "neither values nor notValues"),
    ({"when": [{"key": "source.port", "values": ["1"]}]}, "want one of"),
    ({"when": [{"values": ["1"]}]}, "want one of"),
    ({"when": [{"key": "source.ip", "values": ["x"]}]}, "networks"),
    ("x", "want a list of mappings"),
]


@pytest.mark.parametrize(("written", "reason"), WRONG_RULES, ids=str)
@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
def test_invalid_rules_fail_closed(written: Any, reason: str, action: str) -> None:
    made = policies(policy([written], action))
    (refused,) = made
    assert reason in refused.refused
    assert refused.refused.startswith("spec.rules")
    assert not made.decide(WEB, authz_request()).allowed
    assert made.decide(OTHER, authz_request()).allowed


def test_invalid_allow_does_not_affect_other_allows() -> None:
    """Other ALLOW policies stay in force, but an invalid DENY denies everything."""
    good = policy([{}], name="good")
    assert policies(good, policy([{"from": []}], "ALLOW")).decide(WEB, authz_request()).allowed
    assert not policies(good, policy([{"from": []}], "DENY")).decide(WEB, authz_request()).allowed


@pytest.mark.parametrize(
    "spec",
    [
        {"action": "Deny"},
        {"action": 1},
        {"action": ["DENY"]},
        {"actions": "DENY"},
        {"rules": {}},
        {"rules": "all"},
        {"selector": {"matchLabels": {"app": "web"}, "x": 1}},
        {"selector": []},
        {"selector": {"matchLabels": {"app": "w*"}}},
        {"selector": {"matchLabels": {}}, "targetRefs": [{"kind": "Service", "name": "web"}]},
        {"targetRefs": [{"kind": "Service"}]},
        {"targetRefs": [{"kind": "Pod", "name": "web"}]},
        {"targetRefs": [{"kind": "Service", "name": "web", "namespace": "other"}]},
        {"targetRefs": [{"kind": "Service", "name": f"s{n}"} for n in range(17)]},
    ],
    ids=str,
)
def test_invalid_scope_or_action_applies_to_namespace(spec: Json) -> None:
    obj = policy()
    obj["spec"] = spec
    made = policies(obj)
    (refused,) = made
    assert refused.refused
    assert not made.decide(WEB, authz_request()).allowed
    assert not made.decide(DB, authz_request()).allowed
    assert made.decide(OTHER, authz_request()).allowed


@pytest.mark.parametrize("spec", ["all", [], 7])
def test_spec_of_wrong_type_fails_closed(spec: Any) -> None:
    made = policies({**policy(), "spec": spec})
    assert not made.decide(WEB, authz_request()).allowed


def test_invalid_root_namespace_policy_applies_to_mesh() -> None:
    made = policies(policy(action="nonsense", namespace=ROOT))
    assert not any(made.decide(each, authz_request()).allowed for each in (WEB, DB, OTHER))


def test_invalid_policy_keeps_valid_selector() -> None:
    made = policies(policy([{"from": []}], "DENY", selector={"matchLabels": {"app": "web"}}))
    assert not made.decide(WEB, authz_request()).allowed
    assert made.decide(DB, authz_request()).allowed


def test_invalid_dry_run_policy_is_not_enforced() -> None:
    made = policies(policy([{"from": []}], "DENY", annotations={"istio.io/dry-run": "true"}))
    decision = made.decide(WEB, authz_request())
    assert decision.allowed
    assert decision.dry_run


def test_invalid_dry_run_annotation_is_enforced_with_warning() -> None:
    made = policies(policy(annotations={"istio.io/dry-run": "perhaps"}))
    (only,) = made
    assert "dry-run" in only.warnings[0]
    assert not made.decide(WEB, authz_request()).allowed


def test_invalid_audit_policy_has_no_effect() -> None:
    made = policies(policy([{"from": []}], "AUDIT"))
    assert made.decide(WEB, authz_request()).allowed


def test_oversized_policy_is_rejected() -> None:
    count = MAX_POLICY_BYTES // 20
    names = [f"cluster.local/ns/n{number}/sa/a" for number in range(count)]
    made = policies(policy([rule(notPrincipals=names)]))
    (refused,) = made
    assert "at most" in refused.refused
    assert not made.decide(WEB, authz_request()).allowed


def test_l7_fields_give_warning() -> None:
    made = policies(
        policy([{"to": [{"operation": {"methods": ["GET"]}}]}], name="a"),
        policy([{"to": [{"operation": {"methods": ["GET"]}}]}, {}], "DENY", name="d"),
    )
    by_name = {each.name: each for each in made}
    assert "allows nothing" in by_name["a"].warnings[0]
    assert "spec.rules[0].to[0].operation.methods" in by_name["a"].warnings[0]
    assert "denies without it" in by_name["d"].warnings[0]
    assert not by_name["a"].refused


def test_waypoint_policy_has_no_effect() -> None:
    gateway = {"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "g"}
    made = policies(
        policy(targetRefs=[gateway]), policy([{"from": []}], "DENY", name="q", targetRefs=[gateway])
    )
    assert all(isinstance(e, AuthorizationPolicy) and "waypoint" in e.ignored for e in made)
    assert made.decide(WEB, authz_request()).allowed


# PeerAuthentication


def edited(**spec: Any) -> Json:
    obj = peer()
    obj["spec"] = spec
    return obj


@pytest.mark.parametrize(
    ("obj", "db_too"),
    [
        (edited(mtls={"mode": "strict"}), True),
        (edited(mtls={"mode": 1}), True),
        (edited(mtls="STRICT"), True),
        (edited(mlts={"mode": "PERMISSIVE"}), True),
        (edited(mtls={"modes": "STRICT"}), True),
        (edited(portLevelMtls={80: {"mode": "PERMISSIVE"}}), True),  # without a selector
        (
            edited(
                selector={"matchLabels": {"app": "web"}}, portLevelMtls={"http": {"mode": "STRICT"}}
            ),
            False,
        ),
        (edited(selector={"matchLabels": {"app": "web"}}, mtls={"mode": "?"}), False),
        (edited(selector="web"), True),
        ({**peer(), "spec": "STRICT"}, True),
    ],
    ids=str,
)
def test_invalid_peer_authentication_is_strict(obj: Json, db_too: bool) -> None:
    made = policies(obj, peer("PERMISSIVE", name="a", created="2020-01-01T00:00:00Z"))
    refused = next(each for each in made if each.name == "p")
    assert refused.refused
    assert made.modes(WEB).at(80).mode is MtlsMode.STRICT
    assert (made.modes(DB).at(80).mode is MtlsMode.STRICT) == db_too
    assert made.modes(OTHER).at(80).mode is MtlsMode.PERMISSIVE


def test_disable_mode_gives_warning() -> None:
    (made,) = policies(peer("DISABLE"))
    assert "PERMISSIVE" in made.warnings[0]


def test_yaml_dates_are_equivalent_to_strings() -> None:
    obj = peer()
    obj["metadata"]["creationTimestamp"] = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert read_peer_authentication(obj, ROOT).created == "2024-01-02T03:04:05Z"
    again = yaml.safe_load(yaml.safe_dump(obj))
    assert read_peer_authentication(again, ROOT).created == "2024-01-02T03:04:05Z"


# Arbitrary input

NAMES = [
    *("action", "rules", "from", "to", "when", "source", "operation", "principals", "ports"),
    *("selector", "matchLabels", "key", "values", "targetRefs", "kind", "name", "mtls", "mode"),
    *("portLevelMtls", "ipBlocks", "x"),
]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["*", "80"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(NAMES),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=500, deadline=None)
@given(json_values, json_values)
def test_arbitrary_spec_is_parsed_or_fails_closed(spec: Any, annotations: Any) -> None:
    obj = {**policy(), "spec": spec}
    obj["metadata"]["annotations"] = annotations
    written = read_authorization_policy(obj, ROOT)
    one = written.policy
    if one.refused and not one.dry_run and not one.ignored and not written.targets:
        made = policies(obj)
        assert not made.decide(WEB, authz_request()).allowed or "matchLabels" in str(spec)
    authentication = read_peer_authentication({**peer(), "spec": spec}, ROOT)
    if authentication.refused:
        assert authentication.mode is MtlsMode.STRICT


def test_view_reports_rejected_policy() -> None:
    view = ClusterView("cluster.local", "c")
    view.upsert(policy([{"from": []}]))
    assert "rejected" in view.errors()["AuthorizationPolicy shop/p"]
    view.upsert(policy([{}]))
    assert view.errors() == {}


def _with(spec: Json, kind: str = "AuthorizationPolicy") -> Json:
    return {"kind": kind, "metadata": {"name": "p", "namespace": "shop"}, "spec": spec}


def test_policy_with_selector_larger_than_a_message_denies_its_namespace() -> None:
    spec = {"action": "DENY", "selector": {"matchLabels": {"k" * 500_000: "v"}}}
    found = read_authorization_policy(_with(spec), ROOT).policy
    assert "want at most" in found.refused
    assert found.selections == (Selection(found.namespace),)
    assert len(msgspec.msgpack.encode(found)) < MAX_POLICY_BYTES
    strict = read_peer_authentication(
        _with({"selector": spec["selector"]}, "PeerAuthentication"), ROOT
    )
    assert (strict.mode, strict.selection) == (MtlsMode.STRICT, Selection(strict.namespace))


def test_reason_of_rejection_has_limited_length() -> None:
    spec = {"targetRefs": [{"kind": "Gateway", "name": "g" * 500_000}], "k" * 500_000: 1}
    found = read_authorization_policy(_with(spec), ROOT).policy
    assert found.refused
    assert len(msgspec.msgpack.encode(found)) < MAX_POLICY_BYTES
    strict = read_peer_authentication(_with({"k" * 500_000: 1}, "PeerAuthentication"), ROOT)
    assert strict.refused
    assert len(msgspec.msgpack.encode(strict)) < MAX_POLICY_BYTES


def test_defect_of_parser_fails_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("defect")

    monkeypatch.setattr(parser, "_authorization_policy", fail)
    monkeypatch.setattr(parser, "_peer_authentication", fail)
    found = read_authorization_policy(_with({"action": "DENY"}), ROOT).policy
    assert (found.refused, found.action) == ("KeyError: 'defect'", Action.DENY)
    assert read_peer_authentication(_with({}, "PeerAuthentication"), ROOT).mode is MtlsMode.STRICT
