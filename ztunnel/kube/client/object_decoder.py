# SPDX-License-Identifier: Apache-2.0
"""Decodes Kubernetes objects from JSON, without the fields that the mesh does not use. Pure.

A pod of a real cluster has kilobytes of containers, volumes and `managedFields`. The decoder skips
them, so that they never become Python objects: this is what fits 20,000 pods into an agent. Strings
that repeat (labels, namespaces, nodes) are interned. Kinds with few objects keep `spec` and
`status` as they are; of ServiceAccounts, which may be as many as pods, only the name is used.

An API server accepts objects that a decoder does not, for example with thousands of nested arrays
in an unknown field. They are decoded member by member: an undecodable member is replaced by an
`Undecodable`, which no field accepts as a value. The reader of the object then rejects it like any
other invalid object, and all other objects are unaffected.
"""

from __future__ import annotations

from enum import Enum
from sys import intern
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import msgspec

from ztunnel.kube.client import json_scanner
from ztunnel.kube.client.json_scanner import Span
from ztunnel.kube.objects.fields import KINDS, Object, Undecodable
from ztunnel.kube.objects.l7_kinds import (
    BACKEND_TLS_POLICY,
    CA_CERTIFICATES_ANNOTATION,
    GATEWAY_CERTIFICATES_ANNOTATION,
    MAX_CA_CERTIFICATES_CHARS,
    MAX_GATEWAY_ANNOTATION_CHARS,
    PROXY_CONFIG_ANNOTATION,
)

_DOMAINS = ("istio.io", "ztunnel.dev")  # of annotations that the mesh uses
_MAX_ANNOTATION_CHARS = 256  # of sidecar.istio.io/status, which is long, the presence counts
MAX_DEPTH = 64  # of nested objects and arrays in a member; printing or comparing them recurses
_DECODE_ERRORS = (msgspec.DecodeError, RecursionError, ValueError)

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


class _LongMetadata(_FullMetadata):
    """Keeps the long annotations that are listed; of no other object are they kept."""

    _lengths: ClassVar[dict[str, int]] = {}  # characters by annotation; longer ones are cut

    def __post_init__(self) -> None:
        given = self.annotations or {}
        super().__post_init__()
        for name, length in self._lengths.items() if self.annotations is not None else ():
            if self.annotations is not None and 0 < len(given.get(name, "")) <= length:
                self.annotations[name] = given[name]


class _BackendTlsMetadata(_LongMetadata):
    _lengths = {CA_CERTIFICATES_ANNOTATION: MAX_CA_CERTIFICATES_CHARS}


class _BackendTls(_Any, kw_only=True):
    metadata: _BackendTlsMetadata


class _GatewayMetadata(_LongMetadata):
    _lengths = {
        GATEWAY_CERTIFICATES_ANNOTATION: MAX_GATEWAY_ANNOTATION_CHARS,
        PROXY_CONFIG_ANNOTATION: MAX_GATEWAY_ANNOTATION_CHARS,
    }


class _Gateway(_Any, kw_only=True):
    metadata: _GatewayMetadata


class _IngressMetadata(_FullMetadata):
    """Other controllers' annotations are kept: the controller reports that it ignores them."""

    def __post_init__(self) -> None:
        found = self.annotations or {}
        super().__post_init__()
        self.annotations = {k: v[:_MAX_ANNOTATION_CHARS] for k, v in found.items()} or None


class _Ingress(_Any, kw_only=True):
    metadata: _IngressMetadata


class _NameOnly(_Partial):
    metadata: _Named


class _ConfigMap(_Partial):
    metadata: _Named
    data: dict[str, str] | None = None


class _Capabilities(_Partial):
    add: list[str] | None = None


class _SecurityContext(_Partial):
    privileged: bool = False
    capabilities: _Capabilities | None = None


class _Container(_Partial):
    name: str = ""
    security_context: _SecurityContext | None = None

    @property
    def adds_privileges(self) -> bool:
        context = self.security_context
        return context is not None and (
            context.privileged or bool(context.capabilities and context.capabilities.add)
        )


class _PodSpec(_Partial):
    node_name: str = ""
    service_account_name: str = ""
    host_network: bool = False
    host_pid: bool = msgspec.field(name="hostPID", default=False)
    containers: list[_Container] | None = None  # only those that add privileges
    init_containers: list[_Container] | None = None

    def __post_init__(self) -> None:
        self.node_name = intern(self.node_name)
        self.service_account_name = intern(self.service_account_name)
        self.containers = _privileged(self.containers)
        self.init_containers = _privileged(self.init_containers)


def _privileged(containers: list[_Container] | None) -> list[_Container] | None:
    return [each for each in containers or () if each.adds_privileges] or None


class _Condition(_Partial):
    type: str = ""
    status: str = ""


class _Ip(_Partial):
    ip: str = ""


class _PodStatus(_Partial):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: list[_Ip] | None = msgspec.field(name="podIPs", default=None)
    host_ip: str = msgspec.field(name="hostIP", default="")
    host_ips: list[_Ip] | None = msgspec.field(name="hostIPs", default=None)
    conditions: list[_Condition] | None = None

    def __post_init__(self) -> None:
        self.phase = intern(self.phase)
        self.host_ip = intern(self.host_ip)  # equal for all pods of a node
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
    """One response to a list: plain objects with their kind. `continue_token`: of the next page.

    `unidentified`: how many items were left out because they have no readable name.
    """

    items: list[Object]
    resource_version: str
    continue_token: str
    unidentified: int = 0


