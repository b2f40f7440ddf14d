# SPDX-License-Identifier: Apache-2.0
"""Typed access to Kubernetes objects that are plain dicts.

An absent field and an explicit null mean the same, as in Kubernetes' JSON. A field of the wrong
type raises TranslateError.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from ztunnel.kube.objects.l7_kinds import GATEWAY_GROUP, L7_KINDS
from ztunnel.mesh.address import AddressError, canonical

Object = dict[str, Any]

# The kinds that the mesh uses, and the API version of each; other groups may use the same kind.
KINDS = {
    "Namespace": "v1",
    "Node": "v1",
    "Pod": "v1",
    "Service": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "AuthorizationPolicy": "security.istio.io/v1",
    "PeerAuthentication": "security.istio.io/v1",
    "ServiceEntry": "networking.istio.io/v1",
    **{kind: info.api_version for kind, info in L7_KINDS.items()},
}
# Groups in which every version has the same schema: no version may be ignored.
_ANY_VERSION = (
    "security.istio.io",
    "networking.istio.io",
    "telemetry.istio.io",
    "extensions.istio.io",
    GATEWAY_GROUP,
)
_CLUSTER_SCOPED = frozenset(
    {"Namespace", "Node", *(kind for kind, info in L7_KINDS.items() if info.cluster_scoped)}
)


@dataclass(frozen=True, slots=True)
class Undecodable:
    """Stands for a member of an object that could not be decoded. No field accepts it."""

    reason: str

    def __repr__(self) -> str:
        return f"not decodable ({self.reason})"


class TranslateError(ValueError):
    """An object is invalid; the text names the object and the field."""


class ObjectKey(NamedTuple):
    """Identifies an object; `namespace` is empty for cluster-scoped kinds."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        place = f"{self.namespace}/" if self.namespace else ""
        return f"{self.kind} {place}{self.name}"


def make_key(kind: str, namespace: str, name: str) -> ObjectKey:
    """The key of an object; the default namespace is `default`."""
    return ObjectKey(kind, "" if kind in _CLUSTER_SCOPED else namespace or "default", name)


def is_mesh_kind(obj: Object) -> bool:
    """Whether the mesh uses objects of this kind. Items of a list may lack an apiVersion."""
    kind = obj.get("kind")
    version = KINDS.get(kind) if isinstance(kind, str) else None
    actual = obj.get("apiVersion")
    if version is None or actual in (None, version):
        return version is not None
    group = version.partition("/")[0]
    return isinstance(actual, str) and group in _ANY_VERSION and actual.startswith(f"{group}/")


def key_of(obj: Object) -> ObjectKey:
    """The key of an object for which `is_mesh_kind` holds. Raises TranslateError without a name."""
    kind, metadata = obj["kind"], obj.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    namespace = metadata.get("namespace") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name:
        raise TranslateError(f"a {kind} without metadata.name")
    if not isinstance(namespace, str | None):
        raise TranslateError(f"{kind} {name}: metadata.namespace is {namespace!r}, want a string")
    return make_key(kind, namespace or "", name)


