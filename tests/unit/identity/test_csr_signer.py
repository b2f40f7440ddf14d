# SPDX-License-Identifier: Apache-2.0
"""Requests that the signer signs, and requests that it rejects."""

from __future__ import annotations

import ipaddress
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from ztunnel.identity import ca
from ztunnel.identity.csr import new_request
from ztunnel.identity.csr_signer import (
    MAX_CSR_BYTES,
    CsrRejected,
    IssuedCertificate,
    RejectionReason,
    requested_identity,
    sign,
)

IDENTITY = "spiffe://cluster.local/ns/shop/sa/web"
NOW = datetime.now(UTC).replace(microsecond=0)
URI = x509.UniformResourceIdentifier
Builder = x509.CertificateSigningRequestBuilder


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> ca.Authority:
    directory = tmp_path_factory.mktemp("signer") / "ca"
    ca.create(directory, "cluster.local", now=NOW)  # however long the suite took to come here
    return ca.load(directory)


def _csr(
    *names: x509.GeneralName,
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None,
    more: Callable[[Builder], Builder] = lambda builder: builder,
    subject: str = "",
) -> bytes:
    parts = [x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)] if subject else []
    builder = Builder().subject_name(x509.Name(parts))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    signed = more(builder).sign(key or ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    return signed.public_bytes(serialization.Encoding.PEM)


def _leaf(issued: IssuedCertificate) -> x509.Certificate:
    return x509.load_pem_x509_certificate(issued.chain_pem)


def test_leaf_contains_only_the_identity(authority: ca.Authority) -> None:
    leaf = _leaf(sign(authority, new_request(IDENTITY).csr_pem, IDENTITY, now=NOW))
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert names.critical
    assert list(names.value) == [URI(IDENTITY)]
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usages) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not usage.key_cert_sign
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert leaf.not_valid_before_utc < NOW
    assert leaf.not_valid_after_utc == NOW + timedelta(hours=24)


def test_leaf_has_the_key_of_the_request(authority: ca.Authority) -> None:
    request = new_request(IDENTITY)
    key = serialization.load_pem_private_key(request.key_pem, None)
    leaf = _leaf(sign(authority, request.csr_pem, IDENTITY, now=NOW))
    assert leaf.public_key() == key.public_key()


def test_serials_differ(authority: ca.Authority) -> None:
    csr = new_request(IDENTITY).csr_pem
    assert len({sign(authority, csr, IDENTITY, now=NOW).serial for _ in range(20)}) == 20


def test_chain_verifies_with_openssl_and_cryptography(
    authority: ca.Authority, tmp_path: Path
) -> None:
    issued = sign(authority, new_request(IDENTITY).csr_pem, IDENTITY, now=NOW)
    (tmp_path / "leaf.pem").write_bytes(issued.chain_pem)
    (tmp_path / "root.pem").write_bytes(issued.roots_pem)
    for purpose in ("sslclient", "sslserver"):
        argv = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile"]
        argv += [str(tmp_path / "root.pem"), str(tmp_path / "leaf.pem")]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert _verified_names(issued, issued.roots_pem) == [URI(IDENTITY)]


def test_leaf_does_not_verify_with_another_ca(authority: ca.Authority, tmp_path: Path) -> None:
    issued = sign(authority, new_request(IDENTITY).csr_pem, IDENTITY, now=NOW)
    stranger = ca.load_or_create(tmp_path / "ca", "cluster.local")
    with pytest.raises(VerificationError):
        _verified_names(issued, stranger.roots_pem)


def _verified_names(issued: IssuedCertificate, roots: bytes) -> list[x509.GeneralName]:
    store = Store(x509.load_pem_x509_certificates(roots))
    verifier = PolicyBuilder().store(store).time(NOW).build_client_verifier()
    return list(verifier.verify(_leaf(issued), []).subjects or [])


def test_leaf_never_outlives_the_ca(authority: ca.Authority) -> None:
    end = authority.certificate.not_valid_after_utc
    issued = sign(authority, new_request(IDENTITY).csr_pem, IDENTITY, now=end - timedelta(hours=1))
    assert _leaf(issued).not_valid_after_utc == end


def test_leaf_has_the_requested_ttl(authority: ca.Authority) -> None:
    csr = new_request(IDENTITY).csr_pem
    issued = sign(authority, csr, IDENTITY, now=NOW, ttl=timedelta(seconds=6))
    assert issued.not_after == NOW.timestamp() + 6


def _flipped(csr_pem: bytes) -> bytes:
    der = bytearray(x509.load_pem_x509_csr(csr_pem).public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1  # in the signature
    return x509.load_der_x509_csr(bytes(der)).public_bytes(serialization.Encoding.PEM)


def _ca_request(builder: Builder) -> Builder:
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)


def _cert_sign_request(builder: Builder) -> Builder:
    usage = ca.key_usage(digital_signature=True, key_cert_sign=True)
    return builder.add_extension(usage, critical=True)


