# SPDX-License-Identifier: Apache-2.0
"""Fields that several kinds of routes share: references, header modifiers, durations."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TypeVar

import msgspec

from ztunnel.kube.objects.fields import Fields
from ztunnel.l7.api.regex import regex_error
from ztunnel.l7.objects import L7Object

E = TypeVar("E", bound=StrEnum)

MAX_RULES = 256  # of a route; Gateway API allows 16, Istio's users have more in manifests
_GATEWAY_GROUP = "gateway.networking.k8s.io"
_DURATION = re.compile(r"(?:[0-9]{1,5}(?:h|m|s|ms)){1,4}")  # Gateway API, GEP-2257
_UNITS_S = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+\-.^_`|~]{1,256}")  # RFC 9110, 5.6.2
_MAX_WEIGHT = 1_000_000  # Gateway API, BackendRef.weight
MAX_VALUE_CHARS = 4096  # of a header or query parameter; Gateway API
MAX_BACKENDS = 256  # of a rule: the sum of weights is an integer of 32 bits in Envoy


class ParentRef(msgspec.Struct, frozen=True):
    """A reference to what a route attaches to, with defaults filled in."""

    group: str
    kind: str
    namespace: str
    name: str
    port: int | None = None
    section: str = ""


class BackendRef(msgspec.Struct, frozen=True, kw_only=True):
    """A reference to a backend, with defaults filled in. `where` is its path in the object."""

    group: str
    kind: str
    namespace: str
    name: str
    port: int | None
    where: str
    weight: int = 1


class ValueKind(StrEnum):
    """How a header or query parameter is compared."""

    EXACT = "Exact"
    REGEX = "RegularExpression"


class ValueMatch(msgspec.Struct, frozen=True):
    """A condition on a header (name in lower case) or a query parameter."""

    name: str
    kind: ValueKind
    value: str


class HeaderModifier(msgspec.Struct, frozen=True, kw_only=True):
    """Changes headers of requests, or of responses."""

    of_response: bool
    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


class Mirror(msgspec.Struct, frozen=True):
    """Sends a copy of `numerator` of `denominator` requests to a backend."""

    backend: BackendRef
    numerator: int
    denominator: int


def parse_parents(obj: L7Object) -> tuple[ParentRef, ...]:
    """Return the parents of a route. Raises TranslateError."""
    found = []
    for ref in Fields(obj.spec, "spec.").mappings("parentRefs"):
        ref.allow_only("group", "kind", "namespace", "name", "sectionName", "port")
        group = ref.string("group") if ref.has("group") else _GATEWAY_GROUP
        found.append(
            ParentRef(
                group=group,
                kind=ref.string("kind") or "Gateway",
                namespace=ref.string("namespace") or obj.namespace,
                name=ref.string("name"),
                port=ref.port("port"),
                section=ref.string("sectionName"),
            )
        )
    return tuple(found)


def parse_backend(ref: Fields, namespace: str, *, extra: tuple[str, ...] = ()) -> BackendRef:
    """Return a backend reference; `namespace` is the route's. Raises TranslateError."""
    ref.allow_only("group", "kind", "namespace", "name", "port", "weight", *extra)
    if not ref.string("name"):
        raise ref.error("name", "a name")
    return BackendRef(
        group=ref.string("group"),
        kind=ref.string("kind") or "Service",
        namespace=ref.string("namespace") or namespace,
        name=ref.string("name"),
        port=ref.port("port"),
        where=ref.path("").rstrip("."),
        weight=integer(ref, "weight", 0, _MAX_WEIGHT, default=1),
    )


def parse_values(fields: Fields, name: str, *, of_headers: bool) -> tuple[ValueMatch, ...]:
    """Return conditions on headers or query parameters. Raises TranslateError.

    Gateway API: only the first condition on a name is considered.
    """
    found: dict[str, ValueMatch] = {}
    for each in fields.mappings(name):
        each.allow_only("type", "name", "value")
        key = header_name(each, "name") if of_headers else each.string("name")
        if not TOKEN.fullmatch(key):
            raise each.error("name", "a name of letters, digits and punctuation")
        kind = choice(each, "type", ValueKind, ValueKind.EXACT)
        value = each.string("value")
        if len(value) > MAX_VALUE_CHARS:
            raise each.error("value", f"at most {MAX_VALUE_CHARS} characters")
        if kind is ValueKind.REGEX:
            check_regex(each, "value")
        found.setdefault(key, ValueMatch(key, kind, value))
    return tuple(found.values())


