# SPDX-License-Identifier: Apache-2.0
"""What the Envoys of gateway pods reject: annotations of the pods, written by the nodes' agents.

The watch has the first characters of an annotation only, which contain a hash of it. If they
change, the pod is read.
"""

from __future__ import annotations

import threading
from typing import Annotated

import msgspec

from ztunnel.controller.l7.object_client import ObjectClient, Ref
from ztunnel.controller.l7.watches import Watches
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.deployment.settings import GATEWAY_LABEL
from ztunnel.l7.names import TypeUrl
from ztunnel.mesh.enrollment import REJECTED_CONFIG_ANNOTATION

MAX_RESOURCES = 64  # read of one annotation
MAX_MESSAGE_CHARS = 512
_PART = "#"  # between the name of a resource and the name of its rejected part


class _Resource(msgspec.Struct):
    type: str = ""
    name: str = ""
    message: str = ""


class _Annotation(msgspec.Struct):
    resources: Annotated[list[_Resource], msgspec.Meta(max_length=MAX_RESOURCES)] = []


class Rejections:
    """By pod. Thread-safe."""

    def __init__(self, client: ObjectClient, watches: Watches) -> None:
        self._client = client
        self._watches = watches
        self._lock = threading.Lock()
        self._by_pod: dict[Ref, tuple[str, str, list[_Resource]]] = {}  # prefix, gateway, rejected

    def reconcile(self, ref: Ref) -> bool:
        """Read a pod's annotation if it has changed; returns whether it has. Raises ApiError."""
        pod = self._watches.of(ref)
        prefix = _annotation(pod) if pod is not None else ""
        known = self._by_pod.get(ref, ("", "", []))[0]
        if prefix == known:
            return False
        current = self._client.get(ref) if prefix else None
        with self._lock:
            if current is None:
                self._by_pod.pop(ref, None)
            else:
                self._by_pod[ref] = prefix, _gateway(current), _parse(_annotation(current))
        return True

    def by_service(self) -> dict[str, str]:
        """Envoy's message by service, `namespace/name`: its routes, clusters, filter chains."""
        found: dict[str, str] = {}
        with self._lock:
            for _, _, resources in self._by_pod.values():
                for each in resources:
                    service = _service(each)
                    if service:
                        found.setdefault(service, each.message[:MAX_MESSAGE_CHARS])
        return found

    def of_gateway(self, gateway: str) -> str:
        """Envoy's message if it rejects the listener of `namespace/name`; empty otherwise."""
        types = _names(TypeUrl.LISTENER)
        with self._lock:
            for _, owner, resources in self._by_pod.values():
                for each in resources if owner == gateway else ():
                    if each.type in types and _PART not in each.name:
                        message = each.message[:MAX_MESSAGE_CHARS]
                        return f"Envoy rejects the listener, the previous one stays: {message}"
        return ""


def _service(resource: _Resource) -> str:
    """The service that a rejected resource belongs to; of a listener, its filter chain does."""
    name = resource.name
    if resource.type in _names(TypeUrl.LISTENER):
        name = name.partition(_PART)[2]
    elif resource.type not in _names(TypeUrl.ROUTE, TypeUrl.CLUSTER, TypeUrl.ENDPOINT):
        return ""
    return name.partition("|")[0]


def _names(*types: TypeUrl) -> frozenset[str]:
    return frozenset(each.rpartition("/")[2] for each in types)


def _annotation(pod: Object) -> str:
    value = (pod["metadata"].get("annotations") or {}).get(REJECTED_CONFIG_ANNOTATION)
    return value if isinstance(value, str) else ""


def _gateway(pod: Object) -> str:
    metadata = pod["metadata"]
    name = (metadata.get("labels") or {}).get(GATEWAY_LABEL) or ""
    return f"{metadata.get('namespace') or ''}/{name}"


def _parse(text: str) -> list[_Resource]:
    """Malformed text is ignored: an agent of another version wrote it."""
    try:
        return msgspec.json.decode(text, type=_Annotation).resources
    except msgspec.DecodeError:
        return []
