# SPDX-License-Identifier: Apache-2.0
"""The objects that configure L7, as JSON text for the gateway process, which parses them.

`managedFields` and `status` are left out. The size is bounded per object and per namespace. Of an
object beyond a bound, the small members of `spec` remain, among them its targets, and a text
replaces each large one: its parser rejects the text, so the object is invalid for what it targets.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import msgspec

from ztunnel.ipc.gateway_messages import MAX_L7_BODY_BYTES, L7ObjectBody
from ztunnel.kube.objects.fields import Object, ObjectKey, Undecodable
from ztunnel.kube.view.tracked_map import TrackedMap

MAX_NAMESPACE_BYTES = 64 << 20  # of all L7 objects of a namespace
SMALL_MEMBER_BYTES = 2048  # members of `spec` that remain in an object beyond a bound
_MAX_MEMBERS = 64  # of these
_METADATA = ("name", "namespace", "uid", "generation", "creationTimestamp", "labels", "annotations")

_encode = msgspec.json.Encoder().encode


class L7Index:
    """Bodies by object. `put` returns the error of an object beyond a bound, else ""."""

    def __init__(self) -> None:
        self.bodies: TrackedMap[L7ObjectBody] = TrackedMap()
        self._namespace_bytes: dict[str, int] = defaultdict(int)

    def put(self, key: ObjectKey, obj: Object) -> str:
        self._release(key)
        error, body = "", _body(key, obj, ())
        free = MAX_NAMESPACE_BYTES - self._namespace_bytes[key.namespace]
        if len(body) > MAX_L7_BODY_BYTES:
            error = f"has {len(body)} bytes; limit {MAX_L7_BODY_BYTES}"
        elif len(body) > free:
            error = f"the L7 objects of the namespace exceed {MAX_NAMESPACE_BYTES} bytes"
        if error:
            body = _body(key, obj, (f"ztunnel: object ignored: {error}",))
            error = f"{key}: {error}; it is treated as invalid"
        self._namespace_bytes[key.namespace] += len(body)
        self.bodies.put(str(key), L7ObjectBody(*key, body))
        return error

    def drop(self, key: ObjectKey) -> None:
        self._release(key)
        self.bodies.put(str(key), None)

    def _release(self, key: ObjectKey) -> None:
        known = self.bodies.get(str(key))
        if known is not None:
            self._namespace_bytes[key.namespace] -= len(known.body)
            if not self._namespace_bytes[key.namespace]:
                del self._namespace_bytes[key.namespace]


def _body(key: ObjectKey, obj: Object, replacement: tuple[str, ...]) -> bytes:
    """The JSON text; with a `replacement`, large members are replaced by it."""
    metadata, spec = obj.get("metadata"), obj.get("spec")
    kept = {"namespace": key.namespace, "name": key.name}
    if isinstance(metadata, dict):
        kept |= {name: _plain(metadata[name]) for name in _METADATA if name in metadata}
    if isinstance(spec, dict):
        spec = {name: _plain(value) for name, value in spec.items()}
    else:
        spec = _plain(spec)
    if replacement:
        kept = {name: _reduced(value, "") for name, value in kept.items()}
        if isinstance(spec, dict):
            members = list(spec.items())[:_MAX_MEMBERS]
            spec = {name: _reduced(value, replacement[0]) for name, value in members}
    head = {"apiVersion": obj.get("apiVersion"), "kind": key.kind}
    return _encode({**head, "metadata": kept, "spec": spec})


def _plain(value: Any) -> Any:
    return f"ztunnel: {value!r}" if isinstance(value, Undecodable) else value


def _reduced(value: Any, replacement: str) -> Any:
    return value if len(_encode(value)) <= SMALL_MEMBER_BYTES else replacement
