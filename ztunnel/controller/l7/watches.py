# SPDX-License-Identifier: Apache-2.0
"""What the L7 half of the controller watches: L7 objects, services, and what runs Gateways.

deploy/controller-rbac.yaml grants exactly these; tests/apiserver/test_rbac.py compares them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ztunnel.controller.l7.object_client import Ref, collection_path
from ztunnel.kube.client.informer import Informer
from ztunnel.kube.client.reflector import Reflector, Resource
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.deployment.settings import GATEWAY_LABEL, MANAGED_BY, MANAGED_LABEL
from ztunnel.l7.objects import L7_KINDS

WORKLOADS = ("Deployment", "DaemonSet")  # that run the pods of a Gateway
OWNED_KINDS = (
    "ServiceAccount",
    *WORKLOADS,
    "HorizontalPodAutoscaler",
    "PodDisruptionBudget",
)
INGRESS_KINDS = ("Ingress", "IngressClass")
POD = "Pod"
_MANAGED = f"{MANAGED_LABEL}={MANAGED_BY}"
# PolicyWatch has AuthorizationPolicy; the others have no effect, which `ztctl analyze` reports
_NOT_WATCHED = frozenset({"AuthorizationPolicy", "EnvoyFilter", "WasmPlugin"})


def l7_resources() -> list[Resource]:
    """The resources, besides namespaces."""
    return [
        *(
            Resource(kind, collection_path(kind), optional=True)
            for kind in (*L7_KINDS, "ServiceEntry")
            if kind not in _NOT_WATCHED
        ),
        Resource("Service", collection_path("Service")),
        *(Resource(kind, collection_path(kind)) for kind in INGRESS_KINDS),
        Resource(POD, collection_path(POD), label_selector=GATEWAY_LABEL),
        *(Resource(kind, collection_path(kind), label_selector=_MANAGED) for kind in OWNED_KINDS),
    ]


class Watches:
    """Caches all of them. `on_change(object)` is called in the reflectors' threads.

    A deleted object has only its kind and names: `get` returns None for it.
    """

    def __init__(
        self,
        client: Any,
        on_change: Callable[[Object], None],
        on_listed: Callable[[str], None],
    ) -> None:
        self._informers = {
            resource.kind: Informer(
                client,
                resource,
                on_change,
                on_listed=lambda kind=resource.kind: on_listed(kind),  # type: ignore[misc]
                resync=True,
            )
            for resource in l7_resources()
        }

    @property
    def reflectors(self) -> list[Reflector]:
        """To be started and stopped by the caller."""
        return [informer.reflector for informer in self._informers.values()]

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """The object as last seen."""
        return self._informers[kind].get(namespace, name)

    def of(self, ref: Ref) -> Object | None:
        """The object as last seen."""
        return self._informers[ref.kind].get(ref.namespace, ref.name)

    def objects(self, kind: str) -> list[Object]:
        """All objects of a kind."""
        return self._informers[kind].objects()

    def is_listed(self, kind: str) -> bool:
        """Whether the kind is installed, and its cache complete."""
        return self._informers[kind].is_listed
