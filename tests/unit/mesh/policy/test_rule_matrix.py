# SPDX-License-Identifier: Apache-2.0
"""The rule matrix: its result equals that of single rules, and its cost that of one rule."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.mesh.policy.test_reference_evaluator import authorizations, requests
from ztunnel.kube.objects.policies import read_authorization_policy
from ztunnel.mesh.model import SocketAddress, Workload
from ztunnel.mesh.policy import match_terms
from ztunnel.mesh.policy.engine import PolicyEngine
from ztunnel.mesh.policy.match_terms import AuthzRequest, IndexKey, IndexValue, RequestAttributes
from ztunnel.mesh.policy.model import (
    Action,
    Attribute,
    AuthorizationPolicy,
    MatchTerms,
    Rule,
    Selection,
)
from ztunnel.mesh.policy.rule_index import CompiledRule, RuleIndex
from ztunnel.mesh.policy.rule_matrix import RuleMatrix

POLICIES = 100
RULES = 1000
PEER = "spiffe://cluster.local/ns/shop/sa/a"
POD = Workload(
    uid="w", pod_uid="w", name="w", namespace="shop", service_account="w", node="n", addresses=()
)


@settings(max_examples=400, deadline=None)
@given(authorizations(), st.lists(requests, min_size=1, max_size=5))
def test_first_rule_equals_that_of_single_evaluation(
    obj: dict[str, object], requests: list[AuthzRequest]
) -> None:
    policy = read_authorization_policy(obj, "istio-system").policy
    rules = [each for each in policy.rules if not each.never_matches]
    matrix = RuleMatrix(rules)
    for request in requests:
        attributes = RequestAttributes(request)
        compiled = (CompiledRule(policy.key, each) for each in rules)
        expected = [each.match.number for each in compiled if each.matches(attributes)]
        assert matrix.first(attributes) == min(expected, default=None)


def request(port: int) -> AuthzRequest:
    return AuthzRequest("10.0.0.1", PEER, SocketAddress("10.9.0.1", port))


def excluding_all(number: int) -> Rule:
    """Has no positive condition, and does not match the peer."""
    return Rule(number, (((MatchTerms(Attribute.PRINCIPAL, (), ("*",)),),),))


def same_namespace(number: int) -> Rule:
    """Is a candidate for every peer of the namespace, and does not match its port."""
    source = (MatchTerms(Attribute.NAMESPACE, ("shop",)),)
    operation = (MatchTerms(Attribute.DESTINATION_PORT, (), tuple(map(str, range(1, 6)))),)
    return Rule(number, ((source,), (operation,)))


def many_lengths(number: int) -> Rule:
    values = tuple(f"{'x' * length}*" for length in range(number * 5 + 1, number * 5 + 6))
    return Rule(number, (((MatchTerms(Attribute.PRINCIPAL, (), values),),),))


@pytest.mark.parametrize("make", [excluding_all, same_namespace])
def test_cost_of_a_decision_does_not_depend_on_the_number_of_rules(
    make: Callable[[int], Rule], monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted = 0
    real = IndexKey.extract

    def extract(self: IndexKey, attributes: RequestAttributes) -> IndexValue | None:
        nonlocal extracted
        extracted += 1
        return real(self, attributes)

    engine = PolicyEngine()
    for at in range(POLICIES):
        engine.put(
            AuthorizationPolicy(
                namespace="shop",
                name=f"p{at}",
                action=Action.DENY,
                selections=(Selection("shop"),),
                rules=tuple(make(number) for number in range(RULES)),
            )
        )
    assert engine.decide(POD, request(1)).allowed  # creates the matrices
    monkeypatch.setattr(match_terms.IndexKey, "extract", extract)
    for port in range(2, 6):
        assert engine.decide(POD, request(port)).allowed
    assert extracted <= 4 * (2 * POLICIES + 1)  # not RULES times as many


def test_matrix_of_a_removed_policy_is_removed() -> None:
    index = RuleIndex()
    rules = tuple(excluding_all(number) for number in range(RULES))
    policy = AuthorizationPolicy(namespace="shop", name="p", action=Action.DENY, rules=rules)
    index.add(policy)
    assert index.first(RequestAttributes(request(80))) is None
    assert index._matrices
    index.discard(policy)
    assert not index._matrices
    assert not index._always_evaluated
    assert not index._tables


def test_prefixes_longer_than_the_value_are_no_match() -> None:
    policy = AuthorizationPolicy(
        namespace="shop",
        name="p",
        action=Action.DENY,
        rules=tuple(many_lengths(number) for number in range(100)),
    )
    index = RuleIndex()
    index.add(policy)
    found = index.first(RequestAttributes(request(80)))
    assert found is not None
    assert found.number == 0
