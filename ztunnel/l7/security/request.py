# SPDX-License-Identifier: Apache-2.0
"""A request as policies see it. Pure.

Every attribute is what Envoy matches: the path is normalized and has no query, header names are in
lower case, and `claims` are of a token that has been verified.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from ztunnel.l7.api.policy_terms import Attribute, Term
from ztunnel.l7.security.paths import without_query
from ztunnel.mesh.model import SocketAddress

Claims = Mapping[str, Any]


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """A connection to a waypoint. `identity` is the client's SPIFFE ID, empty if it has none.

    `destination` is the address that the client dialed: of the service or the pod.
    """

    identity: str = ""
    source_ip: str = ""
    destination: SocketAddress
    sni: str = ""


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request on a connection. `path` is normalized, with its query."""

    method: str = "GET"
    authority: str = ""
    path: str = "/"
    headers: tuple[tuple[str, str], ...] = ()


class Attributes:
    """The attributes of a request, or of a TCP connection if `http` is None."""

    def __init__(
        self, connection: Connection, http: HttpRequest | None, claims: Claims | None = None
    ) -> None:
        self._connection = connection
        self._http = http
        self._claims = claims or {}
        self._principal = connection.identity.removeprefix("spiffe://")
        _, _, rest = self._principal.partition("/ns/")
        self._namespace, _, self._account = rest.partition("/sa/")

    def address(self, attribute: Attribute) -> str:
        """The address of an attribute in `policy_terms.ADDRESSES`."""
        if attribute is Attribute.DESTINATION_IP:
            return self._connection.destination.ip
        return self._connection.source_ip

    @property
    def port(self) -> int:
        """The destination port."""
        return self._connection.destination.port

    @property
    def request_principal(self) -> tuple[str, str]:
        """Issuer and subject of the token, empty if there is none."""
        issuer, subject = self._claims.get("iss"), self._claims.get("sub")
        return (
            issuer if isinstance(issuer, str) else "",
            subject if isinstance(subject, str) else "",
        )

    def texts(self, term: Term) -> Iterator[str]:
        """Yield the values of a text attribute; a term matches if it matches one of them."""
        attribute = term.attribute
        if attribute is Attribute.HEADER:
            yield from self._header(term.key[0])
        elif attribute is Attribute.CLAIM:
            yield from self._claim(term.key)
        elif attribute is Attribute.AUDIENCES:
            yield from self._claim(("aud",))
        elif attribute is Attribute.PRESENTER:
            yield from self._claim(("azp",))
        elif attribute in _IDENTITY:
            if self._connection.identity:
                yield self._identity(attribute)
        elif attribute is Attribute.SNI:
            yield self._connection.sni
        elif self._http is not None:
            yield self._request_line(attribute, self._http)

    def _identity(self, attribute: Attribute) -> str:
        if attribute is Attribute.PRINCIPAL:
            return self._principal
        if attribute is Attribute.NAMESPACE:
            return self._namespace
        return f"{self._namespace}/{self._account}"

    def _request_line(self, attribute: Attribute, http: HttpRequest) -> str:
        if attribute is Attribute.HOST:
            return http.authority.lower()
        if attribute is Attribute.METHOD:
            return http.method
        return without_query(http.path)

    def _header(self, name: str) -> Iterator[str]:
        if self._http is None:
            return
        if name == ":authority":
            yield self._http.authority
        yield from (value for key, value in self._http.headers if key.lower() == name)

    def _claim(self, key: tuple[str, ...]) -> Iterator[str]:
        value: object = self._claims
        for part in key:
            if not isinstance(value, Mapping) or part not in value:
                return
            value = value[part]
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, str):
                yield each


_IDENTITY = frozenset({Attribute.PRINCIPAL, Attribute.NAMESPACE, Attribute.ACCOUNT})