def parse_modifier(fields: Fields, *, of_response: bool) -> HeaderModifier:
    """Return a header modifier. Raises TranslateError."""
    fields.allow_only("set", "add", "remove")
    for name in fields.strings("remove"):
        if not TOKEN.fullmatch(name):
            raise fields.error("remove", "names of headers")
    names = [n.lower() for n in (*fields.strings("remove"), *dict(_headers(fields, "add")))]
    if "host" in names or (of_response and "host" in dict(_headers(fields, "set"))):
        raise fields.invalid("changes the header host; of requests, it can only be set")
    return HeaderModifier(
        of_response=of_response,
        set=_headers(fields, "set"),
        add=_headers(fields, "add"),
        remove=tuple(name.lower() for name in fields.strings("remove")),
    )


def parse_mirror(fields: Fields, namespace: str) -> Mirror:
    """Return a mirror. Raises TranslateError."""
    fields.allow_only("backendRef", "percent", "fraction")
    backend = parse_backend(fields.mapping("backendRef"), namespace)
    if fields.has("fraction") and fields.has("percent"):
        raise fields.error("fraction", "only one of percent and fraction")
    if fields.has("fraction"):
        fraction = fields.mapping("fraction")
        fraction.allow_only("numerator", "denominator")
        denominator = integer(fraction, "denominator", 1, 2**31 - 1, default=100)
        numerator = integer(fraction, "numerator", 0, denominator, default=0)
        return Mirror(backend, numerator, denominator)
    return Mirror(backend, integer(fields, "percent", 0, 100, default=100), 100)


def header_name(fields: Fields, name: str) -> str:
    """Return the name of a header in lower case. Raises TranslateError."""
    value = fields.string(name)
    if not TOKEN.fullmatch(value):
        raise fields.error(name, "the name of a header")
    return value.lower()


def duration_s(fields: Fields, name: str) -> float | None:
    """Return a duration in seconds; None if absent. Raises TranslateError."""
    text = fields.string(name)
    if not text:
        return None
    if not _DURATION.fullmatch(text):
        raise fields.error(name, "a duration such as 1.5h, 10s or 100ms without fractions")
    parts = re.findall(r"([0-9]+)(ms|[hms])", text)
    return sum(int(number) * _UNITS_S[unit] for number, unit in parts)


def integer(fields: Fields, name: str, low: int, high: int, *, default: int) -> int:
    """Return an integer of a range. Raises TranslateError."""
    value = fields.raw(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise fields.error(name, f"an integer from {low} to {high}")
    return value


def choice(fields: Fields, name: str, kind: type[E], default: E) -> E:
    """Return a member of an enumeration. Raises TranslateError."""
    text = fields.string(name)
    try:
        return kind(text) if text else default
    except ValueError:
        raise fields.error(name, " or ".join(kind)) from None


def check_regex(fields: Fields, name: str) -> None:
    """Raise TranslateError unless the field is an expression that Envoy accepts."""
    error = regex_error(fields.string(name)) if fields.string(name) else "it is empty"
    if error:
        raise fields.error(name, f"a regular expression of RE2 ({error})")


def _headers(fields: Fields, name: str) -> tuple[tuple[str, str], ...]:
    found: dict[str, str] = {}
    for each in fields.mappings(name):
        each.allow_only("name", "value")
        value = each.string("value")
        if len(value) > MAX_VALUE_CHARS or any(c in value for c in "\r\n\0"):
            raise each.error(
                "value", f"the value of a header, at most {MAX_VALUE_CHARS} characters"
            )
        found.setdefault(header_name(each, "name"), value)
    return tuple(found.items())