OTHER = "spiffe://cluster.local/ns/shop/sa/admin"


def _attributed(builder: Builder) -> Builder:
    return builder.add_attribute(x509.oid.AttributeOID.CHALLENGE_PASSWORD, b"hello")


def _client_only(builder: Builder) -> Builder:
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
    return builder.add_extension(usage, critical=False)


REFUSALS: dict[str, tuple[RejectionReason, Callable[[], bytes]]] = {
    "not pem": (RejectionReason.MALFORMED, lambda: b"hello"),
    "empty": (RejectionReason.MALFORMED, lambda: b""),
    "oversize": (RejectionReason.MALFORMED, lambda: b"x" * (MAX_CSR_BYTES + 1)),
    "broken signature": (RejectionReason.SIGNATURE, lambda: _flipped(_csr(URI(IDENTITY)))),
    "rsa key": (
        RejectionReason.KEY,
        lambda: _csr(URI(IDENTITY), key=rsa.generate_private_key(65537, 2048)),
    ),
    "p-384 key": (
        RejectionReason.KEY,
        lambda: _csr(URI(IDENTITY), key=ec.generate_private_key(ec.SECP384R1())),
    ),
    "no name": (RejectionReason.NAMES, _csr),
    "two identities": (RejectionReason.NAMES, lambda: _csr(URI(IDENTITY), URI(OTHER))),
    "dns name besides": (RejectionReason.NAMES, lambda: _csr(URI(IDENTITY), x509.DNSName("a.b"))),
    "dns name only": (RejectionReason.NAMES, lambda: _csr(x509.DNSName("a.b"))),
    "ip address": (
        RejectionReason.NAMES,
        lambda: _csr(x509.IPAddress(ipaddress.ip_address("10.0.0.1"))),
    ),
    "other identity": (RejectionReason.IDENTITY, lambda: _csr(URI(OTHER))),
    "identity in upper case": (RejectionReason.IDENTITY, lambda: _csr(URI(IDENTITY.upper()))),
    "identity as a prefix": (RejectionReason.IDENTITY, lambda: _csr(URI(IDENTITY + "/x"))),
    "wants to be a ca": (RejectionReason.AUTHORITY, lambda: _csr(URI(IDENTITY), more=_ca_request)),
    "wants to sign": (
        RejectionReason.AUTHORITY,
        lambda: _csr(URI(IDENTITY), more=_cert_sign_request),
    ),
    "another extension": (RejectionReason.EXTRAS, lambda: _csr(URI(IDENTITY), more=_client_only)),
    "an attribute": (RejectionReason.EXTRAS, lambda: _csr(URI(IDENTITY), more=_attributed)),
    "a subject": (RejectionReason.EXTRAS, lambda: _csr(URI(IDENTITY), subject="system:masters")),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_invalid_request_is_rejected(authority: ca.Authority, case: str) -> None:
    reason, make = REFUSALS[case]
    with pytest.raises(CsrRejected) as caught:
        sign(authority, make(), IDENTITY, now=NOW)
    assert caught.value.reason is reason


def test_ed25519_key_is_rejected(authority: ca.Authority) -> None:
    names = x509.SubjectAlternativeName([URI(IDENTITY)])
    signed = (
        Builder()
        .subject_name(x509.Name([]))
        .add_extension(names, critical=True)
        .sign(ed25519.Ed25519PrivateKey.generate(), None)
    )
    with pytest.raises(CsrRejected) as caught:
        sign(authority, signed.public_bytes(serialization.Encoding.PEM), IDENTITY, now=NOW)
    assert caught.value.reason is RejectionReason.KEY


@pytest.mark.parametrize("identity", ["", "web", "https://cluster.local/ns/shop/sa/web"])
def test_invalid_spiffe_id_is_never_signed(authority: ca.Authority, identity: str) -> None:
    with pytest.raises(CsrRejected) as caught:
        sign(authority, _csr(URI(identity)), identity, now=NOW)
    assert caught.value.reason is RejectionReason.IDENTITY


def test_expired_ca_signs_nothing(authority: ca.Authority) -> None:
    later = authority.certificate.not_valid_after_utc
    with pytest.raises(CsrRejected) as caught:
        sign(authority, new_request(IDENTITY).csr_pem, IDENTITY, now=later)
    assert caught.value.reason is RejectionReason.CA_EXPIRED


def test_request_hides_its_key() -> None:
    assert "PRIVATE" not in repr(new_request(IDENTITY))


def test_requested_identity_is_parsed_from_the_request() -> None:
    assert str(requested_identity(new_request(IDENTITY).csr_pem)) == IDENTITY


@pytest.mark.parametrize("name", ["spiffe://cluster.local/ns/shop", "https://a.b/ns/x/sa/y"])
def test_request_without_spiffe_id_has_no_requested_identity(name: str) -> None:
    with pytest.raises(CsrRejected) as caught:
        requested_identity(_csr(URI(name)))
    assert caught.value.reason is RejectionReason.IDENTITY
