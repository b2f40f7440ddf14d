# SPDX-License-Identifier: Apache-2.0
"""Decides a request as the filters of `ztunnel.l7.security.filters` do in Envoy. Pure.

    a CUSTOM policy matches                      ─▶ an authorizer decides, which is not predicted
    an AUDIT policy matches                      ─▶ the request is marked
    a DENY policy matches                        ─▶ 403
    no ALLOW policy is attached                  ─▶ allowed
    an ALLOW policy matches                      ─▶ allowed
    otherwise                                    ─▶ 403

A property test compares the decisions with those of a real Envoy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import ip_address, ip_network

import msgspec

from ztunnel.l7.api.authorization_policy import Action, AuthorizationPolicy, Clause, Rule
from ztunnel.l7.api.policy_terms import (
    ADDRESSES,
    HTTP_ONLY,
    Attribute,
    Term,
    is_template,
    request_principal_parts,
    template_regex,
)
from ztunnel.l7.api.request_authentication import RequestAuthentication
from ztunnel.l7.security.custom import Resolved
from ztunnel.l7.security.rbac import invalid_name, never_matches, policy_name
from ztunnel.l7.security.request import Attributes

FORBIDDEN = 403


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """The result. `rule` is the name in Envoy's access log of the rule that decided, or empty.

    `policy` is the deciding policy; if no ALLOW policy matches, the first of them. `audit` is the
    name of an AUDIT rule that matches. `dry_run` describes what policies in dry run would change.
    `authorizers` are asked before: if one of them denies, the request is denied anyway.
    """

    allowed: bool
    status: int = 0  # of Envoy's own response; 0 if the request is forwarded
    reason: str
    policy: str = ""
    rule: str = ""
    audit: str = ""
    dry_run: str = ""
    authorizers: tuple[str, ...] = ()

    @property
    def response_details(self) -> str:
        """%RESPONSE_CODE_DETAILS% of a denied HTTP request."""
        return "" if self.allowed else f"rbac_access_denied_matched_policy[{self.rule or 'none'}]"


def evaluate(
    resolved: Resolved,
    refused: Sequence[RequestAuthentication],
    attributes: Attributes,
    *,
    tcp: bool = False,
) -> Decision:
    """Return the decision of the policies that are attached to the destination.

    `refused`: invalid RequestAuthentications, which deny everything.
    """
    policies = resolved.policies
    enforced = [policy for policy in policies if not policy.dry_run]
    denied = [_Match(invalid_name(each), each.key, -1) for each in refused]
    decision = _decide(enforced, attributes, tcp, denied)
    audit = _first(enforced, Action.AUDIT, attributes, tcp)
    dry_run = ""
    if len(enforced) < len(policies):
        would = _decide(policies, attributes, tcp, denied)
        dry_run = would.reason if would.allowed != decision.allowed else ""
    return msgspec.structs.replace(
        decision,
        audit=audit.rule if audit else "",
        dry_run=dry_run,
        authorizers=tuple(
            each.provider.name
            for each in resolved.authorizers
            if _first(each.policies, Action.CUSTOM, attributes, tcp) is not None
        ),
    )


class _Match(msgspec.Struct, frozen=True, order=True):
    rule: str
    policy: str
    number: int


def _decide(
    policies: Sequence[AuthorizationPolicy],
    attributes: Attributes,
    tcp: bool,
    denied: Sequence[_Match],
) -> Decision:
    deny = _first(policies, Action.DENY, attributes, tcp)
    match = min((*denied, *((deny,) if deny else ())), default=None)
    if match is not None:
        place = f", rules[{match.number}]" if match.number >= 0 else ", which is invalid"
        reason = f"denied by {match.policy}{place}"
        return Decision(
            allowed=False, status=FORBIDDEN, reason=reason, policy=match.policy, rule=match.rule
        )
    allow = [policy for policy in policies if policy.action is Action.ALLOW]
    if not allow:
        return Decision(allowed=True, reason="no ALLOW policy is attached to the destination")
    match = _first(policies, Action.ALLOW, attributes, tcp)
    if match is not None:
        reason = f"allowed by {match.policy}, rules[{match.number}]"
        return Decision(allowed=True, reason=reason, policy=match.policy, rule=match.rule)
    first = min(policy.key for policy in allow)
    others = f" and {len(allow) - 1} more" if len(allow) > 1 else ""
    reason = f"no rule of the ALLOW policies matches: {first}{others}"
    return Decision(allowed=False, status=FORBIDDEN, reason=reason, policy=first)


def _first(
    policies: Iterable[AuthorizationPolicy], action: Action, attributes: Attributes, tcp: bool
) -> _Match | None:
    """The first matching rule by its name, as Envoy orders them."""
    return min(
        (
            _Match(policy_name(policy, rule.number), policy.key, rule.number)
            for policy in policies
            if policy.action is action
            for rule in policy.rules
            if not never_matches(policy, rule, tcp=tcp) and matches_rule(rule, attributes, tcp=tcp)
        ),
        default=None,
    )


def matches_rule(rule: Rule, attributes: Attributes, *, tcp: bool = False) -> bool:
    """Whether a rule matches; a TCP connection is matched without HTTP fields."""
    return (
        _any_clause(rule.sources, attributes, tcp)
        and _any_clause(rule.operations, attributes, tcp)
        and _matches_clause(rule.conditions, attributes, tcp)
    )


def _any_clause(clauses: tuple[Clause, ...], attributes: Attributes, tcp: bool) -> bool:
    return not clauses or any(_matches_clause(each, attributes, tcp) for each in clauses)


def _matches_clause(clause: Clause, attributes: Attributes, tcp: bool) -> bool:
    return all(
        _matches_term(term, attributes)
        for term in clause
        if not (tcp and term.attribute in HTTP_ONLY)
    )


def _matches_term(term: Term, attributes: Attributes) -> bool:
    if term.values and not any(_matches(term, value, attributes) for value in term.values):
        return False
    return not any(_matches(term, value, attributes) for value in term.excluded)


def _matches(term: Term, value: str, attributes: Attributes) -> bool:
    attribute = term.attribute
    if attribute in ADDRESSES:
        return _in_network(attributes.address(attribute), value)
    if attribute is Attribute.PORT:
        return attributes.port == int(value)
    if attribute is Attribute.REQUEST_PRINCIPAL:
        parts = zip(attributes.request_principal, request_principal_parts(value), strict=True)
        return all(_matches_text(text, pattern) for text, pattern in parts)
    if attribute in (Attribute.HEADER, Attribute.HOST, Attribute.METHOD) and value == "*":
        return any(True for _ in attributes.texts(term))
    if attribute is Attribute.PATH and is_template(value):
        regex = _compiled(template_regex(value))
        return any(regex.fullmatch(text) for text in attributes.texts(term))
    if attribute is Attribute.HOST:
        value = value.lower()
    return any(_matches_text(text, value) for text in attributes.texts(term))


def _matches_text(text: str, value: str) -> bool:
    if value == "*":
        return text != ""
    if value.startswith("*"):
        return text.endswith(value[1:])
    if value.endswith("*"):
        return text.startswith(value[:-1])
    return text == value


@lru_cache(maxsize=4096)
def _in_network(address: str, network: str) -> bool:
    try:
        return ip_address(address) in ip_network(network)
    except ValueError:
        return False


@lru_cache(maxsize=1024)
def _compiled(regex: str) -> re.Pattern[str]:
    return re.compile(regex)
