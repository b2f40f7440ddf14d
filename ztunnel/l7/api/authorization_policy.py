# SPDX-License-Identifier: Apache-2.0
"""Parses AuthorizationPolicy objects as waypoints enforce them. Pure.

    rule = from (any source) AND to (any operation) AND when (all conditions)

An invalid policy is replaced as a whole by one that fails closed: with action ALLOW it allows
nothing, with any other action it denies everything that it is attached to. Unknown fields are
invalid, because ignoring a misspelled `principals` would widen a rule. `kube.objects.policies`
parses the same objects for nodes, which enforce the policies without targetRefs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.api.policy_terms import (
    HTTP_ONLY,
    Attribute,
    Term,
    is_template,
    parse_condition_key,
    parse_values,
)
from ztunnel.l7.api.target_refs import Target, parse_selector, parse_target_refs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity

KIND = "AuthorizationPolicy"
REMOTE_ADDRESS = "RemoteAddress"  # reason of a problem that only waypoints have
DRY_RUN = "istio.io/dry-run"
MAX_VALUES = 10_000  # of a policy: they cost Envoy about 0.4 ms per request if none matches
MAX_TEMPLATES = 2_000  # of a policy: about 0.2 ms
MAX_RULES = 512  # of a policy; the limit of Istio's CRD
MAX_REASON_CHARS = 1024

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})  # Go's strconv.ParseBool
_FALSE = frozenset({"", "0", "f", "F", "false", "FALSE", "False"})
_SOURCE = {
    "principals": Attribute.PRINCIPAL,
    "requestPrincipals": Attribute.REQUEST_PRINCIPAL,
    "namespaces": Attribute.NAMESPACE,
    "serviceAccounts": Attribute.ACCOUNT,
    "ipBlocks": Attribute.SOURCE_IP,
    "remoteIpBlocks": Attribute.REMOTE_IP,
}
_OPERATION = {
    "hosts": Attribute.HOST,
    "ports": Attribute.PORT,
    "methods": Attribute.METHOD,
    "paths": Attribute.PATH,
}

Clause = tuple[Term, ...]  # AND


class Action(StrEnum):
    """What a policy does with the requests that match."""

    ALLOW = "ALLOW"
    DENY = "DENY"
    AUDIT = "AUDIT"
    CUSTOM = "CUSTOM"


class Rule(msgspec.Struct, frozen=True):
    """A rule; no sources or operations means any. `unsupported`: conditions that Envoy lacks."""

    number: int
    sources: tuple[Clause, ...] = ()
    operations: tuple[Clause, ...] = ()
    conditions: Clause = ()
    unsupported: tuple[str, ...] = ()


class AuthorizationPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed policy. `refused`: why it is invalid and replaced.

    Without `targets`, ingress gateways and nodes enforce it for pods with the labels of `selector`,
    unless `everywhere` is set: its targets are invalid, so it
    applies to its whole namespace.
    """

    namespace: str
    name: str
    action: Action = Action.ALLOW
    targets: tuple[Target, ...] = ()
    everywhere: bool = False
    selector: dict[str, str] = {}
    rules: tuple[Rule, ...] = ()
    provider: str = ""
    dry_run: bool = False
    refused: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def key(self) -> str:
        """The name in messages."""
        return f"{KIND} {self.namespace}/{self.name}"


@dataclass
class _Context:
    namespace: str
    name: str
    problems: list[Problem] = field(default_factory=list)
    values: int = 0
    templates: int = 0

    def report(
        self, path: str, message: str, severity: Severity, reason: str = "UnsupportedValue"
    ) -> None:
        self.problems.append(
            Problem(
                kind=KIND,
                namespace=self.namespace,
                name=self.name,
                field=path,
                message=message,
                severity=severity,
                reason=reason,
            )
        )


