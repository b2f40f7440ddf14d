# SPDX-License-Identifier: Apache-2.0
"""TLS of an ingress gateway: towards clients, and its own certificate towards backends.

A listener whose TLS cannot be set up as it is written accepts no connections. A backend to which
the gateway has no valid certificate to present gets no requests.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from ztunnel.l7.api.gateway import (
    CertificateRef,
    ClientValidationMode,
    GatewaySpec,
    ListenerProtocol,
)
from ztunnel.l7.config import ClusterRef, Json
from ztunnel.l7.ingress.client_authorities import client_authorities
from ztunnel.l7.ingress.listeners import (
    CertificateState,
    EffectiveListener,
    backend_certificate,
    certificate_files,
)
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.names import certificate_id
from ztunnel.l7.problems import Problem, Severity, problem_of
from ztunnel.l7.routing.protocols import service_port
from ztunnel.l7.routing.units import ClusterUnit
from ztunnel.l7.store import L7Store
from ztunnel.l7.traffic.merging import merge_fields
from ztunnel.l7.traffic.secrets import reference, secret
from ztunnel.l7.traffic.tls import backend_tls_policy

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
        validation = _validation(inputs, gateway, listener)
        if validation is None:
            return TlsContext(None, problems=problems)
        common |= validation.common
        context |= validation.context
        names += validation.secrets
    socket: Json = {
        "name": "envoy.transport_sockets.tls",
        "typed_config": context,
    }
    return TlsContext(socket, {each: secret(each) for each in names}, problems)


def with_client_certificate(
    inputs: Inputs, gateway: GatewaySpec, ref: ClusterRef, unit: ClusterUnit
) -> ClusterUnit:
    """Return a cluster that presents the Gateway's `spec.tls.backend.clientCertificateRef`.

    Gateway API: to backends with a BackendTLSPolicy. Others are unchanged.
    """
    service = inputs.mesh.service(ref.service)
    port = service_port(service, ref.port)
    if gateway.backend_certificate is None or "transport_socket" not in (unit.cluster or {}):
        return unit
    if service is None or port is None or backend_tls_policy(inputs, service, port) is None:
        return unit
    state, message = backend_certificate(inputs.store, gateway)
    if state is not CertificateState.RESOLVED:
        problem = _backend_problem(gateway, f"{message}; {ref.service} gets no requests", state)
        return replace(unit, endpoints={"cluster_name": ref.name}, problems=(problem,))
    own = [reference(_certificate_name(gateway.backend_certificate))]
    added = {"common_tls_context": {"tls_certificate_sds_secret_configs": own}}
    # A socket that sends a PROXY header contains the one with TLS.
    socket: Json = {"transport_socket": {"typed_config": added}}
    cluster = unit.cluster or {}
    is_wrapped = "transport_socket" in cluster["transport_socket"]["typed_config"]
    nested: Json = {"transport_socket": {"typed_config": socket}} if is_wrapped else socket
    return replace(unit, cluster=merge_fields(cluster, nested))


def backend_secrets(store: L7Store, gateway: GatewaySpec) -> dict[str, Json]:
    """Return the secret of the certificate that `with_client_certificate` refers to."""
    ref = gateway.backend_certificate
    if ref is None or backend_certificate(store, gateway)[0] is not CertificateState.RESOLVED:
        return {}
    name = _certificate_name(ref)
    return {name: secret(name)}


def quic_socket(transport_socket: Json) -> Json:
    """Return the transport socket for HTTP/3 with the TLS of another one."""
    context = transport_socket["typed_config"]
    # QUIC has TLS 1.3 and this protocol only
    common = {**context["common_tls_context"], "alpn_protocols": ["h3"]}
    common.pop("tls_params", None)
    return {
        "name": "envoy.transport_sockets.quic",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.quic.v3."
            "QuicDownstreamTransport",
            "downstream_tls_context": {
                **{name: value for name, value in context.items() if name != "@type"},
                "common_tls_context": common,
            },
        },
    }


def is_validating(transport_socket: Json) -> bool:
    """Return whether clients may present certificates."""
    return "combined_validation_context" in transport_socket["typed_config"]["common_tls_context"]


def handshake_timeout() -> Json:
    """Fields of a filter chain that close connections without a complete handshake."""
    return {"transport_socket_connect_timeout": _HANDSHAKE_TIMEOUT}


@dataclass(frozen=True)
class _Validation:
    """Fields of CommonTlsContext and DownstreamTlsContext, and the secrets that they refer to."""

    common: Json = field(default_factory=dict)
    context: Json = field(default_factory=dict)
    secrets: tuple[str, ...] = ()


def _validation(
    inputs: Inputs, gateway: GatewaySpec, listener: EffectiveListener
) -> _Validation | None:
    """The validation of clients of an HTTPS listener; None if none may connect."""
    port = listener.listener.port
    found = client_authorities(inputs.store, gateway, port, certificate_files(gateway.obj))
    wanted = gateway.frontend_tls.of_port(port)
    if not found.is_usable:
        return None
    if wanted is None:
        return _Validation()
    is_strict = wanted.mode is ClientValidationMode.VALID_ONLY
    combined = {
        # part of the listener: applies even if the authorities are not loaded yet
        "default_validation_context": (
            {} if is_strict else {"trust_chain_verification": "ACCEPT_UNTRUSTED"}
        ),
        "validation_context_sds_secret_config": reference(found.file),
    }
    return _Validation(
        {"combined_validation_context": combined},
        {"require_client_certificate": is_strict},
        (found.file,),
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
    return certificate_id(ref.kind, ref.namespace, ref.name)


def _option(listener: EffectiveListener, message: str, severity: Severity) -> Problem:
    owner = listener.listener.owner
    return problem_of(
        owner,
        field=f"{listener.listener.where}.tls.options",
        message=message,
        severity=severity,
        reason="UnsupportedValue",
    )


def _backend_problem(gateway: GatewaySpec, message: str, state: CertificateState) -> Problem:
    return problem_of(
        gateway.obj,
        field="spec.tls.backend",
        message=message,
        severity=Severity.ERROR,
        reason=state.value,
    )
