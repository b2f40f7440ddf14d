# SPDX-License-Identifier: Apache-2.0
"""Parses RequestAuthentication objects as waypoints enforce them. Pure.

An invalid object is replaced by one that denies every request that it is attached to: without it,
a rule that denies certain tokens would match nothing, and backends would accept headers that it
would have removed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

import msgspec

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.api.jwks import JwksError, parse_jwks
from ztunnel.l7.api.target_refs import Target, parse_selector, parse_target_refs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity

KIND = "RequestAuthentication"
NO_TARGETS = "NoTargets"  # reason of a problem that only waypoints have
MAX_RULES = 64  # jwtRules of an object; Istio's CRD allows 4096
MAX_URI_CHARS = 2048  # the limit of Istio's CRD
MAX_LOCATIONS = 16  # headers, parameters, cookies or output headers of a rule, each
MAX_PREFIX_CHARS = 256  # of a token in a header
MAX_REASON_CHARS = 1024
DEFAULT_TIMEOUT_S = 5.0  # of a request for a JWKS, as in Istio
MAX_TIMEOUT_S = 30.0

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,128}")  # RFC 9110, section 5.6.2
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?")
_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)(ms|s|m)")
_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0}
# Headers that route or frame a request: a token must not change them.
_RESERVED_HEADERS = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"}
)
_FIELDS = (
    *("issuer", "audiences", "jwksUri", "jwks_uri", "jwks", "fromHeaders", "fromParams"),
    *("fromCookies", "outputPayloadToHeader", "outputClaimToHeaders", "forwardOriginalToken"),
    *("timeout", "spaceDelimitedClaims"),
)


class JwksUri(msgspec.Struct, frozen=True):
    """Where keys are fetched. `host` is a DNS name or an IP address without brackets."""

    uri: str
    host: str
    port: int
    is_tls: bool


class JwtRule(msgspec.Struct, frozen=True, kw_only=True):
    """One `jwtRules` entry. Exactly one of `jwks` and `jwks_uri` is set. `timeout_s` in seconds.

    `headers`: (name, prefix of the value). `claim_headers`: (header, claim). Names of headers are
    in lower case.
    """

    issuer: str
    audiences: tuple[str, ...] = ()
    jwks: str = ""
    jwks_uri: JwksUri | None = None
    headers: tuple[tuple[str, str], ...] = ()
    params: tuple[str, ...] = ()
    cookies: tuple[str, ...] = ()
    payload_header: str = ""
    claim_headers: tuple[tuple[str, str], ...] = ()
    forward: bool = False
    timeout_s: float = DEFAULT_TIMEOUT_S
    space_delimited: tuple[str, ...] = ()

    @property
    def output_headers(self) -> tuple[str, ...]:
        """The headers that only a verified token may set."""
        own = (self.payload_header,) if self.payload_header else ()
        return (*own, *(header for header, _ in self.claim_headers))


class RequestAuthentication(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed object. See `AuthorizationPolicy` for `targets`, `everywhere` and `refused`."""

    namespace: str
    name: str
    targets: tuple[Target, ...] = ()
    everywhere: bool = False
    selector: dict[str, str] = {}
    rules: tuple[JwtRule, ...] = ()
    refused: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def key(self) -> str:
        """The name in messages."""
        return f"{KIND} {self.namespace}/{self.name}"


@dataclass
class _Context:
    obj: L7Object
    problems: list[Problem] = field(default_factory=list)

    def report(self, message: str, severity: Severity, path: str = "", reason: str = "") -> None:
        self.problems.append(
            Problem(
                kind=KIND,
                namespace=self.obj.namespace,
                name=self.obj.name,
                field=path,
                message=message,
                severity=severity,
                reason=reason or "UnsupportedValue",
            )
        )


def parse_request_authentication(obj: L7Object, root_namespace: str) -> RequestAuthentication:
    """Parse an object. Never raises: an invalid object is one that is `refused`."""
    context = _Context(obj)
    spec = Fields(obj.spec, "spec.")
    targets: tuple[Target, ...] = ()
    selector: dict[str, str] = {}
    everywhere, refused = False, ""
    rules: tuple[JwtRule, ...] = ()
    try:
        targets = parse_target_refs(spec, obj.namespace, root_namespace)
    except TranslateError as error:
        everywhere, refused = True, str(error)
    try:
        selector = parse_selector(spec)
    except TranslateError as error:  # it selects all pods
        refused = refused or str(error)
    try:
        spec.allow_only("selector", "targetRef", "targetRefs", "jwtRules")
        rules = _rules(spec, context)
    except TranslateError as error:
        refused = refused or str(error)
    except Exception as error:  # a defect of the parser must not admit what the policy denies
        refused = refused or f"{type(error).__name__}: {error}"
    if refused:
        refused, rules = refused[:MAX_REASON_CHARS], ()
        context.report(
            f"invalid, denies everything instead: {refused}", Severity.ERROR, "", "Invalid"
        )
    elif not targets:
        context.report(
            "has no targetRefs: only ingress gateways verify tokens, those whose pods it selects",
            Severity.IGNORED,
            "spec.selector" if spec.has("selector") else "spec",
            NO_TARGETS,
        )
    return RequestAuthentication(
        namespace=obj.namespace,
        name=obj.name,
        targets=targets,
        everywhere=everywhere,
        selector=selector,
        rules=rules,
        refused=refused,
        problems=tuple(context.problems),
    )