def parse_authorization_policy(obj: L7Object, root_namespace: str) -> AuthorizationPolicy:
    """Parse an object. Never raises: an invalid policy is one that is `refused`."""
    context = _Context(obj.namespace, obj.name)
    dry_run = _dry_run(obj, context)
    spec = Fields(obj.spec, "spec.")
    targets: tuple[Target, ...] = ()
    selector: dict[str, str] = {}
    everywhere = False
    refused = ""
    try:
        targets = parse_target_refs(spec, obj.namespace, root_namespace)
    except TranslateError as error:
        everywhere, refused = True, str(error)
    try:
        selector = parse_selector(spec)
    except TranslateError as error:  # it selects all pods
        refused = refused or str(error)
    parsed = AuthorizationPolicy(
        namespace=obj.namespace,
        name=obj.name,
        targets=targets,
        everywhere=everywhere,
        selector=selector,
        dry_run=dry_run,
    )
    try:
        if not refused:
            parsed = _parse(spec, parsed, context)
    except TranslateError as error:
        refused = str(error)
    except Exception as error:  # a defect of the parser must not admit what the policy denies
        refused = f"{type(error).__name__}: {error}"
    if refused:
        parsed = _refuse(spec, parsed, context, refused[:MAX_REASON_CHARS])
    return msgspec.structs.replace(parsed, problems=tuple(context.problems))


def _refuse(
    spec: Fields, policy: AuthorizationPolicy, context: _Context, reason: str
) -> AuthorizationPolicy:
    try:
        action = Action(spec.string("action") or "ALLOW")
    except ValueError:
        action = Action.DENY
    effect = "allows nothing" if action is Action.ALLOW else "denies everything"
    if action is Action.AUDIT:
        effect = "audits nothing"
    if action is Action.CUSTOM:
        action = Action.DENY
    rules = (Rule(0),) if action is Action.DENY else ()
    problem = Problem(
        kind=KIND,
        namespace=policy.namespace,
        name=policy.name,
        message=f"invalid, {effect} instead: {reason}",
        severity=Severity.ERROR,
        reason="Invalid",
    )
    context.problems[:] = [problem]
    return msgspec.structs.replace(policy, action=action, rules=rules, refused=reason)


def _parse(spec: Fields, policy: AuthorizationPolicy, context: _Context) -> AuthorizationPolicy:
    spec.allow_only("selector", "targetRef", "targetRefs", "action", "provider", "rules")
    try:
        action = Action(spec.string("action") or "ALLOW")
    except ValueError:
        raise spec.error("action", "ALLOW, DENY, CUSTOM or AUDIT") from None
    provider = spec.mapping("provider")
    provider.allow_only("name")
    name = provider.string("name")
    if action is Action.CUSTOM and not name:
        raise provider.error("name", "the name of an extension provider")
    if action is not Action.CUSTOM and spec.has("provider"):
        raise spec.error("provider", "no provider without action CUSTOM")
    rules = list(spec.mappings("rules"))
    if len(rules) > MAX_RULES:
        raise TranslateError(f"spec.rules has {len(rules)}, want at most {MAX_RULES}")
    parsed = tuple(_rule(number, each, action, context) for number, each in enumerate(rules))
    if context.values > MAX_VALUES or context.templates > MAX_TEMPLATES:
        raise TranslateError(
            f"it has {context.values} values with {context.templates} path templates, "
            f"want at most {MAX_VALUES} and {MAX_TEMPLATES}"
        )
    return msgspec.structs.replace(policy, action=action, provider=name, rules=parsed)


def _rule(number: int, fields: Fields, action: Action, context: _Context) -> Rule:
    fields.allow_only("from", "to", "when")
    conditions: list[Term] = []
    unsupported: list[str] = []
    for each in fields.mappings("when"):
        term = _condition(each, context)
        if term is not None:
            conditions.append(term)
            continue
        unsupported.append(each.string("key"))
        effect = "the rule allows nothing" if action is Action.ALLOW else "the rule applies without"
        context.report(each.path("key"), f"not supported: {effect}", Severity.ERROR)
    return Rule(
        number,
        _alternatives(fields, "from", "source", _SOURCE, context),
        _alternatives(fields, "to", "operation", _OPERATION, context),
        tuple(conditions),
        tuple(unsupported),
    )


