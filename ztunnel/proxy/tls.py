# SPDX-License-Identifier: Apache-2.0
"""Mutual TLS 1.3 between workloads: contexts from certificates, and who the peer is.

Contexts stay on file-descriptor sockets (`ssl.SSLSocket`), so that OpenSSL can hand the record
layer to the kernel where it has TLS. May import `ztunnel.mesh.spiffe` and
`ztunnel.link.messages`.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass

from ztunnel.link.messages import Certificate
from ztunnel.mesh import spiffe

ALPN = "h2"
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
    """The peer's SPIFFE id after the handshake; RefusedPeerError if this is not HBONE's TLS."""
    cipher = sock.cipher()
    if cipher is None or cipher[0] not in CIPHERS:
        raise RefusedPeerError(
            f"cipher {cipher[0] if cipher else None} is not one of {sorted(CIPHERS)}"
        )
    if sock.selected_alpn_protocol() != ALPN:
        raise RefusedPeerError(f"ALPN is {sock.selected_alpn_protocol()}, not {ALPN}")
    return _spiffe_id(sock)


def trust_domain(identity: str) -> str:
    """The trust domain of a SPIFFE id, empty when it is not one."""
    try:
        return spiffe.parse(identity).trust_domain
    except spiffe.SpiffeError:
        return ""


def _spiffe_id(sock: ssl.SSLSocket) -> str:
    """The first URI SAN that is a workload's SPIFFE id."""
    names = (sock.getpeercert() or {}).get("subjectAltName", ())
    for entry in names:
        kind, value = entry[0], entry[1]
        if kind == "URI" and isinstance(value, str) and trust_domain(value):
            return value
    raise RefusedPeerError("certificate has no SPIFFE id")


def _context(protocol: ssl._SSLMethod, certificate: Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.check_hostname = False  # peers are known by SPIFFE id, see `check_peer`
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.options |= getattr(ssl, "OP_ENABLE_KTLS", 0)  # Python ≥ 3.12 names it
    context.set_alpn_protocols([ALPN])
    context.load_verify_locations(cadata=certificate.roots_pem.decode("ascii"))
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # no resumption yet, so no bytes for it
    _load_chain(context, certificate)
    return context


def _load_chain(context: ssl.SSLContext, certificate: Certificate) -> None:
    """Python loads keys from paths only; a memfd is one that never reaches a disk."""
    fd = os.memfd_create("zt-key", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(certificate.key_pem + b"\n" + certificate.chain_pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
