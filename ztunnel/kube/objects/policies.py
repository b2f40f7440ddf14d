# SPDX-License-Identifier: Apache-2.0
"""AuthorizationPolicy and PeerAuthentication objects in the mesh's normal form: pure, never fails.

What can't be understood is refused as a whole, with the reason, and replaced by what is safe:

    an AuthorizationPolicy that says ALLOW    matches nothing, and so allows nothing
    any other, or no telling                  denies all
    a PeerAuthentication                      STRICT
    a selector that can't be understood       takes the whole namespace (the root's: the mesh)

So is a field that nobody knows: `principal` for `principals` would leave out what was meant to
narrow. What is about requests (L7) can't be seen by a node: an ALLOW rule with it matches nothing,
a DENY is enforced on the rest, with a warning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Network, ip_network

import msgspec

from ztunnel.kube.objects.fields import Fields, Object, TranslateError, key_of
from ztunnel.mesh.policy.model import (
    Action,
    Attribute,
    AuthorizationPolicy,
    Clause,
    Group,
    Level,
    MatchTerms,
    MtlsMode,
    PeerAuthentication,
    Rule,
    Selection,
)

DRY_RUN = "istio.io/dry-run"
LARGEST = 192 * 1024  # bytes of one policy as it travels to the proxy: it goes in one message
MOST_TARGETS = 16  # targetRefs, as in Istio's CRD

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})  # Go's strconv.ParseBool
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_NETWORK = re.compile(r"[0-9A-Fa-f:.]+(/[0-9]{1,3})?")

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
_AUDIT = "AUDIT asks for records, which are not made: it has no effect"
_FOR_WAYPOINTS = frozenset({"Gateway", "GatewayClass", "ServiceEntry"})


@dataclass(frozen=True, slots=True)
class ParsedPolicy:
    """An AuthorizationPolicy as it was read. `targets` are the services (`namespace/name`) that it
    is for, to be replaced by what they select."""

    policy: AuthorizationPolicy
    targets: tuple[str, ...] = ()


@dataclass
class _Notes:
    """What comes up while a policy is read."""

    action: Action
    namespace: str
    warnings: list[str] = field(default_factory=list)


def read_authorization_policy(obj: Object, root_namespace: str) -> ParsedPolicy:
    """Read one. Raises TranslateError only when it has no name."""
    key = key_of(obj)
    whole = Fields(obj, "")
    place = "" if key.namespace == root_namespace else key.namespace
    dry_run, complaint = _dry_run(whole)
    empty = AuthorizationPolicy(namespace=key.namespace, name=key.name, dry_run=dry_run)
    try:
        written = _authorization_policy(whole, empty, place)
        policy = written.policy
        size = len(msgspec.msgpack.encode(policy))
        if size > LARGEST:
            raise TranslateError(f"it takes {size} bytes, at most {LARGEST} can be distributed")
        warnings = (*policy.warnings, *((complaint,) if complaint else ()))
        return ParsedPolicy(msgspec.structs.replace(policy, warnings=warnings), written.targets)
    except TranslateError as error:
        return _refused(whole, empty, place, str(error))


def read_peer_authentication(obj: Object, root_namespace: str) -> PeerAuthentication:
    """Read one. Raises TranslateError only when it has no name."""
    key = key_of(obj)
    whole = Fields(obj, "")
    place = "" if key.namespace == root_namespace else key.namespace
    created = _created(obj)
    try:
        return _peer_authentication(whole, key.namespace, key.name, place, created)
    except TranslateError as error:
        level, selection = _peer_scope(whole, place)
        return PeerAuthentication(
            namespace=key.namespace,
            name=key.name,
            level=level,
            selection=selection,
            mode=MtlsMode.STRICT,
            created=created,
            refused=str(error),
        )


def _refused(whole: Fields, empty: AuthorizationPolicy, place: str, reason: str) -> ParsedPolicy:
    """The safe thing instead of a policy that can't be understood."""
    action, ignored = _refused_action(whole)
    selections: tuple[Selection, ...] = (Selection(place),)
    targets: tuple[str, ...] = ()
    try:
        found, targets, waypoints = _scope(whole.mapping("spec"), empty.namespace, place)
        selections = found
        ignored = ignored or ("" if found or targets else waypoints)
    except TranslateError:
        pass  # the whole namespace, then
    policy = msgspec.structs.replace(
        empty,
        action=action,
        selections=selections,
        rules=(Rule(0),) if action is Action.DENY else (),
        ignored=ignored,
        refused=reason,
    )
    return ParsedPolicy(policy, targets)