def _alternatives(
    fields: Fields, name: str, inner: str, known: Mapping[str, Attribute], context: _Context
) -> tuple[Clause, ...]:
    if not fields.has(name):
        return ()
    clauses = []
    for entry in fields.mappings(name):
        entry.allow_only(inner)
        clauses.append(_clause(entry.mapping(inner), known, context))
    if not clauses:
        raise fields.error(name, "at least one entry, or the field left out")
    return tuple(clauses)


def _clause(fields: Fields, known: Mapping[str, Attribute], context: _Context) -> Clause:
    fields.allow_only(*(each for name in known for each in (name, _negated(name))))
    terms = []
    for name, attribute in known.items():
        values = _values(fields, name, attribute, context)
        excluded = _values(fields, _negated(name), attribute, context)
        if values or excluded:
            terms.append(Term(attribute, values, excluded))
    if not terms:
        raise fields.invalid("is empty, want at least one field with a value")
    return tuple(terms)


def _condition(fields: Fields, context: _Context) -> Term | None:
    fields.allow_only("key", "values", "notValues")
    if not (fields.strings("values") or fields.strings("notValues")):
        raise fields.invalid("has neither values nor notValues")
    found = parse_condition_key(fields)
    if found is None:
        return None
    attribute, key = found
    values = _values(fields, "values", attribute, context)
    return Term(attribute, values, _values(fields, "notValues", attribute, context), key)


def _values(fields: Fields, name: str, attribute: Attribute, context: _Context) -> tuple[str, ...]:
    found = parse_values(fields, name, attribute, context.namespace)
    context.values += len(found)
    if found and attribute is Attribute.REMOTE_IP:
        context.report(
            fields.path(name),
            "waypoints compare it with the client's own address: they do not trust x-forwarded-for",
            Severity.WARNING,
            REMOTE_ADDRESS,
        )
    check = _CHECKS.get(attribute)
    for value in found if check else ():
        context.templates += attribute is Attribute.PATH and is_template(value)
        reason = check(value) if check else ""
        if reason:
            context.report(fields.path(name), f"{value!r:.80} {reason}", Severity.WARNING)
    return found


def _check_path(value: str) -> str:
    """Why a value of `paths` matches no request; empty if one may match."""
    if not value.startswith(("/", "*")):
        return "matches no request: paths begin with /"
    if "?" in value or "#" in value:
        return "matches no request: the query is not part of the path"
    if value.endswith("*") or value.startswith("*") or is_template(value):
        return ""
    if "/./" in value or "/../" in value or value.endswith(("/.", "/..")):
        return "matches no request: paths are normalized first"
    return ""


def _check_method(value: str) -> str:
    return "matches no request: methods are case-sensitive" if value != value.upper() else ""


_CHECKS: dict[Attribute, Callable[[str], str]] = {
    Attribute.PATH: _check_path,
    Attribute.METHOD: _check_method,
}


def http_fields(rule: Rule) -> frozenset[Attribute]:
    """Return the attributes of a rule that only HTTP requests have."""
    clauses = (*rule.sources, *rule.operations, rule.conditions)
    return frozenset(term.attribute for clause in clauses for term in clause) & HTTP_ONLY


def _dry_run(obj: L7Object, context: _Context) -> bool:
    text = obj.annotations.get(DRY_RUN, "")
    if text not in _TRUE and text not in _FALSE:
        context.report(
            f"metadata.annotations[{DRY_RUN}]",
            f"{text!r:.40} is neither true nor false: the policy is enforced",
            Severity.WARNING,
        )
    return text in _TRUE


def _negated(name: str) -> str:
    return f"not{name[0].upper()}{name[1:]}"
