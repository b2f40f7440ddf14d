# SPDX-License-Identifier: Apache-2.0
"""Which Ingresses our Gateways serve, by their IngressClasses. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ztunnel.kube.objects.fields import Object, TranslateError
from ztunnel.l7.kubernetes_ingress.spec import (
    Ingress,
    class_name,
    ingress_class,
    parse_ingress,
)


class ServedIngress(NamedTuple):
    """An Ingress, as read and parsed, and the Gateway that serves it, `namespace/name`."""

    obj: Object
    ingress: Ingress
    gateway: str


def served_ingresses(
    ingresses: Iterable[Object],
    classes: Iterable[Object],
    report: Callable[[Object, str], None],
) -> list[ServedIngress]:
    """Return the valid Ingresses of our classes; `report` receives why others are not served."""
    found = {each.name: each for each in map(ingress_class, classes) if each is not None}
    default = next((each for each in found.values() if each.is_default), None)
    served = []
    for obj in ingresses:
        name = class_name(obj)
        chosen = found.get(name) if name else default
        if chosen is None:
            continue
        try:
            ingress = parse_ingress(obj)
        except TranslateError as error:
            report(obj, str(error))
            continue
        if chosen.error:
            report(obj, f"IngressClass {chosen.name}: {chosen.error}")
            continue
        served.append(ServedIngress(obj, ingress, chosen.gateway))
    return served
