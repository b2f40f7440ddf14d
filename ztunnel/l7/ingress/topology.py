# SPDX-License-Identifier: Apache-2.0
"""What is in front of a gateway: `gatewayTopology` of Istio's ProxyConfig, and HTTP/3.

    MeshConfig.defaultConfig ◀ annotation proxy.istio.io/config of the Gateway ◀ the same one of
    spec.infrastructure.annotations; a field of a stronger source replaces that of a weaker one

Of an invalid source, nothing is used: the gateway then trusts no proxy in front of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any

import msgspec
import yaml

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.kube.objects.l7_kinds import MAX_GATEWAY_ANNOTATION_CHARS, PROXY_CONFIG_ANNOTATION
from ztunnel.kube.objects.yaml_errors import YAML_ERRORS
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Problem, Severity, problem_of

HTTP3_ANNOTATION = "ztunnel.dev/http3"
MAX_TRUSTED_PROXIES = 64
_WHERE = f"metadata.annotations[{PROXY_CONFIG_ANNOTATION}]"
_HTTP3 = f"metadata.annotations[{HTTP3_ANNOTATION}]"
_KNOWN = ("numTrustedProxies", "forwardClientCertDetails", "proxyProtocol")


class ClientCertDetails(StrEnum):
    """What becomes of x-forwarded-client-cert (Envoy, forward_client_cert_details)."""

    SANITIZE = "SANITIZE"
    FORWARD_ONLY = "FORWARD_ONLY"
    APPEND_FORWARD = "APPEND_FORWARD"
    SANITIZE_SET = "SANITIZE_SET"
    ALWAYS_FORWARD_ONLY = "ALWAYS_FORWARD_ONLY"


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """`trusted_proxies`: in front of the gateway, whose x-forwarded-for is used.

    `proxy_protocol`: connections begin with a PROXY header, of either version.
    """

    trusted_proxies: int = 0
    proxy_protocol: bool = False
    client_cert: ClientCertDetails = ClientCertDetails.SANITIZE_SET
    http3: bool = False
    problems: tuple[Problem, ...] = ()


def topology_of(inputs: Inputs, gateway: L7Object) -> Topology:
    """Return the topology of a gateway."""
    http3 = gateway.annotations.get(HTTP3_ANNOTATION, "false")
    found = Topology(http3=http3 == "true")
    problems: list[Problem] = []
    if http3 not in ("true", "false"):
        text = f"{http3[:40]!r} is neither true nor false: HTTP/3 is off"
        problems.append(_problem(gateway, _HTTP3, text))
    for where, config in _sources(inputs, gateway, problems):
        try:
            found = _merged(found, config)
        except TranslateError as error:
            problems.append(_problem(gateway, where, f"{error}; nothing of it is used"))
        else:
            problems += _unused(gateway, where, config)
    if found.http3 and found.proxy_protocol:
        text = "HTTP/3 has no PROXY header, which proxyProtocol requires: HTTP/3 is off"
        problems.append(_problem(gateway, _HTTP3, text, Severity.IGNORED))
        found = msgspec.structs.replace(found, http3=False)
    return msgspec.structs.replace(found, problems=tuple(problems))


def _sources(
    inputs: Inputs, gateway: L7Object, problems: list[Problem]
) -> Iterator[tuple[str, Fields]]:
    """The sources, the weakest first."""
    default = inputs.settings.mesh_config.get("defaultConfig")
    if isinstance(default, dict):  # other fields of it concern sidecars
        yield "", Fields({"gatewayTopology": default.get("gatewayTopology")}, "defaultConfig.")
    infrastructure = gateway.spec.get("infrastructure")
    added = infrastructure.get("annotations") if isinstance(infrastructure, dict) else None
    texts = {
        _WHERE: gateway.annotations.get(PROXY_CONFIG_ANNOTATION),
        "spec.infrastructure.annotations": (
            added.get(PROXY_CONFIG_ANNOTATION) if isinstance(added, dict) else None
        ),
    }
    for where, text in texts.items():
        if text is None:
            continue
        try:
            yield where, Fields(_parsed(text), "")
        except TranslateError as error:
            problems.append(_problem(gateway, where, str(error)))


def _parsed(text: object) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > MAX_GATEWAY_ANNOTATION_CHARS:
        raise TranslateError(f"want YAML of at most {MAX_GATEWAY_ANNOTATION_CHARS} characters")
    try:
        value = yaml.safe_load(text)
    except YAML_ERRORS as error:
        raise TranslateError(f"is not YAML: {error}"[:512]) from error
    if not isinstance(value, dict | None):
        raise TranslateError("want a mapping")
    found = value or {}
    Fields(found, "").names()  # raises for keys that are not strings
    return found


def _merged(found: Topology, config: Fields) -> Topology:
    fields = config.mapping("gatewayTopology")
    fields.allow_only(*_KNOWN)
    changes: Mapping[str, Any] = {}
    if fields.has("numTrustedProxies"):
        count = fields.raw("numTrustedProxies")
        if type(count) is not int or not 0 <= count <= MAX_TRUSTED_PROXIES:
            raise fields.error("numTrustedProxies", f"an integer from 0 to {MAX_TRUSTED_PROXIES}")
        changes = {**changes, "trusted_proxies": count}
    details = fields.string("forwardClientCertDetails")
    if details and details != "UNDEFINED":
        if details not in set(ClientCertDetails):
            raise fields.error("forwardClientCertDetails", " or ".join(ClientCertDetails))
        changes = {**changes, "client_cert": ClientCertDetails(details)}
    if fields.has("proxyProtocol"):
        fields.mapping("proxyProtocol").allow_only()
        changes = {**changes, "proxy_protocol": True}
    return msgspec.structs.replace(found, **changes)


def _unused(gateway: L7Object, where: str, config: Fields) -> Iterator[Problem]:
    for name in config.names():
        if name != "gatewayTopology":
            text = f"{name} has no effect on gateways: Envoy's configuration is the mesh's own"
            yield _problem(gateway, where, text, Severity.IGNORED)


def _problem(
    gateway: L7Object, where: str, message: str, severity: Severity = Severity.ERROR
) -> Problem:
    return problem_of(
        gateway,
        field=where,
        message=message,
        severity=severity,
        reason="UnsupportedValue",
    )