def _refused_action(whole: Fields) -> tuple[Action, str]:
    """What a refused policy does, and why nothing, if it would have done nothing anyway."""
    try:
        written = whole.mapping("spec").text("action")
    except TranslateError:
        return Action.DENY, ""
    if written == "AUDIT":
        return Action.DENY, _AUDIT
    return (Action.ALLOW if written in ("", "ALLOW") else Action.DENY), ""


def _authorization_policy(whole: Fields, empty: AuthorizationPolicy, place: str) -> ParsedPolicy:
    spec = whole.mapping("spec")
    spec.only("selector", "targetRef", "targetRefs", "action", "provider", "rules")
    selections, targets, waypoints = _scope(spec, empty.namespace, place)
    written = spec.text("action") or "ALLOW"
    if written not in ("ALLOW", "DENY", "AUDIT", "CUSTOM"):
        raise spec.error("action", "ALLOW, DENY, CUSTOM or AUDIT")
    notes = _Notes(Action.ALLOW if written == "ALLOW" else Action.DENY, empty.namespace)
    ignored = waypoints if not targets and not selections else ""
    if written == "AUDIT":
        ignored = _AUDIT
    if written == "CUSTOM":
        notes.warnings.append("CUSTOM: no external authorizer is asked; what it matches is denied")
    rules = tuple(_rule(n, rule, notes) for n, rule in enumerate(spec.mappings("rules")))
    if waypoints and not ignored:
        notes.warnings.append(waypoints)
    policy = msgspec.structs.replace(
        empty,
        action=notes.action,
        selections=selections,
        rules=rules,
        ignored=ignored,
        warnings=tuple(notes.warnings),
    )
    return ParsedPolicy(policy, targets)


def _scope(
    spec: Fields, namespace: str, place: str
) -> tuple[tuple[Selection, ...], tuple[str, ...], str]:
    """Selections, target services, and what is to be said of targets that are for waypoints."""
    references = list(spec.mappings("targetRefs"))
    if spec.has("targetRef"):
        references.append(spec.mapping("targetRef"))
    if not references:
        return (Selection(place, _selector(spec)),), (), ""
    if spec.has("selector"):
        raise spec.error("selector", "none beside targetRefs")
    if len(references) > MOST_TARGETS:
        raise TranslateError(f"spec.targetRefs has {len(references)}, want at most {MOST_TARGETS}")
    targets, others = [], []
    for reference in references:
        reference.only("group", "kind", "name", "namespace", "sectionName", "port")
        kind, name = reference.text("kind"), reference.text("name")
        if not name:
            raise reference.error("name", "a name")
        if reference.text("namespace") not in ("", namespace):
            raise reference.error("namespace", f"that of the policy, {namespace}")
        if kind == "Service" and reference.text("group") in ("", "core"):
            targets.append(f"{namespace}/{name}")
        elif kind in _FOR_WAYPOINTS:
            others.append(f"{kind} {name}")
        else:
            raise reference.error("kind", "Service, Gateway, GatewayClass or ServiceEntry")
    said = f"for {', '.join(others)}: enforced by waypoints, not by nodes" if others else ""
    return (), tuple(dict.fromkeys(targets)), said


def _selector(spec: Fields) -> dict[str, str]:
    selector = spec.mapping("selector")
    selector.only("matchLabels")
    labels = selector.labels("matchLabels")
    if any("*" in text or not key for key, value in labels.items() for text in (key, value)):
        raise selector.error("matchLabels", "labels without wildcards")
    return labels


