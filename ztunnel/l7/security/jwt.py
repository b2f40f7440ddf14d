# SPDX-License-Identifier: Apache-2.0
"""RequestAuthentications as Envoy's jwt_authn filter, and the clusters that it fetches keys from.

A request without a token passes; one with an invalid token gets 401. If several rules apply, a
token that one of them accepts is enough, and each further token must be valid (as in Istio).
Envoy removes the headers that rules write from every request before it verifies tokens.

Envoy fetches a JWKS by itself, in the background, and keeps it for `JWKS_CACHE`. The pod's proxy
carries the request like every other connection of the pod.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address
from typing import NamedTuple

from ztunnel.l7.api.request_authentication import JwksUri, JwtRule, RequestAuthentication
from ztunnel.l7.config import Json
from ztunnel.l7.names import SYSTEM_CA_FILE
from ztunnel.l7.security.matchers import JWT_FILTER, PAYLOAD

JWKS_CACHE = "300s"  # Istio's value
SPACE_DELIMITED = ("permission", "scope")  # claims that Istio always splits
_TYPE = "type.googleapis.com/envoy.extensions"
_DIAL_TIMEOUT = "5s"
_BUFFER_BYTES = 1 << 16


class JwtFilter(NamedTuple):
    """The filter, and the clusters that it uses."""

    http: Json
    clusters: tuple[Json, ...]


def jwt_filter(policies: Iterable[RequestAuthentication]) -> JwtFilter | None:
    """Return the filter of the policies that are attached to a destination; None without rules."""
    rules = {
        f"{policy.namespace}/{policy.name}/{number}": rule
        for policy in policies
        for number, rule in enumerate(policy.rules)
    }
    if not rules:
        return None
    config: Json = {
        "@type": f"{_TYPE}.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": {name: _provider(rule) for name, rule in rules.items()},
        "rules": [{"match": {"prefix": "/"}, "requires": _requirement(list(rules))}],
    }
    uris = [rule.jwks_uri for rule in rules.values() if rule.jwks_uri is not None]
    clusters = {cluster["name"]: cluster for cluster in map(_cluster, uris)}
    return JwtFilter({"name": JWT_FILTER, "typed_config": config}, tuple(clusters.values()))


def _provider(rule: JwtRule) -> Json:
    claims = sorted({*SPACE_DELIMITED, *rule.space_delimited})
    found: Json = {
        "issuer": rule.issuer,
        "forward": rule.forward,
        "payload_in_metadata": PAYLOAD,
        "normalize_payload_in_metadata": {"space_delimited_claims": claims},
        "clear_route_cache": True,  # routes may match headers that the token sets
    }
    if rule.audiences:
        found["audiences"] = list(rule.audiences)
    if rule.headers:
        found["from_headers"] = [
            {"name": name, **({"value_prefix": prefix} if prefix else {})}
            for name, prefix in rule.headers
        ]
    if rule.params:
        found["from_params"] = list(rule.params)
    if rule.cookies:
        found["from_cookies"] = list(rule.cookies)
    if rule.payload_header:
        found["forward_payload_header"] = rule.payload_header
    if rule.claim_headers:
        found["claim_to_headers"] = [
            {"header_name": header, "claim_name": claim} for header, claim in rule.claim_headers
        ]
    return {**found, **_keys(rule)}


def _keys(rule: JwtRule) -> Json:
    if rule.jwks_uri is None:
        # Verified tokens, 100 per worker, are not verified again; their times are still checked.
        return {"local_jwks": {"inline_string": rule.jwks}, "jwt_cache_config": {}}
    return {
        "remote_jwks": {
            "http_uri": {
                "uri": rule.jwks_uri.uri,
                "cluster": cluster_name(rule.jwks_uri),
                "timeout": f"{rule.timeout_s:.3f}s",
            },
            "cache_duration": JWKS_CACHE,
            # No cache of tokens: it would outlive the removal of a key.
            # The listener does not wait for a server that may never respond.
            "async_fetch": {"fast_listener": True},
            "retry_policy": {
                "num_retries": 2,
                "retry_back_off": {"base_interval": "0.2s", "max_interval": "2s"},
            },
        }
    }


def _requirement(names: list[str]) -> Json:
    optional = [
        {"requires_any": {"requirements": [{"provider_name": name}, {"allow_missing": {}}]}}
        for name in names
    ]
    if len(names) == 1:
        return optional[0]
    one = [{"provider_name": name} for name in names]
    every = {"requires_all": {"requirements": optional}}
    return {"requires_any": {"requirements": [*one, every]}}


def cluster_name(uri: JwksUri) -> str:
    """The cluster of a JWKS server."""
    scheme = "https" if uri.is_tls else "http"
    return f"jwks|{scheme}|{uri.host}|{uri.port}"


def _cluster(uri: JwksUri) -> Json:
    address = {"socket_address": {"address": uri.host, "port_value": uri.port}}
    endpoint = {"endpoint": {"address": address}}
    name = cluster_name(uri)
    found: Json = {
        "name": name,
        "type": "STATIC" if _is_ip(uri.host) else "STRICT_DNS",
        "connect_timeout": _DIAL_TIMEOUT,
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if not _is_ip(uri.host):
        found["dns_lookup_family"] = "V4_PREFERRED"
    if uri.is_tls:
        found["transport_socket"] = _tls(uri.host)
    return found


def _tls(host: str) -> Json:
    san = {"san_type": "IP_ADDRESS" if _is_ip(host) else "DNS", "matcher": {"exact": host}}
    validation = {
        "trusted_ca": {"filename": SYSTEM_CA_FILE},
        "match_typed_subject_alt_names": [san],
    }
    config: Json = {
        "@type": f"{_TYPE}.transport_sockets.tls.v3.UpstreamTlsContext",
        "common_tls_context": {"validation_context": validation},
    }
    if not _is_ip(host):
        config["sni"] = host
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
