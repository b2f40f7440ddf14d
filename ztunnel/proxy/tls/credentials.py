# SPDX-License-Identifier: Apache-2.0
"""Mutual TLS 1.3 between workloads: TLS contexts from certificates, and the peer's identity."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL
from OpenSSL.crypto import X509, X509Store, X509StoreContext, X509StoreContextError

from ztunnel.ipc.messages import Certificate
from ztunnel.mesh import spiffe
from ztunnel.proxy.tls.session import TlsSession

ALPN = b"h2"
CIPHERS = frozenset({"TLS_AES_256_GCM_SHA384", "TLS_AES_128_GCM_SHA256"})  # istio ztunnel: tls
_Key = EllipticCurvePrivateKey | RSAPrivateKey
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, openssl/x509_vfy.h
_SESSION_ID_CONTEXT = b"ztunnel"  # session ID context: OpenSSL requires one to resume sessions


class PeerVerificationError(Exception):
    """TLS succeeded, but the peer is not acceptable; the text is the reason."""


class PeerSession(Protocol):
    """A session whose handshake is complete, see `TlsSession`."""

    @property
    def peer_certificate(self) -> x509.Certificate: ...

    @property
    def peer_chain(self) -> list[x509.Certificate]: ...


@dataclass(slots=True, eq=False)
class Credentials:
    """The certificate and roots of one identity. A renewal creates a new object: `successor`."""

    identity: str
    not_after: float  # Unix seconds
    client: SSL.Context
    server: SSL.Context
    roots: tuple[x509.Certificate, ...]
    issuers: tuple[x509.Certificate, ...]  # of the own certificate
    leaf: x509.Certificate  # the own certificate
    successor: Credentials | None = None

    @property
    def latest(self) -> Credentials:
        """The credentials after all renewals so far."""
        latest = self
        while latest.successor is not None:
            latest = latest.successor
        return latest

    @property
    def peer_certificate(self) -> x509.Certificate:
        """What a peer of these credentials sees, as a PeerSession."""
        return self.leaf

    @property
    def peer_chain(self) -> list[x509.Certificate]:
        return [self.leaf, *self.issuers]

    def trusts(self, session: PeerSession, *, checks_time: bool = False) -> bool:
        """Whether the peer's certificate chains to the roots, regardless of its expiry.

        `checks_time`: expired certificates are not trusted.
        A resumed session has no intermediate certificates of the peer. Those of the own chain
        replace them, because the workloads of a mesh usually have the same issuer.
        """
        store = X509Store()
        if not checks_time:
            store.set_flags(_NO_CHECK_TIME)
        for root in self.roots:
            store.add_cert(X509.from_cryptography(root))
        try:
            leaf = X509.from_cryptography(session.peer_certificate)
            chain = [X509.from_cryptography(one) for one in (*session.peer_chain, *self.issuers)]
            X509StoreContext(store, leaf, chain).verify_certificate()
        except (X509StoreContextError, ValueError):
            return False
        return True


def load_credentials(certificate: Certificate) -> Credentials:
    """TLS contexts for both roles. Raises ValueError for an inconsistent certificate message."""
    roots = x509.load_pem_x509_certificates(certificate.roots_pem)
    chain = x509.load_pem_x509_certificates(certificate.chain_pem)
    key = load_pem_private_key(certificate.key_pem, None)
    if not isinstance(key, _Key):
        raise ValueError("the private key is neither EC nor RSA")
    try:
        client = _context(SSL.TLS_CLIENT_METHOD, roots, chain, key)
        server = _context(SSL.TLS_SERVER_METHOD, roots, chain, key)
    except SSL.Error as error:
        raise ValueError(f"certificate, key and roots are inconsistent: {error}") from error
    client.set_alpn_protos([ALPN])
    server.set_alpn_select_callback(_choose_protocol)
    server.set_session_id(_SESSION_ID_CONTEXT)
    return Credentials(
        identity=certificate.identity,
        not_after=certificate.not_after,
        client=client,
        server=server,
        roots=tuple(roots),
        issuers=tuple(chain[1:]),
        leaf=chain[0],
    )


def check_peer(session: TlsSession) -> str:
    """The peer's SPIFFE ID after the handshake; PeerVerificationError if TLS is not HBONE's.

    A resumed session proves the peer's identity at the time of the full handshake. It is valid
    until the peer's certificate expires. New roots or a new certificate of this side create a new
    context, which cannot resume older sessions.
    """
    if session.cipher not in CIPHERS:
        raise PeerVerificationError(f"cipher {session.cipher} is not one of {sorted(CIPHERS)}")
    if session.protocol != ALPN:
        raise PeerVerificationError(f"ALPN is {session.protocol.decode('latin-1') or None}, not h2")
    try:
        certificate = session.peer_certificate
        if session.resumed and is_expired(certificate):
            raise PeerVerificationError("the certificate of the resumed session has expired")
        return identity_of(certificate)
    except ValueError as error:  # OpenSSL accepted it, the stricter parser does not
        raise PeerVerificationError(f"certificate cannot be read: {error}") from error


def identity_of(certificate: x509.Certificate) -> str:
    """The SPIFFE ID of a workload's certificate.

    Raises PeerVerificationError if it is not one, and ValueError if it cannot be read.
    """
    _check_is_leaf(certificate)
    return _spiffe_id(certificate)


def is_expired(certificate: x509.Certificate) -> bool:
    """Whether the certificate has expired since the handshake."""
    return certificate.not_valid_after_utc.timestamp() < time.time()


def trust_domain(identity: str) -> str:
    """The trust domain of a SPIFFE ID; empty for any other text."""
    try:
        return spiffe.parse(identity).trust_domain
    except spiffe.SpiffeError:
        return ""


def _check_is_leaf(certificate: x509.Certificate) -> None:
    """Reject a certificate that may sign others (X509-SVID sections 4.1 and 4.3)."""
    extensions = certificate.extensions
    with suppress(x509.ExtensionNotFound):
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise PeerVerificationError("certificate is a CA certificate, not a workload's")
    with suppress(x509.ExtensionNotFound):
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        if usage.key_cert_sign or usage.crl_sign:
            raise PeerVerificationError("the key usage of the certificate allows signing others")


def _spiffe_id(certificate: x509.Certificate) -> str:
    """The SPIFFE ID of a workload in the only URI SAN (X509-SVID section 2)."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise PeerVerificationError("certificate has no SPIFFE ID") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) > 1:
        raise PeerVerificationError(
            f"certificate has {len(uris)} URI names, expected one SPIFFE ID"
        )
    if not uris or not trust_domain(uris[0]):
        raise PeerVerificationError("certificate has no SPIFFE ID")
    return uris[0]


def _choose_protocol(
    _: SSL.Connection, offered: Sequence[bytes]
) -> bytes | SSL._NoOverlappingProtocols:
    """Select h2; `check_peer` rejects a client that does not offer it."""
    return ALPN if ALPN in offered else SSL.NO_OVERLAPPING_PROTOCOLS


def _context(
    method: int, roots: list[x509.Certificate], chain: list[x509.Certificate], key: _Key
) -> SSL.Context:
    """Without host name checks: `check_peer` checks the SPIFFE ID."""
    context = SSL.Context(method)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_mode(SSL.MODE_RELEASE_BUFFERS)
    context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT)
    store = context.get_cert_store()
    assert store is not None
    for root in roots:
        store.add_cert(X509.from_cryptography(root))
    leaf, *issuers = chain
    context.use_certificate(leaf)
    for issuer in issuers:
        context.add_extra_chain_cert(issuer)
    context.use_privatekey(key)
    context.check_privatekey()
    return context