# Rules


def _rule(number: int, fields: Fields, notes: _Notes) -> Rule:
    fields.only("from", "to", "when")
    before = len(notes.warnings)
    groups: list[Group] = []
    if fields.has("from"):
        groups.append(_alternatives(fields, "from", "source", _source, notes))
    if fields.has("to"):
        groups.append(_alternatives(fields, "to", "operation", _operation, notes))
    groups += [(_condition(each, notes),) for each in fields.mappings("when")]
    of_requests = notes.warnings[before:]
    if of_requests and notes.action is Action.ALLOW:
        return Rule(number, never_matches=of_requests[0])
    return Rule(number, tuple(groups))


def _alternatives(
    fields: Fields,
    name: str,
    inner: str,
    read: Callable[[Fields, _Notes], Clause],
    notes: _Notes,
) -> Group:
    """The entries of `from` or `to`, of which there must be one."""
    clauses = []
    for entry in fields.mappings(name):
        entry.only(inner)
        clauses.append(read(entry.mapping(inner), notes))
    if not clauses:
        raise fields.error(name, "at least one entry, or no such field")
    return tuple(clauses)


def _source(fields: Fields, notes: _Notes) -> Clause:
    return _clause(fields, _SOURCE, _L7_SOURCE, notes)


def _operation(fields: Fields, notes: _Notes) -> Clause:
    return _clause(fields, _OPERATION, _L7_OPERATION, notes)


def _clause(
    fields: Fields, known: Mapping[str, Attribute], of_requests: frozenset[str], notes: _Notes
) -> Clause:
    fields.only(*(each for name in (*known, *of_requests) for each in (name, _negated(name))))
    terms = []
    for name, attribute in known.items():
        values = _values(fields, name, attribute, notes)
        excluded = _values(fields, _negated(name), attribute, notes)
        if values or excluded:
            terms.append(MatchTerms(attribute, values, excluded))
    seven = [
        each
        for name in sorted(of_requests)
        for each in (name, _negated(name))
        if fields.texts(each)
    ]
    if not terms and not seven:
        raise fields.complaint("is empty, want at least one field with a value")
    for name in seven:
        _warn_of_request(fields.path(name), notes)
    return tuple(terms)


def _condition(fields: Fields, notes: _Notes) -> Clause:
    fields.only("key", "values", "notValues")
    key = fields.text("key")
    if not (fields.texts("values") or fields.texts("notValues")):
        raise fields.complaint("has neither values nor notValues")
    if key.startswith(_L7_CONDITIONS):
        _warn_of_request(f"{fields.path('key')} {key}", notes)
        return ()
    attribute = _CONDITIONS.get(key)
    if attribute is None:
        raise fields.error("key", f"one of {', '.join(_CONDITIONS)}")
    values = _values(fields, "values", attribute, notes)
    return (MatchTerms(attribute, values, _values(fields, "notValues", attribute, notes)),)


def _warn_of_request(what: str, notes: _Notes) -> None:
    effect = (
        "the rule allows nothing" if notes.action is Action.ALLOW else "denied without regard to it"
    )
    notes.warnings.append(f"{what} is about requests, which a node does not see: {effect}")


def _values(fields: Fields, name: str, attribute: Attribute, notes: _Notes) -> tuple[str, ...]:
    return tuple(_normal(text, attribute, fields, name, notes) for text in fields.texts(name))


def _normal(text: str, attribute: Attribute, fields: Fields, name: str, notes: _Notes) -> str:
    if attribute is Attribute.DESTINATION_PORT:
        return _port(text, fields, name)
    if attribute in (Attribute.SOURCE_IP, Attribute.DESTINATION_IP):
        return _network(text, fields, name)
    if attribute is Attribute.ACCOUNT:
        return _account(text, fields, name, notes.namespace)
    if attribute is Attribute.PRINCIPAL:
        text = text.removeprefix("spiffe://")
    stem = text[:-1] if text.endswith("*") else text.removeprefix("*")
    if not text or "*" in stem:
        raise fields.error(name, "texts, with * only alone, at the beginning or at the end")
    return text


