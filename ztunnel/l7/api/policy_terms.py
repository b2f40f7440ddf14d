# SPDX-License-Identifier: Apache-2.0
"""Attributes of a request that the rules of an AuthorizationPolicy match, and their values. Pure.

Strings match exactly, or as `*` (present), `prefix*`, `*suffix`. Paths may also be templates:
`{*}` is one segment, `{**}` any rest. Addresses are networks, ports are decimal.
"""

from __future__ import annotations

import re
from enum import StrEnum

import msgspec

from ztunnel.kube.objects import policy_values
from ztunnel.kube.objects.fields import Fields, TranslateError

ONE_SEGMENT = "{*}"
ANY_SEGMENTS = "{**}"
MAX_VALUE_CHARS = 1024  # of one value: its regular expression stays far below Envoy's limit
MAX_OPERATORS = 5  # of a path template; the limit of Envoy's URI templates

_HEADER_NAME = re.compile(r":authority|[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,256}")  # RFC 9110, 5.6.2


class Attribute(StrEnum):
    """An attribute, by its name in `when`, or by that of the field that matches it."""

    PRINCIPAL = "source.principal"
    NAMESPACE = "source.namespace"
    ACCOUNT = "source.serviceAccount"
    SOURCE_IP = "source.ip"
    REMOTE_IP = "remote.ip"
    DESTINATION_IP = "destination.ip"
    PORT = "destination.port"
    SNI = "connection.sni"
    REQUEST_PRINCIPAL = "request.auth.principal"
    AUDIENCES = "request.auth.audiences"
    PRESENTER = "request.auth.presenter"
    CLAIM = "request.auth.claims"
    HEADER = "request.headers"
    HOST = "hosts"
    METHOD = "methods"
    PATH = "paths"


HTTP_ONLY = frozenset(
    {
        Attribute.REQUEST_PRINCIPAL,
        Attribute.AUDIENCES,
        Attribute.PRESENTER,
        Attribute.CLAIM,
        Attribute.HEADER,
        Attribute.HOST,
        Attribute.METHOD,
        Attribute.PATH,
    }
)
ADDRESSES = frozenset({Attribute.SOURCE_IP, Attribute.REMOTE_IP, Attribute.DESTINATION_IP})


class Term(msgspec.Struct, frozen=True):
    """Holds if one of `values` (if any) and none of `excluded` match the attribute.

    `key` names a header in lower case, or is the path of a claim; empty for other attributes.
    `at_edge`: for clients of an ingress gateway. Addresses are then those of Envoy, and a host
    without a port matches any port, because a client chooses the port of its host header.
    """

    attribute: Attribute
    values: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    at_edge: bool = False


def parse_values(
    fields: Fields, name: str, attribute: Attribute, namespace: str
) -> tuple[str, ...]:
    """Return the values of a list in canonical form. Raises TranslateError."""
    values = fields.strings(name)
    if any(len(value) > MAX_VALUE_CHARS for value in values):
        raise TranslateError(
            f"{fields.path(name)} has a value of over {MAX_VALUE_CHARS} characters"
        )
    return tuple(_normal(value, attribute, fields, name, namespace) for value in values)


def parse_condition_key(fields: Fields) -> tuple[Attribute, tuple[str, ...]] | None:
    """Return the attribute and key of a `when`; None for one that is valid but not supported.

    Raises TranslateError for an unknown one.
    """
    text = fields.string("key")
    name, bracket, rest = text.partition("[")
    if name.startswith("experimental.envoy.filters."):
        return None
    if bracket and name in (Attribute.HEADER, Attribute.CLAIM) and rest.endswith("]"):
        key = tuple(rest[:-1].split("]["))
        if name == Attribute.CLAIM and all(key) and not any("[" in k or "]" in k for k in key):
            return Attribute.CLAIM, key
        if name == Attribute.HEADER and len(key) == 1 and _HEADER_NAME.fullmatch(key[0]):
            return Attribute.HEADER, (":authority" if key[0].lower() == "host" else key[0].lower(),)
    elif not bracket and text in _CONDITIONS:
        return Attribute(text), ()
    known = ", ".join([*_CONDITIONS, "request.headers[NAME]", "request.auth.claims[NAME]"])
    raise fields.error("key", f"one of {known}")


_CONDITIONS = tuple(
    str(each)
    for each in Attribute
    if each
    not in (Attribute.HEADER, Attribute.CLAIM, Attribute.HOST, Attribute.METHOD, Attribute.PATH)
)


def request_principal_parts(value: str) -> tuple[str, str]:
    """Return what issuer and subject of a token must match, for a value of `requestPrincipals`.

    The last slash separates them, since issuers may be URLs. Without a slash, the wildcard that is
    missing covers the other part, as in Istio.
    """
    issuer, slash, subject = value.rpartition("/")
    if slash:
        return issuer, subject
    if value.startswith("*"):
        return "*", value
    return (value, "*") if value.endswith("*") else (value, "")


def is_template(path: str) -> bool:
    """Whether a value of `paths` is a template."""
    return ONE_SEGMENT in path or ANY_SEGMENTS in path


def template_regex(path: str) -> str:
    """Return the expression that a path must match in full; RE2 and Python read it alike."""
    parts = re.split(r"(\{\*\*?\})", path)
    operators = {ONE_SEGMENT: "[^/]+", ANY_SEGMENTS: ".*"}
    return "".join(operators.get(part) or re.escape(part) for part in parts)


def _normal(text: str, attribute: Attribute, fields: Fields, name: str, namespace: str) -> str:
    if attribute in ADDRESSES:
        return policy_values.network(text, fields, name)
    if attribute is Attribute.PORT:
        return policy_values.port(text, fields, name)
    if attribute is Attribute.ACCOUNT:
        return policy_values.account(text, fields, name, namespace)
    if attribute is Attribute.PATH and is_template(text):
        return _template(text, fields, name)
    if attribute is Attribute.PRINCIPAL:
        text = text.removeprefix("spiffe://")
    stem = text[:-1] if text.endswith("*") else text.removeprefix("*")
    if not text or "*" in stem:
        raise fields.error(name, "strings with * only alone, at the beginning or at the end")
    return text


def _template(text: str, fields: Fields, name: str) -> str:
    segments = text.split("/")
    operators = [each for each in segments if each in (ONE_SEGMENT, ANY_SEGMENTS)]
    others = "".join(each for each in segments if each not in operators)
    is_valid = (
        text.startswith("/")
        and not any(char in others for char in "*{}")
        and len(operators) <= MAX_OPERATORS
        and ANY_SEGMENTS not in operators[:-1]
    )
    if not is_valid:
        raise fields.error(
            name,
            f"templates of whole segments {ONE_SEGMENT} and {ANY_SEGMENTS}, the latter as the last "
            f"of at most {MAX_OPERATORS} operators",
        )
    return text
