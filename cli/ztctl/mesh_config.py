# SPDX-License-Identifier: Apache-2.0
"""Reads Istio's `IstioOperator` document: what it sets here, and what each field means. Pure.

Every field that a document has gets one note, so nobody has to guess what was ignored. What would
make the mesh other than its reader expects is an error, not a note.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

KIND = ("install.istio.io/v1alpha1", "IstioOperator")
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")  # metav1.LabelSelectorOperator


class MeshConfigError(ValueError):
    """The document can't be used; the text names the field and what would be right."""


class Outbound(StrEnum):
    """What an app may reach besides services and workloads; Istio's names."""

    ALLOW_ANY = "ALLOW_ANY"
    REGISTRY_ONLY = "REGISTRY_ONLY"


class Effect(StrEnum):
    HONOURED = "honoured"
    ALWAYS = "always so"  # asks for what is done anyway
    IGNORED = "ignored"


@dataclass(frozen=True)
class Note:
    """What one field of the document means here."""

    field: str
    effect: Effect
    meaning: str


@dataclass(frozen=True)
class MeshSettings:
    """None and () where the document says nothing."""

    trust_domain: str | None = None
    root_namespace: str | None = None
    discovery_selectors: tuple[Mapping[str, Any], ...] = ()
    outbound: Outbound | None = None


@dataclass
class _Reading:
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)


def read(document: Any) -> tuple[MeshSettings, list[Note]]:
    """The settings of one document and a note on each of its fields. Raises MeshConfigError."""
    if not isinstance(document, Mapping):
        raise MeshConfigError(f"expected one {KIND[1]} object, found {_kind(document)}")
    found = (document.get("apiVersion"), document.get("kind"))
    if found != KIND:
        raise MeshConfigError(
            f"expected apiVersion {KIND[0]} and kind {KIND[1]}, found {found[0]} and {found[1]}"
        )
    reading = _Reading()
    body = {name: value for name, value in document.items() if name not in ("apiVersion", "kind")}
    _walk(body, "", reading)
    return MeshSettings(**reading.settings), reading.notes


def _walk(value: Any, path: str, reading: _Reading) -> None:
    """A known field is read whole; of others each leaf is noted."""
    reader = _READERS.get(path)
    if reader is not None:
        note, settings = reader(path, value)
        reading.notes.append(note)
        reading.settings.update(settings)
    elif isinstance(value, Mapping) and value:
        for name, each in value.items():
            _walk(each, f"{path}.{name}" if path else str(name), reading)
    elif path in _GROUPS and value not in (None, {}):
        raise MeshConfigError(f"{path}: expected fields below it, found {_kind(value)}")
    else:
        reading.notes.append(Note(path, Effect.IGNORED, _why_ignored(path)))


_Read = tuple[Note, dict[str, Any]]


def _trust_domain(path: str, value: Any) -> _Read:
    name = _dns_name(path, value)
    meaning = f"identities are spiffe://{name}/ns/NAMESPACE/sa/ACCOUNT"
    return Note(path, Effect.HONOURED, meaning), {"trust_domain": name}


def _root_namespace(path: str, value: Any) -> _Read:
    name = _dns_name(path, value)
    meaning = f"policies in namespace {name} are the whole mesh's"
    return Note(path, Effect.HONOURED, meaning), {"root_namespace": name}


def _selectors(path: str, value: Any) -> _Read:
    if not isinstance(value, list):
        raise MeshConfigError(f"{path}: expected a list of label selectors, found {_kind(value)}")
    for index, selector in enumerate(value):
        _check_selector(f"{path}[{index}]", selector)
    meaning = (
        "only namespaces that one of the selectors matches are of the mesh's world"
        if value
        else "an empty list selects all namespaces"
    )
    return Note(path, Effect.HONOURED, meaning), {"discovery_selectors": tuple(value)}


