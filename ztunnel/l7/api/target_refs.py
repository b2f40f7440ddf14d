# SPDX-License-Identifier: Apache-2.0
"""Parses `targetRefs` of Istio's policies: what a policy is attached to. Pure."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.objects import UNREADABLE

MAX_TARGETS = 16  # targetRefs; the limit of Istio's CRD


class TargetKind(StrEnum):
    """The kinds that waypoints enforce policies for."""

    SERVICE = "Service"
    SERVICE_ENTRY = "ServiceEntry"
    GATEWAY = "Gateway"
    GATEWAY_CLASS = "GatewayClass"


_GROUPS = {
    TargetKind.SERVICE: ("", "core"),
    TargetKind.SERVICE_ENTRY: ("networking.istio.io",),
    TargetKind.GATEWAY: ("gateway.networking.k8s.io",),
    TargetKind.GATEWAY_CLASS: ("gateway.networking.k8s.io",),
}


class Target(msgspec.Struct, frozen=True):
    """One reference; the namespace is that of the policy, or none for a GatewayClass."""

    kind: TargetKind
    name: str


def parse_target_refs(spec: Fields, namespace: str, root_namespace: str) -> tuple[Target, ...]:
    """Return the targets; empty if the policy has no targetRefs. Raises TranslateError."""
    if spec.has(UNREADABLE):
        raise TranslateError("spec is not an object")
    references = list(spec.mappings("targetRefs"))
    if spec.has("targetRef"):
        references.append(spec.mapping("targetRef"))
    if references and spec.has("selector"):
        raise spec.error("selector", "no selector together with targetRefs")
    if len(references) > MAX_TARGETS:
        raise TranslateError(f"spec.targetRefs has {len(references)}, want at most {MAX_TARGETS}")
    targets = (_target(each, namespace, root_namespace) for each in references)
    return tuple(dict.fromkeys(targets))


def parse_selector(spec: Fields) -> dict[str, str]:
    """Return the labels of the pods that a policy without targets selects; empty for all.

    Raises TranslateError.
    """
    selector = spec.mapping("selector")
    selector.allow_only("matchLabels")
    return selector.labels("matchLabels")


def _target(fields: Fields, namespace: str, root_namespace: str) -> Target:
    fields.allow_only("group", "kind", "name", "namespace")
    try:
        kind = TargetKind(fields.string("kind"))
    except ValueError:
        raise fields.error("kind", "Service, ServiceEntry, Gateway or GatewayClass") from None
    if fields.string("group") not in _GROUPS[kind]:
        raise fields.error("group", f"{_GROUPS[kind][-1]} for kind {kind}")
    name = fields.string("name")
    if not name:
        raise fields.error("name", "a name")
    if fields.string("namespace") not in ("", namespace):
        raise fields.error("namespace", f"the policy's namespace, {namespace}")
    if kind is TargetKind.GATEWAY_CLASS and namespace != root_namespace:
        raise fields.error("kind", f"no GatewayClass outside of namespace {root_namespace}")
    return Target(kind, name)
