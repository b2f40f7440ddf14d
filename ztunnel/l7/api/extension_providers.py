# SPDX-License-Identifier: Apache-2.0
"""Parses the external authorizers of Istio's MeshConfig (`extensionProviders`). Pure.

Policies of action CUSTOM name a provider. An invalid provider is left out with the reason, so that
the policies that name it deny what they match.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any

import msgspec

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.l7.api.route_fields import duration_s, integer

MAX_PROVIDERS = 256
MAX_HEADERS = 64  # in each list of a provider
DEFAULT_TIMEOUT_S = 10.0  # Istio's is 600: requests would hang as long as an authorizer does
MAX_TIMEOUT_S = 600.0
MAX_BODY_BYTES = 1 << 20  # of a request, which Envoy buffers for the authorizer

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_HEADER = re.compile(r"[!#$%&'+\-.^_`|~0-9A-Za-z]{1,128}")
_HEADER_PATTERN = re.compile(r"\*?[!#$%&'+\-.^_`|~0-9A-Za-z]{1,128}\*?")
_PREFIX = re.compile(r"/[!-~]{0,1023}")
_COMMON = ("service", "port", "timeout", "failOpen", "statusOnError", "clearRouteCache")
_GRPC_FIELDS = (*_COMMON, "includeRequestBodyInCheck")
_HTTP_FIELDS = (
    *_GRPC_FIELDS,
    *("pathPrefix", "includeRequestHeadersInCheck", "includeHeadersInCheck"),
    *("includeAdditionalHeadersInCheck", "headersToUpstreamOnAllow"),
    *("headersToDownstreamOnDeny", "headersToDownstreamOnAllow"),
)


class ProviderKind(StrEnum):
    """The protocol of an authorizer, by its field in MeshConfig."""

    GRPC = "envoyExtAuthzGrpc"
    HTTP = "envoyExtAuthzHttp"


class ExtensionProvider(msgspec.Struct, frozen=True, kw_only=True):
    """An authorizer. `service` is a DNS name; `namespace` is empty if any may provide it.

    `fail_open`: requests pass if the authorizer cannot be reached. `body_bytes`: 0 for no body.
    Headers match exactly, or as `prefix*` or `*suffix`.
    """

    name: str
    kind: ProviderKind
    service: str
    namespace: str = ""
    port: int
    timeout_s: float = DEFAULT_TIMEOUT_S
    fail_open: bool = False
    status_on_error: int = 403
    clear_route_cache: bool = False
    body_bytes: int = 0
    allow_partial_body: bool = False
    path_prefix: str = ""
    request_headers: tuple[str, ...] = ()
    additional_headers: tuple[tuple[str, str], ...] = ()
    upstream_headers: tuple[str, ...] = ()
    deny_headers: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()


def parse_extension_providers(
    mesh_config: Any,
) -> tuple[tuple[ExtensionProvider, ...], tuple[str, ...]]:
    """Return the authorizers of a MeshConfig, and why others are left out.

    Providers of other kinds (of traces, of access logs) are not mentioned.
    """
    found: dict[str, ExtensionProvider] = {}
    errors: list[str] = []
    config = Fields(mesh_config if isinstance(mesh_config, dict) else {}, "")
    try:
        entries = list(config.mappings("extensionProviders"))
    except TranslateError as error:
        return (), (str(error),)
    for entry in entries[:MAX_PROVIDERS]:
        try:
            provider = _provider(entry)
        except TranslateError as error:
            errors.append(str(error))
            continue
        if provider is not None and provider.name in found:
            errors.append(f"extensionProviders: {provider.name} is not unique")
        elif provider is not None:
            found[provider.name] = provider
    if len(entries) > MAX_PROVIDERS:
        errors.append(f"extensionProviders has {len(entries)}, want at most {MAX_PROVIDERS}")
    return tuple(found.values()), tuple(errors)


def _provider(entry: Fields) -> ExtensionProvider | None:
    kinds = [kind for kind in ProviderKind if entry.has(kind)]
    if not kinds:
        return None
    kind = kinds[0]
    if not _NAME.fullmatch(entry.string("name")):
        raise entry.error("name", "a name of letters, digits, ., _ and -")
    fields = entry.mapping(kind)
    fields.allow_only(*(_HTTP_FIELDS if kind is ProviderKind.HTTP else _GRPC_FIELDS))
    namespace, slash, host = fields.string("service").rpartition("/")
    port = fields.port("port")
    if not host or (slash and not namespace) or "/" in namespace:
        raise fields.error("service", "HOSTNAME or NAMESPACE/HOSTNAME")
    if port is None:
        raise fields.error("port", "a port number")
    body, partial = _body(fields)
    return ExtensionProvider(
        name=entry.string("name"),
        kind=kind,
        service=host.lower().rstrip("."),
        namespace=namespace,
        port=port,
        timeout_s=_timeout(fields),
        fail_open=fields.boolean("failOpen"),
        status_on_error=_status(fields),
        clear_route_cache=fields.boolean("clearRouteCache"),
        body_bytes=body,
        allow_partial_body=partial,
        path_prefix=_path_prefix(fields),
        request_headers=_headers(fields, "includeRequestHeadersInCheck")
        + _headers(fields, "includeHeadersInCheck"),
        additional_headers=_additional(fields),
        upstream_headers=_headers(fields, "headersToUpstreamOnAllow"),
        deny_headers=_headers(fields, "headersToDownstreamOnDeny"),
        allow_headers=_headers(fields, "headersToDownstreamOnAllow"),
    )


def _headers(fields: Fields, name: str) -> tuple[str, ...]:
    values = tuple(value.lower() for value in fields.strings(name))
    if len(values) > MAX_HEADERS or not all(_HEADER_PATTERN.fullmatch(each) for each in values):
        raise fields.error(name, f"at most {MAX_HEADERS} names of headers")
    return values


def _additional(fields: Fields) -> tuple[tuple[str, str], ...]:
    values = fields.mapping("includeAdditionalHeadersInCheck")
    found = fields.labels("includeAdditionalHeadersInCheck")
    for name, value in found.items():
        if not _HEADER.fullmatch(name) or not value.isprintable() or len(value) > 4096:
            raise values.error(name, "the name and value of a header")
    return tuple(sorted(found.items()))


def _path_prefix(fields: Fields) -> str:
    text = fields.string("pathPrefix")
    if text and not _PREFIX.fullmatch(text):
        raise fields.error("pathPrefix", "a path that begins with /")
    return text


def _status(fields: Fields) -> int:
    text = fields.string("statusOnError")
    if not text:
        return 403
    if not (text.isascii() and text.isdigit() and len(text) == 3 and 400 <= int(text) < 600):
        raise fields.error("statusOnError", "a status of 400 to 599")
    return int(text)


def _body(fields: Fields) -> tuple[int, bool]:
    if not fields.has("includeRequestBodyInCheck"):
        return 0, False
    body = fields.mapping("includeRequestBodyInCheck")
    body.allow_only("maxRequestBytes", "allowPartialMessage", "packAsBytes")
    if body.boolean("packAsBytes"):
        raise body.error("packAsBytes", "false: bodies are sent as text")
    size = integer(body, "maxRequestBytes", 1, MAX_BODY_BYTES, default=0)
    if not size:
        raise body.error("maxRequestBytes", f"1 to {MAX_BODY_BYTES}")
    return size, body.boolean("allowPartialMessage")


def _timeout(fields: Fields) -> float:
    seconds = duration_s(fields, "timeout")
    if seconds is None:
        return DEFAULT_TIMEOUT_S
    if not 0.001 <= seconds <= MAX_TIMEOUT_S:
        raise fields.error("timeout", f"a duration of 1ms to {MAX_TIMEOUT_S:.0f}s")
    return seconds
