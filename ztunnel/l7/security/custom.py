# SPDX-License-Identifier: Apache-2.0
"""Policies of action CUSTOM: an external authorizer decides about the requests that match.

    RBAC filter, shadow rules   writes the name of the rule that matches to the dynamic metadata
    ext_authz filter            asks the authorizer if that name is there

Each provider has such a pair of filters. A policy whose provider is missing, invalid, or unable to
decide about the port denies what it matches. A policy in dry run has no effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from ztunnel.l7.api.authorization_policy import KIND, Action, AuthorizationPolicy
from ztunnel.l7.api.extension_providers import (
    ExtensionProvider,
    ProviderKind,
    parse_extension_providers,
)
from ztunnel.l7.config import Json
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.security.matchers import text
from ztunnel.l7.security.rbac import rbac_policies
from ztunnel.mesh.model import Service

PROVIDER_NOT_FOUND = "ProviderNotFound"  # the reason of a Problem
_TYPE = "type.googleapis.com/envoy.extensions"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_DIAL_TIMEOUT = "5s"
_EFFECTIVE_POLICY = "shadow_effective_policy_id"  # Envoy's key, after the prefix of the filter


class Authorizer(NamedTuple):
    """A provider, the service that it is, and the policies that name it."""

    provider: ExtensionProvider
    service: Service
    policies: tuple[AuthorizationPolicy, ...]


class Resolved(NamedTuple):
    """`policies` has no CUSTOM ones: each either denies, or is with its authorizer."""

    policies: tuple[AuthorizationPolicy, ...]
    authorizers: tuple[Authorizer, ...]


class CustomFilters(NamedTuple):
    """Filters in order, and the clusters that they use."""

    filters: tuple[Json, ...]
    clusters: tuple[Json, ...]


def resolve(inputs: Inputs, policies: Iterable[AuthorizationPolicy], *, tcp: bool) -> Resolved:
    """Find the authorizers of policies; those without one become DENY policies."""
    others: list[AuthorizationPolicy] = []
    custom: dict[str, list[AuthorizationPolicy]] = {}
    for policy in policies:
        if policy.action is Action.CUSTOM:
            custom.setdefault(policy.provider, []).append(policy)
        else:
            others.append(policy)
    if not custom:
        return Resolved(tuple(others), ())
    parsed, _ = parse_extension_providers(inputs.settings.mesh_config)
    providers = {each.name: each for each in parsed}
    authorizers: list[Authorizer] = []
    for name, named in sorted(custom.items()):
        provider = providers.get(name)
        service = _service(inputs, provider) if provider is not None else None
        error = _error(name, provider, service, tcp)
        if provider is None or service is None or error:
            others += [_denying(policy, error) for policy in named]
            continue
        enforced = tuple(policy for policy in named if not policy.dry_run)
        others += [_without_effect(policy) for policy in named if policy.dry_run]
        if enforced:
            authorizers.append(Authorizer(provider, service, enforced))
    return Resolved(tuple(others), tuple(authorizers))


def custom_filters(authorizers: Iterable[Authorizer], *, tcp: bool) -> CustomFilters:
    """Return the pairs of filters, and the clusters of the authorizers."""
    filters: list[Json] = []
    clusters: dict[str, Json] = {}
    for number, each in enumerate(authorizers):
        prefix = f"ztunnel_ext_authz_{number}_"
        filters += [_matching(each, prefix, tcp), _asking(each, prefix, tcp)]
        clusters[_cluster_name(each.provider)] = _cluster(each)
    return CustomFilters(tuple(filters), tuple(clusters.values()))


def _service(inputs: Inputs, provider: ExtensionProvider) -> Service | None:
    service = inputs.mesh.service_by_hostname(provider.service, provider.namespace)
    if service is None or (provider.namespace and service.namespace != provider.namespace):
        return None
    return service


def _error(
    name: str, provider: ExtensionProvider | None, service: Service | None, tcp: bool
) -> str:
    if provider is None:
        return f"MeshConfig has no valid extension provider {name}"
    if service is None:
        return f"the mesh has no service {provider.service} of provider {name}"
    if not service.vips:
        return f"service {service.key} of provider {name} has no address"
    if tcp and provider.kind is ProviderKind.HTTP:
        return f"provider {name} speaks HTTP, which cannot decide about TCP connections"
    return ""


def _denying(policy: AuthorizationPolicy, error: str) -> AuthorizationPolicy:
    problem = Problem(
        kind=KIND,
        namespace=policy.namespace,
        name=policy.name,
        field="spec.provider.name",
        message=f"{error}: what the policy matches is denied",
        severity=Severity.ERROR,
        reason=PROVIDER_NOT_FOUND,
    )
    return msgspec.structs.replace(policy, action=Action.DENY, problems=(*policy.problems, problem))


def _without_effect(policy: AuthorizationPolicy) -> AuthorizationPolicy:
    problem = Problem(
        kind=KIND,
        namespace=policy.namespace,
        name=policy.name,
        field="metadata.annotations[istio.io/dry-run]",
        message="a CUSTOM policy in dry run has no effect: the authorizer is not asked",
        severity=Severity.IGNORED,
        reason="NoEffect",
    )
    return msgspec.structs.replace(
        policy, action=Action.AUDIT, rules=(), problems=(*policy.problems, problem)
    )


def _matching(each: Authorizer, prefix: str, tcp: bool) -> Json:
    rules: dict[str, Json] = {}
    for policy in each.policies:
        for name, rule in rbac_policies(policy, tcp=tcp).items():
            rules[f"istio-ext-authz-{name}"] = rule
    side = "network" if tcp else "http"
    config: Json = {
        "@type": f"{_TYPE}.filters.{side}.rbac.v3.RBAC",
        "shadow_rules": {"action": "DENY", "policies": rules},
        "shadow_rules_stat_prefix": prefix,
    }
    if tcp:
        config["stat_prefix"] = "waypoint."
    return {"name": f"envoy.filters.{side}.rbac", "typed_config": config}


def _asking(each: Authorizer, prefix: str, tcp: bool) -> Json:
    provider = each.provider
    side = "network" if tcp else "http"
    config: Json = {
        "@type": f"{_TYPE}.filters.{side}.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "failure_mode_allow": provider.fail_open,
        "filter_enabled_metadata": {
            "filter": f"envoy.filters.{side}.rbac",
            "path": [{"key": prefix + _EFFECTIVE_POLICY}],
            "value": {"string_match": {"prefix": "istio-ext-authz-"}},
        },
    }
    if tcp:
        config |= {"stat_prefix": "waypoint.", "grpc_service": _grpc_service(provider)}
    else:
        config |= _http_options(provider)
    return {"name": f"envoy.filters.{side}.ext_authz", "typed_config": config}


def _http_options(provider: ExtensionProvider) -> Json:
    config: Json = {
        "status_on_error": {"code": provider.status_on_error},
        "clear_route_cache": provider.clear_route_cache,
    }
    if provider.body_bytes:
        config["with_request_body"] = {
            "max_request_bytes": provider.body_bytes,
            "allow_partial_message": provider.allow_partial_body,
        }
    if provider.kind is ProviderKind.GRPC:
        return {**config, "grpc_service": _grpc_service(provider)}
    if provider.request_headers:
        config["allowed_headers"] = _patterns(provider.request_headers)
    return {**config, "http_service": _http_service(provider)}


def _grpc_service(provider: ExtensionProvider) -> Json:
    target = {"cluster_name": _cluster_name(provider), "authority": provider.service}
    return {"envoy_grpc": target, "timeout": f"{provider.timeout_s:.3f}s"}


def _http_service(provider: ExtensionProvider) -> Json:
    service: Json = {
        "server_uri": {
            "uri": f"http://{provider.service}",
            "cluster": _cluster_name(provider),
            "timeout": f"{provider.timeout_s:.3f}s",
        },
    }
    if provider.path_prefix:
        service["path_prefix"] = provider.path_prefix
    if provider.additional_headers:
        service["authorization_request"] = {
            "headers_to_add": [
                {"key": name, "value": value} for name, value in provider.additional_headers
            ]
        }
    response = {
        "allowed_upstream_headers": provider.upstream_headers,
        "allowed_client_headers": provider.deny_headers,
        "allowed_client_headers_on_success": provider.allow_headers,
    }
    if any(response.values()):
        service["authorization_response"] = {
            name: _patterns(headers) for name, headers in response.items() if headers
        }
    return service


def _patterns(headers: Iterable[str]) -> Json:
    return {"patterns": [{**text(header), "ignore_case": True} for header in headers]}


def _cluster_name(provider: ExtensionProvider) -> str:
    return f"ext-authz|{provider.name}"


def _cluster(each: Authorizer) -> Json:
    """Dials the virtual address: the proxy of the pod carries and balances the connection."""
    provider, service = each.provider, each.service
    address = {"socket_address": {"address": service.vips[0], "port_value": provider.port}}
    endpoint = {"endpoint": {"address": address}}
    name = _cluster_name(provider)
    found: Json = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": _DIAL_TIMEOUT,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    }
    if provider.kind is ProviderKind.GRPC:
        options = {
            "@type": f"type.googleapis.com/{_HTTP_OPTIONS}",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
        found["typed_extension_protocol_options"] = {_HTTP_OPTIONS: options}
    return found
