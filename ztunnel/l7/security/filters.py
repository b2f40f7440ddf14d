# SPDX-License-Identifier: Apache-2.0
"""The filters that enforce the policies of a destination.

    JWT     401 if a token is invalid; removes the headers that only verified tokens may set
    CUSTOM  asks an external authorizer about the requests that match
    AUDIT   marks requests for the access log
    DENY    403 if a rule matches
    ALLOW   403 unless a rule matches; without a policy of this action, there is no such filter

Policies in dry run are shadow rules of the same filters: they decide nothing, and the result is in
the dynamic metadata of the filter, under keys that begin with `istio_dry_run_`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from ztunnel.l7.api import request_authentication
from ztunnel.l7.api.authorization_policy import (
    KIND,
    Action,
    AuthorizationPolicy,
    http_fields,
    parse_authorization_policy,
)
from ztunnel.l7.api.policy_terms import Attribute
from ztunnel.l7.api.request_authentication import NO_TARGETS, RequestAuthentication
from ztunnel.l7.config import Filters, Json
from ztunnel.l7.inputs import Destination, Inputs, Protocol
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.security.custom import Resolved, custom_filters, resolve
from ztunnel.l7.security.jwt import jwt_filter
from ztunnel.l7.security.matchers import client_address_filter
from ztunnel.l7.security.rbac import ANY, at_edge, invalid_name, never_matches, rbac_policies
from ztunnel.l7.security.selection import ParsedPolicies

HTTP_RBAC = "envoy.filters.http.rbac"
NETWORK_RBAC = "envoy.filters.network.rbac"
DRY_RUN_PREFIX = {Action.ALLOW: "istio_dry_run_allow_", Action.DENY: "istio_dry_run_deny_"}
_TYPE = "type.googleapis.com/envoy.extensions.filters"
_ENVOY_ACTION = {Action.ALLOW: "ALLOW", Action.DENY: "DENY", Action.AUDIT: "LOG"}
_ORDER = (Action.AUDIT, Action.DENY, Action.ALLOW)
_STAT_PREFIX = "waypoint."
_IDENTITY = frozenset({Attribute.PRINCIPAL, Attribute.NAMESPACE, Attribute.ACCOUNT})
_ALWAYS: Json = {"permissions": [ANY], "principals": [ANY]}

REQUEST_AUTHENTICATIONS = ParsedPolicies(
    request_authentication.KIND, request_authentication.parse_request_authentication
)
AUTHORIZATION_POLICIES = ParsedPolicies(KIND, parse_authorization_policy)


def filters(inputs: Inputs, destination: Destination) -> Filters:
    """Return the filters, first to last; the router is added by the caller."""
    tcp = is_tcp(destination)
    policies, authorizers = effective_policies(inputs, destination)
    tokens = _tokens(inputs, destination)
    every = (*policies, *(policy for each in authorizers for policy in each.policies))
    problems = [problem for policy in tokens for problem in policy.problems]
    problems += [problem for policy in every for problem in policy.problems]
    for policy in every:
        problems += _tcp_problems(policy) if tcp else ()
        problems += _identity_problems(policy) if destination.edge is not None else ()
    problems += [_no_tokens(policy) for policy in tokens] if tcp else []
    address = (client_address_filter(),) if _uses_client_address(every) else ()
    custom = custom_filters(authorizers, tcp=tcp)
    rbac = _rbac_filters(policies, () if tcp else tokens, tcp=tcp)
    decisions = custom.filters + rbac
    jwt = None if tcp else jwt_filter(tokens)
    return Filters(
        http=() if tcp else ((jwt.http,) if jwt else ()) + decisions,
        network=address + (decisions if tcp else ()),
        clusters=(jwt.clusters if jwt else ()) + custom.clusters,
        problems=tuple(problems),
    )


def effective_policies(inputs: Inputs, destination: Destination) -> Resolved:
    """Return the policies that are attached to a destination, with the external authorizers."""
    attached: Iterable[AuthorizationPolicy]
    attached = AUTHORIZATION_POLICIES.attached(inputs, destination)
    if destination.edge is not None:
        attached = map(at_edge, attached)
    return resolve(inputs, attached, tcp=is_tcp(destination))


def _tokens(inputs: Inputs, destination: Destination) -> tuple[RequestAuthentication, ...]:
    attached = tuple(REQUEST_AUTHENTICATIONS.attached(inputs, destination))
    if destination.edge is None:
        return attached
    return tuple(
        msgspec.structs.replace(
            policy, problems=tuple(each for each in policy.problems if each.reason != NO_TARGETS)
        )
        for policy in attached
    )


def is_tcp(destination: Destination) -> bool:
    """Whether a destination's connections carry no HTTP requests."""
    return destination.protocol in (Protocol.TCP, Protocol.TLS)