def _port(text: str, fields: Fields, name: str) -> str:
    if not (text.isascii() and text.isdigit() and len(text) < 6 and 0 < int(text) < 65536):
        raise fields.error(name, "port numbers as texts")
    return str(int(text))


def _account(text: str, fields: Fields, name: str, namespace: str) -> str:
    parts = text.split("/")
    if "*" in text or len(parts) > 2 or not all(parts):
        raise fields.error(name, "service accounts, `name` or `namespace/name`, no wildcards")
    return text if len(parts) == 2 else f"{namespace}/{text}"


def _network(text: str, fields: Fields, name: str) -> str:
    """Canonical, with host bits cleared; a v4-mapped one as the IPv4 it stands for."""
    try:
        if not _NETWORK.fullmatch(text):
            raise ValueError(text)
        network = ip_network(text, strict=False)
    except ValueError as error:
        raise fields.error(name, "addresses or networks as 10.0.0.0/8") from error
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return f"{mapped}/{network.prefixlen - 96}"
    return str(network)


def _negated(name: str) -> str:
    return f"not{name[0].upper()}{name[1:]}"


def _dry_run(whole: Fields) -> tuple[bool, str]:
    """Whether it only shows what it would do, and what is wrong with the annotation."""
    try:
        text = whole.mapping("metadata").labels("annotations").get(DRY_RUN, "")
    except TranslateError as error:
        return False, str(error)
    if text in _TRUE:
        return True, ""
    if text in _FALSE or not text:
        return False, ""
    return False, f"annotation {DRY_RUN} is {text!r:.40}, want true or false: it is enforced"


# PeerAuthentication


def _peer_authentication(
    whole: Fields, namespace: str, name: str, place: str, created: str
) -> PeerAuthentication:
    spec = whole.mapping("spec")
    spec.only("selector", "mtls", "portLevelMtls")
    level, selection = _peer_level(place, _selector(spec))
    ports = {number: _mode(mode) for number, mode in spec.numbered("portLevelMtls").items()}
    if ports and level is not Level.WORKLOAD:
        raise spec.error("portLevelMtls", "a selector beside it")
    mode = _mode(spec.mapping("mtls"))
    disabled = MtlsMode.DISABLE in (mode, *ports.values())
    warning = "DISABLE: plaintext is let in, as with PERMISSIVE; mTLS still is too"
    return PeerAuthentication(
        namespace=namespace,
        name=name,
        level=level,
        selection=selection,
        mode=mode,
        ports=ports,
        created=created,
        warnings=(warning,) if disabled else (),
    )


def _peer_scope(whole: Fields, place: str) -> tuple[Level, Selection]:
    """Of a refused one: as narrow as can be told, and before any other when it can't."""
    try:
        return _peer_level(place, _selector(whole.mapping("spec")))
    except TranslateError:
        return Level.WORKLOAD, Selection(place)


def _peer_level(place: str, labels: dict[str, str]) -> tuple[Level, Selection]:
    if labels:
        return Level.WORKLOAD, Selection(place, labels)
    return (Level.NAMESPACE if place else Level.MESH), Selection(place)


def _mode(fields: Fields) -> MtlsMode:
    fields.only("mode")
    try:
        return MtlsMode(fields.text("mode") or "UNSET")
    except ValueError:
        raise fields.error("mode", "STRICT, PERMISSIVE, DISABLE or UNSET") from None


def _created(obj: Object) -> str:
    """metadata.creationTimestamp as RFC 3339: YAML may have made a time of it."""
    metadata = obj.get("metadata")
    value = metadata.get("creationTimestamp") if isinstance(metadata, dict) else None
    if isinstance(value, str) or value is None:
        return value or ""
    written = getattr(value, "strftime", None)
    return str(written("%Y-%m-%dT%H:%M:%SZ")) if written else ""
