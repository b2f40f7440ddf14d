# SPDX-License-Identifier: Apache-2.0
"""TLS origination: DestinationRule's tls and BackendTLSPolicy as the transport socket of a cluster.

A setting that cannot be honoured raises, and the caller rejects the requests: they must not reach
a backend in plaintext, or one that is not verified.
"""

from __future__ import annotations

import re

from ztunnel.kube.objects.fields import Fields, TranslateError
from ztunnel.kube.objects.l7_kinds import (
    BACKEND_TLS_POLICY,
    CA_CERTIFICATES_ANNOTATION,
    MAX_CA_CERTIFICATES_CHARS,
)
from ztunnel.l7.api.istio.values import Reporter
from ztunnel.l7.config import Json
from ztunnel.l7.inputs import Inputs
from ztunnel.l7.objects import L7Object
from ztunnel.l7.problems import Severity
from ztunnel.l7.traffic.connection_pool import HTTP_OPTIONS
from ztunnel.mesh.model import Service, ServicePort

_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_SERVER_NAME = re.compile(r"[A-Za-z0-9_][-A-Za-z0-9._]{0,252}")
_MODES = ("DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL")
# Debian's package ca-certificates in the proxy image. Envoy does not implement system_root_certs.
SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# What `backend_ca` writes: certificates only
_CERTIFICATES = re.compile(
    r"(?:-----BEGIN CERTIFICATE-----\n(?:[A-Za-z0-9+/=]{1,64}\n)+-----END CERTIFICATE-----\n)+"
)
_SYSTEM = "system"  # Istio's name for them


def rule_tls_fields(tls: Fields, reporter: Reporter, *, is_http: bool) -> Json:
    """Return fields of the cluster for a DestinationRule's tls. Raises TranslateError."""
    tls.allow_only(
        *("mode", "clientCertificate", "privateKey", "caCertificates", "credentialName", "sni"),
        *("subjectAltNames", "insecureSkipVerify", "caCrl"),
    )
    mode = tls.string("mode") or "DISABLE"
    if mode not in _MODES:
        raise tls.error("mode", ", ".join(_MODES))
    if mode == "ISTIO_MUTUAL":
        why = "has no effect: the mesh encrypts connections to enrolled pods anyway"
        reporter.ignored(tls, "mode", why=why)
    if mode in ("DISABLE", "ISTIO_MUTUAL"):
        return {}
    if mode == "MUTUAL":
        raise tls.error("mode", "another mode: waypoints have no client certificates")
    for name in ("credentialName", "caCrl", "clientCertificate", "privateKey"):
        if tls.has(name):
            raise tls.error(name, "none: waypoints cannot read it")
    sni, validation = _server_name(tls, "sni"), _rule_validation(tls)
    if sni:
        return _socket(sni, validation)
    if not is_http:
        raise tls.error("sni", "a name, because the port's protocol is not HTTP")
    names = "match_typed_subject_alt_names"
    options = {
        "auto_sni": True,
        "auto_san_validation": bool(validation) and names not in validation,
    }
    protocol = {HTTP_OPTIONS: {"upstream_http_protocol_options": options}}
    return {**_socket("", validation), "typed_extension_protocol_options": protocol}


def _rule_validation(tls: Fields) -> Json:
    """What the server's certificate must fulfil; empty if nothing."""
    path, names = tls.string("caCertificates"), tls.strings("subjectAltNames")
    if path not in ("", _SYSTEM):  # a path of a tenant's choice could be one without end
        raise tls.error("caCertificates", f"{_SYSTEM}: waypoint pods have no other files")
    if tls.boolean("insecureSkipVerify"):
        if path or names:
            raise tls.error("insecureSkipVerify", "false, because of what is to be verified")
        return {}
    validation = _system_roots()
    sans = [_san("DNS", name) for name in names or [tls.string("sni")] if name]
    sans += [_san("URI", name) for name in names if "://" in name]
    return validation | ({"match_typed_subject_alt_names": sans} if sans else {})


def backend_tls_policy(inputs: Inputs, service: Service, port: ServicePort) -> L7Object | None:
    """Return the BackendTLSPolicy of a port: the oldest that names the port, then the service."""
    found = []
    for obj in inputs.store.of_namespace(BACKEND_TLS_POLICY, service.namespace):
        sections = _target_sections(obj, service)
        if port.name and port.name in sections:
            found.append((0, obj.age_rank, obj))
        elif "" in sections:
            found.append((1, obj.age_rank, obj))
    return min(found, key=lambda one: one[:2])[2] if found else None


