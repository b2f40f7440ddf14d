# SPDX-License-Identifier: Apache-2.0
"""Objects that configure L7, as they come from the API server or from a manifest.

The specs stay plain dicts here: `ztunnel.l7.api` parses them when they are used.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from ztunnel.kube.objects.l7_kinds import L7_KINDS, STORED_KINDS, KindInfo

__all__ = ["L7_KINDS", "STORED_KINDS", "UNREADABLE", "KindInfo", "L7Key", "L7Object", "l7_object"]

# Stands for a spec that is not an object. Without the object, requests would not be denied.
UNREADABLE = "ztunnel: unreadable"
_FAIL_CLOSED = frozenset({"AuthorizationPolicy", "RequestAuthentication"})


class L7Key(NamedTuple):
    """Identifies an object; `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.namespace}/{self.name}"
            if self.namespace
            else f"{self.kind} {self.name}"
        )


class L7Object(msgspec.Struct, frozen=True, kw_only=True):
    """One object. `created` is RFC 3339 text (UTC), empty if unknown: it orders conflicts."""

    kind: str
    namespace: str
    name: str
    generation: int = 0
    created: str = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    spec: dict[str, Any] = {}
    api_version: str = ""

    @property
    def key(self) -> L7Key:
        """The key in updates, removals and logs."""
        return L7Key(self.kind, self.namespace, self.name)

    @property
    def age_rank(self) -> tuple[bool, str, str, str]:
        """Sort key of Gateway API's precedence: oldest first, then by namespace and name."""
        return (not self.created, self.created, self.namespace, self.name)


def l7_object(obj: dict[str, Any]) -> L7Object:
    """Read a Kubernetes object of an L7 kind. Raises ValueError, which names the object.

    Only the metadata is validated; members of unexpected types in the spec are the parsers' task.
    """
    kind = obj.get("kind")
    metadata = obj.get("metadata")
    if not isinstance(kind, str) or kind not in STORED_KINDS or not isinstance(metadata, dict):
        raise ValueError(f"{str(kind)[:64]!r} is not a kind that configures L7")
    name, namespace = metadata.get("name"), metadata.get("namespace") or ""
    if not isinstance(name, str) or not name or not isinstance(namespace, str):
        raise ValueError(f"{kind}: metadata has no valid name and namespace")
    if not STORED_KINDS[kind].cluster_scoped:
        namespace = namespace or "default"
    spec = obj.get("spec")
    if spec is not None and not isinstance(spec, dict) and kind in _FAIL_CLOSED:
        spec = {UNREADABLE: True}
    if spec is not None and not isinstance(spec, dict):
        raise ValueError(f"{kind} {namespace}/{name}: spec is not an object")
    generation = metadata.get("generation")
    created = metadata.get("creationTimestamp")
    return L7Object(
        kind=kind,
        namespace="" if STORED_KINDS[kind].cluster_scoped else namespace,
        name=name,
        generation=generation if isinstance(generation, int) else 0,
        created=created if isinstance(created, str) else "",
        labels=_strings(metadata.get("labels")),
        annotations=_strings(metadata.get("annotations")),
        spec=spec or {},
        api_version=str(obj.get("apiVersion") or STORED_KINDS[kind].api_version),
    )


def _strings(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {k: v for k, v in value.items() if isinstance(k, str) and isinstance(v, str)}
