# SPDX-License-Identifier: Apache-2.0
"""What the listeners of an ingress gateway require of its objects: ports and certificates.

Gateway, ListenerSets, ReferenceGrants ──▶ ports of the Service; certificates of the Secret
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ztunnel.l7.api.gateway import (
    CertificateRef,
    ClientValidation,
    ListenerProtocol,
    parse_gateway,
)
from ztunnel.l7.deployment.certificates import (
    CertificateUse,
    authorities_use,
    certificate_use,
)
from ztunnel.l7.deployment.service import GatewayPort, Transport, distinct_ports
from ztunnel.l7.ingress.listeners import (
    EffectiveListener,
    ListenerAccepted,
    ListenerConflict,
    effective_listeners,
)
from ztunnel.l7.ingress.topology import HTTP3_ANNOTATION
from ztunnel.l7.names import CertificateSource
from ztunnel.l7.objects import L7Object
from ztunnel.l7.routing.references import Reference, is_granted
from ztunnel.l7.status.facts import CertificateError
from ztunnel.l7.store import L7Store

_AUTHORITY_KINDS = ("ConfigMap", "Secret")


class Requirements(NamedTuple):
    """`ports`: of accepted listeners. `certificates`: that the namespaces of the objects permit."""

    ports: tuple[GatewayPort, ...]
    certificates: tuple[CertificateUse, ...]

    @property
    def sources(self) -> tuple[CertificateSource, ...]:
        """The Secrets and ConfigMaps to read, without duplicates."""
        found = [source for use in self.certificates for source in use.sources]
        return tuple(dict.fromkeys(found))


def requirements(store: L7Store, gateway: L7Object) -> Requirements:
    """Return what an ingress gateway requires, including certificates that are not usable yet."""
    listeners = effective_listeners(store, gateway)
    accepted = [each for each in listeners if _is_accepted(each)]
    # of all listeners: one that is not accepted states why, not that its certificate is missing
    # the Gateway's own first: ListenerSets of others must not use up the limit
    uses = [*_of_gateway(store, gateway)]
    uses += (use for each in listeners for use in _of_listener(store, each))
    http3 = gateway.annotations.get(HTTP3_ANNOTATION) == "true"
    return Requirements(
        distinct_ports(port for each in accepted for port in _ports(each, http3=http3)),
        tuple(dict.fromkeys(uses)),
    )


def _is_accepted(listener: EffectiveListener) -> bool:
    """Without authorities, too: connections are refused until there are some."""
    is_accepted = listener.accepted in (ListenerAccepted.ACCEPTED, ListenerAccepted.NO_VALID_CA)
    return is_accepted and listener.conflicted is ListenerConflict.NONE


def _ports(listener: EffectiveListener, *, http3: bool) -> Iterator[GatewayPort]:
    protocol = listener.listener.protocol
    if protocol is not None:
        is_udp = protocol is ListenerProtocol.UDP
        transport = Transport.UDP if is_udp else Transport.TCP
        yield GatewayPort(listener.listener.port, transport, protocol.lower())
    if http3 and protocol is ListenerProtocol.HTTPS:
        yield GatewayPort(listener.listener.port, Transport.UDP, "http3")


def _of_listener(store: L7Store, listener: EffectiveListener) -> Iterator[CertificateUse]:
    tls = listener.listener.tls
    if tls is None or not listener.terminates_tls:
        return
    for ref in tls.certificates:
        if _is_secret(ref) and _is_permitted(store, listener.listener.owner, ref):
            yield certificate_use(_source(ref))


def _of_gateway(store: L7Store, gateway: L7Object) -> Iterator[CertificateUse]:
    spec = parse_gateway(gateway)
    validations = (spec.frontend_tls.default, *spec.frontend_tls.per_port.values())
    for validation in validations:
        if validation is not None:
            yield _authorities(store, gateway, validation)
    own = spec.backend_certificate
    if own is not None and _is_secret(own) and _is_permitted(store, gateway, own):
        yield certificate_use(_source(own))


def _authorities(store: L7Store, gateway: L7Object, validation: ClientValidation) -> CertificateUse:
    permitted, rejected = [], None
    for ref in validation.authorities:
        if ref.group or ref.kind not in _AUTHORITY_KINDS:
            message = f"{ref.where}: kind {ref.kind} is not supported; hint: use a ConfigMap"
            rejected = rejected or (CertificateError.UNSUPPORTED_KIND, message)
        elif not _is_permitted(store, gateway, ref):
            message = f"{ref.where}: no ReferenceGrant in namespace {ref.namespace} permits it"
            rejected = rejected or (CertificateError.NOT_PERMITTED, message)
        else:
            permitted.append(_source(ref))
    return authorities_use(_sources(validation.authorities), permitted, rejected)


def _sources(refs: Sequence[CertificateRef]) -> list[CertificateSource]:
    return [_source(ref) for ref in refs]


def _source(ref: CertificateRef) -> CertificateSource:
    return CertificateSource(ref.kind, ref.namespace, ref.name)


def _is_secret(ref: CertificateRef) -> bool:
    return (ref.group, ref.kind) == ("", "Secret")


def _is_permitted(store: L7Store, owner: L7Object, ref: CertificateRef) -> bool:
    return is_granted(store, owner, Reference("", ref.kind, ref.namespace, ref.name))
