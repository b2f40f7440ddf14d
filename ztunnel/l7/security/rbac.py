# SPDX-License-Identifier: Apache-2.0
"""Rules of AuthorizationPolicies as policies of Envoy's RBAC filters.

    principals   = any source AND all conditions about the client or its token
    permissions  = any operation AND all conditions about the destination

A TCP chain sees no HTTP request: there, a rule of an ALLOW policy with HTTP fields matches
nothing, and a rule of any other action is enforced without them (as in Istio).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import msgspec

from ztunnel.l7.api.authorization_policy import (
    REMOTE_ADDRESS,
    Action,
    AuthorizationPolicy,
    Clause,
    Rule,
    http_fields,
)
from ztunnel.l7.api.policy_terms import HTTP_ONLY, Attribute, Term
from ztunnel.l7.api.request_authentication import RequestAuthentication
from ztunnel.l7.config import Json
from ztunnel.l7.security import matchers

ANY: Json = {"any": True}


class _Side(NamedTuple):
    """Names of fields of a Permission or a Principal."""

    conjunction: str
    disjunction: str
    negation: str
    members: str


_PERMISSION = _Side("and_rules", "or_rules", "not_rule", "rules")
_PRINCIPAL = _Side("and_ids", "or_ids", "not_id", "ids")
_DESTINATION = frozenset(
    {
        Attribute.DESTINATION_IP,
        Attribute.PORT,
        Attribute.SNI,
        Attribute.HOST,
        Attribute.METHOD,
        Attribute.PATH,
    }
)


def policy_name(policy: AuthorizationPolicy, rule: int) -> str:
    """The name of a rule in RBAC filters, response details and access logs (as in Istio)."""
    return f"ns[{policy.namespace}]-policy[{policy.name}]-rule[{rule}]"


def invalid_name(policy: RequestAuthentication) -> str:
    """The name of the rule that denies everything because of an invalid RequestAuthentication."""
    return f"ns[{policy.namespace}]-request-authentication[{policy.name}]-invalid"


def rbac_policies(policy: AuthorizationPolicy, *, tcp: bool) -> dict[str, Json]:
    """Return Envoy's policies by name: one per rule that may match; never an empty dict.

    A policy without such a rule yields one that never matches, so that an ALLOW policy denies.
    """
    found = {
        policy_name(policy, rule.number): _policy(rule, tcp)
        for rule in policy.rules
        if not never_matches(policy, rule, tcp=tcp)
    }
    return found or {policy_name(policy, 0): _NEVER}


def never_matches(policy: AuthorizationPolicy, rule: Rule, *, tcp: bool) -> bool:
    """Whether a rule is left out: an ALLOW policy must not allow what it does not understand."""
    if policy.action is not Action.ALLOW:
        return False
    return bool(rule.unsupported or (tcp and http_fields(rule)))


_NEVER: Json = {"permissions": [{"not_rule": ANY}], "principals": [{"not_id": ANY}]}


def at_edge(policy: AuthorizationPolicy) -> AuthorizationPolicy:
    """Return a policy for the clients of an ingress gateway, see `Term.at_edge`."""
    rules = tuple(
        msgspec.structs.replace(
            rule,
            sources=tuple(map(_clause_at_edge, rule.sources)),
            operations=tuple(map(_clause_at_edge, rule.operations)),
            conditions=_clause_at_edge(rule.conditions),
        )
        for rule in policy.rules
    )
    problems = tuple(each for each in policy.problems if each.reason != REMOTE_ADDRESS)
    return msgspec.structs.replace(policy, rules=rules, problems=problems)


def _clause_at_edge(clause: Clause) -> Clause:
    return tuple(msgspec.structs.replace(term, at_edge=True) for term in clause)


def _policy(rule: Rule, tcp: bool) -> Json:
    destination = tuple(term for term in rule.conditions if term.attribute in _DESTINATION)
    client = tuple(term for term in rule.conditions if term.attribute not in _DESTINATION)
    permissions = _any(rule.operations, tcp, _PERMISSION) + _terms(destination, tcp, _PERMISSION)
    principals = _any(rule.sources, tcp, _PRINCIPAL) + _terms(client, tcp, _PRINCIPAL)
    return {
        "permissions": [_all(permissions, _PERMISSION)],
        "principals": [_all(principals, _PRINCIPAL)],
    }


def _any(clauses: Iterable[Clause], tcp: bool, side: _Side) -> list[Json]:
    """One of several clauses; nothing if there are none."""
    found = [_all(_terms(clause, tcp, side), side) for clause in clauses]
    return [_either(found, side)] if found else []


def _all(parts: list[Json], side: _Side) -> Json:
    if not parts:
        return ANY
    return parts[0] if len(parts) == 1 else {side.conjunction: {side.members: parts}}


def _either(parts: list[Json], side: _Side) -> Json:
    return parts[0] if len(parts) == 1 else {side.disjunction: {side.members: parts}}


def _terms(clause: Clause, tcp: bool, side: _Side) -> list[Json]:
    found: list[Json] = []
    for term in clause:
        if tcp and term.attribute in HTTP_ONLY:
            continue
        for values, is_negated in ((term.values, False), (term.excluded, True)):
            if values:
                match = _MATCHERS[term.attribute]
                either = _either([match(term, value) for value in values], side)
                found.append({side.negation: either} if is_negated else either)
    return found


def _address(name: str, term: Term, value: str) -> Json:
    """At an ingress gateway, Envoy's own address of the connection, or of x-forwarded-for."""
    return {name: matchers.network(value)} if term.at_edge else matchers.client_address(value)


def _host(term: Term, value: str) -> Json:
    return matchers.host_at_any_port(value) if term.at_edge else matchers.host(value)


_MATCHERS: dict[Attribute, Callable[[Term, str], Json]] = {
    Attribute.PRINCIPAL: lambda _, value: matchers.principal(value),
    Attribute.NAMESPACE: lambda _, value: matchers.namespace(value),
    Attribute.ACCOUNT: lambda _, value: matchers.service_account(value),
    Attribute.SOURCE_IP: lambda term, value: _address("direct_remote_ip", term, value),
    Attribute.REMOTE_IP: lambda term, value: _address("remote_ip", term, value),
    Attribute.DESTINATION_IP: lambda _, value: {"destination_ip": matchers.network(value)},
    Attribute.PORT: lambda _, value: {"destination_port": int(value)},
    Attribute.SNI: lambda _, value: {"requested_server_name": matchers.text(value)},
    Attribute.REQUEST_PRINCIPAL: lambda _, value: matchers.request_principal(value),
    Attribute.AUDIENCES: lambda _, value: matchers.claim(("aud",), value),
    Attribute.PRESENTER: lambda _, value: matchers.claim(("azp",), value),
    Attribute.CLAIM: lambda term, value: matchers.claim(term.key, value),
    Attribute.HEADER: lambda term, value: {"header": matchers.header(term.key[0], value)},
    Attribute.HOST: lambda term, value: {"header": _host(term, value)},
    Attribute.METHOD: lambda _, value: {"header": matchers.header(":method", value)},
    Attribute.PATH: lambda _, value: {"url_path": {"path": matchers.path(value)}},
}