def policy_tls_fields(obj: L7Object, reporter: Reporter) -> Json:
    """Return fields of the cluster for a BackendTLSPolicy. Raises TranslateError."""
    spec = Fields(obj.spec, "spec.")
    spec.allow_only("targetRefs", "validation", "options")
    reporter.ignored(spec, "options")
    validation = spec.mapping("validation")
    validation.allow_only(
        "caCertificateRefs", "wellKnownCACertificates", "hostname", "subjectAltNames"
    )
    well_known = validation.string("wellKnownCACertificates")
    if list(validation.mappings("caCertificateRefs")):
        if well_known:
            raise validation.error("wellKnownCACertificates", "none, because of caCertificateRefs")
        authorities = _published_roots(obj, validation)
    elif well_known == "System":
        authorities = _system_roots()
    else:
        raise validation.error("wellKnownCACertificates", "System")
    hostname = _server_name(validation, "hostname")
    if not hostname:
        raise validation.error("hostname", "a host name")
    names = [_policy_san(each) for each in validation.mappings("subjectAltNames")]
    context = {**authorities, "match_typed_subject_alt_names": names or [_san("DNS", hostname)]}
    return _socket(hostname, context)


def report_shadowed_tls(tls: Fields, policy: L7Object, reporter: Reporter) -> None:
    """Report the tls settings of a DestinationRule that a BackendTLSPolicy replaces."""
    message = f"BackendTLSPolicy {policy.name} takes precedence"
    reporter.report(Severity.IGNORED, tls.path("").rstrip("."), message, "Conflicted")


def _target_sections(obj: L7Object, service: Service) -> set[str]:
    """The names of the ports that a policy targets; empty text for all."""
    wanted = ("", "Service", service.name)
    if service.is_service_entry:
        wanted = ("networking.istio.io", "ServiceEntry", service.entry)
    try:
        return {
            ref.string("sectionName")
            for ref in Fields(obj.spec, "spec.").mappings("targetRefs")
            if (ref.string("group"), ref.string("kind"), ref.string("name")) == wanted
        }
    except TranslateError:
        return {""}  # an invalid policy concerns all services of the namespace: fail closed


def _server_name(fields: Fields, name: str) -> str:
    """A name for SNI; Envoy rejects a cluster whose name has over 255 bytes."""
    text = fields.string(name)
    if text and not _SERVER_NAME.fullmatch(text):
        raise fields.error(name, "a host name")
    return text


def _policy_san(fields: Fields) -> Json:
    fields.allow_only("type", "hostname", "uri")
    kind = fields.string("type")
    if kind == "Hostname" and fields.string("hostname"):
        return _san("DNS", fields.string("hostname"))
    if kind == "URI" and fields.string("uri"):
        return _san("URI", fields.string("uri"))
    raise fields.error("type", "Hostname or URI, with the value")


def _system_roots() -> Json:
    return {"trusted_ca": {"filename": SYSTEM_BUNDLE}}


def _published_roots(obj: L7Object, validation: Fields) -> Json:
    """What the controller published. Raises TranslateError if it has not, or if it is not PEM."""
    pem = obj.annotations.get(CA_CERTIFICATES_ANNOTATION, "")
    where = validation.path("caCertificateRefs")
    if not pem:
        raise TranslateError(f"{where}: the controller has not published the certificates")
    if len(pem) > MAX_CA_CERTIFICATES_CHARS or not _CERTIFICATES.fullmatch(pem):
        raise TranslateError(
            f"{where}: the annotation {CA_CERTIFICATES_ANNOTATION} is not certificates in PEM; "
            "hint: remove it"
        )
    return {"trusted_ca": {"inline_string": pem}}


def _san(kind: str, name: str) -> Json:
    return {"san_type": kind, "matcher": {"exact": name}}


def _socket(sni: str, validation: Json) -> Json:
    context: Json = {"@type": _TYPE, "common_tls_context": {}}
    if sni:
        context["sni"] = sni
    if validation:
        context["common_tls_context"]["validation_context"] = validation
    name = "envoy.transport_sockets.tls"
    return {"transport_socket": {"name": name, "typed_config": context}}
