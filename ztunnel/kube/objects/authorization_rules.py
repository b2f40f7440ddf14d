# SPDX-License-Identifier: Apache-2.0
"""Parses the rules of an AuthorizationPolicy. Pure.

    rule        = from (any source) AND to (any operation) AND when (all conditions)
    source      = all of its fields; each field: any of the values and none of the `not` values

Unknown and empty fields raise TranslateError. L7 fields are reported as warnings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ztunnel.kube.objects import policy_values
from ztunnel.kube.objects.fields import Fields
from ztunnel.mesh.policy.model import Action, Attribute, Clause, Group, MatchTerms, Rule

_SOURCE = {
    "principals": Attribute.PRINCIPAL,
    "namespaces": Attribute.NAMESPACE,
    "serviceAccounts": Attribute.ACCOUNT,
    "ipBlocks": Attribute.SOURCE_IP,
    "remoteIpBlocks": Attribute.SOURCE_IP,
}
_OPERATION = {"ports": Attribute.DESTINATION_PORT}
_CONDITIONS = {
    "source.principal": Attribute.PRINCIPAL,
    "source.namespace": Attribute.NAMESPACE,
    "source.serviceAccount": Attribute.ACCOUNT,
    "source.ip": Attribute.SOURCE_IP,
    "remote.ip": Attribute.SOURCE_IP,
    "destination.ip": Attribute.DESTINATION_IP,
    "destination.port": Attribute.DESTINATION_PORT,
}
_L7_SOURCE = frozenset({"requestPrincipals"})
_L7_OPERATION = frozenset({"hosts", "methods", "paths"})
_L7_CONDITIONS = ("request.", "connection.sni", "experimental.envoy.filters.")


@dataclass
class ParseContext:
    """State while a policy is parsed."""

    action: Action
    namespace: str
    warnings: list[str] = field(default_factory=list)


def parse_rule(number: int, fields: Fields, context: ParseContext) -> Rule:
    """Parse `rules[number]`; adds warnings to the context. Raises TranslateError."""
    fields.allow_only("from", "to", "when")
    before = len(context.warnings)
    groups: list[Group] = []
    if fields.has("from"):
        groups.append(_alternatives(fields, "from", "source", _source, context))
    if fields.has("to"):
        groups.append(_alternatives(fields, "to", "operation", _operation, context))
    groups += [(_condition(each, context),) for each in fields.mappings("when")]
    l7_warnings = context.warnings[before:]
    if l7_warnings and context.action is Action.ALLOW:
        return Rule(number, never_matches=l7_warnings[0])
    return Rule(number, tuple(groups))


def _alternatives(
    fields: Fields,
    name: str,
    inner: str,
    read: Callable[[Fields, ParseContext], Clause],
    context: ParseContext,
) -> Group:
    """The entries of `from` or `to`; at least one is required."""
    clauses = []
    for entry in fields.mappings(name):
        entry.allow_only(inner)
        clauses.append(read(entry.mapping(inner), context))
    if not clauses:
        raise fields.error(name, "at least one entry, or the field left out")
    return tuple(clauses)


def _source(fields: Fields, context: ParseContext) -> Clause:
    return _clause(fields, _SOURCE, _L7_SOURCE, context)


def _operation(fields: Fields, context: ParseContext) -> Clause:
    return _clause(fields, _OPERATION, _L7_OPERATION, context)


def _clause(
    fields: Fields, known: Mapping[str, Attribute], l7: frozenset[str], context: ParseContext
) -> Clause:
    fields.allow_only(*(each for name in (*known, *l7) for each in (name, _negated(name))))
    terms = []
    for name, attribute in known.items():
        values = _values(fields, name, attribute, context)
        excluded = _values(fields, _negated(name), attribute, context)
        if values or excluded:
            terms.append(MatchTerms(attribute, values, excluded))
    l7_fields = [
        each for name in sorted(l7) for each in (name, _negated(name)) if fields.strings(each)
    ]
    if not terms and not l7_fields:
        raise fields.invalid("is empty, want at least one field with a value")
    for name in l7_fields:
        _warn_about_l7(fields.path(name), context)
    return tuple(terms)


def _condition(fields: Fields, context: ParseContext) -> Clause:
    fields.allow_only("key", "values", "notValues")
    key = fields.string("key")
    if not (fields.strings("values") or fields.strings("notValues")):
        raise fields.invalid("has neither values nor notValues")
    if key.startswith(_L7_CONDITIONS):
        _warn_about_l7(f"{fields.path('key')} {key}", context)
        return ()
    attribute = _CONDITIONS.get(key)
    if attribute is None:
        raise fields.error("key", f"one of {', '.join(_CONDITIONS)}")
    values = _values(fields, "values", attribute, context)
    return (MatchTerms(attribute, values, _values(fields, "notValues", attribute, context)),)


def _warn_about_l7(what: str, context: ParseContext) -> None:
    is_allow = context.action is Action.ALLOW
    effect = "the rule allows nothing" if is_allow else "the rule denies without it"
    context.warnings.append(f"{what} matches HTTP requests, which nodes do not see: {effect}")


def _values(
    fields: Fields, name: str, attribute: Attribute, context: ParseContext
) -> tuple[str, ...]:
    return tuple(_normal(text, attribute, fields, name, context) for text in fields.strings(name))


def _normal(
    text: str, attribute: Attribute, fields: Fields, name: str, context: ParseContext
) -> str:
    if attribute is Attribute.DESTINATION_PORT:
        return policy_values.port(text, fields, name)
    if attribute in (Attribute.SOURCE_IP, Attribute.DESTINATION_IP):
        return policy_values.network(text, fields, name)
    if attribute is Attribute.ACCOUNT:
        return policy_values.account(text, fields, name, context.namespace)
    if attribute is Attribute.PRINCIPAL:
        text = text.removeprefix("spiffe://")
    stem = text[:-1] if text.endswith("*") else text.removeprefix("*")
    if not text or "*" in stem:
        raise fields.error(name, "strings with * only alone, at the beginning or at the end")
    return text


def _negated(name: str) -> str:
    return f"not{name[0].upper()}{name[1:]}"
