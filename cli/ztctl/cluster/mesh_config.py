# SPDX-License-Identifier: Apache-2.0
"""Parses mesh settings from Istio's `IstioOperator` document. Pure.

Every field of the document gets a note, so that ignored fields are visible. A setting that this
mesh cannot provide, and that would change its behavior, is an error.
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
    """The document is not usable; the message has the field and what is expected."""


class OutboundTrafficPolicy(StrEnum):
    """Istio's outboundTrafficPolicy: whether apps may reach unknown destinations."""

    ALLOW_ANY = "ALLOW_ANY"
    REGISTRY_ONLY = "REGISTRY_ONLY"


class Effect(StrEnum):
    """The effect of a field on this mesh."""

    APPLIED = "applied"
    ALWAYS = "always"  # the mesh has no other mode
    IGNORED = "ignored"


@dataclass(frozen=True)
class FieldNote:
    """The effect of one field of the document, and its meaning in this mesh."""

    field: str
    effect: Effect
    meaning: str


@dataclass(frozen=True)
class MeshSettings:
    """The settings of a document; None or () for each that is not set."""

    trust_domain: str | None = None
    root_namespace: str | None = None
    discovery_selectors: tuple[Mapping[str, Any], ...] = ()
    outbound: OutboundTrafficPolicy | None = None


@dataclass
class _Result:
    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[FieldNote] = field(default_factory=list)


def read(document: Any) -> tuple[MeshSettings, list[FieldNote]]:
    """The settings of a document, and a note for each of its fields. Raises MeshConfigError."""
    if not isinstance(document, Mapping):
        raise MeshConfigError(f"expected one {KIND[1]} object, found {_type_name(document)}")
    found = (document.get("apiVersion"), document.get("kind"))
    if found != KIND:
        raise MeshConfigError(
            f"expected apiVersion {KIND[0]} and kind {KIND[1]}, found {found[0]} and {found[1]}"
        )
    result = _Result()
    body = {name: value for name, value in document.items() if name not in ("apiVersion", "kind")}
    _walk(body, "", result)
    return MeshSettings(**result.settings), result.notes


def _walk(value: Any, path: str, result: _Result) -> None:
    """Parse a known field as a whole; of an unknown one, note each leaf as ignored."""
    parser = _PARSERS.get(path)
    if parser is not None:
        note, settings = parser(path, value)
        result.notes.append(note)
        result.settings.update(settings)
    elif isinstance(value, Mapping) and value:
        for name, each in value.items():
            _walk(each, f"{path}.{name}" if path else str(name), result)
    elif path in _GROUPS and value not in (None, {}):
        raise MeshConfigError(f"{path}: expected fields below it, found {_type_name(value)}")
    else:
        result.notes.append(FieldNote(path, Effect.IGNORED, _why_ignored(path)))


_Parsed = tuple[FieldNote, dict[str, Any]]


def _trust_domain(path: str, value: Any) -> _Parsed:
    name = _dns_name(path, value)
    meaning = f"identities are spiffe://{name}/ns/NAMESPACE/sa/ACCOUNT"
    return FieldNote(path, Effect.APPLIED, meaning), {"trust_domain": name}


def _root_namespace(path: str, value: Any) -> _Parsed:
    name = _dns_name(path, value)
    meaning = f"policies in namespace {name} apply to the whole mesh"
    return FieldNote(path, Effect.APPLIED, meaning), {"root_namespace": name}


def _discovery_selectors(path: str, value: Any) -> _Parsed:
    if not isinstance(value, list):
        raise MeshConfigError(
            f"{path}: expected a list of label selectors, found {_type_name(value)}"
        )
    for index, selector in enumerate(value):
        _check_selector(f"{path}[{index}]", selector)
    meaning = (
        "only namespaces that match one of the selectors are part of the mesh"
        if value
        else "an empty list selects all namespaces"
    )
    return FieldNote(path, Effect.APPLIED, meaning), {"discovery_selectors": tuple(value)}


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


def _outbound_traffic_policy(path: str, value: Any) -> _Parsed:
    try:
        mode = OutboundTrafficPolicy(value)
    except ValueError:
        raise MeshConfigError(
            f"{path}: {value!r} is not one of {', '.join(OutboundTrafficPolicy)}; "
            "the default is ALLOW_ANY"
        ) from None
    meaning = {
        OutboundTrafficPolicy.ALLOW_ANY: "connections to unknown destinations are passed through",
        OutboundTrafficPolicy.REGISTRY_ONLY: "connections to unknown destinations are refused",
    }[mode]
    return FieldNote(path, Effect.APPLIED, meaning), {"outbound": mode}


def _require(supported: Any, meaning: str) -> Callable[[str, Any], _Parsed]:
    def parse(path: str, value: Any) -> _Parsed:
        if value != supported:
            raise MeshConfigError(
                f"{path}: {value!r} is not supported; the only supported value is {supported!r}"
            )
        return FieldNote(path, Effect.ALWAYS, meaning), {}

    return parse


def _profile(path: str, value: Any) -> _Parsed:
    if value == "ambient":
        return FieldNote(path, Effect.ALWAYS, "the mesh has no other profile"), {}
    return FieldNote(
        path, Effect.IGNORED, f"{value!r}: the installation corresponds to Istio's ambient profile"
    ), {}


_PARSERS: dict[str, Callable[[str, Any], _Parsed]] = {
    "spec.profile": _profile,
    "spec.meshConfig.enableAmbient": _require(True, "the mesh is ambient; pods need no sidecar"),
    "spec.meshConfig.defaultConfig.proxyProtocol": _require(
        "ambient", "connections of pods use HBONE through the proxy of their node"
    ),
    "spec.meshConfig.trustDomain": _trust_domain,
    "spec.meshConfig.rootNamespace": _root_namespace,
    "spec.meshConfig.discoverySelectors": _discovery_selectors,
    "spec.meshConfig.outboundTrafficPolicy.mode": _outbound_traffic_policy,
}
_GROUPS = {
    "spec",
    "spec.meshConfig",
    "spec.meshConfig.defaultConfig",
    "spec.meshConfig.outboundTrafficPolicy",
}
_IGNORED_REASONS = (  # the first prefix that matches applies, so longer prefixes come first
    ("metadata", "the document is not stored in the cluster"),
    ("spec.hub", "Istio's images are not used; see --image"),
    ("spec.tag", "Istio's images are not used; see --image"),
    ("spec.namespace", "everything is installed into ztunnel-system"),
    ("spec.components", "Istio's components are not installed"),
    ("spec.values", "Istio's chart is not used"),
    ("spec.meshConfig.accessLog", "the access log is configured with `ztctl log level`"),
    ("spec.meshConfig.defaultConfig", "the mesh has no proxy per pod"),
    ("spec.meshConfig", "not supported"),
    ("", "unknown field"),
)


def _why_ignored(path: str) -> str:
    return next(reason for prefix, reason in _IGNORED_REASONS if path.startswith(prefix))


def _dns_name(path: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > 253 or not _DNS_NAME.fullmatch(value):
        raise MeshConfigError(f"{path}: {value!r} is not a lower-case DNS name")
    return value


def _type_name(value: Any) -> str:
    return "nothing" if value is None else type(value).__name__


def note_rows(notes: list[FieldNote]) -> Iterator[dict[str, str]]:
    """Notes as rows of a table."""
    for note in notes:
        yield {"field": note.field, "effect": note.effect.value, "meaning": note.meaning}
