# SPDX-License-Identifier: Apache-2.0
"""Writes of Kubernetes objects, their status, and Events. Blocking; methods raise ApiError."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

import msgspec

from ztunnel.kube.client.request import (
    APPLY_PATCH,
    CONFLICT,
    MERGE_PATCH,
    NOT_FOUND,
    ApiError,
    is_namespace_ending,
    send,
)
from ztunnel.kube.objects.fields import Object
from ztunnel.l7.objects import L7_KINDS

FIELD_MANAGER = "ztunnel-gateway-controller"
COMPONENT = "ztunnel-controller"  # source of Events
REJECTED = (400, 403, 404, 409, 413, 422)  # the server's answers that concern one object
_MAX_EVENT_CHARS = 1024  # enforced by the API server
_MAX_EMITTED = 10_000  # Events that are not sent again
_PLURALS = {
    "ConfigMap": ("v1", "configmaps"),
    "CustomResourceDefinition": ("apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "DaemonSet": ("apps/v1", "daemonsets"),
    "Deployment": ("apps/v1", "deployments"),
    "HorizontalPodAutoscaler": ("autoscaling/v2", "horizontalpodautoscalers"),
    "Ingress": ("networking.k8s.io/v1", "ingresses"),
    "IngressClass": ("networking.k8s.io/v1", "ingressclasses"),
    "PeerAuthentication": ("security.istio.io/v1", "peerauthentications"),
    "Pod": ("v1", "pods"),
    "PodDisruptionBudget": ("policy/v1", "poddisruptionbudgets"),
    "Secret": ("v1", "secrets"),
    "Service": ("v1", "services"),
    "ServiceAccount": ("v1", "serviceaccounts"),
    "ServiceEntry": ("networking.istio.io/v1", "serviceentries"),
    **{kind: (info.api_version, info.plural) for kind, info in L7_KINDS.items()},
}

T = TypeVar("T")


class Ref(NamedTuple):
    """An object; `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        place = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {place}{self.name}"


def for_all(items: Iterable[T], write: Callable[[T], object]) -> None:
    """Write each item, even if the server rejects another one; raises the first ApiError then.

    Errors that are not about an item, such as an overloaded server, end it at once.
    """
    first: ApiError | None = None
    for item in items:
        try:
            write(item)
        except ApiError as error:
            if error.status not in REJECTED:
                raise
            first = first or error
    if first is not None:
        raise first


def api_version(kind: str) -> str:
    """The API version of a kind, for example `apps/v1`."""
    return _PLURALS[kind][0]


def collection_path(kind: str, namespace: str = "") -> str:
    """The path of a kind's collection: of all namespaces, or of one."""
    version, plural = _PLURALS[kind]
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"
    return f"{root}/namespaces/{namespace}/{plural}" if namespace else f"{root}/{plural}"


def ref_of(obj: Object) -> Ref:
    """The Ref of an object."""
    metadata = obj["metadata"]
    return Ref(obj["kind"], metadata.get("namespace") or "", metadata["name"])


def mapping(value: object) -> dict[str, Any]:
    """A mapping, or an empty one for other values."""
    return value if isinstance(value, dict) else {}


def digest_of(value: object) -> bytes:
    """A digest of a JSON value, whatever the order of its members."""
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).digest()


class ObjectClient:
    """Thread-safe."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._emitted: dict[str, None] = {}  # names of Events, oldest first

    def get(self, ref: Ref) -> Object | None:
        """The object; None if it does not exist."""
        try:
            found: Object = send(self._client, "GET", _path(ref))
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            return None
        return found

    def apply(self, obj: Object) -> Object:
        """Server-side apply, as owner of the fields."""
        return self._apply(_path(ref_of(obj)), obj, force=True)

    def apply_status(
        self, obj: Object, status: Object, *, force: bool, manager: str = FIELD_MANAGER
    ) -> bool:
        """Apply a status to an object as read; False if it is not there any more, or has changed.

        An apply replaces what the same field manager has applied before. Without `force` raises
        ApiError CONFLICT if another controller owns one of the fields.
        The uid makes the request fail for a later object of the same name.
        """
        metadata = obj["metadata"]
        identity = {
            key: metadata[key]
            for key in ("namespace", "name", "uid", "resourceVersion")
            if metadata.get(key) and (force or key != "resourceVersion")
        }
        ref = ref_of(obj)
        body = {
            "apiVersion": api_version(ref.kind),
            "kind": ref.kind,
            "metadata": identity,
            "status": status,
        }
        try:
            self._apply(f"{_path(ref)}/status", body, force=force, manager=manager)
        except ApiError as error:
            if error.status == NOT_FOUND:
                return False
            raise
        return True

    def set_annotation(self, obj: Object, name: str, value: str, manager: str) -> bool:
        """Apply an annotation as field manager `manager`; an empty value removes it.

        False if exactly this object does not exist any more. Without the uid, apply would create
        an object.
        """
        ref = ref_of(obj)
        metadata = {"name": ref.name, "namespace": ref.namespace, "uid": obj["metadata"]["uid"]}
        metadata["annotations"] = {name: value or None}
        body = {"apiVersion": api_version(ref.kind), "kind": ref.kind, "metadata": metadata}
        query = {"fieldManager": manager} | ({"force": "true"} if value else {})
        content_type = APPLY_PATCH if value else MERGE_PATCH
        try:
            send(
                self._client, "PATCH", _path(ref), query=query, body=body, content_type=content_type
            )
        except ApiError as error:
            if error.status in (NOT_FOUND, CONFLICT):
                return False
            raise
        return True

    def set_pod_annotation(self, pod: Object, name: str, value: str) -> None:
        """Set an annotation of exactly this pod by its status, which needs no right on its spec."""
        metadata = {"uid": pod["metadata"]["uid"], "annotations": {name: value}}
        path = f"{_path(ref_of(pod))}/status"
        body = {"metadata": metadata}
        try:
            send(self._client, "PATCH", path, body=body, content_type=MERGE_PATCH)
        except ApiError as error:
            if error.status not in (NOT_FOUND, CONFLICT):  # gone, or another of that name
                raise

    def delete(self, obj: Object) -> None:
        """Delete exactly this object, and its dependents in the background."""
        options = {
            "propagationPolicy": "Background",
            "preconditions": {"uid": obj["metadata"]["uid"]},
        }
        try:
            send(self._client, "DELETE", _path(ref_of(obj)), body=options)
        except ApiError as error:
            if error.status not in (NOT_FOUND, CONFLICT):  # gone, or another of that name
                raise

    def emit_event(self, obj: Object, reason: str, message: str) -> None:
        """Create a Warning Event, unless the same Event exists."""
        body = event(obj, reason, message, datetime.now(UTC))
        name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
        if f"{namespace}/{name}" in self._emitted:
            return
        path = f"/api/v1/namespaces/{namespace}/events"
        try:
            send(self._client, "POST", path, body=body)
        except ApiError as error:
            is_gone = error.status == NOT_FOUND or is_namespace_ending(error)
            if not is_gone and error.status != CONFLICT:  # it exists
                raise
        self._emitted[f"{namespace}/{name}"] = None
        if len(self._emitted) > _MAX_EMITTED:
            self._emitted.pop(next(iter(self._emitted)), None)

    def _apply(
        self, path: str, obj: Object, *, force: bool, manager: str = FIELD_MANAGER
    ) -> Object:
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        found: Object = send(
            self._client, "PATCH", path, query=query, body=obj, content_type=APPLY_PATCH
        )
        return found


def event(obj: Object, reason: str, message: str, now: datetime) -> Object:
    """A Warning Event. Its name is a hash of its content, so that it exists once per object."""
    metadata, ref = obj["metadata"], ref_of(obj)
    content = "\0".join((metadata.get("uid") or "", reason, message))
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    namespace = ref.namespace or "default"  # as Kubernetes places Events of cluster-scoped objects
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{ref.name[:200]}.{digest}", "namespace": namespace},
        "involvedObject": {
            "apiVersion": api_version(ref.kind),
            "kind": ref.kind,
            "name": ref.name,
            "namespace": ref.namespace,
            "uid": metadata.get("uid") or "",
        },
        "type": "Warning",
        "reason": reason,
        "message": message[:_MAX_EVENT_CHARS],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": COMPONENT,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


def _path(ref: Ref) -> str:
    name = quote(ref.name, safe="")  # of a reference, which may be a path to another object
    return f"{collection_path(ref.kind, ref.namespace)}/{name}"
