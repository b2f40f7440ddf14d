# SPDX-License-Identifier: Apache-2.0
"""Predicts what a waypoint's Envoy does with a request before it routes it. Pure.

path normalization  ─▶ 400
tokens              ─▶ 401 or 403
authorization       ─▶ 403, see `evaluate`
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ztunnel.l7.api.request_authentication import JwtRule, RequestAuthentication
from ztunnel.l7.inputs import Destination, Inputs
from ztunnel.l7.security.evaluate import Decision, evaluate
from ztunnel.l7.security.filters import REQUEST_AUTHENTICATIONS, effective_policies, is_tcp
from ztunnel.l7.security.jwt import SPACE_DELIMITED
from ztunnel.l7.security.paths import normalize_path
from ztunnel.l7.security.request import Attributes, Claims, Connection, HttpRequest

BAD_REQUEST = 400
UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404


def simulate(
    inputs: Inputs,
    destination: Destination,
    connection: Connection,
    request: HttpRequest | None,
    claims: Claims | None = None,
) -> Decision:
    """Return the decision about a request to a destination, or about a connection of TCP.

    `request` is as the client sends it. `claims` are those of a token with a valid signature, in
    the header `authorization`; its time limits are not checked.
    """
    policies = effective_policies(inputs, destination)
    if request is None or is_tcp(destination):
        return evaluate(policies, (), Attributes(connection, None), tcp=True)
    if (request.method, request.path) == ("OPTIONS", "*"):  # RFC 9110, section 7.1
        return Decision(allowed=False, status=NOT_FOUND, reason="no route matches OPTIONS *")
    path = normalize_path(request.path)
    if path is None:
        reason = f"Envoy rejects the path {request.path!r:.80}"
        return Decision(allowed=False, status=BAD_REQUEST, reason=reason)
    tokens = tuple(REQUEST_AUTHENTICATIONS.attached(inputs, destination))
    rules = [rule for policy in tokens for rule in policy.rules]
    accepting: JwtRule | None = None
    if claims is not None:
        candidates = [rule for rule in rules if _reads_default_place(rule)]
        accepting, rejection = _verify(candidates, claims)
        if rejection is not None:
            return rejection
    headers = tuple(_headers(rules, accepting, claims or {}, request))
    seen = msgspec.structs.replace(request, path=path, headers=headers)
    verified = _normalized(accepting, claims) if accepting and claims is not None else None
    return evaluate(policies, _refused(tokens), Attributes(connection, seen, verified))


def _reads_default_place(rule: JwtRule) -> bool:
    return not (rule.headers or rule.params or rule.cookies)


def _verify(rules: Sequence[JwtRule], claims: Claims) -> tuple[JwtRule | None, Decision | None]:
    """The rule that accepts a token, or why Envoy rejects the request; neither without rules."""
    if not rules:
        return None, None
    of_issuer = [rule for rule in rules if rule.issuer == claims.get("iss")]
    for rule in of_issuer:
        if _has_audience(rule, claims):
            return rule, None
    if of_issuer:
        reason = "the token is for none of the audiences of RequestAuthentication"
        return None, Decision(allowed=False, status=FORBIDDEN, reason=reason)
    reason = f"no RequestAuthentication trusts the issuer {claims.get('iss')!r:.80}"
    return None, Decision(allowed=False, status=UNAUTHORIZED, reason=reason)


def _has_audience(rule: JwtRule, claims: Claims) -> bool:
    found = claims.get("aud")
    audiences = found if isinstance(found, list) else [found]
    wanted = {_audience(each) for each in rule.audiences}
    return not wanted or any(isinstance(a, str) and _audience(a) in wanted for a in audiences)


def _audience(text: str) -> str:
    """Envoy compares audiences without scheme and trailing slash."""
    for scheme in ("http://", "https://"):
        text = text.removeprefix(scheme)
    return text.removesuffix("/")


def _headers(
    rules: Iterable[JwtRule], accepting: JwtRule | None, claims: Claims, request: HttpRequest
) -> Iterator[tuple[str, str]]:
    """The headers after Envoy has removed and added those of the rules."""
    removed = {name for rule in rules for name in rule.output_headers}
    if accepting is not None and not accepting.forward:
        removed.add("authorization")
    yield from (pair for pair in request.headers if pair[0].lower() not in removed)
    for header, claim in accepting.claim_headers if accepting else ():
        text = _header_text(claims, claim)
        if text is not None:
            yield header, text


def _header_text(claims: Claims, name: str) -> str | None:
    value: Any = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int) else None


def _normalized(rule: JwtRule, claims: Claims) -> Claims:
    split = {*SPACE_DELIMITED, *rule.space_delimited}
    return {
        name: value.split(" ") if name in split and isinstance(value, str) else value
        for name, value in claims.items()
    }


def _refused(tokens: Iterable[RequestAuthentication]) -> tuple[RequestAuthentication, ...]:
    return tuple(policy for policy in tokens if policy.refused)
