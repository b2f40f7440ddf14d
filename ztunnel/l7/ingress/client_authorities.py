# SPDX-License-Identifier: Apache-2.0
"""The authorities that validate client certificates at HTTPS listeners (`spec.tls.frontend`).

A bundle without some of its references still validates clients. Without any valid reference, the
listener accepts no connection.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import NamedTuple

from ztunnel.l7.api.gateway import CertificateRef, GatewaySpec
from ztunnel.l7.names import CertificateSource, ca_id
from ztunnel.l7.objects import L7Object
from ztunnel.l7.routing.references import Reference, is_granted
from ztunnel.l7.store import L7Store

_KINDS = ("ConfigMap", "Secret")


class AuthorityError(StrEnum):
    """Why a reference is not used: reasons of a listener's condition ResolvedRefs."""

    INVALID_REF = "InvalidCACertificateRef"
    INVALID_KIND = "InvalidCACertificateKind"
    NOT_PERMITTED = "RefNotPermitted"


class ClientAuthorities(NamedTuple):
    """`file`: the bundle in the gateway's pods; empty if clients are not validated.

    `is_usable`: whether the listener may accept connections. `error`: of the first reference that
    cannot be used.
    """

    file: str = ""
    is_usable: bool = True
    error: AuthorityError | None = None
    message: str = ""


def client_authorities(
    store: L7Store, gateway: GatewaySpec, port: int, files: Mapping[str, str]
) -> ClientAuthorities:
    """Return the authorities of HTTPS listeners at a port. `files`: the usable ones in the pods."""
    if gateway.frontend_tls.error:
        message = gateway.frontend_tls.error
        return ClientAuthorities("", False, AuthorityError.INVALID_REF, message)
    validation = gateway.frontend_tls.of_port(port)
    if validation is None:
        return ClientAuthorities()
    refs = validation.authorities
    sources = [CertificateSource(ref.kind, ref.namespace, ref.name) for ref in refs]
    file = f"{ca_id(sources)}.ca"
    errors = list(_errors(store, gateway.obj, refs))
    if len(errors) == len(refs):
        return ClientAuthorities(file, False, *errors[0])
    if file not in files:
        names = ", ".join(f"{each.kind} {each.namespace}/{each.name}" for each in sources)
        error = errors[0] if errors else (AuthorityError.INVALID_REF, f"no valid ca.crt in {names}")
        return ClientAuthorities(file, False, *error)
    return ClientAuthorities(file, True, *(errors[0] if errors else (None, "")))


def _errors(
    store: L7Store, gateway: L7Object, refs: tuple[CertificateRef, ...]
) -> Iterator[tuple[AuthorityError, str]]:
    for ref in refs:
        if ref.group or ref.kind not in _KINDS:
            message = f"{ref.where}: kind {ref.kind} is not supported; hint: use a ConfigMap"
            yield AuthorityError.INVALID_KIND, message
        elif not is_granted(store, gateway, Reference("", ref.kind, ref.namespace, ref.name)):
            message = f"{ref.where}: no ReferenceGrant in namespace {ref.namespace} permits it"
            yield AuthorityError.NOT_PERMITTED, message
