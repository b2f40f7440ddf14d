# SPDX-License-Identifier: Apache-2.0
"""Mutual TLS 1.3 between workloads: contexts from certificates, and who the peer is.

Contexts stay on file-descriptor sockets (`ssl.SSLSocket`), so that OpenSSL can hand the record
layer to the kernel where it has TLS. May import `ztunnel.mesh.spiffe`, `ztunnel.link.messages` and
`ztunnel.identity.chain`.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ztunnel.identity import chain
from ztunnel.link.messages import Certificate
from ztunnel.mesh import spiffe

ALPN = "h2"
OP_ENABLE_KTLS = 1 << 3  # OpenSSL 3's SSL_OP_ENABLE_KTLS, which Python names from 3.12 on
CIPHERS = frozenset({"TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"})  # istio ztunnel: tls


class RefusedPeerError(Exception):
    """The handshake was good TLS but not a peer we talk to; the text says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Credentials:
    """What one identity shows and trusts. A renewal makes a new object."""

    identity: str
    not_after: float  # Unix seconds
    client: ssl.SSLContext
    server: ssl.SSLContext


def credentials(certificate: Certificate) -> Credentials:
    """Contexts of both roles. Raises ssl.SSLError when the material does not fit together."""
    return Credentials(
        identity=certificate.identity,
        not_after=certificate.not_after,
        client=_context(ssl.PROTOCOL_TLS_CLIENT, certificate),
        server=_context(ssl.PROTOCOL_TLS_SERVER, certificate),
    )


def check_peer(sock: ssl.SSLSocket) -> str:
    """The peer's SPIFFE id after the handshake; RefusedPeerError if this is not HBONE's TLS.

    A resumed session proves who the peer was when it was made: that ends with its certificate.
    New roots or a new certificate of ours are a new context, which resumes nothing old.
    """
    cipher = sock.cipher()
    if cipher is None or cipher[0] not in CIPHERS:
        raise RefusedPeerError(
            f"cipher {cipher[0] if cipher else None} is not one of {sorted(CIPHERS)}"
        )
    if sock.selected_alpn_protocol() != ALPN:
        raise RefusedPeerError(f"ALPN is {sock.selected_alpn_protocol()}, not {ALPN}")
    certificate = sock.getpeercert() or {}
    if sock.session_reused and _has_expired(certificate):
        raise RefusedPeerError("the certificate of the resumed session has expired")
    return _spiffe_id(certificate)


def has_outlived(sock: ssl.SSLSocket) -> bool:
    """Whether the peer's certificate has expired since the handshake."""
    certificate = sock.getpeercert()
    return bool(certificate) and _has_expired(certificate or {})


def trust_domain(identity: str) -> str:
    """The trust domain of a SPIFFE id, empty when it is not one."""
    try:
        return spiffe.parse(identity).trust_domain
    except spiffe.SpiffeError:
        return ""


def _has_expired(certificate: Mapping[str, Any]) -> bool:
    return ssl.cert_time_to_seconds(certificate["notAfter"]) < time.time()


def _spiffe_id(certificate: Mapping[str, Any]) -> str:
    """The first URI SAN that is a workload's SPIFFE id."""
    for entry in certificate.get("subjectAltName", ()):
        kind, value = entry[0], entry[1]
        if kind == "URI" and isinstance(value, str) and trust_domain(value):
            return value
    raise RefusedPeerError("certificate has no SPIFFE id")


def _context(protocol: ssl._SSLMethod, certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # peers are known by SPIFFE id, see `check_peer`
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= OP_ENABLE_KTLS
    context.set_alpn_protocols([ALPN])
    context.load_verify_locations(cadata=certificate.roots_pem.decode("ascii"))
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 1  # a client makes one tunnel at a time
    chain.load(context, certificate.chain_pem, certificate.key_pem)
    return context