_SCHEMAS: dict[str, Any] = {
    BACKEND_TLS_POLICY: _BackendTls,
    "Ingress": _Ingress,
    "IngressClass": _Ingress,
    "ConfigMap": _ConfigMap,
    "EndpointSlice": _Slice,
    "Gateway": _Gateway,
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
        self._is_name_only = schema is _NameOnly
        self._lists = msgspec.json.Decoder(_List[schema])
        self._items = msgspec.json.Decoder(schema)
        self._events = msgspec.json.Decoder(
            _Added[schema] | _Modified[schema] | _Deleted[schema] | _Bookmark | _Error
        )

    def page(self, body: bytes) -> Page:
        """Raises msgspec.DecodeError if it is not a list."""
        try:
            found = self._lists.decode(body)
            items = [self._kind | _plain(item) for item in found.items or ()]
        except _DECODE_ERRORS:
            return self._page_by_item(body)
        return Page(items, found.metadata.resource_version, found.metadata.continue_)

    def event(self, line: bytes) -> Event:
        """One line of a watch. Raises msgspec.DecodeError if it is not an event of a named object.

        An object with a field of an unexpected type is returned with all its fields: the consumer
        reports the error with the object's name.
        """
        try:
            event = self._events.decode(line)
            if isinstance(event, _Bookmark):
                return Event(EventType.BOOKMARK, _plain(event.object))
            if isinstance(event, _Error):
                return Event(EventType.ERROR, _plain(event.object))
            is_gone = isinstance(event, _Deleted)
            event_type = EventType.DELETE if is_gone else EventType.UPSERT
            return Event(event_type, self._kind | _plain(event.object))
        except _DECODE_ERRORS:
            return self._event_by_member(line)

    def _page_by_item(self, body: bytes) -> Page:
        members = json_scanner.members(body, (0, len(body)))
        if "metadata" not in members:
            raise msgspec.DecodeError("a list without metadata")
        metadata = _decode(body, members["metadata"], _ListMetadata)
        items, unidentified = [], 0
        for span in self._item_spans(body, members.get("items")):
            try:
                items.append(self._item(body, span))
            except msgspec.DecodeError:
                unidentified += 1
        return Page(items, metadata.resource_version, metadata.continue_, unidentified)

    def _item_spans(self, body: bytes, span: Span | None) -> list[Span]:
        if span is None or body[slice(*span)].strip() == b"null":
            return []
        return list(json_scanner.elements(body, span))

    def _event_by_member(self, line: bytes) -> Event:
        members = json_scanner.members(line, (0, len(line)))
        if members.keys() >= {"type", "object"}:
            event_type = _TYPES.get(_decode(line, members["type"], str))
            if event_type is not None:
                return Event(event_type, self._item(line, members["object"]))
        raise msgspec.DecodeError(f"unexpected event {line[:80]!r}")

    def _item(self, text: bytes, span: Span) -> Object:
        """One object. Raises msgspec.DecodeError if its name cannot be decoded."""
        try:
            return self._kind | _plain(self._items.decode(memoryview(text)[slice(*span)]))
        except _DECODE_ERRORS:
            return self._kind | self._by_member(text, span)

    def _by_member(self, text: bytes, span: Span) -> Object:
        members = json_scanner.members(text, span)
        found: Object = {}
        for name in ("metadata",) if self._is_name_only else _MEMBERS & members.keys():
            found[name] = _decode_members(text, members.get(name, (0, 0)))
        metadata = found.get("metadata")
        if isinstance(metadata, dict) and metadata.get("namespace", "") is None:
            del metadata["namespace"]  # null means absent
        if not isinstance(metadata, dict) or not _is_identified(metadata):
            raise msgspec.DecodeError(f"an object without a name: {text[span[0] :][:80]!r}")
        return found


_MEMBERS = frozenset({"metadata", "spec", "status", "data", "addressType", "endpoints", "ports"})
_UNUSED_METADATA = frozenset({"managedFields"})


def _is_identified(metadata: Object) -> bool:
    name, namespace = metadata.get("name"), metadata.get("namespace", "")
    return isinstance(name, str) and name != "" and isinstance(namespace, str)


def _decode_members(text: bytes, span: Span) -> Any:
    """A value; undecodable members of an object are replaced, and an undecodable other value."""
    try:
        members = json_scanner.members(text, span)
    except msgspec.DecodeError:
        return _decode_or_mark(text, span)
    return {
        name: _decode_or_mark(text, each)
        for name, each in members.items()
        if name not in _UNUSED_METADATA
    }


def _decode_or_mark(text: bytes, span: Span) -> Any:
    try:
        value = _decode(text, span, Any)
    except msgspec.DecodeError as error:
        return Undecodable(str(error))
    return Undecodable(_TOO_DEEP) if is_too_deep(value) else value


def _decode(text: bytes, span: Span, schema: Any) -> Any:
    """Raises msgspec.DecodeError."""
    try:
        return msgspec.json.decode(memoryview(text)[slice(*span)], type=schema)
    except RecursionError as error:
        raise msgspec.DecodeError(_TOO_DEEP) from error
    except ValueError as error:  # for example of characters
        raise msgspec.DecodeError(str(error)) from error


_TOO_DEEP = f"more than {MAX_DEPTH} levels deep"


def is_too_deep(value: Any) -> bool:
    """Whether objects and arrays are nested more than MAX_DEPTH levels. Does not recurse."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
        if not level:
            return False
    return True


def _plain(value: Any) -> Object:
    """Raises msgspec.DecodeError if it is nested too deeply."""
    if isinstance(value, _Any) and (is_too_deep(value.spec) or is_too_deep(value.status)):
        raise msgspec.DecodeError(_TOO_DEEP)
    plain: Object = msgspec.to_builtins(value)
    return plain


def _mesh_annotations(annotations: dict[str, str]) -> dict[str, str]:
    return {
        name: value[:_MAX_ANNOTATION_CHARS]
        for name, value in annotations.items()
        if name.partition("/")[0].endswith(_DOMAINS)
    }