class Fields:
    """A mapping inside an object. It knows its path, so that errors can name the field."""

    def __init__(self, value: Object, where: str) -> None:
        self._value = value
        self._where = where

    def error(self, name: str, want: str) -> TranslateError:
        """A TranslateError about one field."""
        return TranslateError(f"{self._where}{name} is {self._value.get(name)!r:.80}, want {want}")

    def path(self, name: str) -> str:
        """The path of a field, for messages."""
        return f"{self._where}{name}"

    def invalid(self, text: str) -> TranslateError:
        """A TranslateError about the mapping itself."""
        return TranslateError(f"{self._where.rstrip('.: ')} {text}")

    def has(self, name: str) -> bool:
        """Whether a field is present and not null."""
        return self._value.get(name) is not None

    def allow_only(self, *names: str) -> None:
        """Reject unknown fields: they may be misspelled."""
        for name in self._value:
            if name not in names:
                known = ", ".join(names)
                raise TranslateError(f"{self._where}{name}: no such field; known: {known}")

    def raw(self, name: str) -> Any:
        """The value as it is, for a reader of its own; None if absent."""
        return self._value.get(name)

    def mapping(self, name: str) -> Fields:
        """A mapping; empty if absent."""
        value = self._value.get(name)
        if not isinstance(value, dict | None):
            raise self.error(name, "a mapping")
        return Fields(value or {}, f"{self._where}{name}.")

    def mappings(self, name: str) -> Iterator[Fields]:
        """The mappings of a list; none if absent."""
        for number, value in enumerate(self._list(name)):
            if not isinstance(value, dict):
                raise self.error(name, "a list of mappings")
            yield Fields(value, f"{self._where}{name}[{number}].")

    def mappings_by_port(self, name: str) -> dict[int, Fields]:
        """Mappings by port number; none if absent."""
        value = self._value.get(name)
        if not isinstance(value, dict | None):
            raise self.error(name, "mappings by port number")
        found = {}
        for key, inner in _items(value):
            text = str(key)
            is_digits = text.isascii() and text.isdigit() and len(text) < 6
            is_port = is_digits and 0 < int(text) < 65536
            if not is_port or not isinstance(inner, dict):
                raise self.error(name, "mappings by port number")
            found[int(text)] = Fields(inner, f"{self._where}{name}.{text}.")
        return found

    def string(self, name: str) -> str:
        """A string; empty if absent."""
        value = self._value.get(name)
        if not isinstance(value, str | None):
            raise self.error(name, "a string")
        return value or ""

    def strings(self, name: str) -> list[str]:
        """A list of strings; empty if absent."""
        values = self._list(name)
        if not all(isinstance(value, str) for value in values):
            raise self.error(name, "a list of strings")
        return values

    def boolean(self, name: str, default: bool = False) -> bool:
        """True or false."""
        value = self._value.get(name)
        if not isinstance(value, bool | None):
            raise self.error(name, "true or false")
        return default if value is None else value

    def names(self) -> list[str]:
        """The names of all fields, for mappings whose keys the user chooses."""
        if not all(isinstance(name, str) for name in self._value):
            raise self.invalid("has a key that is not a string")
        return list(self._value)

    def number(self, name: str, least: float, most: float) -> float | None:
        """A number in [least, most]; None if absent."""
        value = self._value.get(name)
        if value is None:
            return None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not least <= value <= most:
            raise self.error(name, f"a number from {least} to {most}")
        return float(value)

    def port(self, name: str) -> int | None:
        """A port number; None if absent."""
        value = self._value.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
            raise self.error(name, "a port number")
        return value

    def ports_by_name(self, name: str) -> dict[str, int]:
        """Port numbers by name; none if absent."""
        value = self._value.get(name)
        if not isinstance(value, dict | None):
            raise self.error(name, "port numbers by name")
        inner, found = Fields(value or {}, f"{self._where}{name}."), {}
        for key in value or {}:
            number = inner.port(key) if isinstance(key, str) else None
            if number is None:
                raise self.error(name, "port numbers by name")
            found[key] = number
        return found

    def address(self, name: str) -> str:
        """An IP address in canonical form; empty if absent."""
        text = self.string(name)
        return self.canonical_address(text, name) if text else ""

    def addresses(self, name: str) -> list[str]:
        """IP addresses in canonical form; empty if absent."""
        return [self.canonical_address(text, name) for text in self.strings(name)]

    def canonical_address(self, text: str, name: str) -> str:
        """Canonical form of an address that was found in the field `name`."""
        try:
            return canonical(text)
        except AddressError as error:
            raise self.error(name, "IP addresses") from error

    def labels(self, name: str) -> dict[str, str]:
        """Labels or annotations. `version: 1` in a manifest is accepted as "1": a pod must not
        leave the mesh because of missing quotes."""
        value = self._value.get(name)
        if not isinstance(value, dict | None):
            raise self.error(name, "a mapping of strings")
        return {_scalar(key, self, name): _scalar(text, self, name) for key, text in _items(value)}

    def _list(self, name: str) -> list[Any]:
        value = self._value.get(name)
        if not isinstance(value, list | tuple | None):
            raise self.error(name, "a list")
        return list(value or ())


def _items(value: Object | None) -> list[tuple[Any, Any]]:
    return list(value.items()) if value else []


def _scalar(value: Any, fields: Fields, name: str) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return ""
    if isinstance(value, dict | list):
        raise fields.error(name, "a mapping of strings")
    return str(value)