def _rules(spec: Fields, context: _Context) -> tuple[JwtRule, ...]:
    rules = tuple(_rule(each, context) for each in spec.mappings("jwtRules"))
    if len(rules) > MAX_RULES:
        raise TranslateError(f"spec.jwtRules has {len(rules)}, want at most {MAX_RULES}")
    return rules


def _rule(fields: Fields, context: _Context) -> JwtRule:
    fields.allow_only(*_FIELDS)
    issuer = fields.string("issuer")
    if not issuer:
        raise fields.error("issuer", "the issuer of the tokens")
    uri_field = "jwks_uri" if fields.has("jwks_uri") else "jwksUri"
    uri, jwks = fields.string(uri_field), fields.string("jwks")
    if bool(uri) == bool(jwks):
        raise fields.invalid("needs exactly one of jwks and jwksUri; OpenID discovery is not done")
    return JwtRule(
        issuer=issuer,
        audiences=_bounded(fields, "audiences"),
        jwks=_jwks(fields, jwks, context) if jwks else "",
        jwks_uri=_jwks_uri(fields, uri_field, uri) if uri else None,
        headers=_pairs(fields, "fromHeaders", "name", "prefix"),
        params=_bounded(fields, "fromParams"),
        cookies=_bounded(fields, "fromCookies"),
        payload_header=_output_header(fields, "outputPayloadToHeader"),
        claim_headers=_claim_headers(fields),
        forward=fields.boolean("forwardOriginalToken"),
        timeout_s=_timeout(fields),
        space_delimited=_bounded(fields, "spaceDelimitedClaims"),
    )


def _bounded(fields: Fields, name: str) -> tuple[str, ...]:
    values = tuple(fields.strings(name))
    if len(values) > MAX_LOCATIONS or not all(0 < len(value) <= MAX_URI_CHARS for value in values):
        raise fields.error(name, f"at most {MAX_LOCATIONS} strings that are not empty")
    return values


def _pairs(fields: Fields, name: str, first: str, second: str) -> tuple[tuple[str, str], ...]:
    found = []
    for entry in fields.mappings(name):
        entry.allow_only(first, second)
        if not _TOKEN.fullmatch(entry.string(first)):
            raise entry.error(first, "the name of a header")
        prefix = entry.string(second)
        if len(prefix) > MAX_PREFIX_CHARS or not (prefix.isascii() and prefix.isprintable()):
            raise entry.error(second, "printable characters")
        found.append((entry.string(first).lower(), prefix))
    if len(found) > MAX_LOCATIONS:
        raise fields.error(name, f"at most {MAX_LOCATIONS} entries")
    return tuple(found)


def _claim_headers(fields: Fields) -> tuple[tuple[str, str], ...]:
    found = []
    for entry in fields.mappings("outputClaimToHeaders"):
        entry.allow_only("header", "claim")
        if not entry.string("claim"):
            raise entry.error("claim", "the name of a claim")
        header = _output_header(entry, "header")
        if not header:
            raise entry.error("header", "the name of a header")
        found.append((header, entry.string("claim")))
    if len(found) > MAX_LOCATIONS:
        raise fields.error("outputClaimToHeaders", f"at most {MAX_LOCATIONS} entries")
    return tuple(found)


def _output_header(fields: Fields, name: str) -> str:
    header = fields.string(name).lower()
    if header and (not _TOKEN.fullmatch(header) or header in _RESERVED_HEADERS):
        raise fields.error(name, "the name of a header that does not frame or route requests")
    return header


def _jwks(fields: Fields, text: str, context: _Context) -> str:
    try:
        keys = parse_jwks(text)
    except JwksError as error:
        raise TranslateError(f"{fields.path('jwks')} {error}") from None
    for reason in keys.skipped:
        context.report(f"{reason}: the key is not used", Severity.WARNING, fields.path("jwks"))
    return keys.text


def _jwks_uri(fields: Fields, name: str, text: str) -> JwksUri:
    try:
        parts = urlsplit(text)
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        raise fields.error(name, "an http:// or https:// URI") from None
    host = (parts.hostname or "").rstrip(".")
    is_valid = (
        parts.scheme in ("http", "https")
        and len(text) <= MAX_URI_CHARS
        and text.isascii()
        and text.isprintable()
        and " " not in text
        and not parts.username
        and not parts.password
    )
    if not is_valid or not (_HOST.fullmatch(host) or _ip(host)):
        raise fields.error(name, "an http:// or https:// URI with a host")
    if _is_local(host):
        raise fields.error(name, "a host other than this one and its link: Envoy would request it")
    return JwksUri(text, host, port, parts.scheme == "https")


def _ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _is_local(host: str) -> bool:
    """Whether a host is the gateway pod itself, or a link-local server such as cloud metadata."""
    if host.lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    if not _ip(host):
        return False
    address = ip_address(host)
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(
        mapped.is_loopback or mapped.is_link_local or mapped.is_unspecified or mapped.is_multicast
    )


def _timeout(fields: Fields) -> float:
    text = fields.string("timeout")
    if not text:
        return DEFAULT_TIMEOUT_S
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
    if not 0.001 <= seconds <= MAX_TIMEOUT_S:
        raise fields.error("timeout", f"a duration of 1ms to {MAX_TIMEOUT_S:.0f}s")
    return seconds
