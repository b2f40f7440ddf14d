# SPDX-License-Identifier: Apache-2.0
"""TLS of listeners towards clients: certificates, versions, validation of clients.

A listener whose TLS cannot be set up as it is written accepts no connections.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ztunnel.l7.api.gateway import (
    CertificateRef,
    ClientValidationMode,
    GatewaySpec,
    ListenerProtocol,
)
from ztunnel.l7.config import Json
from ztunnel.l7.ingress.listeners import EffectiveListener, certificate_files
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.names import CertificateSource, ca_id, certificate_id
from ztunnel.l7.problems import Problem, Severity
from ztunnel.l7.traffic.secrets import authorities_name, certificate_name, reference, secret

NO_VALID_CA = "NoValidCACertificate"  # reason of Gateway API
_PACKAGE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
# Mozilla's "intermediate" configuration without DHE; TLS 1.3 has no choice of ciphers in Envoy.
CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
)
HTTP_ALPN = ("h2", "http/1.1")
_HANDSHAKE_TIMEOUT = "15s"  # Envoy's own default is none
# Istio's option for listeners of Gateways; every other value requires client certificates.
_ISTIO_MODE, _ISTIO_SIMPLE = "gateway.istio.io/tls-terminate-mode", "SIMPLE"


@dataclass(frozen=True)
class TlsContext:
    """The TLS of a listener. `transport_socket`: None if no connection may be accepted.

    `secrets`: resources of type Secret that it refers to, by name.
    """

    transport_socket: Json | None
    secrets: dict[str, Json] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()


def downstream_tls(inputs: Inputs, gateway: GatewaySpec, listener: EffectiveListener) -> TlsContext:
    """Return the TLS of a listener that terminates it."""
    problems = _option_problems(listener)
    if any(each.severity is Severity.ERROR for each in problems):
        return TlsContext(None, problems=problems)
    is_https = listener.listener.protocol is ListenerProtocol.HTTPS
    names = [_certificate_name(each) for each in listener.certificates]
    common: Json = {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_2",
            "tls_maximum_protocol_version": "TLSv1_3",
            "cipher_suites": list(CIPHERS),
        },
        "tls_certificate_sds_secret_configs": [reference(each) for each in names],
    }
    context: Json = {"@type": f"{_PACKAGE}.DownstreamTlsContext", "common_tls_context": common}
    if is_https:
        common["alpn_protocols"] = list(HTTP_ALPN)
        validation = _validation(gateway, listener)
        if isinstance(validation, Problem):
            return TlsContext(None, problems=(*problems, validation))
        common |= validation.common
        context |= validation.context
        names += validation.secrets
    socket: Json = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": context,
    }
    return TlsContext(socket, {each: secret(each) for each in names}, problems)


def handshake_timeout() -> Json:
    """Fields of a filter chain that close connections without a complete handshake."""
    return {"transport_socket_connect_timeout": _HANDSHAKE_TIMEOUT}


@dataclass(frozen=True)
class _Validation:
    """Fields of CommonTlsContext and DownstreamTlsContext, and the secrets that they refer to."""

    common: Json = field(default_factory=dict)
    context: Json = field(default_factory=dict)
    secrets: tuple[str, ...] = ()


def _validation(gateway: GatewaySpec, listener: EffectiveListener) -> _Validation | Problem:
    """The validation of clients of an HTTPS listener, or why none may connect."""
    if gateway.frontend_tls.error:
        return _problem(gateway, gateway.frontend_tls.error, "Invalid")
    port = listener.listener.port
    wanted = gateway.frontend_tls.of_port(port)
    if wanted is None:
        return _Validation()
    name = authorities_name(ca_id(_source(each) for each in wanted.authorities))
    if name not in certificate_files(gateway.obj):
        refs = ", ".join(str(_source(each)) for each in wanted.authorities)
        text = f"no valid authority for clients of port {port} in {refs}: HTTPS is closed"
        return _problem(gateway, text, NO_VALID_CA)
    is_strict = wanted.mode is ClientValidationMode.VALID_ONLY
    # The mode is part of the listener and applies even if the authorities are not loaded yet.
    default = {} if is_strict else {"trust_chain_verification": "ACCEPT_UNTRUSTED"}
    combined = {
        "default_validation_context": default,
        "validation_context_sds_secret_config": reference(name),
    }
    return _Validation(
        {"combined_validation_context": combined},
        {"require_client_certificate": is_strict},
        (name,),
    )


def _option_problems(listener: EffectiveListener) -> tuple[Problem, ...]:
    """Options are specific to an implementation, and this one has none."""
    tls = listener.listener.tls
    found = []
    for name, value in sorted(tls.options.items()) if tls is not None else ():
        is_simple = value == _ISTIO_SIMPLE
        if name == _ISTIO_MODE and is_simple:
            continue
        if name == _ISTIO_MODE:
            text = (
                f"{name}={value} is not supported, the listener is closed; hint: use the "
                "Gateway's spec.tls.frontend to validate clients"
            )
            found.append(_option(listener, text, Severity.ERROR))
        else:
            text = f"the option {name} is not supported and has no effect"
            found.append(_option(listener, text, Severity.IGNORED))
    return tuple(found)


def _certificate_name(ref: CertificateRef) -> str:
    return certificate_name(certificate_id(ref.kind, ref.namespace, ref.name))


def _source(ref: CertificateRef) -> CertificateSource:
    return CertificateSource(ref.kind, ref.namespace, ref.name)


def _option(listener: EffectiveListener, message: str, severity: Severity) -> Problem:
    owner = listener.listener.owner
    return Problem(
        kind=owner.kind,
        namespace=owner.namespace,
        name=owner.name,
        field=f"{listener.listener.where}.tls.options",
        message=message,
        severity=severity,
        reason="UnsupportedValue",
    )


def _problem(gateway: GatewaySpec, message: str, reason: str) -> Problem:
    return Problem(
        kind=gateway.obj.kind,
        namespace=gateway.obj.namespace,
        name=gateway.obj.name,
        field="spec.tls.frontend",
        message=message,
        severity=Severity.ERROR,
        reason=reason,
    )
