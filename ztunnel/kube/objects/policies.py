# SPDX-License-Identifier: Apache-2.0
"""Parses AuthorizationPolicy and PeerAuthentication objects into the mesh's model. Pure.

An invalid policy is rejected as a whole, with the reason, and replaced by a safe one (fail closed):

    AuthorizationPolicy with action ALLOW     matches nothing, so it allows nothing
    any other or unknown action               denies everything that it selects
    PeerAuthentication                        STRICT
    invalid selector                          selects the whole namespace (root namespace: the mesh)

Unknown fields are invalid: ignoring the misspelled `principal` would widen a rule. Nodes cannot
see HTTP requests (L7): an ALLOW rule with L7 fields matches nothing; a DENY rule is enforced
without them, with a warning.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import structlog

from ztunnel.kube.objects.authorization_rules import ParseContext, parse_rule
from ztunnel.kube.objects.fields import Fields, Object, TranslateError, key_of
from ztunnel.kube.objects.waypoints import REQUIRE_WAYPOINT
from ztunnel.mesh.model import Workload
from ztunnel.mesh.policy.model import (
    Action,
    Attribute,
    AuthorizationPolicy,
    Level,
    MatchTerms,
    MtlsMode,
    PeerAuthentication,
    Policy,
    Rule,
    Selection,
)

DRY_RUN = "istio.io/dry-run"
MAX_POLICY_BYTES = 192 * 1024  # as encoded for the proxy: a policy is sent in one message
MAX_REASON_CHARS = 1024  # of why a policy is rejected
MAX_TARGETS = 16  # targetRefs; the limit of Istio's CRD

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})  # Go's strconv.ParseBool
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_AUDIT = "AUDIT has no effect: nodes do not write audit records"
_WAYPOINT_KINDS = frozenset({"Gateway", "GatewayClass", "ServiceEntry"})

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class ParsedPolicy:
    """`targets`: the services (`namespace/name`) of its targetRefs. The caller replaces them by
    selections of the pods behind the services."""

    policy: AuthorizationPolicy
    targets: tuple[str, ...] = ()


def read_authorization_policy(obj: Object, root_namespace: str) -> ParsedPolicy:
    """Raises TranslateError only if the object has no name."""
    key = key_of(obj)
    fields = Fields(obj, "")
    scope = "" if key.namespace == root_namespace else key.namespace
    dry_run, warning = _dry_run(fields)
    empty = AuthorizationPolicy(namespace=key.namespace, name=key.name, dry_run=dry_run)
    try:
        parsed = _authorization_policy(fields, empty, scope)
        policy = parsed.policy
        _check_size(policy)
        warnings = (*policy.warnings, *((warning,) if warning else ()))
        return ParsedPolicy(msgspec.structs.replace(policy, warnings=warnings), parsed.targets)
    except TranslateError as error:
        return _fallback(fields, empty, scope, str(error))
    except Exception as error:  # a defect of the parser must not admit what the policy denies
        log.exception("policy parser failed", policy=str(key))
        return _fallback(fields, empty, scope, f"{type(error).__name__}: {error}")


def read_peer_authentication(obj: Object, root_namespace: str) -> PeerAuthentication:
    """Raises TranslateError only if the object has no name."""
    key = key_of(obj)
    fields = Fields(obj, "")
    scope = "" if key.namespace == root_namespace else key.namespace
    created = _created(obj)
    try:
        policy = _peer_authentication(fields, key.namespace, key.name, scope, created)
        _check_size(policy)
        return policy
    except TranslateError as error:
        reason = str(error)
    except Exception as error:  # a defect of the parser must not admit plaintext
        log.exception("policy parser failed", policy=str(key))
        reason = f"{type(error).__name__}: {error}"
    level, selection = _fallback_level(fields, scope)
    return PeerAuthentication(
        namespace=key.namespace,
        name=key.name,
        level=level,
        selection=selection,
        mode=MtlsMode.STRICT,
        created=created,
        refused=reason[:MAX_REASON_CHARS],
    )


def _fallback(fields: Fields, empty: AuthorizationPolicy, scope: str, reason: str) -> ParsedPolicy:
    """The policy that is enforced instead of an invalid one."""
    action, ignored = _fallback_action(fields)
    selections: tuple[Selection, ...] = (Selection(scope),)
    targets: tuple[str, ...] = ()
    try:
        found, resolved, waypoints = _selections(fields.mapping("spec"), empty.namespace, scope)
        _check_size(*found)
        selections, targets = found, resolved
        ignored = ignored or ("" if found or targets else waypoints)
    except ValueError:
        pass  # select the whole namespace
    policy = msgspec.structs.replace(
        empty,
        action=action,
        selections=selections,
        rules=(Rule(0),) if action is Action.DENY else (),
        ignored=ignored[:MAX_REASON_CHARS],
        refused=reason[:MAX_REASON_CHARS],
    )
    return ParsedPolicy(policy, targets)


def replace_oversized(policy: Policy) -> Policy:
    """The policy, or its fallback for the whole namespace if it is too large for a message.

    With targetRefs, the size is known only after the selections of the services are resolved.
    """
    try:
        _check_size(policy)
    except TranslateError as error:
        log.warning("policy too large", policy=policy.key, error=str(error))
        everything = Selection(policy.namespace)
        if isinstance(policy, PeerAuthentication):
            return PeerAuthentication(
                namespace=policy.namespace,
                name=policy.name,
                level=Level.WORKLOAD,
                selection=everything,
                mode=MtlsMode.STRICT,
                created=policy.created,
                refused=str(error),
            )
        return AuthorizationPolicy(
            namespace=policy.namespace,
            name=policy.name,
            action=policy.action,
            selections=(everything,),
            rules=(Rule(0),) if policy.action is Action.DENY else (),
            dry_run=policy.dry_run,
            ignored=policy.ignored[:MAX_REASON_CHARS],
            refused=str(error),
        )
    return policy


def deny_workload(namespace: str, pod: str, uid: str, reason: str) -> AuthorizationPolicy:
    """Denies all connections to one pod. Its name is one that no policy object can have."""
    return AuthorizationPolicy(
        namespace=namespace,
        name=f"pod:{pod}",
        action=Action.DENY,
        selections=(Selection(uid=uid),),
        rules=(Rule(0),),
        refused=reason,
    )


def require_waypoint(
    workload: Workload, gateways: tuple[str, ...], identities: tuple[str, ...]
) -> AuthorizationPolicy:
    """Denies all connections to one pod but those of its waypoints' identities.

    Its name is one that no policy object can have.
    """
    principals = tuple(identity.removeprefix("spiffe://") for identity in identities)
    terms = MatchTerms(Attribute.PRINCIPAL, excluded=principals)
    who = (
        f"waypoint {', '.join(gateways)} may connect"
        if gateways
        else "its waypoint may connect, and it has none"
    )
    return AuthorizationPolicy(
        namespace=workload.namespace,
        name=f"require-waypoint:{workload.name}",
        action=Action.DENY,
        selections=(Selection(uid=workload.uid),),
        rules=(Rule(0, (((terms,),),) if principals else ()),),
        warnings=(f"{REQUIRE_WAYPOINT}: only {who}",),
    )


def _check_size(*parts: Policy | Selection) -> None:
    """Raises TranslateError if they are too large for a message to the proxy."""
    size = sum(len(msgspec.msgpack.encode(part)) for part in parts)
    if size > MAX_POLICY_BYTES:
        raise TranslateError(f"its size is {size} bytes, want at most {MAX_POLICY_BYTES}")


def _fallback_action(fields: Fields) -> tuple[Action, str]:
    """The action of the fallback, and why it is ignored if a valid policy would be as well."""
    try:
        action = fields.mapping("spec").string("action")
    except TranslateError:
        return Action.DENY, ""
    if action == "AUDIT":
        return Action.DENY, _AUDIT
    return (Action.ALLOW if action in ("", "ALLOW") else Action.DENY), ""


def _authorization_policy(fields: Fields, empty: AuthorizationPolicy, scope: str) -> ParsedPolicy:
    spec = fields.mapping("spec")
    spec.allow_only("selector", "targetRef", "targetRefs", "action", "provider", "rules")
    selections, targets, waypoints = _selections(spec, empty.namespace, scope)
    action = spec.string("action") or "ALLOW"
    if action not in ("ALLOW", "DENY", "AUDIT", "CUSTOM"):
        raise spec.error("action", "ALLOW, DENY, CUSTOM or AUDIT")
    context = ParseContext(Action.ALLOW if action == "ALLOW" else Action.DENY, empty.namespace)
    ignored = waypoints if not targets and not selections else ""
    at_waypoint = bool(ignored)
    if action == "AUDIT":
        ignored = _AUDIT
    if action == "CUSTOM":
        context.warnings.append(
            "CUSTOM: external authorization is not supported; matching connections are denied"
        )
    rules = tuple(parse_rule(n, rule, context) for n, rule in enumerate(spec.mappings("rules")))
    if waypoints and not ignored:
        context.warnings.append(waypoints)
    policy = msgspec.structs.replace(
        empty,
        action=context.action,
        selections=selections,
        rules=rules,
        ignored=ignored,
        at_waypoint=at_waypoint,
        warnings=tuple(context.warnings),
    )
    return ParsedPolicy(policy, targets)


def _selections(
    spec: Fields, namespace: str, scope: str
) -> tuple[tuple[Selection, ...], tuple[str, ...], str]:
    """Selections, target services, and a warning about targets that waypoints enforce."""
    references = list(spec.mappings("targetRefs"))
    if spec.has("targetRef"):
        references.append(spec.mapping("targetRef"))
    if not references:
        return (Selection(scope, _selector(spec)),), (), ""
    if spec.has("selector"):
        raise spec.error("selector", "no selector together with targetRefs")
    if len(references) > MAX_TARGETS:
        raise TranslateError(f"spec.targetRefs has {len(references)}, want at most {MAX_TARGETS}")
    targets, others = [], []
    for reference in references:
        reference.allow_only("group", "kind", "name", "namespace", "sectionName", "port")
        kind, name = reference.string("kind"), reference.string("name")
        if not name:
            raise reference.error("name", "a name")
        if reference.string("namespace") not in ("", namespace):
            raise reference.error("namespace", f"the policy's namespace, {namespace}")
        if kind == "Service" and reference.string("group") in ("", "core"):
            targets.append(f"{namespace}/{name}")
        elif kind in _WAYPOINT_KINDS:
            others.append(f"{kind} {name}")
        else:
            raise reference.error("kind", "Service, Gateway, GatewayClass or ServiceEntry")
    warning = f"for {', '.join(others)}: enforced by waypoints, not by nodes" if others else ""
    return (), tuple(dict.fromkeys(targets)), warning


def _selector(spec: Fields) -> dict[str, str]:
    selector = spec.mapping("selector")
    selector.allow_only("matchLabels")
    labels = selector.labels("matchLabels")
    if any("*" in text or not key for key, value in labels.items() for text in (key, value)):
        raise selector.error("matchLabels", "labels without wildcards")
    return labels


def _dry_run(fields: Fields) -> tuple[bool, str]:
    """Whether the policy is only logged, not enforced; and a warning about the annotation."""
    try:
        text = fields.mapping("metadata").labels("annotations").get(DRY_RUN, "")
    except TranslateError as error:
        return False, str(error)
    if text in _TRUE:
        return True, ""
    if text in _FALSE or not text:
        return False, ""
    return (
        False,
        f"annotation {DRY_RUN} is {text!r:.40}, want true or false; enforced",
    )


# PeerAuthentication


def _peer_authentication(
    fields: Fields, namespace: str, name: str, scope: str, created: str
) -> PeerAuthentication:
    spec = fields.mapping("spec")
    spec.allow_only("selector", "mtls", "portLevelMtls")
    level, selection = _level(scope, _selector(spec))
    ports = {number: _mode(mode) for number, mode in spec.mappings_by_port("portLevelMtls").items()}
    if ports and level is not Level.WORKLOAD:
        raise spec.error("portLevelMtls", "a selector together with it")
    mode = _mode(spec.mapping("mtls"))
    disabled = MtlsMode.DISABLE in (mode, *ports.values())
    warning = "DISABLE: handled as PERMISSIVE; plaintext and mTLS are both accepted"
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


def _fallback_level(fields: Fields, scope: str) -> tuple[Level, Selection]:
    """Of an invalid policy: its own selector if that is valid, else the highest precedence."""
    try:
        level, selection = _level(scope, _selector(fields.mapping("spec")))
        _check_size(selection)
        return level, selection
    except ValueError:
        return Level.WORKLOAD, Selection(scope)


def _level(scope: str, labels: dict[str, str]) -> tuple[Level, Selection]:
    if labels:
        return Level.WORKLOAD, Selection(scope, labels)
    return (Level.NAMESPACE if scope else Level.MESH), Selection(scope)


def _mode(fields: Fields) -> MtlsMode:
    fields.allow_only("mode")
    try:
        return MtlsMode(fields.string("mode") or "UNSET")
    except ValueError:
        raise fields.error("mode", "STRICT, PERMISSIVE, DISABLE or UNSET") from None


def _created(obj: Object) -> str:
    """metadata.creationTimestamp as RFC 3339; a YAML loader may return a datetime."""
    metadata = obj.get("metadata")
    value = metadata.get("creationTimestamp") if isinstance(metadata, dict) else None
    if isinstance(value, str) or value is None:
        return value or ""
    strftime = getattr(value, "strftime", None)
    return str(strftime("%Y-%m-%dT%H:%M:%SZ")) if strftime else ""
