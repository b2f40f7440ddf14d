# SPDX-License-Identifier: Apache-2.0
"""The lab's Ingress controller: the routes and listeners that serve Ingresses. Pure.

`ztunnel.l7.kubernetes_ingress` decides what they are, as in a cluster. The lab writes no status.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from ztunnel.l7.kubernetes_ingress.selection import ServedIngress, served_ingresses
from ztunnel.l7.kubernetes_ingress.translation import INGRESS_LABEL, translate
from ztunnel.lab.objects import Key, Object, Objects, key_of, of_kind

_MADE_KINDS = ("HTTPRoute", "ListenerSet")


@dataclass
class IngressPlan:
    """The objects that must exist for Ingresses, those that must not, and problems."""

    objects: list[Object] = field(default_factory=list)
    stale: list[Key] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def plan_ingresses(objects: Objects) -> IngressPlan:
    """What Ingresses of our classes need. Objects of users with the same names stay."""
    plan = IngressPlan()
    served = served_ingresses(
        of_kind(objects, "Ingress"),
        of_kind(objects, "IngressClass"),
        lambda obj, text: plan.problems.append(f"{key_of(obj)}: {text}"),
    )
    by_gateway: dict[str, list[ServedIngress]] = defaultdict(list)
    for each in served:
        by_gateway[each.gateway].append(each)
    for gateway, members in sorted(by_gateway.items()):
        found = translate(
            [each.ingress for each in members],
            gateway,
            lambda namespace, service, port: _port_number(objects, namespace, service, port),
        )
        plan.problems += map(str, found.problems)
        for obj in found.objects:
            _add(plan, obj, objects)
    wanted = {key_of(obj) for obj in plan.objects}
    plan.stale = [
        key
        for key, obj in objects.items()
        if key.kind in _MADE_KINDS and _is_made(obj) and key not in wanted
    ]
    return plan


def _add(plan: IngressPlan, obj: Object, objects: Objects) -> None:
    existing = objects.get(key_of(obj))
    if existing is None or _is_made(existing):
        plan.objects.append(obj)
    else:
        plan.problems.append(f"{key_of(obj)} exists and is not of an Ingress; hint: rename it")


def _is_made(obj: Object) -> bool:
    return INGRESS_LABEL in (obj["metadata"].get("labels") or {})


def _port_number(objects: Objects, namespace: str, service: str, port: str) -> int | None:
    found = objects.get(Key("Service", namespace, service), {})
    for each in found.get("spec", {}).get("ports") or []:
        if each.get("name") == port:
            return int(each["port"])
    return None
