# SPDX-License-Identifier: Apache-2.0
"""What of the API's JSON the mesh reads, cut out while it is decoded. Pure; may import msgspec.

A pod of a real cluster has kilobytes of containers, volumes and `managedFields`. They are skipped
by the decoder and never become Python objects: that is what lets an agent hold 20,000 pods. Texts
that many have (labels, namespaces, nodes) are kept once. Of kinds there are few of, all but the
bookkeeping stays; of ServiceAccounts only the name, for there may be as many as pods.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from sys import intern
from typing import Any, Generic, TypeVar

import msgspec

from ztunnel.kube.objects.fields import KINDS, Object

NAME = ""  # where an object that was cut down to its name has it, as `namespace/name`
_DOMAINS = ("istio.io", "ztunnel.dev")  # of the annotations that mean something to the mesh
_UNCHANGED = frozenset({"BOOKMARK", "ERROR"})  # events whose object is not one of the kind
_LONGEST = 256  # characters of an annotation: a sidecar's status counts by its presence only

T = TypeVar("T")


class _Kept(msgspec.Struct, rename="camel", omit_defaults=True):
    """Fields that are kept; others are skipped. An explicit null is as good as absent."""


class _Owner(_Kept):
    kind: str = ""
    name: str = ""


class _Named(_Kept):
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
            self.annotations = _own(self.annotations) or None


class _Dated(_Metadata):
    creation_timestamp: str = ""  # of PeerAuthentications the oldest counts
    generation: int = 0  # what a policy's status refers to


class _Any(_Kept):
    metadata: _Dated
    spec: Any = None
    status: Any = None


class _Account(_Kept):
    metadata: _Named


class _PodSpec(_Kept):
    node_name: str = ""
    service_account_name: str = ""
    host_network: bool = False

    def __post_init__(self) -> None:
        self.node_name = intern(self.node_name)
        self.service_account_name = intern(self.service_account_name)


class _Condition(_Kept):
    type: str = ""
    status: str = ""


class _Ip(_Kept):
    ip: str = ""


class _PodStatus(_Kept):
    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: list[_Ip] | None = msgspec.field(name="podIPs", default=None)
    conditions: list[_Condition] | None = None

    def __post_init__(self) -> None:
        self.phase = intern(self.phase)
        if self.conditions is not None:
            self.conditions = [each for each in self.conditions if each.type == "Ready"] or None


class _Pod(_Kept):
    metadata: _Metadata
    spec: _PodSpec = msgspec.field(default_factory=_PodSpec)
    status: _PodStatus = msgspec.field(default_factory=_PodStatus)


class _EndpointConditions(_Kept):
    ready: bool | None = None


class _Target(_Kept):
    kind: str = ""
    namespace: str = ""
    name: str = ""


class _Endpoint(_Kept):
    addresses: list[str] | None = None
    conditions: _EndpointConditions | None = None
    target_ref: _Target | None = None
    hostname: str | None = None


class _Port(_Kept):
    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class _Slice(_Kept):
    metadata: _Metadata
    address_type: str = ""
    endpoints: list[_Endpoint] | None = None
    ports: list[_Port] | None = None


class _ListMetadata(_Kept):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class _List(msgspec.Struct, Generic[T]):
    metadata: _ListMetadata
    items: list[T] | None = None


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


@dataclass(frozen=True)
class Page:
    """One answer to a list: plain objects with their kind, and where the next page begins.

    Of ServiceAccounts there is `NAME` and nothing else.
    """

    items: list[Object]
    resource_version: str
    rest: str


_SHAPES: dict[str, Any] = {"Pod": _Pod, "EndpointSlice": _Slice, "ServiceAccount": _Account}


class PartialDecoder:
    """For one kind."""

    def __init__(self, kind: str) -> None:
        self._kind = {"kind": kind, "apiVersion": KINDS.get(kind, "v1")}
        shape: Any = _SHAPES.get(kind, _Any)
        self._lists = msgspec.json.Decoder(_List[shape])
        self._objects = msgspec.json.Decoder(shape)
        self._events = msgspec.json.Decoder(_Event)
        self._encoder = msgspec.json.Encoder()

    def page(self, body: bytes) -> Page:
        """A list's objects. Raises msgspec.DecodeError when it is no list of this kind."""
        found = self._lists.decode(body)
        items = [self._shortened(item) for item in found.items or ()]
        return Page(items, found.metadata.resource_version, found.metadata.continue_)

    def _shortened(self, item: Any) -> Object:
        if isinstance(item, _Account):
            return {NAME: f"{item.metadata.namespace}/{item.metadata.name}"}
        return self._kind | _plain(item)

    def event(self, line: bytes) -> bytes:
        """A line of a watch, shorter; what is none is given back for the reader to judge."""
        try:
            event = self._events.decode(line)
            if event.type in _UNCHANGED:
                return line
            kept = self._kind | _plain(self._objects.decode(event.object))
        except msgspec.DecodeError:
            return line
        return self._encoder.encode({"type": event.type, "object": kept})


def _plain(kept: Any) -> Object:
    plain: Object = msgspec.to_builtins(kept)
    return plain


def _own(annotations: dict[str, str]) -> dict[str, str]:
    return {name: annotations[name][:_LONGEST] for name in _meant(annotations)}


def _meant(names: Iterable[str]) -> Iterable[str]:
    return (name for name in names if name.partition("/")[0].endswith(_DOMAINS))