def _check_selector(path: str, selector: Any) -> None:
    if not isinstance(selector, Mapping) or selector.keys() - {"matchLabels", "matchExpressions"}:
        raise MeshConfigError(f"{path}: expected matchLabels and matchExpressions only")
    labels = selector.get("matchLabels") or {}
    if not isinstance(labels, Mapping) or not all(
        isinstance(each, str) for each in labels.values()
    ):
        raise MeshConfigError(f"{path}.matchLabels: expected labels and their values, as text")
    for expression in selector.get("matchExpressions") or []:
        if not isinstance(expression, Mapping) or expression.get("operator") not in _OPERATORS:
            raise MeshConfigError(
                f"{path}.matchExpressions: expected a key, one of {', '.join(_OPERATORS)}, values"
            )
        needs_values = expression["operator"] in ("In", "NotIn")
        if bool(expression.get("values")) != needs_values or not expression.get("key"):
            raise MeshConfigError(
                f"{path}.matchExpressions: In and NotIn need values, the others must have none"
            )


def _outbound(path: str, value: Any) -> _Read:
    try:
        mode = Outbound(value)
    except ValueError:
        raise MeshConfigError(
            f"{path}: {value!r} is none of {', '.join(Outbound)}; without the field it is ALLOW_ANY"
        ) from None
    meaning = {
        Outbound.ALLOW_ANY: "what is neither service nor workload is reached as it is",
        Outbound.REGISTRY_ONLY: "what is neither service nor workload is refused",
    }[mode]
    return Note(path, Effect.HONOURED, meaning), {"outbound": mode}


def _must_be(wanted: Any, meaning: str) -> Callable[[str, Any], _Read]:
    def reader(path: str, value: Any) -> _Read:
        if value != wanted:
            raise MeshConfigError(
                f"{path}: {value!r} asks for a mesh that this is not; only {wanted!r} is there"
            )
        return Note(path, Effect.ALWAYS, meaning), {}

    return reader


def _profile(path: str, value: Any) -> _Read:
    if value == "ambient":
        return Note(path, Effect.ALWAYS, "there is only this one"), {}
    return Note(path, Effect.IGNORED, f"{value!r}: what is installed is like Istio's ambient"), {}


_READERS: dict[str, Callable[[str, Any], _Read]] = {
    "spec.profile": _profile,
    "spec.meshConfig.enableAmbient": _must_be(True, "the mesh is ambient, pods need no sidecar"),
    "spec.meshConfig.defaultConfig.proxyProtocol": _must_be(
        "ambient", "pods' connections go through their node's proxy by HBONE"
    ),
    "spec.meshConfig.trustDomain": _trust_domain,
    "spec.meshConfig.rootNamespace": _root_namespace,
    "spec.meshConfig.discoverySelectors": _selectors,
    "spec.meshConfig.outboundTrafficPolicy.mode": _outbound,
}
_GROUPS = {
    "spec",
    "spec.meshConfig",
    "spec.meshConfig.defaultConfig",
    "spec.meshConfig.outboundTrafficPolicy",
}
_REASONS = (  # the longest path that fits tells why
    ("metadata", "the document is read, not kept in the cluster"),
    ("spec.hub", "images of Istio are not used; see --image"),
    ("spec.tag", "images of Istio are not used; see --image"),
    ("spec.namespace", "everything is installed into ztunnel-system"),
    ("spec.components", "Istio's components are not installed here"),
    ("spec.values", "Istio's chart is not used here"),
    ("spec.meshConfig.accessLog", "each connection is logged by proxy or agent, always"),
    ("spec.meshConfig.defaultConfig", "there is no proxy per pod to be configured"),
    ("spec.meshConfig", "nothing here depends on it"),
    ("", "not known here"),
)


def _why_ignored(path: str) -> str:
    return next(reason for prefix, reason in _REASONS if path.startswith(prefix))


def _dns_name(path: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 253 or not _DNS_NAME.fullmatch(value):
        raise MeshConfigError(f"{path}: {value!r} is no DNS name in lower case")
    return value


def _kind(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def rows(notes: list[Note]) -> Iterator[dict[str, str]]:
    """For a table."""
    for note in notes:
        yield {"field": note.field, "effect": note.effect.value, "meaning": note.meaning}
