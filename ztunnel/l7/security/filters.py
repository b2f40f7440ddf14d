# SPDX-License-Identifier: Apache-2.0
"""The filters that enforce the policies of a destination.

    AUDIT   marks requests for the access log
    DENY    403 if a rule matches
    ALLOW   403 unless a rule matches; without a policy of this action, there is no such filter

Policies in dry run are shadow rules of the same filters: they decide nothing, and the result is in
the dynamic metadata of the filter, under keys that begin with `istio_dry_run_`.
"""

from __future__ import annotations

from collections.abc import Iterable

from ztunnel.l7.api.authorization_policy import (
    KIND,
    Action,
    AuthorizationPolicy,
    http_fields,
    parse_authorization_policy,
)
from ztunnel.l7.api.policy_terms import Attribute
from ztunnel.l7.config import Filters, Json
from ztunnel.l7.inputs import Destination, Inputs, Protocol
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.security.matchers import client_address_filter
from ztunnel.l7.security.rbac import never_matches, rbac_policies
from ztunnel.l7.security.selection import ParsedPolicies

HTTP_RBAC = "envoy.filters.http.rbac"
NETWORK_RBAC = "envoy.filters.network.rbac"
DRY_RUN_PREFIX = {Action.ALLOW: "istio_dry_run_allow_", Action.DENY: "istio_dry_run_deny_"}
_TYPE = "type.googleapis.com/envoy.extensions.filters"
_ENVOY_ACTION = {Action.ALLOW: "ALLOW", Action.DENY: "DENY", Action.AUDIT: "LOG"}
_ORDER = (Action.AUDIT, Action.DENY, Action.ALLOW)
_FILTER_OF = {action: action for action in _ORDER} | {Action.CUSTOM: Action.DENY}
_STAT_PREFIX = "waypoint."

AUTHORIZATION_POLICIES = ParsedPolicies(KIND, parse_authorization_policy)


def filters(inputs: Inputs, destination: Destination) -> Filters:
    """Return the filters, first to last; the router is added by the caller."""
    policies = tuple(AUTHORIZATION_POLICIES.attached(inputs, destination))
    tcp = destination.protocol in (Protocol.TCP, Protocol.TLS)
    found = _rbac_filters(policies, tcp)
    problems = [problem for policy in policies for problem in policy.problems]
    problems += [problem for policy in policies for problem in _tcp_problems(policy, tcp)]
    network = (client_address_filter(),) if _uses_client_address(policies) else ()
    return Filters(
        http=() if tcp else found,
        network=network + (found if tcp else ()),
        problems=tuple(problems),
    )


def _uses_client_address(policies: Iterable[AuthorizationPolicy]) -> bool:
    return any(
        term.attribute in (Attribute.SOURCE_IP, Attribute.REMOTE_IP)
        for policy in policies
        for rule in policy.rules
        for clause in (*rule.sources, rule.conditions)
        for term in clause
    )


def _rbac_filters(policies: Iterable[AuthorizationPolicy], tcp: bool) -> tuple[Json, ...]:
    found = []
    for action in _ORDER:
        of_action = [policy for policy in policies if _FILTER_OF[policy.action] is action]
        enforced = [policy for policy in of_action if not policy.dry_run]
        dry = [policy for policy in of_action if policy.dry_run]
        config: Json = {}
        if enforced:
            config["rules"] = _rules(action, enforced, tcp)
        if dry and action in DRY_RUN_PREFIX:
            config["shadow_rules"] = _rules(action, dry, tcp)
            config["shadow_rules_stat_prefix"] = DRY_RUN_PREFIX[action]
        if config:
            found.append(_filter(config, tcp))
    return tuple(found)


def _rules(action: Action, policies: Iterable[AuthorizationPolicy], tcp: bool) -> Json:
    merged: dict[str, Json] = {}
    for policy in policies:
        merged |= rbac_policies(policy, tcp=tcp)
    return {"action": _ENVOY_ACTION[action], "policies": merged}


def _filter(config: Json, tcp: bool) -> Json:
    if tcp:
        kind = {"@type": f"{_TYPE}.network.rbac.v3.RBAC", "stat_prefix": _STAT_PREFIX}
        return {"name": NETWORK_RBAC, "typed_config": {**kind, **config}}
    return {"name": HTTP_RBAC, "typed_config": {"@type": f"{_TYPE}.http.rbac.v3.RBAC", **config}}


def _tcp_problems(policy: AuthorizationPolicy, tcp: bool) -> Iterable[Problem]:
    """What a TCP port does not enforce as it is written."""
    for rule in policy.rules if tcp else ():
        names = sorted(http_fields(rule))
        if not names:
            continue
        skipped = never_matches(policy, rule, tcp=True)
        effect = "the rule allows nothing there" if skipped else "it applies without them"
        yield Problem(
            kind=KIND,
            namespace=policy.namespace,
            name=policy.name,
            field=f"spec.rules[{rule.number}]",
            message=f"TCP connections have no {', '.join(names)}: {effect}",
            severity=Severity.WARNING,
            reason="UnsupportedValue",
        )
