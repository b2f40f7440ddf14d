# SPDX-License-Identifier: Apache-2.0
"""Selects the VirtualService of a service.

A VirtualService of the service's namespace or of the waypoint's applies; the requests of a service
do not depend on the objects of other namespaces. The most specific host wins, then the oldest.
"""

from __future__ import annotations

from typing import NamedTuple

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.api.istio.values import complete_host, host_matches, is_exported
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.mesh.model import Service

KIND = "VirtualService"
MESH = "mesh"  # Istio's reserved name of all sidecars and waypoints


class Selected(NamedTuple):
    """The VirtualService that applies, and those of the same host that do not."""

    obj: L7Object
    shadowed: tuple[L7Object, ...]


def select(inputs: Inputs, gateway: str, service: Service) -> Selected | None:
    """Return the VirtualService for requests to a service; None if there is none."""
    own = gateway.partition("/")[0]
    found = [
        (not host.startswith("*"), len(host), obj)
        for namespace in dict.fromkeys((service.namespace, own))
        for obj in inputs.store.of_namespace(KIND, namespace)
        for host in _matching_hosts(obj, service, own, inputs.settings.cluster_domain)[:1]
    ]
    if not found:
        return None
    ranked = sorted(found, key=lambda one: (not one[0], -one[1], one[2].age_rank))
    best = ranked[0]
    shadowed = tuple(obj for *rank, obj in ranked[1:] if tuple(rank) == best[:2])
    return Selected(best[2], shadowed)


def is_for_mesh(fields: Fields) -> bool:
    """Whether `gateways` of a VirtualService or a match includes waypoints."""
    gateways = fields.strings("gateways")
    return not gateways or MESH in gateways


def _matching_hosts(obj: L7Object, service: Service, own: str, domain: str) -> list[str]:
    """The hosts that cover a service, the most specific first; all if the object is invalid."""
    spec = Fields(obj.spec, "spec.")
    try:
        if not is_for_mesh(spec):
            return []
        if not is_exported(tuple(spec.strings("exportTo")), obj.namespace, own):
            return []
        hosts = [complete_host(host, obj.namespace, domain) for host in spec.strings("hosts")]
    except TranslateError:
        return []  # it names no service for certain
    matching = [host for host in hosts if host_matches(host, service.hostname)]
    return sorted(matching, key=lambda host: (host.startswith("*"), -len(host)))
