# SPDX-License-Identifier: Apache-2.0
"""Decodes Kubernetes objects from JSON, without the fields that the mesh does not use. Pure.

A pod of a real cluster has kilobytes of containers, volumes and `managedFields`. The decoder skips
them, so that they never become Python objects: this is what fits 20,000 pods into an agent. Strings
that repeat (labels, namespaces, nodes) are interned. Kinds with few objects keep `spec` and
`status` as they are; of ServiceAccounts, which may be as many as pods, only the name is used.
"""

from __future__ import annotations

from enum import Enum
from sys import intern
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from ztunnel.kube.objects.fields import KINDS, Object

_DOMAINS = ("istio.io", "ztunnel.dev")  # of annotations that the mesh uses
_MAX_ANNOTATION_CHARS = 256  # of sidecar.istio.io/status, which is long, the presence counts

T = TypeVar("T")


class _Partial(msgspec.Struct, rename="camel", omit_defaults=True):
    """The fields that are used; the decoder skips others. Null means absent."""


class _Owner(_Partial):
    kind: str = ""
    name: str = ""


class _Named(_Partial):
    name: str = ""
    namespace: str = ""
    resource_version: str = ""

    def __post_init__(self) -> None:
        self.namespace = intern(self.namespace)


class _Metadata(_Named):
    uid: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[_Owner] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None:
            self.labels = {intern(name): intern(value) for name, value in self.labels.items()}
        if self.annotations is not None:
            self.annotations = _mesh_annotations(self.annotations) or None


class _FullMetadata(_Metadata):
    creation_timestamp: str = ""  # the oldest PeerAuthentication takes precedence
    generation: int = 0  # of policies: `observedGeneration` of their conditions


class _Any(_Partial):
    metadata: _FullMetadata
    spec: Any = None
    status: Any = None


class _NameOnly(_Partial):
    metadata: _Named


class _ConfigMap(_Partial):
    metadata: _Named
    data: dict[str, str] | None = None


class _PodSpec(_Partial):
    node_name: str = ""
    service_account_name: str = ""
    host_network: bool = False

    def __post_init__(self) -> None:
        self.node_name = intern(self.node_name)
        self.service_account_name = intern(self.service_account_name)


class _Condition(_Partial):
    type: str = ""
    status: str = ""


class _Ip(_Partial):
    ip: str = ""


class _PodStatus(_Partial):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: list[_Ip] | None = msgspec.field(name="podIPs", default=None)
    conditions: list[_Condition] | None = None

    def __post_init__(self) -> None:
        self.phase = intern(self.phase)
        if self.conditions is not None:
            self.conditions = [each for each in self.conditions if each.type == "Ready"] or None


class _Pod(_Partial):
    metadata: _Metadata
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _EndpointConditions(_Partial):
    ready: bool | None = None


class _Target(_Partial):
    kind: str = ""
    namespace: str = ""
    name: str = ""


class _Endpoint(_Partial):
    addresses: list[str] | None = None
    conditions: _EndpointConditions | None = None
    target_ref: _Target | None = None
    hostname: str | None = None


class _Port(_Partial):
    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class _Slice(_Partial):
    metadata: _Metadata
    address_type: str = ""
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _ListMetadata(_Partial):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct, Generic[T]):
    metadata: _ListMetadata
    items: list[T] | None = None


class _Added(msgspec.Struct, Generic[T], tag_field="type", tag="ADDED"):
    object: T


class _Modified(msgspec.Struct, Generic[T], tag_field="type", tag="MODIFIED"):
    object: T


class _Deleted(msgspec.Struct, Generic[T], tag_field="type", tag="DELETED"):
    object: T


class _Bookmark(msgspec.Struct, tag_field="type", tag="BOOKMARK"):
    object: _NameOnly


class _Status(msgspec.Struct, omit_defaults=True):
    code: int = 0
    reason: str = ""
    message: str = ""


class _Error(msgspec.Struct, tag_field="type", tag="ERROR"):
    object: _Status


class EventType(Enum):
    """UPSERT stands for ADDED and MODIFIED."""

    UPSERT = "upsert"
    DELETE = "delete"
    BOOKMARK = "bookmark"
    ERROR = "error"


class Event(NamedTuple):
    """`object`: a plain object with its kind; of BOOKMARK only metadata; of ERROR a Status."""

    type: EventType
    object: Object


class Page(NamedTuple):
    """One response to a list: plain objects with their kind. `continue_token`: of the next page."""

    items: list[Object]
    resource_version: str
    continue_token: str


_SCHEMAS: dict[str, Any] = {
    "ConfigMap": _ConfigMap,
    "EndpointSlice": _Slice,
    "Pod": _Pod,
    "Secret": _NameOnly,
    "ServiceAccount": _NameOnly,
}
_TYPES = {"ADDED": EventType.UPSERT, "MODIFIED": EventType.UPSERT, "DELETED": EventType.DELETE}


class PartialDecoder:
    """Decodes lists and watch events of one kind."""

    def __init__(self, kind: str) -> None:
        self._kind = {"kind": kind, "apiVersion": KINDS.get(kind, "v1")}
        schema: Any = _SCHEMAS.get(kind, _Any)
        self._lists = msgspec.json.Decoder(_List[schema])
        self._events = msgspec.json.Decoder(
            _Added[schema] | _Modified[schema] | _Deleted[schema] | _Bookmark | _Error
        )

    def page(self, body: bytes) -> Page:
        """Raises msgspec.DecodeError if it is not a list of this kind."""
        found = self._lists.decode(body)
        items = [self._kind | _plain(item) for item in found.items or ()]
        return Page(items, found.metadata.resource_version, found.metadata.continue_)

    def event(self, line: bytes) -> Event:
        """One line of a watch. Raises msgspec.DecodeError if it is not an event.

        An object with a field of an unexpected type is returned with all its fields: the consumer
        reports the error with the object's name.
        """
        try:
            event = self._events.decode(line)
        except msgspec.ValidationError:
            return self._unexpected(line)
        if isinstance(event, _Bookmark):
            return Event(EventType.BOOKMARK, _plain(event.object))
        if isinstance(event, _Error):
            return Event(EventType.ERROR, _plain(event.object))
        is_gone = isinstance(event, _Deleted)
        event_type = EventType.DELETE if is_gone else EventType.UPSERT
        return Event(event_type, self._kind | _plain(event.object))

    def _unexpected(self, line: bytes) -> Event:
        event = msgspec.json.decode(line, type=_Untyped)
        metadata = event.object.get("metadata")
        if event.type not in _TYPES or not isinstance(metadata, dict) or "name" not in metadata:
            raise msgspec.DecodeError(f"unexpected event {line[:80]!r}")
        return Event(_TYPES[event.type], self._kind | event.object)


class _Untyped(msgspec.Struct):
    type: str
    object: dict[str, Any]


def _plain(value: Any) -> Object:
    plain: Object = msgspec.to_builtins(value)
    return plain


def _mesh_annotations(annotations: dict[str, str]) -> dict[str, str]:
    return {
        name: value[:_MAX_ANNOTATION_CHARS]
        for name, value in annotations.items()
        if name.partition("/")[0].endswith(_DOMAINS)
    }