def _uses_client_address(policies: Iterable[AuthorizationPolicy]) -> bool:
    return any(
        term.attribute in (Attribute.SOURCE_IP, Attribute.REMOTE_IP)
        for policy in policies
        for rule in policy.rules
        for clause in (*rule.sources, rule.conditions)
        for term in clause
        if not term.at_edge
    )


def _rbac_filters(
    policies: Sequence[AuthorizationPolicy], tokens: Sequence[RequestAuthentication], *, tcp: bool
) -> tuple[Json, ...]:
    found = []
    for action in _ORDER:
        of_action = [policy for policy in policies if policy.action is action]
        enforced = _merged((each for each in of_action if not each.dry_run), tcp)
        dry = _merged((each for each in of_action if each.dry_run), tcp)
        if action is Action.DENY:
            enforced |= {invalid_name(each): _ALWAYS for each in tokens if each.refused}
        config: Json = {}
        if enforced:
            config["rules"] = {"action": _ENVOY_ACTION[action], "policies": enforced}
        if dry and action in DRY_RUN_PREFIX:
            config["shadow_rules"] = {"action": _ENVOY_ACTION[action], "policies": dry}
            config["shadow_rules_stat_prefix"] = DRY_RUN_PREFIX[action]
        if config:
            found.append(_filter(config, tcp))
    return tuple(found)


def _merged(policies: Iterable[AuthorizationPolicy], tcp: bool) -> dict[str, Json]:
    merged: dict[str, Json] = {}
    for policy in policies:
        merged |= rbac_policies(policy, tcp=tcp)
    return merged


def _filter(config: Json, tcp: bool) -> Json:
    if tcp:
        kind = {"@type": f"{_TYPE}.network.rbac.v3.RBAC", "stat_prefix": _STAT_PREFIX}
        return {"name": NETWORK_RBAC, "typed_config": {**kind, **config}}
    return {"name": HTTP_RBAC, "typed_config": {"@type": f"{_TYPE}.http.rbac.v3.RBAC", **config}}


def _tcp_problems(policy: AuthorizationPolicy) -> Iterable[Problem]:
    """What a TCP port does not enforce as it is written."""
    for rule in policy.rules:
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


def _identity_problems(policy: AuthorizationPolicy) -> Iterable[Problem]:
    """What an ingress gateway cannot match: it sees addresses of its clients, and requests."""
    for rule in policy.rules:
        clauses = (*rule.sources, rule.conditions)
        names = {term.attribute for clause in clauses for term in clause} & _IDENTITY
        if names:
            yield Problem(
                kind=KIND,
                namespace=policy.namespace,
                name=policy.name,
                field=f"spec.rules[{rule.number}]",
                message=f"clients of an ingress gateway have no {', '.join(sorted(names))}, also "
                "those in the mesh; hint: use remoteIpBlocks or requestPrincipals",
                severity=Severity.WARNING,
                reason="UnsupportedValue",
            )


def _no_tokens(policy: RequestAuthentication) -> Problem:
    return Problem(
        kind=request_authentication.KIND,
        namespace=policy.namespace,
        name=policy.name,
        message="TCP connections carry no tokens: it has no effect on TCP ports",
        severity=Severity.IGNORED,
        reason="NoEffect",
    )
