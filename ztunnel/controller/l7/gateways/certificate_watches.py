# SPDX-License-Identifier: Apache-2.0
"""Watches which Secrets and ConfigMaps exist, in the namespaces whose certificates gateways use.

The server sends metadata only: the data of an object is read when a Gateway refers to it. Without
the permission (deploy/controller-certificates.yaml), the rest of the controller works.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ztunnel.controller.l7.object_client import Ref, collection_path
from ztunnel.kube.client.informer import Informer
from ztunnel.kube.client.reflector import Reflector, Resource
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.deployment.settings import ALL_NAMESPACES

KINDS = ("Secret", "ConfigMap")


def certificate_resources(namespaces: frozenset[str]) -> list[tuple[str, Resource]]:
    """The resources, with their namespace (empty: all). `*` among the namespaces stands for all."""
    places = [""] if ALL_NAMESPACES in namespaces else sorted(namespaces)
    return [
        (place, Resource(kind, collection_path(kind, place), metadata_only=True))
        for place in places
        for kind in KINDS
    ]


class CertificateWatches:
    """Thread-safe. `on_change(ref)` is called in the reflectors' threads."""

    def __init__(
        self,
        client: Any,
        namespaces: frozenset[str],
        on_change: Callable[[Ref], None],
        on_listed: Callable[[], None],
    ) -> None:
        self._informers = {
            (resource.kind, place): Informer(
                client,
                resource,
                lambda obj: on_change(_ref(obj)),
                on_listed=on_listed,
            )
            for place, resource in certificate_resources(namespaces)
        }

    @property
    def reflectors(self) -> list[Reflector]:
        """To be started and stopped by the caller."""
        return [informer.reflector for informer in self._informers.values()]

    def is_readable(self, ref: Ref) -> bool:
        """Whether the controller may read an object, and knows whether it exists."""
        informer = self._of(ref)
        return informer is not None and informer.is_listed

    def version(self, ref: Ref) -> str:
        """The resourceVersion of an object; empty if it does not exist or is not readable."""
        informer = self._of(ref)
        found = informer.get(ref.namespace, ref.name) if informer is not None else None
        return str(found["metadata"].get("resourceVersion") or "?") if found is not None else ""

    def _of(self, ref: Ref) -> Informer | None:
        return self._informers.get((ref.kind, "")) or self._informers.get((ref.kind, ref.namespace))


def _ref(obj: Object) -> Ref:
    metadata = obj["metadata"]
    return Ref(obj["kind"], metadata.get("namespace") or "", metadata["name"])
